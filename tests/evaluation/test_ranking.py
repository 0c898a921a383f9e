"""Statistics of scores against known quality: values worked by hand, identities, failed scores."""

import itertools
import math

import numpy as np
import pytest

from rl_reason.evaluation import estimates, ranking


def test_best_of_credit_shares_ties():
  right = [True, False, False, False]
  assert ranking.best_of_credit([0.3, 0.1, 0.2, 0.0], right) == 1.0
  assert ranking.best_of_credit([0.2, 0.1, 0.3, 0.0], right) == 0.0
  assert ranking.best_of_credit([0.3, 0.3, 0.2, 0.3], right) == pytest.approx(1 / 3)
  assert ranking.best_of_credit([0.5] * 4, right) == 0.25  # A constant scorer is at chance.
  assert ranking.best_of_credit([2, 2, 2, 1], [True, True, False, False]) == pytest.approx(2 / 3)
  with pytest.raises(ValueError, match="a right and a wrong response"):
    ranking.best_of_credit([1, 2], [True, True])


def test_failed_scores_never_win_and_are_counted():
  scores, failed = ranking.failures_last([[np.nan, -5.0, np.inf], [1.0, 2.0], [np.nan, np.nan]])
  assert failed == 4 and scores[0].tolist() == [-np.inf, -5.0, -np.inf]
  assert ranking.best_of_credit(scores[0], [True, False, True]) == 0.0
  assert ranking.best_of_credit(scores[2], [True, False]) == 0.0  # All failed: an error, not a tie.
  floored = ranking.floored(scores)
  assert np.isfinite(np.concatenate(floored)).all()
  assert floored[0][0] < -5
  assert floored[0][0] == floored[2][1]
  # Better minus worse: a failed worse one is beaten; with both failed there is no credit.
  pairs = ranking.make_pairs([[1, 0], [1, 0], [1, 0]])
  differences = pairs.differences([[1.0, -np.inf], [-np.inf, 1.0], [-np.inf, -np.inf]])
  assert ranking.pair_credit(differences).tolist() == [1, 0, 0]


def test_pairs_of_lists_are_averaged_per_row():
  # Row 0: 2 > 1 > 0 gives three pairs, of which the scores order (2, 1) and (2, 0) rightly.
  # Row 1 has no pair.
  labels, scores = [[2, 1, 0], [1, 1], [1, 0]], [[0.9, 0.1, 0.5], [3, 4], [7, 7]]
  pairs = ranking.make_pairs(labels)
  assert list(zip(pairs.row, pairs.better, pairs.worse)) == [
      (0, 0, 1), (0, 0, 2), (0, 1, 2), (2, 0, 1)]
  credit = ranking.pair_credit(pairs.differences(scores))
  assert pairs.row_means(credit) == pytest.approx([2 / 3, 0.5])
  assert pairs.row_means(credit, np.array([False, True, True, False])) == pytest.approx([0.5])


def test_domain_average_weighs_domains_alike():
  credit, domains = [1, 1, 1, 0, 0], ["a", "a", "a", "a", "b"]
  found = ranking.by_group(credit, domains)
  assert (found["a"].value, found["b"].value, found["b"].count) == (0.75, 0.0, 1)
  average = ranking.group_average(credit, domains)
  assert average.value == pytest.approx(0.375)
  # Domain b has one row: half of the average never moves.
  assert average.low < 0.375 < average.high <= 0.5


def test_style_matrix_by_hand():
  # Chosen and rejected scores grow with style: the fancier always wins, so easy pairs are right and
  # hard ones wrong.
  chosen, rejected = np.array([[1.0, 2.0, 3.0]]), np.array([[0.5, 1.5, 2.5]])
  matrix, kinds = ranking.style_matrix(chosen, rejected)
  assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
  assert [kinds[k].tolist() for k in ("easy", "normal", "hard")] == [[1], [1], [0]]
  matrix, kinds = ranking.style_matrix(np.zeros((4, 3)), np.zeros((4, 3)))
  assert (matrix == 0.5).all() and kinds["hard"].tolist() == [0.5] * 4
  with pytest.raises(ValueError, match="two styles or more"):
    ranking.style_matrix(chosen, rejected[:, :2])


