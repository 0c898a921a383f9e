"""The decoder.

Against a plain NumPy one, its layouts against each other, and padding that must not matter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.models import transformer
from rl_reason.models.attention import attention, rope_frequencies, Sharing, visible
from rl_reason.models.config import ModelConfig, RopeScaling, small
from rl_reason.models.transformer import forward, unembed

BASE = ModelConfig(vocab_size=32, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
                   mlp_hidden=48)
# Everything at once: a window shorter than the prompts, one local and one global layer, all scales
# and biases.
RICH = dataclasses.replace(
    BASE, activation="gelu", norm_plus_one=True, post_norms=True, qk_norm=True, qkv_bias=True,
    output_bias=True, mlp_bias=True, tied_embeddings=False, embedding_scale=5.0, rope_theta=500.0,
    local_rope_theta=50.0, rope_scaling=RopeScaling(
        "llama3", factor=4.0, high_frequency_factor=4.0, original_max_positions=32),
    sliding_window=3, local_layers=(True, False), attention_scale=0.5, attention_softcap=2.0,
    logit_softcap=3.0)
CONFIGS = {
    "grouped_heads": BASE,
    "window": dataclasses.replace(BASE, sliding_window=3),
    "local_and_global": dataclasses.replace(
        BASE, sliding_window=2, local_layers=(False, True), rope_theta=1000.0,
        local_rope_theta=10.0, rope_scaling=RopeScaling("linear", factor=2.0)),
    "soft_caps": dataclasses.replace(BASE, attention_softcap=0.5, logit_softcap=0.7),
    "rich": RICH,
}


# A plain reference: one sequence, loops over layers, heads and queries, float64.

def reference_frequencies(theta, scaling, d):
  out = []
  for i in range(d // 2):
    f = theta ** (-2 * i / d)
    if scaling is not None and scaling.kind == "linear":
      f /= scaling.factor
    elif scaling is not None:
      wavelength = 2 * np.pi / f
      low = scaling.original_max_positions / scaling.low_frequency_factor
      high = scaling.original_max_positions / scaling.high_frequency_factor
      if wavelength > low:
        f /= scaling.factor
      elif wavelength >= high:
        smooth = (scaling.original_max_positions / wavelength - scaling.low_frequency_factor) / (
            scaling.high_frequency_factor - scaling.low_frequency_factor)
        f = (1 - smooth) * f / scaling.factor + smooth * f
    out.append(f)
  return np.array(out)


def reference_logits(c, params, tokens):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    scale = 1 + scale if c.norm_plus_one else scale
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + c.norm_eps) * scale

  def cap(x, limit):
    return x if limit is None else limit * np.tanh(x / limit)

  def rotate(x, position, freqs):  # [D]; features i and i + D/2 are a complex number.
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * freqs)
    return np.concatenate([z.real, z.imag])

  def activation(x):
    if c.activation == "silu":
      return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))

  x = p["embedding"][tokens] * c.embedding_scale
  for i in range(c.num_layers):
    w = jax.tree.map(lambda x, i=i: x[i], p["layers"])
    local = c.layer_is_local[i]
    freqs = reference_frequencies(c.rope_theta, c.rope_scaling, c.head_dim)
    if local and c.local_rope_theta is not None:
      freqs = reference_frequencies(c.local_rope_theta, None, c.head_dim)
    h = norm(x, w["attention_norm"])
    q, k, v = (np.tensordot(h, w[name], 1) + w.get(f"{name}_bias", 0.0) for name in "qkv")
    if c.qk_norm:
      q, k = norm(q, w["q_norm"]), norm(k, w["k_norm"])
    out = np.zeros_like(q)
    for head in range(c.num_heads):
      of = head // (c.num_heads // c.num_kv_heads)
      keys = [rotate(k[s, of], s, freqs) for s in range(len(tokens))]
      for t in range(len(tokens)):
        first = max(0, t - c.sliding_window + 1) if local else 0
        query = rotate(q[t, head], t, freqs)
        scores = np.array([cap(c.query_scale * query @ keys[s], c.attention_softcap)
                           for s in range(first, t + 1)])
        share = np.exp(scores - scores.max())
        out[t, head] = share / share.sum() @ v[first:t + 1, of]
    h = np.einsum("thd,hde->te", out, w["o"]) + w.get("o_bias", 0.0)
    x = x + (norm(h, w["attention_post_norm"]) if c.post_norms else h)
    h = norm(x, w["mlp_norm"])
    h = activation(h @ w["gate"] + w.get("gate_bias", 0.0)) * (h @ w["up"] + w.get("up_bias", 0.0))
    h = h @ w["down"] + w.get("down_bias", 0.0)
    x = x + (norm(h, w["mlp_post_norm"]) if c.post_norms else h)
  hidden = norm(x, p["final_norm"])
  table = p["embedding"] if c.tied_embeddings else p["unembedding"]
  return cap(hidden @ table.T, c.logit_softcap)


# Shared arrays: 2 prompts of up to 4 tokens, 3 completions each of up to 5.

TOKENS = np.random.RandomState(3)
PROMPTS, PROMPT_LENGTHS = TOKENS.randint(0, 32, (2, 4)), np.array([4, 2])
COMPLETIONS, LENGTHS = TOKENS.randint(0, 32, (6, 5)), np.array([5, 1, 3, 4, 5, 2])


def plain_rows():
  """The same sequences without groups: each completion directly after a copy of its prompt."""
  rows = np.zeros((6, 9), np.int64)
  for b in range(6):
    n = PROMPT_LENGTHS[b // 3]
    rows[b, :n] = PROMPTS[b // 3, :n]
    rows[b, n:n + LENGTHS[b]] = COMPLETIONS[b, :LENGTHS[b]]
  return rows, np.repeat(PROMPT_LENGTHS, 3) + LENGTHS


@functools.cache
def grouped(config, remat="none"):
  """jitted (params, prompts, completions) -> hidden states of both, and the prompts' keys."""
  def run(params, prompts, completions):
    prompt_hidden, prefix = forward(config, params, Inputs(prompts, PROMPT_LENGTHS), remat=remat)
    hidden, _ = forward(config, params, Inputs(completions, LENGTHS), prefix, remat=remat)
    return prompt_hidden, hidden, prefix
  return jax.jit(run)


