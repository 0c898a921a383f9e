"""Decides where arrays live: the mesh, and logical axes -> shardings.

It also knows the processes of a job, and turns host arrays into global arrays and back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import math
import os
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from rl_reason.arrays import LearnerState
from rl_reason.config.checks import at_least, one_of
from rl_reason.runtime import peers
from rl_reason.types import Params

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert")


@dataclasses.dataclass(frozen=True)
class MeshSection:
  """Configures the devices of a run: a size for each axis of the mesh.

  One size may be -1: the devices that remain.

  data: copies of the model that share a batch.
  fsdp: parts of the batch and of the parameters; parameters are gathered where they are needed.
  tensor: parts of each matrix, head or feature.
  context: parts of each sequence.
  expert: parts of the experts of each layer.
  platform: "gpu" or "tpu" if the run must not start without one; "": any.
  """
  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  context: int = 1
  expert: int = 1
  platform: str = ""

  @property
  def sizes(self) -> dict[str, int]:
    """Returns the size of each axis, by name."""
    return {axis: getattr(self, axis) for axis in MESH_AXES}


@dataclasses.dataclass(frozen=True)
class RolloutMesh:
  """Configures devices that sample while those of `mesh` update, in stages with staleness=1.

  The number of devices is the product of the sizes. They come after the devices of `mesh`; a -1 in
  `mesh` leaves them free.

  data: copies of the policy; 0: no devices are reserved for sampling.
  fsdp: parts of the parameters; above 1 each token would gather the parameters anew.
  tensor: parts of each matrix.
  context: parts of each sequence.
  expert: parts of the experts of each layer.
  """
  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  expert: int = 1

  def __post_init__(self):
    at_least(0, **self.sizes)

  @property
  def sizes(self) -> dict[str, int]:
    """Returns the size of each axis, by name."""
    return {axis: getattr(self, axis) for axis in MESH_AXES}

  @property
  def size(self) -> int:
    """Returns the number of devices."""
    return math.prod(self.sizes.values())


Rules = Sequence[tuple[str, str | Sequence[str] | None]]

# The only table of logical axis -> mesh axes. Dimensions whose names have no rule are not split.
DEFAULT_RULES: Rules = (
    # Batches are split over data and fsdp, and each row of them over context.
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    # Parameters are split over fsdp and tensor, and those of experts over expert.
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("experts", "expert"),
)


def start_distributed(environment: Mapping[str, str] = os.environ) -> None:
  """Joins the processes of one job, where the environment says that there are several.

  Call it before any device work. The environment holds JAX_COORDINATOR_ADDRESS=host:port with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID; or it is that of Slurm, Open MPI or a TPU pod, which JAX
  recognises by itself.

  Args:
    environment: environment variables.
  Raises: ValueError if JAX_COORDINATOR_ADDRESS is set without whole numbers in the other two.
  """
  if environment.get("JAX_COORDINATOR_ADDRESS"):
    try:
      count, index = int(environment["JAX_NUM_PROCESSES"]), int(environment["JAX_PROCESS_ID"])
    except (KeyError, ValueError) as e:
      raise ValueError("JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID to"
                       f" whole numbers too ({e!r}).") from e
    peers.join(environment["JAX_COORDINATOR_ADDRESS"], count, index)
  elif (int(environment.get("SLURM_NTASKS", 1)) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")):
    peers.join()


def check_platform(asked: str) -> None:
  """Checks that JAX has the accelerator that was asked for.

  Args:
    asked: "gpu", "tpu", or "" for any.
  Raises: ValueError if JAX runs on something else.
  """
  have = jax.default_backend()
  if asked and have != asked:
    extra = {"gpu": "cuda", "tpu": "tpu"}.get(asked)
    cure = (f'pip install "rl_reason[{extra}]" and check the driver' if extra
            else 'use "cpu", "gpu", "tpu" or ""')
    raise ValueError(
        f"mesh.platform={asked!r} was asked for, but JAX runs on {have!r} ({jax.devices()[0]}):"
        f" {cure}, or set --config.mesh.platform=''.")


def make_mesh(
    sizes: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Makes a device mesh with all of MESH_AXES.

  Args:
    sizes: axis -> size, at least 1; one may be -1, the devices that remain. An axis that is not
      named has size 1. None: all devices, on fsdp.
    devices: devices, of which the mesh takes the first ones; None: all that JAX has.
  Raises: ValueError for an unknown axis, or if the sizes do not fit the devices there are.
  """
  # 1. Give every axis a size.
  given = {"fsdp": -1} if sizes is None else dict(sizes)
  for axis in given:
    one_of(MESH_AXES, **{"mesh axis": axis})
  sizes = {axis: given.get(axis, 1) for axis in MESH_AXES}
  left = "" if devices is None else f", of which {len(devices)} are left to it"
  devices = jax.devices() if devices is None else devices
  text = _text(given)
  # 2. Check the sizes against the devices.
  if list(sizes.values()).count(-1) > 1 or any(v < 1 and v != -1 for v in sizes.values()):
    raise ValueError(
        "Mesh sizes must be at least 1, one of them may be -1 (the devices that remain);"
        f" got {text}.")
  known = math.prod(v for v in sizes.values() if v != -1)
  if known > len(devices) or (-1 in sizes.values() and len(devices) % known):
    multiple = "a multiple of " if -1 in sizes.values() else ""
    raise ValueError(
        f"The mesh {text} needs {multiple}{known} devices, JAX has {jax.device_count()}"
        f" ({devices[0].platform}){left}: lower a size with --config.mesh.<axis>=...")
  # 3. Make the mesh.
  shape = tuple(len(devices) // known if v == -1 else v for v in sizes.values())
  count = math.prod(shape)
  if count < len(devices) and jax.process_count() > 1:
    raise ValueError(f"The mesh {text} uses {count} of {len(devices)} devices: with several"
                     " processes it must use all.")
  # Auto: the compiler places what no rule names. Explicit axes would refuse linen's logical
  # constraints.
  return jax.make_mesh(
      shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices[:count])


def make_meshes(
    sizes: Mapping[str, int], rollout_sizes: Mapping[str, int]) -> tuple[Mesh, Mesh | None]:
  """Makes the mesh that updates, and one of other devices that samples at the same time.

  Args:
    sizes: as in make_mesh.
    rollout_sizes: the same for the devices after them, without a -1; with a 0 there is no such
      mesh.
  Raises: ValueError if the sizes do not fit the devices there are, and for several processes,
    because each process would have to hold devices of both meshes.
  """
  count = math.prod(rollout_sizes.values())
  if not count:
    return make_mesh(sizes), None
  text = _text(rollout_sizes)
  if jax.process_count() > 1:
    raise ValueError(
        f"The rollout mesh {text} is for one process, and there are {jax.process_count()}: set"
        " --config.rollout_mesh.data=0, and staleness=0 in the stages.")
  devices = jax.devices()
  if count >= len(devices):
    raise ValueError(
        f"The rollout mesh {text} takes {count} devices, and the mesh that updates at least one"
        f" more; JAX has {len(devices)} ({devices[0].platform}): lower a size with"
        " --config.rollout_mesh.<axis>=...")
  # A -1 in `sizes` takes all devices but the last `count`.
  mesh = make_mesh(sizes, devices=devices[:-count])
  return mesh, make_mesh(rollout_sizes, devices=devices[mesh.size:mesh.size + count])


def _text(sizes: Mapping[str, int]) -> str:
  """Writes the sizes, without those of axes that are rarely set."""
  shown = {k: v for k, v in sizes.items() if v != 1 or k in ("data", "fsdp", "tensor")}
  return ", ".join(f"{k}={v}" for k, v in shown.items())


def partition_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh_shape: Mapping[str, int], rules: Rules,
) -> PartitionSpec:
  """Decides which mesh axes split each dimension, by the rules of its logical axis.

  Skips a mesh axis where it does not divide the dimension, or where another dimension has it
  already.

  Args:
    shape: sizes of the dimensions.
    axes: logical axis of each dimension; None: not split.
    mesh_shape: size of each mesh axis.
    rules: the mesh axes of each logical axis.
  """
  rules, used, spec = dict(rules), set(), []
  for size, axis in zip(shape, axes, strict=True):
    wanted = rules.get(axis) or ()
    kept, ways = [], 1
    # All mesh axes of this dimension together must divide it.
    for name in (wanted,) if isinstance(wanted, str) else wanted:
      if name not in used and size % (ways * mesh_shape[name]) == 0:
        kept.append(name)
        used.add(name)
        ways *= mesh_shape[name]
    spec.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
  return PartitionSpec(*spec)


