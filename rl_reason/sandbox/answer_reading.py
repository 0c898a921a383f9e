r"""Reads an answer as statements: "x=1, y \in (0, 2]" is two, with sides of their own.

    read("...")  -> Answer: statements, each with sides and relations between them

Reading splits text; what a side is worth is computed when it is asked for (`Side.number`,
`Side.group`). Workers import this module.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
import functools
import itertools
import re

from rl_reason.sandbox import answer_form
from rl_reason.sandbox.answer_numbers import Number

DOTS = r"\ldots"
_RELATION = re.compile(
  r"[=<>]|\\(?:ne|le|ge|in|approx|equiv|sim)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?!,[0-9])")
_JOINT = re.compile(
  r"\s*(?:,\s*)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*,?\s*|(?<=[0-9)\]}])or(?=[A-Z(0-9\\])"
)
_NUMBER = re.compile(
  r"([-+]?)\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
  r"(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([-+]?[0-9]{1,3})\s*\}|([0-9])))?"
)
_FRACTION = re.compile(
  r"([-+]?)\s*(?:\\frac\s*(?:\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])\s*([0-9])(?![0-9])"
  r"|\{\s*([0-9]+)\s*\}\s*([0-9])(?![0-9])|([0-9])\s*\{\s*([0-9]+)\s*\})|([0-9]+)\s*/\s*([0-9]+))"
)
_BASE = re.compile(r"([0-9A-Fa-f]*[0-9][0-9A-Fa-f]*)_\{?\s*(?:\\text\{)?(1?[0-9])\}{0,2}")
_PERCENT = re.compile(
  r"\s*(?:\\?%|\\text\{\s*(?:per\s?cent|percentage|pct)\s*\}|per ?cent(?:age)?|pct)\s*$"
)
_OPEN = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
_TOKENS = re.compile(
  r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:langle|rangle)(?![A-Za-z])|\\[{}]|\\[A-Za-z]+|[\[\](){}]",
  re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Group:
  """Holds what stands in brackets, at least two parts: (1, 2], \\{a, b\\}.

  brackets: the opening and the closing one.
  parts: between them.
  """

  brackets: tuple[str, str]
  parts: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Side:
  """Reads one side of a statement.

  text: as `answer_form.plain` writes it.
  """

  text: str

  @functools.cached_property
  def bare(self) -> str:
    """The text without units."""
    return answer_form.without_units(self.text) or self.text

  @functools.cached_property
  def key(self) -> str:
    r"""The text as it is compared as text: without spaces, \text, and case of words."""
    text = re.sub(r"\\(?:text|mathrm|mathbb)\s*\{([^{}]*)\}", r"\1", self.text)
    text = re.sub(
      r"\\ (?=[a-zA-Z])", "", re.sub(r"\\frac\s?(\d)\s?(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    )
    text = re.sub(r"\s+(?![0-9])|(?<![,])\s+", "", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    lone = re.fullmatch(r"\(([A-Za-z])\)", text)
    if lone:
      return lone[1]
    return text.lower() if re.fullmatch(r"[^\\$^_=0-9]*[A-Za-z]{2}[^\\^_=0-9]*", text) else text

  @functools.cached_property
  def number(self) -> Number | None:
    """The number that the text is, without units, or None."""
    percent = _PERCENT.search(self.text)
    text = self.text[: percent.start()].strip() if percent else self.bare
    # (1,200) is a pair.
    if not text.startswith("("):
      text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"^\((.*)\)$", r"\1", text)
    if len(text) > 1000:
      return None
    if (found := _NUMBER.fullmatch(text)) is not None:
      places = len(found[2].partition(".")[2])
      power = int(found[3] or found[4] or 0)
      value = Fraction(found[2].rstrip(".") if found[2] != "." else "0") * Fraction(10) ** power
      return Number(
        -value if found[1] == "-" else value, places - power if places else None, bool(percent)
      )
    if (found := _FRACTION.fullmatch(text)) is not None:
      top, bottom = (int(x) for x in found.groups()[1:] if x is not None)
      if bottom:
        value = Fraction(top, bottom)
        return Number(-value if found[1] == "-" else value, None, bool(percent))
    return None

  @functools.cached_property
  def base(self) -> tuple[str, int] | None:
    """The digits and the base of a number like 204_5, or None."""
    found = _BASE.fullmatch(self.bare.replace(" ", ""))
    return (found[1].lstrip("0").upper(), int(found[2])) if found and found[2] != "10" else None

  @functools.cached_property
  def ratio(self) -> tuple[Side, ...] | None:
    """The terms of a ratio or of a time of day, a:b:c, or None."""
    parts = split(answer_form.HALF_DAY.sub("", self.bare), (":",))
    return (
      tuple(Side(p.strip()) for p in parts)
      if len(parts) > 1 and all(p.strip() for p in parts)
      else None
    )

  @functools.cached_property
  def half_day(self) -> str:
    """What says which half of the day a time is in: "a", "p" or ""."""
    found = answer_form.HALF_DAY.search(self.text)
    return found[1].lower() if found and re.match(r"\d", self.text) else ""

  @functools.cached_property
  def group(self) -> Group | None:
    """The brackets around the whole text, with two parts or more in them, or None."""
    text = self.bare
    for opening, usual in _OPEN.items():
      if not text.startswith(opening):
        continue
      closing = next((c for c in (usual, ")", "]") if text.endswith(c)), None)
      if closing is None or not _whole_bracket(text):
        return None
      inside = text[len(opening) : len(text) - len(closing)]
      parts = tuple(read_list(inside, thousands=False).statements)
      if len(parts) > 1 or (opening == r"\{" and parts):
        return Group((opening, closing), tuple(Answer((p,)) for p in parts))
    return None

  @functools.cached_property
  def is_name(self) -> bool:
    """Whether it names something: x, f(x), AB, a_{n}, |AB|, \\angle A, (p, q), NO/BO."""
    text = re.sub(r"_\{[^{}]*\}|_\w|'", "", self.text)
    text = re.sub(
      r"\\text\{[^{}]*\}|\\(?:angle|triangle|overline|vec|frac|mathbb|mathcal"
      r"|left|right|cdot|operatorname)(?![a-z])",
      "N",
      text,
    )
    text = re.sub(r"(?<=[A-Za-z])\([^()]*\)", "", text)
    text = re.sub(
      rf"\\(?:{answer_form.GREEK_NAMES})(?![a-z])"
      r"|\\(?:Delta|Omega|Sigma|Theta|Gamma|Phi|nu|eta|chi|kappa)",
      "N",
      text,
    )
    return bool(re.fullmatch(r"[A-Za-z(){}|:,;/\s]*[A-Za-z][A-Za-z(){}|:,;/\s]*", text))


@dataclasses.dataclass(frozen=True)
class Statement:
  """Holds sides and the relations between them: 0 < x \\le 1 has three sides and two relations."""

  sides: tuple[Side, ...]
  relations: tuple[str, ...] = ()

  @property
  def key(self) -> str:
    return "".join(
      s.key + r for s, r in itertools.zip_longest(self.sides, self.relations, fillvalue="")
    )

  @property
  def is_equation(self) -> bool:
    return bool(self.relations) and set(self.relations) <= {"=", r"\in"}

  @property
  def value(self) -> Side | None:
    r"""What is said to be the value of something: 2 in x=1+1=2 and \theta \in [1, 2], or None."""
    if not self.relations:
      return self.sides[0]
    # 8 = x
    if (
      len(self.sides) == 2
      and self.is_equation
      and self.sides[1].is_name
      and not self.sides[0].is_name
    ):
      return self.sides[0]
    named = any(side.is_name for side in self.sides[:-1])
    return self.sides[-1] if self.is_equation and named else None


@dataclasses.dataclass(frozen=True)
class Answer:
  """Holds an answer's statements; their order counts only where dots stand among them."""

  statements: tuple[Statement, ...]

  @property
  def key(self) -> str:
    return ",".join(s.key for s in self.statements)

  @property
  def is_ordered(self) -> bool:
    return any(DOTS in side.text for s in self.statements for side in s.sides)


