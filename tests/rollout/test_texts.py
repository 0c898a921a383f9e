"""A policy as a judge's model: texts, label log-probabilities, prompts that do not fit."""

import jax
import numpy as np
import pytest

from rl_reason.batches.prompts import encode_prompts
from rl_reason.models import policy, sources
from rl_reason.rewards.judge import PairwiseJudge
from rl_reason.rollout.sampling import Sampling
from rl_reason.rollout.texts import policy_texts, PolicyTexts
from rl_reason.types import Problem

ARGS = dict(characters="abcABC|", width=16, num_layers=1)


@pytest.fixture(scope="module")
def texts():
  return policy_texts(source="small", args=ARGS, sampling=dict(max_tokens=4), max_prompt_tokens=8,
                      batch_size=2)


def test_texts_come_in_order_and_repeat(texts):
  prompts = ["a", "abc", "b", "cab|", "abcabcabc", "", "a"]
  found = texts(prompts)
  # Too long; empty.
  assert [t is None for t in found] == [False, False, False, False, True, True, False]
  assert all(isinstance(t, str) and len(t) <= 4 for t in found if t is not None)
  assert texts(prompts) == found


def test_label_logprobs_are_the_policys(texts):
  labels = ["A", "BC"]
  found = texts(["ab", "c", "abcabcabc", "b"], labels)
  assert np.isnan(found[2]).all()
  for prompt, row in zip(("ab", "c", None, "b"), found):
    for label, value in zip(labels, row):
      if prompt is not None:
        encoded = encode_prompts(
            [Problem(prompt=prompt, reference="")], texts.tokenizer, max_tokens=8)
        ids = np.array([texts.tokenizer.encode(label)], np.int32)
        logprobs, _ = policy.completion_logprobs(
            texts.config, texts.params, encoded, ids, np.array([len(label)], np.int32))
        assert value == pytest.approx(float(logprobs.sum()), abs=1e-4)


def test_a_policy_judges_its_way(texts):
  judge = PairwiseJudge(texts, template="{response_a}|{response_b}", label_logits=True)
  found = judge.compare([
      ("p", "a", "b"), ("p", "b", "a"), ("p", "abcabc", "c"), ("p", "aaaaaa", "bbbb")])
  assert found[0] == pytest.approx(1 - found[1]) and 0 < found[0] < 1 and np.isnan(found[3])


def test_limits_are_checked_before_anything_runs():
  source = sources.small(max_positions=16, **ARGS)
  params = source.make_params(jax.random.key(0), None)
  with pytest.raises(ValueError, match="context of 16 tokens"):
    PolicyTexts(source.config, params, source.tokenizer, Sampling(max_tokens=9),
                max_prompt_tokens=8)
  with pytest.raises(ValueError, match="takes no argument 'max_token'"):
    policy_texts(source="small", args=ARGS, sampling=dict(max_token=4))
