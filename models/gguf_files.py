"""Reads weights in GGUF files (llama.cpp) as Hugging Face checkpoints name, shape and value them.

What llama.cpp's converter changes is undone here:

- names;
- the rows of Llama's query and key matrices, which it reorders for a rotary embedding of
  neighbouring pairs;
- Gemma's norm weights, to which it adds one;
- Llama 3's rotary scaling, which it stores as a table of divisors.
"""

from collections.abc import Mapping
import dataclasses
import math
import mmap
from pathlib import Path
import re
import struct
from typing import Any

import gguf
import numpy as np

from rl_reason.models.attention import rope_frequencies
from rl_reason.models.config import ModelConfig, RopeScaling

# Architecture in GGUF -> ModelConfig.family.
SUPPORTED = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
# Types of tensors that can be read: plain numbers, and blocks of quantised ones.
_TYPES = frozenset(gguf.GGMLQuantizationType[name] for name in (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K"))
# Stems of tensor names, GGUF -> Hugging Face: outside of layers, in layers, and norms in layers.
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Whether the model has norms after its blocks (Gemma) -> stems of the middle norms: they have one
# meaning without such norms and another with them.
_NORMS = {
    False: {"ffn_norm": "post_attention_layernorm"},
    True: {"ffn_norm": "pre_feedforward_layernorm",
           "post_attention_norm": "post_attention_layernorm",
           "post_ffw_norm": "post_feedforward_layernorm"},
}
# Key after the architecture -> (value that changes nothing, what another value asks for).
_REFUSED = {
    "expert_count": (0, "a mixture of experts"),
    "attention.causal": (True, "attention to later tokens"),
    "use_parallel_residual": (False, "parallel residual branches"),
    "logit_scale": (1.0, "scaled logits"),
    "residual_scale": (1.0, "scaled residual branches"),
    "embedding_scale": (1.0, "scaled embeddings"),
}
# Codes of the metadata's scalar types for `struct`; numbers are little-endian.
_SCALARS = {
    gguf.GGUFValueType.UINT8: "B", gguf.GGUFValueType.INT8: "b", gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h", gguf.GGUFValueType.UINT32: "I", gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f", gguf.GGUFValueType.BOOL: "?", gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q", gguf.GGUFValueType.FLOAT64: "d",
}


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Says where a tensor lies in the file."""
  name: str  # As the file spells it.
  kind: int  # A gguf.GGMLQuantizationType, or a number that the library does not know.
  shape: tuple[int, ...]  # Slowest axis first; the file lists them the other way round.
  offset: int  # From the start of the file, in bytes.


def read_header(path: Path) -> tuple[dict[str, Any], list[_Tensor]]:
  """Reads (metadata, tensors) of a GGUF file.

  gguf.GGUFReader would do it, but makes NumPy views of every token of the vocabulary: 4.8 s for 49
  thousand tokens, where this takes 0.2 s.

  Raises: ValueError where the file is no GGUF file, damaged or cut short.
  """
  with path.open("rb") as f:
    if f.read(4) != b"GGUF":
      raise ValueError(
          f"{path} does not start with the letters GGUF: it is no GGUF file, or a damaged one.")
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  # Readers of the format's parts. Each reads at `place` and moves it on.
  place = 8
  version = int.from_bytes(data[4:8], "little")
  if version not in (2, 3):
    raise ValueError(f"{path} is GGUF version {version}; readable are 2 and 3, little-endian.")

  def take(code: str) -> Any:
    nonlocal place
    value, = struct.unpack_from("<" + code, data, place)
    place += struct.calcsize("<" + code)
    return value

  def text() -> str:
    nonlocal place
    length = take("Q")
    value = data[place:place + length]
    if len(value) < length:  # A slice past the end is short and no error, so it is made one.
      raise struct.error("text")
    place += length
    return value.decode("utf-8")

  def value(kind: int) -> Any:
    nonlocal place
    kind = gguf.GGUFValueType(kind)
    if kind == gguf.GGUFValueType.STRING:
      return text()
    if kind != gguf.GGUFValueType.ARRAY:
      return take(_SCALARS[kind])
    inner, count = gguf.GGUFValueType(take("I")), take("Q")
    if inner == gguf.GGUFValueType.STRING:
      return [text() for _ in range(count)]
    if inner == gguf.GGUFValueType.ARRAY:
      return [value(inner) for _ in range(count)]
    # An array of scalars is unpacked by one call: vocabularies have scores and types by the
    # thousand.
    values = struct.unpack_from(f"<{count}{_SCALARS[inner]}", data, place)
    place += struct.calcsize(f"<{count}{_SCALARS[inner]}")
    return list(values)

  # The header: two counts, the metadata, and where each tensor lies.
  try:
    tensors, pairs = take("Q"), take("Q")
    metadata = {}
    for _ in range(pairs):
      key = text()
      metadata[key] = value(take("I"))
    entries = []
    for _ in range(tensors):
      name = text()
      shape = tuple(reversed([take("Q") for _ in range(take("I"))]))
      entries.append((name, shape, take("I"), take("Q")))
  except struct.error as error:
    raise ValueError(
        f"{path} is cut short: its header runs past the file's {len(data)} bytes. Download it"
        " again.") from error
  except ValueError as error:
    raise ValueError(f"{path} has a damaged header ({error}). Download it again.") from error

  # Tensors start at the next multiple of the alignment. Their offsets count from there.
  alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
  start, size = -(-place // alignment) * alignment, len(data)
  data.close()
  found = [_Tensor(name, kind, shape, start + offset) for name, shape, kind, offset in entries]
  # A download that broke off is found now and not in the middle of loading.
  for t in found:
    if t.kind in gguf.GGML_QUANT_SIZES:  # Other kinds are refused by name when they are wanted.
      block, bytes_per_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(t.kind)]
      end = t.offset + math.prod(t.shape) // block * bytes_per_block
      if end > size:
        raise ValueError(
            f"{path} is cut short: {t.name} ends at byte {end} of {size}. Download it again.")
  return metadata, found


def _gguf_names(name: str, gemma: bool) -> list[str]:
  """Returns what GGUF calls a Hugging Face tensor.

  The list has one name, or none for a tensor that no model here has.
  """
  match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
  layer, stem, kind = match.groups() if match else (None, name, None)
  known = _NAMES if layer is None else {**_LAYER_NAMES, **_NORMS[gemma]}
  prefix = "" if layer is None else f"blk.{layer}."
  return [f"{prefix}{short}.{kind}" for short, long in known.items() if long == stem]


class File:
  """Reads a GGUF file: the header at once, with checks, and values when they are asked for.

  Values are dequantised. The methods are those of pretrained.WeightFiles.

  path: the file.
  metadata: all of it, by key.
  architecture: a key of SUPPORTED.
  """

  def __init__(self, path: str | Path):
    """Opens a file. Raises: ValueError where it is damaged, of another architecture or a part."""
    self.path = Path(path)
    self.metadata, tensors = read_header(self.path)
    self.architecture = self.metadata.get("general.architecture")
    if self.architecture not in SUPPORTED:
      raise ValueError(
          f"{self.path}: general.architecture {self.architecture!r} is not supported. Supported:"
          f" {', '.join(SUPPORTED)}.")
    if self.metadata.get("split.count", 1) > 1:
      raise ValueError(
          f"{self.path} is one of {self.metadata['split.count']} parts: join them first with"
          " llama.cpp's `llama-gguf-split --merge`.")
    self._gemma = self.architecture == "gemma3"
    self._tensors = {self._huggingface_name(t.name): t for t in tensors}

  def _huggingface_name(self, name: str) -> str:
    """Returns the Hugging Face name of a tensor; the name as it is where none is known."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
      return name
    layer, stem, kind = match.groups()
    known = _NAMES if layer is None else {**_LAYER_NAMES, **_NORMS[self._gemma]}
    if stem not in known:
      return name
    return (f"{known[stem]}.{kind}" if layer is None
            else f"model.layers.{layer}.{known[stem]}.{kind}")

  def _get(self, key: str, default: Any = None) -> Any:
    """Returns a value of the architecture's metadata; of a list of equal values, the value."""
    value = self.metadata.get(f"{self.architecture}.{key}", default)
    if isinstance(value, list) and len(set(value)) == 1:  # Per layer, and the same in all layers.
      return value[0]
    return value

  def _need(self, key: str, default: Any = None) -> Any:
    """Returns a value that is one number. Raises: ValueError where it is missing or a list."""
    value = self._get(key, default)
    if value is None or isinstance(value, list):
      raise ValueError(
          f"{self.path}: {self.architecture}.{key} is {value!r}; one number is needed.")
    return value

  def config(self) -> ModelConfig:
    """Reads the ModelConfig out of the file's metadata.

    Some constants of Gemma 3 are not in GGUF files; they are those of llama.cpp.

    Raises: ValueError for what the decoder does not have, or where metadata is missing.
    """
    # Refuse what would otherwise be ignored.
    for key, (harmless, meaning) in _REFUSED.items():
      if self._get(key, harmless) != harmless:
        raise ValueError(
            f"{self.path}: {self.architecture}.{key}={self._get(key)!r} asks for {meaning}, which"
            " the decoder does not have.")
    # Sizes.
    gemma, names = self._gemma, self._tensors
    width, heads, layers = (
        self._need(k) for k in ("embedding_length", "attention.head_count", "block_count"))
    head_dim = self._get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
      if self._get(key, head_dim) != head_dim:
        raise ValueError(
            f"{self.path}: {self.architecture}.{key}={self._get(key)} differs from the"
            f" {head_dim} features of a head, which is not supported.")
    if "model.embed_tokens.weight" not in names:
      raise ValueError(
          f"{self.path} has no tensor token_embd.weight, which gives the size of the vocabulary.")
    # Attention.
    window, local = self._windows(layers)
    scale = self._get("attention.scale")
    # The 27B model scales by the width per head and not by head_dim. The file does not say so;
    # llama.cpp knows the model by its depth.
    if gemma and scale is None and layers == 62:
      scale = (width / heads) ** -0.5
    # Some switches are not in the metadata: a model has a bias if the file has its tensor.
    first = "model.layers.0."
    return ModelConfig(
        family=(
            "mistral" if self.architecture == "llama" and window else SUPPORTED[self.architecture]),
        vocab_size=names["model.embed_tokens.weight"].shape[0], width=width, num_layers=layers,
        num_heads=heads,
        num_kv_heads=self._need("attention.head_count_kv", heads), head_dim=head_dim,
        mlp_hidden=self._need("feed_forward_length"), max_positions=self._need("context_length"),
        activation="gelu" if gemma else "silu",
        norm_eps=self._need("attention.layer_norm_rms_epsilon"),
        norm_plus_one=gemma, post_norms=gemma, qk_norm=gemma or self.architecture == "qwen3",
        qkv_bias=f"{first}self_attn.q_proj.bias" in names,
        output_bias=f"{first}self_attn.o_proj.bias" in names,
        mlp_bias=f"{first}mlp.gate_proj.bias" in names,
        tied_embeddings="lm_head.weight" not in names,
        embedding_scale=width ** 0.5 if gemma else 1.0,
        rope_theta=self._get("rope.freq_base", 10_000.0),
        rope_scaling=self._rope_scaling(head_dim),
        local_rope_theta=self._get("rope.freq_base_swa", 10_000.0) if gemma else None,
        sliding_window=window, local_layers=local, attention_scale=scale or None,
        attention_softcap=self._get("attn_logit_softcapping"),
        logit_softcap=self._get("final_logit_softcapping"))

  def _windows(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Returns sliding_window and local_layers of the config."""
    window = self._get("attention.sliding_window") or None
    if window is None or self.architecture == "llama":  # With a window: Mistral, in every layer.
      return window, ()
    if not self._gemma:
      raise ValueError(
          f"{self.path}: {self.architecture}.attention.sliding_window={window}, but the format does"
          " not say in which layers. Load the Hugging Face directory instead.")
    # The pattern is a list with an entry per layer, or a number n: every n-th layer is global.
    pattern = self.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    if not isinstance(pattern, list):
      pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    local = tuple(map(bool, pattern))
    if not any(local):
      return None, ()
    return window, () if all(local) else local

  def _rope_scaling(self, head_dim: int) -> RopeScaling | None:
    """Returns the scaling of global layers, from whichever of its spellings the file has."""
    kind, factor = self._get("rope.scaling.type", "none"), self._get("rope.scaling.factor", 0.0)
    if kind not in ("none", "linear"):
      raise ValueError(
          f"{self.path}: rope scaling {kind!r} is not supported. Supported: none, linear, and"
          " Llama 3's.")
    if "rope_freqs.weight" in self._tensors and not self._gemma:
      return self._llama3_scaling(head_dim)
    return RopeScaling("linear", factor) if kind == "linear" and factor not in (0.0, 1.0) else None

  def _llama3_scaling(self, head_dim: int) -> RopeScaling | None:
    """Finds the scaling whose divisors of the rotary frequencies the file stores.

    Raises: ValueError where they are not those of a Llama 3 model.
    """
    divisors = self.read("rope_freqs.weight", slice(None))
    if np.all(divisors == 1.0):
      return None
    plain = np.asarray(rope_frequencies(head_dim, self._get("rope.freq_base", 10_000.0)))
    originals = dict.fromkeys((8192, self._get("rope.scaling.original_context_length") or 8192))
    # Try the scalings with the largest divisor as factor. Every published model has the other two
    # numbers, the low and high frequency factors, at their defaults.
    for original in originals:
      scaling = RopeScaling("llama3", float(divisors.max()), original_max_positions=original)
      scaled = np.asarray(
          rope_frequencies(head_dim, self._get("rope.freq_base", 10_000.0), scaling))
      if divisors.shape == plain.shape and np.allclose(plain / scaled, divisors, rtol=1e-4):
        return scaling
    raise ValueError(
        f"{self.path}: rope_freqs.weight holds rotary divisors {divisors.min():.4g} to"
        f" {divisors.max():.4g} that are not Llama 3's (low 1, high 4, 8192 positions). Load the"
        " Hugging Face directory instead.")

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every tensor, by Hugging Face name."""
    return {name: tensor.shape for name, tensor in self._tensors.items()}

  def describe(self, name: str) -> str:
    """Names the tensor and its file, for error messages."""
    names = [self._tensors[name].name] if name in self._tensors else _gguf_names(name, self._gemma)
    return f"{(names or [name])[0]} in {self.path}"

  def tolerated(self, name: str, config: ModelConfig) -> bool:
    """Says whether a tensor that the model has no place for is harmless.

    Harmless are rotary divisors, which config() reads, and tied weights stored once more.
    """
    return (name == "rope_freqs.weight" and not self._gemma) or (
        config.tied_embeddings and name == "lm_head.weight")

  def check_readable(self, name: str) -> None:
    """Checks that a tensor can be read. Raises: ValueError if its type is not in _TYPES."""
    kind = self._tensors[name].kind
    if kind not in _TYPES:
      known = {int(x): x.name for x in gguf.GGMLQuantizationType}
      raise ValueError(
          f"{self.describe(name)} is quantised as {known.get(kind, f'type {kind}')}; readable are"
          f" {', '.join(sorted(x.name for x in _TYPES))}. Take the model in one of these.")

  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
    """Reads a part of a tensor, dequantised to float32.

    Args:
      name: Hugging Face name.
      rows: part of the first axis; for query and key projections it holds whole heads.
      columns: part of the second axis, in numbers and not in bytes; None: all.
    """
    self.check_readable(name)
    # Rows as bytes: blocks lie along the last axis, so a range of rows is read without the others.
    tensor = self._tensors[name]
    kind = gguf.GGMLQuantizationType(tensor.kind)
    shape = (*tensor.shape[:-1], gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind)[-1])
    stored = np.memmap(self.path, np.uint8, "r", tensor.offset, shape)
    # A vector has one axis, which is the one that blocks run along: it is dequantised whole.
    x = gguf.quants.dequantize(np.array(stored[rows] if len(shape) > 1 else stored), kind)
    # Undo what the converter did. Llama's query and key rows: pairs (2i, 2i + 1) of a head back to
    # (i, i + D/2).
    if self.architecture == "llama" and re.search(r"self_attn\.[qk]_proj", name):
      head_dim = self._get(
          "attention.key_length",
          self._need("embedding_length") // self._need("attention.head_count"))
      x = x.reshape(-1, head_dim // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    # Gemma's norms: the model multiplies by (1 + scale), the file holds the sum.
    if self._gemma and name.endswith("norm.weight"):
      x = x - np.float32(1.0)
    if len(shape) == 1:
      return x[rows]
    return x if columns is None else x[:, columns]
