"""Per-token objectives, KL estimators, and the reductions from tokens to one number: three separate choices."""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_reason.types import RolloutBatch

@flax.struct.dataclass
class LossStatistics:
  """What a loss reports about one microbatch, so that microbatches combine exactly into their minibatch.

  sums: add up to the minibatch's value. token_sums: add up, then are divided by the tokens of the minibatch
  (num_tokens, added up too). maxima: the largest counts.
  """
  sums: Mapping[str, Float[Array, ""]]
  token_sums: Mapping[str, Float[Array, ""]]
  num_tokens: Float[Array, ""]
  maxima: Mapping[str, Float[Array, ""]]

  def merge(self, other: "LossStatistics") -> "LossStatistics":
    def add(x, y):
      return jax.tree.map(jnp.add, x, y)
    return LossStatistics(add(self.sums, other.sums), add(self.token_sums, other.token_sums),
                          self.num_tokens + other.num_tokens, jax.tree.map(jnp.maximum, self.maxima, other.maxima))

  def metrics(self) -> dict[str, Float[Array, ""]]:
    means = {k: v / jnp.maximum(self.num_tokens, 1.0) for k, v in self.token_sums.items()}
    return {**self.sums, **means, **self.maxima}


PerToken = Float[Array, "B T"]
Mask = Bool[Array, "B T"]


def clipped_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    *, clip_low: float = 0.2, clip_high: float = 0.2,
) -> tuple[PerToken, Mask]:
  """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), one bound for each side.

      ρ = exp(logprobs − behaviour_logprobs)        loss = −min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)

  Args:
    behaviour_logprobs: of the distribution that was sampled from; on the first update ρ = 1 and the gradient is
      REINFORCE's.
    mask: true on completion tokens; what the other arguments hold elsewhere does not matter.
    clip_low, clip_high: in [0, 1] and [0, ∞); a larger clip_high lets unlikely tokens grow (DAPO, arXiv:2503.14476).

  Returns: (loss, whether clipping stopped the token's gradient), zero and false where masked.
  """
  # Mask before exp: garbage in padding would overflow, and 0 * inf has a NaN gradient.
  ratio = jnp.exp(jnp.where(mask, logprobs - behaviour_logprobs, 0.0))
  advantages = jnp.where(mask, advantages, 0.0)
  bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
  return -jnp.minimum(ratio * advantages, bounded), mask & (bounded < ratio * advantages)


def truncated_importance(
    trainer_logprobs: PerToken, sampler_logprobs: PerToken, mask: Mask, *, cap: float,
) -> tuple[PerToken, dict[str, Float[Array, ""]]]:
  """Weights for tokens that another distribution than the trainer's drew: another rounding, or older parameters.

      w = min(π_trainer / π_sampler, cap)

  They multiply the advantage; the clipped ratio is then taken to π_trainer before the update, so that clipping bounds
  the step and not the mismatch (truncated importance sampling, Ionides 2008; of rollouts, Yao et al. 2025, "Your
  efficient RL framework secretly brings you off-policy RL training").

  Returns: (weights, zero where masked; metrics over the mask: their mean, the share that was capped, and the largest
    |trainer − sampler| in nats, which takes the place of the loss' own `logprob_gap`).
  """
  gap = jnp.where(mask, trainer_logprobs - sampler_logprobs, 0.0)
  ratio = jnp.exp(gap)
  weights = jnp.where(mask, jnp.minimum(ratio, cap), 0.0)
  count = jnp.maximum(mask.sum(), 1)
  return weights, {
      "importance/weight": weights.sum() / count, "importance/capped": (mask & (ratio > cap)).sum() / count,
      "logprob_gap": jnp.abs(gap).max()}


