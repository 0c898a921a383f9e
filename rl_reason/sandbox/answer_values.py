r"""Compares answers that were read: numbers exactly or as rounded, expressions by their values.

    equal(reference, answer)     both from `answer_reading.read`

Numbers are compared relative to their size, so that no two are equal because they are small.
Only worker processes import this module: it brings sympy and math-verify's parser.
"""

from __future__ import annotations

import functools
import re

import sympy

from rl_reason.sandbox.answer_expressions import (
  are_proportional,
  expression,
  same_sets,
  same_values,
)
from rl_reason.sandbox.answer_numbers import same_number
from rl_reason.sandbox.answer_reading import Answer, DOTS, Group, Side, Statement

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
    # "0.25 or 1/4" is one value.
    return _list_is_group(wanted[0], given) or all(_same(wanted[0], g) for g in given)
  if len(given) == 1:
    return (
      _decimal_comma(wanted, given[0])
      or _group_is_set(wanted, given[0])
      or _solutions(wanted, given)
      or _union_is_set(wanted, given[0])
    )
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
  tuples = [wanted[i : i + size] for i in range(0, len(wanted), size)]
  for g in given:
    # (q, p) = (2, 5)
    said = g.sides[0].group if g.relations else None
    if said is not None and [p.key for p in said.parts] != names[:size]:
      return False
  groups = [g.value.group if g.value is not None else None for g in given]
  if any(g is None or len(g.parts) != size for g in groups):
    return False
  same = [
    [
      all(
        _same_side(w.value, p.statements[0].value)
        for w, p in zip(t, g.parts)
        if p.statements[0].value
      )
      for g in groups
    ]
    for t in tuples
  ]
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
    x == y or (x not in (DOTS, ":", "+") and _same_side(Side(x), Side(y))) for x, y in zip(a, b)
  )


def _list_is_group(wanted: Statement, given) -> bool:
  """Says whether 1, 3 is the reference (1, 3), or the set {1, 3}."""
  side = wanted.value
  group = side.group if side is not None else None
  if group is None:
    return False
  if group.brackets[0] == r"\{":
    return _same_set([p.statements[0] for p in group.parts], given)
  return (
    group.brackets == ("(", ")")
    and len(given) == len(group.parts)
    and all(_same(p.statements[0], g) for p, g in zip(group.parts, given))
  )


def _group_is_set(wanted, given: Statement) -> bool:
  side = given.value
  group = side.group if side is not None else None
  return (
    group is not None
    and group.brackets[0] == r"\{"
    and _same_set(wanted, [p.statements[0] for p in group.parts])
  )


def _union_is_set(wanted, given: Statement) -> bool:
  """Says whether x<1 or x>3 is the set (-oo, 1) u (3, oo)."""
  if given.relations and given.value is None:
    return False
  sets = [_solution_set(w) for w in wanted if w.relations and not w.is_equation]
  value = _as_set(given.value)
  if value is None or len(sets) != len(wanted) or None in sets:
    return False
  return same_sets(functools.reduce(lambda p, q: p.union(q), sets), value)


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
      true = (
        last.text and not _symbols(last) and all(_same_side(s, last) for s in statement.sides[:-1])
      )
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
  sets = [
    _solution_set(s) if side is None else _as_set(side) for s, side in zip((wanted, given), sides)
  ]
  return None not in sets and same_sets(*sets)


def _same_equation(wanted: Statement, given: Statement) -> bool:
  a, b = wanted.value, given.value
  if a is not None and b is not None:
    name, other = wanted.sides[0].key, given.sides[0].key
    if name == other or (
      re.sub(r"\(\w\)", "", name) == re.sub(r"\(\w\)", "", other) and not _symbols(a) | _symbols(b)
    ):
      return _same_side(a, b)
    if wanted.sides[0].group and given.sides[0].group:
      return False
  if len(wanted.sides) != 2 or len(given.sides) != 2:
    return False
  return _proportional(wanted, given, signed=False)


def _proportional(wanted: Statement, given: Statement, *, signed: bool) -> bool:
  """Says whether left minus right of one is a constant times that of the other."""
  sides = [expression(s.bare) for s in (*wanted.sides, *given.sides)]
  return all(isinstance(s, sympy.Expr) for s in sides) and are_proportional(
    sides[0] - sides[1], sides[2] - sides[3], signed=signed
  )


