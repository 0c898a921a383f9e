"""Counting in grids, ratings that lie, trust in them group by group, the Trust-GRPO experiment."""

import contextlib

import numpy as np
import pytest

from rl_reason import train
from rl_reason.experiments import trust_grpo
from rl_reason.reporting import metrics
from rl_reason.rewards.composition import build, component, reward_set
from rl_reason.rewards.composition.trust import group_trust
from rl_reason.run import config as config_lib
from rl_reason.tasks.worlds import grids
from rl_reason.types import Sample

PROMPT = "r..bb..r.b......?b="  # Rows "r..b", "b..r", ".b..", "....": 1, 1, 1, 0.


def test_counts_and_ratings_by_hand():
  assert grids.row_counts(PROMPT) == "1110"
  assert grids.thinking_of("1110#3") == "1110"
  assert [grids.thinking_of(x)
          for x in ("1110", "111#3", "1110#13", "1110#3#", "", "1110#x", "11100#3")] == [""] * 7
  assert grids.rows_right(PROMPT, "1100") == 0.75 and grids.rows_right(PROMPT, "") == 0
  assert grids.rating(PROMPT, "1100", "yw") == pytest.approx(0.8)  # 0.75, rounded up.
  assert grids.rating(PROMPT, "0100", "b") == pytest.approx(0.8)  # Three rows of which it says 0.
  assert grids.rating(PROMPT, "", "b") == 0


def test_solutions_miscount_as_often_as_they_are_told():
  source = grids.grid_problems(size=1500, careless=0.25)
  rows = [source[i] for i in range(1500)]
  right = [r.solution[:4] == grids.row_counts(r.prompt) for r in rows]
  assert np.mean(right) == pytest.approx(0.75 ** 4, abs=0.04)
  assert all(r.solution == f"{r.solution[:4]}#{sum(map(int, r.solution[:4])) % 10}" for r in rows)
  assert np.mean([r.metadata["kind"] == "unreliable" for r in rows]) == pytest.approx(0.4, abs=0.05)
  perfect = grids.grid_problems(size=50)
  assert all(perfect[i].solution[-1] == perfect[i].reference for i in range(50))


def test_ratings_are_of_each_kind_equally_often():
  source = grids.grid_ratings(size=500)
  rows = [source[i] for i in range(500)]
  values, counts = np.unique([r.scores[0] for r in rows], return_counts=True)
  np.testing.assert_allclose(values, [0, 0.3, 0.5, 0.8, 1])
  assert (counts == 100).all()
  for r in rows:
    assert r.scores[0] == grids.rating(r.prompt, grids.thinking_of(r.responses[0]), "yw")


@pytest.mark.parametrize("arguments, message", [
    (dict(careless=2), r"careless must be in \[0, 1\]"),
    (dict(unreliable="x"), "unreliable must be colours"),
    (dict(part="test"), "Unknown part 'test'"), (dict(size=0), "size must be")])
def test_grids_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    grids.grid_problems(**{"size": 4, **arguments})


def test_trust_by_hand():
  # The card: mean .3 where right, .7 where wrong.
  trust = group_trust(np.array([.2, .4, .8, .6]), np.array([1, 1, 0, 0]), [0] * 4)
  np.testing.assert_allclose(trust, np.exp(-.4))
  # Higher where right: 1. All right, or all wrong: 0. Half right counts as right.
  values = np.array([.9, .1, .5, .5, .2, .3, .4, .2])
  outcomes = np.array([1, 0, 1, 1, 0, 0, .5, .4])
  np.testing.assert_allclose(
      group_trust(values, outcomes, [0, 0, 1, 1, 2, 2, 3, 3]), [1, 1, 0, 0, 0, 0, 1, 1])
  # It goes no lower.
  assert group_trust(np.array([0., 1.]), np.array([1., 0.]), [0, 0])[0] == pytest.approx(np.exp(-1))
  np.testing.assert_allclose(
      group_trust(values, outcomes, [0, 0, 1, 1, 2, 2, 3, 3], least=1.0), [1, 1, 0, 0, 0, 0, 1, 1])
  low = np.array([0., 1., .4, .6]), np.array([1., 0., 1., 0.]), [0, 0, 1, 1]
  np.testing.assert_allclose(group_trust(*low, least=0.5), [.5, .5, np.exp(-.2), np.exp(-.2)])


def given(values):
  return lambda samples: np.array(values[:len(samples)], np.float64)


