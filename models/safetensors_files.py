"""Reads and writes weights in safetensors files.

It knows where each parameter lies in a Hugging Face checkpoint, reads parts and writes all.

The files are read and written at the level of their format: eight bytes of header length, a JSON
header, raw arrays (https://github.com/huggingface/safetensors). For the library's NumPy writer
wants every tensor in memory at once, and a file that ends early should be named together with the
tensor that is missing from it.
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

# Types of stored arrays that can be read; and names of dtypes that can be written -> their types.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SAVED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Stands in the header of every file written here: pretrained.save may overwrite such files.
_WRITER = "rl_reason"


@dataclasses.dataclass(frozen=True)
class Weight:
  """Says where one parameter lies in a checkpoint.

  name: the tensor's name in Hugging Face's words; "{}" stands for the layer where every layer has
    its own tensor.
  stored: the tensor's axes, each as the parameter axes that it merges: ((H, D), (E,)) is a matrix
    of H*D rows.
  axes: the parameter's axes (without the layers) in terms of those, as for np.transpose.
  """
  name: str
  stored: tuple[tuple[int, ...], ...]
  axes: tuple[int, ...]

  @property
  def per_layer(self) -> bool:
    """Says whether every layer has a tensor of its own."""
    return "{}" in self.name

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """Returns the tensor's shape in the file."""
    return tuple(math.prod(dims) for dims in self.stored)

  @property
  def inverse_axes(self) -> tuple[int, ...]:
    """Returns the axes that take a parameter back to the order of the stored ones."""
    return tuple(int(i) for i in np.argsort(self.axes))


def layout(config: ModelConfig) -> dict[str, Weight]:
  """Says where each parameter of transformer.init_params lies, by its path ("layers/q").

  Linear layers are stored as [out, in], which is the transpose of the parameter.
  """
  e, f, v, d = config.width, config.mlp_hidden, config.vocab_size, config.head_dim
  counts = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
  # Parameters outside of layers.
  found = {"embedding": Weight("model.embed_tokens.weight", ((v,), (e,)), (0, 1)),
           "final_norm": Weight("model.norm.weight", ((e,),), (0,))}
  if not config.tied_embeddings:
    found["unembedding"] = Weight("lm_head.weight", ((v,), (e,)), (0, 1))

  def layer(parameter: str, name: str, stored: tuple[tuple[int, ...], ...], axes: tuple[int, ...]):
    found[f"layers/{parameter}"] = Weight("model.layers.{}." + name, stored, axes)

  # Attention.
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

  # Feed-forward, with its norms. In a model with norms after the blocks post_attention_layernorm is
  # one of those; in others it comes before the feed-forward block.
  layer("mlp_norm",
        ("pre_feedforward" if config.post_norms else "post_attention") + "_layernorm.weight",
        ((e,),), (0,))
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
  """Says where a tensor lies."""
  file: Path
  name: str  # As the file spells it.
  dtype: str  # As the file spells it: a key of _DTYPES, or a type that cannot be read.
  shape: tuple[int, ...]
  offset: int  # From the start of the file, in bytes.


