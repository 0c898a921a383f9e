"""Rewards: hand-worked values, hostile completions, bad references, the set that composes them."""

import contextlib
import inspect
import re
import subprocess
import sys
import threading
import time

import ml_collections
import numpy as np
import pytest

from rl_reason.rewards import answers, format
from rl_reason.rewards.composition import component, reward_set
from rl_reason.rewards.composition import scoring as rewards
from rl_reason.rewards.composition.build import build_rewards, BUILDER
from rl_reason.rewards.registry import REWARDS
from rl_reason.sandbox import answer_text
from rl_reason.sandbox import pool as workers
from rl_reason.types import Sample
from tests import ROOT


def sample(completion, reference="7", prompt="p", **fields):
  return Sample(prompt=prompt, completion=completion, reference=reference, **fields)


def scores(reward, cases, **args):
  return reward([sample(c, r) for c, r in cases], **args).tolist()


HOSTILE = [
    "", " ", "\0", "\ud800", "\u202e8\u0661", "\\", "{" * 1_000_000, "\\boxed{" * 100_000,
    "\\" * 300_001, "}" * 1000 + "\\boxed{}",
    "9" * 100_000, "\\boxed{" + "9" * 100_000 + "}", "1," * 300_000, "1,111" * 100_000,
    "-" * 300_000, "1/0", "9e999999999", "$" * 99_999,
    "\\boxed{" + "\\frac{1}{" * 100 + "2" + "}" * 101, "\\boxed{" + "{" * 900 + "}" * 901,
    "<think>" * 100_000, "#" * 300_000,
    "\\boxed{\\text{\\{}", "\\boxed{\\lim_{x \\to}}", "\\boxed{\\begin{pmatrix} 1 & \\end{array}}",
    "\\boxed" + " " * 300_000,
]


# --- Extraction


@pytest.mark.parametrize("text, expected", [
    (r"so \boxed{7}.", "7"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{\sqrt{2}}} }", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # One escaped brace only.
    (r"{ { \boxed{3}", "3"),  # Braces that never close do not matter.
    (r"\boxed{1} \boxed{2", "1"),  # A box that never closes does not count.
    (r"\boxed{\boxed{4}}", "4"),
    (r"a \\ \boxed{5} \\\boxed{6}", "6"),
    (r"\\boxed{5}", "5"),  # Escaped twice, as models trained on JSON write.
    (r"\fbox{8}", "8"), (r"\boxed {9}", "9"), (r"\boxed{}", ""),
    (r"boxed{3}", None), ("7", None), ("", None),
])
def test_last_boxed(text, expected):
  assert answer_text.last_boxed(text) == expected


@pytest.mark.parametrize("text, written, value", [
    ("#### 72", "72", 72), ("costs $1,234.50.", "$1,234.50", 1234.5), ("is 50%", "50", 50),
    ("it is -3.", "-3", -3), ("10-3", "3", 3), ("10 -3", "3", 3), ("day-3", "3", 3),
    ("-$5", "-$5", -5), ("\u22125", "\u22125", -5),
    ("= 3/4 of it", "3/4", 0.75),
    ("007", "007", 7), ("3.0", "3.0", 3), (".5", ".5", 0.5), ("1.5e3 m", "1.5e3", 1500),
    ("1{,}000", "1000", 1000), (r"\$5\,000 more", "$5000", 5000), ("x2 is 4", "4", 4),
    ("4 is x2", "4", 4), ("1,2,3", "3", 3), ("(3,4)", "4", 4),
    ("12,345,678", "12,345,678", 12345678), ("Rs.500", "500", 500), ("1/0", "1/0", None),
    ("5kg", "5", 5), ("$ 18", "$ 18", 18),
])
def test_last_number(text, written, value):
  assert answers.last_number(text) == written
  assert answers.number_value(written) == value


