"""Reads verdicts and ratings from a judge's text."""

from __future__ import annotations

from collections.abc import Sequence
import re
from typing import Any

VERDICT = r"\[\[([^\[\]]{1,20})\]\]"  # [[...]]


def parse_verdict(
    text: Any, labels: Sequence[str], *, pattern: str = VERDICT, tail: int = 80) -> str | None:
  """Finds the one label that the end of a judge's text names, or None: an abstention.

  It is strict: among the matches that lie in the last `tail` characters, whitespace at the end
  aside, exactly one label must be named, once or several times, and nothing else. A judge that
  names both, none or another one has not decided.

  Source: RM-R1's verdict window, Chen et al. 2025, arXiv:2505.02387.
  """
  if not isinstance(text, str):
    return None
  named = {m.group(1).strip() for m in re.finditer(pattern, text.rstrip()[-tail:])}
  return named.pop() if len(named) == 1 and named <= set(labels) else None


def parse_rating(
    text: Any, low: float, high: float, *, pattern: str = VERDICT, tail: int = 80,
) -> float | None:
  """Finds the one number in [low, high] that the end of a judge's text names, or None.

  It is as strict as `parse_verdict`.
  """
  if not isinstance(text, str):
    return None
  named = {m.group(1).strip() for m in re.finditer(pattern, text.rstrip()[-tail:])}
  # ASCII digits only: float() would also read "1_0", "nan" and other scripts' digits.
  if len(named) != 1 or not re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,6})?", only := named.pop()):
    return None
  return float(only) if low <= float(only) <= high else None
