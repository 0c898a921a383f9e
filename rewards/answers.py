r"""Rewards outcomes: compares an answer with the reference as text, as a number, as mathematics.

    exact_answer    "7+5=12;#12"                   the text after the last marker, exactly
    exact_match     "<answer>The Hague.</answer>"  what question answering calls exact match
    tail_verdict    "... <answer>[[A]]</answer>"   the judge's choice, at the very end
    number_answer   "... so she pays $1,200."      the last number, as GSM8K and SVAMP are scored
    math_answer     "... = \boxed{\frac12}"        the last \boxed{}, by math-verify, in workers

A completion is data: whatever it holds, it scores. A reference that cannot be compared with is an
error. Each reward's `check_references(references, **same arguments)` finds such references before
a run begins: it returns one complaint, or None, per reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
import functools
import re
import string

from jaxtyping import Float
import numpy as np

from rl_reason.judges.verdicts import parse_verdict
from rl_reason.rewards.composition import abstention
from rl_reason.sandbox import pool as workers
from rl_reason.sandbox.answer_text import last_tagged, math_text, THIN_SPACE
from rl_reason.types import Sample

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)"  # Not inside a word ("x2") or another number.
    # A sign: not in "10-3" and "10 -3", where it is an operator, nor in "day-3", where it is a
    # hyphen. Apart from its digits ("- 3") only where a value begins: elsewhere "- 3 apples" is a
    # line of a list, and "x - 3" a difference.
    r"(?:(?:(?<![A-Za-z0-9)\]}])(?<![0-9)\]}] )(?P<sign>[-+\u2212])"
    r"|(?:(?<=\A)|(?<=[=:#($])|(?<=[=:#($] )|(?<=\bis ))(?P<apart>[-+\u2212]) ))?"
    r"(?:[$\u20ac\u00a3] ?)?"
    # Thousands are split by commas, or by spaces of whatever width.
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+"
    r"(?![0-9/])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9]))?"
    # "3/4" and "3 1/2".
    r"(?:(?: (?P<numerator>[0-9]{1,9}))?/(?P<denominator>[0-9]+)(?!\.?[0-9]))?")
_SEPARATORS = re.compile(r"[, \u00a0\u2009\u202f]")
# Longer numbers are no answers: Python's integers are quadratic in the digits and refuse at 4300.
_MAX_DIGITS = 1000


def last_number(text: str) -> str | None:
  """Finds the last number as written: "-1,234.50", "3/4", "3 1/2", "1 200"; or None.

  It keeps the sign, separators and a fraction's denominator. Digits inside a word ("x2") are not
  numbers; a minus after a number ("10-3") is an operator. It reads no LaTeX: see `math_answer`.
  """
  last = None
  for last in _NUMBER.finditer(_plain(text)):
    pass
  return last.group() if last else None


def after_marker(text: str, marker: str = "####") -> str | None:
  """Returns what follows the last `marker`, stripped, or None without a marker."""
  _, found, answer = text.rpartition(marker)
  return answer.strip() if found else None


def number_value(text: str) -> Fraction | None:
  """Computes the value of a text that is one number, or None.

  It reads "$1,200.50", "1 200", "007", "3.0", "1/2", "3 1/2", "- 3", "50%" (as 50), "72.". More
  than 1000 digits, a zero denominator or anything beside the number gives None.
  """
  # The text is cut before it is matched, so that a huge one costs little; its whole length is
  # checked below.
  match = _NUMBER.fullmatch(re.sub(r"\s*%?\s*\.?$", "", _plain(text[:2 * _MAX_DIGITS]).strip()))
  if match is None or len(text) > 2 * _MAX_DIGITS:
    return None
  if len(match["digits"]) + len(match["denominator"] or "") > _MAX_DIGITS:
    return None
  # Exact: a float would take neighbouring large integers for equal.
  value = Fraction(_SEPARATORS.sub("", match["digits"]) + "e" + (match["exponent"] or "0"))
  if match["denominator"]:
    if not int(match["denominator"]):
      return None
    if match["numerator"]:
      fraction = Fraction(int(match["numerator"]), int(match["denominator"]))
      # "3 5/2" is no mixed number but two numbers, of which the last counts.
      value = value + fraction if fraction < 1 else fraction
    else:
      value /= int(match["denominator"])
  return -value if (match["sign"] or match["apart"]) in ("-", "\u2212") else value


def _plain(text: str) -> str:
  r"""Undoes LaTeX's ways to write a plain number: 1{,}000, \$5, 50\%."""
  if "\\" in text or "{,}" in text:
    text = THIN_SPACE.sub("", text).replace(r"\$", "$").replace(r"\%", "%")
  return text


