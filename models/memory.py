"""Estimates what a forward pass of a model holds in memory."""

import dataclasses

import jax
import jax.numpy as jnp

from rl_reason.arrays import PromptBatch
from rl_reason.models import policy, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.runtime.memory import Batch, Part
from rl_reason.runtime.sharding import Partitioning

# What an optimizer step, a decode step and a stretch of the loss hold of their largest array at once.
LOGITS_COPIES = 3


def saved_activations(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, remat: str,
) -> float:
  """Bytes on a device that the backward pass of policy.completion_logprobs, or for whole texts of policy.text_logprobs, gets
  from its forward pass."""
  model = _local(model, partitioning)
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)
  params = transformer.abstract_params(model)
  completions = array(batch.completions, batch.completion_tokens), array(batch.completions)
  if batch.prompt_tokens:
    logprobs, data = policy.completion_logprobs, (
        PromptBatch(array(batch.prompts, batch.prompt_tokens), array(batch.prompts)), *completions)
  else:
    logprobs, data = policy.text_logprobs, (*completions, completions[0])

  def residuals(params, data):
    _, backward = jax.vjp(lambda params: logprobs(model, params, *data, dtype=dtype, remat=remat), params)
    given = {id(x) for x in jax.tree.leaves((params, data))}
    return [x for x in jax.tree.leaves(backward) if id(x) not in given]

  saved = jax.eval_shape(residuals, params, data)
  return sum(x.size * x.dtype.itemsize for x in saved) / _batch_ways(partitioning, batch.completions)


def _logits(model, partitioning, positions, phase, cure) -> Part:
  at_once = min(positions * model.vocab_size, max(policy.MAX_LOGITS, model.vocab_size))
  split = model.vocab_size / _local(model, partitioning).vocab_size * _batch_ways(partitioning, positions)
  return Part("logits", 4 * LOGITS_COPIES * at_once / split, cure, phase)


def _layer_bytes(model: ModelConfig, partitioning: Partitioning, tokens: int, keys: int, dtype: jnp.dtype) -> int:
  """Of one layer without a backward pass, for so many tokens of which each sees `keys`: the residual stream and what is
  added to it, with attention's float32 scores and weights or the feed-forward's three arrays, whichever are larger."""
  local, itemsize = _local(model, partitioning), jnp.dtype(dtype).itemsize
  attention = 2 * 4 * tokens * local.num_heads * keys
  return 3 * tokens * model.width * itemsize + max(attention, 3 * tokens * local.mlp_hidden * itemsize)


def _token_bytes(model: ModelConfig, partitioning: Partitioning, dtype: jnp.dtype) -> int:
  """Of one token's keys and values in all layers."""
  return 2 * model.num_layers * _local(model, partitioning).num_kv_heads * model.head_dim * jnp.dtype(dtype).itemsize


def _batch_ways(partitioning: Partitioning, rows: int) -> int:
  return rows // partitioning.sharding((rows,), ("batch",)).shard_shape((rows,))[0]


def _local(model: ModelConfig, partitioning: Partitioning) -> ModelConfig:
  """The model whose activations are one device's share, where heads and features are split."""
  def share(count, axis):
    return partitioning.sharding((count,), (axis,)).shard_shape((count,))[0]
  kv_heads = share(model.num_kv_heads, "kv_heads")
  heads = share(model.num_heads, "heads")
  return dataclasses.replace(
      model, num_kv_heads=kv_heads, num_heads=max(heads, kv_heads) if heads % kv_heads else heads,
      mlp_hidden=share(model.mlp_hidden, "mlp"), vocab_size=share(model.vocab_size, "vocab"))
