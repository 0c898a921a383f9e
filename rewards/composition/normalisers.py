"""Transforms bring a component to a known scale: that of its earlier values, or of the group.

State goes into checkpoints. Each process of a run keeps the statistics of its own samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.rewards.composition.shaping import Ragged
from rl_reason.rewards.composition.trust import group_slices


class RunningMeanStd:
  """Computes (r − mean) / (std + epsilon) over all values so far, this batch's included.

  It is 0 while all values were equal.

  Source: Welford 1962; merged batch by batch as in Chan, Golub and LeVeque 1983. The population's
    std.
  """

  def __init__(self, *, epsilon: float = 1e-6):
    if not epsilon > 0:
      raise ValueError(
          f"epsilon must be above 0, got {epsilon}: the first values may all be equal.")
    self._epsilon = epsilon
    # squares: the sum of squared differences from the mean.
    self._count, self._mean, self._squares = 0, 0.0, 0.0

  def __call__(self, rewards: Ragged) -> Ragged:
    values = _flat(rewards)
    if values.size:
      # Merges this batch's moments into those of all batches before it.
      own = _centred(values)
      count, mean = self._count + values.size, float(values[0] - own[0])
      shift = mean - self._mean
      self._squares += (float((own ** 2).sum())
                        + shift**2 * self._count * values.size / count)
      self._mean += shift * (values.size / count)  # By exactly `shift` in the first batch.
      self._count = count
    std = np.sqrt(self._squares / max(1, self._count))
    return [(r - self._mean) / (std + self._epsilon) for r in rewards]

  def state(self) -> Mapping[str, Any]:
    return {"count": self._count, "mean": self._mean, "squares": self._squares}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]


class SlidingMinMax:
  """Computes (r − min) / (max − min + epsilon), in [0, 1], over the last `window` values.

  It is 0 while all values were equal. The window holds at least this batch, so that all samples of
  a batch are measured alike.

  Source: Le et al. 2025 (Memory-R+), arXiv:2504.02273, whose window moves within a batch, value by
    value.
  """

  def __init__(self, *, window: int = 100, epsilon: float = 1e-6):
    if window < 1 or not epsilon > 0:
      raise ValueError(
          f"window must be at least 1 and epsilon above 0, got window={window}, epsilon={epsilon}.")
    self._window, self._epsilon, self._recent = window, epsilon, np.zeros(0)

  def __call__(self, rewards: Ragged) -> Ragged:
    values = _flat(rewards)
    # The whole batch is measured, even if it is longer than the window.
    seen = np.concatenate([self._recent, values])[-max(self._window, values.size):]
    self._recent = seen[-self._window:]
    if not seen.size:
      return list(rewards)
    return [(r - seen.min()) / (np.ptp(seen) + self._epsilon) for r in rewards]

  def state(self) -> Mapping[str, Any]:
    return {"recent": self._recent.tolist()}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._recent = np.array(state["recent"], np.float64)


def group_mean_std(rewards: Ragged, *, groups: Sequence[int], epsilon: float = 1e-6) -> Ragged:
  """Computes (r − mean) / (std + epsilon) over all values of the sample's group.

  So components weigh alike, whatever their scales. Steps are compared with all steps of the group.
  The std is the population's.

  Source: Liu et al. 2026 (GDPO), arXiv:2601.05242, for components; Shao et al. 2024,
    arXiv:2402.03300, sec. 4.1.3, for steps.
  """
  def one(values):
    own = _centred(values)
    return own / (np.sqrt((own ** 2).mean()) + epsilon)
  return _by_group(one, rewards, groups)


def group_rank(rewards: Ragged, *, groups: Sequence[int]) -> Ragged:
  """Computes the rank of a value among all of its group, from 0 (lowest) to 1.

  Ties share their mean rank; a value alone gets 0.5. Only the order of a group counts, so that no
  outlier of a learned reward dominates.
  """
  def one(values):
    below = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1) - 1
    return (below + equal / 2) / (len(values) - 1) if len(values) > 1 else np.full(1, 0.5)
  return _by_group(one, rewards, groups)


group_mean_std.sees_groups = group_rank.sees_groups = True


def _flat(rewards: Ragged) -> Float[np.ndarray, "M"]:
  return np.concatenate([np.zeros(0), *rewards])


def _centred(values: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
  """Subtracts the mean; exactly zero where all values are equal, which no sum of them ensures."""
  difference = values - values[0]
  return difference - difference.mean()


def _by_group(function, rewards: Ragged, groups: Sequence[int]) -> Ragged:
  out = []
  for group in group_slices(groups):
    rows = rewards[group]
    values = _flat(rows)
    changed = function(values) if values.size else values
    out += np.split(changed, np.cumsum([len(r) for r in rows])[:-1])
  return out
