"""Estimates what sampling holds in memory."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rl_reason.models import transformer
from rl_reason.models.config import ModelConfig
from rl_reason.models.memory import batch_ways, layer_bytes, logits_part, token_bytes
from rl_reason.rollout.pages import pool_sizes
from rl_reason.rollout.schedule import capacity, CHUNK_TOKENS, Schedule
from rl_reason.runtime.memory import Batch, Part, sharded_bytes
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Params


def rollout_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype,
    params: Params, phase: str, cure: str, slots: int = 0, prefill_tokens: int = 0,
    page_tokens: int = 0, int8: bool = False,
) -> list[Part]:
  """Estimates what sampling holds in memory.

  It holds the weights laid out for decoding, and the keys and values of prompts and completions.
  At its beginning it also holds what reading the first prompts takes. With slots, further prompts
  are read while others decode.

  Args:
    model: architecture of the policy.
    partitioning: the devices that sample.
    batch: what one call of `generate` samples. All completions count as long as they may get, so
      that pages save no more than rounding here.
    dtype: dtype of the computation.
    params: abstract_params of the context, with shardings.
    phase: name of the phase of the run in which this memory is held.
    cure: what the user may change to make the batch smaller.
    slots: as in `generate`.
    prefill_tokens: as in `generate`.
    page_tokens: as in `generate`.
    int8: as in `generate`.

  Returns: the parts, bytes per device.
  """
  dtype = jnp.dtype(dtype)
  schedule = Schedule(batch.prompts, batch.group_size, slots)
  completions, prompts = schedule.num_slots, len(schedule.groups)
  ways, token = batch_ways(partitioning, completions), token_bytes(model, partitioning, dtype)
  # The weights laid out for decoding. Parameters are float32, 4 bytes a number.
  weights = sharded_bytes(params) * dtype.itemsize / 4
  if int8:  # Each of these numbers takes one byte, not `itemsize`; each output a float32 scale.
    for name, inputs in transformer.INPUT_AXES.items():
      matrix = params["layers"][name]
      float32_bytes = sharded_bytes(matrix)
      weights += float32_bytes * (
          (1 - dtype.itemsize) / 4 + 1 / np.prod(matrix.shape[1:1 + inputs]))
  # The keys and values of completions, in tokens.
  chunk = min(CHUNK_TOKENS, batch.completion_tokens)
  if page_tokens:  # A pool that has just grown lies beside the pool that it was.
    past = page_tokens * sum(pool_sizes(page_tokens, completions, batch.completion_tokens)[-2:])
  else:
    # `decode.arrange` holds what it is given, what it makes and, on a CPU, both of all layers in
    # one room. A completion's last token is never read, so it needs no place.
    past = completions * (3 * capacity(batch.completion_tokens - 1, chunk) + chunk)
  # The keys and values of prompts: each prompt has room for whole stretches.
  stretch = prefill_tokens or batch.prompt_tokens
  room = -(-batch.prompt_tokens // stretch) * stretch

  def reading(rows, phase):
    """Estimates one layer's arrays, and the keys and values that `Prompts` will hold once more."""
    taken = layer_bytes(model, partitioning, rows * stretch,
                        room + (stretch if prefill_tokens else 0), dtype)
    return Part(
        "reading of prompts", (taken + token * rows * room) / batch_ways(partitioning, rows),
        "lower config.prefill_tokens" if prefill_tokens else "set config.prefill_tokens", phase)
  cache = Part("keys and values of prompts", token * prompts * room / ways,
               f"lower max_prompt_tokens; {cure}", phase)
  beginning = f"reading of prompts for {phase}"
  return [
      Part("weights laid out for decoding", weights,
           "policy.dtype='bfloat16'" if dtype.itemsize > 2 else "mesh.fsdp or mesh.tensor", phase),
      cache,
      Part("keys and values of completions", token * (completions * chunk + past) / ways,
           f"lower sampling.max_tokens; {cure}", phase),
      logits_part(model, partitioning, completions, phase, cure),
      # Later prompts, in batches of the size in which `generate` reads them.
      *([reading(max(1, prompts // 4), phase)] if prompts < batch.prompts else []),
      reading(prompts, beginning), dataclasses.replace(cache, phase=beginning),
  ]