def logits_at(config, params, hidden):
  """As unembed, in NumPy: saves compiling it for every shape."""
  table = params["embedding"] if config.tied_embeddings else params["unembedding"]
  logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
  if config.logit_softcap is None:
    return logits
  return config.logit_softcap * np.tanh(logits / config.logit_softcap)


@pytest.mark.parametrize("name", CONFIGS)
def test_grouped_completions_equal_the_reference_row_by_row(name, draw_params):
  config = CONFIGS[name]
  params = draw_params(config)
  prompt_hidden, hidden, _ = grouped(config)(params, PROMPTS, COMPLETIONS)
  rows, _ = plain_rows()
  for b in (0, 2, 4):  # Both prompts, one longer and one shorter than the windows.
    n, length = PROMPT_LENGTHS[b // 3], LENGTHS[b]
    expected = reference_logits(config, params, rows[b, :n + length])
    got = np.concatenate([prompt_hidden[b // 3, :n], hidden[b, :length]])
    np.testing.assert_allclose(logits_at(config, params, got), expected, atol=2e-5)


def test_unembed_equals_the_reference(draw_params):
  hidden = np.random.RandomState(0).standard_normal((3, 32)).astype(np.float32)
  for config in (BASE, RICH):  # Tied; its own matrix and a soft cap.
    params = draw_params(config)
    np.testing.assert_allclose(
        unembed(config, params, hidden), logits_at(config, params, hidden), atol=1e-5)


def test_grouped_and_plain_layouts_agree_in_values_and_gradients(draw_params):
  params = draw_params(RICH)
  rows, lengths = plain_rows()
  weights = np.random.RandomState(5).standard_normal((6, 5, 32)).astype(np.float32)
  weights *= (np.arange(5) < LENGTHS[:, None])[..., None]

  def loss_grouped(params):
    _, prefix = forward(RICH, params, Inputs(PROMPTS, PROMPT_LENGTHS))
    hidden, _ = forward(RICH, params, Inputs(COMPLETIONS, LENGTHS), prefix)
    return jnp.sum(weights * hidden)

  def loss_plain(params):
    hidden, _ = forward(RICH, params, Inputs(rows, lengths))
    start = np.repeat(PROMPT_LENGTHS, 3)
    own = jnp.take_along_axis(hidden, (start[:, None] + np.arange(5))[..., None], axis=1)
    return jnp.sum(weights * own)

  def both(params):
    return jax.value_and_grad(loss_grouped)(params), jax.value_and_grad(loss_plain)(params)
  (a, grads_a), (b, grads_b) = jax.jit(both)(params)
  # Terms of size 1 that nearly cancel.
  np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(weights).sum())
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()),
               grads_a, grads_b)
  assert np.abs(grads_a["layers"]["k"]).max() > 1e-3


def test_padding_may_hold_anything(draw_params):
  params = draw_params(RICH)
  run = grouped(RICH)
  prompt_hidden, hidden, _ = run(params, PROMPTS, COMPLETIONS)
  in_prompt, in_completion = np.arange(4) < PROMPT_LENGTHS[:, None], np.arange(5) < LENGTHS[:, None]
  prompt_again, again, _ = run(
      params, np.where(in_prompt, PROMPTS, 31), np.where(in_completion, COMPLETIONS, 17))
  np.testing.assert_array_equal(prompt_hidden[in_prompt], prompt_again[in_prompt])
  np.testing.assert_array_equal(hidden[in_completion], again[in_completion])
  assert np.abs(hidden - again)[~in_completion].max() > 0.1  # The garbage was read, and only there.


def test_other_rows_and_later_tokens_change_nothing(draw_params):
  params = draw_params(RICH)
  run = grouped(RICH)
  _, hidden, _ = run(params, PROMPTS, COMPLETIONS)
  prompts, completions = PROMPTS.copy(), COMPLETIONS.copy()
  prompts[1], completions[1:], completions[0, 3:] = 7, 9, 11
  _, again, _ = run(params, prompts, completions)
  np.testing.assert_array_equal(hidden[0, :3], again[0, :3])


@functools.cache
def decode_step(config):
  def step(params, tokens, positions, prefix, cache, t, sharing):
    b, size = tokens.shape[0], cache[0][0].shape[-1]
    cache_positions = (positions - t)[:, None] + jnp.arange(size)
    return transformer.decode(
        config, params, [{"params": layer} for layer in transformer.split_layers(config, params)],
        tokens, positions,
        past=[((prefix.k[i], prefix.v[i]),) for i in range(config.num_layers)], caches=cache,
        index=t,
        keys=[(prefix.positions, prefix.valid, sharing),
              (cache_positions, jnp.broadcast_to(jnp.arange(size) <= t, (b, size)), None)])
  return jax.jit(step)


# Rows in the order of their prompts; and mixed, one left out: prompt 0 serves rows 1, 2 and 4 of
# five, prompt 1 rows 0, 3.
@pytest.mark.parametrize("rows, sharing", [
    (np.arange(6), None),
    (np.array([4, 2, 0, 3, 1]),
     Sharing(members=np.array([[2, 4, 1], [3, 0, 0]]), places=np.array([4, 2, 0, 3, 1]))),
])
def test_decoding_token_by_token_equals_forward_whatever_lies_beyond_the_caches_ends(
    rows, sharing, draw_params):
  params = draw_params(RICH)
  _, hidden, prefix = grouped(RICH)(params, PROMPTS, COMPLETIONS)
  garbage = np.random.RandomState(0)
  unread = ~np.asarray(prefix.valid)[None, :, None, :, None]
  prefix = prefix.replace(
      k=np.where(unread.swapaxes(3, 4), 1e4, prefix.k), v=np.where(unread, -1e4, prefix.v))
  cache = [tuple(1e4 * garbage.standard_normal((len(rows), 2, *size)).astype(np.float32)
                 for size in ((8, 5), (5, 8)))
           for _ in range(2)]
  starts = np.repeat(PROMPT_LENGTHS, 3)[rows]
  for t in range(5):
    out, cache = decode_step(RICH)(
        params, COMPLETIONS[rows, t], starts + t, prefix, cache, t, sharing)
    real = t < LENGTHS[rows]
    np.testing.assert_allclose(out[real], hidden[rows[real], t], atol=1e-5)


def test_grouped_heads_equal_full_heads_with_repeated_keys(draw_params):
  params = draw_params(BASE)
  full = jax.tree.map(np.copy, params)
  for name in ("k", "v"):  # [L E K D]: query heads 0, 1 read key head 0, heads 2, 3 read head 1.
    full["layers"][name] = np.repeat(params["layers"][name], 2, axis=2)
  _, expected, _ = grouped(BASE)(params, PROMPTS, COMPLETIONS)
  _, hidden, _ = grouped(dataclasses.replace(BASE, num_kv_heads=4))(full, PROMPTS, COMPLETIONS)
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_sliding_window_mask_by_hand():
  # Queries at positions 2 and 3 of one sequence, keys at 0..3 of which the one at 1 is padding;
  # window 2: self and one.
  positions, keys = jnp.array([[2, 3]]), jnp.arange(4)[None]
  valid = jnp.array([[True, False, True, True]])
  np.testing.assert_array_equal(
      visible(positions, keys, valid), [[[[True, False, True, False], [True, False, True, True]]]])
  np.testing.assert_array_equal(
      visible(positions, keys, valid, 2),
      [[[[False, False, True, False], [False, False, True, True]]]])


def test_attention_by_hand_with_and_without_soft_cap():
  # One query, keys in two parts, 1 feature: scores 2·q·k = 2·[1, 2, 100] with the last hidden;
  # values 10, 20, garbage.
  q = jnp.ones((1, 1, 1, 1))
  def part(keys, values, mask):
    return (jnp.reshape(jnp.array(keys), (1, 1, 1, -1)),
            jnp.reshape(jnp.array(values), (1, 1, -1, 1)),
            jnp.reshape(jnp.array(mask), (1, 1, 1, -1)), None)
  parts = [part([1.0], [10.0], [True]), part([2.0, 100.0], [20.0, 1e9], [True, False])]
  # softmax([2, 4]) = [1, e²] / (1 + e²) -> 10 + 10·e²/(1 + e²)
  attend = jax.jit(attention, static_argnames=("scale", "softcap"))
  np.testing.assert_allclose(
      attend(q, parts, scale=2.0).item(), 10 + 10 / (1 + np.exp(-2.0)), rtol=1e-6)
  # Capped at 3: 3·tanh(2/3), 3·tanh(4/3).
  gap = 3 * np.tanh(4 / 3) - 3 * np.tanh(2 / 3)
  np.testing.assert_allclose(
      attend(q, parts, scale=2.0, softcap=3.0).item(), 10 + 10 / (1 + np.exp(-gap)), rtol=1e-6)


def test_a_query_that_sees_no_key_stays_finite_with_its_gradient():
  q, k, v = jnp.ones((1, 2, 1, 2)), jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 2, 2))
  nothing = jnp.zeros((1, 1, 2, 2), bool)
  value, grads = jax.jit(jax.value_and_grad(
      lambda q: attention(q, [(k, v, nothing, None)], scale=1.0).sum()))(q)
  assert np.isfinite(value) and np.isfinite(grads).all()


