"""Measures how well scores rank responses whose quality is known, for judging reward models.

All are pure functions over arrays. Rows are prompts. `scores[i]` are a scorer's numbers for the
responses of row i, and `labels[i]` their true scores; higher is better in both. Where a scorer gave
several responses of a row its best score, the row's credit would be random. The credit is then its
expectation, so that a constant scorer gets what chance gives. `rl_reason.judge` puts these numbers
into one report.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

from jaxtyping import Bool, Float, Int
import numpy as np

from rl_reason.evaluation import estimates


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Holds a mean or another statistic of `count` rows, with its 95 % interval.

  value: the statistic.
  low: lower end of the interval.
  high: upper end of the interval.
  count: number of rows.
  """
  value: float
  low: float
  high: float
  count: int


def estimate(per_row: Sequence[float]) -> Estimate:
  """Estimates the mean over rows: with Wilson's interval where each is 0 or 1, else a bootstrap."""
  per_row = np.asarray(per_row, np.float64)
  if np.isin(per_row, (0.0, 1.0)).all() and per_row.size:
    low, high = estimates.wilson_interval(int(per_row.sum()), per_row.size)
  else:
    low, high = estimates.bootstrap_interval(per_row)
  return Estimate(float(per_row.mean()), low, high, per_row.size)


def by_group(per_row: Sequence[float], groups: Sequence[str]) -> dict[str, Estimate]:
  """Estimates the mean of each group, e.g. domain, in the order of their names."""
  per_row, groups = np.asarray(per_row, np.float64), np.asarray(groups)
  return {str(g): estimate(per_row[groups == g]) for g in np.unique(groups)}


def group_average(per_row: Sequence[float], groups: Sequence[str]) -> Estimate:
  """Estimates the unweighted mean of the groups' means; resamples rows within each group."""
  per_row, groups = np.asarray(per_row, np.float64), np.asarray(groups)
  names = np.unique(groups)
  # Each row has the weight that makes its group count as one.
  weights = np.zeros(len(per_row))
  for name in names:
    weights[groups == name] = 1 / (len(names) * (groups == name).sum())
  return _bootstrapped(lambda i: float(per_row[i] @ weights[i]), len(per_row), strata=groups)


def failures_last(
    scores: Sequence[Float[np.ndarray, "R"]]) -> tuple[list[Float[np.ndarray, "R"]], int]:
  """Replaces every NaN and infinity by −∞, so that a score that failed never wins.

  Returns: (the scores, how many were replaced).
  """
  rows = [np.where(np.isfinite(row), row, -np.inf)
          for row in (np.asarray(row, np.float64) for row in scores)]
  return rows, sum(int(np.isinf(row).sum()) for row in rows)


def floored(scores: Sequence[Float[np.ndarray, "R"]]) -> list[Float[np.ndarray, "R"]]:
  """Replaces −∞ by one finite number below all others, for statistics that need margins."""
  every = np.concatenate([np.zeros(0), *scores])
  good = every[np.isfinite(every)]
  # As far below as the scores spread, so that it differs from the smallest at any scale.
  floor = good.min() - max(np.ptp(good), abs(good.min()) * 1e-6, 1e-6) if good.size else 0.0
  return [np.where(np.isfinite(row), row, floor) for row in scores]


# --- Rankings.


def best_of_credit(scores: Float[np.ndarray, "R"], right: Bool[np.ndarray, "R"]) -> float:
  """Computes the probability that the response with the highest score is a right one, in [0, 1].

  Ties are broken at random. With one right response of four it is RewardBench 2's credit: 1/T if
  the right one is among the T best, else 0. A row in which every score failed (−∞) gets 0: it is an
  error, not a tie.

  Source: Malik et al. 2025, arXiv:2506.01937 (rewardbench/utils.py of its repository).
  """
  scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
  if right.all() or not right.any():
    raise ValueError(f"A choice needs a right and a wrong response, got right={right.tolist()}.")
  return float(right[scores == scores.max()].mean()) if scores.max() > -np.inf else 0.0


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Lists every pair of a better and a worse response of a row, over all rows.

  row: the row of each pair.
  better: index within the row of the better response.
  worse: index within the row of the worse response.
  """
  row: Int[np.ndarray, "K"]
  better: Int[np.ndarray, "K"]
  worse: Int[np.ndarray, "K"]

  def differences(self, values: Sequence[Sequence[float]]) -> Float[np.ndarray, "K"]:
    """Returns the value of the better response minus the value of the worse one, per pair."""
    return np.array([float(values[r][b]) - float(values[r][w])
                     for r, b, w in zip(self.row, self.better, self.worse)])

  def row_means(
      self, per_pair: Float[np.ndarray, "K"], select: Bool[np.ndarray, "K"] | None = None,
  ) -> Float[np.ndarray, "N"]:
    """Returns means over each row's (selected) pairs, for the rows that have any."""
    select = slice(None) if select is None else select
    _, rows = np.unique(self.row[select], return_inverse=True)
    return np.bincount(rows, per_pair[select]) / np.bincount(rows)


