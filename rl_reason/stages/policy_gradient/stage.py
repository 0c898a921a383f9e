"""Trains by policy gradients: prompts -> completions -> rewards -> advantages -> updates.

An algorithm is a choice of fields: GRPO, Dr. GRPO, RLOO, REINFORCE++ with and without a baseline,
DAPO, GSPO, CISPO, GMPO and PPO are written out in experiments/algorithms.py.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import time
from typing import Any

import jax
from jaxtyping import PRNGKeyArray
import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.learner import memory as learner_memory
from rl_reason.learner.step import Learner, make_learner, make_update, run_update
from rl_reason.models import policy
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.monitors import build_monitors
from rl_reason.rewards.composition.reward_set import RewardSet
from rl_reason.rollout.record import Rollout
from rl_reason.runtime import compilation
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime.randomness import fold
from rl_reason.sandbox.pool import failure_counts
from rl_reason.stages import groups
from rl_reason.stages.adapters import merging_memory, trained_policy, with_adapters
from rl_reason.stages.base import Batches, first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.policy_gradient import agreement
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient.ahead import Ahead
from rl_reason.stages.policy_gradient.assemble import Assembler
from rl_reason.stages.policy_gradient.config import Config
from rl_reason.stages.policy_gradient.loss import Loss
from rl_reason.stages.policy_gradient.programs import Programs
from rl_reason.stages.policy_gradient.rows import Rows
from rl_reason.stages.rollouts import sample_rollout, sampling_memory
from rl_reason.tasks import pipeline
from rl_reason.types import Params, Problem


def check(config: Config, context: Context, name: str) -> None:
  """Raises: ValueError for unknown rewards, for references they cannot use, and for prompts,
  completions and stop strings that are too long."""
  context.sampler.check(config.rollout.sampling, f"config.{name}.rollout")
  problems = first_rows(context.task.train)
  context.sampler.encode(problems)
  if (config.staleness and context.partitioning.mesh.size > 1
      and context.rollout_partitioning is None):
    # Of one process too: a program is handed to one device after the other, and two threads may
    # do so alternately.
    raise ValueError(
        f"staleness=1 runs two programs at once, and {context.partitioning.mesh.size} devices could"
        " start them in different orders and wait for each other for ever: give sampling devices of"
        " its own with --config.rollout_mesh.data=..., or set staleness=0, or a mesh of one"
        " device.")
  with contextlib.closing(build_rewards(config.rewards, models=context.models)) as rewards:
    rewards.check_references([p.reference for p in problems])
  if config.credit.companion is not None:
    critic_lib.check(config.credit.companion, context)


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes the policy itself or, with a companion, {"policy": ..., "critic": ...}."""
  policy_part, companion = trained_policy(context, config.learner.lora), config.credit.companion
  if companion is None:
    return policy_part
  return Trained(
      {"policy": policy_part.shapes, "critic": critic_lib.abstract_params(companion, context)},
      policy=lambda params: policy_part.policy(params["policy"]),
      critic=(lambda params: params["critic"]) if companion.trunk == "separate" else None)


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """Makes the learner of what `trained` says, starting from the policy `params`."""
  companion, update, optimizer = config.credit.companion, config.learner, None
  num_updates = config.num_steps * update.per_rollout
  if companion is not None:
    # The policy is updated only after the critic's warm-up.
    num_updates -= companion.warmup_steps * update.per_rollout
    optimizer = critic_lib.make_optimizer(
        companion, update.optimizer, num_steps=config.num_steps,
        updates_per_step=update.per_rollout)

  def start():
    acting = with_adapters(context, params, update.lora, name)
    if companion is None:
      return acting
    critic = critic_lib.init_params(companion, context, params, name)
    return {"policy": acting, "critic": critic}
  return make_learner(
      context.partitioning, trained(config, context, name).shapes, start, update.optimizer,
      num_updates, optimizer=optimizer, part="policy" if companion is not None else "")


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs to run this stage: to sample, to score, to update."""
  model, partitioning, dtype = context.policy.config, context.partitioning, context.dtype
  rows = Rows.of(context, config.rollout, config.learner)
  assembler = Assembler(config.credit, config.objective, rows, policy.score)
  microbatch = memory_lib.Batch(
      config.rollout.prompts // rows.parts, config.rollout.group_size, context.max_prompt_tokens,
      config.rollout.sampling.max_tokens)
  state_shape = learner_of(config, context, None, name).state_shape

  # What the update holds, and the scores before it.
  companion = config.credit.companion
  updating = learner_memory.update_parts(
      model, partitioning, microbatch, dtype=dtype, remat=config.learner.remat)
  if companion is not None and companion.trunk == "separate":
    updating.append(dataclasses.replace(updating[0], name="activations of the critic"))
  scoring = []
  if config.objective.kl.coef or config.objective.importance_cap or companion is not None:
    scoring = learner_memory.scoring_parts(model, partitioning, microbatch, dtype=dtype)
  merged = ["evaluation", "sampling"] + ["scoring"] * assembler.scores_acting
  return [
      *merging_memory(context, config.learner.lora, *merged),
      *learner_memory.learner_parts(
          state_shape, microbatches=rows.update.microbatches, start=context.abstract_params),
      *_sampling_memory(config, context),
      *scoring,
      *updating,
  ]


def _sampling_memory(config: Config, context: Context) -> list[memory_lib.Part]:
  """Estimates what sampling holds: beside an update, or on devices of its own, if it is ahead."""
  if not config.staleness:
    return sampling_memory(config.rollout, context)
  there = context.on_sampling_devices
  sampling = sampling_memory(config.rollout, there)
  # With parameters of its own.
  copy = memory_lib.sharded_bytes(there.abstract_params)
  sampling += [memory_lib.Part("parameters that sample", copy, "set staleness=0", phase)
               for phase in {part.phase: None for part in sampling}]
  if there is not context:
    return [dataclasses.replace(part, devices="that samples") for part in sampling]
  # Beside all that an update does.
  return sampling + [
      dataclasses.replace(part, phase=phase) for phase in ("scoring", "update", "optimizer step")
      for part in memory_lib.peak(sampling)]


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage.

  Args:
    params: where the policy starts and, where a KL penalty is asked for, the frozen reference.
  """
  learner = learner_of(config, context, params, name)
  rows = Rows.of(context, config.rollout, config.learner)
  loss = Loss(context.policy.config, context.dtype, config.objective, config.credit,
              config.rollout.sampling.temperature, config.learner.remat)
  programs = Programs(
      score=compilation.Program(policy.score, within=context.partitioning.use),
      update=compilation.Program(make_update(learner, loss), within=context.partitioning.use),
      last_first=compilation.Note("first rollout", config, context.policy.config, context.dtype,
                                  context.partitioning.mesh.shape))
  data = pipeline.batches(
      context.task.train, batch_size=config.rollout.prompts,
      seed=context.stream_seed(name, "data"), process_index=jax.process_index(),
      process_count=jax.process_count())
  parts = PolicyGradient(
      config, context, name, learner,
      Assembler(config.credit, config.objective, rows, programs.score),
      programs, build_rewards(config.rewards, models=context.models), data,
      policy_of=trained(config, context, name).policy,
      reference=params if config.objective.kl.coef else None)
  ahead = None
  if config.staleness:
    ahead = Ahead(context, parts.sample, parts.learn, config.num_steps, parts.policy_of)

  def close():
    if ahead:
      ahead.close()
    programs.close()
    parts.rewards.close()

  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape, data=data,
      step=ahead.step if ahead else parts.step,
      resumable={"rewards": parts.rewards, **({"ahead": ahead} if ahead else {})},
      max_skipped=config.learner.optimizer.max_skipped,
      monitors=build_monitors(_monitors(config, context), rewards=config.rewards), close=close)


