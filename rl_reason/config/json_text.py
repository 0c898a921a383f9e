"""Parses JSON that others wrote, with one kind of error for all that can be wrong with it."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

# Levels of lists and objects inside one another. Python's parser ends in a RecursionError at about
# a thousand, and whatever later walks the value (json.dumps, copy.deepcopy) does at fewer.
MAX_DEPTH = 100


def parse(text: str | bytes) -> Any:
  """Parses one JSON value.

  Raises: ValueError for text that is no JSON, that nests deeper than MAX_DEPTH, or that has an
    integer of more digits than Python reads (4300). It names the cause; the caller, who knows the
    file, adds its name and the cure.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode("utf-8")
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
  except RecursionError as error:
    raise ValueError(f"lists or objects nest deeper than {MAX_DEPTH} levels") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"not UTF-8 text: {error}") from error
  except ValueError as error:  # Only the limit of int() is left.
    raise ValueError("an integer of more than 4300 digits: write such a number as text") from error
  # Counting brackets is cheap, and few texts have enough of them to be deep.
  if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
    raise ValueError(f"lists or objects nest deeper than {MAX_DEPTH} levels")
  return value


def read_object(file: Path) -> dict[str, Any]:
  """Reads the JSON object in a file.

  Raises: ValueError naming the file, where it holds no JSON or another value than an object.
  """
  try:
    value = parse(file.read_bytes())
  except ValueError as error:
    raise ValueError(
        f"{file} is not valid JSON: it was damaged or cut short, or is not JSON at all ({error})."
        " Fetch it again.") from error
  if not isinstance(value, dict):
    raise ValueError(
        f"{file} holds a JSON {type(value).__name__}, not an object: it is another kind of file."
        " Fetch it again.")
  return value


def _depth(value: Any) -> int:
  """Counts the levels of lists and objects inside one another, without recursion."""
  depth, level = 0, [value]
  while level := [x for x in level if isinstance(x, (list, Mapping))]:
    depth += 1
    level = [y for x in level for y in (x.values() if isinstance(x, Mapping) else x)]
  return depth
