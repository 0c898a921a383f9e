"""A policy gradient step apart from the loop.

Its fields, importance weights, scoring in parts, memory, meshes.
"""

from concurrent.futures import Future
import dataclasses
import threading

import jax
import numpy as np
import pytest

from rl_reason.arrays import length_mask
from rl_reason.batches.prompts import encode_prompts
from rl_reason.config.overrides import replaced
from rl_reason.learner import memory
from rl_reason.models import lora, policy
from rl_reason.models.lora import LoRA
from rl_reason.objectives import losses
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.rollout import sampler
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.runtime import compilation
from rl_reason.runtime import memory as memory_lib
from rl_reason.stages import rollouts
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import stage as policy_gradient
from rl_reason.stages.policy_gradient.assemble import Assembler
from rl_reason.stages.policy_gradient.critic import Critic
from rl_reason.stages.policy_gradient.rows import Rows

T = 32
# Four groups of 4: one row of 32 tokens is enough for each but the second, which needs two.
LENGTHS = np.array([20, 6, 4, 2, 32, 20, 1, 3, 1, 1, 1, 1, 17, 5, 5, 5], np.int32)


def make_context(**mesh):
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.mesh.update(mesh)
  run_config, sections = config_lib.check(c)
  section = sections["rl"]
  # SGD: Adam would blow rounding noise in gradients of about zero up to whole steps.
  section = replaced(section, {
      "learner.minibatches": 1, "objective.kl.coef": 0.0, "rollout.sampling.max_tokens": T,
      "rewards": {"length": {"function": f"{__name__}:length"}}, "learner.optimizer.name": "sgd",
      "learner.optimizer.schedule": "constant", "learner.optimizer.warmup_steps": 0,
      "learner.optimizer.learning_rate": 1.0})
  return run.make_context(run_config), section


def length(samples):
  return [len(s.completion_tokens) % 5 for s in samples]


def third(samples):
  return [s.completion_tokens[0] == 3 for s in samples]


@pytest.fixture(scope="module")
def one():
  """(context on one device, config, parameters, problems)."""
  context, config = make_context(fsdp=1)
  with context.partitioning.use():
    params = context.initial_params()
  return context, config, params, [context.task.train[i] for i in range(4)]


@pytest.fixture(scope="module")
def completions(one):
  """As if `one` had sampled them: the log-probabilities are its own."""
  context, config, params, problems = one
  mask = np.asarray(length_mask(LENGTHS, T))
  tokens = np.random.RandomState(0).randint(
      1, context.policy.config.vocab_size, (16, T)).astype(np.int32) * mask
  prompts = encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with context.partitioning.use():
    logprobs = np.where(
        mask, policy.score(context.policy.config, params, prompts, tokens, LENGTHS), 0)
  return Completions(tokens, LENGTHS, LENGTHS == T, logprobs, logprobs)


def assembler_of(config, context, score=policy.score):
  rows = Rows.of(context, config.rollout, config.learner)
  return Assembler(config.credit, config.objective, rows, score)


def minibatches(batch, config, context, rng):
  rows = Rows.of(context, config.rollout, config.learner)
  return list(rows.minibatches(batch, rng, mean_over=config.objective.mean_over))


def rollout_of(one, completions, scores=np.zeros(16, np.float32)):
  context, _, _, problems = one
  prompts = encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  is_last = np.arange(T) == completions.lengths[:, None] - 1
  at_the_end = np.where(is_last, scores[:, None], 0).astype(np.float32)
  return Rollout(0, prompts, completions, scores, at_the_end, {})


def step(context, config, params, problems, completions, monkeypatch):
  """(parameters after one step on these completions, metrics)."""
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  with context.partitioning.use():
    stage = policy_gradient.build(config, context, params, "rl")
    state, result = stage.step(stage.init(), problems, 0)
    metrics = result.metrics
    stage.close()
    return jax.device_get(state.params), metrics


