"""Ends a command with the exit status that says why it ended.

    0    the work is finished
    1    an error that the user can cure, in one line; or a fault of the code, with its traceback
    2    a command line that cannot be parsed
    130  Ctrl-C
    143  SIGTERM, as of a machine that is taken away
    141  nobody reads the output any more, as after `| head`

This file imports the standard library only, so that every command can use it.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import select
import signal
import sys

# As a shell shows a process that a signal ended: 128 and the signal's number.
INTERRUPTED, CLOSED, TERMINATED = 130, 141, 143
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
  """Ends the command at once, as a signal asks. status: the command's exit status."""

  def __init__(self, number: int):
    super().__init__()
    self.status = 128 + number


@contextlib.contextmanager
def with_status() -> Iterator[None]:
  """Runs a command within the context, and ends it with the statuses of this file.

  Raises: SystemExit where a signal ended the command, or nobody reads its output.
  """
  with interrupting():
    try:
      yield
    except KeyboardInterrupt as stopped:
      status = getattr(stopped, "status", INTERRUPTED)
      with contextlib.suppress(OSError):
        print(f"Stopped by {signal.Signals(status - 128).name}.", file=sys.stderr)
      raise SystemExit(status) from None
    except BrokenPipeError:
      if not stdout_is_closed():
        raise  # Another pipe, such as a worker's.
      raise SystemExit(CLOSED) from None
    finally:
      # What is still buffered, Python would write at its end, and complain.
      try:
        sys.stdout.flush()
      except (OSError, ValueError):
        silence_stdout()


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
  """Makes Ctrl-C and SIGTERM raise Stopped within the context."""
  def stop(number, frame):
    raise Stopped(number)
  with _handlers(stop):
    yield


def stdout_is_closed() -> bool:
  """Tells whether the reader of this process's output has gone."""
  try:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
  except (OSError, ValueError, AttributeError):  # A notebook's stream is no file.
    return False


def silence_stdout() -> None:
  """Sends what is still written to the standard output nowhere."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class StopRequest:
  """Notes the first Ctrl-C or SIGTERM; a second one interrupts at once.

  status: the exit status of the stop that was asked for; 0: none was.
  """

  def __init__(self):
    self.status = 0
    self._exits = contextlib.ExitStack()

  @property
  def requested(self) -> bool:
    return bool(self.status)

  def request(self, status: int) -> None:
    """Asks for a stop, as a signal does. The first request counts."""
    self.status = self.status or status

  def __enter__(self):
    self._exits.enter_context(_handlers(self._handle))
    return self

  def __exit__(self, *_):
    self._exits.close()

  def _handle(self, number, frame):
    self.request(128 + number)
    # The handlers from before are put back, so that the next signal does what it always does.
    self._exits.close()


@contextlib.contextmanager
def _handlers(handler) -> Iterator[None]:
  """Handles Ctrl-C and SIGTERM within the context.

  That holds also where the process was started with Ctrl-C ignored, as in a script's background.
  Only the main thread may handle signals: elsewhere, as in a notebook's, none is caught.
  """
  before: Mapping[int, object] = {}
  with contextlib.suppress(ValueError):
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)