def test_no_number():
  for text in ("", "none", "x2", "\u0661", "--", "1e"):
    assert answers.number_value(text) is None
  for text in ("", "none", "x2", "\u0661"):
    assert answers.last_number(text) is None
  assert answers.number_value("72 dollars") is None
  assert answers.number_value("9" * 1000) == 10**1000 - 1
  assert answers.number_value("9" * 1001) is None


def test_after_marker():
  assert answers.after_marker("a #### 5 #### 6\n") == "6"
  assert answers.after_marker("5") is None
  assert answers.after_marker("7+5=12;#12", "#") == "12"


# --- Answers


def test_exact_answer_by_hand():
  cases = [
      ("7+5=12;12-3=9;#9", "9"), ("#9 ", " 9"), ("#8", "9"), ("9", "9"), ("#1#9", "9"),
      ("#9.", "9"), ("", "9"), ("#", "9")]
  assert scores(answers.exact_answer, cases) == [1, 1, 0, 0, 1, 0, 0, 0]
  assert scores(answers.exact_answer, [("#### 9", "9"), ("# 9", "9")], marker="####") == [1, 0]


def test_number_answer_by_hand():
  cases = [
      ("She has 5 + 4 = <<5+4=9>>9 left.\n#### 9", "9"),  # GSM8K's form.
      # SVAMP's references.
      ("so 1,200 dollars", "1200"), ("1200", "1,200"), ("$1200.00", "1200"),
      ("The answer is 8.", "8.0"), ("50%", "50"), ("1/2", "0.5"), ("0.5000001", "1/2"),
      ("0.50001", "1/2"), ("9, no, 8", "9"), ("-9", "9"), ("nine", "9"),
      ("12345678901234567891", "12345678901234567890"),  # Equal as floats.
  ]
  assert scores(answers.number_answer, cases) == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
  assert scores(answers.number_answer, [("3.14", "3.14159")], tolerance=0.01) == [1]


MATH = [  # (completion, reference, equal?)
    (r"so \boxed{\frac12}", "0.5", 1),
    (r"\boxed{0.5}", r"\frac12", 1),
    (r"\boxed{0.5}", r"$\frac{1}{2}$", 1),
    ("the half, 1/2", "0.5", 1),
    (r"\boxed{\{1,2\}}", r"\{2,1\}", 1), (r"\boxed{1}", r"\{1,2\}", 0), (r"\boxed{4}", "(3,4)", 0),
    (r"\boxed{(3, 4)}", "(3,4)", 1),
    (r"\boxed{1{,}000}", "1000", 1), (r"\boxed{1\,000}", "1,000", 1), (r"\boxed{0}", r"1\,000", 0),
    ("it is 1,000.", r"1\,000", 1),
    (r"\boxed{3}", "x=3", 1), (r"\boxed{x=3}", "3", 1), (r"\boxed{x=4}", "3", 0),
    (r"\boxed{50\%}", r"50\%", 1), (r"\boxed{0.5}", "50%", 1), (r"\boxed{5\text{ cm}}", "5", 1),
    (r"\boxed{5}", r"5 \text{ cm}^2", 1),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
    (r"\boxed{(x+1)^2}", r"x^2+2x+1", 1),
    (r"\boxed{x^2+1}", r"x^2+2x+1", 0),
    (r"\boxed{\text{Evelyn}}", "Evelyn", 1), (r"\boxed{\text{Evan}}", r"\text{Evelyn}", 0),
    (r"\boxed{\text{(C)}}", r"\text{(C)}", 1),
    (r"\boxed{3} or rather \boxed{4}", "4", 1),
    (r"\boxed{3} or rather \boxed{4}", "3", 0),
    (r"\boxed{7", "7", 0),
    (r"7 \boxed{}", "7", 0),
    (r"\boxed{4}", r"Thus $x = \boxed{4}$.", 1), (r"\boxed{$1,000}", "$1,000", 1),
    (r"$x$" * 1000 + "\nso the answer is $8$", "8", 1),
]


