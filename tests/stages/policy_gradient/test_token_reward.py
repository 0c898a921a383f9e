"""OREAL: one right and one wrong completion of a group, normalisers by sign, shares by token.

The experiment runs, too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_reason import train
from rl_reason.arrays import Inputs, length_mask, RolloutBatch
from rl_reason.batches import packing
from rl_reason.claims import measures
from rl_reason.config.overrides import override, replaced
from rl_reason.experiments import oreal
from rl_reason.learner.optimizers import Optimizer
from rl_reason.models import heads, policy
from rl_reason.objectives import advantages, losses
from rl_reason.reporting import metrics as metrics_lib
from rl_reason.rewards import groups as rewards
from rl_reason.rewards.composition import build
from rl_reason.rollout import sampler
from rl_reason.run import config as config_lib
from rl_reason.run import earlier
from rl_reason.run.workdir import Workdir
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import stage as policy_gradient
from rl_reason.stages.policy_gradient import token_reward
from rl_reason.stages.policy_gradient.token_reward import TokenModel
from rl_reason.types import Sample
from tests.run.test_config import flat
from tests.stages.policy_gradient.test_stage import (
  assembler_of,
  completions,
  LENGTHS,
  minibatches,
  one,
  rollout_of,
  T,
)


def samples(answers, groups, step=0, prompt="4302="):
  return [Sample(prompt=prompt + str(g), completion=f"#{a}", reference="4", group=g, step=step)
          for a, g in zip(answers, groups)]


def test_one_right_and_one_wrong_of_each_group():
  choose = build.build_rewards(
      dict(pair=dict(function="one_of_each", args=dict(outcome=dict(exact_answer=1.0)))))
  answers, groups = "4123" "4444" "1111" "4441", np.repeat(np.arange(4), 4)
  drawn = np.array([choose(samples(answers, groups, step))[0].reshape(4, 4) for step in range(40)])
  # The only right one, and one of three.
  assert (drawn[:, 0, 0] == 1).all() and (drawn[:, 0].sum(axis=1) == 2).all()
  assert not drawn[:, 1:3].any()  # All right; all wrong.
  assert (drawn[:, 3, 3] == 1).all() and (drawn[:, 3].sum(axis=1) == 2).all()
  assert (drawn[:, 0, 1:].mean(axis=0) > 0.1).all() and (drawn[:, 3, :3].mean(axis=0) > 0.1).all()
  # A resumed run draws the same.
  np.testing.assert_array_equal(choose(samples(answers, groups, 7))[0].reshape(4, 4), drawn[7])
  with pytest.raises(ValueError, match="cannot use 1 of 1 references"):
    choose.check_references([""])


def test_the_right_one_is_a_draw_of_the_policy_given_success():
  # The right answer that is kept is drawn from pi(. | right), however many were sampled (theorem
  # 1): a choice that looks at what was answered would shift it.
  policy_probs, right = np.array([.4, .1, .2, .25, .05]), np.array([False, True, False, True, True])
  expected = np.where(right, policy_probs, 0) / policy_probs[right].sum()
  choose = rewards.OneOfEach(
      outcome=dict(answered=dict(function=f"{__name__}:one_three_or_four")), build=build.BUILDER)
  draw = np.random.default_rng(0)
  for n, groups in ((2, 8000), (16, 2500)):
    answers = draw.choice(5, size=(groups, n), p=policy_probs)
    kept = choose([Sample(prompt=str(g), completion=str(a), reference="-", group=g)
                   for g, row in enumerate(answers) for a in row])
    found = answers[(kept.reshape(answers.shape) > 0) & right[answers]]
    np.testing.assert_allclose(np.bincount(found, minlength=5) / len(found), expected, atol=0.03)


def one_three_or_four(samples):
  return [s.completion in "134" for s in samples]


def test_leave_one_out_by_hand():
  # The card: of four with one right A = (2, -2/3, -2/3, -2/3); in general 2K(1-p)/(K-1) and
  # -2Kp/(K-1).
  found = advantages.advantages(np.array([[1., -1., -1., -1.]]), baseline="leave_one_out")
  np.testing.assert_allclose(found, [[2, -2 / 3, -2 / 3, -2 / 3]], rtol=1e-6)
  spec = oreal._rewards("exact_answer")
  total, components = build.build_rewards(spec)(samples("41", [0, 0]))
  assert total.tolist() == [1, -1] and components["answer"].tolist() == [1, 0]


def test_each_sign_has_its_own_normaliser():
  # Five tokens, two of them above 0: their mean, and that of the two below, once each.
  a = np.array([[3., 3., 9.], [-1., -1., 0.]], np.float32)
  mask = np.array([[True, True, False], [True, True, True]])
  found = advantages.per_sign(a, mask)
  np.testing.assert_allclose(found, [[7.5, 7.5, 0], [-2.5, -2.5, 0]])
  assert float(found.sum() / 5) == pytest.approx(3 - 1)
  assert not np.asarray(advantages.per_sign(np.zeros((2, 3), np.float32), mask)).any()
  # All above 0 but one of five.
  np.testing.assert_allclose(advantages.per_sign(np.abs(a), mask)[0, :2], [3.75, 3.75])


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
  empty, _ = token_reward.shares(
      np.ones((1, 2)), np.ones((1, 2), bool), np.array([[True, False]]), np.array([[True, False]]))
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
  # Means of the logits after the tokens: (2 + 1 - 3 - 4) / 4 = -1 of a right one, (1 - 1 + 2) / 3
  # of a wrong one.
  bce = [float(optax.sigmoid_binary_cross_entropy(jnp.float32(x), y))
         for x, y in ((-1., 1.), (2 / 3, 0.))]
  loss, accuracy = own_loss(before, batch)
  assert loss == pytest.approx((4 * bce[0] + 3 * bce[1]) / 9, rel=1e-6) and accuracy == 0
  # Both told, of all tokens.
  assert own_loss(before, batch.replace(returns=1 - batch.returns))[1] == pytest.approx(1)
  one_told = batch_of([5, 4], [0, 0])
  lone = batch_of([5, 1], [0, 0])  # A completion of one token has no logit: not told.
  assert own_loss(before, one_told)[1] == pytest.approx(5 / 9)
  assert own_loss(before, lone)[1] == pytest.approx(5 / 6)
  garbage = np.where(np.arange(5) < np.array([5, 4])[:, None], before, 1e9)
  garbage[:, 0] = -1e9  # Before the first token nothing has been said.
  assert own_loss(garbage, batch)[0] == pytest.approx(loss, rel=1e-6)
  # Two in one row: neither reads the other's.
  rows = packing.Packing(np.array([0, 0]), np.array([0, 5]), batch.completion_lengths, 1, 16)
  assert own_loss(rows.pack(before), packing.pack(batch, rows))[0] == pytest.approx(loss, rel=1e-6)
  # Of a kept completion alone.
  weights = np.array(batch.token_weights)
  weights[1] = 0
  assert own_loss(before, batch.replace(token_weights=weights))[0] == pytest.approx(
      4 * bce[0] / 9, rel=1e-6)


RIGHT = np.array([1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0], bool)
# Completions of 20, 4, 32, 1, 5 and 5 tokens.
KEPT = np.array([1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1], bool)


def weighed(config, **changes):
  """The section with OREAL's fields."""
  fields = {**flat(oreal._PAIRS), "credit.token_model": TokenModel(outcome="answer"),
            "rewards": oreal._rewards("exact_answer"), "learner.microbatches": 1}
  return replaced(config, {**fields, **changes})


