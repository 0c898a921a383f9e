"""Policy gradients on verifiable rewards: prompts -> completions -> rewards -> advantages -> updates.

With group baselines and clipping this is GRPO (arXiv:2402.03300), Dr. GRPO (2503.20783), RLOO (2402.14740) or DAPO's loss
(2503.14476), as `baseline`, `normalise`, `mean_over` and the clip bounds say.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from rl_reason import advantages, learner, losses, packing, policy, sharding
from rl_reason import memory as memory_lib
from rl_reason.config import at_least, one_of
from rl_reason.models import transformer
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.rewards import Scoring, build_rewards
from rl_reason.rewards.workers import failure_counts
from rl_reason.rollout import Rollout, Sampling, check_sampling, encode_prompts, generate, make_samples
from rl_reason.stages.ahead import Ahead
from rl_reason.stages.base import Context, Optimizer, Stage, Trained, first_rows, fold, make_learner
from rl_reason.stages.sft import split_microbatches
from rl_reason.tasks import pipeline
from rl_reason.types import LearnerState, Params, RolloutBatch, Sample, length_mask


@dataclasses.dataclass(frozen=True)
class Config:
  """num_steps: rollouts. prompts_per_step, group_size: completions per rollout are their product.

  slots: completions decoded at once, at least group_size: bounds the memory of the KV cache (rollout.generate); 0: all.
  sampling: rollout.sampling.Sampling; its filters must be off, for the update knows only the whole distribution.
  rewards: rewards.build_rewards.
  baseline, normalise: keys of advantages.BASELINES and NORMALISERS.
  epochs: passes over each rollout. minibatches: updates per pass. microbatches: parts of a minibatch gone through one by
    one, to save memory; 0: as many as this machine is fastest with (num_microbatches). Groups are never split.
  clip_low, clip_high: bounds of the probability ratio, 1 - clip_low and 1 + clip_high.
  kl_coef: weight of KL(policy || reference), the reference being the policy this stage starts from; 0 for none.
  kl_estimator: k1, k2 or k3. kl_in: "loss" (per token) or "reward" (summed over the completion, subtracted).
  entropy_coef: weight of the entropy bonus. mean_over: token, sequence or fixed_length (losses.token_weights).
  remat: models.transformer.REMAT_POLICIES.
  staleness: 0, or 1: the next rollout is sampled while this one's update runs, from parameters one step old
    (stages.ahead). It takes memory for a second copy of the policy.
  importance_cap: C of truncated importance sampling between trainer and sampler (losses.truncated_importance), for
    rollouts that the trainer's policy would not have drawn just so; 0 for none: the ratio to the sampler is then all.
  int8_rollouts: sample with the layers' matrices rounded to 8 bits. Needs importance_cap.
  start: the stage whose policy it starts from (run.starting_points).
  """
  kind: str
  num_steps: int
  prompts_per_step: int
  group_size: int
  sampling: Sampling
  rewards: Mapping[str, Any]
  optimizer: Optimizer
  baseline: str = "group_mean"
  normalise: str = "none"
  slots: int = 0
  epochs: int = 1
  minibatches: int = 1
  microbatches: int = 0
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_coef: float = 0.0
  kl_estimator: str = "k3"
  kl_in: str = "loss"
  entropy_coef: float = 0.0
  mean_over: str = "token"
  remat: str = "none"
  staleness: int = 0
  importance_cap: float = 0.0
  int8_rollouts: bool = False
  start: str = ""

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps, prompts_per_step=self.prompts_per_step, group_size=self.group_size,
             epochs=self.epochs, minibatches=self.minibatches)
    at_least(0, microbatches=self.microbatches, slots=self.slots, clip_low=self.clip_low, clip_high=self.clip_high,
             kl_coef=self.kl_coef, entropy_coef=self.entropy_coef, importance_cap=self.importance_cap)
    one_of(advantages.BASELINES, baseline=self.baseline)
    one_of(advantages.NORMALISERS, normalise=self.normalise)
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


# Prompt and completion tokens that one pass through the model is fastest with: a CPU's caches hold the activations of so
# many (measured: 15.7M parameters, 512 + 96 tokens a pass take 0.85 of the time of 4096 + 768), accelerators want more.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_ELSEWHERE = 2**15


def num_microbatches(config: Config, context: Context) -> int:
  """config.microbatches or, for 0, what keeps each part near TOKENS_PER_PASS a device and its rows divisible by them."""
  if config.microbatches:
    return config.microbatches
  groups, ways = config.prompts_per_step // config.minibatches, context.partitioning.ways("batch")
  per_group = context.max_prompt_tokens + config.group_size * config.sampling.max_tokens
  wanted = ways * TOKENS_PER_PASS.get(jax.default_backend(), TOKENS_PER_PASS_ELSEWHERE) / per_group
  parts = [n for n in range(1, groups + 1) if groups % n == 0 and groups // n * config.group_size % ways == 0]
  return next((n for n in parts if groups / n <= wanted), max(parts, default=1))


def num_parts(config: Config, context: Context) -> int:
  """Into how many parts of equally many groups an update cuts a rollout."""
  return config.minibatches * num_microbatches(config, context)


def check(config: Config, context: Context) -> None:
  """Raises: ValueError for unknown rewards, for references they cannot use, and for prompts, completions and stop strings
  that are too long."""
  check_sampling(
      config.sampling, context.policy.config, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens)
  problems = first_rows(context.task.train)
  encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  if config.staleness and context.partitioning.mesh.size > 1:
    # Of one process too: a program is handed to one device after the other, and two threads may do so by turns.
    raise ValueError(f"staleness=1 runs two programs at once, and {context.partitioning.mesh.size} devices could start them"
                     " in different orders and wait for each other for ever: set staleness=0, or a mesh of one device.")
  with contextlib.closing(build_rewards(config.rewards)) as rewards:
    rewards.check_references([p.reference for p in problems])


def trained(config: Config, context: Context) -> Trained:
  """The policy itself."""
  del config
  return Trained(context.abstract_params)


def memory(config: Config, context: Context) -> list[memory_lib.Part]:
  """What a device needs to run this stage: to sample, to score, to update."""
  model, partitioning, dtype = context.policy.config, context.partitioning, context.dtype
  rollout = memory_lib.Batch(
      config.prompts_per_step, config.group_size, context.max_prompt_tokens, config.sampling.max_tokens)
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  microbatch = dataclasses.replace(rollout, prompts=rollout.prompts // num_parts(config, context))
  state_shape = make_learner(context, None, config.optimizer, config.num_steps)[-1]
  sampling = memory_lib.rollout_parts(
      model, partitioning, rollout, dtype=dtype, params=context.abstract_params, phase="sampling",
      cure="lower slots" if config.slots else "set slots, or lower prompts_per_step or group_size",
      slots=config.slots, int8=config.int8_rollouts)
  if config.staleness:  # Beside all that an update does, with parameters of its own.
    sampling.append(memory_lib.Part(
        "parameters that sample", memory_lib.sharded_bytes(state_shape.params), "set staleness=0", "sampling"))
    sampling += [dataclasses.replace(part, phase=phase) for phase in ("scoring", "update", "optimizer step")
                 for part in sampling]
  scores = config.kl_coef or config.importance_cap
  return [
      *memory_lib.learner_parts(state_shape, microbatches=config.microbatches),
      *sampling,
      *(memory_lib.scoring_parts(model, partitioning, microbatch, dtype=dtype) if scores else ()),
      *memory_lib.update_parts(model, partitioning, microbatch, dtype=dtype, remat=config.remat),
  ]


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """params are where the policy starts and, where a KL penalty is asked for, the frozen reference."""
  config = dataclasses.replace(config, microbatches=num_microbatches(config, context))
  num_updates = config.num_steps * config.epochs * config.minibatches
  optimizer, init, state_shape = make_learner(context, params, config.optimizer, num_updates)
  rewards = build_rewards(config.rewards)
  model, tokenizer = context.policy.config, context.policy.tokenizer
  reference = params if config.kl_coef else None
  temperature = config.sampling.temperature

  def loss_fn(params, batch):
    logprobs, entropy = policy.completion_logprobs(
        model, params, batch.prompts, batch.completions, batch.completion_lengths, segments=batch.segments,
        temperature=temperature, dtype=context.dtype, remat=config.remat)
    return losses.policy_gradient_loss(
        logprobs, entropy, batch, clip_low=config.clip_low, clip_high=config.clip_high,
        kl_coef=config.kl_coef if config.kl_in == "loss" else 0.0, kl_estimator=config.kl_estimator,
        entropy_coef=config.entropy_coef)

  update = jax.jit(functools.partial(learner.train_step, loss_fn=loss_fn, optimizer=optimizer), donate_argnums=0)
  update = jax.profiler.annotate_function(update, name="update")  # In a profile's timeline; so are the others below.

  def sample(params, problems, index) -> Rollout:
    """Prompts -> completions -> rewards, by the policy `params`."""
    started = time.perf_counter()
    # Prompts, the same on every process.
    prompts = jax.tree.map(sharding.gather_rows, encode_prompts(
        problems, tokenizer, max_tokens=context.max_prompt_tokens, bucket=context.prompt_bucket))

    # Completions, and rewards of this process's own problems as their completions end.
    first = jax.process_index() * len(problems) * config.group_size
    own = slice(first, first + len(problems) * config.group_size)

    def to_samples(completions, rows=None):
      return make_samples(problems, jax.tree.map(lambda x: x[own], completions), tokenizer, rows=rows,
                          stop_strings=config.sampling.stop_strings, step=index)

    def on_finished(completions, rows):
      rows = [int(i) - first for i in rows if own.start <= i < own.stop]
      scoring.add(rows, to_samples(completions, rows))

    with contextlib.closing(Scoring(rewards)) as scoring:
      with jax.profiler.TraceAnnotation("generate"):
        completions = generate(
            model, params, prompts, config.sampling, group_size=config.group_size,
            rng=context.rng(name, "rollout", index), stop_ids=tokenizer.stop_ids, decode_text=tokenizer.decode,
            dtype=context.dtype, slots=config.slots, int8=config.int8_rollouts, on_finished=on_finished)
      generated = time.perf_counter()
      with jax.profiler.TraceAnnotation("reward"):
        samples = to_samples(completions)
        scores, components = jax.tree.map(sharding.gather_rows, scoring.finish(samples))
    return Rollout(index, prompts, completions, scores, components, _show(samples[0], scores[0]), {
        "time/generate": generated - started, "time/reward": time.perf_counter() - generated})

  def learn(state, rollout) -> tuple[LearnerState, dict[str, float]]:
    """Rewards -> advantages -> updates."""
    started = time.perf_counter()
    with jax.profiler.TraceAnnotation("assemble"):
      batch, metrics = assemble(config, context, rollout, state.params, reference)
    scored = time.perf_counter()
    history = []
    for minibatch in minibatches(batch, config, fold(context.rng(name, "minibatches"), rollout.index)):
      packed = packing.pack(minibatch, pack_rows(config, context, minibatch.completion_lengths, config.microbatches))
      microbatches = split_microbatches(packed, config.microbatches)
      state, updated = update(state, context.partitioning.place(microbatches, (None, "batch")))
      history.append({k: float(v) for k, v in jax.device_get(updated).items()})
    return state, {
        **{k: float(np.mean([h[k] for h in history])) for k in history[0]},
        # Without staleness the first update has the very parameters that sampled: any gap is a fault, or rounding.
        "logprob_gap": history[0]["logprob_gap"],
        "skipped_in_a_row": max(h["skipped_in_a_row"] for h in history),
        **metrics, **rollout_metrics(rollout, config.group_size),
        **{f"reward_workers/{k}": float(v) for k, v in failure_counts().items()},
        **rollout.seconds, "time/score": scored - started, "time/update": time.perf_counter() - scored,
    }

  def step(state, problems, index):
    rollout = sample(state.params, problems, index)
    state, metrics = learn(state, rollout)
    return state, metrics, rollout.shown

  ahead = Ahead(context, sample, learn, config.num_steps) if config.staleness else None

  def close():
    if ahead:
      ahead.close()
    rewards.close()

  return Stage(
      num_steps=config.num_steps, init=init, state_shape=state_shape, step=ahead.step if ahead else step,
      resumable={"rewards": rewards, **({"ahead": ahead} if ahead else {})},
      max_skipped=config.optimizer.max_skipped, close=close,
      data=pipeline.batches(
          context.task.train, batch_size=config.prompts_per_step, seed=context.stream_seed(name, "data"),
          process_index=jax.process_index(), process_count=jax.process_count()))


def assemble(
    config: Config, context: Context, rollout: Rollout, params: Params, reference: Params | None,
) -> tuple[RolloutBatch, dict[str, float]]:
  """(what the loss reads, host arrays: rewards -> advantages per token; metrics of the importance weights, if any).

  Args:
    params: the policy that the next update starts from. reference: the one the KL penalty is measured against.
  """
  completions, scores = rollout.completions, rollout.scores
  size = completions.tokens.shape[1]
  mask = np.asarray(length_mask(completions.lengths, size))
  # In as many parts as the update has, so that scoring takes no more memory than the update.
  parts = num_parts(config, context)
  rows = pack_rows(config, context, completions.lengths, parts)
  packed = (rollout.prompts, rows.pack(completions.tokens), rows.row_lengths, rows.segments)

  def logprobs_of(params):
    scored = []
    for part in range(parts):
      placed = context.partitioning.place(
          jax.tree.map(lambda x, part=part: np.split(x, parts)[part], packed), ("batch",))
      scored.append(policy.score(
          context.policy.config, params, *placed, temperature=config.sampling.temperature, dtype=context.dtype))
    return rows.unpack(np.concatenate([sharding.fetch(x) for x in scored]), size)  # The device need not wait for the host.

  # The policy before the update: what sampled, unless that was another and importance weights make up for it.
  behaviour_logprobs, weights, metrics = completions.behaviour_logprobs, 1.0, {}
  if config.importance_cap:
    behaviour_logprobs = logprobs_of(params)
    weights, metrics = losses.truncated_importance(
        behaviour_logprobs, completions.behaviour_logprobs, mask, cap=config.importance_cap)
  reference_logprobs = np.zeros_like(behaviour_logprobs) if reference is None else logprobs_of(reference)
  if config.kl_coef and config.kl_in == "reward":
    kl = losses.kl_estimate(behaviour_logprobs, reference_logprobs, mask, estimator=config.kl_estimator)
    scores = scores - config.kl_coef * np.asarray(kl).sum(axis=1)
  per_completion = np.asarray(advantages.advantages(
      scores.reshape(-1, config.group_size), baseline=config.baseline, normalise=config.normalise)).reshape(-1, 1)
  return RolloutBatch(
      prompts=rollout.prompts, completions=completions.tokens, completion_lengths=completions.lengths,
      behaviour_logprobs=behaviour_logprobs, advantages=np.where(mask, per_completion * np.asarray(weights), 0.0),
      reference_logprobs=reference_logprobs,
      token_weights=np.zeros_like(behaviour_logprobs)), jax.tree.map(float, metrics)  # token_weights: set per minibatch.


def pack_rows(config: Config, context: Context, lengths: np.ndarray, parts: int) -> packing.Packing:
  """How completions are laid into rows that go through the model in `parts` parts of equally many groups.

  Several share a row only where the reference attention runs: flash kernels know rows of one completion.
  """
  kernel = attention_kernel(context.policy.config, context.dtype, config.sampling.max_tokens, jax.devices()[0])
  return packing.Packing.of(
      lengths, config.group_size, config.sampling.max_tokens, together=kernel == "reference",
      divisor=parts * context.partitioning.ways("batch"))


def minibatches(batch: RolloutBatch, config: Config, rng):
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
          part.completion_mask, mean_over=config.mean_over, max_tokens=config.sampling.max_tokens)
      yield part.replace(token_weights=np.asarray(weights))


def rollout_metrics(rollout: Rollout, group_size: int) -> dict[str, float]:
  """Means of the total reward and of each component; how many groups have nothing to teach because all rewards are
  equal; lengths."""
  scores, completions = rollout.scores, rollout.completions
  groups, tokens = scores.reshape(-1, group_size), float(completions.lengths.sum())
  return {
      "reward/mean": float(scores.mean()), "reward/std": float(scores.std()),
      "reward/equal_groups": float((groups == groups[:, :1]).all(axis=1).mean()),
      **{f"reward/{k}": float(v.mean()) for k, v in rollout.components.items()},
      "completion/length": tokens / len(completions.lengths),
      "completion/truncated": float(completions.truncated.mean()),
      "tokens": tokens, "environment_calls": len(completions.lengths),
  }


def _show(sample: Sample, score: float) -> str:
  return f"{sample.prompt} → {sample.completion} [reference {sample.reference}, reward {score:.2f}]"
