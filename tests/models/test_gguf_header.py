"""Damaged GGUF headers are refused by name, and what is read lies where the file says."""

import re
import struct

import gguf
import numpy as np
import pytest

from rl_reason.models import gguf_files, tokenizer
from rl_reason.models.gguf_header import read_header

TYPES = gguf.GGUFValueType


def text(value):
  return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key, kind, value):
  """A pair of the metadata; the value is packed already."""
  return text(key) + struct.pack("<I", kind) + value


def tensor(name, shape, offset, kind=0):
  return (text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
          + struct.pack("<IQ", kind, offset))


def write(path, pairs=(), tensors=(), *, data=bytes(4096), counts=None, alignment=32, version=3):
  """A GGUF file of packed parts, which need not fit together."""
  numbers = counts or (len(tensors), len(pairs))
  header = b"GGUF" + struct.pack("<IQQ", version, *numbers) + b"".join([*pairs, *tensors])
  path.write_bytes(header + bytes(-len(header) % alignment) + data)
  return path


@pytest.fixture
def path(tmp_path):
  return tmp_path / "m.gguf"


def refused(path):
  """Returns the message with which a file is refused: it names the file, and says the cure."""
  with pytest.raises(ValueError, match=re.escape(str(path))) as error:
    read_header(path)
  assert "Download it again" in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("kind, value", [
    (TYPES.UINT32, struct.pack("<I", 0)), (TYPES.UINT32, struct.pack("<I", 33)),
    (TYPES.INT32, struct.pack("<i", -32)), (TYPES.FLOAT32, struct.pack("<f", 32.0)),
    (TYPES.BOOL, b"\1"), (TYPES.STRING, text("32")),
    (TYPES.ARRAY, struct.pack("<IQI", TYPES.UINT32, 1, 32))])
def test_an_alignment_that_is_no_power_of_two_is_refused(kind, value, path):
  assert "general.alignment" in refused(write(path, [pair("general.alignment", kind, value)]))


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_tensors_begin_at_multiples_of_the_alignment(alignment, path):
  write(path, [pair("general.alignment", TYPES.UINT32, struct.pack("<I", alignment))],
        [tensor("a", (1,), 0)], alignment=alignment)
  _, (only,) = read_header(path)
  assert only.offset == path.stat().st_size - 4096


@pytest.mark.parametrize("value", [
    struct.pack("<IQ", TYPES.ARRAY, 1) + struct.pack("<IQI", TYPES.UINT32, 1, 7),
    struct.pack("<IQ", TYPES.ARRAY, 0), struct.pack("<IQ", TYPES.ARRAY, 1) * 5000])
def test_lists_of_lists_are_refused(value, path):
  assert "k is a list of lists" in refused(write(path, [pair("k", TYPES.ARRAY, value)]))


@pytest.mark.parametrize("pairs", [
    [pair("k", 99, b"")], [pair("k", TYPES.ARRAY, struct.pack("<IQ", 99, 1))],
    [pair("k", TYPES.ARRAY, struct.pack("<IQ", TYPES.UINT64, 2 ** 63))],
    [pair("k", TYPES.ARRAY, struct.pack("<IQ", TYPES.STRING, 2 ** 64 - 1))],
    [pair("k", TYPES.STRING, struct.pack("<Q", 2 ** 64 - 1))],
    [pair("k", TYPES.STRING, struct.pack("<Q", 1) + b"\xff")],
    [pair("k", TYPES.UINT8, b"\1")] * 2])
def test_values_that_cannot_be_are_refused(pairs, path):
  refused(write(path, pairs))


@pytest.mark.parametrize("counts", [(2 ** 64 - 1, 0), (0, 2 ** 64 - 1), (3, 0)])
def test_counts_of_more_than_there_is_are_refused(counts, path):
  refused(write(path, counts=counts, data=b""))


