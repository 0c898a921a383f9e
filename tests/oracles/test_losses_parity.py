"""Compares our losses and advantages with trl's GRPOTrainer and rlax: values and gradients."""

import collections
import inspect
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.objectives import advantages, losses

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

MAX_TOKENS = 7


@pytest.fixture
def grpo_trainer():
  return pytest.importorskip("trl.trainer.grpo_trainer")


@pytest.fixture(scope="module")
def scores(tiny_batch):
  """Draws log-probabilities and entropies.

  The log-probabilities are far enough from the behaviour's to be clipped on both sides.
  """
  rng = np.random.RandomState(4)
  logprobs = tiny_batch.behaviour_logprobs + 0.4 * rng.standard_normal((8, 5)).astype(np.float32)
  return logprobs, rng.uniform(0, 3, (8, 5)).astype(np.float32)


def trl_loss(
    trainer_class, loss_type, scores, batch, *, kl_coef=0.0, entropy_coef=0.0, level="token",
    bias_correction=False, **changes,
):
  """Calls trainer_class._compute_loss on a stand-in whose model answers with these scores.

  Returns: (loss, gradient of the log-probabilities, metrics).
  """
  logprobs, entropy = (torch.tensor(x) for x in scores)
  logprobs.requires_grad_()
  metrics = {"eval": collections.defaultdict(list)}
  model = types.SimpleNamespace(training=False)
  trainer = types.SimpleNamespace(
      _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, entropy, None),
      model=model,
      aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
      importance_sampling_level=level, beta=kl_coef, loss_type=loss_type, epsilon_low=0.2,
      epsilon_high=0.3, use_vllm=False,
      max_completion_length=MAX_TOKENS, current_gradient_accumulation_steps=1,
      _entropy_bonus_enabled=bool(entropy_coef), use_adaptive_entropy=False,
      entropy_coef=entropy_coef, _metrics=metrics,
      args=types.SimpleNamespace(
          use_bias_correction_kl=bias_correction, delta=None, steps_per_generation=1),
      accelerator=types.SimpleNamespace(
          num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x))
  vars(trainer).update(changes)
  mask = torch.tensor(np.asarray(batch.completion_mask)).int()
  prompt = torch.ones((8, 1), dtype=torch.int64)
  loss = trainer_class._compute_loss(trainer, model, dict(
      prompt_ids=prompt, prompt_mask=prompt, completion_ids=torch.tensor(batch.completions),
      completion_mask=mask, advantages=torch.tensor(batch.advantages),
      old_per_token_logps=torch.tensor(batch.behaviour_logprobs),
      ref_per_token_logps=torch.tensor(batch.reference_logprobs), num_items_in_batch=mask.sum()))
  loss.backward()
  return loss.item(), logprobs.grad.numpy(), {k: v[0] for k, v in metrics["eval"].items()}


# trl's entropy bonus is always a mean over tokens; ours is reduced like the rest of the loss.
@pytest.mark.parametrize("loss_type, mean_over, entropy_coef", [
    ("grpo", "sequence", 0.0), ("bnpo", "token", 0.0), ("bnpo", "token", 0.05),
    ("dapo", "token", 0.0), ("dr_grpo", "fixed_length", 0.0)])
@pytest.mark.parametrize("kl_coef, estimator", [(0.0, "k3"), (0.3, "k3"), (0.3, "k3_weighted")])
def test_loss_and_gradient_equal_those_of_trl(
    grpo_trainer, loss_type, mean_over, entropy_coef, kl_coef, estimator, scores, tiny_batch):
  weights = losses.token_weights(
      tiny_batch.completion_mask, mean_over=mean_over, max_tokens=MAX_TOKENS)

  def ours(logprobs):
    return losses.policy_gradient_loss(
        logprobs, scores[1], tiny_batch.replace(token_weights=weights), clip_low=0.2,
        clip_high=0.3, kl_coef=kl_coef, kl_estimator=estimator, entropy_coef=entropy_coef)
  (loss, statistics), gradient = jax.jit(
      jax.value_and_grad(ours, has_aux=True))(jnp.asarray(scores[0]))
  expected, expected_gradient, theirs = trl_loss(
      grpo_trainer.GRPOTrainer, loss_type, scores, tiny_batch, kl_coef=kl_coef,
      entropy_coef=entropy_coef, bias_correction=estimator == "k3_weighted")
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
  metrics = statistics.metrics()
  np.testing.assert_allclose(metrics["entropy"], theirs["entropy"], rtol=1e-5)
  np.testing.assert_allclose(metrics["clip_fraction"], theirs["clip_ratio/region_mean"], rtol=1e-5)
  assert 0 < metrics["clip_fraction"] < 1
  if kl_coef:
    np.testing.assert_allclose(metrics["kl"], theirs["kl"], rtol=1e-5)