def kl_estimate(logprobs: PerToken, reference_logprobs: PerToken, mask: Mask, *, estimator: str) -> PerToken:
  """A per-token estimate of KL(policy ‖ reference) from tokens the policy sampled, in nats; zero where masked.

  With d = log π − log π_ref (Schulman 2020, "Approximating KL divergence"):
    k1 = d: unbiased, may be negative. Its gradient, in a loss, is zero in expectation: use it in the reward.
    k2 = d² / 2: biased value, but in a loss its gradient is that of the KL itself.
    k3 = exp(−d) − 1 + d: unbiased and never negative; in a loss its gradient is a biased one (GRPO's choice).
  """
  d = jnp.where(mask, logprobs - reference_logprobs, 0.0)
  return KL_ESTIMATORS[estimator](d)


KL_ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: jnp.square(d) / 2, "k3": lambda d: jnp.expm1(-d) + d}


def token_weights(mask: Mask, *, mean_over: str, max_tokens: int) -> PerToken:
  """Each token's share in the loss of a minibatch; zero where masked.

  mean_over: "token": every token of the minibatch counts alike (DAPO); "sequence": every completion counts alike, its
    tokens share its part (GRPO); "fixed_length": every token counts 1 / (B * max_tokens), so that a completion's
    length changes nothing for the others (Dr. GRPO, arXiv:2503.20783).

  Shares and not a mean, because microbatches then simply add up to the whole minibatch's loss.
  """
  b = mask.shape[0]
  m = jnp.asarray(mask, jnp.float32)
  if mean_over == "token":
    return m / jnp.maximum(m.sum(), 1.0)
  if mean_over == "sequence":
    return m / jnp.maximum(m.sum(axis=1, keepdims=True), 1.0) / b
  if mean_over == "fixed_length":
    return m / (b * max_tokens)
  raise ValueError(f"Unknown reduction {mean_over!r}: token, sequence or fixed_length.")


REDUCTIONS = ("token", "sequence", "fixed_length")


def policy_gradient_loss(
    logprobs: PerToken, entropy: PerToken, batch: RolloutBatch, *, clip_low: float, clip_high: float,
    kl_coef: float, kl_estimator: str, entropy_coef: float = 0.0,
) -> tuple[Float[Array, ""], LossStatistics]:
  """The clipped objective, plus kl_coef times the KL estimate, minus entropy_coef times the entropy.

  Args:
    batch: a RolloutBatch (of one microbatch); its token_weights reduce tokens to the loss.
    kl_coef: of a KL penalty in the loss; 0 where the penalty is in the reward or absent.

  Returns: (loss, LossStatistics).
  """
  mask, w = batch.completion_mask, batch.token_weights
  objective, clipped = clipped_policy_gradient(
      logprobs, batch.behaviour_logprobs, batch.advantages, mask, clip_low=clip_low, clip_high=clip_high)
  kl = kl_estimate(logprobs, batch.reference_logprobs, mask, estimator=kl_estimator)
  entropy = jnp.where(mask, entropy, 0.0)
  loss = jnp.sum(w * (objective + kl_coef * kl - entropy_coef * entropy))
  gap = jnp.where(mask, jnp.abs(logprobs - batch.behaviour_logprobs), 0.0)
  return loss, LossStatistics(
      sums={"loss": loss, "policy_loss": jnp.sum(w * objective)},
      token_sums={"kl": kl.sum(), "entropy": entropy.sum(), "clip_fraction": clipped.sum(dtype=jnp.float32)},
      num_tokens=mask.sum(dtype=jnp.float32),
      maxima={"logprob_gap": gap.max()})


def imitation_loss(
    logprobs: PerToken, mask: Mask, token_weights: PerToken) -> tuple[Float[Array, ""], LossStatistics]:
  """Negative log-likelihood of demonstrations, weighed per token; where masked out, log-probabilities may be anything."""
  nll = jnp.where(mask, -logprobs, 0.0)
  loss = jnp.sum(token_weights * nll)
  return loss, LossStatistics(
      sums={"loss": loss}, token_sums={"nll": nll.sum()}, num_tokens=mask.sum(dtype=jnp.float32), maxima={})
