"""Answers what a stage may ask about the stages before it, and opens the runs of other folders."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import datetime
import functools
import itertools
from typing import Any

from etils import epath
import jax
import ml_collections

from rl_reason.config import naming
from rl_reason.config.checks import one_of
from rl_reason.models import reward_model_files
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import record
from rl_reason.run.config import check, recorded, RunConfig
from rl_reason.run.context import make_context
from rl_reason.run.workdir import Workdir
from rl_reason.runtime import sharding
from rl_reason.scorers.scorer import from_files as scorer_from_files
from rl_reason.scorers.scorer import Scorer
from rl_reason.stages.base import Kind, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.registry import find_kind, STAGES
from rl_reason.types import Params, Problem, Sample


@dataclasses.dataclass(frozen=True)
class Stages:
  """The stages of one run: what each trains, and what the finished ones left in the run's folder.

  config: the checked config of the run.
  sections: the checked section of each stage by name, in order.
  folder: the run's folder, with the checkpoints.
  run: the Context of the run; each stage gets it with its own `earlier`.
  """
  config: RunConfig
  sections: Mapping[str, Any]
  folder: Workdir
  run: Context

  def context(self, name: str) -> Context:
    """Returns the context that a stage's hooks are given."""
    return dataclasses.replace(self.run, earlier=EarlierStages(self, name))

  def kind(self, name: str) -> Kind:
    return find_kind(self.sections[name].kind)

  def hooks(self, name: str) -> tuple[Any, Context, str]:
    """Returns what every hook of a stage's kind is called with."""
    return self.sections[name], self.context(name), name

  def trained(self, name: str) -> Trained:
    """Returns what a stage leaves."""
    return self.kind(name).trained(*self.hooks(name))

  def before(self, name: str) -> list[str]:
    """Lists the stages before one, in order."""
    return list(itertools.takewhile(lambda other: other != name, self.sections))

  def policies(self, before: str) -> list[str]:
    """Lists what a policy may be called in a stage: "initial", and earlier ones that train one."""
    return ["initial", *(n for n in self.before(before) if self.trained(n).policy is not None)]

  def policy_named(self, stage: str, field: str, value: str) -> str:
    """Returns the stage whose policy a field of another stage's section names.

    Args:
      stage: name of the stage whose section it is.
      field: name of the field, for errors.
      value: a name in `policies` of that stage, or "" for the last of them.
    Returns: the name; "" for the initial policy.
    Raises: ValueError for other values.
    """
    known = self.policies(stage)
    if value and value not in known:
      raise ValueError(
          f"config.{stage}.{field}={value!r} is no earlier stage that trains a policy."
          f"{naming.did_you_mean(value, known)} Known: {', '.join(known)}; or \"\" for the last of"
          " them.")
    name = value or known[-1]
    return "" if name == "initial" else name

  def starting_points(self) -> dict[str, str]:
    """Finds for each stage the one whose policy it starts from, "" being the initial policy.

    A section's `start` names an earlier stage that trains a policy, or is "initial". "": the last
    earlier stage that trains one, or the initial policy where there is none.

    Raises: ValueError for other names.
    """
    points = {}
    # References are only checked here: a wrong name must be found before the first stage trains.
    for name, section in self.sections.items():
      points[name] = self.policy_named(name, "start", section.start)
      self.policy_named(name, "reference", getattr(section, "reference", ""))
    return points

  def finished(self, name: str) -> Any:
    """Reads what a stage left, from its newest checkpoint that can be read."""
    return self._newest(name)[1]

  def policy(self, name: str) -> Params:
    """Reads the policy after a stage; "": the initial one."""
    return self.trained(name).policy(self.finished(name)) if name else self.run.initial_params()

  def newest_policy(self) -> tuple[str, Params]:
    """Reads the policy in the newest checkpoint that holds one.

    Returns: (where it is from, parameters).
    Raises: FileNotFoundError where there is none; ValueError where none can be read.
    """
    # A stage may have a folder and no finished checkpoint: then the one before it is the newest.
    for name in reversed(self.sections):
      policy = self.trained(name).policy
      if policy is not None and (self.folder.path / "checkpoints" / name).is_dir():
        with contextlib.suppress(FileNotFoundError):
          step, params = self._newest(name)
          return f"{name}, step {step}", policy(params)
    raise FileNotFoundError(
        f"No checkpoint of a policy in {self.folder.path}: train first with the same --workdir.")

  def scorers(self, names: Sequence[str]) -> list[str]:
    """Lists the stages among `names` whose models can score."""
    return [name for name in names if self.kind(name).scores]

  def scorer(self, name: str) -> Scorer:
    """Returns the model of one of `scorers`, on the devices that sample.

    Models for learned rewards lie where the completions come from: two threads must not start
    programs of several devices on the same ones.
    """
    there = dataclasses.replace(self, run=self.run.on_sampling_devices)
    return there.kind(name).make_scorer(*there.hooks(name))

  def _newest(self, name: str) -> tuple[int, Any]:
    """Reads (step, what the stage left) of its newest checkpoint that can be read."""
    return self.folder.read_params(name, self.trained(name).shapes)