def assert_same(a, b, atol):
  (params_a, metrics_a), (params_b, metrics_b) = a, b
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), params_a, params_b)
  for key in ("loss", "policy_loss", "kl", "entropy", "grad_norm", "update_norm", "reward/mean"):
    np.testing.assert_allclose(metrics_a[key], metrics_b[key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("change, message", [
    ({"rollout.slots": 3}, "slots must be at least group_size=4, got 3: .* Raise slots, or set 0"),
    (dict(staleness=2),
     "staleness must be 0 .* or 1 .*, got 2: older rollouts are not kept. Set 1"),
    ({"rollout.int8": True},
     "rollout.int8 samples from another .* objective.importance_cap is 0: set"
     " objective.importance_cap=2.0"),
    ({"objective.importance_cap": -1.0}, "importance_cap must be at least 0, got -1.0"),
    ({"rollout.slots": -4}, "slots must be at least 0, got -4"),
    (dict(monitors={
        "divergence": {"args": {"learned": "reward/lenght", "verifier": "eval/pass@1"}}}),
     "Monitor 'divergence' reads 'reward/lenght', which nothing logs. Did you mean 'length'"),
    ({"objective.kind": "gpso"}, "Unknown kind 'gpso'. Did you mean 'gspo'?"),
    ({"credit.returns": "togo"}, "Unknown returns 'togo'. Did you mean 'to_go'?"),
    ({"credit.normalise": "token_white"},
     "Unknown normalise 'token_white'. Did you mean 'token_whiten'?"),
    ({"credit.discount": 1.5, "credit.returns": "to_go"}, r"discount must be in \[0, 1\], got 1.5"),
    ({"credit.discount": 0.9}, "discount=0.9 is for returns='to_go' and critics"),
    ({"credit.returns": "to_go", "credit.normalise": "batch_whiten"},
     "set normalise='token_whiten'"),
    ({"credit.critic": Critic()},
     "A critic is the baseline, and baseline='group_mean' would be a second one"),
    ({"credit.critic": Critic(vtrace=True), "credit.baseline": "none", "credit.normalise": "none"},
     "its bound, is 0: set objective.importance_cap=1.0"),
    ({"credit.critic": Critic(), "credit.baseline": "none", "credit.normalise": "group_std"},
     r"Unknown normalise \(with a critic\) 'group_std'"),
    ({"credit.critic": Critic(warmup_steps=4), "credit.baseline": "none",
        "credit.normalise": "none"}, "critic.warmup_steps=4 of num_steps=4"),
    ({"credit.keep.equal_groups": "drop"}, "Unknown equal_groups 'drop'"),
    ({"credit.keep.equal_groups": "skip", "rollout.group_size": 1, "credit.baseline": "none",
        "credit.normalise": "none"}, "every group would be left out"),
    ({"credit.keep.equal_by": "exact_answer"},
     r"Unknown credit.keep.equal_by \(a reward\) 'exact_answer'.* Known: length"),
    ({"rollout.prompts": 1, "rollout.group_size": 1, "credit.baseline": "none",
        "credit.normalise": "batch_std"}, "a step has one completion"),
])
def test_fields_that_do_not_go_together_are_refused(one, change, message):
  with pytest.raises(ValueError, match=message):
    replaced(one[1], change)
  replaced(one[1], {
      "rollout.slots": 4, "staleness": 1, "rollout.int8": True, "objective.importance_cap": 2.0})


def test_rollouts_ahead_need_one_device(one):
  context, config = make_context(fsdp=2)
  ahead = dataclasses.replace(config, staleness=1)
  message = "staleness=1 .* 2 devices could start .*rollout_mesh.data=.*, or set staleness=0"
  with pytest.raises(ValueError, match=message):
    policy_gradient.check(ahead, context, "rl")
  policy_gradient.check(ahead, one[0], "rl")
  policy_gradient.check(config, context, "rl")


@pytest.fixture(scope="module")
def plain(one, completions):
  """The step without importance weights."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    return step(*one, completions, monkeypatch)


def test_importance_weights_of_the_trainers_own_samples_change_nothing(
    one, completions, plain, monkeypatch):
  context, config, *rest = one
  weighed = step(context, replaced(config, {
      "objective.importance_cap": 2.0}), *rest, completions, monkeypatch)
  assert_same(weighed, plain, atol=1e-6)
  assert abs(weighed[1]["importance/weight"] - 1) < 1e-5 and weighed[1]["importance/capped"] == 0
  assert plain[1]["grad_norm"] > 0.01 and "importance/weight" not in plain[1]
  assert max(plain[1]["logprob_gap"], weighed[1]["logprob_gap"]) < 1e-5
  assert plain[1]["kl"] < 1e-8  # Of a policy without a reference, to itself as it sampled.


def test_importance_weights_of_another_sampler_by_hand(one, completions, monkeypatch):
  # The sampler gave every third token 1/8 of the trainer's probability, capped at weight 2, and the
  # others 1.25 times.
  context, config, *rest = one
  mask = np.asarray(completions.logprobs != 0)
  third = np.arange(T) % 3 == 0
  ratio = np.where(third, 8, 0.8)
  behaviour = np.where(mask, completions.logprobs - np.log(ratio), 1e9).astype(np.float32)
  other = completions.replace(behaviour_logprobs=behaviour)
  config = replaced(config, {"objective.importance_cap": 2.0, "credit.normalise": "none"})
  _, metrics = step(context, config, *rest, other, monkeypatch)
  weights = np.minimum(ratio, 2)
  rewards = LENGTHS.reshape(4, 4) % 5
  advantages = (rewards - rewards.mean(1, keepdims=True)).reshape(16, 1)
  # At the first update the ratio to the trainer is 1: the loss is the mean of −weight · advantage
  # over all tokens.
  np.testing.assert_allclose(
      metrics["policy_loss"], -(weights * advantages)[mask].mean(), atol=1e-5)
  np.testing.assert_allclose(
      metrics["importance/weight"], np.broadcast_to(weights, mask.shape)[mask].mean(), rtol=1e-4)
  np.testing.assert_allclose(
      metrics["importance/capped"], np.broadcast_to(third, mask.shape)[mask].mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics["logprob_gap"], np.log(8), rtol=1e-4)
  assert metrics["clip_fraction"] == 0  # Clipping bounds the step, not the mismatch.


@pytest.mark.parametrize("minibatches, microbatches, rows, objective", [
    (1, 1, (8, 8), "clipped"), pytest.param(1, 2, (8, 16), "gspo", marks=pytest.mark.slow),
    pytest.param(1, 2, (8, 16), "gmpo", marks=pytest.mark.slow)])
def test_eight_devices_and_one_pack_and_update_alike(
    minibatches, microbatches, rows, objective, one, completions, monkeypatch):
  # On one device two rows a group. Eight devices share 8 rows of the four groups, or 8 of each two:
  # four rows a group.
  context, config = make_context(data=2, fsdp=4)
  change = {
      "learner.minibatches": minibatches, "learner.microbatches": microbatches,
      "objective.kl.coef": 0.1, "objective.importance_cap": 2.0, "objective.kind": objective}
  config = replaced(config, change)
  for c, num_rows in zip((one[0], context), rows):
    found = Rows.of(c, config.rollout, config.learner)._pack(LENGTHS, microbatches)
    assert found.num_rows == num_rows
  with context.partitioning.use():
    params = context.initial_params()
  eight = step(context, config, params, one[3], completions, monkeypatch)
  assert_same(step(one[0], config, *one[2:], completions, monkeypatch), eight, atol=1e-5)


@pytest.mark.parametrize("mesh", [dict(fsdp=1), dict(data=2, fsdp=2, tensor=2)])
def test_scoring_and_updates_are_compiled_beforehand_and_once(mesh, one, completions, monkeypatch):
  context, config = make_context(**mesh)
  config = replaced(config, {
      "learner.minibatches": 2, "learner.epochs": 2, "objective.kl.coef": 0.1})
  compiled, lock = [], threading.Lock()
  def hear(event, seconds, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      with lock:
        name = kwargs["fun_name"].removeprefix("jit(").removesuffix(")")
        compiled.append((name, threading.current_thread() is threading.main_thread()))
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  with context.partitioning.use():
    params = context.initial_params()
    stage = policy_gradient.build(config, context, params, "rl")
    state = stage.init()
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
      for index in range(2):
        state, _ = stage.step(state, one[3], index)
    finally:
      jax.monitoring.unregister_event_duration_listener(hear)
      stage.close()
  programs = [(name, main) for name, main in compiled if "score" in name or name == "update"]
  # Other pairs of groups may pack into other rows.
  assert sum("score" in name for name, _ in programs) <= 1
  assert 1 <= sum(name == "update" for name, _ in programs) <= 3
  assert not any(main for _, main in programs), programs


@pytest.fixture
def programs_folder(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  yield tmp_path
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow  # Four first steps: 27 s of compilation.
def test_what_the_last_run_like_it_needed_is_begun_before_sampling(
    one, completions, monkeypatch, programs_folder):
  context, config, params, problems = one
  config, happened = replaced(config, {"learner.minibatches": 2, "objective.kl.coef": 0.1}), []
  def generate(*args, **kwargs):
    happened.append("sampled")
    return completions
  monkeypatch.setattr(sampler, "generate", generate)
  monkeypatch.setattr(compilation.Program, "begin", lambda self, *args, **kwargs: (
      happened.append(compilation._shapes(args, kwargs)),
      self._begun.setdefault("something", Future())))

  def run_first_step(config):
    happened.clear()
    with context.partitioning.use():
      stage = policy_gradient.build(config, context, params, "rl")
      stage.step(stage.init(), problems, 0)
      stage.close()
    at = happened.index("sampled")
    return happened[:at], happened[at + 1:]
  before, needed = run_first_step(config)
  assert not before and len(needed) == 3  # To score, and a program for each minibatch.
  before, again = run_first_step(config)
  assert before == needed == again
  # Another config: another note.
  assert not run_first_step(replaced(config, {"objective.kl.coef": 0.2}))[0]
  for file in (programs_folder / "notes").iterdir():
    file.write_text('{"lengths": [1')  # As a full disk leaves it.
  assert not run_first_step(config)[0]


def test_scoring_goes_through_equal_parts_of_one_shape(one, completions):
  context, config, params, _ = one
  reference = jax.tree.map(lambda x: 0.9 * x, params)
  rollout = rollout_of(one, completions)
  shapes = []
  def recorded(config, params, *arrays, **kwargs):
    shapes.append([x.shape for x in jax.tree.leaves(arrays)])
    return policy.score(config, params, *arrays, **kwargs)
  config = replaced(config, {
      "learner.minibatches": 2, "learner.microbatches": 2, "objective.kl.coef": 0.1,
      "objective.importance_cap": 2.0})
  with context.partitioning.use():
    batch, _ = assembler_of(config, context, recorded)(rollout, params, reference)
    expected = policy.score(
        context.policy.config, reference, rollout.prompts, completions.tokens, LENGTHS)
  # Four parts of a group each, for each of the two policies: its prompt, two rows of 32, their
  # lengths and segments.
  assert len(shapes) == 8 and all(s == [(1, 8), (1,), (2, T), (2,), (2, T)] for s in shapes), shapes
  mask = np.asarray(length_mask(LENGTHS, T))
  np.testing.assert_allclose(batch.reference_logprobs, np.where(mask, expected, 0), atol=1e-5)
  np.testing.assert_allclose(batch.behaviour_logprobs, completions.logprobs, atol=1e-5)


def test_a_penalty_in_the_reward_is_of_the_trainers_policy_and_not_of_the_samplers(
    one, completions):
  # No reward but −0.1 · Σ (log π − log π_ref); the sampler, a constant 0.5 below π, must not shift
  # it. Weights e^0.5.
  context, config, params, _ = one
  reference = jax.tree.map(lambda x: 0.9 * x, params)
  mask = np.asarray(length_mask(LENGTHS, T))
  other = completions.replace(behaviour_logprobs=completions.logprobs - np.float32(0.5))
  rollout = rollout_of(one, other)
  config = replaced(config, {
      "objective.kl.coef": 0.1, "objective.kl.added_to": "reward", "objective.kl.estimator": "k1",
      "credit.baseline": "none", "credit.normalise": "none", "objective.importance_cap": 2.0})
  with context.partitioning.use():
    batch, _ = assembler_of(config, context)(rollout, params, reference)
  penalty = 0.1 * np.where(
      mask, completions.logprobs - batch.reference_logprobs, 0).sum(1, keepdims=True)
  assert np.abs(penalty).max() > 0.01
  np.testing.assert_allclose(batch.advantages, np.where(mask, -np.exp(0.5) * penalty, 0), atol=1e-5)


def test_a_penalty_per_token_and_returns_to_go_by_hand(one, completions):
  # R_t = r_t − 0.1 (log π − log π_ref)_t + 0.9 R_{t+1}, the reward at the last token alone.
  # REINFORCE++ whitens all tokens.
  context, config, params, _ = one
  reference, scores = jax.tree.map(lambda x: 0.9 * x, params), (LENGTHS % 5).astype(np.float32)
  config = replaced(config, {
      "objective.kl.coef": 0.1, "objective.kl.added_to": "reward", "objective.kl.estimator": "k1",
      "credit.returns": "to_go", "credit.discount": 0.9, "credit.baseline": "none",
      "credit.normalise": "none"})
  def assembled(**change):
    with context.partitioning.use():
      assemble = assembler_of(replaced(config, change), context)
      return assemble(rollout_of(one, completions, scores), params, reference)[0]
  batch, expected, mask = assembled(), np.zeros((16, T)), np.asarray(length_mask(LENGTHS, T))
  for b, length in enumerate(LENGTHS):
    later = scores[b]
    for t in reversed(range(length)):
      gap = completions.logprobs[b, t] - batch.reference_logprobs[b, t]
      later = expected[b, t] = later - 0.1 * gap
      later *= 0.9
  np.testing.assert_allclose(batch.advantages, expected, atol=1e-5)
  whitened = assembled(**{"credit.normalise": "token_whiten"}).advantages
  np.testing.assert_allclose(
      whitened,
      np.where(mask, (expected - expected[mask].mean()) / expected[mask].std(), 0), atol=1e-4)


def first_and_last(samples):
  """Steps: the first token, 0.2, and the others, 0.9."""
  return StepRewards([[0.2, 0.9][:n] for n in map(len, (s.completion_tokens for s in samples))],
                     [[0, len(s.completion_tokens) - 1][:len(s.completion_tokens)]
                      for s in samples])


@pytest.mark.parametrize("transforms, first, later", [
    ((), 1.1, 0.9),
    (({"name": "min_form", "temperature": 0.01},), 0.2, 0)])
def test_rewards_of_steps_are_credited_to_the_tokens_up_to_them(
    transforms, first, later, one, completions, monkeypatch):
  context, config, params, problems = one
  monkeypatch.setattr(sampler, "generate", lambda *args, **kwargs: completions)
  config = replaced(config, {
      "credit.returns": "to_go", "credit.baseline": "none", "credit.normalise": "none",
      "rewards": {"prm": {"function": f"{__name__}:first_and_last", "transforms": transforms}}})
  with context.partitioning.use():
    rollout = rollouts.sample_rollout(
        config.rollout, context, params, problems, build_rewards(config.rewards), index=0,
        rng=jax.random.key(0))
    batch, _ = assembler_of(config, context)(rollout, params, None)
  mask = np.asarray(length_mask(LENGTHS, T))
  firsts = np.where(LENGTHS == 1, 0.2, first)[:, None]
  expected = np.where(mask, np.where(np.arange(T) == 0, firsts, later), 0)
  np.testing.assert_allclose(batch.advantages, expected, atol=1e-5)


@pytest.mark.parametrize("mean_over, share", [
    ("token", lambda length, total: 1 / total), ("sequence", lambda length, total: 1 / 8 / length),
    ("fixed_length", lambda length, total: 1 / (8 * T))])
def test_skipped_groups_have_no_part_in_the_loss(mean_over, share, one, completions):
  # All of groups 0 and 2 are rewarded alike: 8 completions are left.
  context, config, params, _ = one
  scores = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], np.float32)
  config = replaced(config, {
      "credit.keep.equal_groups": "skip", "objective.mean_over": mean_over,
      "learner.microbatches": 1})
  with context.partitioning.use():
    batch, _ = assembler_of(config, context)(rollout_of(one, completions, scores), params, None)
  [minibatch] = minibatches(batch, config, context, jax.random.key(0))
  left = np.repeat([False, True, False, True], 4)
  expected = np.where(left, share(LENGTHS, LENGTHS[left].sum()), 0)
  mask = np.asarray(length_mask(LENGTHS, T))
  np.testing.assert_allclose(
      minibatch.token_weights, np.where(mask, expected[:, None], 0), rtol=1e-6)


@pytest.mark.parametrize("change", [
    {
        "credit.keep.equal_groups": "skip"},
        {
            "credit.baseline": "none", "credit.normalise": "token_whiten"},
            {"credit.normalise": "batch_std"},
    {
        "credit.normalise": "batch_whiten"},
        {
            "credit.returns": "to_go", "credit.baseline": "leave_one_out",
            "credit.normalise": "group_std"}], ids=str)
def test_rewards_that_are_all_equal_teach_nothing_and_break_nothing(change, one, completions):
  context, config, params, _ = one
  config = replaced(config, {"learner.microbatches": 1, **change})
  with context.partitioning.use():
    rollout = rollout_of(one, completions, np.full(16, 0.3, np.float32))
    batch, _ = assembler_of(config, context)(rollout, params, None)
  [minibatch] = minibatches(batch, config, context, jax.random.key(0))
  assert np.abs(batch.advantages).max() < 0.01 and np.isfinite(minibatch.token_weights).all()
  assert minibatch.token_weights.any() == ("credit.keep.equal_groups" not in change)


def test_a_step_of_one_prompt_and_one_token_completions(one, monkeypatch):
  context, config, params, problems = one
  config = replaced(config, {
      "rollout.prompts": 1, "rollout.group_size": 2, "rollout.sampling.max_tokens": 1,
      "credit.normalise": "token_whiten", "objective.kind": "gspo", "objective.clip_low": 3e-4,
      "objective.clip_high": 4e-4})
  tokens, ones = np.array([[3], [5]], np.int32), np.ones(2, np.int32)
  prompts = encode_prompts(
      problems[:1], context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with context.partitioning.use():
    logprobs = np.asarray(policy.score(context.policy.config, params, prompts, tokens, ones))
  sampled = Completions(tokens, ones, ones > 0, logprobs, logprobs)
  for reward, moves in (("third", True), ("length", False)):
    changed = dataclasses.replace(config, rewards={reward: {"function": f"{__name__}:{reward}"}})
    _, metrics = step(context, changed, params, problems[:1], sampled, monkeypatch)
    assert all(np.isfinite(v) for v in metrics.values()) and (metrics["grad_norm"] > 0) == moves


@pytest.mark.parametrize("critic", [None, Critic(trunk="shared")], ids=["", "critic"])
def test_adapters_learn_from_what_the_merged_policy_says(critic, one, completions, monkeypatch):
  # They start as no change: a first step's numbers are those of the whole policy. Later ones are
  # measured to the policy they started from, which stays as it was.
  context, config, params, problems = one
  config = replaced(config, {
      "objective.kl.coef": 0.1, "objective.importance_cap": 2.0, "credit.critic": critic,
      **({"credit.baseline": "none", "credit.normalise": "none"} if critic else {})})
  adapted = replaced(config, {"learner.lora": LoRA(rank=2)})
  _, whole = step(context, config, params, problems, completions, monkeypatch)
  with context.partitioning.use():
    stage = policy_gradient.build(adapted, context, params, "rl")
    state, result = stage.step(stage.init(), problems, 0)
    first = result.metrics
    for key in ("loss", "policy_loss", "kl", "entropy", "reward/mean", "logprob_gap"):
      np.testing.assert_allclose(first[key], whole[key], rtol=1e-4, atol=1e-6, err_msg=key)
    learnt, _ = critic_lib.split(critic, jax.device_get(state.params))
    assert all(np.abs(x["b"]).max() > 0 for x in learnt["lora"].values())
    rest = {k: v for k, v in learnt.items() if "lora" not in k}
    jax.tree.map(np.testing.assert_array_equal, rest, jax.device_get(params))
    merged = policy_gradient.trained(adapted, context, "rl").policy(state.params)
    assert "lora" not in merged
    prompts = encode_prompts(
        problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
    mask = np.asarray(length_mask(LENGTHS, T))
    ours = policy.score(context.policy.config, merged, prompts, completions.tokens, LENGTHS)
    state, result = stage.step(state, problems, 1)
    second = result.metrics
    stage.close()
  kl = losses.kl_estimate(ours, completions.logprobs, mask, estimator="k3").sum() / mask.sum()
  assert kl > 1e-5
  np.testing.assert_allclose(second["kl"], kl, rtol=1e-2)
  np.testing.assert_allclose(
      second["logprob_gap"], np.abs(np.where(mask, ours - completions.logprobs, 0)).max(),
      rtol=1e-2)


def test_a_stage_needs_what_its_fields_ask_for(one, monkeypatch):
  context, config, *_ = one
  monkeypatch.setattr(memory, "update_parts", lambda *args, **kwargs: [
      memory_lib.Part("activations", 100, "", "update")])
  config = replaced(config, {"rollout.prompts": 8})
  def parts(**change):
    return policy_gradient.memory(replaced(config, change), context, "rl")
  def named(name, phase="sampling", **change):
    return sum(p.num_bytes for p in parts(**change) if p.name == name and p.phase == phase)
  caches = "keys and values of completions", "keys and values of prompts"
  # 8 groups of 4; 6 slots of 32 hold 6 completions; 4 prompts of 8, twice the 2 groups in slots.
  assert named(caches[0], **{"rollout.slots": 6}) == named(caches[0]) * 6 / 32
  assert named(caches[1], **{"rollout.slots": 6}) == named(caches[1]) / 2
  assert named(caches[0], **{"rollout.slots": 32}) == named(caches[0])
  assert named(caches[0], **{"rollout.slots": 100}) == named(caches[0])
  # A byte a number and not 4, and a float32 scale per output.
  shapes = jax.tree.map(lambda x: x.shape[1:], context.abstract_params["layers"],
                        is_leaf=lambda x: hasattr(x, "shape"))
  saved = sum(3 * np.prod(shapes[k]) for k in ("q", "k", "v", "o", "gate", "up", "down"))
  outputs = sum(
      np.prod(shapes[k][1:]) for k in ("q", "k", "v", "gate", "up", "down")) + shapes["o"][-1]
  weights = "weights laid out for decoding"
  assert named(weights) - named(weights, **{
      "rollout.int8": True, "objective.importance_cap": 2.0}) == pytest.approx(saved - 4 * outputs)
  # The update's and the scoring's parts are equally many prompts; either policy asks for scoring.
  activations = "activations of scoring"
  assert named(activations, "scoring") == 0
  scoring = named(activations, "scoring", **{"objective.kl.coef": 0.1})
  assert scoring == named(activations, "scoring", **{"objective.importance_cap": 2.0}) > 0
  assert named(activations, "scoring", **{
      "objective.kl.coef": 0.1, "learner.microbatches": 4,
      "learner.minibatches": 2}) == pytest.approx(scoring / 8)
  # Adapters are merged to sample, and to score the policy that learns. They alone are trained.
  merged, adapters = "policy with its adapters merged", {"learner.lora": LoRA(rank=2)}
  copy = memory_lib.sharded_bytes(context.abstract_params)
  assert named(merged, **adapters) == named(merged, "evaluation", **adapters) == copy
  assert named(merged) == 0
  assert named(merged, "scoring", **adapters, **{"objective.kl.coef": 0.1}) == 0
  assert named(merged, "scoring", **adapters, **{"objective.importance_cap": 2.0}) == copy
  added = sum(4 * x.size for x in jax.tree.leaves(
      lora.abstract_params(context.policy.config, LoRA(rank=2))))
  assert named("parameters", "", **adapters) == copy + added
  assert named("gradients", "update", **adapters, **{
      "learner.microbatches": 1}) == added - 4  # Not of the scale.
  # Sampling ahead, with its own parameters, goes on during the update.
  def needed(**change):
    return {phase: sum(p.num_bytes for p in parts(**change) if p.phase == phase)
            for phase in ("sampling", "update")}
  before, ahead = needed(), needed(staleness=1)
  assert ahead["sampling"] == before["sampling"] + copy
  assert ahead["update"] == before["update"] + before["sampling"] + copy
  # On devices of its own it does not.
  context = dataclasses.replace(context, rollout_partitioning=context.partitioning)
  apart = policy_gradient.memory(dataclasses.replace(config, staleness=1), context, "rl")
  def total(phase, devices):
    return sum(p.num_bytes for p in apart if p.phase == phase and p.devices == devices)
  assert total("update", "") == before["update"]
  assert total("sampling", "that samples") == ahead["sampling"]
  assert total("sampling", "") == total("update", "that samples") == 0


class Watched:
  """Per sample: which completions it was called with, before sampling ended and after."""
  per_sample, calls = True, []

  def __call__(self, samples):
    self.calls.append(len(samples))
    return [1.0] * len(samples)


@pytest.mark.parametrize("fails", [False, True])
def test_rewards_are_begun_while_completions_come(fails, one, completions, monkeypatch):
  context, config, params, problems = one
  config = dataclasses.replace(config, rewards={"watched": {"function": f"{__name__}:Watched"}})
  Watched.calls, threads = [], threading.active_count()

  def generate(*args, on_finished, **kwargs):
    on_finished(completions, np.array([3, 9]))
    while not Watched.calls:  # Begun in another thread, or this never ends.
      pass
    on_finished(completions, np.array([0]))
    if fails:
      raise KeyError("sampling failed")
    return completions

  monkeypatch.setattr(sampler, "generate", generate)
  with context.partitioning.use():
    stage = policy_gradient.build(config, context, params, "rl")
    if fails:
      with pytest.raises(KeyError, match="sampling failed"):
        stage.step(stage.init(), problems, 0)
    else:
      assert stage.step(stage.init(), problems, 0)[1].metrics["reward/watched"] == 1
      assert Watched.calls == [2, 1, 13]
    stage.close()
  assert threading.active_count() == threads
