"""Runs one decoder family: tokens -> hidden states -> logits, keys and values going in and out.

Flax linen declares the parameters and names their axes. All else is functions of (config, params,
arrays):

    init_params, parameter_axes     the parameters, and their logical axes for sharding
    forward                         whole sequences, layers scanned: prompts, completions after a
                                    prompt, supervised text
    split_layers, decode            one token at a time, one cache array per layer
    unembed                         hidden states -> logits, for as few positions as the caller
                                    needs

Axes: B rows, T tokens, E width, V vocabulary; H, K, D, N, G and S as in attention.py.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rl_reason.arrays import Inputs
from rl_reason.models.attention import (
  apply_rope,
  attention,
  KeyValues,
  Pages,
  rope_tables,
  Sharing,
  visible,
)
from rl_reason.models.config import ModelConfig
from rl_reason.models.flash_attention import attention_kernel, flash_attention
from rl_reason.runtime.sharding import constrain
from rl_reason.types import Params

# What the backward pass computes again.
REMAT_POLICIES: dict[str, Any] = {
    # Keep every activation: fastest, largest.
    "none": None,
    # Keep the matrix products, recompute the rest.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep only each layer's input: slowest, smallest.
    "full": jax.checkpoint_policies.nothing_saveable,
}


# The scan over layers is unrolled for models of at most this many layers. Then nothing is copied in
# and out of stacked arrays: a training step takes 0.9 of the time on a CPU. It also takes half a
# second a layer longer to compile, so deep models keep the loop.
UNROLLED_LAYERS = 8


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], config: ModelConfig,
) -> Float[Array, "... D"]:
  """Computes x / rms(x) * scale, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467).

  Args:
    scale: of each feature; with config.norm_plus_one it is multiplied as 1 + scale.
    config: gives norm_eps and norm_plus_one.
  """
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.norm_eps)
  scale = scale.astype(jnp.float32)
  return (y * (1.0 + scale if config.norm_plus_one else scale)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "B T ..."], matrix: Float[Array, "..."], num_inputs: int,
) -> Float[Array, "B T ..."]:
  """Multiplies x by a matrix, summing over several axes.

  These are the matrix's first `num_inputs` axes and as many last ones of x.

  The product has a derivative of its own, in which all rows' tokens are one list and matrices have
  two axes. Autodiff would sum over rows and tokens as two axes, and for that XLA on CPUs copies
  both factors into another order first.
  """
  return _multiply(x, matrix, num_inputs)


# All products below are of two matrices: `_rows` makes one of x, `_table` makes one of the weights.
def _multiply(x, matrix, num_inputs):
  return (_rows(x, num_inputs) @ _table(matrix, num_inputs)).reshape(
      *x.shape[:2], *matrix.shape[num_inputs:])


def _rows(x, num_inputs):
  return x.reshape(-1, math.prod(x.shape[x.ndim - num_inputs:]))


def _table(matrix, num_inputs):
  return matrix.reshape(math.prod(matrix.shape[:num_inputs]), -1)


def _product_forward(x, matrix, num_inputs):
  # Frozen matrices (beside adapters) have no gradient, and then x need not be kept for it. Likewise
  # the matrix need not be kept where x has no gradient.
  saved = x.value if matrix.perturbed else None, matrix.value if x.perturbed else None
  return _multiply(x.value, matrix.value, num_inputs), saved


def _product_backward(num_inputs, saved, gradient):
  x, matrix = saved
  rows = _rows(gradient, gradient.ndim - 2)
  of_x = None if matrix is None else (rows @ _table(matrix, num_inputs).T).reshape(
      *gradient.shape[:2], *matrix.shape[:num_inputs])
  of_matrix = None if x is None else (_rows(x, num_inputs).T @ rows).reshape(
      *x.shape[2:], *gradient.shape[2:])
  return of_x, of_matrix


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


class Block(nn.Module):
  """Computes one layer: pre-norm attention and a gated feed-forward block.

  Source of the latter: Shazeer 2020, arXiv:2002.05202.

  config: architecture.
  kernel: "reference" or a key of flash_attention.KERNELS.
  dropout: share of what each half of the layer adds to the stream that is dropped.
  """
  config: ModelConfig
  kernel: str = "reference"
  dropout: float = 0.0

  @nn.compact
  def __call__(
      self,
      x: Float[Array, "B T E"],
      per_layer: tuple[
          Bool[Array, ""], Sequence[tuple[Array, Array]], tuple[Array, Array, Array] | None],
      rope: Float[Array, "2 2 B T D/2"],
      visibility: (
          Sequence[tuple[Bool[Array, "2 N G T S"], Sharing | Pages | None]] | Int[Array, "B"]),
  ) -> tuple[Float[Array, "B T E"], tuple[Float[Array, "B K D S"], Float[Array, "B K S D"]]]:
    """Applies the layer to the residual stream.

    Args:
      x: the residual stream.
      per_layer: (is this layer local, [(k, v), ...] of earlier tokens, cache). The cache is None or
        (k, v, index): arrays in which x's own keys and values are written at `index` before they
        are read.
      rope: tables of x's own positions (attention.rope_tables).
      visibility: for the reference kernel one pair per part, earlier parts first and x's own (or
        the cache) last: masks of what global [0] and local [1] layers may see, and who reads which
        row. For other kernels the number of real tokens before each row's own: flash_attention's
        `starts`.

    Returns: the residual stream, and this layer's (k, v) of x's own tokens or the cache that now
      holds them.
    """
    # Long and nested on purpose: flax declares a module's parameters inside its one compact method,
    # and the helpers below declare them. What they compute with stands in models/attention.py.
    c = self.config
    is_local, past, cache = per_layer
    # 0 or 1, traced, because layers are scanned: it chooses among the tables and the masks.
    kind = jnp.asarray(is_local, jnp.int32)

    def weight(name, shape, axes, fan_in):
      init = nn.with_logical_partitioning(nn.initializers.normal(fan_in ** -0.5), axes)
      value = self.param(name, init, shape).astype(x.dtype)
      scale = self.get_variable("scales", name)  # Of weights in 8 bits (quantize); else None.
      return value if scale is None else value * scale.astype(x.dtype)

    def adapted(name, x, y):
      """Adds to y what an adapter adds (models.lora).

      Here y is the product of x and the matrix of that name.
      """
      adapter = self.get_variable("lora", name)
      if adapter is None:
        return y
      # Through the rank first: A B is as large as the matrix itself.
      low = jnp.tensordot(x, adapter["a"].astype(x.dtype), INPUT_AXES[name])
      return y + jnp.tensordot(low, adapter["b"].astype(x.dtype), 1)

    def bias(name, shape, axes):
      return self.param(
          name, nn.with_logical_partitioning(nn.initializers.zeros, axes), shape).astype(x.dtype)

    def norm(name, x, size=None, axis="embed"):
      init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
      return rms_norm(
          x, self.param(name, nn.with_logical_partitioning(init, (axis,)), (size or c.width,)), c)

    def drop(x):
      return nn.Dropout(self.dropout)(x, deterministic=False) if self.dropout else x

    # Queries, keys and values, with rotary embedding.
    heads = (("q", c.num_heads, "heads"), ("k", c.num_kv_heads, "kv_heads"),
             ("v", c.num_kv_heads, "kv_heads"))
    h = norm("attention_norm", x)
    qkv = []
    for name, count, axis in heads:
      matrix = weight(name, (c.width, count, c.head_dim), ("embed", axis, "head_dim"), c.width)
      y = adapted(name, h, product(h, matrix, 1))
      if c.qkv_bias:
        y += bias(f"{name}_bias", (count, c.head_dim), (axis, "head_dim"))
      qkv.append(constrain(y, ("batch", "length", axis, "head_dim")))
    q, k, v = qkv
    if c.qk_norm:
      q, k = norm("q_norm", q, c.head_dim, "head_dim"), norm("k_norm", k, c.head_dim, "head_dim")
    q, k = apply_rope(q, rope[kind]), apply_rope(k, rope[kind])
    # From here on in the layout of KeyValues: k as [B K D T], v as [B K T D].
    own = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    if cache is not None:
      own = tuple(
          jax.lax.dynamic_update_slice_in_dim(array, new.astype(array.dtype), cache[2], axis)
          for array, new, axis in zip(cache[:2], own, (3, 2)))

    # Attention over earlier tokens and the own ones, projected back to the stream.
    if self.kernel == "reference":
      parts = [(*kv, mask[kind], sharing)
               for kv, (mask, sharing) in zip((*past, own), visibility, strict=True)]
      h = attention(q, parts, scale=c.query_scale, softcap=c.attention_softcap)
    else:
      h = flash_attention(c, q, (*past, own), visibility, is_local, self.kernel)
    o = weight(
        "o", (c.num_heads, c.head_dim, c.width), ("heads", "head_dim", "embed"),
        c.num_heads * c.head_dim)
    h = adapted("o", h, product(h, o, 2))
    if c.output_bias:
      h += bias("o_bias", (c.width,), ("embed",))
    x += drop(norm("attention_post_norm", h) if c.post_norms else h)

    # The gated feed-forward block: down(activation(gate(x)) * up(x)).
    h = norm("mlp_norm", x)
    gate = adapted("gate", h, product(
        h, weight("gate", (c.width, c.mlp_hidden), ("embed", "mlp"), c.width), 1))
    up = adapted("up", h, product(
        h, weight("up", (c.width, c.mlp_hidden), ("embed", "mlp"), c.width), 1))
    if c.mlp_bias:
      gate += bias("gate_bias", (c.mlp_hidden,), ("mlp",))
      up += bias("up_bias", (c.mlp_hidden,), ("mlp",))
    h = (nn.silu(gate) if c.activation == "silu" else nn.gelu(gate, approximate=True)) * up
    h = constrain(h, ("batch", "length", "mlp"))
    h = adapted("down", h, product(
        h, weight("down", (c.mlp_hidden, c.width), ("mlp", "embed"), c.mlp_hidden), 1))
    if c.mlp_bias:
      h += bias("down_bias", (c.width,), ("embed",))
    x += drop(norm("mlp_post_norm", h) if c.post_norms else h)
    return constrain(x, ("batch", "length", "embed_activation")), own


class Transformer(nn.Module):
  """Declares every parameter of the model. `forward` and `unembed` below are its entrances.

  config: architecture.
  remat: what the backward pass computes again, a key of REMAT_POLICIES.
  kernel: "reference" or a key of flash_attention.KERNELS.
  dropout: as in Block.
  """
  config: ModelConfig
  remat: str = "none"
  kernel: str = "reference"
  dropout: float = 0.0

  def setup(self):
    c = self.config
    # Embeddings.
    table = nn.with_logical_partitioning(
        nn.initializers.normal(c.width ** -0.5), ("vocab", "embed"))
    self.embedding = self.param("embedding", table, (c.vocab_size, c.width))
    if not c.tied_embeddings:
      self.unembedding = self.param("unembedding", table, (c.vocab_size, c.width))
    init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
    self.final_norm = self.param(
        "final_norm", nn.with_logical_partitioning(init, ("embed",)), (c.width,))

    # Layers. With jit a block is traced once, and lowered once where it is not differentiated.
    # Without jit while parameters are drawn, so that their random numbers stay the same.
    block = Block if self.is_initializing() else nn.jit(Block)
    if self.remat != "none":
      # `prevent_cse` keeps XLA from undoing the recomputation. A scan needs no such guard.
      block = nn.remat(block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
    # Parameters and adapters are stacked on axis 0, and so is `per_layer`, the first input. The
    # other two inputs, rope and visibility, are the same for all layers.
    self.layers = nn.scan(
        block, variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True}, length=c.num_layers,
        unroll=c.num_layers if c.num_layers <= UNROLLED_LAYERS else 1,
        in_axes=(0, nn.broadcast, nn.broadcast),
        metadata_params={nn.PARTITION_NAME: "layers"})(c, self.kernel, self.dropout)

  def embed(self, tokens: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T E"]:
    """Reads tokens: their rows of the embedding, scaled."""
    # Gather whole rows: a gather from a table split over its columns would be replicated and split
    # again.
    table = constrain(self.embedding, ("vocab", "embed_activation"))
    x = jnp.take(table, tokens, axis=0).astype(dtype) * self.config.embedding_scale
    return constrain(x.astype(dtype), ("batch", "length", "embed_activation"))

  def __call__(self, tokens, positions, valid, segments, prefix, dtype):
    """Runs whole sequences through all layers. `forward` documents arguments and result."""
    c = self.config
    # Visibility, as the kernel wants it (Block).
    if self.kernel == "reference":
      own = _masks(c, positions, positions, valid)
      if segments is not None:
        # Positions repeat within a row of several sequences, so `_masks` cannot tell these apart;
        # places in the row do not repeat.
        places = jnp.arange(tokens.shape[1])
        own &= (places >= segments[:, None, :, None]) & (places <= places[:, None])
      visibility = [(own, None)]
      if prefix is not None:
        visibility.insert(0, (_masks(c, positions, prefix.positions, prefix.valid), None))
    else:
      # A row's first position is the number of real tokens before it.
      visibility = positions[:, 0]
    # The layers.
    past = () if prefix is None else ((prefix.k, prefix.v),)
    per_layer = (jnp.asarray(c.layer_is_local), past, None)
    x, (k, v) = self.layers(
        self.embed(tokens, dtype), per_layer, rope_tables(c, positions), visibility)
    return rms_norm(x, self.final_norm, c), KeyValues(k, v, positions, valid)

  def normalise(self, x):
    """Applies the final norm."""
    return rms_norm(x, self.final_norm, self.config)

  def unembed(self, hidden):
    """Returns float32 logits of hidden states."""
    c = self.config
    table = self.embedding if c.tied_embeddings else self.unembedding
    logits = jnp.einsum(
        "...e,ve->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return (logits if c.logit_softcap is None
            else c.logit_softcap * jnp.tanh(logits / c.logit_softcap))


def _masks(
    config: ModelConfig, query_positions, key_positions, key_valid,
    sharing: Sharing | Pages | None = None,
) -> Bool[Array, "2 N G T S"]:
  """Returns what queries may see in global [0] and in local [1] layers (attention.visible)."""
  everything = visible(query_positions, key_positions, key_valid, sharing=sharing)
  if config.sliding_window is None:
    return jnp.stack([everything, everything])
  return jnp.stack([
      everything,
      visible(query_positions, key_positions, key_valid, config.sliding_window, sharing)])


def _init(config: ModelConfig, key: PRNGKeyArray):
  # Parameters do not depend on the tokens: two of them are enough to trace the model.
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(
      key, tokens, tokens, tokens == 0, None, None, jnp.float32)["params"]


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
  """Draws random float32 parameters.

  Matrices are normal with variance 1 / fan-in, norms one, biases zero. Layers are stacked on
  axis 0. With norm_plus_one the stored scales of norms are zero, which is one again.
  """
  return nn.meta.unbox(_init(config, key))


def abstract_params(config: ModelConfig) -> Params:
  """Returns the parameters' shapes and dtypes, without computing them."""
  # A copy of the tree, so that callers may change theirs and not the cached one.
  return jax.tree.map(lambda x: x, _declared(config)[0])