class Directory:
  """Reads a Hugging Face directory: headers at once, with checks, and values when asked for.

  The methods are those of pretrained.WeightFiles.

  path: the directory.
  """

  def __init__(self, path: str | Path):
    """Opens a directory. Raises: FileNotFoundError, or ValueError where a file is damaged."""
    self.path = Path(path)
    self._tensors: dict[str, _Tensor] = {}
    for file in _files(self.path):
      header, start = read_header(file)
      for name, entry in header.items():
        canonical = _canonical_name(name)
        if name != "__metadata__" and canonical is not None:
          begin, _ = entry["data_offsets"]
          self._tensors[canonical] = _Tensor(
              file, name, entry["dtype"], tuple(entry["shape"]), start + begin)

  def config(self) -> ModelConfig:
    """Reads the ModelConfig of config.json."""
    return huggingface.read_config(self.path)

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every tensor, by Hugging Face name, without those of vision towers."""
    return {name: tensor.shape for name, tensor in self._tensors.items()}

  def describe(self, name: str) -> str:
    """Names the tensor and its file, for error messages."""
    tensor = self._tensors.get(name)
    return f"{name} in {self.path}" if tensor is None else f"{tensor.name} in {tensor.file}"

  def tolerated(self, name: str, config: ModelConfig) -> bool:
    """Says whether a tensor that the model has no place for is harmless.

    Harmless are derived tables, and tied weights stored once more.
    """
    return name.endswith(("rotary_emb.inv_freq", "attn.masked_bias")) or (
        config.tied_embeddings and name == "lm_head.weight")

  def check_readable(self, name: str) -> None:
    """Checks that a tensor can be read. Raises: ValueError for other types than _DTYPES."""
    tensor = self._tensors[name]
    if tensor.dtype not in _DTYPES:
      raise ValueError(
          f"{tensor.name} in {tensor.file} is stored as {tensor.dtype}; readable are"
          f" {', '.join(_DTYPES)}. Save the model dequantised, in bfloat16 or float32.")

  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
    """Reads a part of a tensor in its stored type.

    The file is mapped only while this copies from it: a mapping that lives on would hold the file
    open.
    """
    tensor = self._tensors[name]
    stored = np.memmap(tensor.file, _DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
    return np.array(stored[rows] if columns is None else stored[rows, columns])


def _files(directory: Path) -> Sequence[Path]:
  """Finds the weight files of a directory: model.safetensors, or those that its index names."""
  index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
  if not index.is_file():
    if single.is_file():
      return [single]
    others = sorted(
        p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    raise FileNotFoundError(
        f"{directory} holds no model.safetensors and no model.safetensors.index.json"
        + (f"; it has {', '.join(others)}" if others else "") + ". Save the model as safetensors"
        " (transformers' save_pretrained does).")
  try:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{index} is no valid index ({error!r}): download it again.") from error
  missing = [name for name in names if not (directory / name).is_file()]
  if missing:
    raise FileNotFoundError(
        f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in"
        f" {directory}: the download is incomplete.")
  return [directory / name for name in names]


def read_header(file: Path) -> tuple[dict[str, Any], int]:
  """Reads a safetensors file's header, and the offset in bytes at which its arrays start.

  Raises: ValueError where the file is no safetensors file, or an array in it is cut off.
  """
  size = file.stat().st_size
  with file.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    # The first number of another kind of file reads as an enormous header.
    if size < 8 or length > size - 8:
      raise ValueError(
          f"{file} is cut short, or no safetensors file: it has {size} bytes and its header would"
          f" take {length + 8}. Download it again.")
    try:
      header = json.loads(f.read(length))
    except ValueError as error:
      raise ValueError(
          f"{file} has no valid safetensors header ({error}): download it again.") from error
  for name, entry in header.items():
    if name != "__metadata__" and 8 + length + entry["data_offsets"][1] > size:
      raise ValueError(
          f"{file} is cut short: {name} ends at byte {8 + length + entry['data_offsets'][1]} of"
          f" {size}. Download it again.")
  return header, 8 + length


def _canonical_name(name: str) -> str | None:
  """Returns a tensor's name in a model without images.

  Gemma 3 checkpoints with images nest the language model. Their other parts, which text does not
  need, get None.
  """
  if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", name):
    return None
  name = re.sub(r"^language_model\.", "", name)
  return re.sub(r"^model\.language_model\.", "model.", name)


def is_ours(directory: Path) -> bool:
  """Says whether every weight file in the directory was written by `write`.

  A damaged file proves nothing, so the answer is then False.
  """
  files = sorted(directory.glob("*.safetensors"))
  try:
    return bool(files) and all(
        read_header(f)[0].get("__metadata__", {}).get("writer") == _WRITER for f in files)
  except ValueError:
    return False


def write(
    directory: Path, shapes: Iterable[tuple[str, tuple[int, ...]]],
    produce: Callable[[str], np.ndarray],
    *, dtype: str, max_shard_bytes: int,
) -> None:
  """Writes model.safetensors, or numbered shards and their index, one tensor in memory at a time.

  Args:
    directory: where the files are written.
    shapes: (name, shape) in the order of writing.
    produce: returns the tensor of that name, of that shape; called once each, in that order.
    dtype: stored type, a key of SAVED_DTYPES.
    max_shard_bytes: bytes of arrays per file; a single larger tensor gets a file of its own.
  """
  # Divide the tensors among shards. Names of files hold the number of shards, so this comes first.
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
  # Write each shard: header, then arrays in the order of the header.
  for file_name, shard in zip(names, shards):
    header, offset = {"__metadata__": {"format": "pt", "writer": _WRITER}}, 0
    for name, shape, size in shard:
      header[name] = {"dtype": SAVED_DTYPES[dtype], "shape": shape,
                      "data_offsets": [offset, offset + size]}
      offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # Spaces, so that arrays start at a multiple of 8 bytes.
    with (directory / file_name).open("wb") as f:
      f.write(len(encoded).to_bytes(8, "little") + encoded)
      for name, shape, _ in shard:
        array = np.ascontiguousarray(produce(name).astype(kind, copy=False))
        assert array.shape == shape, (name, array.shape, shape)
        f.write(array.view(np.uint8).data)
  # The index says in which shard each tensor is.
  if len(shards) > 1:
    weight_map = {name: file for file, shard in zip(names, shards) for name, _, _ in shard}
    total = sum(size for shard in shards for _, _, size in shard)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
