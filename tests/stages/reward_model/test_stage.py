"""Reward models: where scores are read, by hand; every kind of label learns; bad rows are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.batches.responses import encode, Encoded, Layout, split_steps
from rl_reason.config import fields as fields_lib
from rl_reason.config.overrides import replaced
from rl_reason.models import heads, reward_model, transformer
from rl_reason.models.reward_model import RewardModel
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.stages.policy_gradient import critic
from rl_reason.stages.reward_model import batch as batch_lib
from rl_reason.stages.reward_model import config as stage
from rl_reason.stages.reward_model import stage as stage_lib
from rl_reason.types import Comparison, Step

HERE = __name__


def sevens(*, size, seed, kind="pairs"):
  """The more sevens the better.

  Pairs and attributes have texts of many lengths. The others have one, so that their batches have
  one shape, and the update is compiled once.
  """
  rng = np.random.RandomState(seed)
  rows = []
  for i in range(size):
    prompt = f"{i:03d}{seed}="
    lengths = rng.randint(2, 7, 8) if kind in ("pairs", "attributes") else np.full(8, 5)
    texts = ["".join(rng.choice(list("1237"), n)) for n in lengths]
    best, worst = max(texts, key=good), min(texts, key=good)
    if kind == "pairs" and good(best) > good(worst):
      rows.append(Comparison(prompt, (best, worst), (1.0, 0.0), id=str(i)))
    elif kind == "lists":
      few = sorted(dict.fromkeys(texts[:2 + i % 3]), key=good, reverse=True)
      if len({good(t) for t in few}) > 1:
        rows.append(Comparison(prompt, tuple(few), tuple(map(good, few)), id=str(i)))
    elif kind == "ratings":
      rows.append(Comparison(prompt, tuple(texts[:1]), (min(2.0, good(texts[0])),), id=str(i)))
    elif kind == "attributes":
      values = {"sevens": good(texts[0]), "length": len(texts[0]) if i % 2 else None}
      rows.append(Comparison(prompt, tuple(texts[:1]), attributes=(values,), id=str(i)))
    elif kind == "steps":
      steps = tuple(Step(t + ";", None if j == 3 else float("7" in t))
                    for j, t in enumerate(texts[:1 + i % 4 or 2]))
      rows.append(Comparison(prompt, ("".join(s.text for s in steps),), steps=(steps,), id=str(i)))
  return rows


def good(text):
  return float(text.count("7"))


@pytest.fixture(scope="module")
def context():
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.mesh.update(fsdp=1)
  return run.make_context(config_lib.check(c)[0])


def section(kind="pairs", **fields):
  given = dict(
      kind="reward_model", num_steps=100, batch_size=16, max_response_tokens=40,
      max_prompt_tokens=8,
      data=dict(source=f"{HERE}:sevens", args=dict(kind=kind), train=dict(size=300, seed=1),
                heldout=dict(size=48, seed=2)),
      learner=dict(microbatches=1, optimizer=dict(learning_rate=3e-3, warmup_steps=5)),
      **fields)
  return fields_lib.parse(stage.Config, given)


def trained(context, config, steps=None):
  """(evaluation before, after, metrics of the last step, the parameters)."""
  with context.partitioning.use():
    stage_lib.check(config, context, "rm")
    built = stage_lib.build(config, context, context.initial_params(), "rm")
    state = built.init()
    before = built.evaluate(state.params)[0]
    for i in range(steps or config.num_steps):
      state, result = built.step(state, next(built.data), i)
      metrics = result.metrics
    after, rows = built.evaluate(state.params)
  assert len(rows) == len(batch_lib.make_reader(config, context).task().heldout)
  return before, after, metrics, state.params


def test_pairs_are_learnt(context):
  before, after, metrics, params = trained(context, section())
  # A head of zeros: only ties.
  assert before["eval/accuracy"] == 0.5 and np.isclose(before["eval/loss"], np.log(2))
  assert after["eval/accuracy"] > 0.9 and after["eval/accuracy_low"] > 0.8
  assert after["eval/accuracy_of_length"] < 0.8 and 0.2 < after["eval/accuracy_of_random"] < 0.8
  mean, std = reward_model.mean_and_std(params["frozen"]["normaliser"])
  np.testing.assert_allclose(
      [mean[0], std[0]], [metrics["score/mean"], metrics["score/std"]], rtol=1e-5)
  assert std[0] > 0.3


def slow(*case):
  """A case that others come close to: each compiles an update and takes 10 s."""
  return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, fields, metric, target", [
    ("lists", dict(loss="listwise"), "accuracy", 0.85),
    slow("ratings", dict(loss="regression"), "error", 0.4),
    slow("ratings", dict(loss="ordinal", levels=3), "accuracy", 0.8),
    ("attributes",
     dict(loss="regression", labels="attributes", attributes=("sevens", "length")), "error", 0.8),
    ("steps", dict(loss="binary", labels="steps", read="steps", separator=";"), "accuracy", 0.9),
    slow("steps", dict(loss="step_ranking", read="steps", separator=";"), "accuracy", 0.85),
    slow("steps", dict(loss="binary", labels="steps", read="tokens"), "accuracy", 0.7),
    slow("pairs", dict(read="tokens", aggregate="mean"), "accuracy", 0.9),
], ids=lambda x: "" if isinstance(x, (str, float)) else "-".join(map(str, x.values())))
def test_every_kind_of_label_is_learnt(context, kind, fields, metric, target):
  before, after, _, _ = trained(context, section(kind, **fields))
  value = after[f"eval/{metric}"]
  better = value > target if metric == "accuracy" else value < target
  assert better and after["eval/loss"] < before["eval/loss"], (before, after)


def test_a_frozen_trunk_stays_and_microbatches_change_nothing(context):
  frozen = section(freeze_trunk=True)
  start = context.initial_params()
  _, _, _, params = trained(context, frozen, steps=3)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(params["frozen"]["trunk"]),
               jax.device_get(start))
  assert np.abs(params["head"]["output"]).max() > 0
  one, four = (trained(context, replaced(section(), {
      "learner.microbatches": n, "learner.optimizer.name": "sgd",
      "learner.optimizer.learning_rate": 1.0}), steps=2)[-1] for n in (1, 4))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, four)


def test_a_critic_may_start_from_it(context):
  for fields in (dict(head_hidden=8), dict(head_hidden=8, loss="ordinal", levels=3)):
    offered = stage_lib.trained(section(**fields), context, "rm")
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.sharding), tree)
    assert shapes(offered.critic(offered.shapes)) == shapes(
        critic.abstract_params(critic.Critic(hidden=8), context))


def test_a_score_is_read_at_the_last_real_token(tiny_config, draw_params):
  """By the model itself on each text alone.

  What stands in padding, and sharing rows, change nothing.
  """
  model = RewardModel(tiny_config, heads.Head(outputs=2))
  params = {"trunk": draw_params(tiny_config), "head": {
      "output": np.random.RandomState(1).standard_normal((tiny_config.width, 2)).astype(np.float32),
      "output_bias": np.array([0.5, -1.0], np.float32)}}
  rng = np.random.RandomState(0)
  ids = lambda n: rng.randint(0, tiny_config.vocab_size, n).tolist()
  rows = [Encoded(ids(5), [ids(3), ids(17)], [[2], [16]], [[0], [0]]),
          Encoded(ids(2), [ids(1), ids(6)], [[0], [5]], [[0], [0]])]

  alone = []
  for row in rows:
    for response in row.responses:
      text = np.array([row.prompt + response])
      hidden, _ = transformer.forward(
          tiny_config, params["trunk"], Inputs(text, np.array([text.shape[1]])))
      alone.append(hidden[0, -1] @ params["head"]["output"] + params["head"]["output_bias"])
  expected = np.array(alone).reshape(2, 2, 1, 2)

  layout = Layout(8, 32, bucket=8)
  packed, mask = layout.batch(rows)
  apart, _ = dataclasses.replace(layout, together=False).batch(rows)
  assert packed.segments is not None and apart.segments is None and mask.all()
  garbage = apart.replace(
      tokens=np.where(apart.owners == 0, 7, apart.tokens), prompts=apart.prompts.replace(
          tokens=np.where(np.arange(8) < apart.prompts.lengths[:, None], apart.prompts.tokens, 9)))
  for batch in (packed, apart, garbage):
    np.testing.assert_allclose(reward_model.scores(model, params, batch), expected, atol=1e-5)


def test_scores_of_places_become_one_by_hand():
  scores = jnp.array([[[1.0, -2.0, 3.0, 99.0], [5.0, 99.0, 99.0, 99.0]]])[..., None]
  mask = jnp.array([[[True, True, True, False], [True, False, False, False]]])
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  expected = {"last": [3.0, 5.0], "min": [-2.0, 5.0], "mean": [2 / 3, 5.0], "sum": [2.0, 5.0],
              "product": [np.log(sigmoid(1.0) * sigmoid(-2.0) * sigmoid(3.0)),
                          np.log(sigmoid(5.0))]}
  assert expected.keys() == reward_model.AGGREGATES.keys()
  for how, values in expected.items():
    np.testing.assert_allclose(
        reward_model.aggregate(scores, mask, how=how)[0, :, 0], values, rtol=1e-5)
    absent = jax.grad(lambda s: reward_model.aggregate(s, mask & False, how=how).sum())(scores)
    np.testing.assert_array_equal(absent, 0)


def test_the_normaliser_forgets_slowly_and_survives_nan():
  normaliser = {"sum": jnp.zeros(1), "squares": jnp.zeros(1), "weight": jnp.zeros(())}
  assert [float(x.sum()) for x in reward_model.mean_and_std(normaliser)] == [0, 1]
  mask = jnp.array([[[True], [True], [False]]])
  for _ in range(3):
    batch = reward_model.moments(jnp.array([1.0, 5.0, 99.0]).reshape(1, 3, 1, 1), mask)
    normaliser = reward_model.updated_normaliser(normaliser, batch)
  for bad in (reward_model.moments(jnp.full((1, 3, 1, 1), jnp.nan), mask),
              reward_model.moments(jnp.ones((1, 3, 1, 1)), mask & False)):
    normaliser = reward_model.updated_normaliser(normaliser, bad)
  np.testing.assert_allclose(
      jnp.stack(reward_model.mean_and_std(normaliser)), [[3.0], [2.0]], rtol=1e-4)


def test_text_is_read_where_it_should_be():
  tokenizer = CharacterTokenizer("ab;")
  assert encode(tokenizer, "a", ["ab", ""], read="end") == Encoded(
      [1], [[1, 2, 0], [0]], [[2], [0]], [[0], [0]])
  assert encode(tokenizer, "a", ["a;bb", ""], read="steps", separator=";") == Encoded(
      [1], [[1, 3, 2, 2], [0]], [[1, 3], [0]], [[0, 1], [0]])
  assert encode(tokenizer, "a", [["a;", "b"]], read="tokens").steps == [[0, 0, 1, 1]]
  assert split_steps(";;a;b;;c;", ";") == [";;a;", "b;;", "c;"]
  assert split_steps("", ";") == [""] and split_steps("ab", "") == ["ab"]


@pytest.mark.parametrize("fields, message", [
    (dict(loss="bradly_terry"), "Unknown loss 'bradly_terry'. Did you mean 'bradley_terry'"),
    (dict(loss_args=dict(smoothing=0.1)), "takes no argument 'smoothing'"),
    (dict(loss_args=dict(margin=1.0)), "loss_args holds margin"),
    (dict(loss="ordinal"), "levels=0 with the loss 'ordinal'"),
    (dict(labels="attributes", loss="regression"), r"labels='attributes' with attributes=\(\)"),
    (dict(loss="step_ranking"), "read='end' reads none of them"),
    (dict(read="step"), "Unknown read 'step'"),
    ({"batch_size": 16, "learner.microbatches": 3}, "microbatches=3 must divide batch_size=16"),
])
def test_fields_that_do_not_go_together_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    replaced(section(), fields) if "learner.microbatches" in fields else section(**fields)


def bad(*, row, size, seed):
  good_row = Comparison(f"{seed}=", ("77", "1"), (1.0, 0.0), id="good")
  rows = {"long": Comparison("3=", ("7" * 60, "1"), (1.0, 0.0), id="x"),
          "single": Comparison("3=", ("7",), (1.0,), id="x"),
          "prompt": Comparison("2+2+2+2+2=", ("7", "1"), (1.0, 0.0), id="x"),
          "unscored": Comparison("3=", ("7", "1"), id="x")}
  return [good_row, rows[row]] if seed == 1 else [good_row]


@pytest.mark.parametrize("row, message", [
    ("long",
     "Comparison 'x' cannot .* has a response of 61 tokens.*max_response_tokens is 40"
     ".*bad_rows='drop'"),
    ("prompt", "'x' cannot .* a prompt of 10 tokens, the limit max_prompt_tokens is 8"),
    ("single", "'x' cannot be learnt from: it has 1 responses"),
    ("unscored", r"scores \(\): a pair needs two"),
])
def test_bad_rows_are_named_or_left_out(context, row, message):
  config = section()
  data = dataclasses.replace(config.data, source=f"{HERE}:bad", args=dict(row=row))
  with pytest.raises(ValueError, match=message):
    stage_lib.check(dataclasses.replace(config, data=data), context, "rm")
  dropping = dataclasses.replace(config, data=data, bad_rows="drop")
  stage_lib.check(dropping, context, "rm")
  assert [r.id for r in batch_lib.make_reader(dropping, context).task().train] == ["good"]


def test_text_beyond_the_context_is_refused(context):
  message = "max_response_tokens=2000 are more than the model's context of 1024"
  with pytest.raises(ValueError, match=message):
    stage_lib.check(dataclasses.replace(section(), max_response_tokens=2000), context, "rm")