def parameter_axes(config: ModelConfig) -> Params:
  """Returns per parameter a PartitionSpec of logical axis names.

  The names are layers, vocab, embed, heads, kv_heads, head_dim and mlp.
  """
  return jax.tree.map(lambda x: x, _declared(config)[1])


# Cached: it is asked for a dozen times while a run starts, and tracing takes a tenth of a second.
@functools.cache
def _declared(config: ModelConfig) -> tuple[Params, Params]:
  def init():
    boxed = _init(config, jax.random.key(0))
    return nn.meta.unbox(boxed), boxed
  shapes, boxed = jax.eval_shape(init)
  return shapes, nn.get_partition_spec(boxed)


def forward(
    config: ModelConfig,
    params: Params,
    inputs: Inputs,
    prefix: KeyValues | None = None,
    *, segments: Int[Array, "B T"] | None = None, dtype: jnp.dtype = jnp.float32,
    remat: str = "none", kernel: str | None = None, dropout: float = 0.0,
    rng: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B T E"], KeyValues]:
  """Runs whole right-padded sequences through the model.

  Args:
    config: architecture.
    params: of the model, with adapters beside them or without (models.lora).
    inputs: B rows of T tokens. Images need a model with a vision encoder, which this model does
      not have.
    prefix: keys and values that come before, from an earlier call: N rows, of which each serves
      B / N adjacent rows. Positions go on where the prefix's real tokens end. None: the sequences
      start here.
    segments: per token, the place in its row where its sequence begins. With it a row may hold
      several sequences, which see the prefix and themselves but not each other. None: one sequence
      a row.
    dtype: of the computation; the softmax, norms and logits stay float32.
    remat: what the backward pass computes again, a key of REMAT_POLICIES.
    kernel: "reference" or a key of flash_attention.KERNELS. None: the one that suits this machine,
      and the reference for rows of several sequences, which the other kernels cannot tell apart.
    dropout: share of what each layer's attention and feed-forward block add to the stream that is
      dropped, in [0, 1).
    rng: key of dropout; needed where dropout is above 0.

  Returns: (hidden states after the final norm, keys and values of these tokens for all layers).
  Raises: ValueError for inputs with images.
  """
  if inputs.images is not None:
    raise ValueError(
        f"The inputs hold images of shape {inputs.images.shape}, and this model has no vision"
        " encoder:"
        " it would not see them. Leave them out, or take a model that reads images.")
  tokens, lengths = inputs.tokens, inputs.lengths
  # Positions go on after the prefix's real tokens, and start again with each segment.
  start = (jnp.zeros((), jnp.int32) if prefix is None
           else _repeat(prefix.valid.sum(1), tokens.shape[0])[:, None])
  places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  positions = start + (places if segments is None else places - segments)
  valid = places < lengths[:, None]
  if kernel is None:
    kernel = (attention_kernel(config, dtype, tokens.shape[1], jax.devices()[0])
              if segments is None else "reference")
  return Transformer(config, remat, kernel, dropout).apply(
      _collections(params), tokens, positions, valid, segments, prefix, dtype,
      rngs={"dropout": rng} if dropout else None)


def _collections(params: Params) -> dict[str, Params]:
  """Arranges parameters as flax wants them, with adapters apart and scaled (models.lora)."""
  if "lora" not in params:
    return {"params": params}
  # s A B is A times s B: scaling B once is cheaper than scaling the product for every token.
  scaled = {name: {"a": x["a"], "b": x["b"] * params["lora_scale"]}
            for name, x in params["lora"].items()}
  return {"params": params, "lora": {"layers": scaled}}


def unembed(
    config: ModelConfig, params: Params, hidden: Float[Array, "... E"],
) -> Float[Array, "... V"]:
  """Returns logits in float32, soft-capped where the model says so."""
  return Transformer(config).apply({"params": params}, hidden, method="unembed")


def split_layers(config: ModelConfig, params: Params) -> list[Params]:
  """Returns per layer its own parameter arrays.

  A decode loop would otherwise slice the stacked arrays at every token.

  Raises: ValueError for parameters with adapters, which decoding would leave out.
  """
  if "lora" in params:
    raise ValueError(
        "These parameters have adapters, which decoding does not read: give it lora.merge(params).")
  return [jax.tree.map(lambda x: x[i], params["layers"]) for i in range(config.num_layers)]


# Per matrix of a layer, the number of its leading axes that a product with it sums over.
INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


def quantize(layer: Params) -> dict[str, Params]:
  """Returns a layer's matrices as int8 with one scale per output.

      w ≈ q * scale,  |w − q * scale| ≤ scale / 2

  What is no matrix (norms, biases) stays as it is.
  """
  values, scales = dict(layer), {}
  for name, inputs in INPUT_AXES.items():
    w = layer[name].astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=tuple(range(inputs)), keepdims=True) / 127
    # An output whose weights are all zero would divide zero by zero.
    scales[name] = jnp.where(scale > 0, scale, 1.0)
    values[name] = jnp.round(w / scales[name]).astype(jnp.int8)
  return {"params": values, "scales": scales}


