"""Adds a model that learns beside the policy (a trunk and a head), and the critic, one such model.

The critic's values are those before completion tokens.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np
import optax

from rl_reason.arrays import RolloutBatch
from rl_reason.config.checks import at_least, one_of
from rl_reason.learner import optimizers
from rl_reason.learner.optimizers import clipped_optimizer, Optimizer
from rl_reason.models import heads, policy
from rl_reason.models.config import ModelConfig
from rl_reason.objectives import losses
from rl_reason.stages.context import Context
from rl_reason.types import Params

TRUNKS = ("separate", "shared")


@dataclasses.dataclass(frozen=True)
class Companion:
  """A model that learns beside the policy: it gives a number before each completion token.

  trunk: "separate": a transformer of its own, of the policy's shape. "shared": the head reads the
    policy's hidden states, and its loss trains the policy's layers too.
  start: the earlier stage whose reward model or critic (Trained.critic) it starts from, as raw as
    that model scores. "": it starts as a copy of the policy that the stage starts from, with a head
    that gives 0.
  hidden: width of a layer in the head; 0: the head is linear (models.heads.Head).
  warmup_steps: rollouts at the start from which only it learns, and not the policy.
  optimizer: of trunk and head; None: the stage's. In either case its gradient is clipped by itself.
  """
  trunk: str = "separate"
  start: str = ""
  hidden: int = 0
  warmup_steps: int = 0
  optimizer: Optimizer | None = None

  def __post_init__(self):
    one_of(TRUNKS, trunk=self.trunk)
    at_least(0, hidden=self.hidden, warmup_steps=self.warmup_steps)
    if self.start and self.trunk == "shared":
      raise ValueError(
          f"start={self.start!r} brings a trunk, and trunk='shared' uses the policy's: set"
          " trunk='separate', or start=''.")

  @property
  def head(self) -> heads.Head:
    return heads.Head(outputs=1, hidden=self.hidden)


@dataclasses.dataclass(frozen=True)
class Critic(Companion):
  """A Companion that gives V(s) before each completion token, for PPO (Schulman et al. 2017).

  lam: λ of advantages.gae, or of vtrace, in [0, 1].
  value_clip: bound of a value's change per rollout, in reward units; 0: no bound.
  value_coef: weight of the value loss beside the policy's.
  bootstrap_truncated: whether the return of a completion that the length limit cut goes on with V
    after its last token. False: the return ends there, as in trl, so that cutting an answer off is
    no better than not giving one.
  vtrace: whether advantages.vtrace replaces gae. All its bounds are the stage's importance_cap (the
    paper's: 1.0). It is for rollouts that the learning policy would not have drawn exactly so, as
    with staleness=1. Between the updates on one rollout it is not estimated anew: there, as always,
    the clipped ratio bounds how far they go.

  Source: arXiv:1707.06347.
  """
  lam: float = 0.95
  value_clip: float = 0.2
  value_coef: float = 1.0
  bootstrap_truncated: bool = False
  vtrace: bool = False

  def __post_init__(self):
    super().__post_init__()
    at_least(0, lam=self.lam, value_clip=self.value_clip, value_coef=self.value_coef)
    if self.lam > 1:
      raise ValueError(
          f"lam must be in [0, 1], got {self.lam}: above 1 advantages grow with the distance to a"
          " reward.")


def check(critic: Companion, context: Context) -> None:
  """Raises: ValueError where `start` names no earlier stage with a critic of this one's shape."""
  if not critic.start:
    return
  earlier = {name: context.earlier.trained(name) for name in context.earlier.sections}
  critics = {name: t.critic(t.shapes) for name, t in earlier.items() if t.critic is not None}
  one_of(critics, **{
      "start (of a critic: an earlier stage that trains a trunk and a head)": critic.start})

  def shapes(tree):
    return {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
  found, wanted = shapes(critics[critic.start]), shapes(abstract_params(critic, context))
  different = {k: (found.get(k), wanted.get(k)) for k in {**found, **wanted}
               if found.get(k) != wanted.get(k)}
  if different:
    name, (have, need) = next(iter(different.items()))
    raise ValueError(
        f"The critic cannot start from stage {critic.start!r}: {name} is {have} there and {need} in"
        f" the critic ({len(different)} such places). Use one output and the same head; set"
        " critic.hidden accordingly.")


def abstract_params(critic: Companion, context: Context) -> Params:
  """Describes {"head": ...} and, for a separate trunk, {"trunk": ...}: shapes and shardings."""
  width = context.policy.config.width
  head = context.abstract(
      heads.abstract_params(critic.head, width), heads.parameter_axes(critic.head, width))
  return ({"head": head} if critic.trunk == "shared"
          else {"trunk": context.abstract_params, "head": head})


def init_params(critic: Companion, context: Context, policy_params: Params, name: str) -> Params:
  """Makes the parameters that the critic of stage `name` starts from."""
  if critic.start:
    return context.earlier.trained(critic.start).critic(context.earlier.finished(critic.start))
  shapes = abstract_params(critic, context)
  make = functools.partial(heads.init_params, critic.head, context.policy.config.width)
  head = jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, shapes["head"]))(
      context.rng(name, "critic"))
  return {**({"trunk": policy_params} if "trunk" in shapes else {}), "head": head}


