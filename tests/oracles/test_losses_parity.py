"""Our losses and advantages against trl's GRPOTrainer and rlax: the same arrays, values and gradients."""

import collections
import inspect
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason import advantages, losses

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

MAX_TOKENS = 7


@pytest.fixture
def grpo_trainer():
  return pytest.importorskip("trl.trainer.grpo_trainer")


@pytest.fixture(scope="module")
def scores(tiny_batch):
  """Log-probabilities far enough from the behaviour's to be clipped on both sides, and entropies."""
  rng = np.random.RandomState(4)
  logprobs = tiny_batch.behaviour_logprobs + 0.4 * rng.standard_normal((8, 5)).astype(np.float32)
  return logprobs, rng.uniform(0, 3, (8, 5)).astype(np.float32)


def trl_loss(module, loss_type, scores, batch, *, kl_coef, entropy_coef):
  """GRPOTrainer._compute_loss on a stand-in for the trainer whose model answers with these scores."""
  logprobs, entropy = (torch.tensor(x) for x in scores)
  logprobs.requires_grad_()
  metrics = {"eval": collections.defaultdict(list)}
  model = types.SimpleNamespace(training=False)
  trainer = types.SimpleNamespace(
      _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, entropy, None), model=model,
      aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
      importance_sampling_level="token", beta=kl_coef, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.3, use_vllm=False,
      max_completion_length=MAX_TOKENS, current_gradient_accumulation_steps=1,
      _entropy_bonus_enabled=bool(entropy_coef), use_adaptive_entropy=False, entropy_coef=entropy_coef, _metrics=metrics,
      args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
      accelerator=types.SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x))
  mask = torch.tensor(np.asarray(batch.completion_mask)).int()
  prompt = torch.ones((8, 1), dtype=torch.int64)
  loss = module.GRPOTrainer._compute_loss(trainer, model, dict(
      prompt_ids=prompt, prompt_mask=prompt, completion_ids=torch.tensor(batch.completions), completion_mask=mask,
      advantages=torch.tensor(batch.advantages), old_per_token_logps=torch.tensor(batch.behaviour_logprobs),
      ref_per_token_logps=torch.tensor(batch.reference_logprobs), num_items_in_batch=mask.sum()))
  loss.backward()
  return loss.item(), logprobs.grad.numpy(), {k: v[0] for k, v in metrics["eval"].items()}


# trl's entropy bonus is always a mean over tokens; ours is reduced like the rest of the loss.
@pytest.mark.parametrize("loss_type, mean_over, entropy_coef", [
    ("grpo", "sequence", 0.0), ("bnpo", "token", 0.0), ("bnpo", "token", 0.05), ("dapo", "token", 0.0),
    ("dr_grpo", "fixed_length", 0.0)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_loss_and_gradient_equal_those_of_trl(
    grpo_trainer, loss_type, mean_over, entropy_coef, kl_coef, scores, tiny_batch):
  weights = losses.token_weights(tiny_batch.completion_mask, mean_over=mean_over, max_tokens=MAX_TOKENS)

  def ours(logprobs):
    return losses.policy_gradient_loss(
        logprobs, scores[1], tiny_batch.replace(token_weights=weights), clip_low=0.2, clip_high=0.3, kl_coef=kl_coef,
        kl_estimator="k3", entropy_coef=entropy_coef)
  (loss, statistics), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(jnp.asarray(scores[0]))
  expected, expected_gradient, theirs = trl_loss(
      grpo_trainer, loss_type, scores, tiny_batch, kl_coef=kl_coef, entropy_coef=entropy_coef)
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
  metrics = statistics.metrics()
  np.testing.assert_allclose(metrics["entropy"], theirs["entropy"], rtol=1e-5)
  np.testing.assert_allclose(metrics["clip_fraction"], theirs["clip_ratio/region_mean"], rtol=1e-5)
  assert 0 < metrics["clip_fraction"] < 1
  if kl_coef:
    np.testing.assert_allclose(metrics["kl"], theirs["kl"], rtol=1e-5)


@pytest.mark.parametrize("scale, normalise", [("group", "group_std"), ("batch", "batch_std"), ("none", "none")])
def test_advantages_equal_those_of_trl(grpo_trainer, scale, normalise):
  # The formula stands in the middle of a long method: its lines are cut out of the source and run.
  source = inspect.getsource(grpo_trainer.GRPOTrainer)
  start = source.index('        if self.multi_objective_aggregation == "sum_then_normalize":')
  end = source.index("advantages = torch.nan_to_num", start)
  rewards = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [2.5, -1, 0.1, 0.3]], np.float32)
  names = dict(
      vars(grpo_trainer), num_generations=4, device="cpu", rewards_per_func=torch.tensor(rewards.reshape(-1, 1)),
      unscorable_mask=torch.zeros(16, dtype=torch.bool), self=types.SimpleNamespace(
          multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1), scale_rewards=scale))
  exec(textwrap.dedent(source[start:end]), names)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise=normalise), names["advantages"].numpy().reshape(4, 4), atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 0.2])
def test_clipped_objective_equals_that_of_rlax(epsilon, scores, tiny_batch):
  rlax = pytest.importorskip("rlax")
  behaviour, a = tiny_batch.behaviour_logprobs, tiny_batch.advantages
  everything = np.ones(a.shape, bool)

  def ours(logprobs):
    return losses.clipped_policy_gradient(
        logprobs, behaviour, a, everything, clip_low=epsilon, clip_high=epsilon)[0].mean()

  def theirs(logprobs):
    return rlax.clipped_surrogate_pg_loss(jnp.exp(logprobs - behaviour).reshape(-1), a.reshape(-1), epsilon)
  for x, y in zip(jax.value_and_grad(ours)(scores[0]), jax.value_and_grad(theirs)(scores[0])):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
