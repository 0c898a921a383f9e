r"""Compares answers that were read: numbers exactly or as rounded, expressions by their values.

    equal(reference, answer)     both from `answer_reading.read`

Numbers are compared relative to their size, so that no two are equal because they are small.
Only worker processes import this module: it brings sympy and math-verify's parser.
"""

from __future__ import annotations

from fractions import Fraction
import functools
import re

import latex2sympy2_extended as latex
import sympy
from sympy.core.function import AppliedUndef

from rl_reason.sandbox.answer_reading import Answer, DOTS, Group, Number, Side, Statement

# A decimal with this many places may stand for a longer value, rounded: 0.333333 for 1/3.
_ROUNDED_PLACES = 6
# What two writings of one float64 may differ by, relative: 0.1+0.2 is written 0.30000000000000004.
_FLOAT_NOISE = Fraction(1, 10**15)
_DIGITS = 40
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


# --- Answers and statements


def equal(reference: Answer, answer: Answer) -> bool:
  """Says whether an answer is the reference.

  Statements are compared in any order, each with one of the other side's; with dots among them in
  their order. All must be found: an answer of which a part cannot be read is not compared by the
  rest.
  """
  wanted, given = reference.statements, answer.statements
  if not wanted or not given:
    return False
  if reference.key == answer.key:
    return True
  if reference.is_ordered or answer.is_ordered:
    return len(wanted) == len(given) and all(map(_same_in_order, wanted, given))
  if len(wanted) == 1 and len(given) == 1:
    return _same(wanted[0], given[0])
  if len(wanted) == 1:
    return _list_is_group(wanted[0], given)
  if len(given) == 1:
    return (_decimal_comma(wanted, given[0]) or _group_is_set(wanted, given[0])
            or _solutions(wanted, given) or _union_is_set(wanted, given[0]))
  return _same_set(wanted, given)


def _same_set(wanted, given) -> bool:
  """Each is equal to one of the others, in both directions: repeated values count once."""
  pairs = [[_same(w, g) for g in given] for w in wanted]
  if all(map(any, pairs)) and all(map(any, zip(*pairs))):
    return True
  return _solutions(wanted, given)


def _solutions(wanted, given) -> bool:
  """Says whether p=5, q=2, p=7, q=2 are the tuples (5,2), (7,2)."""
  names = [w.sides[0].key for w in wanted if len(w.relations) == 1 and w.value is not None]
  if len(names) != len(wanted) or len(wanted) <= len(given) or len(wanted) % len(given):
    return False
  size = len(wanted) // len(given)
  if any(names[i] != names[i % size] for i in range(len(names))):
    return False
  tuples = [wanted[i:i + size] for i in range(0, len(wanted), size)]
  for g in given:
    # (q, p) = (2, 5)
    said = g.sides[0].group if g.relations else None
    if said is not None and [p.key for p in said.parts] != names[:size]:
      return False
  groups = [g.value.group if g.value is not None else None for g in given]
  if any(g is None or len(g.parts) != size for g in groups):
    return False
  same = [[all(_same_side(w.value, p.statements[0].value) for w, p in zip(t, g.parts) if p.statements[0].value)
           for g in groups] for t in tuples]
  return all(map(any, same)) and all(map(any, zip(*same)))


def _same_in_order(wanted: Statement, given: Statement) -> bool:
  if any(DOTS in s.text for s in (*wanted.sides, *given.sides)):
    return wanted.key == given.key or _same_terms(wanted, given)
  return _same(wanted, given)


def _same_terms(wanted: Statement, given: Statement) -> bool:
  """Compares 1:2:..., 1 < 2 < ..., 1+2+...+n term by term."""
  split = lambda s: re.split(r"(\\ldots|[:+])", s.key)
  a, b = split(wanted), split(given)
  return len(a) == len(b) and all(
      x == y or (x not in (DOTS, ":", "+") and _same_side(Side(x), Side(y))) for x, y in zip(a, b))


def _list_is_group(wanted: Statement, given) -> bool:
  """Says whether 1, 3 is the reference (1, 3), or the set {1, 3}."""
  side = wanted.value
  group = side.group if side is not None else None
  if group is None:
    return False
  if group.brackets[0] == r"\{":
    return _same_set([p.statements[0] for p in group.parts], given)
  return (group.brackets == ("(", ")") and len(given) == len(group.parts)
          and all(_same(p.statements[0], g) for p, g in zip(group.parts, given)))


