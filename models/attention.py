"""Rotary embedding, masks and attention over one or more stretches of keys: plain functions, softmax in float32."""

from collections.abc import Sequence
import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_reason.models.config import ModelConfig, RopeScaling


@flax.struct.dataclass
class KeyValues:
  """A stretch of keys and values, for one layer or, with a leading layer axis on k and v, for all.

  k, v: after rotary embedding; N rows serve B = N * G queries, rows n*G ... n*G + G - 1 sharing row n. So a group's
    completions read their prompt's keys without a copy.
  positions: of each key in its own sequence.
  valid: false on padding; what is stored there is never read.
  """
  k: Float[Array, "*L N S K D"]
  v: Float[Array, "*L N S K D"]
  positions: Int[Array, "N S"]
  valid: Bool[Array, "N S"]


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, "D/2"]:
  """Angles per position, θ^(-2i/d) (Su et al. 2021, arXiv:2104.09864, eq. 15), stretched as `scaling` says."""
  freqs = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling is None:
    return freqs
  if scaling.kind == "linear":
    return freqs / scaling.factor
  if scaling.kind != "llama3":
    raise ValueError(f"Unknown rope scaling {scaling.kind!r}: linear or llama3.")
  # Wavelengths the original context holds fewer than `low` times are stretched; more than `high` times, kept.
  turns = scaling.original_max_positions * freqs / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return kept * freqs + (1.0 - kept) * freqs / scaling.factor


def rope_tables(config: ModelConfig, positions: Int[Array, "B T"]) -> Float[Array, "2 2 B T D/2"]:
  """Cosines and sines, [global or local layer, cos or sin, ...]; both kinds always, so that layers can be scanned."""
  global_freqs = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
  local_freqs = global_freqs
  if config.local_rope_theta is not None:
    local_freqs = rope_frequencies(config.head_dim, config.local_rope_theta)
  angles = positions.astype(jnp.float32)[..., None] * jnp.stack([global_freqs, local_freqs])[:, None, None, :]
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def apply_rope(x: Float[Array, "B T H D"], table: Float[Array, "2 B T D/2"]) -> Float[Array, "B T H D"]:
  """Rotates the pairs (x_i, x_{i + D/2}): the half-split layout of Hugging Face checkpoints."""
  cos, sin = table[0][:, :, None, :], table[1][:, :, None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "N S"], key_valid: Bool[Array, "N S"],
    window: int | None = None,
) -> Bool[Array, "N G T S"]:
  """Which keys each query may read: real ones at its own position or before, at most `window` of them."""
  n, g = key_positions.shape[0], query_positions.shape[0] // key_positions.shape[0]
  distance = query_positions.reshape(n, g, -1, 1) - key_positions[:, None, None, :]
  mask = (distance >= 0) & key_valid[:, None, None, :]
  return mask if window is None else mask & (distance < window)


def attention(
    q: Float[Array, "B T H D"],
    parts: Sequence[tuple[Float[Array, "N S K D"], Float[Array, "N S K D"], Bool[Array, "N G T S"]]],
    *, scale: float, softcap: float | None = None,
) -> Float[Array, "B T H D"]:
  """softmax(scale * q·k) v with one softmax over all parts: keys (k, v, mask) held in separate arrays.

  Parts may have different N, each dividing B: a prompt's keys are stored once for its group. A query that sees no key
  at all (a padded row) gets finite values of no meaning. Equal to attention over the concatenated keys.
  """
  b, t, h, d = q.shape
  scores = []
  for k, _, mask in parts:
    n, _, kv_heads, _ = k.shape
    grouped = q.reshape(n, b // n, t, kv_heads, h // kv_heads, d)
    s = jnp.einsum("ngtkrd,nskd->nkgrts", grouped, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
      s = softcap * jnp.tanh(s / softcap)
    # Not -inf: a row without any visible key would turn into NaN, and its gradient with it.
    scores.append(jnp.where(mask[:, None, :, None], s, -1e30))

  def per_query(x, n):  # [N K G R T 1] -> [B K R T], common to all parts.
    return x[..., 0].transpose(0, 2, 1, 3, 4).reshape(b, *x.shape[1:2], *x.shape[3:5])

  def per_part(x, n):  # The inverse.
    x = x.reshape(n, b // n, *x.shape[1:])
    return x.transpose(0, 2, 1, 3, 4)[..., None]

  rows = [k.shape[0] for k, _, _ in parts]
  top = [per_query(s.max(-1, keepdims=True), n) for s, n in zip(scores, rows)]
  highest = jax.lax.stop_gradient(jnp.stack(top).max(0))
  weights = [jnp.exp(s - per_part(highest, n)) for s, n in zip(scores, rows)]
  total = sum(per_query(w.sum(-1, keepdims=True), n) for w, n in zip(weights, rows))
  out = 0.0
  for (k, v, _), w, n in zip(parts, weights, rows):
    w = (w / per_part(total, n)).astype(v.dtype)
    out += jnp.einsum("nkgrts,nskd->ngtkrd", w, v).reshape(b, t, h, d)
  return out
