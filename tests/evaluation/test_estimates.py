"""Estimates against enumeration, textbook values and their own definitions."""

import itertools

import numpy as np
import pytest

from rl_reason.evaluation.estimates import (
  bootstrap_interval,
  detectable_effect,
  majority_at_k,
  mean_interval,
  pass_at_k,
  wilson_interval,
)


def test_pass_at_k_equals_enumeration_of_all_subsets():
  for n in range(1, 8):
    for c in range(n + 1):
      for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        np.testing.assert_allclose(
            pass_at_k(n, c, k), np.mean([any(subset) for subset in subsets]), atol=1e-12)


def test_pass_at_k_by_hand():
  # n=4, c=1, k=2: 1 − (3/4)(2/3) = 1/2. n=5, c=2, k=2: 1 − (3/5)(2/4) = 7/10. c=0: 0. c=n: 1.
  estimates = pass_at_k(np.array([4, 5, 3, 3]), np.array([1, 2, 0, 3]), 2)
  np.testing.assert_allclose(estimates, [0.5, 0.7, 0.0, 1.0], rtol=1e-12)


def test_pass_at_1_is_the_mean_and_large_counts_do_not_overflow():
  n, c = np.full(3, 10_000), np.array([1, 5_000, 9_999])
  np.testing.assert_allclose(pass_at_k(n, c, 1), c / n, rtol=1e-9)
  # C(10000, 5000) overflows float64; one of 10000 correct, half of them drawn: 1/2.
  np.testing.assert_allclose(pass_at_k(n, c, 5_000)[0], 0.5, rtol=1e-9)
  assert (pass_at_k(n, c, 5_001)[1:] == 1.0).all()


@pytest.mark.parametrize("n, c, k, message", [
    ([4], [1], 5, r"k must be in \[1, 4\], got 5"),
    ([4], [1], 0, "got 0"),
    ([], [], 1, "no problems"),
    ([4, 4], [1, 5], 1, "got 5 of 4 for problem 1"),
    ([4], [-1], 1, "got -1 of 4"),
    ([4], [0.5], 1, "must be integers"),
])
def test_pass_at_k_refuses(n, c, k, message):
  with pytest.raises(ValueError, match=message):
    pass_at_k(np.array(n, dtype=int), np.array(c), k)


def test_majority_by_hand():
  answers = [
      # k=3: 5 wins two to one, correct. k=4: a tie, 4 came first, wrong. k=1: 4.
      ["4", "5", "5", "4"],
      [None, None, "7", "8"],  # k=1: nobody votes, 0. k=3: 7, though two abstain.
      ["1", "2", "3", "3"],    # k=3: a tie of three, 1 came first.
  ]
  correct = [[False, True, True, False], [False, False, True, False], [True, False, False, False]]
  np.testing.assert_array_equal(majority_at_k(answers, correct, 1), [0, 0, 1])
  np.testing.assert_array_equal(majority_at_k(answers, correct, 3), [1, 1, 1])
  np.testing.assert_array_equal(majority_at_k(answers, correct, 4), [0, 1, 0])


def test_majority_is_judged_by_the_first_sample_that_gave_the_answer():
  np.testing.assert_array_equal(
      majority_at_k([["5", "5"], ["5", "5"]], [[True, False], [False, True]], 2), [1, 0])


@pytest.mark.parametrize("answers, correct, k, message", [
    ([], [], 1, "no problems"), ([["1"]], [], 1, "same problems"),
    ([["1"]], [[True, False]], 1, "1 answers and 2 verdicts"),
    ([["1", "2"], ["1"]], [[True, True], [True]], 2, r"in \[1, 1\], got 2: problem 1"),
    ([["1"]], [[True]], 0, "got 0"),
])
def test_majority_refuses(answers, correct, k, message):
  with pytest.raises(ValueError, match=message):
    majority_at_k(answers, correct, k)


def test_bootstrap_is_deterministic_and_seeded():
  scores = np.random.default_rng(0).random(50)
  assert bootstrap_interval(scores) == bootstrap_interval(list(scores))
  assert bootstrap_interval(scores) != bootstrap_interval(scores, seed=1)


def test_bootstrap_agrees_with_the_normal_interval_for_many_problems():
  scores = np.random.default_rng(0).random(1000)
  low, high = bootstrap_interval(scores)
  half_width = 1.96 * scores.std() / np.sqrt(1000)
  normal = [scores.mean() - half_width, scores.mean() + half_width]
  np.testing.assert_allclose([low, high], normal, atol=0.1 * half_width)
  narrow = bootstrap_interval(scores, confidence=0.5)
  np.testing.assert_allclose(narrow[1] - narrow[0], 2 * half_width * 0.6745 / 1.96, rtol=0.1)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(1)
  covered = []
  for _ in range(200):
    low, high = bootstrap_interval(rng.random(60) < 0.4, confidence=0.9, num_resamples=200)
    covered.append(low <= 0.4 <= high)
  assert 0.83 <= np.mean(covered) <= 0.96  # 0.9 ± 3 standard errors, and a little under-coverage.


