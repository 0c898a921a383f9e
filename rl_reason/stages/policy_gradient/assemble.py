"""Assembles what updates read of a rollout: log-probabilities, advantages and token weights."""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jaxtyping import Float
import numpy as np

from rl_reason.arrays import length_mask, RolloutBatch
from rl_reason.models import lora
from rl_reason.objectives import losses
from rl_reason.objectives.losses import Objective
from rl_reason.rollout.record import Rollout
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient.credit import Credit, estimate
from rl_reason.stages.policy_gradient.rows import Rows
from rl_reason.types import Params


@dataclasses.dataclass(frozen=True)
class Assembler:
  """Makes of a rollout what updates read.

  credit: how rewards become advantages.
  objective: which log-probabilities are compared, and the KL penalty.
  rows: how completions are laid out.
  score: models.policy.score, or a compilation.Program of it.
  """
  credit: Credit
  objective: Objective
  rows: Rows
  score: Callable[..., jax.Array]

  @property
  def scores_acting(self) -> bool:
    """Whether the policy that learns reads a rollout before the update."""
    companion = self.credit.companion
    shared = companion is not None and companion.trunk == "shared"
    return bool(self.objective.importance_cap) or shared

  def __call__(
      self, rollout: Rollout, params: Params, reference: Params | None,
  ) -> tuple[RolloutBatch, dict[str, float]]:
    """Assembles a rollout. The token weights are 1 where a token counts, for Rows.minibatches.

    Args:
      params: of the stage, from which the next update starts.
      reference: the policy that the KL penalty is measured against.
    Returns: (what the loss reads, host arrays; metrics of importance weights and values).
    """
    completions, objective = rollout.completions, self.objective
    mask = completions.sampled
    acting, companion = critic_lib.split(self.credit.companion, params)
    if self.scores_acting:
      acting = lora.merge(acting)  # One program scores it and the reference.

    # The policy before the update: what sampled, unless that was another and importance weights
    # make up for it.
    behaviour, weights, metrics = completions.behaviour_logprobs, 1.0, {}
    if objective.importance_cap:
      behaviour = self._logprobs(rollout, acting)
      weights, metrics = losses.truncated_importance(
          behaviour, completions.behaviour_logprobs, mask, cap=objective.importance_cap)
    # Without a reference `kl` says how far updates have left the policy before them; zeros here
    # could overflow in exp.
    reference_logprobs = behaviour if reference is None else self._logprobs(rollout, reference)

    # Rewards per token -> advantages per token.
    rewards = rollout.rewards
    if objective.kl.coef and objective.kl.added_to == "reward":
      kl = losses.kl_estimate(
          behaviour, reference_logprobs, mask, estimator=objective.kl.estimator)
      rewards = rewards - objective.kl.coef * np.asarray(kl)
    values = None
    if self.credit.companion is not None:
      values = self._values(rollout, acting, companion)
    found = estimate(
        self.credit, rollout, rewards, values=values,
        logprobs=(behaviour, completions.behaviour_logprobs),
        importance_cap=objective.importance_cap)
    if self.credit.critic is not None and self.credit.critic.vtrace:
      weights = 1.0  # Its advantages are weighed already.
    return RolloutBatch(
        prompts=rollout.prompts, completions=completions.tokens,
        completion_lengths=completions.lengths, behaviour_logprobs=behaviour,
        reference_logprobs=reference_logprobs,
        advantages=np.where(mask, found.advantages * np.asarray(weights), 0.0),
        behaviour_values=found.values, returns=found.returns,
        token_weights=found.counted.astype(np.float32), observed=completions.observed,
    ), jax.tree.map(float, {**metrics, **found.metrics})

  def blank(self, rollout: Rollout) -> RolloutBatch:
    """Makes a batch of a rollout's shapes, with zeros for what scoring and rewards give."""
    completions = rollout.completions
    zeros = np.zeros(completions.tokens.shape, np.float32)
    values = None if self.credit.companion is None else zeros
    return RolloutBatch(
        prompts=rollout.prompts, completions=completions.tokens,
        completion_lengths=completions.lengths, behaviour_logprobs=zeros,
        reference_logprobs=zeros, advantages=zeros, behaviour_values=values, returns=values,
        token_weights=zeros, observed=completions.observed)

  def _logprobs(self, rollout: Rollout, params: Params) -> Float[np.ndarray, "B T"]:
    temperature = self.rows.rollout.sampling.temperature
    return self.rows.score(rollout, functools.partial(
        self.score, self.rows.model, params, temperature=temperature, dtype=self.rows.dtype))

  def _values(
      self, rollout: Rollout, acting: Params, companion: Params,
  ) -> tuple[Float[np.ndarray, "B T"], Float[np.ndarray, "B"]]:
    """Returns V before each completion token, and V after the last token of truncated ones.

    The latter is 0 where the critic does not bootstrap, and for completions that ended.
    """
    completions, critic = rollout.completions, self.credit.critic
    lengths, truncated = completions.lengths, completions.truncated
    bootstrapped = critic is not None and critic.bootstrap_truncated and truncated.any()
    values = self.rows.score(
        rollout, functools.partial(
            critic_lib.score, self.rows.model, self.credit.companion, acting, companion,
            dtype=self.rows.dtype),
        room=truncated if bootstrapped else 0)
    after = np.zeros(len(lengths), np.float32)
    if bootstrapped:
      after[truncated] = values[truncated, lengths[truncated]]
    size = completions.tokens.shape[1]
    return np.where(length_mask(lengths, size), values[:, :size], 0.0), after
