"""Pairs to be judged by hand, verdict rewards, and the RM-R1 experiment end to end, small."""

import numpy as np
import pytest

from rl_reason import train
from rl_reason.experiments import rm_r1
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards.answers import tail_verdict
from rl_reason.run import config as config_lib
from rl_reason.tasks.registry import load_task
from rl_reason.tasks.worlds import judging
from rl_reason.types import Sample


def test_permutations_by_hand():
  # Moves a to f: 012, 021, 102, 120, 201, 210 in order; states in the same order, "0" to "5".
  assert judging.MOVES["b"] == (0, 2, 1) and judging.STATES[1, 0, 2] == "2"
  # From 012: b gives 021 (1); then d = (1, 2, 0) puts the second first: 210 (5); then a leaves it.
  assert judging.states("bda") == ["1", "5", "5"]
  assert judging.states("dd") == ["3", "4"] and judging.states("ddd")[-1] == "0"  # Of order three.
  assert judging.states("bb")[-1] == "0"
  assert judging.states("bd") != judging.states("db")  # Not commutative.


def test_points_by_hand():
  assert judging.points("u3w1", "uvwwzyxu") == 8 and judging.points("u3w1", "wwyyzvvx") == 2


def rows(**arguments):
  source = judging.judge_problems(**{"size": 300, **arguments})
  return [(source[i], source.item(i)) for i in range(len(source))]


def test_solutions_work_out_what_is_asked():
  seen = set()
  for problem, item in rows(min_moves=2, max_moves=8):
    seen.add(item.domain)
    right, wrong = item.answers[item.right], item.answers[1 - item.right]
    assert problem.reference == "AB"[item.right]
    assert problem.solution == f"{item.kind}{item.work}[{problem.reference}]"
    assert problem.prompt == f"{item.question}A{item.answers[0]}B{item.answers[1]}="
    if item.kind == "R":
      assert item.work == "".join(judging.states(item.question[:-1]))
      assert right == item.work[-1] != wrong
      assert (item.domain == "long") == (len(item.work) >= 6)
    else:
      scores = [judging.points(item.question[:-1], a) for a in item.answers]
      assert scores[item.right] > scores[1 - item.right]
      assert item.work[4:] == "".join(f"{s:02d}" for s in scores)
  assert seen == {"short", "long", "chat"}
  assert 0.4 < np.mean([item.right for _, item in rows()]) < 0.6


def test_a_slip_is_one_wrong_step_with_what_follows_from_it():
  for problem, item in rows(careless=1.0):
    work, verdict = problem.solution[1:-3], "AB".index(problem.solution[-2])
    assert work != item.work and len(work) == len(item.work)
    if item.kind == "R":
      at = next(i for i, (a, b) in enumerate(zip(work, item.work)) if a != b)
      orders = {name: order for order, name in judging.STATES.items()}
      order = orders[work[at]]
      for move, state in zip(item.question[at + 1:-1], work[at + 1:]):
        order = tuple(order[i] for i in judging.MOVES[move])
        assert judging.STATES[order] == state
      assert work[-1] not in item.answers or item.answers[verdict] == work[-1]
    else:
      assert verdict == int(int(work[6:]) > int(work[4:6]))
  some = [p.solution != f"{i.kind}{i.work}[{p.reference}]" for p, i in rows(careless=0.25)]
  assert 0.15 < np.mean(some) < 0.35


def test_traces_and_halves():
  for trace, start in (("none", "["), ("untyped", None), ("random", "RC")):
    for problem, item in rows(trace=trace, size=30):
      assert problem.solution[0] in (start or item.work[0])
      assert set(problem.prompt + problem.solution) <= set(judging.CHARACTERS)
  halves = load_task(
      "judge_comparisons", {}, dict(size=200), dict(size=100, part="heldout", max_moves=8))
  row = halves.train[0]
  assert row.scores == (1.0, 0.0)
  assert row.prompt.endswith("?")
  assert row.domain in ("short", "long", "chat")
  same = judging.judge_problems(size=200).item(0)
  assert row.responses == (same.answers[same.right], same.answers[1 - same.right])


