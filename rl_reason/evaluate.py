"""Measures how often a policy is right on held-out problems.

    python -m rl_reason.evaluate --workdir=DIR
    ... --config.evaluation.samples_per_problem=8      # For pass@8 and maj@8.

It evaluates the newest checkpoint of a run, prints a table of pass@1, pass@k and maj@k with 95 %
confidence intervals, and writes DIR/evaluation.json.
"""

import functools

from etils import epath
import ml_collections

from rl_reason.evaluation.accuracy import check_verifier, evaluate
from rl_reason.reporting.progress import Progress
from rl_reason.run import config as run
from rl_reason.run import process
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from rl_reason.run.workdir import Workdir
from rl_reason.runtime import compilation, sharding


def main(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Evaluates the newest policy of the run in `workdir`, and writes evaluation.json there."""
  with process.errors_in_one_line():
    # The config, the devices and the held-out problems.
    run_config, sections = run.check(config)
    process.start()
    compilation.keep_programs(print)
    folder = Workdir(workdir)
    context = make_context(run_config, date=folder.date)
    if context.task is None:
      raise ValueError("The config has no task to evaluate a policy on: add config.task and"
                       " config.evaluation.")
    check_verifier(run_config.evaluation, context.task.heldout)

    # The evaluation, with the same random keys as those during training: the numbers are the run's.
    with Progress(enabled=sharding.is_main_process()) as progress, context.partitioning.use():
      with folder.explaining(config):
        where, params = Stages(run_config, sections, folder, context).newest_policy()
      result = evaluate(
          run_config.evaluation, context.sampler, context.task.heldout, params,
          rng=functools.partial(context.rng, "evaluation"), report=progress.note)

      # The report: all metrics in the file, those with an interval in the table.
      names = [k for k in result.metrics if f"{k}_low" in result.metrics]
      if sharding.is_main_process():
        folder.write("evaluation.json", {
            "checkpoint": where, "problems": len(result.correct), **result.metrics,
            "samples": result.rows()})
        progress.table(
            f"{len(result.correct)} held-out problems, checkpoint {where}",
            ["metric", "value", "95 % interval"],
            [[k.removeprefix("eval/"), f"{result.metrics[k]:.3f}",
              f"{result.metrics[k + '_low']:.3f} to {result.metrics[k + '_high']:.3f}"]
             for k in names])


if __name__ == "__main__":
  process.command(main, "evaluate", __doc__)
