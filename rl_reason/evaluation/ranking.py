"""How well scores rank responses whose quality is known: pure functions over arrays, for judging reward models.

Rows are prompts. `scores[i]` are a scorer's numbers for the responses of row i, `labels[i]` their true scores, higher is
better in both. Where a row's credit is random, because the scorer gave several responses its best score, it is the
expectation: a constant scorer gets what chance gives. `rl_reason.judge` puts these into one report.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

from jaxtyping import Bool, Float, Int
import numpy as np

from rl_reason.evaluation import estimates


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean or another statistic of `count` rows, with its 95 % interval."""
  value: float
  low: float
  high: float
  count: int


def estimate(per_row: Sequence[float]) -> Estimate:
  """The mean over rows: Wilson's interval where each is 0 or 1, else the bootstrap's."""
  per_row = np.asarray(per_row, np.float64)
  if np.isin(per_row, (0.0, 1.0)).all() and per_row.size:
    low, high = estimates.wilson_interval(int(per_row.sum()), per_row.size)
  else:
    low, high = estimates.bootstrap_interval(per_row)
  return Estimate(float(per_row.mean()), low, high, per_row.size)


def by_group(per_row: Sequence[float], groups: Sequence[str]) -> dict[str, Estimate]:
  """The mean of each group, e.g. domain, in order of their names."""
  per_row, groups = np.asarray(per_row, np.float64), np.asarray(groups)
  return {str(g): estimate(per_row[groups == g]) for g in np.unique(groups)}


def group_average(per_row: Sequence[float], groups: Sequence[str]) -> Estimate:
  """The unweighted mean of the groups' means; its interval resamples rows within each group."""
  per_row, groups = np.asarray(per_row, np.float64), np.asarray(groups)
  names = np.unique(groups)
  # Each row weighs what makes its group count as one.
  weights = np.zeros(len(per_row))
  for name in names:
    weights[groups == name] = 1 / (len(names) * (groups == name).sum())
  return _bootstrapped(lambda i: float(per_row[i] @ weights[i]), len(per_row), strata=groups)


def failures_last(scores: Sequence[Float[np.ndarray, "R"]]) -> tuple[list[Float[np.ndarray, "R"]], int]:
  """(scores with −∞ for every NaN and infinity, how many there were): a score that failed never wins."""
  rows = [np.where(np.isfinite(row), row, -np.inf) for row in (np.asarray(row, np.float64) for row in scores)]
  return rows, sum(int(np.isinf(row).sum()) for row in rows)


def floored(scores: Sequence[Float[np.ndarray, "R"]]) -> list[Float[np.ndarray, "R"]]:
  """Scores with one finite number below all others for −∞, for statistics that need margins."""
  every = np.concatenate([np.zeros(0), *scores])
  good = every[np.isfinite(every)]
  # As far below as the scores spread: distinct from the smallest at any scale.
  floor = good.min() - max(np.ptp(good), abs(good.min()) * 1e-6, 1e-6) if good.size else 0.0
  return [np.where(np.isfinite(row), row, floor) for row in scores]


# --- Rankings.


def best_of_credit(scores: Float[np.ndarray, "R"], right: Bool[np.ndarray, "R"]) -> float:
  """Probability in [0, 1] that the response with the highest score is a right one, ties broken at random.

  With one right response of four it is RewardBench 2's credit: 1/T if the right one is among the T best, else 0.
  A row in which every score failed (−∞) gets 0: it is an error, not a tie.

  Source: Malik et al. 2025, arXiv:2506.01937 (rewardbench/utils.py of its repository).
  """
  scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
  if right.all() or not right.any():
    raise ValueError(f"A choice needs a right and a wrong response, got right={right.tolist()}.")
  return float(right[scores == scores.max()].mean()) if scores.max() > -np.inf else 0.0


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Every pair of a better and a worse response of a row: index of the row, of the two within it, flattened."""
  row: Int[np.ndarray, "K"]
  better: Int[np.ndarray, "K"]
  worse: Int[np.ndarray, "K"]

  def differences(self, values: Sequence[Sequence[float]]) -> Float[np.ndarray, "K"]:
    """The better response's value minus the worse one's."""
    return np.array([float(values[r][b]) - float(values[r][w]) for r, b, w in zip(self.row, self.better, self.worse)])

  def row_means(
      self, per_pair: Float[np.ndarray, "K"], select: Bool[np.ndarray, "K"] | None = None) -> Float[np.ndarray, "N"]:
    """Means over each row's (selected) pairs, for the rows that have some."""
    select = slice(None) if select is None else select
    _, rows = np.unique(self.row[select], return_inverse=True)
    return np.bincount(rows, per_pair[select]) / np.bincount(rows)


