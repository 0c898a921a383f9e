"""What a run has trained, as a Hugging Face directory: the same scores, the same policy."""

import json

import jax
import numpy as np
import pytest

from rl_reason import export as export_lib
from rl_reason.config.overrides import override
from rl_reason.models import pretrained, sources
from rl_reason.models import tokenizer as tokenizers
from rl_reason.run import config as config_lib
from rl_reason.run.earlier import open_run, scorer_of_run
from rl_reason.train import train
from tests import ROOT

SEVENS = "tests.stages.reward_model.test_stage:sevens"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of one step of imitation and one of a reward model."""
  config = config_lib.load(str(ROOT / "experiments/quickstart.py:tiny"))
  config.unlock()
  override(config, {
      "stages": ("sft", "rm"), "sft.num_steps": 1, "mesh.fsdp": 1, "evaluation.every": 0,
      "rm": dict(
          kind="reward_model", num_steps=2, batch_size=8, max_response_tokens=8,
          max_prompt_tokens=8,
          head_init="normal", learner=dict(microbatches=1, optimizer=dict(learning_rate=1e-2)),
          data=dict(
              source=SEVENS, args={}, train=dict(size=40, seed=1), heldout=dict(size=8, seed=2)))})
  folder = tmp_path_factory.mktemp("export") / "run"
  train(config, folder, plain=True)
  return folder


def test_a_reward_model_scores_as_in_its_run(run, tmp_path):
  written = export_lib.export(str(run), tmp_path / "rm")
  assert written == "the reward model of stage 'rm'"
  texts = [("001=", "777"), ("001=", "12"), ("002=", "7")]
  ours, theirs = (scorer_of_run(str(path)) for path in (run, tmp_path / "rm"))
  np.testing.assert_allclose(ours.totals(texts), theirs.totals(texts), rtol=1e-5)
  assert (ours.outputs, ours.reads, ours.aggregate) == (
      theirs.outputs, theirs.reads, theirs.aggregate)
  np.testing.assert_allclose(ours.loaded.std, theirs.loaded.std, rtol=1e-4)


def test_a_policy_is_the_one_of_its_stage(run, tmp_path, capsys):
  export_lib.main([f"--run={run}:sft", f"--output={tmp_path / 'policy'}"])
  assert "the policy of stage 'sft'" in capsys.readouterr().out
  expected = open_run(str(run))[0].policy("sft")
  source = sources.from_files(path=str(tmp_path / "policy"))
  jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path / "policy"), expected)
  assert source.tokenizer.encode("12") == tokenizers.load(tmp_path / "policy").encode("12")
  assert json.loads((tmp_path / "policy/config.json").read_text())["architectures"] == [
      "LlamaForCausalLM"]


@pytest.mark.parametrize("name, message", [
    ("{run}:rl", "has no stage 'rl' that leaves a model; the known ones are: sft, rm"),
    ("{run}/checkpoints", "is not the workdir of a run")])
def test_what_is_no_model_is_named(name, message, run, tmp_path, capsys):
  with pytest.raises(SystemExit, match=f"Error: .*{message}"):
    export_lib.main([f"--run={name.format(run=run)}", f"--output={tmp_path / 'x'}"])
