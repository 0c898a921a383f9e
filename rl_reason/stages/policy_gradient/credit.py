"""Gives each token credit: rewards of a rollout -> advantages per token, and which tokens count."""

from collections.abc import Mapping
import dataclasses
import functools

import jax
from jaxtyping import Array, Bool, Float
import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.objectives import advantages
from rl_reason.rollout.record import Rollout
from rl_reason.runtime import sharding
from rl_reason.stages.groups import equal_groups
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import token_reward
from rl_reason.stages.policy_gradient.critic import Companion, Critic
from rl_reason.stages.policy_gradient.token_reward import TokenModel

EQUAL_GROUPS = ("keep", "skip", "resample")

# Loops over tokens: each is one program, not one a call.
_without_critic = jax.jit(
    advantages.token_advantages,
    static_argnames=("group_size", "returns", "baseline", "normalise", "discount"))


def _of_own_tokens(estimator, rewards, values, mask, *rest, **factors):
  """Applies an estimator with a critic to rewards at any of a completion's tokens."""
  return estimator(advantages.at_own_tokens(rewards, mask), values, mask, *rest, **factors)


_with_critic = jax.jit(
    functools.partial(_of_own_tokens, advantages.gae), static_argnames=("discount", "lam"))
_with_vtrace = jax.jit(
    functools.partial(_of_own_tokens, advantages.vtrace),
    static_argnames=("discount", "lam", "max_rho", "max_c", "max_policy_rho"))


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which completions are learnt from.

  by: the reward that decides it, completion by completion: those with more than 0.5 (its weight may
    be 0). The tokens of others have no part in the loss. Baselines see all completions, normalisers
    of tokens only these. "": all are kept.
  equal_groups: what becomes of groups whose rewards are all equal. "keep": learnt from like others.
    "skip": their tokens have no part in the loss. "resample": skipped, and replaced by groups of
    further prompts (stages.groups.resample). Advantages are normalised over all groups of a batch.
  equal_by: the reward whose values are compared, e.g. the verifier's beside a length penalty;
    "": the total.
  max_resamples: rounds of further prompts at most, `rollout.prompts` in each.
  """
  by: str = ""
  equal_groups: str = "keep"
  equal_by: str = ""
  max_resamples: int = 10

  def __post_init__(self):
    at_least(1, max_resamples=self.max_resamples)
    one_of(EQUAL_GROUPS, equal_groups=self.equal_groups)


@dataclasses.dataclass(frozen=True)
class Credit:
  """How rewards become advantages: the field `credit` of a policy_gradient section.

  returns: what a token is credited with. "total": its completion's whole reward. "to_go": what is
    rewarded from it on, each further token discounted by `discount`, as rewards of steps need it.
    With a critic it is advantages.gae's or vtrace's, by its lam.
  discount: γ per token, in [0, 1].
  baseline: a key of advantages.BASELINES.
  normalise: a key of advantages.NORMALISERS or TOKEN_NORMALISERS.
  negative_weight: a factor of advantages below 0.
  critic: its values take the place of the baseline; None: there is none.
  token_model: says how much of a completion's advantage each of its tokens gets; None: all of it.
  keep: which completions are learnt from.
  """
  returns: str = "total"
  discount: float = 1.0
  baseline: str = "group_mean"
  normalise: str = "none"
  negative_weight: float = 1.0
  critic: Critic | None = None
  token_model: TokenModel | None = None
  keep: Keep = Keep()

  def __post_init__(self):
    at_least(0, discount=self.discount, negative_weight=self.negative_weight)
    one_of(advantages.RETURNS, returns=self.returns)
    one_of(advantages.BASELINES, baseline=self.baseline)
    one_of({**advantages.NORMALISERS, **advantages.TOKEN_NORMALISERS}, normalise=self.normalise)
    self._check_discount()
    if self.critic is not None:
      if self.baseline != "none":
        raise ValueError(
            f"A critic is the baseline, and baseline={self.baseline!r} would be a second one: set"
            " baseline='none'.")
      one_of(advantages.TOKEN_NORMALISERS, **{"normalise (with a critic)": self.normalise})
    if self.token_model is not None and (self.critic is not None or self.returns != "total"):
      raise ValueError(
          "token_model shares a completion's advantage out among its tokens, and a critic or"
          f" returns={self.returns!r} gives each token its own: set critic=None and"
          " returns='total', or token_model=None.")

  def _check_discount(self) -> None:
    to_go = self.critic is not None or self.returns == "to_go"
    if self.discount > 1:
      raise ValueError(f"discount must be in [0, 1], got {self.discount}: above 1 later rewards"
                       " count more and more.")
    if self.discount < 1 and not to_go:
      raise ValueError(
          f"discount={self.discount} is for returns='to_go' and critics, and returns='total' gives"
          " all tokens of a completion the same: set returns='to_go', or discount=1.0.")
    if to_go and self.normalise == "batch_whiten":
      raise ValueError(
          "normalise='batch_whiten' is over completions, and with returns='to_go' or a critic"
          " advantages differ from token to token: set normalise='token_whiten'.")

  @property
  def companion(self) -> Companion | None:
    """What learns beside the policy."""
    return self.critic or self.token_model

  def check_rewards(self, rewards: Mapping[str, object]) -> None:
    """Raises: ValueError for rewards that are named here and not among the stage's."""
    named = {"credit.keep.by (a reward)": self.keep.by,
             "credit.keep.equal_by (a reward)": self.keep.equal_by}
    for field, name in named.items():
      if name:
        one_of(rewards, **{field: name})
    if self.token_model is not None:
      one_of(rewards, **{"credit.token_model.outcome (a reward)": self.token_model.outcome})

  def check_group(self, group_size: int, prompts: int) -> None:
    """Raises: ValueError for what needs more completions than a step has."""
    if group_size < 2 and (self.baseline != "none" or self.normalise == "group_std"):
      raise ValueError(
          f"group_size must be at least 2 with baseline={self.baseline!r} and normalise="
          f"{self.normalise!r}, got {group_size}: with one completion per prompt the group mean is"
          " that completion's own reward, so every advantage is zero. Raise rollout.group_size, or"
          " set credit.baseline='none'.")
    if prompts * group_size < 2 and self.normalise == "batch_std":
      raise ValueError(
          "normalise='batch_std' divides by the deviation of a step's rewards, and a step has one"
          " completion: raise rollout.prompts or rollout.group_size, or set"
          " credit.normalise='none'.")
    if self.keep.equal_groups != "keep" and group_size < 2:
      raise ValueError(
          f"equal_groups={self.keep.equal_groups!r} compares a group's completions, and group_size"
          f" is {group_size}: every group would be left out. Raise rollout.group_size, or set"
          " credit.keep.equal_groups='keep'.")