# --- Text


def exact_answer(samples: Sequence[Sample], *, marker: str = "#") -> Float[np.ndarray, "N"]:
  """Pays for the outcome, in {0, 1}: 1 if the text after the last `marker` is the reference.

  Both are stripped.

  Raises: ValueError for an empty marker or an empty reference.
  """
  if not marker:
    raise ValueError(
        "exact_answer: marker must not be empty, the answer begins after it: set args.marker, e.g."
        " '#'.")
  _raise_bad_references("exact_answer", samples, exact_references)
  return np.array(
      [after_marker(s.answer_text, marker) == s.reference.strip() for s in samples], np.float32)


def exact_references(references: Sequence[str], *, marker: str = "#") -> list[str | None]:
  """Lists complaints about references that `exact_answer` cannot use, None where there is none."""
  return [None if r.strip() else "it is empty" for r in references]


def exact_match(
    samples: Sequence[Sample], *, tag: str = "answer", separator: str = "",
) -> Float[np.ndarray, "N"]:
  """Pays for the outcome, in {0, 1}: 1 if the last <tag>...</tag> is the reference, normalised.

  Both are normalised as question answering does it: lower case, without punctuation and articles,
  spaces made one. It departs from SQuAD's script in numbers: a sign before a number and what
  stands between two digits are kept, but for commas of thousands, so that -5 is not 5, nor 3.5 35.

  Args:
    samples: completions with their references.
    tag: whose content is the answer.
    separator: what stands between several right answers in a reference; "": a reference is one.

  Raises: ValueError for an empty tag, or a reference of which nothing is left.
  Source: Rajpurkar et al. 2016 (SQuAD), arXiv:1606.05250, and its evaluation script.
  """
  if not tag:
    raise ValueError("exact_match: tag must not be empty: set args.tag, e.g. 'answer'.")
  _raise_bad_references(
      "exact_match", samples, functools.partial(match_references, separator=separator))
  scores = []
  for sample in samples:
    # The last answer counts: a completion may have tried others before.
    said = last_tagged(sample.answer_text, tag)
    right = sample.reference.split(separator) if separator else [sample.reference]
    scores.append(said is not None and _words(said[1]) in map(_words, right))
  return np.array(scores, np.float32)


def match_references(
    references: Sequence[str], *, tag: str = "answer", separator: str = "") -> list[str | None]:
  """Lists complaints about references that `exact_match` cannot use, None where there is none."""
  return [
      None if all(map(_words, r.split(separator) if separator else [r]))
      else "nothing is left of it when normalised"
      for r in references]


_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_DASHES = str.maketrans(dict.fromkeys("\u2212\u2013\u2014", "-"))
_PUNCTUATION = re.compile(
    # A sign or a decimal point before a number: not in "covid-19".
    r"(?<![A-Za-z0-9)])(?P<sign>[-.])[$\u20ac\u00a3]?(?=\.?[0-9])|"
    # Between two digits: 3.5, 1/2, 12:30.
    rf"(?<=[0-9])(?P<inside>[{re.escape(string.punctuation)}])(?=[0-9])|"
    rf"[{re.escape(string.punctuation)}]")


def _words(text: str) -> list[str]:
  text = _THOUSANDS.sub("", text.lower().translate(_DASHES))
  # "- 5", and nothing before it.
  text = re.sub(r"^\s*-\s+(?=[$.0-9])", "-", text)
  text = _PUNCTUATION.sub(lambda m: m["sign"] or m["inside"] or "", text)
  return [word for word in text.split() if word not in ("a", "an", "the")]


