"""A profile holds the steps asked for, however the run ends."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from rl_reason.runtime.profiling import Profile, Trace


def names(folder):
  """What the recordings in a folder show, by name."""
  files = list((folder / "profile").rglob("*.trace.json.gz"))
  return [{e.get("name") for e in json.loads(gzip.decompress(f.read_bytes()))["traceEvents"]}
          for f in files]


def work(text):
  with jax.profiler.TraceAnnotation(text):
    jnp.arange(3).block_until_ready()


def test_the_steps_asked_for_are_recorded(tmp_path):
  notes = []
  with Trace(Profile(stage="rl", first=2, last=3), tmp_path, notes.append) as trace:
    for stage in ("sft", "rl"):
      for step in (1, 2, 3, 4):
        with trace.step(stage, step):
          work(f"{stage}-{step}-work")
        assert len(notes) == (stage == "rl" and step >= 3)
  assert len(notes) == 1 and str(tmp_path / "profile") in notes[0]
  [shown] = names(tmp_path)
  assert {n for n in shown if n and n.endswith("-work")} == {"rl-2-work", "rl-3-work"}
  assert "rl" in shown


def test_a_run_that_stops_early_or_starts_late_writes_what_it_has(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with Trace(Profile(stage="rl", first=2, last=9), tmp_path, print) as trace:
      with trace.step("rl", 4):  # Resumed behind the first.
        work("late-work")
      with trace.step("rl", 5):
        raise KeyboardInterrupt
  [shown] = names(tmp_path)
  assert "late-work" in shown


def test_nothing_is_recorded_unasked_and_nothing_to_record_is_told(tmp_path):
  with Trace(Profile(), tmp_path, pytest.fail) as trace, trace.step("rl", 3):
    pass
  notes = []
  profile = Profile(stage="rl", first=2, last=3)
  with Trace(profile, tmp_path, notes.append) as trace, trace.step("rl", 7):
    pass
  assert len(notes) == 1
  assert "No step was profiled" in notes[0]
  assert not (tmp_path / "profile").exists()
