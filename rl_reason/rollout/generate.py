"""The decode loop: a prompt is read once for its group, then tokens are sampled in jitted chunks."""

from collections.abc import Callable, Sequence
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
import numpy as np

from rl_reason import sharding
from rl_reason.models import transformer
from rl_reason.models.attention import KeyValues
from rl_reason.models.config import ModelConfig
from rl_reason.rollout.sampling import Sampling, sample_tokens
from rl_reason.types import Params, PromptBatch


@flax.struct.dataclass
class Completions:
  """G completions for each of P prompts; group p is rows p*G ... p*G + G - 1. Arrays are on the host.

  tokens: right-padded; the EOS token, or those that spell the stop string, are part of the completion.
  lengths: tokens sampled. truncated: the length limit ended it.
  behaviour_logprobs: nats, under the distribution sampled from. logprobs: at temperature 1, unfiltered. Zero where padded.
  """
  tokens: Int[np.ndarray, "B T"]
  lengths: Int[np.ndarray, "B"]
  truncated: Bool[np.ndarray, "B"]
  behaviour_logprobs: Float[np.ndarray, "B T"]
  logprobs: Float[np.ndarray, "B T"]


@flax.struct.dataclass
class _DecodeState:
  """The loop's carry. The cache is one array per layer: stacked ones would be copied at every token."""
  t: Int[Array, ""]
  hidden: Float[Array, "B E"]  # Predicts token t.
  cache: list[tuple[Float[Array, "B T K D"], Float[Array, "B T K D"]]]
  tokens: Int[Array, "B T"]
  behaviour_logprobs: Float[Array, "B T"]
  logprobs: Float[Array, "B T"]
  lengths: Int[Array, "B"]
  done: Bool[Array, "B"]


def generate(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    sampling: Sampling,
    *,
    group_size: int,
    rng: PRNGKeyArray,
    stop_ids: Sequence[int],
    decode_text: Callable[[Sequence[int]], str] | None = None,
    dtype: jnp.dtype = jnp.float32,
    chunk_size: int = 32,
) -> Completions:
  """Samples `group_size` completions for each prompt.

  Args:
    prompts: P right-padded prompts of at least one token.
    rng: completion b draws token t with fold_in(fold_in(rng, b), t): chunks and other rows change nothing. Give each
      training step its own.
    stop_ids: tokens that end a completion.
    decode_text: tokens -> text; needed for stop strings only, which are looked for between chunks.
    chunk_size: tokens decoded on the device before the host looks again.

  Returns: Completions, on the host, all rows on every process.
  Raises: ValueError for stop strings without decode_text.
  """
  if sampling.stop_strings and decode_text is None:
    raise ValueError(f"stop_strings={sampling.stop_strings} need decode_text, to find them in the text.")
  layers, outer, prefix, state = _prefill(config, params, prompts, sampling, group_size, dtype)
  rows = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(state.done.shape[0]))
  stop_ids = tuple(int(i) for i in stop_ids)
  for end in range(chunk_size, sampling.max_tokens + chunk_size, chunk_size):
    end = min(end, sampling.max_tokens)
    state = _decode_chunk(config, outer, layers, prefix, state, rows, end, sampling, stop_ids, dtype)
    if sampling.stop_strings:
      lengths, done = _find_stop_strings(sampling.stop_strings, decode_text, *map(
          sharding.fetch, (state.tokens, state.lengths, state.done)))
      state = state.replace(lengths=sharding.place_like(lengths, state.lengths),
                            done=sharding.place_like(done, state.done))
    if sharding.fetch(state.done).all():
      break
  tokens, lengths, done, behaviour, logprobs = map(
      sharding.fetch, (state.tokens, state.lengths, state.done, state.behaviour_logprobs, state.logprobs))
  real = np.arange(sampling.max_tokens) < lengths[:, None]
  return Completions(tokens=np.where(real, tokens, 0), lengths=lengths, truncated=~done,
                     behaviour_logprobs=np.where(real, behaviour, 0.0), logprobs=np.where(real, logprobs, 0.0))


