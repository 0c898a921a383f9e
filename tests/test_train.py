"""Whole runs of the shrunk quickstart.

They resume bit for bit, refuse what cannot work, and learn.
"""

import contextlib
import gzip
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from rl_reason.config.overrides import override
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards.composition.monitors import StoppedByMonitor
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier
from rl_reason.run import workdir as workdir_lib
from rl_reason.stages.context import Context
from rl_reason.train import train
from tests import environment

# A user's own reward with a memory: what a completion earns depends on how often it was called
# before. It can be told to be slow, so that a signal finds the run in the middle of a step.
USER_MODULE = '''
import dataclasses
import os
import time

from rl_reason.tasks.worlds.arithmetic import arithmetic


def pause():
  time.sleep(float(os.environ.get("STEP_SECONDS", "0")))


class Moody:
  """Range [0, 1]: another length is liked at every call."""

  def __init__(self):
    self.calls = 0

  def __call__(self, samples):
    pause()
    self.calls += 1
    return [(len(s.completion) + 3 * self.calls) % 7 / 6 for s in samples]

  def state(self):
    return {"calls": self.calls}

  def restore(self, state):
    self.calls = state["calls"]


class Calls(Moody):
  """Range [1, inf): the number of calls, for the logs."""

  def __call__(self, samples):
    self.calls += 1
    return [self.calls] * len(samples)


class Slow:
  def __init__(self, source):
    self.source = source

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")) / 8)
    return self.source[index]


def slow_arithmetic(**arguments):
  return Slow(arithmetic(**arguments))


def turns_nan(samples):
  """Finite for the first two steps."""
  return [float("nan") if s.step == 2 else len(s.completion) % 3 for s in samples]


def forgets_one(samples):
  return [0.0] * (len(samples) - (samples[0].step == 2 if samples else 0))


def length(samples):
  """Range [0, 6]."""
  return [len(s.completion) % 7 for s in samples]


def sometimes(samples):
  """Range [0, 6]; the completions of every other prompt, or so, earn 0."""
  return [sum(map(ord, s.completion)) % 7 * (sum(map(ord, s.prompt)) % 2) for s in samples]


def overflows(samples):
  """Finite numbers whose sum is not."""
  return [3e38] * len(samples)


def no_rows(**arguments):
  return []


def prose(**arguments):
  problems = Slow(arithmetic(**arguments))
  return [dataclasses.replace(p, reference="It depends on the weather.") for p in problems]


def unsolved(**arguments):
  return [dataclasses.replace(p, solution="") for p in Slow(arithmetic(**arguments))]
'''
CONFIG = '''
from rl_reason.experiments import quickstart


def get_config(size="tiny"):
  c = quickstart.get_config(size)
  c.task.source, c.task.train.size, c.task.heldout.size = "user_module:slow_arithmetic", 16, 4
  c.sft.num_steps, c.rl.num_steps = 5, 6
  c.rl.rewards = {"moody": {"function": "user_module:Moody"},
                  "calls": {"function": "user_module:Calls", "weight": 0.0}}
  c.evaluation.every, c.evaluation.num_problems = 3, 4
  # The shapes of the rollouts, so that one program serves both.
  c.evaluation.batch_size = c.evaluation.samples_per_problem = 4
  return c
'''


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory):
  """A folder with a user's module and config.

  They can be imported here and in the processes that `command` starts.
  """
  folder = tmp_path_factory.mktemp("user")
  (folder / "user_module.py").write_text(USER_MODULE)
  (folder / "experiment.py").write_text(CONFIG)
  sys.path.insert(0, str(folder))
  yield folder
  sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def command(user_folder):
  """(workdir, overrides..., step_seconds=, module=) -> a started process on one device."""
  def start(workdir, *arguments, step_seconds=0.0, module="rl_reason.train",
            config="experiment.py", variables=None):
    return subprocess.Popen(
        [sys.executable, "-m", module, f"--config={config}", f"--workdir={workdir}", *arguments],
        cwd=user_folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(
            folders=[user_folder], STEP_SECONDS=str(step_seconds), **(variables or {})))
  return start


