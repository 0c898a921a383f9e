"""Baselines and normalisers, by hand and against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason import advantages

REWARDS = jnp.array([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])


def test_baselines_by_hand():
  # Row 0: mean 1; means of the others 3/3 = 1, 4/3, 4/3, 1/3. Row 1: all equal.
  np.testing.assert_allclose(advantages.group_mean(REWARDS), [[0, -1, -1, 2], [0, 0, 0, 0]], atol=1e-7)
  np.testing.assert_allclose(
      advantages.leave_one_out(REWARDS), [[0, -4 / 3, -4 / 3, 8 / 3], [0, 0, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(advantages.no_baseline(REWARDS), REWARDS)


def test_leave_one_out_subtracts_the_mean_of_the_others():
  rewards = np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32)
  others = (rewards.sum(1, keepdims=True) - rewards) / 4
  np.testing.assert_allclose(advantages.leave_one_out(jnp.asarray(rewards)), rewards - others, atol=1e-6)
  np.testing.assert_allclose(
      advantages.leave_one_out(jnp.asarray(rewards)), advantages.group_mean(jnp.asarray(rewards)) * 5 / 4, atol=1e-6)


def test_normalisers_against_numpy():
  rewards = np.random.RandomState(1).standard_normal((3, 4)).astype(np.float32)
  a = rewards - rewards.mean(1, keepdims=True)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise="group_std"), a / (np.std(rewards, 1, ddof=1, keepdims=True) + 1e-4),
      rtol=1e-5)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise="batch_std"), a / (np.std(rewards, ddof=1) + 1e-4), rtol=1e-5)
  np.testing.assert_allclose(advantages.advantages(rewards), a, atol=1e-6)


def test_two_unlike_rewards_by_hand():
  # r = [0, 1]: mean 1/2; sample deviation sqrt(2 · (1/2)² / 1) = 0.70711; A = ±0.5 / 0.70721 = ±0.70701.
  np.testing.assert_allclose(
      advantages.advantages(np.array([[0, 1]]), normalise="group_std"), [[-0.70701, 0.70701]], atol=1e-5)


@pytest.mark.parametrize("normalise", advantages.NORMALISERS)
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_equal_rewards_give_zeros(baseline, normalise):
  np.testing.assert_array_equal(
      advantages.advantages(np.full((2, 4), 0.1), baseline=baseline, normalise=normalise), np.zeros((2, 4)))


def test_integer_rewards_become_float32():
  assert advantages.advantages(np.array([[1, 0]]), baseline="none").dtype == jnp.float32
