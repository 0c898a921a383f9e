"""The canary: rehearsals whose last losses are stored in a claim's record, and compared later."""

import json
import subprocess
import sys

import pytest

from rl_reason.claims import __main__, canary, declaration
from rl_reason.claims.canary import Rehearsal
from rl_reason.reporting.metrics import MetricWriter
from rl_reason.reporting.progress import Progress
from tests import environment

STORED = {"losses": {"more": {"sft": 2.0, "rl": 1e-9}, "less": {"sft": 3.0}}, "commit": "abc",
          "versions": {"jax": "1"}}


def rehearsals(**losses):
  return {arm: Rehearsal(of_arm, {"jax": "1"}) for arm, of_arm in losses.items()}


def verdicts(**losses):
  rows = canary.compare(STORED, rehearsals(**losses))
  return {(row[0], row[1]): row[-1] for row in rows}


def test_equal_losses_are_the_same():
  found = verdicts(more={"sft": 2.0, "rl": 1e-9}, less={"sft": 3.0})
  assert found == {("more", "sft"): "same", ("more", "rl"): "same", ("less", "sft"): "same"}


def test_rounding_is_the_same():
  found = verdicts(more={"sft": 2.001, "rl": -5e-8}, less={"sft": 3.0})
  assert set(found.values()) == {"same"}


def test_a_changed_loss_is_flagged():
  found = verdicts(more={"sft": 2.01, "rl": 1e-9}, less={"sft": 3.0})
  assert found["more", "sft"] == "differs by 0.01"
  assert found["less", "sft"] == "same"


def test_a_loss_that_was_nothing_and_is_something_is_flagged():
  assert verdicts(more={"sft": 2.0, "rl": 1e-4}, less={"sft": 3.0})["more", "rl"] == (
      "differs by 0.0001")


def test_a_loss_that_is_no_number_is_flagged():
  found = verdicts(more={"sft": float("nan"), "rl": 1e-9}, less={"sft": 3.0})
  assert found["more", "sft"] == "differs by nan"


def test_arms_and_stages_that_come_and_go_are_flagged():
  found = verdicts(more={"sft": 2.0, "rm": 1.0}, other={"sft": 1.0})
  assert found["more", "rl"] == "the stage is gone"
  assert found["more", "rm"] == "the stage is new"
  assert found["less", ""] == "the arm is gone"
  assert found["other", ""] == "the arm is new"


def test_a_rehearsal_that_fails_is_flagged_and_never_stored():
  now = {**rehearsals(more={"sft": 2.0, "rl": 1e-9}), "less": Rehearsal({}, error="no memory")}
  assert ["less", "", "", "", "failed: no memory"] in canary.compare(STORED, now)
  with pytest.raises(ValueError, match=r"arm 'less' failed \(no memory\)"):
    canary.to_json(now, "abc")


def test_of_each_stage_the_last_loss_counts(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("sft", 1, {"loss": 3.0})
    writer.write("sft", 2, {"loss": 2.0})
    writer.write("sft", 2, {"eval/pass@1": 0.5})  # An evaluation has none.
    writer.write("vote", 1, {"share": 0.5})
  assert canary.losses(tmp_path) == {"sft": 2.0}


# The command, on an experiment of two arms and two claims.

EXPERIMENT = '''
from rl_reason.experiments import quickstart

LAST = dict(function="last", args=dict(name="loss"))
CLAIM = dict(
    title="It learns", sentence="It learns.", paper="Someone 2024",
    arms=dict(learns=dict(), stays=dict(overrides={"sft.learner.optimizer.learning_rate": 0.0})),
    metric=LAST, treatment="learns", baseline="stays", direction="lower", threshold=0.0, matched=())
CLAIMS = {"learns": CLAIM, "again": dict(CLAIM, title="Again", direction="higher")}

def get_config(size="tiny"):
  c = quickstart.get_config(size)
  c.stages = ("sft",)
  c.sft.num_steps, c.sft.batch_size = 3, 4
  c.task.train.size = 50
  c.evaluation.update(num_problems=1, samples_per_problem=1, every=0, batch_size=1)
  c.mesh = dict(fsdp=1)
  return c
'''


RECORD = {"experiment": "small", "verdict": "holds", "test": {}, "configs": {}, "code": {}}


def command(folder, *arguments):
  return subprocess.run(
      [sys.executable, "-m", "rl_reason.claims", "experiments/small.py", *arguments], cwd=folder,
      env=environment(), capture_output=True, text=True)


def file_of(folder, name):
  return folder / f"experiments/results/small/{name}.json"


def record_of(folder, name):
  return json.loads(file_of(folder, name).read_text())


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """(a folder whose two records hold the losses of rehearsals, what the command said)."""
  folder = tmp_path_factory.mktemp("canary")
  file_of(folder, "learns").parent.mkdir(parents=True)
  (folder / "experiments/small.py").write_text(EXPERIMENT)
  for name in ("learns", "again"):
    file_of(folder, name).write_text(json.dumps({**RECORD, "name": name}))
  return folder, command(folder, "--canary")


def test_losses_are_stored_where_there_are_none(stored):
  folder, done = stored
  assert done.returncode == 0, done.stdout + done.stderr
  record = record_of(folder, "learns")
  losses = record["canary"]["losses"]
  assert list(losses) == ["learns", "stays"]
  assert 0 < losses["learns"]["sft"] < losses["stays"]["sft"]
  assert record["canary"]["versions"]["jax"]
  assert {k: v for k, v in record.items() if k != "canary"} == {**RECORD, "name": "learns"}


def test_claims_share_the_rehearsals_of_equal_arms(stored):
  folder, done = stored
  assert "2 of 2 runs to do" in done.stdout
  assert record_of(folder, "again")["canary"]["losses"] == (
      record_of(folder, "learns")["canary"]["losses"])


def test_a_rehearsal_that_computes_otherwise_ends_the_command_with_1(stored, monkeypatch, capsys):
  folder, _ = stored
  before = file_of(folder, "learns").read_text()
  losses = record_of(folder, "learns")["canary"]["losses"]
  other = {**losses, "stays": {"sft": losses["stays"]["sft"] * 1.1}}
  monkeypatch.setattr(canary, "rehearse", lambda *_: {
      "learns": rehearsals(**other), "again": rehearsals(**losses)})
  assert __main__.main([str(folder / "experiments/small.py"), "--canary"]) == 1
  shown = capsys.readouterr().out
  assert shown.count("differs by") == 1  # Of the other arm and the other claim none.
  assert "small/learns computes other numbers" in shown
  assert "small/again computes" not in shown
  assert file_of(folder, "learns").read_text() == before  # It only compares.


def test_new_losses_take_the_place_of_stored_ones_only_when_asked(stored):
  folder, _ = stored
  before = file_of(folder, "again").read_text()
  loaded = declaration.load(str(folder / "experiments/small.py"))
  now = rehearsals(learns={"sft": 1.0}, stays={"sft": 2.0})
  with Progress(plain=True) as progress:
    assert not canary.check(loaded, "again", now, progress)
    assert file_of(folder, "again").read_text() == before
    assert canary.check(loaded, "again", now, progress, store=True)
  assert record_of(folder, "again")["canary"]["losses"]["learns"] == {"sft": 1.0}
  file_of(folder, "again").write_text(before)


def test_storing_without_rehearsing_is_refused(stored):
  done = command(stored[0], "--store")
  assert done.returncode == 1
  assert "without --canary there are none: add --canary" in done.stderr
