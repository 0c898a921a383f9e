"""Finds the groups among samples, and how far a component is to be believed in each of them."""

from __future__ import annotations

from collections.abc import Sequence
import itertools

from jaxtyping import Float
import numpy as np


def group_slices(groups: Sequence[int]) -> list[slice]:
  """Finds where each group's samples are, from Sample.group of each.

  Raises: ValueError if a group's samples are not adjacent.
  """
  slices, seen, start = [], set(), 0
  for group, members in itertools.groupby(groups):
    if group in seen:
      raise ValueError(
          f"The samples of group {group} are not adjacent (groups {list(groups)[:50]}): a reward"
          " that sees groups would take it for two. Give whole groups, one after the other.")
    seen.add(group)
    slices.append(slice(start, start := start + len(list(members))))
  return slices


def group_trust(
    values: Float[np.ndarray, "N"], outcomes: Float[np.ndarray, "N"], groups: Sequence[int], *,
    right: float = 0.5, least: float = 0.0,
) -> Float[np.ndarray, "N"]:
  """Computes how far `values` are to be believed in each group, in [0, 1].

  They are to be believed if they are higher where the outcome is right:

      γ = 1 where μ_c >= μ_w, else max(exp(μ_c − μ_w), least)

  with μ_c and μ_w the group's mean values over outcomes of at least `right`, and over the others.

  Returns: γ for each sample; 0 for a group that has only right or only wrong outcomes, where the
    two cannot be compared.
  Source: Fan et al. 2025 (Trust-GRPO of SophiaVL-R1), arXiv:2505.17018; the 0 is its code's, the
    paper leaves it open.
  """
  trust = np.zeros(len(values))
  is_right = np.asarray(outcomes) >= right
  for group in group_slices(groups):
    if 0 < is_right[group].sum() < len(is_right[group]):
      # Below 0 the component prefers wrong answers in this group.
      difference = values[group][is_right[group]].mean() - values[group][~is_right[group]].mean()
      trust[group] = max(np.exp(min(difference, 0.0)), least)
  return trust
