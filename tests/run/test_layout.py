"""Old names: refused in one line, with the new one."""

import json

import ml_collections
import pytest

from rl_reason.config import moved, naming
from rl_reason.run import config as config_lib
from rl_reason.run import layout
from rl_reason.run.workdir import Workdir
from rl_reason.stages.registry import STAGES

OLD = dict(
    stages=("sft", "rl"), sft=dict(kind="sft", num_steps=1, optimizer=dict(learning_rate=1.0)),
    rl=dict(kind="policy_gradient", kl_coef=0.1, prompts_per_step=4, objective="clipped"))


def test_fields_of_the_old_layout_are_refused_with_their_new_names():
  config = config_lib.load("experiments/quickstart.py:tiny")
  with config.unlocked():
    config.rl.kl_coef = 0.1
  with pytest.raises(ValueError) as error:
    config_lib.check(config)
  assert "rl.kl_coef is now rl.objective.kl.coef" in str(error.value)
  assert "\n" not in str(error.value)


def test_every_field_that_moved_is_named():
  assert layout.moved_fields(OLD) == {
      "sft.optimizer": "sft.learner.optimizer", "rl.kl_coef": "rl.objective.kl.coef",
      "rl.prompts_per_step": "rl.rollout.prompts", "rl.objective": "rl.objective.kind"}
  assert layout.moved_fields(ml_collections.ConfigDict(OLD)) == layout.moved_fields(OLD)


def test_new_places_exist():
  """Each new place is a field that the stage's section has."""
  import dataclasses
  import typing
  for kind, table in layout.FIELDS.items():
    for old, new in table.items():
      section = STAGES[kind].Config
      assert old not in {f.name for f in dataclasses.fields(section)}, old
      for name in new.split("."):
        hint = typing.get_type_hints(section)[name]
        section = next(
            (t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), hint)


def test_an_old_flag_is_answered_with_the_new_one():
  argv = ["train", "--config=experiments/quickstart.py:tiny", "--config.rl.kl_estimator=k1"]
  with pytest.raises(
      ValueError, match="config.rl.kl_estimator is config.rl.objective.kl.estimator"):
    config_lib.define_flag(argv)


def test_an_old_workdir_is_left_alone(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(OLD))
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  config = config_lib.load("experiments/quickstart.py:tiny")
  with pytest.raises(ValueError, match="Nothing was touched: the run in .* sft.learner.optimizer"):
    Workdir(tmp_path).claim(config, lambda note: None)
  assert json.loads((tmp_path / "config.json").read_text())["rl"]["kl_coef"] == 0.1


@pytest.mark.parametrize("old, new", [
    ("rl_reason.losses:value_loss", "rl_reason.objectives.losses:value_loss"),
    ("rl_reason.config:at_least", "rl_reason.config.checks:at_least"),
    ("rl_reason.evaluate:accuracy", "rl_reason.evaluation.accuracy:accuracy")])
def test_an_old_dotted_path_is_answered_with_the_new_one(old, new):
  with pytest.raises(ValueError, match=f"Write {new}"):
    naming.find("reward", old, {})
  assert naming.find("reward", new, {})


def test_modules_are_where_the_table_says():
  import importlib.util
  news = {new for table in moved.NAMES.values() for new in table}
  for new in {*moved.MODULES.values(), *news}:
    assert importlib.util.find_spec(new) is not None, new
  for old in moved.MODULES:
    spec = importlib.util.find_spec(old)
    # A package may have the old module's name.
    assert spec is None or spec.submodule_search_locations is not None, old
