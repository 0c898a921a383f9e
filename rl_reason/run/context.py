"""Builds what all stages of a run share: mesh, policy, task and environment.
"""

import jax.numpy as jnp

from rl_reason.batches.prompts import encode_prompts
from rl_reason.config import naming
from rl_reason.envs.registry import ENVIRONMENTS
from rl_reason.models import sources as config_lib
from rl_reason.models.sources import POLICIES, PolicySource
from rl_reason.rollout import episodes
from rl_reason.rollout.episodes import Environment
from rl_reason.rollout.samples import check_sampling
from rl_reason.run.config import RunConfig
from rl_reason.runtime import sharding
from rl_reason.stages.context import Context
from rl_reason.tasks.registry import load_task
from rl_reason.types import Params


def make_policy(section: config_lib.Policy) -> PolicySource:
  """Raises: ValueError or FileNotFoundError for what cannot work."""
  make = naming.find("policy source", section.source, POLICIES)
  naming.check_arguments(f"The policy source {section.source!r}", make, section.args)
  return make(**section.args)


def make_environment(section: episodes.EnvironmentSection) -> Environment:
  """Raises: ValueError for an unknown source and for arguments that it does not take."""
  make = naming.find("environment", section.source, ENVIRONMENTS)
  naming.check_arguments(f"The environment {section.source!r}", make, section.args)
  return Environment(make(**section.args), section.max_turns, section.turn_tokens, section.answer_tokens)


def make_context(config: RunConfig) -> Context:
  """Mesh, policy source, task and environment. Raises: ValueError or FileNotFoundError for what cannot work, before training."""
  sharding.check_platform(config.mesh.platform)
  mesh, rollout_mesh = sharding.make_meshes(*(
      (section.data, section.fsdp, section.tensor) for section in (config.mesh, config.rollout_mesh)))
  rules = tuple((dict(sharding.DEFAULT_RULES) | dict(config.sharding_rules)).items())
  policy = make_policy(config.policy)
  task, environment = None, config.environment and make_environment(config.environment)
  if config.task is not None:
    task = load_task(config.task.source, config.task.args, config.task.train, config.task.heldout)
    check_sampling(config.evaluation.sampling, policy.config, policy.tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    if environment is not None:
      environment.check(config.evaluation.sampling, "config.evaluation")
    # The whole of the held-out part is used, so all its prompts must fit; training prompts are checked as they come.
    count = min(config.evaluation.num_problems, len(task.heldout))
    encode_prompts([task.heldout[i] for i in range(count)], policy.tokenizer, max_tokens=config.max_prompt_tokens)
  return Context(
      seed=config.seed, policy=policy, dtype=jnp.dtype(config.policy.dtype), task=task,
      environment=environment, max_prompt_tokens=config.max_prompt_tokens, prefill_tokens=config.prefill_tokens,
      partitioning=sharding.Partitioning(mesh, rules),
      rollout_partitioning=rollout_mesh and sharding.Partitioning(rollout_mesh, rules))


def initial_params(context: Context) -> Params:
  """The policy before any stage: random, or read from its files; the same at every call."""
  return context.policy.make_params(context.rng("params"), context.param_shardings)
