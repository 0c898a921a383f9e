"""Reads and writes what a run of a claim leaves in its folder."""

from collections.abc import Iterator, Mapping
import dataclasses
from pathlib import Path
import shutil
from typing import Any, Literal

from rl_reason.claims.plan import Run
from rl_reason.config import json_text
from rl_reason.reporting import exits
from rl_reason.run import record as run_record
from rl_reason.run.workdir import Workdir

# What a worker leaves in its run's folder.
FINISHED, FAILED, SECONDS, BEGAN = "finished.json", "failed.json", "seconds.json", "began.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  status: "finished"; "failed", and the next command tries it again; "stopped", by a signal or
    before it began.
  error: why it failed, else "".
  seconds: the time that all its processes took.
  """
  status: Literal["finished", "failed", "stopped"]
  error: str = ""
  seconds: float = 0.0


def outcome(run: Run) -> Outcome:
  """Reads how a run ended. No worker may be running it."""
  spent = seconds(run.folder)
  if (run.folder / FINISHED).exists():
    return Outcome("finished", seconds=spent)
  if not (run.folder / FAILED).exists():
    return Outcome("stopped", seconds=spent)
  failed = json_text.read_object(run.folder / FAILED)
  return Outcome("failed", str(failed.get("error", "no reason is recorded")), spent)


def seconds(folder: Path) -> float:
  """Sums the seconds of all processes that worked in a run's folder."""
  found = read_json(folder / SECONDS) or []
  try:
    return float(sum(found))
  except (TypeError, OverflowError) as error:
    raise ValueError(
        f"{folder / SECONDS} holds no list of seconds ({error}): delete it to count from"
        " zero.") from error


def take_over(begins: Path, record: Workdir, config: Mapping[str, Any]) -> None:
  """Copies what a finished run of the first stages left into a run's folder.

  The run then continues as if it had trained these stages itself. A run that has metrics of its own
  is left as it is, and goes on from there.

  Args:
    begins: folder of the finished run.
    record: folder of the run that takes over.
    config: the config of the run that takes over, as JSON holds it.
  """
  metrics_file = record.path / "metrics.jsonl"
  if metrics_file.exists() and metrics_file.stat().length:
    return
  # Without metrics there is nothing of its own here: what there is comes from a copy that was cut
  # short, and is copied again. The metrics come last, and whole, so that they mark a complete copy.
  for name in ("checkpoints", "samples", "arrays"):
    shutil.rmtree(record.path / name, ignore_errors=True)
    if (begins / name).is_dir():
      shutil.copytree(begins / name, record.path / name)
  record.write(run_record.CONFIG, config)
  record.write(BEGAN, {"folder": str(begins.absolute())})
  shutil.copyfile(begins / "metrics.jsonl", partial := metrics_file.with_suffix(".partial"))
  partial.replace(metrics_file)


def lineage(folder: Path) -> Iterator[Path]:
  """Lists a run's folder, and the folders that its stages were taken from."""
  folder = folder.absolute()
  while True:
    yield folder
    began = read_json(folder / BEGAN)
    if began is None:
      return
    folder = Path(began["folder"])


def read_json(path: Path) -> Any:
  """Reads a JSON file; None if there is none. Raises: ValueError naming a file that is no JSON."""
  if not path.exists():
    return None
  try:
    return json_text.parse(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} cannot be read ({error}): restore or delete it.") from error


# The exit statuses of a worker whose run a signal stopped; what the run did is saved.
STOPPED = (exits.INTERRUPTED, exits.TERMINATED)
