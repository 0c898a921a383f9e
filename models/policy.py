"""Computes what training asks of a policy, and nothing of size [B, T, V].

These are hidden states, log-probabilities and entropies of completion tokens.

Axes: B rows of completions, T tokens of a row, P prompts, R rows of texts, K places in a row,
E width, V vocabulary, G responses to a prompt, N tokens of a prompt's rows.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_reason.arrays import Inputs
from rl_reason.models import transformer
from rl_reason.models.config import ModelConfig
from rl_reason.models.reward_model import ResponseBatch
from rl_reason.types import Params

# Logits computed at once: 2**24 float32 are 64 MiB. Small vocabularies then need no chunks, and the
# logits of large ones stay in cache.
MAX_LOGITS = 2**24


def completion_logprobs(
    config: ModelConfig,
    params: Params,
    prompts: Inputs,
    completions: Int[Array, "B T"],
    completion_lengths: Int[Array, "B"],
    *, segments: Int[Array, "B T"] | None = None, temperature: float = 1.0,
    dtype: jnp.dtype = jnp.float32, remat: str = "none",
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Computes log π(y_t | x, y_<t) of every completion token, and the policy's entropy there.

  Args:
    temperature: the policy is softmax(logits / temperature): use the one that was sampled with.
    others: as in completion_states.

  Returns: (log-probabilities, entropies), in nats, float32; finite but of no meaning where padded.
  """
  states = completion_states(
      config, params, prompts, completions, completion_lengths, segments=segments, dtype=dtype,
      remat=remat)
  return token_logprobs(config, params, states, completions, temperature=temperature)