@dataclasses.dataclass(frozen=True)
class Estimates:
  """What credit assignment makes of a rollout's rewards; zero or any value where masked.

  advantages: per completion token.
  values: a critic's or token model's numbers before the update, [B, T]; None without one.
  returns: what these are fitted to, [B, T]; None without one.
  counted: true at tokens that have a part in the loss.
  metrics: what is logged of it.
  """
  advantages: Float[np.ndarray, "B T"]
  values: Float[np.ndarray, "B T"] | None
  returns: Float[np.ndarray, "B T"] | None
  counted: Bool[np.ndarray, "B T"]
  metrics: dict[str, float]


def estimate(
    credit: Credit, rollout: Rollout, rewards: Float[Array, "B T"], *,
    values: tuple[Float[np.ndarray, "B T"], Float[np.ndarray, "B"]] | None = None,
    logprobs: tuple[Float[Array, "B T"], Float[Array, "B T"]] | None = None,
    importance_cap: float = 0.0,
) -> Estimates:
  """Turns rewards per token into advantages per token.

  Args:
    rewards: of the rollout's completions, at the tokens at which they are paid.
    values: of the companion, before the update: V before each token, and V after the last token of
      truncated completions; None without a companion.
    logprobs: of the trainer before the update and of the sampler; for V-trace only.
    importance_cap: bound of V-trace's weights.
  """
  mask, keep = rollout.completions.sampled, credit.keep
  returns, metrics = None, {}

  # Rewards per token -> advantages per token.
  if credit.critic is None:
    estimates = _without_critic(
        rewards, mask, group_size=rollout.group_size, returns=credit.returns,
        baseline=credit.baseline, normalise=credit.normalise, discount=credit.discount)
  else:
    given, factors = (rewards, values[0], mask, values[1]), dict(
        discount=credit.discount, lam=credit.critic.lam)
    if credit.critic.vtrace:
      found = _with_vtrace(*given, *logprobs, **factors, max_rho=importance_cap,
                           max_c=importance_cap, max_policy_rho=importance_cap)
    else:
      found = _with_critic(*given, **factors)
    estimates, returns = map(sharding.fetch, found)
    metrics = dict(critic_lib.metrics(values[0], returns, mask))

  # Normalised over the tokens that are kept.
  kept = mask & (rollout.components[keep.by] > 0.5)[:, None] if keep.by else mask
  if credit.normalise in advantages.TOKEN_NORMALISERS:
    estimates = advantages.TOKEN_NORMALISERS[credit.normalise](estimates, kept)
  estimates = sharding.fetch(estimates)
  if credit.negative_weight != 1:
    estimates = np.where(estimates < 0, credit.negative_weight * estimates, estimates)

  # Shared out among a completion's tokens.
  if credit.token_model is not None:
    outcome = rollout.components[credit.token_model.outcome]
    right = np.repeat(outcome[:, None] > 0, mask.shape[1], axis=1)
    shares, metrics = token_reward.shares(values[0], right, mask, kept)
    estimates, returns = estimates * shares, right.astype(np.float32)

  counted = kept
  if keep.equal_groups != "keep":
    equal = np.repeat(equal_groups(rollout, keep.equal_by), rollout.group_size)
    counted = kept & ~equal[:, None]
  return Estimates(estimates, values and values[0], returns, counted, metrics)
