"""Turns a finished reward model into a function of text.

Texts are encoded, batched into few shapes, and scored by one jitted, sharded program.
"""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from rl_reason.batches import packing
from rl_reason.batches.responses import (
  encode,
  encode_conversations,
  Encoded,
  Layout,
  with_critiques,
)
from rl_reason.judges.critiques import Critiques
from rl_reason.models import policy, reward_model, reward_model_files
from rl_reason.models import tokenizer as tokenizers
from rl_reason.models.config import ModelConfig
from rl_reason.models.reward_model import ResponseBatch, RewardModel
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.runtime import sharding
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Message, Params

NORMALISATIONS = ("none", "mean", "mean_std")


class Loaded(NamedTuple):
  """A model whose parameters have been read.

  run: a batch placed on the devices -> scores.
  mean: of the model's recent scores in training, per output.
  std: of the same scores, per output.
  """
  run: Callable[[ResponseBatch], Float[Array, "P G K A"]]
  mean: Float[np.ndarray, "A"]
  std: Float[np.ndarray, "A"]


class RowScores(NamedTuple):
  """The scores of one prompt's G responses.

  places: scores at the places of each response.
  totals: scores of each response as a whole.
  """
  places: list[Float[np.ndarray, "K A"]]
  totals: Float[np.ndarray, "G A"]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Scores texts with a reward model that no longer learns.

  load: reads its parameters, when it is first asked.
  tokenizer: the model's own.
  outputs: what its numbers are, e.g. attributes.
  reads: where it can be read (responses.READINGS), the usual one first; or "conversation" alone:
    prompt and response are one text (responses.encode_conversations).
  layout: of its batches.
  max_positions: the context of its decoder.
  partitioning: of the devices that run it.
  separator: of steps (responses.encode).
  aggregate: one score from those at a response's places (reward_model.AGGREGATES).
  cumulative: whether a place's score is that of all up to it, so that differences are what each
    step or token earns.
  normalise: "mean": the mean in training is subtracted from the scores of places; "mean_std": they
    are divided by their standard deviation, too.
  critiques: written of each response first, which the model was trained to read with it; None:
    there are none.
  load_states: `load` of the hidden states below the head (states_of); None: there is no head.
  """
  load: Callable[[], Loaded]
  tokenizer: Tokenizer
  outputs: tuple[str, ...]
  reads: tuple[str, ...]
  layout: Layout
  max_positions: int
  partitioning: Partitioning
  separator: str = "\n"
  aggregate: str = "last"
  cumulative: bool = False
  normalise: str = "none"
  critiques: Critiques | None = None
  load_states: Callable[[], Loaded] | None = None

  @functools.cached_property
  def loaded(self) -> Loaded:
    return self.load()

  def encode(
      self, prompt: str | Sequence[Message], responses: Sequence[str | Sequence[str]],
      read: str = "") -> Encoded:
    """Encodes one row, as `encode_rows`."""
    return self.encode_rows([(prompt, responses)], read)[0]

  def encode_rows(
      self, rows: Sequence[tuple[str | Sequence[Message], Sequence[str | Sequence[str]]]],
      read: str = "") -> list[Encoded]:
    """Encodes rows, with their critiques if there are any.

    Args:
      rows: (prompt, responses), as responses.encode takes them.
      read: where the model is read, one of `reads`; "": the usual one.

    Raises: ValueError where the model is not read there.
    """
    for prompt, given in rows:
      if isinstance(given, str):  # Its characters would be taken for responses.
        raise ValueError(
            f"responses must be a list of texts, got {given[:120]!r} to the prompt"
            f" {str(prompt)[:80]!r}: for one response write [text].")
    read = read or self.reads[0]
    if read not in self.reads:
      raise ValueError(
          f"This model is read at {' or '.join(self.reads)}, not at {read}: train one with"
          f" read={read!r}.")
    if read == "conversation":
      return [encode_conversations(self.tokenizer, prompt, given) for prompt, given in rows]
    encoded = [encode(self.tokenizer, prompt, given, read=read, separator=self.separator)
               for prompt, given in rows]
    if self.critiques is None:
      return encoded
    return with_critiques(
        self.critiques, self.tokenizer, rows, encoded, max_positions=self.max_positions,
        max_response_tokens=self.layout.max_response_tokens)

  def __call__(self, rows: Sequence[Encoded]) -> list[RowScores]:
    """Scores these rows, in their order.

    Several processes give each its own rows, and must call together.

    Raises: ValueError for a prompt and response that are longer than the decoder's context.
    """
    if jax.process_count() == 1:
      return self._score(rows)
    # All processes score all rows: their devices run one program.
    parts = sharding.gather_objects([dataclasses.asdict(r) for r in rows])
    first = sum(map(len, parts[:jax.process_index()]))
    return self._score(
        [Encoded(**row) for part in parts for row in part])[first:first + len(rows)]

  def totals(
      self, texts: Sequence[tuple[str | Sequence[Message], str]]) -> Float[np.ndarray, "N A"]:
    """Computes one score of each response to its prompt.

    Args:
      texts: (prompt, response) pairs; a prompt is a text or chat messages.

    Raises: ValueError for an entry that is no such pair.
    """
    if not texts:
      return np.zeros((0, len(self.outputs)), np.float32)
    for i, pair in enumerate(texts):
      _check_pair(pair, i)
    return np.stack([
        row.totals[0]
        for row in self(self.encode_rows([(prompt, [text]) for prompt, text in texts]))])

  def _score(self, rows):
    if not rows:
      return []
    size, layout = max(len(r.responses) for r in rows), self._layout_for(rows)
    # Passes of one size, a power of two; the last one is filled up.
    tokens = layout.max_prompt_tokens + size * layout.max_response_tokens
    # As many rows at once as fit into one pass, and at least one for each part of the batch.
    limit = min(packing.tokens_per_pass() * layout.ways // tokens, len(rows))
    at_once = max(layout.ways, 1 << max(limit.bit_length() - 1, 0))
    scored = []
    for start in range(0, len(rows), at_once):
      part = rows[start:start + at_once]
      # Filled up with copies of a row, which are cut off below.
      batch, mask = layout.batch([*part, *part[:1] * (at_once - len(part))], size=size)
      with self.partitioning.use():
        places, totals = self._programs(
            self.partitioning.place(batch, ("batch",)), self.partitioning.place(mask, ("batch",)))
        places, totals = sharding.fetch(places), sharding.fetch(totals)
      scored += [
          RowScores([places[p, g, :len(at)] for g, at in enumerate(row.places)],
                    totals[p, :len(row.places)])
          for p, row in enumerate(part)]
    return scored

  def _programs(self, batch, mask):
    run, mean, std = self.loaded
    shift, scale = {
        "none": (0.0, 1.0), "mean": (mean, 1.0),
        "mean_std": (mean, np.maximum(std, 1e-6))}[self.normalise]
    return _finish(run(batch), mask, shift, scale, how=self.aggregate)

  def _layout_for(self, rows) -> Layout:
    """Returns the layout with room for these rows: doubled until they fit.

    Doubling keeps the number of shapes, and so of compiled programs, small.
    """
    prompt, response = (
        max(len(r.prompt) for r in rows), max(len(i) for r in rows for i in r.responses))
    if prompt + response > self.max_positions:
      raise ValueError(
          f"A prompt of {prompt} tokens and a response of {response} exceed the reward model's"
          f" context of {self.max_positions} tokens: lower the policy's max_prompt_tokens or"
          " max_tokens, or take a reward model with a longer context.")
    def room(have, need):
      while have < need:
        have *= 2
      return min(have, self.max_positions)
    return dataclasses.replace(
        self.layout, max_prompt_tokens=room(self.layout.max_prompt_tokens, prompt),
        max_response_tokens=room(self.layout.max_response_tokens, response))


def _check_pair(pair: Any, index: int) -> None:
  """Raises: ValueError for what is no pair of a prompt and a response."""
  # A text of two characters can be unpacked too, and is no pair.
  if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(
      isinstance(part, (str, list, tuple)) for part in pair):
    raise ValueError(
        f"texts[{index}] must be a pair (prompt, response), got {str(pair)[:120]!r}: a response is"
        ' scored as the answer to its prompt. Write totals([("2+2=", "4")]).')


@functools.partial(jax.jit, static_argnames="how")
def _finish(scores, mask, shift, scale, *, how):
  scores = (scores - shift) / scale
  return scores, reward_model.aggregate(scores, mask, how=how)


def states_of(scorer: Scorer) -> Scorer:
  """Reads the same model below its head.

  Its numbers are then the last hidden state that the head reads of a response.

  Raises: ValueError for a model without a head.
  """
  if scorer.load_states is None:
    raise ValueError(
        "This model has no head, so no hidden state is read in its place: take a stage of kind"
        " 'reward_model'.")
  return dataclasses.replace(
      scorer, load=scorer.load_states, outputs=(), aggregate="last", normalise="none")


def states_below_head(model: RewardModel, params: Params, *, dtype: jnp.dtype) -> Loaded:
  """Loads a trained decoder that gives its hidden states in place of scores."""
  run = jax.jit(functools.partial(reward_model.states, model, dtype=dtype))
  return Loaded(lambda batch: run(params, batch).astype(jnp.float32), np.zeros(1), np.ones(1))


def from_head(model: RewardModel, params: Params, *, dtype: jnp.dtype) -> Loaded:
  """Loads a trained decoder and head."""
  run = jax.jit(functools.partial(reward_model.scores, model, dtype=dtype))
  mean, std = reward_model.mean_and_std(params["frozen"]["normaliser"])
  return Loaded(functools.partial(run, params), np.asarray(mean), np.asarray(std))


def from_files(
    path: str | Path, partitioning: Partitioning,
    date: Callable[[], datetime.date] = datetime.date.today,
) -> Scorer:
  """Makes the scorer of a reward model in a Hugging Face directory, public or saved from here.

  Args:
    path: the directory.
    partitioning: the devices that score.
    date: returns the day that the chat template is told, if it asks for the date.

  Raises: FileNotFoundError and ValueError as reward_model_files.read_stored and tokenizer.load.
  """
  stored = reward_model_files.read_stored(path)
  tokenizer = tokenizers.at_date(tokenizers.load(path), date)
  model, dtype = stored.model, jnp.float32

  def params():
    shardings = partitioning.params(
        reward_model.abstract_params(model), reward_model.parameter_axes(model))
    return reward_model_files.load(path, shardings=shardings)[1]
  layout = Layout.of(
      model.config, dtype, max_prompt_tokens=64, max_response_tokens=64,
      ways=partitioning.ways("batch"))
  return Scorer(
      load=lambda: from_head(model, params(), dtype=dtype),
      load_states=lambda: states_below_head(model, params(), dtype=dtype),
      tokenizer=tokenizer, outputs=stored.outputs, reads=(stored.read,), layout=layout,
      max_positions=model.config.max_positions, partitioning=partitioning,
      separator=stored.separator, aggregate=stored.aggregate)


def implicit(
    config: ModelConfig, params: Params, reference: Params, *, beta: float, dtype: jnp.dtype,
) -> Loaded:
  """Loads the reward that a policy trained on preferences is optimal for: beta log π / π_ref.

  At a place it is that of the response up to and including the place, so that differences are
  rewards per token (Rafailov et al. 2024, arXiv:2404.12358).

  Source: Rafailov et al. 2023, eq. 5.
  """
  @jax.jit
  def run(params, reference, batch):
    ours, theirs = (
        policy.response_logprobs(config, p, batch, dtype=dtype) for p in (params, reference))
    return jnp.take_along_axis(
        jnp.cumsum(beta * (ours - theirs), axis=-1), batch.places, axis=-1)[..., None]

  return Loaded(functools.partial(run, params, reference), np.zeros(1), np.ones(1))
