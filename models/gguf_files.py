"""Reads weights in GGUF files (llama.cpp) as Hugging Face checkpoints name, shape and value them.

What llama.cpp's converter changes is undone here:

- names;
- the rows of Llama's query and key matrices, which it reorders for a rotary embedding of
  neighbouring pairs;
- Gemma's norm weights, to which it adds one;
- Llama 3's rotary scaling, which it stores as a table of divisors.
"""

from collections.abc import Mapping
import math
from pathlib import Path
import re
from typing import Any

import gguf
import numpy as np

from rl_reason.models import config as config_lib
from rl_reason.models.attention import rope_frequencies
from rl_reason.models.config import ModelConfig, RopeScaling
from rl_reason.models.gguf_header import read_header

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
    if not isinstance(self.architecture, str) or self.architecture not in SUPPORTED:
      raise ValueError(
          f"{self.path}: general.architecture {self.architecture!r} is not supported. Supported:"
          f" {', '.join(SUPPORTED)}.")
    if self.metadata.get("split.count", 1) not in (0, 1):
      raise ValueError(
          f"{self.path} is one of {self.metadata['split.count']} parts: join them first with"
          " llama.cpp's `llama-gguf-split --merge`.")
    self._gemma = self.architecture == "gemma3"
    self._tensors = {self._huggingface_name(t.name): t for t in tensors}
    if len(self._tensors) < len(tensors):
      raise ValueError(
          f"{self.path} holds a tensor under both its GGUF name and its Hugging Face name, so which"
          " one counts is unclear. Convert the model again.")

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

  def _count(self, key: str, default: int | None = None) -> int:
    """Returns a value that is a whole number above 0. Raises: ValueError for anything else."""
    value = self._get(key, default)
    # An axis of an array that JAX indexes with 32 bits.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2 ** 31:
      raise self._not_as_needed(key, value, "one whole number above 0")
    return value

  def _number(self, key: str, default: float | None = None) -> float:
    """Returns a value that is a finite number above 0. Raises: ValueError for anything else."""
    value = self._get(key, default)
    if (not isinstance(value, (int, float)) or isinstance(value, bool)
        or not 0 < value < math.inf):
      raise self._not_as_needed(key, value, "one finite number above 0")
    return value

  def _optional_number(self, key: str) -> float | None:
    """Returns a finite number above 0, or None where it is absent or 0."""
    return self._number(key) if self._get(key) not in (None, 0) else None

  def _not_as_needed(self, key: str, value: Any, needed: str) -> ValueError:
    return ValueError(
        f"{self.path}: {self.architecture}.{key} is {repr(value)[:80]}; {needed} is needed: the"
        " file is damaged or of another kind of model. Download it again.")

  @property
  def _head_dim(self) -> int:
    """Returns the features of a head."""
    width, heads = self._count("embedding_length"), self._count("attention.head_count")
    return self._count("attention.key_length", max(1, width // heads))

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
        self._count(k) for k in ("embedding_length", "attention.head_count", "block_count"))
    if layers > 10_000:
      raise self._not_as_needed("block_count", layers, "a whole number from 1 to 10000")
    head_dim = self._head_dim
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
    scale = self._optional_number("attention.scale")
    # The 27B model scales by the width per head and not by head_dim. The file does not say so;
    # llama.cpp knows the model by its depth.
    if gemma and scale is None and layers == 62:
      scale = (width / heads) ** -0.5
    # Some switches are not in the metadata: a model has a bias if the file has its tensor.
    first = "model.layers.0."
    return config_lib.from_file(
        self.path, family=(
            "mistral" if self.architecture == "llama" and window else SUPPORTED[self.architecture]),
        vocab_size=names["model.embed_tokens.weight"].shape[0], width=width, num_layers=layers,
        num_heads=heads,
        num_kv_heads=self._count("attention.head_count_kv", heads), head_dim=head_dim,
        mlp_hidden=self._count("feed_forward_length"), max_positions=self._count("context_length"),
        activation="gelu" if gemma else "silu",
        norm_eps=self._number("attention.layer_norm_rms_epsilon"),
        norm_plus_one=gemma, post_norms=gemma, qk_norm=gemma or self.architecture == "qwen3",
        qkv_bias=f"{first}self_attn.q_proj.bias" in names,
        output_bias=f"{first}self_attn.o_proj.bias" in names,
        mlp_bias=f"{first}mlp.gate_proj.bias" in names,
        tied_embeddings="lm_head.weight" not in names,
        embedding_scale=width ** 0.5 if gemma else 1.0,
        rope_theta=self._number("rope.freq_base", 10_000.0),
        rope_scaling=self._rope_scaling(head_dim),
        local_rope_theta=self._number("rope.freq_base_swa", 10_000.0) if gemma else None,
        sliding_window=window, local_layers=local, attention_scale=scale,
        attention_softcap=self._optional_number("attn_logit_softcapping"),
        logit_softcap=self._optional_number("final_logit_softcapping"))

  def _windows(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Returns sliding_window and local_layers of the config."""
    key = "attention.sliding_window"
    window = self._count(key) if self._get(key) else None
    if window is None or self.architecture == "llama":  # With a window: Mistral, in every layer.
      return window, ()
    if not self._gemma:
      raise ValueError(
          f"{self.path}: {self.architecture}.attention.sliding_window={window}, but the format does"
          " not say in which layers. Load the Hugging Face directory instead.")
    # The pattern is a list with an entry per layer, or a number n: every n-th layer is global.
    pattern = self.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    if not isinstance(pattern, list):
      pattern = self._count("attention.sliding_window_pattern", 6)
      pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    local = tuple(map(bool, pattern))
    if not any(local):
      return None, ()
    return window, () if all(local) else local

  def _rope_scaling(self, head_dim: int) -> RopeScaling | None:
    """Returns the scaling of global layers, from whichever of its spellings the file has."""
    kind, factor = self._get("rope.scaling.type", "none"), self._optional_number(
        "rope.scaling.factor")
    if kind not in ("none", "linear"):
      raise ValueError(
          f"{self.path}: rope scaling {kind!r} is not supported. Supported: none, linear, and"
          " Llama 3's.")
    if "rope_freqs.weight" in self._tensors and not self._gemma:
      return self._llama3_scaling(head_dim)
    return RopeScaling("linear", factor) if kind == "linear" and factor not in (None, 1.0) else None

  def _llama3_scaling(self, head_dim: int) -> RopeScaling | None:
    """Finds the scaling whose divisors of the rotary frequencies the file stores.

    Raises: ValueError where they are not those of a Llama 3 model.
    """
    divisors = self.read("rope_freqs.weight", slice(None))
    if np.all(divisors == 1.0):
      return None
    base = self._number("rope.freq_base", 10_000.0)
    plain = np.asarray(rope_frequencies(head_dim, base))
    originals = dict.fromkeys((8192, self._count("rope.scaling.original_context_length", 8192)))
    # Try the scalings with the largest divisor as factor. Every published model has the other two
    # numbers, the low and high frequency factors, at their defaults.
    for original in originals:
      scaling = RopeScaling("llama3", float(divisors.max()), original_max_positions=original)
      scaled = np.asarray(
          rope_frequencies(head_dim, base, scaling))
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

    Harmless are rotary divisors, which config() reads.
    """
    return name == "rope_freqs.weight" and not self._gemma

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
      head_dim = self._head_dim
      x = x.reshape(-1, head_dim // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    # Gemma's norms: the model multiplies by (1 + scale), the file holds the sum.
    if self._gemma and name.endswith("norm.weight"):
      x = x - np.float32(1.0)
    if len(shape) == 1:
      return x[rows]
    return x if columns is None else x[:, columns]
