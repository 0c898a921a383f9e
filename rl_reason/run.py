"""What train, evaluate and sample share: a checked config -> everything a stage needs, and the work directory."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import sys
from typing import Any

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import ml_collections

from rl_reason import config as config_lib
from rl_reason import allocator, compilation, memory, naming, sharding
from rl_reason.checkpoint import Checkpoints
from rl_reason.config import RunConfig
from rl_reason.envs import ENVIRONMENTS
from rl_reason.models.sources import POLICIES, PolicySource
from rl_reason.rewards.monitors import StoppedByMonitor
from rl_reason.rollout import Completions, Environment, Sampling, check_sampling, encode_prompts, make_samples
from rl_reason.scorer import Scorer
from rl_reason.stages import STAGES, Context, policies_before, trained
from rl_reason.tasks import load_task
from rl_reason.types import Params, Problem, Sample

# A run with other values of these is another run; a change in any other field is told and taken.
IDENTITY = ("seed", "policy", "task", "environment", "stages")


def check(config: ml_collections.ConfigDict) -> tuple[RunConfig, dict[str, Any]]:
  """(the run's own sections, each stage's section by name), all values checked.

  Raises: ValueError that names the field, before any device work.
  """
  stages = tuple(config.get("stages", ()))
  # A stage's section may stand unused, so that --config.stages can leave stages out.
  unused = [n for n in config if isinstance(config[n], ml_collections.ConfigDict) and "kind" in config[n]]
  run_config = config_lib.parse(RunConfig, config, other_fields=list(dict.fromkeys([*stages, *unused])))
  sections = {}
  for name in stages:
    if name not in config or not isinstance(config[name], ml_collections.ConfigDict):
      raise ValueError(f"config.stages names {name!r}, but the config has no section config.{name}.")
    kind = config[name].get("kind", "")
    config_lib.one_of(STAGES, **{f"stage kind (config.{name}.kind)": kind})
    sections[name] = config_lib.parse(STAGES[kind].Config, config[name], f"config.{name}")
    if run_config.task is None and getattr(sections[name], "data", None) is None:
      raise ValueError(f"config.task is missing, and the stage {name!r} of kind {kind!r} learns from its problems. Add it.")
  if run_config.rollout_mesh.size and not any(getattr(section, "staleness", 0) for section in sections.values()):
    raise ValueError(f"config.rollout_mesh sets {run_config.rollout_mesh.size} devices apart, and no stage samples while"
                     " another step updates: set staleness=1 in a policy_gradient stage, or --config.rollout_mesh.data=0.")
  profile = run_config.logging.profile
  if profile.stage:
    config_lib.one_of(sections, **{"stage (config.logging.profile.stage)": profile.stage})
    if profile.last > (steps := sections[profile.stage].num_steps):
      raise ValueError(f"config.logging.profile: last={profile.last}, but stage {profile.stage!r} has {steps} steps: the"
                       " trace would never end. Lower first and last, or raise num_steps.")
  return run_config, sections


def make_policy(section: config_lib.Policy) -> PolicySource:
  """Raises: ValueError or FileNotFoundError for what cannot work."""
  make = naming.find("policy source", section.source, POLICIES)
  naming.check_arguments(f"The policy source {section.source!r}", make, section.args)
  return make(**section.args)


def make_environment(section: config_lib.EnvironmentSection) -> Environment:
  """Raises: ValueError for an unknown source and for arguments that it does not take."""
  make = naming.find("environment", section.source, ENVIRONMENTS)
  naming.check_arguments(f"The environment {section.source!r}", make, section.args)
  return Environment(make(**section.args), section.max_turns, section.turn_tokens, section.answer_tokens)


def make_context(config: RunConfig) -> Context:
  """Mesh, policy source, task and environment. Raises: ValueError or FileNotFoundError for what cannot work, before training."""
  sharding.check_platform(config.mesh.platform)
  mesh, rollout_mesh = sharding.make_meshes(*(
      (section.data, section.fsdp, section.tensor) for section in (config.mesh, config.rollout_mesh)))
  rules = tuple((dict(sharding.DEFAULT_RULES) | dict(config.sharding_rules)).items())
  policy = make_policy(config.policy)
  task, environment = None, config.environment and make_environment(config.environment)
  if config.task is not None:
    task = load_task(config.task.source, config.task.args, config.task.train, config.task.heldout)
    check_sampling(config.evaluation.sampling, policy.config, policy.tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    if environment is not None:
      environment.check(config.evaluation.sampling, "config.evaluation")
    # The whole of the held-out part is used, so all its prompts must fit; training prompts are checked as they come.
    count = min(config.evaluation.num_problems, len(task.heldout))
    encode_prompts([task.heldout[i] for i in range(count)], policy.tokenizer, max_tokens=config.max_prompt_tokens)
  return Context(
      seed=config.seed, policy=policy, dtype=jnp.dtype(config.policy.dtype), task=task,
      environment=environment, max_prompt_tokens=config.max_prompt_tokens, prefill_tokens=config.prefill_tokens,
      partitioning=sharding.Partitioning(mesh, rules),
      rollout_partitioning=rollout_mesh and sharding.Partitioning(rollout_mesh, rules))


def starting_points(context: Context) -> dict[str, str]:
  """Per stage the name of the one whose policy it starts from, or "" for the policy before any stage.

  A section's `start` names an earlier stage that trains a policy, or is "initial". "": the last such stage before it, or
  the initial policy where there is none.

  Raises: ValueError for other names.
  """
  points = {}
  for name, section in context.sections.items():
    points[name] = _policy_name(context, name, "start", section.start)
    _policy_name(context, name, "reference", getattr(section, "reference", ""))
  return points


def _policy_name(context: Context, stage: str, field: str, value: str) -> str:
  """Of the stage whose policy a field of another stage's section names; "" for the initial policy."""
  known = policies_before(context, stage)
  if value and value not in known:
    raise ValueError(f"config.{stage}.{field}={value!r} is no earlier stage that trains a policy."
                     f"{naming.did_you_mean(value, known)} Known: {', '.join(known)}; or \"\" for the last of them.")
  name = value or known[-1]
  return "" if name == "initial" else name


