"""Computes per-token objectives, KL estimates, and reductions to one number: separate choices."""

from collections.abc import Mapping
import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_reason.arrays import RolloutBatch
from rl_reason.config.checks import at_least, one_of


@flax.struct.dataclass
class LossStatistics:
  """What a loss reports about one microbatch: microbatches combine exactly into their minibatch.

  sums: numbers that add up to the minibatch's value.
  token_sums: numbers that add up, and are then divided by the tokens of the minibatch.
  num_tokens: tokens, which add up too.
  maxima: numbers of which the largest counts.
  """
  sums: Mapping[str, Float[Array, ""]]
  token_sums: Mapping[str, Float[Array, ""]]
  num_tokens: Float[Array, ""]
  maxima: Mapping[str, Float[Array, ""]]

  def merge(self, other: "LossStatistics") -> "LossStatistics":
    def add(x, y):
      return jax.tree.map(jnp.add, x, y)
    return LossStatistics(
        add(self.sums, other.sums), add(self.token_sums, other.token_sums),
        self.num_tokens + other.num_tokens, jax.tree.map(jnp.maximum, self.maxima, other.maxima))

  def metrics(self) -> dict[str, Float[Array, ""]]:
    means = {k: v / jnp.maximum(self.num_tokens, 1.0) for k, v in self.token_sums.items()}
    return {**self.sums, **means, **self.maxima}


PerToken = Float[Array, "B T"]
Mask = Bool[Array, "B T"]
Segments = Int[Array, "B T"] | None

# No ratio is above e^80: from e^88.7 on float32 has only infinity, and the gradient of a token that
# clipping has stopped is 0 times the ratio, which would be NaN. Below it ratios are exact.
LARGEST_LOG_RATIO = 80.0


def clipped_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    segments: Segments = None, *, clip_low: float = 0.2, clip_high: float = 0.2,
) -> tuple[PerToken, Mask]:
  """Computes PPO's clipped surrogate, with one bound for each side.

      ρ = exp(logprobs − behaviour_logprobs)
      loss = −min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)

  This is the signature of all OBJECTIVES. On the first update (ρ = 1), and with equal advantages
  and token_weights along each completion, the gradient of each of them is REINFORCE's.

  Args:
    logprobs: log-probabilities of the completion tokens under the policy, nats.
    behaviour_logprobs: log-probabilities under the distribution that was sampled from, nats.
    advantages: A of each token.
    mask: true on completion tokens; what the other arguments hold elsewhere does not matter.
    segments: where in its row the token's completion begins (types.RolloutBatch), or None. This
      objective ignores it.
    clip_low: in [0, 1].
    clip_high: in [0, ∞); a larger clip_high lets unlikely tokens grow (DAPO, arXiv:2503.14476).

  Returns: (loss, whether clipping stopped the token's gradient), zero and false where masked.
  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
  """
  del segments
  return _clipped(
      _log_ratios(logprobs, behaviour_logprobs, mask), advantages, mask, clip_low, clip_high)


def sequence_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    segments: Segments = None, *, clip_low: float = 3e-4, clip_high: float = 4e-4,
) -> tuple[PerToken, Mask]:
  """Computes GSPO's loss: a completion has one ratio, which is clipped as a whole.

      s = exp(mean over the completion of log ρ)
      loss = −min(s A, clip(s, 1 − clip_low, 1 + clip_high) A)

  Every token carries its completion's loss: reduced with mean_over="sequence" the sum is the
  paper's. A mean of logarithms moves little, hence the paper's bounds of 3e-4 and 4e-4. Arguments
  and result are those of clipped_policy_gradient.

  Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5-7.
  """
  log_ratio = completion_mean(_log_ratios(logprobs, behaviour_logprobs, mask), mask, segments)
  return _clipped(log_ratio, advantages, mask, clip_low, clip_high)


def sequence_token_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    segments: Segments = None, *, clip_low: float = 3e-4, clip_high: float = 4e-4,
) -> tuple[PerToken, Mask]:
  """Computes GSPO-token's loss: the completion's ratio, and the token's own gradient.

      s_t = stop_gradient(s) π_t / stop_gradient(π_t)
      loss = −min(s_t A_t, clip(s_t) A_t)

  It is for advantages that differ along a completion. Arguments and result are those of
  clipped_policy_gradient.
  The value is sequence_policy_gradient's. Where a completion's advantages are all equal, so is the
  gradient.
  Source: arXiv:2507.18071, eq. 13-14.
  """
  log_ratio = completion_mean(_log_ratios(logprobs, behaviour_logprobs, mask), mask, segments)
  own = jnp.where(mask, logprobs, 0.0)
  # Its value is zero, to the last bit; its gradient is that of the token's log-probability.
  own_gradient = own - jax.lax.stop_gradient(own)
  return _clipped(
      jax.lax.stop_gradient(log_ratio) + own_gradient, advantages, mask, clip_low, clip_high)


