r"""Compares mathematics by what it is worth: constants, functions, matrices, sets.

    expression    LaTeX -> a sympy value with exact numbers
    same_values   whether two of them are equal, relative to their size

Only worker processes import this module: it brings sympy and math-verify's parser.
"""

from __future__ import annotations

from fractions import Fraction
import functools
import itertools
import re

import latex2sympy2_extended as latex
import sympy
from sympy.core.function import AppliedUndef

from rl_reason.sandbox.answer_numbers import Number, rounds

_DIGITS = 40
# The parser takes exponential time in nested braces; no answer has as many.
_MAX_DEPTH = 25
# Where functions are compared: reals of both signs, integers for sums and factorials.
_POINTS = [
  Fraction(n, d)
  for n, d in (
    (17, 7),
    (-23, 9),
    (5, 1),
    (41, 13),
    (-7, 11),
    (2, 1),
    (3, 17),
    (4, 1),
    (-89, 12),
    (3, 1),
    (61, 3),
    (7, 1),
  )
]


# --- Reading


_DECIMAL = re.compile(r"(?<![0-9A-Za-z_.])([0-9]{0,400})\.([0-9]{1,400})(?![0-9.])")


@functools.lru_cache(maxsize=1024)
def expression(text: str):
  """Parses LaTeX to a sympy value with exact numbers, or None."""
  depths = itertools.accumulate({"(": 1, "{": 1, ")": -1, "}": -1}.get(c, 0) for c in text)
  if max(depths, default=0) > _MAX_DEPTH:
    return None
  text = re.sub(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\(|\{)?\s*[0-9.]+)\s*\^\{\\circ\}",
    r"\1\\cdot\\frac{\\pi}{180}",
    text,
  )
  text = text.replace(r"^{\circ}", "")
  # The parser drops primes.
  text = re.sub(
    r"(?<![\\_A-Za-z])([A-Za-z])('+)", lambda m: m[1] + "_{" + "prime" * len(m[2]) + "}", text
  )
  # Floats would be cut to 15 digits.
  text = _DECIMAL.sub(_decimal_fraction, text)
  config = latex.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
  )
  try:
    value = latex.latex2sympy(text, normalization_config=config)
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return None
  if isinstance(value, sympy.MatrixBase | sympy.MatrixExpr):
    value = value.doit()
    return (
      sympy.ImmutableMatrix(value.applyfunc(_exact))
      if isinstance(value, sympy.MatrixBase)
      else value
    )
  return _exact(value) if isinstance(value, sympy.Basic) else None


def _decimal_fraction(match: re.Match) -> str:
  value = Fraction(int(match[1] + match[2]), 10 ** len(match[2]))
  fraction = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
  return f"{{{fraction}}}" if match.string[: match.start()].endswith("^") else f"({fraction})"


def _exact(value):
  """Writes floats as the fractions they were written as, and i as the imaginary unit."""
  floats = {f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float)}
  i = sympy.Symbol("i")
  swaps = floats | ({i: sympy.I} if i in value.free_symbols else {})
  # The cube root of -8 is -2.
  swaps |= {
    p: (-1) ** p.exp.p * (-p.base) ** p.exp
    for p in value.atoms(sympy.Pow)
    if p.base.is_Number and p.base.is_negative and p.exp.is_Rational and p.exp.q > 1 and p.exp.q % 2
  }
  return value.xreplace(swaps) if swaps else value


# --- Constants


def same_values(x, y, written: Number | None) -> bool:
  """Compares two sympy values: matrices by elements, constants and functions by their values."""
  if x == y:
    return not x.has(sympy.nan, sympy.zoo) if isinstance(x, sympy.Basic) else True
  if isinstance(x, sympy.MatrixBase) or isinstance(y, sympy.MatrixBase):
    return (
      isinstance(x, sympy.MatrixBase)
      and isinstance(y, sympy.MatrixBase)
      and x.shape == y.shape
      and all(same_values(a, b, None) for a, b in zip(x, y))
    )
  if not isinstance(x, sympy.Expr) or not isinstance(y, sympy.Expr):
    return False
  symbols = x.free_symbols | y.free_symbols
  if symbols:
    return _same_function(x, y, symbols)
  return _same_constant(x, y, written)


def _same_constant(x, y, written: Number | None) -> bool:
  a, b = _evaluated(x), _evaluated(y)
  if a is None or b is None:
    return _infinite(x, y)
  if not _near(a, b):
    # Evaluation of what is exactly 0 leaves noise.
    if min(abs(a), abs(b)) == 0 and max(abs(a), abs(b)) < sympy.Rational(1, 10) ** (_DIGITS - 10):
      return bool(sympy.simplify(x - y) == 0)
    if written is None or written.places is None or not a.is_real or not b.is_real:
      return False
    decimal = sympy.Rational(written.value.numerator, written.value.denominator)
    exact = [v for v in (a, b) if not _near(v, decimal)]
    return len(exact) == 1 and rounds(written, _fraction(exact[0]))
  # 40 digits agree. Numbers that can be exact must be.
  exact = x.doit(), y.doit()
  if all(isinstance(v, sympy.Rational) for v in exact):
    return exact[0] == exact[1]
  return _near(*(v.evalf(3 * _DIGITS) for v in exact), digits=3 * _DIGITS)