def test_math_answer_by_hand():
  got = scores(answers.math_answer, [case[:2] for case in MATH])
  wrong = [case for case, score in zip(MATH, got, strict=True) if score != case[2]]
  assert not wrong


def test_math_answer_agrees_with_math_verify_itself():
  import math_verify
  answers_ = [
      r"\frac{3}{4}", "0.75", r"\sqrt{3}", r"\frac{\sqrt{12}}{2}", "(1,2)", "[1,2]", "1+x", "2,3",
      "3,2", r"\infty", r"x \in [1,2]", "3+4i", "10^{-2}", "0.01"]
  pairs = [(rf"\boxed{{{a}}}", b) for a in answers_ for b in answers_]
  gold = {b: math_verify.parse(f"${b}$") for b in answers_}
  expected = [float(math_verify.verify(gold[b], math_verify.parse(a))) for a, b in pairs]
  assert len(answers_) < sum(expected) < len(pairs) / 2
  assert scores(answers.math_answer, pairs) == expected


@pytest.mark.parametrize("name, args", [
    ("exact_answer", {}), ("number_answer", {}), ("math_answer", {"timeout_seconds": 2.0}),
    ("boxed_format", {}), ("think_format", {}),
    ("answer_marker_format", {}), ("pattern_format", {"pattern": ".*7"}),
    ("overlong_penalty", {"limit_tokens": 4, "buffer_tokens": 2})])
def test_hostile_completions_score(name, args):
  good = "<think>a</think> \\boxed{7}\n#### 7"
  samples = [sample(c, completion_tokens=(1, 2, 3, 4)) for c in [*HOSTILE, good]]
  start = time.monotonic()
  result = REWARDS[name](samples, **args)
  assert time.monotonic() - start < 12
  assert result.shape == (len(samples),)
  assert result.dtype == np.float32
  assert np.isfinite(result).all()
  if name != "overlong_penalty":
    assert not result[:-1].any() or name in ("boxed_format", "pattern_format")
    assert result[-1] == 1


def test_math_that_never_ends_scores_zero_and_is_counted():
  before = workers.failure_counts().get("timeout", 0)
  cases = [
      ("9**9**9**9", "7"), (r"\boxed{9^{9^{9^{9}}}}", "7"), (r"\boxed{7}", "7"),
      (r"\boxed{9^{9^{9^{9}}}}", "7")]
  start = time.monotonic()
  assert scores(answers.math_answer, cases, timeout_seconds=1.0) == [0, 0, 1, 0]
  assert time.monotonic() - start < 10
  assert workers.failure_counts()["timeout"] == before + 2  # Two of the three are the same pair.


def test_an_answer_whose_worker_was_stopped_is_neither_right_nor_wrong(monkeypatch):
  class Pool:
    def map(self, items, on_failure):
      return [None if "8" in (text or reference) else True for text, reference in items]
  monkeypatch.setattr(answers, "_math_pool", lambda *_: Pool())
  cases = [(r"\boxed{7}", "7"), (r"\boxed{8}", "7")]
  assert scores(answers.math_answer, cases) == [1, None]
  samples = [sample(*case) for case in cases]
  assert build_rewards({"math_answer": 1.0})(samples)[0].tolist() == [1, 1]
  assert answers.math_references(["8"]) == [None]


def test_equal_pairs_are_checked_once(monkeypatch):
  seen = []
  class Pool:
    def map(self, items, on_failure):
      seen.extend(items)
      return [True] * len(items)
  monkeypatch.setattr(answers, "_math_pool", lambda *_: Pool())
  cases = [(f"way {i}: \\boxed{{7}}", "7") for i in range(8)] + [("", "7")]
  assert scores(answers.math_answer, cases) == [1] * 8 + [0]
  assert seen == [(r"\boxed{7}", "7")]


# --- References


@pytest.mark.parametrize("name, references", [
    ("exact_answer", ["", " "]), ("number_answer", ["", "seven", "72 dollars", "1/0", "9" * 2000]),
    ("math_answer", ["", " ", r"\boxed{}", r"\frac{1}{", "???"])])