def test_rope_frequencies_by_hand():
  # θ = 10000, D = 4: 10000^0 = 1, 10000^(-2/4) = 0.01; linear scaling by 8 divides both.
  np.testing.assert_allclose(rope_frequencies(4, 1e4), [1.0, 0.01], rtol=1e-6)
  np.testing.assert_allclose(
      rope_frequencies(4, 1e4, RopeScaling("linear", 8.0)), [0.125, 0.00125], rtol=1e-6)
  # Llama 3.1's: θ^(-2i/6) of θ = 1e6 is 1, 1e-2, 1e-4. Turns in the original context:
  # 2000·f / 2π = 318, 3.1831, 0.03. More than high = 4 turns: kept. Fewer than low = 1: divided
  # by 8. Between: s = (3.1831 − 1) / (4 − 1) = 0.727699, so
  # f = s·0.01 + (1 − s)·0.01 / 8 = 0.00727699 + 0.00034038 = 0.00761737.
  scaling = RopeScaling("llama3", factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0,
                        original_max_positions=2000)
  np.testing.assert_allclose(
      rope_frequencies(6, 1e6, scaling), [1.0, 0.00761737, 1.25e-5], rtol=1e-5)


@pytest.mark.parametrize("inputs, outputs", [((5,), (2, 3)), ((2, 3), (5,)), ((5,), (6,))])
def test_products_are_tensordots_with_their_gradients(inputs, outputs):
  rng = np.random.default_rng(0)
  x, matrix, weights = (rng.normal(size=s).astype(np.float32)
                        for s in ((4, 7, *inputs), (*inputs, *outputs), (4, 7, *outputs)))
  ours = jax.vjp(lambda x, m: transformer.product(x, m, len(inputs)), x, matrix)
  theirs = jax.vjp(lambda x, m: jnp.tensordot(x, m, len(inputs)), x, matrix)
  for found, wanted in zip((ours[0], *ours[1](weights)), (theirs[0], *theirs[1](weights))):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  # Of what is not differentiated there is no gradient, and nothing is kept for it.
  frozen = jax.vjp(lambda x: transformer.product(x, matrix, len(inputs)), x)[1]
  assert [k.shape for k in jax.tree.leaves(frozen)] == [matrix.shape]
  np.testing.assert_allclose(frozen(weights)[0], theirs[1](weights)[0], rtol=1e-5, atol=1e-5)


