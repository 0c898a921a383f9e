"""Prompts read in stretches.

Equal to reading them whole, with a stretch's memory and programs, and nobody waits for them.
"""

import dataclasses

import jax
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.models import sources as config_lib
from rl_reason.models.transformer import abstract_params
from rl_reason.rollout import decode, prefill, schedule
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as run_config

LENGTHS = np.array([6, 3, 1, 5], np.int32)


def read(config, params, prompts, stretch):
  *waits, prompts = prefill.read_prompts(config, params, prompts, stretch=stretch, dtype=np.float32)
  return waits, prompts


@pytest.fixture(scope="module")
def model(tiny_config, draw_params):
  """(config, parameters) of a layer with a window of two and one without."""
  config = dataclasses.replace(tiny_config, sliding_window=2, local_layers=(True, False))
  return config, draw_params(config)


@pytest.mark.parametrize("stretch, num_stretches", [(1, 6), (2, 3), (4, 2), (6, 1), (9, 1)])
def test_stretches_equal_the_whole(stretch, num_stretches, model, tiny_batch):
  config, params = model
  expected = prefill.read_whole(config, params, tiny_batch.prompts, dtype=np.float32)
  waits, out = read(config, params, tiny_batch.prompts, stretch)
  assert waits == [None] * (num_stretches - 1)
  np.testing.assert_allclose(out.hidden, expected.hidden, atol=1e-5)
  real = np.arange(6) < LENGTHS[:, None]
  for (k, v), (expected_k, expected_v) in zip(out.cache, expected.cache, strict=True):
    assert k.shape[-1] == v.shape[-2] == num_stretches * stretch
    for ours, theirs, mask in ((k[..., :6], expected_k, real[:, None, None]),
                               (v[..., :6, :], expected_v, real[:, None, :, None])):
      np.testing.assert_allclose(np.where(mask, ours, 0), np.where(mask, theirs, 0), atol=1e-5)


def test_padding_may_hold_anything_and_only_the_longest_prompt_counts(model, tiny_batch):
  config, params = model
  prompts = jax.tree.map(lambda x: x[1:3], tiny_batch.prompts)  # 3 tokens and 1, in rows of 6.
  waits, out = read(config, params, prompts, 2)
  assert len(waits) == 1  # Two stretches, not three.
  garbage = np.where(np.arange(6) < prompts.lengths[:, None], prompts.tokens, 31)
  again = read(config, params, prompts.replace(tokens=garbage), 2)[1]
  np.testing.assert_array_equal(again.hidden, out.hidden)
  expected = prefill.read_whole(config, params, prompts, dtype=np.float32)
  np.testing.assert_allclose(out.hidden, expected.hidden, atol=1e-5)


@pytest.mark.parametrize("slots, stretch", [(0, 4), (2, 2), (3, 4)])
def test_completions_are_the_same(slots, stretch, model, tiny_batch):
  config, params = model
  def run(**kwargs):
    return generate(config, params, tiny_batch.prompts, Sampling(max_tokens=7), group_size=2,
                    rng=jax.random.key(0), stop_ids=[5, 9], chunk_size=3, **kwargs)
  expected, out = run(), run(slots=slots, prefill_tokens=stretch)
  np.testing.assert_array_equal(out.tokens, expected.tokens)
  np.testing.assert_array_equal(out.lengths, expected.lengths)
  np.testing.assert_allclose(out.logprobs, expected.logprobs, atol=1e-5)


def test_all_prompts_of_as_many_stretches_share_their_programs(tiny_config, tiny_params):
  read(tiny_config, tiny_params,
       Inputs(np.ones((3, 5), np.int32), np.array([5, 4, 1], np.int32)), 4)
  programs = prefill.read_stretch._cache_size(), prefill.end_reading._cache_size()
  for width in (6, 7, 8):
    read(tiny_config, tiny_params,
         Inputs(np.ones((3, width), np.int32), np.array([width, 1, 2], np.int32)), 4)
  assert (prefill.read_stretch._cache_size(), prefill.end_reading._cache_size()) == programs


