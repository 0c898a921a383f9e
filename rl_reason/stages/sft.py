"""Supervised fine-tuning imitates worked solutions.

Problems become rows of prompts with their solutions, and the rows one update.
"""

from collections.abc import Callable
import dataclasses

import jax

from rl_reason.arrays import LearnerState
from rl_reason.batches import demonstrations, packing
from rl_reason.batches.demonstrations import Examples
from rl_reason.batches.packing import split_microbatches
from rl_reason.config import naming
from rl_reason.config.checks import at_least, check_microbatches, one_of
from rl_reason.learner import memory as learner_memory
from rl_reason.learner.step import Learner, make_learner, make_update, run_update, Update
from rl_reason.models import policy
from rl_reason.models.flash_attention import attention_kernel
from rl_reason.objectives import losses
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime import sharding
from rl_reason.stages.adapters import merging_memory, trained_policy, with_adapters
from rl_reason.stages.base import first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.tasks import pipeline
from rl_reason.tasks.registry import (
    check_disjoint,
    load_splits,
    load_task,
    TaskSection,
    without_heldout,
)
from rl_reason.types import Params, Source, Task


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of an sft stage.

  num_steps: updates.
  batch_size: solutions per update, over all processes.
  max_completion_tokens: longer solutions are an error.
  learner: memory, LoRA, optimizer (learner.step.Update).
  loss_on: what is learnt: "completion", or "text", which includes prompts.
  unlearnt: (start, end) markers of stretches of solutions that are read and not learnt
    (demonstrations.encode).
  mean_over: token, sequence or fixed_length (losses.token_weights).
  data: problems with solutions in place of the run's task; none of the run's held-out prompts may
    be among them.
  start: the stage whose policy it starts from (run.earlier).
  """
  kind: naming.Name
  num_steps: int
  batch_size: int
  max_completion_tokens: int
  learner: Update
  loss_on: str = "completion"
  unlearnt: tuple[tuple[str, str], ...] = ()
  mean_over: str = "token"
  data: TaskSection | None = None
  start: str = ""

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps, batch_size=self.batch_size,
             max_completion_tokens=self.max_completion_tokens)
    check_microbatches(self.learner.microbatches, self.batch_size)
    one_of(losses.REDUCTIONS, mean_over=self.mean_over)
    one_of(demonstrations.LOSS_ON, loss_on=self.loss_on)
    if not all(a and b for a, b in self.unlearnt):
      raise ValueError(
          f"unlearnt must hold pairs of texts, (start, end), got {self.unlearnt}: an empty one is"
          " everywhere.")


def check(config: Config, context: Context, name: str) -> None:
  """Tries the first rows.

  Raises: ValueError for problems without a solution, and for prompts and solutions that are too
    long. For data of its own also as load_task, and for problems that the run holds out.
  """
  if config.data is not None:
    own = _load(config.data)
    if context.task is not None and config.data.shared_prompts == "error":
      check_disjoint(own.train, context.task.heldout)
  rows = first_rows(solutions(config, context))
  size = context.max_prompt_tokens + config.max_completion_tokens
  if size > context.policy.config.max_positions:
    raise ValueError(
        f"max_prompt_tokens={context.max_prompt_tokens} and"
        f" max_completion_tokens={config.max_completion_tokens} are more"
        f" than the policy's context of {context.policy.config.max_positions} tokens. Lower one.")
  demonstrations.encode(
      rows, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens,
      max_completion_tokens=config.max_completion_tokens, loss_on=config.loss_on,
      unlearnt=config.unlearnt)


def solutions(config: Config, context: Context) -> Source:
  """Loads the problems to learn from, which `check` has compared with those held out."""
  data = config.data
  if data is None:
    return context.task.train
  if data.shared_prompts == "error":
    return load_splits(data.source, data.args, {"train": data.train})["train"]
  train = _load(data).train
  return train if context.task is None else without_heldout(train, context.task.heldout)


def _load(data: TaskSection) -> Task:
  return load_task(data.source, data.args, data.train, data.heldout, data.shared_prompts)


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes the policy, which is what the stage leaves."""
  return trained_policy(context, config.learner.lora)


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs to run this stage."""
  state_shape = learner_of(config, context, None, name).state_shape
  return [*merging_memory(context, config.learner.lora, "evaluation"), *update_memory(
      context, state_shape, config.learner, batch_size=config.batch_size,
      max_completion_tokens=config.max_completion_tokens)]


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """Makes the learner of what `trained` says, starting from the policy `params`."""
  return make_learner(
      context.partitioning, trained(config, context, name).shapes,
      lambda: with_adapters(context, params, config.learner.lora, name), config.learner.optimizer,
      config.num_steps)


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage. It trains on the solutions of the task's training half, ends included."""
  learner = learner_of(config, context, params, name)
  update = imitation_update(
      context, learner, config.learner, batch_size=config.batch_size, mean_over=config.mean_over,
      max_completion_tokens=config.max_completion_tokens)

  def step(state, problems, index):
    del index
    examples = demonstrations.encode(
        problems, context.policy.tokenizer, max_prompt_tokens=context.max_prompt_tokens,
        max_completion_tokens=config.max_completion_tokens, loss_on=config.loss_on,
        unlearnt=config.unlearnt)
    # Each process encodes its own problems; the update needs those of all processes.
    return update(state, jax.tree.map(sharding.gather_rows, examples))

  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape, step=step,
      max_skipped=config.learner.optimizer.max_skipped,
      data=pipeline.batches(
          solutions(config, context), batch_size=config.batch_size,
          seed=context.stream_seed(name, "data"),
          process_index=jax.process_index(), process_count=jax.process_count()))