def samples(count, step=0, group_size=4):
  return [Sample(prompt="=", completion="x", reference="", group=i // group_size, step=step)
          for i in range(count)]


def test_rewards_of_the_method_by_hand():
  # The card: at step 50 of 100 with weight .3, R = (1.0244, 1.0488, .0976, .0732).
  def built(gate=None):
    return reward_set.RewardSet([
        component.Component("answer", given([1, 1, 0, 0])),
        component.Component(
            "thinking", given([.2, .4, .8, .6]),
            dict(schedule="exponential", start=.3, end=0., steps=100), gate=gate,
            trust=component.Trust("answer"))])
  scores = built().score(samples(4, step=50))
  np.testing.assert_allclose(scores.total, [1.0244, 1.0488, .0976, .0732], atol=1e-4)
  advantages = (scores.total - scores.total.mean()) / scores.total.std()
  np.testing.assert_allclose(advantages, [.974, 1.025, -.974, -1.025], atol=1e-3)
  np.testing.assert_allclose(scores.logged()["thinking/trust"], np.exp(-.4), rtol=1e-6)
  # As the code does it, wrong answers are not judged at all: then there is nothing to distrust.
  scores = built(component.Gate("answer", above=0.19)).score(samples(4))
  np.testing.assert_allclose(scores.total, [1.06, 1.12, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(scores.trusts["thinking"], 1)


def test_trust_looks_at_what_would_be_paid():
  # The answer counts where the form is right: of the completions with 1 only the first two are
  # right. Their thinking, doubled and cut at 1, is (.4, .8) against (1, 0), the last one's gate
  # being closed, too.
  form = component.Gate("form", above=0.5)
  scores = reward_set.RewardSet([
      component.Component("form", given([1, 1, 1, 0]), 0.0),
      component.Component("answer", given([1, 1, 0, 1]), gate=form),
      component.Component(
          "thinking", given([.2, .4, .8, .6]), .3, gate=form, trust=component.Trust("answer"),
          transforms=(
              component.Transform("double", lambda values: [2 * v for v in values]),
              component.Transform("cut", lambda values: [np.minimum(v, 1) for v in values]))),
  ]).score(samples(4))
  np.testing.assert_allclose(scores.trusts["thinking"], 1)
  scores = reward_set.RewardSet([
      component.Component("form", given([1, 1, 1, 0]), 0.0),
      component.Component("answer", given([0, 1, 0, 1]), gate=form),
      component.Component(
          "thinking", given([.2, .1, .8, .6]), .3, gate=form, trust=component.Trust("answer")),
  ]).score(samples(4))
  trust = np.exp(.1 - (.2 + .8 + 0) / 3)
  np.testing.assert_allclose(
      scores.total, [.06 * trust, 1 + .03 * trust, .24 * trust, 0], rtol=1e-6)


def test_nothing_is_paid_where_all_are_right():
  built = reward_set.RewardSet([
      component.Component("answer", given([1] * 4)),
      component.Component("thinking", given([.2, .4, .8, .6]), trust=component.Trust("answer"))])
  np.testing.assert_array_equal(built.score(samples(4)).total, [1] * 4)


@pytest.mark.parametrize("trust, message", [
    (dict(component="anser"), "which is no other component. Did you mean 'answer'"),
    (dict(component="thinking"), "no other"),
    ("answer",
     r"trust must be a mapping, got 'answer': e.g. {'component': 'answer', 'right': 0.5}"),
    (dict(component="answer", rigth=1), "takes no argument 'rigth'"),
    (dict(component="answer", right=float("nan")),
     "needs a finite right and least in .*, got right=nan"),
    (dict(component="answer", least=2), "least=2")])
def test_trust_that_cannot_be(trust, message):
  with pytest.raises(ValueError, match=message):
    build.build_rewards(dict(
        answer=dict(function="exact_answer"),
        thinking=dict(function="overlong_penalty", trust=trust, args=dict(
            limit_tokens=4, buffer_tokens=2))))


def test_rewards_of_the_arms_by_hand():
  def score(name, *completions):
    spec = trust_grpo.get_config(f"{name}-tiny").rl.rewards
    with contextlib.closing(build.build_rewards(spec)) as built:
      return built.score([
          Sample(prompt=PROMPT.replace("?b", "?y"), completion=c, reference="0",
                 metadata=dict(kind="unreliable", unreliable="yw"))
          for c in completions]).total
  # No cell is yellow: to say 0 is right here, and the answer is right. The other counts sum up to
  # 10.
  np.testing.assert_allclose(score("outcome", "0000#0", "4420#0", "1000#1", "junk"), [1, 1, 0, 0])
  np.testing.assert_allclose(
      score("plain", "0000#0", "4420#0", "1000#1", "junk"), [1.3, 1.09, .24, 0], rtol=1e-6)
  trust = np.exp(min(0, (1 + .3) / 2 - (.8 + 0) / 2))
  np.testing.assert_allclose(score("full", "0000#0", "4420#0", "1000#1", "junk"),
                             [1 + .3 * trust, 1 + .09 * trust, .24 * trust, 0], rtol=1e-6)
  np.testing.assert_allclose(score("dropped", "4420#0", "1000#1"), [1.09, .24], rtol=1e-6)
  np.testing.assert_allclose(score("dropped", "1000#1", "1100#2"), [0, 0])
  trust = np.exp(.3 - .8)
  np.testing.assert_allclose(
      score("full", "4420#0", "1000#1"), [1 + .09 * trust, .24 * trust], rtol=1e-6)


def test_experiment_end_to_end_small(tmp_path):
  train.train(config_lib.load("experiments/trust_grpo.py:learned-tiny"), tmp_path)
  steps = [
      x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "reward/answer" in x]
  assert len(steps) == 2
  assert all("reward/thinking/trust" in x and x["logprob_gap"] < 1e-4 for x in steps)


def test_configs_of_all_arms_and_sizes():
  for name in trust_grpo.ARMS:
    config_lib.check(config_lib.load(f"experiments/trust_grpo.py:{name}"))
    config_lib.check(config_lib.load(f"experiments/trust_grpo.py:{name}-full"))
  with pytest.raises(ValueError, match="Unknown arm 'fulll'"):
    trust_grpo.get_config("fulll")
