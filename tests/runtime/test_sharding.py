"""Where arrays live: the rules by hand, the same update on every mesh, and two real processes."""

import contextlib
import functools
import pickle
import re
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from rl_reason.learner import optimizers, step
from rl_reason.models import policy
from rl_reason.models.transformer import abstract_params, parameter_axes
from rl_reason.objectives import losses
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.runtime.sharding import DEFAULT_RULES, make_mesh, partition_spec, Partitioning
from tests import environment


def axes(sizes):
  """(data, fsdp, tensor) -> a mesh's sizes by axis."""
  return dict(zip(sharding.MESH_AXES, sizes))


GREEDY = Sampling(max_tokens=4, temperature=0.0)


# Rules.

def test_partition_spec_by_hand():
  mesh = dict(data=2, fsdp=4, tensor=2, context=1, expert=1)
  def spec(shape, axes, rules=DEFAULT_RULES):
    return tuple(partition_spec(shape, axes, mesh, rules))
  assert spec((16, 8), ("batch", "length")) == (("data", "fsdp"), "context")
  assert spec((32, 64), ("embed", "mlp")) == ("fsdp", "tensor")
  assert spec((64, 32), ("mlp", None)) == ("tensor", None)
  # 6 rows: data divides them, data * fsdp = 8 does not. 12 rows: data does, then 8 does not. 4:
  # fsdp, after data, no.
  assert spec((6,), ("batch",)) == spec((12,), ("batch",)) == spec((4,), ("batch",)) == ("data",)
  # 3 key heads on 2 devices stay whole; 1 row too.
  assert spec((32, 3, 8), ("embed", "kv_heads", "head_dim")) == ("fsdp", None, None)
  assert spec((1,), ("batch",)) == (None,)
  # An axis splits one dimension only: the first that asks. A later one takes what is left.
  assert spec((32, 32), ("embed", "embed")) == ("fsdp", None)
  assert spec((32, 16), ("embed", "batch")) == ("fsdp", "data")
  assert spec((32,), ("embed",), rules=(("embed", None),)) == (None,)
  with pytest.raises(ValueError):
    spec((32, 32), ("embed",))


@pytest.mark.parametrize("sizes, shape", [
    ((1, -1, 1), (1, 8, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, 4, -1), (2, 4, 1)),
    ((1, 1, 1), (1, 1, 1)),
    ((1, 3, 2), (1, 3, 2))])
def test_meshes(sizes, shape):
  mesh = make_mesh(axes(sizes))
  assert dict(mesh.shape) == {**axes(shape), "context": 1, "expert": 1}
  assert mesh.devices.size == np.prod(shape)


@pytest.mark.parametrize("sizes, message", [
    ((-1, -1, 1), "one of them may be -1"), ((0, -1, 1), "at least 1"), ((1, -2, 1), "at least 1"),
    ((3, -1, 1), "needs a multiple of 3 devices, JAX has 8"),
    ((4, 4, 1), "needs 16 devices, JAX has 8"),
    ((16, -1, 1), "multiple of 16")])
def test_meshes_that_do_not_fit_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(axes(sizes))


def test_axes_have_names_and_a_size_each():
  assert dict(make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1, "expert": 1}
  assert make_mesh(dict(context=2, expert=4)).shape["expert"] == 4
  with pytest.raises(ValueError, match="Unknown mesh axis 'tensr'. Did you mean 'tensor'"):
    make_mesh(dict(tensr=2))


def test_an_absent_accelerator_is_an_error():
  sharding.check_platform("")
  sharding.check_platform("cpu")
  with pytest.raises(ValueError, match=r'"gpu" was asked for|rl_reason\[cuda\]'):
    sharding.check_platform("gpu")
  with pytest.raises(ValueError, match=r"rl_reason\[tpu\]"):
    sharding.check_platform("tpu")
  with pytest.raises(ValueError, match='use "cpu", "gpu", "tpu"'):
    sharding.check_platform("cuda")


@pytest.mark.parametrize("variables", [
    {}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "two"}])
