"""Lays a rollout's completions into the rows that models read, and cuts it into minibatches."""

from collections.abc import Callable, Iterator
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from rl_reason.arrays import RolloutBatch
from rl_reason.batches import packing
from rl_reason.batches.packing import split_microbatches, split_parts
from rl_reason.config.checks import at_least
from rl_reason.learner.step import Update
from rl_reason.models.config import ModelConfig
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.objectives import losses
from rl_reason.rollout.record import Rollout
from rl_reason.runtime import sharding
from rl_reason.runtime.sharding import Partitioning
from rl_reason.stages.context import Context
from rl_reason.stages.rollouts import RolloutSection


@dataclasses.dataclass(frozen=True)
class PolicyUpdate(Update):
  """How a policy_gradient stage learns from a rollout: an Update, and:

  epochs: passes over each rollout.
  minibatches: updates per pass. Groups are never split.
  """
  epochs: int = 1
  minibatches: int = 1

  def __post_init__(self):
    super().__post_init__()
    at_least(1, epochs=self.epochs, minibatches=self.minibatches)

  @property
  def per_rollout(self) -> int:
    """Updates that are made on one rollout."""
    return self.epochs * self.minibatches


@dataclasses.dataclass(frozen=True)
class Rows:
  """Lays completions into rows; all that scores a rollout or learns from it goes through here.

  model: architecture of the policy.
  dtype: of the computation.
  partitioning: of the devices that update.
  max_prompt_tokens: of the run.
  rollout: how the stage samples.
  update: how it learns; its microbatches are above 0.
  """
  model: ModelConfig
  dtype: jnp.dtype
  partitioning: Partitioning
  max_prompt_tokens: int
  rollout: RolloutSection
  update: PolicyUpdate

  @classmethod
  def of(cls, context: Context, rollout: RolloutSection, update: PolicyUpdate) -> "Rows":
    """Chooses the number of microbatches where the section leaves it to the machine."""
    text = context.max_prompt_tokens + rollout.group_size * rollout.sampling.max_tokens
    microbatches = update.microbatches or packing.num_passes(
        rollout.prompts // update.minibatches, rollout.group_size, text,
        context.partitioning.ways("batch"))
    return cls(context.policy.config, context.dtype, context.partitioning,
               context.max_prompt_tokens, rollout,
               dataclasses.replace(update, microbatches=microbatches))

  @property
  def parts(self) -> int:
    """Parts of equally many groups that an update cuts a rollout into."""
    return self.update.minibatches * self.update.microbatches

  # Scoring.

  def score(
      self, rollout: Rollout, function: Callable[..., jax.Array], *,
      room: Int[np.ndarray, "B"] | int = 0,
  ) -> Float[np.ndarray, "B T"]:
    """Returns a number per token: function(prompts, rows, lengths, segments) of the completions.

    Args:
      room: tokens of no meaning after each completion, at most 1, that are scored too; T is then
        one larger.
    """
    packed, parts = self.scoring_parts(rollout, room)
    out = [function(*self.partitioning.place(part, ("batch",))) for part in parts]
    out = np.concatenate([sharding.fetch(x) for x in out])  # The device need not wait for the host.
    return packed.unpack(out, rollout.completions.tokens.shape[1] + int(np.max(room)))

  def scoring_parts(
      self, rollout: Rollout, room: Int[np.ndarray, "B"] | int = 0,
  ) -> tuple[packing.Packing, list[tuple]]:
    """Returns how completions are packed, and what `score` calls its function with, host arrays.

    There are as many parts as the update has, so that scoring takes no more memory than it.
    """
    lengths = rollout.completions.lengths + np.asarray(room, np.int32)
    tokens = np.pad(rollout.completions.tokens, ((0, 0), (0, int(np.max(room)))))
    rows = self._pack(lengths, self.parts, max_tokens=tokens.shape[1])
    packed = (rollout.prompts, rows.pack(tokens), rows.row_lengths, rows.segments)
    return rows, split_parts(packed, self.parts)

  # Updates.

  def microbatches(self, minibatch: RolloutBatch) -> RolloutBatch:
    """Packs a minibatch and cuts it into what goes through the model at once: [A, ...]."""
    count = self.update.microbatches
    rows = self._pack(minibatch.completion_lengths, count)
    return split_microbatches(packing.pack(minibatch, rows), count)

  def minibatches(
      self, batch: RolloutBatch, rng: Array, *, mean_over: str) -> Iterator[RolloutBatch]:
    """Yields the minibatches of all epochs: parts of whole groups, shuffled anew in each epoch.

    The token weights of each sum to 1. Groups are ordered such that microbatches, equal stretches
    of a minibatch, hold about equally many tokens.

    Args:
      rng: of the shuffling.
      mean_over: the reduction (losses.token_weights).
    """
    num_prompts, group_size = batch.prompts.tokens.shape[0], self.rollout.group_size
    for epoch in range(self.update.epochs):
      order = np.arange(num_prompts)
      if self.update.per_rollout > 1:
        order = jax.random.permutation(jax.random.fold_in(rng, epoch), num_prompts)
        order = np.asarray(order)
      for groups in np.split(order, self.update.minibatches):
        tokens = batch.completion_lengths.reshape(num_prompts, -1).sum(axis=1)[groups]
        groups = groups[np.concatenate(packing.balance(tokens, self.update.microbatches))]
        part = take_groups(batch, groups, group_size)
        weights = losses.token_weights(
            part.token_weights > 0, mean_over=mean_over,
            max_tokens=self.rollout.sampling.max_tokens)
        yield part.replace(token_weights=np.asarray(weights))

  def _pack(
      self, lengths: np.ndarray, parts: int, *, max_tokens: int | None = None) -> packing.Packing:
    """Lays completions into rows that go through the model in `parts` parts.

    Several share a row only where the reference attention runs: flash kernels know rows of one
    completion.
    """
    max_tokens = max_tokens or self.rollout.sampling.max_tokens
    kernel = attention_kernel(self.model, self.dtype, max_tokens, jax.devices()[0])
    return packing.Packing.of(
        lengths, self.rollout.group_size, max_tokens, together=kernel == "reference",
        divisor=parts * self.partitioning.ways("batch"))


def take_groups(
    batch: RolloutBatch, groups: Int[np.ndarray, "P"], group_size: int) -> RolloutBatch:
  """Takes some groups of a batch, in this order."""
  rows = (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)
  part = jax.tree.map(lambda x: x[rows], batch.replace(prompts=None))
  return part.replace(prompts=jax.tree.map(lambda x: x[groups], batch.prompts))
