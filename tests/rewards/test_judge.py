"""Generative judges: strict parsing of hostile texts, swapped positions, votes, label logits.

Also the cache, and rewards.
"""

import json
import math

import numpy as np
import pytest

from rl_reason import judge as judge_lib
from rl_reason.evaluation import reward_models
from rl_reason.judges.verdicts import parse_rating, parse_verdict
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.component import Component
from rl_reason.rewards.composition.reward_set import RewardSet
from rl_reason.rewards.judge import PairwiseJudge, PointwiseJudge
from rl_reason.types import Comparison, Sample

SHORT = "{prompt}|{response_a}|{response_b}"


class Script:
  """A judge model that answers by a function of the prompt, and remembers what it was asked."""

  def __init__(self, answer):
    self.answer, self.asked = answer, []

  def __call__(self, prompts, labels=None):
    self.asked += prompts
    return [self.answer(p) if labels is None else self.answer(p, labels) for p in prompts]


def larger(prompt):
  """Prefers the larger number."""
  _, a, b = prompt.split("|")
  return "Thinking... [[A]]" if int(a) > int(b) else "[[B]]" if int(b) > int(a) else "[[C]]"


def shouting(*, word):
  return lambda prompts: [f"[[{word}]]"] * len(prompts)


def always_first(prompts):
  return ["[[A]]"] * len(prompts)


# --- Parsing.


@pytest.mark.parametrize("text, expected", [
    ("I compare. [[A]]", "A"), ("[[B]] \n\n", "B"), ("[[A]] so [[A]]", "A"), ("[[ A ]]", "A"),
    ("[[C]]", "C"), ("", None), ("A", None), ("[A]", None), ("[[a]]", None), ("[[D]]", None),
    ("[[A]] or [[B]]", None), ("[[A]]" + "x" * 80, None), ("[[B]]" + "x" * 100 + "[[A]]", "A"),
    ("[[[A]]]", "A"), ("[[A]", None), ("[[A B]]", None), ("[[А]]", None), ("\x00\ud800[[B]]", "B"),
    (None, None), (7, None), ("[[" * 100_000, None), ("[[A]] [[maybe]]", None)])
def test_verdicts_are_read_strictly(text, expected):
  assert parse_verdict(text, ("A", "B", "C")) == expected


@pytest.mark.parametrize("text, expected", [
    ("[[7]]", 7.0), ("Rating: [[ 3.5 ]].", 3.5), ("[[10]]", 10.0), ("[[7]] [[7]]", 7.0),
    ("[[0]]", None), ("[[11]]", None), ("[[7]] [[8]]", None), ("[[nan]]", None), ("[[inf]]", None),
    ("[[1e1]]", None), ("[[7/10]]", None), ("[[٧]]", None), ("[[1_0]]", None),
    ("[[" + "9" * 15 + "]]", None), ("7", None), (None, None)])
def test_ratings_are_read_strictly(text, expected):
  assert parse_rating(text, 1, 10) == expected


# --- Pairwise.


def test_swapping_undoes_a_preference_for_places():
  fair = PairwiseJudge(Script(larger), template=SHORT)
  biased = PairwiseJudge(Script(lambda p: "[[A]]"), template=SHORT)
  assert fair.compare([("q", "2", "1"), ("q", "1", "2"), ("q", "2", "2")]).tolist() == [
      1.0, 0.0, 0.5]
  assert biased.compare([("q", "2", "1")]).tolist() == [0.5]
  assert biased.generate.asked == ["q|2|1", "q|1|2"]
  # In one order only: the order does not depend on which response the caller names first.
  once = PairwiseJudge(Script(lambda p: "[[A]]"), template=SHORT, swap=False)
  first, second = once.compare([("q", "2", "1"), ("q", "1", "2")])
  assert first + second == 1.0 and len(once.generate.asked) == 1
  firsts = [once.compare([("q", str(i), str(i + 1))])[0] for i in range(100)]
  assert 20 < sum(firsts) < 80


