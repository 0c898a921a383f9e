"""Baselines, normalisers, returns and estimates per token.

By hand, against NumPy, by identities and with garbage.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.objectives import advantages

REWARDS = jnp.array([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])


def test_baselines_by_hand():
  # Row 0: mean 1; means of the others 3/3 = 1, 4/3, 4/3, 1/3. Row 1: all equal.
  np.testing.assert_allclose(
      advantages.group_mean(REWARDS), [[0, -1, -1, 2], [0, 0, 0, 0]], atol=1e-7)
  np.testing.assert_allclose(
      advantages.leave_one_out(REWARDS), [[0, -4 / 3, -4 / 3, 8 / 3], [0, 0, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(advantages.no_baseline(REWARDS), REWARDS)


def test_leave_one_out_subtracts_the_mean_of_the_others():
  rewards = np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32)
  others = (rewards.sum(1, keepdims=True) - rewards) / 4
  np.testing.assert_allclose(
      advantages.leave_one_out(jnp.asarray(rewards)), rewards - others, atol=1e-6)
  np.testing.assert_allclose(
      advantages.leave_one_out(jnp.asarray(rewards)),
      advantages.group_mean(jnp.asarray(rewards)) * 5 / 4, atol=1e-6)


def test_normalisers_against_numpy():
  rewards = np.random.RandomState(1).standard_normal((3, 4)).astype(np.float32)
  a = rewards - rewards.mean(1, keepdims=True)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise="group_std"),
      a / (np.std(rewards, 1, ddof=1, keepdims=True) + 1e-4), rtol=1e-5)
  np.testing.assert_allclose(
      advantages.advantages(rewards, normalise="batch_std"),
      a / (np.std(rewards, ddof=1) + 1e-4), rtol=1e-5)
  np.testing.assert_allclose(advantages.advantages(rewards), a, atol=1e-6)


def test_two_unlike_rewards_by_hand():
  # r = [0, 1]: mean 1/2; sample deviation sqrt(2 · (1/2)² / 1) = 0.70711;
  # A = ±0.5 / 0.70721 = ±0.70701.
  np.testing.assert_allclose(
      advantages.advantages(np.array([[0, 1]]), normalise="group_std"), [[-0.70701, 0.70701]],
      atol=1e-5)


@pytest.mark.parametrize("normalise", advantages.NORMALISERS)
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_equal_rewards_give_zeros(baseline, normalise):
  np.testing.assert_array_equal(
      advantages.advantages(np.full((2, 4), 0.1), baseline=baseline, normalise=normalise),
      np.zeros((2, 4)))


CONSTANTS = (0.1, 1 / 3, 0.7, -0.3, 1e-6, 12345.678, 1e20)


@pytest.mark.parametrize("group_size", [2, 7, 8, 33])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_equal_rewards_give_zeros_in_a_program(baseline, group_size):
  rewards = np.repeat(np.array(CONSTANTS)[:, None], group_size, axis=1).astype(np.float32)
  run = jax.jit(functools.partial(advantages.advantages, baseline=baseline, normalise="group_std"))
  np.testing.assert_array_equal(run(rewards), 0 * rewards)


@pytest.mark.parametrize("normalise", ["batch_std", "batch_whiten"])
def test_a_batch_of_equal_rewards_gives_zeros_in_a_program(normalise):
  baseline = {"batch_std": "group_mean", "batch_whiten": "none"}[normalise]
  run = jax.jit(functools.partial(advantages.advantages, baseline=baseline, normalise=normalise))
  for constant in CONSTANTS:
    assert not run(np.full((3, 8), constant, np.float32)).any()


def test_equal_returns_give_zeros_token_by_token():
  rewards = np.zeros((8, 5), np.float32)
  lengths = np.arange(8) % 5 + 1
  rewards[np.arange(8), lengths - 1] = 0.1
  mask = np.arange(5) < lengths[:, None]

  @jax.jit
  def run(rewards, mask):
    to_go = functools.partial(
        advantages.token_advantages, rewards, mask, group_size=8, returns="to_go")
    return (to_go(normalise="group_std"), advantages.per_sign(to_go(), mask),
            advantages.whiten(to_go(baseline="none"), mask))
  for found in run(rewards, mask):
    assert not found.any()


def test_sums_of_the_same_rewards_in_another_order_are_equal():
  # In float32 0.1 + 0.7 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.7 + 0.1.
  rewards = np.array([[0.1, 0.7, 0.2, 0.3], [0.3, 0.2, 0.7, 0.1], [0.7, 0.3, 0.1, 0.2]], np.float32)
  out = advantages.token_advantages(rewards, rewards > 0, group_size=3, normalise="group_std")
  np.testing.assert_array_equal(out, 0 * rewards)


def test_rewards_whose_sum_overflows_have_no_advantages():
  assert np.isnan(advantages.group_mean(jnp.array([[3e38, 3e38]]))).all()


def test_a_small_difference_is_one():
  # Five steps of float32's grid at 1.
  out = advantages.group_mean(jnp.array([[1.0, 1.0 + 5 * 2.0**-23]]))
  np.testing.assert_array_equal(out, [[-2.5 * 2.0**-23, 2.5 * 2.0**-23]])


PAID = jnp.array([[0, 0, 0, 1.0, 0, 0], [0.0] * 6])
OWN = jnp.array([[True, True, False, False, True, True]] * 2)


@pytest.mark.parametrize("returns, after", [("total", 0.5), ("to_go", -0.5)])
def test_what_is_paid_at_an_environments_token_is_the_turns_before_it(returns, after):
  out = advantages.token_advantages(PAID, OWN, group_size=2, returns=returns)
  np.testing.assert_array_equal(
      out, [[0.5, 0.5, 0, 0, after, after], [-0.5, -0.5, 0, 0, -0.5, -0.5]])


def test_rewards_move_to_own_tokens_by_hand():
  # Garbage before the first own token and after the last one; 2 and 4 are paid while a tool speaks.
  mask = jnp.array([[False, True, True, False, False, True, False]])
  out = advantages.at_own_tokens(jnp.array([[np.nan, 1.0, 1.0, 2.0, 4.0, 8.0, np.inf]]), mask)
  np.testing.assert_array_equal(out, [[0, 1, 7, 0, 0, 8, 0]])
  assert not advantages.at_own_tokens(jnp.ones((1, 7)), jnp.zeros((1, 7), bool)).any()


def test_integer_rewards_become_float32():
  assert advantages.advantages(np.array([[1, 0]]), baseline="none").dtype == jnp.float32


def test_batch_whitening_by_hand():
  # r = [1, 0, 0, 3], [2, 2, 2, 2] minus group means: [0, -1, -1, 2], zeros: mean 0, population
  # variance 6 / 8.
  np.testing.assert_allclose(
      advantages.advantages(REWARDS, normalise="batch_whiten"),
      np.array([[0, -1, -1, 2], [0, 0, 0, 0]]) / np.sqrt(6 / 8), atol=1e-6)
  # REINFORCE++: no baseline but the batch's mean, 12 / 8.
  np.testing.assert_allclose(
      advantages.advantages(REWARDS, baseline="none", normalise="batch_whiten"),
      (np.asarray(REWARDS) - 1.5) / np.std(REWARDS), rtol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, 1e30])
def test_whiten_by_hand(garbage):
  # 1, 3 and 5 of two rows: mean 3, variance 8 / 3.
  x = jnp.array([[1.0, garbage, 3.0], [garbage, garbage, 5.0]])
  mask = jnp.array([[True, False, True], [False, False, True]])
  z = 2 / np.sqrt(8 / 3)
  np.testing.assert_allclose(advantages.whiten(x, mask), [[-z, 0, 0], [0, 0, z]], atol=1e-6)
  assert not advantages.whiten(x, jnp.zeros_like(mask)).any()
  assert not advantages.whiten(jnp.full((2, 3), 7.0), mask).any()


# A prompt token, two own, a tool's, one own, padding.
MASK = jnp.array([[False, True, True, False, True, False]])


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, 1e30])
def test_gae_by_hand(garbage):
  # γ = 1, λ = 0.5: δ = [0.6 − 0.5, 0.8 − 0.6, 1 − 0.8] = [0.1, 0.2, 0.2];
  # A = [0.1 + 0.5 · 0.3, 0.2 + 0.5 · 0.2, 0.2].
  def own(*x):
    return jnp.where(MASK, jnp.array([[0, x[0], x[1], 0, x[2], 0]]), garbage)
  a, returns = advantages.gae(own(0.0, 0.0, 1.0), own(0.5, 0.6, 0.8), MASK, jnp.zeros(1), lam=0.5)
  np.testing.assert_allclose(a, [[0, 0.25, 0.3, 0, 0.2, 0]], rtol=1e-6)
  np.testing.assert_allclose(returns, [[0, 0.75, 0.9, 0, 1.0, 0]], rtol=1e-6)
  # γ = 0.5 and a bootstrap of 2 behind the last token:
  # δ = [0.3 − 0.5, 0.4 − 0.6, 1 + 1 − 0.8] = [−0.2, −0.2, 1.2];
  # γλ = 0.25: A = [−0.2 + 0.25 · 0.1, −0.2 + 0.3, 1.2].
  a, _ = advantages.gae(
      own(0.0, 0.0, 1.0), own(0.5, 0.6, 0.8), MASK, jnp.full(1, 2.0), discount=0.5, lam=0.5)
  np.testing.assert_allclose(a, [[0, -0.175, 0.1, 0, 1.2, 0]], rtol=1e-5)


@pytest.fixture(scope="module")
def tokens():
  """Rewards, values, mask, bootstrap, two log-probabilities: 3 rows of 9 tokens, a third masked."""
  rng = np.random.RandomState(3)
  def noise(*shape):
    return rng.standard_normal(shape).astype(np.float32)
  return dict(rewards=noise(3, 9), values=noise(3, 9), mask=rng.rand(3, 9) < 0.7,
              bootstrap=noise(3),
              logprobs=noise(3, 9), behaviour_logprobs=noise(3, 9))


def estimates(name, **tokens):
  if name == "gae":
    tokens = {k: v for k, v in tokens.items() if "logprobs" not in k}
  return getattr(advantages, name)(**tokens, discount=0.9)


def test_gae_identities(tokens):
  x = {k: v for k, v in tokens.items() if "logprobs" not in k}
  # λ = 1: return − value, the bootstrap being one more reward. λ = 0: the one-step error.
  last = np.where(tokens["mask"], np.arange(9), -1).argmax(axis=1)
  rewards = tokens["rewards"].copy()
  rewards[np.arange(3), last] += 0.9 * tokens["bootstrap"]
  to_go = advantages.returns_to_go(rewards, tokens["mask"], discount=0.9)
  a, returns = advantages.gae(**x, discount=0.9, lam=1.0)
  np.testing.assert_allclose(a, np.where(tokens["mask"], to_go - tokens["values"], 0), atol=1e-5)
  np.testing.assert_allclose(returns, to_go, atol=1e-5)
  following = np.stack([
      next_own(*row) for row in zip(tokens["values"], tokens["mask"], tokens["bootstrap"])])
  _, returns = advantages.gae(**x, discount=0.9, lam=0.0)
  np.testing.assert_allclose(
      returns, np.where(tokens["mask"], tokens["rewards"] + 0.9 * following, 0), atol=1e-5)


def next_own(values, mask, bootstrap):
  """At each token the value at the row's next token of the policy's own, or the bootstrap."""
  later = [np.append(values[i + 1:][mask[i + 1:]], bootstrap)[0] for i in range(len(values))]
  return np.array(later)


def test_a_masked_token_is_as_if_it_were_not_there(tokens):
  mask = tokens["mask"]
  for name in ("gae", "vtrace"):
    full = estimates(name, **tokens)
    for i in range(3):
      own = {k: v[i][mask[i]][None] if v.ndim == 2 else v[i:i + 1] for k, v in tokens.items()}
      for whole, part in zip(full, estimates(name, **own)):
        np.testing.assert_allclose(whole[i][mask[i]], part[0], atol=1e-6)
        assert not whole[i][~mask[i]].any()


def test_returns_to_go_by_hand():
  # Own rewards 1, 2, 4 at discount 0.5: 1 + 0.5 · 4, 2 + 0.5 · 4, 4.
  rewards = jnp.array([[9.0, 1.0, 2.0, np.nan, 4.0, 9.0]])
  np.testing.assert_allclose(
      advantages.returns_to_go(rewards, MASK, discount=0.5), [[0, 3, 4, 0, 4, 0]])
  np.testing.assert_allclose(advantages.returns_to_go(rewards, MASK), [[0, 7, 6, 0, 4, 0]])


def test_vtrace_by_hand():
  # γ = 1, V = 0.5, 0.2, r = 0, 1, ratios 0.5 and 2, bounds 1: ρ = c = 0.5, 1;
  # δ = [0.5 (0.2 − 0.5), 1 − 0.2] = [−0.15, 0.8]; v = [0.5 − 0.15 + 0.5 · 0.8, 1] = [0.75, 1];
  # A = [0.5 (1 − 0.5), 1 − 0.2]. With bounds of 2: ρ = 0.5, 2, δ_2 = 1.6,
  # v = [0.5 − 0.15 + 0.5 · 1.6, 1.8], A = [0.5 (1.8 − 0.5), 1.6].
  def run(*ratios, **bounds):
    return advantages.vtrace(
        jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.2]]), jnp.ones((1, 2), bool), jnp.zeros(1),
        jnp.log(jnp.array([ratios])), jnp.zeros((1, 2)), **bounds)
  a, targets = run(0.5, 2.0)
  np.testing.assert_allclose(targets, [[0.75, 1.0]], rtol=1e-6)
  np.testing.assert_allclose(a, [[0.25, 0.8]], rtol=1e-6)
  a, targets = run(0.5, 2.0, max_rho=2.0, max_c=2.0, max_policy_rho=2.0)
  np.testing.assert_allclose(targets, [[1.15, 1.8]], rtol=1e-6)
  np.testing.assert_allclose(a, [[0.65, 1.6]], rtol=1e-6)
  # Each bound its own, ratios 2 and 0.5: ρ = 1.5, 0.5; c = 1; δ = [−0.45, 0.4];
  # v = [0.5 − 0.45 + 0.4, 0.6]; A = [1.2 (0.6 − 0.5), 0.5 · 0.8].
  a, targets = run(2.0, 0.5, max_rho=1.5, max_c=1.0, max_policy_rho=1.2)
  np.testing.assert_allclose(targets, [[0.45, 0.6]], rtol=1e-6)
  np.testing.assert_allclose(a, [[0.12, 0.4]], rtol=1e-5)


def test_vtrace_on_policy_is_the_return(tokens):
  x = dict(tokens, behaviour_logprobs=tokens["logprobs"])
  a, targets = estimates("vtrace", **x)
  expected, returns = advantages.gae(
      **{k: v for k, v in x.items() if "logprobs" not in k}, discount=0.9, lam=1.0)
  np.testing.assert_allclose(targets, returns, atol=1e-5)
  np.testing.assert_allclose(a, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gae", "vtrace"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_garbage_where_masked_changes_nothing(name, garbage, tokens):
  dirty = {k: np.where(tokens["mask"], v, garbage) if v.ndim == 2 and k != "mask" else v
           for k, v in tokens.items()}
  run = jax.jit(functools.partial(estimates, name))
  jax.tree.map(np.testing.assert_array_equal, run(**dirty), run(**tokens))


@pytest.mark.parametrize("name, value", [("discount", 1.1), ("lam", -0.1), ("discount", np.nan)])
def test_a_discount_out_of_range_is_refused(name, value, tokens):
  with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got"):
    advantages.vtrace(**tokens, **{name: value})


# Two completions of one prompt; the last column of each is padding or worse.
GROUP = jnp.array([[0.5, 0.0, 1.0, 9.0], [0.0, 2.0, jnp.nan, 9.0]])
GROUP_MASK = jnp.array([[True, True, True, False], [True, True, False, False]])


@pytest.mark.parametrize("choices, expected", [
    # Sums 1.5 and 2, mean 1.75; the sample deviation is 0.5 / √2.
    (dict(), [[-0.25, -0.25, -0.25, 0], [0.25, 0.25, 0, 0]]),
    (dict(baseline="leave_one_out"), [[-0.5, -0.5, -0.5, 0], [0.5, 0.5, 0, 0]]),
    # To go: 1.5, 1, 1 and 2, 2, less the same mean.
    (dict(returns="to_go"), [[-0.25, -0.75, -0.75, 0], [0.25, 0.25, 0, 0]]),
    (dict(returns="to_go", normalise="group_std"),
     np.array([[-0.25, -0.75, -0.75, 0], [0.25, 0.25, 0, 0]]) / (0.125**0.5 + 1e-4)),
    # γ = 0.5: 0.75, 0.5, 1 and 1, 2; at the first tokens 0.75 and 1, mean 0.875.
    (dict(returns="to_go", discount=0.5), [[-0.125, -0.375, 0.125, 0], [0.125, 1.125, 0, 0]]),
    (dict(returns="to_go", baseline="none"), [[1.5, 1.0, 1.0, 0], [2.0, 2.0, 0, 0]]),
    (dict(returns="to_go", baseline="none", normalise="token_whiten"),
     [[1.5, 1.0, 1.0, 0], [2.0, 2.0, 0, 0]]),
], ids=str)
def test_token_advantages_by_hand(choices, expected):
  out = advantages.token_advantages(GROUP, GROUP_MASK, group_size=2, **choices)
  np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_tokens_of_a_completion_rewarded_at_its_end_share_its_advantage():
  draw = np.random.RandomState(0)
  lengths, scores = draw.randint(1, 7, 12), draw.standard_normal(12).astype(np.float32)
  mask = np.arange(6) < lengths[:, None]
  rewards = np.where(np.arange(6) == lengths[:, None] - 1, scores[:, None], 0)
  for choices in (
      dict(normalise="group_std"), dict(baseline="leave_one_out"), dict(normalise="batch_std")):
    whole = np.asarray(advantages.advantages(
        scores.reshape(3, 4), **{"baseline": "group_mean", **choices})).reshape(-1, 1)
    for returns in advantages.RETURNS:
      out = advantages.token_advantages(rewards, mask, group_size=4, returns=returns, **choices)
      np.testing.assert_allclose(out, np.where(mask, whole, 0), atol=1e-5)


def test_unknown_returns_are_named():
  with pytest.raises(ValueError, match="Unknown returns 'togo': total or to_go"):
    advantages.token_advantages(GROUP, GROUP_MASK, group_size=2, returns="togo")
