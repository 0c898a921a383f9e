"""Writes a config as JSON holds it, with honest words for what only Python can hold.

A function or class is written as its dotted path, at which another process finds it again; what has
none, and rows that were given in memory, are written as a description that stays the same in every
process. So a run that goes on with the same objects is known as the same run.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any

import ml_collections

from rl_reason.config import naming


def plain(value: Any) -> Any:
  """Returns a config, or a value of one, as plain data of JSON."""
  written = json.loads(ml_collections.ConfigDict({"value": _named(value)}).to_json_best_effort())
  return written["value"]


def _named(value: Any) -> Any:
  """Replaces things of Python's by their names."""
  if isinstance(value, (ml_collections.ConfigDict, Mapping)):
    return {k: f"<{rows_name(v)}{naming.FROM_PYTHON}" if k == "path" and is_rows(v) else _named(v)
            for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_named(v) for v in value]
  is_thing = callable(value) or dataclasses.is_dataclass(value)
  return naming.path_of(value) if is_thing else value


def is_rows(value: Any) -> bool:
  """Tells whether a value is rows in memory: a sequence of mappings from columns to values.

  A list is one, and so is a data set that has a length and takes indices.
  """
  if isinstance(value, (str, bytes, Mapping)) or not (
      hasattr(value, "__len__") and hasattr(value, "__getitem__")):
    return False
  try:
    return len(value) > 0 and isinstance(value[0], Mapping)
  except (KeyError, IndexError, TypeError):  # As of a table, which is indexed by columns.
    return False


def rows_name(rows: Any) -> str:
  """Names rows in memory by their number and a hash of what is in them."""
  digest = hashlib.blake2b(digest_size=6)
  for i in range(len(rows)):
    digest.update(json.dumps(rows[i], sort_keys=True, default=str).encode())
  return f"{len(rows)} rows {digest.hexdigest()}"
