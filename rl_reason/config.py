"""An experiment's ConfigDict -> checked, documented dataclasses; the `--config` flag; what changed between two runs.

The dataclasses say which fields exist, their types, defaults and ranges: the sections that every run has are here, each
stage's in its own file (rl_reason/stages/). An experiment names what it sets; the rest are the defaults.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
from pathlib import Path
import types
import typing
from typing import Any, Literal, TypeVar

from absl import flags
import ml_collections
from ml_collections import config_flags

from rl_reason import naming
from rl_reason.rollout.sampling import Sampling

T = TypeVar("T")


def at_least(bound: float, **values: float) -> None:
  for name, value in values.items():
    if not value >= bound:  # NaN is not either.
      raise ValueError(f"{name} must be at least {bound}, got {value}.")


def one_of(known: Mapping[str, Any] | Sequence[str], **values: str) -> None:
  for name, value in values.items():
    if value not in known:
      raise ValueError(f"Unknown {name} {value!r}.{naming.did_you_mean(value, known)} Known: {', '.join(known)}.")


def check_microbatches(microbatches: int, batch_size: int) -> None:
  """0 leaves the choice to the machine."""
  at_least(0, microbatches=microbatches)
  if batch_size % max(1, microbatches):
    raise ValueError(f"microbatches={microbatches} must divide batch_size={batch_size}.")


@dataclasses.dataclass(frozen=True)
class Policy:
  """The model to train.

  source: a name in models.sources.POLICIES ("small": from nothing; "pretrained": weights from files) or a dotted path
    to a function that returns a models.sources.PolicySource.
  args: its arguments.
  dtype: of the computation; parameters, optimizer and softmax stay float32. bfloat16 pays on accelerators only.
  """
  source: str
  args: Mapping[str, Any]
  dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class TaskSection:
  """Problems: a name in tasks.SOURCES or a dotted path, its arguments, and those of each half (they win over `args`)."""
  source: str
  args: Mapping[str, Any]
  train: Mapping[str, Any]
  heldout: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EnvironmentSection:
  """Who answers what a policy writes, wherever completions are sampled: they become episodes (rollout.episodes).

  source: a name in envs.ENVIRONMENTS or the dotted path of a function that returns one; args: its arguments.
  max_turns, turn_tokens, answer_tokens: rollout.episodes.Environment. A `sampling` section's max_tokens is a whole episode's
    and its stop strings end turns.
  """
  source: str
  max_turns: int
  turn_tokens: int
  answer_tokens: int
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(2, max_turns=self.max_turns)
    at_least(1, turn_tokens=self.turn_tokens, answer_tokens=self.answer_tokens)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Accuracy on held-out problems, before, during and after training; `python -m rl_reason.evaluate` reads it too.

  rewards: the verifier, as a rewards section; a completion is correct when its total is above 0.5.
  num_problems: from the start of the held-out half. samples_per_problem: k of pass@k and maj@k; pass@1 is their mean.
  every: stage steps between evaluations; 0: only before and after.
  sampling: how completions are drawn (rollout.sampling.Sampling).
  batch_size: problems at once.
  by: a key of the problems' metadata, e.g. "level": pass@1 is also told of each of its values.
  """
  rewards: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sampling: Sampling | None = None
  num_problems: int = 100
  samples_per_problem: int = 1
  every: int = 0
  batch_size: int = 32
  by: str = ""

  def __post_init__(self):
    at_least(1, num_problems=self.num_problems, samples_per_problem=self.samples_per_problem, batch_size=self.batch_size)
    at_least(0, every=self.every)


@dataclasses.dataclass(frozen=True)
class MeshSection:
  """Devices: sizes of the mesh axes, one may be -1 (those that remain); `platform` asks for "gpu" or "tpu" if not ""."""
  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  platform: str = ""


@dataclasses.dataclass(frozen=True)
class RolloutMesh:
  """Devices that sample while those of `mesh` update, in stages with staleness=1: sizes of the mesh axes, none -1.

  It takes their product of devices after those of `mesh`, whose -1 leaves them. 0: none of their own. `data` copies the
  policy to each device, `tensor` splits its matrices; with `fsdp` each token would gather them anew.
  """
  data: int = 0
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    at_least(0, data=self.data, fsdp=self.fsdp, tensor=self.tensor)

  @property
  def size(self) -> int:
    return self.data * self.fsdp * self.tensor


