"""The training loop, with a stage that only counts: what is saved, evaluated, written, and when."""

import io
import types

import jax
import jax.numpy as jnp
import pytest

from rl_reason import train as train_lib
from rl_reason.reporting.exits import StopRequest
from rl_reason.reporting.metrics import MetricWriter, read_metrics
from rl_reason.reporting.progress import Progress
from rl_reason.rewards.composition.monitors import StoppedByMonitor
from rl_reason.run.owner import Ownership
from rl_reason.run.record import Record
from rl_reason.run.workdir import Claim, Workdir
from rl_reason.runtime.checkpoint import Checkpointing, saved_steps
from rl_reason.runtime.profiling import Profile, Trace
from rl_reason.stages.base import Stage, StepResult, Trained
from rl_reason.train import Loop


class Data:
  """Counts what was drawn."""
  drawn = 0

  def __next__(self):
    self.drawn += 1
    return [self.drawn]

  def get_state(self):
    return {"drawn": self.drawn}

  def set_state(self, state):
    self.drawn = state["drawn"]


class Watching:
  """Monitors with a memory of the evaluations, which stop the run where they are told to."""

  def __init__(self, stop_at=None):
    self.seen, self.stop_at = [], stop_at

  def observe(self, metrics):
    if "eval/pass@1" not in metrics:
      return {}, []
    self.seen.append(metrics["eval/pass@1"])
    alarms = [types.SimpleNamespace(action="stop", message="Monitor x: too high.")] if (
        self.seen[-1] == self.stop_at) else []
    return {"seen": len(self.seen)}, alarms

  def state(self):
    return {"seen": list(self.seen)}

  def restore(self, state):
    self.seen = list(state["seen"])


