"""MetaRM: where the gradient is taken, whose responses move it there, and the experiment on it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.claims import measures
from rl_reason.experiments import meta_rm
from rl_reason.learner import optimizers
from rl_reason.learner import step as learner
from rl_reason.objectives import losses, preferences
from rl_reason.rollout import sampler
from rl_reason.rollout.generate import Completions
from rl_reason.run import config as config_lib
from rl_reason.stages.reward_model import batch as batch_lib
from rl_reason.stages.reward_model import meta, stage
from rl_reason.tasks.worlds import attributes
from rl_reason.train import train
from tests.stages.reward_model.test_stage import context, section

META = dict(policy="initial", sampling=dict(max_tokens=6), prompts=2, responses=3, step_size=0.1)


def test_spread_and_its_gradient_by_hand():
  scores = jnp.array([[0.0, np.log(3), 0.0]])[..., None]  # Gaps ln 3, 0, ln 3: σ is 3/4, 1/2, 3/4.
  value, gradient = jax.value_and_grad(lambda s: preferences.spread(s).sum())(scores)
  np.testing.assert_allclose(value, 2 / 9 * 2.0, rtol=1e-6)
  # σ'(ln 3) = 3/16 in each of two pairs; the equal two do not pull at each other.
  np.testing.assert_allclose(
      gradient[0, :, 0], [-2 / 9 * 3 / 16, 2 / 9 * 6 / 16, -2 / 9 * 3 / 16], rtol=1e-5)
  # Its least value ...
  np.testing.assert_allclose(preferences.spread(jnp.zeros((2, 4, 1))), [3 / 8] * 2, rtol=1e-6)
  # ... and its greatest.
  np.testing.assert_allclose(preferences.spread(jnp.array([[[0.0], [99.0]]])), [1 / 2], rtol=1e-6)


@pytest.mark.parametrize("max_norm, step", [(9.0, 0.4 * 3 / 16), (0.05, 0.4 * 0.05)])
def test_the_gradient_is_taken_after_the_step_and_applied_before_it(max_norm, step):
  # Two scores 0 and 2w, at 2w = ln 3: J = 2/4 σ(2w) is 3/8, and its slope 2/4 · 2 · 3/16.
  section = meta.Meta(**{**META, "sampling": None, "step_size": 0.4, "max_norm": max_norm})

  def scores(params):
    return 2 * params["w"] * jnp.array([0.0, 1.0])[None, :, None] * jnp.ones(2)

  def loss_fn(params, batch):  # Gradient 2 (w − 1).
    return jnp.square(params["w"] - batch[0]), losses.LossStatistics(
        sums={}, token_sums={}, num_tokens=jnp.float32(1), maxima={})
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(0.5, name="sgd", max_grad_norm=0), 1)
  w = np.log(3) / 2
  state, metrics = learner.train_step(
      learner.init_state({"w": jnp.float32(w)}, optimizer), jnp.ones((1, 1)), loss_fn=loss_fn,
      optimizer=optimizer, lookahead=lambda *params: meta.ascend(section, scores, *params))
  np.testing.assert_allclose(metrics["meta/grad_norm"], 3 / 16, rtol=1e-5)
  np.testing.assert_allclose(metrics["meta/spread"], 3 / 8, rtol=1e-5)
  np.testing.assert_allclose(state.params["w"], w - 0.5 * 2 * (w + step - 1), rtol=1e-5)


def known(context):
  earlier = types.SimpleNamespace(
      policies=lambda: ["initial"], policy=lambda name, field: context.initial_params())
  return dataclasses.replace(context, earlier=earlier)


def steps(context, config, indices, state=None, rows=None):
  """(state, metrics of each step)."""
  with context.partitioning.use():
    stage.check(config, context, "rm")
    built = stage.build(config, context, context.initial_params(), "rm")
    state, told = jax.tree.map(jnp.copy, state) if state is not None else built.init(), []
    for i in indices:
      state, result = built.step(state, rows[i], i)
      metrics = result.metrics
      told.append(metrics)
  return state, told


@pytest.fixture(scope="module")
def rows(context):
  source = batch_lib.make_reader(section(), context).task().train
  return [[source[16 * i + j] for j in range(16)] for i in range(3)]


def test_a_stage_with_steps_of_nothing_is_the_plain_one_and_goes_on_where_it_was(context, rows):
  context = known(context)
  plain, _ = steps(context, section(), range(3), rows=rows)
  nothing, told = steps(context, section(meta=dict(META, step_size=0.0)), range(3), rows=rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
               plain.params, nothing.params)
  # The head begins at zero: all scores are equal at first, and later they are not.
  np.testing.assert_allclose(told[0]["meta/spread"], (3 - 1) / 2 / 3, rtol=1e-6)
  assert told[0]["meta/grad_norm"] == 0 < told[2]["meta/grad_norm"]
  moved, _ = steps(context, section(meta=META), range(3), rows=rows)
  assert not np.array_equal(moved.params["head"]["output"], plain.params["head"]["output"])
  before, _ = steps(context, section(meta=META), range(2), rows=rows)
  after, _ = steps(context, section(meta=META), [2], before, rows)
  jax.tree.map(np.testing.assert_array_equal, after.params, moved.params)


def test_responses_end_once_and_are_of_their_update(context, rows, monkeypatch):
  eos = context.policy.tokenizer.eos_id
  drawn = []
  def generate(config, params, prompts, sampling, *, group_size, rng, **others):
    drawn.append((group_size, jax.random.key_data(rng).tolist(), prompts.tokens.shape[0]))
    tokens = np.array(
        [[3, 4, 5], [6, eos, 9], [eos, 9, 9], [7, 8, 9], [1, 2, eos], [5, eos, 0]], np.int32)
    lengths = np.array([3, 2, 1, 3, 3, 2], np.int32)  # Beyond them anything.
    zeros = np.zeros(tokens.shape, np.float32)
    return Completions(tokens, lengths, lengths == 3, zeros, zeros)
  monkeypatch.setattr(sampler, "generate", generate)
  config = section(meta=META)
  sample = meta.Responses(
      config.meta, known(context), "rm", batch_lib.make_reader(config, context).layout)
  batch = sample(rows[0], 0)
  wanted = [[3, 4, 5, eos], [6, eos], [eos], [7, 8, 9, eos], [1, 2, eos], [5, eos]]
  flat, per_prompt = np.asarray(batch.tokens).reshape(2, -1), np.asarray(batch.places)
  assert per_prompt.shape == (2, 3, 1)
  for i, ids in enumerate(wanted):
    end = per_prompt[i // 3, i % 3, 0]
    assert flat[i // 3, end + 1 - len(ids):end + 1].tolist() == ids
  np.testing.assert_array_equal(
      batch.prompts.tokens[0][:5], context.policy.tokenizer.encode_prompt(rows[0][0].prompt))
  sample(rows[0], 0), sample(rows[0], 1)
  assert drawn[0] == drawn[1] != drawn[2] and drawn[0][::2] == (3, 2)


@pytest.mark.parametrize("change, message", [
    (dict(meta=dict(META, policy="rl")), "Unknown meta.policy .*'rl'.* Known: initial"),
    (dict(meta=dict(META, responses=1)), "meta.responses .* must be at least 2, got 1"),
    (dict(meta=dict(META, prompts=17)), "meta.prompts=17 of batch_size=16"),
    (dict(meta=dict(META, sampling=dict(max_tokens=40))),
     "meta.sampling.max_tokens=40 and an end are more than"),
    (dict(meta=META, read="tokens"), "read='tokens'"),
    (dict(meta=dict(META, step_size=-0.1)), "meta.step_size must be at least 0, got -0.1"),
])
def test_what_cannot_be_sampled_is_refused(context, change, message):
  with pytest.raises(ValueError, match=message):
    stage.check(section(**change), context, "rm")


def test_memory_counts_the_policy_that_answers(context):
  def parts(**change):
    return {part.name for part in stage.memory(section(**change), context, "rm")}
  assert "policy that answers" in parts(meta=META) - parts()


def test_responses_of_a_world_and_their_prompts():
  train, heldout = (
      attributes.attribute_responses(size=50, world=3, part=part) for part in ("train", "heldout"))
  assert not {p.prompt for p in map(train.row, range(50))} & {
      p.prompt for p in map(heldout.row, range(50))}
  one = train[7]
  assert len(one.solution) == 16
  assert set(one.solution) <= set(attributes.LETTERS)
  assert one.metadata == {"world": 3}
  plain, told = (attributes.attribute_pairs(size=9, world=3, contexts=c) for c in (False, True))
  assert {row.prompt for row in map(plain.row, range(9))} == {"="}
  assert all(len(told[i].prompt) == 2 for i in range(9))
  # The letter before says nothing: the pairs are the same.
  assert [plain[i].responses for i in range(9)] == [told[i].responses for i in range(9)]


def test_the_experiment_runs_and_judges_the_policy_s_responses(tmp_path):
  c = config_lib.load("experiments/meta_rm.py:meta-tiny")
  with c.unlocked():
    c.seed, c.mesh.fsdp = 2, 1
  assert c.again.data.args.world == c.rm.data.args.world == c.task.args.world == 2
  train(c, tmp_path, plain=True)
  found = measures.arrays(tmp_path, "after", "pairs_of_rl")
  utilities, scores = found["utilities"], found["scores"]
  assert utilities.shape == scores.shape == (20, 2) and np.isfinite(scores).all()
  gaps = np.sign(utilities[:, 0] - utilities[:, 1])
  assert meta_rm.accuracy(tmp_path, of="rl") == pytest.approx(
      np.mean([g == np.sign(a - b) for g, (a, b) in zip(gaps, scores) if g]))


def test_arms_differ_in_meta_alone_and_the_full_config_is_sound():
  vanilla, with_meta = (
      config_lib.load(f"experiments/meta_rm.py:{arm}").to_dict() for arm in meta_rm.ARMS)
  assert vanilla["again"].pop("meta") is None
  assert with_meta["again"].pop("meta")["policy"] == "rl"
  assert vanilla == with_meta
  config, sections = config_lib.check(config_lib.load("experiments/meta_rm.py:full"))
  assert config.stages[-1] == "rl_again" and sections["again"].meta.policy == "rl"
