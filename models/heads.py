"""Puts heads on a decoder's hidden states: values, and rewards per sequence, step or token.

    head = Head(outputs=1)
    params = init_params(head, width, key)
    apply(head, params, hidden)  # [... E] -> [... K], float32
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rl_reason.types import Params

INITS = ("zero", "normal")


@dataclasses.dataclass(frozen=True)
class Head:
  """Describes a head.

  outputs: numbers per position, e.g. one per attribute.
  hidden: width of a SiLU layer before them; 0: linear.
  init: where the last matrix starts. "zero": a value is 0, and no response is better than
    another. "normal": of variance 1 / (inputs + 1), so that what is below it learns from the
    first step on (Stiennon et al. 2020, arXiv:2009.01325).
  """
  outputs: int = 1
  hidden: int = 0
  init: str = "zero"

  def __post_init__(self):
    if self.init not in INITS:
      raise ValueError(f"Unknown init {self.init!r} of a head: use one of {', '.join(INITS)}.")
    if self.outputs < 1 or self.hidden < 0:
      raise ValueError(f"A head needs outputs of at least 1 and hidden of at least 0, got {self}.")


class _Layers(nn.Module):
  """Declares a head's parameters and applies them."""
  head: Head

  @nn.compact
  def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... K"]:
    def linear(name, x, size, init, axes):
      kernel = self.param(name, nn.with_logical_partitioning(init, axes), (x.shape[-1], size))
      bias = self.param(
          f"{name}_bias", nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]), (size,))
      return x @ kernel + bias

    # Heads compute in float32, whatever the decoder computes in.
    x, inputs = x.astype(jnp.float32), "embed"
    if self.head.hidden:
      x = nn.silu(
          linear("hidden", x, self.head.hidden, nn.initializers.lecun_normal(), ("embed", "mlp")))
      inputs = "mlp"
    # The last layer starts as `init` says; its outputs are too few to be split over devices.
    normal = nn.initializers.normal((x.shape[-1] + 1) ** -0.5)
    last = nn.initializers.zeros if self.head.init == "zero" else normal
    return linear("output", x, self.head.outputs, last, (inputs, None))


def _init(head: Head, width: int, key: PRNGKeyArray):
  return _Layers(head).init(key, jnp.zeros((1, width)))["params"]


def init_params(head: Head, width: int, key: PRNGKeyArray) -> Params:
  """Makes the float32 parameters of a head on hidden states of this width."""
  return nn.meta.unbox(_init(head, width, key))


def abstract_params(head: Head, width: int) -> Params:
  """Returns the parameters' shapes and dtypes, without computing them."""
  return jax.eval_shape(functools.partial(init_params, head, width), jax.random.key(0))


def parameter_axes(head: Head, width: int) -> Params:
  """Returns per parameter a PartitionSpec of logical axis names."""
  return nn.get_partition_spec(
      jax.eval_shape(functools.partial(_init, head, width), jax.random.key(0)))


def apply(head: Head, params: Params, hidden: Float[Array, "... E"]) -> Float[Array, "... K"]:
  """Returns the head's outputs at every position, in float32."""
  return _Layers(head).apply({"params": params}, hidden)
