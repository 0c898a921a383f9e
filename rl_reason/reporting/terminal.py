"""Keeps a terminal from writing into what is drawn on it."""

from collections.abc import Iterator
import contextlib
import os
from typing import TextIO

try:
  import termios
except ImportError:  # Windows, whose console writes no ^C.
  termios = None


@contextlib.contextmanager
def without_echoed_keys(stream: TextIO) -> Iterator[None]:
  """Keeps a terminal from writing ^C, ^Z and the like where the cursor is, within the context.

  Two characters in the middle of a live panel move the cursor, so that the panel is neither erased
  nor drawn over whole. The keys still do what they do. Other streams are left alone.
  """
  before = _set_echo(stream, on=False)
  try:
    yield
  finally:
    if before:
      _set_echo(stream, on=True)


def _set_echo(stream: TextIO, *, on: bool) -> bool:
  """Sets whether control keys are written. Returns: whether that changed anything."""
  if termios is None:
    return False
  try:
    terminal = stream.fileno()
    if not os.isatty(terminal) or not _may_set(terminal):
      return False
    settings = termios.tcgetattr(terminal)
    flags = settings[3] | termios.ECHOCTL if on else settings[3] & ~termios.ECHOCTL
    changed, settings[3] = flags != settings[3], flags
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    return changed
  except (OSError, ValueError, termios.error):  # The terminal has gone, or the stream is no file.
    return False


def _may_set(terminal: int) -> bool:
  """Tells whether this process may change a terminal: one in the background would be stopped."""
  try:
    return os.tcgetpgrp(terminal) == os.getpgrp()
  except OSError:  # It is not the terminal that controls this process.
    return True