def _same_inequality(wanted: Statement, given: Statement) -> bool:
  """Compares inequalities link by link, then by their solutions."""
  # \ge 2, of whatever was asked for.
  if not wanted.sides[0].text or not given.sides[0].text:
    return (
      len(wanted.sides) == 2
      and wanted.relations == given.relations
      and _same_side(wanted.sides[1], given.sides[1])
    )
  links, others = _links(wanted), _links(given)
  if len(links) == len(others):
    statements = [
      [Statement((Side(a), Side(b)), (r,)) for a, r, b in row] for row in (links, others)
    ]
    same = [
      [
        w.relations == g.relations and _proportional(w, g, signed=w.relations[0] != r"\ne")
        for g in statements[1]
      ]
      for w in statements[0]
    ]
    if all(map(any, same)) and all(map(any, zip(*same))):
      return True
  sets = [_solution_set(wanted), _solution_set(given)]
  return None not in sets and same_sets(*sets)


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
  # The letter of a choice, with what was chosen: (A) 7.
  if re.fullmatch("[A-Z]", wanted.key):
    chosen = re.match(r"\(?([A-Z])[).:]\s*\S", given.text)
    if chosen is not None:
      return chosen[1] == wanted.key
  # {8} is 8.
  ones = [
    s.group.parts[0].statements[0].value if s.group and len(s.group.parts) == 1 else None
    for s in (wanted, given)
  ]
  if any(ones):
    return _same_side(ones[0] or wanted, ones[1] or given)
  # In a base: the digits are the answer, not their value.
  if wanted.base or given.base:
    return wanted.base == given.base
  if wanted.number and given.number:
    return same_number(wanted.number, given.number)
  if wanted.ratio and given.ratio:
    return _same_ratio(wanted, given)
  if wanted.group or given.group:
    return _same_group(wanted, given)
  return _same_expression(wanted, given)


def _same_ratio(wanted: Side, given: Side) -> bool:
  a, b = wanted.ratio, given.ratio
  if len(a) != len(b):
    return False
  clock = lambda parts: (
    len(parts) == 2
    and re.fullmatch(r"\d{1,2}", parts[0].text)
    and re.fullmatch(r"[0-5]\d", parts[1].text)
  )
  if clock(a) and clock(b):
    return [int(p.text) for p in a] == [int(p.text) for p in b]
  numbers = [p.number for p in (*a, *b)]
  if None in numbers:
    return all(map(_same_side, a, b))
  x, y = [n.value for n in numbers[: len(a)]], [n.value for n in numbers[len(a) :]]
  return (
    any(x)
    and any(y)
    and all(x[i] * y[0] == x[0] * y[i] for i in range(len(x)))
    and bool(x[0]) == bool(y[0])
  )


def _same_group(wanted: Side, given: Side) -> bool:
  """Compares tuples part by part, sets in any order, intervals also with expressions of sets."""
  a, b = wanted.group, given.group
  if a is not None and b is not None:
    if a.brackets != b.brackets and r"\{" in (a.brackets[0], b.brackets[0]):
      return False
    if r"\{" == a.brackets[0]:
      return _same_set([p.statements[0] for p in a.parts], [p.statements[0] for p in b.parts])
    return (
      _kind(a) == _kind(b)
      and len(a.parts) == len(b.parts)
      and all(equal(p, q) for p, q in zip(a.parts, b.parts))
    )
  sets = _as_set(wanted), _as_set(given)
  return None not in sets and same_sets(*sets)


def _kind(group: Group) -> tuple[str, str]:
  return ("(", ")") if group.brackets == (r"\langle", r"\rangle") else group.brackets


def _symbols(side: Side) -> set[str]:
  value = None if side.number else expression(side.bare)
  return {s.name for s in value.free_symbols} if value is not None else set()


def _same_expression(wanted: Side, given: Side) -> bool:
  if _is_prose(wanted) or _is_prose(given):
    return False
  # With a unit dropped, or with the letters as factors.
  for a, b in {(wanted.bare, given.bare), (wanted.text, given.text)}:
    x, y = expression(a), expression(b)
    if x is None or y is None:
      continue
    if isinstance(x, sympy.Set) or isinstance(y, sympy.Set):
      if isinstance(x, sympy.Set) and isinstance(y, sympy.Set) and same_sets(x, y):
        return True
    elif same_values(x, y, wanted.number or given.number):
      return True
  return False


# --- What can be compared


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
  sides = [side for s in answer.statements for side in (s.sides if s.value is None else [s.value])]
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
  return not _is_prose(side) and expression(side.bare) is not None


# --- Sets


def _as_set(side: Side):
  """Reads a side as a set of numbers: an interval, a union, \\{1, 2\\}; or None."""
  value = expression(side.bare)
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
  values = [
    expression(r"\xi" if s.bare in named or not s.bare else s.bare) for s in statement.sides
  ]
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
