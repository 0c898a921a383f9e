"""Probes what earlier stages made: named functions of policies and reward models, run once each.

What a function returns is kept in the run: numbers in metrics.jsonl, arrays (a number per unit: per
problem, per pair, per token) in arrays/. A claim's metric reads them there, long after the models
are gone.

    c.stages = ("sft", "rm", "rl", "after")
    c.after = dict(kind="probe", functions=dict(
        best_of=dict(function="my_package.probes:best_of", args=dict(count=16))))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_reason.config import naming
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import memory as memory_lib
from rl_reason.scorers.scorer import Scorer
from rl_reason.stages.base import Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.types import Params, Problem, Sample


@dataclasses.dataclass(frozen=True)
class Config:
  """The fields of a probe stage. It has a step for each function.

  functions: name in the logs -> {"function": "package.module:function", "args": {...}}, or the
    dotted path alone. A function is called with a Probe and its args, and returns a mapping: name
    -> number, logged as "<function's name>/<name>", or array, saved.
  start: the policy that functions are given (run.earlier); "": the last one before this stage.
  """
  kind: naming.Name
  functions: Mapping[str, Any]
  start: str = ""

  def __post_init__(self):
    if not self.functions:
      raise ValueError("functions names no function, so there is nothing to probe: name one as"
                       " functions=dict(mine=dict(function='package.module:function')).")
    for name in self.functions:
      self.function(name)

  @property
  def num_steps(self) -> int:
    return len(self.functions)

  def function(self, name: str) -> tuple[Callable[..., Mapping[str, Any]], dict[str, Any]]:
    """Finds a function and its arguments. Raises: ValueError for what cannot be called."""
    entry = self.functions[name]
    entry = {"function": entry} if isinstance(entry, str) or callable(entry) else entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args", {}), Mapping):
      raise ValueError(f"functions[{name!r}] must be a path 'package.module:function', or a section"
                       f" with it as `function` and with a section `args`, got {entry!r}.")
    entry = dict(entry)
    path, args = entry.pop("function", name), dict(entry.pop("args", {}))
    if entry:
      raise ValueError(f"functions[{name!r}] has unknown fields {', '.join(entry)}. Its fields:"
                       " function, args.")
    function = naming.find(f"function of the probe {name!r}", path, {})
    naming.check_arguments(f"The probe {name!r}: {path}", function, args, positional=1)
    return function, args


@dataclasses.dataclass(frozen=True)
class Probe:
  """What a probe's function is given.

  context: of the probe stage: the task, the sampler, the seed, and what earlier stages made.
  params: the policy that the stage starts from.
  """
  context: Context
  params: Params

  def sample(
      self, problems: Sequence[Problem], sampling: Sampling, *, policy: str = "",
      group_size: int = 1, slots: int = 0, seed: int = 0,
  ) -> tuple[list[Sample], Completions]:
    """Samples completions of each problem.

    Args:
      policy: whose: "initial" or an earlier stage; "": the one that the stage starts from.
      slots: completions decoded at once; 0: all.
      seed: of the draws.
    Returns: (samples, completions), those of a problem one after the other.
    """
    context, params = self.context, self.params
    if policy:
      params = context.earlier.policy(policy, "policy")
    completions = context.sampler(
        params, problems, context.sampler.encode(problems, bucket=32), sampling,
        group_size=group_size, slots=slots, rng=jax.random.key(seed))
    return context.sampler.samples(problems, completions, sampling), completions

  def scorer(self, stage: str) -> Scorer:
    """Returns the model of an earlier stage that scores texts."""
    return self.context.earlier.scorer(stage)


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes the number of functions that were run; what they found is in the run's folder."""
  del config, name
  return Trained({"done": jax.ShapeDtypeStruct((), jnp.int32, sharding=_replicated(context))},
                 policy=None)


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs at least: the policy. A function's own needs are not known."""
  del config, name
  return [memory_lib.Part(
      "policy that is probed", memory_lib.sharded_bytes(context.abstract_params),
                          "spread it over more devices with mesh.fsdp or mesh.tensor")]


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage: a step runs a function."""
  shapes, probe = trained(config, context, name).shapes, Probe(context, params)

  def counted(done: int):
    return {"done": jax.device_put(jnp.int32(done), shapes["done"].sharding)}

  def step(state, problems, index):
    del state, problems
    label = list(config.functions)[index]
    function, args = config.function(label)
    numbers, arrays = split(label, function(probe, **args))
    return counted(index + 1), StepResult(
        {f"{label}/{k}": v for k, v in numbers.items()},
        arrays={f"{label}/{k}": v for k, v in arrays.items()} if arrays else {})

  return Stage(num_steps=config.num_steps, init=lambda: counted(0), state_shape=shapes, step=step,
               data=NoProblems())


def split(label: str, found: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Splits what a function returned into numbers and arrays.

  Raises: ValueError naming the function for what is neither.
  """
  if not isinstance(found, Mapping) or not found:
    raise ValueError(f"The probe {label!r} must return a mapping from names to numbers or arrays,"
                     f" got {found!r}.")
  numbers, arrays = {}, {}
  for key, value in found.items():
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
      raise ValueError(f"The probe {label!r} returned {key}={value!r}, which holds no numbers:"
                       " return numbers or arrays of them.")
    if array.ndim:
      arrays[key] = array
    else:
      numbers[key] = float(array)
  return numbers, arrays


class NoProblems(Iterator):
  """The data of a stage that takes no problems."""

  def __next__(self) -> list[Problem]:
    return []

  def get_state(self) -> dict[str, Any]:
    return {}

  def set_state(self, state: dict[str, Any]) -> None:
    del state


def _replicated(context: Context) -> jax.sharding.Sharding:
  return jax.sharding.NamedSharding(context.partitioning.mesh, jax.sharding.PartitionSpec())


# What a function needs of a task it finds in the context, or makes itself.
KIND = Kind(Config=Config, memory=memory, trained=trained, build=build, takes_problems=False)
