"""Worked solutions -> token rows to imitate: what is read, what of it is learnt, several examples to a row.

A problem's solution is text, which the policy learns whole, or messages, of which it learns the assistant's and reads the
others': tool results, a user's next question. Text between the markers of `unlearnt` is read and not learnt either.
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
  """B whole texts, prompt and what follows it, right-padded; arrays on the host.

  learnt: tokens that are imitated. Never the first of a text, which nothing predicts.
  """
  tokens: Int[np.ndarray, "B T"]
  learnt: Bool[np.ndarray, "B T"]
  lengths: Int[np.ndarray, "B"]

  @classmethod
  def of(cls, rows: Sequence[Sequence[tuple[Sequence[int], bool]]], max_tokens: int) -> "Examples":
    """From the pieces of each text, (ids, whether they are learnt), padded to max_tokens."""
    tokens = [[i for ids, _ in pieces for i in ids] for pieces in rows]
    learnt = pad_rows([[is_learnt for ids, is_learnt in pieces for _ in ids] for pieces in rows], max_tokens) > 0
    learnt[:, 0] = False
    return cls(pad_rows(tokens, max_tokens), learnt, np.array([len(row) for row in tokens], np.int32))


def encode(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, max_prompt_tokens: int, max_completion_tokens: int,
    loss_on: str = "completion", unlearnt: Sequence[tuple[str, str]] = (),
) -> Examples:
  """Problems with solutions -> examples of max_prompt_tokens + max_completion_tokens.

  Pieces between which authors or `unlearnt` change are tokenised by themselves, as they are in a rollout, where a tool's
  words are appended to the policy's tokens. The end is learnt: EOS, or what the chat template writes after a turn.

  Args:
    loss_on: "completion": what the assistant says after the prompt. "text": every token, prompts and others' words too.
    unlearnt: (start, end) of stretches of a solution that are not learnt, markers included, such as
      ("<information>", "</information>"); one that is not ended goes on to the end of the text.
  Raises: ValueError for a problem without a solution or with nothing to learn in it, for one that is too long, and for
    messages that cannot be told apart (Tokenizer.encode_chat).
  """
  split, rows = _splitter(unlearnt), []
  prompts = encode_prompts(problems, tokenizer, max_tokens=max_prompt_tokens)
  for problem, prompt, length in zip(problems, prompts.tokens, prompts.lengths):
    prompt = prompt[:length].tolist()
    pieces = [(prompt, loss_on == "text"), *_solution(problem, tokenizer, split, loss_on)]
    count = sum(len(ids) for ids, _ in pieces[1:])
    if count > max_completion_tokens:
      raise ValueError(f"The solution of problem {problem.id!r} has {count} tokens with EOS, the limit"
                       f" max_completion_tokens is {max_completion_tokens}: raise it, or drop such rows.")
    if not any(is_learnt and ids for ids, is_learnt in pieces):
      raise ValueError(f"Nothing in the solution of problem {problem.id!r} is to be learnt: no message in it is the"
                       " assistant's. Drop such rows.")
    rows.append(pieces)
  return Examples.of(rows, max_prompt_tokens + max_completion_tokens)


def _solution(problem: Problem, tokenizer: Tokenizer, split, loss_on: str) -> list[tuple[list[int], bool]]:
  """(ids, whether they are learnt) of what follows the prompt."""
  if not problem.solution:
    raise ValueError(f"Problem {problem.id!r} has no solution to imitate: give the task one (for files, `solution` is a"
                     " template over the columns), or leave the supervised stage out.")
  everything = loss_on == "text"
  if isinstance(problem.solution, str):
    said = [{"role": "assistant", "content": problem.solution}]
  else:
    said = list(problem.solution)
    if said[-1]["role"] != "assistant":
      raise ValueError(f"The solution of problem {problem.id!r} ends with a message of {said[-1]['role']!r}: nothing is"
                       " learnt from what comes after the assistant's last one. Leave it out.")
  if isinstance(problem.solution, str) or isinstance(problem.prompt, str):
    pieces = [(tokenizer.encode(text), kept and (everything or message["role"] == "assistant"))
              for message in said for text, kept in split(message["content"])]
  else:
    try:
      chat = tokenizer.encode_chat(problem.prompt, said, split)
    except ValueError as error:
      raise ValueError(f"Problem {problem.id!r}: {error}") from error
    pieces = [(ids, kept and (everything or author == "assistant")) for ids, author, kept in chat]
    if pieces[-1][0][-1:] and pieces[-1][0][-1] in tokenizer.stop_ids:
      return pieces
  return [*pieces, ([tokenizer.eos_id], True)]


def _splitter(unlearnt: Sequence[tuple[str, str]]):
  """Text -> its parts in order, (text, whether it is outside all markers)."""
  if not unlearnt:
    return lambda text: [(text, True)]
  marked = re.compile("(" + "|".join(f"{re.escape(a)}.*?(?:{re.escape(b)}|\\Z)" for a, b in unlearnt) + ")", re.DOTALL)
  return lambda text: [(part, i % 2 == 0) for i, part in enumerate(marked.split(text)) if part]


def to_batch(
    examples: Examples, *, mean_over: str, max_tokens: int, divisor: int = 1, together: bool = True,
) -> TextBatch:
  """Rows of whole examples; host arrays. Losses and gradients are those of a row per example.

  Args:
    mean_over, max_tokens: losses.token_weights, over learnt tokens.
    divisor, together: packing.Packing.of; kernels of flash attention know rows of one example only.
  """
  size = examples.tokens.shape[1]
  weights = np.asarray(losses.token_weights(examples.learnt, mean_over=mean_over, max_tokens=max_tokens))
  # All examples are one group, whose rows hardly differ in number from batch to batch: fine steps, few programs.
  rows = Packing.of(
      examples.lengths, len(examples.lengths), size, divisor=divisor, together=together, steps=16)
  learnt, weights = rows.pack(examples.learnt), rows.pack(weights)
  counts = learnt.sum(axis=1, dtype=np.int32)
  # Places of learnt tokens first: logits exist nowhere else.
  targets = np.argsort(~learnt, axis=1, kind="stable")[:, :row_size(counts, rows.size)].astype(np.int32)
  return TextBatch(
      inputs=Inputs(rows.pack(examples.tokens), rows.row_lengths), segments=rows.segments, targets=targets,
      target_lengths=counts, token_weights=np.where(
          length_mask(counts, targets.shape[1]), np.take_along_axis(weights, targets, axis=1), 0.0).astype(np.float32))
