"""Estimates with their uncertainty: pass@k, majority vote, intervals, and what seeds could see.

The intervals are bootstrap, Wilson and t intervals.
"""

from collections.abc import Callable, Sequence
import statistics

from jaxtyping import Float, Int
import numpy as np
from scipy import special


def pass_at_k(
    num_samples: Int[np.ndarray, "N"] | int, num_correct: Int[np.ndarray, "N"] | int, k: int,
) -> Float[np.ndarray, "N"]:
  """Estimates per problem the probability that at least one of k samples is correct.

  The estimate comes from n >= k samples, without bias:

      pass@k = 1 − C(n−c, k) / C(n, k) = 1 − Π_{j<k} (n−c−j) / (n−j)

  The product form has no large numbers that could overflow, and is exactly 1 where fewer than k
  samples are wrong.

  Args:
    num_samples: n, completions sampled for each problem.
    num_correct: c, the number of them that are correct, in [0, n].
    k: attempts allowed, in [1, min n].

  Returns: float64 in [0, 1], one per problem (a scalar array for scalars).
  Raises: ValueError if k or a count is out of range, or there are no problems.
  Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
  """
  n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
  if n.size == 0:
    raise ValueError("pass@k of no problems: num_samples is empty. Evaluate at least one problem.")
  if not (np.issubdtype(n.dtype, np.integer) and np.issubdtype(c.dtype, np.integer)):
    raise ValueError(
        f"num_samples and num_correct must be integers, got {n.dtype} and {c.dtype}: they count"
        " completions.")
  if k < 1 or k > n.min():
    raise ValueError(
        f"k must be in [1, {n.min()}], got {k}: pass@k needs at least k samples of every problem."
        " Sample more completions per problem, or lower k.")
  if (c < 0).any() or (c > n).any():
    worst = int(np.flatnonzero(((c < 0) | (c > n)).ravel())[0])
    raise ValueError(
        f"num_correct must be in [0, num_samples], got {c.ravel()[worst]} of {n.ravel()[worst]} for"
        f" problem {worst}.")
  # The product over j is the last axis. At 0 and below, fewer than k samples are wrong.
  j = np.arange(k)
  return 1.0 - np.prod(
      np.maximum(n[..., None] - c[..., None] - j, 0) / (n[..., None] - j), axis=-1)


def majority_at_k(
    answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool]], k: int,
) -> Float[np.ndarray, "N"]:
  """Computes maj@k (self-consistency) per problem.

  It is 1 if the answer that most of the first k samples give is correct, else 0. Samples vote with
  their answer strings, which the caller has normalised: "0.5" and "1/2" are two answers here. None
  abstains; if all abstain the problem scores 0. Among answers with equally many votes, the one
  given first wins. If a verifier judges equal strings differently, the winner is as correct as the
  first sample that gave it.

  Args:
    answers: per problem, its samples' normalised answers in sampling order; None where a completion
      has none.
    correct: whether each of these samples is correct, of the same lengths.
    k: samples that vote, from 1 to the smallest number of samples.

  Returns: float64 zeros and ones, one per problem.
  Raises: ValueError if k is out of range, the lengths differ, or there are no problems.
  Source: Wang et al. 2022, arXiv:2203.11171 (the unweighted vote).
  """
  if len(answers) == 0:
    raise ValueError("maj@k of no problems: answers is empty. Evaluate at least one problem.")
  if len(answers) != len(correct):
    raise ValueError(f"answers and correct must describe the same problems, got {len(answers)} and"
                     f" {len(correct)}.")
  scores = np.zeros(len(answers))
  for problem, (given, verdicts) in enumerate(zip(answers, correct)):
    if len(given) != len(verdicts):
      raise ValueError(
          f"problem {problem} has {len(given)} answers and {len(verdicts)} verdicts: give one"
          " verdict per answer.")
    if k < 1 or k > len(given):
      raise ValueError(
          f"k must be in [1, {len(given)}], got {k}: problem {problem} has {len(given)} samples."
          " Sample more completions per problem, or lower k.")
    # In order of first appearance: of answers with equally many votes, max() returns the first.
    votes: dict[str, int] = {}
    for answer in given[:k]:
      if answer is not None:
        votes[answer] = votes.get(answer, 0) + 1
    if votes:
      winner = max(votes, key=lambda answer: votes[answer])
      scores[problem] = float(verdicts[list(given).index(winner)])
  return scores


