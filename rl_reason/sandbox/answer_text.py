r"""Finds the answer in a text: the boxes it ends with, <answer> tags, what follows "the answer is".

    math_text       a completion -> what of it is read, in any process, in linear time
    last_tagged     the content of the last <tag>...</tag>, in any process, in linear time
    stated          text without a box -> the answer that it states, in a worker

Worker processes import this module: it imports nothing.
"""

from __future__ import annotations

import re

# \\.: an escaped brace is text.
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# 1{,}000  1\,000  1,\!000
THIN_SPACE = re.compile(r"(?<=[0-9])(?:\\[,!;: ]|,\\!|\{,\})\s?(?=[0-9]{3}(?![0-9]))")
# No answer is longer, and math-verify's expressions are quadratic in it.
MAX_CHARACTERS = 2000
# More boxes than this are no list of answers.
_MAX_BOXES = 32


# --- Boxes and tags


def last_boxed(text: str) -> str | None:
  r"""Finds the content of the \boxed{...} (or \fbox{...}) that begins last, or None.

  Nested and escaped braces are understood; a \boxed{ that is never closed does not count. The time
  is linear in the text's length.
  """
  boxes = _closed_boxes(text)
  return text[slice(*boxes[-1][1:])] if boxes else None


def _closed_boxes(text: str) -> list[tuple[int, int, int]]:
  """Lists the closed boxes by their beginning: (command's start, content's start and end)."""
  if "boxed" not in text and "fbox" not in text:
    return []
  boxes = []
  open_braces: list[tuple[int, int]] = []
  for match in _BRACES.finditer(text):
    token = match.group()
    if token[-1] == "{" and token != r"\{":
      open_braces.append((match.start() if len(token) > 1 else -1, match.end()))
    elif token == "}" and open_braces:
      command, opened = open_braces.pop()
      if command >= 0:
        boxes.append((command, opened, match.start()))
  return sorted(boxes)


def final_boxes(text: str) -> str | None:
  r"""Finds the answer in the last boxes: "1, 2" in "\boxed{1} and \boxed{2}", or None.

  Boxes are one answer where nothing stands between them but a comma, "and" or "or" with a few
  words. Where the words between revise or derive ("no", "so", "then", "=", a full stop), the last
  box alone is the answer.
  """
  boxes = _closed_boxes(text)[-_MAX_BOXES:]
  if not boxes:
    return None
  begins = boxes[-1][0]
  parts = [text[slice(*boxes[-1][1:])].strip()]
  for command, start, end in reversed(boxes[:-1]):
    # A box around the one before it, or an earlier answer.
    if end >= begins or not _joins(text[end + 1 : begins]):
      break
    begins = command
    if (part := text[start:end].strip()) != parts[0]:
      parts.insert(0, part)
  return ", ".join(parts)


_REVISES = frozenset(
  "no not wait actually rather instead then so hence thus therefore but however wrong incorrect"
  " correct sorry oops should get gets give gives giving yields simplify simplifies equals"
  " becomes means is was were which that check verify better final finally answer because since"
  " where".split()
)


