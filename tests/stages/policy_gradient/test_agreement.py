"""How far sampler and trainer may differ: bounds by precision, what a config may change of them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rl_reason.rewards.composition.monitors import build_monitors
from rl_reason.stages.policy_gradient import agreement
from rl_reason.stages.policy_gradient.stage import _monitors
from tests.stages.policy_gradient.test_stage import make_context


def alarms(section, gap):
  return [(a.monitor, a.action)
          for a in build_monitors(section).observe({"loss": 0.0, "logprob_gap": gap})[1]]


@pytest.mark.parametrize("dtype, gap, expected", [
    (jnp.float32, 9e-4, []), (jnp.float32, 2e-3, [("logprob_gap", "stop")]),
    (jnp.bfloat16, 0.09, []), (jnp.bfloat16, 0.2, [("logprob_gap", "warn")])])
def test_float32_stops_and_bfloat16_warns(dtype, gap, expected):
  assert alarms(agreement.bound(jnp.dtype(dtype), same_policy=True), gap) == expected


def test_another_policy_than_the_trainers_is_logged_only():
  assert agreement.bound(jnp.dtype(jnp.float32), same_policy=False) == {}


def test_rounded_products_are_not_taken_for_float32(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert agreement.bound(
      jnp.dtype(jnp.float32), same_policy=True)["logprob_gap"]["action"] == "warn"
  with jax.default_matmul_precision("highest"):
    assert agreement.bound(
        jnp.dtype(jnp.float32), same_policy=True)["logprob_gap"]["action"] == "stop"


def test_a_config_changes_fields_of_the_bound_and_keeps_the_others():
  default = agreement.bound(jnp.dtype(jnp.float32), same_policy=True)
  section = agreement.with_bound({"logprob_gap": {"threshold": 0.01}, "repetition": {}}, default)
  assert section == {"logprob_gap": {"threshold": 0.01, "action": "stop"}, "repetition": {}}


@pytest.mark.parametrize(
    "change, names", [({}, {"logprob_gap"}), ({"staleness": 1}, set()), ({"int8": True}, set())])
def test_a_stage_watches_the_gap_unless_it_samples_with_other_parameters(change, names):
  context, config = make_context()
  rollout = dataclasses.replace(config.rollout, int8=change.get("int8", False))
  objective = dataclasses.replace(config.objective, importance_cap=2.0)
  config = dataclasses.replace(
      config, rollout=rollout, objective=objective, staleness=change.get("staleness", 0))
  assert set(_monitors(config, context)) == names
