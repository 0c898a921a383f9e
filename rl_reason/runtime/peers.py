"""Joins the processes of one job, and says in plain words when another one is gone.

By itself JAX ends a process whose peer died with a stack trace of C++, after a minute or two, or
leaves it waiting in its step. Here each process writes a sign of life into the store that JAX's
coordinator keeps, and watches those of the others. The coordinator lives in process 0: without it
JAX ends the other processes at once, which a sentinel, a small process beside each, explains.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn, Self

import jax
from jax._src import distributed

_KEYS = "rl_reason/alive/"
_ENDED = "ended"

# It reads what its process writes, until that process is gone, whatever the way.
_SENTINEL = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
if not sys.stdin.buffer.read().endswith(b"bye"):
  print(sys.argv[1], file=sys.stderr, flush=True)
"""


class Peers:
  """Watches the other processes of a job; this process ends if one of them is gone.

  beat_seconds: time between signs of life.
  silent_seconds: how long a process may be silent. Python code that lets no other thread run, as a
    regular expression that backtracks, makes a process silent too.
  suspect_seconds: how long it may be silent once a step failed because a process does not answer.
  """

  def __init__(
      self, client: Any, own: int, count: int, *, beat_seconds: float = 2.0,
      silent_seconds: float = 60.0, suspect_seconds: float = 10.0,
  ):
    self._client, self._own, self._count = client, own, count
    self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
    self._suspect_seconds = suspect_seconds
    self._suspicious, self._ended = threading.Event(), threading.Event()
    self._leaving = threading.Lock()
    # Number of a process -> (its last sign of life, when it came by this process's clock).
    self._seen: dict[int, tuple[str, float]] = {}
    self._sentinel: subprocess.Popen | None = None

  def start(self) -> Self:
    """Starts to give and to watch signs of life, and the sentinel."""
    self._sentinel = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _SENTINEL,
         f"Error: process {self._own} of {self._count} was ended, by JAX if its messages above say"
         " so. They name the process that is gone; where the coordination service does not answer,"
         f" it is process 0, where that lives. {_RESUMES}"],
        stdin=subprocess.PIPE, start_new_session=True)
    threading.Thread(target=self._live, daemon=True, name="peers").start()
    return self

  def end(self, word: str = "") -> None:
    """Tells the others that this process ends by itself.

    Args:
      word: why, if the others cannot go on without it; "": its work is finished.
    """
    self._ended.set()
    with contextlib.suppress(Exception):
      self._client.key_value_set(f"{_KEYS}{self._own}", _ENDED + word, allow_overwrite=True)
    if self._sentinel is not None:
      with contextlib.suppress(OSError):
        self._sentinel.stdin.write(b"bye")
        self._sentinel.stdin.close()
      self._sentinel.wait()

  def leave(self, message: str) -> NoReturn:
    """Ends this process at once, with a line and status 1.

    At an ordinary end JAX waits for all processes, and these wait for this one in their step.
    """
    self._leaving.acquire()  # The first message counts: another thread waits here for the end.
    self.end(f": {message}"[:300])
    with contextlib.suppress(OSError):
      print(message, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
      sys.stdout.flush()
    os._exit(1)

  def leave_after(self, error: BaseException) -> NoReturn:
    """Ends this process after an error that another one's end caused, and says which one's."""
    self._suspicious.set()
    # The thread of `_live` finds the one that is silent, and ends the process.
    self._ended.wait(self._suspect_seconds + 10 * self._beat_seconds)
    self.leave(f"Error: another process of this job does not answer ({str(error)[:200]})."
               f" {_RESUMES}")

  def look(self, found: dict[int, str], now: float) -> str:
    """Looks at all signs of life.

    Args:
      found: number of a process -> its sign of life.
      now: the time, in seconds of this process's clock.
    Returns: why this process cannot go on; "" if it can.
    """
    limit = self._suspect_seconds if self._suspicious.is_set() else self._silent_seconds
    for number in range(self._count):
      if number == self._own:
        continue
      # All joined at one time, so one that gave no sign at all is silent since the first look.
      sign = found.get(number, "")
      if number not in self._seen or self._seen[number][0] != sign:
        self._seen[number] = sign, now
      who = f"Error: process {number} of {self._count}"
      rest = f"Process {self._own} cannot go on without it, and ends. {_RESUMES}"
      if sign.startswith(_ENDED):
        # Its own work may be finished a little earlier than that of others.
        if why := sign.removeprefix(_ENDED + ": ").removeprefix(_ENDED):
          return f"{who} ended ({why}). {rest}"
      elif (silent := now - self._seen[number][1]) > limit:
        return (f"{who} is gone: it has given no sign of life for {silent:.0f} s. It was killed, or"
                f" cut off by its machine or the network; its own log says which. {rest}")
    return ""

  def _live(self) -> None:
    """Gives this process's signs of life, and watches the others'."""
    beat = 0
    while not self._ended.wait(self._beat_seconds):
      beat += 1
      # Without the coordinator JAX ends this process.
      with contextlib.suppress(Exception):
        self._client.key_value_set(f"{_KEYS}{self._own}", str(beat), allow_overwrite=True)
        found = {int(key.rpartition("/")[2]): sign
                 for key, sign in self._client.key_value_dir_get(_KEYS)}
        if message := self.look(found, time.monotonic()):
          self.leave(message)


_RESUMES = ("What was saved is whole: start the same command on all machines again, and the run"
            " resumes from its newest checkpoint.")
# Of this process; None: it is alone.
_peers: Peers | None = None


def join(*arguments: Any) -> None:
  """Joins the processes of a job (jax.distributed.initialize), and watches them.

  Args:
    arguments: of jax.distributed.initialize; none where JAX finds them by itself.
  """
  global _peers
  jax.distributed.initialize(*arguments)
  state = distributed.global_state
  if state.num_processes > 1:
    _peers = Peers(state.client, state.process_id, state.num_processes).start()


def watched() -> Peers | None:
  """Returns what watches the other processes of this job; None if this process is alone."""
  return _peers


def caused(error: BaseException) -> bool:
  """Tells whether an error says that another process no longer answers."""
  return _peers is not None and re.search(
      r"Gloo|NCCL|Connection (closed|reset)|coordination service|unhealthy|heartbeat|Socket closed",
      str(error)) is not None