def decode(
    config: ModelConfig,
    params: Params,
    layers: Sequence[dict[str, Params]],
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    past: Sequence[Sequence[tuple[Array, Array]]],
    caches: Sequence[tuple[Float[Array, "B K D S"], Float[Array, "B K S D"]]],
    index: Int[Array, ""],
    keys: Sequence[tuple[Int[Array, "N S"], Bool[Array, "N S"], Sharing | Pages | None]],
    *, dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, "B E"], list[tuple[Float[Array, "B K D S"], Float[Array, "B K S D"]]]]:
  """Reads one more token of each of B sequences.

  Args:
    config: architecture.
    params: plain parameters, for embedding and final norm.
    layers: per layer {"params": from split_layers}, or `quantize` of it.
    tokens: the token to read, per sequence.
    positions: where it stands in its sequence.
    past: per layer, the (k, v) of each stretch of earlier tokens.
    caches: per layer, the (k, v) that the new token joins at `index`. The caches are the stretch
      after those of `past`.
    index: where the new token is written.
    keys: per stretch, the caches last, its (positions, valid, sharing); the same for all layers. In
      the caches the new token counts as valid.
    dtype: of the computation.

  Returns: (hidden states after the final norm, the caches with the new token).
  """
  apply = functools.partial(Transformer(config).apply, {"params": params})
  positions = positions[:, None]
  # Masks and rotary tables once for all layers.
  views = [(_masks(config, positions, *key), key[2]) for key in keys]
  rope = rope_tables(config, positions)
  x, new = apply(tokens[:, None], dtype, method="embed"), []
  for layer, is_local, layer_past, cache in zip(
      layers, config.layer_is_local, past, caches, strict=True):
    x, kv = _decode_layer(config, layer, x, is_local, layer_past, (*cache, index), rope, views)
    new.append(kv)
  return apply(x[:, 0], method="normalise"), new


# Jitted and with `is_local` static, so that all layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("config", "is_local"))
def _decode_layer(config, layer, x, is_local, past, cache, rope, views):
  return Block(config).apply(layer, x, (is_local, past, cache), rope, views)


def _repeat(x: Array, rows: int) -> Array:
  return jnp.repeat(x, rows // x.shape[0], axis=0)
