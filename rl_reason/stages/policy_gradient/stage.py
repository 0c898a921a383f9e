"""Policy gradients on rewards: prompts -> completions -> rewards -> advantages -> updates.

An algorithm is a choice of fields: GRPO, Dr. GRPO, RLOO, REINFORCE++ with and without a baseline, DAPO, GSPO, CISPO, GMPO and
PPO are written out in experiments/algorithms.py.
"""

import contextlib
import dataclasses
import time

import jax
import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.batches.prompts import encode_prompts
from rl_reason.learner import memory as learner_memory
from rl_reason.learner.step import Learner, make_learner, make_update, run_update
from rl_reason.models import policy
from rl_reason.objectives import losses
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.monitors import build_monitors
from rl_reason.rollout import memory as rollout_memory
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.samples import check_sampling
from rl_reason.runtime import compilation
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime.randomness import fold
from rl_reason.sandbox.pool import failure_counts
from rl_reason.stages import groups
from rl_reason.stages.adapters import merging_memory, trained_policy, with_adapters
from rl_reason.stages.base import first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import token_reward as token_reward_lib
from rl_reason.stages.policy_gradient.ahead import Ahead
from rl_reason.stages.policy_gradient.assemble import (
  assemble,
  blank_batch,
  microbatches,
  minibatches,
  num_microbatches,
  num_parts,
  scores_acting,
  scoring_parts,
)
from rl_reason.stages.policy_gradient.config import Config
from rl_reason.stages.rollouts import sample_rollout
from rl_reason.tasks import pipeline
from rl_reason.types import Params


def check(config: Config, context: Context, name: str) -> None:
  """Raises: ValueError for unknown rewards, for references they cannot use, and for prompts, completions and stop strings
  that are too long."""
  check_sampling(
      config.sampling, context.policy.config, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens)
  if context.environment is not None:
    context.environment.check(config.sampling, f"config.{name}")
  problems = first_rows(context.task.train)
  encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  if config.staleness and context.partitioning.mesh.size > 1 and context.rollout_partitioning is None:
    # Of one process too: a program is handed to one device after the other, and two threads may do so by turns.
    raise ValueError(f"staleness=1 runs two programs at once, and {context.partitioning.mesh.size} devices could start them"
                     " in different orders and wait for each other for ever: give sampling devices of its own with"
                     " --config.rollout_mesh.data=..., or set staleness=0, or a mesh of one device.")
  with contextlib.closing(build_rewards(config.rewards, models=context.models)) as rewards:
    rewards.check_references([p.reference for p in problems])
  if config.companion is not None:
    critic_lib.check(config.companion, context)


