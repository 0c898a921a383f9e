"""The record of a run: exact numbers, sound after a kill, equal after a resume."""

import builtins
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.reporting import metrics
from rl_reason.reporting.metrics import MetricWriter, read_metrics


def train(writer, start=("sft", 0), stop=("rl", 4)):
  """A deterministic run of two stages; writes what comes after `start`, up to `stop`."""
  order = ["sft", "rl"]
  first, last = (order.index(start[0]), start[1]), (order.index(stop[0]), stop[1])
  for index, stage in enumerate(order):
    for step in range(1, 5):
      if first < (index, step) <= last:
        writer.write(stage, step, {"loss": 1 / 3 / step, "num_tokens": 7 * step})
        if stage == "rl" and step % 2 == 0:
          writer.write(stage, step, {"eval/pass@1": step / 7})


def test_floats_read_back_exactly(tmp_path):
  values = {
      "a": 0.1, "b": np.float32(0.1), "c": jnp.float32(1e-8), "d": 2**60 + 1, "e": np.int64(3),
      "f": jnp.bfloat16(0.3), "g": 5e-324, "h": np.bool_(True), "i": jnp.array(7)}
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", np.int64(1), values)
  [record] = read_metrics(tmp_path / "metrics.jsonl")
  assert record == {
      "stage": "rl", "step": 1, **{key: np.asarray(value).item() for key, value in values.items()}}
  assert list(record) == ["stage", "step", *values]
  assert isinstance(record["d"], int) and isinstance(record["f"], float)


def test_non_finite_values_are_valid_json_and_read_back(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", 1, {"a": math.nan, "b": math.inf, "c": np.float32(-np.inf)})
  text = (tmp_path / "metrics.jsonl").read_text()
  line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  assert line["a"] == "NaN" and line["c"] == "-Infinity"
  [record] = read_metrics(tmp_path)
  assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf


@pytest.mark.parametrize("checkpoint, killed_at", [
    (("sft", -1), ("sft", 3)), (("sft", 0), ("sft", 3)), (("sft", 2), ("sft", 3)),
    (("sft", 2), ("rl", 1)), (("sft", 4), ("rl", 1)), (("rl", 0), ("rl", 1)),
    (("rl", 2), ("rl", 4)), (("rl", 3), ("rl", 4)), (("rl", 4), ("rl", 4)),
])
def test_resumed_run_writes_the_file_of_an_uninterrupted_one(tmp_path, checkpoint, killed_at):
  with MetricWriter(tmp_path / "whole") as writer:
    train(writer)
  killed = MetricWriter(tmp_path / "killed")
  train(killed, stop=killed_at)
  with open(killed.path, "ab") as file:
    file.write(b'{"stage": "rl", "st')  # The kill came while a line was written.
  with MetricWriter(tmp_path / "killed") as writer:
    writer.rewind(["sft", "rl"], *checkpoint)
    train(writer, start=checkpoint)
  assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (
      tmp_path / "whole/metrics.jsonl").read_bytes()
  assert sorted(os.listdir(tmp_path / "killed")) == ["metrics.jsonl"]


def test_rewind_of_a_kept_line_keeps_its_bytes(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
      '{"step":1,  "stage":"rl","kl":1.50}\n{"stage":"rl","step":2}\n')
  with MetricWriter(tmp_path) as writer:
    writer.rewind(["rl"], "rl", 1)
  assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1,  "stage":"rl","kl":1.50}\n'


