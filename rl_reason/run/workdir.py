"""Keeps a run's folder: its config, versions, metrics, samples and checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import datetime
import importlib.metadata
import io
import platform
import sys
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

import rl_reason
from rl_reason.config import fields as config_lib
from rl_reason.config import json_text
from rl_reason.reporting.whole_files import write_whole
from rl_reason.run import record
from rl_reason.run.config import as_json, up_to_date
from rl_reason.run.owner import Ownership
from rl_reason.runtime import sharding
from rl_reason.runtime.checkpoint import CheckpointMismatch, Checkpoints, read_params


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A run's folder, on a disk or in an object store.

  It holds config.json and history.json (run.record), versions.json, metrics.jsonl, curves.png,
  samples/, arrays/<stage>/, profile/ and checkpoints/<stage>/; date.json where a chat template asks
  for the date; and owner.json while it is trained.

  path: where the folder is.
  """
  path: epath.Path

  def __post_init__(self):
    object.__setattr__(self, "path", epath.Path(self.path))

  def claim(
      self, config: ml_collections.ConfigDict, note: Callable[[str], None],
      overridden: Sequence[str] = (),
  ) -> "Claim":
    """Makes a new folder this run's, or finds what changed since the run was stopped.

    A folder in which a run has begun is left as it is: changes are recorded with the first step
    that is trained with them (`Claim.begin`).

    Args:
      config: the run's config.
      note: called with a line about changed fields.
      overridden: fields that the command line set.
    Raises: ValueError if the folder belongs to another run, or holds a run whose config.json is
      missing or damaged.
    """
    # A record that cannot be read is an error, also where nothing was trained with it yet.
    resolved, found, begun = as_json(config), record.read(self.path), record.has_begun(self.path)
    if not begun:
      # Nothing was trained here yet, as after a first call that failed.
      if sharding.is_main_process():
        record.Record(resolved, sorted(overridden)).write(self.path)
        self.write("versions.json", versions())
      return Claim(self, record.Record(resolved, sorted(overridden)), resolved, {}, overridden)

    # A run that began here: the same one continues, another one is refused.
    if found is None:
      raise ValueError(
          f"The workdir {self.path} holds a run without its config.json, so it cannot be continued"
          " safely. Choose another --workdir.")
    other, changed = record.differences(up_to_date(found), resolved)
    if other:
      raise ValueError(
          f"The workdir {self.path} belongs to another run: {record.in_words(other)}. Nothing was"
          " touched. Choose another --workdir, or the config it was made with.")
    if changed:
      note(f"Resuming with a changed config: {record.in_words(changed)}.")
    return Claim(self, found, resolved, changed, overridden)

  @contextlib.contextmanager
  def owned(self, note: Callable[[str], None]) -> Iterator[Ownership | None]:
    """Makes this run the folder's only owner within the context (run.owner).

    Args:
      note: called with a line about an owner that is gone.
    Yields: the ownership, on the main process; None on others, whose folder it is too.
    Raises: ValueError on all processes, if another run owns the folder.
    """
    with contextlib.ExitStack() as exits:
      owner, error = None, ""
      if sharding.is_main_process():
        try:
          owner = exits.enter_context(Ownership(self.path, note))
        except (ValueError, OSError) as refused:
          error = str(refused)
      # The other processes would wait for the main one in their first common step.
      if error := next(filter(None, sharding.gather_objects(error)), ""):
        raise ValueError(error)
      yield owner

  @contextlib.contextmanager
  def explaining(self, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Adds to the error of a checkpoint that does not fit what the recorded config says."""
    try:
      yield
    except CheckpointMismatch as error:
      found, asked = record.read(self.path), as_json(config)
      changes = config_lib.changes(up_to_date(found), asked) if found else {}
      raise Claim(self, found, asked, changes).explain("", error) from error

  def date(self, *, record: bool = False) -> datetime.date:
    """Returns the day that chat templates of this run are told, which ask for the date.

    It is the day on which one first asked, as date.json says: a run that continues on another day
    reads the prompts that it began with.

    Args:
      record: writes date.json where it is not there, after all processes agreed on the day.
        Otherwise the day is then today.
    Raises: ValueError if date.json holds no date.
    """
    file, day = self.path / "date.json", datetime.date.today()
    if file.is_file():
      saved = json_text.read_object(file).get("date")
      try:
        day = datetime.date.fromisoformat(saved)
      except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} holds the date {saved!r}, which is none: write the day on which the run began,"
            ' as {"date": "2026-01-31"}.') from error
    if record:
      day = datetime.date.fromisoformat(sharding.gather_objects(day.isoformat())[0])
      if sharding.is_main_process():
        self.write(file.name, {"date": day.isoformat()})
    return day

  def write(self, name: str, content: Any) -> None:
    """Writes a JSON file, which is there whole or not at all.

    Args:
      name: path of the file, relative to the folder.
      content: what JSON can hold.
    """
    record.write_json(self.path / name, content)

  def save_arrays(self, stage: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves a stage's arrays, each group in a file arrays/<stage>/<group>.npz.

    A file is there whole or not at all.

    Args:
      stage: name of the stage.
      arrays: {"group/name": array}.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
      group, _, name = key.rpartition("/")
      groups.setdefault(group, {})[name] = array
    for group, members in groups.items():
      content = io.BytesIO()
      np.savez(content, **members)
      write_whole(self.path / "arrays" / stage / f"{group}.npz", content.getvalue())

  def checkpoints(self, stage: str, *, keep: int, note: Callable[[str], None]) -> Checkpoints:
    """Opens a stage's checkpoints for the training that owns the folder, and cleans them up.

    Args:
      stage: name of the stage.
      keep: how many of the newest checkpoints stay.
      note: called with lines about checkpoints that cannot be read.
    """
    return Checkpoints(self.path / "checkpoints" / stage, keep=keep, note=note)

  def read_params(
      self, stage: str, shapes: Any, *, note: Callable[[str], None] = print) -> tuple[int, Any]:
    """Reads what a stage left in its newest checkpoint (runtime.checkpoint.read_params).

    It only reads, so it may be called beside a training in the same folder.
    """
    return read_params(self.path / "checkpoints" / stage, shapes, note=note)


@dataclasses.dataclass
class Claim:
  """What one call of `train` has to say about its folder's record.

  folder: the run's folder.
  recorded: the record that the call found, or made.
  config: the config of this call, as JSON holds it.
  changes: how it differs from the recorded one.
  overridden: fields that this call's command line set.
  begun: whether a step was trained in this call, so that the changes are recorded.
  """
  folder: Workdir
  recorded: record.Record
  config: Mapping[str, Any]
  changes: record.Changes
  overridden: Sequence[str] = ()
  begun: bool = False

  def of_stage(self, stage: str) -> record.Changes:
    """Returns the changes in a stage's own section."""
    return {k: v for k, v in self.changes.items() if k.startswith(stage + ".")}

  def begin(self, stage: str, step: int) -> None:
    """Records the changes as of the step from which a stage goes on. A second call does nothing."""
    if self.begun:
      return
    self.begun = True
    unknown = set(self.overridden) - set(self.recorded.overridden)
    if sharding.is_main_process() and (self.changes or unknown):
      self.recorded.changed(
          self.config, self.changes, stage, step, list(self.config["stages"]), self.overridden,
      ).write(self.folder.path)
    if sharding.is_main_process():
      self.folder.write("versions.json", versions())

  def refuse_in_complete(self, stage: str, step: int) -> None:
    """Refuses changes of a stage's section where no step is left to train with them.

    Raises: ValueError that names the fields.
    """
    # A lower num_steps that is just reached ends the stage here, which is something to do.
    changed = {k: v for k, v in self.of_stage(stage).items() if k != f"{stage}.num_steps"}
    if changed:
      raise ValueError(
          f"Stage {stage!r} is complete at step {step} in {self.folder.path}, so no step would be"
          f" trained with the changed config: {record.in_words(changed)}. Nothing was touched. Set"
          " it back, or choose another --workdir.")

  def explain(self, stage: str, error: CheckpointMismatch) -> CheckpointMismatch:
    """Returns the error of a checkpoint that does not fit, with the fields that may be the cause."""
    found = self.of_stage(stage) or self.changes
    cause = (
        f"The config changed: {record.in_words(found)}. Set it back, or choose another --workdir"
        if found else
        "The config is the same, so the code, a package or the policy's files changed: use those"
        f" that versions.json in {self.folder.path} names, or choose another --workdir")
    return CheckpointMismatch(f"{error} {cause}.")


def versions() -> dict[str, str]:
  """Returns what the run ran on.

  These are versions of Python and packages, the platform, and kind and number of the devices.
  """
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  # The version of the code that runs, not the installed distribution's: a copied tree has no
  # distribution, or an older one is installed beside it.
  found = {"rl_reason": rl_reason.__version__}
  for name in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return {
      "python": sys.version.split()[0], "platform": platform.platform(),
      "device": str(jax.devices()[0].device_kind), "devices": str(jax.device_count()), **found}