def _group_is_set(wanted, given: Statement) -> bool:
  side = given.value
  group = side.group if side is not None else None
  return (group is not None and group.brackets[0] == r"\{"
          and _same_set(wanted, [p.statements[0] for p in group.parts]))


def _union_is_set(wanted, given: Statement) -> bool:
  """Says whether x<1 or x>3 is the set (-oo, 1) u (3, oo)."""
  if given.relations and given.value is None:
    return False
  sets = [_solution_set(w) for w in wanted if w.relations and not w.is_equation]
  value = _as_set(given.value)
  if value is None or len(sets) != len(wanted) or None in sets:
    return False
  return _same_sets(functools.reduce(lambda p, q: p.union(q), sets), value)


def _decimal_comma(wanted, given: Statement) -> bool:
  """Says whether a reference 1,22 is the answer 1.22."""
  texts = [s.sides[0].text for s in wanted]
  if len(texts) != 2 or not all(re.fullmatch(r"-?[0-9]+", t) for t in texts) or given.value is None:
    return False
  number = given.value.number
  # "1,2" is a list more often.
  if number is None or number.places is None or (len(texts[1]) < 2 and texts[0] != "0"):
    return False
  return _same_side(Side(".".join(texts)), given.value)


def _same(wanted: Statement, given: Statement) -> bool:
  """Compares two statements."""
  if wanted.key == given.key:
    return True
  if not wanted.relations and not given.relations:
    return _same_side(wanted.sides[0], given.sides[0])
  if wanted.is_equation and given.is_equation:
    return _same_equation(wanted, given)
  if given.is_equation or wanted.is_equation or not (wanted.relations and given.relations):
    return _same_value(wanted, given)
  return _same_inequality(wanted, given)


def _same_value(wanted: Statement, given: Statement) -> bool:
  r"""Compares a statement with a value: x=7 with 7, 0<x<1 with (0, 1), 3+4=7 with 7."""
  sides = []
  for statement in (wanted, given):
    side = statement.value
    if side is None and statement.is_equation:
      # Without a name an equation of numbers has a value if it is true.
      last = statement.sides[-1]
      true = last.text and not _symbols(last) and all(_same_side(s, last) for s in statement.sides[:-1])
      # 1 \text{ ft} = 12 \text{ in}
      converted = r"\text{" in statement.sides[0].text and statement.sides[0].number and last.number
      side = last if true or converted else None
      if side is None:
        return False
    sides.append(side)
  a, b = sides
  if a is not None and b is not None:
    return _same_side(a, b)
  # An inequality and a set.
  sets = [_solution_set(s) if side is None else _as_set(side) for s, side in zip((wanted, given), sides)]
  return None not in sets and _same_sets(*sets)


def _same_equation(wanted: Statement, given: Statement) -> bool:
  a, b = wanted.value, given.value
  if a is not None and b is not None:
    name, other = wanted.sides[0].key, given.sides[0].key
    if name == other or (re.sub(r"\(\w\)", "", name) == re.sub(r"\(\w\)", "", other) and not _symbols(a) | _symbols(b)):
      return _same_side(a, b)
    if wanted.sides[0].group and given.sides[0].group:
      return False
  if len(wanted.sides) != 2 or len(given.sides) != 2:
    return False
  return _proportional(wanted, given, signed=False)


def _same_inequality(wanted: Statement, given: Statement) -> bool:
  """Compares inequalities link by link, then by their solutions."""
  # \ge 2, of whatever was asked for.
  if not wanted.sides[0].text or not given.sides[0].text:
    return (len(wanted.sides) == 2 and wanted.relations == given.relations
            and _same_side(wanted.sides[1], given.sides[1]))
  links, others = _links(wanted), _links(given)
  if len(links) == len(others):
    statements = [[Statement((Side(a), Side(b)), (r,)) for a, r, b in row] for row in (links, others)]
    same = [[w.relations == g.relations and _proportional(w, g, signed=w.relations[0] != r"\ne")
             for g in statements[1]] for w in statements[0]]
    if all(map(any, same)) and all(map(any, zip(*same))):
      return True
  sets = [_solution_set(wanted), _solution_set(given)]
  return None not in sets and _same_sets(*sets)


