"""What a run is: its config on the disk, its history, and what the command line makes of them."""

import json

from absl import flags
import ml_collections
import pytest

from rl_reason.config.overrides import override
from rl_reason.run import config as config_lib
from rl_reason.run import record
from rl_reason.run.record import Record
from rl_reason.run.workdir import Workdir

QUICKSTART = "experiments/quickstart.py:tiny"
ORDER = ["sft", "rl"]


@pytest.fixture(scope="module")
def config():
  return config_lib.load(QUICKSTART)


def begin(folder, config, overridden=()):
  """Makes a folder that of a run that has logged its first line."""
  Workdir(folder).claim(config, pytest.fail, overridden)
  (folder / "metrics.jsonl").write_text('{"stage": "sft", "step": 1, "loss": 2.0}\n')


def parsed(folder, *arguments, note=pytest.fail):
  """Returns the config of a command line with this --workdir."""
  names = set(flags.FLAGS)
  try:
    flag, rest = config_lib.define_flag(["train", *arguments, f"--workdir={folder}"], note)
    flags.FLAGS([word for word in rest if "workdir" not in word])
    return flag.value
  finally:
    for name in set(flags.FLAGS) - names:
      delattr(flags.FLAGS, name)


def changed(config, **fields):
  return override(
      config.copy_and_resolve_references(), {k.replace("__", "."): v for k, v in fields.items()})


def test_a_record_is_read_as_it_was_written(tmp_path):
  written = Record({"stages": ["rl"]}, ["rl.x"], [
      {"stage": "rl", "step": 3, "time": "", "fields": {"rl.y": {"was": 1, "is": 2}}}])
  written.write(tmp_path)
  assert record.read(tmp_path) == written
  assert record.read(tmp_path / "none") is None


def test_a_change_begins_at_a_step():
  found = Record({"a": 1}).changed({"a": 2}, {"a": (1, 2)}, "rl", 40, ORDER, ["a"])
  [change] = found.changes
  assert (change["stage"], change["step"]) == ("rl", 40)
  assert change["fields"] == {"a": {"was": 1, "is": 2}}
  assert found.config == {"a": 2}
  assert found.overridden == ["a"]


def steps(found):
  return [
      (c["stage"], c["step"], {k: (v["was"], v["is"]) for k, v in c["fields"].items()})
      for c in found.changes]


def test_changes_whose_steps_are_made_again_begin_where_the_run_goes_on():
  found = Record({}).changed({}, {"a": (1, 2)}, "sft", 5, ORDER)
  found = found.changed({}, {"b": (1, 2)}, "rl", 20, ORDER)
  # The checkpoint of step 20 was damaged: the run goes on from 10, and changes b once more.
  found = found.changed({}, {"b": (2, 3), "c": (0, 1)}, "rl", 10, ORDER)
  assert steps(found) == [("sft", 5, {"a": (1, 2)}), ("rl", 10, {"b": (1, 3), "c": (0, 1)})]


def test_a_change_that_is_taken_back_before_its_first_checkpoint_leaves_no_trace():
  found = Record({}).changed({}, {"a": (1, 2)}, "rl", 10, ORDER).changed(
      {}, {"a": (2, 1)}, "rl", 10, ORDER)
  assert steps(found) == []


def test_a_change_that_was_cut_short_by_a_kill_is_dropped(tmp_path):
  # The history is written first: killed there, config.json still has the old value.
  first = Record({"stages": ["rl"], "rl": {"a.b": 1}})
  first.write(tmp_path)
  second = first.changed({"stages": ["rl"], "rl": {"a.b": 2}}, {"rl.a.b": (1, 2)}, "rl", 4, ["rl"])
  record.write_json(tmp_path / record.HISTORY, {"overridden": [], "changes": second.changes})
  assert record.read(tmp_path).changes == []
  second.write(tmp_path)
  assert steps(record.read(tmp_path)) == [("rl", 4, {"rl.a.b": (1, 2)})]


DAMAGED = {
    "empty": "", "half": '{"stages": ["rl"], "rl": {', "list": "[1]", "number": "3", "null": "null",
    "no_stages": "{}", "bytes": b"\xff\xfe\x00", "deep": "[" * 100_000}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_named(tmp_path, config, content):
  begin(tmp_path, config)
  content = content if isinstance(content, bytes) else content.encode()
  (tmp_path / "config.json").write_bytes(content)
  for reader in (lambda: record.read(tmp_path), lambda: parsed(tmp_path),
                 lambda: parsed(tmp_path, f"--config={QUICKSTART}"),
                 lambda: Workdir(tmp_path).claim(config, pytest.fail)):
    with pytest.raises(
        ValueError,
        match="config.json cannot be read as the record of a run .*Nothing was touched"):
      reader()
  assert (tmp_path / "config.json").read_bytes() == content