def _infinite(x, y) -> bool:
  x, y = x.doit(), y.doit()
  return x == y and x in (sympy.oo, -sympy.oo)


def _evaluated(value):
  """Computes 40 digits of a constant, or None where it has no finite value."""
  try:
    number = value.evalf(_DIGITS)
    if not isinstance(number, sympy.Number) and not number.is_number:
      number = value.doit().evalf(_DIGITS)
    if number.has(sympy.nan, sympy.zoo, sympy.oo) or not all(
      isinstance(p, sympy.Number) for p in number.as_real_imag()
    ):
      return None
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return None
  return number


def _near(a, b, digits: int = _DIGITS) -> bool:
  """Compares relative to the larger one; a part far below the other is a rounding error."""
  size = max(abs(a), abs(b))
  return size == 0 or bool(abs(a - b) <= size * sympy.Rational(1, 10) ** (digits - 10))


def _fraction(number) -> Fraction:
  value = sympy.Rational(number)
  return Fraction(int(value.p), int(value.q))


def are_near(found, others) -> bool:
  """Says of values that math-verify calls equal that numbers among them are near, relatively."""
  for x in found:
    for y in others:
      if isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr) and x.is_number and y.is_number:
        a, b = _evaluated(x), _evaluated(y)
        size = 0 if a is None or b is None else max(abs(a), abs(b))
        if size and not any(abs(a - c) <= size * 1e-6 for c in (b, b / 100, b * 100)):
          return False
  return True


# --- Functions


def _same_function(x, y, symbols) -> bool:
  """Compares functions at points where both are real; complex values decide if no point is."""
  agreed = 0
  unreal = 0
  for at, a, b in _values_at(x, y, symbols):
    if not (a.is_real and b.is_real) and not x.has(sympy.I) and not y.has(sympy.I):
      unreal += 1
      continue
    if not _near(a, b):
      return False
    agreed += 1
    if agreed == 5:
      break
  if agreed >= 2:
    return _exactly(x, y)
  return bool(sympy.simplify(x - y) == 0)


def _values_at(x, y, symbols):
  """Yields both values, at points where both are real; or where they are finite, if none is."""
  unknown = sorted(x.atoms(AppliedUndef) | y.atoms(AppliedUndef), key=str)
  stands = {f: sympy.Dummy() for f in unknown}
  x, y = x.xreplace(stands), y.xreplace(stands)
  names = sorted(x.free_symbols | y.free_symbols, key=str)
  roots = {
    p.base
    for p in x.atoms(sympy.Pow) | y.atoms(sympy.Pow)
    if p.exp.is_Rational and not p.exp.is_Integer and p.base.free_symbols
  }
  # A sum to n has a value where n is whole.
  summed = x.has(sympy.Sum, sympy.Product) or y.has(sympy.Sum, sympy.Product)
  points = [p for p in _POINTS if not summed or (p.denominator == 1 and p > 0)]
  for shift in range(len(points)):
    # Each symbol gets a point of its own.
    at = {
      s: sympy.Rational(p.numerator, p.denominator)
      for s, p in zip(
        names,
        (
          points[(shift * (1 + i) + 5 * i) % len(points)] + i // len(points)
          for i in range(len(names))
        ),
      )
    }
    # Where a root is not real the functions are not asked for.
    if any(r.subs(at).is_negative for r in roots):
      continue
    a, b = _evaluated(x.subs(at)), _evaluated(y.subs(at))
    if a is not None and b is not None:
      yield at, a, b


def _exactly(x, y) -> bool:
  """Rules out a difference below 40 digits, where the functions are rational."""
  names = sorted(x.free_symbols | y.free_symbols, key=str)
  if not names or not (x.is_rational_function(*names) and y.is_rational_function(*names)):
    return True
  at = {s: sympy.Integer(101 + 7 * i) for i, s in enumerate(names)}
  a, b = x.subs(at).doit(), y.subs(at).doit()
  return a == b if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational) else True


def are_proportional(x: sympy.Expr, y: sympy.Expr, *, signed: bool) -> bool:
  """Says whether one function is a constant times the other; signed: a positive constant."""
  if not x.free_symbols or x.free_symbols != y.free_symbols:
    return False
  ratio = None
  agreed = 0
  for _, a, b in _values_at(x, y, x.free_symbols):
    if not a.is_real or not b.is_real:
      continue
    if a == 0 or b == 0:
      if a != b:
        return False
      continue
    if ratio is None:
      ratio = a / b
    elif not _near(a, ratio * b):
      return False
    agreed += 1
    if agreed == 5:
      break
  return agreed >= 2 and bool(not signed or ratio > 0)


# --- Sets


def same_sets(x, y) -> bool:
  """Compares sets: intervals by their ends, others by what only one of them holds."""
  if x == y:
    return True
  if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
    return (
      (x.left_open, x.right_open) == (y.left_open, y.right_open)
      and same_values(x.start, y.start, None)
      and same_values(x.end, y.end, None)
    )
  if isinstance(x, sympy.FiniteSet) and isinstance(y, sympy.FiniteSet):
    same = [[same_values(a, b, None) for b in y.args] for a in x.args]
    return len(x) == len(y) and all(map(any, same))
  try:
    return x.symmetric_difference(y).is_empty is True
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return False
