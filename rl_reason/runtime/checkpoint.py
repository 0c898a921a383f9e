"""Checkpoints: the learner's state and the host's (data position, stateful rewards) in one atomic orbax step."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from rl_reason.arrays import LearnerState
from rl_reason.config.checks import at_least
from rl_reason.runtime.sharding import is_main_process


@dataclasses.dataclass(frozen=True)
class Checkpointing:
  """every: stage steps between checkpoints (the last step is always saved). keep: newest ones kept per stage."""
  every: int = 50
  keep: int = 2

  def __post_init__(self):
    at_least(1, every=self.every, keep=self.keep)


class Checkpoints:
  """The checkpoints of one stage, in `directory`/<step>; saves run beside training, the newest `keep` stay.

  A checkpoint appears under its final name only when it is whole: a process killed while it saves leaves the one before.
  """

  def __init__(self, directory: Path, *, keep: int = 2, note: Callable[[str], None] = print):
    self._directory = Path(directory).absolute()
    self._note = note
    self._keep = keep
    self._orbax = self._open()

  def _open(self) -> ocp.training.Checkpointer:
    self._directory.mkdir(parents=True, exist_ok=True)
    return ocp.training.Checkpointer(
        self._directory, save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=ocp.training.preservation_policies.LatestN(self._keep), cleanup_tmp_directories=True)

  @property
  def steps(self) -> list[int]:
    return [c.step for c in self._orbax.checkpoints]

  def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
    """Starts saving; the state may be donated to the next update at once.

    Args:
      host: plain data that JSON can hold.
    Raises: OSError if this save or the one before it could not be written (disk full, say).
    """
    # As bytes in an array: orbax would drop empty lists and mappings of a tree.
    parts = _parts(state)
    text = json.dumps({"host": host, "checksums": {k: int(_checksum(v)) for k, v in parts.items()}}).encode()
    try:
      self._orbax.save_checkpointables_async(step, {**parts, "host": {"json": np.frombuffer(text, np.uint8)}}, force=True)
    except Exception as error:
      raise self._cannot_write(step, error) from error

  def wait(self) -> None:
    """Returns when all is written. Raises: OSError if it could not be."""
    try:
      self._orbax.wait()
    except Exception as error:
      raise self._cannot_write(None, error) from error

  def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """(step, state, host) of the newest checkpoint that can be read, or None if there is none.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    One that cannot be read is named, set aside as corrupt-<step>, and the one before it is tried.
    """
    for step in reversed(self.steps):
      try:
        loaded = self._orbax.load_checkpointables(step, {**_parts(abstract), "host": None})
        host = _verified(loaded)["host"]
        if not isinstance(abstract, LearnerState):
          return step, loaded["params"], host
        return step, LearnerState(params=loaded["params"], **loaded["optimizer"]), host
      except Exception as error:  # Whatever a damaged file makes of tensorstore, JSON or zstd.
        self._set_aside(step, error)
    return None

  def restore_params(self, abstract_params: Any) -> tuple[int, Any]:
    """(step, parameters) of the newest checkpoint that can be read; reading changes nothing on disk.

    One that cannot be read is named, and the one before it is tried.

    Raises: FileNotFoundError if there is none; ValueError if all are damaged.
    """
    if not self.steps:
      raise FileNotFoundError(f"No checkpoint in {self._directory}: train first, or name another --workdir.")
    for step in reversed(self.steps):
      try:
        loaded = self._orbax.load_checkpointables(step, {"params": abstract_params, "host": None})
        _verified(loaded)
        return step, loaded["params"]
      except Exception as error:  # Whatever a damaged file makes of tensorstore, JSON or zstd.
        self._note(f"The checkpoint {self._directory / str(step)} cannot be read ({_first_line(error)}); looking for the one"
                   " before it.")
    raise ValueError(f"None of the checkpoints {self.steps} in {self._directory} can be read. Run the training command"
                     " again, or name another --workdir.")

  def close(self) -> None:
    self._orbax.close()

  def _set_aside(self, step: int, error: Exception) -> None:
    aside, times = self._directory / f"corrupt-{step}", 1
    while aside.exists():
      times += 1
      aside = self._directory / f"corrupt-{step}-{times}"
    self._note(f"The checkpoint {self._directory / str(step)} cannot be read ({_first_line(error)}): it is set aside as"
               f" {aside.name}, and the one before it is used.")
    self._orbax.close()
    if is_main_process():
      (self._directory / str(step)).rename(aside)
    self._orbax = self._open()

  def _cannot_write(self, step: int | None, error: Exception) -> OSError:
    free = shutil.disk_usage(self._directory).free / 2**20
    what = f"The checkpoint of step {step}" if step is not None else "A checkpoint"
    return OSError(
        f"{what} could not be written to {self._directory} ({free:.0f} MiB free): {str(error)[:300]}. The ones before it,"
        f" {self.steps}, are whole. Free some space or lower --config.checkpoint.keep, and run the same command again.")


def _verified(loaded: dict[str, Any]) -> dict[str, Any]:
  """The plain data saved beside the arrays. Raises: ValueError if the arrays are not those that were saved."""
  saved = json.loads(np.asarray(loaded["host"]["json"]).tobytes())
  parts = {name: part for name, part in loaded.items() if name != "host"}
  if any(saved["checksums"][name] != int(_checksum(part)) for name, part in parts.items()):
    raise ValueError("its arrays are not the ones that were saved (checksums differ)")
  return saved


@jax.jit
def _checksum(tree: Any) -> jax.Array:
  """The sum of all bits, read as unsigned numbers: a changed byte changes it, and no order of summing does."""
  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype != bool else x
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
  return sum(one(x) for x in jax.tree.leaves(tree))


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {(lines or [''])[0][:200]}"


def _parts(state: Any) -> dict[str, Any]:
  """Splits a state, so that evaluation can read the parameters alone.

  A state that is no LearnerState has one part: what a stage that does not train has found.
  """
  if not isinstance(state, LearnerState):
    return {"params": state}
  return {"params": state.params, "optimizer": {"step": state.step, "opt_state": state.opt_state}}
