"""A token reward model beside the policy: from whole completions, right or wrong, it learns which of their tokens matter."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np
import optax

from rl_reason.arrays import RolloutBatch
from rl_reason.objectives import losses
from rl_reason.stages.policy_gradient.critic import Companion


@dataclasses.dataclass(frozen=True)
class TokenModel(Companion):
  """A logit w_t after each completion token, whose mean says whether the completion is right; a Companion.

      loss = BCE(σ(mean of w), right)        w̄_t = mean of w_1 ... w_t
      share of token t: clip(2 σ(w̄_t) − 1, 0, 1) of a right completion's advantage, clip(1 − 2 σ(w̄_t), 0, 1) of a wrong one's

  outcome: the reward whose value above 0 says that a completion is right.

  The logit after a token is that before the next one, so that the last token of a completion, EOS mostly, has none; its share is
  that of the token before. Departs from the paper in the weights of the loss: a completion counts by its tokens.
  Source: Lyu et al. 2025 (OREAL), arXiv:2502.06781, sec. 3.3.
  """
  outcome: str = ""


def shares(
    before: Float[np.ndarray, "B T"], right: Bool[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"], kept: Bool[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T"], dict[str, float]]:
  """(each token's share of its completion's advantage, 0 to 1; what is logged of those kept).

  Args:
    before: the model's numbers before each token, one completion a row. right: of the row's completion.
  """
  after, there = np.zeros_like(before, np.float64), np.zeros_like(mask)
  for row in range(len(mask)):  # The policy's own tokens, of which an environment's may stand between.
    places = np.flatnonzero(mask[row])
    after[row, places[:-1]], there[row, places[:-1]] = before[row, places[1:]], True
  counts = np.cumsum(there, axis=1)
  means = np.cumsum(np.where(there, after, 0.0), axis=1) / np.maximum(counts, 1)
  sure = np.tanh(means / 2)  # 2 σ(x) − 1.
  found = np.where(mask, np.clip(np.where(right, sure, -sure), 0.0, 1.0), 0.0).astype(np.float32)
  told = {name: float(found[which].mean()) if which.any() else 0.0
          for name, which in (("positive", kept & right), ("negative", kept & ~right))}
  return found, {f"token_reward/{name}": value for name, value in told.items()}


def add_loss(
    loss: Float[Array, ""], statistics: losses.LossStatistics, before: Float[Array, "B T"], batch: RolloutBatch,
) -> tuple[Float[Array, ""], losses.LossStatistics]:
  """The policy's loss plus the model's own, reduced with the same token_weights, so over the same completions."""
  mask = batch.completion_mask
  after, there = _shifted(before, mask, batch.segments)
  logits = losses.completion_mean(after, there, batch.segments)
  own = jnp.where(there, optax.sigmoid_binary_cross_entropy(logits, batch.returns), 0.0)
  own_loss = jnp.sum(batch.token_weights * own)
  # At all tokens of a completion, the last included: 1 where all are told. One without a logit is not.
  judged = losses.completion_mean(there.astype(jnp.float32), mask, batch.segments) > 0
  right = judged & ((losses.completion_mean(after, mask, batch.segments) > 0) == (batch.returns > 0.5))
  loss = loss + own_loss
  return loss, statistics.replace(sums={**statistics.sums, "loss": loss, "token_reward/loss": own_loss,
                                        "token_reward/accuracy": jnp.sum(batch.token_weights * right)})


def _shifted(before, mask, segments):
  """(numbers after each token, where there are any): those before the next token of the same completion."""
  if segments is None:
    segments = jnp.zeros(mask.shape, jnp.int32)
  # The next place at which the policy wrote: an environment's tokens may stand between.
  size = mask.shape[1]
  places = jnp.where(mask, jnp.arange(size), size)
  following = jax.lax.cummin(jnp.concatenate([places[:, 1:], jnp.full((len(mask), 1), size)], axis=1), axis=1, reverse=True)
  inside = jnp.minimum(following, size - 1)
  there = mask & (following < size) & (jnp.take_along_axis(segments, inside, axis=1) == segments)
  return jnp.where(there, jnp.take_along_axis(before, inside, axis=1), 0.0), there
