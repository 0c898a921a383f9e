"""Configs with seeded faults: a ValueError that names the field, before any device work."""

import functools
import random

import ml_collections
import pytest

from rl_reason.run import config as config_lib
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from tests import ROOT

EXPERIMENTS = ("quickstart.py:tiny", "ppr.py")
VALUES = (
    None, "abc", -1, 0, 1.5, float("nan"), float("inf"), 10 ** 30, True, [], ("a",), [1], {},
    {"a": 1}, "", ["sft"], -0.0, 2 ** 31, lambda: 0, b"x")


def fields(section, path=()):
  """Lists the paths of all fields of a section and of those in it."""
  inner = [
      fields(value, (*path, name)) for name, value in section.items() if isinstance(value, dict)]
  return [*((*path, name) for name in section), *(p for paths in inner for p in paths)]


@functools.cache
def loaded(name):
  return config_lib.load(str(ROOT / "experiments" / name))


def mutated(draw):
  """One of the experiments with one to three other values or misspelt names."""
  config = loaded(draw.choice(EXPERIMENTS)).to_dict()
  for _ in range(draw.choice((1, 1, 1, 2, 3))):
    *names, last = draw.choice(fields(config))
    section = config
    for name in names:
      section = section[name]
    section[last + "x" * (draw.random() < 0.1)] = draw.choice(VALUES)
  return ml_collections.ConfigDict(config)


def test_seeded_faults_are_found_when_a_config_is_checked():
  draw, found = random.Random(0), 0
  for _ in range(60):
    try:
      config_lib.check(mutated(draw))
    except ValueError as error:
      found += 1
      assert "config" in str(error).lower() or "stages" in str(error)
  assert found > 30


@pytest.mark.slow
def test_seeded_faults_are_found_before_a_stage_is_built():
  draw = random.Random(1)
  for _ in range(300):
    config = mutated(draw)
    try:
      run_config, sections = config_lib.check(config)
      stages = Stages(run_config, sections, None, make_context(run_config))
      stages.starting_points()
      for name in sections:
        stages.kind(name).check(*stages.hooks(name))
    except (ValueError, OSError):
      continue
