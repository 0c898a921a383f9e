r"""Turns rows of public preference and step-label files into comparisons.

They train reward models and judge them.

    comparisons("hh-rlhf/harmless-base/train.jsonl.gz", format="hh_rlhf", bad_rows="drop")
    comparisons("mine.jsonl", format="choices", args=dict(
        prompt="{question}", responses=["left", "right"], label="better", labels=["L", "R"],
        tie="="))

The formats are in rl_reason.tasks.comparison_formats.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging

from rl_reason.config import naming
from rl_reason.tasks import files, row_files
from rl_reason.tasks.comparison_formats import FORMATS
from rl_reason.types import Comparison


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Holds a source's comparisons in memory.

  name: says where the rows come from.
  rows: all of them, in order.
  dropped: says why rows were dropped, one line each.
  """
  name: str
  rows: tuple[Comparison, ...] = dataclasses.field(repr=False)
  dropped: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Comparison:
    return self.rows[index]


def comparisons(
    path: row_files.Path, *, format: str, args: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None, rows: str = "", max_rows: int | None = None,
    bad_rows: str = "error",
) -> Comparisons:
  """Reads comparisons from .jsonl, .jsonl.gz and .parquet files.

  Args:
    path, where, rows, max_rows: as in `files.jsonl`.
    format: a name in FORMATS, or a dotted path to a class or function whose result maps (row,
      number, place) to a Comparison.
    args: fields of the format, over those that its name implies.
    bad_rows: what happens to a row with blank or identical responses, a null or impossible label,
      a wrong shape: "error", or "drop": it is dropped, counted in a warning and listed in
      `dropped`. Rows are dropped after `rows` is taken, so that slices mean the same rows either
      way; only lines that are no JSON objects are left out before. A damaged file is an error
      either way.

  Raises: FileNotFoundError; ValueError naming file and row, and where no row is left.
  """
  # Find the format, and check its arguments before anything is read.
  if bad_rows not in ("error", "drop"):
    raise ValueError(f"bad_rows must be 'error' or 'drop', got {bad_rows!r}.")
  make, args = naming.find("format", format, FORMATS), dict(args or {})
  naming.check_arguments(f"The format {format!r}", make, args)
  read = make(**args)
  dropped: list[str] = []
  name, selected = files.select_rows(
      path, where=where, rows=rows, max_rows=max_rows,
      drop=(lambda bad: dropped.append(str(bad))) if bad_rows == "drop" else None)
  # Read the rows. Each error of a row names its place, which formats do not always know.
  kept, places, unread = [], [], len(dropped)
  for index, place, row in selected:
    try:
      kept.append(read(row, index, place))
      places.append(place)
    except ValueError as error:
      message = str(error) if str(error).startswith(place) else f"{place}: {error}"
      if bad_rows == "error":
        raise ValueError(
            f"{message} (bad_rows='drop' leaves such rows out and counts them.)") from error
      dropped.append(message)
  # Report what is dropped.
  if not kept:
    raise ValueError(
        f"All {len(selected) + unread} rows of {name} were dropped as bad; the first: {dropped[0]} Is it of"
        f" the format {format!r}?")
  if dropped:
    logging.warning(
        "%d of %d rows of %s are left out as bad; the first: %s", len(dropped),
        len(selected) + unread, name, dropped[0])
  files.check_ids(kept, places, "the format's `id`")
  return Comparisons(name, tuple(kept), tuple(dropped))
