"""Reads rows of JSON Lines and Parquet files: column -> value, with the place of each row.

    for place, row in read(file): ...        # ("a.jsonl:3", {...}), or the BadRow that is there

A damaged file is an error that names it. A row that cannot be read in a whole file is a BadRow, so
that a caller may drop it: bad rows can be dropped, bad files cannot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import glob as globbing
import gzip
import os
import re
from typing import Any
import zlib

from rl_reason.config import json_text, naming
from rl_reason.config.recorded import is_rows, rows_name

Row = Mapping[str, Any]
# Where rows come from: a file, a glob, a list of these; or the rows themselves.
Path = str | Sequence[str] | Sequence[Row]


class BadRow(ValueError):
  """Says why a row of a whole file cannot be read, and where it is."""


def read(file: str) -> Iterator[tuple[str, Row | BadRow]]:
  """Reads the rows of a file: of Parquet for names ending in .parquet, else of JSON Lines."""
  return (read_parquet if file.endswith(".parquet") else read_jsonl)(file)


def read_jsonl(file: str) -> Iterator[tuple[str, Row | BadRow]]:
  """Reads ("file:line", columns) of each line that is not blank, of .jsonl or .jsonl.gz.

  Raises: ValueError for what is no whole gzip file, or no UTF-8 text.
  """
  opener = gzip.open if file.endswith(".gz") else open
  try:
    with opener(file, "rb") as lines:
      for number, line in enumerate(lines, start=1):
        place = f"{file}:{number}"
        try:
          text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
          raise ValueError(
              f"{place} is not UTF-8 text ({error}): the file is damaged, or in another encoding."
              " Fetch or convert it again; compressed files need a name ending in .gz.") from error
        if text.strip():
          yield place, _object(text.rstrip("\r\n"), place)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(
        f"{file} is not a whole gzip file ({error}). Fetch it again, or drop .gz from its"
        " name.") from error


def _object(text: str, place: str) -> Row | BadRow:
  """Parses the JSON object in a line."""
  try:
    row = json_text.parse(text)
  except ValueError as error:
    return BadRow(
        f"{place}: not a JSON object: {error} of {text[:120]!r}. JSON Lines holds one whole object a"
        " line: correct it, or remove the line.")
  if isinstance(row, dict):
    return row
  return BadRow(
      f"{place}: a line must hold a JSON object (column -> value), got {type(row).__name__}:"
      f" {text[:120]!r}. Correct it, or remove the line.")


def read_parquet(file: str) -> Iterator[tuple[str, Row | BadRow]]:
  """Reads ("file row n", columns) of each row, counted from 0.

  Raises: ValueError for what is no Parquet file, and for a damaged one.
  """
  # Imported here, not above: it takes half a second, and only readers of Parquet need it.
  import pyarrow.parquet as pq
  number = 0
  try:
    # Pages are checked against their sums, where the writer stored some.
    table = pq.ParquetFile(file, page_checksum_verification=True)
    for batch in table.iter_batches():
      for row in batch.to_pylist():
        yield f"{file} row {number}", row
        number += 1
  # pyarrow has a dozen kinds of errors for damage, some of them bare (OSError, KeyError, ValueError,
  # UnicodeDecodeError); none of them says which file it was.
  except Exception as error:
    raise ValueError(
        f"{file} is not a Parquet file, or a damaged one: reading it failed after {number} rows"
        f" ({type(error).__name__}: {_one_line(error)}). Fetch it again.") from error
  if number != table.metadata.num_rows:
    raise ValueError(
        f"{file} is damaged: it has {number} rows, and says that it has {table.metadata.num_rows}."
        " Fetch it again.")


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:300].rstrip(".")


def keep(row: Row, where: Mapping[str, Any], place: str) -> bool:
  """Says whether a row has one of the allowed values in every column of `where`.

  Args:
    row: column -> value.
    where: column -> allowed value, or a collection of them.
    place: where the row is, for the error.

  Raises: ValueError where the row lacks a column.
  """
  for column, allowed in where.items():
    if column not in row:
      raise ValueError(
          f"{place} has no column {column!r}, which `where`"
          f" names.{naming.did_you_mean(column, row)} Its columns:"
          f" {', '.join(map(str, row))}.")
    # Compared one by one: a row's value may be a list, which no set can be asked for.
    if not any(row[column] == value for value in (
        allowed if isinstance(allowed, (list, tuple, set, frozenset)) else (allowed,))):
      return False
  return True


def row_range(rows: str, count: int) -> range:
  """Returns the positions that a slice such as "0:500", "-100:" or "90%:" selects out of `count`.

  "" selects all. Percentages round down: ":90%" and "90%:" meet without overlap for every count.

  Raises: ValueError for what is no such slice.
  """
  if not rows:
    return range(count)
  match = re.fullmatch(
      r"\s*(?:(-?\d+)|(\d+(?:\.\d+)?)%)?\s*:\s*(?:(-?\d+)|(\d+(?:\.\d+)?)%)?\s*",
      rows) if isinstance(rows, str) and len(rows) < 100 else None
  if match is None:
    raise ValueError(
        f"rows must be a slice such as '0:500', '-100:', ':90%' or '90%:', got {rows!r}.")
  bounds = []
  for number, percent in (match.group(1, 2), match.group(3, 4)):
    if percent is not None and float(percent) > 100:
      raise ValueError(f"rows={rows!r}: a percentage must be in [0, 100].")
    # The 1e-9: 29% of 100 is 28.999999999999996 in floating point.
    bounds.append(int(number) if number is not None else
                  int(float(percent) * count / 100 + 1e-9) if percent is not None else None)
  return range(count)[slice(*bounds)]


def select_rows(
    path: Path, *, where: Mapping[str, Any] | None, rows: str, max_rows: int | None,
    read: Callable[[str], Iterator[tuple[str, Row | BadRow]]] = read, filters: str = "",
    wanted: Callable[[str, Row], bool] = lambda place, row: True,
    check_first: Callable[[str, Row], None] = lambda place, row: None,
    drop: Callable[[BadRow], None] | None = None,
) -> tuple[str, list[tuple[int, str, Row]]]:
  """Selects rows of files.

  Args:
    path, where, rows, max_rows: as in `files.jsonl`.
    read: file -> its rows with their places.
    filters: words for the message about no rows left.
    wanted: further rows to keep, asked after `where`.
    check_first: is shown the first row of each file.
    drop: is given each row that cannot be read, which is then left out; None: such a row is an
      error.

  Returns: (a name for the files, the selected rows as (number, "file:line", columns)).
  Raises: FileNotFoundError; ValueError naming file and row.
  """
  where = dict(where or {})
  row_range(rows, 0)  # Raises for a malformed slice before anything is read.
  if max_rows is not None and max_rows < 1:
    raise ValueError(f"max_rows must be at least 1, or None for all rows, got {max_rows}.")
  # Rows in memory are one file, which is read.
  given = is_rows(path)
  paths = [rows_name(path)] if given else expand(path)
  # Read all files and keep what passes the filters. Numbers count every row, so that a row's id
  # does not depend on the filters.
  kept, count, unread = [], 0, []
  for file in paths:
    in_file = 0
    for place, row in _given(path) if given else read(file):
      index, count, in_file = count, count + 1, in_file + 1
      if isinstance(row, BadRow):
        if drop is None:
          raise row
        unread.append(row)
        drop(row)
        continue
      if in_file == 1:
        check_first(place, row)
      if keep(row, where, place) and wanted(place, row):
        kept.append((index, place, row))
    if not in_file:
      raise ValueError(f"{file} is empty: it holds no rows. Was it written to the end?")
  # Take the slice of what is kept.
  selected = row_range(rows, len(kept))[:max_rows]
  if not len(selected):
    raise ValueError(
        f"No rows are left of the {count} in {files_name(paths)}: where={where}{filters} keep"
        f" {len(kept)}, of which"
        f" rows={rows!r} selects none. Widen them."
        + (f" {len(unread)} rows cannot be read; the first: {unread[0]}" if unread else ""))
  return files_name(paths), [kept[i] for i in selected]


def _given(rows: Sequence[Row]) -> Iterator[tuple[str, Row | BadRow]]:
  """Yields ("row n", columns) of rows in memory, counted from 0."""
  for number in range(len(rows)):
    row, place = rows[number], f"row {number}"
    yield place, dict(row) if isinstance(row, Mapping) else BadRow(
        f"{place} is {str(row)[:120]!r}, and must map columns to values, as the rows before do.")


def expand(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
  """Lists the files of a path, a glob or a list of these. Raises: FileNotFoundError, ValueError."""
  naming.check_from_python("path", path)
  given = [path] if isinstance(path, (str, os.PathLike)) else path
  if not isinstance(given, Sequence) or not all(isinstance(p, (str, os.PathLike)) for p in given):
    raise ValueError(
        "path must be a file, a glob or a list of these, or a list of rows that map columns to"
        f" values, got {str(path)[:200]!r}.")
  if not given:
    raise ValueError("path is an empty list: name at least one file.")
  paths = []
  for item in map(os.path.expanduser, map(os.fspath, given)):
    # A name that exists is taken literally, brackets and all.
    names = [item] if os.path.isfile(item) else sorted(globbing.glob(item, recursive=True))
    found = [name for name in names if os.path.isfile(name)]
    if not found:
      hint = "it is a directory; name its files, e.g. with /*.jsonl" if os.path.isdir(item) else (
          f"relative paths start at {os.getcwd()}")
      raise FileNotFoundError(f"No file matches path {item!r}: {hint}.")
    paths.extend(found)
  return paths


def files_name(paths: Sequence[str]) -> str:
  """Names the files of a source: the first one, and how many others there are."""
  return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