def test_half_an_environment_of_several_processes_is_an_error(variables):
  with pytest.raises(ValueError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
    sharding.start_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1", **variables})


def test_one_process_starts_nothing(monkeypatch):
  started = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args: started.append(args))
  for variables in ({}, {"SLURM_NTASKS": "1"}, {"OMPI_COMM_WORLD_SIZE": "1"},
                    {"TPU_WORKER_HOSTNAMES": "localhost"}):
    sharding.start_distributed(variables)
  assert not started
  for variables in ({"SLURM_NTASKS": "4"}, {"OMPI_COMM_WORLD_SIZE": "2"},
                    {"TPU_WORKER_HOSTNAMES": "a,b"}):
    sharding.start_distributed(variables)
  sharding.start_distributed({
      "JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"})
  assert started == [(), (), (), ("a:1", 3, 2)]


# Parameters.

def test_parameters_and_moments_are_split_and_others_whole(tiny_config, tiny_params):
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  shardings = partitioning.params(abstract_params(tiny_config), parameter_axes(tiny_config))
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(0.1), 1)
  make = functools.partial(step.init_state, optimizer=optimizer)
  state_shardings = partitioning.state(jax.eval_shape(make, tiny_params), shardings, optimizer)
  state = jax.jit(make, out_shardings=state_shardings)(jax.device_put(tiny_params, shardings))
  adam = state.opt_state.inner_state[1][0]
  for tree in (state.params, adam.mu, adam.nu):
    def shard(x):
      return x.addressable_shards[0].data.shape
    assert shard(tree["embedding"]) == (16, 16)  # [V E] over tensor and fsdp.
    assert shard(tree["layers"]["q"]) == (2, 16, 2, 8)  # [L E H D]: E over fsdp, H over tensor.
    assert shard(tree["layers"]["k"]) == (2, 16, 1, 8)
    assert shard(tree["layers"]["o"]) == (2, 2, 8, 16)
    assert shard(tree["layers"]["down"]) == (2, 24, 16)
    assert shard(tree["final_norm"]) == (16,)
  assert adam.count.sharding.is_fully_replicated and state.step.sharding.is_fully_replicated


def test_places_that_cannot_be_divided_are_listed(tiny_config):
  shapes, axes = abstract_params(tiny_config), parameter_axes(tiny_config)
  assert not Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2))).undivided(shapes, axes)
  # 2 key heads over 4 devices.
  lines = Partitioning(make_mesh(dict(data=1, fsdp=2, tensor=4))).undivided(shapes, axes)
  assert lines == [f"layers/{name}: kv_heads=2 over 4 devices" for name in "kv"]


# The same results on every mesh.

def microbatched(batch, num):
  return jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), batch)


def make_update(config):
  # SGD: Adam would blow rounding noise in gradients of about zero up to whole steps.
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(1.0, name="sgd", max_grad_norm=0), 1)

  def loss_fn(params, batch):
    out = policy.completion_logprobs(
        config, params, batch.prompts, batch.completions, batch.completion_lengths)
    return losses.policy_gradient_loss(
        *out, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.01)
  update = functools.partial(step.train_step, loss_fn=loss_fn, optimizer=optimizer)
  return jax.jit(update), optimizer


@pytest.fixture(scope="module")
def one_device(tiny_config, tiny_params, tiny_batch):
  """(parameters after one update, its metrics, greedy completions), without any mesh."""
  update, optimizer = make_update(tiny_config)
  state, metrics = update(step.init_state(tiny_params, optimizer), microbatched(tiny_batch, 1))
  completions = generate(tiny_config, tiny_params, tiny_batch.prompts, GREEDY, group_size=2,
                         rng=jax.random.key(0), stop_ids=())
  return jax.device_get((state.params, metrics, completions))


def assert_equal_to(expected, params, metrics):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), (params, metrics),
               expected[:2])


# Of 4 prompts with 2 completions each, 4 microbatches leave 1 prompt and 2 rows for
# data * fsdp = 4 devices: fsdp splits parameters only. (1, 8, 1): 4 prompts, 8 rows, 8 devices. The
# two processes below: 2 prompts on 4 devices. (2, 1, 2, 2): each row is split over two devices of
# `context` as well.
@pytest.mark.parametrize("mesh, num_microbatches", [
    ((2, 2, 2), 4), ((1, 8, 1), 1), ((2, 1, 2, 2), 2)], ids=str)
