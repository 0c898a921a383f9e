"""Accuracy worked by hand, and evaluation of a tiny policy.

It is a function of the policy's parameters and the seed alone.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rl_reason.evaluation import accuracy as accuracy_lib
from rl_reason.evaluation.accuracy import accuracy, check_verifier, Evaluation
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.types import Sample


def samples(*completions, truncated=()):
  return [
      Sample(prompt="p", completion=c, reference="5", completion_tokens=tuple(range(len(c) + 1)),
             truncated=i in truncated)
      for i, c in enumerate(completions)]


def test_accuracy_by_hand():
  # Three problems, four samples each, the reference is 5.
  #   1: 5 5 7 -   pass@1 2/4, one of four is right, most say 5
  #   2: 7 7 5 6   pass@1 1/4, one of four is right, most say 7
  #   3: 8 9 8 9   none
  drawn = samples(
      "#5", "#5", "#7", "none", "#7", "#7", "#5", "#6", "#8", "#9", "#8", "#9", truncated=(3,))
  correct = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  got = accuracy(drawn, correct)
  assert got["eval/pass@1"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
  assert got["eval/pass@4"] == pytest.approx(2 / 3) and got["eval/maj@4"] == pytest.approx(1 / 3)
  assert got["eval/truncated"] == pytest.approx(1 / 12)
  # Two characters and EOS, four and EOS.
  assert got["eval/length"] == pytest.approx((11 * 3 + 5) / 12)
  for name in ("pass@1", "pass@4", "maj@4"):
    assert 0 <= got[f"eval/{name}_low"] <= got[f"eval/{name}"] <= got[f"eval/{name}_high"] <= 1


def test_accuracy_by_kind():
  drawn = [dataclasses.replace(s, metadata={"level": level}) for s, level in zip(
      samples("#5", "#7", "#5", "#5", "#7", "#7"), (1, 1, 2, 2, 2, 2))]
  got = accuracy(drawn, np.array([[1, 0], [1, 1], [0, 0]], bool), by="level")
  assert got["eval/pass@1/1"] == 0.5 and got["eval/pass@1/2"] == 0.5 and got["eval/pass@1"] == 0.5
  assert got["eval/pass@1/2_low"] == 0 and got["eval/pass@1/2_high"] == 1


def test_accuracy_of_one_sample_has_no_majority():
  got = accuracy(samples("#5", "#5"), np.array([[True], [True]]))
  assert got["eval/pass@1"] == got["eval/pass@1_low"] == got["eval/pass@1_high"] == 1.0
  assert not any("maj" in k or "pass@" in k and not k.startswith("eval/pass@1") for k in got)


def test_problems_weigh_alike_in_the_interval():
  # 100 problems, half of them always right: the 95 % interval of a mean of 100 coin flips, about
  # 0.5 +- 1.96 * 0.05.
  correct = np.repeat(np.arange(100) < 50, 2).reshape(100, 2)
  got = accuracy(samples(*["#5"] * 200), correct)
  assert got["eval/pass@1"] == 0.5
  assert got["eval/pass@1_low"] == pytest.approx(0.402, abs=0.02)
  assert got["eval/pass@1_high"] == pytest.approx(0.598, abs=0.02)


@pytest.fixture(scope="module")
def tiny():
  """(context on one device, parameters) of the shrunk quickstart, with more held-out problems."""
  config = config_lib.load("experiments/quickstart.py:tiny")
  config.mesh.fsdp, config.task.heldout.size = 1, 10
  context = run.make_context(config_lib.check(config)[0])
  with context.partitioning.use():
    yield context, context.initial_params()


def evaluate(section, context, params):
  return accuracy_lib.evaluate(section, context.sampler, context.task.heldout, params,
                               rng=functools.partial(context.rng, "evaluation"))


def section(**changes):
  return dataclasses.replace(Evaluation(
      rewards={"exact_answer": 1.0}, sampling=Sampling(max_tokens=8), num_problems=10,
      samples_per_problem=2, batch_size=4), **changes)


def test_every_problem_is_sampled_once_in_order(tiny):
  context, params = tiny
  # 10 problems in batches of 4: the last one is filled up.
  result = evaluate(section(), context, params)
  assert result.correct.shape == (10, 2) and len(result.samples) == len(result.rows()) == 20
  assert [s.prompt for s in result.samples] == [
      context.task.heldout[i // 2].prompt for i in range(20)]
  assert [s.reference for s in result.samples] == [
      context.task.heldout[i // 2].reference for i in range(20)]
  assert max(len(s.completion_tokens) for s in result.samples) <= 8
  assert len({s.completion for s in result.samples}) > 5

  # The same again, whatever was drawn before; fewer problems are the first ones.
  again = evaluate(section(), context, params)
  assert again.metrics == result.metrics and again.rows() == result.rows()
  fewer = evaluate(section(num_problems=4), context, params)
  assert fewer.rows() == result.rows()[:8]
  # There are not more than there are.
  assert len(evaluate(section(num_problems=500), context, params).correct) == 10


def test_correct_is_what_the_verifier_says(tiny):
  context, params = tiny
  got = evaluate(
      section(rewards={"every": {"function": f"{__name__}:even", "weight": 1.0}}), context, params)
  np.testing.assert_array_equal(got.correct, [[True, False]] * 10)
  assert got.metrics["eval/pass@1"] == 0.5 and got.metrics["eval/pass@2"] == 1.0
  assert [row["correct"] for row in got.rows()] == [True, False] * 10


def even(samples):
  """Range {0, 1}: every other sample."""
  return [(i + 1) % 2 for i in range(len(samples))]


def later(samples):
  """Range [0, 1]: more for a group's second sample; raises where two problems are one group."""
  groups = [s.group for s in samples]
  assert groups == sorted(groups)
  return [float(i and groups[i - 1] == group) for i, group in enumerate(groups)]


def test_a_reward_of_groups_does_not_depend_on_the_batch_size(tiny):
  context, params = tiny
  rewards = {"later": {"function": f"{__name__}:later"}}
  for size in (3, 10):
    got = evaluate(
        section(rewards=rewards, batch_size=size, samples_per_problem=3), context, params)
    assert [s.group for s in got.samples] == np.repeat(np.arange(10), 3).tolist()
    np.testing.assert_array_equal(got.correct, [[False, True, True]] * 10)


def test_greedy_samples_of_a_problem_are_equal(tiny):
  context, params = tiny
  greedy = evaluate(
      section(sampling=Sampling(max_tokens=8, temperature=0.0), num_problems=4), context, params)
  assert all(
      a.completion == b.completion for a, b in zip(greedy.samples[::2], greedy.samples[1::2]))


def test_other_parameters_are_told_apart(tiny):
  context, params = tiny
  other = jax.tree.map(lambda x: x * 1.5, params)
  one, two = (evaluate(section(num_problems=4), context, p) for p in (params, other))
  assert one.rows() != two.rows()


def test_a_bad_verifier_is_found_first(tiny):
  with pytest.raises(ValueError, match="Did you mean 'exact_answer'"):
    check_verifier(section(rewards={"exact_anwser": 1.0}), tiny[0].task.heldout)
