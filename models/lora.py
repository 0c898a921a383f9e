"""Trains low-rank adapters: a small change of a model's matrices, the model itself frozen.

    y = x (W + s A B)        A: inputs -> rank, random;  B: rank -> outputs, zero;  s = alpha / rank

Adapted parameters are a model's own with two more entries beside them. "lora" has per matrix its
A and B, with layers stacked as those of the matrices are; "lora_scale" is s.
transformer.forward reads adapted parameters. `merge` returns the plain parameters of the same
function, for sampling, evaluation and saving. `partition` separates what is trained from what is
frozen.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PRNGKeyArray

from rl_reason.models import transformer
from rl_reason.models.config import ModelConfig
from rl_reason.types import Params

MATRICES = tuple(transformer.INPUT_AXES)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Says which matrices get adapters, and of which size.

  rank: rank of each change; 0: no adapters, all parameters are trained.
  alpha: s = alpha / rank scales the change, so that one learning rate serves several ranks.
  matrices: those that change, of q, k, v, o (attention), gate, up, down (feed-forward).
  """
  rank: int = 0
  alpha: float = 16.0
  matrices: tuple[str, ...] = MATRICES

  def __post_init__(self):
    if self.rank < 0 or not (self.alpha > 0 and math.isfinite(self.alpha)):
      raise ValueError(
          f"lora needs rank of at least 0 and a finite alpha above 0, got rank={self.rank} and"
          f" alpha={self.alpha}.")
    unknown = [name for name in self.matrices if name not in MATRICES]
    if unknown or not self.matrices or len(set(self.matrices)) != len(self.matrices):
      raise ValueError(
          f"lora.matrices must name some of {', '.join(MATRICES)}, each once,"
          f" got {self.matrices}.")


def abstract_params(config: ModelConfig, lora: LoRA) -> Params:
  """Returns shapes and dtypes of what adapters add to a model's parameters; {} for rank 0."""
  return (
      jax.eval_shape(functools.partial(init_params, config, lora), jax.random.key(0))
      if lora.rank else {})


def init_params(config: ModelConfig, lora: LoRA, key: PRNGKeyArray) -> Params:
  """Makes adapters that change nothing yet, for rank above 0.

  A is normal with variance 1 / fan-in, B is zero; both are float32. The paper leaves the variance
  of A open.
  """
  weights = transformer.abstract_params(config)["layers"]
  adapters = {}
  # The number of a matrix, folded into its key, is its place among all matrices: choosing other
  # matrices then shifts no random numbers.
  for i, name in enumerate(MATRICES):
    if name in lora.matrices:
      layers, inputs, outputs = _split(name, weights[name].shape)
      a = (jax.random.normal(jax.random.fold_in(key, i), (*layers, *inputs, lora.rank))
           / math.sqrt(math.prod(inputs)))
      adapters[name] = {"a": a, "b": jnp.zeros((*layers, lora.rank, *outputs))}
  return {"lora": adapters, "lora_scale": jnp.asarray(lora.alpha / lora.rank, jnp.float32)}


def parameter_axes(config: ModelConfig, lora: LoRA) -> Params:
  """Returns the logical axes of these entries: those of the matrices, and none for the rank.

  The axes of no adapters (rank 0) are {}.
  """
  axes, adapters = transformer.parameter_axes(config)["layers"], {}
  for name in MATRICES:
    if name in lora.matrices:
      layers, inputs, outputs = _split(name, tuple(axes[name]))
      adapters[name] = {
          "a": PartitionSpec(*layers, *inputs, None), "b": PartitionSpec(*layers, None, *outputs)}
  return {"lora": adapters, "lora_scale": PartitionSpec()} if lora.rank else {}


# A product with a matrix sums over its input axes: one for most, heads and features for "o".
def _split(name, axes):
  """Splits the axes of a stacked matrix into layers, inputs and outputs."""
  inputs = transformer.INPUT_AXES[name]
  return axes[:1], axes[1:1 + inputs], axes[1 + inputs:]


def merge(params: Params) -> Params:
  """Returns the plain parameters W + s A B of the same function, sharded as W.

  Parameters without adapters are returned as they are.
  """
  if "lora" not in params:
    return params
  plain = {name: x for name, x in params.items() if name not in ("lora", "lora_scale")}
  layers = dict(plain["layers"])
  for name, adapter in params["lora"].items():
    merged = _add_product(layers[name], adapter["a"], adapter["b"], params["lora_scale"])
    # Put back where W was: the compiler may have chosen other shardings for the sum.
    sharding = getattr(layers[name], "sharding", None)
    layers[name] = merged if sharding is None else jax.device_put(merged, sharding)
  return {**plain, "layers": layers}


@jax.jit
def _add_product(w, a, b, scale):
  # Highest precision, so that the merged matrices give the function that was trained.
  product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1, precision="highest"))(a, b)
  return w + (scale * product).astype(w.dtype)


def partition(params: Params) -> tuple[Params, Params]:
  """Splits params into (trained, frozen), two trees of disjoint parts; `combine` joins them.

  Wherever a model has adapters, they are trained and its other parameters are frozen; all that is
  under a name "frozen" is frozen, too. What lies beside them (a head) and models without adapters
  are trained.
  """
  if not isinstance(params, Mapping):
    return params, {}
  if "lora" in params:
    return {"lora": params["lora"]}, {name: x for name, x in params.items() if name != "lora"}
  # Names without frozen parts do not appear in the frozen tree: `combine` reads them as {}.
  parts = {name: ({}, x) if name == "frozen" else partition(x) for name, x in params.items()}
  return ({name: trained for name, (trained, _) in parts.items()},
          {name: frozen for name, (_, frozen) in parts.items() if frozen})


def combine(trained: Params, frozen: Params) -> Params:
  """Returns the parameters that `partition` splits into these two trees."""
  if not isinstance(trained, Mapping) or not frozen:
    return trained
  return {**frozen, **{name: combine(x, frozen.get(name, {})) for name, x in trained.items()}}
