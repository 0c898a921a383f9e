r"""Compares mathematical answers: reads both, compares them, and asks math-verify for the rest.

    check_math    (a completion's text, reference) -> whether they are equal, or what is wrong
                  with the reference. In a worker.

Only worker processes import this module: it brings math-verify and sympy, and neither JAX nor
anything of rewards/. `answer_text` is what other processes need.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re

import math_verify

from rl_reason.sandbox import (
  answer_expressions,
  answer_reading,
  answer_text,
  answer_values,
)
from rl_reason.sandbox.answer_text import last_boxed


def check_math(pair: tuple[str | None, str]) -> bool | str:
  """Checks in a worker whether the completion's text equals the reference.

  Without a text (None) it looks at the reference only.

  math-verify's own limits are off: they are signals that its own `except` clauses can swallow. The
  pool's kill is the limit.

  Returns: whether they are equal, or a complaint about the reference.
  """
  text, reference = pair
  gold, complaint = _parse_reference(reference)
  if complaint or text is None:
    return complaint or True
  try:
    return _is_equal(gold, text)
  except (MemoryError, RecursionError):
    raise
  # Whatever else a completion provokes is a wrong answer.
  except Exception:
    return False


def _is_equal(gold: _Reference, text: str) -> bool:
  boxed = re.fullmatch(r"\\boxed\{(.*)\}", text, re.DOTALL)
  if boxed is not None and last_boxed(text) == boxed[1]:
    return answer_values.equal(gold.answer, answer_reading.read(boxed[1]))
  stated = answer_text.stated(text)
  if stated is not None:
    if answer_text.states_no_value(stated):
      return False
    # 1000,99 is a number in prose and a list in a formula.
    stated = re.sub(r"^(-?[0-9]+),([0-9]{1,2})$", r"\1.\2", stated)
    answer = answer_reading.read(stated)
    if answer_values.equal(gold.answer, answer):
      return True
    if answer_values.is_readable(answer):
      return False
  return _found_by_math_verify(gold, text)


# --- The reference


@dataclasses.dataclass(frozen=True)
class _Reference:
  """Holds a reference, read.

  text: its answer, as written.
  answer: the same, read.
  """

  text: str
  answer: answer_reading.Answer

  @functools.cached_property
  def found(self) -> list:
    """What math-verify parses of it."""
    return math_verify.parse(answer_text.wrap(self.text), parsing_timeout=None)


@functools.lru_cache(maxsize=4096)  # A group's completions share it.
def _parse_reference(reference: str) -> tuple[_Reference | None, str | None]:
  """Reads the reference in a worker. Returns: (what was read, why it cannot be used, if so)."""
  boxed = answer_text.final_boxes(reference)
  texts = (
    [boxed]
    if boxed is not None
    else [
      re.sub(r"^.*\\(?:boxed|fbox)\s*\{", "", reference, flags=re.DOTALL),
      answer_text.stated(reference) or "",
    ]
  )
  if not texts[0].strip():
    return None, "it is empty"
  for text in texts:
    answer = answer_reading.read(text)
    if answer_values.is_readable(answer):
      return _Reference(text, answer), None
  return None, (
    "math-verify finds no mathematics in it, or only in a part of it; keep the final answer only,"
    " leave the row out, or compare as text (exact_answer)"
  )


# --- What math-verify finds


def _found_by_math_verify(gold: _Reference, text: str) -> bool:
  """Compares with whatever math-verify finds in prose: the last formula, the last number."""
  found = math_verify.parse(text, parsing_timeout=None)
  if not math_verify.verify(gold.found, found, timeout_seconds=None):
    return False
  return answer_expressions.are_near(gold.found, found)


def _prepare_math_worker() -> None:
  logging.disable(logging.CRITICAL)  # It warns that its timeouts are off: the pool's is on.
  math_verify.verify(
    math_verify.parse(r"\boxed{\frac12}", parsing_timeout=None),
    math_verify.parse("0.5", parsing_timeout=None),
    timeout_seconds=None,
  )
  check_math((r"\boxed{2x}", r"x+x"))


check_math.prepare_worker = _prepare_math_worker