@dataclasses.dataclass(frozen=True)
class Checkpointing:
  """every: stage steps between checkpoints (the last step is always saved). keep: newest ones kept per stage."""
  every: int = 50
  keep: int = 2

  def __post_init__(self):
    at_least(1, every=self.every, keep=self.keep)


@dataclasses.dataclass(frozen=True)
class Profile:
  """The steps to record with jax.profiler, first to last, in the stage of that name; "" records none.

  Steps count from 1; the first ones mostly compile.
  """
  stage: str = ""
  first: int = 3
  last: int = 3

  def __post_init__(self):
    at_least(1, first=self.first)
    if self.last < self.first:
      raise ValueError(f"last must be at least first, got first={self.first} and last={self.last}: no step would be"
                       " recorded.")


@dataclasses.dataclass(frozen=True)
class Logging:
  """Beside metrics.jsonl: tensorboard files; wandb: keyword arguments of wandb.init, {} for none; profile: a trace."""
  tensorboard: bool = False
  wandb: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  profile: Profile = Profile()


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A whole run, except the sections of its stages.

  stages: names of the stages in order; each is also a section of the config, whose field `kind` names a stage in
    rl_reason.stages.STAGES and whose other fields are that stage's. A stage starts from its predecessor's parameters.
  task: what policies are evaluated on, which needs evaluation's rewards and sampling; stages without data of their own
    learn from it. None: policies are not evaluated on problems.
  environment: who answers a policy's turns; None: a completion is one turn.
  max_prompt_tokens: longer prompts are an error.
  prefill_tokens: whoever samples reads prompts in stretches of so many tokens (rollout.generate); 0: whole.
  sharding_rules: (logical axis, mesh axes) pairs that replace the defaults in rl_reason/sharding.py.
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
      raise ValueError(f"prefill_tokens={self.prefill_tokens} is more than max_prompt_tokens={self.max_prompt_tokens}: every"
                       " prompt would be padded to it. Lower prefill_tokens, or set 0 to read prompts whole.")
    if not 0 <= self.seed < 2 ** 31:
      raise ValueError(f"seed must be in [0, 2^31), got {self.seed}.")
    if self.task is not None:
      missing = [n for n in ("rewards", "sampling") if not getattr(self.evaluation, n)]
      if missing:
        raise ValueError(f"config.evaluation lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)}: how a policy is"
                         " evaluated on the task.")
    if not self.stages or len(set(self.stages)) != len(self.stages):
      raise ValueError(f"stages must name at least one section, each once; got {self.stages}.")


def parse(cls: type[T], section: Mapping[str, Any], path: str = "config", *, other_fields: Sequence[str] = ()) -> T:
  """A section of a config -> its dataclass.

  Raises: ValueError naming the field's full path for unknown and missing fields, wrong types and values out of range.
  """
  if not isinstance(section, (Mapping, ml_collections.ConfigDict)):
    raise ValueError(f"{path} must be a section with fields, got {section!r}.")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for name in section:
    if name not in fields and name not in other_fields:
      raise ValueError(f"{path} has no field {name!r}.{naming.did_you_mean(name, fields)} Its fields:"
                       f" {', '.join([*fields, *other_fields])}.")
  values = {name: _convert(hints[name], section[name], f"{path}.{name}") for name in fields if name in section}
  missing = [n for n, f in fields.items() if n not in values
             and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
  if missing:
    raise ValueError(f"{path} lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)} ({cls.__name__}).")
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return parse(hint, value, path)
  if origin is Literal:
    if value not in arguments:
      raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}."
                       f"{naming.did_you_mean(value, arguments)}")
    return value
  if origin in (typing.Union, types.UnionType):
    return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, path)
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ValueError(f"{path} must be a tuple, got {value!r}: for one entry write ({value!r},).")
    element = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
    if len(element) != len(value):
      raise ValueError(f"{path} must have {len(element)} entries, got {value!r}.")
    return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(element, value)))
  if hint is Mapping or origin is not None and issubclass(origin, Mapping):
    if isinstance(value, ml_collections.ConfigDict):
      return value.to_dict()
    if isinstance(value, Mapping):
      return dict(value)
    raise ValueError(f"{path} must be a section with fields, got {value!r}.")
  wanted = (int, float) if hint is float else hint
  if not isinstance(value, wanted) or isinstance(value, bool) and hint is not bool:
    raise ValueError(f"{path} must be {hint.__name__}, got {value!r} ({type(value).__name__}).")
  return float(value) if hint is float else value


