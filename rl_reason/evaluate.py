"""How often a policy is right on held-out problems: pass@1, pass@k, maj@k, with confidence intervals.

    python -m rl_reason.evaluate --config=experiments/NAME.py --workdir=DIR [--config.evaluation.samples_per_problem=8]

evaluates the newest checkpoint of a run, prints a table and writes DIR/evaluation.json.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from pathlib import Path
import time

import ml_collections
import numpy as np

from rl_reason import compilation, estimates, run, sharding
from rl_reason.progress import Progress
from rl_reason import memory as memory_lib
from rl_reason.config import Evaluation
from rl_reason.rewards import build_rewards, last_number
from rl_reason.rollout import encode_prompts, make_samples
from rl_reason.stages.base import Context
from rl_reason.types import Params, Sample


@dataclasses.dataclass(frozen=True)
class Result:
  """metrics: names starting with "eval/" -> numbers. samples: of all problems, adjacent per problem. correct: per sample."""
  metrics: dict[str, float]
  samples: list[Sample]
  correct: np.ndarray

  def rows(self) -> list[dict]:
    return [{"prompt": s.prompt, "completion": s.completion, "reference": s.reference, "correct": bool(c),
             "truncated": s.truncated} for s, c in zip(self.samples, self.correct.reshape(-1))]


def check_verifier(section: Evaluation, context: Context) -> None:
  """Raises: ValueError for unknown rewards, and for held-out references that they cannot use."""
  if context.task is None:
    raise ValueError("The config has no task to evaluate a policy on: add config.task and config.evaluation.")
  count = min(section.num_problems, len(context.task.heldout))
  with contextlib.closing(build_rewards(section.rewards)) as rewards:
    rewards.check_references([context.task.heldout[i].reference for i in range(count)])
  lacking = [p.id for p in (context.task.heldout[i] for i in range(count)) if section.by and section.by not in p.metadata]
  if lacking:
    raise ValueError(f"evaluation.by={section.by!r} is no key of the metadata of {len(lacking)} held-out problems, of"
                     f" {lacking[0]!r} for one. Keys: {', '.join(map(str, context.task.heldout[0].metadata)) or 'none'}.")


def memory(section: Evaluation, context: Context) -> list[memory_lib.Part]:
  """What a device needs to sample one batch of held-out problems."""
  batch = context.sampled_batch(section.batch_size, section.samples_per_problem, section.sampling)
  return memory_lib.rollout_parts(
      context.policy.config, context.partitioning, batch, dtype=context.dtype, params=context.abstract_params,
      phase="evaluation", cure="lower evaluation.batch_size or evaluation.samples_per_problem",
      prefill_tokens=context.prefill_tokens)


def evaluate(
    section: Evaluation, context: Context, params: Params, *, report: Callable[[str], None] = lambda text: None,
) -> Result:
  """Samples every held-out problem and checks the completions.

  The random numbers depend on the run's seed only, so that evaluations of one run differ by the policy alone.

  Args:
    report: is told of the progress every 20 seconds.
  """
  tokenizer, k = context.policy.tokenizer, section.samples_per_problem
  problems = [context.task.heldout[i] for i in range(min(section.num_problems, len(context.task.heldout)))]
  # One program for all batches: prompts padded alike, the last batch filled up with its first problem.
  bucket = encode_prompts(problems, tokenizer, max_tokens=context.max_prompt_tokens).tokens.shape[1]
  samples, told = [], time.monotonic()
  for start in range(0, len(problems), section.batch_size):
    real = problems[start:start + section.batch_size]
    batch = real + real[:1] * (section.batch_size - len(real))
    prompts = encode_prompts(batch, tokenizer, max_tokens=context.max_prompt_tokens, bucket=bucket)
    completions = context.complete(
        params, batch, prompts, section.sampling, group_size=k, rng=context.rng("evaluation", start))
    drawn = make_samples(batch, completions, tokenizer, stop_strings=section.sampling.stop_strings)
    samples += drawn[:len(real) * k]
    if time.monotonic() - told > 20:
      told = time.monotonic()
      report(f"evaluating: {start + len(real)} of {len(problems)} problems")
  rewards = build_rewards(section.rewards)
  correct = rewards(samples)[0].reshape(-1, k) > 0.5
  return Result(metrics=accuracy(samples, correct, by=section.by), samples=samples, correct=correct)


def accuracy(samples: Sequence[Sample], correct: np.ndarray, *, by: str = "") -> dict[str, float]:
  """pass@1 with its 95 % bootstrap interval over problems, and with k > 1 samples each pass@k and maj@k.

  Args:
    samples: k adjacent ones per problem. correct: [problems, k]. maj@k compares their last numbers.
    by: a key of metadata: pass@1 of each of its values is told beside that of all.
  """
  n, k = correct.shape
  per_problem, metrics = correct.mean(axis=1), {}

  def add(name, scores):
    low, high = estimates.bootstrap_interval(scores)
    metrics.update({name: float(np.mean(scores)), f"{name}_low": low, f"{name}_high": high})
  add("eval/pass@1", per_problem)
  if k > 1:
    answers = [[last_number(s.completion) for s in samples[i * k:(i + 1) * k]] for i in range(n)]
    add(f"eval/pass@{k}", estimates.pass_at_k(np.full(n, k), correct.sum(axis=1), k))
    add(f"eval/maj@{k}", estimates.majority_at_k(answers, correct.tolist(), k))
  kinds = [str(s.metadata[by]) for s in samples[::k]] if by else []
  for kind in sorted(set(kinds)):
    add(f"eval/pass@1/{kind}", per_problem[np.array(kinds) == kind])
  metrics["eval/truncated"] = float(np.mean([s.truncated for s in samples]))
  metrics["eval/length"] = float(np.mean([len(s.completion_tokens) for s in samples]))
  return metrics


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
  with run.errors_in_one_line():
    config, sections = run.check(config)
    run.start()
    compilation.keep_programs(print)
    folder = run.Workdir(workdir)
    context = folder.with_stages(run.make_context(config), config, sections)
    check_verifier(config.evaluation, context)
    with Progress(enabled=sharding.is_main_process()) as progress, context.partitioning.use():
      where, params = folder.newest_policy(config, context)
      result = evaluate(config.evaluation, context, params, report=progress.note)
      names = [k for k in result.metrics if f"{k}_low" in result.metrics]
      if sharding.is_main_process():
        folder.write("evaluation.json", {"checkpoint": where, "problems": len(result.correct), **result.metrics,
                                          "samples": result.rows()})
        progress.table(
            f"{len(result.correct)} held-out problems, checkpoint {where}", ["metric", "value", "95 % interval"],
            [[k.removeprefix("eval/"), f"{result.metrics[k]:.3f}",
              f"{result.metrics[k + '_low']:.3f} to {result.metrics[k + '_high']:.3f}"] for k in names])


if __name__ == "__main__":
  run.command(main)
