"""Computes rotary embedding, masks and attention over one or more stretches of keys.

All are plain functions. The softmax is computed in float32.

In shapes, B is rows of queries, N rows of keys, G the queries that share a row of keys, T query
tokens, S key tokens, H query heads, K key heads, R = H / K query heads per key head, D features
of a head and L layers.
"""

from collections.abc import Sequence
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_reason.models.config import ModelConfig, RopeScaling


@flax.struct.dataclass
class KeyValues:
  """Holds a stretch of keys and values, for one layer or for all of them.

  Those of all layers have a leading layer axis on k and v. N rows serve B = N * G queries: rows
  n*G ... n*G + G - 1 share row n, so that a group's completions read their prompt's keys without
  a copy.

  k: keys after rotary embedding.
  v: values.
  positions: position of each key in its own sequence.
  valid: false on padding; what is stored there is never read.
  """
  # The axis that attention sums over is the last one or the one right before it: D for keys, S
  # for values. Other layouts are transposed at every decoded token (measured: five times the cost
  # on a CPU).
  k: Float[Array, "*L N K D S"]
  v: Float[Array, "*L N K S D"]
  positions: Int[Array, "N S"]
  valid: Bool[Array, "N S"]


@flax.struct.dataclass
class Sharing:
  """Says which queries read each of N rows of keys, where those queries are not adjacent.

  Continuous batching needs it, because it moves rows about.

  members: up to M query rows per row of keys; any query where there are fewer.
  places: per query, its place among the N * M members.
  """
  members: Int[Array, "N M"]
  places: Int[Array, "B"]


@flax.struct.dataclass
class Pages:
  """Says which query reads each of N rows of keys, where a query's keys lie in several rows.

  No two queries share a row. So keys are never gathered: each row is read by its query where it
  lies, and the results of a query's rows are then weighed together.

  owners: per row its query; any query where the whole row is masked.
  table: per query its rows, -1 where it has fewer than M.
  """
  owners: Int[Array, "N"]
  table: Int[Array, "B M"]


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None,
) -> Float[Array, "D/2"]:
  """Returns the angles per position, θ^(-2i/d), stretched as `scaling` says.

  Raises: ValueError for an unknown kind of scaling.
  Source: Su et al. 2021, arXiv:2104.09864, eq. 15.
  """
  freqs = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling is None:
    return freqs
  if scaling.kind == "linear":
    return freqs / scaling.factor
  if scaling.kind != "llama3":
    raise ValueError(f"Unknown rope scaling {scaling.kind!r}: linear or llama3.")
  # Llama 3. `turns` is how many wavelengths fit into the original context. Frequencies with fewer
  # turns than `low` are stretched, those with more than `high` are kept, and those between are
  # blended.
  turns = scaling.original_max_positions * freqs / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return kept * freqs + (1.0 - kept) * freqs / scaling.factor


def rope_tables(config: ModelConfig, positions: Int[Array, "B T"]) -> Float[Array, "2 2 B T D/2"]:
  """Returns cosines and sines, indexed [global or local layer, cos or sin, ...].

  Both kinds of layer are always there, so that layers of both kinds can be scanned.
  """
  global_freqs = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
  local_freqs = global_freqs
  if config.local_rope_theta is not None:
    local_freqs = rope_frequencies(config.head_dim, config.local_rope_theta)
  angles = (
      positions.astype(jnp.float32)[..., None]
      * jnp.stack([global_freqs, local_freqs])[:, None, None, :])
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def apply_rope(
    x: Float[Array, "B T H D"], table: Float[Array, "2 B T D/2"],
) -> Float[Array, "B T H D"]:
  """Rotates the pairs (x_i, x_{i + D/2}): the half-split layout of Hugging Face checkpoints."""
  cos, sin = table[0][:, :, None, :], table[1][:, :, None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "N S"],
    key_valid: Bool[Array, "N S"],
    window: int | None = None, sharing: Sharing | Pages | None = None,
) -> Bool[Array, "N G T S"]:
  """Returns a mask of the keys that each query may read.

  These are the valid ones at its own position or before, and with a window only those at a
  distance below `window`.
  """
  # Positions, not places in the arrays, are compared: a query and its keys may lie in different
  # stretches, padding between them.
  distance = (
      _by_keys(query_positions, key_positions.shape[0], sharing)[..., None]
      - key_positions[:, None, None, :])
  mask = (distance >= 0) & key_valid[:, None, None, :]
  return mask if window is None else mask & (distance < window)