def _monitors(config: Config, context: Context) -> dict[str, Any]:
  """Adds to the section's monitors the one of sampler against trainer."""
  same_policy = not config.staleness and not config.rollout.int8
  return agreement.with_bound(
      config.monitors, agreement.bound(context.dtype, same_policy=same_policy))


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
  """The parts of a policy_gradient stage, and what a step does with them.

  assembler: makes of a rollout what updates read.
  programs: score a rollout and learn from it.
  rewards: judge completions.
  data: this process's problems.
  policy_of: the stage's parameters -> the policy among them, without adapters.
  reference: the policy that the KL penalty is measured against; None without one.
  """
  config: Config
  context: Context
  name: str
  learner: Learner
  assembler: Assembler
  programs: Programs
  rewards: RewardSet
  data: Batches
  policy_of: Callable[[Params], Params]
  reference: Params | None

  def step(
      self, state: LearnerState, problems: list[Problem], index: int,
  ) -> tuple[LearnerState, StepResult]:
    """Samples a rollout and learns from it."""
    return self.learn(state, self.sample(self.policy_of(state.params), problems, index))

  def sample(self, params: Params, problems: list[Problem], index: int) -> Rollout:
    """Samples the step's rollout, and begins to compile what it is learnt from with."""
    first, keep = not self.programs.update.begun, self.config.credit.keep
    if first and (shape := self.programs.last_first.read()):
      self._begin_programs(Rollout.blank(index, shape))
    rollout = self._sample_once(params, problems, index)
    if keep.equal_groups == "resample":
      # From the same stream of problems, so that its position, which is checkpointed, says it all.
      rollout = groups.resample(
          rollout, lambda further: self._sample_once(params, next(self.data), index, further),
          max_rounds=keep.max_resamples, by=keep.equal_by)
    else:
      measured = groups.metrics(rollout, keep.equal_by)
      rollout = dataclasses.replace(rollout, metrics={**rollout.metrics, **measured})
    if first:
      # In the first step most programs are new; later ones would lay all rows out twice for a few.
      self._begin_programs(rollout)
      self.programs.last_first.write(rollout.shape)
    return rollout

  def learn(self, state: LearnerState, rollout: Rollout) -> tuple[LearnerState, StepResult]:
    """Learns from a rollout: rewards -> advantages -> updates."""
    rows, history, skipped = self.assembler.rows, [], 0
    started = time.perf_counter()
    with jax.profiler.TraceAnnotation("assemble"):
      batch, metrics = self.assembler(rollout, state.params, self.reference)
    scored = time.perf_counter()
    minibatches = rows.minibatches(
        batch, self._minibatch_rng(rollout), mean_over=self.config.objective.mean_over)
    for minibatch in minibatches:
      placed = rows.partitioning.place(rows.microbatches(minibatch), (None, "batch"))
      state, updated, refused = run_update(self.programs.update, state, placed)
      history.append(updated)
      skipped = max(skipped, refused)
    logged = dict(rollout.metrics)
    tokens = logged.pop("tokens")
    return state, StepResult({
        **{k: float(np.mean([h[k] for h in history])) for k in history[0]},
        # Without staleness the first update has the very parameters that sampled: any gap is a
        # fault, or rounding.
        "logprob_gap": history[0]["logprob_gap"],
        **metrics, **logged,
        **{f"reward_workers/{k}": float(v) for k, v in failure_counts().items()},
        **rollout.seconds, "time/score": scored - started,
        "time/update": time.perf_counter() - scored,
    }, tokens=tokens, skipped=skipped, updates=len(history), shown=rollout.shown)

  def _sample_once(
      self, params: Params, problems: list[Problem], index: int, *further: int) -> Rollout:
    """Samples once. Args: further: a number for each round after a step's first."""
    return sample_rollout(
        self.config.rollout, self.context, params, problems, self.rewards, index=index,
        rng=self.context.rng(self.name, "rollout", index, *further))

  def _begin_programs(self, rollout: Rollout) -> None:
    self.programs.begin(
        self.assembler, rollout, self.learner.state_shape, self.context.abstract_params,
        self._minibatch_rng(rollout), reference=self.reference is not None)

  def _minibatch_rng(self, rollout: Rollout) -> PRNGKeyArray:
    return fold(self.context.rng(self.name, "minibatches"), rollout.index)


KIND = Kind(Config=Config, check=check, memory=memory, trained=trained, build=build,
            samples_ahead=lambda section: bool(section.staleness))
