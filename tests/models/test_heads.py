"""Heads: hand-worked outputs, where they start, and that they shard like the model they sit on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.models import heads
from rl_reason.runtime.sharding import make_mesh, Partitioning


def test_a_linear_head_by_hand():
  params = {"output": jnp.array([[1.0, 0.0], [2.0, -1.0]]), "output_bias": jnp.array([0.5, 0.0])}
  # [1·1 + 3·2 + 0.5, 1·0 − 3·1]
  np.testing.assert_allclose(
      heads.apply(heads.Head(outputs=2), params, jnp.array([[[1.0, 3.0]]])), [[[7.5, -3.0]]])


def test_a_head_with_a_layer_by_hand():
  params = {"hidden": jnp.array([[2.0]]), "hidden_bias": jnp.array([1.0]),
            "output": jnp.array([[3.0]]), "output_bias": jnp.array([0.0])}
  expected = 3 * 2.0 / (1 + np.exp(-2.0))  # silu(0.5·2 + 1) = 2·sigmoid(2)
  np.testing.assert_allclose(
      heads.apply(heads.Head(hidden=1), params, jnp.array([0.5])), [expected], rtol=1e-6)


@pytest.mark.parametrize("head", [heads.Head(), heads.Head(outputs=3, hidden=8)])
def test_a_head_starts_at_zero_learns_and_is_float32(head):
  params = heads.init_params(head, 16, jax.random.key(0))
  hidden = jax.random.normal(jax.random.key(1), (2, 5, 16), jnp.bfloat16)
  value, grads = jax.value_and_grad(lambda p: heads.apply(head, p, hidden).sum())(params)
  assert value == 0 and heads.apply(head, params, hidden).dtype == jnp.float32
  assert np.abs(grads["output"]).max() > 0


def test_a_head_is_split_as_its_axes_say():
  head, mesh = heads.Head(outputs=2, hidden=8), make_mesh(dict(data=1, fsdp=2, tensor=4))
  shardings = Partitioning(mesh).params(
      heads.abstract_params(head, 16), heads.parameter_axes(head, 16))
  assert tuple(shardings["hidden"].spec) == ("fsdp", "tensor")
  assert tuple(shardings["output"].spec) == ("tensor", None)


def test_sizes_that_make_no_head_are_named():
  with pytest.raises(ValueError, match="outputs of at least 1.*outputs=0"):
    heads.Head(outputs=0)