def trained(config: Config, context: Context, name: str) -> Trained:
  """The policy itself or, with a companion, {"policy": ..., "critic": ...}."""
  policy_part = trained_policy(context, config.lora)
  if config.companion is None:
    return policy_part
  return Trained(
      {"policy": policy_part.shapes, "critic": critic_lib.abstract_params(config.companion, context)},
      policy=lambda params: policy_part.policy(params["policy"]),
      critic=(lambda params: params["critic"]) if config.companion.trunk == "separate" else None)


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """make_learner of what `trained` says, for stage `name`, starting from the policy `params`."""
  updates, optimizer = config.epochs * config.minibatches, None
  if config.companion is not None:
    optimizer = critic_lib.make_optimizer(
        config.companion, config.optimizer, num_steps=config.num_steps, updates_per_step=updates)

  def start():
    acting = with_adapters(context, params, config.lora, name)
    if config.companion is None:
      return acting
    return {"policy": acting, "critic": critic_lib.init_params(config.companion, context, params, name)}
  return make_learner(
      context.partitioning, trained(config, context, name).shapes, start, config.optimizer,
      config.num_steps * updates, optimizer=optimizer)


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """What a device needs to run this stage: to sample, to score, to update."""
  model, partitioning, dtype = context.policy.config, context.partitioning, context.dtype
  rollout = memory_lib.Batch(
      config.prompts_per_step, config.group_size, context.max_prompt_tokens, config.sampling.max_tokens)
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  microbatch = dataclasses.replace(rollout, prompts=rollout.prompts // num_parts(config, context))
  state_shape, critic = learner_of(config, context, None, name).state_shape, config.companion
  sampler = context.on_sampling_devices if config.staleness else context
  sampling = rollout_memory.rollout_parts(
      model, sampler.partitioning, context.sampler.batch(config.prompts_per_step, config.group_size, config.sampling),
      dtype=dtype, params=sampler.abstract_params, phase="sampling",
      cure="lower slots" if config.slots else "set slots, or lower prompts_per_step or group_size",
      slots=config.slots, prefill_tokens=context.prefill_tokens, page_tokens=config.page_tokens, int8=config.int8_rollouts)
  if config.staleness:  # With parameters of its own.
    copy = memory_lib.sharded_bytes(sampler.abstract_params)
    sampling += [memory_lib.Part("parameters that sample", copy, "set staleness=0", phase)
                 for phase in {part.phase: None for part in sampling}]
  if sampler is not context:
    sampling = [dataclasses.replace(part, devices="that samples") for part in sampling]
  elif config.staleness:  # Beside all that an update does.
    sampling += [dataclasses.replace(part, phase=phase) for phase in ("scoring", "update", "optimizer step")
                 for part in memory_lib.peak(sampling)]
  updating = learner_memory.update_parts(model, partitioning, microbatch, dtype=dtype, remat=config.remat)
  if critic is not None and critic.trunk == "separate":
    updating.append(dataclasses.replace(updating[0], name="activations of the critic"))
  scores = config.kl_coef or config.importance_cap or critic is not None
  merged = ["evaluation", "sampling"] + ["scoring"] * scores_acting(config)
  return [
      *merging_memory(context, config.lora, *merged),
      *learner_memory.learner_parts(state_shape, microbatches=config.microbatches, start=context.abstract_params),
      *sampling,
      *(learner_memory.scoring_parts(model, partitioning, microbatch, dtype=dtype) if scores else ()),
      *updating,
  ]


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """params are where the policy starts and, where a KL penalty is asked for, the frozen reference."""
  rewards = build_rewards(config.rewards, models=context.models)
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  learner = learner_of(config, context, params, name)
  state_shape, policy_of = learner.state_shape, trained(config, context, name).policy
  model = context.policy.config
  reference = params if config.kl_coef else None
  temperature = config.sampling.temperature

  def loss_fn(params, batch):
    acting, critic = critic_lib.split(config.companion, params)
    def states_of(params):
      return policy.completion_states(
          model, params, batch.prompts, batch.completions, batch.completion_lengths, segments=batch.segments,
          dtype=context.dtype, remat=config.remat)
    states = states_of(acting)
    logprobs, entropy = policy.token_logprobs(model, acting, states, batch.completions, temperature=temperature)
    loss, statistics = losses.policy_gradient_loss(
        logprobs, entropy, batch, objective=config.objective, clip_low=config.clip_low, clip_high=config.clip_high,
        kl_coef=config.kl_coef if config.kl_in == "loss" else 0.0, kl_estimator=config.kl_estimator,
        entropy_coef=config.entropy_coef)
    if critic is None:
      return loss, statistics
    values = critic_lib.values(config.companion, critic, states, states_of)
    if config.token_reward is not None:
      return token_reward_lib.add_loss(loss, statistics, values, batch)
    return critic_lib.add_value_loss(config.critic, loss, statistics, values, batch)

  update = compilation.Program(make_update(learner, loss_fn), within=context.partitioning.use)
  score = compilation.Program(policy.score, within=context.partitioning.use)

  def begin_programs(rollout):
    """Begins to compile what the rollout is scored and learnt from with: both at once, and while the scores come."""
    place_shapes = context.partitioning.placed_shapes
    if reference is not None or config.importance_cap:
      _, parts = scoring_parts(config, context, rollout)
      score.begin(model, context.abstract_params, *place_shapes(parts[0], ("batch",)),
                  temperature=temperature, dtype=context.dtype)
    for minibatch in minibatches(blank_batch(config, rollout), config, minibatch_rng(rollout)):
      update.begin(state_shape, place_shapes(microbatches(config, context, minibatch), (None, "batch")))

  # The first rollout of the last run like this one: what it needed lies on disk, and is read while this one samples.
  last_first = compilation.Note("first rollout", config, model, context.dtype, context.partitioning.mesh.shape)

  def minibatch_rng(rollout):
    return fold(context.rng(name, "minibatches"), rollout.index)

  data = pipeline.batches(
      context.task.train, batch_size=config.prompts_per_step, seed=context.stream_seed(name, "data"),
      process_index=jax.process_index(), process_count=jax.process_count())

  def sample_once(params, problems, index, *further) -> Rollout:
    """further: a number for each round after a step's first."""
    return sample_rollout(config, context, params, problems, rewards, index=index, int8=config.int8_rollouts,
                          rng=context.rng(name, "rollout", index, *further))

  def sample(params, problems, index) -> Rollout:
    """The step's rollout, with what is logged of it."""
    first = not update.begun
    if first and (shape := last_first.read()):
      begin_programs(Rollout.blank(index, shape))
    rollout = sample_once(params, problems, index)
    if config.equal_groups == "resample":
      # From the same stream of problems, so that its position, which is checkpointed, says it all.
      rollout = groups.resample(
          rollout, lambda further: sample_once(params, next(data), index, further),
          max_rounds=config.max_resamples, by=config.equal_by)
    else:
      rollout = dataclasses.replace(rollout, metrics={**rollout.metrics, **groups.metrics(rollout, config.equal_by)})
    if first:  # In the first step most programs are new; later ones would lay all rows out twice for a few.
      begin_programs(rollout)
      last_first.write(rollout.shape)
    return rollout

  def learn(state, rollout) -> tuple[LearnerState, StepResult]:
    """Rewards -> advantages -> updates."""
    started = time.perf_counter()
    with jax.profiler.TraceAnnotation("assemble"):
      batch, metrics = assemble(config, context, rollout, state.params, reference, score=score)
    scored = time.perf_counter()
    history, skipped = [], 0
    for minibatch in minibatches(batch, config, minibatch_rng(rollout)):
      placed = context.partitioning.place(microbatches(config, context, minibatch), (None, "batch"))
      state, updated, refused = run_update(update, state, placed)
      history.append(updated)
      skipped = max(skipped, refused)
    logged = dict(rollout.metrics)
    tokens = logged.pop("tokens")
    return state, StepResult({
        **{k: float(np.mean([h[k] for h in history])) for k in history[0]},
        # Without staleness the first update has the very parameters that sampled: any gap is a fault, or rounding.
        "logprob_gap": history[0]["logprob_gap"],
        **metrics, **logged,
        **{f"reward_workers/{k}": float(v) for k, v in failure_counts().items()},
        **rollout.seconds, "time/score": scored - started, "time/update": time.perf_counter() - scored,
    }, tokens=tokens, skipped=skipped, updates=len(history), shown=rollout.shown)

  def step(state, problems, index):
    return learn(state, sample(policy_of(state.params), problems, index))

  ahead = Ahead(context, sample, learn, config.num_steps, policy_of) if config.staleness else None

  def close():
    if ahead:
      ahead.close()
    for program in (score, update):
      program.close()
    rewards.close()

  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=state_shape, step=ahead.step if ahead else step,
      resumable={"rewards": rewards, **({"ahead": ahead} if ahead else {})},
      max_skipped=config.optimizer.max_skipped, monitors=build_monitors(config.monitors, rewards=config.rewards),
      close=close, data=data)


KIND = Kind(Config=Config, check=check, memory=memory, trained=trained, build=build,
            samples_ahead=lambda section: bool(section.staleness))
