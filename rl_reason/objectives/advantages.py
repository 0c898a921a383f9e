"""Turns rewards into advantages. Subtracting a baseline and normalising the scale are two choices.

First come functions per completion, [P G]: groups of a prompt's completions. Then come functions
per token, [B T], one completion a row (before rl_reason.batches.packing): returns, and estimates
with a critic's values. `mask` is true on the policy's own tokens. Prompt, tool and pad tokens,
wherever they stand in the row, are skipped: time passes over sampled tokens alone. What is paid
between the policy's tokens is its earlier token's: `at_own_tokens` moves it there.

Equal rewards give advantages of exactly zero, in every program: a mean is taken of differences,
since a compiled sum of n equal numbers is not n times the number. After a division by a deviation
of zero plus epsilon the rest would be no longer small, and Adam makes a full step of any gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_reason.objectives.losses import bounded_ratio

Rewards = Float[Array, "P G"]
PerToken = Float[Array, "B T"]
Mask = Bool[Array, "B T"]


# Numbers that differ by no more than this share of their size are equal. It is four steps of
# float32's grid: as much as sums of the same rewards in another order may differ.
ROUNDING = 4 * 2.0**-23


def _differences(x: Float[Array, "..."], to: Float[Array, "..."]) -> Float[Array, "..."]:
  """Subtracts `to`; what differs by rounding alone gives exactly zero."""
  size = jnp.maximum(jnp.abs(x), jnp.abs(to))
  return jnp.where(jnp.abs(x - to) <= ROUNDING * size, 0.0, x - to)


def centred(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
  """Subtracts the mean along an axis (None: of all); exactly zero where all entries are equal.

  Entries whose sum overflows have no mean, and give NaN: such an update is refused and counted.
  """
  first = jax.lax.index_in_dim(x.reshape(-1) if axis is None else x, 0, axis or 0)
  difference = _differences(x, first)
  summable = jnp.isfinite(x.sum(axis=axis, keepdims=True))
  return jnp.where(summable, difference - difference.mean(axis=axis, keepdims=True), jnp.nan)


def deviation(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
  """Computes the sample deviation (n − 1) along an axis, which is kept; 0 where all are equal."""
  count = x.size if axis is None else x.shape[axis]
  squares = jnp.square(centred(x, axis)).sum(axis=axis, keepdims=True)
  return jnp.sqrt(squares / (count - 1))


def group_mean(rewards: Rewards) -> Rewards:
  """Subtracts the group's mean (Shao et al. 2024, arXiv:2402.03300, sec. 4.1, undivided)."""
  return centred(rewards, 1)


def leave_one_out(rewards: Rewards) -> Rewards:
  """Subtracts the mean of the *others* in the group (RLOO; Ahmadian et al. 2024, eq. 8).

  Equals group_mean times G / (G − 1). Needs G of at least 2.

  Source: arXiv:2402.14740.
  """
  g = rewards.shape[1]
  return centred(rewards, 1) * (g / (g - 1))


def no_baseline(rewards: Rewards) -> Rewards:
  """Returns the rewards themselves (REINFORCE)."""
  return rewards


def group_std(advantages: Rewards, rewards: Rewards, *, epsilon: float = 1e-4) -> Rewards:
  """Divides by the standard deviation of the group's rewards (GRPO; arXiv:2402.03300, sec. 4.1).

  Divides by the sample deviation (G − 1) plus `epsilon`, as trl does; the paper states neither.
  """
  return advantages / (deviation(rewards, 1) + epsilon)


def batch_std(advantages: Rewards, rewards: Rewards, *, epsilon: float = 1e-4) -> Rewards:
  """Divides by the deviation of all the batch's rewards: easy and hard prompts weigh alike."""
  return advantages / (deviation(rewards) + epsilon)


def unscaled(advantages: Float[Array, "..."], of: Array) -> Float[Array, "..."]:
  """Leaves the scale of the rewards (Dr. GRPO; Liu et al. 2025, arXiv:2503.20783).

  Args:
    of: rewards of completions, or a mask of tokens, as other normalisers need them.
  """
  del of
  return advantages