@dataclasses.dataclass(frozen=True)
class Partitioning:
  """Holds a mesh, and the rules that map logical axes to its axes.

  mesh: the devices.
  rules: the mesh axes of each logical axis.
  """
  mesh: Mesh
  rules: Rules = DEFAULT_RULES

  @contextlib.contextmanager
  def use(self) -> Iterator[None]:
    """Makes mesh and rules current: code traced inside follows the models' logical constraints."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
      yield

  def sharding(self, shape: Sequence[int], axes: Sequence[str | None]) -> NamedSharding:
    """Returns the sharding of an array with these logical axes.

    A dimension that the devices do not divide is not split, such as 3 key heads on 2 tensor
    devices: `undivided` lists these places.
    """
    return NamedSharding(self.mesh, partition_spec(shape, axes, self.mesh.shape, self.rules))

  def ways(self, axis: str) -> int:
    """Returns the number of parts of a dimension with this logical axis, if its size allows."""
    wanted = dict(self.rules).get(axis) or ()
    return int(np.prod([
        self.mesh.shape[name]
        for name in ((wanted,) if isinstance(wanted, str) else wanted)]))

  def params(self, shapes: Params, axes: Params) -> Params:
    """Returns the sharding of each parameter.

    Args:
      shapes: shapes of the parameters.
      axes: their logical axes (models.transformer.parameter_axes). Further dimensions, at the end,
        are not split.
    """
    return jax.tree.map(
        lambda x, spec: self.sharding(x.shape, (*spec, *[None] * (x.ndim - len(spec)))),
        shapes, axes)

  def state(
      self, abstract: LearnerState, param_shardings: Params,
      optimizer: optax.GradientTransformation, *, trained_shardings: Params | None = None,
  ) -> LearnerState:
    """Returns the sharding of each array of a LearnerState.

    The optimizer's moments lie with their parameters.

    Args:
      abstract: shapes of the state.
      param_shardings: shardings of the parameters.
      optimizer: the optimizer whose state it is.
      trained_shardings: shardings of the parameters that the optimizer knows, if it does not know
        all (models.lora.partition).
    """
    whole = NamedSharding(self.mesh, PartitionSpec())
    # Where parts of the parameters have optimizers of their own, each optimizer's state has nodes
    # without arrays for the other parts.
    def absent(x):
      return isinstance(x, optax.MaskedNode)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda x, sharding: x if absent(x) else sharding, abstract.opt_state,
        param_shardings if trained_shardings is None else trained_shardings,
        transform_non_params=lambda _: whole, is_leaf=absent)
    return LearnerState(step=whole, params=param_shardings, opt_state=opt_state)

  def undivided(self, shapes: Params, axes: Params) -> list[str]:
    """Lists parameters that a rule would split but the mesh axis does not divide, for the log."""
    out = []
    for (path, x), spec in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(axes)):
      for size, axis in zip(x.shape, spec):
        ways = self.ways(axis)
        if ways > 1 and size % ways:
          out.append(f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {axis}={size} over"
                     f" {ways} devices")
    return out

  def place(self, tree: Any, axes: Sequence[str | None]) -> Any:
    """Makes global arrays of host arrays that are the same on every process.

    Args:
      tree: host arrays.
      axes: logical axes of their leading dimensions; further dimensions are not split.
    """
    def one(x, like):
      return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])
    tree = jax.tree.map(np.asarray, tree)
    return jax.tree.map(one, tree, self.placed_shapes(tree, axes))

  def placed_shapes(self, tree: Any, axes: Sequence[str | None]) -> Any:
    """Returns the shapes, dtypes and shardings of what `place` makes of host arrays."""
    def one(x):
      sharding = self.sharding(x.shape, (*axes, *[None] * (x.ndim - len(axes))))
      return jax.ShapeDtypeStruct(
          x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding)
    return jax.tree.map(one, tree)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Asks the compiler to lay out x as the current rules say.

  It does nothing outside of `Partitioning.use`. It is used instead of linen's
  with_logical_constraint, which also splits dimensions that the mesh does not divide: the gradient
  of an embedding lookup that is split in this way is wrong (jax 0.10: 2 rows over 4 devices).
  """
  rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, mesh.shape, rules))


