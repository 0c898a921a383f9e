"""Transforms of a component's values, normalisers, group rewards, schedules.

They are worked by hand; and what must not change does not.
"""

import itertools
import json
import math
import re

import numpy as np
import pytest

from rl_reason.rewards import groups as groups_lib
from rl_reason.rewards.composition import normalisers
from rl_reason.rewards.composition import shaping as rewards
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.schedules import Schedule
from rl_reason.rewards.registry import TRANSFORMS
from rl_reason.types import Sample

HERE = __name__


def ragged(*rows):
  return [np.array(row, float) for row in rows]


def assert_rows(got, expected):
  assert len(got) == len(expected)
  for row, wanted in zip(got, expected):
    np.testing.assert_allclose(row, wanted, atol=1e-12)
    assert row.shape == np.shape(wanted)


# --- Steps


def test_clip_by_hand():
  # min(r - 0.7, 0): Gao et al.'s Clip with η = 0.7.
  assert_rows(
      rewards.clip(ragged([0.9, 0.5, 0.7], [], [0.0]), offset=0.7, high=0.0),
      [[0, -0.2, 0], [], [-0.7]])
  assert_rows(rewards.clip(ragged([-3, 0.5, 3]), low=-1.0, high=2.0), [[-1, 0.5, 2]])


def test_delta_by_hand():
  # r_k − r_{k+1} up to K − 2, r_{K−1} itself, 0 at the end; one step earns nothing.
  assert_rows(rewards.delta(ragged([0.9, 0.5, 0.75, 0.25], [0.5, 1.0], [0.5], [])),
              [[0.4, -0.25, 0.75, 0], [0.5, 0], [0], []])


def test_the_rewards_from_a_step_on_sum_to_its_own_after_delta():
  scores = np.random.RandomState(0).rand(7)
  from_here = np.cumsum(rewards.delta([scores])[0][::-1])[::-1]
  np.testing.assert_allclose(from_here, [*scores[:-1], 0])


def test_clip_delta_never_pays_for_a_step_more_and_delta_alone_does():
  # The card of a repetition attack: after two good steps, k harmless ones that score as well, then
  # the answer.
  def collected(k, *transforms):
    rows = [np.array([0.95, 0.9, *[0.95] * k, 0.2])]
    for transform, args in transforms:
      rows = transform(rows, **args)
    return rows[0][1:].sum()  # From the second step on.
  clip = rewards.clip, dict(offset=0.9, high=0.0)
  naive = [collected(k) for k in range(5)]
  assert np.all(np.diff(naive) > 0.9)
  np.testing.assert_allclose([collected(k, (rewards.delta, {})) for k in range(5)], 0.9)
  np.testing.assert_allclose(
      [collected(k, clip, (rewards.delta, {})) for k in range(5)], 0, atol=1e-12)


def test_bounded_by_hand():
  # sigmoid(0) = 0.5, sigmoid(ln 3) = 0.75; far out it ends at the bounds, without overflow.
  got = rewards.bounded(
      ragged([1, 1 + 2 * math.log(3), 1e6, -1e6]), low=-1.0, high=3.0, center=1.0, scale=2.0)
  assert_rows(got, [[1, 2, 3, -1]])


def test_potential_by_hand():
  # γ = 0.5, φ(s_0) = 1, φ = [2, 4]: F = [0.5·2 − 1, 0.5·4 − 2];
  # with φ = 0 at the end the last is −2.
  assert_rows(
      rewards.potential(ragged([2, 4], []), discount=0.5, initial=1.0, terminal=None), [[0, 0], []])
  assert_rows(rewards.potential(ragged([2, 4], [7]), discount=0.5, initial=1.0), [[0, -2], [-1]])


def test_min_form_by_hand():
  # At temperature 1 rewards 0 and −ln 3 weigh e^0 and e^ln 3: 1/4 and 3/4.
  # At 0.001 the weakest is all; no steps, nothing.
  assert_rows(
      rewards.min_form(ragged([0, -math.log(3)], [1], []), temperature=1.0),
      [[0, -0.75 * math.log(3)], [1], []])
  assert_rows(
      rewards.min_form(ragged([0.7, 0.2, 0.9], [1e4, -1e4]), temperature=1e-3),
      [[0, 0.2, 0], [0, -1e4]])
  with pytest.raises(ValueError, match="temperature above 0, got 0"):
    rewards.min_form([], temperature=0)


