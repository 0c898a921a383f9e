"""Encodes prompts and responses, finds the places of scores, and lays out rows.

A layout leaves little padding, and has few shapes.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool
import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.batches import packing
from rl_reason.batches.prompts import pad_rows
from rl_reason.judges.critiques import Critiques
from rl_reason.models.config import ModelConfig
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.models.reward_model import ResponseBatch
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.types import Comparison, Message

# Where scores are read: at the token that ends the response, at each step's last token, or at every
# token.
READINGS = ("end", "steps", "tokens")


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Holds a prompt with its responses as ids.

  prompt: ids of the prompt.
  responses: ids of each response.
  places: per response the places among its ids where scores are read, in rising order.
  steps: per response and place, the index of the response's step that the place is in.
  """
  prompt: list[int]
  responses: list[list[int]]
  places: list[list[int]]
  steps: list[list[int]]


def split_steps(response: str, separator: str) -> list[str]:
  """Splits a text into its steps, at least one; each step has the separator that ends it.

  Blank steps are joined to the step before, or to the first step.
  """
  parts = response.split(separator) if separator else [response]
  steps, before = [], ""
  for part, end in zip(parts, [separator] * (len(parts) - 1) + [""]):
    if part.strip():
      steps.append(before + part + end)
      before = ""
    elif steps:
      steps[-1] += part + end
    else:
      before += part + end
  return steps or [before]


def encode(
    tokenizer: Tokenizer, prompt: str | Sequence[Message],
    responses: Sequence[str | Sequence[str]], *, read: str, separator: str = "\n",
) -> Encoded:
  """Encodes a prompt and its responses.

  Args:
    tokenizer: tokenizer of the model.
    prompt: text or messages.
    responses: texts, or lists of their steps, which are tokenised one by one. Texts read at steps
      are split at the separator.
    read: one of READINGS. Read at steps, a response has no end (Tokenizer.end_id), so that an
      unfinished one is read in the same way.
    separator: text that ends a step.
  """
  ids, places, steps = [], [], []
  for response in responses:
    if read == "steps" and isinstance(response, str):
      response = split_steps(response, separator)
    parts = [tokenizer.encode(part)
             for part in ([response] if isinstance(response, str) else response)]
    # An empty response has no step to read, so it is read at its end.
    if read != "steps" or not any(parts):
      parts[-1].append(tokenizer.end_id(prompt))
    # One after the last token of each step: the places, and the step of each place, follow from it.
    ends = np.cumsum([len(part) for part in parts])
    ids.append([i for part in parts for i in part])
    places.append(
        {"end": ends[-1:] - 1, "steps": ends - 1, "tokens": np.arange(ends[-1])}[read].tolist())
    steps.append(np.searchsorted(ends, places[-1], side="right").tolist())
  return Encoded(tokenizer.encode_prompt(prompt), ids, places, steps)


def encode_conversations(
    tokenizer: Tokenizer, prompt: str | Sequence[Message],
    responses: Sequence[str | Sequence[str]],
) -> Encoded:
  """Encodes conversations as public reward models read them: whole, scored at the last token.

  The ids that all responses begin with are the prompt. They are found in the ids and not in the
  text, so that every conversation has the tokens that it has alone.

  Args:
    tokenizer: tokenizer of the model.
    prompt: text or messages.
    responses: texts, or lists of their steps.
  """
  whole = [tokenizer.encode_conversation(prompt, r if isinstance(r, str) else "".join(r))
           for r in responses]
  # One token at least stays with each response: its score is read there.
  shared = min(map(len, whole)) - 1
  for i in range(shared):
    if any(ids[i] != whole[0][i] for ids in whole):
      shared = i
      break
  # A single response shares all of its ids with itself: then its prompt is what precedes it.
  if len(whole) == 1:
    shared = min(shared, len(tokenizer.encode_prompt(prompt)))
  ids = [each[shared:] for each in whole]
  return Encoded(whole[0][:shared], ids, [[len(i) - 1] for i in ids], [[0] for _ in ids])


def plain_text(prompt: str | Sequence[Message]) -> str:
  """Writes a prompt as text, up to where the assistant speaks.

  Messages are written as "Role: content", with a blank line between them.
  """
  if isinstance(prompt, str):
    return prompt
  return "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in prompt) + "Assistant:"


