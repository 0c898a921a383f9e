"""GGUF files: the model of the directory they were made from, quantised blocks, headers, damage."""

import gguf
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from rl_reason.models import gguf_header, huggingface, pretrained, safetensors_files
from tests.make_reference_values import CASES, read_case, write_directory
from tests.models.test_pretrained import assert_same

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
                 "gemma3_text": "gemma3", "mamba": "mamba"}
GGUF_CASES = ["llama", "llama3_scaling", "mistral", "qwen2", "qwen3", "gemma3_old_keys"]


def as_gguf(name, x, raw):
  """What llama.cpp's converter does to a tensor.

  It puts Llama's rotary pairs side by side, and adds one to Gemma's norms.
  """
  if ARCHITECTURES[raw["model_type"]] == "llama" and ("q_proj" in name or "k_proj" in name):
    heads = raw["num_attention_heads"] if "q_proj" in name else raw["num_key_value_heads"]
    x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
  if raw["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
    x = x + np.float32(1)
  return np.ascontiguousarray(x)


def write_gguf(path, raw, tensors, quantise=lambda name, x: (x, None), also=lambda writer: None):
  """A GGUF file with the names, keys and values of llama.cpp's converter.

  Names come from the gguf library's map.
  """
  arch = ARCHITECTURES[raw["model_type"]]
  architecture = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
  names = gguf.get_tensor_name_map(architecture, raw["num_hidden_layers"])
  w = gguf.GGUFWriter(path, arch)
  w.add_tokenizer_model("gpt2")
  w.add_token_list([f"token {i}" for i in range(raw["vocab_size"])])
  w.add_context_length(raw["max_position_embeddings"])
  w.add_embedding_length(raw["hidden_size"])
  w.add_block_count(raw["num_hidden_layers"])
  w.add_feed_forward_length(raw["intermediate_size"])
  w.add_head_count(raw["num_attention_heads"])
  w.add_head_count_kv(raw["num_key_value_heads"])
  w.add_layer_norm_rms_eps(raw.get("rms_norm_eps", 1e-6))
  rope = {**raw, **(raw.get("rope_scaling") or {}), **raw.get("rope_parameters", {})}
  w.add_rope_freq_base(rope.get("rope_theta", 10000.0))
  if "head_dim" in raw:
    w.add_key_length(raw["head_dim"])
    w.add_value_length(raw["head_dim"])
  if rope.get("rope_type") == "linear":
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(rope["factor"])
  if raw.get("sliding_window") and raw["model_type"] in ("mistral", "gemma3_text"):
    w.add_sliding_window(raw["sliding_window"])
  if raw["model_type"] == "gemma3_text":
    w.add_sliding_window_pattern(raw["sliding_window_pattern"])
    w.add_float32("gemma3.rope.freq_base_swa", raw["rope_local_base_freq"])
  if rope.get("rope_type") == "llama3":
    w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    w.add_tensor("rope_freqs.weight", llama3_divisors(rope))
  for name, x in tensors.items():
    stored, kind = quantise(name, as_gguf(name, x, raw))
    w.add_tensor(names.get_name(name, (".weight", ".bias")), stored, raw_dtype=kind)
  also(w)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()


def llama3_divisors(rope):
  """By the three cases of the Llama 3.1 release, one frequency at a time."""
  divisors = []
  for i in range(0, rope["head_dim"], 2):
    wavelength = 2 * np.pi * rope["rope_theta"] ** (i / rope["head_dim"])
    turns = rope["original_max_position_embeddings"] / wavelength
    if turns > rope["high_freq_factor"]:
      divisors.append(1.0)
    elif turns < rope["low_freq_factor"]:
      divisors.append(rope["factor"])
    else:
      smooth = (turns - rope["low_freq_factor"]) / (
          rope["high_freq_factor"] - rope["low_freq_factor"])
      divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
  return np.array(divisors, np.float32)


@pytest.mark.parametrize("name", GGUF_CASES)
def test_gguf_gives_the_model_of_the_directory(name, tmp_path):
  raw, shapes, _, _ = read_case(name)
  tensors = write_directory(tmp_path, raw, shapes)
  write_gguf(tmp_path / "m.gguf", raw, tensors)
  config, params = pretrained.read_config(tmp_path / "m.gguf"), pretrained.load(tmp_path / "m.gguf")
  want = huggingface._canonical(pretrained.read_config(tmp_path))
  have = huggingface._canonical(config)
  assert have == {
      k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in want.items()}
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), params, pretrained.load(tmp_path))


