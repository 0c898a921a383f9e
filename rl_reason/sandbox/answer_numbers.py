"""Compares numbers that are written out: exactly, or a long decimal with what it is rounded from.

Everything is relative to a number's size, so that no two are equal because they are small. Workers
import this module.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

# A decimal with this many places may stand for a longer value, rounded: 0.333333 for 1/3.
_ROUNDED_PLACES = 6
# What two writings of one float64 may differ by, relative: 0.1+0.2 is written 0.30000000000000004.
_FLOAT_NOISE = Fraction(1, 10**15)


@dataclasses.dataclass(frozen=True)
class Number:
  """Holds a number that is written out.

  value: exactly as written.
  places: decimal places after the point, or None where it is exact (an integer, a fraction).
  percent: whether % follows.
  """

  value: Fraction
  places: int | None = None
  percent: bool = False


def same_number(a: Number, b: Number) -> bool:
  # 50% is 50 and 0.5. Without a sign on either side 50 is not 0.5.
  if a.percent != b.percent:
    p, other = (a, b) if a.percent else (b, a)
    shifted = Number(p.value / 100, None if p.places is None else p.places + 2)
    plain = Number(p.value, p.places)
    return _close(plain, other) or _close(shifted, other)
  return _close(a, b)


def _close(a: Number, b: Number) -> bool:
  """Compares exactly, but a long decimal with what it is the rounding of."""
  if a.value == b.value:
    return True
  if not a.value or not b.value or (a.places is None and b.places is None):
    return False
  difference = abs(a.value - b.value)
  if difference <= _FLOAT_NOISE * min(abs(a.value), abs(b.value)):
    return True
  return (
    rounds(a, b.value)
    and not _terminates(b.value, a.places)
    or (rounds(b, a.value) and not _terminates(a.value, b.places))
  )


def rounds(decimal: Number, value: Fraction) -> bool:
  """Says whether a decimal of enough places and digits is the rounding of a value."""
  if decimal.places is None or decimal.places < _ROUNDED_PLACES:
    return False
  unit = Fraction(1, 10) ** decimal.places
  # Relative: a decimal with few digits says little about a small value.
  if abs(decimal.value) < unit * 10 ** (_ROUNDED_PLACES - 2):
    return False
  error = abs(decimal.value - value)
  # From 12 digits on also cut off: 0.6666666666666666.
  return error * 2 <= unit or (abs(decimal.value) >= unit * 10**12 and error <= unit)


def _terminates(value: Fraction, places: int | None) -> bool:
  """Says whether a decimal of that many places could have written the value exactly."""
  return places is not None and (value * Fraction(10) ** places).denominator == 1
