"""Saves and restores checkpoints: the learner's state and the host's, in one atomic orbax step.

The host's state is, for example, the position in the data and the state of stateful rewards.
"""

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
  """Says how often checkpoints are saved, and how many stay.

  every: stage steps between checkpoints; the last step is always saved.
  keep: number of newest checkpoints kept per stage.
  """
  every: int = 50
  keep: int = 2

  def __post_init__(self):
    at_least(1, every=self.every, keep=self.keep)


class Checkpoints:
  """Keeps the checkpoints of one stage, in `directory`/<step>.

  Saves run beside training, and the newest `keep` checkpoints stay. A checkpoint appears under its
  final name only when it is whole. So a process that is killed while it saves leaves the checkpoint
  before.
  """

  def __init__(self, directory: Path, *, keep: int = 2, note: Callable[[str], None] = print):
    """Opens the directory, and makes it if needed.

    Args:
      directory: directory of the stage's checkpoints.
      keep: number of newest checkpoints that stay.
      note: receives messages for the user.
    """
    self._directory = Path(directory).absolute()
    self._note = note
    self._keep = keep
    self._orbax = self._open()

  def _open(self) -> ocp.training.Checkpointer:
    # Saves whenever asked, and removes what a killed process has left unfinished.
    self._directory.mkdir(parents=True, exist_ok=True)
    return ocp.training.Checkpointer(
        self._directory,
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
        cleanup_tmp_directories=True)

  @property
  def steps(self) -> list[int]:
    """Lists the steps of all checkpoints, in ascending order."""
    return [c.step for c in self._orbax.checkpoints]

  def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
    """Starts saving. The state may be donated to the next update immediately.

    Args:
      step: number of the stage's step.
      state: what the devices hold: a LearnerState, or what a stage that does not train has found.
      host: plain data that JSON can hold.
    Raises: OSError if this save or the one before it could not be written (a full disk, say).
    """
    parts = _parts(state)
    text = json.dumps({
        "host": host, "checksums": {k: int(_checksum(v)) for k, v in parts.items()}}).encode()
    try:
      # The text is saved as bytes in an array: orbax would drop empty lists and mappings of a tree.
      self._orbax.save_checkpointables_async(
          step, {**parts, "host": {"json": np.frombuffer(text, np.uint8)}}, force=True)
    except Exception as error:
      raise self._cannot_write(step, error) from error

  def wait(self) -> None:
    """Waits until all is written. Raises: OSError if it could not be."""
    try:
      self._orbax.wait()
    except Exception as error:
      raise self._cannot_write(None, error) from error

  def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read.

    A checkpoint that cannot be read is reported and set aside as corrupt-<step>. Then the one
    before it is tried.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Returns: (step, state, host), or None if there is no checkpoint.
    """
    for step in reversed(self.steps):
      try:
        loaded = self._orbax.load_checkpointables(step, {**_parts(abstract), "host": None})
        host = _verified(loaded)["host"]
        if not isinstance(abstract, LearnerState):
          return step, loaded["params"], host
        return step, LearnerState(params=loaded["params"], **loaded["optimizer"]), host
      except Exception as error:  # A damaged file can raise anything in tensorstore, JSON or zstd.
        self._set_aside(step, error)
    return None

  def restore_params(self, abstract_params: Any) -> tuple[int, Any]:
    """Restores the parameters of the newest checkpoint that can be read. Changes nothing on disk.

    A checkpoint that cannot be read is reported, and the one before it is tried.

    Args:
      abstract_params: shapes, dtypes and shardings of the parameters.

    Returns: (step, parameters).
    Raises: FileNotFoundError if there is no checkpoint; ValueError if all are damaged.
    """
    if not self.steps:
      raise FileNotFoundError(
          f"No checkpoint in {self._directory}: train first, or name another --workdir.")
    for step in reversed(self.steps):
      try:
        loaded = self._orbax.load_checkpointables(step, {"params": abstract_params, "host": None})
        _verified(loaded)
        return step, loaded["params"]
      except Exception as error:  # A damaged file can raise anything in tensorstore, JSON or zstd.
        self._note(f"The checkpoint {self._directory / str(step)} cannot be read"
                   f" ({_first_line(error)}); looking for the one before it.")
    raise ValueError(
        f"None of the checkpoints {self.steps} in {self._directory} can be read. Run the training"
        " command again, or name another --workdir.")

  def close(self) -> None:
    """Closes the directory, once all is written."""
    self._orbax.close()

  def _set_aside(self, step: int, error: Exception) -> None:
    """Renames a damaged checkpoint, so that it is neither tried again nor overwritten."""
    aside, times = self._directory / f"corrupt-{step}", 1
    while aside.exists():
      times += 1
      aside = self._directory / f"corrupt-{step}-{times}"
    self._note(f"The checkpoint {self._directory / str(step)} cannot be read"
               f" ({_first_line(error)}): it is set aside as {aside.name}, and the one before it is"
               " used.")
    # orbax keeps a list of the checkpoints, so the directory is opened anew after the renaming.
    self._orbax.close()
    if is_main_process():
      (self._directory / str(step)).rename(aside)
    self._orbax = self._open()

  def _cannot_write(self, step: int | None, error: Exception) -> OSError:
    """Makes the error of a failed save, with the free space and what to do."""
    free = shutil.disk_usage(self._directory).free / 2**20
    what = f"The checkpoint of step {step}" if step is not None else "A checkpoint"
    return OSError(
        f"{what} could not be written to {self._directory} ({free:.0f} MiB free):"
        f" {str(error)[:300]}. The ones before it, {self.steps}, are whole. Free some space or"
        " lower --config.checkpoint.keep, and run the same command again.")


def _verified(loaded: dict[str, Any]) -> dict[str, Any]:
  """Returns the plain data saved beside the arrays.

  Raises: ValueError if the arrays are not those that were saved.
  """
  saved = json.loads(np.asarray(loaded["host"]["json"]).tobytes())
  parts = {name: part for name, part in loaded.items() if name != "host"}
  if any(saved["checksums"][name] != int(_checksum(part)) for name, part in parts.items()):
    raise ValueError("its arrays are not the ones that were saved (checksums differ)")
  return saved


@jax.jit
def _checksum(tree: Any) -> jax.Array:
  """Sums all bits, read as unsigned numbers. A changed byte changes the sum; the order does not."""
  def one(x):
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype != bool else x
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
  return sum(one(x) for x in jax.tree.leaves(tree))


def _first_line(error: Exception) -> str:
  """Returns an error's class and the first line of its text, at most 200 characters of it."""
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {(lines or [''])[0][:200]}"


def _parts(state: Any) -> dict[str, Any]:
  """Splits a state into parts, so that an evaluation can read the parameters alone.

  A state that is not a LearnerState has one part: what a stage that does not train has found.
  """
  if not isinstance(state, LearnerState):
    return {"params": state}
  return {"params": state.params, "optimizer": {"step": state.step, "opt_state": state.opt_state}}