def test_bad_references_are_named(name, references):
  for reference in references:
    with pytest.raises(ValueError, match=re.escape(repr(reference)[:40])):
      REWARDS[name]([sample(r"#7 \boxed{7}", reference, prompt="What is it?")])
  assert all(REWARDS[name].check_references(references))
  assert REWARDS[name].check_references(["7", "1,200", "0.5", "7"]) == [None] * 4


def test_check_references_names_the_row_and_its_id():
  reward = build_rewards({"number_answer": 1, "boxed_format": 1})
  reward.check_references(["1", "2"])
  message = (
      r"'number_answer' cannot use 2 of 4 references. The first is number 1 \(id 'b'\), 'two':"
      " it is not")
  with pytest.raises(ValueError, match=message):
    reward.check_references(iter(["1", "two", "3", "four"]), ids="abcd")
  message = (
      r"'m' cannot use 1 of 2 references. The first is number 1, '.*frac\{1':"
      " math-verify finds no mathematics")
  with pytest.raises(ValueError, match=message):
    build_rewards({"m": {"function": "math_answer"}}).check_references(["1", r"\frac{1"])


# --- Format


def test_formats_by_hand():
  cases = [r"\boxed{7}", r"\boxed{ }", "7", r"\boxed{7"]
  assert scores(format.boxed_format, [(c, "") for c in cases]) == [1, 0, 0, 0]
  cases = [
      "<think>a\nb</think>7", " <think>a</think>\n7", "<think>a</think>", "<think> </think>7",
      "a</think>7", "<think>7", "<think>a</think>b</think>7", "x<think>a</think>7",
      "</think>a<think>7"]
  assert scores(format.think_format, [(c, "") for c in cases]) == [1, 1, 0, 0, 0, 0, 0, 0, 0]
  assert format.think_format([sample("a</think>7", prompt="user: 3+4?<think>\n")]) == [1]
  cases = ["a\n#### 7", "#### 7\n", "####", "#### 7\nor 8", "#### 7 #### 8", "7"]
  assert scores(format.answer_marker_format, [(c, "") for c in cases]) == [1, 1, 0, 0, 0, 0]
  cases = ["a\nb7", "b7 ", "7" * 100_001]
  assert scores(format.pattern_format, [(c, "") for c in cases], pattern=".*7") == [1, 0, 0]


def test_a_pattern_that_takes_too_long_scores_zero_and_is_counted():
  before = workers.failure_counts().get("timeout", 0)
  texts = ["<think>" + "</think>" * 12_000, "<think>a</think><answer>7</answer>", "a" * 40]
  start = time.monotonic()
  pattern = "<think>.*</think>.*<answer>.*</answer>|(a+)+b"
  assert format.pattern_format(
      [sample(t) for t in texts], pattern=pattern, timeout_seconds=0.5).tolist() == [0, 1, 0]
  assert time.monotonic() - start < 10
  assert workers.failure_counts()["timeout"] == before + 2


def test_overlong_penalty_by_hand():
  # Limit 10, buffer 4 (DAPO eq. 13): 0 up to 6 tokens, then (6 - length) / 4.
  samples = [
      sample("x" if n else "", completion_tokens=tuple(range(n))) for n in (0, 6, 7, 8, 10, 11)]
  assert format.overlong_penalty(samples, limit_tokens=10, buffer_tokens=4).tolist() == [
      0, 0, -0.25, -0.5, -1, -1]
  with pytest.raises(ValueError, match="completion_tokens"):
    format.overlong_penalty([sample("x")], limit_tokens=10, buffer_tokens=4)


