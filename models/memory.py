"""Estimates what a forward pass of a model holds in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rl_reason.arrays import Inputs
from rl_reason.models import policy, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.runtime.memory import Batch, Part
from rl_reason.runtime.sharding import Partitioning

# Copies of their largest array, the logits, that an optimizer step, a decode step and a stretch of
# the loss hold at once.
LOGITS_COPIES = 3


def saved_activations(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, remat: str,
) -> float:
  """Returns the bytes on a device that a backward pass gets from its forward pass.

  The pass is that of policy.completion_logprobs, or of policy.text_logprobs for whole texts
  (batches without prompt tokens).

  Args:
    model: architecture, of full size.
    partitioning: splits it over the devices.
    batch: what a microbatch holds, over all devices.
    dtype: of the computation.
    remat: what the backward pass computes again, a key of transformer.REMAT_POLICIES.
  """
  # One device's share of the model, with the whole batch: divided by the batch's split.
  whole = _saved_bytes(_local(model, partitioning), batch, jnp.dtype(dtype), remat)
  return whole / batch_ways(partitioning, batch.completions)


# Tracing takes seconds for the smallest model, and stages of a run often ask for the same shapes.
@functools.lru_cache(maxsize=256)
def _saved_bytes(model: ModelConfig, batch: Batch, dtype: jnp.dtype, remat: str) -> int:
  """Returns the bytes that a backward pass of the whole batch gets from its forward pass."""
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)
  params = transformer.abstract_params(model)
  completions = array(batch.completions, batch.completion_tokens), array(batch.completions)
  if batch.prompt_tokens:
    logprobs, data = policy.completion_logprobs, (
        Inputs(array(batch.prompts, batch.prompt_tokens), array(batch.prompts)), *completions)
  else:
    logprobs, data = policy.text_logprobs, (Inputs(*completions), completions[0])

  # The backward function's leaves are what it keeps. Parameters and data are counted elsewhere.
  def residuals(params, data):
    _, backward = jax.vjp(
        lambda params: logprobs(model, params, *data, dtype=dtype, remat=remat), params)
    given = {id(x) for x in jax.tree.leaves((params, data))}
    return [x for x in jax.tree.leaves(backward) if id(x) not in given]

  # Shapes alone: nothing is computed, whatever the size of the model.
  saved = jax.eval_shape(residuals, params, data)
  return sum(x.size * x.dtype.itemsize for x in saved)


def logits_part(model, partitioning, positions, phase, cure) -> Part:
  """Returns the estimate for logits: LOGITS_COPIES copies in float32, split over the devices.

  Args:
    model: architecture, of full size.
    partitioning: splits the vocabulary and the batch.
    positions: positions whose logits are wanted, over all devices. At most policy.MAX_LOGITS
      logits exist at once, but at least those of one position.
    phase: when they are held (runtime.memory.Part).
    cure: what to change where memory is short (runtime.memory.Part).
  """
  at_once = min(positions * model.vocab_size, max(policy.MAX_LOGITS, model.vocab_size))
  split = (model.vocab_size / _local(model, partitioning).vocab_size
           * batch_ways(partitioning, positions))
  return Part("logits", 4 * LOGITS_COPIES * at_once / split, cure, phase)


def layer_bytes(
    model: ModelConfig, partitioning: Partitioning, tokens: int, keys: int, dtype: jnp.dtype,
) -> int:
  """Returns the bytes of one layer without a backward pass.

  They are the residual stream and what is added to it, and with them attention's float32 scores
  and weights or the feed-forward block's three arrays, whichever are larger.

  Args:
    model: architecture, of full size.
    partitioning: splits heads and features.
    tokens: tokens that the layer processes.
    keys: keys that each of them sees.
    dtype: of the computation.
  """
  local, itemsize = _local(model, partitioning), jnp.dtype(dtype).itemsize
  attention = 2 * 4 * tokens * local.num_heads * keys
  return (3 * tokens * model.width * itemsize
          + max(attention, 3 * tokens * local.mlp_hidden * itemsize))


def token_bytes(model: ModelConfig, partitioning: Partitioning, dtype: jnp.dtype) -> int:
  """Returns the bytes of one token's keys and values in all layers, on one device."""
  return (2 * model.num_layers * _local(model, partitioning).num_kv_heads * model.head_dim
          * jnp.dtype(dtype).itemsize)


def batch_ways(partitioning: Partitioning, rows: int) -> int:
  """Returns over how many devices `rows` of a batch are split."""
  return rows // partitioning.sharding((rows,), ("batch",)).shard_shape((rows,))[0]


def _local(model: ModelConfig, partitioning: Partitioning) -> ModelConfig:
  """Returns the model with one device's share of heads, features and vocabulary."""
  def share(count, axis):
    return partitioning.sharding((count,), (axis,)).shard_shape((count,))[0]
  kv_heads = share(model.num_kv_heads, "kv_heads")
  heads = share(model.num_heads, "heads")
  # A config's query heads are a multiple of its key heads; query heads may be split over
  # more devices than these.
  return dataclasses.replace(
      model, num_kv_heads=kv_heads, num_heads=max(heads, kv_heads) if heads % kv_heads else heads,
      mlp_hidden=share(model.mlp_hidden, "mlp"), vocab_size=share(model.vocab_size, "vocab"))
