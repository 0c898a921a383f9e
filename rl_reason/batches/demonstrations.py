"""Turns worked solutions into token rows to imitate, several examples to a row.

A problem's solution is a text or messages. The policy learns a text whole. Of messages it learns
the assistant's and only reads the others', such as tool results or a user's next question. Text
between the markers of `unlearnt` is also read but not learnt.
"""

from collections.abc import Sequence
import re

import flax.struct
from jaxtyping import Bool, Int
import numpy as np

from rl_reason.arrays import Inputs, length_mask, TextBatch
from rl_reason.batches.packing import Packing, row_size
from rl_reason.batches.prompts import encode_prompts, pad_rows
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.objectives import losses
from rl_reason.types import Problem

LOSS_ON = ("completion", "text")


@flax.struct.dataclass
class Examples:
  """Holds B whole texts, a prompt and what follows it, right-padded, in arrays on the host.

  tokens: tokens of each text.
  learnt: true at tokens that are imitated; never at the first token of a text, which nothing
    predicts.
  lengths: tokens of each text.
  """
  tokens: Int[np.ndarray, "B T"]
  learnt: Bool[np.ndarray, "B T"]
  lengths: Int[np.ndarray, "B"]

  @classmethod
  def of(cls, rows: Sequence[Sequence[tuple[Sequence[int], bool]]], max_tokens: int) -> "Examples":
    """Makes examples from the pieces of each text.

    Args:
      rows: per text its pieces (ids, whether they are learnt).
      max_tokens: length to which the texts are padded.
    """
    tokens = [[i for ids, _ in pieces for i in ids] for pieces in rows]
    learnt = pad_rows(
        [[is_learnt for ids, is_learnt in pieces for _ in ids] for pieces in rows], max_tokens) > 0
    learnt[:, 0] = False
    return cls(
        pad_rows(tokens, max_tokens), learnt, np.array([len(row) for row in tokens], np.int32))


def encode(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, max_prompt_tokens: int,
    max_completion_tokens: int, loss_on: str = "completion",
    unlearnt: Sequence[tuple[str, str]] = (),
) -> Examples:
  """Encodes problems with solutions as examples of max_prompt_tokens + max_completion_tokens.

  A solution is cut into pieces where the author changes, and where `unlearnt` text begins or ends.
  Pieces are tokenised one by one, as in a rollout, where a tool's words are appended to the
  policy's tokens. The end is learnt, too (Tokenizer.end_id).

  Args:
    problems: problems that have solutions.
    tokenizer: tokenizer of the policy.
    max_prompt_tokens: most tokens of a prompt.
    max_completion_tokens: most tokens of what follows a prompt.
    loss_on: "completion": what the assistant says after the prompt is learnt. "text": every token
      is learnt, also those of prompts and other authors.
    unlearnt: (start, end) markers of stretches of a solution that are not learnt, markers included,
      such as ("<information>", "</information>"). A stretch without an end goes on to the end of
      the text.
  Raises: ValueError for a problem without a solution or with nothing to learn in it, for one that
    is too long, and for messages that cannot be told apart (Tokenizer.encode_chat).
  """
  split, rows = _splitter(unlearnt), []
  prompts = encode_prompts(problems, tokenizer, max_tokens=max_prompt_tokens)
  for problem, prompt, length in zip(problems, prompts.tokens, prompts.lengths):
    prompt = prompt[:length].tolist()
    pieces = [(prompt, loss_on == "text"), *_solution(problem, tokenizer, split, loss_on)]
    count = sum(len(ids) for ids, _ in pieces[1:])
    if count > max_completion_tokens:
      raise ValueError(
          f"The solution of problem {problem.id!r} has {count} tokens with EOS, the limit"
          f" max_completion_tokens is {max_completion_tokens}: raise it, or drop such rows.")
    if not any(is_learnt and ids for ids, is_learnt in pieces):
      raise ValueError(f"Nothing in the solution of problem {problem.id!r} is to be learnt: no"
                       " message in it is the assistant's. Drop such rows.")
    rows.append(pieces)
  return Examples.of(rows, max_prompt_tokens + max_completion_tokens)


