"""What a stage needs is known from shapes alone, close to what XLA then takes.

It is refused where it is too much.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import Inputs, RolloutBatch
from rl_reason.config.overrides import replaced
from rl_reason.learner import memory as learner_memory
from rl_reason.learner import optimizers
from rl_reason.learner import step as learner
from rl_reason.models import memory as models_memory
from rl_reason.models import policy, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.objectives import losses
from rl_reason.rollout import decode
from rl_reason.rollout import memory as memory_lib
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import process
from rl_reason.runtime import memory, sharding
from rl_reason.runtime.memory import Batch, Part
from rl_reason.stages.registry import STAGES

MODEL = ModelConfig(
    vocab_size=64, width=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, mlp_hidden=128)


def partitioning(data=1, fsdp=1, tensor=1):
  return sharding.Partitioning(sharding.make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor)))


def abstract(model, places):
  shapes = transformer.abstract_params(model)
  shardings = places.params(shapes, transformer.parameter_axes(model))
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def by_name(parts):
  return {p.name: p.num_bytes for p in parts}


def test_the_peak_is_what_lasts_and_the_largest_phase():
  parts = [Part("parameters", 5, ""), Part("cache", 7, "", "sampling"),
           Part("logits", 1, "", "sampling"), Part("activations", 6, "", "update"),
           Part("gradients", 5, "", "update"), Part("optimizer", 10, "")]
  assert [p.name for p in memory.peak(parts)] == [
      "optimizer", "activations", "parameters", "gradients"]  # 26, not 23.
  parts.append(Part("weights", 4, "", "sampling"))  # 12 there now, against 11.
  assert [p.name for p in memory.peak(parts)] == [
      "optimizer", "cache", "parameters", "weights", "logits"]


def test_the_peak_is_that_of_the_devices_that_need_most():
  parts = [Part("parameters", 5, ""), Part("activations", 6, "", "update"),
           Part("cache", 9, "", "sampling", "that samples"),
           Part("weights", 3, "", "sampling", "that samples")]
  assert [p.name for p in memory.peak(parts)] == ["cache", "weights"]  # 12, and 11 on the others.
  assert memory.fit("rl", parts, None).startswith(
      "rl: needs about 0 MiB a device that samples: cache")
  parts.append(Part("gradients", 2, "", "update"))
  assert [p.name for p in memory.peak(parts)] == ["activations", "parameters", "gradients"]


def test_what_sampling_holds_by_hand():
  # A token's keys and values: 2 of them, 3 layers, 2 key heads, 16 features, 4 bytes: 768 bytes.
  batch = Batch(prompts=4, group_size=2, prompt_tokens=10, completion_tokens=5)
  def parts(dtype, **mesh):
    places = partitioning(**mesh)
    return by_name(memory_lib.rollout_parts(
        MODEL, places, batch, dtype=dtype, params=abstract(MODEL, places), phase="sampling",
        cure=""))
  one = parts(jnp.float32)
  # A chunk of all 5 tokens; between chunks what earlier ones left as it was, as it will be, and
  # with the chunk on top.
  held = 768 * 8 * (5 + 2 * 5 + (5 + 5))
  assert one["keys and values of prompts"] == 768 * 4 * 10
  assert one["keys and values of completions"] == held
  assert one["logits"] == models_memory.LOGITS_COPIES * 8 * 64 * 4
  assert parts(jnp.bfloat16)["keys and values of completions"] == held / 2
  # 4 devices share the completions, 2 the key heads; 3 do not divide 8 completions.
  assert parts(jnp.float32, data=2, fsdp=2)["keys and values of completions"] == held / 4
  assert parts(jnp.float32, data=2, tensor=2)["keys and values of completions"] == held / 4
  assert parts(jnp.float32, data=3)["keys and values of completions"] == held


@pytest.mark.parametrize("page_tokens", [0, 32])
def test_the_estimate_of_what_is_held_between_chunks_is_near_what_xla_takes(page_tokens):
  # 8 slots of up to 256 tokens: past 192 of them a chunk of 64 is appended to a room of 256, or to
  # pages of 32.
  places, dtype = partitioning(), jnp.float32
  parts = by_name(memory_lib.rollout_parts(
      MODEL, places, Batch(prompts=8, group_size=1, prompt_tokens=1, completion_tokens=256),
      dtype=dtype, params=abstract(MODEL, places), phase="sampling", cure="",
      page_tokens=page_tokens))
  def caches(rows, size):
    k = jax.ShapeDtypeStruct((rows, 2, 16, size), dtype)
    return [(k, jax.ShapeDtypeStruct((rows, 2, size, 16), dtype))] * MODEL.num_layers
  def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)
  def taken(lowered):
    found = lowered.compile().memory_analysis()
    return (found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
            - found.alias_size_in_bytes)
  if page_tokens:
    resized = taken(decode.resize_pool.lower(caches(32, 32), ints(64)))
    appended = taken(
        decode.append_to_pages.lower(caches(64, 32), caches(8, 64), ints(8, 3), ints(8)))
    chunk = 768 * 8 * 64
    found = max(resized + chunk, appended)
  else:
    bools, hidden = jax.ShapeDtypeStruct((8,), bool), jax.ShapeDtypeStruct((8, 64), dtype)
    slots = decode.Slots(ints(8), ints(8), ints(8), hidden, bools, caches(8, 256))
    numbers = jax.ShapeDtypeStruct((8, 64), dtype)
    chunk = decode.Chunk(ints(), ints(8, 64), numbers, numbers, caches(8, 64))
    prompts = decode.Prompts(caches(8, 1), ints(8), hidden)
    found = taken(decode.arrange.lower(
        slots, chunk, prompts, ints(8), bools, ints(8), ints(8), bools, capacity=256))
  assert 0.7 < parts["keys and values of completions"] / found < 1.5


def test_what_pages_hold_by_hand():
  # 8 completions with 4 tokens that are read, in pages of 2: pools of 0, 8 and 16 pages. The last
  # grows from the one before, and a chunk holds all 5 tokens.
  places = partitioning()
  batch = Batch(prompts=4, group_size=2, prompt_tokens=10, completion_tokens=5)
  parts = by_name(memory_lib.rollout_parts(
      MODEL, places, batch, dtype=jnp.float32, params=abstract(MODEL, places), phase="sampling",
      cure="", page_tokens=2))
  assert parts["keys and values of completions"] == 768 * (8 * 5 + (8 + 16) * 2)


def test_what_reading_prompts_holds_by_hand():
  # Per token 3 * 64 numbers of the residual stream and 3 * 128 of the feed-forward, more than the
  # scores of 4 heads; and its keys and values, which the cache holds once more. In stretches of 4 a
  # prompt of 10 has room for 12.
  places = partitioning()
  def parts(**kwargs):
    found = memory_lib.rollout_parts(
        MODEL, places, Batch(prompts=4, group_size=2, prompt_tokens=10, completion_tokens=5),
        dtype=jnp.float32, params=abstract(MODEL, places), phase="sampling", cure="", **kwargs)
    return {phase: by_name(p for p in found if p.phase == phase)
            for phase in ("sampling", "reading of prompts for sampling")}
  activations = 4 * 3 * (64 + 128)
  assert parts()["reading of prompts for sampling"] == {
      "reading of prompts": 40 * (activations + 768), "keys and values of prompts": 40 * 768}
  # All prompts are there before the first token is sampled.
  assert "reading of prompts" not in parts()["sampling"]
  stretches = parts(prefill_tokens=4)
  assert stretches["reading of prompts for sampling"] == {
      "reading of prompts": 16 * activations + 48 * 768, "keys and values of prompts": 48 * 768}
  assert stretches["sampling"]["keys and values of prompts"] == 48 * 768
  # Two slots keep two prompts, one of which is read anew while they decode.
  assert parts(slots=2)["sampling"]["reading of prompts"] == 10 * (activations + 768)


def test_what_the_learner_holds_by_hand():
  # Embedding 64 * 64; per layer 2 * 64 norms, 64 * 16 * (4 + 2 + 2 + 4) attention, 3 * 64 * 128
  # feed-forward; final norm.
  weights = 64 * 64 + 3 * (2 * 64 + 64 * 16 * 12 + 3 * 64 * 128) + 64
  places = partitioning()
  params = abstract(MODEL, places)
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(1e-3), 1)
  state = jax.eval_shape(lambda p: learner.init_state(p, optimizer), params)
  shardings = places.state(
      state, places.params(params, transformer.parameter_axes(MODEL)), optimizer)
  state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
  one = by_name(learner_memory.learner_parts(state, microbatches=1))
  assert one["parameters"] == one["policy the stage starts from"] == one["gradients"] == 4 * weights
  assert 0 <= one["optimizer"] - 2 * 4 * weights < 100  # Two moments and some counters.
  parts = by_name(learner_memory.learner_parts(state, microbatches=2))
  assert parts["gradients"] == 2 * 4 * weights


def test_split_arrays_count_with_their_share():
  places = partitioning(fsdp=2, tensor=2)
  x = jax.ShapeDtypeStruct((6, 8), jnp.float32, sharding=places.sharding((6, 8), ("embed", "mlp")))
  odd = jax.ShapeDtypeStruct(
      (5, 8), jnp.bfloat16, sharding=places.sharding((5, 8), ("embed", "mlp")))
  assert memory.sharded_bytes([x, odd]) == 3 * 4 * 4 + 5 * 4 * 2


def test_activations_shrink_with_devices_microbatches_and_remat():
  batch = Batch(prompts=8, group_size=2, prompt_tokens=8, completion_tokens=16)
  def saved(batch=batch, remat="none", **mesh):
    return models_memory.saved_activations(
        MODEL, partitioning(**mesh), batch, dtype=jnp.float32, remat=remat)
  whole = saved()
  np.testing.assert_allclose(saved(dataclasses.replace(batch, prompts=4)), whole / 2, rtol=0.02)
  np.testing.assert_allclose(saved(data=4), whole / 4)
  assert whole / 2 < saved(tensor=2) < 0.8 * whole  # The residual stream stays whole.
  assert 3 * MODEL.num_layers * 16 * 15 * 64 * 4 < whole
  assert saved(remat="full") < saved(remat="dots") / 2 < whole / 2


def xla_temporaries(batch, *, microbatches, remat):
  """Bytes that XLA takes for an update beside its arguments."""
  optimizer = optimizers.make_optimizer(optimizers.Optimizer(1e-3), 1)

  def loss_fn(params, batch):
    logprobs, entropy = policy.completion_logprobs(
        MODEL, params, batch.prompts, batch.completions, batch.completion_lengths, remat=remat)
    return losses.policy_gradient_loss(
        logprobs, entropy, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3")

  def array(dtype, rows, *columns):
    return jax.ShapeDtypeStruct((microbatches, rows // microbatches, *columns), dtype)
  rows, columns = batch.completions, batch.completion_tokens
  floats = {name: array(jnp.float32, rows, columns)
            for name in ("behaviour_logprobs", "advantages", "reference_logprobs", "token_weights")}
  data = RolloutBatch(
      prompts=Inputs(
          array(jnp.int32, batch.prompts, batch.prompt_tokens), array(jnp.int32, batch.prompts)),
      completions=array(jnp.int32, rows, columns), completion_lengths=array(jnp.int32, rows),
      **floats)
  state = jax.eval_shape(
      lambda p: learner.init_state(p, optimizer), transformer.abstract_params(MODEL))
  update = functools.partial(learner.train_step, loss_fn=loss_fn, optimizer=optimizer)
  return jax.jit(update, donate_argnums=0).lower(
      state, data).compile().memory_analysis().temp_size_in_bytes


def test_the_estimate_is_near_what_xla_takes_and_microbatches_save_memory(monkeypatch):
  # As deep models run; of unrolled layers XLA keeps less than is estimated.
  monkeypatch.setattr(transformer, "UNROLLED_LAYERS", 0)
  batch = Batch(prompts=4, group_size=4, prompt_tokens=16, completion_tokens=32)
  places = partitioning()
  params = memory.sharded_bytes(abstract(MODEL, places))
  taken = {}
  for microbatches, remat in ((1, "none"), (2, "none"), (1, "full")):
    part = dataclasses.replace(batch, prompts=batch.prompts // microbatches)
    estimate = params * microbatches + sum(
        p.num_bytes
        for p in learner_memory.update_parts(MODEL, places, part, dtype=jnp.float32, remat=remat))
    taken[microbatches, remat] = xla_temporaries(batch, microbatches=microbatches, remat=remat)
    assert 0.7 < estimate / taken[microbatches, remat] < 1.5, (microbatches, remat, estimate, taken)
  assert taken[2, "none"] < 0.65 * taken[1, "none"] and taken[1, "full"] < 0.6 * taken[1, "none"]


def test_the_estimate_of_scoring_is_near_what_xla_takes():
  batch = Batch(prompts=4, group_size=4, prompt_tokens=64, completion_tokens=32)
  places = partitioning()
  prompts = Inputs(jnp.zeros((4, 64), jnp.int32), jnp.ones(4, jnp.int32))
  scored = policy.score.lower(
      MODEL, transformer.abstract_params(MODEL), prompts, jnp.zeros((16, 32), jnp.int32),
      jnp.ones(16, jnp.int32))
  estimate = sum(
      p.num_bytes for p in learner_memory.scoring_parts(MODEL, places, batch, dtype=jnp.float32))
  assert 0.7 < estimate / scored.compile().memory_analysis().temp_size_in_bytes < 1.5


def test_what_fits_is_told_and_what_does_not_is_refused_with_cures():
  parts = [
      Part("parameters", 2**30, "take a smaller policy"),
      Part("cache", 2 * 2**30, "lower group_size", "sampling"),
      Part("activations", 3 * 2**30, "raise microbatches", "update"),
      Part("logits", 2**29, "raise microbatches", "update")]
  assert memory.fit("rl", parts, 5 * 2**30) == (
      "rl: needs about 4.5 GiB of 5.0 GiB a device: activations 3.0 GiB, parameters 1.0 GiB, logits"
      " 512 MiB.")
  assert memory.fit("rl", parts, None).startswith("rl: needs about 4.5 GiB a device: ")
  with pytest.raises(ValueError) as error:
    memory.fit("rl", parts, 4 * 2**30)
  assert str(error.value) == (
      "Stage 'rl' needs about 4.5 GiB a device, most of all in its update, and a device has 4.0"
      " GiB: activations 3.0 GiB (raise microbatches); parameters 1.0 GiB (take a smaller policy);"
      " logits 512 MiB (raise microbatches). Change config.rl, the mesh or the policy accordingly.")


def test_what_the_host_can_give(tmp_path):
  (tmp_path / "meminfo").write_text(
      "MemTotal:       24684096 kB\nMemFree:  14 kB\nMemAvailable:   2048 kB\n")
  (tmp_path / "max").write_text("max\n")
  (tmp_path / "less").write_text("1000000\n")
  free = functools.partial(memory.host_memory, tmp_path / "meminfo")
  assert free(tmp_path / "none") == free(tmp_path / "max") == 2048 * 1024
  assert free(tmp_path / "less") == 1_000_000
  assert memory.host_memory(tmp_path / "none", tmp_path / "none") > 2**20
  assert memory.device_memory(partitioning(data=2)) == pytest.approx(
      memory.device_memory(partitioning()) / 2, rel=0.2)


def test_every_stage_says_what_it_needs():
  config = config_lib.load("experiments/quickstart.py:tiny")
  run_config, sections = config_lib.check(config)
  context = run.make_context(run_config)
  needed = {name: STAGES[s.kind].memory(s, context, name) for name, s in sections.items()}
  phases = {name: {p.phase for p in parts} for name, parts in needed.items()}
  assert phases == {
      "sft": {"", "update", "optimizer step"},
      "rl": {"", "update", "optimizer step", "reading of prompts for sampling", "sampling",
             "scoring"}}
  assert all(p.num_bytes > 0 and p.cure for parts in needed.values() for p in parts)
  without = replaced(sections["rl"], {"objective.kl.coef": 0.0})
  assert "scoring" not in {
      p.phase for p in STAGES["policy_gradient"].memory(without, context, "rl")}


def test_running_out_of_memory_ends_a_command_with_one_line(monkeypatch):
  monkeypatch.delenv("RL_REASON_TRACEBACK", raising=False)
  with pytest.raises(SystemExit, match="Error: A device ran out of memory .* saved stays.* raise"
                     " microbatches") as end:
    with process.errors_in_one_line():
      jnp.zeros(2**46).block_until_ready()
  assert "\n" not in str(end.value)
  # A fault of another kind keeps its traceback.
  with pytest.raises(jax.errors.JaxRuntimeError, match="other"):
    with process.errors_in_one_line():
      raise jax.errors.JaxRuntimeError("INTERNAL: other")
