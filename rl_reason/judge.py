r"""Judges a reward model: measures how well its scores rank responses of known quality.

    python -m rl_reason.judge --scorer=length --data=llmbar.jsonl.gz --format=llmbar \
        --output=length.json
    python -m rl_reason.judge --scorer=my_package.mine:scorer --scorer_args='{"size": 3}' \
        --data=... --format=rm_bench

It prints a table, in which a scorer by length alone and a random one stand beside it, and writes
the report. In Python, call evaluation.reward_models.judge with any function from texts to scores.
"""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
from typing import Any

from absl import app, flags

from rl_reason.config import naming
from rl_reason.evaluation.reward_models import (
  judge_beside_baselines,
  length,
  random,
  score_with,
  ScoreFn,
  table_rows,
)
from rl_reason.reporting.progress import Progress
from rl_reason.rewards.judge import pairwise_scorer, pointwise_scorer
from rl_reason.run import earlier, process
from rl_reason.tasks.registry import load_splits


def reward_model(*, workdir: str, aggregate: str = "") -> ScoreFn:
  """Makes a scorer of a reward model, or of an implicit reward that a run has trained.

  Args:
    workdir: "path" of the run's folder, or "path:stage"; or the Hugging Face directory of a public
      reward model (...ForSequenceClassification).
    aggregate: how step scores become one score, as in `score_with`.
  """
  return score_with(earlier.scorer_of_run(workdir), aggregate=aggregate)


# Name -> a function whose keyword arguments are --scorer_args, and that returns a ScoreFn.
SCORERS: dict[str, Callable[..., ScoreFn]] = {
    "length": length,
    "random": random,
    "reward_model": reward_model,  # Of a run, or in files.
    "judge_rating": pointwise_scorer,  # A generative judge rates each response.
    "judge_preference": pairwise_scorer,  # A generative judge compares responses to one prompt.
}


def make_scorer(name: str, args: Mapping[str, Any]) -> ScoreFn:
  """Makes a scorer.

  Args:
    name: a name in SCORERS, or the dotted path of a function that returns a scorer.
    args: keyword arguments of that function.
  Raises: ValueError for an unknown name or argument, and if the function returns no function.
  """
  make = naming.find("scorer", name, SCORERS)
  naming.check_arguments(f"The scorer {name!r}", make, args)
  score = make(**args)
  if not callable(score):
    raise ValueError(
        f"The scorer {name!r} returned {type(score).__name__}, which cannot be called: return a"
        " function from (prompt, response) texts to scores.")
  return score


def main(flag_values: flags.FlagValues) -> None:
  """Judges the scorer of --scorer on the comparisons of --data; prints and writes the report."""
  def from_json(flag):
    try:
      value = json.loads(flag_values[flag].value)
    except json.JSONDecodeError as error:
      raise ValueError(f"--{flag} is not JSON ({error}): {flag_values[flag].value!r}.") from error
    if not isinstance(value, dict):
      raise ValueError(f"--{flag} must be a JSON object, got {flag_values[flag].value!r}.")
    return value

  with process.errors_in_one_line():
    # The arguments are read first: a mistake in them must not wait for a model that is loaded.
    arguments = dict(
        path=flag_values.data, format=flag_values.format, args=from_json("format_args"),
        where=from_json("where"), rows=flag_values.rows, bad_rows=flag_values.bad_rows)
    score_args = from_json("scorer_args")

    # The comparisons, the scorer, and its scores beside those of the two baselines.
    process.start()
    source = load_splits("comparisons", arguments, {"judged": {}})["judged"]
    score = make_scorer(flag_values.scorer, score_args)
    reports = judge_beside_baselines(score, source, threshold=flag_values.threshold)
    counts = reports["scorer"].counts | {"dropped": len(source.dropped)}
    reports["scorer"].counts = counts

    # The report: a file with what was judged and how, then the table.
    if flag_values.output:
      content = {
          "scorer": flag_values.scorer, "scorer_args": score_args, "data": arguments,
          "dropped": source.dropped,
          "reports": {name: r.as_json() for name, r in reports.items()}}
      Path(flag_values.output).write_text(json.dumps(content, indent=2) + "\n")
    with Progress(enabled=True) as progress:
      progress.table(
          f"{flag_values.scorer} on {source.name}: "
          + ", ".join(f"{n} {name}" for name, n in counts.items()),
          ["metric", "rows", flag_values.scorer, "length only", "random"], table_rows(reports))


if __name__ == "__main__":
  flags.DEFINE_string(
      "scorer", None, "A name in rl_reason.judge.SCORERS or package.module:function.",
      required=True)
  flags.DEFINE_string("scorer_args", "{}", "JSON object: the scorer's arguments.")
  flags.DEFINE_list(
      "data", None, "Files or globs, .jsonl, .jsonl.gz or .parquet, with commas between.",
      required=True)
  flags.DEFINE_string(
      "format", None, "A name in rl_reason.tasks.preferences.FORMATS or package.module:Class.",
      required=True)
  flags.DEFINE_string("format_args", "{}", "JSON object: the format's arguments.")
  flags.DEFINE_string(
      "where", "{}", "JSON object: column -> the value or values that a row must have.")
  flags.DEFINE_string("rows", "", "A slice of the rows: '0:500', '90%:'.")
  flags.DEFINE_enum(
      "bad_rows", "error", ["error", "drop"], "What happens to rows that compare nothing.")
  flags.DEFINE_float(
      "threshold", None,
      "Of step scores; by default chosen on each half of the rows for the other.")
  flags.DEFINE_string("output", "", "A JSON file for the report.")
  app.run(lambda _: main(flags.FLAGS))