def episodes(num_states=4, steps=(1, 2, 3)):
  return [e for k in steps for e in itertools.product(range(num_states), repeat=k + 1)]


PHI = np.array([0.3, -1.0, 2.0, 0.7])


def shaping(discount):
  return lambda e: rewards.potential(
      [PHI[list(e[1:])]], discount=discount, initial=PHI[e[0]], terminal=None)[0]


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_potential_based_shaping_keeps_the_ranking_of_whole_episodes_between_equal_ends(discount):
  random = np.random.RandomState(0)
  reward = random.randn(4, 4)  # Of a transition.
  def collected(e, extra):
    own = reward[list(e[:-1]), list(e[1:])]
    return float(discount ** np.arange(len(own)) @ (own + extra(e)))
  compared = 0
  ends = lambda e: (e[0], e[-1], len(e))
  for _, same in itertools.groupby(sorted(episodes(), key=ends), ends):
    same = list(same)
    plain = [collected(e, lambda e: 0) for e in same]
    shaped = [collected(e, shaping(discount)) for e in same]
    # Rounded: sums in another order are equal up to rounding.
    ranking = lambda sums: np.argsort(np.round(sums, 9), kind="stable").tolist()
    assert ranking(plain) == ranking(shaped)
    np.testing.assert_allclose(np.subtract(shaped, plain), shaped[0] - plain[0], atol=1e-12)
    compared += len(same) > 1
  assert compared > 20


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_checker_passes_potentials(discount):
  rewards.check_potential_based(shaping(discount), episodes(), discount=discount)
  # With φ = 0 at the end every episode from one state collects the same.
  closed = lambda e: rewards.potential([PHI[list(e[1:])]], discount=discount, initial=PHI[e[0]])[0]
  rewards.check_potential_based(closed, episodes(), discount=discount)
  totals = {e[0]: discount ** np.arange(len(e) - 1) @ closed(e) for e in episodes()}
  np.testing.assert_allclose([totals[s] for s in range(4)], -PHI)


@pytest.mark.parametrize("name, function", [
    ("states", lambda e: PHI[list(e[1:])]),  # Paid for where it is: more steps, more reward.
    ("delta", lambda e: rewards.delta([PHI[list(e[1:])]])[0]),
    ("another discount", shaping(0.9)),
    ("once", lambda e: [float(s == 2 and 2 not in e[:i + 1]) for i, s in enumerate(e[1:])]),
])
def test_the_checker_names_two_episodes_that_differ(name, function):
  with pytest.raises(
      ValueError,
      match=r"Not potential-based: \[.*\] collects .* and \[.*\] .* between the same ends"):
    rewards.check_potential_based(function, episodes())


def test_the_checker_does_not_pass_what_it_could_not_compare():
  with pytest.raises(ValueError, match="nothing was checked"):
    rewards.check_potential_based(shaping(1.0), [(0, 1), (1, 2)])
  with pytest.raises(
      ValueError,
      match=r"gave shape \(2,\) for an episode of 2 states: give one reward per step, \(1,\)"):
    rewards.check_potential_based(lambda e: [0, 0], [(0, 1)])


# --- Normalisers


def test_running_mean_std_by_hand():
  # After [1, 3]: mean 2, std 1. After [5] too: mean 3, population variance (4 + 0 + 4) / 3.
  normaliser = normalisers.RunningMeanStd(epsilon=1e-12)
  assert_rows(normaliser(ragged([1], [3])), [[-1], [1]])
  assert_rows(normaliser(ragged([], [5])), [[], [2 / math.sqrt(8 / 3)]])


def test_running_mean_std_is_that_of_all_values_however_they_come():
  values = 1e6 + np.random.RandomState(0).randn(1000)  # Sums of squares would lose the variance.
  normaliser, start = normalisers.RunningMeanStd(epsilon=1e-12), 0
  for size in (1, 2, 300, 0, 697):
    got = normaliser([values[start:start + size]])[0]
    start += size
  np.testing.assert_allclose(got, (values[303:] - values.mean()) / values.std(), rtol=1e-6)