def test_every_reward_states_its_range_and_takes_no_samples():
  needed = {
      "pattern_format": {"pattern": "x"},
      "overlong_penalty": {"limit_tokens": 2, "buffer_tokens": 1},
      "one_of_each": {"outcome": {"exact_answer": 1.0}},
      "judge_rating": {"generate": "json:dumps"},
      "judge_preference": {"generate": "json:dumps"}}
  for name, function in REWARDS.items():
    if "models" in inspect.signature(function).parameters or name in (
        "turn_judge", "feature_reward", "environment"):
      # Only a run has models (test_learned.py); the others are tested by themselves, and have
      # ranges of their own.
      continue
    assert re.search(
        r"in (\{0, 1\}|\{-1, 1\}|\[-1, 0\]|\[0, 1\]|\[-0.5, 0.5\])",
        function.__doc__.splitlines()[0]), name
    args = needed.get(name, {})
    if "build" in inspect.signature(function).parameters:
      args = args | {"build": BUILDER}
    if inspect.isclass(function):
      function, args = function(**args), {}
    assert function([], **args).shape == (0,)


# --- Composition


def length(samples, *, scale=1.0):
  return [scale * len(s.completion) for s in samples]


def broken(samples):
  return [1.0 / len(s.completion) for s in samples]


def returns(value):
  return lambda samples: value


class Novelty:
  """1 for a completion not seen before."""

  def __init__(self, capacity, seen=()):
    self.capacity, self.seen, self.closed = capacity, list(seen), False

  def __call__(self, samples):
    new = [s.completion not in self.seen for s in samples]
    self.seen = (self.seen + [s.completion for s in samples])[-self.capacity:]
    return np.array(new)

  def check_references(self, references):
    return ["too long" if len(r) > 5 else None for r in references]

  def state(self):
    return {"seen": list(self.seen)}

  def restore(self, state):
    self.seen = list(state["seen"])

  def close(self):
    self.closed = True


HERE = __name__
SAMPLES = [sample(r"#7 \boxed{7}"), sample("8"), sample("")]


def test_total_is_the_weighted_sum_of_unweighted_components():
  # number_answer [1, 0, 0]; length·0.5 [6, 0.5, 0]; boxed [1, 0, 0].
  # total = 2·number − 0.1·length + 0·boxed
  spec = {
      "number_answer": 2,
      "short": {"function": f"{HERE}:length", "weight": -0.1, "args": {"scale": 0.5}},
      "boxed_format": 0.0}
  for form in (spec, ml_collections.ConfigDict(spec)):
    total, components = build_rewards(form)(SAMPLES)
    np.testing.assert_allclose(total, [2 - 0.6, -0.05, 0], rtol=1e-6)
    expected = {"number_answer": [1, 0, 0], "short": [6, 0.5, 0], "boxed_format": [1, 0, 0]}
    assert {n: c.tolist() for n, c in components.items()} == expected
    assert total.dtype == np.float32 and all(c.dtype == np.float32 for c in components.values())
  total, components = build_rewards(spec)([])
  assert total.shape == (0,) and components["short"].shape == (0,)


