"""The critic: values and advantages by hand, what it learns, and where it starts.

It shards like the policy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs, length_mask
from rl_reason.config.overrides import replaced
from rl_reason.learner.optimizers import Optimizer
from rl_reason.learner.step import Update
from rl_reason.models import heads, transformer
from rl_reason.rollout import sampler
from rl_reason.run import config as run_config
from rl_reason.run import earlier
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import stage as policy_gradient
from rl_reason.stages.policy_gradient.critic import Critic
from rl_reason.stages.reward_model import config as reward_model
from rl_reason.tasks import registry as config_lib
from tests.stages.policy_gradient.test_stage import (
  assembler_of,
  completions,
  LENGTHS,
  make_context,
  one,
  rollout_of,
  T,
)

MASK = np.asarray(length_mask(LENGTHS, T))


def with_critic(config, *, importance_cap=0.0, **fields):
  return replaced(config, {
      "credit.baseline": "none", "credit.normalise": "none", "credit.critic": Critic(**fields),
      "objective.importance_cap": importance_cap})


def constant(samples):
  return [0.7] * len(samples)


def uneven(samples):
  return [len(s.completion_tokens) % 5 for s in samples]


def with_head(context, config, params, **head):
  """A stage's parameters; the head is given, and a trunk of its own is not the policy's."""
  critic = critic_lib.init_params(
      config.credit.critic, context, jax.tree.map(lambda x: 0.9 * x, params), "rl")
  return {"policy": params, "critic": {**critic, "head": {**critic["head"], **head}}}


def test_advantages_with_a_constant_value_by_hand(one, completions):
  # V = 0.5 and λ = 0.5: δ is r − 0.5 at the last token and 0 before, so A halves with each token
  # backwards; R = A + V.
  context, config, params, _ = one
  config, scores = with_critic(config, lam=0.5), (LENGTHS % 5).astype(np.float32)
  with context.partitioning.use():
    params = with_head(context, config, params, output_bias=jnp.array([0.5]))
    batch, metrics = assembler_of(config, context)(
        rollout_of(one, completions, scores), params, None)
  expected = np.where(
      MASK, (scores - 0.5)[:, None] * 0.5 ** (LENGTHS[:, None] - 1.0 - np.arange(T)), 0)
  np.testing.assert_allclose(batch.advantages, expected, atol=1e-6)
  np.testing.assert_allclose(batch.returns, np.where(MASK, expected + 0.5, 0), atol=1e-6)
  np.testing.assert_allclose(batch.behaviour_values, np.where(MASK, 0.5, 0), atol=1e-6)
  assert metrics["value/mean"] == pytest.approx(0.5)
  assert metrics["value/explained_variance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("gap, cap", [(0.0, 1.0), (0.5, 1.0), (0.5, 4.0)])
def test_vtrace_by_hand(gap, cap, one, completions):
  # V = 0.5, λ = 0.5, the sampler a constant `gap` below the policy: all ratios e^gap, w = min(cap,
  # e^gap). Last token: v − V = w (r − 0.5), A = w (r − 0.5). Before it δ = 0: v − V = w / 2 times
  # the next one's, A = w times half of the next one's v − V. On policy that is GAE.
  context, config, params, _ = one
  config = with_critic(config, lam=0.5, vtrace=True, importance_cap=cap)
  scores = (LENGTHS % 5).astype(np.float32)
  sampled = completions.replace(behaviour_logprobs=completions.logprobs - np.float32(gap))
  with context.partitioning.use():
    params = with_head(context, config, params, output_bias=jnp.array([0.5]))
    batch, metrics = assembler_of(config, context)(rollout_of(one, sampled, scores), params, None)
  w, left = min(cap, np.exp(gap)), LENGTHS[:, None] - 1.0 - np.arange(T)
  errors = w * (scores - 0.5)[:, None] * (w / 2) ** left
  np.testing.assert_allclose(batch.returns, np.where(MASK, errors + 0.5, 0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(batch.advantages, np.where(MASK, errors, 0), rtol=1e-4, atol=1e-5)
  # The loss's ratio starts at 1.
  np.testing.assert_allclose(batch.behaviour_logprobs, completions.logprobs, atol=1e-5)
  assert metrics["importance/weight"] == pytest.approx(w, rel=1e-4)


@pytest.mark.parametrize("trunk", critic_lib.TRUNKS)
def test_values_are_of_the_state_before_each_token(trunk, one, completions):
  context, config, params, _ = one
  config, model = with_critic(config, trunk=trunk, bootstrap_truncated=True), context.policy.config
  rollout = rollout_of(one, completions)
  with context.partitioning.use():
    params = with_head(
        context, config, params, output=jax.random.normal(jax.random.key(0), (model.width, 1)))
    values, after = assembler_of(config, context)._values(
        rollout, *critic_lib.split(config.credit.critic, params))

    @jax.jit
    def naive(trunk, tokens, length):  # One sequence, without a group.
      hidden, _ = transformer.forward(model, trunk, Inputs(tokens[None], length[None]))
      return heads.apply(heads.Head(), params["critic"]["head"], hidden[0])[:, 0]
    states = params["policy"] if trunk == "shared" else params["critic"]["trunk"]
    for b in (0, 3, 4, 6, 12):
      p, n = b // 4, rollout.prompts.lengths[b // 4]
      row = np.zeros(8 + T, np.int32)
      row[:n] = rollout.prompts.tokens[p, :n]
      row[n:n + LENGTHS[b]] = completions.tokens[b, :LENGTHS[b]]
      expected = np.asarray(naive(states, row, n + LENGTHS[b]))
      np.testing.assert_allclose(
          values[b, :LENGTHS[b]], expected[n - 1:n - 1 + LENGTHS[b]], atol=1e-5, err_msg=str(b))
      assert (values[b, LENGTHS[b]:] == 0).all() and np.abs(values[b, :LENGTHS[b]]).min() > 1e-4
      if b == 4:  # The only one that was cut.
        np.testing.assert_allclose(after[b], expected[n - 1 + LENGTHS[b]], atol=1e-5)
  assert after[4] != 0 and np.count_nonzero(after) == 1


def test_a_truncated_completion_ends_or_goes_on(one, completions):
  # V = 0.5, no reward, λ = 0: only the last token's advantage is not 0: −0.5, or γ 0.5 − 0.5 where
  # V goes on.
  context, config, params, _ = one
  for bootstrap, expected in ((False, -0.5), (True, 0.8 * 0.5 - 0.5)):
    changed = replaced(
        with_critic(config, lam=0.0, bootstrap_truncated=bootstrap), {"credit.discount": 0.8})
    with context.partitioning.use():
      stage_params = with_head(context, changed, params, output_bias=jnp.array([0.5]))
      batch, _ = assembler_of(changed, context)(rollout_of(one, completions), stage_params, None)
    np.testing.assert_allclose(batch.advantages[4, -1], expected, atol=1e-6)
    np.testing.assert_allclose(batch.advantages[0, 19], -0.5, atol=1e-6)
    np.testing.assert_allclose(batch.advantages[0, :19], 0.8 * 0.5 - 0.5, atol=1e-6)


@pytest.mark.parametrize("trunk", critic_lib.TRUNKS)
def test_a_critic_learns_a_constant_reward_while_the_policy_waits(
    trunk, one, completions, monkeypatch):
  context, config, params, problems = one
  config = dataclasses.replace(
      config, num_steps=45, rewards={"constant": {"function": f"{__name__}:constant"}})
  config = with_critic(
      config, trunk=trunk, lam=1.0, value_clip=0.0, warmup_steps=40, optimizer=Optimizer(
          learning_rate=0.02, name="sgd", max_grad_norm=0.0))
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  history = []
  with context.partitioning.use():
    stage = policy_gradient.build(config, context, params, "rl")
    state = stage.init()
    for i in range(42):
      if i == 40:
        jax.tree.map(np.testing.assert_array_equal, state.params["policy"], params)
      state, result = stage.step(state, problems, i)
      assert result.skipped == 0
      history.append(result.metrics)
    stage.close()
  assert history[0]["value/mean"] == 0 and history[0]["value/loss"] == pytest.approx(0.7**2 / 2)
  assert history[-1]["value/mean"] == pytest.approx(0.7, abs=0.05)
  assert history[-1]["value/loss"] < 0.01
  assert any(
      jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), state.params["policy"], params)))
  assert all(m["logprob_gap"] < 1e-5 for m in history[:41])


@pytest.mark.parametrize(
    "trunk", ["shared", pytest.param("separate", marks=pytest.mark.slow)])
def test_eight_devices_and_one_train_a_critic_alike(trunk, one, completions, monkeypatch):
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  def trained(context, config, params):
    optimizer = dataclasses.replace(config.learner.optimizer, learning_rate=0.3)
    config = replaced(with_critic(config, trunk=trunk, hidden=8, optimizer=optimizer), {
        "learner.minibatches": 2, "rewards": {"uneven": {"function": f"{__name__}:uneven"}}})
    with context.partitioning.use():
      stage = policy_gradient.build(config, context, params, "rl")
      state, metrics = stage.init(), None
      for i in range(2):  # The head starts at 0: what is below it learns from the second update on.
        state, result = stage.step(state, one[3], i)
        metrics = result.metrics
      stage.close()
      return jax.device_get(state.params), metrics, state
  context, config = make_context(data=2, fsdp=2, tensor=2)
  with context.partitioning.use():
    params = context.initial_params()
  split_params, split_metrics, state = trained(context, config, params)
  whole_params, whole_metrics, _ = trained(*one[:3])
  assert any(not x.is_fully_replicated for x in jax.tree.leaves(state.params["critic"]))
  assert np.abs(whole_params["critic"]["head"]["hidden"] - np.asarray(heads.init_params(
      heads.Head(hidden=8), context.policy.config.width,
      one[0].rng("rl", "critic"))["hidden"])).max() > 1e-4
  if trunk == "separate":  # Its layers learn too.
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(),
                         whole_params["critic"]["trunk"]["layers"], one[2]["layers"])
    assert min(jax.tree.leaves(moved)) > 1e-6
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), split_params, whole_params)
  for key in ("loss", "policy_loss", "value/loss", "value/mean", "value/explained_variance",
              "grad_norm"):
    np.testing.assert_allclose(
        split_metrics[key], whole_metrics[key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_policy_and_critic_are_clipped_and_scheduled_apart():
  sgd = Optimizer(learning_rate=1.0, name="sgd", max_grad_norm=1.0)
  optimizer = critic_lib.make_optimizer(
      Critic(warmup_steps=1, optimizer=dataclasses.replace(sgd, learning_rate=0.1)), sgd,
      num_steps=3, updates_per_step=2)
  params = {"policy": {"w": jnp.zeros(2)}, "critic": {"w": jnp.zeros(1)}}
  grads = {"policy": {"w": jnp.array([3.0, 4.0])}, "critic": {"w": jnp.array([50.0])}}
  state, moved = optimizer.init(params), []
  for _ in range(4):
    updates, state = optimizer.update(grads, state, params)
    np.testing.assert_allclose(updates["critic"]["w"], [-0.1], rtol=1e-6)
    moved.append(updates["policy"]["w"])
  # Two updates a step: the policy waits for one step, then goes its clipped way.
  np.testing.assert_allclose(moved, [[0, 0], [0, 0], [-0.6, -0.8], [-0.6, -0.8]], rtol=1e-6)


def test_explained_variance_by_hand():
  # Var(R) = (1 + 4 + 16)/3 − (7/3)² = 14/9; R − V = 0, 0, 1 varies by 2/9: 1 − 1/7. The masked
  # column does not count.
  values, returns = np.array([[1.0, 2.0, 3.0, 50.0]]), np.array([[1.0, 2.0, 4.0, -9.0]])
  metrics = critic_lib.metrics(values, returns, np.array([[True, True, True, False]]))
  assert metrics == pytest.approx({"value/mean": 2.0, "value/explained_variance": 6 / 7})
  assert critic_lib.metrics(
      values, np.ones((1, 4)), np.ones((1, 4), bool))["value/explained_variance"] == 0


def context_of(context, sections, **finished):
  """The context of the last stage of a run whose earlier ones left this."""
  return Run(None, sections, finished, context).context("rl")


@dataclasses.dataclass(frozen=True)
class Run(earlier.Stages):
  """Stages whose folder is a mapping from names to what they left."""

  def finished(self, name):
    return self.folder[name]


@pytest.fixture
def pipeline(one):
  """(context of a run of two stages with critics, both sections).

  The second critic's fields are given.
  """
  def of(**fields):
    context, config, params, _ = one
    sections = {"first": with_critic(config, hidden=8), "rl": with_critic(config, **fields)}
    with context.partitioning.use():
      finished = with_head(context, sections["first"], params, output_bias=jnp.array([0.25]))
    return context_of(context, sections, first=finished), sections, finished
  return of


def test_a_critic_starts_from_an_earlier_one(pipeline, one):
  context, sections, finished = pipeline(start="first", hidden=8)
  policy_gradient.check(sections["rl"], context, "rl")
  start = critic_lib.init_params(sections["rl"].credit.critic, context, one[2], "rl")
  jax.tree.map(np.testing.assert_array_equal, start, finished["critic"])


def test_a_critic_starts_from_a_reward_model_of_its_shape(pipeline):
  context, sections, _ = pipeline(start="judge", hidden=8)
  judge = reward_model.Config(
      kind="reward_model", num_steps=1, batch_size=2, max_response_tokens=8, head_hidden=8,
      data=config_lib.TaskSection("preferences", {}, {}, {}),
      learner=Update(Optimizer(learning_rate=0.1)))
  sections = {"judge": judge, "rl": sections["rl"]}
  policy_gradient.check(sections["rl"], context_of(context, sections), "rl")
  wider = {"judge": dataclasses.replace(judge, head_hidden=16), "rl": sections["rl"]}
  with pytest.raises(ValueError, match=r"'judge': \['head'\]\['hidden'\] is \(32, 16\) there and"
                     r" \(32, 8\) in the critic"):
    policy_gradient.check(sections["rl"], context_of(context, wider), "rl")


@pytest.mark.parametrize("fields, message", [
    (dict(start="rl", hidden=8), "Unknown start .*'rl'.* Known: first"),
    (dict(start="frist", hidden=8), "'frist'. Did you mean 'first'?"),
    (dict(start="first"),
     "cannot start from stage 'first': .*head.*hidden.* is .* there and None in the critic"),
])
def test_a_critic_that_cannot_start_so_is_refused(fields, message, pipeline):
  context, sections, _ = pipeline(**fields)
  with pytest.raises(ValueError, match=message):
    policy_gradient.check(sections["rl"], context, "rl")


@pytest.mark.parametrize("fields, message", [
    (dict(trunk="seperate"), "Unknown trunk 'seperate'. Did you mean 'separate'?"),
    (dict(lam=1.5), r"lam must be in \[0, 1\], got 1.5"),
    (dict(value_clip=-0.1), "value_clip must be at least 0, got -0.1"),
    (dict(trunk="shared", start="first"),
     "start='first' brings a trunk, and trunk='shared' uses the policy's"),
])
def test_fields_out_of_range_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    Critic(**fields)


def test_a_critics_fields_can_be_set_from_the_command_line():
  c = run_config.load("experiments/algorithms.py:ppo_shared-tiny")
  # Defaults, filled in.
  assert c.rl.credit.critic.bootstrap_truncated is False and c.rl.credit.critic.optimizer is None
  c.rl.credit.critic.lam = 0.9
  assert run_config.check(c)[1]["rl"].credit.critic.lam == 0.9


@pytest.mark.parametrize("trunk", critic_lib.TRUNKS)
def test_memory_counts_the_critic(trunk, one):
  context, config, *_ = one
  def named(config, name):
    return sum(p.num_bytes for p in policy_gradient.memory(config, context, "rl") if p.name == name)
  changed = with_critic(config, trunk=trunk)
  policy_bytes, head_bytes = named(config, "parameters"), 4 * (context.policy.config.width + 1)
  expected = policy_bytes * (1 + (trunk == "separate")) + head_bytes
  assert named(changed, "parameters") == expected and named(changed, "gradients") == expected
  assert named(changed, "policy the stage starts from") == policy_bytes
  assert named(changed, "activations of the critic") == named(
      config, "activations") * (trunk == "separate")
  assert named(changed, "activations of scoring") > 0 == named(config, "activations of scoring")