def test_ties_score_by_hand():
  tied = {"a": ([5, 4], [1, 0]), "b": ([5, 2], [1])}
  references = {"a": ([5], [3.5, 0]), "b": ([1], [2])}
  # a: Δcw 3, Δcc 1, ref Δcw 1.5: accurate twice, apart, also in the hard form; tanh(1.5 − 1).
  # b: Δcw 1, Δcc 3, ref Δcw −1: tied accurate only; tanh(−1/3 − 1).
  found, terms, per_question = ranking.ties_score(references, tied)
  breaker = [math.tanh(0.5), math.tanh(-4 / 3)]
  assert terms == pytest.approx(
      dict(tied=1.0, reference=0.5, apart=0.5, apart_hard=0.5, breaker=sum(breaker) / 2))
  assert found.value == pytest.approx(0.3 + 0.15 + 0.1 + 0.1 + 0.005 * sum(breaker))
  assert per_question == pytest.approx([1 + 0.01 * breaker[0], 0.3 + 0.01 * breaker[1]])
  assert found.low <= found.value <= found.high
  # A question in one form only enters its accuracy, and nothing else.
  found, terms, per_question = ranking.ties_score({**references, "c": ([0], [1])}, tied)
  assert terms["reference"] == pytest.approx(1 / 3) and len(per_question) == 2
  assert found.value == pytest.approx(0.3 + 0.1 + 0.1 + 0.1 + 0.005 * sum(breaker))


def test_ties_score_at_its_ends():
  perfect = ranking.ties_score({"a": ([1], [0])}, {"a": ([1, 1], [0])})[0].value
  assert perfect == pytest.approx(1.01)
  constant = ranking.ties_score({"a": ([0], [0])}, {"a": ([0, 0], [0])})  # 0/0 counts nothing.
  assert constant[0].value == 0.0 and constant[1]["breaker"] == 0.0
  with pytest.raises(ValueError, match="both with one right answer"):
    ranking.ties_score({"a": ([1], [0])}, {"b": ([1, 1], [0])})
  with pytest.raises(ValueError, match="both forms"):  # A single right answer has no spread.
    ranking.ties_score({"a": ([1], [0])}, {"a": ([1], [0])})


def test_best_of_n_by_hand_and_by_enumeration():
  # n=2: of {1,2}, {1,3}, {2,3} the proxy takes 2, 3, 3, of which only 2 is good.
  np.testing.assert_allclose(ranking.best_of_n([[1, 2, 3]], [[0, 1, 0]]), [[1 / 3, 1 / 3, 0]])
  np.testing.assert_allclose(ranking.best_of_n([[5, 5, 5]], [[0, 1, 0]]), [[1 / 3] * 3])
  rng = np.random.RandomState(0)
  proxy, true = rng.randint(0, 4, (5, 7)), rng.standard_normal((5, 7))  # With ties.
  found = ranking.best_of_n(proxy, true)
  for row in range(5):
    for n in range(1, 8):
      worth = []
      for subset in itertools.combinations(range(7), n):
        best = max(proxy[row, i] for i in subset)
        worth.append(np.mean([true[row, i] for i in subset if proxy[row, i] == best]))
      assert found[row, n - 1] == pytest.approx(np.mean(worth))
  with pytest.raises(ValueError, match="finite"):
    ranking.best_of_n([[np.nan, 1]], [[0, 1]])


def test_best_of_n_of_the_true_reward_rises():
  true = np.random.RandomState(1).standard_normal((3, 16))
  curve = ranking.best_of_n(true, true)
  assert (np.diff(curve, axis=1) > 0).all()
  np.testing.assert_allclose(curve[:, -1], true.max(axis=1))
  np.testing.assert_allclose(curve[:, 0], true.mean(axis=1))


def test_calibration_by_hand():
  gap = math.log(3)  # sigmoid: 0.75
  right, _ = ranking.calibration(np.full(4, gap), np.array([1.0, 1, 1, 0]))
  assert right.value == pytest.approx(0, abs=1e-9)
  timid, bins = ranking.calibration(np.full(4, gap), np.ones(4))
  assert timid.value == pytest.approx(0.25)
  assert len(bins) == 1
  assert bins[0]["count"] == 4
  assert (bins[0]["low"], bins[0]["accuracy"]) == (0.75, 1.0)
  # Which response stands first does not matter; a scorer that prefers none is calibrated at 0.5.
  mixed, _ = ranking.calibration([2.0, -1.0], [1, 0.3])
  flipped, _ = ranking.calibration([-2.0, 1.0], [0, 0.7])
  assert mixed.value == pytest.approx(flipped.value)
  assert ranking.calibration(np.zeros(3), np.ones(3))[0].value == 0.0
  assert ranking.calibration([1e4], [1.0])[0].value == pytest.approx(0.0)  # No overflow.
  # Bins cancel within, not between: 0.75 against 1 and 0.95 against 0.
  two, _ = ranking.calibration([gap, math.log(19)], [1, 0])
  assert two.value == pytest.approx((0.25 + 0.95) / 2)
  with pytest.raises(ValueError, match="one preference per difference"):
    ranking.calibration([1.0], [1.0, 0.0])


