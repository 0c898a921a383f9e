"""Reads and writes what a run is: its config, and the changes of it with the step they begin at.

    config.json     the config with which the newest steps were trained, or will be
    history.json    {"overridden": [field, ...],
                     "changes": [{"stage": "rl", "step": 40, "time": "2026-01-31 12:00:00",
                                  "fields": {"rl.num_steps": {"was": 50, "is": 80}}}]}

The config before a change is config.json with the later changes undone.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import time
from typing import Any

from etils import epath
import ml_collections

from rl_reason.config import fields as config_lib
from rl_reason.config.recorded import plain
from rl_reason.reporting.metrics import FILE_NAME
from rl_reason.reporting.whole_files import write_whole
from rl_reason.run.layout import check_layout
from rl_reason.runtime.checkpoint import saved_steps

CONFIG, HISTORY = "config.json", "history.json"

# A run with other values of these fields is another run, and cannot continue in the same folder.
# Any other field may change, and the run continues with the change.
IDENTITY = ("seed", "policy", "task", "environment", "stages")

# {dotted field: (old value, new value)}.
Changes = Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Record:
  """What a run's folder says that the run is.

  config: the config, as JSON holds it.
  overridden: fields that were set on the command line, in any call. A later call without them goes
    on with the recorded values.
  changes: what changed since the first call, oldest first; see the file's docstring.
  """
  config: Mapping[str, Any]
  overridden: Sequence[str] = ()
  changes: Sequence[Mapping[str, Any]] = ()

  def write(self, folder: epath.Path) -> None:
    """Writes the record.

    The history comes first. If only that is written before a kill, its last change is not in
    config.json, and `read` drops it.
    """
    write_json(folder / HISTORY, {
        "overridden": list(self.overridden), "changes": list(self.changes)})
    write_json(folder / CONFIG, self.config)

  def changed(
      self, config: Mapping[str, Any], changes: Changes, stage: str, step: int,
      order: Sequence[str], overridden: Iterable[str] = (),
  ) -> "Record":
    """Returns the record of the run that goes on with another config.

    Args:
      config: the config from here on.
      changes: how it differs from this record's.
      stage: the stage that goes on.
      step: its step, that of the checkpoint from which it goes on.
      order: names of all stages.
      overridden: fields that this call's command line set.
    """
    # Changes that began later have no steps any more: those steps are made again from here on. So
    # they begin here, and what several changes do to one field is one change.
    here = (order.index(stage), step)
    later = [
        c for c in self.changes
        if c["stage"] in order and (order.index(c["stage"]), c["step"]) >= here]
    begun: dict[str, dict[str, Any]] = {}
    for fields in [
        *(c["fields"] for c in later), {k: {"was": a, "is": b} for k, (a, b) in changes.items()}]:
      for name, value in fields.items():
        begun[name] = {"was": begun.get(name, value)["was"], "is": value["is"]}
    begun = {k: v for k, v in begun.items() if v["was"] != v["is"]}
    entry = [{
        "stage": stage, "step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "fields": begun}]
    return Record(
        config, sorted({*self.overridden, *overridden}),
        [*(c for c in self.changes if c not in later), *(entry if begun else [])])


def read(folder: str | os.PathLike[str]) -> Record | None:
  """Reads a run's record; None if the folder has no config.json.

  Raises: ValueError that names the file, if it is no record or has the layout of before 0.2.0.
  """
  folder = epath.Path(folder)
  if not (folder / CONFIG).exists():
    return None
  config = _read_json(folder / CONFIG, "stages", "restore it from a copy, or choose another"
                      " --workdir")
  check_layout(config, f"Nothing was touched: the run in {folder}")
  if not (folder / HISTORY).exists():
    return Record(config)
  history = _read_json(folder / HISTORY, "changes", "restore it, or delete it to go on without the"
                       " record of earlier changes")
  if not _is_history(history):
    raise ValueError(
        f"{folder / HISTORY} is no history of a run, whose form record.py describes: restore it, or"
        " delete it to go on without the record of earlier changes. Nothing was touched.")
  # A last change that config.json does not have was never made (`Record.write`).
  changes = list(history["changes"])
  if changes and all(
      look_up(config, field) == value["was"] for field, value in changes[-1]["fields"].items()):
    changes.pop()
  return Record(config, history.get("overridden", []), changes)


def _is_history(content: Mapping[str, Any]) -> bool:
  """Tells whether the values of a history.json are of the kinds that `Record.write` writes."""
  def is_change(change: Any) -> bool:
    return (isinstance(change, dict) and isinstance(change.get("stage"), str)
            and isinstance(change.get("step"), int) and isinstance(change.get("fields"), dict)
            and all(isinstance(v, dict) and {"was", "is"} <= v.keys()
                    for v in change["fields"].values()))
  overridden, changes = content.get("overridden", []), content["changes"]
  return (isinstance(overridden, list) and all(isinstance(name, str) for name in overridden)
          and isinstance(changes, list) and all(map(is_change, changes)))


def look_up(config: Mapping[str, Any], field: str) -> Any:
  """Returns a field's value by its dotted name, None if it is absent. Names may hold dots."""
  if field in config:
    return config[field]
  for name, value in config.items():
    if isinstance(value, Mapping) and field.startswith(name + "."):
      return look_up(value, field.removeprefix(name + "."))
  return None


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[Changes, Changes]:
  """Compares a run's recorded config with one that is asked for, both as JSON holds them.

  Returns: (changes that make it another run, changes with which it may continue).
  """
  changes = config_lib.changes(recorded, asked)
  other = {
      k: v for k, v in changes.items() if k.split(".")[0] in IDENTITY or k.endswith(".kind")}
  return other, {k: v for k, v in changes.items() if k not in other}


