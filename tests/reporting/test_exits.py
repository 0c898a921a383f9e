"""Why a command ended is its exit status: a signal, a reader that went, or the end of the work."""

import os
import signal
import subprocess
import sys

import pytest

from rl_reason.reporting import exits
from tests import ROOT

# Ctrl-C is ignored in a script's background jobs, CI's among them; a command hears it all the same.
COMMAND = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from rl_reason.reporting import exits
with exits.with_status():
  {body}
"""


def start(body):
  return subprocess.Popen(
      [sys.executable, "-c", COMMAND.format(body=body)], cwd=ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_the_exit_status(number, status):
  process = start("print('ready', flush=True); time.sleep(600)")
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == status
  assert errors == f"Stopped by {number.name}.\n"


@pytest.mark.parametrize("body, status", [
    ("pass", 0), ("sys.exit(3)", 3), ("raise SystemExit('Error: x')", 1), ("raise KeyError(1)", 1)])
def test_other_ends_stay_as_they_are(body, status):
  process = start(body)
  process.communicate(timeout=60)
  assert process.returncode == status


@pytest.mark.parametrize("body", [
    "[print('line', flush=True) for _ in range(100_000)]",
    "[print('line') for _ in range(100_000)]",
    "print('line', flush=True); time.sleep(0.5); print('buffered'); sys.exit(0)"])
def test_a_reader_that_goes_ends_the_command_without_a_traceback(body):
  process = start(body)
  process.stdout.readline()
  process.stdout.close()
  errors = process.stderr.read()
  process.wait(timeout=60)
  assert errors == ""
  assert process.returncode in (141, 0)


def test_many_lines_to_a_reader_that_went_are_141():
  process = start("[print('line', flush=True) for _ in range(100_000)]")
  process.stdout.close()
  process.wait(timeout=60)
  process.stderr.close()
  assert process.returncode == exits.CLOSED


def test_another_broken_pipe_is_a_fault_of_its_own():
  process = start("raise BrokenPipeError('of a worker')")
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "BrokenPipeError: of a worker" in errors


@pytest.fixture
def handlers():
  """Handlers as a terminal's process has them.

  A shell's background jobs start with Ctrl-C ignored.
  """
  inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield lambda: (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
  signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_asks(handlers, number, status):
  before = handlers()
  with exits.StopRequest() as stop:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.status == status
    assert handlers() == before
  assert handlers() == before


def test_the_second_signal_insists(handlers):
  with pytest.raises(KeyboardInterrupt), exits.StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_request_counts():
  stop = exits.StopRequest()
  for status in (0, 141, 143):
    stop.request(status)
  assert stop.status == 141