def _links(statement: Statement) -> list[tuple[str, str, str]]:
  """Lists a chain's links as (smaller side, relation, larger side)."""
  links = []
  for left, relation, right in zip(statement.sides, statement.relations, statement.sides[1:]):
    a, b = left.bare, right.bare
    if relation in (">", r"\ge"):
      a, b, relation = b, a, _FLIPPED[relation]
    links.append((a, relation, b))
  return links


# --- Sides


def _same_side(wanted: Side, given: Side) -> bool:
  """Compares two sides: as text, as written numbers, as groups, as expressions."""
  if not wanted.text or not given.text:
    return False
  if wanted.half_day and given.half_day and wanted.half_day != given.half_day:
    return False
  if wanted.key == given.key:
    return True
  # In a base: the digits are the answer, not their value.
  if wanted.base or given.base:
    return wanted.base == given.base
  if wanted.number and given.number:
    return _same_number(wanted.number, given.number)
  if wanted.ratio and given.ratio:
    return _same_ratio(wanted, given)
  if wanted.group or given.group:
    return _same_group(wanted, given)
  return _same_expression(wanted, given)


def _same_number(a: Number, b: Number) -> bool:
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
  return _rounds(a, b.value) and not _terminates(b.value, a.places) or (
      _rounds(b, a.value) and not _terminates(a.value, b.places))


def _rounds(decimal: Number, value: Fraction) -> bool:
  """Says whether a decimal of enough places and digits is the rounding of a value."""
  if decimal.places is None or decimal.places < _ROUNDED_PLACES:
    return False
  unit = Fraction(1, 10)**decimal.places
  # Relative: a decimal with few digits says little about a small value.
  if abs(decimal.value) < unit * 10**(_ROUNDED_PLACES - 2):
    return False
  error = abs(decimal.value - value)
  # From 12 digits on also cut off: 0.6666666666666666.
  return error * 2 <= unit or (abs(decimal.value) >= unit * 10**12 and error <= unit)


def _terminates(value: Fraction, places: int | None) -> bool:
  """Says whether a decimal of that many places could have written the value exactly."""
  return places is not None and (value * Fraction(10)**places).denominator == 1


def _same_ratio(wanted: Side, given: Side) -> bool:
  a, b = wanted.ratio, given.ratio
  if len(a) != len(b):
    return False
  clock = lambda parts: len(parts) == 2 and re.fullmatch(r"\d{1,2}", parts[0].text) and re.fullmatch(r"[0-5]\d", parts[1].text)
  if clock(a) and clock(b):
    return [int(p.text) for p in a] == [int(p.text) for p in b]
  numbers = [p.number for p in (*a, *b)]
  if None in numbers:
    return all(map(_same_side, a, b))
  x, y = [n.value for n in numbers[:len(a)]], [n.value for n in numbers[len(a):]]
  return any(x) and any(y) and all(x[i] * y[0] == x[0] * y[i] for i in range(len(x))) and bool(x[0]) == bool(y[0])


def _same_group(wanted: Side, given: Side) -> bool:
  """Compares tuples part by part, sets in any order, intervals also with expressions of sets."""
  a, b = wanted.group, given.group
  if a is not None and b is not None:
    if a.brackets != b.brackets and r"\{" in (a.brackets[0], b.brackets[0]):
      return False
    if r"\{" == a.brackets[0]:
      return _same_set([p.statements[0] for p in a.parts], [p.statements[0] for p in b.parts])
    return (_kind(a) == _kind(b) and len(a.parts) == len(b.parts)
            and all(equal(p, q) for p, q in zip(a.parts, b.parts)))
  sets = _as_set(wanted), _as_set(given)
  return None not in sets and _same_sets(*sets)


def _kind(group: Group) -> tuple[str, str]:
  return ("(", ")") if group.brackets == (r"\langle", r"\rangle") else group.brackets


# --- Expressions


