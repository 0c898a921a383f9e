"""Contrastive losses by hand, dropout, and the stage that learns from both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.experiments import preference_strength
from rl_reason.models import transformer
from rl_reason.objectives import contrastive
from rl_reason.objectives.contrastive import Contrastive
from rl_reason.run import config as config_lib
from rl_reason.stages.reward_model import stage
from tests.stages.reward_model.test_meta import known, rows, steps
from tests.stages.reward_model.test_stage import context, section


def test_simcse_by_hand():
  h = jnp.diag(jnp.array([1.0, 2.0, 5.0]))  # Lengths do not count.
  np.testing.assert_allclose(
      contrastive.simcse(h, 3 * h, temperature=0.5), [np.log(np.e**2 + 2) - 2] * 3, rtol=1e-5)
  np.testing.assert_allclose(
      contrastive.simcse(h, jnp.ones((3, 3)), temperature=0.1), [np.log(3)] * 3, rtol=1e-5)
  zeros = contrastive.simcse(jnp.zeros((2, 3)), jnp.zeros((2, 3)), temperature=0.1)
  np.testing.assert_allclose(zeros, [np.log(2)] * 2, rtol=1e-5)  # No features yet: no NaN.


def test_balanced_assignments_by_hand():
  np.testing.assert_allclose(
      contrastive.sinkhorn(jnp.zeros((4, 2))), np.full((4, 2), 0.5), rtol=1e-5)
  # All prefer the first of two, the second pair less: balanced, they go to the other.
  q = contrastive.sinkhorn(
      jnp.array([[9.0, 0.0], [9.0, 0.0], [3.0, 0.0], [3.0, 0.0]]), iterations=50)
  np.testing.assert_allclose(q.sum(0), [2, 2], atol=1e-3)
  np.testing.assert_allclose(q.sum(1), [1] * 4, rtol=1e-5)
  assert (q[:2, 0] > 0.9).all() and (q[2:, 1] > 0.9).all()
  # One round: columns to equal sums, then rows. exp: [[1, 1], [3, 1]] -> rows [1/2, 1/2],
  # [3/4, 1/4] -> columns ...
  one = contrastive.sinkhorn(jnp.log(jnp.array([[1.0, 1.0], [3.0, 1.0]])), iterations=1)
  np.testing.assert_allclose(
      one, [[(2 / 5) / (2 / 5 + 2 / 3), (2 / 3) / (2 / 5 + 2 / 3)],
            [(3 / 5) / (3 / 5 + 1 / 3), (1 / 3) / (3 / 5 + 1 / 3)]], rtol=1e-5)


def test_swav_by_hand():
  # Two samples, each on its own prototype: targets near 1, predictions σ(1/τ) of the right one.
  h, c = jnp.eye(2), 7 * jnp.eye(2)
  loss, entropy = contrastive.swav(h, 2 * h, c, temperature=0.1)
  p = 1 / (1 + np.exp(-10))
  q = np.asarray(contrastive.sinkhorn(10 * jnp.eye(2)))[0]
  np.testing.assert_allclose(loss, [-2 * (q[0] * np.log(p) + q[1] * np.log(1 - p))] * 2, rtol=1e-3)
  np.testing.assert_allclose(entropy, 1.0, rtol=1e-5)  # Both prototypes alike.
  _, entropy = contrastive.swav(h, h, jnp.array([[1.0, 1.0], [-1.0, -1.0]]), temperature=0.05)
  assert entropy < contrastive.COLLAPSED  # All on the first.
  # Targets are taken as given: the gradient is that of the predictions alone.
  def predicted(h):
    s = [x / jnp.linalg.norm(x, axis=1, keepdims=True) @ jnp.eye(2) / 0.1 for x in (h, 2 * h)]
    q = [jax.lax.stop_gradient(contrastive.sinkhorn(x)) for x in s]
    return -sum((a * jax.nn.log_softmax(b)).sum() for a, b in zip(q, s[::-1]))
  x = jnp.array([[1.0, 0.3], [0.2, 1.0]])
  np.testing.assert_allclose(
      jax.grad(lambda x: contrastive.swav(x, 2 * x, c, temperature=0.1)[0].sum())(x),
      jax.grad(predicted)(x), rtol=1e-3, atol=1e-5)


def test_samples_and_their_pairs_by_hand():
  states = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 3.0], [0.0, 0.0]]])
  np.testing.assert_array_equal(
      contrastive.samples(states, "pairs"), [[1, 0], [0, 2], [3, 3], [0, 0]])
  difference = contrastive.samples(states, "difference")
  np.testing.assert_array_equal(difference, [[1, -2], [-1, 2], [3, 3], [-3, -3]])
  loss, told = contrastive.loss(
      Contrastive("simcse", "difference", temperature=1.0), difference, difference, None)
  each = contrastive.simcse(difference, difference, temperature=1.0)
  np.testing.assert_allclose(loss, [(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rtol=1e-6)
  assert not told


def test_dropout_is_by_its_key_and_of_the_branches(tiny_config, tiny_params):
  tokens, lengths = jnp.arange(12).reshape(2, 6) % 32, jnp.array([6, 4])
  def hidden(rate, seed=0, params=tiny_params):
    return transformer.forward(tiny_config, params, Inputs(tokens, lengths), dropout=rate,
                               rng=jax.random.key(seed))[0]
  np.testing.assert_array_equal(hidden(0.0, 1), hidden(0.0, 2))
  np.testing.assert_array_equal(hidden(0.3, 1), hidden(0.3, 1))
  assert np.abs(hidden(0.3, 1) - hidden(0.3, 2)).max() > 0.1
  # Layers that add nothing lose nothing: the embeddings stay.
  empty = {**tiny_params, "layers": {
      k: 0 * v if k in ("o", "down") else v for k, v in tiny_params["layers"].items()}}
  np.testing.assert_allclose(hidden(0.9, 1, empty), hidden(0.0, 1, empty), atol=1e-6)
  # What a layer drops another one does not: both masks of one key are not the same.
  kept = jnp.stack([jax.jit(lambda s: hidden(0.5, s))(s) for s in range(40)])
  np.testing.assert_allclose(jnp.mean(kept, 0).mean(), hidden(0.0).mean(), atol=0.1)


@pytest.mark.parametrize("kind", [
    dict(kind="simcse", on="difference"), dict(kind="swav", prototypes=4, weight=0.1)])
def test_a_stage_learns_from_both_and_goes_on_where_it_was(kind, context, rows):
  context, config = known(context), section(contrastive=dict(kind, dropout=0.2), head_init="normal")
  whole, told = steps(context, config, range(3), rows=rows)
  assert all(np.isfinite(line["contrastive/loss"]) for line in told)
  assert all(line["contrastive/loss"] > 0 for line in told)
  before, _ = steps(context, config, range(2), rows=rows)
  after, _ = steps(context, config, [2], before, rows)
  jax.tree.map(np.testing.assert_array_equal, after.params, whole.params)
  prototypes = whole.params["head"].get("prototypes")
  assert (prototypes is not None) == (kind["kind"] == "swav")
  if prototypes is not None:
    start, _ = steps(context, config, range(0), rows=rows)
    assert np.abs(prototypes - start.params["head"]["prototypes"]).max() > 1e-4
  # Scores are without dropout and without prototypes.
  with context.partitioning.use():
    built = stage.build(config, context, context.initial_params(), "rm")
    assert built.evaluate(whole.params)[0] == built.evaluate(whole.params)[0]
  assert set(stage.trained(config, context, "rm").critic(whole.params)["head"]) == {
      "output", "output_bias"}


def test_a_collapse_ends_the_run_with_a_message(context, rows, monkeypatch):
  config = section(contrastive=dict(kind="swav", prototypes=4, weight=0.1))
  monkeypatch.setattr(contrastive, "COLLAPSED", 1.1)
  with pytest.raises(
      FloatingPointError,
      match="at update 0 .* 4 prototypes allow.* Raise contrastive.temperature"):
    steps(context, config, range(1), rows=rows)


@pytest.mark.parametrize("change, message", [
    (dict(kind="simclr"), "Unknown contrastive.kind 'simclr'. Did you mean 'simcse'"),
    (dict(kind="swav"), "contrastive.prototypes=0 with kind='swav'"),
    (dict(kind="simcse", prototypes=9), "contrastive.prototypes=9 with kind='simcse'"),
    (dict(kind="simcse", dropout=0.0), "contrastive.dropout=0.0 between 0 and 1"),
    (dict(kind="simcse", temperature=0.0), "contrastive.temperature=0.0 must be above 0"),
])
def test_settings_that_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    section(contrastive=change)


def test_only_pairs_have_it():
  with pytest.raises(ValueError, match="contrastive with loss='listwise'"):
    section("lists", loss="listwise", contrastive=dict(kind="simcse"))


def test_the_second_view_takes_memory_and_full_configs_are_sound(context):
  def named(**change):
    return [part.name for part in stage.memory(section(**change), context, "rm")]
  assert "activations of the second view" in named(contrastive=dict(kind="simcse"))
  assert len(named()) == len(set(named()))
  for name in preference_strength.CONTRASTIVE:
    _, sections = config_lib.check(
        config_lib.load(f"experiments/preference_strength.py:{name}-full"))
    assert sections["rm"].contrastive.kind in name
    assert sections["rm"].batch_size == 16
    assert sections["rm"].relabel is None