def find_scorer(context: Context, name: str, earlier: Sequence[str]) -> Scorer:
  """A model for learned rewards: of an earlier stage, or of another run by its workdir (stages.base.Models).

  Args:
    context: of with_stages.
  Raises: ValueError for what is no model that scores.
  """
  scoring = [n for n in earlier if hasattr(STAGES[context.sections[n].kind], "make_scorer")]
  if name in scoring:
    return STAGES[context.sections[name].kind].make_scorer(context.sections[name], context, name)
  if name not in context.sections and (Path(name) / "config.json").is_file() or _split(name)[1]:
    return scorer_of_run(name, context.partitioning)
  raise ValueError(f"{name!r} is neither an earlier stage that trains a model that scores, nor the workdir of another run."
                   f"{naming.did_you_mean(name, scoring)} Such stages: {', '.join(scoring) or 'none'}; their kinds:"
                   f" {', '.join(k for k, s in STAGES.items() if hasattr(s, 'make_scorer'))}.")


def scorer_of_run(name: str, partitioning: sharding.Partitioning | None = None) -> Scorer:
  """The model of a run's stage, by "workdir:stage", or by "workdir" that of its last stage with one; by default on all devices.

  Raises: ValueError if there is none, or it is not trained yet.
  """
  folder, stage, context = _opened(name, partitioning)
  sections = context.sections
  scoring = [n for n in sections if hasattr(STAGES[sections[n].kind], "make_scorer")]
  stage = stage or (scoring[-1] if scoring else "")
  if stage not in scoring:
    raise ValueError(f"The run in {folder} has no stage {stage!r} that trains a model that scores; such are:"
                     f" {', '.join(scoring) or 'none'}.")
  if not (folder / "checkpoints" / stage).is_dir():
    raise ValueError(f"The run in {folder} has not trained its stage {stage!r} yet: run it first.")
  return find_scorer(context, stage, list(sections))