@functools.lru_cache(maxsize=1024)
def _expression(text: str):
  """Parses LaTeX to a sympy value with exact numbers, or None."""
  text = re.sub(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\(|\{)?\s*[0-9.]+)\s*\^\{\\circ\}", r"\1\\cdot\\frac{\\pi}{180}", text)
  text = text.replace(r"^{\circ}", "")
  # Floats would be cut to 15 digits.
  text = _DECIMAL.sub(_decimal_fraction, text)
  config = latex.NormalizationConfig(
      basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
  try:
    value = latex.latex2sympy(text, normalization_config=config)
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return None
  if isinstance(value, sympy.MatrixBase | sympy.MatrixExpr):
    value = value.doit()
    return sympy.ImmutableMatrix(value.applyfunc(_exact)) if isinstance(value, sympy.MatrixBase) else value
  return _exact(value) if isinstance(value, sympy.Basic) else None


_DECIMAL = re.compile(r"(?<![0-9A-Za-z_.])([0-9]{0,400})\.([0-9]{1,400})(?![0-9.])")


def _decimal_fraction(match: re.Match) -> str:
  value = Fraction(int(match[1] + match[2]), 10**len(match[2]))
  fraction = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
  return f"{{{fraction}}}" if match.string[:match.start()].endswith("^") else f"({fraction})"


def _exact(value):
  """Writes floats as the fractions they were written as, and i as the imaginary unit."""
  floats = {f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float)}
  i = sympy.Symbol("i")
  swaps = floats | ({i: sympy.I} if i in value.free_symbols else {})
  return value.xreplace(swaps) if swaps else value


def _symbols(side: Side) -> set[str]:
  value = None if side.number else _expression(side.bare)
  return {s.name for s in value.free_symbols} if value is not None else set()


def _same_expression(wanted: Side, given: Side) -> bool:
  if _is_prose(wanted) or _is_prose(given):
    return False
  # With a unit dropped, or with the letters as factors.
  for a, b in {(wanted.bare, given.bare), (wanted.text, given.text)}:
    x, y = _expression(a), _expression(b)
    if x is None or y is None:
      continue
    if isinstance(x, sympy.Set) or isinstance(y, sympy.Set):
      if isinstance(x, sympy.Set) and isinstance(y, sympy.Set) and _same_sets(x, y):
        return True
    elif _same_values(x, y, wanted.number or given.number):
      return True
  return False


def _is_prose(side: Side) -> bool:
  r"""Whether it is words: \text{not }7, undefined. They are equal only as text."""
  if r"\text{" in side.bare:
    return True
  words = re.findall(r"(?<![\\A-Za-z_{])[A-Za-z]{3,}(?![A-Za-z{}(])", side.bare)
  # ABC are points.
  words = [w for w in words if not w.isupper()]
  return bool(words) and (len(words[0]) > 3 or words[0] != side.bare)


def is_readable(answer: Answer) -> bool:
  """Says whether every part of an answer can be compared: as mathematics, or as a word."""
  # What is named may be called anything.
  sides = [side for s in answer.statements
           for side in (s.sides if s.value is None else [s.value])]
  return bool(sides) and any(s.text for s in sides) and all(map(_is_readable, sides))


def _is_readable(side: Side) -> bool:
  if side.number or side.base or DOTS in side.text or not side.text:
    return True
  # "no solution", \text{any words}
  if re.fullmatch(r"[A-Za-z]+(?: [A-Za-z]+){0,3}|\\text\{[^{}]*[A-Za-z][^{}]*\}", side.text):
    return True
  if side.group:
    return all(map(is_readable, side.group.parts))
  if side.ratio:
    return all(map(_is_readable, side.ratio))
  if r"\text{" in side.bare:
    # Words beside mathematics: equal as text.
    return bool(re.search(r"[A-Za-z0-9]", side.bare))
  return not _is_prose(side) and _expression(side.bare) is not None


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


def _same_values(x, y, written: Number | None) -> bool:
  """Compares two sympy values: matrices by elements, constants and functions by their values."""
  if x == y:
    return not x.has(sympy.nan, sympy.zoo) if isinstance(x, sympy.Basic) else True
  if isinstance(x, sympy.MatrixBase) or isinstance(y, sympy.MatrixBase):
    return (isinstance(x, sympy.MatrixBase) and isinstance(y, sympy.MatrixBase) and x.shape == y.shape
            and all(_same_values(a, b, None) for a, b in zip(x, y)))
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
    if written is None or written.places is None or not a.is_real or not b.is_real:
      return False
    decimal = sympy.Rational(written.value.numerator, written.value.denominator)
    exact = [v for v in (a, b) if not _near(v, decimal)]
    return len(exact) == 1 and _rounds(written, _fraction(exact[0]))
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
        isinstance(p, sympy.Number) for p in number.as_real_imag()):
      return None
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return None
  return number


def _near(a, b, digits: int = _DIGITS) -> bool:
  """Compares relative to the larger one; a part far below the other is a rounding error."""
  size = max(abs(a), abs(b))
  return size == 0 or bool(abs(a - b) <= size * sympy.Rational(1, 10)**(digits - 10))


