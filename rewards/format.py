"""Rewards the shape of a completion: markers, tags and length. It never sees the reference."""

from __future__ import annotations

from collections.abc import Sequence
import re

from jaxtyping import Float
import numpy as np

from rl_reason.rewards.composition import abstention
from rl_reason.sandbox import pool as workers
from rl_reason.sandbox.answer_text import last_boxed
from rl_reason.types import Sample


def boxed_format(samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
  r"""Pays for format, in {0, 1}: 1 if the last \boxed{...} is closed and not blank."""
  return np.array([bool((last_boxed(s.answer_text) or "").strip()) for s in samples], np.float32)


def answer_marker_format(
    samples: Sequence[Sample], *, marker: str = "####") -> Float[np.ndarray, "N"]:
  """Pays for format, in {0, 1}: 1 if `marker` occurs exactly once, before a last non-blank line.

  Exactly one non-blank line follows the marker, and nothing after that.

  Raises: ValueError for a blank marker.
  """
  if not marker.strip():
    raise ValueError(
        f"answer_marker_format: marker must not be blank, got {marker!r}. Set args.marker, e.g."
        " '####'.")
  answers = [s.own_text.split(marker) for s in samples]
  return np.array(
      [len(a) == 2 and len(a[1].strip().splitlines()) == 1 for a in answers], np.float32)


def think_format(samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
  """Pays for format, in {0, 1}: 1 for "<think>...</think>", then an answer; each tag once.

  Neither the thought nor the answer may be blank. Where the prompt itself ends with "<think>", as
  some chat templates do, the completion begins inside the tag.

  Source: DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2 (the format reward; its "<answer>" tags
    are left to `pattern_format`).
  """
  def well_formed(sample):
    text = (("<think>" if sample.prompt.rstrip().endswith("<think>") else "")
            + sample.own_text.lstrip())
    if not text.startswith("<think>") or text.count("<think>") != 1 or text.count("</think>") != 1:
      return False
    thought, answer = text.removeprefix("<think>").split("</think>")
    return bool(thought.strip() and answer.strip())
  return np.array([well_formed(s) for s in samples], np.float32)


def pattern_format(
    samples: Sequence[Sample], *, pattern: str, max_characters: int = 100_000,
    timeout_seconds: float = 2.0,
) -> Float[np.ndarray, "N"]:
  """Pays for format, in {0, 1}: 1 if the regular expression matches the whole completion.

  "." matches newlines too. Even "<a>.*</a>.*<b>.*</b>" takes quadratic time where a policy repeats
  a tag, and nested repeats take exponential time: completions are matched in workers.

  Args:
    samples: completions.
    pattern: a regular expression of Python's.
    max_characters: of a completion; a longer one scores 0.
    timeout_seconds: wall-clock limit of one match; a later one scores 0 and is counted
      (`sandbox.pool.failure_counts`). It abstains (composition.abstention) where the worker was
      killed or stopped twice.

  Raises: ValueError for a pattern that does not compile.
  """
  try:
    re.compile(pattern, re.DOTALL)
  except re.error as error:
    raise ValueError(
        f"pattern_format: {pattern!r} is not a regular expression ({error}): correct"
        " it.") from error
  # Completions of a group often agree.
  short = [s.own_text for s in samples if len(s.own_text) <= max_characters]
  texts = list(dict.fromkeys(short))
  pool = workers.shared_pool(
      "rl_reason.sandbox.patterns:matches", timeout_seconds=timeout_seconds, on_stopped=None)
  found = pool.map([(pattern, text) for text in texts], on_failure=False)
  matched = dict(zip(texts, found, strict=True))
  return abstention.scores([matched.get(s.own_text, False) for s in samples])


def overlong_penalty(
    samples: Sequence[Sample], *, limit_tokens: int, buffer_tokens: int,
) -> Float[np.ndarray, "N"]:
  """Penalises length, in [-1, 0]: 0 up to limit − buffer tokens, −1 from `limit_tokens` on.

  Between the two it falls linearly:

      penalty = clip((limit − buffer − length) / buffer, −1, 0)

  Lengths are those of the policy's own tokens, EOS included. With `limit_tokens` the sampler's own limit,
  only truncated (or just finished) completions get −1.

  Raises: ValueError unless 0 < buffer_tokens <= limit_tokens, and for a sample with text but
    without tokens.
  Source: Yu et al. 2025 (DAPO, soft overlong punishment), arXiv:2503.14476, eq. 13.
  """
  if not 0 < buffer_tokens <= limit_tokens:
    raise ValueError(
        "overlong_penalty needs 0 < buffer_tokens <= limit_tokens, got"
        f" buffer_tokens={buffer_tokens}, limit_tokens={limit_tokens}: the penalty grows from limit"
        " - buffer to limit.")
  for sample in samples:
    if sample.completion and not sample.completion_tokens:
      raise ValueError(
          "overlong_penalty counts completion_tokens, but the sample with completion"
          f" {sample.completion[:80]!r} has none: fill Sample.completion_tokens where samples are"
          " made.")
  # A sample without tokens has been refused above, for it would count as short.
  lengths = np.array([len(s.own_tokens) for s in samples], np.float32)
  return np.clip(
      (limit_tokens - buffer_tokens - lengths) / np.float32(buffer_tokens), -1.0, 0.0,
  ).astype(np.float32)
