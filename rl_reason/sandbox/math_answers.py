r"""Compares mathematical answers with math-verify.

    math_text     a completion -> what of it is read: its last \boxed{}, or its end. In any process.
    check_math    (that text, reference) -> whether they are equal, or what is wrong with the
                  reference. In a worker.

Worker processes import this module: it imports neither JAX nor anything of rewards/, and
math-verify only where a worker calls it.
"""

from __future__ import annotations

import functools
import re

# \\.: an escaped brace is text.
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# 1{,}000  1\,000  1,\!000
THIN_SPACE = re.compile(r"(?<=[0-9])(?:\\[,!;: ]|,\\!|\{,\})(?=[0-9]{3}(?![0-9]))")
# No reference is longer, and math-verify's expressions are quadratic in it.
_MAX_ANSWER_CHARACTERS = 2000


# --- Extraction


def last_boxed(text: str) -> str | None:
  r"""Finds the content of the \boxed{...} (or \fbox{...}) that begins last, or None.

  Nested and escaped braces are understood; a \boxed{ that is never closed does not count. The time
  is linear in the text's length.
  """
  if "boxed" not in text and "fbox" not in text:
    return None
  open_braces: list[tuple[bool, int]] = []
  start = end = -1
  for match in _BRACES.finditer(text):
    token = match.group()
    if token[-1] == "{" and token != r"\{":
      open_braces.append((len(token) > 1, match.end()))
    elif token == "}" and open_braces:
      is_box, opened = open_braces.pop()
      if is_box and opened > start:
        start, end = opened, match.start()
  return text[start:end] if start >= 0 else None


def math_text(completion: str) -> str | None:
  r"""Finds the part of a completion that math-verify reads: \boxed{answer}, or the text's end.

  Returns: None if the completion scores 0 unread.
  """
  boxed = last_boxed(completion)
  if boxed is not None:
    boxed = boxed.strip()
    return _wrap(boxed) if 0 < len(boxed) <= _MAX_ANSWER_CHARACTERS else None
  return THIN_SPACE.sub("", completion[-_MAX_ANSWER_CHARACTERS:]).strip() or None


def _wrap(answer: str) -> str:
  # math-verify reads 1\,000 as 1 times 0.
  return r"\boxed{" + THIN_SPACE.sub("", answer) + "}"


def check_math(pair: tuple[str | None, str]) -> bool | str:
  """Checks in a worker whether the completion's text equals the reference.

  Without a text (None) it looks at the reference only.

  math-verify's own limits are off: they are signals that its own `except` clauses can swallow. The
  pool's kill is the limit.

  Returns: whether they are equal, or a complaint about the reference.
  """
  import math_verify

  text, reference = pair
  gold, complaint = _parse_reference(reference)
  if complaint or text is None:
    return complaint or True
  try:
    answer = math_verify.parse(text, parsing_timeout=None)
    return bool(math_verify.verify(gold, answer, timeout_seconds=None))
  except (MemoryError, RecursionError):
    raise
  # math-verify catches what it foresees; whatever else a completion provokes is a wrong answer.
  except Exception:
    return False


@functools.lru_cache(maxsize=4096)  # A group's completions share it.
def _parse_reference(reference: str) -> tuple[list, str | None]:
  """Parses the reference in a worker. Returns: (what it parsed, why it cannot be used, if so)."""
  import math_verify

  answer = last_boxed(reference)
  answer = reference if answer is None else answer
  if not answer.strip():
    return [], "it is empty"
  gold = math_verify.parse(_wrap(answer), parsing_timeout=None)
  if all(isinstance(g, str) for g in gold):
    return [], (
        "math-verify finds no mathematics in it; keep the final answer only, leave the row out, or"
        " compare as text (exact_answer)")
  return gold, None


def _prepare_math_worker() -> None:
  import logging

  import math_verify  # The slow import, before the first item's clock runs.

  logging.disable(logging.CRITICAL)  # It warns that its timeouts are off: the pool's is on.
  math_verify.verify(math_verify.parse(r"\boxed{\frac12}", parsing_timeout=None),
                     math_verify.parse("0.5", parsing_timeout=None), timeout_seconds=None)


check_math.prepare_worker = _prepare_math_worker