def _fraction(number) -> Fraction:
  value = sympy.Rational(number)
  return Fraction(int(value.p), int(value.q))


# Where functions are compared: reals of both signs, integers for sums and factorials.
_POINTS = [Fraction(n, d) for n, d in ((17, 7), (-23, 9), (5, 1), (41, 13), (-7, 11), (2, 1), (3, 17), (4, 1), (-89, 12), (3, 1), (61, 3), (7, 1))]


def _values_at(x, y, symbols):
  """Yields both values, at points where both are real; or where they are finite, if none is."""
  unknown = sorted(x.atoms(AppliedUndef) | y.atoms(AppliedUndef), key=str)
  stands = {f: sympy.Dummy() for f in unknown}
  x, y = x.xreplace(stands), y.xreplace(stands)
  names = sorted(x.free_symbols | y.free_symbols, key=str)
  # A sum to n has a value where n is whole.
  summed = x.has(sympy.Sum, sympy.Product) or y.has(sympy.Sum, sympy.Product)
  points = [p for p in _POINTS if not summed or (p.denominator == 1 and p > 0)]
  for shift in range(len(points)):
    # Each symbol gets a point of its own.
    at = {s: sympy.Rational(p.numerator, p.denominator) for s, p in zip(
        names, (points[(shift * (1 + i) + 5 * i) % len(points)] + i // len(points)
                for i in range(len(names))))}
    a, b = _evaluated(x.subs(at)), _evaluated(y.subs(at))
    if a is not None and b is not None:
      yield at, a, b


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


def _exactly(x, y) -> bool:
  """Rules out a difference below 40 digits, where the functions are rational."""
  names = sorted(x.free_symbols | y.free_symbols, key=str)
  if not names or not (x.is_rational_function(*names) and y.is_rational_function(*names)):
    return True
  at = {s: sympy.Integer(101 + 7 * i) for i, s in enumerate(names)}
  a, b = x.subs(at).doit(), y.subs(at).doit()
  return a == b if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational) else True


def _proportional(wanted: Statement, given: Statement, *, signed: bool) -> bool:
  """Says whether left minus right of one is a constant times that of the other.

  signed: the constant must be positive.
  """
  sides = [_expression(s.bare) for s in (*wanted.sides, *given.sides)]
  if not all(isinstance(s, sympy.Expr) for s in sides):
    return False
  x, y = sides[0] - sides[1], sides[2] - sides[3]
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


def _as_set(side: Side):
  """Reads a side as a set of numbers: an interval, a union, \\{1, 2\\}; or None."""
  value = _expression(side.bare)
  return value if isinstance(value, sympy.Set) else None


def _solution_set(statement: Statement):
  """Solves an inequality in one unknown, or None."""
  relation = {"<": sympy.Lt, ">": sympy.Gt, r"\le": sympy.Le, r"\ge": sympy.Ge, r"\ne": sympy.Ne}
  if not set(statement.relations) <= set(relation):
    return None
  # f(x) and AB are one unknown, as is what is not written in \ge 2.
  named = {s.bare for s in statement.sides if s.is_name and "|" not in s.bare}
  if len(named) > 1:
    return None
  values = [_expression(r"\xi" if s.bare in named or not s.bare else s.bare) for s in statement.sides]
  if not all(isinstance(v, sympy.Expr) for v in values):
    return None
  names = {s for v in values for s in v.free_symbols}
  if len(names) != 1:
    return None
  real = sympy.Dummy(real=True)
  values = [v.xreplace({names.copy().pop(): real}) for v in values]
  try:
    parts = [relation[r](a, b).as_set() for a, r, b in zip(values, statement.relations, values[1:])]
    return functools.reduce(lambda p, q: p.intersect(q), parts)
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return None


def _same_sets(x, y) -> bool:
  """Compares sets: intervals by their ends, others by what only one of them holds."""
  if x == y:
    return True
  if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
    return ((x.left_open, x.right_open) == (y.left_open, y.right_open)
            and _same_values(x.start, y.start, None) and _same_values(x.end, y.end, None))
  if isinstance(x, sympy.FiniteSet) and isinstance(y, sympy.FiniteSet):
    same = [[_same_values(a, b, None) for b in y.args] for a in x.args]
    return len(x) == len(y) and all(map(any, same))
  try:
    return x.symmetric_difference(y).is_empty is True
  except (MemoryError, RecursionError):
    raise
  except Exception:
    return False