def test_a_rollouts_loss_is_the_papers(one, completions):
  """Rewards of 1, -1 -> gradient of -A+ mean w log pi - eta A- mean w pi / sg pi + beta k3.

  The means are over their own tokens.
  """
  context, config, params, _ = one
  config, model, mask = weighed(config), context.policy.config, np.asarray(length_mask(LENGTHS, T))
  rewarded = np.where(RIGHT, 1, -1).astype(np.float32)
  rollout = dataclasses.replace(rollout_of(one, completions, rewarded), components=dict(
      answer=RIGHT.astype(np.float32), pair=KEPT.astype(np.float32)))
  with context.partitioning.use():
    companion = critic_lib.init_params(
        config.credit.token_model, context, jax.tree.map(lambda x: 0.9 * x, params), "rl")
    kernel = companion["head"]["output"]
    companion["head"]["output"] = np.random.RandomState(0).standard_normal(kernel.shape).astype(
        np.float32)
    batch, told = assembler_of(config, context)(
        rollout, {"policy": params, "critic": companion}, jax.tree.map(lambda x: 0.8 * x, params))
    before = np.asarray(critic_lib.score(
        model, config.credit.token_model, None, companion, rollout.prompts, completions.tokens,
        LENGTHS, None))
  [minibatch] = minibatches(batch, config, context, jax.random.key(0))
  np.testing.assert_array_equal(batch.returns[:, 0] > 0, RIGHT)

  def theirs(x):
    loss, tokens = 0.0, {True: LENGTHS[KEPT & RIGHT].sum(), False: LENGTHS[KEPT & ~RIGHT].sum()}
    for i in np.flatnonzero(KEPT):
      n, others = LENGTHS[i], np.delete(rewarded[i // 4 * 4:i // 4 * 4 + 4], i % 4)
      a, logits = rewarded[i] - others.mean(), before[i, 1:n]
      means = np.cumsum(logits) / np.arange(1, n)
      # The last: that before it.
      sure = np.append(2 / (1 + np.exp(-means)) - 1, 0 if n == 1 else np.tanh(means[-1] / 2))
      omega, logprobs = np.clip(sure if RIGHT[i] else -sure, 0, 1), x[i, :n]
      ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
      gain = a * jnp.sum(omega * logprobs) if RIGHT[i] else 0.5 * a * jnp.sum(omega * ratio)
      delta = batch.reference_logprobs[i, :n] - logprobs
      loss += -gain / tokens[RIGHT[i]] + 0.01 * jnp.sum(
          jnp.exp(delta) - delta - 1) / LENGTHS[KEPT].sum()
    return loss

  def ours(x):
    return losses.policy_gradient_loss(
        x, jnp.zeros(mask.shape), minibatch, clip_low=0.2, clip_high=0.2,
        kl_coef=config.objective.kl.coef, kl_estimator=config.objective.kl.estimator)[0]
  logprobs = jnp.asarray(completions.behaviour_logprobs)
  expected = jax.grad(theirs)(logprobs)
  np.testing.assert_allclose(jax.grad(ours)(logprobs), expected, atol=1e-6)
  assert (np.abs(expected[KEPT & (LENGTHS > 1)]).max(axis=1) > 1e-4).all()
  assert not expected[~KEPT].any()
  # Some shares are 0, and their tokens count in the normalisers all the same.
  for sign in (RIGHT, ~RIGHT):
    assert 0 < (batch.advantages[KEPT & sign] != 0).sum() < LENGTHS[KEPT & sign].sum()
  assert 0 < told["token_reward/negative"] < 1


def uneven(samples):
  return [s.completion_tokens[0] % 2 for s in samples]


def test_the_token_model_learns_while_the_policy_waits(one, completions, monkeypatch):
  context, config, params, problems = one
  outcome = f"{__name__}:uneven"
  config = weighed(config, num_steps=12, rewards=dict(
      answer=dict(function=outcome, transforms=(dict(name="clip", offset=0.5),), weight=2.0),
      pair=dict(function="one_of_each", args=dict(outcome={outcome: 1.0}), weight=0.0)))
  config = replaced(config, {"credit.token_model": TokenModel(
      outcome="answer", warmup_steps=10, optimizer=Optimizer(learning_rate=0.02))})
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  history = []
  with context.partitioning.use():
    stage = policy_gradient.build(config, context, params, "rl")
    state = stage.init()
    for i in range(12):
      if i == 10:
        jax.tree.map(np.testing.assert_array_equal, state.params["policy"], params)
      state, result = stage.step(state, problems, i)
      history.append(result.metrics)
    stage.close()
  assert history[0]["token_reward/positive"] == 0
  assert history[0]["token_reward/negative"] == 0
  assert history[0]["policy_loss"] == 0
  assert history[-1]["token_reward/loss"] < 0.5 * history[0]["token_reward/loss"]
  assert history[-1]["token_reward/positive"] > 0.02
  assert any(
      jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), state.params["policy"], params)))


