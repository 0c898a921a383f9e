"""Flash attention: every kernel's layout against the reference, in values and gradients.

The reference's masks are explicit.

On a CPU the cuDNN layout runs with XLA's attention in its place, and the splash kernel in Pallas'
interpreter.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.models import flash_attention as flash
from rl_reason.models.attention import attention, visible
from rl_reason.models.config import ModelConfig
from rl_reason.models.flash_attention import attention_kernel, flash_attention
from rl_reason.models.transformer import abstract_params, forward
from rl_reason.runtime import sharding
from rl_reason.runtime.sharding import make_mesh, Partitioning


def axes(sizes):
  """(data, fsdp, tensor) -> a mesh's sizes by axis."""
  return dict(zip(sharding.MESH_AXES, sizes))


CONFIG = ModelConfig(vocab_size=32, width=32, num_layers=2, num_heads=4, num_kv_heads=2,
                     head_dim=8, mlp_hidden=48)
WINDOW = dataclasses.replace(CONFIG, sliding_window=3)
MIXED = dataclasses.replace(
    WINDOW, local_layers=(True, False), rope_theta=500.0, local_rope_theta=50.0)
ALL_GLOBAL = dataclasses.replace(WINDOW, local_layers=(False, False))
SOFTCAP = dataclasses.replace(MIXED, attention_softcap=1.5)


# One layer's attention.

def draw(config, past_lengths, past_size, lengths, size, dtype=jnp.float32):
  """Draws (queries, [prompts' keys and values, completions'], gradient to pull back).

  The padding of prompts holds ±1e4.
  """
  rng = np.random.RandomState(0)
  n, b = len(past_lengths), len(lengths)
  def normal(rows, size, heads):
    return rng.standard_normal((rows, size, heads, config.head_dim))
  q, k, v = (normal(b, size, heads)
             for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads))
  unread = (np.arange(past_size) >= past_lengths[:, None])[..., None, None]
  past = [np.where(unread, garbage, normal(n, past_size, config.num_kv_heads))
          for garbage in (1e4, -1e4)]
  real = np.arange(size) < lengths[:, None]
  # Padded queries' outputs are nobody's business.
  weights = normal(b, size, config.num_heads) * real[..., None, None]
  stretches = [(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))
               for k, v in ([tuple(past)] if n else []) + [(k, v)]]
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), (q, stretches, weights))


def reference(config, q, stretches, past_lengths, lengths, is_local):
  b, t = q.shape[:2]
  group = b // max(len(past_lengths), 1)
  starts = np.repeat(past_lengths, group) if len(past_lengths) else np.zeros(b, int)
  positions = starts[:, None] + np.arange(t)
  keys = [(positions, np.arange(t) < lengths[:, None])]
  if len(past_lengths):
    s = stretches[0][0].shape[-1]
    keys.insert(0, (np.broadcast_to(np.arange(s), (len(past_lengths), s)),
                    np.arange(s) < past_lengths[:, None]))
  window = config.sliding_window if is_local else None
  masks = [visible(jnp.asarray(positions), jnp.asarray(p), jnp.asarray(valid), window)
           for p, valid in keys]
  parts = [(*kv, mask, None) for kv, mask in zip(stretches, masks)]
  return attention(q, parts, scale=config.query_scale, softcap=config.attention_softcap)


def compare(
    config, kernel, past_lengths, past_size, lengths, size, is_local, dtype=jnp.float32,
    tolerance=1e-5):
  q, stretches, weights = draw(config, past_lengths, past_size, lengths, size, dtype)
  group = len(lengths) // max(len(past_lengths), 1)
  starts = jnp.asarray(
      np.repeat(past_lengths, group) if len(past_lengths) else np.zeros(len(lengths)), jnp.int32)

  def both(q, stretches, traced_is_local):  # Traced for the kernel, as in a scan over layers.
    def run(fn):
      out, pull = jax.vjp(fn, q, stretches)
      return jnp.where(weights == 0, 0, out), pull(weights)
    return (run(lambda q, kv: flash_attention(config, q, kv, starts, traced_is_local, kernel)),
            run(lambda q, kv: reference(config, q, kv, past_lengths, lengths, is_local)))

  got, expected = jax.jit(both)(q, stretches, jnp.asarray(is_local))
  # Keys and values that are padding have no gradient.
  blank = 2 * (len(past_lengths) > 0 and not past_lengths.any())
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))
    blank -= np.abs(y).max() == 0
    assert np.abs(y).max() > 0.1 or blank >= 0


