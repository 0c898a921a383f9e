"""Runs checks that may hang, eat memory or crash in worker processes.

An item has a deadline, and only its worker dies.

    pool = shared_pool("rl_reason.sandbox.math_answers:check_math", timeout_seconds=5.0)
    results = pool.map(items, on_failure=None)      # In the order of the items.

A worker is a plain Python subprocess that imports one function and answers one item at a time over
pipes. It is neither forked (a fork of a process with JAX's threads can deadlock) nor started by
`multiprocessing` (its "spawn" runs the user's script again). Messages are JSON, never pickle: a
worker that runs model-written code must not be able to run code in the trainer.

It works on Linux and macOS only: it needs process groups, `poll` on pipes and resource limits
(macOS does not enforce the memory limit).
"""

import atexit
import collections
from collections.abc import Sequence
import dataclasses
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

GIB = 1024**3
# A longer reply is the worker's failure, and must not become the trainer's memory.
MAX_REPLY_BYTES = 64 * 1024**2
# A pool gives up after so many starts in a row, for each worker, that none survived.
_MAX_STARTS = 3
# An item that was late is at fault if it computed for this share of its time. Otherwise its worker
# was stopped. The share is small because other processes may take most of the processor.
_BUSY = 0.1
_HEADER = struct.Struct(">Q")
_AS_FAILURE: Any = object()
_BOOT = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
         " from rl_reason.sandbox import pool; pool._serve()")