def make_pairs(labels: Sequence[Sequence[float]]) -> Pairs:
  """Lists the pairs of responses with different labels. A row of equal labels has no pairs."""
  found = [(r, b, w) for r, row in enumerate(labels)
           for b in range(len(row)) for w in range(len(row)) if row[b] > row[w]]
  return Pairs(*np.array(found, np.int64).reshape(-1, 3).T)


def pair_credit(differences: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
  """Returns 1 where the better response has the higher score, 0.5 for equal scores, else 0.

  A pair of which both scores failed also gets 0.
  """
  return np.where(differences == 0, 0.5, (differences > 0).astype(np.float64))


def style_matrix(
    chosen: Float[np.ndarray, "N S"], rejected: Float[np.ndarray, "N S"],
) -> tuple[Float[np.ndarray, "S S"], dict[str, Float[np.ndarray, "N"]]]:
  """Computes RM-Bench's accuracies: chosen style i against rejected style j, and by difficulty.

  Styles go from plain to fancy. A pair is hard if the better response is the plainer one (i < j,
  above the diagonal), normal if both have one style, and easy if the better response is the fancier
  one. Equal scores count a half here, and nothing in the paper's code.

  Args:
    chosen: scores of the better responses, per row and style.
    rejected: scores of the worse responses, per row and style.

  Returns: (accuracy per pair of styles; per row the accuracies of "easy", "normal" and "hard"
    pairs).

  Source: Liu et al. 2024, arXiv:2410.16184.
  """
  chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
  if chosen.shape != rejected.shape or chosen.ndim != 2 or chosen.shape[1] < 2:
    raise ValueError("chosen and rejected must both be [rows, styles] with two styles or more, got"
                     f" {chosen.shape} and {rejected.shape}.")
  with np.errstate(invalid="ignore"):
    credit = pair_credit(chosen[:, :, None] - rejected[:, None, :])
  i, j = np.indices(credit.shape[1:])
  kinds = {"easy": i > j, "normal": i == j, "hard": i < j}
  return credit.mean(axis=0), {
      name: credit[:, cells].mean(axis=1) for name, cells in kinds.items()}


def ties_score(
    references: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    tied: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> tuple[Estimate, dict[str, float], Float[np.ndarray, "Q"]]:
  """Computes RewardBench 2's Ties: are equally right answers scored closely, above all wrong ones?

      0.3 acc(tied) + 0.3 acc(ref)
      + 0.2 [Δcw(tied) > Δcc(tied)] + 0.2 [min(Δcw(ref), Δcw(tied)) > Δcc(tied)]
      + 0.01 tanh(min(Δcw(ref), Δcw(tied)) / Δcc(tied) − 1)

  with Δcw the lowest right score minus the highest wrong one, Δcc the spread of the right scores,
  acc = [Δcw > 0], and each term a mean over questions. The score lies in [−0.01, 1.01]. The last
  term breaks ties between scorers; 0/0 in it counts 0. The last three terms use the questions that
  exist in both forms. They skip a question whose tied form has a single right answer, because it
  has no Δcc.

  Args:
    references: question -> (scores of the right answers, of the wrong ones) of its form with one
      right answer.
    tied: the same for its form with several right answers.

  Returns: (the score, with its interval over questions in both forms; the five terms by name,
    unweighted; the score of each question in both forms).
  Raises: ValueError if no question exists in both forms.
  Source: Malik et al. 2025, arXiv:2506.01937 (rewardbench/utils.py of its repository).
  """
  def margin(right, wrong):
    return min(right) - max(wrong)
  both = [q for q in tied if q in references and len(tied[q][0]) > 1]
  if not both:
    raise ValueError("No question is there both with one right answer (ref) and with several"
                     " (tied): the margins need both forms.")
  # 1. Accuracies, over all questions of each form.
  accuracy = {name: {q: float(margin(*s) > 0) for q, s in rows.items()}
              for name, rows in (("tied", tied), ("reference", references))}
  # 2. Margins and spreads, over the questions in both forms.
  spread = np.array([max(tied[q][0]) - min(tied[q][0]) for q in both])
  margins = np.array([margin(*tied[q]) for q in both])
  hardest = np.minimum(margins, [margin(*references[q]) for q in both])
  with np.errstate(divide="ignore", invalid="ignore"):
    breaker = np.nan_to_num(np.tanh(hardest / spread - 1), nan=0.0)
  per_question = (0.2 * (margins > spread) + 0.2 * (hardest > spread) + 0.01 * breaker)
  # 3. The terms, then their weighted sum.
  terms = {"tied": float(np.mean(list(accuracy["tied"].values()))),
           "reference": float(np.mean(list(accuracy["reference"].values()))),
           "apart": float((margins > spread).mean()),
           "apart_hard": float((hardest > spread).mean()),
           "breaker": float(breaker.mean())}
  value = 0.3 * terms["tied"] + 0.3 * terms["reference"] + float(per_question.mean())
  whole = per_question + [0.3 * accuracy["tied"][q] + 0.3 * accuracy["reference"][q] for q in both]
  low, high = estimates.bootstrap_interval(whole)
  return Estimate(value, low, high, len(both)), terms, whole


def best_of_n(
    proxy: Float[np.ndarray, "N R"], true: Float[np.ndarray, "N R"],
) -> Float[np.ndarray, "N R"]:
  """Computes the expected true reward of the response that the proxy likes best among n.

  It does so for n = 1 ... R, per prompt:

      Σ_r C(r − 1, n − 1) / C(R, n) · true_(r)          r: the rank by proxy, 1 the lowest

  This averages over all subsets of n of the R samples, so it is unbiased for each n. Samples of
  equal proxy reward are chosen at random: each has the mean of their true rewards. Column 0 is the
  policy's own mean reward.

  Args:
    proxy: rewards by which the best sample is chosen, per prompt and sample.
    true: true rewards of the same samples.

  Raises: ValueError for shapes that differ and numbers that are not finite.
  Source: Nakano et al. 2021 (WebGPT), arXiv:2112.09332.
  """
  proxy, true = np.asarray(proxy, np.float64), np.asarray(true, np.float64)
  if proxy.shape != true.shape or proxy.ndim != 2 or not proxy.size:
    raise ValueError(f"proxy and true must both be [prompts, samples], got {proxy.shape} and"
                     f" {true.shape}.")
  if not (np.isfinite(proxy).all() and np.isfinite(true).all()):
    raise ValueError("proxy and true rewards must be finite: replace failed scores first"
                     " (failures_last, floored).")
  size = proxy.shape[1]
  order = np.argsort(proxy, axis=1, kind="stable")
  proxy, true = np.take_along_axis(proxy, order, 1), np.take_along_axis(true, order, 1)
  # Samples of equal proxy reward share the mean of their true rewards.
  for row_proxy, row in zip(proxy, true):
    for group in np.split(np.arange(size), np.flatnonzero(np.diff(row_proxy)) + 1):
      row[group] = row[group].mean()
  weights = np.array([[math.comb(r - 1, n - 1) / math.comb(size, n) for n in range(1, size + 1)]
                      for r in range(1, size + 1)])
  return true @ weights


# --- Calibration, length, ensembles.


def calibration(
    differences: Float[np.ndarray, "K"], preferences: Float[np.ndarray, "K"], *, bins: int = 10,
    rows: Int[np.ndarray, "K"] | None = None,
) -> tuple[Estimate, list[dict[str, float]]]:
  """Computes the expected calibration error (ECE) of score differences.

  sigmoid(score difference) counts as the probability p that the first response is better.

      confidence = max(p, 1 − p)      ECE = Σ_b n_b/K |accuracy_b − confidence_b|

  The sum is over bins of the confidence, of equal width, in [0.5, 1]. Confidence and accuracy do
  not depend on which response is the first. ECE is biased upwards for few pairs.

  Args:
    differences: score of the first response minus the second's.
    preferences: probability in [0, 1] that the first is better: 1, 0.5 for a tie, or a soft label.
    bins: number of bins.
    rows: the row of each pair; the interval resamples rows. None: each pair is a row.

  Returns: (ECE, one entry per bin that holds pairs: low, high, count, confidence, accuracy).
  Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
  """
  differences, preferences = (
      np.asarray(differences, np.float64), np.asarray(preferences, np.float64))
  if bins < 1 or not differences.size or differences.shape != preferences.shape:
    raise ValueError("calibration needs bins of at least 1 and one preference per difference, got"
                     f" bins={bins}, shapes {differences.shape} and {preferences.shape}.")
  confidence = 0.5 * (1 + np.tanh(np.abs(differences) / 2))  # sigmoid(|d|), without overflow.
  # Whether the response with the higher score was the better one; half for equal scores.
  agreed = np.where(
      differences == 0, 0.5, np.where(differences > 0, preferences, 1 - preferences))
  place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)

  # Sums per row and bin, so that a resample of rows only adds up rows.
  _, rows = np.unique(np.arange(len(place)) if rows is None else rows, return_inverse=True)
  gaps, counts = np.zeros((rows.max() + 1, bins)), np.bincount(rows)
  np.add.at(gaps, (rows, place), agreed - confidence)

  def error(i):  # n_b |accuracy_b − confidence_b| is the absolute sum of the bin's gaps.
    return float(np.abs(gaps[i].sum(axis=0)).sum() / counts[i].sum())
  reliability = [
      {"low": 0.5 + b / bins / 2, "high": 0.5 + (b + 1) / bins / 2,
       "count": int((place == b).sum()), "confidence": float(confidence[place == b].mean()),
       "accuracy": float(agreed[place == b].mean())}
      for b in range(bins) if (place == b).any()]
  return _bootstrapped(error, len(counts)), reliability


def correlation_within_rows(
    scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[float]]) -> Estimate:
  """Computes the Pearson correlation of score and length within rows, in [−1, 1].

  Each row's means are subtracted from both. So differences between prompts do not enter; nor does,
  for pairs, which response is the better one. The correlation is 0 where either never differs.
  """
  scores = [np.asarray(s, np.float64) - np.mean(s) for s in scores]
  lengths = [np.asarray(n, np.float64) - np.mean(n) for n in lengths]
  sums = np.array([[s @ n, s @ s, n @ n] for s, n in zip(scores, lengths)])

  def correlation(i):
    product, a, b = sums[i].sum(axis=0)
    return float(product / math.sqrt(a * b)) if a * b > 0 else 0.0
  return _bootstrapped(correlation, len(sums))