def tail_verdict(
    samples: Sequence[Sample], *, options: Sequence[str] = ("A", "B"),
    tag: str = "<answer>[[{}]]</answer>", characters: int = 80) -> Float[np.ndarray, "N"]:
  """Pays for the verdict, in {-1, 1}: 1 if the completion ends with the tag of the reference.

  The last `characters`, whitespace at the end aside, must hold the tag of the reference and of no
  other option. So a completion that names both at its end, or none, or is cut off before it, is as
  wrong as one that names the other. There is no reward for format.

  Args:
    samples: completions with their references.
    options: what a verdict may be.
    tag: with {} for the option.
    characters: of the completion's end that is read.

  Raises: ValueError for a reference that is no option, for a tag without {}, and for a tag with
    which one option's tag is part of another's.
  Source: Chen et al. 2025 (RM-R1), arXiv:2505.02387, eq. 6 and its code's window of 80.
  """
  if "{}" not in tag or len(set(options)) < 2 or characters < 1:
    raise ValueError(
        "tail_verdict needs a tag with {}, two options or more and characters of at least 1, got"
        f" tag={tag!r}, options={tuple(options)}, characters={characters}.")
  tags = [tag.replace("{}", option) for option in options]
  # Otherwise one verdict would be read as two.
  if any(a != b and a in b for a in tags for b in tags):
    raise ValueError(
        f"tail_verdict cannot tell the tags {', '.join(tags)} apart, one is part of another: close"
        " the tag after"
        " {}, e.g. '[{}]'.")
  _raise_bad_references(
      "tail_verdict", samples, functools.partial(verdict_references, options=options))
  # Whatever else stands between the tag's parts is no verdict.
  before, *after = map(re.escape, tag.split("{}"))
  pattern = before + f"({'|'.join(map(re.escape, options))})" + r"\1".join(after)
  given = [parse_verdict(s.answer_text, options, pattern=pattern, tail=characters) for s in samples]
  return np.array(
      [1.0 if g == s.reference.strip() else -1.0 for g, s in zip(given, samples)], np.float32)


def verdict_references(
    references: Sequence[str], *, options: Sequence[str] = ("A", "B"), tag: str = "",
    characters: int = 0,
) -> list[str | None]:
  """Lists complaints about references that `tail_verdict` cannot use, None where there is none."""
  return [None if r.strip() in options else f"it is none of {', '.join(options)}"
          for r in references]


# --- Numbers


def number_answer(
    samples: Sequence[Sample], *, tolerance: float = 1e-6) -> Float[np.ndarray, "N"]:
  """Pays for the outcome, in {0, 1}: 1 if the completion's last number is the reference number.

  They may differ by `tolerance`, and by no more than this share of a reference below 1: numbers are
  not equal because they are small. They are compared as exact fractions, so that integers of any
  size must be equal. "%" is dropped: "50%" is 50, as in GSM8K.

  Raises: ValueError for a negative tolerance, or a reference that is not a number.
  """
  if not 0 <= tolerance < 1:
    raise ValueError(
        f"number_answer: tolerance must be in [0, 1), got {tolerance}: 1 would accept the"
        " neighbouring integer.")
  _raise_bad_references("number_answer", samples, number_references)
  scores = np.zeros(len(samples), np.float32)
  for i, sample in enumerate(samples):
    written = last_number(sample.answer_text)
    answer = number_value(written) if written else None
    right = _reference_number(sample.reference)
    scores[i] = (answer is not None
                 and abs(answer - right) <= Fraction(tolerance) * min(1, abs(right)))
  return scores


def number_references(references: Sequence[str], *, tolerance: float = 1e-6) -> list[str | None]:
  """Lists complaints about references that `number_answer` cannot use, None where there is none."""
  return [
      None if _reference_number(r) is not None else
      'it is not one number such as "72", "1,200.50" or "3/4"; keep the final number only'
      for r in references]


@functools.lru_cache(maxsize=4096)
def _reference_number(reference: str) -> Fraction | None:
  return number_value(reference)


# --- Mathematics