def _with_defaults(cls: type, section: ml_collections.ConfigDict, other_fields: Sequence[str] = ()) -> None:
  """Adds the dataclass's optional fields that the section leaves out, so that the command line may set them."""
  for field in dataclasses.fields(cls):
    hint = typing.get_type_hints(cls)[field.name]
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)), hint)  # Of an optional section.
    if field.name not in section:
      if field.default is not dataclasses.MISSING:
        default = field.default
      elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
      else:
        continue
      section[field.name] = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default
    # A section, or one that may be None.
    section_type = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
    if section_type and isinstance(section[field.name], ml_collections.ConfigDict):
      _with_defaults(section_type, section[field.name])


def installed_experiments() -> dict[str, Path]:
  """The library's own experiments: file name -> file."""
  from rl_reason import experiments

  return {p.name: p for folder in experiments.__path__ for p in sorted(Path(folder).glob("*.py")) if p.stem != "__init__"}


def find_experiment(path: str) -> Path:
  """The file, here or among the installed experiments. Raises: ValueError if there is none."""
  file = Path(path)
  if file.is_file():
    return file
  installed = installed_experiments()
  if file.name not in installed:
    raise ValueError(f"There is no config file {path!r}.{naming.did_you_mean(file.name, installed)} The library's own"
                     f" experiments: {', '.join(sorted(installed))}.")
  return installed[file.name]


def load_experiment(file: Path) -> types.ModuleType:
  """The module of an experiment's file. Raises: ValueError if it has no get_config."""
  module_spec = importlib.util.spec_from_file_location(f"rl_reason_config_{file.stem}", file)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{file} defines no get_config(size), so it is not an experiment's config file.")
  return module


def load(spec: str) -> ml_collections.ConfigDict:
  """The ConfigDict of "path/to/file.py" or "path/to/file.py:argument", with every optional field filled in.

  A path that is not here is looked for among the installed experiments, so that experiments/quickstart.py works from
  any folder.
  """
  path, _, argument = spec.partition(":")
  return load_from(load_experiment(find_experiment(path)), argument)


def load_from(module: types.ModuleType, argument: str = "") -> ml_collections.ConfigDict:
  """`load` of an experiment's module."""
  from rl_reason.stages import STAGES

  config = module.get_config(argument) if argument else module.get_config()
  config = ml_collections.ConfigDict(config)
  _with_defaults(RunConfig, config)
  for name in config.get("stages", ()):
    if name in config and isinstance(config[name], ml_collections.ConfigDict) and config[name].get("kind") in STAGES:
      _with_defaults(STAGES[config[name].kind].Config, config[name])
  return config.lock()


def define_flag(argv: Sequence[str]) -> tuple[flags.FlagHolder, list[str]]:
  """Defines `--config` for absl from the command line: --config=FILE[:argument] and --config.field=value.

  Unlike config_flags.DEFINE_config_file, optional fields that the file leaves out can be overridden too, and unknown
  ones get a suggestion.

  Returns: (the flag, argv without the file). Raises: ValueError for a bad file, name or field.
  """
  specs, rest = [], []
  words = iter(argv)
  for word in words:
    name, equals, value = word.lstrip("-").partition("=")
    if word.startswith("-") and name == "config":
      specs.append(value if equals else next(words, ""))
    else:
      rest.append(word)
  if not specs or not specs[-1]:
    raise ValueError("Say what to run: --config=experiments/NAME.py[:size], e.g. --config=experiments/quickstart.py.")
  config = load(specs[-1])
  for word in rest:
    name = word.lstrip("-").partition("=")[0]
    if word.startswith("-") and name.startswith("config."):
      _check_field(config, name)
  return config_flags.DEFINE_config_dict("config", config, lock_config=True, sys_argv=rest), rest


def _check_field(config: ml_collections.ConfigDict, dotted: str) -> None:
  section, path = config, "config"
  for name in dotted.split(".")[1:]:
    if not isinstance(section, ml_collections.ConfigDict) or name not in section:
      known = list(section) if isinstance(section, ml_collections.ConfigDict) else []
      raise ValueError(f"--{dotted}: {path} has no field {name!r}.{naming.did_you_mean(name, known)}"
                       + (f" Its fields: {', '.join(known)}." if known else ""))
    section, path = section[name], f"{path}.{name}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
  """{dotted field: (old, new)} of two nested plain configs, as JSON would hold them; absent values are None."""
  out = {}
  for name in sorted({*old, *new}):
    a, b, here = old.get(name), new.get(name), f"{path}{name}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      out.update(changes(a, b, here + "."))
    elif a != b:
      out[here] = (a, b)
  return out
