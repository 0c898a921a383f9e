"""One update: microbatches, refusal of what is not finite, schedules, clipping.

The policy is one table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_reason.learner import optimizers
from rl_reason.learner import step as learner
from rl_reason.objectives import losses


def table_loss(params, batch):
  """π(token) = softmax(table), whatever came before.

  That has every gradient path of the real loss, and is compiled in no time.
  """
  table = jax.nn.log_softmax(params["table"])
  entropy = jnp.full(batch.completions.shape, -jnp.sum(jnp.exp(table) * table))
  return losses.policy_gradient_loss(
      table[batch.completions], entropy, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1,
      kl_estimator="k3", entropy_coef=0.01)


PARAMS = {"table": np.linspace(-1, 1, 32, dtype=np.float32)}
ADAM = optimizers.make_optimizer(optimizers.Optimizer(0.1), 1)
update = jax.jit(functools.partial(learner.train_step, loss_fn=table_loss, optimizer=ADAM))


def split(batch, num):
  """[N, ...] -> [num, N / num, ...]; groups stay whole."""
  return jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), batch)


def test_microbatches_change_nothing(tiny_batch):
  state = learner.init_state(PARAMS, ADAM)
  expected, expected_metrics = update(state, split(tiny_batch, 1))
  assert np.abs(expected.params["table"] - PARAMS["table"]).max() > 0.05
  np.testing.assert_allclose(
      expected_metrics["grad_norm"],
      optax.tree.norm(jax.grad(lambda p: table_loss(p, tiny_batch)[0])(PARAMS)), rtol=1e-5)
  for num in (2, 4):
    new, metrics = update(state, split(tiny_batch, num))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
                 (new, metrics), (expected, expected_metrics))


def test_a_loss_is_traced_once_for_all_microbatches(tiny_batch):
  traced = []
  def loss(params, batch):
    traced.append(batch)
    return table_loss(params, batch)
  step = jax.jit(functools.partial(learner.train_step, loss_fn=loss, optimizer=ADAM))
  step.lower(learner.init_state(PARAMS, ADAM), split(tiny_batch, 4))
  assert len(traced) == 1


def test_updates_that_are_not_finite_are_refused_and_counted(tiny_batch):
  bad = tiny_batch.advantages.copy()
  bad[0, 0] = np.nan  # A real token.
  good, bad = split(tiny_batch, 2), split(tiny_batch.replace(advantages=bad), 2)
  start, metrics = update(learner.init_state(PARAMS, ADAM), good)
  assert metrics["skipped_in_a_row"] == 0
  state = start
  for count in (1, 2):
    state, metrics = update(state, bad)
    assert metrics["skipped_in_a_row"] == learner.skipped_in_a_row(state) == count
    assert not np.isfinite(metrics["grad_norm"]) and metrics["update_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state.inner_state),
                 (start.params, start.opt_state.inner_state))
  assert state.step == 3
  state, metrics = update(state, good)
  assert metrics["skipped_in_a_row"] == 0
  # And as if the bad ones had never been.
  expected, _ = update(start, good)
  jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


@pytest.mark.parametrize("kind, expected", [
    # Warm-up of 4 to 1, by quarters; the first update is not for nothing. 8 updates fall over the 4
    # that remain.
    ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
    ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]),
    # (1 + cos(π·t/4)) / 2 = 1, 0.853553, 0.5, 0.146447, 0
    ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447, 0]),
])
def test_schedules_by_hand(kind, expected):
  schedule = optimizers.make_schedule(kind, learning_rate=3.0, warmup_steps=4, num_updates=8)
  np.testing.assert_allclose([schedule(i) for i in range(9)], 3 * np.array(expected), atol=1e-5)


def test_schedules_without_warm_up_or_with_one_step_of_it():
  for warmup in (0, 1):
    schedule = optimizers.make_schedule(
        "constant", learning_rate=0.5, warmup_steps=warmup, num_updates=3)
    np.testing.assert_allclose([schedule(i) for i in range(3)], [0.5] * 3)
  assert set(optimizers.SCHEDULES) == {"constant", "linear", "cosine"}
  with pytest.raises(KeyError):
    optimizers.make_schedule("step", learning_rate=1.0, warmup_steps=0, num_updates=1)


def linear_step(optimizer, steps=1):
  """Updates on the loss 3·x + 4·y, whose gradient (3, 4) has norm 5."""
  def loss_fn(params, batch):
    loss = batch[0] * params["x"] + batch[1] * params["y"]
    return loss, losses.LossStatistics(sums={}, token_sums={}, num_tokens=jnp.float32(1), maxima={})
  state = learner.init_state({"x": jnp.zeros(()), "y": jnp.zeros(())}, optimizer)
  for _ in range(steps):
    state, metrics = learner.train_step(
        state, jnp.array([[3.0, 4.0]]), loss_fn=loss_fn, optimizer=optimizer)
  return state, metrics


@pytest.mark.parametrize(
    "max_norm, expected", [(1.0, (-0.6, -0.8)), (10.0, (-3, -4)), (0, (-3, -4))])
def test_gradients_are_clipped_by_their_global_norm(max_norm, expected):
  optimizer = optimizers.make_optimizer(
      optimizers.Optimizer(1.0, name="sgd", max_grad_norm=max_norm), 1)
  state, metrics = linear_step(optimizer)
  np.testing.assert_allclose((state.params["x"], state.params["y"]), expected, rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], 5.0, rtol=1e-6)  # Before clipping.
  np.testing.assert_allclose(metrics["update_norm"], np.hypot(*expected), rtol=1e-6)


def test_the_first_update_uses_the_first_learning_rate():
  # Rates 1/2 and 1: x = −3·(1/2) after one update, −3·(1/2 + 1) after two.
  section = optimizers.Optimizer(1.0, name="sgd", warmup_steps=2, max_grad_norm=0)
  optimizer = optimizers.make_optimizer(section, 4)
  for steps, x in ((1, -1.5), (2, -4.5)):
    state, _ = linear_step(optimizer, steps)
    np.testing.assert_allclose(state.params["x"], x, rtol=1e-6)
    assert state.step == steps


def test_optimizer_arguments_reach_optax():
  # Adam's first step is lr·sign(g), with weight decay 0 at parameters 0. A momentum of 0.5: −3,
  # then −3 − 4.5.
  state, _ = linear_step(optimizers.make_optimizer(optimizers.Optimizer(0.1, name="adamw"), 1))
  np.testing.assert_allclose(state.params["y"], -0.1, rtol=1e-4)
  momentum = optimizers.make_optimizer(
      optimizers.Optimizer(1.0, name="sgd", max_grad_norm=0, args={"momentum": 0.5}), 1)
  state, _ = linear_step(momentum, steps=2)
  np.testing.assert_allclose(state.params["x"], -7.5, rtol=1e-6)