def test_an_order_without_a_verdict_is_an_abstention():
  judge = PairwiseJudge(Script(lambda p: "[[A]]" if p == "q|2|1" else "no idea"), template=SHORT)
  found = judge.compare([("q", "2", "1"), ("q", "3", "1")])
  assert np.isnan(found).all() and judge.counts["abstained"] == 2 and judge.counts["failed"] == 0
  # Its comparisons are left out of the others' worth.
  judge = PairwiseJudge(Script(lambda p: "?" if "9" in p else larger(p)), template=SHORT)
  (scores,) = judge.score([("q", ("3", "9", "1"))])
  assert scores[0] == 1.0 and math.isnan(scores[1]) and scores[2] == 0.0


def test_worth_against_the_other_responses():
  judge = PairwiseJudge(Script(larger), template=SHORT)
  scores = judge.score([("q", ("3", "1", "2")), ("r", ("5", "5")), ("s", ("1",))])
  assert scores[0].tolist() == [1.0, 0.0, 0.5]
  assert scores[1].tolist() == [0.5, 0.5]
  assert math.isnan(scores[2][0])
  # Three pairs in both orders; equal texts are not asked about.
  assert len(judge.generate.asked) == 6


def test_votes_decide_by_most():
  answers = iter(["[[A]]", "[[B]]", "[[A]]", "?", "[[B]]", "[[B]]"])
  judge = PairwiseJudge(lambda prompts: [next(answers) for _ in prompts], template=SHORT, votes=3)
  # First order: A twice of three; swapped order: B, the same response, twice of two.
  assert judge.compare([("q", "x", "y")]).tolist() == [1.0]
  answers = iter(["[[A]]", "[[B]]"])
  judge = PairwiseJudge(
      lambda prompts: [next(answers) for _ in prompts], template=SHORT, votes=2, swap=False)
  assert judge.compare([("q", "x", "y")]).tolist() == [0.5]


def test_label_logits_give_probabilities():
  # P(first shown) 0.8, P(second shown) 0.1, tie 0.1, whatever stands there:
  # 0.85 and, swapped, 1 − 0.85.
  biased = PairwiseJudge(
      Script(lambda p, labels: np.log([0.8, 0.1, 0.1])), template=SHORT, label_logits=True)
  assert biased.compare([("q", "x", "y")])[0] == pytest.approx(0.5)
  def knows(prompt, labels):
    assert labels == ["A", "B", "C"]
    if prompt == "q|x|y":
      return [math.log(0.75), math.log(0.25), -math.inf]
    return [-math.inf, 5.0, -math.inf]
  judge = PairwiseJudge(Script(knows), template=SHORT, label_logits=True)
  assert judge.compare([("q", "x", "y")])[0] == pytest.approx((0.75 + 1.0) / 2)
  failed = PairwiseJudge(
      Script(lambda p, labels: [math.nan] * 3), template=SHORT, label_logits=True)
  assert np.isnan(failed.compare([("q", "x", "y")])[0]) and failed.counts["failed"] == 2
  rating = PointwiseJudge(
      Script(lambda p, labels: [math.log(0.5), -math.inf, math.log(0.5)]), low=1, high=3,
      label_logits=True)
  assert rating.score([("q", "x")]).tolist() == pytest.approx([2.0])


# --- Pointwise.


def test_ratings_as_scores_and_rewards():
  answers = {"good": "[[10]]", "so-so": "[[5]]", "bad": "[[1]]", "odd": "eleven"}
  judge = PointwiseJudge(Script(answers.get), template="{response}", abstention=-0.5)
  scores = judge.score([("p", text) for text in answers])
  assert scores[:3].tolist() == [10.0, 5.0, 1.0]
  assert math.isnan(scores[3])
  assert judge.counts["abstained"] == 1
  rewards = judge([Sample("p", text, "") for text in answers])
  assert rewards.tolist() == pytest.approx([1.0, 4 / 9, 0.0, -0.5])
  votes = iter(["[[4]]", "?", "[[8]]"])
  judge = PointwiseJudge(lambda prompts: [next(votes) for _ in prompts], votes=3)
  assert judge.score([("p", "x")]).tolist() == [6.0]


