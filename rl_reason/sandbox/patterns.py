"""Matches texts with a user's regular expression, in a worker: some take quadratic time or worse."""

import functools
import re


def matches(item: tuple[str, str]) -> bool:
  """Says whether a pattern matches a whole text; "." matches newlines too."""
  pattern, text = item
  return _compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern:
  return re.compile(pattern, re.DOTALL)
