"""Several rewards as one: named components, checked and logged separately, and their weighted sum.

    rewards = build_rewards({"math_answer": 1.0, "boxed_format": 0.1})
    total, components = rewards(samples)

What a component's function returns is its raw value. It goes through the component's transforms, counts where the gate is
open, and is weighed by the schedule of the training step: that is its share of the total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from rl_reason import naming
from rl_reason.rewards import workers
from rl_reason.rewards.groups import group_trust
from rl_reason.rewards.outputs import checked, culprit, describe, transformed
from rl_reason.rewards.schedules import Schedule
from rl_reason.rewards.steps import StepRewards, merge

if TYPE_CHECKING:  # Not at run time: workers import this package, and types.py imports JAX.
  from rl_reason.rewards.shaping import Ragged
  from rl_reason.types import Sample


@dataclasses.dataclass(frozen=True)
class Gate:
  """Where a component counts: where another one's value is above `above` and below `below`, and the other's own gate, if
  it has one, is open too.

  The value is the raw one of the sample, the sum where it is per step.

  Raises: ValueError without a threshold, or for thresholds that nothing lies between.
  """
  component: str
  above: float = -math.inf
  below: float = math.inf

  def __post_init__(self):
    if not self.above < self.below or math.isinf(self.above) and math.isinf(self.below):
      raise ValueError(f"the gate on {self.component!r} needs a threshold: above, below, or above < below; got"
                       f" above={self.above}, below={self.below}.")


@dataclasses.dataclass(frozen=True)
class Trust:
  """How far a component is believed, group by group: by whether it tells right from wrong (groups.group_trust).

  component: another one, whose raw value of at least `right` says that a sample is right; where its gate is closed none is.
  least: trust goes no lower in a group that has right and wrong samples; 1: only groups that have not both are left out.

  What is compared is what would be paid: the values after their transforms, 0 where the gate is closed. So a gate on the
  other, `above` just below 0.2, is the paper's code, which saves itself the judgement of worse answers: with outcomes of 0
  and 1 it then never finds a reason to distrust.

  Raises: ValueError if `right` is not finite, or `least` not in [0, 1].
  """
  component: str
  right: float = 0.5
  least: float = 0.0

  def __post_init__(self):
    if not math.isfinite(self.right) or not 0 <= self.least <= 1:
      raise ValueError(f"the trust by {self.component!r} needs a finite right and least in [0, 1], got right={self.right} and"
                       f" least={self.least}.")


@dataclasses.dataclass(frozen=True)
class Transform:
  """One change of a component's values (shaping.py): a function or, with state, an object; and arguments of every call."""
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
  transforms: applied to its values in this order. gate: where it counts; None: everywhere.
  trust: a factor for each group; None: 1.
  """
  name: str
  function: Callable[..., Float[np.ndarray, "N"] | StepRewards]
  weight: float | Schedule = 1.0
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  transforms: tuple[Transform, ...] = ()
  gate: Gate | None = None
  trust: Trust | None = None

  def __post_init__(self):
    object.__setattr__(self, "weight", self.weight if isinstance(self.weight, Schedule) else Schedule.of(self.weight))

  @property
  def plain(self) -> bool:
    """Its share of the total is its raw value times one number."""
    return not self.transforms and self.gate is None and self.trust is None and self.weight.schedule == "constant"


class Scores(NamedTuple):
  """What a RewardSet makes of N samples.

  total: the sum of all shares. components: each component's raw values; of one that is per step, their sums.
  shaped: the shares of the components that are transformed, gated or scheduled.
  steps: None or, where a component is per step, the shares of all such components at the tokens they are paid at
    (steps.token_rewards).
  trusts: of the components with one, how far each sample's group believes them.
  """
  total: Float[np.ndarray, "N"]
  components: dict[str, Float[np.ndarray, "N"]]
  shaped: dict[str, Float[np.ndarray, "N"]]
  steps: StepRewards | None
  trusts: Mapping[str, Float[np.ndarray, "N"]] = types.MappingProxyType({})

  def logged(self) -> dict[str, Float[np.ndarray, "N"]]:
    """Raw values by component, shares as "<component>/shaped" and trust as "<component>/trust"."""
    return {**self.components, **{f"{name}/shaped": share for name, share in self.shaped.items()},
            **{f"{name}/trust": trust for name, trust in self.trusts.items()}}


class RewardSet:
  """Components and their weighted sum; made by `build_rewards`, or from `Component`s directly.

  An object among the functions and transforms may have `state() -> dict` and `restore(state)`: its state is saved and
  restored by component name. A function or an object may have `check_references(references, **args) -> list[str | None]`,
  and an object `close()`. One with a true attribute `per_sample` judges each sample by itself: it may be given some of
  them before the others exist (`Scoring`). All others see the whole batch, group by group.
  """

  def __init__(self, components: Sequence[Component]):
    names = [c.name for c in components]
    if not names or len(set(names)) != len(names):
      raise ValueError(f"A RewardSet needs at least one component and each name once, got {names}.")
    self.components = tuple(components)
    self._by_name = {c.name: c for c in components}
    for c in components:
      self._check_gates(c)
      if c.trust and (c.trust.component not in self._by_name or c.trust.component == c.name):
        raise ValueError(f"The trust in the reward {c.name!r} looks at {c.trust.component!r}, which is no other component."
                         f"{naming.did_you_mean(c.trust.component, self._by_name)} Components: {', '.join(self._by_name)}.")

  def _check_gates(self, component: Component) -> None:
    path = [component.name]
    while gate := self._by_name[path[-1]].gate:
      if gate.component not in self._by_name:
        raise ValueError(f"The gate of the reward {path[-1]!r} looks at {gate.component!r}, which is not a component."
                         f"{naming.did_you_mean(gate.component, self._by_name)} Components:"
                         f" {', '.join(self._by_name)}; one with weight 0 is computed and not added.")
      path.append(gate.component)
      if gate.component in path[:-1]:
        raise ValueError(f"The gates of the rewards go round in a circle, {' -> '.join(path)}: none could be decided"
                         " first. Take one away; to cut a component at a value of its own use the transform clip.")

  def __call__(self, samples: Sequence[Sample]) -> tuple[Float[np.ndarray, "N"], dict[str, Float[np.ndarray, "N"]]]:
    """(total, raw components), the first two of `score`. Raises: as `score`."""
    return self.score(samples)[:2]

  def score(self, samples: Sequence[Sample]) -> Scores:
    """All that these samples earn, float32 in the order of the samples.

    Raises: ValueError if a component does not return one finite number, or row of steps, per sample; whatever a component
      raises, with a note.
    """
    return self.compose({c.name: self.call(c, samples) for c in self.components}, samples)

  def compose(self, outputs: Mapping[str, Any], samples: Sequence[Sample]) -> Scores:
    """The outputs of the components' functions, by name -> the total and its parts. Raises: as `score`."""
    outputs = {c.name: checked(c, outputs[c.name], samples) for c in self.components}
    raw = {name: _totals(output) for name, output in outputs.items()}
    counted = {c.name: self._counted(c, outputs[c.name], raw, samples) for c in self.components}
    trusts = {c.name: self._trust(c.trust, _totals(counted[c.name]), raw, samples) for c in self.components if c.trust}
    shares = {c.name: self._share(c, counted[c.name], samples, trusts.get(c.name)) for c in self.components}
    total = sum((_totals(share) for share in shares.values()), np.zeros(len(samples)))
    steps = [share for share in shares.values() if isinstance(share, StepRewards)]
    return Scores(
        total.astype(np.float32), {name: value.astype(np.float32) for name, value in raw.items()},
        {c.name: _totals(shares[c.name]).astype(np.float32) for c in self.components if not c.plain},
        merge(steps) if steps else None, {name: trust.astype(np.float32) for name, trust in trusts.items()})

  def _counted(self, component: Component, output, raw, samples: Sequence[Sample]) -> Float[np.ndarray, "N"] | StepRewards:
    """Its values after the transforms, 0 where the gate is closed, float64."""
    per_step = isinstance(output, StepRewards)
    values = list(output.values) if per_step else [output[i:i + 1] for i in range(len(output))]
    for transform in component.transforms:
      if getattr(transform.function, "of_steps", False) and not per_step:
        raise ValueError(f"The reward component {component.name!r} is one number per sample, and its transform"
                         f" {transform.name!r} works on steps: return StepRewards, or take the transform away.")
      values = transformed(component, transform, values, samples)
    return _scaled(StepRewards(values, output.ends) if per_step else np.concatenate([np.zeros(0), *values]),
                   self._open(component, raw))

  def _trust(self, trust: Trust, values: Float[np.ndarray, "N"], raw, samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
    outcomes = np.where(self._open(self._by_name[trust.component], raw), raw[trust.component], -np.inf)
    return group_trust(values, outcomes, [s.group for s in samples], right=trust.right, least=trust.least)

  def _share(
      self, component: Component, counted, samples: Sequence[Sample], trust: Float[np.ndarray, "N"] | None,
  ) -> Float[np.ndarray, "N"] | StepRewards:
    """What the component adds to the total, float64."""
    weights = component.weight(np.array([s.step for s in samples], np.int64))
    return _scaled(counted, weights if trust is None else weights * trust)

  def _open(self, component: Component, raw: Mapping[str, Float[np.ndarray, "N"]]) -> Bool[np.ndarray, "N"]:
    """Where its gate, and that of the component it looks at, and so on, let it count."""
    opened = np.ones(len(raw[component.name]), bool)
    while gate := component.gate:
      opened &= (raw[gate.component] > gate.above) & (raw[gate.component] < gate.below)
      component = self._by_name[gate.component]
    return opened

  def call(self, component: Component, samples: Sequence[Sample]) -> Any:
    """What the component's function makes of these samples, unchecked. Raises: whatever it raises, with a note."""
    try:
      return component.function(samples, **component.args)
    except Exception as error:
      first = f" Its first sample: {describe(samples[0])}" if samples else ""
      error.add_note(f"Raised by the reward component {component.name!r} on a batch of {len(samples)} samples."
                     f"{first}{culprit(component, samples)}")
      raise

  def check_references(self, references: Iterable[str], ids: Sequence[str] | None = None) -> None:
    """Asks every component whether it can use these references, so that a bad one is found before a run, not in it.

    Args:
      references: of all problems, e.g. (p.reference for p in problems).
      ids: the problems' ids, named in the error; positions if None.

    Raises: ValueError naming the component, the first bad reference, its position and id, and how many there are.
    """
    references = list(references)
    for c in self.components:
      check = getattr(c.function, "check_references", None)
      if check is None:
        continue
      bad = [(i, complaint) for i, complaint in enumerate(check(references, **c.args)) if complaint]
      if bad:
        i, complaint = bad[0]
        where = f"number {i}" + (f" (id {ids[i]!r})" if ids is not None else "")
        raise ValueError(
            f"The reward {c.name!r} cannot use {len(bad)} of {len(references)} references. The first is {where},"
            f" {references[i]!r}: {complaint}. Correct or leave out these rows, or choose another reward. All"
            f" positions: {[j for j, _ in bad[:20]]}{' ...' if len(bad) > 20 else ''}")

  def _stateful(self) -> dict[str, Any]:
    """By component name, or for a transform "component:its place in the transforms:its name"."""
    owners = {c.name: c.function for c in self.components}
    for c in self.components:
      owners |= {f"{c.name}:{i}:{t.name}": t.function for i, t in enumerate(c.transforms)}
    return {name: owner for name, owner in owners.items() if hasattr(owner, "state")}

  def state(self) -> dict[str, Any]:
    """The states of the stateful components and transforms by name; {} if there are none."""
    return {name: owner.state() for name, owner in self._stateful().items()}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Gives every stateful component and transform its saved state back.

    Raises: ValueError if the names are not those that were saved.
    """
    stateful = self._stateful()
    if set(state) != set(stateful):
      raise ValueError(f"The saved reward state belongs to {sorted(state)}, but the stateful rewards now are"
                       f" {sorted(stateful)}: resume with the config of the run that saved it, or start a new run.")
    for name, owner in stateful.items():
      owner.restore(state[name])

  def metrics(self) -> dict[str, float]:
    """What components tell of themselves (a method `metrics() -> dict`), as "<component>/<name>"."""
    return {f"{c.name}/{k}": v for c in self.components if hasattr(c.function, "metrics")
            for k, v in c.function.metrics().items()}

  def close(self) -> None:
    """Frees what components hold, and ends the shared worker processes (they come back at the next use)."""
    for c in self.components:
      if hasattr(c.function, "close"):
        c.function.close()
    workers.close_shared_pools()


def _totals(output: Float[np.ndarray, "N"] | StepRewards) -> Float[np.ndarray, "N"]:
  return output.totals if isinstance(output, StepRewards) else output


def _scaled(output: Float[np.ndarray, "N"] | StepRewards, factors) -> Float[np.ndarray, "N"] | StepRewards:
  if isinstance(output, StepRewards):
    return StepRewards([v * factor for v, factor in zip(output.values, factors, strict=True)], output.ends)
  return output * factors
