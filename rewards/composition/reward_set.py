"""Makes one reward of several: named components, checked and logged separately, and their sum.

    rewards = build_rewards({"math_answer": 1.0, "boxed_format": 0.1})
    total, components = rewards(samples)

What a component's function returns is its raw value. The value goes through the component's
transforms, counts where the gate is open, and is weighed by the schedule of the training step: that
is its share of the total. `token_rewards` lays the total out over a completion's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import types
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from rl_reason.config import naming, user_code
from rl_reason.rewards.composition.component import Component, Trust
from rl_reason.rewards.composition.episodes import in_episodes, seen_by
from rl_reason.rewards.composition.outputs import (
    check_ends,
    checked,
    culprit,
    describe,
    read,
    transformed,
)
from rl_reason.rewards.composition.steps import merge, StepRewards
from rl_reason.rewards.composition.trust import group_trust
from rl_reason.sandbox import pool
from rl_reason.types import Sample


class Scores(NamedTuple):
  """What a RewardSet makes of N samples.

  total: the sum of all shares.
  components: each component's raw values; of a component that is per step, their sums.
  shaped: the shares of the components that are transformed, gated or scheduled.
  steps: None or, where a component is per step, the shares of all such components at the tokens at
    which they are paid (token_rewards).
  trusts: for the components that have a trust, how far it believes them in each sample's group.
  """
  total: Float[np.ndarray, "N"]
  components: dict[str, Float[np.ndarray, "N"]]
  shaped: dict[str, Float[np.ndarray, "N"]]
  steps: StepRewards | None
  trusts: Mapping[str, Float[np.ndarray, "N"]] = types.MappingProxyType({})

  def logged(self) -> dict[str, Float[np.ndarray, "N"]]:
    """Names what is logged: raw values by component, "<component>/shaped", "<component>/trust"."""
    return {**self.components, **{f"{name}/shaped": share for name, share in self.shaped.items()},
            **{f"{name}/trust": trust for name, trust in self.trusts.items()}}


class RewardSet:
  """Scores samples by components and their weighted sum.

  `build_rewards` makes it; it can also be made from `Component`s directly.

  An object among the functions and transforms may have `state() -> dict` and `restore(state)`: its
  state is saved and restored by component name. A function or an object may have
  `check_references(references, **args) -> list[str | None]`, and an object `close()`. One with a
  true attribute `per_sample` judges each sample by itself: it may be given some of them before the
  others exist (`Scoring`). All others see the whole batch, group by group. One with a true attribute
  `sees_episode` is given whole episodes, and all others what the policy wrote (episodes.seen_by).
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
        raise ValueError(
            f"The trust in the reward {c.name!r} looks at {c.trust.component!r}, which is no other"
            f" component.{naming.did_you_mean(c.trust.component, self._by_name)} Components:"
            f" {', '.join(self._by_name)}.")

  def _check_gates(self, component: Component) -> None:
    """Raises: ValueError for a gate on no component, and for gates in a circle."""
    path = [component.name]
    while gate := self._by_name[path[-1]].gate:
      if gate.component not in self._by_name:
        raise ValueError(
            f"The gate of the reward {path[-1]!r} looks at {gate.component!r}, which is not a"
            f" component.{naming.did_you_mean(gate.component, self._by_name)} Components:"
            f" {', '.join(self._by_name)}; one with weight 0 is computed and not added.")
      path.append(gate.component)
      if gate.component in path[:-1]:
        raise ValueError(
            f"The gates of the rewards go round in a circle, {' -> '.join(path)}: none could be"
            " decided first. Take one away; to cut a component at a value of its own use the"
            " transform clip.")

  def __call__(
      self, samples: Sequence[Sample],
  ) -> tuple[Float[np.ndarray, "N"], dict[str, Float[np.ndarray, "N"]]]:
    """Returns (total, raw components), the first two of `score`. Raises: as `score`."""
    return self.score(samples)[:2]

  def score(self, samples: Sequence[Sample]) -> Scores:
    """Computes all that these samples earn, float32 in the order of the samples.

    Raises: ValueError if a component does not return one finite number, or row of steps, per
      sample; whatever a component raises, with a note.
    """
    return self.compose({c.name: self.call(c, samples) for c in self.components}, samples)

  def compose(self, outputs: Mapping[str, Any], samples: Sequence[Sample]) -> Scores:
    """Makes the total and its parts from the outputs of the components' functions, by name.

    Raises: as `score`.
    """
    # Raw values.
    outputs = {c.name: checked(c, outputs[c.name], samples) for c in self.components}
    raw = {name: _totals(output) for name, output in outputs.items()}
    # After transforms and gates.
    counted = {c.name: self._counted(c, outputs[c.name], raw, samples) for c in self.components}
    # After trust and weights: shares of the total.
    trusts = {c.name: self._trust(c.trust, _totals(counted[c.name]), raw, samples)
              for c in self.components if c.trust}
    shares = {c.name: self._share(c, counted[c.name], samples, trusts.get(c.name))
              for c in self.components}
    # In float64; rounded to float32 once, at the end.
    total = sum((_totals(share) for share in shares.values()), np.zeros(len(samples)))
    steps = [share for share in shares.values() if isinstance(share, StepRewards)]
    return Scores(
        total.astype(np.float32), {name: value.astype(np.float32) for name, value in raw.items()},
        {c.name: _totals(shares[c.name]).astype(np.float32)
         for c in self.components if not c.plain},
        merge(steps) if steps else None,
        {name: trust.astype(np.float32) for name, trust in trusts.items()})

  def _counted(
      self, component: Component, output, raw, samples: Sequence[Sample],
  ) -> Float[np.ndarray, "N"] | StepRewards:
    """Computes a component's values after the transforms, 0 where the gate is closed, float64."""
    per_step = isinstance(output, StepRewards)
    values = list(output.values) if per_step else [output[i:i + 1] for i in range(len(output))]
    for transform in component.transforms:
      if getattr(transform.function, "of_steps", False) and not per_step:
        raise ValueError(
            f"The reward component {component.name!r} is one number per sample, and its transform"
            f" {transform.name!r} works on steps: return StepRewards, or take the transform away.")
      values = transformed(component, transform, values, samples)
    return _scaled(
        StepRewards(values, output.ends) if per_step else np.concatenate([np.zeros(0), *values]),
        self._open(component, raw))

  def _trust(
      self, trust: Trust, values: Float[np.ndarray, "N"], raw, samples: Sequence[Sample],
  ) -> Float[np.ndarray, "N"]:
    # Where the other component's gate is closed no sample is right.
    outcomes = np.where(
        self._open(self._by_name[trust.component], raw), raw[trust.component], -np.inf)
    return group_trust(
        values, outcomes, [s.group for s in samples], right=trust.right, least=trust.least)

  def _share(
      self, component: Component, counted, samples: Sequence[Sample],
      trust: Float[np.ndarray, "N"] | None,
  ) -> Float[np.ndarray, "N"] | StepRewards:
    """Computes what the component adds to the total, float64."""
    weights = component.weight(np.array([s.step for s in samples], np.int64))
    return _scaled(counted, weights if trust is None else weights * trust)

  def _open(
      self, component: Component, raw: Mapping[str, Float[np.ndarray, "N"]],
  ) -> Bool[np.ndarray, "N"]:
    """Finds where a component's gate, that of the component it looks at, and so on, are open."""
    opened = np.ones(len(raw[component.name]), bool)
    while gate := component.gate:
      opened &= (raw[gate.component] > gate.above) & (raw[gate.component] < gate.below)
      component = self._by_name[gate.component]
    return opened

  def call(self, component: Component, samples: Sequence[Sample]) -> Any:
    """Calls a component's function with what it sees of the samples.

    Returns: its result, mostly unchecked; rewards of steps stand at places of the whole completion.
    Raises: whatever the function raises, with a note; ValueError in place of SystemExit.
    """
    seen = seen_by(component.function, samples)

    def what():
      first = f". Its first sample: {describe(seen[0])}" if seen else ""
      return (f"the reward component {component.name!r} on a batch of {len(samples)}"
              f" samples{first}{culprit(component, seen)}")
    with user_code.named(what):
      output = component.function(seen, **component.args)
    if not isinstance(output, StepRewards) or all(a is b for a, b in zip(seen, samples)):
      return output
    # Its places are among the policy's own tokens, which only this function knows.
    output = read(component, output, len(seen))
    check_ends(component, output, seen)
    return in_episodes(output, samples)

  def check_references(self, references: Iterable[str], ids: Sequence[str] | None = None) -> None:
    """Asks every component whether it can use these references, so that bad ones are found early.

    Args:
      references: of all problems, e.g. (p.reference for p in problems).
      ids: the problems' ids, named in the error; positions if None.

    Raises: ValueError naming the component, the first bad reference, its position and id, and how
      many there are.
    """
    references = list(references)
    for c in self.components:
      check = getattr(c.function, "check_references", None)
      if check is None:
        continue
      with user_code.named(f"check_references of the reward {c.name!r}"):
        complaints = check(references, **c.args)
      bad = [(i, complaint) for i, complaint in enumerate(complaints) if complaint]
      if bad:
        i, complaint = bad[0]
        where = f"number {i}" + (f" (id {ids[i]!r})" if ids is not None else "")
        raise ValueError(
            f"The reward {c.name!r} cannot use {len(bad)} of {len(references)} references. The"
            f" first is {where}, {references[i]!r}: {complaint}. Correct or leave out these rows,"
            " or choose another reward. All positions:"
            f" {[j for j, _ in bad[:20]]}{' ...' if len(bad) > 20 else ''}")

  def _stateful(self) -> dict[str, Any]:
    """Finds what has a state.

    Returns: by component name, or for a transform "component:its place in the transforms:its name".
    """
    owners = {c.name: c.function for c in self.components}
    for c in self.components:
      # The place is part of the name: a component may use a transform twice.
      owners |= {f"{c.name}:{i}:{t.name}": t.function for i, t in enumerate(c.transforms)}
    return {name: owner for name, owner in owners.items() if hasattr(owner, "state")}

  def state(self) -> dict[str, Any]:
    """Returns the states of stateful components and transforms by name; {} if there are none.

    Raises: ValueError for a state that is not JSON; whatever a `state()` raises, with a note.
    """
    states = {}
    for name, owner in self._stateful().items():
      with user_code.named(f"state() of the reward {name!r}"):
        states[name] = user_code.plain(owner.state(), f"the reward {name!r}")
    return states

  def restore(self, state: Mapping[str, Any]) -> None:
    """Gives every stateful component and transform its saved state back.

    Raises: ValueError if the names are not those that were saved.
    """
    stateful = self._stateful()
    if set(state) != set(stateful):
      raise ValueError(
          f"The saved reward state belongs to {sorted(state)}, but the stateful rewards now are"
          f" {sorted(stateful)}: resume with the config of the run that saved it, or start a new"
          " run.")
    for name, owner in stateful.items():
      with user_code.named(f"restore() of the reward {name!r}"):
        owner.restore(state[name])

  def metrics(self) -> dict[str, float]:
    """Collects what components report of themselves (a method `metrics() -> dict`).

    Returns: numbers as "<component>/<name>".
    """
    found = {}
    for c in self.components:
      if hasattr(c.function, "metrics"):
        with user_code.named(f"metrics() of the reward {c.name!r}"):
          found |= {f"{c.name}/{k}": v for k, v in c.function.metrics().items()}
    return found

  def close(self) -> None:
    """Frees what components hold, and ends the shared worker processes.

    The workers come back at the next use.
    """
    for c in self.components:
      if hasattr(c.function, "close"):
        c.function.close()
    pool.close_shared_pools()


