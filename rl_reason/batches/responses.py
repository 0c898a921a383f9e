"""Prompts and responses as text -> ids, the places where scores are read, and a layout with little padding."""

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

# Where scores are read: at the EOS that ends the response, at each step's last token, or at every token.
READINGS = ("end", "steps", "tokens")


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A prompt with its responses as ids.

  places: per response, where among its ids scores are read, rising. steps: per place, which of the response's steps it is in.
  """
  prompt: list[int]
  responses: list[list[int]]
  places: list[list[int]]
  steps: list[list[int]]


def split_steps(response: str, separator: str) -> list[str]:
  """The steps of a text, each with the separator that ends it; blank ones join the step before, or the first. At least one."""
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
    tokenizer: Tokenizer, prompt: str | Sequence[Message], responses: Sequence[str | Sequence[str]], *, read: str,
    separator: str = "\n",
) -> Encoded:
  """Args:
    responses: texts, or their steps, which are tokenised one by one. Texts read at steps are split at the separator.
    read: one of READINGS. Read at steps, a response has no EOS, so that an unfinished one is read alike.
  """
  ids, places, steps = [], [], []
  for response in responses:
    if read == "steps" and isinstance(response, str):
      response = split_steps(response, separator)
    parts = [tokenizer.encode(part) for part in ([response] if isinstance(response, str) else response)]
    if read != "steps" or not any(parts):  # Of an empty response its end is read.
      parts[-1].append(tokenizer.eos_id)
    ends = np.cumsum([len(part) for part in parts])
    ids.append([i for part in parts for i in part])
    places.append({"end": ends[-1:] - 1, "steps": ends - 1, "tokens": np.arange(ends[-1])}[read].tolist())
    steps.append(np.searchsorted(ends, places[-1], side="right").tolist())
  return Encoded(tokenizer.encode_prompt(prompt), ids, places, steps)


def plain_text(prompt: str | Sequence[Message]) -> str:
  """A prompt as text: messages as "Role: content" with a blank line between them, up to where the assistant speaks."""
  if isinstance(prompt, str):
    return prompt
  return "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in prompt) + "Assistant:"


def with_critiques(
    critiques: Critiques, tokenizer: Tokenizer, rows: Sequence[tuple[str | Sequence[Message], Sequence[str]]],
    encoded: Sequence[Encoded], *, max_response_tokens: int, max_positions: int,
) -> list[Encoded]:
  """Responses that are read at their ends -> each followed by the marker, its critique and one end, where both are read.

  A critique is cut to the room that its response leaves it. Where there is no critique or no room, or the tokenizer cannot
  read it (counted), the response stays alone.

  Args:
    rows: (prompt, responses) as text, of which `encoded` are the ids (read="end").
    max_response_tokens: of response and critique. max_positions: of the prompt too.
  """
  found = iter(critiques([(plain_text(prompt), text) for prompt, texts in rows for text in texts]))
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
      ids.append([*response, *added[:max(0, size - len(response) - 1)], end])
    out.append(dataclasses.replace(row, responses=ids, places=[[len(i) - 1] for i in ids]))
  return out


def encode_comparison(tokenizer: Tokenizer, row: Comparison, *, read: str, separator: str = "\n") -> Encoded:
  """Of all the row's responses, whose own steps are used where it has them."""
  steps = row.steps or ((),) * len(row.responses)
  return encode(tokenizer, row.prompt, [[s.text for s in given] or text for text, given in zip(row.responses, steps)],
                read=read, separator=separator)


def too_long(encoded: Encoded, *, max_prompt_tokens: int, max_response_tokens: int) -> str:
  """What is wrong with the lengths, or ""."""
  if not encoded.prompt:
    return "an empty prompt: a response needs at least one token to follow"
  if len(encoded.prompt) > max_prompt_tokens:
    return f"a prompt of {len(encoded.prompt)} tokens, the limit max_prompt_tokens is {max_prompt_tokens}"
  longest = max(map(len, encoded.responses))
  if longest > max_response_tokens:
    return f"a response of {longest} tokens, its end included, and the limit max_response_tokens is {max_response_tokens}"
  return ""


@dataclasses.dataclass(frozen=True)
class Layout:
  """How rows of text become arrays of few shapes.

  max_prompt_tokens, max_response_tokens: nothing is longer. bucket: prompts are padded to a multiple of it.
  ways: devices that share the rows. together: several responses may share a row.
  """
  max_prompt_tokens: int
  max_response_tokens: int
  bucket: int = 32
  ways: int = 1
  together: bool = True

  @classmethod
  def of(cls, model: ModelConfig, dtype: jnp.dtype, **fields) -> "Layout":
    """Responses share rows where the reference attention runs: flash kernels know rows of one sequence."""
    kernel = attention_kernel(model, dtype, fields["max_response_tokens"], jax.devices()[0])
    return cls(**fields, together=kernel == "reference")

  def batch(self, rows: Sequence[Encoded], *, parts: int = 1, size: int = 0) -> tuple[ResponseBatch, Bool[np.ndarray, "P G K"]]:
    """(host arrays, which places there are), G being the most responses that a row has, or `size` if that is more.

    Rows can be cut into `parts` equal stretches. K is 1 or a power of two.
    """
    count, size = len(rows), max(size, max(len(r.responses) for r in rows))
    most = max(len(p) for r in rows for p in r.places)
    places = np.zeros((count, size, 1 << (most - 1).bit_length()), np.int32)
    mask = np.zeros(places.shape, bool)
    responses = [r.responses[g] if g < len(r.responses) else [] for r in rows for g in range(size)]
    lengths = np.array([len(r) for r in responses], np.int32)
    rooms = packing.Packing.of(
        lengths, size, self.max_response_tokens, divisor=parts * self.ways, together=self.together)
    tokens = pad_rows(responses, max(1, int(lengths.max())))
    owners = np.broadcast_to(1 + np.arange(count * size, dtype=np.int32)[:, None] % size, tokens.shape)
    per_prompt = rooms.num_rows // count
    for p, row in enumerate(rows):
      for g, at in enumerate(row.places):
        i = p * size + g
        places[p, g, :len(at)] = (rooms.row[i] - p * per_prompt) * rooms.size + rooms.start[i] + np.array(at)
        mask[p, g, :len(at)] = True
    longest = max(len(r.prompt) for r in rows)
    prompts = Inputs(
        pad_rows([r.prompt for r in rows], min(-(-longest // self.bucket) * self.bucket, self.max_prompt_tokens)),
        np.array([len(r.prompt) for r in rows], np.int32))
    return ResponseBatch(prompts, rooms.pack(tokens), rooms.row_lengths, places, rooms.pack(owners), rooms.segments), mask