def make_pairs(labels: Sequence[Sequence[float]]) -> Pairs:
  """The pairs of responses of different label. Rows without any have none."""
  found = [(r, b, w) for r, row in enumerate(labels) for b in range(len(row)) for w in range(len(row)) if row[b] > row[w]]
  return Pairs(*np.array(found, np.int64).reshape(-1, 3).T)


def pair_credit(differences: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
  """1 where the better response has the higher score, 0.5 where both have one, 0 otherwise and where both failed."""
  return np.where(differences == 0, 0.5, (differences > 0).astype(np.float64))


def style_matrix(
    chosen: Float[np.ndarray, "N S"], rejected: Float[np.ndarray, "N S"],
) -> tuple[Float[np.ndarray, "S S"], dict[str, Float[np.ndarray, "N"]]]:
  """RM-Bench: accuracy of chosen style i against rejected style j, and per row those of easy, normal and hard pairs.

  Styles go from plain to fancy. Hard: the better response is the plainer one (i < j, above the diagonal); normal: both
  have one style; easy: it is the fancier one. Equal scores count a half here, nothing in the paper's code.

  Source: Liu et al. 2024, arXiv:2410.16184.
  """
  chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
  if chosen.shape != rejected.shape or chosen.ndim != 2 or chosen.shape[1] < 2:
    raise ValueError(f"chosen and rejected must both be [rows, styles] with two styles or more, got {chosen.shape} and"
                     f" {rejected.shape}.")
  with np.errstate(invalid="ignore"):
    credit = pair_credit(chosen[:, :, None] - rejected[:, None, :])
  i, j = np.indices(credit.shape[1:])
  kinds = {"easy": i > j, "normal": i == j, "hard": i < j}
  return credit.mean(axis=0), {name: credit[:, cells].mean(axis=1) for name, cells in kinds.items()}


def ties_score(
    references: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    tied: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> tuple[Estimate, dict[str, float], Float[np.ndarray, "Q"]]:
  """RewardBench 2's Ties: are many equally right answers scored closely together, and above all wrong ones?

      0.3 acc(tied) + 0.3 acc(ref) + 0.2 [Δcw(tied) > Δcc(tied)] + 0.2 [min(Δcw(ref), Δcw(tied)) > Δcc(tied)]
      + 0.01 tanh(min(Δcw(ref), Δcw(tied)) / Δcc(tied) − 1)

  with Δcw the lowest right score minus the highest wrong one, Δcc the spread of the right scores, acc = [Δcw > 0], each
  term a mean over questions. It lies in [−0.01, 1.01]; the last term breaks ties between scorers, 0/0 in it counts 0.
  The last three terms use the questions that are there in both forms; one whose tied form has a single right answer
  has no Δcc and is left out of them.

  Args:
    references: question -> (scores of the right answers, of the wrong ones) of its form with one right answer.
    tied: the same for its form with several.

  Returns: (the score, its interval over questions in both forms; the five terms by name, unweighted; the score of each
    question in both forms).
  Raises: ValueError if no question is there in both forms.
  Source: Malik et al. 2025, arXiv:2506.01937 (rewardbench/utils.py of its repository).
  """
  def margin(right, wrong):
    return min(right) - max(wrong)
  both = [q for q in tied if q in references and len(tied[q][0]) > 1]
  if not both:
    raise ValueError("No question is there both with one right answer (ref) and with several (tied): the margins need"
                     " both forms.")
  accuracy = {name: {q: float(margin(*s) > 0) for q, s in rows.items()}
              for name, rows in (("tied", tied), ("reference", references))}
  spread = np.array([max(tied[q][0]) - min(tied[q][0]) for q in both])
  margins = np.array([margin(*tied[q]) for q in both])
  hardest = np.minimum(margins, [margin(*references[q]) for q in both])
  with np.errstate(divide="ignore", invalid="ignore"):
    breaker = np.nan_to_num(np.tanh(hardest / spread - 1), nan=0.0)
  per_question = (0.2 * (margins > spread) + 0.2 * (hardest > spread) + 0.01 * breaker)
  terms = {"tied": float(np.mean(list(accuracy["tied"].values()))),
           "reference": float(np.mean(list(accuracy["reference"].values()))),
           "apart": float((margins > spread).mean()), "apart_hard": float((hardest > spread).mean()),
           "breaker": float(breaker.mean())}
  value = 0.3 * terms["tied"] + 0.3 * terms["reference"] + float(per_question.mean())
  whole = per_question + [0.3 * accuracy["tied"][q] + 0.3 * accuracy["reference"][q] for q in both]
  low, high = estimates.bootstrap_interval(whole)
  return Estimate(value, low, high, len(both)), terms, whole


def best_of_n(
    proxy: Float[np.ndarray, "N R"], true: Float[np.ndarray, "N R"],
) -> Float[np.ndarray, "N R"]:
  """Expected true reward of the response that the proxy likes best among n, for n = 1 ... R, per prompt.

      Σ_r C(r − 1, n − 1) / C(R, n) · true_(r)          r: the rank by proxy, 1 the lowest

  which averages over all subsets of n of the R samples, so it is unbiased for each n. Samples of equal proxy reward are
  chosen at random: each has the mean of their true rewards. Column 0 is the policy's own mean reward.

  Raises: ValueError for shapes that differ and numbers that are not finite.
  Source: Nakano et al. 2021 (WebGPT), arXiv:2112.09332.
  """
  proxy, true = np.asarray(proxy, np.float64), np.asarray(true, np.float64)
  if proxy.shape != true.shape or proxy.ndim != 2 or not proxy.size:
    raise ValueError(f"proxy and true must both be [prompts, samples], got {proxy.shape} and {true.shape}.")
  if not (np.isfinite(proxy).all() and np.isfinite(true).all()):
    raise ValueError("proxy and true rewards must be finite: replace failed scores first (failures_last, floored).")
  size = proxy.shape[1]
  order = np.argsort(proxy, axis=1, kind="stable")
  proxy, true = np.take_along_axis(proxy, order, 1), np.take_along_axis(true, order, 1)
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
  """Expected calibration error of sigmoid(score difference) as the probability that the first response is better.

      confidence = max(p, 1 − p)      ECE = Σ_b n_b/K |accuracy_b − confidence_b|

  over bins of equal width of the confidence, in [0.5, 1]. Confidence and accuracy do not depend on which response
  stands first. ECE is biased upwards for few pairs.

  Args:
    differences: score of the first response minus the second's.
    preferences: probability in [0, 1] that the first is better: 1, 0.5 for a tie, or a soft label.
    rows: which row each pair is of; the interval resamples rows. None: each pair is a row.

  Returns: (ECE, one entry per bin that holds pairs: low, high, count, confidence, accuracy).
  Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
  """
  differences, preferences = np.asarray(differences, np.float64), np.asarray(preferences, np.float64)
  if bins < 1 or not differences.size or differences.shape != preferences.shape:
    raise ValueError(f"calibration needs bins of at least 1 and one preference per difference, got bins={bins}, shapes"
                     f" {differences.shape} and {preferences.shape}.")
  confidence = 0.5 * (1 + np.tanh(np.abs(differences) / 2))  # sigmoid(|d|), without overflow.
  agreed = np.where(differences == 0, 0.5, np.where(differences > 0, preferences, 1 - preferences))
  place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)

  _, rows = np.unique(np.arange(len(place)) if rows is None else rows, return_inverse=True)
  gaps, counts = np.zeros((rows.max() + 1, bins)), np.bincount(rows)
  np.add.at(gaps, (rows, place), agreed - confidence)

  def error(i):  # n_b |accuracy_b − confidence_b| is the absolute sum of the bin's gaps.
    return float(np.abs(gaps[i].sum(axis=0)).sum() / counts[i].sum())
  reliability = [
      {"low": 0.5 + b / bins / 2, "high": 0.5 + (b + 1) / bins / 2, "count": int((place == b).sum()),
       "confidence": float(confidence[place == b].mean()), "accuracy": float(agreed[place == b].mean())}
      for b in range(bins) if (place == b).any()]
  return _bootstrapped(error, len(counts)), reliability


def correlation_within_rows(scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[float]]) -> Estimate:
  """Pearson correlation in [−1, 1] of score and length after each row's means are taken off both.

  Differences between prompts do not enter, and of pairs not which response is the better one. 0 where either never
  differs.
  """
  scores = [np.asarray(s, np.float64) - np.mean(s) for s in scores]
  lengths = [np.asarray(n, np.float64) - np.mean(n) for n in lengths]
  sums = np.array([[s @ n, s @ s, n @ n] for s, n in zip(scores, lengths)])

  def correlation(i):
    product, a, b = sums[i].sum(axis=0)
    return float(product / math.sqrt(a * b)) if a * b > 0 else 0.0
  return _bootstrapped(correlation, len(sums))