@dataclasses.dataclass(frozen=True)
class EarlierStages:
  """The stages before one, for its hooks (stages.context.Earlier)."""
  stages: Stages
  stage: str

  @property
  def sections(self) -> Mapping[str, Any]:
    return {name: self.stages.sections[name] for name in self.stages.before(self.stage)}

  def trained(self, name: str) -> Trained:
    return self.stages.trained(self._earlier(name))

  def policies(self) -> list[str]:
    return self.stages.policies(self.stage)

  def finished(self, name: str) -> Any:
    # A finished stage may ask for itself: its scorer reads its own parameters.
    return self.stages.finished(name if name == self.stage else self._earlier(name))

  def policy(self, name: str, field: str = "start") -> Params:
    return self.stages.policy(self.stages.policy_named(self.stage, field, name))

  def scorer(self, name: str) -> Scorer:
    scoring = self.stages.scorers(self.stages.before(self.stage))
    if name in scoring:
      return self.stages.scorer(name)
    # No earlier stage: the workdir of another run, unless the name is a stage of this run.
    is_stage = name in self.stages.sections
    if not is_stage and _is_run(name) or _split(name)[1]:
      # A reward model in files is told the date of this run.
      return scorer_of_run(
          name, self.stages.run.on_sampling_devices.partitioning,
          functools.partial(self.stages.folder.date, record=True))
    kinds = [name for name, kind in STAGES.items() if kind.scores]
    raise ValueError(
        f"{name!r} is neither an earlier stage that trains a model that scores, nor the workdir of"
        f" another run, nor the directory of a reward model.{naming.did_you_mean(name, scoring)} Such stages:"
        f" {', '.join(scoring) or 'none'}; their kinds: {', '.join(kinds)}.")

  def _earlier(self, name: str) -> str:
    one_of(self.stages.before(self.stage), **{f"stage before {self.stage!r}": name})
    return name


def scorer_of_run(
    name: str, partitioning: sharding.Partitioning | None = None,
    date: Callable[[], datetime.date] = datetime.date.today,
) -> Scorer:
  """Returns the model of a run's stage that scores, or a reward model in files.

  Args:
    name: "workdir:stage", or "workdir" for its last stage whose model scores; or the Hugging Face
      directory of a ...ForSequenceClassification.
    partitioning: the devices that score; None: all devices.
    date: the day that the chat template of a model in files is told, if it asks.
  Raises: ValueError if there is none, or it is not trained yet.
  """
  if reward_model_files.is_reward_model(name):
    partitioning = partitioning or sharding.Partitioning(sharding.make_mesh())
    return scorer_from_files(name, partitioning, date)
  stages, stage = open_run(name, partitioning)
  scoring, folder = stages.scorers(list(stages.sections)), stages.folder.path
  stage = stage or (scoring[-1] if scoring else "")
  if stage not in scoring:
    raise ValueError(f"The run in {folder} has no stage {stage!r} that trains a model that scores;"
                     f" the known ones are: {', '.join(scoring) or 'none'}.")
  if not (folder / "checkpoints" / stage).is_dir():
    raise ValueError(f"The run in {folder} has not trained its stage {stage!r} yet: run it first.")
  return stages.scorer(stage)


def policy_of_run(name: str) -> tuple[Context, Params]:
  """Reads the policy after a stage of a run, "workdir:stage".

  Returns: (the run's context without its task, the policy on all devices).
  Raises: ValueError if the folder is no run, or if the run has no stage of this name that trains a
    policy.
  """
  stages, stage = open_run(name)
  training = [n for n in stages.sections if stages.trained(n).policy is not None]
  one_of(training, **{f"stage of the run in {stages.folder.path} that trains a policy": stage})
  return stages.run, stages.policy(stage)


def complete(
    name: str, problems: Sequence[Problem], sampling: Sampling, *, group_size: int = 1,
    slots: int = 0, seed: int = 0,
) -> tuple[list[Sample], Completions]:
  """Samples `group_size` completions of each problem by the policy after a stage, "workdir:stage".

  Args:
    name: the run's folder and its stage.
    problems: what the policy reads.
    sampling: how tokens are drawn.
    group_size: completions of each problem.
    slots: completions decoded at once; 0: all.
    seed: the seed of the random draws.
  Returns: (samples, completions); the completions of one problem are adjacent.
  Raises: ValueError as `policy_of_run`, and for prompts longer than the run's.
  """
  context, params = policy_of_run(name)
  sampler = context.sampler
  with context.partitioning.use():
    completions = sampler(
        params, problems, sampler.encode(problems), sampling, group_size=group_size, slots=slots,
        rng=jax.random.key(seed))
  return sampler.samples(problems, completions, sampling), completions


def open_run(
    name: str, partitioning: sharding.Partitioning | None = None) -> tuple[Stages, str]:
  """Opens the run of "workdir" or "workdir:stage", without its task and its learned rewards.

  Args:
    name: the run's folder, with or without a stage.
    partitioning: the devices; None: all devices in one mesh.
  Returns: (the run's stages, the stage's name or "").
  Raises: ValueError if the folder is no run, or if its config has an older layout.
  """
  # The whole name may be a folder: a path may contain a colon itself.
  folder, stage = (name, "") if _is_run(name) else _split(name)
  if not folder:
    raise ValueError(f"{name} is not the workdir of a run: it has no {record.CONFIG}.")

  # The run as it was: its config, without the data it was trained on.
  config, sections = check(ml_collections.ConfigDict(recorded(folder)))
  partitioning = partitioning or sharding.Partitioning(sharding.make_mesh())
  context = make_context(
      config, partitioning=partitioning, with_task=False, date=Workdir(folder).date)
  return Stages(config, sections, Workdir(folder), context), stage


def _is_run(path: str) -> bool:
  return bool(path) and (epath.Path(path) / record.CONFIG).exists()


def _split(name: str) -> tuple[str, str]:
  """Splits "workdir:stage" into (workdir, stage); anything else gives ("", "")."""
  path, _, stage = name.rpartition(":")
  return (path, stage) if _is_run(path) else ("", "")
