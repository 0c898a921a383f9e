"""Objectives, KL estimators and reductions.

By hand, by enumeration, and with garbage where nothing may be read.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import length_mask
from rl_reason.batches.packing import pack, Packing
from rl_reason.objectives import losses

BOUNDS = dict(clip_low=0.2, clip_high=0.3)
FULL = dict(clip_low=0.2, clip_high=0.3, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.01)


def row(*values):
  return jnp.array([values])


def objective_and_gradient(ratios, advantages, mask=None):
  """The loss per token, its gradient with respect to logprobs, and the clipped tokens.

  The behaviour log-probability is −1.
  """
  behaviour = jnp.full(ratios.shape, -1.0)
  mask = jnp.ones(ratios.shape, bool) if mask is None else mask
  def total(logprobs):
    loss, clipped = losses.clipped_policy_gradient(logprobs, behaviour, advantages, mask, **BOUNDS)
    return loss.sum(), (loss, clipped)
  (_, (loss, clipped)), gradient = jax.value_and_grad(total, has_aux=True)(jnp.log(ratios) - 1.0)
  return loss, gradient, clipped


def test_clipped_objective_by_hand():
  # Bounds 0.8 and 1.3; loss −min(ρA, clip(ρ)A); where not clipped, d loss / d logprob = −ρA.
  #   ρ = 1.5, A =  2: −min(3, 2.6) = −2.6, clipped     ρ = 1.5, A = −1: −min(−1.5, −1.3) = 1.5
  #   ρ = 0.5, A =  2: −min(1, 1.6) = −1                ρ = 0.5, A = −1: −min(−0.5, −0.8) = 0.8,
  #                                                     clipped
  #   ρ = 1.1, A =  2: −2.2                             ρ = 0.9, A = −1: 0.9
  loss, gradient, clipped = objective_and_gradient(
      row(1.5, 1.5, 0.5, 0.5, 1.1, 0.9), row(2.0, -1.0, 2.0, -1.0, 2.0, -1.0))
  np.testing.assert_allclose(loss, [[-2.6, 1.5, -1.0, 0.8, -2.2, 0.9]], rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0.0, 1.5, -1.0, 0.0, -2.2, 0.9]], rtol=1e-6)
  np.testing.assert_array_equal(clipped, [[True, False, False, True, False, False]])


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
  advantages = row(1.0, -2.0, 0.5)
  loss, gradient, clipped = objective_and_gradient(jnp.ones((1, 3)), advantages)
  np.testing.assert_allclose(loss, -advantages, rtol=1e-6)
  np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)
  assert not clipped.any()


def value_and_gradient(
    name, logprobs, behaviour, advantages, mask=None, segments=None, weights=None, **bounds):
  """An objective per token, the gradient of its weighted sum, and the clipped tokens.

  The gradient is with respect to logprobs.
  """
  mask = jnp.ones(behaviour.shape, bool) if mask is None else jnp.asarray(mask)
  weights = jnp.asarray(mask, jnp.float32) if weights is None else weights

  def total(logprobs):
    loss, clipped = losses.OBJECTIVES[name](
        logprobs, behaviour, advantages, mask, segments, **(bounds or BOUNDS))
    return jnp.sum(weights * loss), (loss, clipped)
  (_, (loss, clipped)), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logprobs))
  return loss, gradient, clipped


def test_gspo_by_hand():
  # Row 0: log ρ = ln 2, ln 2, ln 0.25: mean 0, s = 1, not clipped. d loss / d logprob of each
  #   token, of the sum over 3 tokens of −s A: −3 s A / 3 = −2.
  # Row 1: log ρ = 2 ln 1.5, 0: mean ln 1.5, s = 1.5 > 1.3: −min(3, 2.6), clipped whole.
  # Row 2: the same s, A = −1: −min(−1.5, −1.3) = 1.5, not clipped, gradient 2 · 1.5 / 2.
  mask = jnp.array([[True, True, True], [True, True, False], [True, True, False]])
  behaviour = jnp.full((3, 3), -3.0)
  logprobs = behaviour + jnp.log(jnp.array([[2, 2, 0.25], [2.25, 1, 9], [2.25, 1, 9]]))
  advantages = jnp.array([[2.0] * 3, [2.0] * 3, [-1.0] * 3])
  for name in ("gspo", "gspo_token"):
    loss, gradient, clipped = value_and_gradient(name, logprobs, behaviour, advantages, mask)
    np.testing.assert_allclose(loss, [[-2, -2, -2], [-2.6, -2.6, 0], [1.5, 1.5, 0]], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-2, -2, -2], [0, 0, 0], [1.5, 1.5, 0]], rtol=1e-5)
    np.testing.assert_array_equal(clipped, [[False] * 3, [True, True, False], [False] * 3])


def test_gspo_token_moves_each_token_by_its_own_advantage():
  # log ρ = ln 1.21, 0: s = 1.1. Own gradients −s A_t = −2.2 and 1.1; the sequence form shares out
  # their mean, −0.55.
  logprobs, advantages = row(*np.log([1.21, 1.0])), row(2.0, -1.0)
  loss, gradient, _ = value_and_gradient("gspo_token", logprobs, jnp.zeros((1, 2)), advantages)
  np.testing.assert_allclose(loss, [[-2.2, 1.1]], rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-2.2, 1.1]], rtol=1e-5)
  np.testing.assert_allclose(
      value_and_gradient("gspo", logprobs, jnp.zeros((1, 2)), advantages)[1], [[-0.55, -0.55]],
      rtol=1e-5)


def test_cispo_by_hand():
  # Bounds 0.8 and 1.3, log π = ln ρ − 1, loss −clip(ρ) A log π, gradient −clip(ρ) A: clipped tokens
  # still learn.
  #   ρ = 1.5, A = 2: −1.3 · 2 · −0.594535 = 1.545791
  #   ρ = 0.5, A = −1: 0.8 · −1.693147 = −1.354518
  #   ρ = 1, A = 3: −3 · −1 = 3
  loss, gradient, clipped = value_and_gradient(
      "cispo", row(*np.log([1.5, 0.5, 1.0]) - 1), jnp.full((1, 3), -1.0), row(2.0, -1.0, 3.0))
  np.testing.assert_allclose(loss, [[1.545791, -1.354518, 3.0]], rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-2.6, 0.8, -3.0]], rtol=1e-5)
  np.testing.assert_array_equal(clipped, [[True, True, False]])
  loss, _, clipped = value_and_gradient(  # The paper's: no lower bound.
      "cispo", row(np.log(0.01)), jnp.zeros((1, 1)), row(1.0), clip_low=1.0, clip_high=0.3)
  np.testing.assert_allclose(loss, [[-0.01 * np.log(0.01)]], rtol=1e-5)
  assert not clipped.any()


def test_gmpo_by_hand():
  # Bounds of log ρ −0.2 and 0.3.
  # A = 2: log ρ = 0.5, −0.5 -> c = 0.3 (clipped), −0.5 (min keeps the worse): mean −0.1, loss
  #   −2 e^−0.1 each; the second token's gradient, of the sum of two: −2 e^−0.1.
  # A = −1: c = 0.5, −0.2 (clipped): mean 0.15, loss e^0.15, the first token's gradient e^0.15.
  logprobs = jnp.array([[0.5, -0.5, 7.0], [0.5, -0.5, 7.0]])
  mask, advantages = jnp.array([[True, True, False]] * 2), jnp.array([[2.0] * 3, [-1.0] * 3])
  loss, gradient, clipped = value_and_gradient(
      "gmpo", logprobs, jnp.zeros((2, 3)), advantages, mask)
  np.testing.assert_allclose(
      loss, [[-2 * np.exp(-0.1)] * 2 + [0], [np.exp(0.15)] * 2 + [0]], rtol=1e-5)
  np.testing.assert_allclose(gradient, [[0, -2 * np.exp(-0.1), 0], [np.exp(0.15), 0, 0]], rtol=1e-5)
  np.testing.assert_array_equal(clipped, [[True, False, False], [False, True, False]])


@pytest.fixture(scope="module")
def sequence_advantages(tiny_batch):
  """One advantage per completion, at all of its tokens, as group baselines give."""
  return np.where(tiny_batch.completion_mask, tiny_batch.advantages[:, :1], 0.0)


@pytest.mark.parametrize("name", losses.OBJECTIVES)
@pytest.mark.parametrize("mean_over", losses.REDUCTIONS)
def test_every_objective_starts_from_the_gradient_of_reinforce(
    name, mean_over, tiny_batch, sequence_advantages):
  weights = losses.token_weights(tiny_batch.completion_mask, mean_over=mean_over, max_tokens=9)
  _, gradient, clipped = value_and_gradient(
      name, tiny_batch.behaviour_logprobs, tiny_batch.behaviour_logprobs, sequence_advantages,
      tiny_batch.completion_mask, weights=weights)
  np.testing.assert_allclose(gradient, -weights * sequence_advantages, rtol=1e-5, atol=1e-7)
  assert not clipped.any()


def test_gspo_of_one_token_is_the_clipped_objective(scores, tiny_batch):
  mask = np.zeros((8, 5), bool)
  mask[:, 2] = True
  arguments = (scores[0], tiny_batch.behaviour_logprobs,
               np.where(mask, 1 - np.arange(8)[:, None] % 3, 0.0), mask)
  expected = value_and_gradient("clipped", *arguments)
  assert expected[2].any()
  for name in ("gspo", "gspo_token"):
    for x, y in zip(value_and_gradient(name, *arguments), expected):
      np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.fixture(scope="module")
def packing(tiny_batch):
  """4 groups of 2, each in one row of 8: 5 + 2, 1 + 5, 3 + 4 and 5 + 1 tokens."""
  lengths = np.asarray(tiny_batch.completion_lengths)
  start = np.where(np.arange(8) % 2, np.roll(lengths, 1), 0)
  return Packing(row=np.arange(8) // 2, start=start, lengths=lengths, num_rows=4, size=8)


@pytest.mark.parametrize("name", losses.OBJECTIVES)
@pytest.mark.parametrize("garbage", [0.0, np.inf, -np.inf, np.nan, 1e30])
def test_objectives_are_the_same_packed_and_unpacked(name, garbage, scores, tiny_batch, packing):
  mask = np.asarray(length_mask(packing.row_lengths, 8))
  rows = (scores[0], tiny_batch.behaviour_logprobs, tiny_batch.advantages)
  expected = value_and_gradient(name, *rows, tiny_batch.completion_mask)
  assert expected[2].any() and not expected[2].all()
  packed = value_and_gradient(
      name, *(np.where(mask, packing.pack(x), garbage) for x in rows), mask,
      jnp.asarray(packing.segments))
  for x, y in zip(packed, expected):
    np.testing.assert_allclose(packing.unpack(np.asarray(x), 5), y, rtol=1e-5, atol=1e-7)
    assert not np.asarray(x)[~mask].any()


def test_completion_mean_by_hand():
  # Two completions of 2 and 3 tokens, then padding that begins with itself.
  x, mask = row(1.0, 3.0, 2.0, 4.0, 9.0, 8.0, 8.0), row(True, True, True, True, True, False, False)
  segments = row(0, 0, 2, 2, 2, 5, 6)
  np.testing.assert_allclose(
      losses.completion_mean(x, mask, segments), [[2, 2, 5, 5, 5, 0, 0]], rtol=1e-6)
  np.testing.assert_allclose(losses.completion_mean(x, mask), [[3.8] * 5 + [0, 0]], rtol=1e-6)
  assert not losses.completion_mean(x, jnp.zeros_like(mask)).any()


def test_completion_means_of_rows_on_several_devices_need_no_communication():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  x = jax.device_put(jnp.ones((16, 6)), rows)
  mask, segments = jax.device_put((jnp.ones((16, 6), bool), jnp.zeros((16, 6), jnp.int32)), rows)
  program = jax.jit(losses.completion_mean).lower(x, mask, segments).compile()
  assert "num_partitions=8" in program.as_text()
  assert not any(word in program.as_text()
                 for word in ("all-gather", "all-reduce", "all-to-all", "collective"))
  np.testing.assert_array_equal(program(x, mask, segments), x)


def test_value_loss_by_hand():
  # Clip 0.2 around the old value 1. V = 1.1, R = 2: both 0.81 / 2.
  # V = 1.5, R = 2: max(0.25, (1.2 − 2)²) / 2 = 0.32, clipped.
  # V = 1.5, R = 0: max(2.25, 1.44) / 2, gradient V − R = 1.5.
  # V = 0.5, R = 0: max(0.25, 0.64) / 2, clipped.
  values, returns = row(1.1, 1.5, 1.5, 0.5, np.nan), row(2.0, 2.0, 0.0, 0.0, np.nan)
  mask = row(*[True] * 4, False)

  def total(values, clip=0.2):
    loss, clipped = losses.value_loss(values, jnp.ones((1, 5)), returns, mask, clip=clip)
    return loss.sum(), (loss, clipped)
  (_, (loss, clipped)), gradient = jax.value_and_grad(total, has_aux=True)(values)
  np.testing.assert_allclose(loss, [[0.405, 0.32, 1.125, 0.32, 0.0]], rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-0.9, 0.0, 1.5, 0.0, 0.0]], rtol=1e-5)
  np.testing.assert_array_equal(clipped, [[False, True, False, True, False]])
  (_, (loss, clipped)), gradient = jax.value_and_grad(total, has_aux=True)(values, np.inf)
  np.testing.assert_allclose(gradient, [[-0.9, -0.5, 1.5, 0.5, 0.0]], rtol=1e-5)
  assert not clipped.any()


def test_a_value_within_bounds_is_never_called_clipped():
  # Where old + (new − old) is often not new, in float32.
  behaviour = jnp.linspace(-0.1, 0.1, 10001)[None]
  values = 0.3 * behaviour + 0.1
  _, clipped = losses.value_loss(
      values, behaviour, 7 * values, jnp.ones((1, 10001), bool), clip=0.2)
  assert not clipped.any()


@pytest.mark.parametrize("garbage", [1e9, -1e9, np.inf, np.nan])
def test_truncated_importance_by_hand(garbage):
  # Gaps ln 1.5, ln 0.5, ln 4 and 0, cap 2: weights 1.5, 0.5, 2 (capped), 1; mean 5 / 4; largest gap
  # ln 4.
  trainer = row(*np.log([1.5, 0.5, 4.0, 1.0]) - 3, garbage)
  weights, metrics = losses.truncated_importance(
      trainer, row(-3.0, -3.0, -3.0, -3.0, 0.0), row(True, True, True, True, False), cap=2.0)
  np.testing.assert_allclose(weights, [[1.5, 0.5, 2.0, 1.0, 0.0]], rtol=1e-6)
  np.testing.assert_allclose(
      [metrics["importance/weight"], metrics["importance/capped"], metrics["logprob_gap"]],
      [1.25, 0.25, np.log(4)], rtol=1e-6)
  weights, metrics = losses.truncated_importance(  # exp overflows.
      row(0.0), row(-1e3), row(True), cap=2.0)
  assert weights == 2 and metrics["importance/capped"] == 1
  weights, metrics = losses.truncated_importance(trainer, trainer, jnp.zeros((1, 5), bool), cap=2.0)
  assert not weights.any() and set(map(float, metrics.values())) == {0.0}


def test_the_same_distribution_has_weights_of_one(tiny_batch):
  mask = tiny_batch.completion_mask
  weights, metrics = losses.truncated_importance(
      tiny_batch.behaviour_logprobs, tiny_batch.behaviour_logprobs, mask, cap=1.0)
  np.testing.assert_array_equal(weights, mask)
  assert {k: float(v) for k, v in metrics.items()} == {
      "importance/weight": 1, "importance/capped": 0, "logprob_gap": 0}


def test_kl_estimates_by_hand():
  # d = log π − log π_ref = 0.5 and −0.5: k2 = 0.125; k3 = e^−0.5 − 1 + 0.5 = 0.106531,
  # e^0.5 − 1 − 0.5 = 0.148721.
  logprobs, reference, mask = row(-1.0, -2.0, 5.0), row(-1.5, -1.5, 0.0), row(True, True, False)
  for name, expected in (
      ("k1", [0.5, -0.5, 0]), ("k2", [0.125, 0.125, 0]), ("k3", [0.106531, 0.148721, 0])):
    np.testing.assert_allclose(
        losses.kl_estimate(logprobs, reference, mask, estimator=name), [expected], atol=1e-6)
  with pytest.raises(KeyError):
    losses.kl_estimate(logprobs, reference, mask, estimator="k4")


def enumerated(estimator, stop_sampling):
  """A policy and a reference over 5 tokens: E_π[estimate].

  Every token comes once, with its probability as weight.

  stop_sampling: the expectation that a loss sees: gradients flow through the estimate and not
    through the sampling.
  """
  reference = jax.nn.log_softmax(jnp.array([0.3, -1.0, 2.0, 0.0, 0.5]))
  def expectation(logits):
    logprobs = jax.nn.log_softmax(logits)
    probs = jnp.exp(jax.lax.stop_gradient(logprobs) if stop_sampling else logprobs)
    if estimator == "exact":
      return jnp.sum(probs * (logprobs - reference))
    estimate = losses.kl_estimate(logprobs, reference, jnp.ones(5, bool), estimator=estimator)
    return jnp.sum(probs * estimate)
  return jax.value_and_grad(expectation)(jnp.array([1.0, 0.0, -0.5, 1.5, -2.0]))


def test_expected_kl_estimates_by_enumeration():
  exact, exact_gradient = enumerated("exact", stop_sampling=False)
  assert exact > 0.5
  for name in ("k1", "k3"):
    np.testing.assert_allclose(enumerated(name, stop_sampling=True)[0], exact, rtol=1e-5)
  # Biased, as its docstring says.
  assert abs(enumerated("k2", stop_sampling=True)[0] - exact) > 0.01 * exact
  # In a loss: the gradient of k2 is the KL's, that of k1 is zero, that of k3 is another one.
  np.testing.assert_allclose(enumerated("k2", stop_sampling=True)[1], exact_gradient, atol=1e-5)
  np.testing.assert_allclose(enumerated("k1", stop_sampling=True)[1], np.zeros(5), atol=1e-6)
  assert np.abs(enumerated("k3", stop_sampling=True)[1] - exact_gradient).max() > 0.01


# A policy, the reference and two policies that sampled, one of them long ago: logits of 5 tokens.
POLICY, REFERENCE = np.array([1.0, 0.0, -0.5, 1.5, -2.0]), np.array([0.3, -1.0, 2.0, 0.0, 0.5])
BEHAVIOURS = {
    "same": POLICY,
    "before": POLICY + [0.3, -0.4, 0.8, -0.6, 0.2],
    "far": np.array([-1.0, 2.0, 0.0, 0.5, 1.0])}


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum())


def enumerated_gradients(estimator, behaviour):
  """(KL, its gradient with respect to the logits, in float64; the same as a loss sees them).

  The loss is one of μ's tokens.
  """
  logprobs, reference, mu = map(log_softmax, (POLICY, REFERENCE, behaviour))
  d, probs = logprobs - reference, np.exp(logprobs)
  exact = (probs * d).sum()

  def expectation(logits):
    return jnp.sum(jnp.exp(jnp.asarray(mu)) * losses.kl_estimate(
        jax.nn.log_softmax(logits), jnp.asarray(reference), jnp.ones(5, bool), estimator=estimator,
        behaviour_logprobs=jnp.asarray(mu)))
  value, gradient = jax.value_and_grad(expectation)(jnp.asarray(POLICY))
  # ∂KL/∂logit_a = π_a (d_a − KL).
  return exact, probs * (d - exact), value, gradient


def cosine(a, b):
  return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_weighted_k3_is_the_kl_and_its_gradient_whoever_sampled(behaviour):
  exact, exact_gradient, value, gradient = enumerated_gradients(
      "k3_weighted", BEHAVIOURS[behaviour])
  np.testing.assert_allclose(value, exact, rtol=1e-5)
  np.testing.assert_allclose(gradient, exact_gradient, atol=2e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_without_weights_the_gradient_of_other_tokens_is_another_one(estimator):
  _, exact_gradient, _, gradient = enumerated_gradients(estimator, BEHAVIOURS["before"])
  assert cosine(gradient, exact_gradient) < 0.98


def test_of_two_tokens_no_sum_of_estimates_has_the_gradient_of_the_kl():
  # The first token, x, decides which distribution the second one, y, is of:
  # KL = Σ π(x) (d_x + KL_x), and a term per token leaves KL_x out of the gradient of π(x).
  logits = np.array([0.2, -0.3])
  probs, inner = np.exp(log_softmax(logits)), np.array([0.0, 2.0])
  d = log_softmax(logits) - np.log([0.5, 0.5])
  per_token = probs * (d - (probs * d).sum())
  whole = probs * (d + inner - (probs * (d + inner)).sum())
  assert cosine(per_token, whole) < 0

  def loss(logits):  # On policy: k2's gradient is that of the first token's own KL.
    logprobs = jax.nn.log_softmax(logits)
    return jnp.sum(probs * losses.kl_estimate(
        logprobs, jnp.log(jnp.full(2, 0.5)), jnp.ones(2, bool), estimator="k2"))
  np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(logits)), per_token, atol=1e-6)


# Far beyond what float32's exp holds, on either side.
FAR = (-1e4, -200.0, -89.0, 89.0, 200.0, 1e4)


@pytest.mark.parametrize("name", losses.OBJECTIVES)
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_no_ratio_makes_a_loss_or_a_gradient_that_is_no_number(name, advantage):
  log_ratios = jnp.array(FAR)[:, None]  # A completion of two tokens for each.
  loss, gradient, _ = value_and_gradient(
      name, jnp.concatenate([log_ratios, 0 * log_ratios], axis=1), jnp.zeros((6, 2)),
      jnp.full((6, 2), advantage))
  assert np.isfinite(loss).all()
  assert np.isfinite(gradient).all()


def test_a_ratio_is_exact_up_to_e_to_the_80():
  loss, gradient, _ = value_and_gradient(
      "clipped", row(-80.0, 60.0, 80.0), jnp.zeros((1, 3)), row(-1.0, -1.0, -1.0))
  np.testing.assert_allclose(loss, [[0.8, np.exp(60.0), np.exp(80.0)]], rtol=2e-5)
  np.testing.assert_allclose(gradient, [[0.0, np.exp(60.0), np.exp(80.0)]], rtol=2e-5)


def test_a_clipped_token_has_no_gradient_however_large_its_ratio():
  loss, gradient, clipped = value_and_gradient(
      "clipped", row(89.0, 0.0), jnp.zeros((1, 2)), row(1.0, 1.0))
  np.testing.assert_allclose(loss, [[-1.3, -1.0]], rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0.0, -1.0]], rtol=1e-6)
  np.testing.assert_array_equal(clipped, [[True, False]])


@pytest.mark.parametrize("estimator", losses.KL_ESTIMATORS)
def test_no_distance_to_the_reference_makes_a_kl_that_is_no_number(estimator):
  logprobs, behaviour = jnp.repeat(jnp.array(FAR), 6)[None], jnp.tile(jnp.array(FAR), 6)[None]

  def total(logprobs, behaviour):
    kl = losses.kl_estimate(
        logprobs, jnp.zeros((1, 36)), jnp.ones((1, 36), bool), estimator=estimator,
        behaviour_logprobs=behaviour)
    return kl.sum(), kl
  (_, kl), gradient = jax.value_and_grad(total, has_aux=True)(logprobs, behaviour)
  assert np.isfinite(kl).all()
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("estimator", losses.KL_ESTIMATORS)
def test_an_unlikely_token_costs_what_the_objective_says(estimator, tiny_batch):
  # Ratios 0 and 1, A = 1: −(0 + 1) / 2. Without a reference the KL is to the policy that sampled.
  batch = tiny_batch.replace(
      completions=jnp.zeros((1, 2), jnp.int32), completion_lengths=jnp.array([2]),
      advantages=row(1.0, 1.0), behaviour_logprobs=row(-1.0, -1.0),
      reference_logprobs=row(-1.0, -1.0), token_weights=row(0.5, 0.5))

  def loss(logprobs):
    return losses.policy_gradient_loss(
        logprobs, jnp.zeros((1, 2)), batch, clip_low=0.2, clip_high=0.2, kl_coef=0.0,
        kl_estimator=estimator)[0]
  value, gradient = jax.value_and_grad(loss)(row(-90.0, -1.0))
  np.testing.assert_allclose(value, -0.5, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0.0, -0.5]], atol=1e-6)


def test_k3_is_never_negative_also_where_rounding_would_decide():
  d = jnp.concatenate([jnp.linspace(-5, 5, 1001), jnp.array([1e-4, -1e-4, 1e-6, -1e-6, 0.0])])[None]
  k3 = losses.kl_estimate(d, jnp.zeros_like(d), jnp.ones(d.shape, bool), estimator="k3")
  assert (k3 >= 0).all()
  # exp(−d) − 1 + d without expm1 would give 0 or 1e-7 here; d²/2 = 5e-9.
  np.testing.assert_allclose(k3[0, 1001:1003], [5e-9, 5e-9], rtol=0.2)


def test_token_weights_by_hand():
  # Lengths 3 and 1, up to 4 tokens: every token 1/4; every sequence 1/2, so 1/6 and 1/2 a token;
  # fixed 1/(2·4) = 1/8.
  mask = jnp.array([[True, True, True, False], [True, False, False, False]])
  for mean_over, (first, second) in dict(
      token=(1 / 4, 1 / 4), sequence=(1 / 6, 1 / 2), fixed_length=(1 / 8, 1 / 8)).items():
    np.testing.assert_allclose(
        losses.token_weights(mask, mean_over=mean_over, max_tokens=4),
        [[first] * 3 + [0], [second, 0, 0, 0]], rtol=1e-6)
  with pytest.raises(ValueError, match="'tokens': token, sequence or fixed_length"):
    losses.token_weights(mask, mean_over="tokens", max_tokens=4)


@pytest.mark.parametrize("mean_over", losses.REDUCTIONS)
def test_token_weights_of_empty_rows_are_zero_and_finite(mean_over):
  weights = losses.token_weights(jnp.zeros((2, 3), bool), mean_over=mean_over, max_tokens=3)
  assert (weights == 0).all()


@pytest.fixture(scope="module")
def loss_and_gradient():
  def run(logprobs, entropy, batch):
    loss = functools.partial(losses.policy_gradient_loss, **FULL)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(logprobs, entropy, batch)
  return jax.jit(run)


@pytest.fixture(scope="module")
def scores(tiny_batch):
  rng = np.random.RandomState(4)
  logprobs = tiny_batch.behaviour_logprobs + 0.4 * rng.standard_normal((8, 5)).astype(np.float32)
  return logprobs, rng.uniform(0, 3, (8, 5)).astype(np.float32)


def test_policy_gradient_loss_is_the_sum_of_its_parts(loss_and_gradient, scores, tiny_batch):
  logprobs, entropy = scores
  b, mask = tiny_batch, np.asarray(tiny_batch.completion_mask)
  (loss, statistics), _ = loss_and_gradient(logprobs, entropy, b)
  ratio = np.exp(logprobs - b.behaviour_logprobs)
  objective = -np.minimum(ratio * b.advantages, np.clip(ratio, 0.8, 1.3) * b.advantages)
  d = logprobs - b.reference_logprobs
  kl = np.exp(-d) - 1 + d
  mean = lambda x: x[mask].mean()
  np.testing.assert_allclose(loss, mean(objective + 0.1 * kl - 0.01 * entropy), rtol=1e-5)
  metrics = statistics.metrics()
  clipped = ((b.advantages > 0) & (ratio > 1.3)) | ((b.advantages < 0) & (ratio < 0.8))
  expected = dict(loss=loss, policy_loss=mean(objective), kl=mean(kl), entropy=mean(entropy),
                  clip_fraction=mean(clipped),
                  logprob_gap=np.abs(logprobs - b.behaviour_logprobs)[mask].max())
  assert metrics.keys() == expected.keys() and 0 < expected["clip_fraction"] < 1
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("garbage", [np.inf, -np.inf, np.nan, 1e30, -1e30])
def test_garbage_where_masked_changes_nothing(garbage, loss_and_gradient, scores, tiny_batch):
  mask = np.asarray(tiny_batch.completion_mask)
  clean, gradient = loss_and_gradient(*scores, tiny_batch)
  def dirty(x):
    return np.where(mask, x, garbage).astype(np.float32)
  fields = {k: dirty(getattr(tiny_batch, k))
            for k in ("behaviour_logprobs", "advantages", "reference_logprobs")}
  again, gradient_again = loss_and_gradient(*map(dirty, scores), tiny_batch.replace(**fields))
  jax.tree.map(np.testing.assert_array_equal, (again, gradient_again), (clean, gradient))
  assert all((g[~mask] == 0).all() for g in gradient) and np.abs(gradient[0]).max() > 0.01


def test_policy_gradient_loss_uses_the_objective_it_is_given(scores, tiny_batch):
  def loss(**options):
    _, statistics = losses.policy_gradient_loss(*scores, tiny_batch, **FULL, **options)
    return statistics.metrics()["policy_loss"]
  values = {name: float(loss(objective=name)) for name in losses.OBJECTIVES}
  assert values["clipped"] == float(loss())
  for name in losses.OBJECTIVES:
    per_token, _ = losses.OBJECTIVES[name](
        scores[0], tiny_batch.behaviour_logprobs, tiny_batch.advantages,
        tiny_batch.completion_mask, None, **BOUNDS)
    np.testing.assert_allclose(
        values[name], jnp.sum(tiny_batch.token_weights * per_token), rtol=1e-5)
  assert len(set(values.values())) == 4  # GSPO's two forms differ in their gradients alone.


def test_a_packed_batch_has_the_same_loss(scores, tiny_batch, packing):
  def loss(scores, batch):
    return losses.policy_gradient_loss(*scores, batch, **FULL, objective="gspo")[0]
  np.testing.assert_allclose(
      loss([packing.pack(x) for x in scores], pack(tiny_batch, packing)), loss(scores, tiny_batch),
      rtol=1e-5)


def test_microbatches_add_up_to_the_whole(loss_and_gradient, scores, tiny_batch):
  (loss, whole), _ = loss_and_gradient(*scores, tiny_batch)
  parts = [loss_and_gradient(*(x[rows] for x in scores), jax.tree.map(
      lambda x, rows=rows: x[rows], tiny_batch.replace(prompts=None)))[0]
      for rows in (slice(0, 2), slice(2, 8))]  # 7 and 19 tokens.
  np.testing.assert_allclose(sum(loss for loss, _ in parts), loss, rtol=1e-5)
  merged = parts[0][1].merge(parts[1][1]).metrics()
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), merged, whole.metrics())


def test_merging_by_hand():
  def statistics(total, kl, tokens, gap):
    return losses.LossStatistics(
        sums={"loss": jnp.float32(total)}, token_sums={"kl": jnp.float32(kl)},
        num_tokens=jnp.float32(tokens), maxima={"gap": jnp.float32(gap)})
  # loss 1 + 2; KL (3 + 5) / (4 + 12 tokens) and not the mean of 3/4 and 5/12; the largest gap.
  merged = statistics(1, 3, 4, 0.7).merge(statistics(2, 5, 12, 0.2)).metrics()
  np.testing.assert_allclose(
      [merged["loss"], merged["kl"], merged["gap"]], [3.0, 0.5, 0.7], rtol=1e-6)
  assert statistics(0, 0, 0, 0).metrics()["kl"] == 0  # No tokens at all.


def test_imitation_loss_by_hand(tiny_batch):
  mask = np.asarray(tiny_batch.completion_mask)
  logprobs = np.where(mask, tiny_batch.behaviour_logprobs, np.nan)
  loss, statistics = losses.imitation_loss(logprobs, mask, tiny_batch.token_weights)
  # Weights of mean_over="token".
  np.testing.assert_allclose(loss, -logprobs[mask].mean(), rtol=1e-6)
  np.testing.assert_allclose(statistics.metrics()["nll"], loss, rtol=1e-6)
  assert statistics.num_tokens == mask.sum()


@pytest.mark.parametrize("mean_over, expected", [
    ("token", [[1/3, 1/3, 1/3], [0, 0, 0]]), ("sequence", [[1/3, 1/3, 1/3], [0, 0, 0]]),
    ("fixed_length", [[1/6, 1/6, 1/6], [0, 0, 0]])])
def test_completions_without_a_true_token_do_not_count(mean_over, expected):
  mask = jnp.array([[True, True, True], [False, False, False]])
  np.testing.assert_allclose(
      losses.token_weights(mask, mean_over=mean_over, max_tokens=6), expected, rtol=1e-6)
  assert not losses.token_weights(mask & False, mean_over=mean_over, max_tokens=6).any()
