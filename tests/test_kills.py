"""Runs that are killed at random moments, again and again, end with the bits of one that was not.

    make kills ARGS="--seed=3 --count=40 -k staleness"

The seed draws the moments; the count is that of the kills for each run. A moment is a time anywhere
in the run, from the first import on, or one just after a checkpoint or the metrics changed, where
writes are under way. Some runs have no compiled programs to begin with, so that kills meet
compilation and the writes of its cache. The runs are small_runs.py's, of the kinds of stage that
test_train.py's kills do not reach.
"""

import random
import shutil
import signal
import time

import pytest

from rl_reason.reporting.metrics import read_metrics
from tests import ROOT, small_runs
from tests.test_train import arrays, command, deterministic, user_folder  # noqa: F401


def changes(workdir):
  """What changes when a checkpoint, or the metrics, are written."""
  saved = [str(path) for path in (workdir / "checkpoints").glob("*/*")]
  metrics = workdir / "metrics.jsonl"
  return sorted(saved), metrics.stat().st_size if metrics.exists() else 0


def kill(process, workdir, draw, seconds):
  """Kills a run at a random moment, of one that takes about `seconds`. Returns the moment in words.

  "" is returned for a run that has ended before.
  """
  begun, number, delay = time.monotonic(), draw.randrange(1, 9), draw.choice((0, 0.1)) * draw.random()
  place = draw.choice((None, 0, 0, 1))
  end, seen, moment = seconds * (draw.random() if place is None else 2), changes(workdir), "its time"
  while process.poll() is None and time.monotonic() - begun < end:
    if place is not None and (now := changes(workdir))[place] != seen[place]:
      seen, number = now, number - 1
      if not number:
        moment = f"a change of the {('checkpoints', 'metrics')[place]}"
        time.sleep(delay)
        break
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate(timeout=60)
  if process.returncode == -signal.SIGKILL:
    return f"{time.monotonic() - begun:.2f} s after its start, at {moment}"
  assert process.returncode == 0
  return ""


def saved(workdir):
  """What a finished run leaves: the newest checkpoints' contents, and the probes' files.

  An older checkpoint may be left by a kill between a stage's last save and its removal.
  """
  assert not list(workdir.glob("checkpoints/*/corrupt-*"))
  newest = {path.name: max((p for p in path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
            for path in (workdir / "checkpoints").iterdir()}
  held = {stage: {k: (x.dtype, x.tobytes()) for k, x in arrays(path).items()} for stage, path in newest.items()}
  return ({stage: path.name for stage, path in newest.items()}, held,
          {path.name: path.read_bytes() for path in workdir.glob("arrays/**/*") if path.is_file()})


@pytest.mark.kills
@pytest.mark.parametrize("name", small_runs.RUNS)
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(
    name, command, tmp_path, request):  # noqa: F811
  draw = random.Random(f"{name} {request.config.getoption('seed')}")

  def start(workdir, programs):
    return command(workdir, config=f"{ROOT}/tests/small_runs.py:{name}", variables={
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        # All programs are kept: the runs are so small that most of their time is compilation.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"})

  def finish(workdir, programs):
    process = start(workdir, programs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output

  # Twice: without compiled programs, and with them, which gives the time.
  finish(tmp_path / "first", tmp_path / "programs")
  begun = time.monotonic()
  finish(tmp_path / "whole", tmp_path / "programs")
  seconds, expected = time.monotonic() - begun, deterministic(tmp_path / "whole")
  whole = saved(tmp_path / "whole")
  assert deterministic(tmp_path / "first") == expected
  assert saved(tmp_path / "first") == whole

  left, runs = request.config.getoption("count") or 40, 0
  while left:
    runs += 1
    workdir, moments = tmp_path / f"killed{runs}", []
    programs = tmp_path / ("programs" if runs % 3 else f"programs{runs}")
    try:
      while left and (moment := kill(start(workdir, programs), workdir, draw, seconds)):
        left -= 1
        moments.append(moment)
        if (workdir / "metrics.jsonl").exists():
          assert deterministic(workdir) == expected[:len(read_metrics(workdir))]
      finish(workdir, programs)  # Nothing is left to do where it has ended.
      assert deterministic(workdir) == expected
      assert saved(workdir) == whole
    except BaseException as error:
      error.add_note("The run was killed " + ", and ".join(moments))
      raise
    print(f"{name}, {seconds:.0f} s: equal though killed " + (", and ".join(moments) or "never"))
    shutil.rmtree(workdir)