def test_calibration_resamples_rows():
  differences, preferences = np.array([0.5, 0.5, 0.5, 0.5]), np.array([1.0, 1, 0, 0])
  by_pair, _ = ranking.calibration(differences, preferences)
  by_row, _ = ranking.calibration(differences, preferences, rows=np.array([3, 3, 8, 8]))
  assert by_row.value == by_pair.value and by_row.count == 2
  one, _ = ranking.calibration(differences, preferences, rows=np.zeros(4, int))
  assert one.low == one.high == pytest.approx(one.value)


def test_correlation_within_rows_ignores_prompts():
  # Within rows longer is better, though the row of long responses has low scores throughout.
  scores, lengths = [[10.0, 11.0], [0.0, 1.0]], [[1, 2], [100, 101]]
  assert ranking.correlation_within_rows(scores, lengths).value == pytest.approx(1.0)
  # Pairs: Σ ds·dl / √(Σ ds² Σ dl²) = (1·2 − 1·1) / √(2·5).
  found = ranking.correlation_within_rows([[1.0, 0], [0, 1.0]], [[2, 0], [1, 0]])
  assert found.value == pytest.approx(1 / math.sqrt(10))
  assert ranking.correlation_within_rows([[1.0, 1.0]], [[1, 2]]).value == 0.0


def test_ensemble_agreement_by_hand():
  # Pair 0: all right. Pair 1: two right, one wrong: one of three couples agrees.
  # Pair 2: all without a preference.
  differences = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [1.0, -1.0, 0.0]])
  found = ranking.ensemble_agreement(differences)
  assert found["agreement"].value == pytest.approx((1 + 1 / 3 + 0) / 3)
  assert found["unanimous"].value == pytest.approx(1 / 3)
  assert found["accuracy_unanimous"].value == 1.0
  assert found["accuracy_divided"].value == pytest.approx((2 / 3 + 0.5) / 2)
  assert ranking.ensemble_agreement(np.ones((2, 3)))["accuracy_divided"] is None
  with pytest.raises(ValueError, match="two members or more"):
    ranking.ensemble_agreement(np.ones((1, 3)))


def test_first_error_by_hand():
  scores = [[0.9, 0.2, 0.1], [0.9, 0.8], [0.4], [np.nan, 0.9], []]
  assert ranking.first_below([np.array(s) for s in scores], 0.5).tolist() == [1, -1, 0, 0, -1]
  # Wrong solutions: one of two found. Right ones: all. F1 = 2 · 0.5 · 1 / 1.5.
  f1, wrong, right = ranking.first_error_f1(np.array([1, -1, 2, -1]), np.array([1, -1, 0, -1]))
  assert (f1.value, wrong.value, right.value) == pytest.approx((2 / 3, 0.5, 1.0))
  f1, wrong, right = ranking.first_error_f1(np.array([-1, -1]), np.array([-1, -1]))
  assert f1.value == 0 and wrong is None and right.value == 1
  assert ranking.first_error_f1(np.array([0, 1]), np.array([1, -1]))[0].value == 0


def test_best_threshold_separates():
  scores = [np.array(s) for s in ([5.0, 5.0, 1.0], [5.0, 4.0], [0.5, 6.0], [7.0])]
  labels = np.array([2, -1, 0, -1])
  threshold = ranking.best_threshold(scores, labels)
  assert 1.0 < threshold < 4.0
  assert ranking.first_below(scores, threshold).tolist() == labels.tolist()
  # At any scale and offset.
  assert ranking.first_below([s * 1e6 - 9 for s in scores], ranking.best_threshold(
      [s * 1e6 - 9 for s in scores], labels)).tolist() == labels.tolist()


def test_area_under_curve_by_hand():
  # Right 3, 1; wrong 2, 1: of four couples 3>2, 3>1 count 1, 1=1 a half, 1<2 nothing.
  assert ranking.area_under_curve(
      [3, 1, 2, 1], [True, True, False, False]) == pytest.approx(2.5 / 4)
  assert ranking.area_under_curve([1, 2], [True, True]) is None
  rows = [[(3, 1.0), (2, 0.0)], [(1, 1.0), (1, 0.2)]]
  assert ranking.area_under_curve_by_row(rows).value == pytest.approx(2.5 / 4)


def test_bootstrap_of_a_statistic_keeps_strata():
  x, strata = np.array([0.0, 1.0, 10.0, 10.0]), ["a", "a", "b", "b"]
  low, high = estimates.bootstrap_statistic(lambda i: x[i].mean(), 4, strata=strata)
  assert low == 5.0 and high == 5.5  # Two of four rows always come from b.
  scores = np.array([0.1, 0.5, 0.9])
  assert estimates.bootstrap_statistic(
      lambda i: scores[i].mean(), 3) == estimates.bootstrap_interval(scores)
  with pytest.raises(ValueError, match="count must be at least 1"):
    estimates.bootstrap_statistic(lambda i: 0.0, 0)