def bootstrap_interval(
    per_problem_scores: Float[np.ndarray, "N"], *, confidence: float = 0.95,
    num_resamples: int = 2000, seed: int = 0,
) -> tuple[float, float]:
  """Computes the percentile bootstrap interval (low, high) of the mean score over problems.

  Problems are resampled with replacement, each with all its completions. So the interval says how
  the mean would vary with other problems from the same source, which for pass@1 is most of the
  uncertainty. When all scores are equal the interval has no width, even for very few scores; for a
  0/1 score use `wilson_interval` there.

  Args:
    per_problem_scores: one finite number per problem, e.g. its pass@1.
    confidence: coverage wanted, in (0, 1).
    num_resamples: at least 1; 2000 puts the ends within about 3% of the width.
    seed: seed of the resamples; the same seed and scores give the same interval.

  Raises: ValueError if there are no scores, one is not finite, or an argument is out of range.
  Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
  """
  scores = np.asarray(per_problem_scores, dtype=np.float64)
  if scores.ndim != 1 or scores.size == 0:
    raise ValueError(
        f"per_problem_scores must be a non-empty vector, got shape {scores.shape}: give one score"
        " per problem.")
  if not np.isfinite(scores).all():
    raise ValueError(
        f"per_problem_scores must be finite, got {scores[~np.isfinite(scores)][0]} for problem"
        f" {np.flatnonzero(~np.isfinite(scores))[0]}.")
  return bootstrap_statistic(
      lambda i: scores[i].mean(), scores.size, confidence=confidence,
      num_resamples=num_resamples, seed=seed)


def bootstrap_statistic(
    statistic: Callable[[Int[np.ndarray, "N"]], float], count: int, *,
    strata: Sequence | None = None, confidence: float = 0.95, num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
  """Computes the percentile bootstrap interval (low, high) of a statistic of `count` rows.

  Args:
    statistic: indices of rows, some of them repeated -> a finite number.
    count: number of rows.
    strata: one name per row; each stratum is resampled by itself and keeps its size. None: all rows
      are one stratum.
    confidence: as in `bootstrap_interval`.
    num_resamples: as in `bootstrap_interval`.
    seed: as in `bootstrap_interval`.
  """
  if count < 1:
    raise ValueError(
        f"count must be at least 1, got {count}: no rows say nothing about a statistic.")
  _check_confidence(confidence)
  if num_resamples < 1:
    raise ValueError(f"num_resamples must be at least 1, got {num_resamples}; 2000 is usual.")
  rng = np.random.default_rng(seed)
  groups = [np.arange(count)] if strata is None else [
      np.flatnonzero(np.asarray(strata) == s) for s in np.unique(strata)]
  # One resample at a time: all indices together would take 160 MB for ten thousand problems.
  values = [statistic(np.concatenate([g[rng.integers(g.size, size=g.size)] for g in groups]))
            for _ in range(num_resamples)]
  low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
  return float(low), float(high)


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
  """Computes the Wilson score interval (low, high) of a proportion, in [0, 1].

  It is sound for few trials, and for proportions near 0 and 1.

      p = s/n        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

  Args:
    successes: s, in [0, n].
    n: independent trials, at least 1. Several completions of one problem are not independent:
      bootstrap over problems instead.
    confidence: coverage wanted, in (0, 1).

  Raises: ValueError if an argument is out of range.
  Source: Wilson 1927, JASA 22(158), 209-212.
  """
  if n < 1:
    raise ValueError(f"n must be at least 1, got {n}: no trials say nothing about a proportion.")
  if not 0 <= successes <= n:
    raise ValueError(f"successes must be in [0, {n}], got {successes}.")
  _check_confidence(confidence)
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  p = successes / n
  center = p + z * z / (2 * n)
  half_width = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
  scale = 1 + z * z / n
  # At 0 and n successes the exact end is 0 and 1; rounding must not put the end outside.
  low = 0.0 if successes == 0 else (center - half_width) / scale
  high = 1.0 if successes == n else (center + half_width) / scale
  return low, high


def mean_interval(
    values: Float[np.ndarray, "N"], *, confidence: float = 0.95,
) -> tuple[float, float]:
  """Computes Student's t interval (low, high) of the mean of a few independent values.

  The values are, for example, paired differences over seeds.

      mean ± t_{(1+confidence)/2, N−1} · s / √N        s: sample standard deviation (N − 1)

  It has its coverage from two values on, if they are normal. The percentile bootstrap does not have
  it for few values: of three values it knows ten means, and it ends at the smallest and the largest
  of them. So three differences of one sign, which have a chance of 1/4 where there is no effect,
  would always exclude zero.

  Args:
    values: at least two finite numbers. Equal numbers give an interval without width.
    confidence: coverage wanted, in (0, 1).

  Raises: ValueError if there are fewer, one is not finite, or confidence is out of range.
  Source: Student 1908, Biometrika 6(1), 1-25.
  """
  values = _few_values(values)
  _check_confidence(confidence)
  half_width = (special.stdtrit(values.size - 1, (1 + confidence) / 2)
                * values.std(ddof=1) / values.size ** 0.5)
  return float(values.mean() - half_width), float(values.mean() + half_width)


def detectable_effect(
    values: Float[np.ndarray, "N"], *, confidence: float = 0.95, power: float = 0.8,
) -> float:
  """Computes the smallest effect that a t interval would detect with probability `power`.

  It is how far the true mean must be from a threshold, for the interval to exclude the threshold.

      δ s / √N        δ: noncentrality at which P(T_{N−1,δ} > t_{(1+confidence)/2, N−1}) = power

  Here s stands for the true deviation, which a few values estimate badly: from three values, the
  truth is likely (95 %) between 0.5 and 6.3 times s.

  Args:
    values: as for `mean_interval`.
    confidence: as for `mean_interval`.
    power: probability of the detection, in (0, 1).

  Returns: at least 0, in the unit of the values.
  Raises: as `mean_interval`.
  Source: Cohen 1988, Statistical Power Analysis, ch. 2; the exact power of Student's test.
  """
  values = _few_values(values)
  _check_confidence(confidence)
  if not 0.0 < power < 1.0:
    raise ValueError(f"power must be between 0 and 1, got {power}; 0.8 is usual.")
  freedom = values.size - 1
  noncentrality = special.nctdtrinc(
      freedom, 1 - power, special.stdtrit(freedom, (1 + confidence) / 2))
  return float(noncentrality * values.std(ddof=1) / values.size ** 0.5)


def _few_values(values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
  """Checks a vector of at least two finite values. Raises: ValueError for anything else."""
  values = np.asarray(values, dtype=np.float64)
  if values.ndim != 1 or values.size < 2:
    raise ValueError(
        f"values must be a vector of at least two, got shape {values.shape}: one value says nothing"
        " about how much they vary. Run more seeds.")
  if not np.isfinite(values).all():
    raise ValueError(f"values must be finite, got {values[~np.isfinite(values)][0]} at position"
                     f" {np.flatnonzero(~np.isfinite(values))[0]}.")
  return values


def _check_confidence(confidence: float) -> None:
  """Raises: ValueError for a confidence that is not between 0 and 1."""
  if not 0.0 < confidence < 1.0:
    raise ValueError(f"confidence must be between 0 and 1, got {confidence}; 0.95 is usual.")


def pearson(
    x: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"], *, confidence: float = 0.95,
) -> tuple[float, float, float]:
  """Computes Pearson's correlation with its interval by Fisher's transform.

      atanh r ± z / sqrt(N − 3)

  Args:
    x: one side of the pairs.
    y: the other side.
    confidence: coverage wanted, in (0, 1).

  Returns: (r, low, high).
  Raises: ValueError for fewer than four pairs, for numbers that are not finite, and where one side
    does not vary.
  """
  _check_confidence(confidence)
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
    raise ValueError("A correlation with an interval needs two rows of four numbers at least, got"
                     f" {x.shape} and {y.shape}.")
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError(f"A correlation needs finite numbers, got {x.tolist()} and {y.tolist()}:"
                     " leave such pairs out.")
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    raise ValueError("One side of the correlation does not vary: all its numbers are the same.")
  r = float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))
  z = float(statistics.NormalDist().inv_cdf((1 + confidence) / 2)) / np.sqrt(len(x) - 3)
  # atanh of ±1 is infinite.
  middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
  return r, float(np.tanh(middle - z)), float(np.tanh(middle + z))


