"""What a stage is given and what it hands to the training loop."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, TypeAlias

import optax

from rl_reason.arrays import LearnerState
from rl_reason.learner import optimizers
from rl_reason.learner.optimizers import Optimizer
from rl_reason.rewards.composition.monitors import Monitors
from rl_reason.types import Params, Problem, Source


def first_rows(source: Source, limit: int = 1000) -> list[Problem]:
  """Rows that a stage's `check` tries before any device work."""
  return [source[i] for i in range(min(limit, len(source)))]


class Resumable(Protocol):
  """Something whose state belongs into a checkpoint, e.g. a RewardSet."""

  def state(self) -> Mapping[str, Any]: ...

  def restore(self, state: Mapping[str, Any]) -> None: ...


class Batches(Protocol):
  """Problems, a list per step on this process; resumable (tasks.pipeline.batches)."""

  def __next__(self) -> list[Problem]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...


# Parameters -> (metrics under "eval/", rows to keep as JSON).
Evaluate: TypeAlias = Callable[[Params], tuple[dict[str, float], list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a stage trains, known before it runs.

  shapes: of its parameters, with dtypes and shardings.
  policy: parameters -> the policy among them, for evaluations and for stages that start from it; None: it trains none.
  critic: parameters -> {"trunk": of a transformer of the policy's shape, "head": on its hidden states (models.heads)}, for
    critics that start from it; None: it trains none.
  """
  shapes: Params
  policy: Callable[[Params], Params] | None = lambda params: params
  critic: Callable[[Params], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """One way of training, ready to run; rl_reason.train runs its steps, saves, resumes, logs and evaluates.

  num_steps: calls of `step`.
  init: () -> LearnerState, sharded; state_shape: the same without computing it.
  data: this process's problems; `step` may take more of them than it is given.
  step: (state, problems, step index) -> (state, metrics as host numbers, a completion to show or ""). It may donate the
    state.
  resumable: by name, what else a checkpoint holds.
  max_skipped: non-finite updates in a row that stop the run.
  monitors: watch the metrics of steps and evaluations; they warn, or stop the run.
  evaluate: how good what it trains is, beside the run's own evaluation of the policy, if it trains one.
  close: frees worker processes and the like.
  """
  num_steps: int
  init: Callable[[], LearnerState]
  state_shape: LearnerState
  data: Batches
  step: Callable[[LearnerState, list[Problem], int], tuple[LearnerState, dict[str, float], str]]
  max_skipped: int
  resumable: Mapping[str, Resumable] = dataclasses.field(default_factory=dict)
  monitors: Monitors = dataclasses.field(default_factory=Monitors)
  evaluate: Evaluate | None = None
  close: Callable[[], None] = lambda: None


def clipped_optimizer(section: Optimizer, num_updates: int) -> optax.GradientTransformation:
  """learner.clipped_optimizer as a section says."""
  schedule = optimizers.make_schedule(
      section.schedule, learning_rate=section.learning_rate, warmup_steps=section.warmup_steps, num_updates=num_updates)
  return optimizers.clipped_optimizer(
      section.name, schedule=schedule, max_grad_norm=section.max_grad_norm, arguments=dict(section.args))
