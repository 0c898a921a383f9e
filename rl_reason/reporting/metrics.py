"""Writes the metrics of a run: `metrics.jsonl`, and TensorBoard and Weights & Biases when asked.

The file holds one JSON object per line:

    {"stage": "rl", "step": 12, "reward/mean": 0.53125, "kl": 0.0123, "time/step_seconds": 4.81}

The JSONL file is the record; TensorBoard is a view that is rebuilt from it. A run that was killed
and resumed leaves the same file as one that was not, if its caller follows two rules:

- Every line of a step is written before that step's checkpoint is saved.
- `rewind` is called with the restored checkpoint's stage and step before training goes on.

A folder in an object store (gs://) holds the file too. Objects cannot be appended to: the whole file
is written anew, at most every 30 seconds, and at `flush`, which comes before each checkpoint.

Keys beginning with "time/" hold wall-clock measurements and differ from run to run. Every other key
is deterministic.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib
import json
import math
import os
from pathlib import Path
import time
from types import ModuleType
from typing import Any, Self
import uuid

from etils import epath
import numpy as np

from rl_reason.reporting.whole_files import is_url, write_whole

FILE_NAME = "metrics.jsonl"

# JSON has no words for these floats, so they are written as strings. No metric is a string, so
# reading them back is unambiguous.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricWriter:
  """Appends metrics to `workdir/metrics.jsonl`.

  A line is in the file when `write` returns, and in an object store when `flush` does: SIGKILL loses
  at most one line of a file. The writer is used by one process, as a context manager or with `close`:

      with MetricWriter(workdir, enabled=jax.process_index() == 0) as writer:
        # After restoring the checkpoint of step 20:
        writer.rewind(["sft", "rl"], stage="rl", step=20)
        writer.write("rl", 21, {"reward/mean": 0.5})
  """

  def __init__(
      self, workdir: str | os.PathLike[str], *, tensorboard: bool = False,
      wandb: Mapping[str, Any] | None = None, enabled: bool = True,
  ):
    """Opens the file for appending, and starts the trackers that were asked for.

    A half-written last line of the file is dropped.

    Args:
      workdir: the run's folder, on a disk or in an object store; created if absent.
      tensorboard: also write scalars "stage/key" to `workdir/tensorboard`.
      wandb: arguments of `wandb.init`, e.g. {"project": "reasoning", "mode": "offline"}; None for
        no W&B. The id of the run is kept in `workdir/wandb_id.txt`, so that a resumed run continues
        its W&B run.
      enabled: false on all processes but one; every method then does nothing.

    Raises:
      ModuleNotFoundError: tensorboardX or wandb was asked for and is not installed.
    """
    self._file = self._tensorboard = self._wandb = None
    self._enabled = enabled
    if not enabled:
      return
    # Packages are imported before the folder is made: an error leaves nothing behind.
    tensorboard_module, wandb_module = import_trackers(
        tensorboard=tensorboard, wandb=wandb is not None)
    # A plain Path, where the folder is on a disk, tells users more than epath's does.
    self._workdir = epath.Path(workdir) if is_url(workdir) else Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self.path = self._workdir / FILE_NAME
    self._file = _Stored(self.path) if is_url(self.path) else _OnDisk(self.path)
    self._replace(_complete_lines(self.path))
    if tensorboard_module:
      self._new_tensorboard = lambda: tensorboard_module.SummaryWriter(
          logdir=str(self._workdir / "tensorboard"))
      self._tensorboard = self._new_tensorboard()
    if wandb_module:
      self._wandb, self._wandb_stages = _start_wandb(wandb_module, self._workdir, wandb), set()

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Appends one line. A step may have several lines, e.g. one of training and one of evaluation.

    Args:
      stage: name of the stage, one of those that `rewind` is given.
      step: updates completed in this stage, from 0 (before the first).
      values: metric name -> number: Python, NumPy or JAX scalars. Floats are written so that they
        read back exactly. NaN and infinities become the strings "NaN", "Infinity" and "-Infinity",
        which `read_metrics` turns into floats again.

    Raises:
      ValueError: a value is not a scalar number, or its name is "stage" or "step".
      OSError: the line could not be written, e.g. because the disk is full; the file then still
        ends with the line before.
    """
    if not self._enabled:
      return
    if self._file is None:
      raise ValueError(
          f"write(stage={stage!r}, step={step}) after close(): {self.path} is no longer open. Close"
          " the writer last.")
    numbers = {key: _number(key, value) for key, value in values.items()}
    record = {"stage": str(stage), "step": int(step),
              **{key: _to_json(value) for key, value in numbers.items()}}
    # The file comes first, since it is the record.
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with _named(self.path, f"the metrics of stage {stage!r}, step {step}"):
      self._file.append(line)
    if self._tensorboard:
      self._write_tensorboard(stage, step, numbers)
    if self._wandb:
      self._write_wandb(stage, step, numbers)
    self._num_lines += 1

  def rewind(
      self, stage_order: Sequence[str], stage: str, step: int, *, lines: int | None = None,
  ) -> None:
    """Drops every line after (stage, step), so that the file will be that of an uninterrupted run.

    The file is replaced in one step: a kill during the call leaves the old file or the new one.
    TensorBoard's files are written anew.

    Args:
      stage_order: the names of all stages of the run, in the order they run.
      stage: the stage that is resumed.
      step: the last step to keep, that of the restored checkpoint; -1 keeps nothing of the stage.
      lines: how many lines of that step to keep, the first ones; None: all.

    Raises: ValueError if a name repeats, or if `stage` or a stage in the file is not in
      `stage_order`.
    """
    if not self._enabled:
      return
    # 1. Check the names of the stages.
    order = {name: index for index, name in enumerate(stage_order)}
    if len(order) != len(stage_order):
      raise ValueError(
          f"stage names must differ, got {list(stage_order)}: lines of two stages of one name"
          " cannot be told apart. Rename one.")
    if stage not in order:
      raise ValueError(
          f"cannot rewind to stage {stage!r}: the run's stages are {list(stage_order)}. Resume with"
          " the config that wrote the checkpoint.")
    # 2. Keep the lines up to (stage, step).
    kept, of_step = [], 0
    for number, line in enumerate(_complete_lines(self.path), start=1):
      record = _parse(line, self.path, number)
      if record["stage"] not in order:
        raise ValueError(
            f"{self.path}:{number}: stage {record['stage']!r} is not among this run's stages"
            f" {list(stage_order)}: the file was written with another config. Resume with that"
            " config, or take a new workdir.")
      at, last = (order[record["stage"]], record["step"]), (order[stage], step)
      of_step += at == last
      if at < last or at == last and (lines is None or of_step <= lines):
        kept.append(line)
    self._replace(kept)
    # 3. Rebuild TensorBoard's view from the file.
    if self._tensorboard:
      self._tensorboard.close()
      for events in (self._workdir / "tensorboard").glob("events.out.tfevents.*"):
        events.unlink()
      self._tensorboard = self._new_tensorboard()
      for record in read_metrics(self.path):
        self._write_tensorboard(record.pop("stage"), record.pop("step"), record)

  def flush(self) -> None:
    """Makes all lines outlive this process. Raises: OSError if they could not be written."""
    if self._file is not None:
      with _named(self.path, "the latest metrics"):
        self._file.flush()

  def close(self) -> None:
    """Closes the file and the trackers; a second call does nothing."""
    for tracker, finish in (
        (self._tensorboard, "close"), (self._wandb, "finish"), (self._file, "close")):
      if tracker is not None:
        getattr(tracker, finish)()
    self._file = self._tensorboard = self._wandb = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _replace(self, lines: Sequence[bytes]) -> None:
    """Makes `lines` the file's content, if it is not already."""
    self._file.replace(b"".join(lines))
    self._num_lines = len(lines)

  def _write_tensorboard(
      self, stage: str, step: int, numbers: Mapping[str, int | float]) -> None:
    for key, value in numbers.items():
      self._tensorboard.add_scalar(f"{stage}/{key}", value, int(step))
    self._tensorboard.flush()

  def _write_wandb(self, stage: str, step: int, numbers: Mapping[str, int | float]) -> None:
    # W&B takes only growing steps, but each stage starts from 0: so lines are counted instead.
    # Lines that a resumed W&B run already holds are skipped: they are equal to its own, except for
    # times.
    if self._num_lines < self._wandb.starting_step:
      return
    if stage not in self._wandb_stages:  # Sets the x axis of this stage's charts.
      self._wandb_stages.add(stage)
      self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    values = {f"{stage}/{key}": value for key, value in numbers.items()}
    self._wandb.log({f"{stage}/step": int(step), **values}, step=self._num_lines, commit=True)


