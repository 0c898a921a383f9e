"""Keeps compiled programs on disk, compiles them before they are needed, and counts them.

A run also leaves notes beside its programs about what it needed, for the next run like it.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import platform
import threading
from typing import Any

import jax
import numpy as np

# JAX's event for a program that was compiled, or read from disk.
_COMPILED = "/jax/core/compile/backend_compile_duration"
# Reading a program takes some hundredths of a second, so programs that compile faster than this are
# not worth a file.
MIN_SECONDS = 0.5


def keep_programs(note: Callable[[str], None]) -> None:
  """Lets JAX keep compiled programs in the user's cache, unless the user has chosen otherwise.

  A folder set before (JAX_COMPILATION_CACHE_DIR, jax.config) stays as it is, with its thresholds.
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. If the folder cannot be written, one note
  reports it and the run goes on.

  Args:
    note: receives messages for the user.
  """
  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  folder = programs_folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError("no permission to write there")
  except OSError as error:
    note(f"Compiled programs are not kept for the next run: {folder}: {error}. Set RL_REASON_CACHE"
         " or JAX_COMPILATION_CACHE_DIR to a folder that can be written.")
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def programs_folder() -> Path:
  """Returns $RL_REASON_CACHE/compiled/<processor>, or the same folder of ~/.cache/rl_reason.

  Each processor has its own folder, because home folders are shared between machines: a program
  made for another processor may round differently or stop the process. JAX's own keys hold its
  version, the flags, and the accelerator.
  """
  cache = Path(os.environ.get("RL_REASON_CACHE") or Path.home() / ".cache" / "rl_reason")
  return cache / "compiled" / processor_name()


@functools.cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
  """Names the processor: architecture, and a digest of its model and instruction sets."""
  try:
    first = cpuinfo.read_text(errors="replace").strip().split("\n\n")[0]
  except OSError:  # Not Linux.
    first = f"model name: {platform.processor()}"
  named = ("vendor_id", "cpu family", "model", "model name", "flags", "Features",
           "CPU implementer", "CPU part")
  lines = sorted(line for line in first.splitlines() if line.split(":")[0].strip() in named)
  return f"{platform.machine()}-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"


class Program:
  """Holds a jitted function that a thread can compile for given shapes before its first call.

  A call waits for the compilation that was begun for its shapes, and finds the program compiled.
  For other shapes the call compiles, as usual. An error in the thread is not raised there: the call
  meets the error again, or does without the compilation.
  """

  def __init__(
      self, function: Callable[..., Any],
      within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
    """Makes the program; compiles nothing yet.

    Args:
      function: a function from jax.jit.
      within: context in which a compilation runs, e.g. Partitioning.use. It is needed because each
        thread has its own current mesh.
    """
    self._function, self._within = function, within
    self._begun: dict[Any, futures.Future] = {}
    self._thread = futures.ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="compilation")

  @property
  def begun(self) -> bool:
    """Tells whether any compilation was begun."""
    return bool(self._begun)

  def begin(self, *args, **kwargs) -> None:
    """Begins to compile for these arguments, unless that was begun before.

    Arrays may be jax.ShapeDtypeStruct with shardings.
    """
    key = _shapes(args, kwargs)
    if key not in self._begun:
      self._begun[key] = self._thread.submit(self._compile, args, kwargs)

  def __call__(self, *args, **kwargs) -> Any:
    """Calls the function, after the compilation that was begun for these shapes, if any."""
    if self._begun and (begun := self._begun.get(_shapes(args, kwargs))):
      # This waits, and raises nothing: an error is met again by the call below.
      begun.exception()
    return self._function(*args, **kwargs)

  def _compile(self, args, kwargs) -> jax.stages.Compiled:
    with self._within():
      return self._function.lower(*args, **kwargs).compile()

  def close(self) -> None:
    """Waits for the compilation that runs; cancels those that have not started."""
    self._thread.shutdown(cancel_futures=True)


def _shapes(args, kwargs) -> Any:
  """Returns what decides the program of a call: structure, shapes, dtypes, shardings, constants."""
  leaves, structure = jax.tree.flatten((args, kwargs))
  arrays = jax.Array, np.ndarray, jax.ShapeDtypeStruct
  return structure, tuple(
      (x.shape, x.dtype, getattr(x, "sharding", None)) if isinstance(x, arrays) else x
      for x in leaves)


@dataclasses.dataclass
class Compilations:
  """Counts the programs that this process has compiled so far.

  Every program counts, also small ones and those read from disk.

  programs: number of programs.
  seconds: time in XLA, or spent on reading; tracing is not counted. Threads that compile at the
    same time count in full.
  """
  programs: int = 0
  seconds: float = 0.0


@functools.cache  # Listeners stay for the life of the process: one is enough.
def compilations() -> Compilations:
  """Returns the count of this process. It starts at the first call, and goes on counting."""
  count, lock = Compilations(), threading.Lock()

  def add(seconds: float) -> None:
    with lock:
      count.programs += 1
      count.seconds += seconds
  _after_each(add)
  return count


@functools.cache  # One listener for each function, since listeners stay.
def after_each(call: Callable[[], None], min_seconds: float) -> None:
  """Calls `call` after each program that took at least `min_seconds`, for the life of the process.

  `call` runs in the thread that compiled.
  """
  _after_each(lambda seconds: call() if seconds >= min_seconds else None)


def _after_each(call: Callable[[float], None]) -> None:
  """Calls `call` with the seconds that each program took, for the life of the process."""
  def hear(event: str, seconds: float, **_) -> None:
    if event == _COMPILED:
      call(seconds)
  jax.monitoring.register_event_duration_secs_listener(hear)


class Note:
  """Holds a small value that a run leaves to the next run like it, beside its compiled programs.

  The value may be lost without harm.
  """

  def __init__(self, title: str, *like: Any):
    """Finds the place of the note.

    Args:
      title: what is noted.
      like: what the runs have in common, compared by its repr.
    """
    folder = jax.config.jax_compilation_cache_dir
    # Notes are kept only on a local disk and for a single process: all processes of one run must
    # read the same.
    kept = (folder and jax.config.jax_enable_compilation_cache and "://" not in folder
            and jax.process_count() == 1)
    digest = hashlib.sha256(repr((title, jax.default_backend(), like)).encode()).hexdigest()[:16]
    self._file = Path(folder) / "notes" / f"{digest}.json" if kept else None

  def read(self) -> Any:
    """Returns the note as plain JSON data; None if nothing was noted."""
    try:
      return json.loads(self._file.read_text()) if self._file else None
    except (OSError, ValueError):
      return None

  def write(self, value: Any) -> None:
    """Notes a value that JSON can hold."""
    if self._file is None:
      return
    # If the folder cannot be written, keep_programs has reported it.
    with contextlib.suppress(OSError):
      self._file.parent.mkdir(parents=True, exist_ok=True)
      new = self._file.with_suffix(f".{os.getpid()}")
      new.write_text(json.dumps(value))
      new.replace(self._file)  # In one step, since another run may read at this moment.