def _by_keys(
    x: Float[Array, "B ..."], n: int, sharing: Sharing | Pages | None,
) -> Float[Array, "N G ..."]:
  """Regroups what is given per query: per row of keys, its G queries."""
  if isinstance(sharing, Pages):
    return x[sharing.owners][:, None]
  return x.reshape(n, -1, *x.shape[1:]) if sharing is None else x[sharing.members]


def _by_queries(
    table: Int[Array, "B M"], top: Float[Array, "N T H 1"], total: Float[Array, "N T H 1"],
    out: Float[Array, "N T H D"],
) -> tuple[Float[Array, "B T H 1"], Float[Array, "B T H 1"], Float[Array, "B T H D"]]:
  """Combines what is given per row of keys over all rows of each query.

  Args:
    table: per query its rows, -1 where it has fewer (Pages.table).
    top: the highest score of a row.
    total: sum of exp(score - top) over the row.
    out: sum of values, each weighted by its exp(score - top).

  Returns: per query the highest score, and both sums relative to it.
  """
  # A row number of -1 reads the last row, so what it reads is masked: as a score, and again as a
  # weight, since exp(0) = 1 where all scores of a query are masked.
  real = (table >= 0)[:, :, None, None, None]
  tops = jnp.where(real, top[table], -1e30)
  highest = tops.max(axis=1)
  shares = jnp.where(real, jnp.exp(tops - highest[:, None]), 0.0)
  return highest, (shares * total[table]).sum(axis=1), (shares * out[table]).sum(axis=1)


def attention(
    q: Float[Array, "B T H D"],
    parts: Sequence[
        tuple[Float[Array, "N K D S"], Float[Array, "N K S D"], Bool[Array, "N G T S"],
              Sharing | Pages | None]],
    *, scale: float, softcap: float | None = None,
) -> Float[Array, "B T H D"]:
  """Computes softmax(scale * q·k) v with one softmax over all parts.

  It equals attention over the concatenated keys: each part is summed relative to its own highest
  score, and the sums are then weighed together (Dao et al. 2022, arXiv:2205.14135, sec. 3.1). A
  query that sees no key at all (a padded row) gets finite values of no meaning.

  Args:
    q: queries after rotary embedding.
    parts: keys (k, v, mask, sharing) held in separate arrays. Parts may have different N: a
      prompt's keys are stored once for its group, whose queries are adjacent where sharing is
      None; a query's own keys may be spread over pages.
    scale: multiplies q·k.
    softcap: c of c * tanh(score / c); None: scores are not capped.
  """
  b, t, h, d = q.shape
  tops, sums, outs = [], [], []
  for k, v, mask, sharing in parts:
    # Scores: each row of keys with the queries that read it, heads grouped by their key head.
    n, kv_heads, _, size = k.shape
    grouped = _by_keys(q.reshape(b, t, kv_heads, h // kv_heads, d), n, sharing)
    shape = n, kv_heads, grouped.shape[1], t, h // kv_heads  # N K G T R
    # G, T and R are merged into one axis, so that these are plain products of [queries, D] and
    # [D, S]: an einsum is free to swap its operands (measured: 15 times slower).
    grouped = grouped.transpose(0, 3, 1, 2, 4, 5).reshape(n, kv_heads, -1, d)
    scores = jnp.matmul(
        grouped, k, preferred_element_type=jnp.float32).reshape(*shape, size) * scale
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    # Not -inf: a row without any visible key would turn into NaN, and its gradient with it.
    scores = jnp.where(mask[:, None, :, :, None], scores, -1e30)

    # Weights relative to this part's highest score. The result does not depend on that score, so
    # no gradient has to flow through it.
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    out = jnp.matmul(
        weights.astype(v.dtype).reshape(n, kv_heads, -1, size), v,
        preferred_element_type=jnp.float32)

    def per_query(x, sharing=sharing, shape=shape):  # [N K (G T R) X] -> [B T H X]
      x = x.reshape(*shape, -1).transpose(0, 2, 3, 1, 4, 5).reshape(-1, t, h, x.shape[-1])
      return x[sharing.places] if isinstance(sharing, Sharing) else x
    found = per_query(top), per_query(weights.sum(-1, keepdims=True)), per_query(out)
    if isinstance(sharing, Pages):
      found = _by_queries(sharing.table, *found)
    for part, kept in zip(found, (tops, sums, outs)):
      kept.append(part)
  # One softmax over all parts: bring their sums to the highest score of all, then divide once.
  highest = functools.reduce(jnp.maximum, tops)
  shares = [jnp.exp(top - highest) for top in tops]
  total = sum(share * part for share, part in zip(shares, sums))
  out = sum(share / total * part for share, part in zip(shares, outs))
  return out.astype(q.dtype)