WIDE = dict(vocab_size=24, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            model_type="llama", tie_word_embeddings=True)


def random_blocks(shape, kind, seed):
  """Bytes of a quantised matrix where gguf has no Python quantiser.

  They are random but for the float16 scales, which are kept finite.
  """
  block, size = gguf.GGML_QUANT_SIZES[kind]
  draw = np.random.RandomState(seed)
  data = draw.randint(0, 256, (shape[0], shape[1] // block, size)).astype(np.uint8)
  # d and dmin come first; Q6_K's d last.
  places = (0, 2) if kind == gguf.GGMLQuantizationType.Q4_K else (size - 2,)
  for place in places:
    scales = draw.uniform(0.001, 0.02, data.shape[:2]).astype(np.float16)
    data[..., place:place + 2] = scales[..., None].view(np.uint8)
  return data.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_quantised_gguf_equals_its_dequantised_blocks(kind, tmp_path):
  config, kind = huggingface.from_json(WIDE), gguf.GGMLQuantizationType[kind]
  draw, tensors, originals = np.random.RandomState(0), {}, {}
  for weight in safetensors_files.layout(config).values():
    tensors[weight.name.format(0)] = draw.standard_normal(weight.stored_shape).astype(np.float32)
  def quantise(name, x):
    if x.ndim == 1:
      originals[name] = x
      return x, None
    if kind.name in ("Q4_K", "Q6_K"):
      stored = random_blocks(x.shape, kind, len(originals))
    else:
      stored = gguf.quants.quantize(x, kind)
    originals[name] = gguf.quants.dequantize(stored, kind)
    return stored, kind
  write_gguf(tmp_path / "m.gguf", WIDE, tensors, quantise)
  params = pretrained.load(tmp_path / "m.gguf")
  layer = {key: x[0] for key, x in params["layers"].items()}
  def original(name):
    return originals[f"model.layers.0.{name}.weight"]
  # Rows [head, j, half] back to [head, half, j], then the columns first.
  def unpermuted(name, heads):
    return original(name).reshape(heads, 32, 2, 256).transpose(3, 0, 2, 1).reshape(256, heads, 64)
  np.testing.assert_array_equal(layer["q"], unpermuted("self_attn.q_proj", 4))
  np.testing.assert_array_equal(layer["k"], unpermuted("self_attn.k_proj", 2))
  np.testing.assert_array_equal(layer["o"], original("self_attn.o_proj").T.reshape(4, 64, 256))
  np.testing.assert_array_equal(layer["down"], original("mlp.down_proj").T)
  np.testing.assert_array_equal(layer["mlp_norm"], original("post_attention_layernorm"))
  np.testing.assert_array_equal(params["embedding"], originals["model.embed_tokens.weight"])
  if kind.name in ("Q4_0", "Q4_1", "Q8_0"):
    error = np.abs(np.asarray(params["embedding"]) - tensors["model.embed_tokens.weight"]).mean()
    assert 0 < error < 0.2  # Quantised indeed, and of the right tensor.


def test_gguf_headers_are_read_as_the_library_reads_them(tmp_path):
  raw, shapes, _, _ = read_case("qwen2")
  write_gguf(tmp_path / "m.gguf", raw, write_directory(tmp_path, raw, shapes))
  metadata, tensors = gguf_header.read_header(tmp_path / "m.gguf")
  theirs = gguf.GGUFReader(tmp_path / "m.gguf")
  assert [(t.name, t.shape[::-1], t.kind, t.offset) for t in tensors] == [
      (t.name, tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset) for t in theirs.tensors]
  for key, field in theirs.fields.items():
    if not key.startswith("GGUF."):
      assert metadata[key] == field.contents()


def test_sharded_gguf(tmp_path):
  raw, shapes, _, _ = read_case("llama")
  write_gguf(tmp_path / "m.gguf", raw, write_directory(tmp_path, raw, shapes))
  whole = pretrained.load(tmp_path / "m.gguf")
  mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  shardings = jax.tree.map(
      lambda x: NamedSharding(mesh, PartitionSpec(*(None,) * (x.ndim - 1), "tensor")), whole)
  assert_same(pretrained.load(tmp_path / "m.gguf", shardings=shardings), whole)


@pytest.mark.parametrize("keep, message", [
    (-50, r"m\.gguf is cut short: \S+ ends at byte"),
    (3000, "is cut short: its header"),
    (2, "does not start with"),
])
def test_truncated_gguf(keep, message, tmp_path):
  raw, shapes, _, _ = read_case("llama")
  write_gguf(tmp_path / "m.gguf", raw, write_directory(tmp_path, raw, shapes))
  (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:keep])
  with pytest.raises(ValueError, match=message):
    pretrained.load(tmp_path / "m.gguf")


def test_gguf_tensors_that_do_not_fit_are_named(tmp_path):
  raw, shapes, _, _ = read_case("llama")
  tensors, path = write_directory(tmp_path, raw, shapes), tmp_path / "m.gguf"
  norm = tensors.pop("model.norm.weight")
  write_gguf(path, raw, tensors)
  with pytest.raises(ValueError, match=r"m\.gguf lacks output_norm\.weight in .*m\.gguf"):
    pretrained.load(path)
  write_gguf(path, raw, {**tensors, "model.norm.weight": norm[:-1]})
  with pytest.raises(
      ValueError, match=r"output_norm\.weight in .*m\.gguf has shape \(31,\), .* wants \(32,\)"):
    pretrained.load(path)
  write_gguf(path, raw, {**tensors, "model.norm.weight": norm},
             also=lambda w: w.add_tensor("blk.0.ffn_sub_norm.weight", norm))
  with pytest.raises(ValueError, match=r"no place for: blk\.0\.ffn_sub_norm\.weight in .*m\.gguf"):
    pretrained.load(path)

  def quantise(name, x):
    if "embed" in name:
      return np.zeros((24, 66), np.uint8), gguf.GGMLQuantizationType.IQ2_XXS
    return x, None
  weights = safetensors_files.layout(huggingface.from_json(WIDE)).values()
  tensors = {w.name.format(0): np.zeros(w.stored_shape, np.float32) for w in weights}
  write_gguf(path, WIDE, tensors, quantise)
  with pytest.raises(
      ValueError, match=r"token_embd\.weight in .*m\.gguf is quantised as IQ2_XXS.*Q4_K"):
    pretrained.load(path)


@pytest.mark.parametrize("case, change, also, message", [
    ("llama3_scaling",
     dict(rope_scaling=dict(CASES["llama3_scaling"]["rope_scaling"], low_freq_factor=1.5)), None,
     r"rope_freqs\.weight holds rotary divisors .* to 8 that are not Llama 3's"),
    ("llama", {}, lambda w: w.add_expert_count(8),
     "llama.expert_count=8 asks for a mixture of experts"),
    ("llama", {}, lambda w: w.add_causal_attention(False), "attention.causal=False"),
    ("llama", {}, lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
     "rope scaling 'yarn' is not supported"),
    ("llama", {}, lambda w: w.add_rope_dimension_count(4),
     "rope.dimension_count=4 differs from the 8 features"),
    ("llama", {}, lambda w: w.add_uint16("split.count", 3), "one of 3 parts"),
    ("qwen2", {}, lambda w: w.add_sliding_window(7), "qwen2.attention.sliding_window=7"),
    ("llama", dict(num_key_value_heads=[1, 2]), None, r"attention\.head_count_kv is \[1, 2\]"),
    ("llama", dict(model_type="mamba"), None,
     "general.architecture 'mamba' is not supported. Supported: llama, qwen2, qwen3, gemma3"),
])
def test_gguf_models_that_the_decoder_is_not_are_refused(case, change, also, message, tmp_path):
  raw = CASES[case]
  path = tmp_path / "m.gguf"
  # The configuration is read from little else.
  tensors = {"model.embed_tokens.weight": np.zeros((96, 32), np.float32)}
  write_gguf(path, {**raw, **change}, tensors, also=also or (lambda w: None))
  with pytest.raises(ValueError, match=message) as error:
    pretrained.read_config(path)
  assert str(path) in str(error.value)