class WorkerPool:
  """Runs a function of one JSON-able argument in worker processes, with a kill timeout.

  function_path: "package.module:function". It is imported in the worker only and returns something
    JSON-able. It catches what is a property of the item (malformed text); any other exception is
    its own bug, and `map` raises it.
  num_workers: processes, or None for one per usable core, at most 8.
  timeout_seconds: wall-clock time for one item, from the moment a worker that is ready gets it.
  memory_bytes: address space of one worker, or None for no limit.
  start_timeout_seconds: wall-clock time for a worker to start and import the function.
  on_stopped: the result of an item of which nothing is known, since its worker was killed or
    stopped from outside in both tries; default: that of a failure.

  `failures` counts the items that got no result, by reason: "timeout", "crash", "memory",
  "recursion"; `retried` counts those that got a second try. Workers start at the first `map`, all
  at once, and live until `close()` or the end of this process; a later `map` starts new ones.
  """

  def __init__(
      self, function_path: str, *, num_workers: int | None = None, timeout_seconds: float = 5.0,
      memory_bytes: int | None = 2 * GIB, start_timeout_seconds: float = 120.0,
      on_stopped: Any = _AS_FAILURE):
    if os.name != "posix":
      raise NotImplementedError(
          f"WorkerPool needs Linux or macOS, this is {os.name!r}: use WSL on Windows.")
    module, _, name = function_path.partition(":")
    if not module or not name:
      raise ValueError(f'function_path must be "package.module:function", got {function_path!r}.')
    if num_workers is None:
      # Usable cores: a container or a job may have fewer than the machine.
      cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
               else os.cpu_count() or 1)
      num_workers = min(8, cores)
    for label, value in (("num_workers", num_workers),
                         ("timeout_seconds", timeout_seconds),
                         ("start_timeout_seconds", start_timeout_seconds)):
      if not 0 < value < float("inf"):
        raise ValueError(f"{label} must be a positive number, got {value!r}.")
    if memory_bytes is not None and memory_bytes < GIB // 4:
      raise ValueError(
          f"memory_bytes must be at least {GIB // 4} (an idle Python with NumPy takes most of"
          f" that), got {memory_bytes}.")
    self.function_path = function_path
    self.num_workers = num_workers
    self.timeout_seconds = timeout_seconds
    self.memory_bytes = memory_bytes
    self.start_timeout_seconds = start_timeout_seconds
    self.on_stopped = on_stopped
    self.failures: collections.Counter[str] = collections.Counter()
    self.retried = 0
    self._lost_starts = 0  # Since a worker was last ready.
    self._workers: list[_Worker] = []
    self._lock = threading.Lock()
    self._owner = os.getpid()
    atexit.register(self.close)

  def map(self, items: Sequence[Any], on_failure: Any = None) -> list[Any]:
    """Applies the function to items; the results are in the order of `items`.

    An item whose worker died, or was late without having computed, gets a second try in another
    worker: something else than the item may have killed or stopped the first.

    Args:
      items: JSON-able arguments of the function.
      on_failure: the result of an item that took its time, its memory or its worker. One of which
        nothing is known gets the pool's `on_stopped`.

    Raises: RuntimeError if workers cannot start or the function raises; TypeError if an item is not
      JSON-able.
    """
    work = _Work([on_failure] * len(items), collections.deque(range(len(items))))
    pending = work.pending
    with self._lock:
      # In a forked copy of this process the workers are the parent's.
      if os.getpid() != self._owner:
        self._workers, self._owner = [], os.getpid()
      self._workers = [w for w in self._workers if w.alive() or w.kill()]
      try:
        while pending or any(w.index is not None for w in self._workers):
          # As many workers as there is work for.
          busy = sum(w.index is not None for w in self._workers)
          while len(self._workers) < min(self.num_workers, busy + len(pending)):
            self._workers.append(_Worker(self))
          # An item for each worker that waits.
          for worker in self._workers:
            if pending and worker.ready and worker.index is None:
              index = pending.popleft()
              worker.send(index, items[index], time.monotonic() + self.timeout_seconds)
          self._wait(work)
      # Also KeyboardInterrupt: a late answer must not be taken for one of the next call's.
      except BaseException:
        self._workers = [w for w in self._workers if w.idle() or w.kill()]
        raise
    return work.results

  def _wait(self, work: "_Work") -> None:
    """Sleeps until a worker can read, has written or is late, and deals with it."""
    # What to wait for: answers, and room in the pipes of items that are not sent completely.
    poll, by_fd = select.poll(), {}
    for worker in self._workers:
      if worker.ready and worker.index is None:
        continue
      poll.register(worker.from_child, select.POLLIN)
      by_fd[worker.from_child] = worker
      if worker.outgoing:
        poll.register(worker.to_child, select.POLLOUT)
        by_fd[worker.to_child] = worker
    # Sleep until something happens, or until the first deadline.
    now = time.monotonic()
    first_deadline = min((w.deadline for w in by_fd.values()), default=now)
    events = poll.poll(max(0.0, first_deadline - now) * 1000 + 1)
    for fd, _ in events:
      worker = by_fd[fd]
      if worker not in self._workers:
        continue  # Its other pipe has just shown that it is dead.
      if fd == worker.to_child:
        worker.write()
      elif worker.read():
        self._take_reply(worker, work)
      elif worker.closed:
        self._lose(worker, "crash", work)
    # Late workers.
    now = time.monotonic()
    for worker in [w for w in self._workers if not w.idle() and now >= w.deadline]:
      self._lose(worker, "timeout", work)

  def _take_reply(self, worker: "_Worker", work: "_Work") -> None:
    """Reads one whole message: {"ready"}, {"result"}, {"failure"} or {"error"}."""
    try:
      reply = json.loads(worker.take())
      kind, value = next(iter(reply.items()))
    except (ValueError, AttributeError, StopIteration):
      return self._lose(worker, "crash", work)  # Something else wrote into the pipe.
    if kind == "ready":
      worker.ready, worker.cpu_seconds = True, float(value)
      self._lost_starts = 0
    elif kind == "result" and worker.ready and worker.index is not None:
      work.results[worker.index], worker.cpu_seconds = value
      worker.index = None
    elif kind == "failure":
      # Out of memory: what is left of this process is not to be trusted.
      self._lose(worker, str(value), work)
    elif kind == "error":
      self._remove(worker)
      if worker.index is None:
        raise RuntimeError(
            f"A worker could not import {self.function_path!r}: install what is missing or correct"
            f" the path. The worker said:\n{value}")
      raise RuntimeError(
          f"{self.function_path} raised on item {worker.index}. A function that runs in workers"
          " catches what is wrong with the item and returns a result for it; anything else is a bug"
          f" in it. The worker said:\n{value}")
    else:
      self._lose(worker, "crash", work)

  def _remove(self, worker: "_Worker") -> float:
    """Kills a worker. Returns: the seconds that it has computed since it got its item."""
    self._workers.remove(worker)
    before = worker.cpu_seconds
    worker.kill()
    return worker.cpu_seconds - before

  def _lose(self, worker: "_Worker", reason: str, work: "_Work") -> None:
    """Kills a worker; its item gets a second try, or has failed. `map` starts other workers.

    Raises: RuntimeError if this was one of many workers that could not start.
    """
    computed = self._remove(worker)
    if not worker.ready:
      self._lost_starts += 1
      if self._lost_starts < _MAX_STARTS * self.num_workers:
        return  # Another may start: something killed this one, or the machine was busy.
      count, self._lost_starts = self._lost_starts, 0
      how = (f"did not start in {self.start_timeout_seconds} s" if reason == "timeout" else
             f"died while starting (exit status {worker.process.returncode})")
      raise RuntimeError(
          f"A worker for {self.function_path!r} {how}, and so did all of {count} in a row: see the"
          " message on stderr, if any; the machine may be overloaded (fewer num_workers) or out of"
          " memory.")
    # Whether something else than the item may be the cause.
    stopped = (worker.killed if reason == "crash" else
               reason == "timeout" and computed < _BUSY * self.timeout_seconds)
    if (stopped or reason == "crash") and worker.index not in work.retried:
      work.retried.add(worker.index)
      work.pending.appendleft(worker.index)
      self.retried += 1
      return
    if stopped and self.on_stopped is not _AS_FAILURE:
      work.results[worker.index] = self.on_stopped
    self.failures[reason] += 1

  def close(self) -> None:
    """Kills the workers. Safe to call twice; a later `map` starts new ones."""
    with self._lock:
      workers, self._workers = self._workers, []
      if os.getpid() == self._owner:
        for worker in workers:
          worker.kill()