def test_bootstrap_of_equal_scores_has_no_width():
  assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


@pytest.mark.parametrize("scores, arguments, message", [
    ([], {}, "non-empty"),
    ([[1.0]], {}, "non-empty vector"),
    ([1.0, np.nan], {}, "finite, got nan for problem 1"),
    ([1.0], {"confidence": 95}, "between 0 and 1, got 95"),
    ([1.0], {"num_resamples": 0}, "num_resamples"),
])
def test_bootstrap_refuses(scores, arguments, message):
  with pytest.raises(ValueError, match=message):
    bootstrap_interval(np.array(scores), **arguments)


def test_wilson_by_hand():
  # z=1.95996, n=10, s=8: center (0.8 + 0.19207)/1.38415 = 0.71674,
  # half width 1.95996·sqrt(0.016 + 0.0096036)/1.38415 = 0.22658.
  np.testing.assert_allclose(wilson_interval(8, 10), [0.49016, 0.94332], atol=1e-5)


def test_wilson_bounds_solve_the_score_equation():
  # The definition: (p − p₀)² = z² p₀ (1 − p₀) / n at both ends.
  for s, n in ((3, 7), (1, 100), (50, 51)):
    for end in wilson_interval(s, n):
      np.testing.assert_allclose(
          (s / n - end) ** 2, 1.959963984540054**2 * end * (1 - end) / n, rtol=1e-9)


def test_wilson_at_the_ends():
  # s=0: high = z²/(n + z²).
  low, high = wilson_interval(0, 20)
  assert low == 0.0
  np.testing.assert_allclose(high, 3.841458820694124 / 23.841458820694124, rtol=1e-9)
  np.testing.assert_allclose(wilson_interval(20, 20), [1 - high, 1.0], rtol=1e-9)


@pytest.mark.parametrize("successes, n, message", [
    (0, 0, "n must be at least 1"), (3, 2, r"in \[0, 2\], got 3"), (-1, 2, "got -1"),
])
def test_wilson_refuses(successes, n, message):
  with pytest.raises(ValueError, match=message):
    wilson_interval(successes, n)


def test_mean_interval_by_hand():
  # Mean 0.2, s = 0.1, t_{0.975, 2} = 4.30265: half width 4.30265 · 0.1 / √3 = 0.24841.
  np.testing.assert_allclose(mean_interval([0.1, 0.2, 0.3]), [-0.04841, 0.44841], atol=1e-5)
  # Two values: t_{0.75, 1} = tan(π/4) = 1, s / √2 = 1/2.
  np.testing.assert_allclose(mean_interval([0, 1], confidence=0.5), [0.0, 1.0], atol=1e-12)
  assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_mean_interval_covers_as_often_as_it_says_and_the_bootstrap_of_three_does_not():
  values = np.random.default_rng(0).standard_normal((2000, 3)) + 7
  covered = [low <= 7 <= high for low, high in map(mean_interval, values)]
  assert abs(np.mean(covered) - 0.95) < 0.015  # Three standard errors.
  resampled = [bootstrap_interval(v, num_resamples=200) for v in values[:300]]
  assert np.mean([low <= 7 <= high for low, high in resampled]) < 0.85


@pytest.mark.parametrize("n", [2, 3, 6])
def test_an_effect_of_the_detectable_size_is_seen_four_times_in_five(n):
  # Any values with deviation 1.
  base = np.arange(n) / np.arange(n).std(ddof=1)
  effect = detectable_effect(base)
  values = np.random.default_rng(n).standard_normal((4000, n)) + effect
  # Three standard errors.
  assert abs(np.mean([mean_interval(v)[0] > 0 for v in values]) - 0.8) < 0.02


@pytest.mark.parametrize("values, arguments, message", [
    ([1.0], {}, "at least two"),
    ([[1.0, 2.0]], {}, "at least two"),
    ([1.0, np.inf], {}, "finite, got inf at position 1"),
    ([1.0, 2.0], {"confidence": 95}, "between 0 and 1, got 95"),
    ([1.0, 2.0], {"power": 1.0}, "power must be"),
])
def test_estimates_of_few_values_refuse(values, arguments, message):
  with pytest.raises(ValueError, match=message):
    detectable_effect(np.array(values), **arguments)