def weighted_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    segments: Segments = None, *, clip_low: float = 1.0, clip_high: float = 0.28,
) -> tuple[PerToken, Mask]:
  """Computes CISPO's loss: REINFORCE with a bounded importance weight.

      loss = −stop_gradient(clip(ρ, 1 − clip_low, 1 + clip_high)) A log π

  Clipping silences no token. The paper sets no lower bound (clip_low=1) and tunes the upper one.

  Returns: (loss, whether the weight was clipped, which does not stop the gradient), zero and false
    where masked.
  Source: arXiv:2506.13585, eq. 4-5.
  """
  del segments
  ratio = bounded_ratio(_log_ratios(logprobs, behaviour_logprobs, mask))
  weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = (-jax.lax.stop_gradient(weight)
          * jnp.where(mask, advantages, 0.0) * jnp.where(mask, logprobs, 0.0))
  return loss, mask & (weight != ratio)


def geometric_policy_gradient(
    logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: Mask,
    segments: Segments = None, *, clip_low: float = 0.4, clip_high: float = 0.4,
) -> tuple[PerToken, Mask]:
  """Computes GMPO's loss: the geometric mean of a completion's token ratios, each clipped.

      c_t = sign(A) min(sign(A) log ρ_t, sign(A) clip(log ρ_t, −clip_low, clip_high))
      loss = −exp(mean of c) A

  Every token carries its completion's loss: reduced with mean_over="sequence" the sum is the
  paper's. In this objective alone the bounds are those of the logarithm: 0.4 is the paper's, for
  ratios between e^−0.4 and e^0.4.

  Returns: (loss, whether clipping stopped the token's gradient), zero and false where masked.
  Source: Zhao et al. 2025, arXiv:2507.20673, sec. 3.
  """
  log_ratio = _log_ratios(logprobs, behaviour_logprobs, mask)
  advantages = jnp.where(mask, advantages, 0.0)
  bounded = jnp.clip(log_ratio, -clip_low, clip_high)
  stopped = mask & (advantages * bounded < advantages * log_ratio)
  mean = completion_mean(jnp.where(stopped, bounded, log_ratio), mask, segments)
  return -bounded_ratio(mean) * advantages, stopped


OBJECTIVES = {
    "clipped": clipped_policy_gradient, "gspo": sequence_policy_gradient,
    "gspo_token": sequence_token_policy_gradient, "cispo": weighted_policy_gradient,
    "gmpo": geometric_policy_gradient}


def completion_mean(x: PerToken, mask: Mask, segments: Segments = None) -> PerToken:
  """Computes at every token of a completion the mean of x over the completion's tokens.

  Args:
    x: one number per token; any value where masked.
    mask: true on completion tokens.
    segments: as in types.RolloutBatch; None for one completion a row.

  Returns: the means, zero where masked.
  """
  x, m = jnp.where(mask, x, 0.0), jnp.asarray(mask, jnp.float32)
  if segments is None:
    means = x.sum(axis=1, keepdims=True) / jnp.maximum(m.sum(axis=1, keepdims=True), 1.0)
  else:
    # Row by row, so that rows on several devices need not be brought together.
    total = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=x.shape[0]))
    sums, counts = total(x, segments), total(m, segments)
    means = jnp.take_along_axis(sums / jnp.maximum(counts, 1.0), segments, axis=1)
  return jnp.where(mask, means, 0.0)


def _log_ratios(logprobs: PerToken, behaviour_logprobs: PerToken, mask: Mask) -> PerToken:
  # Mask before exp: garbage in padding would overflow, and 0 * inf has a NaN gradient.
  return jnp.where(mask, logprobs - behaviour_logprobs, 0.0)


