r"""Judges a reward model: measures how well its scores rank responses of known quality.

    python -m rl_reason.judge --scorer=length --data=llmbar.jsonl.gz --format=llmbar \
        --output=length.json
    python -m rl_reason.judge --scorer=my_package.mine:scorer --scorer_args='{"size": 3}' \
        --data=... --format=rm_bench

It prints a table, in which a scorer by length alone and a random one stand beside it, and writes
the report. In Python, call evaluation.reward_models.judge with any function from texts to scores.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
from typing import Any

from rl_reason.config import naming
from rl_reason.config.command_line import json_object, number, Parser
from rl_reason.evaluation.reward_models import (
  judge_beside_baselines,
  length,
  random,
  score_with,
  ScoreFn,
  table_rows,
)
from rl_reason.reporting import exits
from rl_reason.reporting.progress import Progress
from rl_reason.reporting.whole_files import write_whole
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


def main(argv: Sequence[str] | None = None) -> None:
  """Judges the scorer of --scorer on the comparisons of --data; prints and writes the report."""
  parser = Parser("judge", __doc__)
  parser.add_argument(
      "--scorer", required=True, help="a name in rl_reason.judge.SCORERS or package.module:function")
  parser.add_argument(
      "--scorer_args", type=json_object, default={}, help="JSON object: the scorer's arguments")
  parser.add_argument(
      "--data", required=True, type=lambda text: text.split(","),
      help="files or globs, .jsonl, .jsonl.gz or .parquet, with commas between")
  parser.add_argument(
      "--format", required=True,
      help="a name in rl_reason.tasks.preferences.FORMATS or package.module:Class")
  parser.add_argument(
      "--format_args", type=json_object, default={}, help="JSON object: the format's arguments")
  parser.add_argument(
      "--where", type=json_object, default={},
      help="JSON object: column -> the value or values that a row must have")
  parser.add_argument("--rows", default="", help="a slice of the rows: '0:500', '90%%:'")
  parser.add_argument(
      "--bad_rows", default="error", choices=["error", "drop"],
      help="what happens to rows that compare nothing")
  parser.add_argument(
      "--threshold", type=number(float, at_least=-math.inf),
      help="of step scores; by default chosen on each half of the rows for the other")
  parser.add_argument("--output", default="", help="a JSON file for the report")
  args = parser.parse_args(argv)

  with process.errors_in_one_line():
    # A mistake in the rows must not wait for a model that is loaded.
    arguments = dict(
        path=args.data, format=args.format, args=args.format_args, where=args.where,
        rows=args.rows, bad_rows=args.bad_rows)

    # The comparisons, the scorer, and its scores beside those of the two baselines.
    process.start()
    source = load_splits("comparisons", arguments, {"judged": {}})["judged"]
    score = make_scorer(args.scorer, args.scorer_args)
    reports = judge_beside_baselines(score, source, threshold=args.threshold)
    counts = reports["scorer"].counts | {"dropped": len(source.dropped)}
    reports["scorer"].counts = counts

    # The report: a file with what was judged and how, then the table.
    if args.output:
      content = {
          "scorer": args.scorer, "scorer_args": args.scorer_args, "data": arguments,
          "dropped": source.dropped,
          "reports": {name: r.as_json() for name, r in reports.items()}}
      write_whole(args.output, (json.dumps(content, indent=2) + "\n").encode())
    with Progress(enabled=True) as progress:
      progress.table(
          f"{args.scorer} on {source.name}: "
          + ", ".join(f"{n} {name}" for name, n in counts.items()),
          ["metric", "rows", args.scorer, "length only", "random"], table_rows(reports))


if __name__ == "__main__":
  with exits.with_status():
    main()
