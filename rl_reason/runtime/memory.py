"""Estimates how much memory a stage will need, from shapes alone, before any weights are made.

The estimate is exact for arrays that exist between steps (parameters, optimizer, caches). For the
backward pass it is what automatic differentiation saves, as JAX traces it, without what the
compiler merges or adds; this is good to a factor of about 1.5. Caches of evaluations between the
steps count too. Checkpoints do not, since they pass through the host's memory.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_reason.runtime.sharding import Partitioning


@dataclasses.dataclass(frozen=True)
class Part:
  """Describes one part of what is in memory.

  name: what it is.
  num_bytes: bytes on one device.
  cure: what the user may change to make it smaller.
  phase: the part of a step during which it is there; "" for the whole step.
  devices: "" for the devices of the mesh, "that samples" for those of a rollout mesh.
  """
  name: str
  num_bytes: float
  cure: str
  phase: str = ""
  devices: str = ""


@dataclasses.dataclass(frozen=True)
class Batch:
  """Holds the sizes of what is sampled or learnt from at once.

  prompts: number of prompts.
  group_size: completions per prompt.
  prompt_tokens: tokens of a padded prompt; 0 for rows of whole texts, as supervised stages read
    them.
  completion_tokens: tokens of a padded completion, or of a row of whole texts.
  """
  prompts: int
  group_size: int
  prompt_tokens: int
  completion_tokens: int

  @property
  def completions(self) -> int:
    """Returns the number of completions of all prompts."""
    return self.prompts * self.group_size


def peak(parts: Sequence[Part]) -> list[Part]:
  """Lists the parts that are there when a step needs most, on the devices that need most.

  The largest part comes first.
  """
  def total(parts):
    return sum(p.num_bytes for p in parts)
  # For each kind of devices: what is always there, and the phase that needs most.
  there = []
  for devices in dict.fromkeys(p.devices for p in parts):
    own = [p for p in parts if p.devices == devices]
    phases = {p.phase: total(q for q in own if q.phase == p.phase) for p in own if p.phase}
    worst = max(phases, key=phases.get, default="")
    there.append([p for p in own if p.phase in ("", worst)])
  return sorted(max(there, key=total, default=[]), key=lambda p: -p.num_bytes)


def fit(stage: str, parts: Sequence[Part], limit: float | None) -> str:
  """Says in one line what a stage needs.

  Args:
    stage: name of the stage.
    parts: what the stage holds in memory.
    limit: bytes that a device has (`device_memory`); None where unknown.
  Raises: ValueError if the stage needs more.
  """
  parts = peak(parts)
  needed, device = sum(p.num_bytes for p in parts), " ".join(
      ["a device", *{p.devices for p in parts} - {""}])
  if limit is None or needed <= limit:
    shown = ", ".join(f"{p.name} {size(p.num_bytes)}" for p in parts[:4])
    return (f"{stage}: needs about {size(needed)}"
            f"{'' if limit is None else f' of {size(limit)}'} {device}: {shown}.")
  phase = next((p.phase for p in parts if p.phase), "")
  shown = "; ".join(f"{p.name} {size(p.num_bytes)} ({p.cure})" for p in parts[:3])
  raise ValueError(f"Stage {stage!r} needs about {size(needed)} {device}, most of all in its"
                   f" {phase or 'state'}, and a device has {size(limit)}: {shown}. Change"
                   f" config.{stage}, the mesh or the policy accordingly.")


def exhausted(error: Exception) -> str:
  """Says in one line what to do about XLA's RESOURCE_EXHAUSTED; the estimate was then too low."""
  told = str(error).strip().splitlines()[0][:200]
  return (f"A device ran out of memory ({told}). What was saved stays: the same command continues"
          " from it, with smaller steps: raise microbatches, set remat='dots' or 'full', lower"
          " rollout.prompts, rollout.group_size, batch_size or sampling.max_tokens, set"
          " policy.dtype='bfloat16', or use more devices (mesh.fsdp).")


def size(num_bytes: float) -> str:
  """Writes a number of bytes in GiB or MiB."""
  return (f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.95 * 2**30
          else f"{num_bytes / 2**20:.0f} MiB")


def device_memory(*partitionings: Partitioning) -> float | None:
  """Returns the bytes that one device of the meshes may use; None where unknown.

  An accelerator has memory of its own; a CPU device has a share of what is free on the host.
  """
  devices = [d for p in partitionings for d in p.mesh.devices.flat
             if d.process_index == jax.process_index()]
  limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
  if all(limits):
    return float(min(limits))
  if devices[0].platform != "cpu":
    return None
  free = host_memory()
  return None if free is None else free / len(devices)


def host_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max"),
) -> float | None:
  """Returns the bytes that the host can still give, within the limit of its container.

  Args:
    meminfo: file in which Linux reports its memory.
    cgroup: file that holds the limit of the container.

  Returns: bytes; None where the system does not report them.
  """
  try:
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = 1024.0 * int(lines["MemAvailable"].split()[0])
  except (OSError, KeyError, ValueError):
    try:  # Not Linux: take all memory that the machine has.
      free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
      return None
  try:
    return min(free, float(cgroup.read_text()))
  except (OSError, ValueError):  # There is no container, or its limit is "max".
    return free


def sharded_bytes(tree: Any) -> int:
  """Returns the bytes on one device of arrays or ShapeDtypeStructs with shardings."""
  return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))
