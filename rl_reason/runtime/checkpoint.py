"""Saves and restores checkpoints: the learner's state and the host's, in one atomic orbax step.

The host's state is, for example, the position in the data and the state of stateful rewards.

A checkpoint may be of no use for two reasons, which are told apart. Damage: its bytes are not those
that were saved; the one before it is used. Mismatch: it is whole, and holds arrays of other names,
shapes or dtypes than are asked for, because a field of the config changed; that is an error.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import shutil
from typing import Any
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from rl_reason.arrays import LearnerState
from rl_reason.config.checks import at_least
from rl_reason.reporting.whole_files import absolute, is_url
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


class CheckpointMismatch(ValueError):
  """Says that a whole checkpoint holds other arrays than are asked for. Nothing was moved."""


class Checkpoints:
  """Keeps the checkpoints of one stage, in `directory`/<step>, for the one process that trains.

  Saves run beside training, and the newest `keep` checkpoints stay. A checkpoint appears under its
  final name only when it is whole. So a process that is killed while it saves leaves the checkpoint
  before. Whoever only reads uses `read_params`, as opening this object cleans up.
  """

  def __init__(
      self, directory: str | os.PathLike[str], *, keep: int = 2,
      note: Callable[[str], None] = print):
    """Opens the directory, and makes it if needed.

    Args:
      directory: directory of the stage's checkpoints.
      keep: number of newest checkpoints that stay.
      note: receives messages for the user.
    """
    self._directory = absolute(directory)
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

  def save(
      self, step: int, state: Any, host: dict[str, Any], *, overwrite: bool = False) -> None:
    """Starts saving. The state may be donated to the next update immediately.

    Args:
      step: number of the stage's step.
      state: what the devices hold: a LearnerState, or what a stage that does not train has found.
      host: plain data that JSON can hold.
      overwrite: whether a checkpoint of this step is removed first; else there must be none.
    Raises: OSError if this save or the one before it could not be written (a full disk, say).
    """
    parts = _parts(state)
    text = json.dumps({
        "host": host, "checksums": {k: int(_checksum(v)) for k, v in parts.items()},
        "layout": {k: _layout(v) for k, v in parts.items()}}).encode()
    # The text is saved as bytes in an array: orbax would drop empty lists and mappings of a tree.
    plain = {"json": np.frombuffer(text, np.uint8), "crc": np.uint32([zlib.crc32(text)])}
    try:
      self._orbax.save_checkpointables_async(
          step, {**parts, "host": plain}, force=True, overwrite=overwrite)
    except Exception as error:
      raise self._cannot_write(step, error) from error

  def wait(self) -> None:
    """Waits until all is written. Raises: OSError if it could not be."""
    try:
      self._orbax.wait()
    except Exception as error:
      raise self._cannot_write(None, error) from error

  def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole.

    A checkpoint whose bytes are damaged is reported and set aside as corrupt-<step>. Then the one
    before it is tried.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Returns: (step, state, host), or None if there is no checkpoint.
    Raises: CheckpointMismatch if the newest whole one holds other arrays; nothing is moved then.
    """
    for step in reversed(self.steps):
      try:
        loaded, host = _load(self._directory / str(step), _parts(abstract))
      except CheckpointMismatch:
        raise
      except Exception as error:  # A damaged file can raise anything in tensorstore, JSON or zstd.
        self._set_aside(step, error)
        continue
      if not isinstance(abstract, LearnerState):
        return step, loaded["params"], host
      return step, LearnerState(params=loaded["params"], **loaded["optimizer"]), host
    return None

  def restore_params(self, abstract_params: Any) -> tuple[int, Any]:
    """Reads the parameters of the newest whole checkpoint, as `read_params` does."""
    return read_params(self._directory, abstract_params, note=self._note)

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
    free = ""
    if not is_url(self._directory):  # An object store has no disk that could be full.
      free = f" ({shutil.disk_usage(self._directory).free / 2**20:.0f} MiB free)"
    what = f"The checkpoint of step {step}" if step is not None else "A checkpoint"
    return OSError(
        f"{what} could not be written to {self._directory}{free}:"
        f" {str(error)[:300]}. The ones before it, {self.steps}, are whole. Free some space or"
        " lower --config.checkpoint.keep, and run the same command again.")


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
  """Lists the steps of a directory's finished checkpoints, in ascending order; changes nothing."""
  directory = epath.Path(directory)
  if not directory.is_dir():
    return []
  # On a disk orbax renames a checkpoint when it is whole. In an object store it marks it.
  return sorted(
      int(path.name) for path in directory.iterdir() if path.name.isdecimal()
      and (not is_url(directory) or (path / "commit_success.txt").exists()))


