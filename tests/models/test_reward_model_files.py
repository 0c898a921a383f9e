"""Reward models as Hugging Face directories: stored, read back, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl_reason.models import heads, pretrained, reward_model, reward_model_files
from rl_reason.models.reward_model_files import Stored
from tests.models.test_pretrained import assert_same, random_params, SMALL

MODEL = reward_model.RewardModel(SMALL, heads.Head(outputs=2))
STORED = Stored(MODEL, ("helpful", "brief"), read="steps", separator=";", aggregate="min")


def head_params(bias):
  draw = np.random.RandomState(1)
  return {"output": draw.standard_normal((16, 2)).astype(np.float32),
          "output_bias": np.asarray(bias, np.float32)}


def params_of(bias=(0.5, -1.0), seen=1.0):
  mean, std = jnp.array([2.0, 3.0]), jnp.array([0.5, 2.0])
  return {"trunk": random_params(SMALL), "head": head_params(bias), "frozen": {"normaliser": {
      "sum": mean * seen, "squares": (mean ** 2 + std ** 2) * seen, "weight": jnp.asarray(seen)}}}


@pytest.fixture
def saved(tmp_path):
  params = params_of()
  reward_model_files.save(tmp_path / "rm", STORED, params)
  return tmp_path / "rm", params


def change_config(directory, **changes):
  file = directory / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_saved_model_is_read_back(saved):
  stored, params = reward_model_files.load(saved[0])
  assert stored == STORED
  assert_same(params["trunk"], jax.tree.map(jnp.asarray, saved[1]["trunk"]))
  assert_same(params["head"], jax.tree.map(jnp.asarray, saved[1]["head"]))
  mean, std = reward_model.mean_and_std(params["frozen"]["normaliser"])
  np.testing.assert_allclose(mean, [2.0, 3.0], rtol=1e-6)
  np.testing.assert_allclose(std, [0.5, 2.0], rtol=1e-5)


def test_the_file_is_what_transformers_writes(saved):
  config = json.loads((saved[0] / "config.json").read_text())
  tensors = load_file(saved[0] / "model.safetensors")
  assert config["architectures"] == ["LlamaForSequenceClassification"]
  assert config["id2label"] == {"0": "helpful", "1": "brief"}
  assert tensors["score.weight"].shape == (2, 16)
  assert "lm_head.weight" not in tensors


def test_a_head_without_a_bias_has_none_in_the_file(tmp_path):
  reward_model_files.save(tmp_path / "rm", STORED, params_of(bias=(0, 0)))
  assert "score.bias" not in load_file(tmp_path / "rm/model.safetensors")
  assert not np.any(reward_model_files.load(tmp_path / "rm")[1]["head"]["output_bias"])


def test_a_frozen_trunk_and_an_untied_one_are_saved_alike(tmp_path):
  untied = dataclasses.replace(SMALL, tied_embeddings=False)
  model = dataclasses.replace(MODEL, config=untied, frozen_trunk=True)
  params = params_of()
  trunk = {**params["trunk"], "unembedding": params["trunk"]["embedding"]}
  frozen = {"head": params["head"], "frozen": {**params["frozen"], "trunk": trunk}}
  reward_model_files.save(tmp_path / "rm", dataclasses.replace(STORED, model=model), frozen)
  stored, again = reward_model_files.load(tmp_path / "rm")
  assert stored.model == MODEL
  assert_same(again["trunk"], jax.tree.map(jnp.asarray, params["trunk"]))


def test_a_public_model_is_read_at_the_end_of_a_conversation(saved):
  config = json.loads((saved[0] / "config.json").read_text())
  del config["rl_reason"], config["id2label"]
  (saved[0] / "config.json").write_text(json.dumps(config))
  stored, params = reward_model_files.load(saved[0])
  assert stored == Stored(MODEL, ("LABEL_0", "LABEL_1"), read="conversation")
  assert float(params["frozen"]["normaliser"]["weight"]) == 0


@pytest.mark.parametrize("change, message", [
    (dict(architectures=["LlamaForCausalLM"]), "is no reward model: .*LlamaForCausalLM"),
    (dict(id2label={"0": "a"}), "id2label is .* must name the 2 outputs"),
    (dict(id2label={"0": "a", "1": 7}), "id2label is .* must name the 2 outputs"),
    (dict(id2label=["a", "b"]), "id2label is .* must name the 2 outputs"),
    (dict(id2label={"0": "a", "1": "a"}), "2 outputs needs as many different names"),
    (dict(rl_reason={"read": "nowhere"}), "Unknown read 'nowhere'"),
    (dict(rl_reason={"read": ["end"]}), "config.json: "),
    (dict(hidden_size=32), "score.weight of .outputs, 32.")])
def test_what_is_no_reward_model_is_refused(change, message, saved):
  change_config(saved[0], **change)
  with pytest.raises(ValueError, match=message) as error:
    reward_model_files.load(saved[0])
  assert str(saved[0]) in str(error.value)


def test_a_head_of_another_width_or_without_numbers_is_refused(saved):
  file = saved[0] / "model.safetensors"
  tensors = load_file(file)
  save_file({**tensors, "score.bias": np.zeros(3, np.float32)}, file)
  with pytest.raises(ValueError, match="score.bias in .* has shape"):
    reward_model_files.load(saved[0])
  save_file({**tensors, "score.weight": np.full((2, 16), np.nan, np.float32)}, file)
  with pytest.raises(ValueError, match="score.weight in .* holds NaN"):
    reward_model_files.load(saved[0])


@pytest.mark.parametrize("model, head", [
    (dataclasses.replace(MODEL, head=heads.Head(outputs=2, hidden=3)), {}),
    (dataclasses.replace(MODEL, thresholds=2), {"thresholds": np.zeros((2, 2))}),
    (MODEL, {"prototypes": np.zeros((2, 16))})])
def test_heads_that_the_form_does_not_have_are_refused(model, head, tmp_path):
  params = params_of()
  params["head"] |= head
  with pytest.raises(ValueError, match="has a linear head"):
    reward_model_files.save(tmp_path / "rm", dataclasses.replace(STORED, model=model), params)
  assert not (tmp_path / "rm").exists()


def test_the_decoder_of_a_reward_model_can_be_read_alone(saved):
  assert_same(pretrained.load(saved[0]), jax.tree.map(jnp.asarray, saved[1]["trunk"]))