def test_a_long_prompt_takes_the_memory_of_a_stretch(tiny_config):
  params, count, size = abstract_params(tiny_config), 2, 512
  def temporaries(lowered):
    return lowered.compile().memory_analysis().temp_size_in_bytes
  whole = temporaries(prefill.read_whole.lower(
      tiny_config, params, Inputs(np.ones((count, size), np.int32), np.full(count, size)),
      dtype=np.float32))
  reading = jax.eval_shape(
      lambda: prefill.begin_reading(tiny_config, count=count, size=size, dtype=np.float32))
  stretch = temporaries(prefill.read_stretch.lower(
      tiny_config, params, reading, np.ones((count, 32), np.int32), np.full(count, size),
      np.int32(0), dtype=np.float32))
  # Scores of 32 x 544 and not of 512 x 512, and keys and values that are there anyway.
  assert stretch < whole / 8


def test_slots_decode_between_the_stretches_of_the_next_prompts(
    tiny_config, tiny_params, monkeypatch):
  # 12 prompts of 8 tokens, one completion each, through 4 slots: 8 prompts first, then two at a
  # time in 4 stretches.
  told = []
  def recorded(module, name):
    function = getattr(module, name)
    def call(*args, **kwargs):
      told.append(name)
      return function(*args, **kwargs)
    monkeypatch.setattr(module, name, call)
  recorded(prefill, "read_stretch"), recorded(decode, "decode_chunk")
  draw = np.random.RandomState(3)
  prompts = Inputs(draw.randint(0, 32, (12, 8)).astype(np.int32), np.full(12, 8, np.int32))
  out = generate(tiny_config, tiny_params, prompts, Sampling(max_tokens=24), group_size=1,
                 rng=jax.random.key(1), stop_ids=[1, 2], chunk_size=1, slots=4, prefill_tokens=2)
  assert len(set(out.lengths)) > 4
  assert told[:5] == ["read_stretch"] * 4 + ["decode_chunk"]
  assert told.count("read_stretch") == 4 + 2 * 4
  # No two stretches follow each other while the slots are busy.
  later = "".join("r" if name == "read_stretch" else "d" for name in told[4:])
  assert "rd" * 3 in later, later


def test_completions_wait_until_their_prompts_are_read(monkeypatch):
  monkeypatch.setattr(schedule, "FEWEST_SLOTS", 1)
  s = schedule.Schedule(6, 1, 2)  # 4 of 6 prompts in the cache.
  s.prompts_read(s.admit()[1])
  s.arrange()
  s.finish(np.array([0]))
  s.arrange()  # Completion 2 starts.
  rows, groups = s.admit()
  assert (rows.tolist(), groups.tolist()) == ([0], [4])
  s.finish(np.array([0]))
  s.arrange()  # Completion 3.
  s.finish(np.array([0, 1]))
  assert not s.arrange().new.any() and s.idle and not s.finished  # 4 may not start yet.
  # There is something to do: its prompt is being read.
  assert s.admit(at_least=9)[1].tolist() == []
  s.prompts_read(groups)
  assert s.arrange().new.any() and s.ids.tolist() == [4]
  s.finish(np.array([0]))
  assert s.admit(at_least=9)[1].tolist() == [5]  # Now there is not.


def test_bad_numbers_are_refused(tiny_config, tiny_params, tiny_batch):
  with pytest.raises(ValueError, match="prefill_tokens must be at least 0, got -1"):
    generate(tiny_config, tiny_params, tiny_batch.prompts, Sampling(max_tokens=2), group_size=1,
             rng=jax.random.key(0), stop_ids=(), prefill_tokens=-1)
  policy = config_lib.Policy(source="small", args={})
  with pytest.raises(
      ValueError,
      match="prefill_tokens=300 is more than max_prompt_tokens=256: .* set 0 to read"):
    run_config.RunConfig(policy=policy, stages=("sft",), prefill_tokens=300)