def test_rewind_can_drop_what_followed_a_step_s_first_line(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for stage, step, value in [("rl", 1, 0), ("rl", 2, 1), ("rl", 2, 2), ("rl", 3, 3)]:
      writer.write(stage, step, {"x": value})
    writer.rewind(["rl"], "rl", 2, lines=1)
  assert [line["x"] for line in read_metrics(tmp_path)] == [0, 1]


def test_sigkill_loses_nothing_that_was_written(tmp_path):
  code = ("import os, signal, sys\nfrom rl_reason.reporting.metrics import MetricWriter\n"
          "writer = MetricWriter(sys.argv[1])\n"
          "for step in range(3): writer.write('rl', step, {'kl': step / 3})\n"
          "os.kill(os.getpid(), signal.SIGKILL)")
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
  assert run.returncode == -signal.SIGKILL
  assert [record["kl"] for record in read_metrics(tmp_path)] == [0, 1 / 3, 2 / 3]


def test_half_last_line_is_left_out_and_dropped_before_appending(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"stage": "rl", "step": 1, "kl": 0.5}\n{"stage": "rl", "step": 2, "k')
  assert read_metrics(path) == [{"stage": "rl", "step": 1, "kl": 0.5}]
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", 2, {"kl": 0.25})
  assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_whole_last_line_without_newline_counts(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"stage": "rl", "step": 1}')
  assert read_metrics(path) == [{"stage": "rl", "step": 1}]
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", 2, {})
  assert path.read_text() == '{"stage": "rl", "step": 1}\n{"stage": "rl", "step": 2}\n'


@pytest.mark.parametrize(
    "line", ["{\"stage\": \"rl\", \"st", "[1, 2]", "", "{\"stage\": \"rl\"}", "\x00\x00"])
def test_corrupt_line_in_the_middle_is_an_error_naming_it(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"stage": "rl", "step": 1}}\n{line}\n{{"stage": "rl", "step": 3}}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of metrics"):
    read_metrics(path)


def test_missing_file_and_empty_run(tmp_path):
  with pytest.raises(FileNotFoundError, match="no metrics at"):
    read_metrics(tmp_path / "nowhere")
  MetricWriter(tmp_path).close()
  assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("values, message", [
    ({"kl": np.zeros(2)}, r"metric 'kl' must be one real number.*shape \(2,\)"),
    ({"kl": "0.5"}, "must be one real number"), ({"kl": None}, "must be one real number"),
    ({"kl": 1j}, "must be one real number"),
    ({"step": 3}, "cannot be named 'step'"),
    ({3: 3}, "cannot be named 3"),
])
def test_values_that_are_no_metrics_are_refused_and_nothing_is_written(tmp_path, values, message):
  with MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match=message):
      writer.write("rl", 1, {"loss": 1.0, **values})
  assert read_metrics(tmp_path) == []