def test_rms_norm_by_hand():
  # x = [3, 4]: mean square 12.5; with eps 0.5: rms = sqrt(13). bfloat16 in, bfloat16 out, computed
  # in float32.
  config = dataclasses.replace(BASE, norm_eps=0.5)
  x, scale = jnp.array([3.0, 4.0]), jnp.array([2.0, -1.0])
  r = 13 ** 0.5
  np.testing.assert_allclose(transformer.rms_norm(x, scale, config), [6 / r, -4 / r], rtol=1e-6)
  plus_one = dataclasses.replace(config, norm_plus_one=True)
  np.testing.assert_allclose(transformer.rms_norm(x, scale, plus_one), [9 / r, 0.0], rtol=1e-6)
  assert transformer.rms_norm(x.astype(jnp.bfloat16), scale, config).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["grouped_heads", "rich"])
def test_eight_bits_are_half_a_step_off_at_most(name, draw_params):
  layer = transformer.split_layers(CONFIGS[name], draw_params(CONFIGS[name]))[1]
  # All zero; in some columns.
  layer = layer | {"k": 0 * layer["k"], "up": layer["up"] * (np.arange(48) % 3 > 0)}
  quantized = transformer.quantize(layer)
  values, scales = quantized["params"], quantized["scales"]
  assert scales.keys() == {"q", "k", "v", "o", "gate", "up", "down"}
  # One scale for each output: head and feature, or feature.
  assert {k: s.shape for k, s in scales.items()} == dict(
      q=(1, 4, 8), k=(1, 2, 8), v=(1, 2, 8), o=(1, 1, 32), gate=(1, 48), up=(1, 48), down=(1, 32))
  for name, scale in scales.items():
    assert values[name].dtype == jnp.int8 and (scale > 0).all()
    error = np.abs(layer[name] - np.asarray(values[name], np.float32) * scale)
    assert (error <= scale / 2 * (1 + 1e-5)).all()
    assert name == "k" or error.max() > 0.9 * scale.min() / 2
  assert not values["k"].any() and np.abs(values["q"]).max() == 127
  # Norms and biases stay.
  assert all(values[k] is layer[k] for k in layer if k not in scales)


