"""Finds which groups of a rollout have something to teach, and samples more prompts for the others.

The latter is called dynamic sampling.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import Bool
import numpy as np

from rl_reason.rewards.composition.monitors import repeat_share
from rl_reason.rollout.record import Rollout


def equal_groups(rollout: Rollout, by: str = "") -> Bool[np.ndarray, "P"]:
  """Finds the groups whose completions all got the same reward: they have no advantage in it.

  Args:
    rollout: P groups with their rewards.
    by: a reward component; "": the total reward.

  Returns: true where a group's rewards are equal: no baseline of the group leaves an advantage.
  """
  values = (rollout.components[by] if by else rollout.scores).reshape(-1, rollout.group_size)
  return (values == values[:, :1]).all(axis=1)


def resample(
    first: Rollout, draw: Callable[[int], Rollout], *, max_rounds: int, by: str = "") -> Rollout:
  """Samples rounds of further prompts, until enough groups are not equal (dynamic sampling).

  Enough are as many as the first round has groups. If there are more, those sampled first are kept.
  If there are still fewer after `max_rounds`, equal groups fill their places, so that all steps
  have one shape. The metrics are those of everything that was sampled.

  Args:
    first: the first round.
    draw: (round, from 1) -> another rollout, of as many further prompts.
    max_rounds: further rounds at most.
    by: see equal_groups.

  Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, sec. 3.2, where rounds have no limit.
  """
  wanted, rounds = len(first.prompts.lengths), [first]

  def num_different():
    return sum(int((~equal_groups(r, by)).sum()) for r in rounds)
  while num_different() < wanted and len(rounds) <= max_rounds:
    rounds.append(draw(len(rounds)))
  # Different groups come first, in the order in which they were sampled.
  everything = Rollout.join(rounds)
  different = ~equal_groups(everything, by)
  kept = np.concatenate([np.flatnonzero(different), np.flatnonzero(~different)])[:wanted]
  return dataclasses.replace(everything.take(kept), metrics={
      **everything.metrics,
      **metrics(everything, by), "resample/rounds": float(len(rounds) - 1),
      "resample/kept": float(different[kept].sum() / len(different)),
      "resample/filled": float((~different[kept]).mean())})


def metrics(rollout: Rollout, by: str = "") -> dict[str, float]:
  """Computes what every stage that samples logs.

  Returns: means of the total reward and of each component; the share of groups that have nothing to
    teach because all rewards are equal; lengths and repetition of the policy's own
    tokens; what sampling cost.
  """
  completions = rollout.completions
  episodes = {} if completions.observed is None else {
      # Answers end where the policy goes on; each completion ends with a turn of its own.
      "episode/turns": float(
          1 + (np.diff(completions.observed.astype(np.int8), axis=1) < 0).sum(axis=1).mean())}
  return {
      "reward/mean": float(rollout.scores.mean()), "reward/std": float(rollout.scores.std()),
      **{f"reward/{k}": float(v.mean()) for k, v in rollout.components.items()},
      "completion/length": float(completions.sampled.sum(axis=1).mean()),
      "completion/truncated": float(completions.truncated.mean()),
      "reward/equal_groups": float(equal_groups(rollout, by).mean()),
      "completion/repetition": float(np.mean([
          repeat_share(row[own].tolist())
          for row, own in zip(completions.tokens, completions.sampled)])),
      "tokens": float(completions.sampled.sum()),
      "environment_calls": float(len(completions.lengths)), **episodes,
  }