def _whole_bracket(text: str) -> bool:
  """Says whether a text's first bracket closes at its end."""
  depth = 0
  for token in _TOKENS.finditer(text):
    depth += _depth(token.group())
    if not depth:
      return token.end() == len(text)
  return False


def _depth(token: str) -> int:
  if token in ("(", "[", "{", r"\{", r"\langle") or token.startswith(r"\begin"):
    return 1
  if token in (")", "]", "}", r"\}", r"\rangle") or token.startswith(r"\end"):
    return -1
  return 0


def split(text: str, separators: tuple[str, ...]) -> list[str]:
  """Splits a text at separators of one character that stand in no bracket."""
  parts, start, depth = [], 0, 0
  at = 0
  while at < len(text):
    found = _TOKENS.match(text, at)
    if found is not None:
      depth += _depth(found.group())
      at = found.end()
      continue
    if text[at] in separators and not depth:
      parts.append(text[start:at])
      start = at + 1
    at += 1
  return [*parts, text[start:]]


def read(text: str) -> Answer:
  """Reads an answer as it was written."""
  return read_list(answer_form.plain(text))


def read_list(text: str, *, thousands: bool = True) -> Answer:
  r"""Reads statements that stand beside each other; \{...\} around all of them is dropped."""
  text = _forward_brackets(_JOINT.sub(",", text))
  if thousands and "," in text:
    text = _joined_thousands(text)
  if (
    text.startswith((r"\{", "{"))
    and _whole_bracket(text)
    and text.strip("\\{} ")
    and not re.search(r"[|:]|\\mid", text)
  ):
    return read_list(text[2:-2] if text[0] == "\\" else text[1:-1])
  # \{x \mid x > 1\}
  builder = re.fullmatch(
    r"\\\{\s*[a-z](?:\s*\\in\s*\\mathbb\{R\})?\s*(?:\\mid|:|\||\\vert)(.*)\\\}", text
  )
  if builder is not None:
    return read_list(builder[1])
  statements = []
  for part in split(text, (",", ";")):
    part = answer_form.trimmed(part)
    for one in _both_signs(part) if part else ():
      statements.append(_statement(one))
  return Answer(tuple(statements))


