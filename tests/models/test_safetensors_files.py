"""Damaged safetensors files and indices are refused by name, and none gives wrong weights."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl_reason.models import safetensors_files

NAMES = ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def file(tmp_path):
  """A safetensors file with three tensors of different sizes."""
  save_file({name: np.full((2 + i, 3), i, np.float32) for i, name in enumerate(NAMES)},
            tmp_path / "model.safetensors")
  return tmp_path / "model.safetensors"


def parts(file):
  """Returns the header of a file, as an object, and its arrays, as bytes."""
  raw = file.read_bytes()
  end = 8 + int.from_bytes(raw[:8], "little")
  return json.loads(raw[8:end]), raw[end:]


def write(file, header, arrays, length=None):
  """Writes a file with any header, text or object, and any length said to be its."""
  text = header if isinstance(header, bytes) else (
      header if isinstance(header, str) else json.dumps(header)).encode()
  file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + arrays)


def refused(file):
  """Returns the message with which a file is refused: it names the file, and says the cure."""
  with pytest.raises(ValueError, match=re.escape(str(file))) as error:
    safetensors_files.Directory(file.parent)
  assert "Download it again" in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("field, value", [
    ("data_offsets", [-24, 0]), ("data_offsets", [24, 0]), ("data_offsets", [0, 20]),
    ("data_offsets", [4, 28]), ("data_offsets", [0, 2 ** 62]), ("data_offsets", [0]),
    ("data_offsets", [0, 24, 24]), ("data_offsets", "ab"), ("data_offsets", [float("nan"), 24]),
    ("data_offsets", [0.0, 24.0]), ("data_offsets", None), ("shape", [2, 4]), ("shape", [-2, -3]),
    ("shape", [2 ** 40, 2 ** 40]), ("shape", "23"), ("shape", None), ("dtype", "F64"),
    ("dtype", "F99"), ("dtype", 7), ("dtype", None)])
def test_an_entry_that_does_not_describe_its_array_is_refused(field, value, file):
  header, arrays = parts(file)
  header[NAMES[0]][field] = value
  write(file, header, arrays)
  refused(file)


@pytest.mark.parametrize("header", [
    "[]", "1", "null", "{", '{"a": 1}', '{"a": []}', '{"a": {}}', '{"__metadata__": []}', "{}",
    '{"a":' * 5000, "[" * 5000, b"\xff\xfe", "x" * 50, '{"a": {"dtype": 9' + "9" * 5000 + "}}"])
def test_what_is_no_header_is_refused(header, file):
  write(file, header, parts(file)[1])
  refused(file)


@pytest.mark.parametrize("length", [0, 5, 2 ** 31, 2 ** 63, 2 ** 64 - 1])
def test_a_wrong_length_of_the_header_is_refused(length, file):
  header, arrays = parts(file)
  write(file, header, arrays, length)
  refused(file)


@pytest.mark.parametrize("change", [
    lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: raw[:7], lambda raw: b"",
    lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])
def test_missing_and_additional_bytes_are_refused(change, file):
  file.write_bytes(change(file.read_bytes()))
  refused(file)


def test_two_tensors_on_the_same_bytes_are_refused(file):
  header, arrays = parts(file)
  header[NAMES[1]]["data_offsets"] = header[NAMES[0]]["data_offsets"]
  header[NAMES[1]]["shape"] = header[NAMES[0]]["shape"]
  write(file, header, arrays)
  refused(file)


def test_seeded_damage_to_headers_is_refused_or_changes_no_weight(file, trials):
  original = file.read_bytes()
  end = 8 + int.from_bytes(original[:8], "little")
  values = {name: np.full((2 + i, 3), i, np.float32) for i, name in enumerate(NAMES)}
  refusals = []
  for draw in trials(300):
    raw = bytearray(original)
    for _ in range(draw.randint(1, 3)):  # Flipped bits, overwritten and removed bytes.
      place = draw.randrange(min(end, len(raw)))
      raw[place] = draw.choice((raw[place] ^ (1 << draw.randrange(8)), draw.randrange(256)))
      if draw.random() < 0.2:
        del raw[place:place + draw.randint(1, 9)]
    file.write_bytes(raw)
    with draw.refusal(raw, names=str(file)) as refused:
      read = safetensors_files.Directory(file.parent)
      # What still reads under a right name has the right shape and type, and so the right bytes.
      for name in values.keys() & read.shapes.keys():
        if read.shapes[name] == values[name].shape and read._tensors[name].dtype == "F32":
          np.testing.assert_array_equal(read.read(name, slice(None)), values[name])
    refusals.append(bool(refused))
  assert sum(refusals) > 2 / 3 * len(refusals)


@pytest.mark.parametrize("name", [
    "../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x.safetensors",
    "C:x.safetensors", "config.json", "", ".", "..", 7, None, ["a"], "a\0.safetensors"])
def test_an_index_leads_to_no_file_elsewhere(name, file):
  (file.parent.parent / "outside.safetensors").write_bytes(file.read_bytes())
  index = file.parent / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {NAMES[0]: name}}))
  with pytest.raises(ValueError, match="index.json says that model.norm.weight is in .*beside it"):
    safetensors_files.Directory(file.parent)


@pytest.mark.parametrize("index", [
    "[]", "{}", "{", '{"weight_map": []}', '{"weight_map": {}}', "\x00", "[" * 3000])
def test_what_is_no_index_is_refused_by_name(index, file):
  (file.parent / "model.safetensors.index.json").write_text(index)
  with pytest.raises(ValueError, match="model.safetensors.index.json.*again"):
    safetensors_files.Directory(file.parent)


def test_an_index_of_another_download_is_refused(file):
  index = file.parent / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"model.layers.0.x": "model.safetensors"}}))
  with pytest.raises(ValueError, match="says that model.layers.0.x is in .*, and it is not"):
    safetensors_files.Directory(file.parent)


def test_a_tensor_in_two_files_is_refused(file):
  save_file({NAMES[0]: np.ones((2, 3), np.float32), "x": np.ones(1, np.float32)},
            file.parent / "other.safetensors")
  (file.parent / "model.safetensors.index.json").write_text(json.dumps(
      {"weight_map": {NAMES[0]: "model.safetensors", "x": "other.safetensors"}}))
  with pytest.raises(ValueError, match="are both the model's model.norm.weight"):
    safetensors_files.Directory(file.parent)