@pytest.fixture(scope="session")
def uninterrupted(command, tmp_path_factory):
  """The workdir of a run that nothing stopped."""
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  process = command(workdir)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return workdir


def deterministic(workdir):
  """Lines of metrics.jsonl without wall-clock times."""
  return [{k: v for k, v in line.items() if not k.startswith("time/")}
          for line in read_metrics(workdir)]


def arrays(checkpoint):
  """All that a checkpoint holds: {path: array}."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # That the arrays will lie where they lay.
    saved = ocp.load_checkpointables(checkpoint)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(saved)}


def stop_at(process, workdir, stage, step, signal_number):
  """Sends the signal as soon as metrics.jsonl shows the step. Returns (exit status, output)."""
  deadline = time.monotonic() + 300
  while process.poll() is None and time.monotonic() < deadline:
    if (workdir / "metrics.jsonl").exists() and any(
        (line["stage"], line["step"]) == (stage, step) for line in read_metrics(workdir)):
      process.send_signal(signal_number)
      break
    time.sleep(0.005)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


# (stage, step, signal, what the stages' checkpoints then are); one is due every 2 steps. Tests of
# random kills (tests/test_kills.py) interrupt every kind of stage at any moment.
TWICE = [
    ("sft", 3, signal.SIGKILL, {"sft": [2]}),
    ("rl", 1, signal.SIGTERM, {"sft": [4, 5]})]
OFTEN = [
    ("sft", 1, signal.SIGKILL, {"sft": []}),  # Before the first checkpoint.
    *TWICE,
    ("rl", 5, signal.SIGKILL, {"sft": [4, 5]})]


@pytest.mark.parametrize("interruptions", [TWICE, pytest.param(OFTEN, marks=pytest.mark.slow)],
                         ids=["twice", "often"])
def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(
    command, uninterrupted, tmp_path, interruptions):
  workdir = tmp_path / "killed"
  checkpoints = lambda stage: sorted(
      int(p.name) for p in (workdir / "checkpoints" / stage).iterdir() if p.name.isdigit())
  done = deterministic(uninterrupted)
  for stage, step, number, kept in interruptions:
    status, output = stop_at(command(workdir, step_seconds=0.4), workdir, stage, step, number)
    assert {name: checkpoints(name) for name in kept} == kept
    if number == signal.SIGKILL:
      assert status == -signal.SIGKILL, output
      continue
    assert status == 143, output
    assert "Stopped and saved: the same command continues." in output
    # The step that the signal found running was finished.
    assert checkpoints(stage)[-1] in (step, step + 1)
    assert deterministic(workdir) == done[:len(deterministic(workdir))]

  process = command(workdir)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert deterministic(workdir) == done
  for stage, step in (("sft", 5), ("rl", 6)):
    one, other = (
        arrays(folder / "checkpoints" / stage / str(step)) for folder in (uninterrupted, workdir))
    assert one.keys() == other.keys() and len(one) > 20
    for name in one:
      assert one[name].dtype == other[name].dtype, name
      assert one[name].tobytes() == other[name].tobytes(), name
  # The reward's memory went on where it was: it was called once per step, in each life of the run.
  assert [line["reward/calls"] for line in done if "reward/calls" in line] == [1, 2, 3, 4, 5, 6]
  assert len({line["reward/moody"] for line in done if "reward/moody" in line}) > 1
  learnt = [line for line in done if "logprob_gap" in line]
  assert all(line["logprob_gap"] < 1e-4 and line["grad_norm"] > 0 for line in learnt)


def test_the_commands_read_a_finished_run(command, uninterrupted):
  evaluated, sampled = (process.communicate(timeout=300)[0] for process in (
      command(uninterrupted, module="rl_reason.evaluate"),
      command(uninterrupted, "--prompt=7+5-3=", "--num_samples=3", module="rl_reason.sample")))
  assert "4 held-out problems, checkpoint rl, step 6" in evaluated, evaluated
  assert "pass@4" in evaluated, evaluated
  written = json.loads((uninterrupted / "evaluation.json").read_text())
  assert written["checkpoint"] == "rl, step 6"
  assert written["problems"] == 4 and len(written["samples"]) == 16
  # The same policy, problems and random numbers as at the end of the run.
  last = [line for line in read_metrics(uninterrupted) if "eval/pass@1" in line][-1]
  assert {k: written[k] for k in last if k.startswith("eval/")} == {
      k: v for k, v in last.items() if k.startswith("eval/")}
  assert "# rl, step 6" in sampled, sampled
  # A random policy's three completions may hold newlines.
  assert len(sampled[sampled.index("# rl, step 6"):].splitlines()) >= 4


@pytest.fixture
def config(user_folder):
  """One short stage of policy gradients on one of the fake devices.

  Its reward differs within groups.
  """
  c = config_lib.load(str(user_folder / "experiment.py"))
  c.unlock()
  c.stages, c.mesh.fsdp, c.evaluation.every = ("rl",), 1, 0
  c.rl.num_steps, c.checkpoint.every = 1, 1
  # What the assertions rely on, whatever the experiment is tuned to.
  override(c.rl, {
      "credit.baseline": "group_mean", "credit.normalise": "group_std", "objective.kl.coef": 0.01,
      "learner.minibatches": 1})
  c.rl.learner.optimizer.update(learning_rate=3e-4, schedule="constant", warmup_steps=5)
  set_reward(c, "user_module:length")
  return c


def set_reward(config, path):
  config.rl.rewards = {"mine": {"function": path, "weight": 1.0}}


def steps(workdir, stage="rl"):
  return [line for line in read_metrics(workdir) if line["stage"] == stage and "loss" in line]


@pytest.mark.parametrize("choices", [
    {"credit.baseline": "group_mean", "credit.normalise": "group_std",
     "objective.mean_over": "token", "objective.kl.added_to": "loss",
     "objective.kl.estimator": "k3"},
    pytest.param(
        {"credit.baseline": "leave_one_out", "credit.normalise": "none",
         "objective.mean_over": "sequence", "objective.kl.added_to": "reward",
         "objective.kl.estimator": "k1"},
        marks=pytest.mark.slow),
    pytest.param(
        {"credit.baseline": "none", "credit.normalise": "batch_std",
         "objective.mean_over": "fixed_length", "objective.kl.added_to": "reward",
         "objective.kl.estimator": "k1"},
        marks=pytest.mark.slow),
    {"learner.epochs": 2, "learner.minibatches": 2, "learner.microbatches": 2,
     "objective.kl.estimator": "k2", "objective.clip_low": 0.01, "objective.clip_high": 0.01,
     "objective.entropy_coef": 0.01},
    {"objective.kind": "gspo", "objective.mean_over": "sequence", "learner.epochs": 2,
     "learner.minibatches": 2, "objective.clip_low": 3e-4, "objective.clip_high": 4e-4,
     "credit.keep.equal_groups": "skip"},
    {"objective.kind": "cispo", "credit.returns": "to_go", "credit.baseline": "none",
     "credit.normalise": "token_whiten", "objective.kl.added_to": "reward",
     "objective.kl.estimator": "k1"},
    pytest.param(
        {"objective.kind": "gmpo", "objective.mean_over": "sequence",
         "credit.keep.equal_groups": "resample", "credit.keep.max_resamples": 1},
        marks=pytest.mark.slow),
    {"credit.critic": dict(trunk="separate"), "credit.baseline": "none",
     "credit.normalise": "token_whiten", "objective.kl.added_to": "reward",
     "objective.kl.estimator": "k2"},
    {"credit.critic": dict(trunk="shared", value_coef=0.1), "credit.baseline": "none",
     "credit.normalise": "none", "objective.mean_over": "sequence"},
], ids=lambda choices: "-".join(str(v) for v in choices.values()))
def test_an_algorithm_is_a_choice_of_fields(config, tmp_path, choices):
  override(config.rl, choices)
  config.rl.learner.optimizer.warmup_steps, config.rl.objective.kl.coef = 0, 0.1
  assert train(config, tmp_path, plain=True) is not None
  [line] = steps(tmp_path)
  assert all(np.isfinite(v) for k, v in line.items() if k != "stage")
  assert line["logprob_gap"] < 1e-4 and line["grad_norm"] > 0 and line["skipped_in_a_row"] == 0
  assert line["reward/std"] > 0 and line["reward/mine"] == line["reward/mean"]
  updates = choices.get("learner.epochs", 1) * choices.get("learner.minibatches", 1)
  assert arrays(tmp_path / "checkpoints" / "rl" / "1")["['optimizer']['step']"] == updates
  # The first update starts at the reference; later ones have left it, and some ratios leave the
  # narrow bounds.
  assert (line["kl"] > 1e-8) == (updates > 1) and (line["clip_fraction"] > 0) == (updates > 1)


def test_a_monitor_stops_the_run_and_the_same_command_goes_on_as_if_it_had_only_warned(
    config, tmp_path, capsys):
  # A weight that falls and a running normaliser: what a stop must not lose either.
  config.rl.update(num_steps=4, rewards={"moody": {"function": "user_module:Moody"}, "length": {
      "function": "user_module:length", "transforms": ("running_mean_std",),
      "gate": {"component": "moody", "below": 1.0},
      "weight": {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 3}}})
  config.rl.monitors = {
      "loops": {"monitor": "repetition", "threshold": -1.0, "window": 2},
      "heldout_gap": {"window": 2, "threshold": 9.0, "action": "stop",
                      "args": {"training": "reward/length/shaped"}}}
  config.checkpoint.every = config.evaluation.every = 100
  train(config, tmp_path / "whole", plain=True)
  assert capsys.readouterr().out.count("Monitor loops: ") == 1  # Told once, not at each step.
  lines = [line for line in steps(tmp_path / "whole")]
  assert ["monitor/loops" in line for line in lines] == [False, True, True, True]
  assert all(abs(line["reward/length"]) > 0.01 for line in lines)
  assert lines[3]["reward/length/shaped"] == 0
  last = read_metrics(tmp_path / "whole")[-1]
  assert "eval/pass@1" in last and last["monitor/heldout_gap"] < 9

  config.rl.monitors.loops.action = "stop"
  message = (r"Stage 'rl' stopped at step 2, which is saved. Monitor loops: .*, above its threshold"
             r" -1, .* To do: look at")
  with pytest.raises(StoppedByMonitor, match=message):
    train(config, tmp_path / "stopped", plain=True)
  train(config, tmp_path / "stopped", plain=True)
  whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
  assert deterministic(stopped) == deterministic(whole)
  whole, stopped = (arrays(w / "checkpoints" / "rl" / "4") for w in (whole, stopped))
  assert whole.keys() == stopped.keys()
  assert all(whole[k].tobytes() == stopped[k].tobytes() for k in whole)


def test_a_sampler_that_disagrees_with_the_trainer_stops_a_run_that_is_saved(config, tmp_path):
  config.rl.num_steps = 2
  config.rl.monitors = {"logprob_gap": {"threshold": -1.0}}  # Rounding alone is above it.
  message = "stopped at step 1, which is saved. Monitor logprob_gap: .* JAX_DEFAULT_MATMUL"
  with pytest.raises(StoppedByMonitor, match=message):
    train(config, tmp_path, plain=True)
  assert (tmp_path / "checkpoints" / "rl" / "1").exists()
  # And so far below the bound that is there by default.
  assert steps(tmp_path)[0]["monitor/logprob_gap"] < 1e-4


def test_a_stage_starts_from_the_policy_it_names_and_others_are_read_by_name(config, tmp_path):
  config.again = config.rl.copy_and_resolve_references()
  # Ends where it starts.
  config.again.learner.optimizer.learning_rate, config.again.start = 0.0, "initial"
  config.stages = ("rl", "again")
  params = train(config, tmp_path, plain=True)
  run_config, sections = config_lib.check(config)
  stages = earlier.Stages(
      run_config, sections, workdir_lib.Workdir(tmp_path), run.make_context(run_config))
  initial = stages.run.initial_params()
  same = lambda x, y: all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))
  assert same(params, initial)
  assert same(stages.finished("again"), initial)
  assert not same(stages.finished("rl"), initial)


def test_eight_devices_compute_what_one_does(config, tmp_path):
  config.rl.num_steps, config.rl.learner.optimizer.warmup_steps = 2, 0
  train(config, tmp_path / "one", plain=True)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  params = train(config, tmp_path / "eight", plain=True)
  assert any(not x.is_fully_replicated for x in jax.tree.leaves(params))
  for one, eight in zip(steps(tmp_path / "one"), steps(tmp_path / "eight"), strict=True):
    for key in ("loss", "policy_loss", "kl", "entropy", "grad_norm", "reward/mean", "reward/std",
                "completion/length"):
      np.testing.assert_allclose(eight[key], one[key], rtol=2e-3, atol=2e-6, err_msg=key)


@pytest.fixture
def ahead(config):
  """Every field that makes rollouts faster, and a reward with a memory.

  A checkpoint is due after every step.
  """
  override(config.rl, {
      "staleness": 1, "objective.importance_cap": 2.0, "rollout.int8": True, "rollout.slots": 8,
      "num_steps": 4})
  config.rl.rewards = {"moody": {"function": "user_module:Moody"},
                       "calls": {"function": "user_module:Calls", "weight": 0.0}}
  config.checkpoint.keep = 10
  return config


def test_rollouts_one_step_ahead_resume_to_the_same_bits(ahead, tmp_path):
  train(ahead, tmp_path / "whole", plain=True)
  lines = [line for line in read_metrics(tmp_path / "whole") if "tokens" in line]
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert "loss" not in lines[0] and all(line["loss"] != 0 for line in lines[1:])
  assert [line.get("staleness") for line in lines] == [None, 0, 1, 1]
  # The last step logs its own rollout.
  assert [line.get("reward/calls") for line in lines] == [None, 1, 2, 4]
  assert all(0.5 < line["importance/weight"] < 2 for line in lines[1:])
  assert all(1e-4 < line["logprob_gap"] < 1 for line in lines[1:])
  assert (tmp_path / "whole" / "curves.png").stat().st_size > 0
  saved = arrays(tmp_path / "whole" / "checkpoints" / "rl" / "4")
  assert saved["['optimizer']['step']"] == 4

  # As if killed after the second step: what came later is not there yet.
  workdir = tmp_path / "killed"
  shutil.copytree(tmp_path / "whole", workdir)
  for later in (3, 4):
    shutil.rmtree(workdir / "checkpoints" / "rl" / str(later))
  train(ahead, workdir, plain=True)
  assert deterministic(workdir) == deterministic(tmp_path / "whole")
  again = arrays(workdir / "checkpoints" / "rl" / "4")
  assert again.keys() == saved.keys()
  for name in saved:
    assert again[name].tobytes() == saved[name].tobytes(), name

  # The waiting rollout belongs to the run: it is not dropped because a field changed.
  for later in (3, 4):
    shutil.rmtree(workdir / "checkpoints" / "rl" / str(later))
  ahead.rl.staleness = 0
  message = r"step 2 holds the state of \['ahead', 'rewards'\], .* Resume with the staleness"
  with pytest.raises(ValueError, match=message):
    train(ahead, workdir, plain=True)


def test_one_step_ahead_begins_and_ends_as_a_run_without(config, tmp_path):
  # The first rollout is sampled by the same policy, and the first update learns from it. With one
  # step that is all.
  train(config, tmp_path / "plain", plain=True)
  config.rl.staleness = 1
  train(config, tmp_path / "one", plain=True)
  [plain], [one] = ([line for line in deterministic(tmp_path / name) if "loss" in line]
                    for name in ("plain", "one"))
  # Rollouts that may be stale have no monitor of the gap; the gap itself is logged, and the same.
  assert plain.pop("monitor/logprob_gap") == plain["logprob_gap"] == one["logprob_gap"]
  assert one.pop("staleness") == 0
  assert one == plain
  plain, one = (arrays(tmp_path / name / "checkpoints" / "rl" / "1") for name in ("plain", "one"))
  assert all(one[name].tobytes() == x.tobytes() for name, x in plain.items() if "host" not in name)


@pytest.mark.parametrize("choices", [
    pytest.param(
        {"credit.keep.equal_groups": "resample", "credit.keep.max_resamples": 6},
        marks=pytest.mark.slow),
    {"credit.keep.equal_groups": "resample", "credit.keep.max_resamples": 6, "staleness": 1},
    {"credit.critic": dict(trunk="separate", warmup_steps=1), "credit.baseline": "none",
     "credit.normalise": "token_whiten", "objective.kl.added_to": "reward"}],
    ids=lambda choices: "-".join(choices))
def test_dynamic_sampling_and_critics_resume_to_the_same_bits(config, tmp_path, choices):
  override(config.rl, {"num_steps": 4, **choices})
  config.checkpoint.keep = 10
  set_reward(config, "user_module:sometimes")
  train(config, tmp_path / "whole", plain=True)
  lines = steps(tmp_path / "whole")
  if "credit.keep.equal_groups" in choices:  # More prompts were needed, and found.
    assert 1 <= max(line["resample/rounds"] for line in lines) <= 6
    assert all(0 < line["resample/kept"] <= 1 and line["grad_norm"] > 0 for line in lines)
  else:
    assert all(np.isfinite(line["value/loss"]) for line in lines) and lines[-1]["value/mean"] != 0
  workdir = tmp_path / "killed"
  shutil.copytree(tmp_path / "whole", workdir)
  for later in (3, 4):
    shutil.rmtree(workdir / "checkpoints" / "rl" / str(later))
  train(config, workdir, plain=True)
  assert deterministic(workdir) == deterministic(tmp_path / "whole")
  saved, again = (
      arrays(folder / "checkpoints" / "rl" / "4") for folder in (tmp_path / "whole", workdir))
  assert again.keys() == saved.keys()
  for name in saved:
    assert again[name].tobytes() == saved[name].tobytes(), name


def test_a_reward_that_breaks_in_the_sampling_thread_ends_the_run(ahead, tmp_path):
  set_reward(ahead, "user_module:turns_nan")
  with pytest.raises(ValueError, match="reward component 'mine' returned nan for sample 0"):
    train(ahead, tmp_path, plain=True)
  assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
  set_reward(ahead, "user_module:length")
  assert train(ahead, tmp_path, plain=True) is not None
  assert [line["step"] for line in steps(tmp_path)] == [2, 3, 4]


def test_a_run_tells_what_it_compiles_and_can_be_profiled(config, tmp_path):
  config.rl.num_steps = 3
  config.logging.profile.update(stage="rl", first=2, last=3)
  train(config, tmp_path, plain=True)
  first, *rest = steps(tmp_path)
  assert first["time/compilations"] > 0 and first["time/compile_seconds"] > 0
  assert [line["time/compile_seconds"] for line in rest] == [0, 0]
  # The first checkpoint, between two steps, may compile its own.
  assert first["time/compilations"] <= rest[0]["time/compilations"] == rest[1]["time/compilations"]
  [trace] = (tmp_path / "profile").rglob("*.trace.json.gz")
  shown = [e.get("name") for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
  for name in ("rl", "generate", "reward", "assemble", "update"):
    assert shown.count(name) == 2, name


def contents(folder):
  """The bytes of all files of a run."""
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_is_left_as_it_is(config, tmp_path, capsys):
  first = train(config, tmp_path, plain=True)
  # The first of five updates of warm-up.
  assert steps(tmp_path)[0]["learning_rate"] == pytest.approx(3e-4 / 5)
  before = contents(tmp_path)
  again = train(config, tmp_path, plain=True)
  assert contents(tmp_path) == before
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    assert np.array_equal(a, b)

  # Nothing would be trained with another learning rate, and other shapes do not fit what is saved.
  for changes, message in [
      ({"learner.optimizer.learning_rate": 0.5},
       "Stage 'rl' is complete at step 1 .*learning_rate was 0.0003 and is 0.5"),
      ({"learner.optimizer.name": "sgd"},
       "config changed: rl.learner.optimizer.name was 'adamw' and is 'sgd'"),
      ({"credit.critic": dict(trunk="separate"), "credit.baseline": "none",
        "credit.normalise": "token_whiten"},
       "config changed: .*rl.credit.critic was None")]:
    other = config.copy_and_resolve_references()
    override(other.rl, changes)
    with pytest.raises(ValueError, match=message):
      train(other, tmp_path, plain=True)
  capsys.readouterr()
  config.evaluation.every = 7
  train(config, tmp_path, plain=True)
  assert "nothing was trained with evaluation.every" in " ".join(capsys.readouterr().out.split())
  assert contents(tmp_path) == before


@pytest.mark.parametrize("reward, message", [
    ("user_module:turns_nan", "reward component 'mine' returned nan for sample 0"),
    ("user_module:forgets_one",
     "reward component 'mine' must return one number per sample, shape (16,), got shape (15,)"),
])
def test_a_reward_that_breaks_in_the_middle_is_named_and_the_run_can_go_on(
    config, tmp_path, capsys, reward, message):
  config.rl.num_steps = 3
  set_reward(config, reward)
  with pytest.raises(ValueError) as error:
    train(config, tmp_path, plain=True)
  assert message in str(error.value)
  assert [line["step"] for line in steps(tmp_path)] == [1, 2]
  set_reward(config, "user_module:length")  # The user corrects it, and runs the same command.
  assert train(config, tmp_path, plain=True) is not None
  assert [line["step"] for line in steps(tmp_path)] == [1, 2, 3]
  printed = " ".join(capsys.readouterr().out.split())
  assert f"rl.rewards.mine.function was {reward!r} and is 'user_module:length'" in printed


@pytest.mark.filterwarnings("ignore:overflow encountered")  # In the logged mean of these rewards.
def test_gradients_that_are_not_finite_are_skipped_and_stop_the_run(config, tmp_path):
  config.rl.num_steps, config.rl.learner.optimizer.max_skipped = 5, 2
  set_reward(config, "user_module:overflows")
  message = r"'rl' stopped at step 2: the last 2 gradients .* newest checkpoint is \[1\]"
  with pytest.raises(FloatingPointError, match=message):
    train(config, tmp_path, plain=True)
  assert [line["skipped_in_a_row"] for line in steps(tmp_path)] == [1, 2]
  # The checkpoint of step 1 holds the parameters that the run began with.
  run_config, _ = config_lib.check(config)
  context = run.make_context(run_config)
  saved = arrays(tmp_path / "checkpoints" / "rl" / "1")
  for path, x in jax.tree.leaves_with_path({"params": context.initial_params()}):
    np.testing.assert_array_equal(saved[jax.tree_util.keystr(path)], x)


@pytest.mark.parametrize("changes, message", [
    ({"task.source": "user_module:no_rows"},
     "The train rows of source 'user_module:no_rows' are none at all"),
    ({"task.source": "arithmetics"}, "Unknown source 'arithmetics'. Did you mean 'arithmetic'?"),
    ({"task.source": "arithmetic", "task.train": {"part": "train", "sise": 4}},
     "takes no argument 'sise'. Did you mean 'size'?"),
    ({"policy.source": "smal"}, "Unknown policy source 'smal'. Did you mean 'small'?"),
    ({"policy.args.widht": 3}, "takes no argument 'widht'. Did you mean 'width'?"),
    ({"max_prompt_tokens": 3}, "3"),
    ({"rl.rewards": {"exact_anwser": 1.0}},
     "Unknown reward 'exact_anwser'. Did you mean 'exact_answer'?"),
    ({"rl.rewards": {"x": {"function": "user_module:lenght"}}},
     "no function or class 'lenght'. Did you mean 'length'?"),
    ({"evaluation.rewards": {"exact_anwser": 1.0}},
     "Unknown reward 'exact_anwser'. Did you mean 'exact_answer'?"),
    ({"task.source": "user_module:prose",
      "rl.rewards": {"math_answer": {"args": {"num_workers": 1}}}},
     "The reward 'math_answer' cannot use 16 of 16 references. The first is number 0, 'It depends"
     " on the weather.'"),
    ({"task.source": "user_module:prose", "evaluation.rewards": {"number_answer": 1.0}},
     "The reward 'number_answer' cannot use 4 of 4 references"),
    ({"task.source": "user_module:unsolved"}, "has no solution to imitate"),
    ({"sft.max_completion_tokens": 5}, "the limit max_completion_tokens is 5"),
    ({"mesh.platform": "gpu"}, "mesh.platform='gpu' was asked for, but JAX runs on 'cpu'"),
    ({"mesh.platform": "tpu"}, "pip install \"rl_reason[tpu]\""),
    ({"mesh.data": 16}, "data=16"),
    ({"rl.rollout.prompts": 2**24}, "Stage 'rl' needs about"),
])
def test_what_cannot_work_is_found_before_any_device_work(
    config, tmp_path, monkeypatch, changes, message):
  # Also what only the second stage needs: nobody should learn of it after the first one's hours.
  monkeypatch.setattr(
      Context, "initial_params", lambda self: pytest.fail("the parameters were made"))
  good = config.copy_and_resolve_references()
  config.stages = ("sft", "rl")
  for field, value in changes.items():
    section, (*sections, name) = config, field.split(".")
    for s in sections:
      section = section[s]
    if name in section:
      del section[name]  # Whole sections are replaced, not merged.
    section[name] = value
  with pytest.raises(ValueError) as error:
    train(config, tmp_path, plain=True)
  assert message in str(error.value)
  # The failed attempt has not made the folder its own.
  workdir_lib.Workdir(tmp_path).claim(good, pytest.fail)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_processes(command, tmp_path):
  # One process with one device, then two processes with two devices each, then one with one again.
  alone = command(tmp_path, "--config.stages=('rl',)", "--config.rl.num_steps=1",
                  "--config.checkpoint.every=1", "--config.evaluation.every=0")
  output, _ = alone.communicate(timeout=600)
  assert alone.returncode == 0, output
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  both = [command(
      tmp_path, "--config.rl.num_steps=2", variables={
          "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i),
          "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}) for i in range(2)]
  outputs = [process.communicate(timeout=600)[0] for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  alone = command(tmp_path, "--config.rl.num_steps=3")
  output, _ = alone.communicate(timeout=600)
  assert alone.returncode == 0, output
  assert [line["step"] for line in steps(tmp_path)] == [1, 2, 3]
  assert [line["reward/calls"] for line in steps(tmp_path)] == [1, 2, 3]
  history = json.loads((tmp_path / "history.json").read_text())
  assert [(c["stage"], c["step"], c["fields"]) for c in history["changes"]] == [
      ("rl", step, {"rl.num_steps": {"was": step, "is": step + 1}}) for step in (1, 2)]


@pytest.mark.slow
def test_the_quickstart_learns(command, tmp_path):
  process = command(tmp_path, config="experiments/quickstart.py")
  output, _ = process.communicate(timeout=3600)
  assert process.returncode == 0, output
  accuracy = {line["stage"]: line["eval/pass@1"]
              for line in read_metrics(tmp_path) if "eval/pass@1" in line}
  assert 0.2 <= accuracy["sft"] <= 0.45 and accuracy["rl"] >= 0.8, output
