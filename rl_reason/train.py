"""Trains a policy as a config says.

    python -m rl_reason.train --config=experiments/quickstart.py --workdir=runs/quickstart
    ... --config.seed=1      # Any field of the config can be set so.

The order is: config -> context -> stages -> the loop -> checkpoints, metrics, evaluations.
The same command continues a run that was stopped, and so does --workdir alone: the folder's
config.json is the truth of the run, and fields set on the command line change it from then on.
Ctrl-C or SIGTERM saves and stops after the current step.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import sys
import time
from typing import Any

from etils import epath
import ml_collections

from rl_reason.config import user_code
from rl_reason.evaluation.accuracy import check_verifier, evaluate
from rl_reason.evaluation.accuracy import memory as evaluation_memory
from rl_reason.reporting import plots, summary, whole_files
from rl_reason.reporting.exits import CLOSED, StopRequest
from rl_reason.reporting.metrics import import_trackers, MetricWriter, read_metrics
from rl_reason.reporting.progress import Progress
from rl_reason.rewards.composition.monitors import Alarm, StoppedByMonitor
from rl_reason.run import config as config_lib
from rl_reason.run import process
from rl_reason.run.config import RunConfig
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from rl_reason.run.owner import Ownership
from rl_reason.run.workdir import Claim, Workdir
from rl_reason.runtime import compilation, memory, sharding
from rl_reason.runtime.checkpoint import CheckpointMismatch, Checkpoints
from rl_reason.runtime.profiling import Trace
from rl_reason.stages.base import Evaluate, made, Stage, State


def train(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], *,
    plain: bool | None = None, overridden: Sequence[str] = (), stop: StopRequest | None = None,
) -> Any:
  """Runs the stages of a config, continuing where an earlier call with this workdir stopped.

  Args:
    config: an experiment's get_config(); rl_reason.run.config documents the fields.
    workdir: the run's folder (run.workdir.Workdir).
    plain: true prints lines, false draws a live panel; None decides by the terminal.
    overridden: fields that a command line set, for the record (run.record.Record).
    stop: is asked for a stop by Ctrl-C and SIGTERM; its status says which it was. None: one of its
      own.

  Returns: what the last stage made, which is its parameters if it trains, or None if a signal or a
    closed output stopped the run early.
  Raises: ValueError or OSError before any device work for what cannot work; FloatingPointError if
    gradients stay non-finite; StoppedByMonitor if a monitor stops the run; OSError if a checkpoint
    cannot be written. What was saved stays whole.
  """
  # Long on purpose: a run is read here from top to bottom, and each part is a call.

  # ---- The config --------------------------------------------------------------------------------
  # All fields are checked here. A mistake in a late stage must not be found after hours of an early
  # one.
  run_config, sections = config_lib.check(config)
  logged = run_config.logging
  import_trackers(tensorboard=logged.tensorboard, wandb=bool(logged.wandb))
  folder = Workdir(whole_files.folder(workdir, "--workdir"))
  with (Progress(plain, enabled=sharding.is_main_process()) as progress,
        contextlib.ExitStack() as exits):
    # ---- The run's folder ------------------------------------------------------------------------
    # It is new, or holds this very run; a folder with another run is refused and left untouched. No
    # other process may train in it at the same time.
    owner = exits.enter_context(folder.owned(progress.note))
    claim = folder.claim(config, progress.note, overridden)
    # Compiled programs are kept on disk, so that a run that continues need not compile again.
    compilation.keep_programs(progress.note)

    # ---- What all stages share: devices, policy, task, environment -------------------------------
    context = make_context(run_config, date=functools.partial(folder.date, record=True))
    stages = Stages(run_config, sections, folder, context)
    # The stage whose policy each stage starts from, "" for the initial policy.
    starts = stages.starting_points()

    # ---- The checks: what can be wrong is found before the first stage trains --------------------
    between = []  # The memory of evaluations, which take place between a stage's steps.
    if context.task is not None:
      # A verifier that cannot use the references would fail only at the first evaluation.
      check_verifier(run_config.evaluation, context.task.heldout)
      between = evaluation_memory(run_config.evaluation, context.sampler, context.partitioning,
                                  context.abstract_params)
    for name in sections:
      stages.kind(name).check(*stages.hooks(name))

    # ---- Memory: whether each stage fits into the devices ----------------------------------------
    # The estimate is made before any program is compiled: a stage that needs more is an error now,
    # and not out of memory later. Evaluations take place while a stage's state is there: `between`.
    partitionings = filter(None, [context.partitioning, context.rollout_partitioning])
    available = memory.device_memory(*partitionings)
    for name in sections:
      needed = stages.kind(name).memory(*stages.hooks(name))
      progress.note(memory.fit(name, [*needed, *between], available))

    # ---- What records the run, and what may stop it ----------------------------------------------
    # Only the main process writes: of several processes all compute the same metrics.
    exits.enter_context(context.partitioning.use())
    writer = exits.enter_context(MetricWriter(
        folder.path, tensorboard=logged.tensorboard, wandb=logged.wandb or None,
        enabled=sharding.is_main_process()))
    trace = exits.enter_context(Trace(run_config.logging.profile, folder.path, progress.note))
    stop = exits.enter_context(stop or StopRequest())
    loop = Loop(run_config, stages, claim, owner, writer, progress, trace, stop)

    # ---- The stages, one after the other ---------------------------------------------------------
    # Each starts from an earlier stage's policy, mostly its predecessor's, and may read the models
    # of other earlier stages by name. A stage that is complete returns what it left at once.
    policies = {"": context.initial_params()}
    for i, name in enumerate(sections):
      # Build the stage from its section, and run it to its end.
      section, own_context, _ = stages.hooks(name)
      stage = stages.kind(name).build(section, own_context, policies[starts[name]], name)
      with contextlib.closing(stage):
        left = loop.run(name, stage)
      if left is None:
        progress.note("Stopped and saved: the same command continues.")
        return None
      # Keep its policy for the stages that start from it. A reward model's stage leaves no policy.
      policy = stages.trained(name).policy
      if policy is not None:
        policies[name] = policy(left)
      # Policies that no later stage starts from are dropped, to free the devices' memory.
      still_needed = [starts[s] for s in run_config.stages[i + 1:]]
      policies = {k: v for k, v in policies.items() if k in still_needed}

    # ---- The end: a table of what each stage changed, and the learning curves --------------------
    if claim.changes and not claim.begun:
      progress.note(
          f"The run is finished, so nothing was trained with {', '.join(claim.changes)}:"
          " config.json is as it was.")
    if sharding.is_main_process():
      progress.table("What each stage changed", summary.COLUMNS, summary.summary(
          read_metrics(folder.path), run_config.stages))
      if claim.begun or not (folder.path / "curves.png").exists():
        plots.learning_curves(folder.path / "metrics.jsonl", folder.path / "curves.png")
      progress.note(f"Metrics, curves.png, samples and checkpoints are in {folder.path}.")
    return left


@dataclasses.dataclass
class Loop:
  """The training loop, which is the same for every stage.

  config: the checked config of the run.
  stages: all stages of the run, with its folder.
  claim: what this call changes in the run's record.
  owner: the ownership of the run's folder; None on all processes but the main one.
  writer: writes metrics.jsonl and what else records metrics.
  progress: shows the run in the terminal.
  trace: profiles the steps that the config asks for.
  stop: says whether a signal asked the run to stop, and with which exit status.
  """
  config: RunConfig
  stages: Stages
  claim: Claim
  owner: Ownership | None
  writer: MetricWriter
  progress: Progress
  trace: Trace
  stop: StopRequest

  def run(self, name: str, stage: Stage) -> Any:
    """Runs one stage, from its start or from its newest checkpoint.

    Args:
      name: the stage's name.
      stage: what was built from its section.
    Returns: what the stage made (stages.base.made), or None if a signal asked to stop.
    Raises: ValueError if the checkpoint does not fit the stage, or later stages have started from
      it; FloatingPointError if `stage.max_skipped` gradients in a row were not finite;
      StoppedByMonitor if a monitor stops the run, whose step is saved.
    """
    # Long on purpose: the loop is read in the order in which a step happens, which is what makes a
    # resumed run equal an uninterrupted one.
    checkpointing, evaluation, compiled = (
        self.config.checkpoint, self.config.evaluation, compilation.compilations())
    policies = [s for s in self.config.stages if self.stages.trained(s).policy is not None]
    # Only the first stage that trains a policy evaluates the policy before its first step: a later
    # stage starts from a policy that was evaluated at an earlier stage's end. A stage with an
    # evaluation of its own always makes it, as nothing else has.
    first = stage.evaluate is not None or name in policies[:1]
    judge = self._judge(name, stage)
    with contextlib.closing(self.stages.folder.checkpoints(
        name, keep=checkpointing.keep, note=self.progress.note)) as saved:
      # ---- Where to begin: the start, or the newest checkpoint that can be read ------------------
      step, state, host = self._begin(name, stage, saved)
      # A run that was asked to stop saved at once, without the evaluation that was due.
      owed = host is not None and bool(host.get("evaluation_due"))
      if not self._has_work(name, stage, step, owed):
        return made(state)

      # ---- Before the first step: the record, and what the policy is worth -----------------------
      # The config of the steps to come is recorded before the first of them.
      self.claim.begin(name, step)
      self._rewind(name, step, started=host is not None, lines=1 if owed else None)
      self.progress.stage(name, stage.num_steps, step)
      if owed or first and host is None:
        alarms = self._evaluate(name, step, stage, judge, made(state))
        if alarms is None:
          return None
        if owed:
          self.writer.flush()
          saved.save(step, state, self._host(stage), overwrite=True)
          if halting := self._halting(alarms):
            self._halt(name, step, saved, halting)

      # ---- The loop ------------------------------------------------------------------------------
      self.progress.compiling()
      while step < stage.num_steps:
        if self.owner is not None:
          self.owner.check()
        # One step, as the stage defines it: for RL a rollout, its rewards and its updates.
        started, compile_seconds = time.perf_counter(), compiled.seconds
        with self.trace.step(name, step + 1):
          state, result = stage.step(state, next(stage.data), step)
        step += 1
        seconds = time.perf_counter() - started

        # The metrics: the stage's own, and the cost of the step. Compilations are reported, because
        # one that comes again and again means that a shape changes.
        metrics = {
            **result.metrics, "tokens": result.tokens, "updates": result.updates,
            "skipped_in_a_row": result.skipped, "time/step": seconds,
            "time/tokens_per_second": result.tokens / seconds,
            "time/compilations": compiled.programs,
            "time/compile_seconds": compiled.seconds - compile_seconds}
        alarms = self._log(name, step, stage, metrics, result.shown)
        if result.arrays and sharding.is_main_process():
          self.stages.folder.save_arrays(name, result.arrays)

        # Stop where updates are refused again and again: more steps would change nothing. The
        # step's metrics are already written, for whoever looks for the cause.
        if result.skipped >= stage.max_skipped:
          raise FloatingPointError(
              f"Stage {name!r} stopped at step {step}: the last {result.skipped} gradients were not"
              " finite. Each such update was skipped, so the parameters are whole; the newest"
              f" checkpoint is {saved.steps[-1:] or 'none'}. Lower the learning rate, or look at"
              " loss and kl in metrics.jsonl.")

        # An evaluation, if one is due. Where the run must stop it is put off until the run goes on:
        # a machine that is taken away gives notice of 30 seconds, which are for the checkpoint.
        last, stopping = step == stage.num_steps, self._stopping()
        due = last or bool(evaluation.every) and step % evaluation.every == 0
        if due and not stopping:
          found = self._evaluate(name, step, stage, judge, made(state))
          stopping, due, alarms = found is None, found is None, [*alarms, *(found or [])]

        # A checkpoint, if one is due. It comes after the step's lines are written: a run that
        # continues from it drops the lines after its step, and would miss lines written later.
        halting = self._halting(alarms)
        if last or stopping or halting or step % checkpointing.every == 0:
          self.writer.flush()
          saved.save(step, state, self._host(stage, evaluation_due=due and stopping))

        # An early end, by a monitor or a signal. Saving runs beside training, so wait for it.
        if halting:
          self._halt(name, step, saved, halting)
        if stopping:
          saved.wait()
          return None
      saved.wait()
      return made(state)

  def _begin(
      self, name: str, stage: Stage, saved: Checkpoints,
  ) -> tuple[int, State, Mapping[str, Any] | None]:
    """Brings a stage to its newest checkpoint, or to its start.

    Returns: (step, state, the host's part of the checkpoint; None: there is no checkpoint).
    Raises: ValueError if the checkpoint does not fit the stage.
    """
    try:
      restored = saved.restore(stage.state_shape)
    except CheckpointMismatch as error:
      raise self.claim.explain(name, error) from error
    if restored is None:
      # A part whose state no checkpoint can hold is found here, and not at the first save.
      user_code.plain(self._host(stage), f"stage {name!r}")
      return 0, stage.init(), None
    step, state, host = restored
    # A rollout that was sampled ahead is part of the checkpoint. With another staleness there
    # would be one too many or one too few.
    if host["resumable"].keys() != stage.resumable.keys():
      raise ValueError(
          f"The checkpoint of stage {name!r} at step {step} holds the state of"
          f" {sorted(host['resumable'])}, and the stage now has {sorted(stage.resumable)}: a"
          " rollout would be lost, or missing. Resume with the staleness it"
          " was saved with, or choose another --workdir.")
    # Data, monitors and rollouts go back to the same step as the parameters, so that a resumed
    # run equals an uninterrupted one.
    stage.data.set_state(host["data"])
    stage.monitors.restore(host.get("monitors", {}))
    for key, part in stage.resumable.items():
      part.restore(host["resumable"][key])
    return step, state, host

  def _has_work(self, name: str, stage: Stage, step: int, owed: bool) -> bool:
    """Tells whether a stage has steps left, or owes an evaluation.

    Raises: ValueError if it has gone further than it should, or later stages started from it.
    """
    if step > stage.num_steps:
      raise ValueError(
          f"Stage {name!r} has a checkpoint of step {step} in {self.stages.folder.path}, and"
          f" num_steps is {stage.num_steps}: steps are not taken back. Set"
          f" --config.{name}.num_steps={step} or more, or choose another --workdir.")
    # A stage that an earlier call completed: metrics.jsonl is not rewound, so that what later
    # stages logged stays.
    if step == stage.num_steps and not owed:
      self.claim.refuse_in_complete(name, step)
      if f"{name}.num_steps" in self.claim.changes:
        self.claim.begin(name, step)
      self.progress.note(f"Stage {name} is complete: {step} steps.")
      return False
    # A stage that is incomplete, while a later one has checkpoints: its num_steps was raised.
    order = self.config.stages
    later = [
        s for s in order[order.index(name) + 1:]
        if (self.stages.folder.path / "checkpoints" / s).exists()]
    if later:
      raise ValueError(
          f"Stage {name!r} is at step {step} of {stage.num_steps}, but {later} already started"
          f" from it, in {self.stages.folder.path}: they would not see its further steps. Set"
          f" --config.{name}.num_steps={step} back, or choose another --workdir.")
    return True

  def _stopping(self) -> bool:
    """Tells whether the run must stop, for which all processes must agree.

    A signal may reach one of them only, and the others would wait for it in the next step.
    """
    if self.progress.closed:
      self.stop.request(CLOSED)
    self.stop.request(max(sharding.gather_objects(self.stop.status)))
    return self.stop.requested

  def _host(self, stage: Stage, *, evaluation_due: bool = False) -> dict[str, Any]:
    """Returns the host's part of a checkpoint: what must go back to the same step."""
    return {
        "data": stage.data.get_state(),
        "resumable": {k: v.state() for k, v in stage.resumable.items()},
        "monitors": stage.monitors.state(), "evaluation_due": evaluation_due}

  def _halting(self, alarms: Sequence[Alarm]) -> str:
    """Returns the message of a monitor that stops the run, on any process; "" if none does.

    Monitors also watch what differs between processes, such as times, so these must agree.
    """
    own = [alarm.message for alarm in alarms if alarm.action == "stop"]
    return next(filter(None, sharding.gather_objects("".join(own[:1]))), "")

  def _halt(self, name: str, step: int, saved: Checkpoints, message: str) -> None:
    """Ends the run as a monitor asks for. Raises: StoppedByMonitor, once all is written."""
    saved.wait()
    raise StoppedByMonitor(
        f"Stage {name!r} stopped at step {step}, which is saved. {message} The same command"
        " continues.")

  def _rewind(
      self, name: str, step: int, *, started: bool, lines: int | None = None) -> None:
    """Drops the lines of metrics.jsonl that were written after the checkpoint.

    The steps from the checkpoint on are made again, and their lines written again.

    Args:
      name: name of the stage that runs next.
      step: the checkpoint's step.
      started: whether the stage has a checkpoint. One that never saved starts anew, right after its
        predecessor's end.
      lines: how many lines of the step itself stay; None: all.
    """
    order = self.config.stages
    # A step of -1 is before all lines of the first stage, even before those of its evaluation at
    # step 0; 2**31 is after all lines of the predecessor.
    if started:
      self.writer.rewind(order, name, step, lines=lines)
    elif name == order[0]:
      self.writer.rewind(order, name, -1)
    else:
      self.writer.rewind(order, order[order.index(name) - 1], 2**31)

  def _judge(self, name: str, stage: Stage) -> Evaluate:
    """Makes what evaluates a stage: its own evaluation and, if it trains a policy, the run's.

    Returns: (what the stage left) -> (metrics, rows to show), or None if the run must stop.
    """
    policy, context = self.stages.trained(name).policy, self.stages.run

    def judge(left):
      metrics, rows = stage.evaluate(left) if stage.evaluate else ({}, [])
      if policy is not None and context.task is not None:
        # The same random keys at every step: two evaluations differ by the policy alone.
        result = evaluate(
            self.config.evaluation, context.sampler, context.task.heldout, policy(left),
            rng=functools.partial(context.rng, "evaluation"), report=self.progress.note,
            stopping=self._stopping)
        if result is None:
          return None
        metrics, rows = {**metrics, **result.metrics}, [*result.rows()[:50], *rows]
      return metrics, rows
    return judge

  def _log(
      self, name: str, step: int, stage: Stage, metrics: Mapping[str, float],
      shown: str | None = None,
  ) -> list[Alarm]:
    """Writes and shows what a step or an evaluation measured.

    Args:
      name: the stage's name.
      step: number of the step within the stage; 0 is before the first.
      stage: the stage, with the monitors that watch the metrics and add values of their own.
      metrics: name -> value.
      shown: a text to show beside the metrics; None: there is none.
    Returns: the alarms that the monitors raise; their messages are shown already.
    """
    values, alarms = stage.monitors.observe(metrics)
    self.writer.write(name, step, {**metrics, **values})
    self.progress.update(step, {**metrics, **values}, shown)
    for alarm in alarms:
      self.progress.note(alarm.message)
    return alarms

  def _evaluate(
      self, name: str, step: int, stage: Stage, judge: Evaluate, left: Any,
  ) -> list[Alarm] | None:
    """Evaluates what a stage has made by a step: logs the metrics, and writes up to 100 samples.

    Returns: the alarms that the monitors raise; None if the run must stop, and nothing is logged.
    """
    started = time.perf_counter()
    found = judge(left)
    if found is None:
      return None
    metrics, rows = found
    alarms = self._log(
        name, step, stage, {**metrics, "time/evaluation": time.perf_counter() - started})
    if sharding.is_main_process():
      self.stages.folder.write(f"samples/{name}-{step}.json", rows[:100])
    return alarms


def main(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Runs `train` as a command; errors that the user can cure are one line."""
  with process.errors_in_one_line():
    process.start()
    stop = StopRequest()
    left = train(config, workdir, overridden=config_lib.overridden(sys.argv), stop=stop)
  if left is None:
    raise SystemExit(stop.status)


if __name__ == "__main__":
  process.command(main, "train", __doc__)