def imitation_update(
    context: Context, learner: Learner, section: Update, *, batch_size: int, mean_over: str,
    max_completion_tokens: int,
) -> Callable[[LearnerState, Examples], tuple[LearnerState, StepResult]]:
  """Makes the update towards batch_size examples: (state, examples) -> (state, StepResult).

  The examples are the same on every process. The update donates the state. The arguments are fields
  of Config.
  """
  model, max_tokens = context.policy.config, context.max_prompt_tokens + max_completion_tokens
  parts = section.microbatches or _microbatches(context, batch_size, max_completion_tokens)
  # Several share a row only where the reference attention runs: flash kernels know rows of one
  # example.
  together = attention_kernel(model, context.dtype, max_tokens, jax.devices()[0]) == "reference"

  def loss_fn(params, batch):
    logprobs = policy.text_logprobs(
        model, params, batch.inputs, batch.targets, segments=batch.segments, dtype=context.dtype,
        remat=section.remat)
    return losses.imitation_loss(logprobs, batch.target_mask, batch.token_weights)

  program = make_update(learner, loss_fn)

  def update(state, examples):
    # Examples -> packed rows -> microbatches on the devices -> one optimizer step.
    batch = demonstrations.to_batch(
        examples, mean_over=mean_over, max_tokens=max_completion_tokens, together=together,
        divisor=parts * context.partitioning.ways("batch"))
    placed = context.partitioning.place(split_microbatches(batch, parts), (None, "batch"))
    state, metrics, skipped = run_update(program, state, placed)
    return state, StepResult(
        metrics, tokens=float(examples.learnt.sum()), skipped=skipped, updates=1)
  return update


def update_memory(
    context: Context, state_shape: LearnerState, section: Update, *, batch_size: int,
    max_completion_tokens: int,
) -> list[memory_lib.Part]:
  """Estimates what a device holds for `imitation_update`."""
  parts = section.microbatches or _microbatches(context, batch_size, max_completion_tokens)
  batch = memory_lib.Batch(
      batch_size // parts, 1, 0, context.max_prompt_tokens + max_completion_tokens)
  return learner_memory.learner_parts(
      state_shape, microbatches=parts) + learner_memory.update_parts(
      context.policy.config, context.partitioning, batch, dtype=context.dtype, remat=section.remat)


def _microbatches(context: Context, batch_size: int, max_completion_tokens: int) -> int:
  return packing.num_passes(
      batch_size, 1, context.max_prompt_tokens + max_completion_tokens,
      context.partitioning.ways("batch"))


KIND = Kind(Config=Config, check=check, memory=memory, trained=trained, build=build)
