"""Measures how well scores rank responses of known quality, beside two baselines.

The baselines are a length-only and a random scorer.

    report = judge(score, comparisons)

`score` is any function from (prompt, response) texts to numbers.

`python -m rl_reason.judge` does so for a scorer that is named.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

from absl import logging
import numpy as np

from rl_reason.batches.responses import plain_text
from rl_reason.evaluation import ranking
from rl_reason.evaluation.ranking import Estimate
from rl_reason.scorers.scorer import Scorer
from rl_reason.types import Comparison, Source

# (prompt, response) texts -> one number per response, higher is better. Or [N, M] from the M
# members of an ensemble, whose mean is judged. Or, to be judged on steps, a list of arrays with one
# number per step. NaN means that this response or step could not be scored.
# A scorer may have two attributes:
#   render_prompt: messages -> what the scorer wants to see in place of `plain_text`.
#   by_prompt: true if the scorer wants (prompt, responses) and returns an array of their scores for
#     each prompt. It then gets responses in labelled steps as tuples of their steps' texts, and
#     returns for each prompt a list of arrays.
ScoreFn = Callable[[Sequence[tuple[str, Any]]], Any]


@dataclasses.dataclass
class Report:
  """Holds what was found about a scorer.

  estimates: metric -> value with interval.
  counts: numbers of rows and of failures.
  details: curves and matrices, as plain data that JSON can hold.
  """
  estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  def metrics(self, prefix: str = "judge/") -> dict[str, float]:
    """Returns flat numbers for a run's log: estimates with their _low and _high, and counts."""
    flat = {}
    for name, e in self.estimates.items():
      flat |= {prefix + name: e.value, f"{prefix}{name}_low": e.low, f"{prefix}{name}_high": e.high}
    return flat | {prefix + name: float(count) for name, count in self.counts.items()}

  def as_json(self) -> dict[str, Any]:
    """Returns the report as plain data that JSON can hold."""
    return {"estimates": {name: dataclasses.asdict(e) for name, e in self.estimates.items()},
            "counts": self.counts, **self.details}


def judge(score: ScoreFn, comparisons: Source, *, threshold: float | None = None) -> Report:
  """Measures what these comparisons can say about a scorer; the rows decide what that is.

  Rows whose responses differ in score give:
    "accuracy": better against worse; equal scores count a half. Also by domain, and as the domains'
      "average".
    "calibration_error".
    "length/correlation", and the accuracy where the longer response is the worse or the better one.
    "top1", with more than two responses: is the best-scored response a right one.
    "best_of/n", with more than two responses.
    "styles/easy", "normal" and "hard" of RM-Bench, with equally many right and wrong responses, two
      or more of each.
    "ties" of RewardBench 2, with ids "ref:x" and "tied:x"; it then stands for its domain in
      "top1/average".
    "ensemble/agreement" and more, for an ensemble.
  Rows with labelled steps give:
    "steps/f1" and its two accuracies, as in ProcessBench.
    "steps/auc", over all labelled steps.

  Args:
    score: see ScoreFn.
    comparisons: rows of tasks.preferences, or of a source of one's own.
    threshold: a step whose score is below it is called wrong. None: the threshold is chosen on each
      half of the solutions for the other half, so that a scorer's scale does not matter.

  Raises: ValueError for rows that compare nothing, and for scores of another shape.
  """
  rows = [comparisons[i] for i in range(len(comparisons))]
  # 1. Sort the rows into those that are compared and those with labelled steps.
  for row in rows[:1]:
    if not isinstance(row, Comparison):
      raise ValueError(
          f"judge needs rows of rl_reason.types.Comparison, got {type(row).__name__}: use the"
          " source 'comparisons', or make them in yours.")
  compared = [c for c in rows if len(set(c.scores)) > 1 or c.preference is not None]
  solutions = [(c, i) for c in rows for i, steps in enumerate(c.steps)
               if any(s.label is not None for s in steps)]
  report = Report(counts={"rows": len(rows)})
  if not compared and not solutions:
    raise ValueError(f"None of the {len(rows)} comparisons has responses of different score or"
                     " labelled steps: there is nothing to judge by. Check the format's `label`,"
                     " `score` or `steps`.")
  # 2. Judge each kind.
  if compared:
    _judge_rankings(score, compared, report)
  if solutions:
    _judge_steps(score, solutions, threshold, report)
  return report


def judge_beside_baselines(
    score: ScoreFn, comparisons: Source, *, threshold: float | None = None) -> dict[str, Report]:
  """Judges a scorer and the two baselines.

  Returns: "scorer": its report; "length": that of a scorer which only sees length; "random": that
    of a scorer which sees nothing.
  """
  return {"scorer": judge(score, comparisons, threshold=threshold),
          "length": judge(length(), comparisons),
          "random": judge(random(), comparisons)}


