"""Reads an experiment's config: a file and flags -> checked sections."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import importlib.util
import inspect
import os
from pathlib import Path
import traceback
import types
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

import rl_reason
from rl_reason.config import checks, naming
from rl_reason.config import fields as config_lib
from rl_reason.config import recorded as recorded_lib
from rl_reason.config.checks import at_least
from rl_reason.evaluation.accuracy import Evaluation
from rl_reason.models.sources import Policy
from rl_reason.reporting import whole_files
from rl_reason.rollout.episodes import EnvironmentSection
from rl_reason.run import record
from rl_reason.run.layout import check_layout, FIELDS
from rl_reason.runtime.checkpoint import Checkpointing
from rl_reason.runtime.profiling import Profile
from rl_reason.runtime.sharding import MeshSection, RolloutMesh
from rl_reason.stages.registry import find_kind
from rl_reason.tasks.registry import TaskSection


@dataclasses.dataclass(frozen=True)
class Logging:
  """What a run records beside metrics.jsonl.

  tensorboard: whether TensorBoard files are written.
  wandb: keyword arguments of wandb.init; {}: nothing is sent to Weights & Biases.
  profile: which steps of which stage are traced.
  """
  tensorboard: bool = False
  wandb: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  profile: Profile = Profile()


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A whole run, except the sections of its stages.

  policy: architecture, tokenizer, initial parameters and dtype of the policy.
  stages: names of the stages, in order. Each is also the name of a section of the config: the
    section's field `kind` names a stage in rl_reason.stages.registry.STAGES, and its other fields
    are that stage's. A stage starts from its predecessor's parameters.
  task: the problems that policies are evaluated on, which needs evaluation's rewards and sampling.
    Stages without data of their own learn from it. None: policies are not evaluated on problems.
  environment: who answers a policy's turns; None: a completion is one turn.
  evaluation: how often and how a policy is evaluated on the task.
  seed: the run's seed, in [0, 2^31); every random key is folded from it.
  max_prompt_tokens: longest prompt, in tokens; longer prompts are an error.
  prefill_tokens: sampling reads prompts in stretches of `n` tokens (rollout.generate); 0: whole.
  mesh: how the devices that update are arranged.
  rollout_mesh: devices set apart for sampling while others update; size 0: there are none.
  sharding_rules: (logical axis, mesh axes) pairs that replace the defaults
    runtime.sharding.DEFAULT_RULES.
  checkpoint: how often checkpoints are saved and how many are kept.
  logging: what is recorded beside metrics.jsonl.
  """
  policy: Policy
  stages: tuple[str, ...]
  task: TaskSection | None = None
  environment: EnvironmentSection | None = None
  evaluation: Evaluation = Evaluation()
  seed: int = 0
  max_prompt_tokens: int = 256
  prefill_tokens: int = 0
  mesh: MeshSection = MeshSection()
  rollout_mesh: RolloutMesh = RolloutMesh()
  sharding_rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
  checkpoint: Checkpointing = Checkpointing()
  logging: Logging = Logging()

  def __post_init__(self):
    at_least(1, max_prompt_tokens=self.max_prompt_tokens)
    at_least(0, prefill_tokens=self.prefill_tokens)
    if self.prefill_tokens > self.max_prompt_tokens:
      raise ValueError(
          f"prefill_tokens={self.prefill_tokens} is more than"
          f" max_prompt_tokens={self.max_prompt_tokens}: every"
          " prompt would be padded to it. Lower prefill_tokens, or set 0 to read prompts whole.")
    if not 0 <= self.seed < 2 ** 31:
      raise ValueError(f"seed must be in [0, 2^31), got {self.seed}.")
    if self.task is not None:
      missing = [n for n in ("rewards", "sampling") if not getattr(self.evaluation, n)]
      if missing:
        raise ValueError(
            f"config.evaluation lacks the field{'s' * (len(missing) > 1)}"
            f" {', '.join(missing)}: how a policy is"
            " evaluated on the task.")
    if not self.stages or len(set(self.stages)) != len(self.stages):
      raise ValueError(f"stages must name at least one section, each once; got {self.stages}.")