def ensemble_agreement(differences: Float[np.ndarray, "M K"]) -> dict[str, Estimate | None]:
  """How far the M members of an ensemble agree on K pairs, from each one's better-minus-worse score differences.

  The intervals take the pairs for independent.

  Returns: "agreement": the share of two members that prefer the same response; "unanimous": of pairs on which all do;
    "accuracy_unanimous", "accuracy_divided": the mean member's accuracy on these and on the other pairs, None where
    there are none. A member without a preference agrees with none.
  """
  signs = np.sign(np.asarray(differences, np.float64))
  if signs.ndim != 2 or signs.shape[0] < 2 or not signs.size:
    raise ValueError(f"An ensemble needs differences [members, pairs] of two members or more, got shape {signs.shape}.")
  members = signs.shape[0]
  first, second = np.triu_indices(members, 1)
  agreement = ((signs[first] == signs[second]) & (signs[first] != 0)).mean(axis=0)
  unanimous = np.abs(signs.sum(axis=0)) == members
  right = pair_credit(signs).mean(axis=0)
  return {"agreement": estimate(agreement), "unanimous": estimate(unanimous),
          "accuracy_unanimous": estimate(right[unanimous]) if unanimous.any() else None,
          "accuracy_divided": estimate(right[~unanimous]) if not unanimous.all() else None}


