"""Measures how often a policy is right on held-out problems: pass@1, pass@k, maj@k."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import time
from typing import Any

from jaxtyping import PRNGKeyArray
import numpy as np

from rl_reason.config.checks import at_least
from rl_reason.evaluation import estimates
from rl_reason.rewards.answers import last_number
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rollout import memory as rollout_memory
from rl_reason.rollout.sampler import Sampler
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Params, Sample, Source


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Configures accuracy on held-out problems, before, during and after training.

  `python -m rl_reason.evaluate` reads it too.

  rewards: the verifier, as a rewards section; a completion is correct when its total is above 0.5.
  sampling: how completions are drawn (rollout.sampling.Sampling).
  num_problems: number of problems, from the start of the held-out half.
  samples_per_problem: completions of each problem, the k of pass@k and maj@k; pass@1 is their mean.
  every: stage steps between evaluations; 0: only before and after.
  batch_size: problems at once.
  by: a key of the problems' metadata, e.g. "level": pass@1 is also reported for each of its values.
  """
  rewards: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sampling: Sampling | None = None
  num_problems: int = 100
  samples_per_problem: int = 1
  every: int = 0
  batch_size: int = 32
  by: str = ""

  def __post_init__(self):
    at_least(1, num_problems=self.num_problems, samples_per_problem=self.samples_per_problem,
             batch_size=self.batch_size)
    at_least(0, every=self.every)


@dataclasses.dataclass(frozen=True)
class Result:
  """Holds what an evaluation found.

  metrics: names starting with "eval/" -> numbers.
  samples: samples of all problems; those of one problem are adjacent.
  correct: whether each sample is correct, [problems, samples_per_problem].
  """
  metrics: dict[str, float]
  samples: list[Sample]
  correct: np.ndarray

  def rows(self) -> list[dict]:
    """Lists all completions as plain data."""
    return [{"prompt": s.prompt, "completion": s.completion, "reference": s.reference,
             "correct": bool(c), "truncated": s.truncated}
            for s, c in zip(self.samples, self.correct.reshape(-1))]


def check_verifier(section: Evaluation, heldout: Source) -> None:
  """Checks that the verifier can judge the held-out problems.

  Raises: ValueError for unknown rewards, for held-out references that they cannot use, and for
    problems without the key `by`.
  """
  problems = [heldout[i] for i in range(min(section.num_problems, len(heldout)))]
  with contextlib.closing(build_rewards(section.rewards)) as rewards:
    rewards.check_references([p.reference for p in problems])
  lacking = [p.id for p in problems if section.by and section.by not in p.metadata]
  if lacking:
    raise ValueError(
        f"evaluation.by={section.by!r} is no key of the metadata of {len(lacking)} held-out"
        f" problems, of {lacking[0]!r} for one. Keys:"
        f" {', '.join(map(str, problems[0].metadata)) or 'none'}.")


def memory(
    section: Evaluation, sampler: Sampler, partitioning: Partitioning, shapes: Params,
) -> list[memory_lib.Part]:
  """Estimates what a device needs to sample one batch of held-out problems.

  Args:
    section: the evaluation.
    sampler: samples the completions.
    partitioning: the devices that sample.
    shapes: shapes of the policy's parameters, with shardings.
  """
  batch = sampler.batch(section.batch_size, section.samples_per_problem, section.sampling)
  return rollout_memory.rollout_parts(
      sampler.model, partitioning, batch, dtype=sampler.dtype, params=shapes, phase="evaluation",
      cure="lower evaluation.batch_size or evaluation.samples_per_problem",
      prefill_tokens=sampler.prefill_tokens)


def evaluate(
    section: Evaluation, sampler: Sampler, heldout: Source, params: Params, *,
    rng: Callable[[int], PRNGKeyArray], report: Callable[[str], None] = lambda text: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Result | None:
  """Samples every held-out problem and checks the completions.

  Args:
    section: the evaluation.
    sampler: samples the completions.
    heldout: held-out problems.
    params: parameters of the policy.
    rng: (first problem of a batch) -> the key with which its completions are drawn. The key depends
      only on the run's seed, so that evaluations of one run differ by the policy alone.
    report: receives the progress every 20 seconds.
    stopping: is asked after each batch whether to give up.
  Returns: what was found; None if it was given up.
  """
  k, size = section.samples_per_problem, section.batch_size
  problems = [heldout[i] for i in range(min(section.num_problems, len(heldout)))]
  # One program serves all batches: all prompts are padded to the same length, and the last batch is
  # filled up with its first problem.
  bucket = sampler.encode(problems, bucket=32).tokens.shape[1]
  samples, reported = [], time.monotonic()
  for start in range(0, len(problems), size):
    real = problems[start:start + size]
    batch = real + real[:1] * (size - len(real))
    completions = sampler(
        params, batch, sampler.encode(batch, bucket=bucket), section.sampling, group_size=k,
        rng=rng(start))
    # The completions of problems that only filled the batch up are dropped. Groups are numbered over
    # all batches: rewards that compare a group would else take two for one.
    samples += [
        dataclasses.replace(s, group=start + s.group)
        for s in sampler.samples(batch, completions, section.sampling)[:len(real) * k]]
    if stopping():
      return None
    if time.monotonic() - reported > 20:
      reported = time.monotonic()
      report(f"evaluating: {start + len(real)} of {len(problems)} problems")
  with contextlib.closing(build_rewards(section.rewards)) as rewards:
    correct = rewards(samples)[0].reshape(-1, k) > 0.5
  return Result(metrics=accuracy(samples, correct, by=section.by), samples=samples, correct=correct)


def accuracy(samples: Sequence[Sample], correct: np.ndarray, *, by: str = "") -> dict[str, float]:
  """Computes pass@1 with its 95 % bootstrap interval over problems.

  With k > 1 samples each it also computes pass@k and maj@k.

  Args:
    samples: k adjacent samples per problem.
    correct: whether each sample is correct, [problems, k]. maj@k compares the samples' last
      numbers.
    by: a key of metadata: pass@1 of each of its values is reported beside that of all.

  Returns: metrics whose names start with "eval/".
  """
  n, k = correct.shape
  per_problem, metrics = correct.mean(axis=1), {}

  def add(name, scores):
    low, high = estimates.bootstrap_interval(scores)
    metrics.update({name: float(np.mean(scores)), f"{name}_low": low, f"{name}_high": high})
  add("eval/pass@1", per_problem)
  if k > 1:
    answers = [[last_number(s.answer_text) for s in samples[i * k:(i + 1) * k]] for i in range(n)]
    add(f"eval/pass@{k}", estimates.pass_at_k(np.full(n, k), correct.sum(axis=1), k))
    add(f"eval/maj@{k}", estimates.majority_at_k(answers, correct.tolist(), k))
  # pass@1 of each kind of problem.
  kinds = [str(s.metadata[by]) for s in samples[::k]] if by else []
  for kind in sorted(set(kinds)):
    add(f"eval/pass@1/{kind}", per_problem[np.array(kinds) == kind])
  metrics["eval/truncated"] = float(np.mean([s.truncated for s in samples]))
  metrics["eval/length"] = float(np.mean([len(s.own_tokens) for s in samples]))
  return metrics