def installed_experiments() -> dict[str, Path]:
  """Lists the library's own experiments: file name -> file."""
  # Several folders: in a checkout the experiments lie beside the package (rl_reason/__init__.py).
  folders = [Path(root) / "experiments" for root in rl_reason.__path__]
  return {p.name: p for folder in folders for p in sorted(folder.glob("*.py"))
          if p.stem != "__init__"}


def find_experiment(path: str) -> Path:
  """Finds an experiment's file, at the path or by its name among the installed experiments.

  Raises: ValueError if there is none, with the closest name.
  """
  file = Path(path)
  if file.is_file():
    return file
  installed = installed_experiments()
  if file.name not in installed:
    raise ValueError(
        f"There is no config file {path!r}.{naming.did_you_mean(file.name, installed)}"
        f" The library's own experiments: {', '.join(sorted(installed))}.")
  return installed[file.name]


def load_experiment(file: Path) -> types.ModuleType:
  """Imports an experiment's file as a module. Raises: ValueError if that fails, or no get_config."""
  if file.suffix != ".py":
    raise ValueError(
        f"{file} is no Python file, and an experiment's config file is one: write"
        " --config=experiments/NAME.py.")
  module_spec = importlib.util.spec_from_file_location(f"rl_reason_config_{file.stem}", file)
  module = importlib.util.module_from_spec(module_spec)
  with _faults_of(file):
    module_spec.loader.exec_module(module)
  if not callable(getattr(module, "get_config", None)):
    raise ValueError(
        f"{file} defines no get_config(size), so it is not an experiment's config file.")
  return module


@contextlib.contextmanager
def _faults_of(file: str | Path) -> Iterator[None]:
  """Names an experiment's file, and the line in it, for whatever error running it raises."""
  try:
    yield
  except ValueError:
    raise  # What the file says itself, of an unknown size for example.
  except (Exception, SystemExit) as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
    raise ValueError(
        f"{file} fails at line {line}: {type(error).__name__}:"
        f" {' '.join(str(error).split())}. Correct the file;"
        " RL_REASON_TRACEBACK=1 in the environment shows the whole traceback.") from error


def load(spec: str) -> ml_collections.ConfigDict:
  """Loads the config of an experiment's file, with every optional field filled in.

  Args:
    spec: "path/to/file.py" or "path/to/file.py:argument". A file that is not there is searched
      among the installed experiments, so that experiments/quickstart.py works from any folder.
  Returns: the locked ConfigDict.
  Raises: ValueError as find_experiment, load_experiment and the file's get_config.
  """
  path, _, argument = spec.partition(":")
  return load_from(load_experiment(find_experiment(path)), argument)


def load_from(module: types.ModuleType, argument: str = "") -> ml_collections.ConfigDict:
  """Does what `load` does, from an experiment's module.

  Args:
    module: a module with a function get_config.
    argument: the argument of get_config; "": its default.
  """
  file = getattr(module, "__file__", None) or module.__name__
  if argument and not inspect.signature(module.get_config).parameters:
    raise ValueError(
        f"{file} takes no argument, got {argument!r}: leave out \":{argument}\" after its name.")
  with _faults_of(file):
    config = module.get_config(argument) if argument else module.get_config()
  if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
    raise ValueError(
        f"get_config of {file} returned {type(config).__name__}, and must return a ConfigDict.")
  return filled(ml_collections.ConfigDict(config)).lock()


def filled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Adds to a run's config, in place, the optional fields that it leaves out.

  These are the run's own fields, then those of each stage by its kind. An unknown kind is an error
  here; `check` reports the other faults.
  """
  with config.unlocked():
    config_lib.with_defaults(RunConfig, config)
    for name in _stage_names(config):
      section = config.get(name)
      if isinstance(section, ml_collections.ConfigDict) and section.get("kind"):
        config_lib.with_defaults(find_kind(section.kind).Config, section)
  return config


def _stage_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns the names in config.stages; () where it is missing, which the parser reports."""
  stages = config.get("stages", ())
  if not isinstance(stages, (list, tuple)) or not all(isinstance(name, str) for name in stages):
    raise ValueError(f"config.stages must be a tuple of names, got {stages!r}.")
  return tuple(stages)


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a run's config with all its optional fields, as plain data."""
  return recorded_lib.plain(filled(config.copy_and_resolve_references()))


