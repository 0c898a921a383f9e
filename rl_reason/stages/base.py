"""Defines what a kind of stage declares, and what a built stage hands to the training loop."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, TypeAlias

import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.models.reward_model_files import Stored
from rl_reason.rewards.composition.monitors import Monitors
from rl_reason.runtime.memory import Part
from rl_reason.scorers.scorer import Scorer
from rl_reason.types import Params, Problem, Source

State: TypeAlias = Any  # Any pytree of arrays; a LearnerState where something is trained.


def first_rows(source: Source, limit: int = 1000) -> list[Problem]:
  """Returns the rows that a stage's `check` tries before any device work."""
  return [source[i] for i in range(min(limit, len(source)))]


class Resumable(Protocol):
  """An object whose state is part of a checkpoint, e.g. a RewardSet."""

  def state(self) -> Mapping[str, Any]: ...

  def restore(self, state: Mapping[str, Any]) -> None: ...


class Batches(Protocol):
  """Yields problems, a list per step on this process; resumable (tasks.pipeline.batches)."""

  def __next__(self) -> list[Problem]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...


# What a stage has made so far -> (metrics under "eval/", rows to keep as JSON).
Evaluate: TypeAlias = Callable[[Any], tuple[dict[str, float], list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a finished stage leaves, known before it runs.

  shapes: arrays that `made` reads from its state, with dtypes and shardings.
  policy: (what it leaves) -> the policy among it, for evaluations and for stages that start from
    it; None: it trains no policy.
  critic: (what it leaves) -> {"trunk": parameters of a transformer of the policy's shape, "head": a
    head on its hidden states (models.heads)}, for critics that start from it; None: it trains none.
  """
  shapes: Any
  policy: Callable[[Params], Params] | None = lambda params: params
  critic: Callable[[Params], Params] | None = None


@dataclasses.dataclass(frozen=True)
class StepResult:
  """What one step of a stage did.

  metrics: host numbers, logged under these names.
  tokens: tokens that the step sampled or learnt from; throughput is counted in them.
  skipped: updates refused in a row, up to now, because a gradient was not finite.
  updates: optimizer steps made, refused ones too.
  arrays: "group/name" -> what the step found, one number per unit; saved in the run (run.workdir).
  shown: a completion to show to whoever watches; "": none.
  """
  metrics: dict[str, float]
  tokens: float = 0.0
  skipped: int = 0
  updates: int = 0
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  shown: str = ""


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage that is ready to run. rl_reason.train runs its steps, saves, resumes, logs, evaluates.

  It need not train: searching, voting or probing are stages whose state holds what they found.

  num_steps: calls of `step`.
  init: () -> the state before the first step, sharded.
  state_shape: shapes of the state, known without computing it.
  data: this process's problems; `step` may take more of them than it is given.
  step: (state, problems, step index) -> (state, StepResult). It may donate the state.
  max_skipped: refused updates in a row that stop the run.
  resumable: what else a checkpoint holds, by name.
  monitors: watch the metrics of steps and evaluations; they warn, or stop the run.
  evaluate: measures what the stage makes, beside the run's own evaluation of the policy; None:
    there is no such measure.
  close: frees worker processes and the like.
  """
  num_steps: int
  init: Callable[[], State]
  state_shape: State
  data: Batches
  step: Callable[[State, list[Problem], int], tuple[State, StepResult]]
  max_skipped: int = 1
  resumable: Mapping[str, Resumable] = dataclasses.field(default_factory=dict)
  monitors: Monitors = dataclasses.field(default_factory=Monitors)
  evaluate: Evaluate | None = None
  close: Callable[[], None] = lambda: None


def made(state: State) -> Any:
  """Returns what later stages and evaluations read of a state: parameters, or all of it."""
  return state.params if isinstance(state, LearnerState) else state


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of stage: what the field `kind` of a config's section names.

  Every hook is called with (section, context, name): the checked section, this stage's
  stages.context.Context, and the stage's name.

  Config: dataclass of its section. It has the fields `kind`, `num_steps` and `start`.
  build: returns a Stage. Before the name it also gets the policy that the stage starts from.
  trained: returns what the stage leaves, known before it runs.
  check: raises ValueError, before any stage runs, for what could not work.
  memory: estimates what a device needs to run it.
  make_scorer: makes a Scorer of the finished stage, for learned rewards; None: its model cannot
    score.
  stored: describes the finished model as a reward model in files (models.reward_model_files); None:
    it is none.
  samples_ahead: (section) -> whether it samples while another step updates.
  takes_problems: whether it needs a source of problems: the run's task, or its section's `data`.
  """
  Config: type
  build: Callable[..., Stage]
  trained: Callable[..., Trained]
  check: Callable[..., None] = lambda section, context, name: None
  memory: Callable[..., list[Part]] = lambda section, context, name: []
  make_scorer: Callable[..., Scorer] | None = None
  stored: Callable[..., Stored] | None = None
  samples_ahead: Callable[[Any], bool] = lambda section: False
  takes_problems: bool = True

  @property
  def scores(self) -> bool:
    """Whether the finished stage's model can score texts."""
    return self.make_scorer is not None