def math_answer(
    samples: Sequence[Sample], *,
    timeout_seconds: float = 5.0,
    num_workers: int | None = None,
    memory_bytes: int = 2 * workers.GIB,
) -> Float[np.ndarray, "N"]:
  r"""Pays for the outcome, in {0, 1}: 1 if math-verify finds the answer equal to the reference.

  The answer is the last \boxed{}, or several that one "and" joins; without one, the last
  <answer>...</answer>, what "the answer is" or "Answer:" states in its line, or whatever
  math-verify finds in the last 2000 characters. The reference is a final answer, plain ("1/2",
  "x=3") or LaTeX, with or without $...$ or \boxed{}: it is read as the content of a \boxed{}. Pairs
  (answer, reference) that occur more than once in a call are checked once.

  What is equal:
    numbers      exactly; a decimal of 6 places or more also with what it is the rounding of. 50% is
                 50 and 0.5. 204_5 is only 204_5.
    expressions  with equal values at real points, i being the imaginary unit.
    lists, sets  in any order; tuples, and lists with dots, in theirs. Every part must be equal:
                 none is skipped because it cannot be read.
    equations    of which one is a multiple of the other; x=7 and a true 3+4=7 are 7, x+y=8 is not
                 8.
    inequalities with the same solutions, also as an interval.
    words        without regard to case. Units are dropped; a.m. and p.m. are not.

  A reference is refused where a part of it is neither mathematics that can be parsed nor at most
  four words nor \text{...}: no answer could be compared with it, only with the rest of it.

  Args:
    samples: completions with their references.
    timeout_seconds: wall-clock limit of one check; a later one scores 0 and is counted
      (`sandbox.pool.failure_counts`). A check whose worker was killed or stopped, by whatever is
      not the answer, is made again, and the second time the reward abstains from the sample
      (composition.abstention). On a machine so loaded that ordinary checks come near the
      limit the reward is not reproducible: raise the limit. Ordinary checks take milliseconds.
    num_workers: processes; None takes one per usable core, at most 8.
    memory_bytes: address space of one worker; a check that needs more scores 0 and is counted.

  Raises: ValueError for a reference that cannot be read whole.
  Source: math-verify, https://github.com/huggingface/Math-Verify, for parsing and for prose.
  """
  pool = _math_pool(timeout_seconds, num_workers, memory_bytes)
  pairs = [(math_text(s.answer_text), s.reference) for s in samples]
  # Each pair is checked once: completions of a group often agree.
  unique = list(dict.fromkeys(pair for pair in pairs if pair[0] is not None))
  verdicts = dict(zip(unique, pool.map(unique, on_failure=False), strict=True))
  judged = [verdicts.get(pair, False) for pair in pairs]
  for sample, verdict in zip(samples, judged):
    if isinstance(verdict, str):
      raise ValueError(_bad_reference("math_answer", sample.reference, verdict, sample.prompt))
  return abstention.scores(judged)


def math_references(
    references: Sequence[str], *,
    timeout_seconds: float = 5.0,
    num_workers: int | None = None,
    memory_bytes: int = 2 * workers.GIB,
) -> list[str | None]:
  """Lists complaints about references that `math_answer` cannot use, None where there is none.

  It takes milliseconds per reference.
  """
  pool = _math_pool(timeout_seconds, num_workers, memory_bytes)
  unique = list(dict.fromkeys(references))
  late = f"math-verify cannot parse it within {timeout_seconds} s and {memory_bytes} bytes"
  complaints = pool.map([(None, reference) for reference in unique], on_failure=late)
  complaints = dict(
      zip(unique, (c if isinstance(c, str) else None for c in complaints), strict=True))
  return [complaints[reference] for reference in references]


def _math_pool(timeout_seconds, num_workers, memory_bytes) -> workers.WorkerPool:
  return workers.shared_pool(
      "rl_reason.sandbox.math_answers:check_math", timeout_seconds=timeout_seconds,
      num_workers=num_workers, memory_bytes=memory_bytes, on_stopped=None)


# --- References


def _bad_reference(reward: str, reference: str, complaint: str, prompt: str) -> str:
  return (
      f"{reward} cannot use the reference {_head(reference)}: {complaint}. Its prompt:"
      f" {_head(prompt)}. Correct"
      " the data; RewardSet.check_references finds all such rows before a run.")


def _raise_bad_references(reward: str, samples: Sequence[Sample], check) -> None:
  for sample, complaint in zip(samples, check([s.reference for s in samples]), strict=True):
    if complaint:
      raise ValueError(_bad_reference(reward, sample.reference, complaint, sample.prompt))


def _head(text: str, length: int = 80) -> str:
  return repr(text if len(text) <= length else text[:length] + "...")


exact_answer.check_references = exact_references
exact_match.check_references = match_references
tail_verdict.check_references = verdict_references
number_answer.check_references = number_references
math_answer.check_references = math_references
math_answer.per_sample = True  # Slow enough to begin while others are sampled.