def in_words(changes: Changes) -> str:
  """Lists changed fields in words."""
  return ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in changes.items())


def has_begun(folder: str | os.PathLike[str]) -> bool:
  """Tells whether a run has left anything in a folder that was trained or measured."""
  path = epath.Path(folder)
  metrics, checkpoints = path / FILE_NAME, path / "checkpoints"
  return (metrics.exists() and metrics.stat().length > 0) or (
      checkpoints.exists() and any(saved_steps(stage) for stage in checkpoints.iterdir()))


def set_values(section: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
  """Makes a section equal to recorded values, in place. Values that are equal stay as they are."""
  for name in [name for name in section if name not in values]:
    del section[name]
  for name, value in values.items():
    if isinstance(value, Mapping):
      if not isinstance(section.get(name), ml_collections.ConfigDict):
        with section.ignore_type():
          section[name] = ml_collections.ConfigDict()
      set_values(section[name], value)
    elif name not in section or value not in (
        plain({name: section[name]})[name], _as_before(section[name])):
      with section.ignore_type():
        section[name] = _with_tuples(value)


def _as_before(value: Any) -> Any:
  """Returns what records of before functions had dotted paths in them hold."""
  return json.loads(ml_collections.ConfigDict({"value": value}).to_json_best_effort())["value"]


def _with_tuples(value: Any) -> Any:
  """Returns a value of JSON with tuples for lists: absl sets no lists from the command line."""
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def write_json(path: epath.Path, content: Any) -> None:
  """Writes a JSON file, which is there whole or not at all."""
  write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _read_json(path: epath.Path, key: str, cure: str) -> dict[str, Any]:
  """Reads a JSON file of a run. Raises: ValueError that names it, if it is no object with `key`."""
  try:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or key not in content:
      raise ValueError(f"it holds no object with {key!r}")
  except (ValueError, RecursionError) as error:
    raise ValueError(
        f"{path} cannot be read as the record of a run ({error}): {cure}. Nothing was"
        " touched.") from error
  return content
