"""Compares our preference and reward losses with trl's trainers and torch: values and gradients."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.objectives import preferences

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

# Tokens of each of 4 prompts; tokens of their chosen and of their rejected completions.
PROMPT, LENGTHS = 2, np.array([[3, 5, 2, 1], [4, 2, 6, 3]])
BETA = 0.3


@pytest.fixture(scope="module")
def token_logprobs():
  """Draws log-probabilities as trl's fused head gives them.

  The shape is [8 sequences, chosen first; places after the first token], with zeros outside the
  completions.
  """
  mask = completion_mask()[:, 1:]
  rng = np.random.RandomState(6)
  return np.where(mask, -rng.uniform(0.1, 2.0, mask.shape), 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def reference(token_logprobs):
  noise = np.random.RandomState(7).standard_normal(8).astype(np.float32)
  return token_logprobs.sum(axis=1) + 2 * noise


def completion_mask():
  place = np.arange(PROMPT + LENGTHS.max())
  return (place >= PROMPT) & (place < PROMPT + LENGTHS.reshape(-1, 1))


def stand_in(token_logprobs, **fields):
  """Makes a stand-in for a trainer, whose model answers with these log-probabilities.

  Returns: (the trainer, the model, the model's inputs, the leaf of the gradient).
  """
  leaf = torch.tensor(token_logprobs, requires_grad=True)
  zeros = torch.zeros(token_logprobs.shape)

  class Model:
    training = False

    def __call__(self, **kwargs):
      return types.SimpleNamespace(
          log_probs=leaf, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
  model = Model()
  trainer = types.SimpleNamespace(
      model=model, aux_loss_enabled=False, precompute_ref_logps=True, beta=BETA,
      label_smoothing=0.0,
      _metrics={"eval": collections.defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
      accelerator=types.SimpleNamespace(
          device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x), **fields)
  ids = torch.ones(completion_mask().shape, dtype=torch.int64)
  return trainer, model, dict(
      input_ids=ids, attention_mask=ids,
      completion_mask=torch.tensor(completion_mask()).int()), leaf


def assert_equal_to(expected, leaf, ours, token_logprobs):
  """Compares value and gradient of a loss.

  Args:
    expected: their loss.
    leaf: where their gradient is.
    ours: token log-probabilities -> (mean loss, metrics).
    token_logprobs: what both are computed at.
  Returns: our metrics.
  """
  expected.backward()
  (loss, metrics), gradient = jax.jit(
      jax.value_and_grad(ours, has_aux=True))(jnp.asarray(token_logprobs))
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-6)
  assert np.abs(gradient).max() > 1e-3
  return metrics


def paired(name, reference, **options):
  """Makes a function: token log-probabilities -> mean loss of a member of PREFERENCE_LOSSES."""
  def loss(tokens):
    losses, metrics = preferences.PREFERENCE_LOSSES[name](
        *jnp.split(tokens.sum(axis=1), 2), *np.split(reference, 2), *LENGTHS, **options)
    return losses.mean(), {k: v.mean() for k, v in metrics.items()}
  return loss


@pytest.mark.parametrize("loss_type, name", [("sigmoid", "dpo"), ("ipo", "ipo")])
def test_dpo_and_ipo_equal_those_of_trl(loss_type, name, token_logprobs, reference):
  module = pytest.importorskip("trl.trainer.dpo_trainer")
  trainer, model, inputs, leaf = stand_in(
      token_logprobs, ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[loss_type],
      loss_weights=[1.0], use_weighting=False)
  chosen, rejected = np.split(reference, 2)
  expected = module.DPOTrainer._compute_loss(trainer, model, dict(
      inputs, ref_chosen_logps=torch.tensor(chosen),
      ref_rejected_logps=torch.tensor(rejected)), False)
  metrics = assert_equal_to(expected, leaf, paired(name, reference, beta=BETA), token_logprobs)
  theirs = {k: v[0] for k, v in trainer._metrics["eval"].items()}
  for ours, trl in dict(
      chosen_reward="chosen", rejected_reward="rejected", margin="margins",
      accuracy="accuracies").items():
    np.testing.assert_allclose(metrics[ours], theirs[f"rewards/{trl}"], rtol=1e-5)
  assert 0 < metrics["accuracy"] < 1


def test_cdpo_equals_the_smoothed_loss_of_trl(token_logprobs, reference):
  # Only trl's CPO smooths this loss now; given log-ratios in place of log-probabilities it is cDPO.
  module = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
  trainer, _, _, leaf = stand_in(token_logprobs, alpha=0.0, loss_type="sigmoid")
  trainer.label_smoothing = 0.2
  ratios = leaf.sum(1) - torch.tensor(reference)
  expected, _, _ = module.CPOTrainer.cpo_loss(trainer, *ratios.chunk(2))
  assert_equal_to(
      expected.mean(), leaf, paired("dpo", reference, beta=BETA, label_smoothing=0.2),
      token_logprobs)


def test_simpo_equals_that_of_trl(token_logprobs, reference):
  module = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
  trainer, _, _, leaf = stand_in(token_logprobs, alpha=0.0, loss_type="simpo", simpo_gamma=0.5)
  means = leaf.sum(1) / torch.tensor(LENGTHS.reshape(-1))
  expected, chosen, _ = module.CPOTrainer.cpo_loss(trainer, *means.chunk(2))
  metrics = assert_equal_to(
      expected.mean(), leaf, paired("simpo", reference, beta=BETA, gamma=0.5), token_logprobs)
  np.testing.assert_allclose(metrics["chosen_reward"], chosen.mean(), rtol=1e-5)


def test_orpo_equals_that_of_trl(token_logprobs, reference):
  # trl's likelihood term reads logits of the whole batch; its odds term is a method of its own.
  module = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
  trainer, _, _, leaf = stand_in(token_logprobs)
  chosen, rejected = (leaf.sum(1) / torch.tensor(LENGTHS.reshape(-1))).chunk(2)
  odds, rewards, *_ = module.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
  metrics = assert_equal_to(
      -chosen.mean() - odds.mean(), leaf, paired("orpo", reference, beta=BETA), token_logprobs)
  np.testing.assert_allclose(metrics["chosen_reward"], rewards.mean(), rtol=1e-5)


@pytest.mark.parametrize("shift", [2.0, -2.0])  # The reference point above 0, and held at 0.
def test_kto_equals_that_of_trl(shift, token_logprobs, reference):
  module = pytest.importorskip("trl.trainer.kto_trainer")
  desirable = np.array([True, False, True, True, False, False, True, False])
  rng = np.random.RandomState(8)
  mismatched, mismatched_reference = (rng.uniform(-9, -1, 8).astype(np.float32) for _ in range(2))
  mismatched += shift - (mismatched - mismatched_reference).mean()
  trainer, model, inputs, leaf = stand_in(
      token_logprobs, calculate_KL=True, loss_type="kto", desirable_weight=1.2,
      undesirable_weight=0.7,
      _compute_kl_logps=lambda model, batch: torch.tensor(mismatched))
  expected = module.KTOTrainer._compute_loss(trainer, model, dict(
      inputs, label=torch.tensor(desirable), ref_logps=torch.tensor(reference),
      ref_KL_logps=torch.tensor(mismatched_reference)), False)

  def ours(tokens):
    everything = np.ones(8, bool)
    kl = preferences.kto_reference_point(mismatched, mismatched_reference, everything)
    losses, metrics = preferences.kto(
        tokens.sum(axis=1), reference, desirable, everything, kl, beta=BETA,
        desirable_weight=1.2, undesirable_weight=0.7)
    return losses.mean(), {"kl": kl, "chosen": metrics["reward"][desirable].mean()}
  metrics = assert_equal_to(expected, leaf, ours, token_logprobs)
  np.testing.assert_allclose(metrics["kl"], trainer._metrics["eval"]["kl"][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
      metrics["chosen"], trainer._metrics["eval"]["rewards/chosen"][0], rtol=1e-5)


@pytest.mark.parametrize("margin", [None, [0.5, 0.0, -1.0, 2.0]])
def test_bradley_terry_equals_that_of_trl(margin):
  module = pytest.importorskip("trl.trainer.reward_trainer")
  scores = np.random.RandomState(9).standard_normal(8).astype(np.float32)
  trainer, _, _, leaf = stand_in(
      scores, args=types.SimpleNamespace(center_rewards_coefficient=None))

  def model(**kwargs):
    return types.SimpleNamespace(logits=leaf[:, None])
  inputs = {} if margin is None else {"margin": torch.tensor(margin)}
  expected = module.RewardTrainer.compute_loss(trainer, model, inputs)

  def ours(scores):
    losses, metrics = preferences.bradley_terry(
        *jnp.split(scores, 2), margin=jnp.array(margin or 0.0))
    return losses.mean(), {k: v.mean() for k, v in metrics.items()}
  metrics = assert_equal_to(expected, leaf, ours, scores)
  for name in ("accuracy", "margin"):
    np.testing.assert_allclose(metrics[name], trainer._metrics["eval"][name][0], rtol=1e-5)


def test_regression_and_binary_equal_those_of_torch():
  rng = np.random.RandomState(10)
  scores, labels = (
      (3 * rng.standard_normal((4, 5))).astype(np.float32), rng.rand(4, 5).astype(np.float32))
  mask = np.ones((4, 5), bool)
  x, y = torch.tensor(scores), torch.tensor(labels)
  functional = torch.nn.functional
  for ours, theirs in (
      (preferences.regression(scores, labels, mask), functional.mse_loss(x, y, reduction="none")),
      (preferences.regression(scores, labels, mask, huber=0.7),
       2 * functional.huber_loss(x, y, reduction="none", delta=0.7)),
      (preferences.binary(scores, labels, mask),
       functional.binary_cross_entropy_with_logits(x, y, reduction="none"))):
    np.testing.assert_allclose(ours[0], theirs.mean(1), rtol=1e-5)
