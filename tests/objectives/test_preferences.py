"""Losses of reward models and of the DPO family.

By hand, by identities, and with garbage where nothing may be read.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.objectives import preferences

THRESHOLDS = jnp.array([-1.0, 0.0, 2.0])


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_bradley_terry_by_hand():
  # d = 1, 0, −2: −log σ(d) = 0.313262, 0.693147, 2.126928.
  chosen, rejected = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 1.0, 2.0])
  loss, metrics = preferences.bradley_terry(chosen, rejected)
  np.testing.assert_allclose(loss, [0.313262, 0.693147, 2.126928], rtol=1e-5)
  np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(chosen - rejected), rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], [1, 0, 0])
  np.testing.assert_allclose(metrics["margin"], [1, 0, -2])
  # A margin of 1: d = 0, −1, −3. Weights 2 and 0.5.
  np.testing.assert_allclose(
      preferences.bradley_terry(chosen, rejected, margin=1.0)[0], -np.log(sigmoid([0, -1, -3])),
      rtol=1e-5)
  np.testing.assert_allclose(
      preferences.bradley_terry(chosen, rejected, weight=jnp.array([2.0, 1.0, 0.5]))[0],
      [0.626523, 0.693147, 1.063464], rtol=1e-5)


def test_smoothed_and_soft_labels_by_hand():
  # −(0.9 log σ(1) + 0.1 log σ(−1)) = 0.9 · 0.313262 + 0.1 · 1.313262 = 0.413262, by smoothing and
  # by a soft label; a soft label of 0 is the swapped pair.
  one, zero = jnp.ones(1), jnp.zeros(1)
  np.testing.assert_allclose(
      preferences.bradley_terry(one, zero, label_smoothing=0.1)[0], [0.413262], rtol=1e-5)
  np.testing.assert_allclose(
      preferences.bradley_terry(one, zero, soft_label=jnp.array([0.9]))[0], [0.413262], rtol=1e-5)
  np.testing.assert_allclose(
      preferences.bradley_terry(one, zero, soft_label=zero)[0],
      preferences.bradley_terry(zero, one)[0], rtol=1e-6)
  # The best difference for p = 0.9 is its log-odds.
  best = jnp.log(jnp.array([9.0]))
  gradient = jax.grad(
      lambda d: preferences.bradley_terry(d, zero, label_smoothing=0.1)[0].sum())(best)
  np.testing.assert_allclose(gradient, [0], atol=1e-6)


def test_regression_by_hand():
  # Attributes 1, 2 and 3 of one example, the second unlabelled: (0.5² + 2²) / 2; Huber with δ = 1:
  # (0.25 + 1 · (4 − 1)) / 2.
  scores, labels = jnp.array([[1.5, 9.0, 1.0]]), jnp.array([[1.0, np.nan, 3.0]])
  mask = jnp.array([[True, False, True]])
  loss, metrics = preferences.regression(scores, labels, mask)
  np.testing.assert_allclose(loss, [2.125])
  np.testing.assert_allclose(metrics["error"], [1.25])
  np.testing.assert_allclose(preferences.regression(scores, labels, mask, huber=1.0)[0], [1.625])
  gradient = jax.grad(lambda x: preferences.regression(x, labels, mask, huber=1.0)[0].sum())(scores)
  np.testing.assert_allclose(gradient, [[0.5, 0, -1]])
  np.testing.assert_allclose(  # One number per example.
      preferences.regression(
          jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]), jnp.array([True, False]))[0], [1, 0])


def test_binary_by_hand():
  # Steps: score 1 for a correct one, 2 for a wrong one, 0 for one from which a quarter of the
  # rollouts end well.
  scores, labels = jnp.array([[1.0, 2.0, 0.0, 5.0]]), jnp.array([[1.0, 0.0, 0.25, np.nan]])
  mask = jnp.array([[True, True, True, False]])
  loss, metrics = preferences.binary(scores, labels, mask)
  np.testing.assert_allclose(loss, [(0.313262 + 2.126928 + 0.693147) / 3], rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], [2 / 3], rtol=1e-6)


def test_ordinal_by_hand():
  # Score 0.5, thresholds −1, 0, 2:
  # P(y > k) = σ(1.5), σ(0.5), σ(−1.5) = 0.817574, 0.622459, 0.182426.
  more = sigmoid([1.5, 0.5, -1.5])
  probabilities = -np.diff(np.concatenate([[1], more, [0]]))
  losses, metrics = preferences.ordinal(
      jnp.full(4, 0.5), jnp.arange(4), jnp.ones(4, bool), thresholds=THRESHOLDS)
  np.testing.assert_allclose(losses, -np.log(probabilities), rtol=1e-5)
  np.testing.assert_allclose(jnp.exp(-losses).sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], [0, 0, 1, 0])
  np.testing.assert_allclose(metrics["error"], np.abs(more.sum() - np.arange(4)), rtol=1e-5)
  # Attributes, with thresholds of their own.
  losses, _ = preferences.ordinal(
      jnp.array([[0.5, 0.0]]), jnp.array([[2, 0]]), jnp.ones((1, 2), bool),
      thresholds=jnp.stack([THRESHOLDS, THRESHOLDS + 3]))
  np.testing.assert_allclose(
      losses, [(-np.log(probabilities[2]) - np.log(sigmoid(2.0))) / 2], rtol=1e-5)


def test_ordinal_of_two_levels_is_binary_and_its_tails_are_finite():
  scores, labels, mask = jnp.array([-2.0, 0.3, 4.0]), jnp.array([0, 1, 0]), jnp.ones(3, bool)
  np.testing.assert_allclose(preferences.ordinal(scores, labels, mask, thresholds=jnp.zeros(1))[0],
                             preferences.binary(scores, labels, mask)[0], rtol=1e-5)
  far = jnp.array([-200.0, -200.0, 200.0, 200.0])
  loss, gradient = jax.value_and_grad(lambda x: preferences.ordinal(
      x, jnp.array([1, 3, 0, 2]), jnp.ones(4, bool), thresholds=THRESHOLDS)[0].sum())(far)
  assert np.isfinite(loss) and np.isfinite(gradient).all()
  np.testing.assert_allclose(np.sign(gradient), [-1, -1, 1, 1])


def test_a_level_whose_thresholds_meet_is_unlikely_and_not_impossible():
  # softplus(−200) is nothing beside 1, and of a score of 10^6 even 0.01 is rounding.
  def loss(raw, scores):
    return preferences.ordinal(scores, jnp.array([1]), jnp.array([True]),
                               thresholds=preferences.ordered_thresholds(raw))[0].sum()
  for raw, score in (([1.0, -200.0], 0.5), ([0.0, -5.0], 1e6)):
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(jnp.array(raw), jnp.array([score]))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradient)


def test_ordered_thresholds_are_ordered():
  raw = jnp.array([[0.5, -3.0, 0.0, 40.0], [0.5, 0.0, 0.0, 0.0]])
  thresholds = preferences.ordered_thresholds(raw)
  assert (jnp.diff(thresholds) > 0).all()
  np.testing.assert_allclose(thresholds[1], 0.5 + np.log(2) * np.arange(4), rtol=1e-6)


def test_listwise_by_hand():
  # Ranks 1, 0, 2 of scores 0, 1, 2: item 1 from all, then item 0 from {0, 2}.
  scores, ranks = jnp.array([[0.0, 1.0, 2.0, 9.0]]), jnp.array([[1, 0, 2, 0]])
  loss, metrics = preferences.listwise(scores, ranks, jnp.array([[True, True, True, False]]))
  e = np.exp(1)
  np.testing.assert_allclose(
      loss, [-np.log(e / (1 + e + e ** 2)) - np.log(1 / (1 + e ** 2))], rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], [1 / 3], rtol=1e-6)  # Of 1 > 0, 1 > 2 and 0 > 2.
  # Ties: two winners, each against the loser alone.
  loss, _ = preferences.listwise(
      jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool))
  np.testing.assert_allclose(loss, -np.log(sigmoid(-2)) - np.log(sigmoid(-1)), rtol=1e-5)
  # All tied: nothing to say.
  assert preferences.listwise(scores, jnp.zeros((1, 4)), jnp.ones((1, 4), bool))[0] == 0


def test_plackett_luce_likelihoods_of_all_orders_sum_to_one():
  scores = jnp.array([0.3, -1.0, 2.0, 0.5])
  orders = np.array(list(itertools.permutations(range(4))))
  losses, _ = preferences.listwise(jnp.tile(scores, (24, 1)), orders, jnp.ones((24, 4), bool))
  np.testing.assert_allclose(jnp.exp(-losses).sum(), 1, rtol=1e-5)


def test_a_list_of_two_is_a_pair_and_one_versus_rest_a_softmax():
  rng = np.random.RandomState(0)
  scores = rng.standard_normal((5, 2)).astype(np.float32)
  mask = jnp.ones((5, 2), bool)
  pair, metrics = preferences.bradley_terry(scores[:, 0], scores[:, 1])
  loss, list_metrics = preferences.listwise(scores, jnp.tile(jnp.arange(2), (5, 1)), mask)
  np.testing.assert_allclose(loss, pair, rtol=1e-5)
  np.testing.assert_array_equal(list_metrics["accuracy"], metrics["accuracy"])
  np.testing.assert_allclose(
      preferences.pairs(scores, jnp.ones(5), jnp.ones(5, bool))[0], pair, rtol=1e-6)
  scores = rng.standard_normal((5, 4)).astype(np.float32)
  best = jnp.array([0, 3, 1, 1, 2])
  np.testing.assert_allclose(
      preferences.one_versus_rest(scores, best, jnp.ones((5, 4), bool))[0],
      -jnp.take_along_axis(jax.nn.log_softmax(scores), best[:, None], 1)[:, 0], rtol=1e-5)


def test_step_ranking_by_hand():
  # Correct Q = 1, 2, wrong Q = −1, 0, ζ = 3, the start 0: W = e^2 + e^3. Terms of the start, of
  # step 1 and of step 2.
  scores, labels = jnp.array([[1.0, 2.0, -1.0, 0.0, 7.0]]), jnp.array([[1, 1, 0, 0, 1]])
  mask = jnp.array([[True] * 4 + [False]])
  loss, metrics = preferences.step_ranking(scores, labels, mask, zeta=3.0)
  e, wrong = np.e, np.e ** 2 + np.e ** 3
  terms = [np.log(1 + wrong), np.log(1 + e + wrong) - 1, np.log(1 + e + e ** 2 + wrong) - 2]
  np.testing.assert_allclose(loss, [np.mean(terms)], rtol=1e-5)
  # Pairs: the start above 2 wrong ones, of which it beats one; step 1 above the start and 2; step 2
  # above 2 and 2.
  np.testing.assert_allclose(metrics["accuracy"], [8 / 9], rtol=1e-6)
  # Without a wrong step the start has no term; without a correct one it is the only one.
  loss, _ = preferences.step_ranking(
      scores, jnp.ones((1, 5)), jnp.array([[True, True] + [False] * 3]), zeta=3.0)
  np.testing.assert_allclose(
      loss, [np.mean([np.log(1 + e) - 1, np.log(1 + e + e ** 2) - 2])], rtol=1e-5)
  loss, _ = preferences.step_ranking(
      scores[:, 2:4], jnp.zeros((1, 2)), jnp.ones((1, 2), bool), zeta=3.0)
  np.testing.assert_allclose(loss, [np.log(1 + wrong)], rtol=1e-5)


@pytest.fixture(scope="module")
def log_probabilities():
  """The first six arguments of PREFERENCE_LOSSES, 4 pairs; the last is padding."""
  rng = np.random.RandomState(5)
  lengths = np.array([[3, 5, 2, 0], [4, 2, 6, 0]])
  sums = -np.concatenate([lengths, lengths]) * rng.uniform(0.3, 1.5, (4, 4))
  return tuple(jnp.asarray(x, jnp.float32) for x in sums) + tuple(map(jnp.asarray, lengths))


def test_dpo_by_hand():
  # Log-ratios 2 and −1, β = 0.5: −log σ(1.5); smoothed by 0.1.
  arguments = tuple(jnp.array([x]) for x in (-4.0, -6.0, -6.0, -5.0, 3, 4))
  loss, metrics = preferences.dpo(*arguments, beta=0.5)
  np.testing.assert_allclose(loss, -np.log(sigmoid([1.5])), rtol=1e-5)
  assert {k: float(v[0]) for k, v in metrics.items()} == {
      "chosen_reward": 1.0, "rejected_reward": -0.5, "margin": 1.5, "accuracy": 1.0}
  np.testing.assert_allclose(
      preferences.dpo(*arguments, beta=0.5, label_smoothing=0.1)[0],
      -0.9 * np.log(sigmoid([1.5])) - 0.1 * np.log(sigmoid([-1.5])), rtol=1e-5)


def test_dpo_starts_at_log_two_and_is_bradley_terry_on_implicit_rewards(log_probabilities):
  _, _, *rest = log_probabilities
  loss, metrics = preferences.dpo(*rest[:2], *rest)
  np.testing.assert_allclose(loss, [np.log(2)] * 3 + [0], rtol=1e-6)
  assert not metrics["margin"].any()
  loss, metrics = preferences.dpo(*log_probabilities, beta=0.3)
  expected, _ = preferences.bradley_terry(metrics["chosen_reward"], metrics["rejected_reward"])
  np.testing.assert_allclose(loss[:3], expected[:3], rtol=1e-5)


def test_ipo_by_hand():
  # Log-ratios 2 of 4 tokens and −1 of 2: h = 3, or per token 0.5 + 0.5 = 1; the target at β = 0.25
  # is 2.
  arguments = tuple(jnp.array([x]) for x in (-4.0, -6.0, -6.0, -5.0, 4, 2))
  np.testing.assert_allclose(preferences.ipo(*arguments, beta=0.25)[0], [1.0], rtol=1e-6)
  np.testing.assert_allclose(
      preferences.ipo(*arguments, beta=0.125, per_token=False)[0], [1.0], rtol=1e-6)
  np.testing.assert_allclose(preferences.ipo(*arguments, beta=0.25)[1]["margin"], [0.75])


def test_orpo_by_hand():
  # Mean log P: ln 0.5 of 2 tokens, ln 0.2 of 3: odds 1 and 0.25, their log ratio ln 4: σ = 0.8.
  loss, metrics = preferences.orpo(
      jnp.array([2 * np.log(0.5)]), jnp.array([3 * np.log(0.2)]), None, None, jnp.array([2]),
      jnp.array([3]), beta=0.5)
  np.testing.assert_allclose(loss, [np.log(2) - 0.5 * np.log(0.8)], rtol=1e-5)
  np.testing.assert_allclose(metrics["margin"], [0.5 * np.log(2.5)], rtol=1e-5)
  # Nearly certain, 1 − P = 1e-4: log odds of ln(0.9999 / 1e-4) against ln 1; float32 holds 1 − P
  # only as such.
  loss, _ = preferences.orpo(
      jnp.array([np.log1p(-1e-4)]), jnp.array([np.log(0.5)]), None, None, jnp.array([1]),
      jnp.array([1]), beta=100.0)
  np.testing.assert_allclose(loss, [100 * np.log1p(1e-4 / 0.9999) + 1e-4], rtol=1e-4)
  certain = functools.partial(preferences.orpo, reference_chosen=None, reference_rejected=None,
                              chosen_lengths=jnp.array([2]), rejected_lengths=jnp.array([2]))
  loss, gradient = jax.value_and_grad(lambda x, y: certain(x, y)[0].sum(), argnums=(0, 1))(
      jnp.zeros(1), jnp.full(1, -200.0))
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradient)


def test_simpo_by_hand():
  # Means −0.5 and −2, β = 2, γ = 1: −log σ(3 − 1).
  loss, metrics = preferences.simpo(
      jnp.array([-1.0]), jnp.array([-6.0]), None, None, jnp.array([2]), jnp.array([3]), beta=2.0,
      gamma=1.0)
  np.testing.assert_allclose(loss, -np.log(sigmoid([2.0])), rtol=1e-5)
  np.testing.assert_allclose([metrics["chosen_reward"][0], metrics["rejected_reward"][0]], [-1, -4])


def test_kto_by_hand():
  # Log-ratios 2, 2, −1; reference point 1, β = 0.5, weights 1 and 2: 1 − σ(0.5), 2 (1 − σ(−0.5)),
  # 2 (1 − σ(1)).
  policy, reference = jnp.array([-3.0, -3.0, -6.0, 0.0]), jnp.array([-5.0, -5.0, -5.0, np.nan])
  loss, metrics = preferences.kto(
      policy, reference, jnp.array([True, False, False, True]), jnp.array([True] * 3 + [False]),
      jnp.float32(1), beta=0.5, undesirable_weight=2.0)
  np.testing.assert_allclose(
      loss, [1 - sigmoid(0.5), 2 * (1 - sigmoid(-0.5)), 2 * (1 - sigmoid(1.0)), 0], rtol=1e-5)
  np.testing.assert_allclose(metrics["reward"], [1, 1, -0.5, 0])
  np.testing.assert_allclose(metrics["accuracy"], [1, 0, 1, 0])


def test_kto_reference_point_is_a_mean_no_less_than_zero_and_a_constant():
  policy, reference = jnp.array([1.0, 3.0, np.nan]), jnp.zeros(3)
  mask = jnp.array([True, True, False])
  assert preferences.kto_reference_point(policy, reference, mask) == 2
  assert preferences.kto_reference_point(-policy, reference, mask) == 0
  assert not jax.grad(preferences.kto_reference_point)(policy, reference, mask).any()


def reward_arguments(name):
  """(scores, labels, mask) of 4 examples, the last without any place, and the loss with options."""
  rng = np.random.RandomState(7)
  shape = {"bradley_terry": (4, 2), "regression": (4, 3), "binary": (4, 5),
           "ordinal": (4,)}.get(name, (4, 4))
  mask = rng.rand(*shape) < 0.7
  mask[0], mask[3] = True, False
  labels = {"bradley_terry": rng.rand(4), "regression": rng.rand(*shape),
            "binary": rng.rand(*shape), "ordinal": rng.randint(0, 4, shape),
            "listwise": rng.randint(0, 3, shape), "one_versus_rest": np.zeros(4, int),
            "step_ranking": (rng.rand(*shape) < 0.5).astype(float)}[name]
  mask = np.array([True, True, True, False]) if name in ("bradley_terry", "ordinal") else mask
  if name == "one_versus_rest":
    mask[:3, 0] = True
  options = dict(thresholds=THRESHOLDS) if name == "ordinal" else {}
  loss = functools.partial(preferences.REWARD_LOSSES[name], **options)
  return loss, rng.standard_normal(shape).astype(np.float32), jnp.asarray(labels), mask


@pytest.mark.parametrize("name", preferences.REWARD_LOSSES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_garbage_where_masked_changes_no_reward_loss(name, garbage):
  loss, scores, labels, mask = reward_arguments(name)

  def run(scores, labels):
    def total(scores):
      losses, metrics = loss(scores, labels, mask)
      return losses.sum(), (losses, metrics)
    return jax.value_and_grad(total, has_aux=True)(scores)
  run = jax.jit(run)
  whole = mask if mask.ndim == scores.ndim else np.broadcast_to(mask[:, None], scores.shape)
  (_, (losses, metrics)), gradient = clean = run(scores, labels)
  dirty_labels = labels
  if labels.shape == mask.shape:
    number = 99 if labels.dtype.kind == "i" else garbage
    dirty_labels = np.where(mask, labels, number).astype(labels.dtype)
  again = run(np.where(whole, scores, np.float32(garbage)), dirty_labels)
  jax.tree.map(np.testing.assert_array_equal, again, clean)
  assert losses.shape == (4,)
  assert losses[3] == 0
  assert (losses[:3] > 0).any()
  assert np.abs(gradient).max() > 0.01
  assert all(v.shape == (4,) and v[3] == 0 for v in metrics.values()) and not gradient[~whole].any()


@pytest.mark.parametrize("name", preferences.PREFERENCE_LOSSES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_garbage_in_padded_pairs_changes_no_preference_loss(name, garbage, log_probabilities):
  def run(*arguments):
    def total(policy_chosen, policy_rejected):
      losses, metrics = preferences.PREFERENCE_LOSSES[name](
          policy_chosen, policy_rejected, *arguments[2:])
      return losses.sum(), (losses, metrics)
    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*arguments[:2])
  run = jax.jit(run)
  (_, (losses, metrics)), gradients = clean = run(*log_probabilities)
  dirty = [x.at[3].set(garbage) for x in log_probabilities[:4]] + list(log_probabilities[4:])
  jax.tree.map(np.testing.assert_array_equal, run(*dirty), clean)
  assert losses[3] == 0
  assert (losses[:3] > 0).all()
  assert all(g[3] == 0 and np.abs(g).max() > 0.01 for g in gradients)
  assert metrics.keys() == {"chosen_reward", "rejected_reward", "margin", "accuracy"}
  assert (gradients[0][:3] <= 0).all() or name == "ipo"  # Descent makes the chosen side likelier.


def test_each_reward_loss_falls_under_gradient_descent():
  for name in preferences.REWARD_LOSSES:
    loss, scores, labels, mask = reward_arguments(name)
    step = jax.jit(jax.value_and_grad(lambda x: loss(x, labels, mask)[0].sum()))
    first, gradient = step(scores)
    assert step(scores - 0.05 * gradient)[0] < first, name
