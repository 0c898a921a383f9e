"""A rollout -> what updates read: rewards -> advantages per token, cut into minibatches and packed into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import functools

import jax
from jaxtyping import Float, Int
import numpy as np

from rl_reason.arrays import length_mask, RolloutBatch
from rl_reason.batches import packing
from rl_reason.batches.packing import split_microbatches, split_parts
from rl_reason.models import lora, policy
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.objectives import advantages, losses
from rl_reason.rollout.record import Rollout
from rl_reason.runtime import sharding
from rl_reason.stages.context import Context
from rl_reason.stages.groups import equal_groups
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import token_reward as token_reward_lib
from rl_reason.stages.policy_gradient.config import Config
from rl_reason.types import Params

# Loops over tokens: each is one program, not one a call.
_without_critic = jax.jit(
    advantages.token_advantages, static_argnames=("group_size", "returns", "baseline", "normalise", "discount"))
_with_critic = jax.jit(advantages.gae, static_argnames=("discount", "lam"))
_with_vtrace = jax.jit(advantages.vtrace, static_argnames=("discount", "lam", "max_rho", "max_c", "max_policy_rho"))


def num_microbatches(config: Config, context: Context) -> int:
  """config.microbatches or, for 0, what this machine is fastest with."""
  return config.microbatches or packing.num_passes(
      config.prompts_per_step // config.minibatches, config.group_size,
      context.max_prompt_tokens + config.group_size * config.sampling.max_tokens, context.partitioning.ways("batch"))


def num_parts(config: Config, context: Context) -> int:
  """Into how many parts of equally many groups an update cuts a rollout."""
  return config.minibatches * num_microbatches(config, context)


def scores_acting(config: Config) -> bool:
  """Whether the policy that learns reads a rollout before the update."""
  return bool(config.importance_cap) or config.companion is not None and config.companion.trunk == "shared"


def assemble(
    config: Config, context: Context, rollout: Rollout, params: Params, reference: Params | None,
    *, score: Callable[..., jax.Array] = policy.score,
) -> tuple[RolloutBatch, dict[str, float]]:
  """(what the loss reads, host arrays: rewards -> advantages per token; metrics of importance weights and values, if any).

  The token_weights are 1 where a token counts and 0 where not: `minibatches` makes shares of them.

  Args:
    params: of the stage, from which the next update starts. reference: the policy the KL penalty is measured against.
    score: policy.score, or a compilation.Program of it.
  """
  completions, model = rollout.completions, context.policy.config
  mask = completions.sampled
  acting, critic = critic_lib.split(config.companion, params)
  if scores_acting(config):
    acting = lora.merge(acting)  # One program scores it and the reference.

  def logprobs_of(params):
    return scored(config, context, rollout, functools.partial(
        score, model, params, temperature=config.sampling.temperature, dtype=context.dtype))

  # The policy before the update: what sampled, unless that was another and importance weights make up for it.
  behaviour_logprobs, weights, metrics = completions.behaviour_logprobs, 1.0, {}
  if config.importance_cap:
    behaviour_logprobs = logprobs_of(acting)
    weights, metrics = losses.truncated_importance(
        behaviour_logprobs, completions.behaviour_logprobs, mask, cap=config.importance_cap)
  # Without a reference `kl` tells how far updates have left the policy before them; zeros here could overflow in exp.
  reference_logprobs = behaviour_logprobs if reference is None else logprobs_of(reference)

  # Rewards per token -> advantages per token.
  rewards = rollout.rewards
  if config.kl_coef and config.kl_in == "reward":
    kl = losses.kl_estimate(behaviour_logprobs, reference_logprobs, mask, estimator=config.kl_estimator)
    rewards = rewards - config.kl_coef * np.asarray(kl)
  values = returns = None
  if config.critic is None:
    estimates = _without_critic(
        rewards, mask, group_size=config.group_size, returns=config.returns, baseline=config.baseline,
        normalise=config.normalise, discount=config.discount)
  else:
    values, bootstrap = critic_values(config, context, rollout, acting, critic)
    given, factors = (rewards, values, mask, bootstrap), dict(discount=config.discount, lam=config.critic.lam)
    if config.critic.vtrace:
      cap, weights = config.importance_cap, 1.0  # Its advantages are weighed already.
      found = _with_vtrace(*given, behaviour_logprobs, completions.behaviour_logprobs, **factors,
                           max_rho=cap, max_c=cap, max_policy_rho=cap)
    else:
      found = _with_critic(*given, **factors)
    estimates, returns = map(sharding.fetch, found)
    metrics = metrics | critic_lib.metrics(values, returns, mask)
  kept = mask & (rollout.components[config.keep_by] > 0.5)[:, None] if config.keep_by else mask
  if config.normalise in advantages.TOKEN_NORMALISERS:
    estimates = advantages.TOKEN_NORMALISERS[config.normalise](estimates, kept)
  estimates = sharding.fetch(estimates)
  if config.negative_weight != 1:
    estimates = np.where(estimates < 0, config.negative_weight * estimates, estimates)
  if config.token_reward is not None:
    values, _ = critic_values(config, context, rollout, acting, critic)
    returns = np.repeat(rollout.components[config.token_reward.outcome][:, None] > 0, mask.shape[1], axis=1)
    shares, told = token_reward_lib.shares(values, returns, mask, kept)
    estimates, returns, metrics = estimates * shares, returns.astype(np.float32), metrics | told
  counted = kept
  if config.equal_groups != "keep":
    counted = kept & ~np.repeat(equal_groups(rollout, config.equal_by), config.group_size)[:, None]
  return RolloutBatch(
      prompts=rollout.prompts, completions=completions.tokens, completion_lengths=completions.lengths,
      behaviour_logprobs=behaviour_logprobs, reference_logprobs=reference_logprobs,
      advantages=np.where(mask, estimates * np.asarray(weights), 0.0),
      behaviour_values=values, returns=returns, token_weights=counted.astype(np.float32),
      observed=completions.observed), jax.tree.map(float, metrics)


def scored(
    config: Config, context: Context, rollout: Rollout, score: Callable[..., jax.Array], *, room: Int[np.ndarray, "B"] | int = 0,
) -> Float[np.ndarray, "B T"]:
  """score(prompts, rows, lengths, segments) of a rollout's completions, a number per token.

  Args:
    room: tokens of no meaning after each completion, at most 1, that are scored too; T is then one larger.
  """
  rows, parts = scoring_parts(config, context, rollout, room)
  out = [score(*context.partitioning.place(part, ("batch",))) for part in parts]
  out = np.concatenate([sharding.fetch(x) for x in out])  # The device need not wait for the host.
  return rows.unpack(out, rollout.completions.tokens.shape[1] + int(np.max(room)))


def scoring_parts(
    config: Config, context: Context, rollout: Rollout, room: Int[np.ndarray, "B"] | int = 0,
) -> tuple[packing.Packing, list[tuple]]:
  """(how a rollout's completions are packed, what `scored` calls its function with, part by part; host arrays).

  In as many parts as the update has, so that scoring takes no more memory than the update.
  """
  lengths = rollout.completions.lengths + np.asarray(room, np.int32)
  tokens = np.pad(rollout.completions.tokens, ((0, 0), (0, int(np.max(room)))))
  count = num_parts(config, context)
  rows = pack_rows(config, context, lengths, count, max_tokens=tokens.shape[1])
  packed = (rollout.prompts, rows.pack(tokens), rows.row_lengths, rows.segments)
  return rows, split_parts(packed, count)


def critic_values(
    config: Config, context: Context, rollout: Rollout, acting: Params, critic: Params,
) -> tuple[Float[np.ndarray, "B T"], Float[np.ndarray, "B"]]:
  """(V before each completion token, V after the last token of truncated completions where config.critic says so, or 0)."""
  size, lengths, truncated = rollout.completions.tokens.shape[1], rollout.completions.lengths, rollout.completions.truncated
  bootstrapped = config.critic is not None and config.critic.bootstrap_truncated and truncated.any()
  values = scored(
      config, context, rollout, functools.partial(
          critic_lib.score, context.policy.config, config.companion, acting, critic, dtype=context.dtype),
      room=truncated if bootstrapped else 0)
  after = np.zeros(len(lengths), np.float32)
  if bootstrapped:
    after[truncated] = values[truncated, lengths[truncated]]
  return np.where(length_mask(lengths, size), values[:, :size], 0.0), after


def pack_rows(
    config: Config, context: Context, lengths: np.ndarray, parts: int, *, max_tokens: int | None = None) -> packing.Packing:
  """How completions are laid into rows that go through the model in `parts` parts of equally many groups.

  Several share a row only where the reference attention runs: flash kernels know rows of one completion.
  """
  max_tokens = max_tokens or config.sampling.max_tokens
  kernel = attention_kernel(context.policy.config, context.dtype, max_tokens, jax.devices()[0])
  return packing.Packing.of(
      lengths, config.group_size, max_tokens, together=kernel == "reference",
      divisor=parts * context.partitioning.ways("batch"))


def blank_batch(config: Config, rollout: Rollout) -> RolloutBatch:
  """What `assemble` makes of a rollout, zeros for the numbers that scoring and rewards give: its shapes are known before."""
  completions, zeros = rollout.completions, np.zeros(rollout.completions.tokens.shape, np.float32)
  values = None if config.companion is None else zeros
  return RolloutBatch(
      prompts=rollout.prompts, completions=completions.tokens, completion_lengths=completions.lengths,
      behaviour_logprobs=zeros, reference_logprobs=zeros, advantages=zeros, behaviour_values=values, returns=values,
      token_weights=zeros, observed=completions.observed)


def microbatches(config: Config, context: Context, minibatch: RolloutBatch) -> RolloutBatch:
  """A minibatch packed and cut into what goes through the model at once: [A, ...]."""
  rows = pack_rows(config, context, minibatch.completion_lengths, config.microbatches)
  return split_microbatches(packing.pack(minibatch, rows), config.microbatches)


def minibatches(batch: RolloutBatch, config: Config, rng) -> Iterator[RolloutBatch]:
  """Yields epochs * minibatches parts of whole groups, shuffled anew in each epoch; their weights each sum up to 1.

  Groups are ordered such that microbatches, equal stretches of a minibatch, hold about equally many tokens.
  """
  num_prompts = batch.prompts.tokens.shape[0]
  for epoch in range(config.epochs):
    order = np.arange(num_prompts)
    if config.epochs * config.minibatches > 1:
      order = np.asarray(jax.random.permutation(jax.random.fold_in(rng, epoch), num_prompts))
    for groups in np.split(order, config.minibatches):
      tokens = batch.completion_lengths.reshape(num_prompts, -1).sum(axis=1)[groups]
      groups = groups[np.concatenate(packing.balance(tokens, config.microbatches))]
      rows = (groups[:, None] * config.group_size + np.arange(config.group_size)).reshape(-1)
      part = jax.tree.map(lambda x, rows=rows: x[rows], batch.replace(prompts=None))
      part = part.replace(prompts=jax.tree.map(lambda x, groups=groups: x[groups], batch.prompts))
      weights = losses.token_weights(
          part.token_weights > 0, mean_over=config.mean_over, max_tokens=config.sampling.max_tokens)
      yield part.replace(token_weights=np.asarray(weights))
