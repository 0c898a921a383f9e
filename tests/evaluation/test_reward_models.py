"""The report on a scorer: which numbers which rows give, and baselines beside it.

Also scores of the wrong shape, and the command.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from rl_reason import judge as rl_reason_judge
from rl_reason.evaluation import reward_models as judge_lib
from rl_reason.evaluation.reward_models import judge, judge_beside_baselines
from rl_reason.tasks.preferences import comparisons
from rl_reason.types import Comparison, Step
from tests import environment


def by_text(table, default=0.0):
  return lambda pairs: np.array([table.get(text, default) for _, text in pairs])


def pair(prompt, better, worse, **keywords):
  return Comparison(prompt, (better, worse), (1.0, 0.0), **keywords)


PAIRS = [
    pair("p0", "aa", "b", domain="x"), pair("p1", "c", "dd", domain="x"),
    pair("p2", "ee", "ff", domain="y"), Comparison("p3", ("g", "hhh"), (1.0, 1.0), domain="y")]


def test_pairs_by_hand():
  score = by_text(
      {"aa": 2.0, "b": 1.0, "c": 0.0, "dd": 1.0, "ee": 1.0, "ff": 0.5, "g": 1.0, "hhh": 1.0})
  report = judge(score, PAIRS)
  values = {name: e.value for name, e in report.estimates.items()}
  assert report.counts == {"rows": 4, "failed": 0, "tied": 1}
  assert values["accuracy"] == pytest.approx(2 / 3)
  assert values["accuracy/x"] == 0.5
  assert values["accuracy/y"] == 1.0
  assert values["accuracy/average"] == 0.75
  assert values["length/accuracy_longer_worse"] == 0.0
  assert values["length/accuracy_longer_better"] == 1.0
  # Score differences better − worse 1, −1, 0.5, 0 with length differences 1, −1, 0, −2:
  # 2 / √(2.25 · 2) over rows 0 to 2.
  assert values["length/correlation"] == pytest.approx(2 / np.sqrt(2.25 * 2))
  assert report.metrics()["judge/accuracy"] == pytest.approx(2 / 3)
  assert {"judge/accuracy_low", "judge/accuracy_high", "judge/rows"} <= set(report.metrics())
  json.dumps(report.as_json(), allow_nan=False)


def test_the_baselines_stand_beside_every_scorer():
  reports = judge_beside_baselines(by_text({}), PAIRS)
  assert reports["scorer"].estimates["accuracy"].value == 0.5  # Constant: chance.
  # Longer is better in row 0, worse in row 1, neither in row 2.
  assert reports["length"].estimates["accuracy"].value == pytest.approx(0.5)
  many = [pair(f"p{i}", f"right {i}", f"wrong {i}") for i in range(400)]
  random = judge(judge_lib.random(), many).estimates["accuracy"]
  assert random.low < 0.5 < random.high
  rows = judge_lib.table_rows(reports)
  assert rows[0][0] == "accuracy" and len(rows[0]) == 5


def test_random_is_the_same_everywhere_and_seeded():
  rows = [("p", ("a", "b")), ("q", ("a",))]
  first = judge_lib.random()(rows)
  assert first == judge_lib.random()(rows[::-1])[::-1] and len({*first[0], *first[1]}) == 3
  assert judge_lib.random(seed=1)(rows)[0] != first[0]
  assert all(0 <= x < 1 for row in first for x in row)


def test_failed_scores_lose_and_are_counted():
  report = judge(
      by_text({"aa": np.nan, "b": -5.0, "c": 1.0, "dd": np.nan, "ee": np.inf, "ff": np.nan}), PAIRS)
  assert report.counts["failed"] == 4
  assert report.estimates["accuracy"].value == pytest.approx(1 / 3)
  json.dumps(report.as_json(), allow_nan=False)
  report = judge(lambda pairs: np.full(len(pairs), np.nan), PAIRS)
  assert report.estimates["accuracy"].value == 0.0 and "calibration_error" not in report.estimates


def test_soft_labels_enter_the_calibration():
  rows = [Comparison("p", ("a", "b"), (0.75, 0.25), soft_label=0.75),
          Comparison("q", ("a", "b"), (0.5, 0.5), soft_label=0.5)]
  gap = np.log(3)
  report = judge(
      lambda pairs: np.array([gap if (p, t) == ("p", "a") else 0.0 for p, t in pairs]), rows)
  assert report.estimates["calibration_error"].value == pytest.approx(0.0, abs=1e-9)
  # A soft label below a half, without scores, says that the second is the better one.
  report = judge(by_text({"b": 1.0}), [Comparison("p", ("a", "b"), soft_label=0.2)])
  assert report.estimates["accuracy"].value == 1.0


def reward_bench_row(id, domain, right, wrong):
  return Comparison(
      f"prompt {id}", (*right, *wrong), (1.0,) * len(right) + (0.0,) * len(wrong), id=id,
      domain=domain)


def test_reward_bench_2_average_counts_ties_as_a_domain():
  rows = [
      reward_bench_row("1", "Math", ["r"], ["w1", "w2", "w3"]),
      reward_bench_row("2", "Math", ["s"], ["w1", "w2", "w3"]),
      reward_bench_row("3", "Focus", ["w1"], ["r", "w2", "w3"]),
      reward_bench_row("ref:0", "Ties", ["r"], ["w1"]),
      reward_bench_row("tied:0", "Ties", ["r", "s"], ["w1"])]
  report = judge(by_text({"r": 3.0, "s": 2.5, "w1": 1.0}), rows)
  values = {name: e.value for name, e in report.estimates.items()}
  assert (values["top1/Math"], values["top1/Focus"]) == (1.0, 0.0) and "top1/Ties" not in values
  # Δcw(tied) 1.5, Δcc 0.5, Δcw(ref) 2: everything right, and tanh(1.5/0.5 − 1).
  assert values["ties"] == pytest.approx(1 + 0.01 * np.tanh(2))
  assert values["top1/average"] == pytest.approx((1 + 0 + values["ties"]) / 3)
  # A question in one form only, here a wrong one, halves the reference accuracy,
  # in the average too.
  report = judge(
      by_text({"r": 3.0, "s": 2.5, "w1": 1.0}),
      [*rows, reward_bench_row("ref:1", "Ties", ["q"], ["w1"])])
  less = report.estimates["ties"].value
  assert less == pytest.approx(values["ties"] - 0.15)
  assert report.estimates["top1/average"].value == pytest.approx((1 + less) / 3)
  # One whose tied form has a single right answer has no spread: it is accurate, has no margins, and
  # is counted.
  single = [
      *rows, reward_bench_row("ref:2", "Ties", ["r"], ["w1"]),
      reward_bench_row("tied:2", "Ties", ["s"], ["w1"])]
  report = judge(by_text({"r": 3.0, "s": 2.5, "w1": 1.0}), single)
  assert report.counts["ties_without_spread"] == 1 and report.estimates["ties"].count == 1
  assert report.estimates["ties"].value == pytest.approx(values["ties"])
  constant = judge(by_text({}), rows).estimates
  assert constant["top1/Math"].value == 0.25 and constant["ties"].value == 0.0


def test_style_and_best_of_n_from_lists():
  row = Comparison("p", ("a", "bb", "ccc", "d", "ee", "fff"), (1, 1, 1, 0, 0, 0), domain="chat")
  report = judge(judge_lib.length(), [row, row])
  values = {name: e.value for name, e in report.estimates.items()}
  # Length grows with style: of equal styles neither is better.
  assert (values["styles/easy"], values["styles/normal"], values["styles/hard"]) == (1.0, 0.5, 0.0)
  assert report.details["style_matrix"] == [[0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5]]
  assert values["accuracy"] == values["styles/average"] == pytest.approx(0.5)
  assert values["best_of/1"] == 0.5
  assert values["best_of/4"] == pytest.approx(0.5)
  assert "best_of/8" not in values
  samples = Comparison("p", ("x", "y", "z"), (1.0, 0.5, 0.0))  # True rewards of three samples.
  report = judge(by_text({"y": 1.0, "x": 0.5}), [samples])
  assert report.estimates["best_of/2"].value == pytest.approx((0.5 + 0.5 + 1.0) / 3)
  assert len(report.details["best_of"]) == 3 and report.details["best_of"][2]["value"] == 0.5


def test_ensembles_are_averaged_and_compared():
  def score(pairs):
    return np.array([[len(t), -len(t), 2.0 * (t < "d")] for _, t in pairs])
  report = judge(score, PAIRS[:2])
  # Members on rows 0 and 1: longer is better: right, wrong; shorter: wrong, right;
  # before "d": tie, right.
  assert report.estimates["accuracy"].value == 0.75
  assert report.estimates["ensemble/agreement"].value == pytest.approx(1 / 6)


def test_a_scorer_may_compare_a_prompts_responses():
  seen = []

  def score(rows):
    seen.extend(rows)
    return [np.arange(len(texts))[::-1] for _, texts in rows]
  score.by_prompt, score.render_prompt = True, lambda prompt: f"<{prompt}>"
  assert judge(score, PAIRS[:2]).estimates["accuracy"].value == 1.0
  assert seen == [("<p0>", ("aa", "b")), ("<p1>", ("c", "dd"))]


def test_chat_prompts_become_text():
  messages = (
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "Hello"},
      {"role": "user", "content": "?"})
  prompts = []
  judge(
      lambda pairs: [prompts.append(p) or 0.0 for p, _ in pairs],
      [Comparison(messages, ("a", "b"), (1.0, 0.0))])
  assert prompts == ["User: Hi\n\nAssistant: Hello\n\nUser: ?\n\nAssistant:"] * 2


def solution(steps, labels, **keywords):
  texts = [s + "\n" * (i + 1 < len(steps)) for i, s in enumerate(steps)]
  return Comparison("p", ("".join(texts),), steps=(tuple(map(Step, texts, labels)),), **keywords)


SOLUTIONS = [solution(["ok", "bad", "x"], [1.0, 0.0, None]), solution(["ok", "fine"], [1.0, 1.0]),
             solution(["bad", "y"], [0.0, None]), solution(["fine", "ok"], [1.0, None]),
             solution(["ok", "bad"], [1.0, 0.0]), solution(["ok"], [1.0])]


def steps_by_text(table):
  return lambda pairs: [
      np.array([table.get(step, 0.7) for step in text.split("\n")]) for _, text in pairs]


def test_steps_by_hand():
  report = judge(steps_by_text({"ok": 0.9, "fine": 0.4, "bad": 0.1}), SOLUTIONS, threshold=0.5)
  values = {name: e.value for name, e in report.estimates.items()}
  # All three wrong ones are found; of the three right ones those with "fine" are not.
  assert values["steps/accuracy_wrong"] == 1.0
  assert values["steps/accuracy_right"] == pytest.approx(1 / 3)
  assert values["steps/f1"] == pytest.approx(0.5)
  assert values["steps/accuracy"] == pytest.approx(4 / 6)
  assert values["steps/auc"] == 1.0  # Every right step scores above every wrong one.
  assert report.counts["solutions"] == 6
  # Chosen on the other half, the threshold falls between 0.1 and 0.4, at any scale.
  for scale in (1.0, -1000.0):
    shifted = judge(
        steps_by_text(
            {"ok": 0.9 + scale, "fine": 0.4 + scale, "bad": 0.1 + scale, "x": scale, "y": scale}),
        SOLUTIONS)
    assert shifted.estimates["steps/f1"].value == 1.0, scale
  baselines = judge_beside_baselines(judge_lib.random(seed=1), SOLUTIONS)
  assert {"steps/f1", "steps/auc"} <= set(baselines["length"].estimates)


def test_a_scorer_by_prompt_gets_the_steps():
  def score(rows):
    return [
        [np.array([0.1 if step.strip() == "bad" else 0.9 for step in steps]) for steps in texts]
        for _, texts in rows]
  score.by_prompt = True
  assert judge(score, SOLUTIONS).estimates["steps/f1"].value == 1.0


def test_rows_may_hold_responses_and_steps():
  steps = (Step("ok\n", 1.0), Step("bad", 0.0)), (Step("bad", 0.0),)
  rows = [Comparison(f"p{i}", ("ok\nbad", "bad"), (1.0, 0.0), steps=steps) for i in range(4)]
  report = judge_beside_baselines(judge_lib.length(), rows)["scorer"]
  assert report.estimates["accuracy"].value == 1.0 and report.counts["solutions"] == 8


def test_steps_that_are_cut_elsewhere_are_told_of():
  with pytest.raises(
      ValueError,
      match=r"shape \(1,\) for response 0 .* has 3 steps.*split steps where the data does"):
    judge(lambda pairs: [np.zeros(1) for _ in pairs], SOLUTIONS, threshold=0.5)
  with pytest.raises(ValueError, match="set threshold"):
    judge(steps_by_text({}), SOLUTIONS[:3])


@pytest.mark.parametrize("score, message", [
    (lambda pairs: np.zeros(len(pairs) - 1), r"shape \(7,\) for 8 responses"),
    (lambda pairs: np.zeros((len(pairs), 2, 2)), r"shape \(8, 2, 2\)"),
    (lambda pairs: 0.0, r"shape \(\)"),
])
def test_scores_of_another_shape_are_refused(score, message):
  with pytest.raises(ValueError, match=message):
    judge(score, PAIRS)


def test_rows_that_compare_nothing_are_refused():
  with pytest.raises(ValueError, match="nothing to judge by"):
    judge(by_text({}), [Comparison("p", ("a",)), Comparison("p", ("a", "b", "c"), (1.0, 1.0, 1.0))])
  with pytest.raises(ValueError, match="got str"):
    judge(by_text({}), ["a"])


def test_scorers_by_name():
  assert rl_reason_judge.make_scorer("length", {})([("p", ("abc", "d"))]) == [[3.0, 1.0]]
  with pytest.raises(ValueError, match="Did you mean 'length'"):
    rl_reason_judge.make_scorer("lenght", {})
  with pytest.raises(ValueError, match="takes no argument 'size'"):
    rl_reason_judge.make_scorer("length", {"size": 1})
  with pytest.raises(ValueError, match="cannot be called"):
    rl_reason_judge.make_scorer("json:dumps", {"obj": 1})


def run_command(folder, *arguments):
  return subprocess.run(
      [sys.executable, "-m", "rl_reason.judge", *arguments], capture_output=True, text=True,
      env=environment(), timeout=120)


def test_the_command_writes_a_report_and_a_table(tmp_path):
  data = tmp_path / "pairs.jsonl"
  data.write_text(
      "".join(
          json.dumps({"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no"}) + "\n"
          for i in range(5))
      + json.dumps({"prompt": "?", "chosen": "a", "rejected": "a"}) + "\n")
  found = run_command(
      tmp_path, "--scorer=length", f"--data={data}", "--format=pairs", "--bad_rows=drop",
      f"--output={tmp_path / 'report.json'}")
  assert found.returncode == 0, found.stderr
  assert "length on" in found.stdout and "1 dropped" in found.stdout and "accuracy" in found.stdout
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["reports"]["scorer"]["estimates"]["accuracy"]["value"] == 1.0
  assert set(report["reports"]) == {"scorer", "length", "random"} and len(report["dropped"]) == 1
  found = run_command(tmp_path, "--scorer=length", f"--data={data}", "--format=pairs")
  assert found.returncode == 1 and "Error: " in found.stderr and "pairs.jsonl:6" in found.stderr
  assert "Traceback" not in found.stderr


def test_length_on_real_sets(shared_data):
  """The better response of LLMBar's adversarial rows and of RM-Bench's hard pairs is short.

  This makes these sets hard.
  """
  def accuracy(file, format):
    rows = comparisons(str(shared_data / f"{file}.jsonl.gz"), format=format, bad_rows="drop")
    return {name: e.value for name, e in judge(judge_lib.length(), rows).estimates.items()}
  llmbar = accuracy("llmbar", "llmbar")
  assert llmbar["accuracy/Adversarial/Neighbor"] < 0.3 < llmbar["accuracy/Natural"]
  bench = accuracy("rm_bench_chat_code", "rm_bench")
  assert bench["styles/easy"] > 0.6 > 0.4 > bench["styles/hard"]