@pytest.mark.parametrize("spec, message", [
    ({"math_anser": 1.0}, "Did you mean 'math_answer'.*Known: answer_marker_format"),
    ({"boxed": {"function": "boxed_fromat"}}, "Did you mean 'boxed_format'"),
    ({"boxed_format": {"wieght": 1}}, "unknown field 'wieght'. Did you mean 'weight'"),
    ({"math_answer": {"args": {"timeout_second": 1}}},
     "no argument 'timeout_second'. Did you mean 'timeout_seconds'"),
    ({"math_answer": {"args": {"samples": 1}}}, "no argument 'samples'"),
    ({"overlong_penalty": 1.0}, "needs the arguments limit_tokens, buffer_tokens"),
    ({"overlong_penalty": {"args": {"limit_tokens": 4, "buffer_tokens": 8}}},
     "0 < buffer_tokens <= limit_tokens, got buffer_tokens=8"),
    ({"pattern_format": {"args": {"pattern": "("}}}, "'\\('.* is not a regular expression"),
    ({"number_answer": {"args": {"tolerance": -1}}}, "tolerance must be in .0, 1., got -1"),
    ({"exact_answer": {"args": {"marker": ""}}}, "marker must not be empty"),
    ({"math_answer": {"args": {"timeout_seconds": 0}}},
     "timeout_seconds must be a positive number, got 0"),
    ({"boxed_format": float("nan")}, "weight nan"), ({"boxed_format": "1"}, "weight '1'"),
    ({"boxed_format": True}, "weight True"),
    ({}, "at least one"), (None, "got None"),
    ({"mine": {"function": "no_such_package.rewards:f"}}, "no module 'no_such_package.rewards'"),
    ({"mine": {"function": f"{HERE}:lenght"}}, "Did you mean 'length'"),
    ({"mine": {"function": f"{HERE}:SAMPLES"}}, "no function or class 'SAMPLES'"),
    ({"mine": {"function": f"{HERE}:Novelty"}}, "needs the argument capacity"),
    ({"mine": {"function": f"{HERE}:Novelty", "args": {"capacty": 1}}},
     "no argument 'capacty'. Did you mean 'capacity'"),
    ({"mine": {"function": f"{HERE}:length", "args": {"scal": 1}}},
     "no argument 'scal'. Did you mean 'scale'"),
])
def test_config_errors_come_before_anything_runs(spec, message):
  with pytest.raises(ValueError, match=message):
    build_rewards(spec)


class Best:
  """A user's reward that is made of rewards: the larger of a section's total and of one reward."""

  def __init__(self, *, section, other, build):
    self.section = build.rewards(section)
    self.other, self.args = build.reward("rival", "The rival", **other)

  def __call__(self, samples):
    return np.maximum(self.section(samples)[0], self.other(samples, **self.args))


def best(section, other):
  args = {"section": section, "other": other}
  return build_rewards({"best": {"function": f"{HERE}:Best", "args": args}})


def test_a_reward_of_rewards_is_handed_what_it_builds_them_with():
  samples = [sample("x#7", "7"), sample("four", "7")]
  by_length = {"path": f"{HERE}:length", "args": {"scale": 0.25}}
  assert best({"exact_answer": 3.0}, by_length)(samples)[0].tolist() == [3.0, 1.0]
  # A class is made, and may itself be made of rewards.
  pair = {"path": "one_of_each", "args": {"outcome": {"exact_answer": 1.0}}}
  assert best({"exact_answer": 0.5}, pair)(samples)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("section, other, message", [
    ({"exact_anser": 1.0}, {"path": "boxed_format", "args": {}}, "Did you mean 'exact_answer'"),
    ({"exact_answer": 1.0}, {"path": "boxed_fromat", "args": {}},
     "Unknown rival 'boxed_fromat'. Did you mean 'boxed"),
    ({"exact_answer": 1.0}, {"path": "boxed_format", "args": {"x": 1}},
     "The rival: boxed_format takes no argument 'x'"),
    ({"exact_answer": 1.0}, {"path": "learned", "args": {"model": "rm"}},
     "The rival: learned needs models of a run"),
])
def test_errors_of_parts_come_before_anything_runs(section, other, message):
  with pytest.raises(ValueError, match=message):
    best(section, other)


@pytest.mark.parametrize("name", ["models", "build"])
def test_what_is_handed_in_is_no_argument_of_a_config(name):
  function = {"models": "learned", "build": "one_of_each"}[name]
  with pytest.raises(
      ValueError,
      match=f"'mine': {function} gets its argument '{name}' from build_rewards, not from"):
    build_rewards({"mine": {"function": function, "args": {name: 1}}})


