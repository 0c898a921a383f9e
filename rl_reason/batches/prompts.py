"""Turns prompts into right-padded token arrays."""

from collections.abc import Sequence

import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.types import Problem


def encode_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, max_tokens: int, bucket: int = 32,
) -> Inputs:
  """Tokenises prompts, and pads them on the right to the next multiple of `bucket`.

  Each multiple is a shape, and so a program to compile.

  Args:
    problems: problems, of which the prompts are encoded.
    tokenizer: tokenizer of the policy.
    max_tokens: most tokens of a prompt; also the most to which prompts are padded.
    bucket: tokens to whose multiple prompts are padded.
  Raises: ValueError for an empty prompt and for one longer than `max_tokens`, with its name.
  """
  rows = [tokenizer.encode_prompt(p.prompt) for p in problems]
  for problem, row in zip(problems, rows):
    if not row:
      raise ValueError(f"Problem {problem.id!r} has an empty prompt: the policy needs at least one"
                       " token to start from.")
    if len(row) > max_tokens:
      raise ValueError(
          f"The prompt of problem {problem.id!r} has {len(row)} tokens, the limit max_prompt_tokens"
          f" is {max_tokens}: raise the limit, or drop such rows. It starts"
          f" {str(problem.prompt)[:80]!r}.")
  size = min(-(-max(map(len, rows)) // bucket) * bucket, max_tokens)
  return Inputs(tokens=pad_rows(rows, size), lengths=np.array([len(r) for r in rows], np.int32))


def pad_rows(rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
  """Pads rows of ids to [N, size] int32, with zeros on the right."""
  out = np.zeros((len(rows), size), np.int32)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out