def test_sliding_min_max_by_hand():
  normaliser = normalisers.SlidingMinMax(window=3, epsilon=1e-12)
  assert_rows(normaliser(ragged([2], [4])), [[0], [1]])
  assert_rows(normaliser(ragged([3])), [[0.5]])  # Of 2, 4, 3.
  assert_rows(normaliser(ragged([5])), [[1]])  # Of 4, 3, 5.
  assert_rows(normaliser(ragged([3.5])), [[0.25]])  # Of 3, 5, 3.5.
  # A batch longer than the window is measured as a whole.
  assert_rows(normaliser(ragged([0, 1, 2, 4])), [[0, 0.25, 0.5, 1]])
  assert_rows(normaliser(ragged([3])), [[0.5]])  # Of 2, 4, 3.


@pytest.mark.parametrize("make", [normalisers.RunningMeanStd, normalisers.SlidingMinMax])
def test_equal_values_normalise_to_zero(make):
  assert_rows(make()(ragged([0.1] * 3, [0.1])), [[0] * 3, [0]])
  assert_rows(make()(ragged([], [])), [[], []])


def per_group(values):
  return normalisers.group_mean_std(values, groups=[0] * len(values))


@pytest.mark.parametrize(
    "make", [normalisers.RunningMeanStd, normalisers.SlidingMinMax, lambda: per_group])
@pytest.mark.parametrize("constant", [0.1, 1 / 3, -0.7, 1e9 + 0.1])
def test_equal_values_normalise_to_exactly_zero(make, constant):
  for count in (3, 7, 10):
    normaliser = make()
    for _ in range(2):  # And again, beside what was seen before.
      np.testing.assert_array_equal(normaliser(ragged(*[[constant]] * count)), np.zeros((count, 1)))


@pytest.mark.parametrize(
    "make", [normalisers.RunningMeanStd, lambda: normalisers.SlidingMinMax(window=5)])
def test_a_restored_normaliser_goes_on_as_if_never_stopped(make):
  batches = np.random.RandomState(0).randn(4, 3)
  whole, first, resumed = make(), make(), make()
  for b in batches[:2]:
    whole([b]), first([b])
  resumed.restore(json.loads(json.dumps(first.state())))
  for b in batches[2:]:
    assert whole([b])[0].tobytes() == resumed([b])[0].tobytes()


# --- Groups


def test_group_mean_std_by_hand():
  # Group 0: mean 2, std 1. Group 3, over its three steps: mean 2, variance 2/3·4 = 8/3.
  # Group 1: equal.
  got = normalisers.group_mean_std(
      ragged([1], [3], [0, 2], [4], [5], []), groups=[0, 0, 3, 3, 1, 1], epsilon=1e-12)
  s = math.sqrt(8 / 3)
  assert_rows(got, [[-1], [1], [-2 / s, 0], [2 / s], [0], []])


def test_group_rank_by_hand():
  # Of 5, 1, 5, 9: below 1, 0, 1, 3, and one other ties with each 5: (1 + 0.5) / 3.
  got = normalisers.group_rank(
      ragged([5], [1], [5], [9], [1e9], [2], [2]), groups=[0, 0, 0, 0, 1, 2, 2])
  assert_rows(got, [[0.5], [0], [0.5], [1], [0.5], [0.5], [0.5]])


def completions(*rows, groups=None):
  groups = groups or [0] * len(rows)
  return [Sample(prompt="", completion="x", reference="", completion_tokens=tuple(r), group=g)
          for r, g in zip(rows, groups)]


def test_relative_length_by_hand():
  samples = completions([1], [1] * 3, [1] * 5, [1] * 9, [1] * 9, [], groups=[0, 0, 0, 4, 4, 2])
  assert groups_lib.relative_length(samples).tolist() == [0.5, 0, -0.5, 0, 0, 0]


def test_diversity_by_hand():
  # Bigrams: {12, 23}, {12, 24}, {12, 23}. Jaccard 1/3, 1, 1/3.
  samples = completions(
      [1, 2, 3], [1, 2, 4], [1, 2, 3], [1], [], [], [7, 7], groups=[0, 0, 0, 1, 1, 2, 3])
  np.testing.assert_allclose(
      groups_lib.diversity(samples, n=2), [1 / 3, 2 / 3, 1 / 3, 1, 1, 0, 0], rtol=1e-6)
  assert groups_lib.diversity(completions([], [])).tolist() == [0, 0]
  with pytest.raises(ValueError, match="n must be at least 1, got 0"):
    groups_lib.diversity([], n=0)


