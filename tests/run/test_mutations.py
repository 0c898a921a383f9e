"""Configs with seeded faults: a ValueError that names the field, before any device work."""

import functools

import ml_collections
import pytest

from rl_reason.run import config as config_lib
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from tests import ROOT, small_runs

RUNS = ("experiments/quickstart.py:tiny", "experiments/ppr.py", "experiments/oreal.py:full-tiny",
        "experiments/reward_bench_2.py", *(f"tests/small_runs.py:{name}" for name in small_runs.RUNS))
VALUES = (
    None, "abc", -1, 0, 1.5, float("nan"), float("inf"), 10 ** 30, True, [], ("a",), [1], {},
    {"a": 1}, "", ["sft"], -0.0, 2 ** 31, lambda: 0, b"x", "\0", "\ud800", "{", "json:dumps",
    "nowhere:x", {"kind": "sft"}, {"function": 7}, {"": {}}, [[]], [None], 10 ** 400, -1e308, ...)


def fields(section, path=()):
  """Lists the paths of all fields of a section and of those in it."""
  inner = [
      fields(value, (*path, name)) for name, value in section.items() if isinstance(value, dict)]
  return [*((*path, name) for name in section), *(p for paths in inner for p in paths)]


@functools.cache
def loaded(name):
  return config_lib.load(str(ROOT / name))


def mutated(draw):
  """One of the runs with one to three other values or misspelt names, and what was changed."""
  run = draw.choice(RUNS)
  config, changes = loaded(run).to_dict(), [run]
  for _ in range(draw.choice((1, 1, 1, 2, 3))):
    *names, last = draw.choice(fields(config))
    section = config
    for name in names:
      section = section[name]
    last, value = last + "x" * (draw.random() < 0.1), draw.choice(VALUES)
    section[last] = value
    changes.append((".".join([*names, last]), value))
  return ml_collections.ConfigDict(config), changes


def test_seeded_faults_are_found_when_a_config_is_checked(trials):
  found = []
  for draw in trials(60):
    config, changes = mutated(draw)
    with draw.refusal(changes) as refused:
      config_lib.check(config)
    found += refused
  assert len(found) > 10
  assert all("config" in str(error).lower() or "stages" in str(error) for error in found)


@pytest.mark.slow
def test_seeded_faults_are_found_before_a_stage_is_built(trials):
  for draw in trials(300):
    config, changes = mutated(draw)
    with draw.refusal(changes):
      run_config, sections = config_lib.check(config)
      stages = Stages(run_config, sections, None, make_context(run_config))
      stages.starting_points()
      for name in sections:
        stages.kind(name).check(*stages.hooks(name))