# --- The scorers beside it.


def score_with(scorer: Scorer, *, aggregate: str = "") -> ScoreFn:
  """Scores with a trained reward model; the mean of its outputs counts.

  Args:
    scorer: the trained model.
    aggregate: how the scores at a response's places become its score
      (models.reward_model.AGGREGATES); "": as the model was trained.
  """
  if aggregate:
    scorer = dataclasses.replace(scorer, aggregate=aggregate)

  def score(rows):
    # Either all rows of a call are in steps, or none.
    in_steps = any(not isinstance(responses[0], str) for _, responses in rows)
    scored = scorer(scorer.encode_rows(rows, "steps" if in_steps else ""))
    if in_steps:
      return [[places.mean(axis=-1) for places in row.places] for row in scored]
    return [row.totals.mean(axis=-1) for row in scored]
  score.by_prompt, score.render_prompt = True, lambda prompt: prompt
  return score


def length() -> ScoreFn:
  """Makes a scorer that counts the characters of each response or step: it likes the longer one."""
  return _by_prompt(lambda prompt, text: float(len(text)))


def random(*, seed: int = 0) -> ScoreFn:
  """Makes a scorer whose scores are uniform in [0, 1).

  A prompt and its response or step get the same score in every process.
  """
  def draw(prompt, text):
    digest = hashlib.blake2b(json.dumps([seed, prompt, text]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2 ** 64
  return _by_prompt(draw)


def _by_prompt(one):
  """Makes a scorer, with `by_prompt`, from a function of a prompt and one text."""
  def response(prompt, given):
    return one(prompt, given) if isinstance(given, str) else np.array(
        [one(prompt, step) for step in given])

  def score(rows):
    return [[response(prompt, r) for r in responses] for prompt, responses in rows]
  score.by_prompt = True
  return score


# --- Parts of the report.


def _judge_rankings(score, rows: list[Comparison], report: Report) -> None:
  """Adds what whole responses say: accuracy, length, calibration, lists and ensembles."""
  # 1. Score all responses; failures come last.
  raw = _response_scores(score, rows)
  scores, failed = ranking.failures_last([s if s.ndim == 1 else s.mean(axis=1) for s in raw])
  report.counts["failed"] = failed
  labels = [c.scores or (c.preference, 1 - c.preference) for c in rows]
  domains = np.array([c.domain for c in rows])
  pairs = ranking.make_pairs(labels)
  with np.errstate(invalid="ignore"):
    differences = pairs.differences(scores)
  # 2. Accuracy, and its dependence on length, over the rows that are not ties.
  report.counts["tied"] = sum(len(set(row)) == 1 for row in labels)
  strict = [i for i, row in enumerate(labels) if len(set(row)) > 1]
  if strict:
    credit = ranking.pair_credit(differences)
    _with_domains(report, "accuracy", pairs.row_means(credit), domains[strict])
    lengths = [[len(r) for r in c.responses] for c in rows]
    longer = np.sign(pairs.differences(lengths))
    for name, select in (("longer_worse", longer < 0), ("longer_better", longer > 0)):
      if select.any():
        report.estimates[f"length/accuracy_{name}"] = ranking.estimate(
            pairs.row_means(credit, select))
    whole = [i for i in strict if np.isfinite(scores[i]).all()]
    if whole:
      report.estimates["length/correlation"] = ranking.correlation_within_rows(
          [scores[i] for i in whole], [lengths[i] for i in whole])
  # 3. Calibration, lists of more than two responses, and agreement of an ensemble.
  _judge_calibration(rows, scores, pairs, differences, report)
  if any(len(rows[i].responses) > 2 for i in strict):
    _judge_lists([rows[i] for i in strict], [scores[i] for i in strict], report)
  if raw[0].ndim == 2 and raw[0].shape[1] > 1 and len(pairs.row):
    members = np.array(
        [pairs.differences([s[:, m] for s in raw]) for m in range(raw[0].shape[1])])
    for name, e in ranking.ensemble_agreement(np.nan_to_num(members)).items():
      if e is not None:
        report.estimates[f"ensemble/{name}"] = e


def _judge_calibration(rows, scores, pairs, differences, report):
  """Adds the calibration of score differences, over pairs and over ties labelled as such."""
  ties = [i for i, c in enumerate(rows) if c.preference == 0.5 and len(set(c.scores)) < 2]
  with np.errstate(invalid="ignore"):
    gaps = np.concatenate([differences, [scores[i][0] - scores[i][1] for i in ties]])
  of_row = np.concatenate([pairs.row, np.array(ties, np.int64)])
  wanted = np.array([1.0 if rows[r].preference is None else rows[r].preference for r in of_row])
  sound = np.isfinite(gaps)
  if sound.any():
    report.estimates["calibration_error"], report.details["reliability"] = ranking.calibration(
        gaps[sound], wanted[sound], rows=of_row[sound])


def _judge_lists(rows: list[Comparison], scores, report: Report) -> None:
  """Adds what lists of responses say: top1, ties, styles and best of n."""
  right = [np.array(c.scores) == c.scores[0] for c in rows]
  top = np.array([ranking.best_of_credit(s, r) for s, r in zip(scores, right)])
  domains = np.array([c.domain for c in rows])
  # 1. The Ties score of RewardBench 2, where ids name both forms of a question; top1 of the rest.
  forms = [re.fullmatch(r"(ref|tied):(.+)", c.id) for c in rows]
  margins = ranking.floored(scores)
  by_form: dict[str, dict[str, Any]] = {"ref": {}, "tied": {}}
  for form, s, r in zip(forms, margins, right):
    if form:
      by_form[form[1]][form[2]] = (s[r], s[~r])
  if set(by_form["ref"]) & set(by_form["tied"]):
    ties, terms, per_question = ranking.ties_score(by_form["ref"], by_form["tied"])
    report.estimates["ties"], report.details["ties_terms"] = ties, terms
    single = [
        q for q in by_form["tied"] if q in by_form["ref"] and len(by_form["tied"][q][0]) == 1]
    if single:
      report.counts["ties_without_spread"] = len(single)
      logging.warning("%d questions have a single right answer in their form 'tied:', so no spread,"
                      " and are left out of the margins of the Ties score: %s", len(single),
                      ", ".join(single[:5]))
    rest = np.array([form is None for form in forms])
    if rest.any():
      report.estimates |= {
          f"top1/{name}": e for name, e in ranking.by_group(top[rest], domains[rest]).items()}
      names = [*domains[rest], *["ref:/tied:"] * len(per_question)]
      average = ranking.group_average([*top[rest], *per_question], names)
      # Questions that exist in only one form count in the Ties score, but not in `per_question`.
      shift = (ties.value - per_question.mean()) / len(set(names))
      report.estimates["top1/average"] = dataclasses.replace(average, value=average.value + shift)
  else:
    _with_domains(report, "top1", top, domains)
  # 2. The styles of RM-Bench, where all rows have equally many right and wrong responses.
  halves = {(int(r.sum()), int((~r).sum())) for r in right}
  if len(halves) == 1 and (sizes := halves.pop())[0] == sizes[1] > 1:
    matrix, kinds = ranking.style_matrix(
        [s[r] for s, r in zip(scores, right)], [s[~r] for s, r in zip(scores, right)])
    report.details["style_matrix"] = matrix.tolist()
    report.estimates |= {
        f"styles/{name}": ranking.estimate(values) for name, values in kinds.items()}
    report.estimates["styles/average"] = ranking.estimate(np.mean(list(kinds.values()), axis=0))
  # 3. The best of n, for n that are powers of two.
  size = min(len(c.responses) for c in rows)
  if size > 2:
    curves = np.array([ranking.best_of_n(s[None], np.array(c.scores)[None])[0, :size]
                       for s, c in zip(margins, rows)])
    curve = [ranking.estimate(column) for column in curves.T]
    report.details["best_of"] = [dataclasses.asdict(e) for e in curve]
    report.estimates |= {
        f"best_of/{n}": curve[n - 1] for n in (2 ** np.arange(31)).tolist() if n <= size}


def _judge_steps(score, solutions: list[tuple[Comparison, int]], threshold, report: Report) -> None:
  """Adds what labelled steps say: F1, its accuracies, and the area under the curve."""
  # 1. Score the steps of all solutions, and find the first wrong step of each.
  render = getattr(score, "render_prompt", plain_text)
  if getattr(score, "by_prompt", False):
    rows = score([(render(c.prompt), (tuple(s.text for s in c.steps[i]),)) for c, i in solutions])
    given = [row[0] for row in rows]
  else:
    given = score([(render(c.prompt), c.responses[i]) for c, i in solutions])
  if len(given) != len(solutions):
    raise ValueError(f"The scorer returned {len(given)} arrays of step scores for"
                     f" {len(solutions)} solutions.")
  step_scores, labels = [], []
  for (c, i), row in zip(solutions, given):
    row, steps = np.asarray(row, np.float64), c.steps[i]
    if row.shape != (len(steps),):
      raise ValueError(
          f"The scorer returned step scores of shape {row.shape} for response {i} of the comparison"
          f" {c.id!r}, which has {len(steps)} steps: give one number per step. Does the scorer"
          f" split steps where the data does, after {steps[0].text[-12:]!r}?")
    step_scores.append(row)
    labels.append(next(
        (j for j, s in enumerate(steps) if s.label is not None and s.label < 0.5), -1))
  step_scores, report.counts["failed_steps"] = ranking.failures_last(step_scores)
  # 2. Choose the threshold on each half for the other. The halves take alternate solutions among
  # the wrong and among the right ones, because a file may hold wrong and right ones alternately.
  labels, half = np.array(labels), np.zeros(len(labels), int)
  for kind in (labels >= 0, labels < 0):
    half[kind] = np.arange(kind.sum()) % 2
  report.counts["solutions"] = len(labels)
  if threshold is None:
    if len(labels) < 4:
      raise ValueError(f"{len(labels)} solutions are too few to choose a threshold on one half for"
                       " the other: set threshold.")
    predicted, chosen = np.zeros_like(labels), []
    for own in (0, 1):
      other = [step_scores[i] for i in np.flatnonzero(half != own)]
      chosen.append(ranking.best_threshold(other, labels[half != own]))
      predicted[half == own] = ranking.first_below(
          [step_scores[i] for i in np.flatnonzero(half == own)], chosen[-1])
  else:
    predicted, chosen = ranking.first_below(step_scores, threshold), [threshold]
  report.details["step_thresholds"] = chosen
  # 3. F1 and accuracies, also by domain; then the area under the curve of all labelled steps.
  domains = np.array([c.domain for c, _ in solutions])
  f1, wrong, right = ranking.first_error_f1(predicted, labels)
  found = {"f1": f1, "accuracy_wrong": wrong, "accuracy_right": right}
  if len(set(domains)) > 1:
    found |= {f"f1/{d}": ranking.first_error_f1(predicted[domains == d], labels[domains == d])[0]
              for d in np.unique(domains)}
  report.estimates |= {f"steps/{name}": e for name, e in found.items() if e is not None}
  report.estimates["steps/accuracy"] = ranking.estimate((predicted == labels).astype(float))
  judged = [[(x, s.label) for x, s in zip(row, c.steps[i]) if s.label is not None]
            for (c, i), row in zip(solutions, step_scores)]
  area = ranking.area_under_curve_by_row(judged)
  if area is not None:
    report.estimates["steps/auc"] = area


def _response_scores(score, rows: list[Comparison]) -> list[np.ndarray]:
  """Returns per row the scores of its responses, [R] or [R, members]."""
  prompts = [getattr(score, "render_prompt", plain_text)(c.prompt) for c in rows]
  if getattr(score, "by_prompt", False):
    found = [np.asarray(s, np.float64)
             for s in score([(p, c.responses) for p, c in zip(prompts, rows)])]
    for c, s in zip(rows, found):
      if s.shape[:1] != (len(c.responses),):
        raise ValueError(f"The scorer returned shape {s.shape} for the {len(c.responses)} responses"
                         f" of the comparison {c.id!r}: give one number per response.")
    if len(found) != len(rows):
      raise ValueError(f"The scorer returned {len(found)} arrays for {len(rows)} prompts.")
    return found
  texts = [(p, r) for p, c in zip(prompts, rows) for r in c.responses]
  try:
    flat = np.asarray(score(texts), np.float64)
  except (TypeError, ValueError) as error:
    error.add_note("judge compares whole responses here: a scorer of steps must be aggregated to"
                   " one number each.")
    raise
  if flat.shape[:1] != (len(texts),) or flat.ndim > 2:
    raise ValueError(f"The scorer returned shape {flat.shape} for {len(texts)} responses: give one"
                     f" number for each, or [{len(texts)}, members] of an ensemble.")
  return np.split(flat, np.cumsum([len(c.responses) for c in rows])[:-1])


def _with_domains(report, name, per_row, domains):
  """Adds a mean, also of each domain and as the domains' average where there are several."""
  report.estimates[name] = ranking.estimate(per_row)
  if len(set(domains)) > 1:
    report.estimates |= {
        f"{name}/{domain}": e for domain, e in ranking.by_group(per_row, domains).items()}
    report.estimates[f"{name}/average"] = ranking.group_average(per_row, domains)


# --- As a table.


def table_rows(reports: Mapping[str, Report]) -> list[list[str]]:
  """Makes one row per metric of the first report: its name, then each report's value."""
  def cell(e):
    return "" if e is None else f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"
  first = next(iter(reports.values()))
  return [[name, str(e.count), *(cell(r.estimates.get(name)) for r in reports.values())]
          for name, e in first.estimates.items()]
