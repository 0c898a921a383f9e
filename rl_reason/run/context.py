"""Builds what all stages of a run share: mesh, policy, task and environment."""

from collections.abc import Callable
import dataclasses
import datetime

import jax.numpy as jnp

from rl_reason.config import naming
from rl_reason.envs.registry import ENVIRONMENTS
from rl_reason.models.sources import POLICIES, Policy, PolicySource
from rl_reason.models.tokenizer import at_date
from rl_reason.rollout.episodes import BoundedEnvironment, EnvironmentSection
from rl_reason.run.config import RunConfig
from rl_reason.runtime import sharding
from rl_reason.stages.context import Context
from rl_reason.tasks.registry import load_task


def make_policy(section: Policy) -> PolicySource:
  """Makes the policy source that a config names.

  Raises: ValueError or FileNotFoundError for a source or arguments that cannot work.
  """
  make = naming.find("policy source", section.source, POLICIES)
  naming.check_arguments(f"The policy source {section.source!r}", make, section.args)
  return make(**section.args)


def make_environment(section: EnvironmentSection) -> BoundedEnvironment:
  """Makes the environment that a config names, with its limits on turns and tokens.

  Raises: ValueError for an unknown source or argument, and for a source that makes something else.
  """
  make = naming.find("environment", section.source, ENVIRONMENTS)
  naming.check_arguments(f"The environment {section.source!r}", make, section.args)
  return BoundedEnvironment(
      make(**section.args), section.max_turns, section.turn_tokens, section.answer_tokens,
      name=naming.path_of(section.source))


def make_context(
    config: RunConfig, *, partitioning: sharding.Partitioning | None = None, with_task: bool = True,
    date: Callable[[], datetime.date] = datetime.date.today,
) -> Context:
  """Makes what all stages of a run share: mesh, policy source, task and environment.

  Args:
    config: the checked config of the run.
    partitioning: the devices, in place of the config's meshes; None: those meshes.
    with_task: false where only a model of the run is wanted, whose data need not be there.
    date: returns the day that chat templates are told which ask for the date; called if one does.
  Raises: ValueError or FileNotFoundError for what cannot work, before any training.
  """
  # The devices: those that update, and those that only sample, if there are any.
  rollout_partitioning = None
  if partitioning is None:
    partitioning, rollout_partitioning = _partitionings(config)

  # The policy, and the environment that answers it. No parameters are made yet.
  environment = config.environment and make_environment(config.environment)
  policy = make_policy(config.policy)
  policy = dataclasses.replace(policy, tokenizer=at_date(policy.tokenizer, date))
  context = Context(
      seed=config.seed, policy=policy, dtype=jnp.dtype(config.policy.dtype),
      task=None, environment=environment, max_prompt_tokens=config.max_prompt_tokens,
      prefill_tokens=config.prefill_tokens, partitioning=partitioning,
      rollout_partitioning=rollout_partitioning)
  if config.task is None or not with_task:
    return context

  # The task. Every evaluation uses the same held-out problems, so all their prompts must fit:
  # encoding them here finds one that is too long before any training. Training prompts are checked
  # when they are drawn: there may be too many to read first.
  section, sampling = config.task, config.evaluation.sampling
  task = load_task(
      section.source, section.args, section.train, section.heldout, section.shared_prompts)
  context.sampler.check(sampling, "config.evaluation")
  count = min(config.evaluation.num_problems, len(task.heldout))
  context.sampler.encode([task.heldout[i] for i in range(count)], bucket=1)
  return dataclasses.replace(context, task=task)


def _partitionings(
    config: RunConfig,
) -> tuple[sharding.Partitioning, sharding.Partitioning | None]:
  """Makes the partitionings of a config's two meshes.

  Returns: (of the devices that update, of the devices that only sample or None).
  """
  sharding.check_platform(config.mesh.platform)
  mesh, rollout_mesh = sharding.make_meshes(config.mesh.sizes, config.rollout_mesh.sizes)
  rules = tuple((dict(sharding.DEFAULT_RULES) | dict(config.sharding_rules)).items())
  return (
      sharding.Partitioning(mesh, rules),
      rollout_mesh and sharding.Partitioning(rollout_mesh, rules))