def batch_whiten(advantages: Rewards, rewards: Rewards) -> Rewards:
  """Applies `whiten` over the batch's completions, each counting once.

  After no baseline this is REINFORCE++, after group_mean REINFORCE++-baseline (Hu et al. 2025,
  arXiv:2501.03262, sec. 3). Whitening their tokens instead lets long completions weigh more.
  """
  del rewards
  return whiten(advantages, jnp.ones(advantages.shape, bool))


BASELINES: dict[str, Callable[[Rewards], Rewards]] = {
    "group_mean": group_mean, "leave_one_out": leave_one_out, "none": no_baseline}
NORMALISERS: dict[str, Callable[[Rewards, Rewards], Rewards]] = {
    "group_std": group_std, "batch_std": batch_std, "batch_whiten": batch_whiten, "none": unscaled}


def advantages(
    rewards: Rewards, *, baseline: str = "group_mean", normalise: str = "none") -> Rewards:
  """Turns rewards of P groups of G completions into advantages.

  Args:
    rewards: one reward per completion.
    baseline: a key of BASELINES.
    normalise: a key of NORMALISERS.

  Returns: advantages in reward units or, normalised, in standard deviations.
  """
  rewards = jnp.asarray(rewards, jnp.float32)
  return NORMALISERS[normalise](BASELINES[baseline](rewards), rewards)


def whiten(
    advantages: Float[Array, "..."], mask: Bool[Array, "..."], *, epsilon: float = 1e-8,
) -> Float[Array, "..."]:
  """Computes (A − mean) / sqrt(variance + epsilon) over all true places, of all rows together.

  Call it with the whole batch, before it is cut into minibatches, so that every update divides by
  the same number.

  Returns: whitened advantages, zero where masked.
  Source: the variance is the population's (1/n), as in the code that REINFORCE++ came with
    (OpenRLHF, which bounds it by 1e-8 from below); the paper (arXiv:2501.03262) states neither. trl
    and verl divide by n − 1.
  """
  count = jnp.maximum(mask.sum(), 1)
  some = jnp.where(mask, advantages, 0.0).reshape(-1)[jnp.argmax(mask)]
  # Masked places hold one of the true numbers, and differ by nothing.
  difference = _differences(jnp.where(mask, advantages, some), some)
  own = jnp.where(mask, difference - difference.sum() / count, 0.0)
  return own * jax.lax.rsqrt(jnp.square(own).sum() / count + epsilon)


def at_own_tokens(rewards: PerToken, mask: Mask) -> PerToken:
  """Moves what is paid between the policy's tokens to its token before.

  An environment may pay where it answers, and a reward of steps at a token that it wrote. What was
  paid there was earned by the turn before.

  Args:
    rewards: rewards at any token; any value before the first true token and after the last.
    mask: true on the policy's tokens.

  Returns: the rewards, zero where masked; rows sum to what is paid from the first true token to
    the last.
  """
  size = mask.shape[1]
  # The last true token up to here, -1 before the first one; and whether another one follows.
  owner = jax.lax.cummax(jnp.where(mask, jnp.arange(size), -1), axis=1)
  paid = (owner >= 0) & (jnp.arange(size) <= owner[:, -1:])
  rows = jnp.arange(len(mask))[:, None]
  return jnp.zeros(mask.shape, jnp.float32).at[rows, jnp.maximum(owner, 0)].add(
      jnp.where(paid, rewards, 0.0))


def returns_to_go(rewards: PerToken, mask: Mask, *, discount: float = 1.0) -> PerToken:
  """Computes at every token what is still to come: R_t = r_t + γ R_{t+1}; zero where masked.

  Args:
    rewards: reward for sampling token t; any value where masked.
    mask: true on sampled tokens.
    discount: γ per sampled token, in [0, 1].

  Raises: ValueError if discount is outside [0, 1].
  """
  # Monte Carlo is gae's λ = 1 without values.
  zeros = jnp.zeros_like(rewards)
  return gae(rewards, zeros, mask, zeros[:, 0], discount=discount, lam=1.0)[1]