def read_params(
    directory: str | os.PathLike[str], abstract_params: Any, *, note: Callable[[str], None] = print,
) -> tuple[int, Any]:
  """Reads the parameters of the newest checkpoint that is whole. Changes nothing on the disk.

  So it may be called beside a training that saves into the same directory. A checkpoint whose bytes
  are damaged is reported, and the one before it is tried.

  Args:
    directory: directory of the stage's checkpoints.
    abstract_params: shapes, dtypes and shardings of the parameters.
    note: receives messages for the user.

  Returns: (step, parameters).
  Raises: FileNotFoundError if there is no checkpoint; CheckpointMismatch if the newest whole one
    holds other parameters; ValueError if all are damaged.
  """
  directory, damaged = absolute(directory), set()
  if not saved_steps(directory):
    raise FileNotFoundError(
        f"No checkpoint in {directory}: train first, or name another --workdir.")
  # The list is read again after each failure: a training that goes on may have saved a newer
  # checkpoint, and removed the one that was being read.
  while untried := [step for step in saved_steps(directory) if step not in damaged]:
    step = untried[-1]
    try:
      return step, _load(directory / str(step), {"params": abstract_params})[0]["params"]
    except CheckpointMismatch:
      raise
    except Exception as error:  # A damaged file can raise anything in tensorstore, JSON or zstd.
      damaged.add(step)
      if (directory / str(step)).exists():
        note(f"The checkpoint {directory / str(step)} cannot be read ({_first_line(error)});"
             " looking for the one before it.")
  raise ValueError(
      f"None of the checkpoints {saved_steps(directory)} in {directory} can be read. Run the"
      " training command again, or name another --workdir.")


def _load(path: epath.Path, parts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Loads parts of one checkpoint.

  Args:
    path: the checkpoint's directory.
    parts: name -> shapes, dtypes and shardings.

  Returns: (the parts, the host's plain data).
  Raises: CheckpointMismatch if the checkpoint holds other arrays; anything else if it is damaged.
  """
  # The host's text comes first: it says which arrays were saved, and so what an error would mean.
  plain = ocp.load_checkpointables(path, {"host": None})["host"]
  text = np.asarray(plain["json"]).tobytes()
  if "crc" in plain and zlib.crc32(text) != int(np.asarray(plain["crc"])[0]):
    raise ValueError("its plain data are not the ones that were saved (checksums differ)")
  saved = json.loads(text)
  layout = saved.get("layout")
  if layout is None:  # Saved before version 0.2.0, which is known by orbax's own description.
    found = ocp.checkpointables_metadata(path).metadata
    layout = {name: _layout(found[name]) for name in parts if name in found}
  _check_layout(path, layout, {name: _layout(part) for name, part in parts.items()})

  # The arrays, which must be the ones that were saved.
  loaded = ocp.load_checkpointables(path, parts)
  if any(saved["checksums"][name] != int(_checksum(loaded[name])) for name in parts):
    raise ValueError("its arrays are not the ones that were saved (checksums differ)")
  return loaded, saved["host"]


def _layout(tree: Any) -> dict[str, Any]:
  """Describes a tree as plain data: {path: [shape, dtype]}, and null for a part without arrays."""
  leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: x is None or _is_empty(x))
  return {
      jax.tree_util.keystr(path, simple=True, separator="/"):
          None if x is None or _is_empty(x) else [list(x.shape), str(np.dtype(x.dtype))]
      for path, x in leaves}


def _is_empty(node: Any) -> bool:
  return isinstance(node, (tuple, list, dict)) and not node


def _check_layout(
    path: epath.Path, saved: dict[str, dict[str, Any]], asked: dict[str, dict[str, Any]]) -> None:
  """Checks that a checkpoint holds the arrays that are asked for.

  Raises: CheckpointMismatch that names up to three that differ.
  """
  differing = []
  for name, wanted in asked.items():
    held = saved.get(name, {})
    for key in dict.fromkeys([*held, *wanted]):
      if held.get(key) != wanted.get(key) or (key in held) != (key in wanted):
        differing.append(f"{name}/{key} is {_shown(held, key)} there and {_shown(wanted, key)} here")
  if differing:
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise CheckpointMismatch(
        f"The checkpoint {path} is whole, and holds other arrays than this config makes:"
        f" {', '.join(differing[:3])}{more}. Nothing was moved.")


def _shown(layout: dict[str, Any], key: str) -> str:
  """Describes one array of a layout in words."""
  if layout.get(key) is None:
    return "empty" if key in layout else "absent"
  shape, dtype = layout[key]
  return f"{dtype}[{', '.join(map(str, shape))}]"


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