@pytest.mark.parametrize("output, message", [
    ([1.0, float("nan"), 0.0],
     r"'bad' returned nan for sample 1 \(1 of 3 not finite\).*completion '8'"),
    # Finite in float64, not in what the learner gets.
    ([1e39, 0.0, 0.0], "returned inf for sample 0"),
    ([1.0, 0.0], r"shape \(3,\), got shape \(2,\)"), (np.zeros((3, 1)), r"got shape \(3, 1\)"),
    (0.5, r"got shape \(\)"),
    (["yes", "no", "no"], "one number per sample, got"),
    ([[1], [1, 2], []], "one number per sample, got"),
])
def test_outputs_are_checked(output, message):
  reward = reward_set.RewardSet([
      component.Component("fine", length), component.Component("bad", returns(output))])
  with pytest.raises(ValueError, match=message):
    reward(SAMPLES)


def test_an_exception_names_component_and_sample():
  with pytest.raises(ZeroDivisionError) as caught:
    build_rewards({"ratio": {"function": f"{HERE}:broken"}})(SAMPLES)
  note, = caught.value.__notes__
  assert "'ratio' on a batch of 3 samples" in note and "Alone it is sample 2" in note


def test_a_class_keeps_state_that_is_saved_and_restored():
  spec = {"new": {"function": f"{HERE}:Novelty", "args": {"capacity": 10}}, "boxed_format": 1.0}
  reward = build_rewards(spec)
  assert reward([sample("a"), sample("b")])[1]["new"].tolist() == [1, 1]
  saved = reward.state()
  assert saved == {"new": {"seen": ["a", "b"]}}
  after = reward([sample("b"), sample("c")])[0]
  resumed = build_rewards(spec)
  resumed.restore(saved)
  assert resumed([sample("b"), sample("c")])[0].tolist() == after.tolist() == [0, 1]
  assert resumed.state() == reward.state()
  assert build_rewards({"boxed_format": 1.0}).state() == {}
  with pytest.raises(
      ValueError, match=r"belongs to \['new'\], but the stateful rewards now are \[\]"):
    build_rewards({"boxed_format": 1.0}).restore(saved)
  with pytest.raises(ValueError, match="'new' cannot use 1 of 2 references.*too long"):
    reward.check_references(["short", "longer"])
  reward.close()
  assert reward.components[0].function.closed


def test_close_ends_the_workers_and_the_next_use_starts_them_again():
  reward = build_rewards({"math_answer": 1.0})
  assert reward(SAMPLES)[0].tolist() == [1, 0, 0]
  reward.close()
  assert not any(pool._workers for pool in workers._shared.values())
  assert reward(SAMPLES)[0].tolist() == [1, 0, 0]


# --- Scoring while samples come


class Counted:
  """Per sample; records its calls and the thread of each.

  With `hold`, a call waits until it is set.
  """
  per_sample = True

  def __init__(self, hold=None):
    self.calls, self.threads, self.hold = [], set(), hold

  def __call__(self, samples):
    if self.hold:
      assert self.hold.wait(20)
    self.calls.append([s.completion for s in samples])
    self.threads.add(threading.current_thread().name)
    return [{"nan": np.nan}.get(s.completion) or 1 / (len(s.completion) - 3) for s in samples]


def whole(samples):
  """Of a sample among the others: how many of them are as long."""
  return [sum(len(s.completion) == len(t.completion) for t in samples) for s in samples]


def scored_early(parts, texts, function):
  """What Scoring makes of these texts, of which `parts`, lists of positions, are begun early."""
  reward = reward_set.RewardSet([
      component.Component("early", function, 2.0), component.Component("whole", whole, -0.5)])
  samples = [sample(t) for t in texts]
  with contextlib.closing(rewards.Scoring(reward)) as scoring:
    for part in parts:
      scoring.add(part, [samples[i] for i in part])
    return scoring.finish(samples)[:2], reward(samples)


@pytest.mark.parametrize(
    "parts", [[], [[2]], [[3, 0], [1]], [[4], [0, 2], [], [1, 3]], [np.array([4, 3, 2, 1, 0])]])