def ensemble_agreement(differences: Float[np.ndarray, "M K"]) -> dict[str, Estimate | None]:
  """Computes how far the M members of an ensemble agree on K pairs.

  The intervals treat the pairs as independent. A member without a preference agrees with none.

  Args:
    differences: each member's score of the better response minus that of the worse one.

  Returns: four estimates by name.
    agreement: the share of two members that prefer the same response.
    unanimous: the share of pairs on which all members do.
    accuracy_unanimous: the mean member's accuracy on these pairs; None where there are none.
    accuracy_divided: the mean member's accuracy on the other pairs; None where there are none.
  """
  signs = np.sign(np.asarray(differences, np.float64))
  if signs.ndim != 2 or signs.shape[0] < 2 or not signs.size:
    raise ValueError("An ensemble needs differences [members, pairs] of two members or more, got"
                     f" shape {signs.shape}.")
  members = signs.shape[0]
  first, second = np.triu_indices(members, 1)
  agreement = ((signs[first] == signs[second]) & (signs[first] != 0)).mean(axis=0)
  unanimous = np.abs(signs.sum(axis=0)) == members
  right = pair_credit(signs).mean(axis=0)
  return {"agreement": estimate(agreement), "unanimous": estimate(unanimous),
          "accuracy_unanimous": estimate(right[unanimous]) if unanimous.any() else None,
          "accuracy_divided": estimate(right[~unanimous]) if not unanimous.all() else None}