def make_optimizer(
    critic: Companion, optimizer: Optimizer, *, num_steps: int, updates_per_step: int,
) -> optax.GradientTransformation:
  """Makes the optimizer of parameters {"policy", "critic"}.

  The two are updated apart from each other, and the policy not before the critic's warm-up ends.

  Args:
    critic: with its warm-up, and its optimizer if it has its own.
    optimizer: the stage's.
    num_steps: of the stage.
    updates_per_step: updates that are made on one rollout.
  """
  warmup = critic.warmup_steps * updates_per_step
  # The policy's learning rate follows its schedule over the updates that the policy gets.
  policy_part = clipped_optimizer(optimizer, num_steps * updates_per_step - warmup)
  if warmup:
    policy_part = optax.transforms.conditionally_mask(policy_part, lambda count: count >= warmup)
  return optimizers.refuse_non_finite(optax.partition(
      {"policy": policy_part,
       "critic": clipped_optimizer(critic.optimizer or optimizer, num_steps * updates_per_step)},
      {"policy": "policy", "critic": "critic"}))


def split(critic: Companion | None, params: Params) -> tuple[Params, Params | None]:
  """Splits a stage's parameters into (the policy's, the critic's if it has one)."""
  return (params, None) if critic is None else (params["policy"], params["critic"])


def values(
    critic: Companion, params: Params, policy_states: Float[Array, "B T E"] | None,
    states_of: Callable[[Params], Float[Array, "B T E"]],
) -> Float[Array, "B T"]:
  """Computes V before each completion token, from the state that predicts the token.

  Args:
    critic: whose values.
    params: of the critic.
    policy_states: policy.completion_states of the policy; read for a shared trunk.
    states_of: computes the same of other parameters; called for a separate trunk.
  """
  states = policy_states if critic.trunk == "shared" else states_of(params["trunk"])
  return heads.apply(critic.head, params["head"], states)[..., 0]


@functools.partial(jax.jit, static_argnames=("config", "critic", "dtype"))
def _score(config, critic, trunk, head, prompts, completions, lengths, segments, *, dtype):
  states = policy.completion_states(
      config, trunk, prompts, completions, lengths, segments=segments, dtype=dtype)
  return heads.apply(critic, head, states)[..., 0]


def score(
    config: ModelConfig, critic: Companion, policy_params: Params, params: Params, *arrays: Any,
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "B T"]:
  """Computes `values`, jitted.

  Args:
    config: architecture of the policy.
    critic: whose values.
    policy_params: of the policy, the trunk if it is shared.
    params: of the critic.
    arrays: prompts, completions, completion_lengths, segments, as in policy.score.
    dtype: of the computation.
  """
  trunk = policy_params if critic.trunk == "shared" else params["trunk"]
  return _score(config, critic.head, trunk, params["head"], *arrays, dtype=dtype)


def add_value_loss(
    critic: Critic, loss: Float[Array, ""], statistics: losses.LossStatistics,
    values: Float[Array, "B T"], batch: RolloutBatch,
) -> tuple[Float[Array, ""], losses.LossStatistics]:
  """Adds value_coef times losses.value_loss to the policy's loss, with the same token_weights."""
  per_token, clipped = losses.value_loss(
      values, batch.behaviour_values, batch.returns, batch.completion_mask,
      clip=critic.value_clip or math.inf)
  value_loss = jnp.sum(batch.token_weights * per_token)
  loss = loss + critic.value_coef * value_loss
  return loss, statistics.replace(
      sums={**statistics.sums, "loss": loss, "value/loss": value_loss},
      token_sums={**statistics.token_sums, "value/clip_fraction": clipped.sum(dtype=jnp.float32)})


def metrics(
    values: Float[np.ndarray, "B T"], returns: Float[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
) -> Mapping[str, float]:
  """Measures the values of a rollout, before it is learnt from.

  Returns: the mean value, and the share of the returns' variance that the values explain,
    1 − Var(R − V) / Var(R): 1 all, 0 none, below 0 worse than a constant; 0 where the returns do
    not vary.
  """
  v, r = values[mask].astype(np.float64), returns[mask].astype(np.float64)
  variance = r.var()
  explained = 1 - (r - v).var() / variance if variance > 1e-10 else 0.0  # Below it is rounding.
  return {"value/mean": float(v.mean()), "value/explained_variance": float(explained)}