@dataclasses.dataclass
class _Work:
  """Holds what one call of `map` has done and has to do.

  results: of each item.
  pending: indices of the items that no worker has.
  retried: indices of the items that had a second try.
  """
  results: list[Any]
  pending: collections.deque[int]
  retried: set[int] = dataclasses.field(default_factory=set)


class _Worker:
  """Talks to one subprocess from the parent, and knows the item that it works on."""

  def __init__(self, pool: WorkerPool):
    # The same import path as here, however the package was installed. Its own root too, as chdir
    # may leave '' behind.
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["rl_reason"].__file__)))
    settings = dict(
        function=pool.function_path, parent=os.getpid(), timeout=pool.timeout_seconds,
        memory=pool.memory_bytes)
    env = {**os.environ,
           # A thread pool per worker eats address space and cores.
           "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
           # Sympy walks over sets: the same answer must take the same path in every worker.
           "PYTHONHASHSEED": "0",
           "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # Never the trainer's accelerator.
    self.process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps([*sys.path, root]), json.dumps(settings)],
        bufsize=0,
        # Its own session: Ctrl-C reaches the parent only, and killing the group takes the worker's
        # own children along.
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True)
    self.to_child, self.from_child = self.process.stdin.fileno(), self.process.stdout.fileno()
    os.set_blocking(self.to_child, False)
    os.set_blocking(self.from_child, False)
    self.outgoing = memoryview(b"")
    self.incoming = bytearray()
    self.index: int | None = None
    self.deadline = time.monotonic() + pool.start_timeout_seconds
    self.ready = False
    self.closed = False
    self.ended = False  # It closed its pipe, as a process does that dies.
    self.cpu_seconds = 0.0  # That it has computed up to its last reply.

  @property
  def killed(self) -> bool:
    """Says of a worker that died whether a signal from outside ended it.

    SIGKILL comes from an operator, or from the kernel when the machine is out of memory.
    """
    return self.ended and -self.process.returncode in (signal.SIGKILL, signal.SIGTERM)

  def idle(self) -> bool:
    return self.ready and self.index is None

  def alive(self) -> bool:
    """Says whether a worker between two calls still waits.

    It has nothing to write then, so that any event is its end.
    """
    if not self.idle():
      return True
    poll = select.poll()
    poll.register(self.from_child, select.POLLIN)
    return not poll.poll(0)

  def send(self, index: int, item: Any, deadline: float) -> None:
    try:
      message = json.dumps(item).encode()  # ASCII with escapes: lone surrogates survive.
    except TypeError as error:
      raise TypeError(
          f"Item {index} of the work is not JSON-able ({error}): send text, numbers, lists and"
          " dicts.") from error
    self.index, self.deadline = index, deadline
    self.outgoing = memoryview(_HEADER.pack(len(message)) + message)
    self.write()

  def write(self) -> None:
    try:
      self.outgoing = self.outgoing[os.write(self.to_child, self.outgoing):]
    except BlockingIOError:
      pass  # The pipe is full; `_wait` comes back when the worker has read some.
    except BrokenPipeError:
      self.outgoing = memoryview(b"")  # Dead: reading will show it.

  def read(self) -> bool:
    """Takes what is there. Returns: whether a whole message is.

    It sets `closed` at the end of the stream or on nonsense.
    """
    try:
      data = os.read(self.from_child, 1 << 16)
    except BlockingIOError:
      return False
    self.closed = self.ended = not data
    self.incoming += data
    if len(self.incoming) < _HEADER.size:
      return False
    size, = _HEADER.unpack_from(self.incoming)
    self.closed |= size > MAX_REPLY_BYTES
    return size <= MAX_REPLY_BYTES and len(self.incoming) >= _HEADER.size + size

  def take(self) -> bytes:
    size, = _HEADER.unpack_from(self.incoming)
    message = bytes(self.incoming[_HEADER.size:_HEADER.size + size])
    del self.incoming[:_HEADER.size + size]
    return message

  def kill(self) -> None:
    """Kills the process and its children.

    The process is not reaped before this, so that the group's id cannot belong to another.
    """
    try:
      os.killpg(self.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS refuses to signal a group of zombies.
      pass
    if self.process.returncode is None:
      # In place of Popen.wait, which does not say how long the process computed.
      _, status, used = os.wait4(self.process.pid, 0)
      self.process.returncode = os.waitstatus_to_exitcode(status)
      self.cpu_seconds = used.ru_utime + used.ru_stime
    self.process.stdin.close()
    self.process.stdout.close()


_shared: dict[tuple, WorkerPool] = {}


def shared_pool(function_path: str, **settings: Any) -> WorkerPool:
  """Returns the pool for this function and these settings, made at the first call.

  It is shared because a function has nowhere to keep a pool of its own.
  """
  key = (function_path, *sorted(settings.items()))
  if key not in _shared:
    _shared[key] = WorkerPool(function_path, **settings)
  return _shared[key]


def close_shared_pools() -> None:
  """Ends all workers of shared pools. They come back at the next use."""
  for pool in list(_shared.values()):
    pool.close()


def failure_counts() -> dict[str, int]:
  """Counts items that got no answer since the process began, over all shared pools.

  Returns: by reason, e.g. {"timeout": 2, "memory": 1}.
  """
  return dict(sum((pool.failures for pool in list(_shared.values())), collections.Counter()))


def _limit_memory(limit: int) -> None:
  """Limits the memory of this process, in bytes, as far as the system lets it."""
  import resource

  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
  try:
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  except (ValueError, OSError):
    pass  # macOS: below what is mapped already.


def _serve() -> None:
  """Runs a worker's whole life: import the function, say ready, answer items until stdin ends."""
  import importlib
  import resource
  import traceback

  # Long on purpose: it is a worker's whole life, and the order of its steps keeps it safe.
  settings = json.loads(sys.argv[2])
  # The protocol gets private descriptors, so that nothing the function prints, reads or starts can
  # disturb it.
  requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 0)
  os.dup2(2, 1)
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def reply(**message):
    data = json.dumps(message).encode()
    replies.write(_HEADER.pack(len(data)) + data)
    replies.flush()

  def watch_parent():
    # Stdin's end comes too late for a worker that is busy, or if a fork of the parent holds the
    # pipe.
    while os.getppid() == settings["parent"]:
      time.sleep(1.0)
    os._exit(1)

  # Import the function.
  threading.Thread(target=watch_parent, daemon=True).start()
  try:
    module, _, name = settings["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    prepare = getattr(function, "prepare_worker", None)
    if prepare is not None:
      prepare()
  except BaseException:
    reply(error=traceback.format_exc())
    return
  if settings["memory"] is not None:
    _limit_memory(settings["memory"])
  # Start-up is over: from here on only hostile items would print.
  os.dup2(null, 1)
  os.dup2(null, 2)
  reply(ready=time.process_time())

  # Answer items.
  _, hard_cpu = resource.getrlimit(resource.RLIMIT_CPU)
  while header := requests.read(_HEADER.size):
    size, = _HEADER.unpack(header)
    item = json.loads(requests.read(size))
    # A C call can hold the interpreter for hours: if the parent is gone by then, the kernel ends
    # the worker.
    cpu_seconds = int(time.process_time() + settings["timeout"]) + 5
    if hard_cpu == resource.RLIM_INFINITY or cpu_seconds < hard_cpu:
      resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, hard_cpu))
    try:
      reply(result=(function(item), time.process_time()))
    except MemoryError:
      reply(failure="memory")
    except RecursionError:
      reply(failure="recursion")
    except BaseException:
      reply(error=traceback.format_exc()[-4000:])
  os._exit(0)