def gae(
    rewards: PerToken, values: PerToken, mask: Mask, bootstrap: Float[Array, "B"],
    *, discount: float = 1.0, lam: float = 0.95,
) -> tuple[PerToken, PerToken]:
  """Computes generalized advantage estimates, and the returns to fit values to.

      δ_t = r_t + γ V_{t+1} − V_t            A_t = δ_t + γλ A_{t+1}            R_t = A_t + V_t

  Args:
    rewards: reward for sampling token t, in verifier units (1.0 = correct).
    values: V(s_t), predicted before token t is sampled, in the same units. V_{t+1} is that of the
      row's next true token.
    mask: true on sampled tokens.
    bootstrap: V after the last token of a truncated completion, else 0.
    discount: γ per token, in [0, 1].
    lam: λ, from 0 (one step, low variance) to 1 (Monte Carlo, no bias).

  Returns: (advantages, returns), both zero where masked.
  Raises: ValueError if discount or lam is outside [0, 1].
  Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
  """
  _in_unit_interval(discount=discount, lam=lam)
  rewards, values = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (rewards, values))

  def step(later, token):
    later_advantage, later_value = later
    r, v, m = token
    advantage = r + discount * later_value - v + discount * lam * later_advantage
    # A masked token passes on what it was given: the sum runs over sampled tokens only.
    return (
        (jnp.where(m, advantage, later_advantage), jnp.where(m, v, later_value)),
        jnp.where(m, advantage, 0.0))
  bootstrap = jnp.asarray(bootstrap, jnp.float32)
  _, advantages = jax.lax.scan(
      step, (jnp.zeros_like(bootstrap), bootstrap), (rewards.T, values.T, mask.T), reverse=True)
  return advantages.T, advantages.T + values


def token_advantages(
    rewards: PerToken, mask: Mask, *, group_size: int, returns: str = "total",
    baseline: str = "group_mean", normalise: str = "none", discount: float = 1.0,
) -> PerToken:
  """Turns rewards per token into advantages per token, without a critic.

  Args:
    rewards: reward for sampling token t; the completions of a group are adjacent rows. Between
      sampled tokens a reward counts for the one before (at_own_tokens).
    mask: true on sampled tokens.
    group_size: completions per group.
    returns: "total": all tokens of a completion share `advantages` of its summed reward. "to_go": a
      token has the return from it on (returns_to_go), less its completion's baseline. Baseline and
      scale are then those of the return at the completion's first token.
    baseline: a key of BASELINES.
    normalise: a key of NORMALISERS but, with "to_go", not batch_whiten. TOKEN_NORMALISERS are
      ignored here: the caller applies them afterwards.
    discount: γ per sampled token, in [0, 1]; for "to_go" only.

  Returns: advantages, zero where masked.
  Raises: ValueError for unknown returns.
  """
  normalise = normalise if normalise in NORMALISERS else "none"
  rewards = at_own_tokens(rewards, mask)
  if returns == "total":
    estimates = advantages(
        rewards.sum(axis=1).reshape(-1, group_size), baseline=baseline, normalise=normalise)
    return jnp.where(mask, estimates.reshape(-1, 1), 0.0)
  if returns == "to_go":
    to_go = returns_to_go(rewards, mask, discount=discount)
    # Baseline and scale are of whole returns: those at each completion's first sampled token.
    first = jnp.take_along_axis(to_go, jnp.argmax(mask, axis=1)[:, None], axis=1)
    whole = first.reshape(-1, group_size)
    estimates = BASELINES[baseline](whole).reshape(-1, 1) + (to_go - first)
    # One row per group, so that a group's tokens are divided by their group's deviation.
    estimates = NORMALISERS[normalise](
        estimates.reshape(len(whole), -1), whole).reshape(to_go.shape)
    return jnp.where(mask, estimates, 0.0)
  raise ValueError(f"Unknown returns {returns!r}: {' or '.join(RETURNS)}.")