def test_scoring_equals_the_reward_set_whatever_was_begun(parts):
  counted = Counted()
  (total, components), (expected, by_name) = scored_early(
      parts, ["a", "bb", "cccc", "dd", "e" * 8], counted)
  assert total.dtype == expected.dtype and total.tobytes() == expected.tobytes()
  assert list(components) == list(by_name)
  assert all(components[k].tobytes() == by_name[k].tobytes() for k in by_name)
  # 1 / (length - 3), and how many are as long.
  np.testing.assert_allclose(components["early"], [-0.5, -1, 1, -1, 0.2])
  assert components["whole"].tolist() == [1, 2, 1, 2, 1]  # "bb" and "dd" saw each other.
  rest = [i for i in range(5) if i not in {int(i) for part in parts for i in part}]
  assert [len(c) for c in counted.calls] == [len(p) for p in [*parts, rest] if len(p)] + [5]


def test_no_samples_are_scored_as_none():
  (total, components), _ = scored_early([], [], Counted())
  assert total.shape == components["early"].shape == components["whole"].shape == (0,)


def test_early_scores_are_computed_beside_the_caller():
  hold = threading.Event()
  counted = Counted(hold)
  samples = [sample("a"), sample("bb")]
  reward = reward_set.RewardSet([component.Component("early", counted)])
  with contextlib.closing(rewards.Scoring(reward)) as scoring:
    scoring.add([1], [samples[1]])  # Would wait for ever if it ran here.
    assert counted.calls == []
    hold.set()
    deadline = time.monotonic() + 20
    while not counted.calls and time.monotonic() < deadline:
      time.sleep(0.001)
    assert counted.calls == [["bb"]]  # Before all are there.
    assert scoring.finish(samples)[0].tolist() == [-0.5, -1]
  assert threading.current_thread().name not in counted.threads


def test_what_goes_wrong_early_is_raised_at_the_end_as_for_the_whole_batch():
  with pytest.raises(ZeroDivisionError) as caught:
    scored_early([[0], [1]], ["a", "bbb"], Counted())
  note, = caught.value.__notes__
  assert "'early' on a batch of 1 samples" in note and "completion 'bbb'" in note
  with pytest.raises(
      ValueError,
      match=r"'early' returned nan for sample 2 \(1 of 4 not finite\).*completion 'nan'"):
    scored_early([[3, 2], [1]], ["a", "bb", "nan", "dd"], Counted())
  with pytest.raises(
      ValueError,
      match=r"'early' must return one number per sample, shape \(1,\), got shape \(2,\)"):
    scored_early([[1]], ["a", "bb"], per_sample(lambda samples: [1, 2]))


def per_sample(function):
  function.per_sample = True
  return function


def test_a_batch_given_up_leaves_no_thread():
  hold, before = threading.Event(), threading.active_count()
  counted = Counted(hold)
  with pytest.raises(KeyError, match="sampling failed"):
    reward = reward_set.RewardSet([component.Component("early", counted)])
    with contextlib.closing(rewards.Scoring(reward)) as scoring:
      for i in range(3):
        scoring.add([i], [sample("a")])
      hold.set()
      raise KeyError("sampling failed")
  assert threading.active_count() == before and len(counted.calls) <= 3
  with pytest.raises(RuntimeError):
    scoring.add([3], [sample("a")])


def test_math_answers_are_checked_early():
  assert REWARDS["math_answer"].per_sample
  reward = build_rewards({"math_answer": 1.0})
  with contextlib.closing(rewards.Scoring(reward)) as scoring:
    scoring.add([2], [SAMPLES[2]])
    scoring.add([0], [SAMPLES[0]])
    assert len(scoring._begun) == 2
    assert scoring.finish(SAMPLES)[0].tolist() == reward(SAMPLES)[0].tolist() == [1, 0, 0]


def test_importing_rewards_is_cheap_and_the_bare_name_is_refused():
  code = (
      "import sys, rl_reason.rewards;"
      " print(sorted({'jax', 'flax', 'sympy', 'math_verify'} & set(sys.modules)))")
  run = lambda code: subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert run(code).stdout == "[]\n"
  assert "write `from rl_reason import rewards`" in run("import rewards").stderr