def with_critiques(
    critiques: Critiques, tokenizer: Tokenizer,
    rows: Sequence[tuple[str | Sequence[Message], Sequence[str]]],
    encoded: Sequence[Encoded], *, max_response_tokens: int, max_positions: int,
) -> list[Encoded]:
  """Appends the marker and a critique to each response that is read at its end.

  Response and critique have one common end, where both are read. A critique is cut to the room that
  its response leaves. A response stays alone where it has no critique or no room for one, or where
  the tokenizer cannot read the critique (which is counted).

  Args:
    critiques: writes the critiques, and counts what went wrong.
    tokenizer: tokenizer of the model.
    rows: (prompt, responses) as text, of which `encoded` are the ids (read="end").
    encoded: the same rows as ids.
    max_response_tokens: most tokens of response and critique.
    max_positions: most tokens of prompt, response and critique.
  """
  # All critiques are asked for in one call, in the order of the responses.
  found = iter(critiques(
      [(plain_text(prompt), text) for prompt, texts in rows for text in texts]))
  out = []
  for row in encoded:
    size = min(max_response_tokens, max_positions - len(row.prompt))
    ids = []
    for *response, end in row.responses:
      critique = next(found)
      try:
        added = tokenizer.encode(critiques.marker + critique) if critique else []
      except ValueError:
        critiques.counts["unreadable"] += 1
        added = []
      # One place is kept for the end.
      ids.append([*response, *added[:max(0, size - len(response) - 1)], end])
    out.append(dataclasses.replace(row, responses=ids, places=[[len(i) - 1] for i in ids]))
  return out


def encode_comparison(
    tokenizer: Tokenizer, row: Comparison, *, read: str, separator: str = "\n") -> Encoded:
  """Encodes all responses of a comparison; uses the row's own steps where it has them.

  The arguments are those of `encode`.
  """
  steps = row.steps or ((),) * len(row.responses)
  return encode(
      tokenizer, row.prompt,
      [[s.text for s in given] or text for text, given in zip(row.responses, steps)],
      read=read, separator=separator)


def too_long(encoded: Encoded, *, max_prompt_tokens: int, max_response_tokens: int) -> str:
  """Says what is wrong with the lengths, or returns ""."""
  if not encoded.prompt:
    return "an empty prompt: a response needs at least one token to follow"
  if len(encoded.prompt) > max_prompt_tokens:
    return (f"a prompt of {len(encoded.prompt)} tokens, the limit max_prompt_tokens is"
            f" {max_prompt_tokens}")
  longest = max(map(len, encoded.responses))
  if longest > max_response_tokens:
    return (f"a response of {longest} tokens, its end included, and the limit max_response_tokens"
            f" is {max_response_tokens}")
  return ""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Says how rows of text become arrays of few shapes.

  max_prompt_tokens: most tokens of a prompt.
  max_response_tokens: most tokens of a response.
  bucket: tokens to whose multiple prompts are padded.
  ways: number of devices that share the rows.
  together: several responses may share a row.
  """
  max_prompt_tokens: int
  max_response_tokens: int
  bucket: int = 32
  ways: int = 1
  together: bool = True

  @classmethod
  def of(cls, model: ModelConfig, dtype: jnp.dtype, **fields) -> "Layout":
    """Makes the layout for a model: responses share rows where the reference attention runs.

    Flash kernels can only read rows of one sequence.
    """
    kernel = attention_kernel(model, dtype, fields["max_response_tokens"], jax.devices()[0])
    return cls(**fields, together=kernel == "reference")

  def batch(
      self, rows: Sequence[Encoded], *, parts: int = 1, size: int = 0,
  ) -> tuple[ResponseBatch, Bool[np.ndarray, "P G K"]]:
    """Lays out a batch, in host arrays.

    Args:
      rows: P prompts with their responses.
      parts: number of equal stretches into which the rows can be cut.
      size: the least G. G is the most responses that a row has, or `size` if that is more.

    Returns: (the batch, which places exist). K is 1 or a power of two.
    """
    count, size = len(rows), max(size, max(len(r.responses) for r in rows))
    most = max(len(p) for r in rows for p in r.places)
    places = np.zeros((count, size, 1 << (most - 1).bit_length()), np.int32)
    mask = np.zeros(places.shape, bool)
    # Rows with fewer responses get empty ones, so that every group has G.
    responses = [
        r.responses[g] if g < len(r.responses) else [] for r in rows for g in range(size)]
    lengths = np.array([len(r) for r in responses], np.int32)
    rooms = packing.Packing.of(
        lengths, size, self.max_response_tokens, divisor=parts * self.ways, together=self.together)
    tokens = pad_rows(responses, max(1, int(lengths.max())))
    # Which response of its group a token is part of, counted from 1; 0 is padding.
    owners = np.broadcast_to(
        1 + np.arange(count * size, dtype=np.int32)[:, None] % size, tokens.shape)
    per_prompt = rooms.num_rows // count
    # The places move with the responses: they are counted in the rows of their group.
    for p, row in enumerate(rows):
      for g, at in enumerate(row.places):
        i = p * size + g
        places[p, g, :len(at)] = (
            (rooms.row[i] - p * per_prompt) * rooms.size + rooms.start[i] + np.array(at))
        mask[p, g, :len(at)] = True
    longest = max(len(r.prompt) for r in rows)
    prompts = Inputs(
        pad_rows([r.prompt for r in rows],
                 min(-(-longest // self.bucket) * self.bucket, self.max_prompt_tokens)),
        np.array([len(r.prompt) for r in rows], np.int32))
    return ResponseBatch(
        prompts, rooms.pack(tokens), rooms.row_lengths, places, rooms.pack(owners),
        rooms.segments), mask