SMALL = dict(past_lengths=np.array([4, 2, 1]), past_size=4,
             lengths=np.array([5, 1, 3, 4, 5, 2]), size=5)


@pytest.mark.parametrize("kernel, config, is_local", [
    ("xla", CONFIG, False), ("xla", WINDOW, True), ("xla", MIXED, True), ("xla", MIXED, False),
    ("xla", ALL_GLOBAL, False),
    ("splash_interpreted", WINDOW, True), ("splash_interpreted", MIXED, False),
    ("splash_interpreted", SOFTCAP, True)])
def test_completions_after_padded_prompts_equal_the_reference(kernel, config, is_local):
  compare(config, kernel, **SMALL, is_local=is_local)


@pytest.mark.parametrize("kernel", ["xla", "splash_interpreted"])
@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize("past_size", [0, 4])
def test_rows_that_nothing_precedes_equal_the_reference(kernel, is_local, past_size):
  # A past of padding alone: the first stretch of a prompt that is read in several.
  compare(MIXED, kernel, np.zeros(2 if past_size else 0, int), past_size, np.array([7, 3]), 7,
          is_local)


def test_splash_over_several_tiles_equals_the_reference(monkeypatch):
  # 128 of 512: tiles that are all padding, all visible, partly either, and left out; sizes that
  # fill no tile.
  monkeypatch.setattr(flash, "SPLASH_BLOCK", 128)
  sizes = dict(past_lengths=np.array([300, 2]), past_size=300, lengths=np.array([130, 70]),
               size=130)
  config = dataclasses.replace(MIXED, num_heads=2, num_kv_heads=1, sliding_window=140)
  for is_local in (False, True):
    compare(config, "splash_interpreted", **sizes, is_local=is_local)


def test_rows_have_even_lengths(monkeypatch):
  # 4 + 5 slots. An odd number would be refused on a GPU, and only in training.
  shapes, plain = [], jax.nn.dot_product_attention
  monkeypatch.setattr(
      jax.nn, "dot_product_attention",
      lambda *x, **kw: shapes.extend(y.shape for y in x) or plain(*x, **kw))
  q, stretches, _ = draw(CONFIG, **SMALL)
  out = flash_attention(CONFIG, q, stretches, jnp.repeat(SMALL["past_lengths"], 2), False, "xla")
  assert shapes == [(6, 10, 4, 8), (6, 10, 2, 8), (6, 10, 2, 8)] and out.shape == q.shape


def test_row_order_by_hand():
  # Past slots 0..2 with 1 and 3 real tokens, own tokens in slots 3 and 4: real past, own, then what
  # padding there is.
  np.testing.assert_array_equal(
      flash.row_order(jnp.array([1, 3]), past_size=3, own_size=2),
      [[0, 3, 4, 1, 2], [0, 1, 2, 3, 4]])


# The whole model.

PROMPTS, PROMPT_LENGTHS = np.random.RandomState(3).randint(0, 32, (4, 4)), np.array([4, 2, 1, 3])
COMPLETIONS = np.random.RandomState(4).randint(0, 32, (8, 5))
LENGTHS = np.array([5, 1, 3, 4, 5, 2, 5, 5])


def model(config, kernel, remat="none"):
  """Makes a function of params, which is jitted.

  It gives hidden states of prompts and completions, and the gradient of a function of the real
  ones.
  """
  def hidden(params):
    prompts, prefix = forward(
        config, params, Inputs(PROMPTS, PROMPT_LENGTHS), remat=remat, kernel=kernel)
    completions, _ = forward(
        config, params, Inputs(COMPLETIONS, LENGTHS), prefix, remat=remat, kernel=kernel)
    return [jnp.where((np.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0.0)
            for x, lengths in ((prompts, PROMPT_LENGTHS), (completions, LENGTHS))]
  def loss(params):
    out = hidden(params)
    return sum(jnp.sum(x * jnp.arange(x.size).reshape(x.shape) % 7) for x in out), out
  return jax.jit(jax.grad(loss, has_aux=True))


def assert_close(got, expected):
  def close(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))
  jax.tree.map(close, got, expected)


@pytest.fixture(scope="module")
def by_reference(draw_params):
  """config -> what `model` gives with the reference kernel, on no mesh; computed once."""
  return functools.cache(lambda config: model(config, "reference")(draw_params(config)))


@pytest.mark.parametrize("config, kernel, remat", [
    pytest.param(MIXED, "xla", "none", marks=pytest.mark.slow), (CONFIG, "xla", "full"),
    (SOFTCAP, "splash_interpreted", "dots")])
