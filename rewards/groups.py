"""Rewards a completion for how it compares with its group, the completions of the same prompt.

A group's samples are adjacent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
import zlib

from jaxtyping import Float
import numpy as np

from rl_reason.rewards.composition.builder import Builder
from rl_reason.rewards.composition.trust import group_slices
from rl_reason.types import Sample


def relative_length(samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
  """Pays for length, in [-0.5, 0.5]: 0.5 for the shortest completion of a group.

  The longest one gets −0.5. All get 0 if their lengths are equal.

      0.5 − (length − min) / (max − min)

  Lengths are those of the policy's own tokens. Give it to correct completions only (a gate), or
  short wrong ones are rewarded.

  Source: Kimi Team 2025, arXiv:2501.12599, sec. 2.3.3, where wrong completions get min(0, ·): that
    is a second component with the opposite gate and `clip` at high=0.
  """
  # A group of equal lengths keeps 0: there is no shortest one to pay.
  lengths = np.array([len(s.own_tokens) for s in samples], np.float64)
  out = np.zeros(len(samples), np.float32)
  for group in group_slices([s.group for s in samples]):
    shortest, longest = lengths[group].min(), lengths[group].max()
    if longest > shortest:
      out[group] = 0.5 - (lengths[group] - shortest) / (longest - shortest)
  return out


def diversity(samples: Sequence[Sample], *, n: int = 3) -> Float[np.ndarray, "N"]:
  """Pays for diversity, in [0, 1]: how little a completion shares with the others of its group.

      1 − mean over the others of |A ∩ B| / |A ∪ B|,   A and B being their sets of token n-grams

  The tokens are the policy's own. A completion without others gets 0. One of fewer than n tokens is
  one shorter n-gram; two without any n-gram are equal.

  Raises: ValueError unless n >= 1.
  """
  if n < 1:
    raise ValueError(f"diversity: n must be at least 1, got {n}.")
  grams = [_ngrams(s.own_tokens, n) for s in samples]
  out = np.zeros(len(samples), np.float32)
  for group in group_slices([s.group for s in samples]):
    members = range(len(samples))[group]
    for i in members:
      # Jaccard similarity with each of the others.
      shared = [len(grams[i] & grams[j]) / len(union) if (union := grams[i] | grams[j]) else 1.0
                for j in members if j != i]
      out[i] = 1 - np.mean(shared) if shared else 0.0
  return out


class OneOfEach:
  """Pays in {0, 1}: 1 for one right and one wrong completion of each group, drawn at random.

  It is 0 throughout a group that does not have both. It is for `credit.keep.by`, with weight 0. The
  draw depends on the step and the prompt alone.

  outcome: a rewards section; a completion is right if its total is above 0.5.
  build: given by build_rewards.

  Source: Lyu et al. 2025 (OREAL), arXiv:2502.06781, sec. 3.
  """
  sees_episode = True  # The outcome's own rewards choose what they see.

  def __init__(self, *, outcome: Mapping[str, Any], build: Builder):
    self._outcome = build.rewards(outcome)

  def check_references(self, references: Sequence[str]) -> list[str | None]:
    """Lets the outcome check the references: it raises for one that it cannot use."""
    self._outcome.check_references(references)
    return [None] * len(references)

  def __call__(self, samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
    right, kept = self._outcome.score(samples).total > 0.5, np.zeros(len(samples), np.float32)
    for group in group_slices([s.group for s in samples]):
      first = samples[group.start]
      rng = np.random.default_rng(
          [first.step, zlib.crc32(first.prompt.encode("utf-8", "surrogatepass"))])
      # One completion of each side, if the group has both.
      sides = [group.start + np.flatnonzero(right[group] == side) for side in (True, False)]
      if all(map(len, sides)):
        kept[[rng.choice(side) for side in sides]] = 1.0
    return kept

  def close(self) -> None:
    self._outcome.close()


def _ngrams(tokens: Sequence[int], n: int) -> set[tuple[int, ...]]:
  return {tuple(tokens[i:i + n]) for i in range(max(len(tokens) - n, 0) + 1)} if tokens else set()
