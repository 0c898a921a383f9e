"""Keeps a run's folder: its config, versions, metrics, samples and checkpoints."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
from pathlib import Path
import platform
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

import rl_reason
from rl_reason.config import fields as config_lib
from rl_reason.config import json_text
from rl_reason.run.config import IDENTITY
from rl_reason.run.layout import check_layout
from rl_reason.runtime import sharding
from rl_reason.runtime.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A run's folder.

  It holds config.json, versions.json, metrics.jsonl, curves.png, samples/, arrays/<stage>/,
  profile/ and checkpoints/<stage>/; date.json where a chat template asks for the date.

  path: where the folder is.
  """
  path: Path

  def claim(self, config: ml_collections.ConfigDict, note: Callable[[str], None]) -> None:
    """Makes the folder this run's, or reports what changed in the config since the run was stopped.

    Args:
      config: the run's config.
      note: called with a line about changed fields.
    Raises: ValueError if the folder belongs to another run, or holds a run without its config.
    """
    resolved = json.loads(config.to_json_best_effort())
    saved, metrics = self.path / "config.json", self.path / "metrics.jsonl"
    # A run has begun with its first line of metrics: a config that failed before it claims nothing.
    begun = metrics.exists() and metrics.stat().st_size > 0

    # A run that began here: the same one continues, another one is refused.
    if saved.exists() and begun:
      check_layout(json.loads(saved.read_text()), f"Nothing was touched: the run in {self.path}")
      changed = config_lib.changes(json.loads(saved.read_text()), resolved)
      other = {
          k: v for k, v in changed.items()
          if k.split(".")[0] in IDENTITY or k.endswith(".kind")}
      if other:
        raise ValueError(
            f"The workdir {self.path} belongs to another run: {_list_changes(other)}. Nothing was"
            " touched. Choose another --workdir, or the config it was made with.")
      if changed:
        note(f"Resuming with a changed config: {_list_changes(changed)}.")
    # A run whose config.json is gone: nobody can say whether it is this one.
    elif begun or (self.path / "checkpoints").exists() and not saved.exists():
      raise ValueError(
          f"The workdir {self.path} holds a run without its config.json, so it cannot be continued"
          " safely. Choose another --workdir.")

    # What this run is, for the next call and for readers.
    if sharding.is_main_process():
      self.path.mkdir(parents=True, exist_ok=True)
      self.write("config.json", resolved)
      self.write("versions.json", versions())

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
    target = self.path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # A rename replaces the file in one step: a process that is killed leaves the old one whole.
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(target)

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
      target = self.path / "arrays" / stage / f"{group}.npz"
      target.parent.mkdir(parents=True, exist_ok=True)
      partial = target.with_name(f".{target.name}")
      with partial.open("wb") as file:
        np.savez(file, **members)
      partial.replace(target)

  def checkpoints(self, stage: str, *, keep: int, note: Callable[[str], None]) -> Checkpoints:
    """Opens a stage's checkpoints.

    Args:
      stage: name of the stage.
      keep: how many of the newest checkpoints stay.
      note: called with lines about checkpoints that cannot be read.
    """
    return Checkpoints(self.path / "checkpoints" / stage, keep=keep, note=note)


def _list_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
  """Lists changed fields in words, from {dotted field: (old, new)}."""
  return ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in changed.items())


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
