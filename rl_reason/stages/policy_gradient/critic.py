"""A model that learns beside the policy, a trunk and a head; and the critic: its values before completion tokens, its loss."""

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
  """A model that learns beside the policy and says a number before each completion token: a trunk and a head.

  trunk: "separate": a transformer of its own, of the policy's shape; "shared": the head reads the policy's hidden states,
    and its loss trains the policy's layers too.
  start: the earlier stage whose reward model or critic (Trained.critic) it starts from, as raw as it scores; "": a copy of
    the policy that the stage starts from, and a head that says 0.
  hidden: width of a layer in the head; 0: linear (models.heads.Head).
  warmup_steps: rollouts at the start from which only it learns, and not the policy.
  optimizer: of trunk and head; None: as the stage's. Either way its gradient is clipped by itself.
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
      raise ValueError(f"start={self.start!r} brings a trunk, and trunk='shared' uses the policy's: set trunk='separate', or"
                       " start=''.")

  @property
  def head(self) -> heads.Head:
    return heads.Head(outputs=1, hidden=self.hidden)


@dataclasses.dataclass(frozen=True)
class Critic(Companion):
  """V(s) before each completion token, for PPO (Schulman et al. 2017, arXiv:1707.06347); a Companion.

  lam: λ of advantages.gae, or vtrace. value_clip: bound of a value's change per rollout, in reward units; 0 for none.
  value_coef: weight of the value loss beside the policy's.
  bootstrap_truncated: the return of a completion that the length limit cut goes on with V after its last token. False:
    it ends there, as in trl, so that cutting an answer off is no better than not giving one.
  vtrace: advantages.vtrace in place of gae, whose bounds are all the stage's importance_cap (the paper's: 1.0): for rollouts
    that the policy which learns would not have drawn just so, as with staleness=1. Between the updates on one rollout it
    is not estimated anew: there, as ever, the clipped ratio bounds how far they go.
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
      raise ValueError(f"lam must be in [0, 1], got {self.lam}: above 1 advantages grow with the distance to a reward.")


def check(critic: Companion, context: Context) -> None:
  """Raises: ValueError where `start` is no earlier stage with a critic of this critic's shape."""
  if not critic.start:
    return
  earlier = {name: context.earlier.trained(name) for name in context.earlier.sections}
  critics = {name: t.critic(t.shapes) for name, t in earlier.items() if t.critic is not None}
  one_of(critics, **{"start (of a critic: an earlier stage that trains a trunk and a head)": critic.start})

  def shapes(tree):
    return {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
  found, wanted = shapes(critics[critic.start]), shapes(abstract_params(critic, context))
  different = {k: (found.get(k), wanted.get(k)) for k in {**found, **wanted} if found.get(k) != wanted.get(k)}
  if different:
    name, (have, need) = next(iter(different.items()))
    raise ValueError(f"The critic cannot start from stage {critic.start!r}: {name} is {have} there and {need} in the critic"
                     f" ({len(different)} such places). Use one output and the same head; set critic.hidden accordingly.")


def abstract_params(critic: Companion, context: Context) -> Params:
  """Shapes, dtypes and shardings of {"head": ...} and, of a separate trunk, {"trunk": ...}."""
  width = context.policy.config.width
  head = context.abstract(heads.abstract_params(critic.head, width), heads.parameter_axes(critic.head, width))
  return {"head": head} if critic.trunk == "shared" else {"trunk": context.abstract_params, "head": head}


def init_params(critic: Companion, context: Context, policy_params: Params, name: str) -> Params:
  """Where the critic of stage `name` starts."""
  if critic.start:
    return context.earlier.trained(critic.start).critic(context.earlier.finished(critic.start))
  shapes = abstract_params(critic, context)
  make = functools.partial(heads.init_params, critic.head, context.policy.config.width)
  head = jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, shapes["head"]))(context.rng(name, "critic"))
  return {**({"trunk": policy_params} if "trunk" in shapes else {}), "head": head}


def make_optimizer(
    critic: Companion, optimizer: Optimizer, *, num_steps: int, updates_per_step: int) -> optax.GradientTransformation:
  """For parameters {"policy", "critic"}: apart from each other, and the policy's not before the critic's warm-up."""
  warmup = critic.warmup_steps * updates_per_step
  policy_part = clipped_optimizer(optimizer, num_steps * updates_per_step - warmup)
  if warmup:
    policy_part = optax.transforms.conditionally_mask(policy_part, lambda count: count >= warmup)
  return optimizers.refuse_non_finite(optax.partition(
      {"policy": policy_part, "critic": clipped_optimizer(critic.optimizer or optimizer, num_steps * updates_per_step)},
      {"policy": "policy", "critic": "critic"}))


def split(critic: Companion | None, params: Params) -> tuple[Params, Params | None]:
  """A stage's parameters -> (the policy's, the critic's if it has one)."""
  return (params, None) if critic is None else (params["policy"], params["critic"])


def values(
    critic: Companion, params: Params, policy_states: Float[Array, "B T E"] | None,
    states_of: Callable[[Params], Float[Array, "B T E"]],
) -> Float[Array, "B T"]:
  """V before each completion token, from the state that predicts it.

  Args:
    params: of the critic. policy_states: policy.completion_states of the policy; states_of: the same of other parameters.
  """
  states = policy_states if critic.trunk == "shared" else states_of(params["trunk"])
  return heads.apply(critic.head, params["head"], states)[..., 0]


@functools.partial(jax.jit, static_argnames=("config", "critic", "dtype"))
def _score(config, critic, trunk, head, prompts, completions, lengths, segments, *, dtype):
  states = policy.completion_states(config, trunk, prompts, completions, lengths, segments=segments, dtype=dtype)
  return heads.apply(critic, head, states)[..., 0]


def score(
    config: ModelConfig, critic: Companion, policy_params: Params, params: Params, *arrays: Any, dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "B T"]:
  """`values`, jitted. arrays: prompts, completions, completion_lengths, segments, as in policy.score."""
  trunk = policy_params if critic.trunk == "shared" else params["trunk"]
  return _score(config, critic.head, trunk, params["head"], *arrays, dtype=dtype)


def add_value_loss(
    critic: Critic, loss: Float[Array, ""], statistics: losses.LossStatistics, values: Float[Array, "B T"],
    batch: RolloutBatch,
) -> tuple[Float[Array, ""], losses.LossStatistics]:
  """The policy's loss plus value_coef times losses.value_loss, reduced with the same token_weights."""
  per_token, clipped = losses.value_loss(
      values, batch.behaviour_values, batch.returns, batch.completion_mask, clip=critic.value_clip or math.inf)
  value_loss = jnp.sum(batch.token_weights * per_token)
  loss = loss + critic.value_coef * value_loss
  return loss, statistics.replace(
      sums={**statistics.sums, "loss": loss, "value/loss": value_loss},
      token_sums={**statistics.token_sums, "value/clip_fraction": clipped.sum(dtype=jnp.float32)})


def metrics(
    values: Float[np.ndarray, "B T"], returns: Float[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"],
) -> Mapping[str, float]:
  """Of a rollout, before it is learnt from: the mean value, and which share of the returns' variance the values explain,
  1 − Var(R − V) / Var(R): 1 all, 0 none, below 0 worse than a constant; 0 where the returns do not vary."""
  v, r = values[mask].astype(np.float64), returns[mask].astype(np.float64)
  variance = r.var()
  explained = 1 - (r - v).var() / variance if variance > 1e-10 else 0.0  # Below it is rounding.
  return {"value/mean": float(v.mean()), "value/explained_variance": float(explained)}
