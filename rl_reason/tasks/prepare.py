"""Writes a source as a TFDS data set that loads by its name.

The functions are in rl_reason.tasks.prepared.

    python -m rl_reason.tasks.prepare --name=my_set --data_dir=~/sets --source=jsonl \
        --args='{"prompt": "{question}", "reference": "{answer}"}' \
        --splits='{"train": {"path": "train.jsonl"}, "test": {"path": "test.jsonl"}}'

Then, in a config: source="tfds", arguments=dict(name="my_set", data_dir="~/sets"),
train=dict(split="train").
"""

from collections.abc import Sequence

from rl_reason.config.command_line import errors_in_one_line, json_object, Parser
from rl_reason.reporting import exits
from rl_reason.tasks import prepared, registry


def main(argv: Sequence[str] | None = None) -> None:
  """Loads the source's splits, writes them and prints how many rows each has."""
  parser = Parser("prepare", __doc__)
  parser.add_argument(
      "--name", required=True, help="the data set's name: letters (lower case), digits, _")
  parser.add_argument("--data_dir", required=True, help="the folder of prepared data sets")
  parser.add_argument(
      "--source", default="jsonl",
      help="a name in rl_reason.tasks.registry.SOURCES or package.module:function")
  parser.add_argument(
      "--args", type=json_object, default={},
      help="JSON object: the source's arguments for every split")
  parser.add_argument(
      "--splits", type=json_object, default={"train": {}},
      help="JSON object: split -> further arguments of that split")
  parser.add_argument(
      "--version", default="1.0.0", help="the data's version, major.minor.patch")
  args = parser.parse_args(argv)
  for split, further in args.splits.items():
    if not isinstance(further, dict):
      parser.error(f"--splits: {split!r} must have a JSON object of arguments, got {further!r}")
  with errors_in_one_line():
    # All arguments are checked before any file is read, and all files before the set is written.
    sources = registry.load_splits(args.source, args.args, args.splits)
    folder = prepared.prepare(args.name, sources, args.data_dir, args.version)
  print(f"{folder}: "
        + ", ".join(f"{split} {len(source)} rows" for split, source in sources.items()))


if __name__ == "__main__":
  with exits.with_status():
    main()
