"""How a command ends: which errors are one line, and what is found before devices work."""

import sys

import pytest

from rl_reason import train
from rl_reason.run import config as config_lib
from rl_reason.run import process


@pytest.mark.parametrize("package, logging", [
    ("wandb", {"wandb": {"project": "mine"}}), ("tensorboardX", {"tensorboard": True})])
def test_a_missing_tracker_is_one_line_before_anything_is_made(tmp_path, monkeypatch, package, logging):
  monkeypatch.setitem(sys.modules, package, None)  # What import sees where a package is missing.
  monkeypatch.setattr(train, "make_context", lambda *_, **__: pytest.fail("The devices work."))
  config = config_lib.load("experiments/quickstart.py:tiny")
  with config.unlocked():
    config.logging.update(logging)
  with pytest.raises(SystemExit, match=f"^Error: this run logs to .* needs the package {package}.*pip install"):
    with process.errors_in_one_line():
      train.train(config, tmp_path / "run", plain=True)
  assert not (tmp_path / "run").exists()


def test_a_fault_of_an_import_keeps_its_traceback():
  with pytest.raises(ImportError, match="cannot import name"), process.errors_in_one_line():
    raise ImportError("cannot import name 'x' from 'y'")


def test_a_config_may_hold_functions_and_rows(tmp_path):
  config = config_lib.load("experiments/quickstart.py:tiny")
  def own(samples):
    return [0.0] * len(samples)
  with config.unlocked(), config.ignore_type():
    config.rl.rewards = {"mine": own}
    config.task = dict(source="jsonl", args=dict(prompt="{q}", reference="{a}"),
                       train=dict(path=[{"q": "1", "a": "1"}]), heldout=dict(path=[{"q": "2", "a": "2"}]))
  run, sections = config_lib.check(config)
  assert sections["rl"].rewards["mine"] is own
  assert run.task.train["path"] == [{"q": "1", "a": "1"}]
  written = config_lib.as_json(config)
  assert written["rl"]["rewards"]["mine"].endswith("own, given from Python>")
  assert written["task"]["train"]["path"].startswith("<1 rows ")