def test_groups_that_are_torn_apart_are_refused():
  samples = completions([1], [2], [3], groups=[0, 1, 0])
  for judge in (groups_lib.diversity, groups_lib.relative_length):
    with pytest.raises(ValueError, match="samples of group 0 are not adjacent"):
      judge(samples)


# --- Schedules


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [1, 1, 1, 1, 1]),
    ("linear", [1, 0.8, 0.6, 0.2, 0.2]),
    ("step", [1, 1, 1, 0.2, 0.2]),
    # cos(π/4) = 0.7071: 1 − 0.8·(1 − 0.7071)/2.
    ("cosine", [1, 0.882843, 0.6, 0.2, 0.2]),
    ("exponential",
     [1, 0.2 + 0.8 * math.exp(-0.25), 0.2 + 0.8 * math.exp(-0.5), 0.2 + 0.8 * math.exp(-1),
      0.2 + 0.8 * math.exp(-10)]),
])
def test_schedules_by_hand(schedule, expected):
  np.testing.assert_allclose(
      Schedule(schedule, 1.0, 0.2, 40)(np.array([0, 10, 20, 40, 400])), expected, rtol=1e-6)


@pytest.mark.parametrize("weight, message", [
    ({"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 0},
     "a linear schedule with steps=0: it must be at least"),
    ({"schedule": "linear", "start": 1.0, "end": 0.0}, "a linear schedule with steps=None"),
    ({"schedule": "cosine", "start": 1.0, "steps": 3},
     "a cosine schedule with end=None: give a finite number"),
    ({"schedule": "step", "start": float("inf"), "end": 0.0, "steps": 3},
     "a step schedule with start=inf"),
    ({"schedule": "liner", "start": 1.0, "end": 0.0, "steps": 3},
     "unknown schedule 'liner'. Did you mean 'linear'"),
    ({"schedule": "linear", "start": 1.0, "end": 0.0, "step": 3},
     "unknown field 'step'. Did you mean 'steps'"),
    ({"start": 1.0, "end": 0.0, "steps": 3}, "lacks schedule"),
])
def test_schedules_that_cannot_be_are_refused(weight, message):
  with pytest.raises(ValueError, match=r"Reward 'boxed_format' has .*" + message):
    build_rewards({"boxed_format": {"weight": weight}})


# --- From a config


@pytest.mark.parametrize("transforms, message", [
    (("clp",), "Unknown transform 'clp'. Did you mean 'clip'"),
    (({"name": "clip", "hgih": 1.0},),
     "transform: clip takes no argument 'hgih'. Did you mean 'high'"),
    (({"name": "clip", "low": 1.0, "high": 0.0},),
     "clip needs low <= high .* got low=1.0, high=0.0"),
    (({"name": "clip", "low": float("nan")},), "clip needs low <= high"),
    (({"high": 1.0},), "has no name"),
    ("clip", r"must be a tuple, got 'clip': for one entry write \('clip',\)"),
    (({"name": "bounded", "scale": 0.0},), "bounded needs .* scale=0.0"),
    (({"name": "bounded", "low": 1.0, "high": 0.0},), "finite low < high"),
    (({"name": "potential", "discount": 1.5},), r"discount in \[0, 1\], got 1.5"),
    (({"name": "potential", "initial": float("inf")},), "finite potentials"),
    (({"name": "sliding_min_max", "window": 0},), "window must be at least 1 .* got window=0"),
    (({"name": "running_mean_std", "epsilon": 0.0},), "epsilon must be above 0"),
    (({"name": "group_rank", "ties": 1},), "no argument 'ties'"),
])
def test_transforms_that_cannot_be_are_refused(transforms, message):
  with pytest.raises(ValueError, match=message):
    build_rewards({"boxed_format": {"transforms": transforms}})


def test_every_transform_takes_no_samples():
  for name, transform in TRANSFORMS.items():
    groups = {"groups": []} if getattr(transform, "sees_groups", False) else {}
    function = transform() if isinstance(transform, type) else transform
    assert list(function([], **groups)) == [], name
    assert re.search(r"[.:]$", transform.__doc__.split("\n")[0]), name
