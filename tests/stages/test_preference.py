"""Preference stages: every loss moves the policy to the better side.

The reference is computed once, and resumes.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.batches.prompts import pad_rows
from rl_reason.batches.responses import encode, Layout
from rl_reason.config import fields as config_lib
from rl_reason.config.overrides import replaced
from rl_reason.models import lora, policy
from rl_reason.stages import preference
from rl_reason.types import Comparison
from tests.stages.reward_model.test_stage import context, sevens

HERE = __name__


def unpaired(*, size, seed):
  """Half pairs, half single responses."""
  rows = sevens(size=size, seed=seed)
  return [
      row if i % 2 else dataclasses.replace(
          row, responses=row.responses[i % 4 // 2:][:1], scores=(1.0 - i % 4 // 2,))
      for i, row in enumerate(rows)]


def section(source="tests.stages.reward_model.test_stage:sevens", lora=None, **fields):
  given = dict(
      kind="preference", num_steps=40, batch_size=16, max_response_tokens=10, max_prompt_tokens=8,
      data=dict(
          source=source, args={}, train=dict(size=100, seed=1), heldout=dict(size=32, seed=2)),
      learner=dict(
          microbatches=1, lora=lora or {}, optimizer=dict(learning_rate=3e-3, warmup_steps=5)),
      **fields)
  return config_lib.parse(preference.Config, given)


def build(context, config):
  preference.check(config, context, "dpo")
  return preference.build(config, context, context.initial_params(), "dpo")


def trained(context, config, steps=None):
  with context.partitioning.use():
    built = build(context, config)
    state = built.init()
    before, history = measured(built.evaluate(state.params)), []
    for i in range(steps or config.num_steps):
      state, result = built.step(state, next(built.data), i)
      metrics = result.metrics
      history.append(metrics)
    return before, measured(built.evaluate(state.params)), history, jax.device_get(state.params)


def measured(evaluation):
  """The metrics, and by how much likelier the first response is than the second, in nats."""
  metrics, rows = evaluation
  pairs = [[r["logprob"] for r in row["responses"]] for row in rows if len(row["responses"]) == 2]
  return {**metrics, "gap": np.mean([first - second for first, second in pairs])}


@pytest.mark.parametrize("loss, args", [
    ("dpo", dict(beta=0.5)),
    ("dpo", dict(beta=0.5, label_smoothing=0.1)),
    ("ipo", dict(beta=0.5)),
    ("orpo", dict(beta=0.5)),
    ("simpo", {}),
    ("kto", dict(beta=0.5)),
], ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())))
def test_every_loss_prefers_the_better_side(context, loss, args):
  before, after, history, _ = trained(context, section(loss=loss, loss_args=args))
  assert after["eval/accuracy"] > 0.85 and after["eval/loss"] < before["eval/loss"], (before, after)
  assert after["gap"] > before["gap"] + 1, (before, after)
  if loss in ("dpo", "ipo", "kto"):  # The policy is the reference: all implicit rewards are 0.
    rewards = [
        history[0][k] for k in ("chosen_reward", "rejected_reward", "reward") if k in history[0]]
    np.testing.assert_allclose(rewards, 0, atol=1e-5)
  if loss == "dpo" and "label_smoothing" not in args:
    assert np.isclose(history[0]["loss"], np.log(2), atol=1e-5)
    assert history[-1]["margin"] > 1
    assert history[-1]["chosen_reward"] > history[-1]["rejected_reward"]


def test_kto_learns_from_single_responses(context):
  config = section(f"{HERE}:unpaired", loss="kto", loss_args=dict(beta=0.5))
  before, after, history, _ = trained(context, config)
  assert after["eval/accuracy"] > 0.7 and all(h["reference_point"] >= 0 for h in history)
  with pytest.raises(ValueError, match="it has 1 responses .* the loss 'dpo' needs a pair"):
    preference.check(dataclasses.replace(config, loss="dpo", loss_args={}), context, "dpo")


def test_log_probabilities_are_those_of_each_response_alone(context, draw_params):
  model, tokenizer = context.policy.config, context.policy.tokenizer
  params = draw_params(model)
  texts = [("12=", ["7", "123123"]), ("7+7=", ["", "77"])]
  batch, _ = Layout(8, 16, bucket=8).batch([encode(tokenizer, p, r, read="end") for p, r in texts])
  assert batch.segments is not None
  sums = policy.response_logprobs(model, params, batch).sum(-1)
  for i, (prompt, responses) in enumerate(texts):
    for g, text in enumerate(responses):
      ids = [*tokenizer.encode(text), tokenizer.eos_id]
      prompts = Inputs(
          pad_rows([tokenizer.encode_prompt(prompt)], 8), np.array([len(prompt)], np.int32))
      alone, _ = policy.completion_logprobs(
          model, params, prompts, np.array([ids]), np.array([len(ids)]))
      np.testing.assert_allclose(sums[i, g], alone.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "fields", [dict(), dict(loss="kto", lora=dict(rank=2))], ids=["dpo", "kto-lora"])
def test_a_stopped_stage_goes_on_to_the_same_bits(context, fields):
  config = section(loss_args=dict(beta=0.5), **fields)
  # More than two epochs of 100 pairs, some computed by then.
  config = dataclasses.replace(config, num_steps=14)
  _, _, history, whole = trained(context, config)
  with context.partitioning.use():
    first = build(context, config)
    state = first.init()
    for i in range(7):
      state, _ = first.step(state, next(first.data), i)
    second = build(context, config)
    second.data.set_state(first.data.get_state())
    second.resumable["reference"].restore(first.resumable["reference"].state())
    for i in range(7, 14):
      state, result = second.step(state, next(second.data), i)
      metrics = result.metrics
      assert metrics == history[i]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), whole)
  if "lora" in fields:  # Adapters learnt, the policy stayed: it is the reference.
    start = context.initial_params()
    jax.tree.map(
        np.testing.assert_array_equal, {k: v for k, v in whole.items() if "lora" not in k},
        jax.device_get(start))
    assert all(np.abs(x["b"]).max() > 0 for x in whole["lora"].values())
    assert history[-1]["reference_point"] > 0
  with pytest.raises(ValueError, match="log-probabilities of 1 comparisons, and the data now has"):
    preference.ReferenceSums(3).restore(preference.ReferenceSums(1).state())


def test_the_reference_is_asked_once_for_each_row():
  known, calls = preference.ReferenceSums(3), []

  def compute():
    calls.append(None)
    return np.full((2, 2), float(len(calls)), np.float32)
  assert known.get([0, 1], compute)[0, 0] == 1 and known.get([1, 0], compute)[0, 0] == 1
  np.testing.assert_array_equal(known.get([1, 2], compute), [[1, 1], [2, 2]])
  assert len(calls) == 2
  resumed = preference.ReferenceSums(3)
  resumed.restore(known.state())
  np.testing.assert_array_equal(resumed.get([0, 1, 2], compute), [[1, 1], [1, 1], [2, 2]])
  assert len(calls) == 2


def test_microbatches_change_nothing(context):
  config = section(loss="kto", loss_args=dict(beta=0.5))
  config = replaced(
      config, {"learner.optimizer.name": "sgd", "learner.optimizer.learning_rate": 0.3})
  one, four = (
      trained(context, replaced(config, {"learner.microbatches": n}), steps=2)[-1] for n in (1, 4))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, four)


def ties(*, size, seed):
  return [Comparison(f"{seed}=", ("7", "1"), (1.0, 1.0), id="tie"),
          Comparison(f"{seed}+=", ("7", "1"), (1.0, 0.0), id="good")]


@pytest.mark.parametrize("fields, message", [
    (dict(loss="dp"), "Unknown loss 'dp'. Did you mean 'dpo'"),
    (dict(loss_args=dict(bta=1.0)), "no argument 'bta'"),
    ({"loss": "kto", "batch_size": 1, "learner.microbatches": 0},
     "batch_size must be at least 2 for 'kto'"),
])
def test_fields_that_do_not_go_together_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    replaced(section(), fields)


def test_ties_are_named_or_left_out(context):
  with pytest.raises(
      ValueError, match="Comparison 'tie' cannot .* with probability 0.5: a tie prefers nothing"):
    preference.check(section(f"{HERE}:ties"), context, "dpo")
  config = section(f"{HERE}:ties", bad_rows="drop")
  assert [row.id for row in preference.make_reader(config, context).task().train] == ["good"]


@pytest.mark.parametrize("rank", [0, 2])
def test_the_implicit_reward_scores_text(rank, context):
  """beta (log π − log π_ref) by the log-probabilities themselves.

  Steps' shares add up to the whole but its EOS.
  """
  config = section(loss_args=dict(beta=0.5), lora=dict(rank=rank))
  with context.partitioning.use():
    start = context.initial_params()
  _, _, _, params = trained(context, config, steps=5)
  known = dataclasses.replace(context, earlier=types.SimpleNamespace(
      finished=lambda name: params, policy=lambda name, field: start))
  scorer = preference.make_scorer(config, known, "dpo")
  rows = [scorer.encode("12=", ["77", "1"])]
  scored, = scorer(rows)
  batch, _ = scorer.layout.batch(rows)
  ours, theirs = (policy.response_logprobs(context.policy.config, p, batch).sum(-1)
                  for p in (lora.merge(params), start))
  assert np.abs(ours - theirs).max() > 1e-3
  np.testing.assert_allclose(scored.totals[:, 0], 0.5 * (ours - theirs)[0], rtol=1e-4, atol=1e-6)
  per_token, = scorer([scorer.encode("12=", ["77", "1"], "tokens")])
  np.testing.assert_allclose(per_token.places[0][-1], scored.totals[0], rtol=1e-4, atol=1e-6)
  assert per_token.places[0].shape == (3, 1)
  with pytest.raises(ValueError, match="no reference policy: it has no implicit reward"):
    preference.make_scorer(section(loss="orpo"), known, "dpo")
