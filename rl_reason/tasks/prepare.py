"""Writes a source as a TFDS data set that loads by its name.

The functions are in rl_reason.tasks.prepared.

    python -m rl_reason.tasks.prepare --name=my_set --data_dir=~/sets --source=jsonl \
        --args='{"prompt": "{question}", "reference": "{answer}"}' \
        --splits='{"train": {"path": "train.jsonl"}, "test": {"path": "test.jsonl"}}'

Then, in a config: source="tfds", arguments=dict(name="my_set", data_dir="~/sets"),
train=dict(split="train").
"""

import json

from absl import app, flags

from rl_reason.reporting import exits
from rl_reason.tasks import prepared, registry

_NAME = flags.DEFINE_string(
    "name", None, "The data set's name: letters (lower case), digits, _.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The folder of prepared data sets.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", "jsonl", "A name in rl_reason.tasks.registry.SOURCES or package.module:function.")
_ARGS = flags.DEFINE_string("args", "{}", "JSON object: the source's arguments for every split.")
_SPLITS = flags.DEFINE_string(
    "splits", '{"train": {}}', "JSON object: split -> further arguments of that split.")
_VERSION = flags.DEFINE_string("version", "1.0.0", "The data's version, major.minor.patch.")


def main(argv):
  """Loads the source's splits, writes them and prints how many rows each has."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments {argv[1:]}: every setting is a --flag.")
  arguments, splits = _json_object("args", _ARGS.value), _json_object("splits", _SPLITS.value)
  # All arguments are checked before any file is read, and all files before the set is written.
  sources = registry.load_splits(_SOURCE.value, arguments, splits)
  folder = prepared.prepare(_NAME.value, sources, _DATA_DIR.value, _VERSION.value)
  print(f"{folder}: "
        + ", ".join(f"{split} {len(source)} rows" for split, source in sources.items()))


def _json_object(flag, text):
  """Parses the JSON object in a flag. Raises: UsageError for anything else."""
  try:
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise app.UsageError(f"--{flag} is not JSON: {error}: {text!r}") from error
  if not isinstance(value, dict):
    raise app.UsageError(f"--{flag} must be a JSON object, got {text!r}")
  return value


if __name__ == "__main__":
  with exits.with_status():
    app.run(main)
