"""One owner for a run's folder: who lives is respected, who is dead is succeeded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rl_reason.run import owner
from rl_reason.run.owner import OWNER, Ownership, Process
from tests import ROOT

HOLDS = """
import sys, time
from rl_reason.run.owner import Ownership
with Ownership(sys.argv[1]):
  print("mine", flush=True)
  time.sleep(600)
"""


def owns(folder, **changes):
  """Writes an owner.json of this process, with changes."""
  process = Process.this()
  (folder / OWNER).write_text(json.dumps({
      "host": process.host, "boot": process.boot, "pid": process.pid, "started": process.started,
      "since": "2026-01-31 12:00:00", "token": "another", "beat": 1, **changes}))


def test_the_owner_writes_who_it_is_and_leaves_nothing(tmp_path):
  with Ownership(tmp_path / "run", pytest.fail):
    found = json.loads((tmp_path / "run" / OWNER).read_text())
    assert found["pid"] == os.getpid()
    assert found["host"] == Process.this().host
  assert list((tmp_path / "run").iterdir()) == []


def test_a_second_owner_is_refused_and_says_whose_it_is(tmp_path):
  with Ownership(tmp_path, pytest.fail) as first:
    with pytest.raises(
        ValueError,
        match=rf"Another process trains in {tmp_path}: process {os.getpid()} on \S+, since"
              r" \d{4}-.* Nothing was touched. .* delete .*owner.json"):
      Ownership(tmp_path, pytest.fail).__enter__()
    first.check()
  with Ownership(tmp_path, pytest.fail):
    pass


@pytest.fixture
def other(tmp_path):
  """Another process that owns the folder."""
  process = subprocess.Popen(
      [sys.executable, "-c", HOLDS, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "mine\n"
  yield process
  process.kill()
  process.communicate()


def test_a_process_that_was_killed_is_succeeded_at_once(tmp_path, other):
  with pytest.raises(ValueError, match=f"process {other.pid} on"):
    Ownership(tmp_path, pytest.fail).__enter__()
  other.send_signal(signal.SIGKILL)
  # Not waited for: a zombie is dead, too.
  deadline, notes = time.monotonic() + 30, []
  while owner._started(other.pid) is not None and time.monotonic() < deadline:
    time.sleep(0.01)
  with Ownership(tmp_path, notes.append):
    pass
  assert f"process {other.pid} on" in notes[0]


@pytest.mark.parametrize("changes", [
    {"started": "1"}, {"boot": Process.this().boot.replace(Process.this().boot[:8], "ffffffff", 1)},
    {"pid": 2**22 + 1}], ids=["the_pid_is_used_again", "before_a_reboot", "no_such_process"])
def test_a_dead_process_of_this_machine_is_succeeded(tmp_path, changes):
  owns(tmp_path, **changes)
  notes = []
  with Ownership(tmp_path, notes.append):
    pass
  assert "is gone" in notes[0]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "{}"])
def test_a_file_that_no_owner_wrote_is_no_owner(tmp_path, content):
  (tmp_path / OWNER).write_text(content)
  with Ownership(tmp_path, lambda note: None):
    pass


def test_elsewhere_an_owner_without_a_sign_of_life_is_succeeded(tmp_path):
  owns(tmp_path, host="elsewhere")
  notes = []
  with Ownership(tmp_path, notes.append, watch_seconds=0.1):
    pass
  assert "an owner on another machine (process" in notes[0]
  assert "is gone" in notes[1]


def test_elsewhere_an_owner_with_a_sign_of_life_is_respected(tmp_path):
  owns(tmp_path, host="elsewhere")
  beating = threading.Timer(0.05, owns, [tmp_path], dict(host="elsewhere", beat=2))
  beating.start()
  with pytest.raises(ValueError, match="on elsewhere, since 2026-01-31 12:00:00"):
    Ownership(tmp_path, lambda note: None, watch_seconds=20).__enter__()
  beating.join()


def test_another_container_is_elsewhere():
  here = Process.this()
  assert here.is_here()
  assert not Process(
      here.host, here.boot.partition(" ")[0] + " pid:[1]", here.pid, here.started).is_here()


def test_signs_of_life_go_on_and_a_lost_folder_is_noticed(tmp_path):
  def beat():
    return json.loads((tmp_path / OWNER).read_text())["beat"]

  def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
      assert time.monotonic() < deadline
      time.sleep(0.01)
  with Ownership(tmp_path, pytest.fail, beat_seconds=0.02) as mine:
    wait_for(lambda: beat() >= 3)
    mine.check()
    owns(tmp_path)  # Someone deleted the file, and another run began.
    wait_for(lambda: mine.lost)
    with pytest.raises(ValueError, match="Another process trains"):
      mine.check()
  # What is another's stays.
  assert (tmp_path / OWNER).exists()


def test_of_many_that_find_a_dead_owner_one_succeeds(tmp_path):
  owns(tmp_path, started="1")
  got, start, hold = [], threading.Barrier(8), threading.Event()

  def contend():
    start.wait()
    try:
      with Ownership(tmp_path, lambda note: None):
        got.append("owner")
        hold.wait(30)
    except ValueError:
      got.append("refused")
  threads = [threading.Thread(target=contend) for _ in range(8)]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + 30
  while len(got) < 8 and time.monotonic() < deadline:
    time.sleep(0.01)
  hold.set()
  for thread in threads:
    thread.join()
  assert sorted(got) == ["owner"] + ["refused"] * 7
