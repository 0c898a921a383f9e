"""Rewards -> advantages. To subtract a baseline and to normalise the scale are separate choices."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Rewards = Float[Array, "P G"]


def group_mean(rewards: Rewards) -> Rewards:
  """r_i − mean of the group (Shao et al. 2024, arXiv:2402.03300, sec. 4.1, without the division)."""
  return rewards - rewards.mean(axis=1, keepdims=True)


def leave_one_out(rewards: Rewards) -> Rewards:
  """r_i − mean of the *others* in the group (RLOO; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8).

  Equals group_mean times G / (G − 1). Needs G of at least 2.
  """
  g = rewards.shape[1]
  return (rewards - rewards.mean(axis=1, keepdims=True)) * (g / (g - 1))


def no_baseline(rewards: Rewards) -> Rewards:
  """r_i itself (REINFORCE)."""
  return rewards


def group_std(advantages: Rewards, rewards: Rewards, *, epsilon: float = 1e-4) -> Rewards:
  """Divides by the standard deviation of the group's rewards (GRPO; arXiv:2402.03300, sec. 4.1).

  The sample deviation (G − 1) plus `epsilon`, as trl computes it; the paper states neither.
  """
  return advantages / (rewards.std(axis=1, ddof=1, keepdims=True) + epsilon)


def batch_std(advantages: Rewards, rewards: Rewards, *, epsilon: float = 1e-4) -> Rewards:
  """Divides by the standard deviation of all the batch's rewards, so that easy and hard prompts weigh alike."""
  return advantages / (rewards.std(ddof=1) + epsilon)


def unscaled(advantages: Rewards, rewards: Rewards) -> Rewards:
  """Leaves the scale of the rewards (Dr. GRPO; Liu et al. 2025, arXiv:2503.20783)."""
  del rewards
  return advantages


BASELINES: dict[str, Callable[[Rewards], Rewards]] = {
    "group_mean": group_mean, "leave_one_out": leave_one_out, "none": no_baseline}
NORMALISERS: dict[str, Callable[[Rewards, Rewards], Rewards]] = {
    "group_std": group_std, "batch_std": batch_std, "none": unscaled}


def advantages(rewards: Rewards, *, baseline: str = "group_mean", normalise: str = "none") -> Rewards:
  """Rewards of P groups of G completions -> advantages, in reward units or, normalised, in standard deviations."""
  return NORMALISERS[normalise](BASELINES[baseline](jnp.asarray(rewards, jnp.float32)), rewards)
