"""Computes attention of whole sequences without keeping scores in memory.

It uses cuDNN's kernel on a GPU and the splash kernel on a TPU; both equal attention.attention,
the reference. The reference's masks are arrays of [T, S]. Here visibility is a rule: causal, with
or without a window, over keys laid out such that their places differ as their positions do. For
cuDNN takes a mask as a bias and computes the bias' gradient, and splash wants the mask known when
it compiles.

Axes are those of attention.py.
"""

from collections.abc import Sequence
import functools
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_reason.models.config import ModelConfig
from rl_reason.runtime.sharding import map_shards

# Keys and queries per tile, as in MaxText's settings; a multiple of a TPU's 128 lanes.
SPLASH_BLOCK = 512


def attention_kernel(
    config: ModelConfig, dtype: jnp.dtype, num_tokens: int, device: Any,
) -> Literal["reference", "cudnn", "splash"]:
  """Chooses the kernel for the attention of whole sequences: a key of KERNELS or the reference.

  Args:
    dtype: of the computation.
    num_tokens: T, queries per row. One is a decode step, whose scores are small.
    device: has `platform` and, if a GPU, `compute_capability`: jax.devices()[0].
  """
  if num_tokens == 1:
    return "reference"
  if device.platform == "tpu":
    return "splash"
  # The capability is text such as "8.0" on NVIDIA, but "gfx942" on AMD, where there is no cuDNN.
  # Flash attention came with Ampere (8), heads wider than 128 with Hopper (9).
  capability = re.fullmatch(r"(\d+)\.(\d+)", getattr(device, "compute_capability", ""))
  if device.platform != "gpu" or capability is None or int(capability[1]) < 8:
    return "reference"
  # cuDNN's kernel takes heads of a multiple of 8 features and 16-bit numbers, and has no soft cap.
  fits = config.head_dim % 8 == 0 and config.head_dim <= (256 if int(capability[1]) >= 9 else 128)
  return (
      "cudnn" if fits and dtype in (jnp.bfloat16, jnp.float16) and config.attention_softcap is None
      else "reference")


