"""Drawing tokens.

Exact frequencies, filters against brute force, and log-probabilities of what was drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.rollout.sampling import filter_logits, sample_tokens, Sampling

draw = jax.jit(sample_tokens, static_argnums=2)
LAST = np.float32(1 - 2**-24)  # The largest float32 below 1.
LOGITS = np.random.RandomState(0).standard_normal((6, 20)).astype(np.float32) * 2


def kept(logits, s):
  """Which tokens stay, one row in float64, by sorting and counting."""
  logits = np.asarray(logits, np.float64) / s.temperature
  keep = np.ones(len(logits), bool)
  def probs():
    p = np.where(keep, np.exp(logits - logits.max()), 0.0)
    return p / p.sum()
  if s.top_k:
    keep &= logits >= np.sort(logits)[-min(s.top_k, len(logits))]
  if s.top_p < 1:
    p, mass, order = probs(), 0.0, np.argsort(-logits)
    top = np.zeros_like(keep)
    for i in order:
      if mass < s.top_p:
        top[i] = True
      mass += p[i]
    keep &= top
  if s.min_p:
    keep &= probs() >= s.min_p * probs().max()
  return keep


FILTERS = [
    dict(), dict(top_k=1), dict(top_k=5), dict(top_k=100), dict(top_p=0.5), dict(top_p=1e-6),
    dict(top_p=0.95), dict(min_p=0.1), dict(min_p=0.99), dict(top_k=8, top_p=0.8),
    dict(top_k=10, top_p=0.9, min_p=0.2)]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_equal_brute_force(filters):
  s = Sampling(max_tokens=1, temperature=0.8, **filters)
  out = np.asarray(filter_logits(jnp.asarray(LOGITS), s))
  expected = np.stack([kept(row, s) for row in LOGITS])
  np.testing.assert_array_equal(np.isfinite(out), expected)
  np.testing.assert_allclose(out[expected], LOGITS[expected] / np.float32(0.8), rtol=1e-6)
  assert s.filters == (filters != {})


def test_filters_by_hand():
  # Probabilities 0.5, 0.2, 0.2, 0.1. Ties stay together; a top_p reached exactly needs no more
  # tokens.
  logits = jnp.log(jnp.array([[0.5, 0.2, 0.2, 0.1]]))
  for filters, count in ((dict(top_k=2), 3), (dict(top_p=0.45), 1), (dict(top_p=0.55), 3),
                         (dict(top_p=0.95), 4), (dict(min_p=0.3), 3), (dict(min_p=0.5), 1),
                         # After top_k=1, all mass lies on the first: 0.2 of it is nothing.
                         (dict(top_k=1, top_p=0.99), 1)):
    assert int(np.isfinite(filter_logits(logits, Sampling(1, **filters))).sum()) == count, filters


def test_frequencies_are_the_probabilities():
  # 1000 uniforms in the middles of a grid, probabilities in tenths: counts are exact.
  probs = np.array([0.1, 0.0, 0.4, 0.2, 0.3])
  with np.errstate(divide="ignore"):
    logits = np.broadcast_to(np.log(probs), (1000, 5)).astype(np.float32)
  uniforms = ((np.arange(1000) + 0.5) / 1000).astype(np.float32)
  tokens, behaviour, logprobs = draw(logits, uniforms, Sampling(1))
  np.testing.assert_array_equal(np.bincount(tokens, minlength=5), 1000 * probs)
  np.testing.assert_allclose(np.exp(behaviour), probs[tokens], rtol=1e-5)
  np.testing.assert_array_equal(behaviour, logprobs)
  # Temperature 1/2 squares: 0.01, 0.16, 0.04, 0.09 of 0.30; frequencies to one in a thousand.
  tokens, _, _ = draw(logits, uniforms, Sampling(1, temperature=0.5))
  np.testing.assert_allclose(np.bincount(tokens, minlength=5), 1000 * probs**2 / 0.3, atol=1)


@pytest.mark.parametrize(
    "filters", [dict(), dict(top_k=3), dict(top_p=0.7), dict(min_p=0.3)], ids=str)
def test_log_probabilities_of_what_was_drawn(filters):
  s = Sampling(1, temperature=0.8, **filters)
  tokens, behaviour, logprobs = draw(LOGITS, np.linspace(0, LAST, 6, dtype=np.float32), s)
  for row, token, b, plain in zip(LOGITS.astype(np.float64), tokens, behaviour, logprobs):
    p = np.where(kept(row, s), np.exp(row / 0.8), 0.0)
    np.testing.assert_allclose(b, np.log(p[token] / p.sum()), atol=1e-5)
    # Temperature 1, no filters.
    np.testing.assert_allclose(plain, row[token] - np.log(np.exp(row).sum()), atol=1e-5)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_extreme_uniforms_draw_the_first_and_the_last_kept_token(filters):
  s = Sampling(1, **filters)
  keep = np.stack([kept(row, s) for row in LOGITS])
  first, _, _ = draw(LOGITS, np.zeros(6, np.float32), s)
  last, _, _ = draw(LOGITS, np.full(6, LAST), s)
  np.testing.assert_array_equal(first, keep.argmax(1))
  np.testing.assert_array_equal(last, 19 - keep[:, ::-1].argmax(1))


@pytest.mark.parametrize("filters", [dict(top_k=50), dict(top_p=0.9), dict(min_p=0.05)], ids=str)
def test_rounding_of_the_cumulative_sum_never_draws_a_filtered_token(filters):
  # XLA adds up in parallel: the sums of 1000 entries rise and fall by an ulp between tokens of
  # probability zero. The uniforms sit on those very values, and in the middles between them.
  s = Sampling(1, **filters)
  row = np.random.RandomState(1).standard_normal(1000).astype(np.float32) * 3
  sums = jax.jit(lambda x: jnp.cumsum(jax.nn.softmax(filter_logits(x, s)), axis=-1))(
      np.tile(row, (2000, 1)))[0]
  uniforms = np.unique(np.concatenate([
      np.nextafter(np.float32(sums), np.float32(0)), sums, (sums[1:] + sums[:-1]) / 2,
      [0.0, LAST]]))
  uniforms = uniforms[(uniforms >= 0) & (uniforms < 1)].astype(np.float32)
  uniforms = np.resize(uniforms, 2000)
  tokens, behaviour, _ = draw(np.tile(row, (2000, 1)), uniforms, s)
  assert kept(row, s)[tokens].all() and np.isfinite(behaviour).all()
  assert len(np.unique(tokens)) == kept(row, s).sum()  # And each kept one can be drawn.


def test_temperature_zero_takes_the_likeliest_token():
  tokens, behaviour, logprobs = draw(LOGITS, np.full(6, LAST), Sampling(1, temperature=0.0))
  np.testing.assert_array_equal(tokens, LOGITS.argmax(1))
  assert (behaviour == 0).all()
  np.testing.assert_allclose(logprobs, jax.nn.log_softmax(LOGITS).max(1), atol=1e-6)


@pytest.mark.parametrize("field, value", [
    ("max_tokens", 0), ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
    ("min_p", 1.0), ("min_p", -0.1), ("stop_strings", ("x", ""))])
def test_impossible_settings_are_refused(field, value):
  with pytest.raises(ValueError, match=field):
    Sampling(**{"max_tokens": 1, field: value})
