"""TFDS data sets: what is written comes back, by name, without TensorFlow."""

import json
import pathlib
import pickle
import subprocess
import sys

import pytest

from rl_reason.tasks import prepared
from rl_reason.types import Problem
from tests import ROOT

TRAIN = [
    Problem("What is 1+1? é", "2", "1+1=2", "a", {"type": "sum", "steps": [1, 2]}),
    Problem(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2*3?"}), "6", "",
        "b", {"type": "product"}),
    Problem('["a plain text that looks like JSON"]', "", "", "c", {"type": "sum"}),
]
TEST = [Problem("9-9?", "0", id="d")]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  written = prepared.prepare("my_set", {"train": TRAIN, "test": TEST}, str(folder))
  assert pathlib.Path(written) == folder / "my_set" / "1.0.0"
  return str(folder)


def test_prepared_problems_come_back(data_dir):
  train = prepared.tfds_source("my_set", split="train", data_dir=data_dir)
  assert [train[i] for i in range(len(train))] == TRAIN
  assert prepared.tfds_source("my_set:1.0.0", split="test", data_dir=data_dir)[0] == TEST[0]
  assert pickle.loads(pickle.dumps(train))[1] == TRAIN[1]
  part = prepared.tfds_source("my_set", split="train[2:]", data_dir=data_dir)
  assert len(part) == 1 and part[0] == TRAIN[2]
  with pytest.raises(IndexError):
    part[1]


def test_templates_and_filters_over_features(data_dir):
  source = prepared.tfds_source(
      "my_set", split="train", data_dir=data_dir, prompt="{reference} is:", reference="{solution}",
      id="{id}", reference_pattern=r"=(.*)", max_rows=1)
  assert source[0].prompt == "2 is:"
  assert source[0].reference == "2"
  assert source[0].id == "a"
  assert len(source) == 1
  sums = prepared.tfds_source("my_set", split="train", data_dir=data_dir, where={"type": "sum"})
  assert [sums[i].id for i in range(len(sums))] == ["a", "c"]


@pytest.mark.parametrize("keywords, message", [
    (dict(name="no_such_set"), "knows no data set 'no_such_set'.*Prepare it first"),
    (dict(split="trian"), r"no split 'trian'. Did you mean 'train'\? Its splits: train, test"),
    (dict(prompt="{promt}"), r"has no column 'promt'.*Did you mean 'prompt'\?"),
    (dict(reference="{reference}"), "no effect without `prompt`"),
    (dict(where={"typ": "sum"}), r"row 0 has no column 'typ'.*Did you mean 'type'\?"),
    (dict(max_rows=0), "max_rows must be at least 1"),
])
def test_bad_arguments_say_what_to_change(data_dir, keywords, message):
  with pytest.raises(ValueError, match=message):
    prepared.tfds_source(**{"name": "my_set", "split": "train", "data_dir": data_dir, **keywords})


def test_a_format_without_random_access_is_refused(tmp_path):
  folder = pathlib.Path(prepared.prepare("records", {"train": TEST}, str(tmp_path)))
  info = json.loads((folder / "dataset_info.json").read_text())
  assert info["fileFormat"] == "array_record"
  (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
  with pytest.raises(
      ValueError, match="'records' is stored in a format without random access.*array_record"):
    prepared.tfds_source("records", split="train", data_dir=str(tmp_path))


@pytest.mark.parametrize("name, splits, message", [
    ("my_set", {"train": TEST}, "holds a data set already"),
    ("My-Set", {"train": TEST}, "lower-case letters"),
    ("other", {}, "No splits"),
    ("other", {"train": []}, "split 'train' is empty"),
    ("other", {"train": [Problem("a", "b", id="z", metadata={"x": object()})]},
     r"row 0 \(id 'z'\): its metadata"),
])
def test_what_cannot_be_prepared(data_dir, name, splits, message):
  with pytest.raises(ValueError, match=message):
    prepared.prepare(name, splits, data_dir)


def test_the_command_writes_a_set_that_loads_without_tensorflow(tmp_path):
  rows = tmp_path / "rows.jsonl"
  rows.write_text("".join(json.dumps({"q": f"{i}+{i}?", "a": 2 * i}) + "\n" for i in range(5)))
  arguments = json.dumps({"path": str(rows), "prompt": "{q}", "reference": "{a}"})
  splits = json.dumps({"train": {"rows": ":4"}, "test": {"rows": "4:"}})
  # The flags are parsed in the process that reads the set, so that one start of TFDS serves both.
  code = f"""
import sys
from rl_reason.tasks import prepare
from rl_reason.tasks.registry import load_task
prepare.main(["--name=sums", "--data_dir={tmp_path}", '--args={arguments}', '--splits={splits}'])
task = load_task(
    "tfds", dict(name="sums", data_dir="{tmp_path}"), dict(split="train"), dict(split="test"))
held = task.heldout[0]
print(len(task.train), held.prompt, held.reference, "tensorflow" in sys.modules)
"""
  done = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "train 4 rows, test 1 rows" in done.stdout
  assert done.stdout.splitlines()[-1] == "4 4+4? 8 False"
