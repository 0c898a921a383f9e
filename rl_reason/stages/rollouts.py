"""What every stage that samples does: problems -> completions -> rewards, judged while others are still sampled."""

from collections.abc import Mapping, Sequence
import contextlib
import time
from typing import Protocol

import jax
from jaxtyping import PRNGKeyArray

from rl_reason.rewards.composition.reward_set import RewardSet, token_rewards
from rl_reason.rewards.composition.scoring import Scoring
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.stages.context import Context
from rl_reason.types import Params, Problem, Sample


class Section(Protocol):
  """Fields of the stages' sections."""
  group_size: int
  sampling: Sampling
  rewards: Mapping
  slots: int
  page_tokens: int


def sample_rollout(
    config: Section, context: Context, params: Params, problems: Sequence[Problem], rewards: RewardSet, *, index: int,
    rng: PRNGKeyArray, int8: bool = False,
) -> Rollout:
  """Samples group_size completions of each problem and judges them; its metrics are what the rewards tell of themselves.

  Args:
    params: a policy without adapters (lora.merge). problems: this process's, equally many on each; the result is of all.
    index: of the step. rng: of the samples, the same on every process. int8: as in rollout.generate.
  """
  started, sampler = time.perf_counter(), context.sampler
  # Prompts, the same on every process.
  prompts = sampler.encode_everywhere(problems)

  # Completions, and rewards of this process's own problems as their completions end.
  first = jax.process_index() * len(problems) * config.group_size
  own = slice(first, first + len(problems) * config.group_size)

  def to_samples(completions, rows=None):
    return sampler.samples(problems, jax.tree.map(lambda x: x[own], completions), config.sampling,
                           rows=rows, step=index)

  def on_finished(completions, rows):
    rows = [int(i) - first for i in rows if own.start <= i < own.stop]
    scoring.add(rows, to_samples(completions, rows))

  with contextlib.closing(Scoring(rewards)) as scoring:
    with jax.profiler.TraceAnnotation("generate"):  # In a profile's timeline.
      completions = sampler(
          params, problems, prompts, config.sampling, group_size=config.group_size, rng=rng, slots=config.slots,
          page_tokens=config.page_tokens, int8=int8, on_finished=on_finished)
    generated = time.perf_counter()
    with jax.profiler.TraceAnnotation("reward"):
      samples = to_samples(completions)
      judged = scoring.finish(samples)
      per_token = token_rewards(judged, completions.lengths[own], config.sampling.max_tokens)
      scores, per_token, components = jax.tree.map(
          sharding.gather_rows, (judged.total, per_token, judged.logged()))
  return Rollout(
      index, prompts, completions, scores, per_token, components, _show(samples[0], scores[0]),
      seconds={"time/generate": generated - started, "time/reward": time.perf_counter() - generated},
      metrics={f"reward/{k}": v for k, v in rewards.metrics().items()})


def _show(sample: Sample, score: float) -> str:
  return f"{sample.prompt} → {sample.completion} [reference {sample.reference}, reward {score:.2f}]"