def best_of_n_kl(n: int) -> float:
  """Computes KL(best of n ‖ the policy that samples), nats: log n − (n − 1) / n.

  This holds where no two samples have the same score.

  Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.
  """
  if n < 1:
    raise ValueError(f"n must be at least 1, got {n}: the best of none is nothing.")
  return float(np.log(n) - (n - 1) / n)


def rate_at_equal_length(
    preferred: Float[np.ndarray, "N"], lengths: Float[np.ndarray, "N"],
    reference_lengths: Float[np.ndarray, "N"], *, ridge: float = 1e-3) -> float:
  """Estimates how often responses would be preferred if they were as long as the references.

  It is σ of the intercept of a logistic regression of the preference on log(length / reference
  length).

  Args:
    preferred: 1, 0, or a number between them for a tie.
    lengths: length of each response in any unit, at least 1.
    reference_lengths: length of each reference in the same unit, at least 1.
    ridge: penalty on the slope, so that it stays finite where length alone decides.
  Raises: ValueError for no rows and for lengths below 1.
  Source: the length control of Stiennon et al. 2020, arXiv:2009.01325, appendix F.
  """
  if not len(preferred) or min(np.min(lengths), np.min(reference_lengths)) < 1:
    raise ValueError("rate_at_equal_length needs rows, and lengths of at least 1: count an empty"
                     " response's end as one.")
  y, x = (
      np.asarray(preferred, np.float64),
      np.log(np.asarray(lengths) / np.asarray(reference_lengths)))
  # The tiny penalty on the intercept keeps it finite where all preferences are the same.
  design, w, penalty = (
      np.stack([np.ones_like(x), x], axis=1), np.zeros(2), np.array([1e-6, ridge]) * len(y))
  for _ in range(100):  # Newton's method; no step moves an entry of w by more than 1.
    p = special.expit(design @ w)
    gradient = design.T @ (p - y) + penalty * w
    step = np.linalg.solve(
        design.T @ (design * (p * (1 - p))[:, None]) + np.diag(penalty), gradient)
    w = w - step / max(1.0, np.abs(step).max())
    if np.abs(step).max() < 1e-10:
      break
  return float(special.expit(w[0]))