# --- Cache.


def test_nothing_is_asked_twice_and_failures_are_asked_again():
  script = Script(lambda p: None if "|9|" in p else larger(p))
  judge = PairwiseJudge(script, template=SHORT, swap=False)
  judge.compare([("q", "1", "2"), ("q", "1", "2"), ("q", "9", "9")])
  assert len(script.asked) == 2
  assert judge.counts == {"asked": 2, "cached": 1, "failed": 1, "abstained": 1}
  judge.compare([("q", "1", "2"), ("q", "9", "9")])
  assert len(script.asked) == 3  # The failed one only.


def test_a_run_logs_abstentions_by_component():
  judge = PointwiseJudge(lambda prompts: ["[[4]]", None, "?"])
  rewards = RewardSet([Component("taste", judge)])
  rewards([Sample(prompt="p", completion=text, reference="") for text in "xyz"])
  assert rewards.metrics() == {
      "taste/asked": 3, "taste/cached": 0, "taste/failed": 1, "taste/abstained": 2}


def test_a_restored_judge_answers_from_its_state():
  judge = PairwiseJudge(Script(larger), template=SHORT)
  before = judge.compare([("q", "1", "2"), ("q", "5", "3")])
  state = json.loads(json.dumps(judge.state()))
  again = PairwiseJudge(Script(lambda p: pytest.fail("asked again")), template=SHORT)
  again.restore(state)
  np.testing.assert_array_equal(again.compare([("q", "1", "2"), ("q", "5", "3")]), before)
  assert again.state()["cache"] == state["cache"]
  small = PairwiseJudge(Script(larger), template=SHORT, cache_size=3)
  np.testing.assert_array_equal(small.compare([("q", "1", "2"), ("q", "5", "3")]), before)
  assert len(small.state()["cache"]) == 3


def test_a_cache_file_survives_a_kill(tmp_path):
  path = tmp_path / "cache.jsonl"
  PairwiseJudge(Script(larger), template=SHORT, cache_file=str(path)).compare([("q", "1", "2")])
  with open(path, "a") as f:
    f.write('["half a li')  # What a killed process leaves.
  script = Script(larger)
  judge = PairwiseJudge(script, template=SHORT, cache_file=str(path))
  assert judge.compare([("q", "1", "2")]).tolist() == [0.0] and not script.asked
  judge.compare([("q", "5", "6")])  # Written after the half line: still readable.
  script = Script(larger)
  assert PairwiseJudge(
      script, template=SHORT, cache_file=str(path)).compare([("q", "5", "6")]).tolist() == [0.0]
  assert not script.asked
  path.write_text("oh\n")
  with pytest.raises(ValueError, match=r"cache\.jsonl:1 is no \[key, answer\]"):
    PairwiseJudge(script, template=SHORT, cache_file=str(path))


# --- Rewards and scorers.


def test_rewards_from_a_config():
  rewards = build_rewards({"judge_preference": {"weight": 0.5, "args": {
      "generate": f"{__name__}:shouting", "generate_args": {"word": "A"}, "template": SHORT}}})
  group = [Sample("q", text, "", group=g) for g, text in ((0, "x"), (0, "y"), (1, "x"))]
  total, components = rewards(group)
  # The judge prefers a place: a tie. A group of one has nothing to compare with:
  # the abstention's reward.
  assert components["judge_preference"].tolist() == [0.5, 0.5, 0.5] and total.tolist() == [0.25] * 3
  assert set(rewards.state()) == {"judge_preference"}
  rewards.restore(json.loads(json.dumps(rewards.state())))
  with pytest.raises(ValueError, match="takes no argument 'tempalte'"):
    build_rewards(
        {"judge_rating": {"args": {"generate": f"{__name__}:always_first", "tempalte": "x"}}})


