"""What a process says when another one of its job is gone."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rl_reason.runtime import peers
from rl_reason.runtime.peers import Peers
from tests import ROOT

# Each process takes steps that need the other one.
PROCESS = """
import time
from rl_reason.run import process
from rl_reason.runtime import sharding
with process.errors_in_one_line():
  process.start()
  sharding.any_process(False)
  print("ready", flush=True)
  while True:
    sharding.any_process(False)
    time.sleep(0.05)
"""


@pytest.fixture
def two():
  """Two processes of one job, in the middle of their steps."""
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  processes = [subprocess.Popen(
      [sys.executable, "-c", PROCESS], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      cwd=ROOT, env={
          **environment, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address,
          "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}) for i in range(2)]
  try:
    for process in processes:
      while (line := process.stdout.readline()) != "ready\n":
        assert line, process.stderr.read()
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def test_a_process_that_is_killed_is_named_by_the_others(two):
  started = time.monotonic()
  two[1].send_signal(signal.SIGKILL)
  _, errors = two[0].communicate(timeout=120)
  assert two[0].returncode == 1, errors
  assert time.monotonic() - started < 60
  assert "Error: process 1 of 2 is gone: it has given no sign of life for" in errors
  assert "Process 0 cannot go on without it" in errors
  assert "the run resumes from its newest checkpoint" in errors
  assert "stack trace" not in errors
  assert "Traceback" not in errors


@pytest.mark.slow
def test_without_the_coordinator_the_end_is_explained(two):
  two[0].send_signal(signal.SIGKILL)
  _, errors = two[1].communicate(timeout=120)
  assert two[1].returncode != 0
  assert "process 1 of 2 was ended" in errors or "process 0 of 2 is gone" in errors
  assert "process 0" in errors
  assert "the run resumes from its newest checkpoint" in errors


class Store:
  """The store of a job's coordinator."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite):
    self.values[key] = value


@pytest.fixture
def watching():
  return Peers(Store(), 1, 3, silent_seconds=60, suspect_seconds=10)


def test_a_silent_process_is_gone(watching):
  assert watching.look({0: "1", 1: "1", 2: "1"}, 100.0) == ""
  assert watching.look({0: "30", 1: "1", 2: "1"}, 159.0) == ""
  assert watching.look({0: "31", 1: "1", 2: "1"}, 161.0).startswith(
      "Error: process 2 of 3 is gone: it has given no sign of life for 61 s.")


def test_a_process_that_was_never_heard_is_missed_too(watching):
  assert watching.look({0: "1"}, 100.0) == ""
  assert "process 2 of 3 is gone" in watching.look({0: "2"}, 161.0)


def test_after_a_failed_step_a_shorter_silence_tells(watching):
  watching.look({0: "1", 2: "1"}, 100.0)
  watching._suspicious.set()
  assert watching.look({0: "2", 2: "1"}, 109.0) == ""
  assert "process 2 of 3 is gone" in watching.look({0: "3", 2: "1"}, 111.0)


def test_a_process_that_finished_is_not_missed(watching):
  assert watching.look({0: "ended", 2: "1"}, 0.0) == ""
  assert watching.look({0: "ended", 2: "2"}, 1000.0) == ""


def test_a_process_that_ended_with_an_error_says_which(watching):
  other = Peers(watching._client, 2, 3)
  other.end(": Error: the disk is full")
  found = {2: watching._client.values["rl_reason/alive/2"]}
  assert watching.look(found, 0.0).startswith(
      "Error: process 2 of 3 ended (Error: the disk is full). Process 1 cannot")


@pytest.mark.parametrize("message, is_one", [
    ("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:28546",
     True),
    ("NCCL operation failed", True),
    ("RESOURCE_EXHAUSTED: Out of memory", False),
    ("group_size must be at least 2", False)])
def test_which_errors_another_process_caused(watching, monkeypatch, message, is_one):
  assert not peers.caused(ValueError(message))  # Alone, none is.
  monkeypatch.setattr(peers, "_peers", watching)
  assert peers.caused(ValueError(message)) == is_one