def _joined_thousands(text: str) -> str:
  """Writes 1,200 as 1200 outside of brackets: (1,200) is a pair."""
  inside, depth = set(), 0
  for at, char in enumerate(text):
    depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(char, 0)
    if depth and char == ",":
      inside.add(at)
  return _THOUSANDS.sub(
    lambda m: m[0] if any(at in inside for at in range(*m.span())) else m[0].replace(",", ""), text
  )


def _forward_brackets(text: str) -> str:
  r"""Writes ]0,1[ as (0,1), ]0,1] as (0,1], [0,1[ as [0,1)."""
  inside = r"([^][()]+[,;][^][()]+)"
  ends = r"(?=\s*(?:$|\\cup|\\cap|,))"
  begins = r"(?:(?<=^)|(?<=\\cup)|(?<=\\cup )|(?<=\\in)|(?<=\\in )|(?<== )|(?<==))"
  text = re.sub(
    begins + r"\]" + inside + r"([][])" + ends,
    lambda m: "(" + m[1] + (")" if m[2] == "[" else "]"),
    text,
  )
  return re.sub(begins + r"\[" + inside + r"\[" + ends, r"[\1)", text)


def _both_signs(text: str) -> list[str]:
  r"""Writes 1 \pm 2 as 1 + 2 and 1 - 2. With \mp beside it the signs go together."""
  signs = list(re.finditer(r"\\(?:pm|mp)(?![A-Za-z])", text))
  if not signs or len(signs) > 3:
    return [text]
  together = any(s.group() == r"\mp" for s in signs)
  choices = (
    [(1,) * len(signs), (-1,) * len(signs)]
    if together
    else itertools.product((1, -1), repeat=len(signs))
  )
  texts = []
  for choice in choices:
    of = iter(choice)
    texts.append(
      re.sub(
        r"\\(pm|mp)(?![A-Za-z])", lambda m: "+" if (m[1] == "pm") == (next(of) == 1) else "-", text
      )
    )
  # A sign that leads is no sum.
  return [re.sub(r"(^|[=({,])\s*\+", r"\1", t) for t in texts]


def _statement(text: str) -> Statement:
  sides, relations, start, depth, at = [], [], 0, 0, 0
  while at < len(text):
    relation = _RELATION.match(text, at) if not depth else None
    if relation is not None:
      sides.append(text[start:at])
      relations.append(relation.group())
      start = at = relation.end()
      continue
    token = _TOKENS.match(text, at)
    if token is not None:
      depth += _depth(token.group())
      at = token.end()
    else:
      at += 1
  sides.append(text[start:])
  # x = 1/3 \approx 0.33: what is near is no part of the answer, unless it is all.
  if r"\approx" in relations:
    first = relations.index(r"\approx")
    if first:
      sides, relations = sides[: first + 1], relations[:first]
    else:
      relations = ["=" if r == r"\approx" else r for r in relations]
  return Statement(tuple(Side(answer_form.trimmed(s)) for s in sides), tuple(relations))