def map_shards(
    fn: Callable[..., jax.Array], args: Sequence[jax.Array], axes: Sequence[Sequence[str | None]],
    out_axes: Sequence[str | None],
) -> jax.Array:
  """Computes fn(*args) on every device for its own shards, for kernels the compiler cannot split.

  Args:
    fn: function of arrays with any sizes, which treats what lies along named axes separately.
    args: the arrays.
    axes: logical axes of each argument. A name is split in the same way in all arguments, so it is
      split only as far as the devices divide each of them.
    out_axes: logical axes of the result.
  """
  rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return fn(*args)
  # The greatest common divisor of a name's sizes is what the devices have to divide.
  sizes = {}
  for x, names in zip(args, axes, strict=True):
    for size, name in zip(x.shape, names, strict=True):
      if name is not None:
        sizes[name] = math.gcd(size, sizes.get(name, 0))
  split = dict(zip(sizes, partition_spec(list(sizes.values()), list(sizes), mesh.shape, rules)))
  *in_specs, out_specs = (
      PartitionSpec(*(split.get(name) for name in names)) for names in (*axes, out_axes))
  # Unchecked: a Pallas kernel does not say over which mesh axes its result varies.
  return jax.shard_map(fn, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)(*args)


def fetch(x: jax.Array) -> np.ndarray:
  """Returns the whole array, on the host of every process."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)


def gather_rows(x: np.ndarray) -> np.ndarray:
  """Joins the rows that each process has for itself: on every process, in process order."""
  return x if jax.process_count() == 1 else np.asarray(
      multihost_utils.process_allgather(x, tiled=True))


def gather_objects(own: Any) -> list[Any]:
  """Lists every process's plain data, as JSON holds it: on every process, in process order."""
  if jax.process_count() == 1:
    return [own]
  # As bytes, padded to one length, because processes can only gather arrays of one shape.
  text = np.frombuffer(json.dumps(own).encode(), np.uint8)
  lengths = gather_rows(np.array([len(text)]))
  padded = gather_rows(np.pad(text, (0, lengths.max() - len(text)))[None])
  return [json.loads(row[:length].tobytes()) for row, length in zip(padded, lengths)]


def any_process(flag: bool) -> bool:
  """Tells whether the flag is true on any process, so that all processes can act alike."""
  return bool(gather_rows(np.array([flag])).any())


@functools.cache
def is_main_process() -> bool:
  """Tells whether this is the process that writes files and prints."""
  return jax.process_index() == 0
