"""Adapters.

The change they stand for, their gradients by the chain rule, a frozen model, places on a mesh,
whole runs.
"""

import functools
import shutil

import jax
import numpy as np
import pytest

from rl_reason.config.overrides import override
from rl_reason.learner import optimizers
from rl_reason.learner import step as learner
from rl_reason.models import lora, policy, transformer
from rl_reason.models.lora import LoRA, MATRICES
from rl_reason.objectives import losses
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier, workdir
from rl_reason.runtime import memory
from rl_reason.stages import sft
from rl_reason.train import train
from tests.test_train import arrays, deterministic

SOME = LoRA(rank=3, alpha=6.0, matrices=("q", "v", "o", "down"))


@pytest.fixture(scope="module")
def adapted(tiny_config, tiny_params):
  """lora section -> the tiny model with adapters that change something."""
  def make(section):
    draw = np.random.RandomState(2)
    added = jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32) / 4,
                         lora.abstract_params(tiny_config, section))
    return {**tiny_params, "lora": added["lora"],
            "lora_scale": np.float32(section.alpha / section.rank)}
  return make


def loss_of(config, params, batch, **how):
  logprobs, entropy = policy.completion_logprobs(
      config, params, batch.prompts, batch.completions, batch.completion_lengths, **how)
  return losses.policy_gradient_loss(
      logprobs, entropy, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3",
      entropy_coef=0.1)


def flat(name, w):
  """[L *inputs *outputs] -> [L I O]."""
  inputs = w.shape[1:1 + transformer.INPUT_AXES[name]]
  return np.asarray(w, np.float64).reshape(w.shape[0], int(np.prod(inputs)), -1)


def test_merged_parameters_are_the_base_and_the_scaled_product(tiny_params, adapted):
  params = adapted(SOME)
  merged = lora.merge(params)
  assert jax.tree.structure(merged) == jax.tree.structure(tiny_params)
  for name, w in tiny_params["layers"].items():
    expected = np.asarray(w)
    if name in SOME.matrices:
      a, b = params["lora"][name]["a"], params["lora"][name]["b"]
      product = a.reshape(2, -1, 3).astype(np.float64) @ b.reshape(2, 3, -1).astype(np.float64)
      expected = w + (6 / 3 * product).reshape(w.shape)
      assert np.abs(expected - w).max() > 0.1
    np.testing.assert_allclose(merged["layers"][name], expected, atol=1e-6)
  assert merged["embedding"] is params["embedding"] and lora.merge(tiny_params) is tiny_params


@pytest.mark.parametrize("how", [dict(), dict(remat="full"), dict(scanned=True)], ids=str)
def test_adapters_and_their_merged_parameters_are_one_function(
    how, tiny_config, tiny_batch, adapted, monkeypatch):
  if how.pop("scanned", False):
    monkeypatch.setattr(transformer, "UNROLLED_LAYERS", 0)
  params = adapted(LoRA(rank=3))
  logprobs = jax.jit(lambda p: policy.completion_logprobs(
      tiny_config, p, tiny_batch.prompts, tiny_batch.completions, tiny_batch.completion_lengths,
      **how)[0])
  mask = np.asarray(tiny_batch.completion_mask)
  apart, merged = np.asarray(logprobs(params))[mask], np.asarray(logprobs(lora.merge(params)))[mask]
  np.testing.assert_allclose(apart, merged, atol=2e-5)
  base = {name: x for name, x in params.items() if "lora" not in name}
  assert np.abs(apart - np.asarray(logprobs(base))[mask]).max() > 0.1


def test_new_adapters_change_nothing(tiny_config, tiny_params, tiny_batch):
  added = lora.init_params(tiny_config, LoRA(rank=2), jax.random.key(0))
  loss = jax.jit(lambda p: loss_of(tiny_config, p, tiny_batch)[0])
  assert loss({**tiny_params, **added}) == loss(tiny_params)
  a = added["lora"]["q"]["a"]
  assert a.shape == (2, 32, 2) and 0.5 < float(a.std()) * 32 ** 0.5 < 1.5
  # Another choice of matrices draws the same numbers for each.
  alone = lora.init_params(tiny_config, LoRA(rank=2, matrices=("q",)), jax.random.key(0))
  np.testing.assert_array_equal(alone["lora"]["q"]["a"], a)
  assert list(alone["lora"]) == ["q"]


