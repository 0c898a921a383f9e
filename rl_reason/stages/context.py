"""Holds what a stage is given: its run, and what it may ask of earlier stages."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rl_reason.models import transformer
from rl_reason.models.sources import PolicySource
from rl_reason.rewards.learned import Models
from rl_reason.rollout.episodes import BoundedEnvironment
from rl_reason.rollout.sampler import Sampler
from rl_reason.runtime.randomness import fold
from rl_reason.runtime.sharding import Partitioning
from rl_reason.scorers.scorer import Scorer
from rl_reason.stages.base import first_rows, Trained
from rl_reason.types import Params, Task


class Earlier(Protocol):
  """What a stage may ask of the stages before it.

  sections: the checked sections of the stages before it, by name, in order.
  """
  sections: Mapping[str, Any]

  def trained(self, name: str) -> Trained:
    """Describes what an earlier stage leaves, without reading it.

    Raises: ValueError if there is no such stage.
    """

  def policies(self) -> list[str]:
    """Lists what a policy may be called here: "initial", and the earlier stages that train one."""

  def finished(self, name: str) -> Any:
    """Reads what an earlier stage left, from its newest checkpoint. Raises: ValueError, OSError."""

  def policy(self, name: str, field: str = "start") -> Params:
    """Reads a policy by its name in `policies`, "" being the last of them.

    Args:
      field: of the asking stage's section, for errors.
    Raises: ValueError for another name; OSError if it cannot be read.
    """

  def scorer(self, name: str) -> Scorer:
    """Returns a model that scores: of an earlier stage, or of another run by its "workdir:stage".

    It lies on the devices that sample. Its parameters are read at the first use.
    Raises: ValueError for what is no such model.
    """


@dataclasses.dataclass(frozen=True)
class NothingEarlier:
  """The Earlier of a stage that stands alone, outside of a run."""
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def trained(self, name: str) -> Trained:
    raise ValueError(f"There is no stage {name!r}: this stage is not part of a run.")

  def policies(self) -> list[str]:
    return ["initial"]

  def finished(self, name: str) -> Any:
    raise ValueError(f"There is no stage {name!r}: this stage is not part of a run.")

  def policy(self, name: str, field: str = "start") -> Params:
    raise ValueError(
        f"{field}={name!r} names a policy of a run, and this stage is not part of one.")

  def scorer(self, name: str) -> Scorer:
    raise ValueError(f"{name!r} names a model of a run, and this stage is not part of one.")


@dataclasses.dataclass(frozen=True)
class Context:
  """What a stage is given: what is the same for all stages of its run, and what came before it.

  seed: of the run; every random key is folded from it.
  policy: architecture, tokenizer and initial parameters.
  dtype: of the computation; parameters stay float32.
  task: problems; None where all stages have data of their own, and policies are not evaluated.
  max_prompt_tokens: longer prompts are an error.
  partitioning: of the devices that update.
  environment: who answers a policy's turns; None: a completion is one turn.
  prefill_tokens: prompts are read in stretches of `n` tokens; 0: whole.
  rollout_partitioning: of devices that only sample, and run the models of learned rewards; None:
    `partitioning` does.
  earlier: what this stage may ask of those before it.
  """
  seed: int
  policy: PolicySource
  dtype: jnp.dtype
  task: Task | None
  max_prompt_tokens: int
  partitioning: Partitioning
  environment: BoundedEnvironment | None = None
  prefill_tokens: int = 0
  rollout_partitioning: Partitioning | None = None
  earlier: Earlier = NothingEarlier()

  @property
  def on_sampling_devices(self) -> "Context":
    """Returns this context on the devices that sample during updates, which may be the same."""
    if self.rollout_partitioning is None:
      return self
    return dataclasses.replace(
        self, partitioning=self.rollout_partitioning, rollout_partitioning=None)

  @property
  def sampler(self) -> Sampler:
    """Makes the sampler of completions of this run's policies."""
    return Sampler(
        self.policy.config, self.policy.tokenizer, self.dtype, self.max_prompt_tokens,
        self.prefill_tokens, self.environment)

  @property
  def models(self) -> Models:
    """What the learned rewards of this stage may ask for."""
    return Models(self.policy.tokenizer, self.earlier.scorer)

  def initial_params(self) -> Params:
    """Makes the policy before any stage: random, or read from files; the same at every call."""
    return self.policy.make_params(self.rng("params"), self.param_shardings)

  def solutions(self, count: int) -> list[tuple[Any, str]]:
    """Lists (prompt, solution) of the first `count` training problems that have one in text."""
    problems = first_rows(self.task.train, count) if self.task is not None else []
    return [(p.prompt, p.solution) for p in problems if p.solution and isinstance(p.solution, str)]

  def rng(self, *names: str | int) -> PRNGKeyArray:
    """Folds a key from (seed, names): nothing to save, and a new consumer shifts no other."""
    return fold(jax.random.key(self.seed), *names)

  def stream_seed(self, *names: str | int) -> int:
    """Draws a seed in [0, 2^32) for what takes a number, such as a stage's data order."""
    return int(jax.random.bits(self.rng(*names)))

  @property
  def param_shardings(self) -> Params:
    return jax.tree.map(lambda x: x.sharding, self.abstract_params)

  @property
  def abstract_params(self) -> Params:
    """Describes the policy's parameters: shapes, dtypes and shardings."""
    config = self.policy.config
    return self.abstract(transformer.abstract_params(config), transformer.parameter_axes(config))

  def abstract(self, shapes: Params, axes: Params) -> Params:
    """Adds to shapes and dtypes the shardings that their logical axes get on this mesh."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                        self.partitioning.params(shapes, axes))
