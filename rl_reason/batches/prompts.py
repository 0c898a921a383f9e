"""Turns prompts into right-padded token arrays."""

from collections.abc import Sequence

import numpy as np

from rl_reason.arrays import PromptBatch
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.types import Problem


def encode_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, max_tokens: int, bucket: int = 32,
) -> PromptBatch:
  """Tokenises prompts and pads them on the right to the next multiple of `bucket` (one program per bucket).

  Raises: ValueError for an empty prompt and for one longer than `max_tokens`, naming it.
  """
  rows = [tokenizer.encode_prompt(p.prompt) for p in problems]
  for problem, row in zip(problems, rows):
    if not row:
      raise ValueError(f"Problem {problem.id!r} has an empty prompt: the policy needs at least one token to start from.")
    if len(row) > max_tokens:
      raise ValueError(
          f"The prompt of problem {problem.id!r} has {len(row)} tokens, the limit max_prompt_tokens is {max_tokens}:"
          f" raise the limit, or drop such rows. It starts {str(problem.prompt)[:80]!r}.")
  size = min(-(-max(map(len, rows)) // bucket) * bucket, max_tokens)
  return PromptBatch(tokens=pad_rows(rows, size), lengths=np.array([len(r) for r in rows], np.int32))


def pad_rows(rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
  """Rows of ids -> [N, size] int32, zeros on the right."""
  out = np.zeros((len(rows), size), np.int32)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out