@functools.partial(jax.jit, static_argnames=("config", "sampling", "group_size", "dtype"))
def _prefill(config, params, prompts, sampling, group_size, dtype):
  """Reads the prompts, and lays the weights out for decoding: once per rollout, not once per token."""
  hidden, prefix = transformer.forward(config, params, prompts.tokens, prompts.lengths, dtype=dtype)
  last = jnp.take_along_axis(hidden, prompts.lengths[:, None, None] - 1, axis=1)[:, 0]
  b, t = last.shape[0] * group_size, sampling.max_tokens
  empty = jnp.zeros((b, t, config.num_kv_heads, config.head_dim), dtype)
  state = _DecodeState(
      t=jnp.zeros((), jnp.int32),
      hidden=jnp.repeat(last, group_size, axis=0),
      cache=[(_cache_constraint(empty), _cache_constraint(empty)) for _ in range(config.num_layers)],
      tokens=jnp.zeros((b, t), jnp.int32),
      behaviour_logprobs=jnp.zeros((b, t), jnp.float32),
      logprobs=jnp.zeros((b, t), jnp.float32),
      lengths=jnp.zeros((b,), jnp.int32),
      done=jnp.zeros((b,), bool))
  # Matrices are cast once; norm scales stay float32, as the trainer uses them.
  cast = functools.partial(jax.tree.map, lambda x: x.astype(dtype) if x.ndim > 1 else x)
  outer = cast({k: v for k, v in params.items() if k != "layers"})
  return [cast(layer) for layer in transformer.split_layers(config, params)], outer, prefix, state


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "dtype"), donate_argnames=("state",))
def _decode_chunk(config, outer, layers, prefix: KeyValues, state: _DecodeState, rows, end, sampling, stop_ids, dtype):
  """Samples and reads tokens until position `end`, or until every row is done."""
  b, size = state.tokens.shape
  prompt_lengths = jnp.repeat(prefix.valid.sum(1), b // prefix.valid.shape[0])
  cache_positions = prompt_lengths[:, None] + jnp.arange(size)
  prompt_kv = [(prefix.k[i], prefix.v[i]) for i in range(config.num_layers)]

  def more(state):
    return (state.t < end) & ~state.done.all()

  def body(state):
    t = state.t
    uniforms = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t)))(rows)
    logits = transformer.unembed(config, outer, state.hidden)
    tokens, behaviour, logprobs = sample_tokens(logits, uniforms, sampling)
    lengths = jnp.where(state.done, state.lengths, t + 1)
    done = state.done | (tokens[:, None] == jnp.asarray(stop_ids, jnp.int32)).any(axis=1)
    hidden, new = transformer.decode(
        config, outer, layers, tokens, prompt_lengths + t,
        past=[(prompt, own) for prompt, own in zip(prompt_kv, state.cache)],
        past_keys=[(prefix.positions, prefix.valid),
                   (cache_positions, jnp.broadcast_to(jnp.arange(size) < t, (b, size)))],
        dtype=dtype)

    def put(array, column):
      return jax.lax.dynamic_update_slice_in_dim(array, column.astype(array.dtype), t, axis=1)
    return state.replace(
        t=t + 1, hidden=hidden, lengths=lengths, done=done,
        cache=[(put(k, new_k), put(v, new_v)) for (k, v), (new_k, new_v) in zip(state.cache, new)],
        tokens=put(state.tokens, tokens[:, None]),
        behaviour_logprobs=put(state.behaviour_logprobs, behaviour[:, None]),
        logprobs=put(state.logprobs, logprobs[:, None]))

  return jax.lax.while_loop(more, body, state)


def _cache_constraint(x):
  return sharding.constrain(x, ("batch", "length", "kv_heads", "head_dim"))


def _find_stop_strings(stop_strings, decode_text, tokens, lengths, done):
  """Ends rows at the first token that completes a stop string; rows already done are searched too."""
  lengths, done = lengths.copy(), done.copy()
  for row in range(len(lengths)):
    def has_stop(n, row=row):
      text = decode_text(tokens[row, :n].tolist())
      return any(stop in text for stop in stop_strings)
    if not has_stop(lengths[row]):
      continue
    low, high = 0, int(lengths[row])  # No stop in the first `low` tokens, one in the first `high`.
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (low, middle) if has_stop(middle) else (middle, high)
    lengths[row], done[row] = high, True
  return lengths, done
