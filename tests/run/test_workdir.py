"""A run's folder: whose it is, what changed, and what is written in it."""

import json

import numpy as np
import pytest

from rl_reason.config.overrides import override
from rl_reason.run import config as config_lib
from rl_reason.run import earlier, record
from rl_reason.run.workdir import Workdir
from rl_reason.runtime.checkpoint import CheckpointMismatch, saved_steps


@pytest.fixture(scope="module")
def loaded():
  return config_lib.load("experiments/quickstart.py:tiny")


@pytest.fixture
def config(loaded):
  return loaded.copy_and_resolve_references()


@pytest.fixture
def folder(tmp_path, config):
  """The folder of a run that has saved a checkpoint and logged a line."""
  folder = Workdir(tmp_path / "run")
  folder.claim(config, pytest.fail)
  (folder.path / "checkpoints" / "sft" / "5").mkdir(parents=True)
  (folder.path / "metrics.jsonl").write_text('{"stage": "sft", "step": 5, "loss": 1.0}\n')
  return folder


def files(folder):
  return {p.name: p.read_bytes() for p in folder.path.iterdir() if not p.is_dir()}


@pytest.mark.parametrize("lost", [(), ("metrics.jsonl",)], ids=["whole", "without_metrics"])
@pytest.mark.parametrize("changes, message", [
    ({"seed": 5}, "seed was 0 and is 5"),
    ({"policy.args.width": 64}, "policy.args.width was 32 and is 64"),
    ({"stages": ("rl",)}, "stages was"), ({"rl.kind": "voting"}, "rl.kind was 'policy_gradient'")])
def test_another_run_is_refused_whatever_is_lost(folder, config, lost, changes, message):
  for name in lost:
    (folder.path / name).unlink()
  before = files(folder)
  override(config, changes)
  with pytest.raises(ValueError, match=f"belongs to another run: .*{message}.*Nothing was touched"):
    folder.claim(config, pytest.fail)
  assert files(folder) == before


def test_a_run_without_its_config_is_refused(folder, config):
  for name in ("metrics.jsonl", "config.json"):  # Checkpoints alone are a run, too.
    (folder.path / name).unlink()
    if name == "config.json":
      with pytest.raises(ValueError, match="holds a run without its config.json"):
        folder.claim(config, pytest.fail)


def test_a_folder_in_which_nothing_was_trained_is_claimed_anew(tmp_path, config):
  folder = Workdir(tmp_path)
  folder.claim(config, pytest.fail)
  override(config, {"seed": 5})
  assert folder.claim(config, pytest.fail).changes == {}
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5


def test_a_change_is_said_at_once_and_recorded_with_its_first_step(folder, config):
  before, notes = files(folder), []
  override(config, {"rl.learner.optimizer.learning_rate": 0.5})
  claim = folder.claim(config, notes.append, ["rl.learner.optimizer.learning_rate"])
  [note] = notes
  assert "Resuming with a changed config: rl.learner.optimizer.learning_rate was" in note
  assert files(folder) == before
  claim.begin("rl", 3)
  claim.begin("rl", 4)
  found = record.read(folder.path)
  [change] = found.changes
  assert (change["stage"], change["step"]) == ("rl", 3)
  assert found.config["rl"]["learner"]["optimizer"]["learning_rate"] == 0.5
  assert found.overridden == ["rl.learner.optimizer.learning_rate"]


def test_a_call_that_changes_nothing_leaves_the_record(folder, config):
  before = files(folder)["config.json"], files(folder)["history.json"]
  folder.claim(config, pytest.fail).begin("sft", 5)
  assert (files(folder)["config.json"], files(folder)["history.json"]) == before


def test_a_complete_stage_takes_no_change(folder, config):
  override(
      config,
      {"sft.learner.optimizer.learning_rate": 0.5, "rl.learner.optimizer.learning_rate": 0.5})
  claim = folder.claim(config, lambda note: None)
  with pytest.raises(
      ValueError,
      match=r"Stage 'sft' is complete at step 5 .*config: sft.learner.optimizer.learning_rate"
            r" was \S+ and is 0.5. Nothing"):
    claim.refuse_in_complete("sft", 5)


