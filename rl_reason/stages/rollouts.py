"""Samples and judges for stages: problems -> completions -> rewards.

Completions are judged while others are still sampled.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import time

import jax
from jaxtyping import PRNGKeyArray

from rl_reason.config.checks import at_least
from rl_reason.rewards.composition.reward_set import RewardSet, token_rewards
from rl_reason.rewards.composition.scoring import Scoring
from rl_reason.rollout import memory as rollout_memory
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.runtime.memory import Part
from rl_reason.stages.context import Context
from rl_reason.types import Params, Problem, Sample


@dataclasses.dataclass(frozen=True)
class RolloutSection:
  """How a stage samples: the field `rollout` of its section.

  prompts: problems per step, over all processes.
  group_size: completions of each problem.
  sampling: how tokens are drawn (rollout.sampling.Sampling).
  slots: completions decoded at once, at least group_size: it bounds the memory of the KV cache
    (rollout.generate); 0: all.
  page_tokens: keys and values of what is sampled are kept in pages of `n` tokens
    (rollout.generate); 0: in one room for all slots.
  int8: the layers' matrices are rounded to 8 bits while sampling.
  """
  prompts: int
  group_size: int
  sampling: Sampling
  slots: int = 0
  page_tokens: int = 0
  int8: bool = False

  def __post_init__(self):
    at_least(1, prompts=self.prompts, group_size=self.group_size)
    at_least(0, slots=self.slots, page_tokens=self.page_tokens)
    if self.slots and self.slots < self.group_size:
      raise ValueError(
          f"slots must be at least group_size={self.group_size}, got {self.slots}: a group shares"
          " its prompt's keys and values. Raise slots, or set 0 for as many as there are"
          " completions.")

  @property
  def completions(self) -> int:
    """Completions per step, over all processes."""
    return self.prompts * self.group_size


def sampling_memory(
    section: RolloutSection, context: Context, phase: str = "sampling") -> list[Part]:
  """Estimates what devices hold while they sample as a section says."""
  return rollout_memory.rollout_parts(
      context.policy.config, context.partitioning,
      context.sampler.batch(section.prompts, section.group_size, section.sampling),
      dtype=context.dtype, params=context.abstract_params, phase=phase,
      cure="lower rollout.slots" if section.slots else
      "set rollout.slots, or lower rollout.prompts or rollout.group_size",
      slots=section.slots, prefill_tokens=context.prefill_tokens, page_tokens=section.page_tokens,
      int8=section.int8)


def sample_rollout(
    section: RolloutSection, context: Context, params: Params, problems: Sequence[Problem],
    rewards: RewardSet, *, index: int, rng: PRNGKeyArray,
) -> Rollout:
  """Samples group_size completions of each problem and judges them.

  Args:
    section: how the stage samples.
    context: the run's.
    params: a policy without adapters (lora.merge).
    problems: this process's, equally many on each process; the result is of all processes.
    rewards: judge the completions; the result's metrics are what they report of themselves.
    index: of the step.
    rng: of the samples, the same on every process.
  """
  started, sampler = time.perf_counter(), context.sampler

  # Prompts, the same on every process.
  prompts = sampler.encode_everywhere(problems)

  # Completions, and rewards of this process's own problems as their completions end.
  first = jax.process_index() * len(problems) * section.group_size
  own = slice(first, first + len(problems) * section.group_size)

  def to_samples(completions, rows=None):
    return sampler.samples(problems, jax.tree.map(lambda x: x[own], completions), section.sampling,
                           rows=rows, step=index)

  def on_finished(completions, rows):
    # Rows are numbered over all processes, and samples over this process's own.
    rows = [int(i) - first for i in rows if own.start <= i < own.stop]
    scoring.add(rows, to_samples(completions, rows))

  with contextlib.closing(Scoring(rewards)) as scoring:
    with jax.profiler.TraceAnnotation("generate"):  # In a profile's timeline.
      completions = sampler(
          params, problems, prompts, section.sampling, group_size=section.group_size, rng=rng,
          slots=section.slots, page_tokens=section.page_tokens, int8=section.int8,
          on_finished=on_finished)
    generated = time.perf_counter()

    # Rewards that were still missing, laid on tokens, and gathered from all processes.
    with jax.profiler.TraceAnnotation("reward"):
      samples = to_samples(completions)
      judged = scoring.finish(samples)
      per_token = token_rewards(judged, completions.lengths[own], section.sampling.max_tokens)
      scores, per_token, components = jax.tree.map(
          sharding.gather_rows, (judged.total, per_token, judged.logged()))
  return Rollout(
      index, prompts, completions, scores, per_token, components, _show(samples[0], scores[0]),
      seconds={"time/generate": generated - started,
               "time/reward": time.perf_counter() - generated},
      metrics={f"reward/{k}": v for k, v in rewards.metrics().items()})


def _show(sample: Sample, score: float) -> str:
  return f"{sample.prompt} → {sample.completion} [reference {sample.reference}, reward {score:.2f}]"
