"""Describes one component of a reward: its function, weight, transforms, gate and trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.rewards.composition.schedules import Schedule
from rl_reason.rewards.composition.shaping import Ragged
from rl_reason.rewards.composition.steps import StepRewards


@dataclasses.dataclass(frozen=True)
class Gate:
  """Where a component counts: where another component's value lies between two thresholds.

  If the other component has a gate of its own, that must be open too. The value is the raw one of
  the sample, the sum where it is per step.

  component: the other one's name.
  above: the value must be above this.
  below: the value must be below this.

  Raises: ValueError without a threshold, or for thresholds that nothing lies between.
  """
  component: str
  above: float = -math.inf
  below: float = math.inf

  def __post_init__(self):
    if not self.above < self.below or math.isinf(self.above) and math.isinf(self.below):
      raise ValueError(
          f"the gate on {self.component!r} needs a threshold: above, below, or above < below; got"
          f" above={self.above}, below={self.below}.")


@dataclasses.dataclass(frozen=True)
class Trust:
  """How far a component is believed, group by group (trust.group_trust).

  It is believed as far as it separates right samples from wrong ones. What is compared is what
  would be paid: the values after their transforms, 0 where the gate is closed. So a gate on the
  other component, `above` just below 0.2, is the paper's code, which saves itself the judgement of
  worse answers: with outcomes of 0 and 1 it then never finds a reason to distrust.

  component: another one, whose raw value of at least `right` says that a sample is right; where its
    gate is closed no sample is.
  right: that value.
  least: trust goes no lower in a group that has right and wrong samples. 1: only groups that do not
    have both are left out.

  Raises: ValueError if `right` is not finite, or `least` not in [0, 1].
  """
  component: str
  right: float = 0.5
  least: float = 0.0

  def __post_init__(self):
    if not math.isfinite(self.right) or not 0 <= self.least <= 1:
      raise ValueError(
          f"the trust by {self.component!r} needs a finite right and least in [0, 1], got"
          f" right={self.right} and least={self.least}.")


@dataclasses.dataclass(frozen=True)
class Transform:
  """One change of a component's values (shaping.py).

  name: in a config and in errors.
  function: a function or, with state, an object.
  args: arguments of every call.
  """
  name: str
  function: Callable[..., Ragged]
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Component:
  """One reward of a set.

  name: what logs call it.
  function: the reward; an object when it keeps state (`state`, `restore`) or resources (`close`).
  weight: its factor in the total, or how it changes with the training step; 0 logs it only.
  args: keyword arguments of every call; {} for an object, which got them when it was made.
  transforms: applied to its values in this order.
  gate: where it counts; None: everywhere.
  trust: gives a factor for each group; None: 1.
  """
  name: str
  function: Callable[..., Float[np.ndarray, "N"] | StepRewards]
  weight: float | Schedule = 1.0
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  transforms: tuple[Transform, ...] = ()
  gate: Gate | None = None
  trust: Trust | None = None

  def __post_init__(self):
    object.__setattr__(
        self, "weight",
        self.weight if isinstance(self.weight, Schedule) else Schedule.of(self.weight))

  @property
  def plain(self) -> bool:
    """Whether its share of the total is its raw value times one number."""
    return (not self.transforms and self.gate is None and self.trust is None
            and self.weight.schedule == "constant")