# --- Steps.


def first_below(step_scores: Sequence[Float[np.ndarray, "S"]], threshold: float) -> Int[np.ndarray, "N"]:
  """Per solution the index of the first step whose score is below the threshold, −1 if none is. NaN is below."""
  return np.array([next((i for i, s in enumerate(row) if not s >= threshold), -1) for row in step_scores], np.int64)


def first_error_f1(
    predicted: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"],
) -> tuple[Estimate, Estimate | None, Estimate | None]:
  """ProcessBench's F1, and the two accuracies that it is the harmonic mean of.

  Args:
    predicted, labels: index of the first wrong step, −1 for none.

  Returns: (F1; accuracy on solutions with a wrong step: was exactly the first one found; accuracy on those without: was
    none found). An accuracy without solutions is None, and F1 then 0.
  Source: Zheng et al. 2024 (ProcessBench), arXiv:2412.06559.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  if predicted.shape != labels.shape or not labels.size:
    raise ValueError(f"predicted and labels must be one index per solution, got {predicted.shape} and {labels.shape}.")
  hit, wrong = (predicted == labels).astype(np.float64), labels >= 0

  def f1(i):
    a, b = hit[i][wrong[i]], hit[i][~wrong[i]]
    total = a.mean() + b.mean() if a.size and b.size else 0.0
    return float(2 * a.mean() * b.mean() / total) if total else 0.0
  return (_bootstrapped(f1, len(labels), strata=wrong), estimate(hit[wrong]) if wrong.any() else None,
          estimate(hit[~wrong]) if not wrong.all() else None)


def best_threshold(
    step_scores: Sequence[Float[np.ndarray, "S"]], labels: Int[np.ndarray, "N"], *, candidates: int = 64) -> float:
  """The threshold of `first_below` with the highest F1 on these solutions; the median of the best, if several are."""
  values = np.concatenate([np.asarray(row, np.float64) for row in step_scores])
  values = np.unique(values[np.isfinite(values)])
  if not values.size:
    return 0.0
  if values.size > candidates:
    values = np.unique(np.quantile(values, np.linspace(0, 1, candidates)))
  # Between neighbouring scores, and beyond both ends: no step wrong, every first step wrong.
  middles = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
  labels = np.asarray(labels)

  def f1(threshold):
    hit = first_below(step_scores, threshold) == labels
    a = hit[labels >= 0].mean() if (labels >= 0).any() else 0.0
    b = hit[labels < 0].mean() if (labels < 0).any() else 0.0
    # With one kind of solution only, the accuracy on it.
    return 2 * a * b / (a + b) if a * b else max(a, b) * 1e-3
  found = np.array([f1(t) for t in middles])
  best = middles[found == found.max()]
  return float(best[len(best) // 2])


def area_under_curve(scores: Sequence[float], right: Sequence[bool]) -> float | None:
  """Probability that a right step scores above a wrong one, equal scores counting a half; None without both kinds."""
  scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
  if right.all() or not right.any():
    return None
  _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
  positives, negatives = right.sum(), (~right).sum()
  return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def area_under_curve_by_row(rows: Sequence[Sequence[tuple[float, float]]]) -> Estimate | None:
  """`area_under_curve` over all steps of all solutions, given as (score, label); right: a label of at least 0.5."""
  scores = [np.array([s for s, _ in row]) for row in rows]
  right = [np.array([label >= 0.5 for _, label in row], bool) for row in rows]

  def area(i):
    found = area_under_curve(np.concatenate([scores[j] for j in i]), np.concatenate([right[j] for j in i]))
    return 0.5 if found is None else found
  everything = np.concatenate(right) if right else np.zeros(0, bool)
  if everything.all() or not everything.any():
    return None
  # A fifth of the usual resamples: each sorts all steps.
  return _bootstrapped(area, len(rows), num_resamples=400)


def _bootstrapped(
    statistic: Callable[[Int[np.ndarray, "N"]], float], count: int, **keywords) -> Estimate:
  low, high = estimates.bootstrap_statistic(statistic, count, **keywords)
  return Estimate(statistic(np.arange(count)), low, high, count)