def flash_attention(
    config: ModelConfig,
    q: Float[Array, "B T H D"],
    stretches: Sequence[tuple[Float[Array, "N K D S"], Float[Array, "N K S D"]]],
    starts: Int[Array, "B"],
    is_local: Bool[Array, ""],
    kernel: str,
) -> Float[Array, "B T H D"]:
  """Computes attention.attention for right-padded stretches of keys.

  Args:
    config: gives scale, soft cap and windows.
    q: queries after rotary embedding.
    stretches: keys and values (k, v). First, if there are any, those of earlier tokens: N rows,
      of which each serves B / N adjacent rows of queries. Last those of the queries' own tokens
      (N = B).
    starts: number of real tokens before each row's own, the same within a group. Their keys come
      first in their stretch, padding after them.
    is_local: whether this is a sliding-window layer; traced, since layers are scanned.
    kernel: a key of KERNELS.

  Returns: what the reference returns for real queries. Padded ones get finite values of no
    meaning, as long as all padding is finite.
  """
  # Each device runs the kernel on its own rows and heads: the compiler cannot split a kernel.
  def attend(window, *args):
    run = functools.partial(
        KERNELS[kernel], window=window, scale=config.query_scale, softcap=config.attention_softcap)
    return map_shards(run, args, ARGUMENT_AXES[:len(args)], ARGUMENT_AXES[0])

  # [N S K D], the layout that the kernels want.
  *past, own = [(k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)) for k, v in stretches]
  args = (q, *own, starts)
  # Copies, for attention only: each row of queries then has its own row of every argument.
  for kv in past:
    args += tuple(jnp.repeat(x, q.shape[0] // x.shape[0], axis=0) for x in kv)
  assert len(args) <= len(ARGUMENT_AXES), "The layouts below know of one stretch of earlier tokens."
  # A kernel's window is fixed when it is compiled. Where layers differ, both kernels are compiled
  # and the traced `is_local` chooses.
  if any(config.layer_is_local) and not all(config.layer_is_local):
    windowed, unbounded = (
        functools.partial(attend, window) for window in (config.sliding_window, None))
    return jax.lax.cond(is_local, windowed, unbounded, *args)
  return attend(config.sliding_window if all(config.layer_is_local) else None, *args)


def _dot_product(q, k, v, starts, *past, window, scale, softcap, implementation):
  """Runs jax.nn.dot_product_attention on plain rows.

  A plain row is a prompt's real tokens, its completion directly after them, and padding last.
  Then places are positions, and real queries see no padding. cuDNN's causal mask starts at the
  first query and the first key alike, so the prompt's places need queries too. These are zeros,
  and their work is lost: P² / 2 of (P + T)² / 2 scores.
  """
  assert softcap is None, "cuDNN has no soft cap: see attention_kernel."
  size = q.shape[1]
  # Lay out plain rows.
  if past:
    order = row_order(starts, past[0].shape[1], size)
    no_queries = jnp.zeros((q.shape[0], past[0].shape[1], *q.shape[2:]), q.dtype)
    q, k, v = (
        _take(jnp.concatenate(x, axis=1), order)
        for x in zip((no_queries, *past), (q, k, v)))
  # Pad rows of odd length, with which JAX 0.10 refuses to train on cuDNN: its check takes an
  # absent bias for one.
  q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
  out = jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=True,
      local_window_size=None if window is None else (window - 1, 0),  # Beside the query's own key.
      implementation=implementation)
  # Only the own tokens' outputs are wanted. They follow the prompt's real tokens.
  return _take(out, starts[:, None] + jnp.arange(size)) if past else out[:, :size]


def row_order(starts: Int[Array, "B"], past_size: int, own_size: int) -> Int[Array, "B L"]:
  """Finds the tokens of plain rows in rows [past, own].

  A plain row is [past's real tokens, own tokens, past's padding], and L = past_size + own_size.

  Args:
    starts: real tokens of the past, per row.
    past_size: places of the past, padding included.
    own_size: places of the own tokens.

  Returns: per place of a plain row, the place in [past, own] that its token comes from.
  """
  place, starts = jnp.arange(past_size + own_size), starts[:, None]
  own = past_size + place - starts
  return jnp.where(
      place < starts, place, jnp.where(place < starts + own_size, own, place - own_size))


def _splash(q, k, v, starts, *past, window, scale, softcap, interpret):
  """Runs splash attention over [past, own] keys.

  The mask is causal from where the own keys start. The past's padding is in a segment apart, so
  that no query reads it. A window counts places, so for windowed layers each past is moved to the
  end of its stretch, next to the own tokens.
  """
  # Here, not above: Pallas takes half a second to import, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash
  size, past_size = q.shape[1], past[0].shape[1] if past else 0
  # Put the past before the own keys.
  if past:
    padded = jnp.arange(past_size) >= starts[:, None]
    if window is not None:
      # Rotates each row by its own padding, so that the real tokens come last.
      order = (jnp.arange(past_size) - past_size + starts[:, None]) % past_size
      *past, padded = (_take(x, order) for x in (*past, padded))
    k, v = (jnp.concatenate(x, axis=1) for x in zip(past, (k, v)))

  # Round both lengths up to whole tiles.
  block_q, padded_q = _blocks(size)
  block_kv, padded_kv = _blocks(past_size + size)
  # [B S H D] -> [B H size D]. What is added comes last, where real queries do not look.
  def lay_out(x, size):
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

  # Make the kernel. Its window does not count the query's own key.
  shape = padded_q, padded_kv
  mask = (splash.CausalMask(shape, offset=past_size) if window is None else
          splash.LocalMask(shape, (window - 1, 0), offset=past_size))
  attend = splash.make_splash_mha_single_device(
      splash.MultiHeadMask([mask] * q.shape[2]), attn_logits_soft_cap=softcap, interpret=interpret,
      block_sizes=splash.BlockSizes(
          block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
          block_q_dq=block_q, block_kv_dq=block_kv))

  # Run it on all rows. The kernel has no scale, so the queries are scaled.
  q = (scale * q.astype(jnp.float32)).astype(q.dtype)
  args = lay_out(q, padded_q), lay_out(k, padded_kv), lay_out(v, padded_kv)
  if past:
    # Queries are in segment 0, the past's padding is in segment 1: a query reads its own segment.
    segments = jnp.pad(padded.astype(jnp.int32), ((0, 0), (0, padded_kv - past_size)))
    args += (splash.SegmentIds(q=jnp.zeros((q.shape[0], padded_q), jnp.int32), kv=segments),)
  return jax.vmap(attend)(*args).swapaxes(1, 2)[:, :size]


def _blocks(size: int) -> tuple[int, int]:
  """Returns a tile size, and the multiple of it that holds `size` tokens."""
  block = min(SPLASH_BLOCK, -(-size // 128) * 128)
  return block, -(-size // block) * block


def _take(x: Array, places: Int[Array, "B L"]) -> Array:
  """Returns x[b, places[b]].

  No place may come twice in a row: then the gradient needs no atomic additions.
  """
  return jax.vmap(
      lambda row, places: row.at[places].get(mode="promise_in_bounds", unique_indices=True)
  )(x, places)


KERNELS = {
    "cudnn": functools.partial(_dot_product, implementation="cudnn"),
    "splash": functools.partial(_splash, interpret=False),
    # The same layouts on any backend, for tests: "xla" keeps all scores in memory,
    # "splash_interpreted" is slow.
    "xla": functools.partial(_dot_product, implementation="xla"),
    "splash_interpreted": functools.partial(_splash, interpret=True),
}
# Logical axes of a kernel's arguments: q, k, v, starts, past k and past v. Queries are split as
# their keys are, so that a group of query heads stays with its key head.
_HEADS = ("batch", None, "kv_heads", None)
ARGUMENT_AXES = (_HEADS, _HEADS, _HEADS, ("batch",), _HEADS, _HEADS)