class _OnDisk:
  """A file of lines on a disk, which is appended to without a buffer."""

  def __init__(self, path: epath.Path):
    self._path, self._file = path, None

  def replace(self, content: bytes) -> None:
    """Makes `content` the file's content, if it is not already, and opens it at its end."""
    self.close()
    if self._path.exists() and self._path.read_bytes() != content:
      write_whole(self._path, content)
    self._file = open(self._path, "ab", buffering=0)

  def append(self, line: bytes) -> None:
    """Appends a line; if it cannot be written whole, the file is cut back to what it was."""
    size = os.fstat(self._file.fileno()).st_size
    try:
      while line:  # A nearly full disk takes a part of the line and fails on the rest.
        line = line[self._file.write(line):]
    except OSError:
      with contextlib.suppress(OSError):
        # If this fails too, the half line stays; readers and the next writer drop it.
        os.ftruncate(self._file.fileno(), size)
      raise

  def flush(self) -> None:
    """Does nothing: nothing is buffered."""

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    self._file = None


class _Stored:
  """A file of lines in an object store, which is written whole each time."""

  SECONDS = 30.0  # Between two times.

  def __init__(self, path: epath.Path):
    self._path, self._content, self._written, self._at = path, b"", True, time.monotonic()

  def replace(self, content: bytes) -> None:
    self._content, self._written = content, self._path.exists() and (
        self._path.read_bytes() == content)
    self.flush()

  def append(self, line: bytes) -> None:
    self._content, self._written = self._content + line, False
    if time.monotonic() - self._at > self.SECONDS:
      self.flush()

  def flush(self) -> None:
    if not self._written:
      write_whole(self._path, self._content)
      self._written, self._at = True, time.monotonic()

  def close(self) -> None:
    self.flush()