def test_an_answer_that_was_cut_off_is_wrong(monkeypatch):
  monkeypatch.setattr(oreal, "math_answer", lambda samples: np.ones(len(samples), np.float32))
  cut = [Sample(prompt="", completion=r"\boxed{4} and", reference="4", truncated=t)
         for t in (False, True)]
  assert oreal.ended_answer(cut).tolist() == [1, 0]
  assert oreal.ended_answer.check_references(["4"]) == [None]


def test_where_slips_are_and_how_well_they_are_found():
  # 4, 3, 0, 2 modulo 5: sums 2 (of 7), 2, 4. Right throughout; wrong from the second sum on; right
  # sums and a wrong answer.
  works = [
      Sample(prompt="4302=", completion=c, reference="4") for c in ("224#4", "213#3", "224#1", "")]
  np.testing.assert_array_equal(
      oreal.after_slip(works, 6, modulus=5), [[0] * 6, [0, 1, 1, 1, 1, 1], [0] * 6, [0] * 6])
  # Position alone would tell all of the first and the last column from the middle; in it .45 lies
  # below .5 and above .4.
  late = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1]], bool)
  scores, chosen = np.array([[.1, .45, .3], [.1, .4, .3], [.1, .5, 9.]]), np.ones((3, 3), bool)
  assert oreal.at_equal_positions(scores, late, chosen) == 0.5
  chosen[1, 1] = False
  assert oreal.at_equal_positions(scores, late, chosen) == 1


