"""Trains a token reward model beside the policy, which learns which tokens of completions matter.

It learns this from whole completions, right or wrong.
"""

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
  """A Companion that gives a logit w_t after each completion token.

  The logits' mean says whether the completion is right:

      loss = BCE(σ(mean of w), right)        w̄_t = mean of w_1 ... w_t
      share of token t in the advantage:
          clip(2 σ(w̄_t) − 1, 0, 1) of a right completion's
          clip(1 − 2 σ(w̄_t), 0, 1) of a wrong one's

  The logit after a token is the one before the next token, so that the last token of a completion,
  mostly EOS, has none; its share is that of the token before it.

  outcome: the reward whose value above 0 says that a completion is right.

  Source: Lyu et al. 2025 (OREAL), arXiv:2502.06781, sec. 3.3. It departs from the paper in the
    weights of the loss: a completion counts by its tokens.
  """
  outcome: str = ""


def shares(
    before: Float[np.ndarray, "B T"], right: Bool[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"], kept: Bool[np.ndarray, "B T"],
) -> tuple[Float[np.ndarray, "B T"], dict[str, float]]:
  """Computes each token's share of its completion's advantage.

  Args:
    before: the model's numbers before each token, one completion a row.
    right: whether the row's completion is right.
    mask: true on the policy's own tokens.
    kept: true at tokens that are learnt from.

  Returns: (shares, 0 to 1; what is logged: their means over the kept tokens of right and of wrong
    completions).
  """
  # The number after a token is the one before the policy's next token: between the two may stand
  # tokens of an environment.
  after, there = np.zeros_like(before, np.float64), np.zeros_like(mask)
  for row in range(len(mask)):
    places = np.flatnonzero(mask[row])
    after[row, places[:-1]], there[row, places[:-1]] = before[row, places[1:]], True
  # Means of the numbers up to each token. The last token adds none, and keeps the mean before it.
  counts = np.cumsum(there, axis=1)
  means = np.cumsum(np.where(there, after, 0.0), axis=1) / np.maximum(counts, 1)
  sure = np.tanh(means / 2)  # 2 σ(x) − 1.
  found = np.where(mask, np.clip(np.where(right, sure, -sure), 0.0, 1.0), 0.0).astype(np.float32)
  told = {name: float(found[which].mean()) if which.any() else 0.0
          for name, which in (("positive", kept & right), ("negative", kept & ~right))}
  return found, {f"token_reward/{name}": value for name, value in told.items()}


def add_loss(
    loss: Float[Array, ""], statistics: losses.LossStatistics, before: Float[Array, "B T"],
    batch: RolloutBatch,
) -> tuple[Float[Array, ""], losses.LossStatistics]:
  """Adds the model's own loss to the policy's.

  Both are reduced with the same token_weights, and so over the same completions.
  """
  mask = batch.completion_mask
  after, there = _shifted(before, mask, batch.segments)
  logits = losses.completion_mean(after, there, batch.segments)
  own = jnp.where(there, optax.sigmoid_binary_cross_entropy(logits, batch.returns), 0.0)
  own_loss = jnp.sum(batch.token_weights * own)
  # At all tokens of a completion, the last included: 1 where the completion is judged right or
  # wrong as it is. A completion without a logit counts as misjudged.
  judged = losses.completion_mean(there.astype(jnp.float32), mask, batch.segments) > 0
  right = judged & (
      (losses.completion_mean(after, mask, batch.segments) > 0) == (batch.returns > 0.5))
  loss = loss + own_loss
  return loss, statistics.replace(sums={
      **statistics.sums, "loss": loss, "token_reward/loss": own_loss,
      "token_reward/accuracy": jnp.sum(batch.token_weights * right)})


def _shifted(before, mask, segments):
  """Returns (numbers after each token, where there are any).

  They are the numbers before the next token of the same completion.
  """
  if segments is None:
    segments = jnp.zeros(mask.shape, jnp.int32)
  # The next place at which the policy wrote: an environment's tokens may stand between.
  size = mask.shape[1]
  places = jnp.where(mask, jnp.arange(size), size)
  following = jax.lax.cummin(
      jnp.concatenate([places[:, 1:], jnp.full((len(mask), 1), size)], axis=1),
      axis=1, reverse=True)
  inside = jnp.minimum(following, size - 1)
  there = mask & (following < size) & (jnp.take_along_axis(segments, inside, axis=1) == segments)
  return jnp.where(there, jnp.take_along_axis(before, inside, axis=1), 0.0), there
