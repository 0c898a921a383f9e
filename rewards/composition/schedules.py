"""Changes weights with the training step."""

from collections.abc import Callable, Mapping
import dataclasses
import sys
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from rl_reason.config import naming

Progress = Float[np.ndarray, "N"]  # step / steps.


def constant(progress: Progress) -> Progress:
  """The weight stays at `start`."""
  return np.zeros_like(progress)


def linear(progress: Progress) -> Progress:
  """The weight goes from `start` to `end` along a line."""
  return np.minimum(progress, 1.0)


def cosine(progress: Progress) -> Progress:
  """The weight goes from `start` to `end` along half a cosine wave."""
  return (1 - np.cos(np.pi * np.minimum(progress, 1.0))) / 2


def exponential(progress: Progress) -> Progress:
  """The weight approaches `end` with the time constant `steps`, and never quite arrives."""
  return 1 - np.exp(-progress)


def step(progress: Progress) -> Progress:
  """The weight is `start` before the step `steps` and `end` from there on."""
  return np.where(progress >= 1, 1.0, 0.0)


# How far the weight has come from start to end, from 0 to 1, at step / steps.
SCHEDULES: dict[str, Callable[[Progress], Progress]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A weight that goes from `start` at training step 0 to `end` at `steps` and after.

  Outside training, for example in an evaluation, samples have step 0: the weight is `start`.

  schedule: a key of SCHEDULES.
  start: weight at step 0.
  end: weight in the end; may be left out of a constant.
  steps: training steps from start to end; may be left out of a constant.
  """
  schedule: str
  start: float
  end: float | None = None
  steps: int | None = None

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(
          f"the unknown schedule {self.schedule!r}.{naming.did_you_mean(self.schedule, SCHEDULES)}"
          f" Known: {', '.join(SCHEDULES)}.")
    if self.schedule == "constant" and self.end is None and self.steps is None:
      object.__setattr__(self, "end", self.start)
      object.__setattr__(self, "steps", 1)
    for name, value in (("start", self.start), ("end", self.end)):
      if not is_number(value):
        raise ValueError(f"a {self.schedule} schedule with {name}={value!r}: give a finite number.")
    if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
      raise ValueError(
          f"a {self.schedule} schedule with steps={self.steps!r}: it must be at least 1, the"
          " training steps from start to end. For one weight throughout give a number.")

  @classmethod
  def of(cls, weight: float | Mapping[str, Any]) -> "Schedule":
    """Makes a schedule of a number, or of a mapping with the fields of this class.

    Raises: ValueError for anything else.
    """
    if not hasattr(weight, "items"):
      if not is_number(weight):
        raise ValueError(
            f"the weight {weight!r}: give a finite number (0 to log it only), or a schedule:"
            " {'schedule': 'linear', 'start': 1.0, 'end': 0.0, 'steps': 100}")
      return cls("constant", float(weight))
    known = [f.name for f in dataclasses.fields(cls)]
    for field in weight:
      if field not in known:
        raise ValueError(
            f"a weight with the unknown field {field!r}.{naming.did_you_mean(field, known)} Its"
            f" fields: {', '.join(known)}")
    missing = [f for f in ("schedule", "start") if f not in weight]
    if missing:
      raise ValueError(
          f"a weight that lacks {' and '.join(missing)}. Its fields: {', '.join(known)}")
    return cls(**dict(weight.items()))

  def __call__(self, step: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Computes the weights at these training steps (Sample.step), float64."""
    progress = np.asarray(step, np.float64) / self.steps
    return self.start + (self.end - self.start) * SCHEDULES[self.schedule](progress)


def is_number(value: Any) -> bool:
  """Says whether a value is a number that a float can hold, and no NaN or infinity."""
  largest = sys.float_info.max  # Compared and not converted: 10**400 is no float.
  return (isinstance(value, (int, float)) and not isinstance(value, bool)
          and -largest <= value <= largest)
