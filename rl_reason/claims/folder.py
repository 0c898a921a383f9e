"""Reads and writes what a run of a claim leaves in its folder.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any, Literal

from rl_reason.claims.plan import Run
from rl_reason.run.workdir import Workdir

# What a worker leaves in its run's folder.
FINISHED, FAILED, SECONDS, BEGAN = "finished.json", "failed.json", "seconds.json", "began.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended: finished; failed: `error` says why, it is tried again by the next command; stopped: by a signal."""
  status: Literal["finished", "failed", "stopped"]
  error: str = ""
  seconds: float = 0.0


def outcome(run: Run) -> Outcome:
  """Of a run that no worker is at."""
  spent = seconds(run.folder)
  if (run.folder / FINISHED).exists():
    return Outcome("finished", seconds=spent)
  failed = read_json(run.folder / FAILED)
  return Outcome("failed", failed["error"], spent) if failed else Outcome("stopped", seconds=spent)


def seconds(folder: Path) -> float:
  """Of all processes that worked in a run's folder."""
  return sum(read_json(folder / SECONDS) or [])


def take_over(begins: Path, record: Workdir, config: Mapping[str, Any]) -> None:
  """Puts what a finished run of the first stages left into a run's folder, as if this one had trained them.

  A run that has begun by itself goes on so. Its metrics come last and at once: without them there is nothing of its own.
  """
  metrics_file = record.path / "metrics.jsonl"
  if metrics_file.exists() and metrics_file.stat().st_size:
    return
  for name in ("checkpoints", "samples", "arrays"):
    shutil.rmtree(record.path / name, ignore_errors=True)
    if (begins / name).is_dir():
      shutil.copytree(begins / name, record.path / name)
  record.write("config.json", config)
  record.write(BEGAN, {"folder": str(begins.absolute())})
  shutil.copyfile(begins / "metrics.jsonl", partial := metrics_file.with_suffix(".partial"))
  partial.replace(metrics_file)


def lineage(folder: Path) -> Iterator[Path]:
  """A run's folder, and those that its stages were taken from."""
  folder = folder.absolute()
  while True:
    yield folder
    began = read_json(folder / BEGAN)
    if began is None:
      return
    folder = Path(began["folder"])


def read_json(path: Path) -> Any:
  """What a JSON file holds, None if there is none."""
  return json.loads(path.read_text()) if path.exists() else None


STOPPED = 3  # Exit status: a signal stopped the run; what it did is saved.