def test_an_update_is_the_same_on_every_mesh(
    mesh, num_microbatches, one_device, tiny_config, tiny_params, tiny_batch):
  partitioning = Partitioning(make_mesh(axes(mesh)))
  shardings = partitioning.params(abstract_params(tiny_config), parameter_axes(tiny_config))
  update, optimizer = make_update(tiny_config)
  with partitioning.use():
    params = jax.device_put(tiny_params, shardings)
    batch = partitioning.place(microbatched(tiny_batch, num_microbatches), (None, "batch"))
    state = step.init_state(params, optimizer)
    text = update.lower(state, batch).as_text()
    new, metrics = update(state, batch)
  assert_equal_to(one_device, new.params, metrics)
  # The constraints are not silently dropped, and they name the axes of this mesh.
  marks = re.findall(r"sdy.sharding_constraint.*", text)
  assert len(marks) > 10
  named = {name for name in sharding.MESH_AXES if any(f'"{name}"' in mark for mark in marks)}
  expected = {"data", "tensor", "context"} | ({"fsdp"} if num_microbatches < 4 else set())
  assert named == expected, marks


def test_gradient_of_an_embedding_that_is_looked_up_for_two_rows_on_four_devices():
  # Also used to predict tokens, as in the model. With linen's with_logical_constraint, which splits
  # 2 rows over 4 devices, the gradient is off by 22 (jax 0.10.2).
  rng = np.random.RandomState(0)
  table, tokens = rng.standard_normal((32, 16)).astype(np.float32), rng.randint(0, 32, (2, 6))

  def loss(table, tokens):
    x = jnp.take(sharding.constrain(table, ("vocab", "embed_activation")), tokens, axis=0)
    x = sharding.constrain(x, ("batch", "length", "embed_activation"))
    return jnp.sum(jnp.square(x @ table.T))
  expected = jax.jit(jax.grad(loss))(table, tokens)
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  with partitioning.use():
    gradient = jax.jit(jax.grad(loss))(
        partitioning.place(table, ("vocab", "embed")), partitioning.place(tokens, ("batch",)))
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3)


def test_mapped_shards_split_a_name_alike_in_all_arguments():
  shapes = []
  def attend(q, k):  # Rows and groups of heads apart from each other.
    shapes.append((q.shape, k.shape))
    return q * jnp.repeat(k, q.shape[1] // k.shape[1], axis=1)
  rng = np.random.RandomState(0)
  q, k = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (4, 2)))
  def run(q, k):
    return sharding.map_shards(attend, (q, k), [("batch", "heads")] * 2, ("batch", "heads"))
  # 2 heads on 4 devices stay whole, and so do the 8 that belong to them.
  for mesh in ((1, 4, 2), (1, 2, 4)):
    with Partitioning(make_mesh(axes(mesh))).use():
      np.testing.assert_allclose(jax.jit(lambda q, k: run(q, k))(q, k), attend(q, k))
  run(q, k)
  assert shapes[::2] == [((1, 4), (1, 1)), ((2, 8), (2, 2)), ((4, 8), (4, 2))]


def test_without_a_mesh_nothing_is_constrained(tiny_config, tiny_params, tiny_batch):
  update, optimizer = make_update(tiny_config)
  state = step.init_state(tiny_params, optimizer)
  text = update.lower(state, microbatched(tiny_batch, 1)).as_text()
  assert "sharding_constraint" not in text


def test_generation_is_the_same_on_a_mesh(one_device, tiny_config, tiny_params, tiny_batch):
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  shardings = partitioning.params(abstract_params(tiny_config), parameter_axes(tiny_config))
  with partitioning.use():
    completions = generate(
        tiny_config, jax.device_put(tiny_params, shardings),
        partitioning.place(tiny_batch.prompts, ("batch",)), GREEDY, group_size=2,
        rng=jax.random.key(0), stop_ids=())
  np.testing.assert_array_equal(completions.tokens, one_device[2].tokens)
  np.testing.assert_allclose(completions.logprobs, one_device[2].logprobs, atol=1e-5)


