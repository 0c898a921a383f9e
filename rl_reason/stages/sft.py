"""Supervised fine-tuning: imitate worked solutions. problems -> prompt and solution tokens -> one update."""

import dataclasses
import functools

import jax
import numpy as np

from rl_reason import learner, losses, policy, sharding
from rl_reason import memory as memory_lib
from rl_reason.config import at_least, one_of
from rl_reason.models import transformer
from rl_reason.rollout.prompts import encode_prompts, pad_rows
from rl_reason.stages.base import Context, Optimizer, Stage, Trained, first_rows, make_learner
from rl_reason.tasks import pipeline
from rl_reason.types import Params, Problem, PromptBatch, RolloutBatch, length_mask


@dataclasses.dataclass(frozen=True)
class Config:
  """num_steps: updates. batch_size: solutions per update, over all processes.

  max_completion_tokens: longer solutions are an error. microbatches: parts of a batch gone through one by one, to save
  memory. mean_over, remat: see losses.token_weights and models.transformer.REMAT_POLICIES.
  start: the stage whose policy it starts from (run.starting_points).
  """
  kind: str
  num_steps: int
  batch_size: int
  max_completion_tokens: int
  optimizer: Optimizer
  microbatches: int = 1
  mean_over: str = "token"
  remat: str = "none"
  start: str = ""

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps, batch_size=self.batch_size, microbatches=self.microbatches,
             max_completion_tokens=self.max_completion_tokens)
    one_of(losses.REDUCTIONS, mean_over=self.mean_over)
    one_of(transformer.REMAT_POLICIES, remat=self.remat)
    if self.batch_size % self.microbatches:
      raise ValueError(f"microbatches={self.microbatches} must divide batch_size={self.batch_size}.")


def check(config: Config, context: Context) -> None:
  """Raises: ValueError for problems without a solution, and for prompts and solutions that are too long."""
  demonstrations(
      first_rows(context.task.train), context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens,
      bucket=context.prompt_bucket, max_completion_tokens=config.max_completion_tokens)


def trained(config: Config, context: Context) -> Trained:
  """The policy itself."""
  del config
  return Trained(context.abstract_params)


def memory(config: Config, context: Context) -> list[memory_lib.Part]:
  """What a device needs to run this stage."""
  batch = memory_lib.Batch(
      config.batch_size // config.microbatches, 1, context.max_prompt_tokens, config.max_completion_tokens)
  state_shape = make_learner(context, None, config.optimizer, config.num_steps)[-1]
  return memory_lib.learner_parts(state_shape, microbatches=config.microbatches) + memory_lib.update_parts(
      context.policy.config, context.partitioning, batch, dtype=context.dtype, remat=config.remat)


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Trains on the solutions of the task's training half; EOS is learnt as part of each."""
  optimizer, init, state_shape = make_learner(context, params, config.optimizer, config.num_steps)
  tokenizer, model = context.policy.tokenizer, context.policy.config

  def loss_fn(params, batch):
    logprobs, _ = policy.completion_logprobs(
        model, params, batch.prompts, batch.completions, batch.completion_lengths,
        dtype=context.dtype, remat=config.remat)
    return losses.imitation_loss(logprobs, batch)

  update = jax.jit(
      functools.partial(learner.train_step, loss_fn=loss_fn, optimizer=optimizer), donate_argnums=0)
  update = jax.profiler.annotate_function(update, name="update")  # In a profile's timeline.

  def step(state, problems, index):
    del index
    prompts, solutions, lengths = jax.tree.map(sharding.gather_rows, demonstrations(
        problems, tokenizer, max_prompt_tokens=context.max_prompt_tokens, bucket=context.prompt_bucket,
        max_completion_tokens=config.max_completion_tokens))
    mask, unused = length_mask(lengths, config.max_completion_tokens), np.zeros(solutions.shape, np.float32)
    weights = losses.token_weights(mask, mean_over=config.mean_over, max_tokens=config.max_completion_tokens)
    batch = RolloutBatch(
        prompts=prompts, completions=solutions, completion_lengths=lengths, token_weights=np.asarray(weights),
        behaviour_logprobs=unused, advantages=unused, reference_logprobs=unused)
    microbatches = split_microbatches(batch, config.microbatches)
    state, metrics = update(state, context.partitioning.place(microbatches, (None, "batch")))
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    return state, {**metrics, "tokens": float(lengths.sum())}, ""

  return Stage(
      num_steps=config.num_steps, init=init, state_shape=state_shape, step=step,
      max_skipped=config.optimizer.max_skipped,
      data=pipeline.batches(
          context.task.train, batch_size=config.batch_size, seed=context.stream_seed(name, "data"),
          process_index=jax.process_index(), process_count=jax.process_count()))


def demonstrations(
    problems: list[Problem], tokenizer, *, max_prompt_tokens: int, bucket: int, max_completion_tokens: int,
) -> tuple[PromptBatch, np.ndarray, np.ndarray]:
  """(prompts, solutions with EOS, their lengths): one solution per prompt; prompts padded to a multiple of `bucket`,
  solutions to their limit.

  Raises: ValueError for a problem without a solution, and for one that is too long.
  """
  rows = []
  for p in problems:
    if not p.solution:
      raise ValueError(f"Problem {p.id!r} has no solution to imitate: give the task one (for files, `solution` is a"
                       " template over the columns), or leave the supervised stage out.")
    rows.append([*tokenizer.encode(p.solution), tokenizer.eos_id])
    if len(rows[-1]) > max_completion_tokens:
      raise ValueError(f"The solution of problem {p.id!r} has {len(rows[-1])} tokens with EOS, the limit"
                       f" max_completion_tokens is {max_completion_tokens}: raise it, or drop such rows.")
  prompts = encode_prompts(problems, tokenizer, max_tokens=max_prompt_tokens, bucket=bucket)
  return prompts, pad_rows(rows, max_completion_tokens), np.array([len(r) for r in rows], np.int32)


def split_microbatches(batch: RolloutBatch, count: int) -> RolloutBatch:
  """[N ...] -> [count, N / count ...] for every array: whole groups stay together."""
  return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch)
