"""Holds rewards of a completion's parts: what a reward returns that judges steps or tokens."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float, Int
import numpy as np

from rl_reason.types import Sample


@dataclasses.dataclass(frozen=True)
class StepRewards:
  """Rewards per step (or per token) of N samples, which a reward function may return.

  values: [K] numbers of each sample, one per step. K differs between samples and may be 0.
  ends: where each is paid: [K] positions in `completion_tokens` of the steps' last tokens, rising.
  """
  values: Sequence[Float[np.ndarray, "K"]]
  ends: Sequence[Int[np.ndarray, "K"]]

  @classmethod
  def at_spans(
      cls, samples: Sequence[Sample], values: Sequence[Sequence[float]], *, span: str = "step",
  ) -> StepRewards:
    """Pays one value for each of a sample's spans of this name, at the span's last token.

    Spans are in Sample.spans. A sample without such spans is one step, its whole completion.

    Raises: ValueError if a sample has not as many values as steps.
    """
    ends = [step_ends(s, span=span) for s in samples]
    for i, (row, at) in enumerate(zip(values, ends, strict=True)):
      if len(row) != len(at):
        raise ValueError(
            f"Sample {i} has {len(at)} steps (spans {span!r}) and {len(row)} values: give one for"
            " each.")
    return cls([np.asarray(row, np.float64) for row in values], ends)

  @property
  def totals(self) -> Float[np.ndarray, "N"]:
    """Sums each sample's steps, float64."""
    return np.array([np.sum(row, dtype=np.float64) for row in self.values], np.float64)


def step_ends(sample: Sample, *, span: str = "step") -> Int[np.ndarray, "K"]:
  """Finds the last tokens of the spans of this name; without such spans the completion's last."""
  spans = sample.spans.get(span) or [(0, len(sample.completion_tokens))]
  return np.array([end - 1 for start, end in spans if end > start], np.int64)


def merge(parts: Sequence[StepRewards]) -> StepRewards:
  """Adds several: a token that more than one of them pays gets the sum."""
  values, ends = [], []
  for rows in zip(*(zip(p.values, p.ends) for p in parts), strict=True):
    at, where = np.unique(np.concatenate([e for _, e in rows]), return_inverse=True)
    ends.append(at)
    values.append(np.bincount(where, np.concatenate([v for v, _ in rows]), len(at)))
  return StepRewards(values, ends)
