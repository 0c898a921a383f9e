"""Policy gradients on rewards: prompts -> completions -> rewards -> advantages -> updates.

An algorithm is a choice of fields: GRPO, Dr. GRPO, RLOO, REINFORCE++ with and without a baseline, DAPO, GSPO, CISPO, GMPO and
PPO are written out in experiments/algorithms.py.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from rl_reason import advantages, compilation, learner, losses, policy
from rl_reason import memory as memory_lib
from rl_reason.config import at_least, one_of
from rl_reason.models import transformer
from rl_reason.models.lora import LoRA
from rl_reason.rewards import build_rewards
from rl_reason.rewards.monitors import build_monitors
from rl_reason.rewards.workers import failure_counts
from rl_reason.rollout import Rollout, Sampling, check_sampling, encode_prompts
from rl_reason.stages import critic as critic_lib
from rl_reason.stages import groups
from rl_reason.stages import token_reward as token_reward_lib
from rl_reason.stages.ahead import Ahead
from rl_reason.stages.assemble import (
    assemble, blank_batch, microbatches, minibatches, num_microbatches, num_parts, scores_acting, scoring_parts)
from rl_reason.stages.base import (
    Context, Optimizer, Stage, Trained, first_rows, fold, make_learner, merging_memory, trained_policy, with_adapters)
from rl_reason.stages.critic import Critic
from rl_reason.stages.rollouts import sample_rollout
from rl_reason.stages.token_reward import TokenReward
from rl_reason.tasks import pipeline
from rl_reason.types import LearnerState, Params

EQUAL_GROUPS = ("keep", "skip", "resample")


@dataclasses.dataclass(frozen=True)
class Config:
  """num_steps: rollouts. prompts_per_step, group_size: completions per rollout are their product.

  slots: completions decoded at once, at least group_size: bounds the memory of the KV cache (rollout.generate); 0: all.
  sampling: rollout.sampling.Sampling; its filters must be off, for the update knows only the whole distribution.
  rewards: rewards.build_rewards.
  returns: what a token is credited with. "total": its completion's whole reward. "to_go": what is rewarded from it on,
    each further token discounted by `discount`, as rewards of steps need it. With a critic it is advantages.gae's or
    vtrace's, by its lam.
  baseline: a key of advantages.BASELINES. normalise: a key of advantages.NORMALISERS or TOKEN_NORMALISERS.
  equal_groups: what becomes of groups whose rewards are all equal. "keep": learnt from like others. "skip": their tokens
    have no part in the loss. "resample": skipped, and replaced by groups of further prompts, in at most `max_resamples`
    rounds of prompts_per_step (stages.groups.resample). Advantages are normalised over all groups of the batch.
  equal_by: the reward whose values are compared, e.g. the verifier's beside a length penalty; "": the total.
  keep_by: the reward that says which completions are learnt from, those with more than 0.5 (its weight may be 0); the tokens
    of others have no part in the loss. Baselines see all, normalisers of tokens only these. "": from all.
  page_tokens: what is sampled is kept in pages of so many tokens (rollout.generate); 0: in one room for all slots.
  epochs: passes over each rollout. minibatches: updates per pass. microbatches: parts of a minibatch gone through one by
    one, to save memory; 0: as many as this machine is fastest with (packing.num_passes). Groups are never split.
  objective: a key of losses.OBJECTIVES. clip_low, clip_high: its bounds: of the probability ratio, 1 - clip_low and
    1 + clip_high, or as the objective says.
  kl_coef: weight of KL(policy || reference), the reference being the policy this stage starts from; 0 for none.
  kl_estimator: k1, k2 or k3. kl_in: "loss", or "reward": subtracted from each token's reward.
  negative_weight: a factor of advantages below 0.
  critic: a Critic, whose values take the place of the baseline; None for none.
  token_reward: a TokenReward, which says how much of a completion's advantage each of its tokens gets; None: all of it.
  entropy_coef: weight of the entropy bonus. mean_over: token, sequence or fixed_length (losses.token_weights).
  remat: models.transformer.REMAT_POLICIES.
  lora: as in stages.sft; a critic's own trunk is trained whole.
  staleness: 0, or 1: the next rollout is sampled while this one's update runs, from parameters one step old
    (stages.ahead). It takes memory for a second copy of the policy; or devices of its own, config.RolloutMesh.
  importance_cap: C of truncated importance sampling between trainer and sampler (losses.truncated_importance), for
    rollouts that the trainer's policy would not have drawn just so; 0 for none: the ratio to the sampler is then all.
    With critic.vtrace it bounds what V-trace makes of the same ratio.
  int8_rollouts: sample with the layers' matrices rounded to 8 bits. Needs importance_cap.
  start: the stage whose policy it starts from (run.starting_points).
  monitors: signs of a gamed reward, rewards.monitors.build_monitors.
  """
  kind: str
  num_steps: int
  prompts_per_step: int
  group_size: int
  sampling: Sampling
  rewards: Mapping[str, Any]
  optimizer: Optimizer
  returns: str = "total"
  discount: float = 1.0
  baseline: str = "group_mean"
  normalise: str = "none"
  equal_groups: str = "keep"
  equal_by: str = ""
  keep_by: str = ""
  max_resamples: int = 10
  negative_weight: float = 1.0
  critic: Critic | None = None
  token_reward: TokenReward | None = None
  slots: int = 0
  page_tokens: int = 0
  epochs: int = 1
  minibatches: int = 1
  microbatches: int = 0
  objective: str = "clipped"
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_coef: float = 0.0
  kl_estimator: str = "k3"
  kl_in: str = "loss"
  entropy_coef: float = 0.0
  mean_over: str = "token"
  remat: str = "none"
  lora: LoRA = LoRA()
  staleness: int = 0
  importance_cap: float = 0.0
  int8_rollouts: bool = False
  start: str = ""
  monitors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps, prompts_per_step=self.prompts_per_step, group_size=self.group_size,
             epochs=self.epochs, minibatches=self.minibatches, max_resamples=self.max_resamples)
    at_least(0, microbatches=self.microbatches, slots=self.slots, page_tokens=self.page_tokens, clip_low=self.clip_low,
             clip_high=self.clip_high, kl_coef=self.kl_coef, entropy_coef=self.entropy_coef,
             importance_cap=self.importance_cap, discount=self.discount, negative_weight=self.negative_weight)
    build_monitors(self.monitors, rewards=self.rewards)
    one_of(advantages.RETURNS, returns=self.returns)
    one_of(advantages.BASELINES, baseline=self.baseline)
    one_of({**advantages.NORMALISERS, **advantages.TOKEN_NORMALISERS}, normalise=self.normalise)
    one_of(EQUAL_GROUPS, equal_groups=self.equal_groups)
    one_of(losses.OBJECTIVES, objective=self.objective)
    one_of(losses.KL_ESTIMATORS, kl_estimator=self.kl_estimator)
    one_of(("loss", "reward"), kl_in=self.kl_in)
    one_of(losses.REDUCTIONS, mean_over=self.mean_over)
    one_of(transformer.REMAT_POLICIES, remat=self.remat)
    if self.staleness not in (0, 1):
      raise ValueError("staleness must be 0 (sample, then update) or 1 (sample the next rollout during the update), got"
                       f" {self.staleness}: older rollouts are not kept. Set 1.")
    if self.int8_rollouts and not self.importance_cap:
      raise ValueError("int8_rollouts samples from another distribution than the trainer's, and importance_cap is 0: set"
                       " importance_cap=2.0 or so, to weigh the samples.")
    if self.clip_low > 1:
      raise ValueError(f"clip_low must be in [0, 1], got {self.clip_low}: a probability ratio is never below 0.")
    if self.equal_by:
      one_of(self.rewards, **{"equal_by (a reward)": self.equal_by})
    if self.keep_by:
      one_of(self.rewards, **{"keep_by (a reward)": self.keep_by})
    self._check_credit()
    if self.group_size < 2 and (self.baseline != "none" or self.normalise == "group_std"):
      raise ValueError(
          f"group_size must be at least 2 with baseline={self.baseline!r} and normalise={self.normalise!r}, got"
          f" {self.group_size}: with one completion per prompt the group mean is that completion's own reward, so every"
          " advantage is zero. Raise group_size, or set baseline='none'.")
    if self.slots and self.slots < self.group_size:
      raise ValueError(f"slots must be at least group_size={self.group_size}, got {self.slots}: a group shares its prompt's"
                       " keys and values. Raise slots, or set 0 for as many as there are completions.")
    if self.prompts_per_step % (self.minibatches * max(1, self.microbatches)):
      raise ValueError(
          f"minibatches * microbatches = {self.minibatches} * {max(1, self.microbatches)} must divide prompts_per_step="
          f"{self.prompts_per_step}: they are made of whole groups.")
    if self.sampling.filters or self.sampling.temperature == 0:
      raise ValueError(
          f"Training samples need temperature above 0 and no top_k, top_p or min_p, got {self.sampling}: the update"
          " compares with the probability of the whole distribution, so every ratio would be off.")

  @property
  def companion(self) -> critic_lib.Companion | None:
    """What learns beside the policy."""
    return self.critic or self.token_reward

  def _check_credit(self):
    """Which estimates of advantages go together."""
    to_go = self.critic is not None or self.returns == "to_go"
    if self.discount > 1:
      raise ValueError(f"discount must be in [0, 1], got {self.discount}: above 1 later rewards count more and more.")
    if self.discount < 1 and not to_go:
      raise ValueError(f"discount={self.discount} is for returns='to_go' and critics, and returns='total' gives all tokens of"
                       " a completion the same: set returns='to_go', or discount=1.0.")
    if to_go and self.normalise == "batch_whiten":
      raise ValueError("normalise='batch_whiten' is over completions, and with returns='to_go' or a critic advantages differ"
                       " from token to token: set normalise='token_whiten'.")
    if self.critic is not None:
      if self.baseline != "none":
        raise ValueError(f"A critic is the baseline, and baseline={self.baseline!r} would be a second one: set"
                         " baseline='none'.")
      one_of(advantages.TOKEN_NORMALISERS, **{"normalise (with a critic)": self.normalise})
      if self.critic.vtrace and not self.importance_cap:
        raise ValueError("critic.vtrace weighs tokens by the trainer's policy over the sampler's, and importance_cap, its"
                         " bound, is 0: set importance_cap=1.0, or vtrace=False.")
    if self.companion is not None and self.companion.warmup_steps >= self.num_steps:
      name = "critic" if self.critic else "token_reward"
      raise ValueError(f"{name}.warmup_steps={self.companion.warmup_steps} of num_steps={self.num_steps}: the policy would"
                       " never learn. Lower it, or raise num_steps.")
    if self.token_reward is not None:
      one_of(self.rewards, **{"token_reward.outcome (a reward)": self.token_reward.outcome})
      if self.critic is not None or self.returns != "total":
        raise ValueError("token_reward shares a completion's advantage out among its tokens, and a critic or"
                         f" returns={self.returns!r} gives each token its own: set critic=None and returns='total', or"
                         " token_reward=None.")
    if self.normalise == "per_sign" and self.mean_over != "token":
      raise ValueError(f"normalise='per_sign' makes the mean over tokens one over the tokens of each sign, and mean_over="
                       f"{self.mean_over!r} takes another mean: set mean_over='token'.")
    if self.prompts_per_step * self.group_size < 2 and self.normalise == "batch_std":
      raise ValueError("normalise='batch_std' divides by the deviation of a step's rewards, and a step has one completion:"
                       " raise prompts_per_step or group_size, or set normalise='none'.")
    if self.equal_groups != "keep" and self.group_size < 2:
      raise ValueError(f"equal_groups={self.equal_groups!r} compares a group's completions, and group_size is"
                       f" {self.group_size}: every group would be left out. Raise group_size, or set equal_groups='keep'.")


def check(config: Config, context: Context) -> None:
  """Raises: ValueError for unknown rewards, for references they cannot use, and for prompts, completions and stop strings
  that are too long."""
  check_sampling(
      config.sampling, context.policy.config, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens)
  if context.environment is not None:
    context.environment.check(config.sampling, f"config.{context.name_of(config)}")
  problems = first_rows(context.task.train)
  encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  if config.staleness and context.partitioning.mesh.size > 1 and context.rollout_partitioning is None:
    # Of one process too: a program is handed to one device after the other, and two threads may do so by turns.
    raise ValueError(f"staleness=1 runs two programs at once, and {context.partitioning.mesh.size} devices could start them"
                     " in different orders and wait for each other for ever: give sampling devices of its own with"
                     " --config.rollout_mesh.data=..., or set staleness=0, or a mesh of one device.")
  with contextlib.closing(build_rewards(config.rewards, models=context.models(config))) as rewards:
    rewards.check_references([p.reference for p in problems])
  if config.companion is not None:
    critic_lib.check(config.companion, context, context.name_of(config))


def trained(config: Config, context: Context) -> Trained:
  """The policy itself or, with a companion, {"policy": ..., "critic": ...}."""
  policy_part = trained_policy(context, config.lora)
  if config.companion is None:
    return policy_part
  return Trained(
      {"policy": policy_part.shapes, "critic": critic_lib.abstract_params(config.companion, context)},
      policy=lambda params: policy_part.policy(params["policy"]),
      critic=(lambda params: params["critic"]) if config.companion.trunk == "separate" else None)


def learner_of(config: Config, context: Context, params: Params | None, name: str = ""):
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
  return make_learner(context, start, config.optimizer, config.num_steps * updates, shapes=trained(config, context).shapes,
                      optimizer=optimizer)


def memory(config: Config, context: Context) -> list[memory_lib.Part]:
  """What a device needs to run this stage: to sample, to score, to update."""
  model, partitioning, dtype = context.policy.config, context.partitioning, context.dtype
  rollout = memory_lib.Batch(
      config.prompts_per_step, config.group_size, context.max_prompt_tokens, config.sampling.max_tokens)
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  microbatch = dataclasses.replace(rollout, prompts=rollout.prompts // num_parts(config, context))
  state_shape, critic = learner_of(config, context, None)[-1], config.companion
  sampler = context.sampler if config.staleness else context
  sampling = memory_lib.rollout_parts(
      model, sampler.partitioning, context.sampled_batch(config.prompts_per_step, config.group_size, config.sampling),
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
  updating = memory_lib.update_parts(model, partitioning, microbatch, dtype=dtype, remat=config.remat)
  if critic is not None and critic.trunk == "separate":
    updating.append(dataclasses.replace(updating[0], name="activations of the critic"))
  scores = config.kl_coef or config.importance_cap or critic is not None
  merged = ["evaluation", "sampling"] + ["scoring"] * scores_acting(config)
  return [
      *merging_memory(context, config.lora, *merged),
      *memory_lib.learner_parts(state_shape, microbatches=config.microbatches, start=context.abstract_params),
      *sampling,
      *(memory_lib.scoring_parts(model, partitioning, microbatch, dtype=dtype) if scores else ()),
      *updating,
  ]


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """params are where the policy starts and, where a KL penalty is asked for, the frozen reference."""
  rewards = build_rewards(config.rewards, models=context.models(config))
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  optimizer, init, state_shape = learner_of(config, context, params, name)
  policy_of = trained(config, context).policy
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

  # The state keeps its shardings, so that each update's program serves the next.
  update = compilation.Program(
      jax.jit(functools.partial(learner.train_step, loss_fn=loss_fn, optimizer=optimizer), donate_argnums=0,
              out_shardings=(jax.tree.map(lambda x: x.sharding, state_shape), None)),
      within=context.partitioning.use)
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

  def learn(state, rollout) -> tuple[LearnerState, dict[str, float]]:
    """Rewards -> advantages -> updates."""
    started = time.perf_counter()
    with jax.profiler.TraceAnnotation("assemble"):
      batch, metrics = assemble(config, context, rollout, state.params, reference, score=score)
    scored = time.perf_counter()
    history = []
    for minibatch in minibatches(batch, config, minibatch_rng(rollout)):
      placed = context.partitioning.place(microbatches(config, context, minibatch), (None, "batch"))
      with jax.profiler.TraceAnnotation("update"):  # In a profile's timeline, as the others here.
        state, updated = update(state, placed)
      history.append({k: float(v) for k, v in jax.device_get(updated).items()})
    return state, {
        **{k: float(np.mean([h[k] for h in history])) for k in history[0]},
        # Without staleness the first update has the very parameters that sampled: any gap is a fault, or rounding.
        "logprob_gap": history[0]["logprob_gap"],
        "skipped_in_a_row": max(h["skipped_in_a_row"] for h in history),
        **metrics, **rollout.metrics,
        **{f"reward_workers/{k}": float(v) for k, v in failure_counts().items()},
        **rollout.seconds, "time/score": scored - started, "time/update": time.perf_counter() - scored,
    }

  def step(state, problems, index):
    rollout = sample(policy_of(state.params), problems, index)
    state, metrics = learn(state, rollout)
    return state, metrics, rollout.shown

  ahead = Ahead(context, sample, learn, config.num_steps, policy_of) if config.staleness else None

  def close():
    if ahead:
      ahead.close()
    for program in (score, update):
      program.close()
    rewards.close()

  return Stage(
      num_steps=config.num_steps, init=init, state_shape=state_shape, step=ahead.step if ahead else step,
      resumable={"rewards": rewards, **({"ahead": ahead} if ahead else {})},
      max_skipped=config.optimizer.max_skipped, monitors=build_monitors(config.monitors, rewards=config.rewards),
      close=close, data=data)