def recorded(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the recorded config of a run, with fields that are new since then; None: no run.

  Raises: ValueError as record.read.
  """
  found = record.read(folder)
  return None if found is None else up_to_date(found)


def up_to_date(found: record.Record) -> dict[str, Any]:
  """Returns a record's config, with fields that are new since it was written."""
  return as_json(ml_collections.ConfigDict(found.config))


def continued(
    folder: str | os.PathLike[str], asked: ml_collections.ConfigDict | None = None,
    note: Callable[[str], None] = print,
) -> ml_collections.ConfigDict | None:
  """Makes the config with which the run in a folder goes on: the recorded one.

  Args:
    folder: the run's folder.
    asked: what the file says that the command line names; None: it names none.
    note: receives a line about fields that are not as the file says.
  Returns: the locked config; None if the folder holds no run.
  Raises: ValueError if the file is another run's, or as record.read.
  """
  found = record.read(folder)
  if found is None:
    return None
  values = up_to_date(found)
  config = asked.copy_and_resolve_references() if asked else ml_collections.ConfigDict()
  if asked:
    # What an earlier call set on the command line differs from the file, as it should.
    other, changed = (
        {k: v for k, v in c.items() if not _is_overridden(k, found.overridden)}
        for c in record.differences(values, as_json(asked)))
    if other:
      raise ValueError(
          f"The workdir {folder} belongs to another run: {record.in_words(other)}. Nothing was"
          " touched. Choose another --workdir, or leave --config=FILE out to go on with the run's"
          " own config.")
    if changed:
      note(
          f"The run in {folder} goes on with its recorded config. The file differs in"
          f" {', '.join(f'{k} ({b!r}, recorded {a!r})' for k, (a, b) in changed.items())}: to"
          " change a field, set it with --config.FIELD=VALUE.")
  with config.unlocked():
    record.set_values(config, values)
  return config.lock()


def _is_overridden(field: str, overridden: Sequence[str]) -> bool:
  return any(field == name or field.startswith(name + ".") for name in overridden)


def define_flag(
    argv: Sequence[str], note: Callable[[str], None] = print,
) -> tuple[flags.FlagHolder, list[str]]:
  """Defines absl's flag `--config` from --config=FILE[:argument] and --config.field=value.

  Where --workdir holds a run, its recorded config is the base on which the fields are set: a call
  without the fields that an earlier call set goes on with their values, and FILE can be left out.

  config_flags.DEFINE_config_file cannot override optional fields that the file leaves out; this
  flag can, and it suggests a name for an unknown field.

  Args:
    argv: the command line, program name first.
    note: receives a line about fields in which FILE and a run's recorded config differ.
  Returns: (the flag, argv without --config=FILE).
  Raises: ValueError for a bad file, name or field, and for a folder of another run.
  """
  spec, rest = _take(argv, "config")
  workdir, _ = _take(argv, "workdir")
  if workdir is not None:
    # The recorded config counts once there is something that was trained with it.
    workdir = whole_files.folder(workdir, "--workdir")
  config = load(spec) if spec else None
  if workdir is not None and (config is None or record.has_begun(workdir)):
    config = continued(workdir, config, note) or config
  if config is None:
    raise ValueError(
        "Say what to run: --config=experiments/NAME.py[:size],"
        " e.g. --config=experiments/quickstart.py; or --workdir=DIR alone, where DIR holds a run"
        " that has begun.")

  # The fields: they are checked before absl sees them, whose error would list no names.
  for name in overridden(rest):
    _check_field(config, f"config.{name}")
  return config_flags.DEFINE_config_dict("config", config, lock_config=True, sys_argv=rest), rest


def overridden(argv: Sequence[str]) -> list[str]:
  """Lists the dotted names of the fields that a command line sets: --config.rl.num_steps=3."""
  names = (word.lstrip("-").partition("=")[0] for word in argv if word.startswith("-"))
  return [name.removeprefix("config.") for name in names if name.startswith("config.")]


def _take(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
  """Takes a flag off a command line; "--flag value" is two words.

  Returns: (its value or None, the other words). The last one counts, as with any flag of absl.
  """
  value, rest = None, []
  words = iter(argv)
  for word in words:
    flag, equals, given = word.lstrip("-").partition("=")
    if word.startswith("-") and flag == name:
      value = given if equals else next(words, "")
    else:
      rest.append(word)
  return value, rest


def _check_field(config: ml_collections.ConfigDict, dotted: str) -> None:
  """Checks that the config has a field.

  Args:
    dotted: the flag's name, "config.section.field".
  Raises: ValueError with the new name of a moved field, else with the closest known one.
  """
  section, path = config, "config"
  for name in dotted.split(".")[1:]:
    kind = section.get("kind", "") if isinstance(section, ml_collections.ConfigDict) else ""
    # A field of before version 0.2.0 has a certain answer, so it comes before the suggestion.
    if (moved := FIELDS.get(kind, {}).get(name)) and name not in section:
      raise ValueError(f"--{dotted}: {path}.{name} is {path}.{moved} since rl_reason 0.2.0.")
    if not isinstance(section, ml_collections.ConfigDict) or name not in section:
      known = _paths(section) if isinstance(section, ml_collections.ConfigDict) else []
      raise ValueError(
          f"--{dotted}: {path} has no field {name!r}.{naming.did_you_mean_field(name, known)}"
          + (f" Its fields: {', '.join(section)}." if known else ""))
    section, path = section[name], f"{path}.{name}"


def _paths(section: ml_collections.ConfigDict) -> list[str]:
  """Lists the fields of a section and, by dotted names, those of the sections in it."""
  nested = [f"{name}.{path}" for name, value in section.items()
            if isinstance(value, ml_collections.ConfigDict) for path in _paths(value)]
  return [*section, *nested]


def check(config: ml_collections.ConfigDict) -> tuple[RunConfig, dict[str, Any]]:
  """Checks all values of a config, before any device work.

  Returns: (the run's own sections, each stage's section by name), as dataclasses.
  Raises: ValueError that names the field.
  """
  # Old field names first: their new names say more than "no such field" does.
  check_layout(config, "The config")

  # The run's own fields. A stage's section may be unused, so that --config.stages can leave stages
  # out; any section with a field `kind` counts as one.
  stages = _stage_names(config)
  unused = [
      n for n in config
      if isinstance(config[n], ml_collections.ConfigDict) and "kind" in config[n]]
  run_config = config_lib.parse(
      RunConfig, config, other_fields=list(dict.fromkeys([*stages, *unused])))

  # Each stage's section, by the dataclass of its kind.
  sections = {}
  for name in stages:
    if name not in config or not isinstance(config[name], ml_collections.ConfigDict):
      raise ValueError(
          f"config.stages names {name!r}, but the config has no section config.{name}.")
    kind = config[name].get("kind", "")
    sections[name] = config_lib.parse(
        find_kind(kind, f"config.{name}.kind").Config, config[name], f"config.{name}")
    has_problems = run_config.task is not None or getattr(sections[name], "data", None) is not None
    if find_kind(kind).takes_problems and not has_problems:
      raise ValueError(
          f"config.task is missing, and the stage {name!r} of kind {kind!r} learns from its"
          " problems. Add it.")

  # Devices set apart for sampling would be idle if every stage samples and updates alternately.
  if run_config.rollout_mesh.size and not any(
      find_kind(section.kind).samples_ahead(section) for section in sections.values()):
    raise ValueError(
        f"config.rollout_mesh sets {run_config.rollout_mesh.size} devices apart, and no stage"
        " samples while another step updates: set staleness=1 in a policy_gradient stage, or"
        " --config.rollout_mesh.data=0.")

  # A trace must name a stage of this run, and end before the stage does.
  profile = run_config.logging.profile
  if profile.stage:
    checks.one_of(sections, **{"stage (config.logging.profile.stage)": profile.stage})
    if profile.last > (steps := sections[profile.stage].num_steps):
      raise ValueError(
          f"config.logging.profile: last={profile.last}, but stage {profile.stage!r} has {steps}"
          " steps: the trace would never end. Lower first and last, or raise num_steps.")
  return run_config, sections
