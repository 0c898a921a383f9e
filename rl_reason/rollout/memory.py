"""Estimates what sampling holds in memory."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rl_reason.models import transformer
from rl_reason.models.config import ModelConfig
from rl_reason.models.memory import _batch_ways, _layer_bytes, _logits, _token_bytes
from rl_reason.rollout.pages import pool_sizes
from rl_reason.rollout.schedule import capacity, CHUNK_TOKENS, Schedule
from rl_reason.runtime.memory import Batch, Part, sharded_bytes
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Params


def rollout_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, params: Params,
    phase: str, cure: str, slots: int = 0, prefill_tokens: int = 0, page_tokens: int = 0, int8: bool = False,
) -> list[Part]:
  """What sampling holds: the weights laid out for decoding, keys and values of prompts and completions; and, at its
  beginning, what reading the first prompts takes. With slots further ones are read while others decode.

  Args:
    batch: what one call of `generate` samples; slots, prefill_tokens, page_tokens, int8: its arguments. All completions
      count as long as they may get, so that pages save no more than rounding here.
    params: abstract_params of the context, with shardings.
  """
  dtype = jnp.dtype(dtype)
  schedule = Schedule(batch.prompts, batch.group_size, slots)
  completions, prompts = schedule.num_slots, len(schedule.groups)
  ways, token = _batch_ways(partitioning, completions), _token_bytes(model, partitioning, dtype)
  weights = sharded_bytes(params) * dtype.itemsize / 4
  if int8:  # A byte and not `itemsize` for each of these float32 numbers, and a float32 scale per output.
    for name, inputs in transformer.INPUT_AXES.items():
      matrix = params["layers"][name]
      float32_bytes = sharded_bytes(matrix)
      weights += float32_bytes * ((1 - dtype.itemsize) / 4 + 1 / np.prod(matrix.shape[1:1 + inputs]))
  chunk = min(CHUNK_TOKENS, batch.completion_tokens)
  if page_tokens:  # A pool that has just grown beside what it was.
    past = page_tokens * sum(pool_sizes(page_tokens, completions, batch.completion_tokens)[-2:])
  else:  # What `decode.arrange` is given, what it makes and, on a CPU, all layers' both in one room. Last tokens are never read.
    past = completions * (3 * capacity(batch.completion_tokens - 1, chunk) + chunk)
  stretch = prefill_tokens or batch.prompt_tokens
  room = -(-batch.prompt_tokens // stretch) * stretch

  def reading(rows, phase):
    """One layer's arrays, and the keys and values that `Prompts` will hold once more."""
    taken = _layer_bytes(model, partitioning, rows * stretch, room + (stretch if prefill_tokens else 0), dtype)
    return Part("reading of prompts", (taken + token * rows * room) / _batch_ways(partitioning, rows),
                "lower config.prefill_tokens" if prefill_tokens else "set config.prefill_tokens", phase)
  cache = Part("keys and values of prompts", token * prompts * room / ways, f"lower max_prompt_tokens; {cure}", phase)
  beginning = f"reading of prompts for {phase}"
  return [
      Part("weights laid out for decoding", weights,
           "policy.dtype='bfloat16'" if dtype.itemsize > 2 else "mesh.fsdp or mesh.tensor", phase),
      cache,
      Part("keys and values of completions", token * (completions * chunk + past) / ways,
           f"lower sampling.max_tokens; {cure}", phase),
      _logits(model, partitioning, completions, phase, cure),
      *([reading(max(1, prompts // 4), phase)] if prompts < batch.prompts else []),  # As generate reads them.
      reading(prompts, beginning), dataclasses.replace(cache, phase=beginning),
  ]
