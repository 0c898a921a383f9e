"""Decodes on the device: fills slots, and samples tokens in jitted chunks for `generate`.

A slot is one row of every array here, and holds one completion at a time. The keys and values of a
slot lie in three stretches:

    prompt   the prompt of its group, shared with the rest of the group (`Prompts`)
    past     the slot's tokens of earlier chunks (`Slots.past`)
    chunk    the tokens of the running chunk (`Chunk.cache`); all slots write at one common index,
             so that no token needs a scatter

Between chunks `arrange` appends the chunk to `past`, moves slots together and starts new
completions.

`past` has one of two layouts. In the first, every slot has a row with room for the longest slot's
tokens. In the second, `past` is a pool of pages of a fixed number of tokens, and each slot has as
many pages as its tokens fill (`move`, `append_to_pages`, `resize_pool`; pages.py is the host's
side). A page is then a row of keys that one slot reads where the page lies.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rl_reason.models import transformer
from rl_reason.models.attention import Pages, Sharing
from rl_reason.models.config import ModelConfig
from rl_reason.rollout.sampling import sample_tokens, Sampling
from rl_reason.runtime import sharding
from rl_reason.types import Params

# Per layer, keys [B K D S] and values [B K S D]. Each layer has its own array, since one array of
# all layers would be copied at every token.
LayerCaches = list[tuple[Float[Array, "B K D S"], Float[Array, "B K S D"]]]


@flax.struct.dataclass
class Weights:
  """Holds the parameters laid out for decoding: once per rollout, not once per token.

  outer: the parameters outside of the layers, such as embeddings.
  layers: the collections of each layer: "params" and, with 8 bits, scales.
  """
  outer: Params
  layers: list[dict[str, Params]]


@flax.struct.dataclass
class Prompts:
  """Holds the prompts that are being completed.

  cache: keys and values of the prompts.
  lengths: tokens of each prompt.
  hidden: last hidden state of each prompt, which predicts its first completion token.
  """
  cache: LayerCaches
  lengths: Int[Array, "N"]
  hidden: Float[Array, "N E"]


@flax.struct.dataclass
class Slots:
  """Holds the completions that are being decoded.

  ids: the completion in each slot. The id alone decides which random numbers are drawn. The ids of
    empty slots may be anything.
  prompts: the row of `Prompts` that each slot continues.
  lengths: tokens sampled so far.
  hidden: hidden state that predicts each slot's next token.
  done: true where nothing more is to be sampled.
  past: keys and values of the sampled tokens, one row per slot or one row per page of a pool. They
    have no meaning beyond `lengths`.
  """
  ids: Int[Array, "B"]
  prompts: Int[Array, "B"]
  lengths: Int[Array, "B"]
  hidden: Float[Array, "B E"]
  done: Bool[Array, "B"]
  past: LayerCaches


@flax.struct.dataclass
class Chunk:
  """Holds what one chunk sampled. Columns from `size` on have no meaning.

  size: tokens sampled in each slot.
  tokens: the sampled tokens.
  behaviour_logprobs: nats, under the distribution sampled from.
  logprobs: nats, at temperature 1 and without filters.
  cache: keys and values of the sampled tokens.
  """
  size: Int[Array, ""]
  tokens: Int[Array, "B C"]
  behaviour_logprobs: Float[Array, "B C"]
  logprobs: Float[Array, "B C"]
  cache: LayerCaches


@flax.struct.dataclass
class Paging:
  """Says which slot reads which page of a pool.

  pages: the slot of each page, and the pages of each slot.
  starts: the place of each page's first token among the tokens of its completion. For free pages it
    is beyond the length of any completion.
  """
  pages: Pages
  starts: Int[Array, "N"]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "int8"))
def lay_out(
    config: ModelConfig, params: Params, *, dtype: jnp.dtype, int8: bool = False,
) -> Weights:
  """Lays out the parameters for decoding.

  Args:
    config: architecture of the policy.
    params: parameters of the policy.
    dtype: dtype to which matrices are cast.
    int8: round the layers' matrices to 8 bits (transformer.quantize). Embeddings, norms and biases
      are not rounded.
  """
  # Matrices are cast once; norm scales stay float32, as the trainer uses them.
  cast = functools.partial(jax.tree.map, lambda x: x.astype(dtype) if x.ndim > 1 else x)
  outer = cast({k: v for k, v in params.items() if k != "layers"})
  layers = transformer.split_layers(config, params)
  return Weights(outer, [
      transformer.quantize(layer) if int8 else {"params": cast(layer)} for layer in layers])


@functools.partial(jax.jit, donate_argnames=("prompts",))
def replace_prompts(prompts: Prompts, rows: Int[Array, "A"], new: Prompts) -> Prompts:
  """Puts new prompts in the place of finished ones. Skips rows beyond the last."""
  return jax.tree.map(lambda old, x: old.at[rows].set(x, mode="drop"), prompts, new)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "page_tokens"))
def start(
    config: ModelConfig, prompts: Prompts, ids, prompt_rows, done, *, dtype: jnp.dtype,
    page_tokens: int = 0,
) -> Slots:
  """Makes slots that have sampled nothing yet; with page_tokens, their pool has no pages yet."""
  b = ids.shape[0]
  past = (_empty_caches(config, 0, page_tokens, dtype) if page_tokens
          else _empty_caches(config, b, 0, dtype))
  return Slots(
      ids, prompt_rows, jnp.zeros((b,), jnp.int32), prompts.hidden[prompt_rows], done, past)


@functools.partial(jax.jit, static_argnames="capacity")
def arrange(
    slots: Slots, chunk: Chunk, prompts: Prompts, source: Int[Array, "A"], new: Bool[Array, "A"],
    ids: Int[Array, "A"], prompt_rows: Int[Array, "A"], done: Bool[Array, "A"], *, capacity: int,
) -> Slots:
  """Makes the slots after a chunk: moved together, with new completions in free slots.

  Args:
    slots: the slots after the chunk.
    chunk: what the chunk sampled.
    prompts: the prompts, with those of the new completions.
    source: the slot where each slot of the next chunk lies now; any slot where `new`.
    new: true where a new completion starts.
    ids: as in Slots, for the next chunk.
    prompt_rows: Slots.prompts of the next chunk.
    done: as in Slots, for the next chunk.
    capacity: room of `past`, tokens; at least the number of tokens that any row that goes on has
      sampled.
  """
  # Tokens before this chunk. The number is wrong for slots that are done, which no one reads again.
  before = slots.lengths - jnp.where(slots.done, 0, chunk.size)
  before = jnp.where(new, 0, jnp.maximum(before, 0)[source])

  def append(past, cache, axis):
    past, cache = past[source], cache[source]
    # Room for a whole chunk after any row's tokens: a slice that did not fit would be shifted. What
    # the last columns hold beyond a row's length is never read.
    room = max(0, capacity + cache.shape[axis] - past.shape[axis])
    past = jnp.pad(past, [(0, room if i == axis else 0) for i in range(4)])
    past = jax.vmap(
        lambda p, c, at: jax.lax.dynamic_update_slice_in_dim(p, c, at, axis - 1))(
            past, cache, before)
    return _constrain(jax.lax.slice_in_dim(past, 0, capacity, axis=axis))

  past = [(append(k, new_k, 3), append(v, new_v, 2))
          for (k, v), (new_k, new_v) in zip(slots.past, chunk.cache)]
  return move(slots, prompts, source, new, ids, prompt_rows, done).replace(past=past)


@functools.partial(jax.jit, donate_argnames="pool")
def append_to_pages(
    pool: LayerCaches, chunk: LayerCaches, windows: Int[Array, "B W"], offsets: Int[Array, "B"],
) -> LayerCaches:
  """Writes a chunk's keys and values into a pool's pages, in place.

  Args:
    pool: the pages of each layer.
    chunk: keys and values of the chunk.
    windows: per slot the pages to which its columns of the chunk go, in order, with room for all
      columns. A number beyond the pool stands for no page.
    offsets: per slot the place in its first page to which the first column goes.
  """
  def append(pool, cache, axis):
    # A slot's pages are laid side by side and the chunk is written over them. Then whole pages are
    # scattered back, not tokens one by one.
    pages = jnp.moveaxis(jnp.take(pool, windows, axis=0, mode="clip"), 1, axis)
    room = pages.reshape(*pages.shape[:axis], -1, *pages.shape[axis + 2:])
    room = jax.vmap(
        lambda r, c, at: jax.lax.dynamic_update_slice_in_dim(r, c, at, axis - 1))(
            room, cache, offsets)
    return _constrain(
        pool.at[windows].set(jnp.moveaxis(room.reshape(pages.shape), axis, 1), mode="drop"))

  return [(append(k, new_k, 3), append(v, new_v, 2)) for (k, v), (new_k, new_v) in zip(pool, chunk)]


@jax.jit
def resize_pool(past: LayerCaches, source: Int[Array, "N"]) -> LayerCaches:
  """Makes a pool of N pages.

  Args:
    past: the old pool.
    source: for each new page the old page whose content it takes over; any page for a free one.
  """
  def one(x):
    if x.shape[0]:
      return _constrain(jnp.take(x, source, axis=0, mode="clip"))
    return _constrain(jnp.zeros((source.shape[0], *x.shape[1:]), x.dtype))
  return jax.tree.map(one, past)


@jax.jit
def move(
    slots: Slots, prompts: Prompts, source: Int[Array, "A"], new: Bool[Array, "A"],
    ids: Int[Array, "A"], prompt_rows: Int[Array, "A"], done: Bool[Array, "A"],
) -> Slots:
  """Does what `arrange` does, with the same arguments, but leaves `past` as it is."""
  return Slots(
      ids=ids, prompts=prompt_rows, done=done,
      lengths=jnp.where(new, 0, slots.lengths[source]),
      hidden=jnp.where(new[:, None], prompts.hidden[prompt_rows], slots.hidden[source]),
      past=slots.past)


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "size", "dtype"))
def decode_chunk(
    config: ModelConfig, weights: Weights, prompts: Prompts, slots: Slots, sharing: Sharing | None,
    rng: PRNGKeyArray, enough: Int[Array, ""], paging: Paging | None = None, *, sampling: Sampling,
    stop_ids: tuple[int, ...], size: int, dtype: jnp.dtype,
) -> tuple[Slots, Chunk]:
  """Samples up to `size` tokens in every slot; stops once at most `enough` slots are not done.

  Args:
    config: architecture of the policy.
    weights: the parameters, laid out for decoding.
    prompts: the prompts that are being completed.
    slots: the completions that are being decoded.
    sharing: which slots read which prompt; None where prompt n serves slots n*G ... n*G + G - 1.
    rng: completion b draws token t with fold_in(fold_in(rng, b), t).
    enough: the number of running slots at which the chunk ends early.
    paging: who reads which page, where `past` is a pool that has pages; else None.
    sampling: how tokens are drawn.
    stop_ids: tokens that end a completion.
    size: most tokens of the chunk.
    dtype: dtype of the computation.

  Returns: the slots (their `past` as before) and what was sampled.
  """
  # Nested on purpose: a loop's condition and body, which read what is fixed during the chunk.
  b = slots.ids.shape[0]
  # Each completion has its own key, so that its slot does not matter.
  rows = jax.vmap(functools.partial(jax.random.fold_in, rng))(slots.ids)
  prompt_lengths, start_lengths = prompts.lengths[slots.prompts], slots.lengths
  chunk_positions = (prompt_lengths + start_lengths)[:, None] + jnp.arange(size)
  past, keys = _before_the_chunk(prompts, slots, sharing, paging)

  def more(carry):
    _, done, _, chunk = carry
    return (chunk.size < size) & (b - done.sum() > enough)

  def body(carry):
    hidden, done, lengths, chunk = carry
    t = chunk.size
    # Draw a token from each slot's hidden state.
    uniforms = jax.vmap(lambda key, n: jax.random.uniform(jax.random.fold_in(key, n)))(
        rows, start_lengths + t)
    tokens, behaviour, logprobs = sample_tokens(
        transformer.unembed(config, weights.outer, hidden), uniforms, sampling)
    # Slots that are done go on drawing, for the shapes are fixed, but their lengths stay.
    lengths = jnp.where(done, lengths, start_lengths + t + 1)
    done = (done | (tokens[:, None] == jnp.asarray(stop_ids, jnp.int32)).any(axis=1)
            | (lengths >= sampling.max_tokens))
    # Read the token: its keys and values go to column t of the chunk.
    hidden, cache = transformer.decode(
        config, weights.outer, weights.layers, tokens, prompt_lengths + start_lengths + t,
        past=past, caches=chunk.cache, index=t,
        keys=[*keys, (
            chunk_positions, jnp.broadcast_to(jnp.arange(size) <= t, (b, size)), None)],
        dtype=dtype)

    def put(array, column):
      return jax.lax.dynamic_update_slice_in_dim(array, column[:, None], t, axis=1)
    return hidden, done, lengths, Chunk(
        t + 1, put(chunk.tokens, tokens), put(chunk.behaviour_logprobs, behaviour),
        put(chunk.logprobs, logprobs), cache)

  numbers = jnp.zeros((b, size), jnp.float32)
  empty = Chunk(jnp.zeros((), jnp.int32), jnp.zeros((b, size), jnp.int32), numbers, numbers,
                _empty_caches(config, b, size, dtype))
  hidden, done, lengths, chunk = jax.lax.while_loop(
      more, body, (slots.hidden, slots.done, start_lengths, empty))
  return slots.replace(hidden=hidden, done=done, lengths=lengths), chunk


def _before_the_chunk(
    prompts: Prompts, slots: Slots, sharing: Sharing | None, paging: Paging | None,
) -> tuple[list[tuple], list[tuple]]:
  """Returns what a chunk's tokens read that was there before it, which is fixed while it runs.

  Returns: for each layer (keys and values of the prompts, those of the past), and for the prompts
    and the past (positions, which are real, who reads them); the past is left out if it is empty.
  """
  room, capacity = prompts.cache[0][0].shape[-1], slots.past[0][0].shape[-1]
  if not slots.past[0][0].shape[0]:  # A pool without pages has nothing to read.
    capacity = 0
  prompt_lengths = prompts.lengths[slots.prompts]
  positions = jnp.broadcast_to(jnp.arange(room), (prompts.lengths.shape[0], room))
  keys = [(positions, positions < prompts.lengths[:, None], sharing)]
  if paging is not None:
    places, owners = paging.starts[:, None] + jnp.arange(capacity), paging.pages.owners
    keys.append((prompt_lengths[owners][:, None] + places,
                 places < slots.lengths[owners][:, None], paging.pages))
  elif capacity:
    keys.append((prompt_lengths[:, None] + jnp.arange(capacity),
                 jnp.arange(capacity) < slots.lengths[:, None], None))
  if len(keys) == 1:
    return [(prompt,) for prompt in prompts.cache], keys
  return [(prompt, own) for prompt, own in zip(prompts.cache, slots.past)], keys


def _empty_caches(config: ModelConfig, b: int, size: int, dtype: jnp.dtype) -> LayerCaches:
  """Makes zeros for the keys and values of `size` tokens in `b` rows, for each layer."""
  k = jnp.zeros((b, config.num_kv_heads, config.head_dim, size), dtype)
  v = jnp.zeros((b, config.num_kv_heads, size, config.head_dim), dtype)
  return [(_constrain(k), _constrain(v)) for _ in range(config.num_layers)]


def _constrain(x):
  """Asks for the layout of one layer's keys or values."""
  return sharding.constrain(x, ("batch", "kv_heads", None, None))