def test_a_stage_may_end_earlier(folder, config):
  override(config, {"sft.num_steps": 5})
  folder.claim(config, lambda note: None).refuse_in_complete("sft", 5)


@pytest.mark.parametrize("changes, cause", [
    ({"rl.learner.optimizer.name": "sgd", "sft.num_steps": 9},
     "The config changed: rl.learner.optimizer.name was 'adamw' and is 'sgd'. "),
    ({"checkpoint.keep": 5}, "The config changed: checkpoint.keep was 2 and is 5. "),
    ({}, "The config is the same, so the code, a package or the policy's files changed")])
def test_a_mismatch_is_explained_by_the_field_that_changed(folder, config, changes, cause):
  override(config, changes)
  claim = folder.claim(config, lambda note: None)
  assert f"Other arrays. {cause}" in str(claim.explain("rl", CheckpointMismatch("Other arrays.")))


def test_a_reader_explains_a_mismatch_by_its_own_fields(folder, config):
  override(config, {"policy.args.width": 64})
  with pytest.raises(
      CheckpointMismatch, match="The config changed: policy.args.width was 32 and is 64"):
    with folder.explaining(config):
      raise CheckpointMismatch("Other arrays.")


def test_arrays_are_read_as_they_were_saved(tmp_path):
  Workdir(tmp_path).save_arrays(
      "after", {"zoo/a": np.arange(3), "zoo/b": np.ones(2), "other/a": np.zeros(1)})
  with np.load(tmp_path / "arrays" / "after" / "zoo.npz") as found:
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].tolist() == [1, 1]
  assert sorted(p.name for p in (tmp_path / "arrays" / "after").iterdir()) == [
      "other.npz", "zoo.npz"]


def test_a_folder_has_one_owner_at_a_time(tmp_path):
  with Workdir(tmp_path).owned(pytest.fail):
    with pytest.raises(ValueError, match="Another process trains in"):
      with Workdir(tmp_path).owned(pytest.fail):
        pass
  with Workdir(tmp_path).owned(pytest.fail):
    pass


def test_a_run_may_lie_in_an_object_store(store, config):
  folder = Workdir("gs://bucket/run")
  with folder.owned(pytest.fail):
    assert "gs://bucket/run/owner.json" in store.objects
    with pytest.raises(ValueError, match="Another process trains in gs://bucket/run"):
      with folder.owned(pytest.fail):
        pass
    folder.claim(config, pytest.fail)
    folder.write("samples/rl-1.json", [{"prompt": "x"}])
    folder.save_arrays("after", {"zoo/a": np.arange(3)})
    # As orbax leaves a finished checkpoint there, and one that was never finished.
    store.objects["gs://bucket/run/checkpoints/rl/5/commit_success.txt"] = b""
    store.objects["gs://bucket/run/checkpoints/rl/6/params/x"] = b""
    other = config.copy_and_resolve_references()
    override(other, {"seed": 5})
    with pytest.raises(ValueError, match="seed was 0 and is 5"):
      folder.claim(other, pytest.fail)
    override(config, {"rl.learner.optimizer.learning_rate": 0.5})
    folder.claim(config, lambda note: None).begin("rl", 5)
  assert sorted(
      k.removeprefix("gs://bucket/run/") for k in store.objects if "checkpoints" not in k) == [
      "arrays/after/zoo.npz", "config.json", "history.json", "samples/rl-1.json", "versions.json"]
  assert record.read("gs://bucket/run").config["rl"]["learner"]["optimizer"]["learning_rate"] == 0.5
  assert saved_steps("gs://bucket/run/checkpoints/rl") == [5]
  with pytest.raises(ValueError, match="has no stage 'sft' that trains a model that scores"):
    earlier.scorer_of_run("gs://bucket/run:sft")
