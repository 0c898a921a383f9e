"""Rollouts on devices of their own.

The same samples and updates as on the update's, parameters moved once a step.
"""

import contextlib
import json

import jax
import numpy as np
import pytest

from rl_reason.config.overrides import replaced
from rl_reason.rollout import sampler
from rl_reason.rollout.generate import generate
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier, workdir
from rl_reason.runtime import sharding
from rl_reason.stages.policy_gradient import stage as policy_gradient


def axes(sizes):
  """(data, fsdp, tensor) -> a mesh's sizes by axis."""
  return dict(zip(sharding.MESH_AXES, sizes))


@pytest.mark.parametrize("sizes, rollout, updating, sampling", [
    ((1, -1, 1), (2, 1, 1), range(6), (6, 7)),
    ((1, 2, 1), (1, 1, 2), range(2), (2, 3)),
    ((1, 1, 1), (1, 1, 1), (0,), (1,)),
    ((2, 2, 1), (4, 1, 1), range(4), range(4, 8)),
])
def test_the_rollout_mesh_takes_the_devices_after_the_other(sizes, rollout, updating, sampling):
  devices, meshes = jax.devices(), sharding.make_meshes(axes(sizes), axes(rollout))
  assert [list(mesh.devices.flat) for mesh in meshes] == [
      [devices[i] for i in own] for own in (updating, sampling)]
  assert tuple(meshes[1].shape.values())[:3] == rollout


def test_without_sizes_there_is_no_rollout_mesh():
  mesh, rollout = sharding.make_meshes(axes((1, -1, 1)), axes((0, 1, 1)))
  assert rollout is None and mesh == sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1))


@pytest.mark.parametrize("sizes, rollout, message", [
    ((1, -1, 1), (8, 1, 1),
     r"rollout mesh data=8, .* takes 8 devices, .* at least one more; JAX has 8 .*rollout_mesh"),
    ((1, 7, 1), (2, 1, 1),
     r"mesh data=1, fsdp=7, tensor=1 needs 7 devices, JAX has 8 \(cpu\), of which 6 are left"
     r" to it"),
])
def test_more_devices_than_there_are_are_refused(sizes, rollout, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_meshes(axes(sizes), axes(rollout))


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(
      ValueError, match="for one process, and there are 2: set --config.rollout_mesh.data=0"):
    sharding.make_meshes(axes((1, -1, 1)), axes((2, 1, 1)))


def loaded(staleness=1, **sections):
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.rl.staleness = staleness
  for name, fields in sections.items():
    c[name].update(fields)
  return c


def test_devices_that_no_stage_would_use_are_refused():
  with pytest.raises(
      ValueError, match="rollout_mesh sets 2 devices apart, and no stage .* set staleness=1"):
    config_lib.check(loaded(staleness=0, rollout_mesh=dict(data=2)))
  with pytest.raises(ValueError, match="config.rollout_mesh: data must be at least 0, got -1"):
    config_lib.check(loaded(rollout_mesh=dict(data=-1)))
  config_lib.check(loaded(rollout_mesh=dict(data=2)))


def make_context(**sections):
  run_config, stages = config_lib.check(loaded(**sections))
  section = stages["rl"]
  # SGD: Adam would blow rounding noise in gradients of about zero up to whole steps.
  return run.make_context(run_config), replaced(section, {
      "num_steps": 3, "learner.minibatches": 1, "objective.kl.coef": 0.1,
      "rollout.sampling.max_tokens": 12, "rewards": {"length": {"function": f"{__name__}:length"}},
      "learner.optimizer.name": "sgd", "learner.optimizer.schedule": "constant",
      "learner.optimizer.warmup_steps": 0, "learner.optimizer.learning_rate": 1.0})


def length(samples):
  return [s.completion_tokens[0] % 3 for s in samples]


def trained(monkeypatch, **sections):
  """(parameters after three steps, what each step told, where each rollout's policy lay).

  A step tells its metrics and its waiting rollout.
  """
  context, config = make_context(**sections)
  policy_gradient.check(config, context, "rl")
  where = []
  def recorded(model, params, *args, **kwargs):
    where.append({d for x in jax.tree.leaves(params) for d in x.devices()})
    return generate(model, params, *args, **kwargs)
  monkeypatch.setattr(sampler, "generate", recorded)
  with context.partitioning.use():
    stage = policy_gradient.build(config, context, context.initial_params(), "rl")
    with contextlib.closing(stage):
      state, told = stage.init(), []
      for index in range(3):
        state, result = stage.step(state, next(stage.data), index)
        metrics = dict(result.metrics, tokens=result.tokens, skipped=result.skipped)
        waiting = stage.resumable["ahead"].state()["waiting"]
        told.append((
            {k: v for k, v in metrics.items() if not k.startswith("time/")},
            json.dumps(waiting and {
                k: v for k, v in waiting.items() if k not in ("seconds", "metrics")})))
    return jax.device_get(state.params), told, where


@pytest.fixture(scope="module")
def together():
  """All on one device."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    return trained(monkeypatch, mesh=dict(fsdp=1))


def test_one_device_beside_another_samples_and_updates_to_the_same_bits(together, monkeypatch):
  params, told, where = trained(monkeypatch, mesh=dict(fsdp=1), rollout_mesh=dict(data=1))
  assert where == [{jax.devices()[1]}] * 3 and together[2] == [{jax.devices()[0]}] * 3
  assert told == together[1]
  assert [metrics.get("staleness") for metrics, _ in told] == [None, 0, 1]
  assert told[-1][0]["grad_norm"] > 0
  jax.tree.map(np.testing.assert_array_equal, params, together[0])


def test_two_devices_beside_two_others_do_the_same(together, monkeypatch):
  params, told, where = trained(monkeypatch, mesh=dict(fsdp=2), rollout_mesh=dict(data=1, tensor=2))
  assert where == [set(jax.devices()[2:4])] * 3
  for (ours, _), (theirs, _) in zip(told, together[1], strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), params, together[0])


def test_models_of_learned_rewards_lie_where_completions_are_sampled(tmp_path):
  c = loaded(rollout_mesh=dict(data=2), mesh=dict(fsdp=2))
  c.unlock()
  c.rm = dict(
      kind="reward_model", num_steps=1, batch_size=2, max_response_tokens=8, data=dict(
      source="comparisons", args=dict(format="pairs"), train=dict(path="a.jsonl"),
      heldout=dict(path="b.jsonl")),
      loss="bradley_terry",
      learner=dict(optimizer=dict(learning_rate=1e-3)))
  c.stages = ("rm", "rl")
  run_config, sections = config_lib.check(c)
  stages = earlier.Stages(
      run_config, sections, workdir.Workdir(tmp_path), run.make_context(run_config))
  context = stages.context("rl")
  assert list(context.partitioning.mesh.devices.flat) == jax.devices()[:2]
  assert list(context.earlier.scorer("rm").partitioning.mesh.devices.flat) == jax.devices()[2:4]