def test_the_model_is_the_same_with_every_kernel(config, kernel, remat, draw_params, by_reference):
  assert_close(model(config, kernel, remat)(draw_params(config)), by_reference(config))


# 4 prompts, 8 completions and 2 key heads: all split; whole heads on 4 tensor devices; whole
# prompts on 8 data devices.
@pytest.mark.parametrize("kernel, mesh", [
    ("splash_interpreted", (2, 2, 2)), pytest.param("xla", (1, 2, 4), marks=pytest.mark.slow),
    ("xla", (8, 1, 1))])
def test_the_model_is_the_same_on_a_mesh(kernel, mesh, draw_params, by_reference):
  expected = by_reference(MIXED)
  with Partitioning(make_mesh(axes(mesh))).use():
    assert_close(model(MIXED, kernel)(draw_params(MIXED)), expected)


def largest_intermediate(jaxpr):
  """Counts the elements of the largest array that any equation makes.

  Equations inside loops and kernels are included.
  """
  largest = 0
  for eqn in jaxpr.eqns:
    largest = max([largest, *(v.aval.size for v in eqn.outvars if hasattr(v.aval, "shape"))])
    for x in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      inner = getattr(x, "jaxpr", x)
      if hasattr(inner, "eqns"):
        largest = max(largest, largest_intermediate(inner))
  return largest


def test_splash_holds_no_scores():
  # Scores are [B H T S] = 8·4·2048·(512 + 2048) = 168 million numbers; nothing else is near. Only
  # traced.
  t, s = 2048, 512
  def loss(params, kernel):
    prompts, lengths = np.zeros((4, s), np.int32), np.full(4, s)
    _, prefix = forward(MIXED, params, Inputs(prompts, lengths), kernel=kernel)
    inputs = Inputs(np.zeros((8, t), np.int32), np.full(8, t))
    hidden, _ = forward(MIXED, params, inputs, prefix, kernel=kernel)
    return hidden.sum()
  def largest(kernel):
    return largest_intermediate(jax.make_jaxpr(jax.grad(functools.partial(loss, kernel=kernel)))(
        abstract_params(MIXED)).jaxpr)
  assert largest("splash") < 8 * 4 * t * s  # A prompt's part of them, the smallest that could be.
  assert largest("reference") >= 8 * 4 * t * t  # So the search above finds what it looks for.


# Which kernel.

CPU, TPU = (types.SimpleNamespace(platform=name) for name in ("cpu", "tpu"))
def gpu(capability):
  return types.SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize("expected, device, dtype, change, num_tokens", [
    ("reference", CPU, jnp.bfloat16, {}, 9),
    ("splash", TPU, jnp.float32, dict(attention_softcap=2.0), 9),
    ("reference", TPU, jnp.bfloat16, {}, 1),
    ("cudnn", gpu("8.0"), jnp.bfloat16, dict(sliding_window=3), 9),
    ("cudnn", gpu("10.3"), jnp.float16, {}, 9),
    ("reference", gpu("9.0"), jnp.bfloat16, {}, 1),
    ("reference", gpu("9.0"), jnp.float32, {}, 9),
    ("reference", gpu("7.5"), jnp.float16, {}, 9),
    ("reference", gpu("gfx942"), jnp.bfloat16, {}, 9),
    ("reference", gpu("9.0"), jnp.bfloat16, dict(attention_softcap=2.0), 9),
    ("reference", gpu("9.0"), jnp.bfloat16, dict(head_dim=20), 9),
    ("reference", gpu("8.9"), jnp.bfloat16, dict(head_dim=256), 9),
    ("cudnn", gpu("9.0"), jnp.bfloat16, dict(head_dim=256), 9),
])
def test_the_kernel_follows_from_device_dtype_and_shapes(
    expected, device, dtype, change, num_tokens):
  config = dataclasses.replace(CONFIG, **change)
  assert attention_kernel(config, dtype, num_tokens, device) == expected
  assert attention_kernel(config, jnp.dtype(dtype), num_tokens, device) == expected


def test_this_machines_kernel_equals_the_reference():
  config = dataclasses.replace(MIXED, head_dim=64, sliding_window=40)
  kernel = attention_kernel(config, jnp.bfloat16, 200, jax.devices()[0])
  if kernel == "reference":
    pytest.skip(f"{jax.devices()[0].device_kind} has no flash attention.")
  sizes = dict(past_lengths=np.array([100, 30]), past_size=100,
               lengths=np.array([200, 1, 77, 200]), size=200)
  for is_local in (False, True):
    compare(config, kernel, **sizes, is_local=is_local, dtype=jnp.bfloat16, tolerance=2e-2)
