"""Trains a policy as a config says: config -> context -> stages -> the loop -> checkpoints, metrics, evaluations.

    python -m rl_reason.train --config=experiments/quickstart.py --workdir=runs/quickstart [--config.seed=1]

The same command continues a run that was stopped. Ctrl-C or SIGTERM saves and stops after the current step.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from pathlib import Path
import signal
import time
from typing import Any

import ml_collections

from rl_reason.evaluation.accuracy import check_verifier, evaluate
from rl_reason.evaluation.accuracy import memory as evaluation_memory
from rl_reason.reporting import plots, summary
from rl_reason.reporting.metrics import MetricWriter, read_metrics
from rl_reason.reporting.progress import Progress
from rl_reason.rewards.composition.monitors import Alarm, StoppedByMonitor
from rl_reason.run import config as config_lib
from rl_reason.run import process
from rl_reason.run.config import RunConfig
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from rl_reason.run.workdir import Workdir
from rl_reason.runtime import compilation, memory, sharding
from rl_reason.runtime.profiling import Trace
from rl_reason.stages.base import Evaluate, made, Stage


def train(config: ml_collections.ConfigDict, workdir: str | Path, *, plain: bool | None = None) -> Any:
  """Runs the stages of a config, continuing where an earlier call with this workdir stopped.

  Args:
    config: an experiment's get_config(); rl_reason.run.config documents the fields.
    workdir: the run's folder (run.workdir.Workdir).
    plain: lines instead of a live panel; None decides by the terminal.

  Returns: what the last stage made, its parameters if it trains, or None if a signal stopped the run early.
  Raises: ValueError or OSError before any device work for what cannot work; FloatingPointError if gradients stay
    non-finite; StoppedByMonitor if a monitor says so; OSError if a checkpoint cannot be written. What was saved stays
    whole.
  """
  # The config, the devices, the data and the policy: all that can be wrong is found here.
  run_config, sections = config_lib.check(config)
  folder = Workdir(Path(workdir))
  with (Progress(plain, enabled=sharding.is_main_process()) as progress,
        contextlib.ExitStack() as exits):
    folder.claim(config, progress.note)
    compilation.keep_programs(progress.note)
    context = make_context(run_config)
    stages = Stages(run_config, sections, folder, context)
    starts = stages.starting_points()
    between = []
    if context.task is not None:
      check_verifier(run_config.evaluation, context.task.heldout)
      between = evaluation_memory(run_config.evaluation, context.sampler, context.partitioning,
                                  context.abstract_params)
    for name in sections:
      stages.kind(name).check(*stages.hooks(name))

    # Whether each stage fits into the devices' memory.
    partitionings = filter(None, [context.partitioning, context.rollout_partitioning])
    available = memory.device_memory(*partitionings)
    for name in sections:
      needed = stages.kind(name).memory(*stages.hooks(name))
      progress.note(memory.fit(name, [*needed, *between], available))

    # What records the run and what may stop it.
    exits.enter_context(context.partitioning.use())
    writer = exits.enter_context(MetricWriter(
        folder.path, tensorboard=run_config.logging.tensorboard,
        wandb=run_config.logging.wandb or None, enabled=sharding.is_main_process()))
    trace = exits.enter_context(Trace(run_config.logging.profile, folder.path, progress.note))
    stop = exits.enter_context(StopRequest())
    loop = Loop(run_config, stages, writer, progress, trace, stop)

    # The stages: each starts from an earlier one's policy, mostly its predecessor's, and may read
    # others' models by name.
    policies = {"": context.initial_params()}
    for i, name in enumerate(sections):
      section, own_context, _ = stages.hooks(name)
      stage = stages.kind(name).build(section, own_context, policies[starts[name]], name)
      with contextlib.closing(stage):
        left = loop.run(name, stage)
      if left is None:
        progress.note("Stopped and saved: the same command continues.")
        return None
      policy = stages.trained(name).policy
      if policy is not None:
        policies[name] = policy(left)
      # Those that no later stage starts from make room.
      still_needed = [starts[s] for s in run_config.stages[i + 1:]]
      policies = {k: v for k, v in policies.items() if k in still_needed}

    # The end: a table and the learning curves.
    if sharding.is_main_process():
      progress.table("What each stage changed", summary.COLUMNS, summary.summary(
          read_metrics(folder.path), run_config.stages))
      plots.learning_curves(folder.path / "metrics.jsonl", folder.path / "curves.png")
      progress.note(f"Metrics, curves.png, samples and checkpoints are in {folder.path}.")
    return left


@dataclasses.dataclass
class Loop:
  """The training loop, the same for every stage."""
  config: RunConfig
  stages: Stages
  writer: MetricWriter
  progress: Progress
  trace: Trace
  stop: "StopRequest"

  def run(self, name: str, stage: Stage) -> Any:
    """Runs one stage from its start or its newest checkpoint.

    Returns: what it made (stages.base.made), or None if asked to stop.
    """
    checkpointing, evaluation, compiled = self.config.checkpoint, self.config.evaluation, compilation.compilations()
    policies = [s for s in self.config.stages if self.stages.trained(s).policy is not None]
    # What a policy is worth before a stage is known where an earlier one trained it.
    first = stage.evaluate is not None or name in policies[:1]
    judge = self._judge(name, stage)
    with contextlib.closing(self.stages.folder.checkpoints(name, keep=checkpointing.keep, note=self.progress.note)) as saved:
      restored = saved.restore(stage.state_shape)
      if restored is None:
        step, state = 0, stage.init()
      else:
        step, state, host = restored
        if host["resumable"].keys() != stage.resumable.keys():
          raise ValueError(
              f"The checkpoint of stage {name!r} at step {step} holds the state of {sorted(host['resumable'])}, and the"
              f" stage now has {sorted(stage.resumable)}: a rollout would be lost, or missing. Resume with the staleness it"
              " was saved with, or choose another --workdir.")
        stage.data.set_state(host["data"])
        stage.monitors.restore(host.get("monitors", {}))
        for key, part in stage.resumable.items():
          part.restore(host["resumable"][key])
      if step >= stage.num_steps:
        self.progress.note(f"Stage {name} is complete: {step} steps.")
        return made(state)  # Done in an earlier call; what later stages logged stays.
      order = self.config.stages
      later = [s for s in order[order.index(name) + 1:] if (self.stages.folder.path / "checkpoints" / s).exists()]
      if later:
        raise ValueError(
            f"Stage {name!r} is at step {step} of {stage.num_steps}, but {later} already started from it, in"
            f" {self.stages.folder.path}: they would not see its further steps. Set --config.{name}.num_steps={step} back, or"
            " choose another --workdir.")
      self._rewind(name, step, started=restored is not None)
      self.progress.stage(name, stage.num_steps, step)
      if first and restored is None:
        self._evaluate(name, 0, stage, judge, made(state))

      while step < stage.num_steps:
        started, compile_seconds = time.perf_counter(), compiled.seconds
        with self.trace.step(name, step + 1):
          state, result = stage.step(state, next(stage.data), step)
        step += 1
        seconds = time.perf_counter() - started
        metrics = {
            **result.metrics, "tokens": result.tokens, "updates": result.updates,
            "skipped_in_a_row": result.skipped, "time/step": seconds,
            "time/tokens_per_second": result.tokens / seconds,
            "time/compilations": compiled.programs,
            "time/compile_seconds": compiled.seconds - compile_seconds}
        alarms = self._log(name, step, stage, metrics, result.shown)
        if result.arrays and sharding.is_main_process():
          self.stages.folder.save_arrays(name, result.arrays)
        if result.skipped >= stage.max_skipped:
          raise FloatingPointError(
              f"Stage {name!r} stopped at step {step}: the last {result.skipped} gradients were not"
              " finite. Each such update was skipped, so the parameters are whole; the newest"
              f" checkpoint is {saved.steps[-1:] or 'none'}. Lower the learning rate, or look at loss"
              " and kl in metrics.jsonl.")
        last, stopping = step == stage.num_steps, sharding.any_process(self.stop.requested)
        if last or evaluation.every and step % evaluation.every == 0:
          alarms += self._evaluate(name, step, stage, judge, made(state))
        halting = [alarm.message for alarm in alarms if alarm.action == "stop"]
        # After the step's lines are written: a checkpoint stands for all that came before it.
        if last or stopping or halting or step % checkpointing.every == 0:
          saved.save(step, state, {
              "data": stage.data.get_state(), "resumable": {k: v.state() for k, v in stage.resumable.items()},
              "monitors": stage.monitors.state()})
        if halting:
          saved.wait()
          raise StoppedByMonitor(f"Stage {name!r} stopped at step {step}, which is saved. {halting[0]} The same command"
                                 " continues.")
        if stopping and not last:
          saved.wait()
          return None
      saved.wait()
      return made(state)

  def _rewind(self, name: str, step: int, *, started: bool) -> None:
    """Drops what metrics.jsonl holds from after the checkpoint."""
    order = self.config.stages  # A stage that never saved starts anew, right after its predecessor's end.
    if started:
      self.writer.rewind(order, name, step)
    elif name == order[0]:
      self.writer.rewind(order, name, -1)
    else:
      self.writer.rewind(order, order[order.index(name) - 1], 2**31)

  def _judge(self, name: str, stage: Stage) -> Evaluate:
    """The stage's own evaluation and, where it trains a policy, the run's."""
    policy, context = self.stages.trained(name).policy, self.stages.run

    def judge(left):
      metrics, rows = stage.evaluate(left) if stage.evaluate else ({}, [])
      if policy is not None and context.task is not None:
        result = evaluate(
            self.config.evaluation, context.sampler, context.task.heldout, policy(left),
            rng=functools.partial(context.rng, "evaluation"), report=self.progress.note)
        metrics, rows = {**metrics, **result.metrics}, [*result.rows()[:50], *rows]
      return metrics, rows
    return judge

  def _log(
      self, name: str, step: int, stage: Stage, metrics: Mapping[str, float], shown: str | None = None) -> list[Alarm]:
    """Writes and shows what a step or an evaluation measured. Returns the alarms that it raises, told."""
    values, alarms = stage.monitors.observe(metrics)
    self.writer.write(name, step, {**metrics, **values})
    self.progress.update(step, {**metrics, **values}, shown)
    for alarm in alarms:
      self.progress.note(alarm.message)
    return alarms

  def _evaluate(self, name: str, step: int, stage: Stage, judge: Evaluate, left: Any) -> list[Alarm]:
    started = time.perf_counter()
    metrics, rows = judge(left)
    alarms = self._log(name, step, stage, {**metrics, "time/evaluation": time.perf_counter() - started})
    if sharding.is_main_process():
      self.stages.folder.write(f"samples/{name}-{step}.json", rows[:100])
    return alarms


class StopRequest:
  """Turns the first Ctrl-C or SIGTERM into `requested`; a second one interrupts at once."""

  def __init__(self):
    self.requested = False
    self._before: Mapping[int, Any] = {}

  def __enter__(self):
    with contextlib.suppress(ValueError):  # Signals belong to the main thread: elsewhere, a notebook say, none is caught.
      self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    self.requested = True
    for s, handler in self._before.items():
      signal.signal(s, handler)


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
  with process.errors_in_one_line():
    process.start()
    train(config, workdir)


if __name__ == "__main__":
  process.command(main)