def test_generation_with_8_bits_is_the_same_on_a_mesh(tiny_config, tiny_params, tiny_batch):
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  shardings = partitioning.params(abstract_params(tiny_config), parameter_axes(tiny_config))
  def sampled(params, prompts):
    return generate(tiny_config, params, prompts, GREEDY, group_size=2, rng=jax.random.key(0),
                    stop_ids=(), int8=True)
  one = sampled(tiny_params, tiny_batch.prompts)
  with partitioning.use():
    eight = sampled(jax.device_put(tiny_params, shardings),
                    partitioning.place(tiny_batch.prompts, ("batch",)))
  np.testing.assert_array_equal(eight.tokens, one.tokens)
  np.testing.assert_allclose(eight.logprobs, one.logprobs, atol=1e-5)


# Host arrays.

def test_host_arrays_go_to_devices_and_come_back():
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  x = np.arange(24.0).reshape(8, 3)
  placed = partitioning.place({"x": x, "n": np.arange(8)}, ("batch",))
  assert placed["x"].sharding.spec == PartitionSpec(("data", "fsdp"), None)
  assert placed["x"].addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(sharding.fetch(placed["x"]), x)
  assert sharding.gather_rows(x) is x
  assert sharding.any_process(True) and not sharding.any_process(False)
  assert sharding.is_main_process()


PROCESS = textwrap.dedent("""
    import pickle, sys
    import jax, numpy as np
    from rl_reason.runtime import sharding
    sharding.start_distributed()
    from tests.runtime.test_sharding import GREEDY, make_update, microbatched
    from rl_reason.models.transformer import abstract_params, parameter_axes
    from rl_reason.learner.step import init_state
    from rl_reason.rollout.generate import generate

    with open(sys.argv[1], "rb") as f:
      config, params, batch = pickle.load(f)
    me = jax.process_index()
    assert jax.process_count() == 2 and jax.local_device_count() == 2 and jax.device_count() == 4
    assert sharding.is_main_process() == (me == 0)
    try:
      sharding.make_mesh(dict(data=1, fsdp=2, tensor=1))
    except ValueError as e:
      assert "it must use all" in str(e)
    else:
      raise AssertionError("a mesh that leaves devices out")
    partitioning = sharding.Partitioning(sharding.make_mesh(dict(data=2, fsdp=-1, tensor=1)))
    axes = parameter_axes(config)
    shardings = partitioning.params(abstract_params(config), axes)
    update, optimizer = make_update(config)
    with partitioning.use():
      params = jax.tree.map(
          lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), params, shardings)
      placed = partitioning.place(microbatched(batch, 2), (None, "batch"))
      assert not placed.completions.is_fully_addressable
      state, metrics = update(init_state(params, optimizer), placed)
      prompts = partitioning.place(batch.prompts, ("batch",))
      completions = generate(
          config, params, prompts, GREEDY, group_size=2, rng=jax.random.key(0), stop_ids=())
    rows = sharding.gather_rows(np.full((2, 2), me))
    np.testing.assert_array_equal(rows, [[0, 0], [0, 0], [1, 1], [1, 1]])
    assert sharding.any_process(me == 1) and not sharding.any_process(False)
    result = jax.tree.map(sharding.fetch, (state.params, metrics)), completions
    with open(f"{sys.argv[2]}_{me}", "wb") as f:
      pickle.dump(result, f)
""")


def test_two_processes_equal_one(one_device, tiny_config, tiny_params, tiny_batch, tmp_path):
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  (tmp_path / "inputs").write_bytes(pickle.dumps((tiny_config, tiny_params, tiny_batch)))
  processes = [subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(tmp_path / "inputs"), str(tmp_path / "out")], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(
          devices=2, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)))
      for i in range(2)]
  try:
    outputs = [p.communicate(timeout=300)[0] for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
  for i in range(2):  # Both hold everything.
    (params, metrics), completions = pickle.loads((tmp_path / f"out_{i}").read_bytes())
    assert_equal_to(one_device, params, metrics)
    np.testing.assert_array_equal(completions.tokens, one_device[2].tokens)
    np.testing.assert_allclose(completions.logprobs, one_device[2].logprobs, atol=1e-5)