def _joins(between: str) -> bool:
  """Says whether what stands between two boxes makes one answer of both."""
  if len(between) > 70:
    return False
  words = [w for w in re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+", " ", between))]
  plain = {word.lower() for word in words}
  # y_1 = \boxed{1} and y_2 = \boxed{2}: an equation only after the word that joins.
  sides = re.split(r"(?i)\b(?:and|or)\b", re.sub(r"\\[a-z]+|[{}]", " ", between))
  if plain & _REVISES or len(words) > 6 or re.search(r"[.!?:>]|\n\s*\n|\\implies|\\to\b", between):
    return False
  if "=" in between:
    return len(sides) == 2 and "=" not in sides[0]
  return not words or len(sides) > 1


def last_tagged(text: str, tag: str = "answer") -> tuple[int, str] | None:
  """Finds the last <tag>...</tag>, in linear time.

  A tag that never closes does not count, nor one that closes without having been opened.

  Returns: (where it begins, what stands between), or None.
  """
  opening, closing = f"<{tag}>", f"</{tag}>"
  start = text.rfind(opening, 0, max(text.rfind(closing), 0))
  if start < 0:
    return None
  content = start + len(opening)
  return start, text[content : text.index(closing, content)]


def math_text(completion: str) -> str | None:
  r"""Finds the part of a completion that is read: \boxed{answer}, a tag's content, or the end.

  <answer> tags count where no box stands in or after them. Without either it is the last 2000
  characters, after </think> where something is.

  Returns: None if the completion scores 0 unread.
  """
  text = completion
  tagged = last_tagged(text)
  if tagged is not None:
    boxes = _closed_boxes(text)
    if not boxes or boxes[-1][0] < tagged[0]:
      content = tagged[1].strip()
      return content if 0 < len(content) <= MAX_CHARACTERS else None
  boxed = final_boxes(text)
  # Minerva's form: a final answer that is stated after the boxes.
  at = text.rfind("inal answer is $")
  if boxed is not None and at > _closed_boxes(text)[-1][0]:
    return text[at - 1 : at + MAX_CHARACTERS].strip()
  if boxed is not None:
    return wrap(boxed) if 0 < len(boxed) <= MAX_CHARACTERS else None
  answered = text.rpartition("</think>")[2]
  text = answered if answered.strip() else text
  return THIN_SPACE.sub("", text[-MAX_CHARACTERS:]).strip() or None


def wrap(answer: str) -> str:
  # math-verify reads 1\,000 as 1 times 0.
  return r"\boxed{" + THIN_SPACE.sub("", answer) + "}"


# --- Prose


# "The answer is 7", "**Answer:** 7", "#### 7", "# Answer\n7".
_STATES = re.compile(
  r"(?i)\b(?:answer|solution|option|choice)s?\b[*_` ]{0,4}"
  r"(?:(?:is|are|[:=]|\n)[*_` ]{0,4}:?|(?=[$\\]))"
  r"|####|\u7b54\u6848\s?(?:\u662f|\u4e3a|[:\uff1a])?"
)
_MATHS = re.compile(
  r"\$\$([^$]+)\$\$|\$((?:\\\$|[^$\n])+)\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)", re.DOTALL
)
_JOINS = re.compile(r",?\s*(?:and|or|,)\s*(?=[$\\])")
_SENTENCE_ENDS = re.compile(r"[.!?;](?=\s|$)|\n")
# What typography wraps around an answer. A dollar sign is no mark: it opens mathematics.
_MARKS = "*_`\"'\u201c\u201d \t\r\n"


def stated(text: str) -> str | None:
  """Finds the answer that a text without a box states, or None.

  It is what follows the last "the answer is", "Answer:" or "####": mathematics in $...$ whole, or
  a sentence's rest. A short text of one line is the answer itself.
  """
  last = None
  for last in _STATES.finditer(text):
    pass
  if last is None:
    text = re.sub(r"^>\s+", "", text.strip(_MARKS))  # A quotation.
    # Words are prose, unless one is all.
    words = re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z(])", text)
    is_answer = 0 < len(text) <= 200 and "\n" not in text and words in ([], [text])
    return text if is_answer else None
  rest = text[last.end() :].lstrip(_MARKS + ":")
  mathematics = _leading_mathematics(rest)
  if mathematics is not None:
    return mathematics
  return _SENTENCE_ENDS.split(rest, maxsplit=1)[0].strip(_MARKS) or None


_NO_VALUE = re.compile(
  r"(?i)(?:not|between|(?:less|more|greater|smaller) than|at (?:least|most))\b"
)


def states_no_value(answer: str) -> bool:
  r"""Says whether what is stated is no value: "not 7", or a lone "$" or "\(".

  In TeX a formula in a line ends in that line.
  """
  return answer.strip() in ("$", r"\(") or bool(_NO_VALUE.match(answer))


def _leading_mathematics(text: str) -> str | None:
  """Reads the formulas that a text begins with: "$1$, $2$ and $3$" gives "1, 2, 3"."""
  parts = []
  at = 0
  while (found := _MATHS.match(text, at)) is not None:
    parts.append(next(filter(None, found.groups())).strip())
    at = found.end()
    if (joint := _JOINS.match(text, at)) is None:
      break
    at = joint.end()
  # "$28$ percent"
  percent = re.compile(r"\s*(?:\\?%|per ?cent|pct)").match(text, at) if parts else None
  return ", ".join(parts) + (r"\%" if percent else "") if parts else None
