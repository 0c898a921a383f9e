"""Compiled programs: kept on disk between runs, with notes of what was needed; begun before they are needed; counted."""

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

_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event: a program compiled, or read from disk.
MIN_SECONDS = 0.5  # Reading a program takes some hundredths of a second: quicker ones are not worth a file.


def keep_programs(note: Callable[[str], None]) -> None:
  """Lets JAX keep compiled programs in the user's cache, unless the user has said where, or that it shall not.

  A folder set before (JAX_COMPILATION_CACHE_DIR, jax.config) stays as it is, with its thresholds;
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. What cannot be written is told in one note and does no harm.
  """
  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  folder = programs_folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError("no permission to write there")
  except OSError as error:
    note(f"Compiled programs are not kept for the next run: {folder}: {error}. Set RL_REASON_CACHE or"
         " JAX_COMPILATION_CACHE_DIR to a folder that can be written.")
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def programs_folder() -> Path:
  """$RL_REASON_CACHE/compiled/<processor>, or that of ~/.cache/rl_reason.

  By processor, for home folders are shared: a program made for another one may round differently or stop the process.
  JAX's own keys hold its version, the flags, and the accelerator.
  """
  cache = Path(os.environ.get("RL_REASON_CACHE") or Path.home() / ".cache" / "rl_reason")
  return cache / "compiled" / processor_name()


@functools.cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
  """The host's architecture and a digest of its processor's model and instruction sets."""
  try:
    first = cpuinfo.read_text(errors="replace").strip().split("\n\n")[0]
  except OSError:  # Not Linux.
    first = f"model name: {platform.processor()}"
  named = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part")
  lines = sorted(line for line in first.splitlines() if line.split(":")[0].strip() in named)
  return f"{platform.machine()}-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"


class Program:
  """A jitted function that can be compiled for given shapes in a thread, before there is anything to call it with.

  A call waits for what was begun for its shapes and finds it compiled; for others it compiles, as ever. An error of the
  thread is not raised there: the call meets it again, or does without.
  """

  def __init__(
      self, function: Callable[..., Any], within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
    """Args:
      function: from jax.jit.
      within: what a compilation is surrounded by, e.g. Partitioning.use: the mesh in use is a thread's own.
    """
    self._function, self._within = function, within
    self._begun: dict[Any, futures.Future] = {}
    self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="compilation")

  @property
  def begun(self) -> bool:
    """Whether anything was."""
    return bool(self._begun)

  def begin(self, *args, **kwargs) -> None:
    """Compiles for these arguments, unless that was begun before. Arrays may be jax.ShapeDtypeStruct with shardings."""
    key = _shapes(args, kwargs)
    if key not in self._begun:
      self._begun[key] = self._thread.submit(self._compile, args, kwargs)

  def __call__(self, *args, **kwargs) -> Any:
    if self._begun and (begun := self._begun.get(_shapes(args, kwargs))):
      begun.exception()
    return self._function(*args, **kwargs)

  def _compile(self, args, kwargs) -> jax.stages.Compiled:
    with self._within():
      return self._function.lower(*args, **kwargs).compile()

  def close(self) -> None:
    """Waits for what is being compiled; what is not yet will not be."""
    self._thread.shutdown(cancel_futures=True)


def _shapes(args, kwargs) -> Any:
  leaves, structure = jax.tree.flatten((args, kwargs))
  arrays = jax.Array, np.ndarray, jax.ShapeDtypeStruct
  return structure, tuple(
      (x.shape, x.dtype, getattr(x, "sharding", None)) if isinstance(x, arrays) else x for x in leaves)


@dataclasses.dataclass
class Compilations:
  """What this process has had compiled so far: every program, small ones too, also those read from disk.

  programs: how many. seconds: in XLA, or reading; tracing is not counted. Threads that compile at once count in full.
  """
  programs: int = 0
  seconds: float = 0.0


@functools.cache  # Listeners stay for the life of the process: one is enough.
def compilations() -> Compilations:
  """The process's count, from the first call on; it goes on counting."""
  count, lock = Compilations(), threading.Lock()

  def add(seconds: float) -> None:
    with lock:
      count.programs += 1
      count.seconds += seconds
  _after_each(add)
  return count


@functools.cache  # Once for each function.
def after_each(call: Callable[[], None], min_seconds: float) -> None:
  """Calls it, in the thread that compiled, after each program that took so long, for the life of the process."""
  _after_each(lambda seconds: call() if seconds >= min_seconds else None)


def _after_each(call: Callable[[float], None]) -> None:
  """Calls it with the seconds that each program took, for the life of the process: listeners stay."""
  def hear(event: str, seconds: float, **_) -> None:
    if event == _COMPILED:
      call(seconds)
  jax.monitoring.register_event_duration_secs_listener(hear)


class Note:
  """A small value that a run leaves, beside its compiled programs, to the next one like it; it may be lost without harm."""

  def __init__(self, title: str, *like: Any):
    """Args:
      title: what is noted. like: what the runs have in common, by its repr.
    """
    folder = jax.config.jax_compilation_cache_dir
    # On a local disk only, and alone: processes of one run must not be told different things.
    kept = folder and jax.config.jax_enable_compilation_cache and "://" not in folder and jax.process_count() == 1
    digest = hashlib.sha256(repr((title, jax.default_backend(), like)).encode()).hexdigest()[:16]
    self._file = Path(folder) / "notes" / f"{digest}.json" if kept else None

  def read(self) -> Any:
    """As plain JSON data; None: nothing was noted."""
    try:
      return json.loads(self._file.read_text()) if self._file else None
    except (OSError, ValueError):
      return None

  def write(self, value: Any) -> None:
    if self._file is None:
      return
    with contextlib.suppress(OSError):  # A folder that cannot be written: keep_programs has told.
      self._file.parent.mkdir(parents=True, exist_ok=True)
      new = self._file.with_suffix(f".{os.getpid()}")
      new.write_text(json.dumps(value))
      new.replace(self._file)  # At once: another run may read.