@pytest.mark.parametrize("tensors", [
    [tensor("a", (8,), 32)], [tensor("a", (8,), 4)], [tensor("a", (8,), 2 ** 63)],
    [tensor("a", (8,), 0), tensor("b", (8,), 0)], [tensor("a", (16,), 0), tensor("b", (8,), 32)],
    [tensor("a", (8,), 0), tensor("b", (8,), 64)], [tensor("a", (8,), 0), tensor("a", (8,), 32)],
    [tensor("a", (0,), 0)], [tensor("a", (2 ** 40, 2 ** 40), 0)], [tensor("a", (), 0)],
    [tensor("a", (1,) * 5, 0)], [tensor("a", (8,), 0, kind=gguf.GGMLQuantizationType.Q4_0)],
    [tensor("a", (10_000,), 0)]])
def test_tensors_that_do_not_follow_one_another_are_refused(tensors, path):
  refused(write(path, tensors=tensors))


@pytest.mark.parametrize("version", [0, 1, 4, 2 ** 32 - 1])
def test_other_versions_are_refused(version, path):
  assert f"GGUF version {version}" in refused(write(path, version=version))


def model(path, **changes):
  """A small Llama, with some of its metadata changed; None leaves a key out."""
  values = {
      "general.architecture": "llama", "llama.embedding_length": 32, "llama.block_count": 1,
      "llama.attention.head_count": 2, "llama.feed_forward_length": 64,
      "llama.context_length": 64, "llama.attention.layer_norm_rms_epsilon": 1e-6,
      "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
      "tokenizer.ggml.tokens": ["a", "b", "ab", "<eos>"], "tokenizer.ggml.merges": ["a b"],
      "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.eos_token_id": 3, **changes}
  writer = gguf.GGUFWriter(path, "llama")
  for key, value in values.items():
    if key == "general.architecture" and value == "llama" or value is None:
      continue
    kind = TYPES.get_type(value) if not isinstance(value, (list, bool)) else (
        TYPES.BOOL if isinstance(value, bool) else TYPES.ARRAY)
    writer.add_key_value(key, value, kind)
  writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("key, value", [
    (key, value)
    for key in (
        "embedding_length", "block_count", "attention.head_count", "attention.head_count_kv",
        "attention.key_length", "feed_forward_length", "context_length",
        "attention.sliding_window", "attention.layer_norm_rms_epsilon", "rope.freq_base")
    for value in (0, -1, "abc", [1, 2], True, float("nan"), float("inf"))
    if (key, value) != ("attention.sliding_window", 0)])  # Which means that there is no window.
def test_metadata_of_another_kind_is_named(key, value, path):
  model(path, **{f"llama.{key}": value})
  with pytest.raises(ValueError, match=re.escape(f"{path}: llama.{key} is ")):
    gguf_files.File(path).config()


@pytest.mark.parametrize("key, value", [
    ("model", 7), ("tokens", [1, 2]), ("tokens", "abc"), ("merges", ["ab"]), ("merges", ["x y"]),
    ("merges", [1]), ("token_type", [1]), ("token_type", ["a"] * 4), ("eos_token_id", -1),
    ("eos_token_id", "x"), ("eos_token_id", 99), ("eos_token_id", [3]), ("add_bos_token", 7),
    ("scores", [1.0]), ("pre", 3)])
def test_a_tokenizer_of_another_kind_is_named(key, value, path):
  model(path, **{f"tokenizer.ggml.{key}": value})
  with pytest.raises(ValueError, match=re.escape(str(path))):
    tokenizer.load(path)


def test_the_undamaged_model_is_read(path):
  model(path)
  assert gguf_files.File(path).config().num_heads == 2
  assert tokenizer.load(path).encode("ab") == [2]


def test_seeded_damage_to_headers_ends_in_no_traceback(path, trials):
  original = model(path).read_bytes()
  end = len(original) - 8 * 32 * 4
  for draw in trials(300):
    raw = bytearray(original)
    for _ in range(draw.randint(1, 3)):
      raw[draw.randrange(end)] = draw.randrange(256)
    path.write_bytes(raw[:draw.randrange(len(raw))] if draw.random() < 0.2 else raw)
    for read in (lambda: gguf_files.File(path).config(), lambda: tokenizer.load(path)):
      with draw.refusal(path.read_bytes()[:end], names=str(path)):
        read()