def test_rewind_refuses_what_the_run_does_not_have(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("dpo", 1, {})
    with pytest.raises(
        ValueError, match=r"cannot rewind to stage 'ppo': the run's stages are \['sft', 'dpo'\]"):
      writer.rewind(["sft", "dpo"], "ppo", 1)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: stage 'dpo' is not among"):
      writer.rewind(["sft", "rl"], "rl", 1)
    with pytest.raises(ValueError, match="stage names must differ"):
      writer.rewind(["dpo", "dpo"], "dpo", 1)
    writer.write("dpo", 2, {})
  assert len(read_metrics(tmp_path)) == 2


def test_disabled_writer_touches_nothing(tmp_path):
  with MetricWriter(tmp_path / "run", tensorboard=True, wandb={}, enabled=False) as writer:
    writer.write("rl", 1, {"kl": 1.0})
    writer.rewind(["rl"], "rl", 0)
  assert not (tmp_path / "run").exists()


def test_use_after_close_is_refused(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.close()
  writer.close()
  with pytest.raises(ValueError, match=r"after close\(\)"):
    writer.write("rl", 1, {})


def test_a_file_in_an_object_store_is_written_whole(store, monkeypatch):
  with MetricWriter("gs://bucket/run") as writer:
    writer.write("rl", 1, {"x": 1})
    # An upload for each line would cost more than a step.
    assert not read_lines(store)
    writer.flush()
    assert read_lines(store) == [1]
    writer.write("rl", 2, {"x": 2})
    monkeypatch.setattr(metrics._Stored, "SECONDS", -1.0)
    writer.write("rl", 3, {"x": 3})
    assert read_lines(store) == [1, 2, 3]
    writer.write("rl", 4, {"x": 4})
  with MetricWriter("gs://bucket/run") as writer:
    writer.rewind(["rl"], "rl", 3)
    assert read_lines(store) == [1, 2, 3]
    uploads = store.uploads
    writer.flush()
    assert store.uploads == uploads  # There is nothing new.


def read_lines(store):
  return [line["x"] for line in read_metrics("gs://bucket/run")] if store.objects else []


def test_full_disk_says_what_is_lost_and_leaves_whole_lines(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", 1, {"kl": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ten_bytes_more = writer.path.stat().st_size + 10
    # Only a part of the next line fits.
    resource.setrlimit(resource.RLIMIT_FSIZE, (ten_bytes_more, limits[1]))
    try:
      with pytest.raises(
          OSError,
          match="(?s)stage 'rl', step 2.*Lost.*last checkpoint.*Free some space") as caught:
        writer.write("rl", 2, {"kl": 0.25})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno
    assert writer.path.read_bytes().endswith(b"0.5}\n")
    writer.write("rl", 2, {"kl": 0.25})
  assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("package, extra", [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_missing_tracker_names_the_command_before_anything_is_written(
    tmp_path, monkeypatch, package, extra):
  # What import sees where a package is not installed.
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ModuleNotFoundError, match=rf"pip install 'rl_reason\[{extra}\]'"):
    MetricWriter(
        tmp_path / "run",
        **({"tensorboard": True} if extra == "tensorboard" else {"wandb": {"project": "p"}}))
  assert not (tmp_path / "run").exists()


def test_tracker_with_a_broken_dependency_shows_its_own_error(tmp_path, monkeypatch):
  def import_module(name):
    raise ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf")
  monkeypatch.setattr(importlib, "import_module", import_module)
  with pytest.raises(ModuleNotFoundError, match="^No module named 'google.protobuf'$"):
    MetricWriter(tmp_path, tensorboard=True)


class FakeSummaryWriter:
  """Keeps its scalars in a file, as tensorboardX does, one file per writer."""

  def __init__(self, logdir):
    os.makedirs(logdir, exist_ok=True)
    self.file = open(os.path.join(logdir, f"events.out.tfevents.{len(os.listdir(logdir))}"), "a")

  def add_scalar(self, tag, value, step):
    self.file.write(f"{tag} {step} {value}\n")

  def flush(self):
    self.file.flush()

  def close(self):
    self.file.close()


def test_tensorboard_forgets_what_is_rewound(tmp_path, monkeypatch):
  monkeypatch.setitem(
      sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=FakeSummaryWriter))
  with MetricWriter(tmp_path, tensorboard=True) as writer:
    for step in (1, 2, 3):
      writer.write("rl", step, {"kl": step / 2})
  with MetricWriter(tmp_path, tensorboard=True) as writer:
    writer.rewind(["rl"], "rl", 1)
    writer.write("rl", 2, {"kl": math.nan})
  events = "".join(path.read_text() for path in (tmp_path / "tensorboard").iterdir())
  assert events == "rl/kl 1 0.5\nrl/kl 2 nan\n"


def test_tensorboard_events_are_written(tmp_path):
  pytest.importorskip("tensorboardX")
  with MetricWriter(tmp_path, tensorboard=True) as writer:
    writer.write("rl", 1, {"kl": 0.5})
    writer.rewind(["rl"], "rl", 1)
  [events] = (tmp_path / "tensorboard").iterdir()
  assert b"rl/kl" in events.read_bytes()


def test_resumed_wandb_run_gets_each_line_once(tmp_path, monkeypatch):
  history, inits, axes = {}, [], set()
  class Run:
    def __init__(self):
      self.starting_step = len(history)
    def define_metric(self, name, step_metric):
      axes.add((name, step_metric))
    def log(self, values, step, commit):
      assert step not in history and commit
      history[step] = values
    def finish(self):
      pass
  def init(**arguments):
    inits.append(arguments)
    return Run()
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  with MetricWriter(tmp_path, wandb={"project": "p", "mode": "offline"}) as writer:
    for step in (1, 2, 3):
      writer.write("sft", step, {"loss": step / 2})
  with MetricWriter(tmp_path, wandb={"project": "p", "mode": "offline"}) as writer:
    writer.rewind(["sft", "rl"], "sft", 1)
    for stage, step in (("sft", 2), ("sft", 3), ("rl", 1)):
      writer.write(stage, step, {"loss": step / 2})
  steps = [(values.get("sft/step"), values.get("rl/step")) for _, values in sorted(history.items())]
  assert steps == [(1, None), (2, None), (3, None), (None, 1)]
  assert axes == {("sft/*", "sft/step"), ("rl/*", "rl/step")}
  assert inits[0] == inits[1]
  assert inits[0]["project"] == "p"
  assert inits[0]["resume"] == "allow"
  assert inits[0]["id"]


def test_trackers_are_not_imported_unless_asked_for(tmp_path, monkeypatch):
  real_import = builtins.__import__
  def refuse(name, *args, **kwargs):
    assert name.split(".")[0] not in ("tensorboardX", "wandb")
    return real_import(name, *args, **kwargs)
  monkeypatch.setattr(builtins, "__import__", refuse)
  monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
  with MetricWriter(tmp_path) as writer:
    writer.write("rl", 1, {})