def test_numbers_of_the_claim_on_slips_by_hand(tmp_path):
  # Of two completions of three tokens; the first token of the second is not chosen.
  late = np.array([[False, True, True], [False, False, True]])
  chosen = np.array([[True, True, True], [False, True, True]])
  scores = np.array([[.1, .2, .9], [9., .3, .5]])
  Workdir(tmp_path).save_arrays(
      "after", {"shares/shares": scores, "shares/late": late, "shares/chosen": chosen})
  # Late .2 .9 .5 against .1 .3: five of six pairs. Places 1 2 2 against 0 1: five and a tie.
  assert oreal.localisation(tmp_path) == pytest.approx(5 / 6)
  assert oreal.position_alone(tmp_path) == pytest.approx(5.5 / 6)
  # In the second column alone both labels are chosen, and the late one scores lower.
  assert oreal.content_alone(tmp_path) == 0


@pytest.mark.slow  # A whole run with two models: 40 s.
def test_experiment_end_to_end_small(tmp_path):
  c = config_lib.load("experiments/oreal.py:full-tiny")
  train.train(c, tmp_path)
  steps = [x for x in metrics_lib.read_metrics(tmp_path)
           if x.get("stage") == "rl" and "token_reward/loss" in x]
  assert len(steps) == 3 and all(x["logprob_gap"] < 1e-4 for x in steps)
  assert 0 <= oreal.usable(tmp_path) <= 1
  found = measures.arrays(tmp_path, "after", "shares")
  assert {name: array.shape for name, array in found.items()} == dict.fromkeys(
      ("shares", "late", "chosen"), (8 * 8, oreal.MAX_TOKENS))
  assert ((found["shares"] >= 0) & (found["shares"] <= 1)).all()
  assert found["chosen"].any()
  # The model that is beside the policy is a trunk and a head; a completion's shares are those of
  # its logits.
  stages, _ = earlier.open_run(str(tmp_path))
  context, companion = stages.run, stages.finished("rl")["critic"]
  assert set(companion) == {"trunk", "head"}
  tokens = np.array([[3, 4, 5, 0]], np.int32)
  prompts = Inputs(np.array([[1, 2, 3]], np.int32), np.array([3], np.int32))
  lengths = np.array([4], np.int32)
  before = critic_lib.score(context.policy.config, stages.sections["rl"].credit.token_model, None,
                            companion, prompts, tokens, lengths, None)
  states = policy.completion_states(
      context.policy.config, companion["trunk"], prompts, tokens, lengths)
  np.testing.assert_allclose(
      before, heads.apply(heads.Head(), companion["head"], states)[..., 0], atol=1e-5)


@pytest.mark.parametrize("fields, message", [
    ({"credit.token_model": dict(outcome="anser")},
     r"credit.token_model.outcome \(a reward\) 'anser'. Did you mean 'answer'"),
    ({"credit.token_model": dict(outcome="answer", warmup_steps=3)},
     "credit.token_model.warmup_steps=3 of num_steps=3"),
    ({"credit.token_model": dict(outcome="answer"), "credit.returns": "to_go"},
     "set critic=None and returns='total'"),
    ({"objective.mean_over": "sequence"},
     "credit.normalise='per_sign' .* objective.mean_over='sequence' takes another mean: set"
     " objective.mean_over='token'"),
    ({"credit.negative_weight": -1.0}, "negative_weight must be at least 0")])
def test_stages_that_cannot_be(fields, message):
  c = config_lib.load("experiments/oreal.py:full-tiny")
  with c.unlocked():
    override(c.rl, fields)
    with pytest.raises(ValueError, match=message):
      config_lib.check(c)


def test_configs_of_all_arms_and_sizes():
  for name in (*oreal.ARMS, "full-7b"):
    config_lib.check(config_lib.load(f"experiments/oreal.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'whole'"):
    oreal.get_config("whole")
