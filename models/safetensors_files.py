"""Weights in safetensors files: where each parameter lies in a Hugging Face checkpoint, reading a part, writing all.

The files are read and written at the level of their format (eight bytes of header length, a JSON header, raw arrays;
https://github.com/huggingface/safetensors): the library's NumPy writer wants every tensor in memory at once, and a file
that ends early should be named together with the tensor that is missing from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
import re
from typing import Any

import ml_dtypes
import numpy as np

from rl_reason.models import huggingface
from rl_reason.models.config import ModelConfig

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SAVED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WRITER = "rl_reason"  # In the header of every file written here: what save() may overwrite.


@dataclasses.dataclass(frozen=True)
class Weight:
  """Where one parameter lies in a checkpoint.

  name: in Hugging Face's words; "{}" stands for the layer where every layer has its own tensor.
  stored: the tensor's axes, each as the parameter axes that it merges: ((H, D), (E,)) is a matrix of H*D rows.
  axes: the parameter's axes (without the layers) in terms of those, as for np.transpose.
  """
  name: str
  stored: tuple[tuple[int, ...], ...]
  axes: tuple[int, ...]

  @property
  def per_layer(self) -> bool:
    return "{}" in self.name

  @property
  def stored_shape(self) -> tuple[int, ...]:
    return tuple(math.prod(dims) for dims in self.stored)

  @property
  def inverse_axes(self) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(self.axes))


def layout(config: ModelConfig) -> dict[str, Weight]:
  """Per parameter of transformer.init_params ("layers/q"), where it lies. Linear layers are stored [out, in]."""
  e, f, v, d = config.width, config.mlp_hidden, config.vocab_size, config.head_dim
  counts = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
  found = {"embedding": Weight("model.embed_tokens.weight", ((v,), (e,)), (0, 1)),
           "final_norm": Weight("model.norm.weight", ((e,),), (0,))}
  if not config.tied_embeddings:
    found["unembedding"] = Weight("lm_head.weight", ((v,), (e,)), (0, 1))

  def layer(parameter: str, name: str, stored: tuple[tuple[int, ...], ...], axes: tuple[int, ...]):
    found[f"layers/{parameter}"] = Weight("model.layers.{}." + name, stored, axes)

  layer("attention_norm", "input_layernorm.weight", ((e,),), (0,))
  for x, count in counts.items():
    layer(x, f"self_attn.{x}_proj.weight", ((count, d), (e,)), (2, 0, 1))
    if config.qkv_bias:
      layer(f"{x}_bias", f"self_attn.{x}_proj.bias", ((count, d),), (0, 1))
  layer("o", "self_attn.o_proj.weight", ((e,), (config.num_heads, d)), (1, 2, 0))
  if config.output_bias:
    layer("o_bias", "self_attn.o_proj.bias", ((e,),), (0,))
  if config.qk_norm:
    layer("q_norm", "self_attn.q_norm.weight", ((d,),), (0,))
    layer("k_norm", "self_attn.k_norm.weight", ((d,),), (0,))
  # With norms after the blocks too, post_attention_layernorm is one of those; otherwise it precedes the feed-forward.
  layer("mlp_norm", ("pre_feedforward" if config.post_norms else "post_attention") + "_layernorm.weight", ((e,),), (0,))
  if config.post_norms:
    layer("attention_post_norm", "post_attention_layernorm.weight", ((e,),), (0,))
    layer("mlp_post_norm", "post_feedforward_layernorm.weight", ((e,),), (0,))
  for x, rows, columns in (("gate", f, e), ("up", f, e), ("down", e, f)):
    layer(x, f"mlp.{x}_proj.weight", ((rows,), (columns,)), (1, 0))
    if config.mlp_bias:
      layer(f"{x}_bias", f"mlp.{x}_proj.bias", ((rows,),), (0,))
  return found


@dataclasses.dataclass(frozen=True)
class _Tensor:
  file: Path
  name: str  # As the file spells it.
  dtype: str
  shape: tuple[int, ...]
  offset: int  # From the start of the file, in bytes.


class Directory:
  """A Hugging Face directory, opened for reading: headers are read and checked at once, values when asked for."""

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self._tensors: dict[str, _Tensor] = {}
    for file in _files(self.path):
      header, start = read_header(file)
      for name, entry in header.items():
        canonical = _canonical_name(name)
        if name != "__metadata__" and canonical is not None:
          begin, _ = entry["data_offsets"]
          self._tensors[canonical] = _Tensor(file, name, entry["dtype"], tuple(entry["shape"]), start + begin)

  def config(self) -> ModelConfig:
    return huggingface.read_config(self.path)

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Of every tensor, by Hugging Face name. Vision towers are left out."""
    return {name: tensor.shape for name, tensor in self._tensors.items()}

  def describe(self, name: str) -> str:
    """The tensor and its file, for error messages."""
    tensor = self._tensors.get(name)
    return f"{name} in {self.path}" if tensor is None else f"{tensor.name} in {tensor.file}"

  def tolerated(self, name: str, config: ModelConfig) -> bool:
    """Whether a tensor that the model has no place for is harmless: derived tables, or tied weights once more."""
    return name.endswith(("rotary_emb.inv_freq", "attn.masked_bias")) or (
        config.tied_embeddings and name == "lm_head.weight")

  def check_readable(self, name: str) -> None:
    tensor = self._tensors[name]
    if tensor.dtype not in _DTYPES:
      raise ValueError(f"{tensor.name} in {tensor.file} is stored as {tensor.dtype}; readable are {', '.join(_DTYPES)}."
                       " Save the model dequantised, in bfloat16 or float32.")

  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
    """A part of a tensor in its stored type; the file is mapped only while this copies from it."""
    tensor = self._tensors[name]
    stored = np.memmap(tensor.file, _DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
    return np.array(stored[rows] if columns is None else stored[rows, columns])


def _files(directory: Path) -> Sequence[Path]:
  index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
  if not index.is_file():
    if single.is_file():
      return [single]
    others = sorted(p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    raise FileNotFoundError(f"{directory} holds no model.safetensors and no model.safetensors.index.json"
                            + (f"; it has {', '.join(others)}" if others else "") + ". Save the model as safetensors"
                            " (transformers' save_pretrained does).")
  try:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{index} is no valid index ({error!r}): download it again.") from error
  missing = [name for name in names if not (directory / name).is_file()]
  if missing:
    raise FileNotFoundError(f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in"
                            f" {directory}: the download is incomplete.")
  return [directory / name for name in names]


def read_header(file: Path) -> tuple[dict[str, Any], int]:
  """A safetensors file's header and the offset in bytes at which its arrays start; checks that none is cut off."""
  size = file.stat().st_size
  with file.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
      raise ValueError(f"{file} is cut short, or no safetensors file: it has {size} bytes and its header would take"
                       f" {length + 8}. Download it again.")
    try:
      header = json.loads(f.read(length))
    except ValueError as error:
      raise ValueError(f"{file} has no valid safetensors header ({error}): download it again.") from error
  for name, entry in header.items():
    if name != "__metadata__" and 8 + length + entry["data_offsets"][1] > size:
      raise ValueError(f"{file} is cut short: {name} ends at byte {8 + length + entry['data_offsets'][1]} of {size}."
                       " Download it again.")
  return header, 8 + length


def _canonical_name(name: str) -> str | None:
  """Gemma 3 checkpoints with images nest the language model; None for the other parts, which text does not need."""
  if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", name):
    return None
  name = re.sub(r"^language_model\.", "", name)
  return re.sub(r"^model\.language_model\.", "model.", name)


def is_ours(directory: Path) -> bool:
  """Whether every weight file in the directory was written by `write`; a damaged one proves nothing."""
  files = sorted(directory.glob("*.safetensors"))
  try:
    return bool(files) and all(read_header(f)[0].get("__metadata__", {}).get("writer") == _WRITER for f in files)
  except ValueError:
    return False


def write(
    directory: Path, shapes: Iterable[tuple[str, tuple[int, ...]]], produce: Callable[[str], np.ndarray],
    *, dtype: str, max_shard_bytes: int,
) -> None:
  """Writes model.safetensors, or numbered shards and their index, one tensor in memory at a time.

  Args:
    shapes: (name, shape) in the order of writing.
    produce: the tensor of that name, of that shape; called once each, in that order.
    dtype: stored type, a key of SAVED_DTYPES.
    max_shard_bytes: arrays per file; a single larger tensor gets a file of its own.
  """
  kind, shards, filled = np.dtype(_DTYPES[SAVED_DTYPES[dtype]]), [[]], 0
  for name, shape in shapes:
    size = math.prod(shape) * kind.itemsize
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append((name, shape, size))
    filled += size
  names = ["model.safetensors"] if len(shards) == 1 else [
      f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file_name, shard in zip(names, shards):
    header, offset = {"__metadata__": {"format": "pt", "writer": _WRITER}}, 0
    for name, shape, size in shard:
      header[name] = {"dtype": SAVED_DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
      offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (directory / file_name).open("wb") as f:
      f.write(len(encoded).to_bytes(8, "little") + encoded)
      for name, shape, _ in shard:
        array = np.ascontiguousarray(produce(name).astype(kind, copy=False))
        assert array.shape == shape, (name, array.shape, shape)
        f.write(array.view(np.uint8).data)
  if len(shards) > 1:
    weight_map = {name: file for file, shard in zip(names, shards) for name, _, _ in shard}
    total = sum(size for shard in shards for _, _, size in shard)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
