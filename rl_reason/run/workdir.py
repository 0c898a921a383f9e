"""Keeps a run's folder: its config, versions, metrics, samples and checkpoints.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
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
from rl_reason.run.config import IDENTITY
from rl_reason.run.layout import check_layout
from rl_reason.runtime import sharding
from rl_reason.runtime.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A run's folder: config.json, versions.json, metrics.jsonl, curves.png, samples/,
  arrays/<stage>/, profile/, checkpoints/<stage>/."""
  path: Path

  def claim(self, config: ml_collections.ConfigDict, note: Callable[[str], None]) -> None:
    """Makes the folder this run's, or says what changed since it was here last.

    Raises: ValueError if it belongs to another run, or holds one without a config.
    """
    resolved = json.loads(config.to_json_best_effort())
    saved, metrics = self.path / "config.json", self.path / "metrics.jsonl"
    begun = metrics.exists() and metrics.stat().st_size > 0  # A config that failed before its first line claims nothing.
    if saved.exists() and begun:
      check_layout(json.loads(saved.read_text()), f"Nothing was touched: the run in {self.path}")
      changed = config_lib.changes(json.loads(saved.read_text()), resolved)
      other = {k: v for k, v in changed.items() if k.split(".")[0] in IDENTITY or k.endswith(".kind")}
      if other:
        raise ValueError(
            f"The workdir {self.path} belongs to another run: {_list_changes(other)}. Nothing was touched. Choose another"
            " --workdir, or the config it was made with.")
      if changed:
        note(f"Resuming with a changed config: {_list_changes(changed)}.")
    elif begun or (self.path / "checkpoints").exists() and not saved.exists():
      raise ValueError(f"The workdir {self.path} holds a run without its config.json, so it cannot be continued safely."
                       " Choose another --workdir.")
    if sharding.is_main_process():
      self.path.mkdir(parents=True, exist_ok=True)
      self.write("config.json", resolved)
      self.write("versions.json", versions())

  def write(self, name: str, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    target = self.path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(target)

  def save_arrays(self, stage: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves what a stage found, {"group/name": array}: a file arrays/<stage>/<group>.npz each.

    A file is there whole or not at all.
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
    return Checkpoints(self.path / "checkpoints" / stage, keep=keep, note=note)


def _list_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
  return ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in changed.items())


def versions() -> dict[str, str]:
  """What the run ran on."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  # Of the code that runs: a copied tree has no installed distribution, or an older one's.
  found = {"rl_reason": rl_reason.__version__}
  for name in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return {
      "python": sys.version.split()[0], "platform": platform.platform(),
      "device": str(jax.devices()[0].device_kind), "devices": str(jax.device_count()), **found}
