"""Gives a run's folder one owner at a time: the process that trains in it.

The owner writes owner.json, which says who it is, and rewrites it every few seconds as a sign of
life. Another process that finds the file

- is refused, if the owner lives: on this machine, or anywhere if its sign of life changes;
- takes the folder over, if the owner is dead: a process of this machine that is gone (also one that
  was killed with -9, or before a reboot), or one elsewhere that gives no sign of life.

Signs of life are compared with each other and never with a clock, which may differ between
machines. The file's folder may be on a disk, on a network share or in an object store.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any, Self
import uuid

from etils import epath

from rl_reason.reporting.whole_files import is_url, write_whole

OWNER = "owner.json"


@dataclasses.dataclass(frozen=True)
class Process:
  """Identifies a process, on this machine or another.

  host: name of the machine.
  boot: identifies the machine's last start and the container; "" where that is not known.
  pid: number of the process there.
  started: when the process started, in the system's own unit: a pid is used again; "": not known.
  """
  host: str
  boot: str
  pid: int
  started: str

  @classmethod
  def this(cls) -> Self:
    """Returns the process that calls."""
    return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or "")

  def is_here(self) -> bool:
    """Tells whether the process is, or was, one of this machine and container."""
    return self.host == socket.gethostname() and _container(self.boot) == _container(_boot())

  def is_alive(self) -> bool:
    """Tells whether a process of this machine still runs."""
    if self.boot != _boot():
      return False  # The machine has started anew since.
    started = _started(self.pid)
    if started is None:
      return False
    return not (self.started and started) or started == self.started


def _read(path: str) -> str:
  with contextlib.suppress(OSError):
    return Path(path).read_text().strip()
  return ""


def _boot() -> str:
  """Identifies the machine's last start, then the container: pids mean something only within."""
  with contextlib.suppress(OSError):
    return f"{_read('/proc/sys/kernel/random/boot_id')} {os.readlink('/proc/self/ns/pid')}"
  return ""


def _container(boot: str) -> str:
  return boot.partition(" ")[2]


def _started(pid: int) -> str | None:
  """Returns when a process started, in ticks since the boot; None if it does not run."""
  try:
    # After the name, which may hold anything, come the state and, as the 20th, the start.
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # A zombie has ended, and waits for its parent.
  except (OSError, IndexError):
    pass
  if Path("/proc/self/stat").exists():
    return None
  # A system without /proc, as macOS: only whether the process exists is known.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return ""


class Ownership:
  """Owns a folder while it is entered; a second owner is refused.

      with Ownership(workdir, note):
        ...

  beat_seconds: time between signs of life.
  watch_seconds: how long another machine's owner is watched for a sign of life.
  lost: whether another process has taken the folder over, as someone deleted owner.json.
  """

  def __init__(
      self, folder: str | os.PathLike[str], note: Callable[[str], None] = print, *,
      beat_seconds: float = 10.0, watch_seconds: float = 60.0,
  ):
    self._folder, self._note = epath.Path(folder), note
    self._beat_seconds, self._watch_seconds = beat_seconds, watch_seconds
    self._file, self._token = self._folder / OWNER, uuid.uuid4().hex
    self._since, self._beats = time.strftime("%Y-%m-%d %H:%M:%S"), 0
    self._ended, self.lost = threading.Event(), False
    self._thread = threading.Thread(target=self._live, daemon=True, name="owner")

  def check(self) -> None:
    """Raises: ValueError if the folder has another owner by now."""
    if self.lost:
      raise self._refusal(self._found() or {})

  def __enter__(self) -> Self:
    """Takes the folder. Raises: ValueError if it has an owner that lives."""
    self._folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(self._folder):
      found = self._found()
      if found is not None:
        self._check_is_dead(found)
        # While the owner was watched, another process may have been faster.
        if (now := self._found()) is not None and now.get("token") != found.get("token"):
          raise self._refusal(now)
        self._note(f"The owner of {self._folder} is gone ({_who(found)}): taking it over.")
      self._beat()
    # Where the file system knows no locks, two processes may have written: the last one counts.
    if is_url(self._folder):
      time.sleep(1.0)
    self.lost = not self._is_mine()
    self.check()
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    """Gives the folder back."""
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_mine():
        self._file.unlink()

  def _live(self) -> None:
    while not self._ended.wait(self._beat_seconds):
      # A full disk or a network that is away for a moment is no reason to stop.
      with contextlib.suppress(OSError):
        self.lost = not self._is_mine()
        if self.lost:
          return
        self._beat()

  def _is_mine(self) -> bool:
    return (self._found() or {}).get("token") == self._token

  def _beat(self) -> None:
    """Writes who owns the folder, with a new sign of life."""
    self._beats += 1
    write_whole(self._file, json.dumps({
        **dataclasses.asdict(Process.this()), "since": self._since, "token": self._token,
        "beat": self._beats}).encode())

  def _found(self) -> dict[str, Any] | None:
    """Reads who owns the folder; None: nobody. An owner that cannot be read is {}."""
    try:
      found = json.loads(self._file.read_bytes())
    except FileNotFoundError:
      return None
    except ValueError:
      return {}
    return found if isinstance(found, dict) else {}

  def _check_is_dead(self, found: dict[str, Any]) -> None:
    """Checks that an owner no longer lives. Raises: ValueError if it does."""
    try:
      owner = Process(*(found[f.name] for f in dataclasses.fields(Process)))
    except KeyError:
      return  # Nothing that an owner wrote.
    if owner.is_here():
      if owner.is_alive():
        raise self._refusal(found)
      return
    # Elsewhere: only its signs of life can tell.
    self._note(f"The folder {self._folder} has an owner on another machine ({_who(found)}):"
               f" watching for its sign of life for {self._watch_seconds:.0f} s.")
    end = time.monotonic() + self._watch_seconds
    while time.monotonic() < end:
      time.sleep(min(1.0, self._watch_seconds / 10))
      now = self._found()
      if now is None:
        return
      if now != found:
        raise self._refusal(now)

  def _refusal(self, found: dict[str, Any]) -> ValueError:
    return ValueError(
        f"Another process trains in {self._folder}: {_who(found)}. Two would write over each"
        " other. Nothing was touched. Stop that one first, or choose another --workdir; if it is"
        f" certain that it no longer runs, delete {self._file}.")


def _who(found: dict[str, Any]) -> str:
  """Describes an owner in words."""
  return (f"process {found.get('pid', '?')} on {found.get('host', '?')}, since"
          f" {found.get('since', '?')}")


@contextlib.contextmanager
def _one_at_a_time(folder: epath.Path) -> Iterator[None]:
  """Lets one process at a time look at a folder's owner, where the file system has locks."""
  descriptor = None
  # Some network shares lock no folders, and object stores nothing.
  with contextlib.suppress(OSError):
    if not is_url(folder):
      descriptor = os.open(folder, os.O_RDONLY)
      fcntl.flock(descriptor, fcntl.LOCK_EX)
  try:
    yield
  finally:
    if descriptor is not None:
      os.close(descriptor)