def test_gradients_are_those_of_the_whole_matrices_projected(tiny_config, tiny_batch, adapted):
  # W' = W + s A B:  dA = s dW' B^T,  dB = s A^T dW'.
  params = adapted(LoRA(rank=3, alpha=6.0))
  def gradient(params):
    return jax.jit(jax.grad(lambda p: loss_of(tiny_config, p, tiny_batch)[0]))(params)
  whole, ours = gradient(lora.merge(params))["layers"], gradient(params)["lora"]
  for name in MATRICES:
    dw, a, b = flat(name, whole[name]), params["lora"][name]["a"], params["lora"][name]["b"]
    a, b = a.reshape(2, -1, 3), b.reshape(2, 3, -1)
    for part, expected in (
        ("a", 2 * dw @ b.transpose(0, 2, 1)), ("b", 2 * a.transpose(0, 2, 1) @ dw)):
      got = np.asarray(ours[name][part]).reshape(expected.shape)
      np.testing.assert_allclose(
          got, expected, atol=2e-5 * np.abs(expected).max(), err_msg=f"{name} {part}")


def equations(jaxpr):
  """All of them, inner ones too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from equations(inner)


def test_an_update_trains_adapters_and_leaves_the_model_bit_for_bit(
    tiny_config, tiny_batch, adapted):
  params = adapted(SOME)
  optimizer = optimizers.make_optimizer(
      optimizers.Optimizer(0.1, name="adamw", args={"weight_decay": 0.1}), 1)
  state = learner.init_state(params, optimizer)
  held = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert held < 2.1 * sum(x.size for x in jax.tree.leaves(params["lora"]))
  step = functools.partial(
      learner.train_step, loss_fn=functools.partial(loss_of, tiny_config), optimizer=optimizer)
  halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), tiny_batch)
  # No product gives the gradient of a whole matrix, not for a moment; of all parameters seven a
  # layer do.
  matrices = {
      tuple(sorted(x.shape[1:])) for name, x in params["layers"].items() if name in MATRICES}
  def whole(state):
    return sum(eqn.primitive.name in ("dot_general", "reshape")
               and tuple(sorted(eqn.outvars[0].aval.shape)) in matrices
               for eqn in equations(jax.make_jaxpr(step)(state, halves).jaxpr))
  assert whole(state) == 0 and whole(learner.init_state(lora.merge(params), optimizer)) >= 7
  new, metrics = jax.jit(step)(state, halves)
  for name in params:
    moved = jax.tree.leaves(jax.tree.map(
        lambda x, y: not np.array_equal(x, y), params[name], new.params[name]))
    assert all(moved) if name == "lora" else not any(moved), name
  assert metrics["grad_norm"] > 0 and metrics["skipped_in_a_row"] == 0


def test_a_head_beside_an_adapted_model_is_trained_whole():
  params = {
      "policy": {"embedding": 1, "layers": {"q": 2}, "lora": {"q": {"a": 3}}, "lora_scale": 4},
      "head": {"output": 5}}
  trained, frozen = lora.partition(params)
  assert trained == {"policy": {"lora": {"q": {"a": 3}}}, "head": {"output": 5}}
  assert frozen == {"policy": {"embedding": 1, "layers": {"q": 2}, "lora_scale": 4}}
  assert lora.combine(trained, frozen) == params
  assert lora.partition(params["head"]) == (params["head"], {})
  assert lora.combine(params["head"], {}) == params["head"]


@pytest.mark.parametrize("fields, message", [
    (dict(rank=-1), "rank of at least 0"),
    (dict(rank=2, alpha=0.0), "alpha above 0, got rank=2 and alpha=0.0"),
    (dict(rank=2, alpha=float("inf")), "finite alpha"),
    (dict(matrices=()), r"some of q, k, v, .*, got \(\)"),
    (dict(matrices=("q", "qq")), "got .*'qq'"),
    (dict(matrices=("q", "q")), "each once"),
])
def test_adapters_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    LoRA(**fields)


def test_decoding_refuses_what_it_would_leave_out(tiny_config, tiny_batch, adapted):
  with pytest.raises(ValueError, match="give it lora.merge"):
    generate(tiny_config, adapted(SOME), tiny_batch.prompts, Sampling(max_tokens=2), group_size=1,
             rng=jax.random.key(0), stop_ids=())


# In runs.

def make_config(**mesh):
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.unlock()
  c.mesh.update(mesh)
  c.stages, c.sft.num_steps, c.checkpoint.every = ("sft", "again"), 3, 1
  c.sft.learner.lora.rank = 2
  c.sft.learner.optimizer.update(schedule="constant", warmup_steps=0, learning_rate=1e-2)
  c.again = c.sft.copy_and_resolve_references()
  c.again.num_steps, c.again.learner.lora.rank = 1, 0
  c.evaluation.num_problems = c.evaluation.batch_size = 2
  c.evaluation.every = 0
  return c


def test_adapters_lie_with_their_matrices():
  run_config, sections = config_lib.check(make_config(data=2, fsdp=2, tensor=2))
  context = run.make_context(run_config)
  with context.partitioning.use():
    stage = sft.build(sections["sft"], context, context.initial_params(), "sft")
    state = stage.init()
  jax.tree.map(lambda x, s: np.testing.assert_(x.sharding == s.sharding and x.shape == s.shape),
               state, stage.state_shape)
  def shard(x):
    return x.addressable_shards[0].data.shape
  adapters, adam = state.params["lora"], state.opt_state.inner_state[1][0]
  # Width 32, 2 heads of 16: inputs over fsdp, heads over tensor.
  for tree in (adapters, adam.mu["lora"]):
    assert shard(tree["q"]["a"]) == (1, 16, 2) and shard(tree["q"]["b"]) == (1, 2, 1, 16)
    assert shard(tree["o"]["a"]) == (1, 1, 16, 2) and shard(tree["o"]["b"]) == (1, 2, 16)
  merged = lora.merge(state.params)
  assert all(jax.tree.leaves(
      jax.tree.map(lambda x, s: x.sharding == s, merged, context.param_shardings)))


def test_a_run_trains_adapters_and_goes_on_from_the_merged_policy(tmp_path):
  c = make_config(fsdp=1)
  last = train(c, tmp_path, plain=True)
  assert "lora" not in last
  run_config, sections = config_lib.check(c)
  stages = earlier.Stages(
      run_config, sections, workdir.Workdir(tmp_path), run.make_context(run_config))
  context = stages.run
  initial, finished = context.initial_params(), stages.finished("sft")
  same = lambda x, y: all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))
  assert same({name: finished[name] for name in initial}, initial)
  merged = stages.trained("sft").policy(finished)
  assert not same(merged, initial) and jax.tree.structure(merged) == jax.tree.structure(last)
  # The second stage began where the first ended.
  nll = [line["nll"] for line in read_metrics(tmp_path) if "nll" in line]
  assert len(nll) == 4 and nll[3] < nll[0]


def short(samples):
  """Range [0, 1]."""
  return [1 / len(s.completion_tokens) for s in samples]


def test_policy_gradients_on_adapters_resume_to_the_same_bits(tmp_path):
  c = make_config(fsdp=1)
  c.stages, c.rl.rewards = ("rl",), {"short": {"function": f"{__name__}:short"}}
  override(c.rl, {
      "num_steps": 2, "staleness": 1, "credit.baseline": "none", "credit.normalise": "token_whiten",
      "credit.critic": dict(trunk="shared"), "objective.kl.coef": 0.1,
      "objective.importance_cap": 2.0, "learner.lora.rank": 2})
  train(c, tmp_path / "whole", plain=True)
  shutil.copytree(tmp_path / "whole", tmp_path / "again")
  shutil.rmtree(tmp_path / "again" / "checkpoints" / "rl" / "2")  # Killed with a rollout waiting.
  train(c, tmp_path / "again", plain=True)
  assert deterministic(tmp_path / "again") == deterministic(tmp_path / "whole")
  saved, again = (
      arrays(tmp_path / name / "checkpoints" / "rl" / "2") for name in ("whole", "again"))
  assert again.keys() == saved.keys()
  assert all(again[name].tobytes() == x.tobytes() for name, x in saved.items())
  run_config, sections = config_lib.check(c)
  stages = earlier.Stages(
      run_config, sections, workdir.Workdir(tmp_path / "whole"), run.make_context(run_config))
  context = stages.run
  finished, initial = stages.finished("rl"), context.initial_params()
  jax.tree.map(np.testing.assert_array_equal,
               {name: finished["policy"][name] for name in initial}, initial)
  assert np.abs(finished["policy"]["lora"]["q"]["b"]).max() > 0
  assert np.abs(finished["critic"]["head"]["output"]).max() > 0


def test_memory_of_adapters():
  # Adapters of rank 2, all matrices of 1 layer, width 32: attention 4 * (32 + 32) * 2, feed-forward
  # 3 * (32 + hidden) * 2.
  run_config, sections = config_lib.check(make_config(fsdp=1))
  context = run.make_context(run_config)
  hidden = context.policy.config.mlp_hidden
  trained = 4 * 2 * (4 * (32 + 32) + 3 * (32 + hidden))
  whole = sum(4 * x.size for x in jax.tree.leaves(context.abstract_params))
  parts = {p.name: p.num_bytes for p in sft.memory(sections["sft"], context, "sft")}
  assert parts["parameters"] == whole + trained + 4 and parts["gradients"] == trained
  assert 0 <= parts["optimizer"] - 2 * trained < 100
  assert parts["policy with its adapters merged"] == whole
  assert memory.sharded_bytes(sft.trained(sections["again"], context, "sft").shapes) == whole