def test_groups_are_judged_apart_and_references_are_checked():
  judge = PairwiseJudge(Script(larger), template=SHORT)
  group = [Sample("q", text, "", group=g) for g, text in ((0, "3"), (1, "4"), (0, "1"), (1, "9"))]
  assert judge(group).tolist() == [1.0, 0.0, 0.0, 1.0]
  against = PairwiseJudge(Script(larger), template=SHORT, against="reference")
  answered = [Sample("q", "5", "3"), Sample("q", "2", "3"), Sample("q", "3", "3")]
  assert against(answered).tolist() == [1.0, 0.0, 0.5]
  assert against.check_references(["3", " "])[0] is None
  assert "blank" in against.check_references(["3", " "])[1]
  assert judge.check_references([" "]) == [None]


def test_judges_are_scorers_that_can_be_judged():
  rows = [Comparison(f"{i}?", ("7", "5", "3"), (1.0, 0.0, 0.0)) for i in range(4)]
  score = judge_lib.make_scorer(
      "judge_preference", {"generate": f"{__name__}:larger_texts", "template": SHORT})
  assert reward_models.judge(score, rows).estimates["top1"].value == 1.0
  # One that prefers a place is at chance, whatever the file's order:
  # here the better one always stands first.
  score = judge_lib.make_scorer("judge_preference", {"generate": f"{__name__}:always_first"})
  assert reward_models.judge(score, rows).estimates["accuracy"].value == 0.5
  score = judge_lib.make_scorer("judge_rating", {"generate": f"{__name__}:rates_seven"})
  report = reward_models.judge(score, rows)
  # 5 and 3 are not rated at all.
  assert report.estimates["accuracy"].value == 1.0
  assert report.counts["failed"] == 8


def larger_texts(prompts):
  return [larger(p) for p in prompts]


def rates_seven(prompts):
  return ["[[9]]" if "\n7\n" in p else "well" for p in prompts]


@pytest.mark.parametrize("make, message", [
    (lambda: PairwiseJudge(larger_texts, template="{prompt}|{response_a}"),
     r"fields \{response_a\}, \{response_b\}"),
    (lambda: PointwiseJudge(larger_texts, template="{response}{secret}"),
     r"it holds \['response', 'secret'\]"),
    (lambda: PairwiseJudge(larger_texts, votes=0), "votes must be an integer of at least 1"),
    (lambda: PairwiseJudge(larger_texts, votes=2, label_logits=True), "votes must be 1"),
    (lambda: PairwiseJudge(larger_texts, labels="AAB"), "three different texts"),
    (lambda: PairwiseJudge(larger_texts, against="all"), "against must be"),
    (lambda: PointwiseJudge(larger_texts, low=3, high=3), "low below high"),
    (lambda: PointwiseJudge(larger_texts, abstention=math.nan),
     "abstention must be a finite number"),
    (lambda: PointwiseJudge("chat_endpiont"), "Did you mean 'chat_endpoint'"),
    (lambda: PointwiseJudge("chat_endpoint", generate_args={"url": "x"}),
     "needs the argument model"),
    (lambda: PointwiseJudge(lambda prompts: []).score([("p", "x")]),
     "returned 0 texts for 1 prompts"),
    (lambda: PointwiseJudge(lambda p, labels: [[0.0]], label_logits=True).score([("p", "x")]),
     r"shape \(1, 1\) for 1 prompts and 10"),
])
def test_bad_arguments_and_models_say_what_to_change(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_braces_in_responses_are_text():
  script = Script(lambda p: "[[A]]")
  PairwiseJudge(script).compare([("{prompt}", "{response_b}", "{0}")])
  assert "{response_b}\n[End of response A]" in script.asked[0]