def test_a_damaged_history_is_named(tmp_path, config):
  begin(tmp_path, config)
  (tmp_path / "history.json").write_text("[")
  with pytest.raises(ValueError, match="history.json cannot be read .*delete it"):
    record.read(tmp_path)


def test_the_workdir_alone_gives_the_recorded_config(tmp_path, config):
  first = changed(config, rl__num_steps=7, policy__args__width=16)
  begin(tmp_path, first)
  assert config_lib.as_json(parsed(tmp_path)) == config_lib.as_json(first)
  assert config_lib.check(parsed(tmp_path)) == config_lib.check(first)


def test_fields_of_the_command_line_change_the_recorded_config(tmp_path, config):
  begin(tmp_path, changed(config, rl__num_steps=7))
  found = parsed(
      tmp_path, "--config.rl.learner.optimizer.learning_rate=0.5", "--config.stages=('rl',)")
  assert found.rl.num_steps == 7
  assert found.rl.learner.optimizer.learning_rate == 0.5
  assert found.stages == ("rl",)


def test_a_call_without_an_earlier_override_goes_on_with_its_value(tmp_path, config):
  begin(tmp_path, changed(config, seed=3, rl__num_steps=7), ["seed", "rl.num_steps"])
  found = parsed(tmp_path, f"--config={QUICKSTART}")
  assert found.seed == 3
  assert found.rl.num_steps == 7


def test_a_file_that_was_edited_is_reported_and_the_record_counts(tmp_path, config):
  begin(tmp_path, changed(config, rl__num_steps=7))
  notes = []
  assert parsed(tmp_path, f"--config={QUICKSTART}", note=notes.append).rl.num_steps == 7
  [note] = notes
  assert f"rl.num_steps ({config.rl.num_steps}, recorded 7)" in note


def test_another_runs_file_is_refused(tmp_path, config):
  begin(tmp_path, changed(config, policy__args__width=64))
  with pytest.raises(
      ValueError, match="belongs to another run: policy.args.width was 64 and is 32"):
    parsed(tmp_path, f"--config={QUICKSTART}")


def test_before_anything_is_trained_the_file_counts(tmp_path, config):
  Workdir(tmp_path).claim(changed(config, seed=3, rl__num_steps=7), pytest.fail)
  found = parsed(tmp_path, f"--config={QUICKSTART}")
  assert found.seed == 0
  assert found.rl.num_steps == config.rl.num_steps
  # Without a file, what the first call wanted is all there is.
  assert parsed(tmp_path).seed == 3


def test_without_file_and_run_the_command_asks_for_one(tmp_path):
  with pytest.raises(ValueError, match="Say what to run: --config=.*or --workdir=DIR alone"):
    parsed(tmp_path / "none")


@pytest.mark.parametrize("workdir, message", [
    ("", "--workdir is empty"), (" ", "--workdir is empty"),
    ("http://host/x", "--workdir=http://host/x is a URL of an unknown kind"),
    ("gs:/bucket/x", "gs:/bucket/x is no URL of a bucket: write gs://bucket/folder"),
    ("gs://", "no URL of a bucket")])
def test_a_workdir_that_is_no_folder_is_refused(workdir, message):
  with pytest.raises(ValueError, match=message):
    parsed(workdir, f"--config={QUICKSTART}")


def test_values_that_the_file_makes_stay_where_they_are_as_recorded():
  mine = ml_collections.ConfigDict({"f": record.in_words, "t": (1, 2), "gone": 1, "s": {"a": 1}})
  record.set_values(
      mine,
      {"f": "function in_words", "t": [1, 3], "s": {"a": 1.5, "new": [[1], "x"]}, "d": {"k": 1}})
  assert mine.f is record.in_words
  assert mine.to_dict() | {"f": 0} == {
      "f": 0, "t": (1, 3), "s": {"a": 1.5, "new": ((1,), "x")}, "d": {"k": 1}}


def test_a_field_that_is_new_since_the_run_began_is_no_change(tmp_path, config):
  begin(tmp_path, config)
  saved = json.loads((tmp_path / "config.json").read_text())
  del saved["rl"]["learner"]["remat"], saved["prefill_tokens"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  assert Workdir(tmp_path).claim(config, pytest.fail).changes == {}
