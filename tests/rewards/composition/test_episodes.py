"""Rewards, evaluation and what is logged see what the policy wrote, not what an environment did."""

import numpy as np
import pytest

from rl_reason.evaluation.accuracy import accuracy
from rl_reason.rewards import answers, format
from rl_reason.rewards import groups as group_rewards
from rl_reason.rewards.composition.build import build_rewards, BUILDER
from rl_reason.rewards.composition.component import Component
from rl_reason.rewards.composition.reward_set import RewardSet, token_rewards
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.rewards.features import FeatureReward
from rl_reason.rewards.judge import PairwiseJudge, PointwiseJudge
from rl_reason.types import Sample

SEARCH = ("<search>it</search>", "<information>{}</information>", "i do not know")


def episode(*texts, reference="42", group=0, **fields):
  """A sample of turns and answers alternately, a token for each character."""
  ends = np.cumsum([len(text) for text in texts]).tolist()
  spans = list(zip([0, *ends], ends))
  return Sample(
      prompt="p", completion="".join(texts), reference=reference, group=group,
      completion_tokens=tuple(map(ord, "".join(texts))), episode=texts,
      spans={"turn": spans[::2]}, **fields)


def searched(found, **fields):
  return episode(SEARCH[0], SEARCH[1].format(found), SEARCH[2], **fields)


# What a sample says of itself.


def test_the_own_sample_by_hand():
  # Tokens:      0 1   2 3 4   5 6 7; the policy's are 0, 1, 5, 6, 7.
  sample = episode("ab", "XYZ", "cde", environment_rewards=((1, 0.5), (7, 1.0)))
  own = sample.own
  assert own.completion == "abcde"
  assert own.completion_tokens == tuple(map(ord, "abcde"))
  assert own.spans == {"turn": [(0, 2), (2, 5)]}
  assert own.environment_rewards == ((1, 0.5), (4, 1.0))
  assert sample.own_places == (0, 1, 5, 6, 7)
  assert own.own == own


def test_a_sample_without_an_environment_is_its_own():
  sample = Sample("p", "text", "", completion_tokens=(1, 2))
  assert sample.own is sample
  assert sample.answer_text == "text"


def test_other_spans_keep_what_the_policy_wrote_of_them():
  sample = episode("ab", "XYZ", "cde")
  sample.spans["step"] = [(1, 6), (2, 4), (6, 8)]
  assert sample.own.spans["step"] == [(1, 3), (3, 5)]


def test_an_episode_that_does_not_say_whose_tokens_are_whose_is_refused():
  with pytest.raises(ValueError, match=r'give spans\["turn"\]'):
    Sample("p", "aXb", "", completion_tokens=(1, 2, 3), episode=("a", "X", "b")).own_tokens


# Verifiers.


@pytest.mark.parametrize("function, found, written", [
    (answers.number_answer, "the answer is 42", "42"),
    (answers.exact_answer, "so #42", "#42"),
    (answers.exact_match, "<answer>42</answer>", "<answer>42</answer>"),
    (answers.math_answer, r"\boxed{42}", r"\boxed{42}"),
])
def test_a_verifier_pays_for_what_the_policy_wrote(function, found, written):
  paid = function([searched(found), episode("ask", found.replace("42", "7"), written)])
  assert paid.tolist() == [0, 1]


def test_a_verdict_of_the_environment_is_none():
  sample = episode("", "<answer>[[A]]</answer>", "?", reference="A")
  assert answers.tail_verdict([sample]).tolist() == [-1]


@pytest.mark.parametrize("function", [answers.number_answer, answers.exact_answer])
def test_no_answer_spans_two_turns(function):
  assert function([episode("#4", "higher", "2")]).tolist() == [0]


def test_maj_at_k_compares_what_the_policy_wrote():
  # Twice "7" is wrong; that the tool said 42 three times is nobody's vote.
  samples = [episode("?", "42", text) for text in ("7", "7", "42")]
  got = accuracy(samples, np.array([[False, False, True]]))
  assert got["eval/maj@3"] == 0


def test_the_length_of_an_evaluation_is_the_policys():
  assert accuracy([episode("ab", "XYZ", "cde")], np.array([[True]]))["eval/length"] == 5


# Format, length, groups, judges.