def assert_objective_equals(name, mean_over, expected, scores, batch, **bounds):
  """Compares value and gradient of a reduced objective with those of trl_loss."""
  weights = losses.token_weights(batch.completion_mask, mean_over=mean_over, max_tokens=MAX_TOKENS)

  def ours(logprobs):
    return losses.policy_gradient_loss(
        logprobs, scores[1], batch.replace(token_weights=weights), kl_coef=0.0, kl_estimator="k3",
        objective=name, **{"clip_low": 0.2, "clip_high": 0.3, **bounds})
  (loss, statistics), gradient = jax.jit(
      jax.value_and_grad(ours, has_aux=True))(jnp.asarray(scores[0]))
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(gradient, expected[1], atol=1e-6)
  assert 0 < statistics.metrics()["clip_fraction"] < 1


@pytest.fixture(scope="module")
def sequence_batch(tiny_batch):
  """Makes a batch with one advantage per completion, at all of its tokens."""
  return tiny_batch.replace(advantages=np.where(
      tiny_batch.completion_mask, tiny_batch.advantages[:, :1], 0.0))


@pytest.mark.parametrize("loss_type, mean_over", [("grpo", "sequence"), ("dapo", "token")])
def test_gspo_equals_that_of_trl(
    grpo_trainer, loss_type, mean_over, scores, tiny_batch, sequence_batch):
  for name, batch in (
      ("gspo", tiny_batch), ("gspo", sequence_batch), ("gspo_token", sequence_batch)):
    expected = trl_loss(grpo_trainer.GRPOTrainer, loss_type, scores, batch, level="sequence")
    assert_objective_equals(name, mean_over, expected, scores, batch)


def test_cispo_equals_that_of_trl(grpo_trainer, scores, tiny_batch):
  # trl has no lower bound, and its epsilon_high is the largest weight itself.
  expected = trl_loss(grpo_trainer.GRPOTrainer, "cispo", scores, tiny_batch, epsilon_high=1.3)
  assert_objective_equals("cispo", "token", expected, scores, tiny_batch, clip_low=1.0)


def test_gmpo_equals_that_of_trl(scores, sequence_batch):
  trainer = pytest.importorskip("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
  expected = trl_loss(
      trainer, "grpo", scores,
      sequence_batch.replace(advantages=sequence_batch.advantages[:, 0]))
  assert_objective_equals("gmpo", "sequence", expected, scores, sequence_batch)
  np.testing.assert_allclose(
      losses.geometric_policy_gradient(
          scores[0], sequence_batch.behaviour_logprobs, sequence_batch.advantages,
          sequence_batch.completion_mask, clip_low=0.2,
          clip_high=0.3)[1].sum() / sequence_batch.completion_mask.sum(),
      expected[2]["clip_ratio/region_mean"], rtol=1e-5)


@pytest.mark.parametrize("scale, normalise", [
    ("group", "group_std"), ("batch", "batch_std"), ("none", "none")])
def test_advantages_equal_those_of_trl(grpo_trainer, scale, normalise):
  # The formula stands in the middle of a long method: its lines are cut out of the source and run.
  source = inspect.getsource(grpo_trainer.GRPOTrainer)
  start = source.index('        if self.multi_objective_aggregation == "sum_then_normalize":')
  end = source.index("advantages = torch.nan_to_num", start)
  rewards = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [2.5, -1, 0.1, 0.3]], np.float32)
  names = dict(
      vars(grpo_trainer), num_generations=4, device="cpu",
      rewards_per_func=torch.tensor(rewards.reshape(-1, 1)),
      unscorable_mask=torch.zeros(16, dtype=torch.bool), self=types.SimpleNamespace(
          multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1),
          scale_rewards=scale))
  exec(textwrap.dedent(source[start:end]), names)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise=normalise),
      names["advantages"].numpy().reshape(4, 4), atol=1e-5)


