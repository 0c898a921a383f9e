"""Makes optimizers: a name, a schedule, clipping, and the refusal of non-finite gradients."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rl_reason.config.checks import at_least, one_of

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw, "sgd": optax.sgd, "lion": optax.lion, "adafactor": optax.adafactor}
SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Configures an optimizer.

  learning_rate: the highest learning rate of the schedule.
  name: a key of OPTIMIZERS.
  args: further arguments of the optimizer, e.g. {"b2": 0.99, "weight_decay": 0.0}.
  schedule: "constant", "linear" or "cosine": the schedule after warmup_steps updates.
  warmup_steps: updates over which the learning rate rises to its highest.
  max_grad_norm: bound of the gradients' global norm; 0 for no clipping.
  max_skipped: non-finite gradients in a row before the run stops (each is skipped and counted).
  """
  learning_rate: float
  name: str = "adamw"
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  schedule: str = "constant"
  warmup_steps: int = 0
  max_grad_norm: float = 1.0
  max_skipped: int = 5

  def __post_init__(self):
    at_least(0, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps,
             max_grad_norm=self.max_grad_norm)
    at_least(1, max_skipped=self.max_skipped)
    if not math.isfinite(self.learning_rate):
      raise ValueError(f"learning_rate must be finite, got {self.learning_rate}: one update would"
                       " break all parameters.")
    one_of(OPTIMIZERS, name=self.name)
    one_of(SCHEDULES, schedule=self.schedule)


def make_schedule(
    kind: str, *, learning_rate: float, warmup_steps: int, num_updates: int) -> optax.Schedule:
  """Makes a schedule: linear warm-up to `learning_rate`, then what `kind` says.

  Args:
    kind: "constant", or "linear" or "cosine", which fall to 0 at update `num_updates`.
    learning_rate: the highest learning rate.
    warmup_steps: updates of the warm-up.
    num_updates: updates of the whole schedule.
  """
  rest = max(1, num_updates - warmup_steps)
  after = {
      "constant": lambda: optax.constant_schedule(learning_rate),
      "linear": lambda: optax.linear_schedule(learning_rate, 0.0, rest),
      "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest),
  }[kind]()
  if not warmup_steps:
    return after
  # The warm-up starts from 1/warmup, not 0: the first update of a run should do something.
  warmup = optax.linear_schedule(
      learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
  return optax.join_schedules([warmup, after], [warmup_steps])


def clipped_optimizer(section: Optimizer, num_updates: int) -> optax.GradientTransformation:
  """Makes an optax optimizer behind global-norm clipping.

  Args:
    section: the optimizer's configuration.
    num_updates: number of updates of the schedule.
  """
  schedule = make_schedule(
      section.schedule, learning_rate=section.learning_rate, warmup_steps=section.warmup_steps,
      num_updates=num_updates)
  inner = OPTIMIZERS[section.name](schedule, **section.args)
  if not section.max_grad_norm:
    return inner
  return optax.chain(optax.clip_by_global_norm(section.max_grad_norm), inner)


def learning_rate_of(
    section: Optimizer, num_updates: int, part: str = "",
) -> Callable[[optax.OptState], jax.Array]:
  """Makes a function: optimizer state -> the learning rate of the next update.

  It counts as the optimizer does, so refused updates do not move it.

  Args:
    section: the optimizer's configuration.
    num_updates: number of updates of the schedule.
    part: the part of an optimizer of several (optax.partition); "": there is one.
  """
  schedule = make_schedule(
      section.schedule, learning_rate=section.learning_rate, warmup_steps=section.warmup_steps,
      num_updates=num_updates)

  def is_schedule(state):
    return isinstance(state, optax.ScaleByScheduleState)

  def rate(opt_state):
    states = jax.tree.leaves_with_path(opt_state, is_leaf=is_schedule)
    return schedule(next(
        state.count for path, state in states if is_schedule(state)
        and (not part or part in [getattr(key, "key", None) for key in path])))
  return rate


def make_optimizer(section: Optimizer, num_updates: int) -> optax.GradientTransformation:
  """Makes the optimizer of train_step: `clipped_optimizer`, which skips non-finite gradients."""
  return refuse_non_finite(clipped_optimizer(section, num_updates))


def refuse_non_finite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Makes an optimizer that skips non-finite gradients: they leave parameters and state unchanged.

  `skipped_in_a_row(state)` counts how often in a row that happened. The code that runs the loop
  decides when that is too often.
  """
  never = jnp.iinfo(jnp.int32).max  # optax would apply the broken update after this many.
  return optax.apply_if_finite(inner, max_consecutive_errors=int(never))
