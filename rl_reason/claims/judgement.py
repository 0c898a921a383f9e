"""Judges a claim: every run's numbers -> effect, interval and verdict, or why there is none."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.claims import folder, measures, plan
from rl_reason.claims.declaration import Claim, Metric
from rl_reason.evaluation import estimates

# The share of intervals that hold the true effect, and of measurements that see a detectable one.
CONFIDENCE, POWER = 0.95, 0.8


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one run gave, as the record holds it.

  arm: name of the arm.
  seed: the run's seed.
  status: "finished", "failed", "stopped", "diverged" (its number is not finite) or "unmeasured" (it
    has no number).
  error: why it is not finished, else "".
  value: the claim's metric; None unless the run is finished.
  totals: totals of the metrics that must match: name -> sum over the run.
  seconds: time of all its processes, without that of stages that it shares.
  also: the claim's further metrics: column -> value, None where the run has no such number.
  """
  arm: str
  seed: int
  status: str
  error: str = ""
  value: float | None = None
  totals: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  also: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A claim's verdict, and the numbers that it comes from.

  verdict: "holds", "does not hold" or "undecided"; "missing" or "invalid" where no verdict can be
    given.
  reason: the reason for the verdict, in a sentence.
  effects: one per seed, in the claim's terms: differences, ratios or the treatment's own values.
  effect: the mean of the effects; of ratios the geometric mean.
  interval: the 95 % interval of the effect (estimates.mean_interval; of ratios, of their
    logarithms).
  detectable: how far the truth must be from the threshold, for ratios by what factor, so that these
    seeds see it four times in five.
  cost: matched metric -> arm -> total of each seed.
  """
  verdict: str
  reason: str
  effects: Sequence[float] = ()
  effect: float | None = None
  interval: tuple[float, float] | None = None
  detectable: float | None = None
  cost: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)


def measure(claim: Claim, run: plan.Run) -> Measured:
  """Measures a run: how it ended and, if it finished, its numbers."""
  end = folder.outcome(run)
  found = Measured(run.arm, run.seed, end.status, end.error, seconds=end.seconds)
  if end.status != "finished":
    return found
  try:
    value = measures.measure(run.folder, claim.metric.function, dict(claim.metric.args))
    totals = measures.totals(run.folder)
  except Exception as error:  # pylint: disable=broad-except
    # The metric may be a user's function. Whatever it raises, this run has no number, and the
    # others keep theirs.
    return dataclasses.replace(
        found, status="unmeasured", error=f"{type(error).__name__}: {error}")
  if not math.isfinite(value):
    return dataclasses.replace(found, status="diverged", error=f"its metric is {value}")
  return dataclasses.replace(
      found, value=value, totals={k: totals[k] for k in claim.matched if k in totals},
      also={column: _number(metric, run) for column, metric in claim.also.items()})


def _number(metric: Metric, run: plan.Run) -> float | None:
  """Computes a further metric of a run; None if it has no finite number."""
  try:
    value = measures.measure(run.folder, metric.function, dict(metric.args))
  except Exception:  # pylint: disable=broad-except
    # A further metric decides nothing, and the table shows that there is no number.
    return None
  return value if math.isfinite(value) else None


def arms_table(claim: Claim, measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
  """Makes the table of arms: means of the metrics over seeds, with 95 % t intervals.

  Runs without a number are left out of the means, and counted.

  Returns: (columns, a row for each arm).
  """
  rows = []
  for arm in claim.arms:
    of_arm = [m for m in measured if m.arm == arm]
    columns = [
        [m.value for m in of_arm],
        *([m.also.get(column) for m in of_arm] for column in claim.also)]
    rows.append([arm, *map(_mean, columns), f"{sum(m.value is not None for m in of_arm)}"])
  return ["arm", claim.metric.label, *claim.also, "runs"], rows


def _mean(values: Sequence[float | None]) -> str:
  """Shows the mean with its interval; with fewer than 2 values there is no interval."""
  there = np.array([v for v in values if v is not None])
  missing = f", {len(values) - len(there)} without" if len(there) < len(values) else ""
  if len(there) < 2:
    return ("-" if not len(there) else f"{there[0]:.3g}") + missing
  low, high = estimates.mean_interval(there, confidence=CONFIDENCE)
  return f"{there.mean():.3g} ({low:.3g} to {high:.3g}){missing}"


def judge(claim: Claim, measured: Sequence[Measured], seeds: int) -> Judgement:
  """Gives the verdict of a claim over its seeds.

  Args:
    claim: what is claimed.
    measured: what each run gave. Runs of arms that the claim does not compare do not matter here.
    seeds: number of seeds; they count from 0.
  """
  # All runs that are compared must be finished: a verdict over those that did not fail is biased.
  of = {(m.arm, m.seed): m for m in measured}
  missing = [(arm, seed) for arm in claim.pair for seed in range(seeds)
             if (arm, seed) not in of or of[arm, seed].status != "finished"]
  values = {
      arm: np.array([of[arm, s].value for s in range(seeds) if (arm, s) not in missing])
      for arm in claim.pair}
  if missing:
    told = [f"{arm} with seed {seed} {_end(of.get((arm, seed)))}" for arm, seed in missing]
    return Judgement(
        "missing",
        f"{len(missing)} of {len(claim.pair) * seeds} runs are missing: {'; '.join(told)}.")

  # The arms' costs must match.
  cost = {name: {arm: [of[arm, s].totals.get(name) for s in range(seeds)] for arm in claim.pair}
          for name in claim.matched}
  fault = mismatch(claim, cost)
  if fault:
    return Judgement("invalid", fault, cost=cost)

  # The effect in each seed.
  try:
    effects = compare(claim, values)
  except ValueError as error:
    return Judgement("invalid", str(error), cost=cost)

  # The interval and the verdict. Ratios are averaged as logarithms: twice and half are then equally
  # far from 1.
  logarithmic = claim.compare == "ratio"
  scale, back = (np.log, math.exp) if logarithmic else (np.asarray, float)
  low, high = map(back, estimates.mean_interval(scale(effects), confidence=CONFIDENCE))
  verdict = decide(claim, low, high)

  # The reason, in words.
  shown = f"{back(scale(effects).mean()):.3g} ({low:.3g} to {high:.3g})"
  side = "above" if claim.direction == "higher" else "below"
  reason = {
      "holds": f"{shown} lies {side} {claim.threshold:g}",
      "does not hold": f"{shown} does not lie {side} {claim.threshold:g}",
      "undecided": f"{shown} has {claim.threshold:g} inside"}[verdict] + f", {seeds} seeds."
  # Seeds change everything that is random, so equal effects suggest that a change of the arms, or
  # the training, does not reach the metric.
  if len(set(effects)) == 1:
    reason += (
        " All seeds gave the same effect, to the bit: whether the arms differ as they should is"
        " worth a look.")
  return Judgement(
      verdict, reason, effects=effects.tolist(), effect=back(scale(effects).mean()),
      interval=(low, high), cost=cost,
      detectable=back(estimates.detectable_effect(
          scale(effects), confidence=CONFIDENCE, power=POWER)))


def compare(claim: Claim, values: Mapping[str, Float[np.ndarray, "N"]]) -> Float[np.ndarray, "N"]:
  """Computes the effect in each of N seeds.

  Args:
    claim: says how the arms are compared.
    values: arm -> the metric of each seed.
  Raises: ValueError for a ratio of numbers that are not positive.
  """
  treatment = values[claim.treatment]
  if claim.compare == "absolute":
    return treatment
  baseline = values[claim.baseline]
  if claim.compare == "difference":
    return treatment - baseline
  if min(treatment.min(), baseline.min()) <= 0:
    raise ValueError(
        f"A ratio needs positive numbers, and the metric was"
        f" {min(treatment.min(), baseline.min()):g} in a run: state the claim as a difference.")
  return treatment / baseline


def decide(claim: Claim, low: float, high: float) -> str:
  """Decides whether a claim holds, from the interval of its effect.

  Returns: "holds" if the whole interval lies beyond the threshold, "does not hold" if none of it
    does, else "undecided".
  """
  # "lower" is "higher" of the negated numbers.
  if claim.direction == "lower":
    low, high, threshold = -high, -low, -claim.threshold
  else:
    threshold = claim.threshold
  return "holds" if low > threshold else "does not hold" if high <= threshold else "undecided"


def mismatch(claim: Claim, cost: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
  """Finds a metric that differs between treatment and baseline although it must match.

  Args:
    claim: the claim, with its tolerance.
    cost: metric -> arm -> total of each seed.
  Returns: the fault in a sentence; "" if all match.
  """
  for name, totals in cost.items():
    for seed, pair in enumerate(zip(totals[claim.treatment], totals[claim.baseline])):
      if None in pair:
        return (f"{name!r} must match, and a run logged none: it cannot be compared. `matched`"
                " names metrics of metrics.jsonl.")
      apart = abs(pair[0] - pair[1]) / max(map(abs, pair)) if any(pair) else 0.0
      if apart > claim.tolerance:
        return (f"{name} must match within {claim.tolerance:.0%}: {claim.treatment} had"
                f" {pair[0]:g} and {claim.baseline} {pair[1]:g} with seed {seed}, {apart:.0%}"
                " apart. Their results cannot be compared.")
  return ""


def _end(measured: Measured | None) -> str:
  """Says in words how a run ended that has no number."""
  if measured is None:
    return "was not run"
  words = {
      "failed": "failed", "stopped": "stopped early", "diverged": "diverged",
      "unmeasured": "has no such number"}
  return words[measured.status] + (f" ({measured.error})" if measured.error else "")


def to_json(judgement: Judgement) -> dict[str, Any]:
  """Turns a judgement into what JSON holds."""
  return dataclasses.asdict(judgement)
