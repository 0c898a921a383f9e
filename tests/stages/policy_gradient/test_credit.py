"""Credit of rewards: what is paid while an environment speaks reaches the policy's tokens."""

import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.stages.policy_gradient.credit import Credit, estimate
from rl_reason.stages.policy_gradient.critic import Critic

# Two completions of one prompt; the third and fourth token are the environment's, which pays 1
# there.
PAID = np.array([[0, 0, 0, 1, 0, 0], [0] * 6], np.float32)
OBSERVED = np.array([[False, False, True, True, False, False]] * 2)
ZEROS = np.zeros((2, 6), np.float32)


def estimated(credit, **given):
  completions = Completions(
      ZEROS.astype(np.int32), np.array([6, 6], np.int32), np.zeros(2, bool), ZEROS, ZEROS, OBSERVED)
  rollout = Rollout(0, Inputs(np.zeros((1, 1), np.int32), np.ones(1, np.int32)), completions,
                    PAID.sum(1), PAID, {})
  return estimate(credit, rollout, PAID, **given)


def test_without_a_critic_own_tokens_share_the_total():
  out = estimated(Credit())
  np.testing.assert_array_equal(
      out.advantages, [[0.5, 0.5, 0, 0, 0.5, 0.5], [-0.5, -0.5, 0, 0, -0.5, -0.5]])


@pytest.mark.parametrize("vtrace", [False, True])
def test_with_a_critic_the_turn_before_is_credited(vtrace):
  credit = Credit(baseline="none", critic=Critic(lam=1.0, vtrace=vtrace))
  out = estimated(
      credit, values=(ZEROS, np.zeros(2, np.float32)), logprobs=(ZEROS, ZEROS), importance_cap=1.0)
  np.testing.assert_array_equal(out.advantages, [[1, 1, 0, 0, 0, 0], [0] * 6])
  np.testing.assert_array_equal(out.returns, [[1, 1, 0, 0, 0, 0], [0] * 6])
