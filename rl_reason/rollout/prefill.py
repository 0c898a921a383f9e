"""Reads prompts: makes the keys and values that slots continue.

Prompts are read whole, or in stretches of a fixed number of tokens. In stretches, activations are
those of one stretch, and all prompts of the same number of stretches share their programs. Slots
may decode between stretches (Agrawal et al. 2023, arXiv:2308.16369, sec. 4.1). The paper puts
both into one batch; here they alternate.
"""

from collections.abc import Iterator
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.models import transformer
from rl_reason.models.attention import KeyValues
from rl_reason.models.config import ModelConfig
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.rollout.decode import Prompts
from rl_reason.runtime import sharding
from rl_reason.types import Params


@flax.struct.dataclass
class Reading:
  """Holds prompts of which the first stretches are read.

  k: keys of all layers in one array, because the model takes and returns them in this form.
  v: values, likewise.
  hidden: as in Prompts, for the prompts that end in what is read.
  """
  k: Float[Array, "L N K D S"]
  v: Float[Array, "L N K S D"]
  hidden: Float[Array, "N E"]


def read_prompts(
    config: ModelConfig, params: Params, prompts: Inputs, *, stretch: int, dtype: jnp.dtype,
) -> Iterator[Prompts | None]:
  """Reads prompts, one stretch at a time.

  Args:
    config: architecture of the policy.
    params: parameters of the policy.
    prompts: the prompts, on the host.
    stretch: tokens of each prompt read at once. The cache then has room for a multiple of
      `stretch`, and stretches beyond the longest of these prompts are not read. 0: prompts are
      read whole.
    dtype: dtype of the computation.

  Yields: None after each stretch but the last, then what was read.
  """
  if not stretch:
    yield read_whole(config, params, prompts, dtype=dtype)
    return
  # The prompts are padded to whole stretches.
  count, width = prompts.tokens.shape
  size = -(-width // stretch) * stretch
  tokens = np.pad(prompts.tokens, ((0, 0), (0, size - width)))
  reading = begin_reading(config, count=count, size=size, dtype=dtype)
  longest = int(prompts.lengths.max())
  for start in range(0, longest, stretch):
    reading = read_stretch(
        config, params, reading, tokens[:, start:start + stretch], prompts.lengths,
        np.int32(start), dtype=dtype)
    if start + stretch < longest:
      yield None
  yield end_reading(config, reading, prompts.lengths)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def read_whole(
    config: ModelConfig, params: Params, prompts: Inputs, *, dtype: jnp.dtype) -> Prompts:
  """Reads prompts at once. Arguments as in `read_prompts`."""
  hidden, prefix = transformer.forward(config, params, prompts, dtype=dtype)
  last = jnp.take_along_axis(hidden, prompts.lengths[:, None, None] - 1, axis=1)[:, 0]
  return Prompts([(prefix.k[i], prefix.v[i]) for i in range(config.num_layers)], prompts.lengths,
                 last)


@functools.partial(jax.jit, static_argnames=("config", "count", "size", "dtype"))
def begin_reading(config: ModelConfig, *, count: int, size: int, dtype: jnp.dtype) -> Reading:
  """Makes a cache of `size` tokens for each of `count` prompts of which nothing is read yet."""
  k = jnp.zeros((config.num_layers, count, config.num_kv_heads, config.head_dim, size), dtype)
  return Reading(
      _constrain(k), _constrain(k.swapaxes(3, 4)), jnp.zeros((count, config.width), dtype))


@functools.partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("reading",))
def read_stretch(
    config: ModelConfig, params: Params, reading: Reading, tokens: Int[Array, "N C"],
    lengths: Int[Array, "N"], start: Int[Array, ""], *, dtype: jnp.dtype,
) -> Reading:
  """Reads the next C tokens of each prompt.

  Args:
    config: architecture of the policy.
    params: parameters of the policy.
    reading: what has been read.
    tokens: tokens of the prompts from place `start` on; of no meaning where a prompt has ended.
    lengths: tokens of the whole prompts.
    start: number of tokens that have been read; at most the cache's size minus C.
    dtype: dtype of the computation.
  """
  # What has been read, as keys that the new tokens attend to.
  size, stretch = reading.k.shape[-1], tokens.shape[1]
  places = jnp.broadcast_to(jnp.arange(size), (tokens.shape[0], size))
  before = KeyValues(reading.k, reading.v, places, places < jnp.minimum(lengths, start)[:, None])
  own = jnp.clip(lengths - start, 0, stretch)
  # cuDNN's rows have a query for every key, so that each stretch would cost as much as the whole
  # prompt. In the reference kernel each query and key have one score.
  cudnn = attention_kernel(config, dtype, stretch, jax.devices()[0]) == "cudnn"
  hidden, new = transformer.forward(
      config, params, Inputs(tokens, own), before, dtype=dtype,
      kernel="reference" if cudnn else None)
  last = jnp.take_along_axis(hidden, jnp.maximum(own - 1, 0)[:, None, None], axis=1)[:, 0]

  # The new keys and values go behind the old; `hidden` changes for prompts that had tokens here.
  def put(cache, new, axis):
    return _constrain(jax.lax.dynamic_update_slice_in_dim(cache, new.astype(dtype), start, axis))
  return Reading(put(reading.k, new.k, 4), put(reading.v, new.v, 3),
                 jnp.where((own > 0)[:, None], last, reading.hidden))


@functools.partial(jax.jit, static_argnames="config")
def end_reading(config: ModelConfig, reading: Reading, lengths: Int[Array, "N"]) -> Prompts:
  """Splits what was read into the layers' arrays, which decoding needs apart."""
  return Prompts([(reading.k[i], reading.v[i]) for i in range(config.num_layers)], lengths,
                 reading.hidden)


def _constrain(x):
  """Asks for the layout of all layers' keys or values."""
  return sharding.constrain(x, (None, "batch", "kv_heads", None, None))