class Run:
  """A run of one stage that counts, in a folder; each `go` is a process of its own.

  During step `stop_in_step`, or the evaluation of step `stop_in_evaluation`, it is asked to stop.
  """

  def __init__(self, folder, monkeypatch, num_steps=4, stop_at=None):
    self.folder, self.patch = Workdir(folder), monkeypatch
    self.num_steps, self.stop_at = num_steps, stop_at
    self.evaluated = []

  def go(
      self, *, stop_in_step=None, stop_in_evaluation=None, stream=None, owner=None,
      during=lambda step: None):
    self.stop, data, monitors = StopRequest(), Data(), Watching(self.stop_at)

    def step(state, problems, index):
      during(index + 1)
      if index + 1 == stop_in_step:
        self.stop.request(143)
      return {"count": state["count"] + problems[0]}, StepResult(
          {"drawn": problems[0]}, tokens=1, updates=1)

    def evaluate(section, sampler, heldout, params, *, rng, report, stopping):
      at = int(params["count"])
      if at == stop_in_evaluation:
        self.stop.request(143)
      if stopping():
        return None
      self.evaluated.append(at)
      return types.SimpleNamespace(metrics={"eval/pass@1": float(at)}, rows=lambda: [{"at": at}])
    self.patch.setattr(train_lib, "evaluate", evaluate)
    shape = {
        "count": jax.ShapeDtypeStruct(
            (), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
    stage = Stage(
        num_steps=self.num_steps, init=lambda: {"count": jnp.int32(0)}, state_shape=shape,
        data=data, step=step, monitors=monitors)
    stages = types.SimpleNamespace(
        folder=self.folder, trained=lambda name: Trained(shape),
        run=types.SimpleNamespace(
            task=types.SimpleNamespace(heldout=[]), sampler=None, rng=lambda *names: None))
    config = types.SimpleNamespace(
        checkpoint=Checkpointing(every=100), evaluation=types.SimpleNamespace(every=2),
        stages=("count",))
    self.progress = Progress(plain=True, stream=stream or io.StringIO())
    claim = Claim(self.folder, Record({"stages": ["count"]}), {"stages": ["count"]}, {})
    with MetricWriter(self.folder.path) as writer:
      loop = Loop(config, stages, claim, owner, writer, self.progress,
                  Trace(Profile(), self.folder.path, print), self.stop)
      return loop.run("count", stage)

  @property
  def lines(self):
    return [
        {k: v for k, v in line.items() if not k.startswith("time/")}
        for line in read_metrics(self.folder.path)]

  @property
  def saved(self):
    return saved_steps(self.folder.path / "checkpoints" / "count")


@pytest.fixture
def whole(tmp_path, monkeypatch):
  run = Run(tmp_path / "whole", monkeypatch)
  assert int(run.go()["count"]) == 1 + 2 + 3 + 4
  assert run.evaluated == [0, 3, 10]
  return run


@pytest.fixture
def run(tmp_path, monkeypatch):
  return Run(tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_that_must_stop_saves_before_it_evaluates(run, whole, step):
  assert run.go(stop_in_step=step) is None
  assert run.saved == [step]
  assert run.evaluated == ([0, 3] if step == 4 else [0])
  assert run.lines[-1]["step"] == step and "drawn" in run.lines[-1]
  # What was put off is made up for, and the run is the one that nothing stopped.
  assert int(run.go()["count"]) == 10
  assert run.lines == whole.lines
  assert run.evaluated == [0, 3, 10]


@pytest.mark.parametrize("at", [3, 10])
def test_a_stop_during_an_evaluation_gives_it_up_and_saves(run, whole, at):
  assert run.go(stop_in_evaluation=at) is None
  assert run.saved == [{3: 2, 10: 4}[at]]
  assert at not in run.evaluated
  run.go()
  assert run.lines == whole.lines


def test_a_stop_during_the_first_evaluation_ends_the_run(run, whole):
  assert run.go(stop_in_evaluation=0) is None
  assert run.saved == []
  run.go()
  assert run.lines == whole.lines


def test_a_stop_while_an_evaluation_is_made_up_for(run, whole):
  run.go(stop_in_step=2)
  assert run.go(stop_in_evaluation=3) is None
  assert run.saved == [2]
  run.go()
  assert run.lines == whole.lines


@pytest.mark.parametrize("step", [2, 4])
def test_a_kill_after_an_evaluation_was_made_up_for(run, whole, monkeypatch, step):
  run.go(stop_in_step=step)
  with monkeypatch.context() as killed:
    killed.setattr(
        train_lib.Checkpoints, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      run.go()
  # The line is there, and the checkpoint still says that it is due.
  assert len(run.lines) == {2: 4, 4: 7}[step]
  run.go()
  assert run.lines == whole.lines
  assert run.saved == [4] if step == 4 else [2, 4]


def test_a_finished_stage_evaluates_nothing_again(whole):
  before = whole.lines
  assert int(whole.go()["count"]) == 10
  assert whole.evaluated == [0, 3, 10]
  assert whole.lines == before


def test_a_monitor_also_stops_after_an_evaluation_that_was_put_off(tmp_path, monkeypatch):
  run = Run(tmp_path, monkeypatch, stop_at=3.0)
  assert run.go(stop_in_step=2) is None
  with pytest.raises(
      StoppedByMonitor, match="stopped at step 2, which is saved. Monitor x: too high."):
    run.go()
  assert int(run.go()["count"]) == 10  # Once, as where the evaluation was not put off.
  assert [line["seen"] for line in run.lines if "seen" in line] == [1, 2, 3]


def test_fewer_steps_than_were_made_are_an_error(run):
  run.go()
  run.num_steps = 3
  before = run.lines
  with pytest.raises(
      ValueError,
      match=r"'count' has a checkpoint of step 4 .*num_steps is 3: .*--config.count.num_steps=4"):
    run.go()
  assert run.lines == before


class Closed(io.StringIO):
  """A stream whose reader goes after some lines."""

  def write(self, text):
    if text.startswith("count 0/"):
      raise BrokenPipeError


def test_without_a_reader_the_run_saves_and_stops(run, whole):
  assert run.go(stream=Closed()) is None
  assert run.stop.status == 141
  assert run.saved == [1]
  run.go()
  assert run.lines == whole.lines


def test_a_run_whose_folder_was_taken_ends_before_it_writes(run):
  with Ownership(run.folder.path, pytest.fail) as owner:
    def taken(step):
      if step == 2:
        owner.lost = True
    with pytest.raises(ValueError, match="Another process trains in"):
      run.go(owner=owner, during=taken)
  assert [line["step"] for line in run.lines] == [0, 1, 2, 2]


def test_a_state_that_no_checkpoint_can_hold_is_found_before_the_first_step(run, monkeypatch):
  monkeypatch.setattr(Data, "get_state", lambda self: {"seen": {1, 2}})
  steps = []
  with pytest.raises(ValueError, match="state of stage 'count' is not JSON .*seen"):
    run.go(during=steps.append)
  assert steps == []
