"""Lets a reward abstain from samples that it could not judge, through no fault of theirs.

Such a reward returns a masked array, masked where it abstains. It is for what says nothing about
the sample, as a worker that the machine killed twice: a bad completion scores, and is not passed
over. An abstention counts as the mean of what the reward gave the rest of the sample's group, so
that the sample is neither better nor worse than they are; where it judged none of them, as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np


def scores(values: Sequence[float | None]) -> Float[np.ndarray, "N"]:
  """Returns the values as float32, masked where one is None, if any is."""
  abstained = [value is None for value in values]
  numbers = np.array([value or 0.0 for value in values], np.float32)
  return np.ma.masked_array(numbers, abstained) if any(abstained) else numbers


def filled(values: Float[np.ndarray, "N"], groups: Sequence[int]) -> Float[np.ndarray, "N"]:
  """Puts what an abstention counts as in its place.

  Args:
    values: of each sample, masked where there is none.
    groups: of each sample, the group that it belongs to.
  """
  if not np.ma.is_masked(values):
    return np.asarray(values)
  known, groups = ~np.ma.getmaskarray(values), np.asarray(groups)
  out = np.ma.filled(values, 0.0)
  for i in np.flatnonzero(~known):
    rest = known & (groups == groups[i])
    out[i] = out[rest].mean() if rest.any() else 0.0
  return out