@contextlib.contextmanager
def _named(path: epath.Path, what: str) -> Iterator[None]:
  """Says in an error of writing what is lost, and what to do."""
  try:
    yield
  except OSError as error:
    raise OSError(
        error.errno,
        f"could not write {what} to {path}: {error.strerror or error}. Lost are this step's metrics"
        " and the training since the last checkpoint, nothing before it. Free some space (or raise"
        " the quota), then start the same command again: it resumes from the checkpoint."
    ) from error


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the lines of a metrics file, in order.

  A line is {"stage": str, "step": int, metric name: int or float, ...}. A half-written last line
  (the run was killed, or is writing now) is skipped. NaN and infinities are floats again.

  Args:
    path: a metrics.jsonl, or the run's folder that holds one.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another line is not a JSON object with "stage" and "step"; the message names file
      and line.
  """
  path = epath.Path(path)
  if path.is_dir():
    path = path / FILE_NAME
  if not path.exists():
    raise FileNotFoundError(
        f"no metrics at {path}: give the folder of a run that has started, or its {FILE_NAME}.")
  return [_parse(line, path, number) for number, line in enumerate(_complete_lines(path), start=1)]


def _complete_lines(path: epath.Path) -> list[bytes]:
  """Reads the lines of a file, each with its newline, without a half-written last line.

  Returns: the lines; [] if there is no file.
  """
  if not path.exists():
    return []
  *lines, last = path.read_bytes().split(b"\n")
  lines = [line + b"\n" for line in lines]
  # A part of a JSON object is never an object itself. So a last line that can be parsed only lacks
  # its newline (a hand-edited file).
  try:
    return lines + [last + b"\n"] if isinstance(json.loads(last), dict) else lines
  except ValueError:
    return lines


def _parse(line: bytes, path: epath.Path, number: int) -> dict[str, Any]:
  """Parses one line. Raises: ValueError, with file and line, if it is not a line of metrics."""
  try:
    record = json.loads(line)
    if not (isinstance(record, dict) and isinstance(record.get("stage"), str)
            and isinstance(record.get("step"), int)):
      raise ValueError('expected an object with "stage" and "step"')
  except ValueError as error:
    raise ValueError(
        f"{path}:{number}: not a line of metrics ({error}): {line[:80]!r}. Only a last line can be"
        " half-written, so something else changed the file. Restore or delete this"
        " line.") from error
  return {key: value if key in ("stage", "step") else _from_json(value)
          for key, value in record.items()}


def _to_json(value: int | float) -> int | float | str:
  """Returns what stands for a number in JSON."""
  if math.isfinite(value):
    return value
  return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
  """Returns the number that a JSON value stands for."""
  return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _number(key: str, value: Any) -> int | float:
  """Returns a Python number of the same value. Raises: ValueError, which names the metric."""
  if not isinstance(key, str) or key in ("stage", "step"):
    raise ValueError(
        f'a metric cannot be named {key!r}: names are strings, and "stage" and "step" say where a'
        ' line belongs. Rename it.')
  array = np.asarray(value)
  # The kinds of NumPy that are not real numbers: texts, bytes, objects, complex numbers, dates.
  if array.shape != () or array.dtype.kind in "USOcMm":
    raise ValueError(
        f"metric {key!r} must be one real number, got {value!r} of shape {array.shape} and type"
        f" {array.dtype}. Reduce it, e.g. to its mean, before writing.")
  return int(array) if array.dtype.kind in "iub" else float(array)


def import_trackers(
    *, tensorboard: bool, wandb: bool) -> tuple[ModuleType | None, ModuleType | None]:
  """Imports the packages of the trackers that are asked for, None for the others.

  A run does so before its devices work: a package that is not there is no reason to wait.

  Raises: ModuleNotFoundError, which says how to install a package that is not there.
  """
  return (_import_extra("tensorboardX", "tensorboard") if tensorboard else None,
          _import_extra("wandb", "wandb") if wandb else None)


def _import_extra(package: str, extra: str) -> ModuleType:
  """Imports a package of an extra. Raises: ModuleNotFoundError, which says how to install it."""
  try:
    return importlib.import_module(package)
  except ModuleNotFoundError as error:
    if error.name != package:
      raise  # The package is installed, but lacks a package itself: the message names that one.
    raise ModuleNotFoundError(
        f"this run logs to {extra}, which needs the package {package}, and it is not installed."
        f" Run `pip install 'rl_reason[{extra}]'` (in a checkout: `pip install -e '.[{extra}]'`),"
        f" or leave {extra} off; {FILE_NAME} is written either way.",
        name=package) from error


def _start_wandb(module: ModuleType, workdir: epath.Path, arguments: Mapping[str, Any]) -> Any:
  """Starts a W&B run, or continues the one whose id the folder holds."""
  id_path = workdir / "wandb_id.txt"
  run_id = arguments.get("id") or (
      id_path.read_text().strip() if id_path.exists() else uuid.uuid4().hex[:8])
  # W&B keeps its own files on a disk.
  local = {} if is_url(workdir) else {"dir": str(workdir)}
  run = module.init(**{**local, "resume": "allow", **arguments, "id": run_id})
  id_path.write_text(run_id + "\n")
  return run
