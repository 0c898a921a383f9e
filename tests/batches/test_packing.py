"""Packing: rows by hand, every token where it belongs, the same loss and gradient as without."""

import functools

import jax
import numpy as np
import pytest

from rl_reason.batches import packing
from rl_reason.batches.packing import Packing
from rl_reason.models import policy
from rl_reason.objectives import losses


def test_rows_by_hand(monkeypatch):
  # Two groups of 4 in rows of 8 tokens. 8 | 5 + 2 + 1 are 2 rows; 3 + 3 + 2 would fit, with 1 that
  # is 9: 2 rows as well.
  monkeypatch.setattr(packing, "SHORTEST", 1)
  monkeypatch.setattr(packing, "WIDEST", 8)
  rows = Packing.of(np.array([2, 8, 1, 5, 3, 1, 3, 2]), 4, 8)
  assert (rows.num_rows, rows.size) == (4, 8)
  np.testing.assert_array_equal(rows.row, [1, 0, 1, 1, 2, 3, 2, 2])
  np.testing.assert_array_equal(rows.start, [5, 0, 7, 0, 0, 0, 3, 6])
  np.testing.assert_array_equal(rows.row_lengths, [8, 8, 8, 1])
  np.testing.assert_array_equal(rows.segments, [
      [0] * 8, [0, 0, 0, 0, 0, 5, 5, 7], [0, 0, 0, 3, 3, 3, 6, 6], [0, 1, 2, 3, 4, 5, 6, 7]])
  x = np.arange(64).reshape(8, 8)
  np.testing.assert_array_equal(rows.pack(x)[1], [24, 25, 26, 27, 28, 0, 1, 16])
  real = np.arange(8) < np.array([2, 8, 1, 5, 3, 1, 3, 2])[:, None]
  np.testing.assert_array_equal(rows.unpack(rows.pack(x), 8), np.where(real, x, 0))


def test_sizes_come_from_a_short_list():
  assert [packing.row_size(np.array([n]), 100) for n in (1, 16, 25, 26, 50, 51, 100)] == [
      25, 25, 25, 50, 50, 100, 100]
  assert packing.row_size(np.array([3]), 20) == 20  # Never shorter than 16 by halving.
  assert [packing.rows_per_group(n, 8, 2, 1) for n in range(1, 9)] == [2, 2, 4, 4, 6, 6, 8, 8]
  # 2 groups over 8 devices: 2 * 2 and 2 * 6 rows cannot be shared.
  assert [packing.rows_per_group(n, 8, 2, 8) for n in (1, 3, 5, 9)] == [4, 4, 8, None]
  assert [packing.rows_per_group(n, 24, 1, d, 16) for n, d in (
      (1, 1), (4, 1), (14, 1), (14, 2), (23, 4))] == [2, 5, 14, 14, 24]
  seen = set()
  for seed in range(200):
    draw = np.random.RandomState(seed)
    rows = Packing.of(np.minimum(draw.geometric(1 / draw.uniform(2, 200), 64), 128), 8, 128)
    seen.add((rows.num_rows, rows.size))
  assert len(seen) <= 24


def test_wider_rows_where_they_leave_less_padding(monkeypatch):
  monkeypatch.setattr(packing, "SHORTEST", 1)
  # 8 completions of 5 tokens in rows of 8: none shares a row, 64 places. Of 16: three fit, 3 rows,
  # 48. Of 32: six fit, 2 rows, 64. A row of 16 is too wide where WIDEST is 15; 2 devices cannot
  # share 3 rows, and 4 of 16 save nothing.
  five = np.full(8, 5)
  rows = Packing.of(five, 8, 8)
  assert (rows.num_rows, rows.size) == (3, 16)
  np.testing.assert_array_equal(rows.row, [0, 0, 0, 1, 1, 1, 2, 2])
  np.testing.assert_array_equal(rows.start, [0, 5, 10, 0, 5, 10, 0, 5])
  assert Packing.of(five, 8, 8, divisor=2).size == 8
  monkeypatch.setattr(packing, "WIDEST", 15)
  assert (Packing.of(five, 8, 8).num_rows, Packing.of(five, 8, 8).size) == (8, 8)


def test_a_row_per_completion_keeps_no_segments():
  rows = Packing.of(np.array([2, 3, 1, 3]), 2, 64, together=False)
  assert (rows.num_rows, rows.size, rows.segments) == (4, 16, None)
  x = np.random.RandomState(0).rand(4, 64)
  np.testing.assert_array_equal(rows.pack(x)[1, :3], x[1, :3])


@pytest.fixture(scope="module")
def value_and_grad(tiny_config):
  def loss(params, batch):
    logprobs, entropy = policy.completion_logprobs(
        tiny_config, params, batch.prompts, batch.completions, batch.completion_lengths,
        segments=batch.segments)
    return losses.policy_gradient_loss(
        logprobs, entropy, batch, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3",
        entropy_coef=0.1)
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_packed_and_plain_rows_have_the_same_loss_and_gradient(
    value_and_grad, tiny_params, tiny_batch, monkeypatch):
  monkeypatch.setattr(packing, "SHORTEST", 1)
  # Completions 6 and 7 become short: their group, and no other, fits into one row.
  lengths = np.array([5, 2, 1, 4, 1, 4, 3, 1], np.int32)
  mask = np.arange(5) < lengths[:, None]
  batch = tiny_batch.replace(
      completion_lengths=lengths, token_weights=mask / mask.sum(dtype=np.float32))
  # Rows of 10 for completions of 5, so that groups of 2 fit into one row each; one of them is not
  # full.
  wide = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 5))) if x.shape == (8, 5) else x, batch)
  rows = Packing(np.repeat(np.arange(4), 2), np.array([0, 5, 0, 1, 0, 1, 0, 3]), lengths, 4, 10)
  packed = packing.pack(wide, rows)
  assert packed.completions.shape == (4, 10)
  # Padding may hold anything.
  packed = packed.replace(completions=np.where(packed.completion_mask, packed.completions, 31))
  (a, statistics_a), grads_a = value_and_grad(tiny_params, batch)
  (b, statistics_b), grads_b = value_and_grad(tiny_params, packed)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5),
               statistics_a.metrics(), statistics_b.metrics())
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), grads_a, grads_b)


def test_balanced_parts_by_hand():
  # 9, then 8, 7 to the lighter list, 2 to the list of 9, and the last to where there is room.
  assert packing.balance([9, 2, 7, 1, 8, 3], 2) == [[0, 1, 5], [2, 3, 4]] or sorted(
      sum([9, 2, 7, 1, 8, 3][i] for i in part)
      for part in packing.balance([9, 2, 7, 1, 8, 3], 2)) == [14, 16]
  assert packing.balance([5, 5, 5, 5], 4) == [[0], [1], [2], [3]]
  assert packing.balance([1, 2, 3], 1) == [[0, 1, 2]]