def token_rewards(
    scores: Scores, lengths: Int[np.ndarray, "B"], size: int) -> Float[np.ndarray, "B size"]:
  """Lays rewards on completion tokens, for methods that give credit along a completion.

  Such methods are a critic, or returns per step. Each step is paid at its last token, and all else
  of the total (plain components) at the completion's last token. A row sums to the sample's total;
  the tokens after its length get 0.

  Args:
    scores: of the B samples, from RewardSet.score or Scoring.finish.
    lengths: tokens of each completion, EOS included.
    size: T of the result.

  Raises: ValueError for a completion with a reward and no token, or longer than `size`.
  """
  lengths = np.asarray(lengths, np.int64)
  bad = np.flatnonzero((lengths > size) | (lengths < 1) & (scores.total != 0))
  if bad.size:
    i = int(bad[0])
    raise ValueError(
        f"Completion {i} has {lengths[i]} tokens and the reward {scores.total[i]}: it needs a place"
        f" among {size} tokens. Give the lengths of the samples that were scored.")
  # Steps at their own tokens, and what remains of the total at the last one.
  rewards, rest = np.zeros((len(lengths), size)), scores.total.astype(np.float64)
  if scores.steps is not None:
    for row, values, ends in zip(rewards, scores.steps.values, scores.steps.ends, strict=True):
      row[ends] = values
    rest = rest - scores.steps.totals
  rewards[np.arange(len(lengths)), np.maximum(lengths, 1) - 1] += rest
  return rewards.astype(np.float32)


def _totals(output: Float[np.ndarray, "N"] | StepRewards) -> Float[np.ndarray, "N"]:
  return output.totals if isinstance(output, StepRewards) else output


def _scaled(
    output: Float[np.ndarray, "N"] | StepRewards, factors,
) -> Float[np.ndarray, "N"] | StepRewards:
  if isinstance(output, StepRewards):
    return StepRewards(
        [v * factor for v, factor in zip(output.values, factors, strict=True)], output.ends)
  return output * factors