def test_eight_bits_by_hand():
  # Two inputs, two outputs: scales 2.54 / 127 = 0.02 and 1.27 / 127 = 0.01.
  layer = {k: jnp.zeros((1,) * (n + 1)) for k, n in transformer.INPUT_AXES.items()}
  out = transformer.quantize(layer | {"gate": jnp.array([[2.54, -1.27], [-0.03, 0.104]])})
  np.testing.assert_allclose(out["scales"]["gate"], [[0.02, 0.01]], rtol=1e-6)
  assert out["params"]["gate"].tolist()[0] == [127, -127]
  assert out["params"]["gate"].tolist()[1][1] == 10
  assert out["params"]["gate"][1, 0] in (-1, -2)  # −1.5, rounded to either side.


def test_rematerialisation_changes_no_gradient(draw_params):
  params = draw_params(BASE)
  def loss(params, remat):
    hidden, _ = forward(BASE, params, Inputs(COMPLETIONS, LENGTHS), remat=remat)
    return jnp.sum(jnp.square(hidden) * jnp.arange(32))
  expected, *others = jax.jit(
      lambda p: [jax.grad(loss)(p, remat) for remat in ("none", "dots", "full")])(params)
  for grads in others:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()),
                 grads, expected)


def test_rematerialisation_keeps_less(draw_params):
  # What a layer scan hands to the backward pass: "full" keeps each layer's input alone, "none" also
  # its products.
  params = draw_params(BASE)
  def kept(remat):
    loss = lambda p: jnp.sum(forward(BASE, p, Inputs(COMPLETIONS, LENGTHS), remat=remat)[0])
    _, vjp = jax.eval_shape(lambda p: jax.vjp(loss, p), params)
    return sum(x.size for x in jax.tree.leaves(vjp))
  assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("config", [BASE, RICH], ids=["base", "rich"])
