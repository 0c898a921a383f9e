"""How much memory a stage will need, from shapes alone: known before any weights are made.

Exact for what lies in arrays between steps (parameters, optimizer, caches); for the backward pass it is what automatic
differentiation saves, as JAX traces it, without what the compiler merges or adds: good to a factor of about 1.5.
Caches of evaluations between the steps count too; checkpoints, which pass through the host's memory, do not.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_reason import policy
from rl_reason.models import lora, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.rollout.pages import pool_sizes
from rl_reason.rollout.schedule import CHUNK_TOKENS, Schedule, capacity
from rl_reason.sharding import Partitioning
from rl_reason.types import LearnerState, Params, PromptBatch

# What an optimizer step, a decode step and a stretch of the loss hold of their largest array at once.
LOGITS_COPIES = 3


@dataclasses.dataclass(frozen=True)
class Part:
  """Bytes on one device. cure: what makes them fewer. phase: the part of a step that they last; "" for all of it.

  devices: "" for those of the mesh, "that samples" for those of a rollout mesh.
  """
  name: str
  num_bytes: float
  cure: str
  phase: str = ""
  devices: str = ""


@dataclasses.dataclass(frozen=True)
class Batch:
  """Sizes of what is sampled or learnt from at once: prompts, completions of each, and both's padded tokens.

  prompt_tokens: 0 for rows of whole texts, as supervised stages read them; completion_tokens are then the rows'.
  """
  prompts: int
  group_size: int
  prompt_tokens: int
  completion_tokens: int

  @property
  def completions(self) -> int:
    return self.prompts * self.group_size


def peak(parts: Sequence[Part]) -> list[Part]:
  """The parts that are there at once when a step needs most, on the devices that need most; largest first."""
  def total(parts):
    return sum(p.num_bytes for p in parts)
  there = []
  for devices in dict.fromkeys(p.devices for p in parts):
    own = [p for p in parts if p.devices == devices]
    phases = {p.phase: total(q for q in own if q.phase == p.phase) for p in own if p.phase}
    worst = max(phases, key=phases.get, default="")
    there.append([p for p in own if p.phase in ("", worst)])
  return sorted(max(there, key=total, default=[]), key=lambda p: -p.num_bytes)


def fit(stage: str, parts: Sequence[Part], limit: float | None) -> str:
  """One line that says what the stage needs. limit: bytes a device has (`device_memory`), None where unknown.

  Raises: ValueError if it needs more.
  """
  parts = peak(parts)
  needed, device = sum(p.num_bytes for p in parts), " ".join(["a device", *{p.devices for p in parts} - {""}])
  if limit is None or needed <= limit:
    shown = ", ".join(f"{p.name} {size(p.num_bytes)}" for p in parts[:4])
    return f"{stage}: needs about {size(needed)}{'' if limit is None else f' of {size(limit)}'} {device}: {shown}."
  phase = next((p.phase for p in parts if p.phase), "")
  shown = "; ".join(f"{p.name} {size(p.num_bytes)} ({p.cure})" for p in parts[:3])
  raise ValueError(f"Stage {stage!r} needs about {size(needed)} {device}, most of all in its {phase or 'state'}, and a"
                   f" device has {size(limit)}: {shown}. Change config.{stage}, the mesh or the policy accordingly.")


def exhausted(error: Exception) -> str:
  """What to do about XLA's RESOURCE_EXHAUSTED, in one line; the estimate had hoped for less."""
  told = str(error).strip().splitlines()[0][:200]
  return (f"A device ran out of memory ({told}). What was saved stays: the same command continues from it, with smaller"
          " steps: raise microbatches, set remat='dots' or 'full', lower prompts_per_step, group_size, batch_size or"
          " sampling.max_tokens, set policy.dtype='bfloat16', or use more devices (mesh.fsdp).")


def size(num_bytes: float) -> str:
  return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.95 * 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def device_memory(*partitionings: Partitioning) -> float | None:
  """Bytes that one device of the meshes may use: an accelerator's own, or a share of what is free on the host."""
  devices = [d for p in partitionings for d in p.mesh.devices.flat if d.process_index == jax.process_index()]
  limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
  if all(limits):
    return float(min(limits))
  if devices[0].platform != "cpu":
    return None
  free = host_memory()
  return None if free is None else free / len(devices)


def host_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> float | None:
  """Bytes the host can still give, within what its container may have; None where the system does not say."""
  try:
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = 1024.0 * int(lines["MemAvailable"].split()[0])
  except (OSError, KeyError, ValueError):
    try:  # Not Linux: all there is.
      free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
      return None
  try:
    return min(free, float(cgroup.read_text()))
  except (OSError, ValueError):  # No container, or "max".
    return free


def sharded_bytes(tree: Any) -> int:
  """Bytes on one device of arrays or ShapeDtypeStructs with shardings."""
  return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def learner_parts(state: LearnerState, *, microbatches: int, start: Params | None = None) -> list[Part]:
  """What the stage holds all along, and the gradients of what it trains.

  Args:
    state: a Stage's state_shape. start: shapes of the policy it starts from; None: those of its own parameters.
  """
  params, trained = sharded_bytes(state.params), sharded_bytes(lora.partition(state.params)[0])
  spread = "spread over more devices with mesh.fsdp or mesh.tensor, or take a smaller policy"
  return [
      Part("parameters", params, spread),
      Part("policy the stage starts from", params if start is None else sharded_bytes(start), spread),
      Part("optimizer", sharded_bytes(state.opt_state), f"{spread}, or optimizer.name='sgd'"),
      # With several microbatches, their sum and the newest one's.
      Part("gradients", trained * (2 if microbatches > 1 else 1), spread, "update"),
      Part("gradients and the optimizer's step", 2 * trained, spread, "optimizer step"),
  ]


def update_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, remat: str, temperature: float = 1.0,
) -> list[Part]:
  """Activations of one microbatch: what the forward pass saves, and what one layer's backward pass makes of it."""
  everything = saved_activations(model, partitioning, batch, dtype=dtype, remat="none")
  saved = everything if remat == "none" else saved_activations(model, partitioning, batch, dtype=dtype, remat=remat)
  cure = "raise microbatches"
  if remat != "full":
    cure += ", set remat='full'" if remat == "dots" else ", set remat='dots' or 'full'"
  return [Part("activations", saved + everything / model.num_layers, cure, "update"),
          _logits(model, partitioning, batch.completions * batch.completion_tokens, "update", "raise microbatches")]


def scoring_parts(model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype) -> list[Part]:
  """A policy reads one part of a rollout (stages.assemble). Nothing is saved for a backward pass, and one layer's
  arrays are there at a time."""
  cure = "raise microbatches"
  tokens = batch.completions * batch.completion_tokens
  layer = _layer_bytes(model, partitioning, tokens, batch.prompt_tokens + batch.completion_tokens, dtype)
  prompts = _token_bytes(model, partitioning, dtype) * batch.prompts * batch.prompt_tokens
  return [Part("activations of scoring", (layer + prompts) / _batch_ways(partitioning, batch.completions),
               cure, "scoring"),
          _logits(model, partitioning, tokens, "scoring", cure)]


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