def bounded_ratio(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
  """Computes exp of a log-ratio, finite; no gradient flows where it is above LARGEST_LOG_RATIO."""
  return jnp.exp(jnp.where(log_ratio > LARGEST_LOG_RATIO, LARGEST_LOG_RATIO, log_ratio))


def _clipped(
    log_ratio: PerToken, advantages: PerToken, mask: Mask, clip_low: float, clip_high: float,
) -> tuple[PerToken, Mask]:
  ratio, advantages = bounded_ratio(log_ratio), jnp.where(mask, advantages, 0.0)
  # The clipped term counts, and the gradient stops, where it is the smaller of the two.
  bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
  return -jnp.minimum(ratio * advantages, bounded), mask & (bounded < ratio * advantages)


def value_loss(
    values: PerToken, behaviour_values: PerToken, returns: PerToken, mask: Mask,
    *, clip: float = 0.2,
) -> tuple[PerToken, Mask]:
  """Computes the loss of PPO's critic: the larger of two squared errors, halved.

      V' = V_behaviour + clip(V − V_behaviour, −clip, clip)
      loss = max((V − R)², (V' − R)²) / 2

  One error is that of the value, the other that of the value kept near the one before the update.

  Args:
    values: V(s_t) of the critic in training, in reward units; any value where masked, as for the
      next two.
    behaviour_values: the values that the advantages were estimated with, in reward units.
    returns: what to fit, e.g. advantages.gae's, in reward units.
    mask: true on sampled tokens.
    clip: in reward units, at least 0; ∞ for the plain squared error.

  Returns: (loss per token, to be reduced with token_weights like a policy's; whether clipping
    stopped the token's gradient), zero and false where masked.
  Source: not in Schulman et al. 2017 (arXiv:1707.06347, eq. 9 has the plain error), but in its
    authors' code (openai baselines, ppo2).
  """
  values, behaviour_values, returns = (
      jnp.where(mask, x, 0.0) for x in (values, behaviour_values, returns))
  # Within bounds `near` is the value itself: rounding must not look like clipping.
  moved = values - behaviour_values
  near = jnp.where(
      jnp.abs(moved) > clip, behaviour_values + jnp.clip(moved, -clip, clip), values)
  error, bounded = jnp.square(values - returns), jnp.square(near - returns)
  return jnp.maximum(error, bounded) / 2, mask & (bounded > error)


def truncated_importance(
    trainer_logprobs: PerToken, sampler_logprobs: PerToken, mask: Mask, *, cap: float,
) -> tuple[PerToken, dict[str, Float[Array, ""]]]:
  """Computes weights for tokens that another distribution than the trainer's drew.

      w = min(π_trainer / π_sampler, cap)

  The distributions differ in rounding, or because the sampler's parameters are older. The weights
  multiply the advantage. The clipped ratio is then taken to π_trainer before the update, so that
  clipping bounds the step and not the mismatch.

  Args:
    trainer_logprobs: log-probabilities under the trainer before the update, nats.
    sampler_logprobs: log-probabilities under the distribution that was sampled from, nats.
    mask: true on sampled tokens.
    cap: the largest weight.

  Returns: (weights, zero where masked; metrics over the mask: their mean, the share that was
    capped, and the largest |trainer − sampler| in nats, which replaces the loss' own
    `logprob_gap`).
  Source: truncated importance sampling, Ionides 2008; for rollouts, Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training".
  """
  gap = jnp.where(mask, trainer_logprobs - sampler_logprobs, 0.0)
  ratio = bounded_ratio(gap)
  weights = jnp.where(mask, jnp.minimum(ratio, cap), 0.0)
  count = jnp.maximum(mask.sum(), 1)
  return weights, {
      "importance/weight": weights.sum() / count,
      "importance/capped": (mask & (ratio > cap)).sum() / count,
      "logprob_gap": jnp.abs(gap).max()}


def kl_estimate(
    logprobs: PerToken, reference_logprobs: PerToken, mask: Mask, *, estimator: str,
    behaviour_logprobs: PerToken | None = None,
) -> PerToken:
  """Estimates KL(policy ‖ reference) per token from sampled tokens.

  What the estimators say of gradients is about the KL of each next token, given the tokens before.
  A loss of such terms leaves out that a token also decides which later tokens there are: for whole
  completions of two tokens or more its gradient is not that of their KL. A penalty in the reward,
  with credit for what follows, has that part too.

  Args:
    logprobs: log π of the sampled tokens, nats.
    reference_logprobs: log π_ref of the same tokens, nats.
    mask: true on sampled tokens.
    estimator: a key of KL_ESTIMATORS, functions of d = log π − log π_ref (Schulman 2020,
      "Approximating KL divergence") and of log ρ = log π − log μ.
    behaviour_logprobs: log μ of the same tokens, of the policy that sampled; None: π itself did.

  Returns: estimates in nats, zero where masked.
  """
  d = jnp.where(mask, logprobs - reference_logprobs, 0.0)
  behaviour = jax.lax.stop_gradient(logprobs) if behaviour_logprobs is None else behaviour_logprobs
  return KL_ESTIMATORS[estimator](d, _log_ratios(logprobs, behaviour, mask))


def k1(d: PerToken, log_ratio: PerToken | float = 0.0) -> PerToken:
  """Returns d: of the policy's own tokens unbiased, may be negative.

  Its gradient in a loss is zero in expectation: use it in the reward.
  """
  del log_ratio
  return d


def k2(d: PerToken, log_ratio: PerToken | float = 0.0) -> PerToken:
  """Returns d² / 2: its value is biased.

  In a loss its gradient is that of the KL for tokens that the policy itself sampled, as in the first
  update on a rollout. In later updates it is biased.
  """
  del log_ratio
  return jnp.square(d) / 2


def k3(d: PerToken, log_ratio: PerToken | float = 0.0) -> PerToken:
  """Returns exp(−d) − 1 + d: of the policy's own tokens unbiased, and never negative.

  In a loss its gradient is a biased one (GRPO's choice).
  """
  del log_ratio
  d = jnp.maximum(d, -LARGEST_LOG_RATIO)
  return jnp.expm1(-d) + d


def k3_weighted(d: PerToken, log_ratio: PerToken | float = 0.0) -> PerToken:
  """Returns ρ (exp(−d) − 1 + d): unbiased whoever sampled, and never negative.

  In a loss its gradient is that of the KL in every update on a rollout: in expectation over μ's
  tokens it is that of ρ d ∇ log π.

  Source: DeepSeek-AI 2025 (DeepSeek-V3.2), arXiv:2512.02556, "unbiased KL estimate"; trl calls it
    use_bias_correction_kl.
  """
  # Half of the exponents' room for each factor, so that their product is finite too.
  half = LARGEST_LOG_RATIO / 2
  return jnp.exp(jnp.minimum(log_ratio, half)) * k3(jnp.maximum(d, -half))


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3_weighted": k3_weighted}


def token_weights(mask: Mask, *, mean_over: str, max_tokens: int) -> PerToken:
  """Computes each token's share in the loss of a minibatch; zero where masked.

  Shares and not a mean, because the losses of microbatches then simply add up to the minibatch's.

  Args:
    mask: true on completion tokens.
    mean_over: "token": every token of the minibatch counts alike (DAPO). "sequence": every
      completion counts alike, and its tokens share its part (GRPO). "fixed_length": every token
      counts 1 / (B * max_tokens), so that a completion's length changes nothing for the others
      (Dr. GRPO, arXiv:2503.20783). B counts completions with a true token.
    max_tokens: the largest length of a completion; for "fixed_length".

  Raises: ValueError for another reduction.
  """
  # Array methods alone, so that NumPy serves too: a mask on the host is not worth compiling for.
  m = mask.astype(jnp.float32)
  b = m.max(axis=1, initial=0.0).sum().clip(min=1.0)
  if mean_over == "token":
    return m / m.sum().clip(min=1.0)
  if mean_over == "sequence":
    return m / m.sum(axis=1, keepdims=True).clip(min=1.0) / b
  if mean_over == "fixed_length":
    return m / (b * max_tokens)
  raise ValueError(f"Unknown reduction {mean_over!r}: token, sequence or fixed_length.")


REDUCTIONS = ("token", "sequence", "fixed_length")


def policy_gradient_loss(
    logprobs: PerToken, entropy: PerToken, batch: RolloutBatch, *, clip_low: float,
    clip_high: float, kl_coef: float, kl_estimator: str, entropy_coef: float = 0.0,
    objective: str = "clipped",
) -> tuple[Float[Array, ""], LossStatistics]:
  """Computes the objective, plus kl_coef times the KL estimate, minus entropy_coef times entropy.

  Args:
    logprobs: log-probabilities of the batch's tokens under the policy in training, nats.
    entropy: entropy of the policy at these tokens, nats.
    batch: a RolloutBatch (of one microbatch); its token_weights reduce tokens to the loss.
    clip_low: lower bound, as the objective reads it.
    clip_high: upper bound, as the objective reads it.
    kl_coef: weight of a KL penalty in the loss; 0 where the penalty is in the reward or absent.
    kl_estimator: a key of KL_ESTIMATORS.
    entropy_coef: weight of the entropy bonus.
    objective: a key of OBJECTIVES.

  Returns: (loss, LossStatistics).
  """
  mask, w = batch.completion_mask, batch.token_weights
  policy_loss, clipped = OBJECTIVES[objective](
      logprobs, batch.behaviour_logprobs, batch.advantages, mask, batch.segments,
      clip_low=clip_low, clip_high=clip_high)
  kl = kl_estimate(logprobs, batch.reference_logprobs, mask, estimator=kl_estimator,
                   behaviour_logprobs=batch.behaviour_logprobs)
  entropy = jnp.where(mask, entropy, 0.0)
  loss = jnp.sum(w * (policy_loss + kl_coef * kl - entropy_coef * entropy))
  gap = jnp.where(mask, jnp.abs(logprobs - batch.behaviour_logprobs), 0.0)
  return loss, LossStatistics(
      sums={"loss": loss, "policy_loss": jnp.sum(w * policy_loss)},
      token_sums={"kl": kl.sum(), "entropy": entropy.sum(),
                  "clip_fraction": clipped.sum(dtype=jnp.float32)},
      num_tokens=mask.sum(dtype=jnp.float32),
      maxima={"logprob_gap": gap.max()})


def imitation_loss(
    logprobs: PerToken, mask: Mask, token_weights: PerToken,
) -> tuple[Float[Array, ""], LossStatistics]:
  """Computes the negative log-likelihood of demonstrations, weighted per token.

  Args:
    logprobs: log-probabilities of the demonstrations' tokens, nats; any value where masked.
    mask: true on tokens to be imitated.
    token_weights: each token's share in the loss.
  """
  nll = jnp.where(mask, -logprobs, 0.0)
  loss = jnp.sum(token_weights * nll)
  return loss, LossStatistics(
      sums={"loss": loss}, token_sums={"nll": nll.sum()}, num_tokens=mask.sum(dtype=jnp.float32),
      maxima={})


@dataclasses.dataclass(frozen=True)
class KL:
  """The penalty KL(policy || reference), the reference being the policy that the stage starts from.

  coef: its weight; 0 for none.
  estimator: a key of KL_ESTIMATORS (kl_estimate).
  added_to: "loss", or "reward": it is subtracted from each token's reward.
  """
  coef: float = 0.0
  estimator: str = "k3_weighted"
  added_to: str = "loss"

  def __post_init__(self):
    at_least(0, coef=self.coef)
    one_of(KL_ESTIMATORS, estimator=self.estimator)
    one_of(("loss", "reward"), added_to=self.added_to)


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a policy gradient maximises: the field `objective` of a policy_gradient section.

  kind: a key of OBJECTIVES.
  clip_low: lower bound of the probability ratio is 1 - clip_low, or as the kind says.
  clip_high: upper bound of the probability ratio is 1 + clip_high, or as the kind says.
  mean_over: token, sequence or fixed_length (token_weights).
  entropy_coef: weight of the entropy bonus.
  importance_cap: C of truncated importance sampling between trainer and sampler
    (truncated_importance), for rollouts that the trainer's policy would not have drawn exactly so.
    0 for none: the ratio to the sampler is then the only ratio. With credit.critic.vtrace it
    bounds what V-trace makes of the same ratio.
  kl: the penalty for leaving the reference.
  """
  kind: str = "clipped"
  clip_low: float = 0.2
  clip_high: float = 0.2
  mean_over: str = "token"
  entropy_coef: float = 0.0
  importance_cap: float = 0.0
  kl: KL = KL()

  def __post_init__(self):
    at_least(0, clip_low=self.clip_low, clip_high=self.clip_high, entropy_coef=self.entropy_coef,
             importance_cap=self.importance_cap)
    one_of(OBJECTIVES, kind=self.kind)
    one_of(REDUCTIONS, mean_over=self.mean_over)
    if self.clip_low > 1:
      raise ValueError(
          f"clip_low must be in [0, 1], got {self.clip_low}: a probability ratio is never below 0.")
