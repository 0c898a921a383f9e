"""OREAL: one right and one wrong completion of a group, normalisers by sign, shares by token, and the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_reason import advantages, config as config_lib, losses, metrics, packing, policy, rewards, run, train
from rl_reason.experiments import oreal
from rl_reason.models import heads
from rl_reason.stages import critic as critic_lib
from rl_reason.stages import token_reward
from rl_reason.types import RolloutBatch, Sample


def samples(answers, groups, step=0, prompt="4302="):
  return [Sample(prompt=prompt + str(g), completion=f"#{a}", reference="4", group=g, step=step) for a, g in zip(answers, groups)]


def test_one_right_and_one_wrong_of_each_group():
  choose = rewards.build_rewards(dict(pair=dict(function="one_of_each", args=dict(outcome=dict(exact_answer=1.0)))))
  answers, groups = "4123" "4444" "1111" "4441", np.repeat(np.arange(4), 4)
  drawn = np.array([choose(samples(answers, groups, step))[0].reshape(4, 4) for step in range(40)])
  assert (drawn[:, 0, 0] == 1).all() and (drawn[:, 0].sum(axis=1) == 2).all()  # The only right one, and one of three.
  assert not drawn[:, 1:3].any()  # All right; all wrong.
  assert (drawn[:, 3, 3] == 1).all() and (drawn[:, 3].sum(axis=1) == 2).all()
  assert (drawn[:, 0, 1:].mean(axis=0) > 0.1).all() and (drawn[:, 3, :3].mean(axis=0) > 0.1).all()
  np.testing.assert_array_equal(choose(samples(answers, groups, 7))[0].reshape(4, 4), drawn[7])  # A resumed run draws the same.
  with pytest.raises(ValueError, match="cannot use 1 of 1 references"):
    choose.check_references([""])


def test_the_first_right_draw_is_the_policy_given_success():
  # Of an answer that is right, best-of-N by the verifier draws from pi(. | right), whatever N is (theorem 1).
  policy_probs, right = np.array([.4, .1, .2, .25, .05]), np.array([False, True, False, True, True])
  expected = np.where(right, policy_probs, 0) / policy_probs[right].sum()
  draw = np.random.default_rng(0)
  for n in (1, 4, 64):
    answers = draw.choice(5, size=(40_000, n), p=policy_probs)
    hit = right[answers].any(axis=1)
    first = answers[hit, right[answers[hit]].argmax(axis=1)]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / len(first), expected, atol=0.012)


def test_leave_one_out_by_hand():
  # The card: of four with one right A = (2, -2/3, -2/3, -2/3); in general 2K(1-p)/(K-1) and -2Kp/(K-1).
  found = advantages.advantages(np.array([[1., -1., -1., -1.]]), baseline="leave_one_out")
  np.testing.assert_allclose(found, [[2, -2 / 3, -2 / 3, -2 / 3]], rtol=1e-6)
  spec = oreal._rewards("exact_answer")
  total, components = rewards.build_rewards(spec)(samples("41", [0, 0]))
  assert total.tolist() == [1, -1] and components["answer"].tolist() == [1, 0]


def test_each_sign_has_its_own_normaliser():
  # Five tokens, two of them above 0: their mean, and that of the two below, once each.
  a, mask = np.array([[3., 3., 9.], [-1., -1., 0.]], np.float32), np.array([[True, True, False], [True, True, True]])
  found = advantages.per_sign(a, mask)
  np.testing.assert_allclose(found, [[7.5, 7.5, 0], [-2.5, -2.5, 0]])
  assert float(found.sum() / 5) == pytest.approx(3 - 1)
  assert not np.asarray(advantages.per_sign(np.zeros((2, 3), np.float32), mask)).any()
  np.testing.assert_allclose(advantages.per_sign(np.abs(a), mask)[0, :2], [3.75, 3.75])  # All above 0 but one of five.


def test_shares_by_hand():
  # The card: logits (2, 1, -3, -4), read after each token, so before the next one.
  before = np.array([[9., 2., 1., -3., -4., 7.]] * 2, np.float32)
  mask = np.array([[True] * 5 + [False]] * 2)
  found, told = token_reward.shares(before, np.array([[True] * 6, [False] * 6]), mask, mask)
  np.testing.assert_allclose(found, [[.762, .635, 0, 0, 0, 0], [0, 0, 0, .462, .462, 0]], atol=1e-3)
  assert told["token_reward/positive"] == pytest.approx((.762 + .635) / 5, abs=1e-3)
  # An environment's tokens are no part of the means.
  between = np.array([[9., 2., 50., 1., -3., -4.]], np.float32)
  mask = np.array([[True, True, False, True, True, True]])
  found, _ = token_reward.shares(between, np.ones((1, 6), bool), mask, mask)
  np.testing.assert_allclose(found[0, [0, 1, 3]], [np.tanh(1), np.tanh(.75), np.tanh(0)], atol=1e-6)
  assert found[0, 2] == 0
  empty, _ = token_reward.shares(np.ones((1, 2)), np.ones((1, 2), bool), np.array([[True, False]]), np.array([[True, False]]))
  assert not empty.any()  # After one token there is no logit.


def batch_of(lengths, rights, weights=None):
  size = max(lengths)
  mask = np.arange(size) < np.array(lengths)[:, None]
  zeros = np.zeros(mask.shape, np.float32)
  return RolloutBatch(
      None, zeros.astype(np.int32), np.array(lengths, np.int32), zeros, zeros, zeros,
      (mask / mask.sum()).astype(np.float32) if weights is None else weights, zeros,
      np.repeat(np.array(rights, np.float32)[:, None], size, axis=1))


def own_loss(before, batch):
  zero = losses.LossStatistics({}, {}, jnp.ones(()), {})
  loss, statistics = token_reward.add_loss(jnp.zeros(()), zero, jnp.asarray(before), batch)
  return float(loss), float(statistics.sums["token_reward/accuracy"])


def test_the_models_loss_by_hand_and_packed():
  before = np.array([[9., 2., 1., -3., -4.], [5., 1., -1., 2., 8.]], np.float32)
  batch = batch_of([5, 4], [1, 0])
  # Means of the logits after the tokens: (2 + 1 - 3 - 4) / 4 = -1 of a right one, (1 - 1 + 2) / 3 of a wrong one.
  bce = [float(optax.sigmoid_binary_cross_entropy(jnp.float32(x), y)) for x, y in ((-1., 1.), (2 / 3, 0.))]
  loss, accuracy = own_loss(before, batch)
  assert loss == pytest.approx((4 * bce[0] + 3 * bce[1]) / 9, rel=1e-6) and accuracy == 0
  garbage = np.where(np.arange(5) < np.array([5, 4])[:, None], before, 1e9)
  garbage[:, 0] = -1e9  # Before the first token nothing has been said.
  assert own_loss(garbage, batch)[0] == pytest.approx(loss, rel=1e-6)
  # Two in one row: neither reads the other's.
  rows = packing.Packing(np.array([0, 0]), np.array([0, 5]), batch.completion_lengths, 1, 16)
  assert own_loss(rows.pack(before), packing.pack(batch, rows))[0] == pytest.approx(loss, rel=1e-6)
  # Of a kept completion alone.
  weights = np.array(batch.token_weights)
  weights[1] = 0
  assert own_loss(before, batch.replace(token_weights=weights))[0] == pytest.approx(4 * bce[0] / 9, rel=1e-6)


def test_the_loss_is_the_papers(tiny_config, tiny_params, tiny_batch):
  """Gradient of -A⁺ mean ω log π - η A⁻ mean ω π / sg π, each over its own tokens, against the general machinery."""
  batch = tiny_batch
  mask = np.asarray(batch.completion_mask)
  logprobs, entropy = policy.completion_logprobs(
      tiny_config, tiny_params, batch.prompts, batch.completions, batch.completion_lengths)
  draw = np.random.RandomState(3)
  omega = np.where(mask, draw.rand(*mask.shape), 0).astype(np.float32)
  a = np.where(np.arange(len(mask)) % 2 == 0, 1.5, -0.5).astype(np.float32)[:, None] * mask
  given = np.asarray(advantages.per_sign(a, mask))
  given = np.where(given < 0, 0.5 * given, given) * omega
  batch = batch.replace(advantages=given, behaviour_logprobs=np.asarray(logprobs), reference_logprobs=np.asarray(logprobs) - 0.3,
                        token_weights=np.asarray(losses.token_weights(mask, mean_over="token", max_tokens=mask.shape[1])))

  def ours(x):
    return losses.policy_gradient_loss(x, entropy, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.01, kl_estimator="k3")[0]

  def theirs(x):
    up, down = (jnp.asarray(mask & (a > 0)), jnp.asarray(mask & (a < 0)))
    clone = -jnp.sum(jnp.where(up, 1.5 * omega * x, 0)) / up.sum()
    push = -0.5 * jnp.sum(jnp.where(down, -0.5 * omega * jnp.exp(x - jax.lax.stop_gradient(x)), 0)) / down.sum()
    delta = jnp.where(mask, batch.reference_logprobs - x, 0)
    return clone + push + 0.01 * jnp.sum(jnp.where(mask, jnp.exp(delta) - delta - 1, 0)) / mask.sum()
  np.testing.assert_allclose(jax.grad(ours)(logprobs), jax.grad(theirs)(logprobs), atol=1e-6)


def test_experiment_end_to_end_small(tmp_path):
  c = config_lib.load("experiments/oreal.py:full-tiny")
  train.train(c, tmp_path)
  steps = [x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "token_reward/loss" in x]
  assert len(steps) == 3 and all(x["logprob_gap"] < 1e-4 for x in steps)
  assert 0 <= oreal.usable(tmp_path) <= 1
  # The model that is beside the policy is a trunk and a head; a completion's shares are those of its logits.
  context, params = run.policy_of_run(f"{tmp_path}:sft", train_partitioning())
  companion = context.finished("rl")["critic"]
  assert set(companion) == {"trunk", "head"}
  tokens = np.array([[3, 4, 5, 0]], np.int32)
  from rl_reason.types import PromptBatch
  prompts, lengths = PromptBatch(np.array([[1, 2, 3]], np.int32), np.array([3], np.int32)), np.array([4], np.int32)
  before = critic_lib.score(context.policy.config, context.sections["rl"].token_reward, None, companion, prompts, tokens, lengths, None)
  states = policy.completion_states(context.policy.config, companion["trunk"], prompts, tokens, lengths)
  np.testing.assert_allclose(before, heads.apply(heads.Head(), companion["head"], states)[..., 0], atol=1e-5)


def train_partitioning():
  from rl_reason import sharding
  return sharding.Partitioning(sharding.make_mesh())


@pytest.mark.parametrize("fields, message", [
    (dict(token_reward=dict(outcome="anser")), r"token_reward.outcome \(a reward\) 'anser'. Did you mean 'answer'"),
    (dict(token_reward=dict(outcome="answer", warmup_steps=3)), "token_reward.warmup_steps=3 of num_steps=3"),
    (dict(token_reward=dict(outcome="answer"), returns="to_go"), "set critic=None and returns='total'"),
    (dict(negative_weight=-1.0), "negative_weight must be at least 0")])
def test_stages_that_cannot_be(fields, message):
  c = config_lib.load("experiments/oreal.py:full-tiny")
  with c.unlocked():
    for name, value in fields.items():
      if name in c.rl:
        del c.rl[name]
      c.rl[name] = value
    with pytest.raises(ValueError, match=message):
      run.check(c)


def test_configs_of_all_arms_and_sizes():
  for name in (*oreal.ARMS, "full-7b"):
    run.check(config_lib.load(f"experiments/oreal.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'whole'"):
    oreal.get_config("whole")