def policy_of_run(name: str) -> tuple[Context, Params]:
  """(what is the same for all of a run, without its task; the policy after a stage, on all devices), by "workdir:stage".

  Raises: ValueError for what is no run, or has no such stage that trains a policy.
  """
  folder, stage, context = _opened(name)
  training = [n for n in context.sections if trained(context, n).policy is not None]
  config_lib.one_of(training, **{f"stage of the run in {folder} that trains a policy": stage})
  return context, trained(context, stage).policy(context.finished(stage))


def complete(
    name: str, problems: Sequence[Problem], sampling: Sampling, *, group_size: int = 1, slots: int = 0, seed: int = 0,
) -> tuple[list[Sample], Completions]:
  """So many completions of each problem by the policy after a stage of a run, "workdir:stage", one after the other.

  Args: slots: completions decoded at once; 0: all. seed: of the draws.
  Raises: ValueError as `policy_of_run`, and for prompts longer than the run's.
  """
  context, params = policy_of_run(name)
  prompts = encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with context.partitioning.use():
    completions = context.complete(
        params, problems, prompts, sampling, group_size=group_size, slots=slots, rng=jax.random.key(seed))
  return make_samples(problems, completions, context.policy.tokenizer, stop_strings=sampling.stop_strings), completions


def _opened(name: str, partitioning: sharding.Partitioning | None = None) -> tuple[Path, str, Context]:
  """(workdir, stage or "", context of the run) of "workdir" or "workdir:stage"."""
  folder, stage = (Path(name), "") if (Path(name) / "config.json").is_file() else _split(name)
  if not (folder / "config.json").is_file():
    raise ValueError(f"{name} is not the workdir of a run: it has no config.json.")
  config, sections = check(ml_collections.ConfigDict(json.loads((folder / "config.json").read_text())))
  return folder, stage, Workdir(folder).with_stages(Context(
      seed=config.seed, policy=make_policy(config.policy), dtype=jnp.dtype(config.policy.dtype), task=None,
      environment=config.environment and make_environment(config.environment), max_prompt_tokens=config.max_prompt_tokens,
      prefill_tokens=config.prefill_tokens, partitioning=partitioning or sharding.Partitioning(sharding.make_mesh()),
  ), config, sections)


def _split(name: str) -> tuple[Path, str]:
  """(workdir, stage) of "workdir:stage"; ("", "") of anything else."""
  path, _, stage = name.rpartition(":")
  return (Path(path), stage) if path and (Path(path) / "config.json").is_file() else (Path(), "")