def per_sign(advantages: PerToken, mask: Mask) -> PerToken:
  """Scales advantages above 0 by N / N⁺, and those below 0 by N / N⁻.

  With mean_over="token" the loss is then a mean over the tokens of each sign. N counts the tokens
  masked in, N⁺ and N⁻ those with such advantages. A sign that no token has needs no factor.

  Source: the two normalisers of OREAL (Lyu et al. 2025, arXiv:2502.06781, eq. 8).
  """
  a = jnp.where(mask, advantages, 0.0)
  count = mask.sum()
  up, down = (count / jnp.maximum((mask & which).sum(), 1) for which in (a > 0, a < 0))
  return a * jnp.where(a > 0, up, down)


RETURNS = ("total", "to_go")
# Over all tokens of a batch, after all other steps: they need no groups. "none" is in both lists.
TOKEN_NORMALISERS: dict[str, Callable[[PerToken, Mask], PerToken]] = {
    "token_whiten": whiten, "per_sign": per_sign, "none": unscaled}


def vtrace(
    rewards: PerToken, values: PerToken, mask: Mask, bootstrap: Float[Array, "B"],
    logprobs: PerToken, behaviour_logprobs: PerToken,
    *, discount: float = 1.0, lam: float = 1.0, max_rho: float = 1.0, max_c: float = 1.0,
    max_policy_rho: float = 1.0,
) -> tuple[PerToken, PerToken]:
  """Computes V-trace: values and advantages of the policy from tokens that an older one sampled.

      ρ_t = min(ρ̄, π/μ)    c_t = λ min(c̄, π/μ)    δ_t = ρ_t (r_t + γ V_{t+1} − V_t)
      v_t = V_t + δ_t + γ c_t (v_{t+1} − V_{t+1})
      A_t = min(ρ̄_A, π/μ) (r_t + γ (λ v_{t+1} + (1 − λ) V_{t+1}) − V_t)

  On policy and with λ = 1, v is the return. A loss with these advantages takes no further ratio.

  Args:
    rewards, values, mask, bootstrap, discount: as in gae.
    logprobs: log-probabilities of the sampled tokens under the policy, π.
    behaviour_logprobs: log-probabilities of the same tokens under the policy that sampled, μ.
    lam: λ, in [0, 1].
    max_rho: ρ̄, which decides whose value v is: μ's near 0, π's at ∞.
    max_c: c̄, how far corrections travel.
    max_policy_rho: ρ̄_A, the bound of the advantage's own weight.

  Returns: (advantages, targets v), both zero where masked. No gradient flows through them.
  Raises: ValueError if discount or lam is outside [0, 1].
  Source: Espeholt et al. 2018, arXiv:1802.01561, eq. 1 in its recursive form (remark 1), λ as in
    remark 2, advantage of sec. 4.2. The paper has no advantage for λ below 1: that one is rlax's.
  """
  _in_unit_interval(discount=discount, lam=lam)
  rewards, values = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (rewards, values))
  # Masked before exp: garbage in padding would overflow.
  ratio = bounded_ratio(jnp.where(mask, logprobs - behaviour_logprobs, 0.0))

  def step(later, token):
    later_error, later_value, later_target = later
    r, v, m, w = token
    c = lam * jnp.minimum(max_c, w)
    error = jnp.minimum(max_rho, w) * (r + discount * later_value - v) + discount * c * later_error
    advantage = jnp.minimum(max_policy_rho, w) * (r + discount * later_target - v)
    new = error, v, lam * (v + error) + (1 - lam) * v
    out = jnp.where(m, advantage, 0.0), jnp.where(m, error, 0.0)
    # A masked token passes on what it was given.
    return jax.tree.map(lambda x, y: jnp.where(m, x, y), new, later), out
  bootstrap = jnp.asarray(bootstrap, jnp.float32)
  _, (advantages, errors) = jax.lax.scan(
      step, (jnp.zeros_like(bootstrap), bootstrap, bootstrap),
      (rewards.T, values.T, mask.T, ratio.T), reverse=True)
  return jax.lax.stop_gradient((advantages.T, values + errors.T))


def _in_unit_interval(**values: float) -> None:
  for name, value in values.items():
    if not 0.0 <= value <= 1.0:
      raise ValueError(f"{name} must be in [0, 1], got {value}.")