@pytest.mark.parametrize("function, args", [
    (format.boxed_format, {}), (format.answer_marker_format, {}), (format.think_format, {}),
    (format.pattern_format, dict(pattern="a.*b"))])
def test_the_form_is_that_of_what_the_policy_wrote(function, args):
  shown = r"<think>x</think>y\boxed{1} #### 5"
  assert function([episode("u", shown, "v")], **args).tolist() == [0]


def test_an_overlong_penalty_counts_the_policys_tokens():
  # 10 own tokens, 50 of a tool: nothing is too long.
  sample = episode("a" * 5, "x" * 50, "b" * 5)
  assert format.overlong_penalty([sample], limit_tokens=40, buffer_tokens=20).tolist() == [0]


def test_the_shortest_completion_is_the_one_of_which_the_policy_wrote_least():
  samples = [episode("a", "x" * 50, "b"), episode("a" * 9, "x", "b" * 9)]
  assert group_rewards.relative_length(samples).tolist() == [0.5, -0.5]


def test_what_a_tool_says_makes_no_completions_alike():
  samples = [episode("abc", "the same text", "def"), episode("ghi", "the same text", "jkl")]
  assert group_rewards.diversity(samples).tolist() == [1, 1]


def test_judges_are_shown_what_the_policy_wrote():
  asked = []

  def model(prompts):
    asked.extend(prompts)
    return ["[[10]]" for _ in prompts]
  samples = [searched("SECRET"), episode("x", "SECRET", "y")]
  PointwiseJudge(model)(samples)
  PairwiseJudge(model)(samples)
  PairwiseJudge(model, against="reference")(samples)
  assert len(asked) == 2 + 2 + 4
  assert not any("SECRET" in text for text in asked)


# Rewards of one's own.


def says_42(samples):
  return [float("42" in s.completion) for s in samples]


def length(samples):
  return [float(len(s.completion_tokens)) for s in samples]


def whole_length(samples):
  return length(samples)


whole_length.sees_episode = True


def score(function, *samples):
  return RewardSet([Component("it", function)]).score(samples)


def test_a_reward_that_asks_for_nothing_sees_the_policys_words():
  assert score(says_42, searched("42"), episode("", "x", "42")).total.tolist() == [0, 1]
  assert score(length, episode("ab", "XYZ", "cde")).total.tolist() == [5]


def test_a_reward_that_asks_for_the_episode_gets_it():
  assert score(whole_length, episode("ab", "XYZ", "cde")).total.tolist() == [8]


def test_rewards_of_turns_are_paid_at_the_turns_last_tokens_of_the_episode():
  def turns(samples):
    return StepRewards.at_spans(samples, [[1.0, 2.0]] * len(samples), span="turn")
  scores = score(turns, episode("ab", "XYZ", "cde"))
  np.testing.assert_array_equal(token_rewards(scores, [8], 8), [[0, 1, 0, 0, 0, 0, 0, 2]])


def test_steps_beyond_the_policys_tokens_are_refused():
  def beyond(samples):
    return StepRewards([[1.0]], [[6]])
  with pytest.raises(ValueError, match="of a completion of 5 tokens"):
    score(beyond, episode("ab", "XYZ", "cde"))


def test_what_the_environment_pays_stays_at_its_place():
  sample = episode("ab", "XYZ", "cde", environment_rewards=((1, 0.5), (7, 1.0)))
  scores = build_rewards({"environment": 1.0}).score([sample])
  np.testing.assert_array_equal(token_rewards(scores, [8], 8), [[0, 0.5, 0, 0, 0, 0, 0, 1]])


def test_a_reward_of_rewards_lets_each_choose():
  pair = group_rewards.OneOfEach(outcome=dict(environment=1.0), build=BUILDER)
  samples = [episode("a", "X", "b", environment_rewards=((2, paid),)) for paid in (1.0, 0.0)]
  assert score(pair, *samples).total.tolist() == [1, 1]


def test_features_are_those_of_what_the_policy_wrote():
  features = FeatureReward(
      scorers={"said": f"{__name__}:says_42", "room": {"function": f"{__name__}:is_whole"}},
      data=dict(source="reviews", args=dict(size=8, seed=0)), build=BUILDER)
  assert features.features([searched("42")]).tolist() == [[0, 1]]


def is_whole(samples):
  return [float("<information>" in s.completion) for s in samples]


is_whole.sees_episode = True