def _solution(
    problem: Problem, tokenizer: Tokenizer, split, loss_on: str) -> list[tuple[list[int], bool]]:
  """Lists the pieces (ids, whether they are learnt) of what follows the prompt."""
  if not problem.solution:
    raise ValueError(
        f"Problem {problem.id!r} has no solution to imitate: give the task one (for files,"
        " `solution` is a template over the columns), or leave the supervised stage out.")
  # The solution as messages: a text is one message of the assistant.
  everything = loss_on == "text"
  if isinstance(problem.solution, str):
    said = [{"role": "assistant", "content": problem.solution}]
  else:
    said = list(problem.solution)
    if said[-1]["role"] != "assistant":
      raise ValueError(
          f"The solution of problem {problem.id!r} ends with a message of {said[-1]['role']!r}:"
          " nothing is learnt from what comes after the assistant's last one. Leave it out.")
  # The pieces: plain text one after the other, a chat as its template writes it.
  if isinstance(problem.solution, str) or isinstance(problem.prompt, str):
    pieces = [(tokenizer.encode(text), kept and (everything or message["role"] == "assistant"))
              for message in said for text, kept in split(message["content"])]
  else:
    try:
      chat = tokenizer.encode_chat(problem.prompt, said, split)
    except ValueError as error:
      raise ValueError(f"Problem {problem.id!r}: {error}") from error
    pieces = [(ids, kept and (everything or author == "assistant")) for ids, author, kept in chat]
    # A template that ends a turn with a stop token needs no other end after it.
    if pieces[-1][0][-1:] and pieces[-1][0][-1] in tokenizer.stop_ids:
      return pieces
  return [*pieces, ([tokenizer.end_id(problem.prompt)], True)]


def _splitter(unlearnt: Sequence[tuple[str, str]]):
  """Makes a function: text -> its parts in order, (text, whether it is outside all markers)."""
  if not unlearnt:
    return lambda text: [(text, True)]
  marked = re.compile(
      "(" + "|".join(f"{re.escape(a)}.*?(?:{re.escape(b)}|\\Z)" for a, b in unlearnt) + ")",
      re.DOTALL)
  # A split with a group yields the text outside and the match alternately.
  return lambda text: [(part, i % 2 == 0) for i, part in enumerate(marked.split(text)) if part]


def to_batch(
    examples: Examples, *, mean_over: str, max_tokens: int, divisor: int = 1, together: bool = True,
) -> TextBatch:
  """Packs whole examples into rows; makes host arrays.

  Losses and gradients are those of a row per example.

  Args:
    examples: the examples of the batch.
    mean_over: as in losses.token_weights, over learnt tokens.
    max_tokens: as in losses.token_weights.
    divisor: as in packing.Packing.of.
    together: as in packing.Packing.of; kernels of flash attention can only read rows of one
      example.
  """
  size = examples.tokens.shape[1]
  weights = np.asarray(
      losses.token_weights(examples.learnt, mean_over=mean_over, max_tokens=max_tokens))
  # All examples are one group, whose number of rows hardly differs from batch to batch. So fine
  # steps make few programs.
  rows = Packing.of(
      examples.lengths, len(examples.lengths), size, divisor=divisor, together=together, steps=16)
  learnt, weights = rows.pack(examples.learnt), rows.pack(weights)
  counts = learnt.sum(axis=1, dtype=np.int32)
  # The places of learnt tokens come first, because logits are computed nowhere else.
  targets = np.argsort(~learnt, axis=1, kind="stable")[:, :row_size(counts, rows.size)].astype(
      np.int32)
  return TextBatch(
      inputs=Inputs(rows.pack(examples.tokens), rows.row_lengths), segments=rows.segments,
      targets=targets, target_lengths=counts,
      token_weights=np.where(
          length_mask(counts, targets.shape[1]),
          np.take_along_axis(weights, targets, axis=1), 0.0).astype(np.float32))
