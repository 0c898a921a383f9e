"""Reads and writes weights in safetensors files.

It knows where each parameter lies in a Hugging Face checkpoint, reads parts and writes all.

A file is eight bytes of header length, a JSON header and raw arrays
(https://github.com/huggingface/safetensors). The `safetensors` library reads the header and checks
it: the arrays fill the file, one after another, each as large as its shape says. The arrays
themselves are read and written here, since the library's NumPy side has no bfloat16 and wants every
tensor in memory at once.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
import re

import ml_dtypes
import numpy as np
import safetensors

from rl_reason.config import json_text
from rl_reason.models import huggingface
from rl_reason.models.config import ModelConfig

# Types of stored arrays that can be read; and names of dtypes that can be written -> their types.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SAVED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Bits of an element, for the types whose names say another number first or none.
_BITS = {"BOOL": 8}
# Names of the tensors of output layers: of a policy, and of a reward model. transformers' reward
# models have no bias; those written here may have one.
_UNEMBEDDING = "lm_head.weight"
HEAD = ("score.weight", "score.bias")
_COMPARED_BYTES = 32 * 2 ** 20
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
    found["unembedding"] = Weight(_UNEMBEDDING, ((v,), (e,)), (0, 1))

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

  def __str__(self) -> str:
    return f"{self.name} in {self.file}"


class Directory:
  """Reads a Hugging Face directory: headers at once, with checks, and values when asked for.

  The methods are those of pretrained.WeightFiles.

  path: the directory.
  headless: it holds a decoder without an output layer of its own: the checkpoint of a base class
    (LlamaModel), or of a reward model (...ForSequenceClassification, heads of which are tensors
    named score).
  """

  def __init__(self, path: str | Path):
    """Opens a directory. Raises: FileNotFoundError, or ValueError where a file is damaged."""
    self.path = Path(path)
    self._tensors: dict[str, _Tensor] = {}
    for file, indexed in _files(self.path).items():
      tensors, _ = read_header(file)
      if missing := indexed - tensors.keys():
        raise ValueError(
            f"{self.path / _INDEX} says that {min(missing)} is in {file}, and it is not: index and"
            " file are of two downloads. Download both again.")
      for tensor in tensors.values():
        canonical = _canonical_name(tensor.name)
        if canonical is None:
          continue
        if canonical in self._tensors:
          raise ValueError(
              f"{self._tensors[canonical]} and {tensor} are both the model's {canonical}: which one"
              " counts is unclear. Remove the file that the model does not need.")
        self._tensors[canonical] = tensor
    # Read as far as it is there: a caller may bring a configuration of its own.
    self._classifies = (self.path / "config.json").is_file() and huggingface.is_classifier(
        json_text.read_object(self.path / "config.json"))
    base = all(re.match(r"(language_model\.)?(embed_tokens|layers|norm)\.", tensor.name)
               for tensor in self._tensors.values())
    self.headless = _UNEMBEDDING not in self._tensors and (self._classifies or base)

  def config(self) -> ModelConfig:
    """Reads the ModelConfig of config.json.

    What the weights say of tying wins: an output layer that differs from the embedding is a matrix
    of its own, and a decoder without one (headless) has none to be read.
    """
    config = huggingface.read_config(self.path)
    tied = self.headless or (
        config.tied_embeddings and (_UNEMBEDDING not in self._tensors or self._repeats_embedding))
    return dataclasses.replace(config, tied_embeddings=tied)

  @functools.cached_property
  def _repeats_embedding(self) -> bool:
    """Says whether the output layer holds the numbers of the embedding once more."""
    names = ("model.embed_tokens.weight", _UNEMBEDDING)
    if any(name not in self._tensors for name in names):
      return False
    for name in names:
      self.check_readable(name)
    (rows, *rest), other = (self._tensors[name].shape for name in names)
    if (rows, *rest) != other or len(rest) != 1:
      return False
    # Some rows at a time: the matrices of a large vocabulary are gigabytes.
    step = max(1, _COMPARED_BYTES // (4 * max(1, rest[0])))
    parts = (slice(start, min(start + step, rows)) for start in range(0, rows, step))
    return all(
        np.array_equal(*(self.read(name, part).astype(np.float32) for name in names))
        for part in parts)

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every tensor, by Hugging Face name, without those of vision towers."""
    return {name: tensor.shape for name, tensor in self._tensors.items()}

  def describe(self, name: str) -> str:
    """Names the tensor and its file, for error messages."""
    tensor = self._tensors.get(name)
    return f"{name} in {self.path}" if tensor is None else str(tensor)

  def tolerated(self, name: str, config: ModelConfig) -> bool:
    """Says whether a tensor that the model has no place for is harmless.

    Harmless are derived tables, tied weights stored once more, and a reward model's head where its
    decoder is read (reward_model_files reads both).
    """
    if name == _UNEMBEDDING:
      return config.tied_embeddings and self._repeats_embedding
    return name.endswith(("rotary_emb.inv_freq", "attn.masked_bias")) or (
        self._classifies and name in HEAD)

  def check_readable(self, name: str) -> None:
    """Checks that a tensor can be read. Raises: ValueError for other types than _DTYPES."""
    tensor = self._tensors[name]
    if tensor.dtype not in _DTYPES:
      raise ValueError(
          f"{tensor} is stored as {tensor.dtype}; readable are"
          f" {', '.join(_DTYPES)}. Save the model dequantised, in bfloat16 or float32.")

  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
    """Reads a part of a tensor in its stored type.

    The file is mapped only while this copies from it: a mapping that lives on would hold the file
    open.
    """
    tensor = self._tensors[name]
    stored = np.memmap(tensor.file, _DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
    return np.array(stored[rows] if columns is None else stored[rows, columns])


_INDEX = "model.safetensors.index.json"


def _files(directory: Path) -> Mapping[Path, set[str]]:
  """Finds the weight files of a directory: model.safetensors, or those that its index names.

  Returns: file -> the tensors that the index says are in it; none without an index.
  """
  index, single = directory / _INDEX, directory / "model.safetensors"
  if not index.is_file():
    if single.is_file():
      return {single: set()}
    others = sorted(
        p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    raise FileNotFoundError(
        f"{directory} holds no model.safetensors and no {_INDEX}"
        + (f"; it has {', '.join(others)}" if others else "") + ". Save the model as safetensors"
        " (transformers' save_pretrained does).")
  weight_map = json_text.read_object(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index} has no weight_map of tensors to files: download it again.")
  found: dict[Path, set[str]] = {}
  for tensor, name in weight_map.items():
    # An index may come from anyone: it must not lead to a file somewhere else.
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", name):
      raise ValueError(
          f"{index} says that {tensor} is in {name!r}, which is no name of a safetensors file beside"
          " it: the index is damaged or not to be trusted. Download it again.")
    found.setdefault(directory / name, set()).add(tensor)
  missing = sorted(file.name for file in found if not file.is_file())
  if missing:
    raise FileNotFoundError(
        f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in"
        f" {directory}: the download is incomplete.")
  return dict(sorted(found.items()))


def read_header(file: Path) -> tuple[dict[str, _Tensor], Mapping[str, str]]:
  """Reads (tensors by name, metadata) from a safetensors file's header.

  Raises: ValueError where the file is no safetensors file, is cut short, or its header does not
    describe its arrays.
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
    with safetensors.safe_open(file, framework="np") as opened:
      tensors, offset = {}, 8 + length
      # The library checked that the arrays follow one another in this order, without gaps.
      for name in opened.offset_keys():
        entry = opened.get_slice(name)
        dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
        tensors[name] = _Tensor(file, name, dtype, shape, offset)
        bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])  # "F8_E4M3" has 8.
        offset += math.prod(shape) * bits // 8
      metadata = opened.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(
        f"{file} is cut short or damaged: its header does not describe its {size} bytes"
        f" ({str(error).removeprefix('Error while deserializing header: ')}). Download it"
        " again.") from error
  if offset != size:
    raise ValueError(
        f"{file} is damaged: its arrays end at byte {offset} of {size}. Download it again.")
  return tensors, metadata


def _canonical_name(name: str) -> str | None:
  """Returns a tensor's name in a policy without images.

  Gemma 3 checkpoints with images nest the language model. Their other parts, which text does not
  need, get None. In checkpoints of base classes (LlamaModel) the names lack "model.".
  """
  if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", name):
    return None
  name = re.sub(r"^language_model\.", "", name)
  name = re.sub(r"^model\.language_model\.", "model.", name)
  return re.sub(r"^(?=(embed_tokens|layers|norm)\.)", "model.", name)


def is_ours(directory: Path) -> bool:
  """Says whether every weight file in the directory was written by `write`.

  A damaged file proves nothing, so the answer is then False.
  """
  files = sorted(directory.glob("*.safetensors"))
  try:
    return bool(files) and all(
        read_header(f)[1].get("writer") == _WRITER for f in files)
  except (ValueError, OSError):
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
    (directory / _INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