def completion_states(
    config: ModelConfig,
    params: Params,
    prompts: Inputs,
    completions: Int[Array, "B T"],
    completion_lengths: Int[Array, "B"],
    *, segments: Int[Array, "B T"] | None = None, dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
) -> Float[Array, "B T E"]:
  """Computes the hidden state from which each completion token is predicted.

  That is the hidden state of the token before it. Each prompt is computed once. Its B / P
  completions, adjacent rows, attend to the prompt's keys and values and to themselves.

  Args:
    config: architecture of the policy.
    params: of the policy, with adapters or without (models.lora).
    prompts: P right-padded prompts, at least one token each.
    completions: right-padded; EOS included where it was sampled.
    completion_lengths: real tokens of each row.
    segments: of rows that hold several completions (RolloutBatch.segments).
    dtype: of the computation.
    remat: what the backward pass computes again, a key of models.transformer.REMAT_POLICIES.

  Returns: hidden states after the final norm; finite but of no meaning where padded.
  """
  rows, size = completions.shape
  # Prompts: their keys and values, and the last token's hidden state, which predicts each
  # completion's first token.
  prompt_hidden, prefix = transformer.forward(
      config, params, prompts, dtype=dtype, remat=remat)
  last = jnp.take_along_axis(prompt_hidden, prompts.lengths[:, None, None] - 1, axis=1)
  last = jnp.repeat(last, rows // prompts.tokens.shape[0], axis=0)
  if size == 1:
    return last
  # Completions: each token but the last predicts the next one.
  before = None if segments is None else segments[:, :-1]
  rest, _ = transformer.forward(
      config, params, Inputs(completions[:, :-1], completion_lengths), prefix, segments=before,
      dtype=dtype, remat=remat)
  hidden = jnp.concatenate([last, rest], axis=1)
  if segments is None:
    return hidden
  # Where a completion begins within a row, its first token is predicted by the prompt, too, and not
  # by the end of the completion before it.
  return jnp.where((segments == jnp.arange(size))[..., None], last, hidden)


def response_logprobs(
    config: ModelConfig, params: Params, batch: ResponseBatch, *,
    dtype: jnp.dtype = jnp.float32, remat: str = "none",
) -> Float[Array, "P G N"]:
  """Computes log π of each response's tokens.

  Returns: log-probabilities in nats, at the places of the response's tokens among the N tokens of
    its prompt's rows; 0 elsewhere.
  """
  logprobs, _ = completion_logprobs(
      config, params, batch.prompts, batch.tokens, batch.row_lengths, segments=batch.segments,
      dtype=dtype, remat=remat)
  count, size, _ = batch.places.shape
  # A prompt's rows, laid end to end, against the numbers 1 to G of its responses.
  owned = batch.owners.reshape(count, 1, -1) == 1 + jnp.arange(size)[:, None]
  return jnp.where(owned, logprobs.reshape(count, 1, -1), 0.0)


def text_logprobs(
    config: ModelConfig,
    params: Params,
    inputs: Inputs,
    targets: Int[Array, "R K"],
    *, segments: Int[Array, "R T"] | None = None, dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
) -> Float[Array, "R K"]:
  """Computes log π(y_t | y_<t) of chosen tokens of whole texts (types.TextBatch).

  Args:
    inputs: the texts, right-padded.
    targets: places of the tokens in their row.
    segments: of rows that hold several texts (transformer.forward).
    others: as in completion_states.

  Returns: log-probabilities in nats, float32; finite but of no meaning for the first token of a
    text and for padding.
  """
  hidden, _ = transformer.forward(
      config, params, inputs, segments=segments, dtype=dtype, remat=remat)
  # A token is predicted by the one before it. Place 0 has none, so it reads itself.
  before = jnp.take_along_axis(hidden, jnp.maximum(targets - 1, 0)[..., None], axis=1)
  return token_logprobs(
      config, params, before, jnp.take_along_axis(inputs.tokens, targets, axis=1))[0]


def token_logprobs(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T E"],
    tokens: Int[Array, "B T"],
    *, temperature: float = 1.0, max_logits: int = MAX_LOGITS,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Computes log-probabilities of `tokens` and entropies, a stretch of positions at a time.

  Stretches are computed again in the backward pass, so that at most `max_logits` logits (those of
  one position of every row, if that is more) exist at once.

  Args:
    hidden: hidden states after the final norm, from which `tokens` are predicted.
    temperature: divides the logits.
    max_logits: logits that may exist at once.

  Returns: (log-probabilities, entropies), in nats.
  """
  def project(hidden, tokens):
    # One list of positions, for the gradient's sake: see transformer.product.
    rows = hidden.reshape(-1, hidden.shape[-1])
    found = logprob_and_entropy(
        transformer.unembed(config, params, rows) / temperature, tokens.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(tokens.shape), found)

  b, t = tokens.shape
  # Choose the stretches: as few as the limit allows, and of even size. Of 128 positions with a
  # limit of 42 they are 4 times 32, and not 4 times 42 with padding at the end.
  size = max(1, min(t, max_logits // (b * config.vocab_size)))
  if size == t:
    return project(hidden, tokens)
  num_chunks = -(-t // size)
  size = -(-t // num_chunks)
  pad = num_chunks * size - t

  def split(x):  # [B T ...] -> [num_chunks B size ...]
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(b, num_chunks, size, *x.shape[2:]), 1, 0)

  # `checkpoint` keeps no logits for the backward pass; `map` goes through the stretches in order.
  chunked = jax.lax.map(
      lambda chunk: jax.checkpoint(project)(*chunk), (split(hidden), split(tokens)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, :t], chunked)


@jax.custom_vjp
def logprob_and_entropy(
    logits: Float[Array, "*B V"], tokens: Int[Array, "*B"],
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """Computes log softmax(logits) at `tokens`, and the entropy of softmax(logits), in nats.

  It has a derivative of its own. Of all arrays of the logits' size, the backward pass then keeps
  the logits alone and goes over them once. Autodiff of the formulas would also keep their
  exponentials and probabilities.
  """
  return _logprob_and_entropy_forward(logits, tokens)[0]


def _logprob_and_entropy_forward(logits, tokens):
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  entropy = normaliser - jnp.sum(jax.nn.softmax(logits) * logits, axis=-1)
  return (chosen - normaliser, entropy), (logits, tokens, normaliser, entropy)


def _logprob_and_entropy_backward(saved, gradients):
  """Computes the gradient of the logits.

      ∂ log p_y / ∂z_j = [j = y] - p_j        ∂H / ∂z_j = -p_j (log p_j + H)
  """
  logits, *per_token = saved
  tokens, normaliser, entropy, of_logprob, of_entropy = (
      x[..., None] for x in (*per_token, *gradients))
  # Without the barriers XLA keeps the forward pass's exponentials for the backward pass, and
  # computes the gradient once for each of the two products that read it.
  logprobs = jax.lax.optimization_barrier(logits) - normaliser
  chosen = jnp.arange(logits.shape[-1]) == tokens
  gradient = (
      jnp.where(chosen, of_logprob, 0.0)
      - jnp.exp(logprobs) * (of_logprob + of_entropy * (logprobs + entropy)))
  return jax.lax.optimization_barrier(gradient.astype(logits.dtype)), None


logprob_and_entropy.defvjp(_logprob_and_entropy_forward, _logprob_and_entropy_backward)


@functools.partial(jax.jit, static_argnames=("config", "temperature", "dtype"))
def score(
    config, params, prompts, completions, completion_lengths, segments=None, *, temperature=1.0,
    dtype=jnp.float32):
  """Computes `completion_logprobs`, jitted and without entropies: for reference policies."""
  return completion_logprobs(
      config, params, prompts, completions, completion_lengths, segments=segments,
      temperature=temperature, dtype=dtype)[0]
