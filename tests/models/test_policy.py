"""Log-probabilities and entropies.

Against the whole [B, T, V] softmax, which the library itself never makes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs, RolloutBatch
from rl_reason.learner import optimizers, step
from rl_reason.models import policy
from rl_reason.models.config import ModelConfig
from rl_reason.models.transformer import abstract_params, forward, unembed
from rl_reason.objectives import losses


def naive(config, params, batch, temperature):
  """One row at a time without groups or padding; log_softmax over all logits."""
  @jax.jit
  def run(tokens, length):  # One shape, so one program.
    hidden, _ = forward(config, params, Inputs(tokens[None], length[None]))
    logits = unembed(config, params, hidden[0]) / temperature
    return jax.nn.log_softmax(logits, axis=-1)
  logprobs, entropies = (np.zeros(batch.completions.shape, np.float32) for _ in range(2))
  for b, length in enumerate(batch.completion_lengths):
    p = b // 2
    n = batch.prompts.lengths[p]
    row = np.zeros(11, np.int32)
    row[:n], row[n:n + length] = batch.prompts.tokens[p, :n], batch.completions[b, :length]
    table = np.asarray(run(row, n + length), np.float64)
    for t in range(length):
      logprobs[b, t] = table[n + t - 1, row[n + t]]
      entropies[b, t] = -(np.exp(table[n + t - 1]) * table[n + t - 1]).sum()
  return logprobs, entropies


@pytest.fixture(scope="module")
def completion_logprobs(tiny_config):
  return jax.jit(
      functools.partial(policy.completion_logprobs, tiny_config), static_argnames="temperature")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_a_naive_softmax_over_all_logits(
    temperature, completion_logprobs, tiny_config, tiny_params, tiny_batch):
  logprobs, entropies = completion_logprobs(
      tiny_params, tiny_batch.prompts, tiny_batch.completions, tiny_batch.completion_lengths,
      temperature=temperature)
  mask = np.asarray(tiny_batch.completion_mask)
  expected_logprobs, expected_entropies = naive(tiny_config, tiny_params, tiny_batch, temperature)
  np.testing.assert_allclose(np.where(mask, logprobs, 0), expected_logprobs, atol=2e-5)
  np.testing.assert_allclose(np.where(mask, entropies, 0), expected_entropies, atol=2e-5)


def test_one_token_completions_are_predicted_by_the_prompt_alone(
    completion_logprobs, tiny_params, tiny_batch):
  # The first tokens of longer completions have the same log-probabilities as completions of one
  # token.
  full, _ = completion_logprobs(
      tiny_params, tiny_batch.prompts, tiny_batch.completions, tiny_batch.completion_lengths)
  one, entropy = completion_logprobs(
      tiny_params, tiny_batch.prompts, tiny_batch.completions[:, :1], np.ones(8, np.int32))
  assert one.shape == entropy.shape == (8, 1)
  np.testing.assert_allclose(one[:, 0], full[:, 0], atol=1e-5)
  assert (entropy[::2] == entropy[1::2]).all()  # Two completions, one prompt.


def test_garbage_in_padding_changes_neither_loss_nor_gradient(tiny_config, tiny_params, tiny_batch):
  def loss(params, batch):
    out = policy.completion_logprobs(
        tiny_config, params, batch.prompts, batch.completions, batch.completion_lengths)
    return losses.policy_gradient_loss(
        *out, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3",
        entropy_coef=0.1)[0]
  gradient = jax.jit(jax.value_and_grad(loss))
  value, grads = gradient(tiny_params, tiny_batch)
  mask = np.asarray(tiny_batch.completion_mask)
  in_prompt = np.arange(6) < tiny_batch.prompts.lengths[:, None]
  def dirty(x, garbage):
    return np.where(mask, x, garbage).astype(x.dtype)
  again, again_grads = gradient(tiny_params, tiny_batch.replace(
      prompts=tiny_batch.prompts.replace(tokens=np.where(in_prompt, tiny_batch.prompts.tokens, 31)),
      completions=dirty(tiny_batch.completions, 30),
      behaviour_logprobs=dirty(tiny_batch.behaviour_logprobs, -np.inf),
      reference_logprobs=dirty(tiny_batch.reference_logprobs, np.nan),
      advantages=dirty(tiny_batch.advantages, 1e30)))
  np.testing.assert_allclose(again, value, rtol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), again_grads, grads)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(again_grads))


# T = 5 positions of 8 * 32 logits each: all at once, 2 at a time with a ragged end, and one at a
# time.
@pytest.mark.parametrize("max_logits", [512, 1])
def test_projection_in_chunks_equals_projection_at_once(max_logits, tiny_config, tiny_params):
  rng = np.random.RandomState(0)
  hidden = rng.standard_normal((8, 5, 32)).astype(np.float32)
  tokens = rng.randint(0, 32, (8, 5))
  weights = rng.standard_normal((2, 8, 5)).astype(np.float32)

  def run(max_logits, hidden, params):
    logprobs, entropy = policy.token_logprobs(
        tiny_config, params, hidden, tokens, temperature=0.7, max_logits=max_logits)
    return jnp.sum(weights[0] * logprobs + weights[1] * entropy), (logprobs, entropy)

  def both(hidden, params):
    return [
        jax.value_and_grad(functools.partial(run, m), argnums=(0, 1), has_aux=True)(hidden, params)
        for m in (max_logits, 8 * 32 * 5)]
  chunked, whole = jax.jit(both)(hidden, tiny_params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), chunked, whole)


def largest_with_vocabulary(jaxpr, vocab):
  """Elements of the largest array with a vocabulary dimension anywhere in a jaxpr.

  Arrays inside its loops count too.
  """
  largest = 0
  for eqn in jaxpr.eqns:
    for v in (*eqn.invars, *eqn.outvars):
      if vocab in getattr(v.aval, "shape", ()):
        largest = max(largest, v.aval.size)
    for x in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      inner = getattr(x, "jaxpr", x)
      if hasattr(inner, "eqns"):
        largest = max(largest, largest_with_vocabulary(inner, vocab))
  return largest


def test_the_derivative_of_log_probability_and_entropy():
  """By hand where p = (1/4, 3/4), against autodiff of the formulas elsewhere.

  The logits are all that it keeps of their size.
  """
  logits, token = jnp.array([0.0, np.log(3.0)]), jnp.array(0)
  entropy = -np.log(1 / 4) / 4 - np.log(3 / 4) * 3 / 4
  of_logprob, of_entropy = jax.jacrev(policy.logprob_and_entropy)(logits, token)
  np.testing.assert_allclose(of_logprob, [3 / 4, -3 / 4], rtol=1e-6)
  np.testing.assert_allclose(
      of_entropy, [-(np.log(1 / 4) + entropy) / 4, -(np.log(3 / 4) + entropy) * 3 / 4], rtol=1e-5)

  def formulas(logits, tokens):
    logprobs = jax.nn.log_softmax(logits)
    of_tokens = jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]
    return of_tokens, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  rng = np.random.default_rng(0)
  logits, tokens = rng.normal(size=(5, 7, 11)).astype(np.float32) * 5, rng.integers(0, 11, (5, 7))
  logits[0, 0] = [80.0] + [-80.0] * 10  # Nearly certain: probabilities that are 0 in float32.
  weights = tuple(rng.normal(size=(2, 5, 7)).astype(np.float32))
  ours, derivative = jax.vjp(lambda x: policy.logprob_and_entropy(x, tokens), logits)
  theirs, autodiff = jax.vjp(lambda x: formulas(x, tokens), logits)
  for found, wanted in zip((*ours, *derivative(weights)), (*theirs, *autodiff(weights))):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
  assert sum(np.size(x) >= logits.size for x in jax.tree.leaves(derivative)) == 1


def test_the_update_never_holds_logits_of_all_positions():
  # B·T·V = 8·512·50_021 = 205 million; at most 2**24 = 16.8 million logits may exist at once. Only
  # traced, never run.
  b, t, v = 8, 512, 50_021
  config = ModelConfig(vocab_size=v, width=32, num_layers=1, num_heads=1, num_kv_heads=1,
                       head_dim=32, mlp_hidden=32)
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(1e-3), 1)

  def update(params, batch):
    def loss_fn(params, batch):
      out = policy.completion_logprobs(
          config, params, batch.prompts, batch.completions, batch.completion_lengths)
      return losses.policy_gradient_loss(
          *out, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3",
          entropy_coef=0.1)
    return step.train_step(
        step.init_state(params, optimizer), batch, loss_fn=loss_fn, optimizer=optimizer)

  def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((2, *shape), dtype)
  batch = RolloutBatch(
      prompts=Inputs(tokens=of((2, 16), jnp.int32), lengths=of((2,), jnp.int32)),
      completions=of((b, t), jnp.int32), completion_lengths=of((b,), jnp.int32),
      **{k: of((b, t)) for k in (
          "behaviour_logprobs", "advantages", "reference_logprobs", "token_weights")})
  traced = jax.make_jaxpr(update)(abstract_params(config), batch)
  assert v * 32 <= largest_with_vocabulary(traced.jaxpr, v) <= policy.MAX_LOGITS

  whole = jax.make_jaxpr(lambda params, hidden, tokens: policy.token_logprobs(
      config, params, hidden, tokens, max_logits=b * t * v))(
          abstract_params(config), jax.ShapeDtypeStruct((b, t, 32), jnp.float32),
          jax.ShapeDtypeStruct((b, t), jnp.int32))
  # So the search above finds what it looks for.
  assert largest_with_vocabulary(whole.jaxpr, v) == b * t * v


def test_score_is_completion_logprobs(completion_logprobs, tiny_config, tiny_params, tiny_batch):
  args = (tiny_params, tiny_batch.prompts, tiny_batch.completions, tiny_batch.completion_lengths)
  np.testing.assert_allclose(
      policy.score(tiny_config, *args, temperature=0.7),
      completion_logprobs(*args, temperature=0.7)[0], atol=1e-6)