# --- Steps.


def first_below(
    step_scores: Sequence[Float[np.ndarray, "S"]], threshold: float) -> Int[np.ndarray, "N"]:
  """Finds per solution the first step whose score is below the threshold, −1 if there is none.

  NaN is below every threshold.
  """
  return np.array([next((i for i, s in enumerate(row) if not s >= threshold), -1)
                   for row in step_scores], np.int64)


def first_error_f1(
    predicted: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"],
) -> tuple[Estimate, Estimate | None, Estimate | None]:
  """Computes ProcessBench's F1, and the two accuracies of which it is the harmonic mean.

  Args:
    predicted: index of the first wrong step that the scorer found, −1 for none.
    labels: index of the first wrong step, −1 for none.

  Returns: (F1; accuracy on solutions with a wrong step, where exactly the first one has to be
    found; accuracy on solutions without, where none may be found). An accuracy without solutions is
    None, and F1 is then 0.
  Source: Zheng et al. 2024 (ProcessBench), arXiv:2412.06559.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  if predicted.shape != labels.shape or not labels.size:
    raise ValueError("predicted and labels must be one index per solution, got"
                     f" {predicted.shape} and {labels.shape}.")
  hit, wrong = (predicted == labels).astype(np.float64), labels >= 0

  def f1(i):
    a, b = hit[i][wrong[i]], hit[i][~wrong[i]]
    total = a.mean() + b.mean() if a.size and b.size else 0.0
    return float(2 * a.mean() * b.mean() / total) if total else 0.0
  return (_bootstrapped(f1, len(labels), strata=wrong),
          estimate(hit[wrong]) if wrong.any() else None,
          estimate(hit[~wrong]) if not wrong.all() else None)


def best_threshold(
    step_scores: Sequence[Float[np.ndarray, "S"]], labels: Int[np.ndarray, "N"], *,
    candidates: int = 64) -> float:
  """Finds the threshold of `first_below` with the highest F1 on these solutions.

  If several thresholds are best it is their median.

  Args:
    step_scores: per solution the scores of its steps.
    labels: index of the first wrong step of each solution, −1 for none.
    candidates: most scores that are tried; of more scores, quantiles.
  """
  values = np.concatenate([np.asarray(row, np.float64) for row in step_scores])
  values = np.unique(values[np.isfinite(values)])
  if not values.size:
    return 0.0
  if values.size > candidates:
    values = np.unique(np.quantile(values, np.linspace(0, 1, candidates)))
  # Thresholds lie between neighbouring scores, and beyond both ends: there no step is wrong, or
  # every first step is.
  middles = np.concatenate(
      [[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
  labels = np.asarray(labels)

  def f1(threshold):
    hit = first_below(step_scores, threshold) == labels
    a = hit[labels >= 0].mean() if (labels >= 0).any() else 0.0
    b = hit[labels < 0].mean() if (labels < 0).any() else 0.0
    # With only one kind of solution, its accuracy decides.
    return 2 * a * b / (a + b) if a * b else max(a, b) * 1e-3
  found = np.array([f1(t) for t in middles])
  best = middles[found == found.max()]
  return float(best[len(best) // 2])


def area_under_curve(scores: Sequence[float], right: Sequence[bool]) -> float | None:
  """Computes the probability that a right step scores above a wrong one.

  Equal scores count a half. Returns None unless there are both right and wrong steps.
  """
  scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
  if right.all() or not right.any():
    return None
  # The rank sum of Mann and Whitney; equal scores share the mean of their ranks.
  _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
  positives, negatives = right.sum(), (~right).sum()
  return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def area_under_curve_by_row(rows: Sequence[Sequence[tuple[float, float]]]) -> Estimate | None:
  """Computes `area_under_curve` over all steps of all solutions.

  Args:
    rows: per solution (score, label) of each step; a step is right if its label is at least 0.5.
  """
  scores = [np.array([s for s, _ in row]) for row in rows]
  right = [np.array([label >= 0.5 for _, label in row], bool) for row in rows]

  def area(i):
    found = area_under_curve(
        np.concatenate([scores[j] for j in i]), np.concatenate([right[j] for j in i]))
    return 0.5 if found is None else found
  everything = np.concatenate(right) if right else np.zeros(0, bool)
  if everything.all() or not everything.any():
    return None
  # A fifth of the usual resamples: each sorts all steps.
  return _bootstrapped(area, len(rows), num_resamples=400)


def _bootstrapped(
    statistic: Callable[[Int[np.ndarray, "N"]], float], count: int, **keywords) -> Estimate:
  """Estimates a statistic of `count` rows: its value on all of them, and its bootstrap interval."""
  low, high = estimates.bootstrap_statistic(statistic, count, **keywords)
  return Estimate(statistic(np.arange(count)), low, high, count)
