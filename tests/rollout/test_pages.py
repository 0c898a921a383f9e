"""Pages of sampled tokens.

Handed out by hand, attention over them, and completions equal to those without pages.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.models.attention import attention, Pages, visible
from rl_reason.models.transformer import abstract_params, parameter_axes
from rl_reason.rollout import decode, pages, schedule
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime.sharding import make_mesh, Partitioning


@pytest.fixture
def few(monkeypatch):
  """Pools and slots from two on."""
  monkeypatch.setattr(pages, "FEWEST_SLOTS", 2)
  monkeypatch.setattr(schedule, "FEWEST_SLOTS", 2)


def test_pages_by_hand(few):
  # 3 slots of 8 tokens that are read, in pages of 2.
  assert pages.pool_sizes(2, 3, 9) == [0, 2, 4, 8, 12]
  t = pages.PageTable(2, num_slots=3, max_tokens=9)
  assert t.paging(np.array([0, 1, 2])) is None
  # Completions 0 and 1 have sampled 3 tokens and one: two pages and one.
  assert t.hold([0, 1], [3, 1]).shape == (4,) and t.size == 4
  windows, offsets = t.windows(np.array([0, 1, -1]), np.array([0, 0, 0]), columns=4)
  assert windows.tolist() == [[0, 1, 4], [2, 4, 4], [4, 4, 4]] and offsets.tolist() == [0, 0, 0]
  paging = t.paging(np.array([1, -1, 0]))  # They moved to other slots; their pages did not.
  assert paging.pages.table.tolist() == [[2, -1], [-1, -1], [0, 1]]
  assert paging.pages.owners.tolist() == [2, 2, 0, 0]
  assert paging.starts.tolist() == [0, 2, 0, pages.NOWHERE]
  # 0 ends, and 5, which sampled 2 tokens, gets what it had.
  t.release([0])
  assert t.hold([1, 5], [4, 2]) is None and t.size == 4
  paging = t.paging(np.array([1, 5]))
  assert paging.pages.table.tolist() == [[2, 1], [0, -1]]
  assert paging.starts.tolist() == [0, 2, 0, pages.NOWHERE]
  # Six pages are more than four: what is held moves to the front, in its order.
  assert t.hold([1, 5], [7, 4]).tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
  assert t.paging(np.array([5, 1])).pages.table.tolist() == [[2, 5, -1, -1], [0, 1, 3, 4]]
  windows, offsets = t.windows(np.array([1, 5]), np.array([3, 3]), columns=3)
  assert windows.tolist() == [[1, 3, 4], [5, 8, 8]] and offsets.tolist() == [1, 1]
  # Two pages would fill a pool of two; of four, half stays free.
  t.release([1])
  assert t.hold([5], [4]).tolist() == [2, 5, 0, 0]
  assert t.paging(np.array([5])).pages.table.tolist() == [[0, 1]]
  t.release([5])
  assert t.hold([], []).tolist() == [] and t.size == 0
  assert t.hold([7, 8, 9], [8, 8, 8]).shape == (12,)  # Never more than all slots can fill.


@pytest.mark.parametrize("window", [None, 3])
def test_attention_over_pages_equals_attention_over_rows(window):
  # Three queries after 5, 0 and 8 keys, in pages of 3 that lie anywhere in a pool of 8; free ones
  # and tails hold garbage.
  draw, lengths, size = np.random.RandomState(0), np.array([5, 0, 8]), 3
  def normal(*shape):
    return draw.standard_normal(shape).astype(np.float32)
  q, k, v = normal(3, 1, 4, 8), normal(3, 2, 8, 9), normal(3, 2, 9, 8)
  own_k, own_v = normal(3, 2, 8, 1), normal(3, 2, 1, 8)
  table = np.array([[6, 1, -1], [-1, -1, -1], [0, 3, 5]])
  pool_k, pool_v = 100 * normal(8, 2, 8, size), 100 * normal(8, 2, size, 8)
  owners, starts = np.zeros(8, np.int32), np.full(8, pages.NOWHERE)
  for b, row in enumerate(table):
    for i, page in enumerate(row[row >= 0]):
      held = slice(i * size, min(lengths[b], (i + 1) * size))
      count = held.stop - held.start
      pool_k[page, :, :, :count], pool_v[page, :, :count] = k[b, :, :, held], v[b, :, held]
      owners[page], starts[page] = b, i * size
  positions = jnp.asarray(lengths[:, None])
  def masks(places, valid, sharing=None):
    return visible(positions, places, valid, window, sharing)
  own = own_k, own_v, masks(positions, np.ones((3, 1), bool)), None
  places = np.broadcast_to(np.arange(9), (3, 9))
  expected = attention(
      q, [(k, v, masks(places, places < lengths[:, None]), None), own], scale=0.3, softcap=5.0)
  sharing, places = Pages(owners, table), starts[:, None] + np.arange(size)
  paged = pool_k, pool_v, masks(places, places < lengths[owners][:, None], sharing), sharing
  np.testing.assert_allclose(
      attention(q, [paged, own], scale=0.3, softcap=5.0), expected, atol=1e-5)


@pytest.fixture(scope="module")
def run(tiny_config, draw_params, tiny_batch):
  """generate() of completions that end at many lengths.

  The model has a layer of a window and one without.
  """
  config = dataclasses.replace(tiny_config, sliding_window=4, local_layers=(True, False))
  params = draw_params(config)
  def run(**kwargs):
    return generate(config, params, tiny_batch.prompts, Sampling(max_tokens=23), group_size=2,
                    rng=jax.random.key(2), stop_ids=[3, 17], chunk_size=4, **kwargs)
  return run


@pytest.mark.parametrize("page_tokens, fields", [
    (3, dict(slots=2, int8=True)), (5, dict(slots=5, prefill_tokens=4)), (64, dict())], ids=str)
def test_completions_are_those_without_pages(page_tokens, fields, run, few):
  expected, out = run(**fields), run(page_tokens=page_tokens, **fields)
  assert len(set(expected.lengths)) > 4 and max(expected.lengths) > 10
  np.testing.assert_array_equal(out.tokens, expected.tokens)
  np.testing.assert_array_equal(out.lengths, expected.lengths)
  for name in ("logprobs", "behaviour_logprobs"):
    np.testing.assert_allclose(getattr(out, name), getattr(expected, name), atol=1e-5)


def test_the_pool_follows_the_tokens_that_are_held(run, few, monkeypatch):
  sizes, held = [], []
  resize, hold = decode.resize_pool, pages.PageTable.hold
  def resized(past, source):
    sizes.append(len(source))
    return resize(past, source)
  def holding(self, completions, lengths):
    held.append(sum(-(-int(n) // 2) for n in lengths))
    moved = hold(self, completions, lengths)
    assert held[-1] <= self.size <= max(2, 8 * held[-1] // 3)
    return moved
  monkeypatch.setattr(decode, "resize_pool", resized)
  monkeypatch.setattr(pages.PageTable, "hold", holding)
  run(page_tokens=2, slots=0)
  # It grew, more than once; 8 slots of 22 tokens would be 88 pages.
  assert sizes[0] < max(sizes) < 88 and max(held) <= max(sizes), (sizes, held)


def test_a_smaller_pool_holds_what_moves_there():
  k = np.arange(4 * 2).reshape(4, 1, 2, 1).astype(np.float32)
  [(moved_k, moved_v)] = decode.resize_pool([(k, k.swapaxes(2, 3))], np.array([3, 1]))
  np.testing.assert_array_equal(moved_k, k[[3, 1]])
  np.testing.assert_array_equal(moved_v, k[[3, 1]].swapaxes(2, 3))


def test_pages_on_a_mesh(tiny_config, tiny_params, tiny_batch):
  def sampled(params, prompts, **kwargs):
    return generate(tiny_config, params, prompts, Sampling(max_tokens=9), group_size=2,
                    rng=jax.random.key(0), stop_ids=[3], chunk_size=4, **kwargs)
  expected = sampled(tiny_params, tiny_batch.prompts)
  partitioning = Partitioning(make_mesh(dict(data=2, fsdp=2, tensor=2)))
  shardings = partitioning.params(abstract_params(tiny_config), parameter_axes(tiny_config))
  with partitioning.use():
    out = sampled(jax.device_put(tiny_params, shardings), tiny_batch.prompts, page_tokens=2,
                  prefill_tokens=4)
  np.testing.assert_array_equal(out.tokens, expected.tokens)
  np.testing.assert_allclose(out.logprobs, expected.logprobs, atol=1e-5)


def test_bad_numbers_are_refused(run):
  with pytest.raises(
      ValueError, match="page_tokens must be at least 0, got -2: 0 keeps tokens without pages"):
    run(page_tokens=-2)
