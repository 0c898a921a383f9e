"""Reads the cells of a row, and says what is wrong with one.

A row may come from anywhere: whatever a cell holds, it is read or is a ValueError.
"""

from collections.abc import Mapping
from typing import Any

from rl_reason.config import naming


def value(row: Mapping[str, Any], column: str, *, null: bool = False) -> Any:
  """Returns the row's value in a column.

  Raises: ValueError where the column is missing, or null unless `null` allows it.
  """
  if column not in row:
    raise ValueError(
        f"there is no column {column!r}.{naming.did_you_mean(column, row)} The columns:"
        f" {', '.join(map(str, row))}.")
  if row[column] is None and not null:
    raise ValueError(f"column {column!r} is null, but the comparison needs it.")
  return row[column]


def text_of(row: Mapping[str, Any], column: str) -> str:
  """Returns the text in a column. Raises: ValueError as `value`, and for what is no text."""
  return _of_kind(row, column, str, "text")


def list_of(row: Mapping[str, Any], column: str) -> list[Any]:
  """Returns the list in a column. Raises: ValueError as `value`, and for what is no list."""
  return list(_of_kind(row, column, (list, tuple), "list"))


def _of_kind(row: Mapping[str, Any], column: str, kind: type | tuple[type, ...], noun: str) -> Any:
  given = value(row, column)
  if not isinstance(given, kind):
    raise ValueError(
        f"column {column!r} is {shown(given)}, and must be a {noun}: correct it, or name the column"
        f" of the {noun}.")
  return given


def texts_of(row: Mapping[str, Any], column: str) -> list[str]:
  """Returns the texts in a column, at least one. Raises: ValueError for anything else."""
  given = value(row, column)
  if not isinstance(given, (list, tuple)):
    raise ValueError(
        f"column {column!r} is {shown(given)}, and must be a text or a list of texts: correct it,"
        " or name the column of the texts.")
  if not given:
    raise ValueError(f"column {column!r} is an empty list: there is nothing to compare or judge.")
  for i, text in enumerate(given):
    if not isinstance(text, str):
      raise ValueError(f"entry {i} of column {column!r} is {shown(text)}, and must be a text.")
  return list(given)


def messages(row: Mapping[str, Any], column: str) -> tuple[dict[str, str], ...]:
  """Returns the chat in a column. Raises: ValueError for what is no chat."""
  given = value(row, column)
  if not is_messages(given):
    raise ValueError(
        f'column {column!r} is {shown(given)}, and must be a list of messages, {{"role": text,'
        ' "content": text}.')
  return tuple({"role": m["role"], "content": m["content"]} for m in given)


def shown(given: Any) -> str:
  """Returns the start of a value as Python writes it, and its kind."""
  text = repr(given)
  return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(given).__name__})"


def is_messages(given: Any) -> bool:
  """Says whether a column's value is a list of chat messages."""
  return isinstance(given, (list, tuple)) and bool(given) and all(
      isinstance(m, Mapping) and isinstance(m.get("role"), str)
      and isinstance(m.get("content"), str) for m in given)


_REQUIRED = object()


def at(entry: Any, path: str, default: Any = _REQUIRED) -> Any:
  """Follows a dotted path into mappings.

  Raises: ValueError where it leads nowhere, unless a default is given for a missing last name.
  """
  *names, last = path.split(".")
  for name in [*names, last]:
    if not isinstance(entry, Mapping) or name not in entry:
      if isinstance(entry, Mapping) and name == last and default is not _REQUIRED:
        return default
      raise ValueError(f"there is no {path!r} in {shown(entry)}.")
    entry = entry[name]
  return entry


def number(given):
  """Returns the number that a cell holds, also as text ("4").

  Returns None where the number is missing ("N/A", null, NaN).
  """
  try:
    found = float(given)
  except (TypeError, ValueError, OverflowError):
    return None
  return found if found == found else None  # NaN differs from itself.
