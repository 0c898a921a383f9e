"""Computes the loss of a policy_gradient stage.

Log-probabilities and advantages of a microbatch become one number.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rl_reason.arrays import RolloutBatch
from rl_reason.models import policy
from rl_reason.models.config import ModelConfig
from rl_reason.objectives import losses
from rl_reason.objectives.losses import LossStatistics, Objective
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import token_reward
from rl_reason.stages.policy_gradient.credit import Credit
from rl_reason.types import Params


@dataclasses.dataclass(frozen=True)
class Loss:
  """Computes the policy's objective and, with a companion, the companion's loss.

  model: architecture of the policy.
  dtype: of the computation.
  objective: what is maximised.
  credit: which companion learns beside the policy.
  temperature: of the distribution that was sampled from.
  remat: what the backward pass computes again.
  """
  model: ModelConfig
  dtype: jnp.dtype
  objective: Objective
  credit: Credit
  temperature: float
  remat: str

  def __call__(self, params: Params, batch: RolloutBatch) -> tuple[jax.Array, LossStatistics]:
    """Computes the loss of one microbatch (learner.step.LossFn)."""
    acting, companion = critic_lib.split(self.credit.companion, params)
    states = self.states(acting, batch)
    logprobs, entropy = policy.token_logprobs(
        self.model, acting, states, batch.completions, temperature=self.temperature)
    objective, kl = self.objective, self.objective.kl
    loss, statistics = losses.policy_gradient_loss(
        logprobs, entropy, batch, objective=objective.kind, clip_low=objective.clip_low,
        clip_high=objective.clip_high, kl_coef=kl.coef if kl.added_to == "loss" else 0.0,
        kl_estimator=kl.estimator, entropy_coef=objective.entropy_coef)
    if companion is None:
      return loss, statistics
    values = critic_lib.values(
        self.credit.companion, companion, states, lambda trunk: self.states(trunk, batch))
    if self.credit.token_model is not None:
      return token_reward.add_loss(loss, statistics, values, batch)
    return critic_lib.add_value_loss(self.credit.critic, loss, statistics, values, batch)

  def states(self, params: Params, batch: RolloutBatch) -> jax.Array:
    """Computes the hidden states that predict the completions' tokens."""
    return policy.completion_states(
        self.model, params, batch.prompts, batch.completions, batch.completion_lengths,
        segments=batch.segments, dtype=self.dtype, remat=self.remat)