@pytest.mark.parametrize("arguments, message", [
    (dict(min_moves=5, max_moves=4), "max_moves must be at least min_moves=5"),
    (dict(careless=2.0), r"careless must be in \[0, 1\]"),
    (dict(chat_share=-0.1), r"chat_share must be in"),
    (dict(trace="kinds"), "Unknown trace 'kinds'. Did you mean 'kind'"),
    (dict(part="test"), "Unknown part")])
def test_pairs_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    judging.judge_problems(**{"size": 4, **arguments})


def test_verdicts_at_the_end_by_hand():
  def score(completion, reference="A", **arguments):
    return tail_verdict([Sample("p", completion, reference)], **arguments)[0]
  assert score("... <answer>[[A]]</answer>") == 1 and score("... <answer>[[A]]</answer> \n") == 1
  assert score("... <answer>[[B]]</answer>") == -1 and score("... <answer>[[B]]</answer>", "B") == 1
  assert score("") == -1 and score("<answer>[[A]]") == -1  # Nothing, or cut off.
  assert score("<answer>[[B]]</answer> or <answer>[[A]]</answer>") == -1  # Both in the window.
  # One before it.
  assert score("<answer>[[B]]</answer>" + "." * 60 + "<answer>[[A]]</answer>") == 1
  assert score("<answer>[[A]]</answer>" + "." * 80) == -1  # Then the tag has left it.
  assert score("R12[A]", tag="[{}]", characters=4) == 1
  assert score("[A][B]", tag="[{}]", characters=4) == -1
  with pytest.raises(ValueError, match="it is none of A, B"):
    score("", "model_a")
  with pytest.raises(ValueError, match="needs a tag with {}"):
    score("", tag="[A]")
  # C is no option; A twice is A.
  assert score("[A] [C]", tag="[{}]") == 1 and score("[A][A]", tag="[{}]") == 1
  with pytest.raises(ValueError, match="cannot tell the tags A, AB apart"):
    score("AB", tag="{}", options=("A", "AB"))


def test_the_share_of_right_work_by_hand():
  def share(completion, work):
    return rm_r1.work_done([Sample("p", completion, "A", metadata={"work": work})])[0]
  assert share("R1234[A]", "1234") == 1
  assert share("1234[A]", "1234") == 1
  assert share("R1254[B]", "1234") == 0.75
  assert share("R12", "1234") == 0.5 and share("", "1234") == share("[A]", "1234") == 0
  assert share("R123456[A]", "1234") == 1


@pytest.mark.parametrize("arm", ["method", "bt"])
def test_the_experiment_small(arm, tmp_path):
  c = config_lib.load(f"experiments/rm_r1.py:{arm}-tiny")
  c.mesh.fsdp = 1
  train.train(c, tmp_path, plain=True)
  for domain in ("long", "short", "chat"):
    assert 0 <= rm_r1.accuracy(tmp_path, domain=domain) <= 1
  if arm == "method":
    assert {"reward/verdict", "reward/steps"} <= {
        k for line in read_metrics(tmp_path) for k in line}
    assert -1 <= rm_r1.steps_gained(tmp_path) <= 1
  with pytest.raises(ValueError, match="no pairs of the domain 'other'"):
    rm_r1.accuracy(tmp_path, domain="other")


def test_supervised_data_of_its_own_may_not_be_held_out_by_the_run(tmp_path):
  c = config_lib.load("experiments/rm_r1.py:distil-tiny")
  c.mesh.fsdp = 1
  with c.sft.data.unlocked():
    c.sft.data.train, c.sft.data.heldout = dict(c.sft.data.heldout), dict(c.sft.data.train)
  with pytest.raises(ValueError, match="training rows have a prompt that is also held out"):
    train.train(c, tmp_path, plain=True)


def test_the_full_config_is_sound():
  config, sections = config_lib.check(config_lib.load("experiments/rm_r1.py:full"))
  assert config.stages == ("sft", "rl") and sections["rl"].rollout.group_size == 7