def initial_params(context: Context) -> Params:
  """The policy before any stage: random, or read from its files; the same at every call."""
  return context.policy.make_params(context.rng("params"), context.param_shardings)


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A run's folder: config.json, versions.json, metrics.jsonl, curves.png, samples/, profile/, checkpoints/<stage>/."""
  path: Path

  def claim(self, config: ml_collections.ConfigDict, note: Callable[[str], None]) -> None:
    """Makes the folder this run's, or says what changed since it was here last.

    Raises: ValueError if it belongs to another run, or holds one without a config.
    """
    resolved = json.loads(config.to_json_best_effort())
    saved, metrics = self.path / "config.json", self.path / "metrics.jsonl"
    begun = metrics.exists() and metrics.stat().st_size > 0  # A config that failed before its first line claims nothing.
    if saved.exists() and begun:
      changed = config_lib.changes(json.loads(saved.read_text()), resolved)
      other = {k: v for k, v in changed.items() if k.split(".")[0] in IDENTITY or k.endswith(".kind")}
      if other:
        raise ValueError(
            f"The workdir {self.path} belongs to another run: {_list_changes(other)}. Nothing was touched. Choose another"
            " --workdir, or the config it was made with.")
      if changed:
        note(f"Resuming with a changed config: {_list_changes(changed)}.")
    elif begun or (self.path / "checkpoints").exists() and not saved.exists():
      raise ValueError(f"The workdir {self.path} holds a run without its config.json, so it cannot be continued safely."
                       " Choose another --workdir.")
    if sharding.is_main_process():
      self.path.mkdir(parents=True, exist_ok=True)
      self.write("config.json", resolved)
      self.write("versions.json", versions())

  def write(self, name: str, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    target = self.path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(target)

  def checkpoints(self, stage: str, *, keep: int, note: Callable[[str], None]) -> Checkpoints:
    return Checkpoints(self.path / "checkpoints" / stage, keep=keep, note=note)

  def with_stages(self, context: Context, config: RunConfig, sections: Mapping[str, Any]) -> Context:
    """The context of a run in this folder: its stages know each other's sections and finished parameters.

    Models for learned rewards lie where the completions come from, on the devices of a rollout mesh if there is one: two
    threads must not start programs of several devices on the same ones.
    """
    def joined(context):
      context = dataclasses.replace(context, sections=sections)
      context = dataclasses.replace(context, finished=lambda name: self._newest(config, context, name)[1])
      return dataclasses.replace(context, policy_at=lambda stage, field, value: self._policy(context, stage, field, value))
    scoring = joined(context.sampler)
    return dataclasses.replace(joined(context), scorer=lambda name, earlier: find_scorer(scoring, name, earlier))

  def _policy(self, context: Context, stage: str, field: str, value: str) -> Params:
    name = _policy_name(context, stage, field, value)
    return trained(context, name).policy(context.finished(name)) if name else initial_params(context)

  def newest_policy(self, config: RunConfig, context: Context) -> tuple[str, Params]:
    """(where it is from, parameters) of the policy in the newest checkpoint that holds one.

    Args:
      context: of with_stages.
    Raises: FileNotFoundError where there is none; ValueError where none can be read.
    """
    for name in reversed(config.stages):
      policy = trained(context, name).policy
      if policy is not None and (self.path / "checkpoints" / name).is_dir():
        with contextlib.suppress(FileNotFoundError):
          step, params = self._newest(config, context, name)
          return f"{name}, step {step}", policy(params)
    raise FileNotFoundError(f"No checkpoint of a policy in {self.path}: train first with the same --config and --workdir.")

  def _newest(self, config: RunConfig, context: Context, name: str) -> tuple[int, Params]:
    """(step, parameters) of a stage's newest checkpoint that can be read."""
    with contextlib.closing(self.checkpoints(name, keep=config.checkpoint.keep, note=print)) as checkpoints:
      return checkpoints.restore_params(trained(context, name).shapes)


def _list_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
  return ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in changed.items())


def versions() -> dict[str, str]:
  """What the run ran on."""
  packages = ("rl_reason", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  found = {}
  for name in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return {"python": sys.version.split()[0], "platform": platform.platform(), "device": str(jax.devices()[0].device_kind),
          "devices": str(jax.device_count()), **found}


def start() -> None:
  """Process-wide settings of a command, before any device work: quiet logs, memory that is kept, processes that find each
  other."""
  if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # orbax tells of every rename.
  if allocator.keep_freed():
    compilation.after_each(allocator.give_back, min_seconds=2.0)  # Quicker ones, and those read from disk, leave little.
  sharding.start_distributed()


@contextlib.contextmanager
def errors_in_one_line():
  """A user's mistake ends the command with its message; RL_REASON_TRACEBACK=1 shows where it was found."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError, StoppedByMonitor) as error:
    if os.environ.get("RL_REASON_TRACEBACK"):
      raise
    raise SystemExit(f"Error: {error}") from error
  except jax.errors.JaxRuntimeError as error:
    if os.environ.get("RL_REASON_TRACEBACK") or "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise SystemExit(f"Error: {memory.exhausted(error)}") from error


def command(main: Callable[[ml_collections.ConfigDict, Path], None]) -> None:
  """Runs main(config, workdir) under absl with --config (config.define_flag) and --workdir."""
  workdir = flags.DEFINE_string("workdir", None, "The run's folder: metrics, samples, checkpoints.", required=True)
  with errors_in_one_line():
    config, argv = config_lib.define_flag(sys.argv)
  app.run(lambda _: main(config.value, Path(workdir.value)), argv=argv)
