"""Reward models in files: scored as their conversations alone, judged, and used as a reward."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason import judge
from rl_reason.arrays import Inputs
from rl_reason.batches.responses import encode_conversations
from rl_reason.models import heads, reward_model, reward_model_files, transformer
from rl_reason.models import tokenizer as tokenizers
from rl_reason.models.config import small
from rl_reason.models.reward_model_files import Stored
from rl_reason.run.earlier import scorer_of_run
from rl_reason.tasks.preferences import comparisons
from tests.models.test_pretrained import random_params
from tests.models.test_tokenizer import IM_END, model_directory, THINK

CONFIG = small(vocab_size=THINK + 1, width=16, num_layers=1, num_heads=2)
MODEL = reward_model.RewardModel(CONFIG, heads.Head())
CHAT = ({"role": "user", "content": "hello"},)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A reward model's directory as transformers would write it, with a chat template."""
  path = tmp_path_factory.mktemp("files") / "rm"
  params = {"trunk": random_params(CONFIG), "head": {
      "output": np.random.RandomState(1).standard_normal((16, 1)).astype(np.float32),
      "output_bias": np.zeros(1, np.float32)}, "frozen": {"normaliser": {
          "sum": jnp.zeros(1), "squares": jnp.zeros(1), "weight": jnp.zeros(())}}}
  reward_model_files.save(path, Stored(MODEL, ("reward",)), params)
  model_directory(path)
  return path


def alone(directory, messages):
  """The score of one whole conversation, at its last token, without any batching."""
  text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
  ids = tokenizers.load(directory).encode(text, allow_special=True)
  _, params = reward_model_files.load(directory)
  hidden, _ = transformer.forward(
      CONFIG, params["trunk"], Inputs(jnp.asarray([ids]), jnp.asarray([len(ids)])))
  return float(hidden[0, -1] @ params["head"]["output"][:, 0])


def test_scores_are_those_of_each_conversation_alone(directory):
  scorer = scorer_of_run(str(directory))
  texts = ("world", "w", "hello hello")
  rows = scorer(scorer.encode_rows([(CHAT, texts), ("hello", texts[:1])]))
  expected = [alone(directory, (*CHAT, {"role": "assistant", "content": t})) for t in texts]
  np.testing.assert_allclose(rows[0].totals[:, 0], expected, rtol=2e-5)
  np.testing.assert_allclose(rows[1].totals[0, 0], expected[0], rtol=2e-5)


def test_conversations_end_as_the_template_ends_them(directory):
  encoded = encode_conversations(tokenizers.load(directory), CHAT, ["wx", "w"])
  whole = encoded.prompt + encoded.responses[0]
  assert whole[-2] == IM_END  # "\\n" follows it in this template, and is where the score is read.
  assert encoded.places == [[len(ids) - 1] for ids in encoded.responses]


def test_control_tokens_in_a_response_are_text(directory):
  encoded = encode_conversations(
      tokenizers.load(directory), CHAT, ["<|im_end|>", "plain"])
  ids = encoded.prompt + encoded.responses[0]
  assert ids.count(IM_END) == 2  # The user's turn and the assistant's.


def test_a_response_keeps_a_token_where_one_begins_another(directory):
  encoded = encode_conversations(tokenizers.CharacterTokenizer("ab"), "a", ["", "b", "b"])
  assert encoded.prompt == [1]
  assert encoded.responses == [[0], [2, 0], [2, 0]]


def test_a_public_model_is_judged(directory, tmp_path):
  rows = [{"prompt": "hello", "chosen": "world", "rejected": "w"},
          {"prompt": "hello", "chosen": "w", "rejected": "hello hello"}]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  score = judge.make_scorer("reward_model", {"workdir": str(directory)})
  source = comparisons(str(tmp_path / "rows.jsonl"), format="pairs")
  value = {t: alone(directory, (*CHAT, {"role": "assistant", "content": t}))
           for t in ("world", "w", "hello hello")}
  right = (value["world"] > value["w"]) + (value["w"] > value["hello hello"])
  report = judge.judge_beside_baselines(score, source)["scorer"]
  assert report.estimates["accuracy"].value == right / 2


def test_a_text_longer_than_the_context_is_refused(directory):
  scorer = scorer_of_run(str(directory))
  with pytest.raises(ValueError, match="exceed the reward model's context"):
    scorer(scorer.encode_rows([(CHAT, ["w" * 2000])]))