def test_leave_one_out_equals_that_of_trl():
  module = pytest.importorskip("trl.trainer.rloo_trainer")
  source = inspect.getsource(module.RLOOTrainer)
  start = source.index("        scorable_counts = ")
  end = source.index("        # Normalize advantages over the scorable", start)
  rewards = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [2.5, -1, 0.1, 0.3]], np.float32)
  names = dict(vars(module), num_generations=4, rewards=torch.tensor(rewards.reshape(-1)),
               grouped_rewards=torch.tensor(rewards))
  exec(textwrap.dedent(source[start:end]), names)
  np.testing.assert_allclose(
      advantages.advantages(rewards, baseline="leave_one_out"),
      names["advantages"].numpy().reshape(4, 4), atol=1e-6)


@pytest.fixture(scope="module")
def episodes():
  """Draws 3 rows of 9 tokens, a third of them masked.

  They have rewards, values, a mask, a bootstrap and two log-probabilities.
  """
  rng = np.random.RandomState(3)
  def noise(*shape):
    return rng.standard_normal(shape).astype(np.float32)
  return dict(
      rewards=noise(3, 9), values=noise(3, 9), mask=rng.rand(3, 9) < 0.7, bootstrap=noise(3),
      logprobs=noise(3, 9), behaviour_logprobs=noise(3, 9))


def own_tokens(episodes, row):
  """Returns a row's unmasked tokens, the only ones that rlax is given.

  Returns: (rewards, values with the bootstrap behind them, ratios).
  """
  mask = episodes["mask"][row]
  values = np.append(episodes["values"][row][mask], episodes["bootstrap"][row]).astype(np.float32)
  return episodes["rewards"][row][mask], values, np.exp(
      episodes["logprobs"] - episodes["behaviour_logprobs"])[row][mask]


@pytest.mark.parametrize("discount, lam", [(1.0, 0.95), (0.9, 0.7), (0.9, 0.0)])
def test_gae_equals_that_of_rlax(discount, lam, episodes):
  rlax = pytest.importorskip("rlax")
  ours, _ = advantages.gae(
      *(episodes[k] for k in ("rewards", "values", "mask", "bootstrap")), discount=discount,
      lam=lam)
  for row in range(3):
    rewards, values, _ = own_tokens(episodes, row)
    theirs = rlax.truncated_generalized_advantage_estimation(
        rewards, np.full_like(rewards, discount), lam, values)
    np.testing.assert_allclose(ours[row][episodes["mask"][row]], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("discount, lam, rho, policy_rho", [
    (1.0, 1.0, 1.0, 1.0), (0.9, 0.8, 2.0, 1.5)])
def test_vtrace_equals_that_of_rlax(discount, lam, rho, policy_rho, episodes):
  rlax = pytest.importorskip("rlax")
  ours, targets = advantages.vtrace(
      **episodes, discount=discount, lam=lam, max_rho=rho, max_policy_rho=policy_rho)
  for row in range(3):
    rewards, values, ratios = own_tokens(episodes, row)
    theirs = rlax.vtrace_td_error_and_advantage(
        values[:-1], values[1:], rewards, np.full_like(rewards, discount), ratios, lambda_=lam,
        clip_rho_threshold=rho, clip_pg_rho_threshold=policy_rho)
    mask = episodes["mask"][row]
    np.testing.assert_allclose(ours[row][mask], theirs.pg_advantage, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        (targets - episodes["values"])[row][mask], theirs.errors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.2])
def test_clipped_objective_equals_that_of_rlax(epsilon, scores, tiny_batch):
  rlax = pytest.importorskip("rlax")
  behaviour, a = tiny_batch.behaviour_logprobs, tiny_batch.advantages
  everything = np.ones(a.shape, bool)

  def ours(logprobs):
    return losses.clipped_policy_gradient(
        logprobs, behaviour, a, everything, clip_low=epsilon, clip_high=epsilon)[0].mean()

  def theirs(logprobs):
    return rlax.clipped_surrogate_pg_loss(
        jnp.exp(logprobs - behaviour).reshape(-1), a.reshape(-1), epsilon)
  for x, y in zip(jax.value_and_grad(ours)(scores[0]), jax.value_and_grad(theirs)(scores[0])):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