def test_parameter_axes_name_every_dimension(config):
  shapes, axes = transformer.abstract_params(config), transformer.parameter_axes(config)
  assert jax.tree.structure(shapes) == jax.tree.structure(axes)
  sizes = dict(layers=2, vocab=32, embed=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
  jax.tree.map(lambda x, names: np.testing.assert_equal(tuple(sizes[n] for n in names), x.shape),
               shapes, axes)


def test_initial_parameters():
  params = jax.jit(functools.partial(transformer.init_params, BASE))(jax.random.key(0))
  assert (params["final_norm"] == 1).all()
  # 2 · 32 · 48 draws: the deviation 1/sqrt(fan-in) is met within a few per cent.
  np.testing.assert_allclose(np.std(params["layers"]["gate"]), 32 ** -0.5, rtol=0.05)
  np.testing.assert_allclose(np.std(params["layers"]["down"]), 48 ** -0.5, rtol=0.05)
  first, second = params["layers"]["gate"]
  assert np.abs(first - second).max() > 0.1


def test_bfloat16_is_close_and_logits_stay_float32(draw_params):
  params = draw_params(BASE)
  run = jax.jit(lambda p: forward(BASE, p, Inputs(COMPLETIONS, LENGTHS), dtype=jnp.bfloat16)[0])
  hidden = run(params)
  assert hidden.dtype == jnp.bfloat16 and unembed(BASE, params, hidden).dtype == jnp.float32
  exact = jax.jit(lambda p: forward(BASE, p, Inputs(COMPLETIONS, LENGTHS))[0])(params)
  np.testing.assert_allclose(np.asarray(hidden, np.float32)[0], exact[0], atol=0.1)


@pytest.mark.parametrize("change, message", [
    (dict(num_kv_heads=3), "num_kv_heads=3 must divide num_heads=4"),
    (dict(head_dim=7), "head_dim must be even"),
    (dict(width=0), "width must be at least 1"),
    (dict(activation="relu"), "silu or gelu"),
    (dict(local_layers=(True,), sliding_window=2), "names 1 layers, the model has 2"),
    (dict(local_layers=(True, False)), "set its length"),
])
def test_impossible_configs_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(BASE, **change)


def test_small_config_by_hand():
  # width 96: 96 / 32 = 3 heads of 32; feed-forward 96·8/3 = 256, a multiple of 16 already.
  config = small(100, width=96, num_layers=3)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (3, 3, 32)
  assert config.mlp_hidden == 256
  with pytest.raises(ValueError, match="num_heads=5 must divide width=96"):
    small(100, width=96, num_layers=3, num_heads=5)


def test_images_are_refused_by_a_model_that_cannot_see():
  images = np.zeros((2, 1, 4, 4, 3), np.float32)
  with pytest.raises(
      ValueError,
      match=r"images of shape \(2, 1, 4, 4, 3\), and this model has no vision encoder"):
    forward(BASE, None, Inputs(np.ones((2, 3), np.int32), np.full(2, 3), images))
