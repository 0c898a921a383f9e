"""Holds what is the same for all stages of a run.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rl_reason.arrays import PromptBatch
from rl_reason.models import transformer
from rl_reason.models.sources import PolicySource
from rl_reason.rewards.learned import Models
from rl_reason.rollout import generate
from rl_reason.rollout.episodes import Environment, play
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime.randomness import fold
from rl_reason.runtime.sharding import Partitioning
from rl_reason.scorers.scorer import Scorer
from rl_reason.stages.base import first_rows
from rl_reason.types import Params, Problem, Task


@dataclasses.dataclass(frozen=True)
class Context:
  """What is the same for all stages of a run.

  task: None where all stages have data of their own, and policies are not evaluated.
  environment: who answers a policy's turns; None: a completion is one turn.
  rollout_partitioning: of devices that only sample, and run the models of learned rewards; None: `partitioning` does.
  sections: the checked section of each stage by name, in order.
  finished: (name of a stage that is complete) -> its parameters, as `trained` of that stage says, read from its newest
    checkpoint: stages use each other's models by name.
  policy_at: (a stage, a field of its section, its value) -> the policy that this value names, as `start` does.
  scorer: (name, stages that are earlier) -> a model for learned rewards, as Models.find says.
  """
  seed: int
  policy: PolicySource
  dtype: jnp.dtype
  task: Task | None
  max_prompt_tokens: int
  partitioning: Partitioning
  environment: Environment | None = None
  prefill_tokens: int = 0
  rollout_partitioning: Partitioning | None = None
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  finished: Callable[[str], Params] | None = None
  policy_at: Callable[[str, str, str], Params] | None = None
  scorer: Callable[[str, Sequence[str]], Scorer] | None = None

  @property
  def sampler(self) -> "Context":
    """The same on the devices that sample during updates (stages.ahead), which may be these."""
    if self.rollout_partitioning is None:
      return self
    return dataclasses.replace(self, partitioning=self.rollout_partitioning, rollout_partitioning=None)

  def complete(
      self, params: Params, problems: Sequence[Problem], prompts: PromptBatch, sampling: Sampling, **options: Any,
  ) -> Completions:
    """Completions of the policy, in turns where there is an environment.

    Args:
      problems: as in rollout.play. options: of rollout.generate: group_size, rng and others.
    """
    given = (self.policy.config, params, prompts, sampling)
    options |= dict(dtype=self.dtype, prefill_tokens=self.prefill_tokens)
    tokenizer = self.policy.tokenizer
    if self.environment is not None:
      return play(*given, environment=self.environment, problems=problems, tokenizer=tokenizer, **options)
    return generate(*given, stop_ids=tokenizer.stop_ids, decode_text=tokenizer.decode, **options)

  def sampled_batch(self, prompts: int, group_size: int, sampling: Sampling) -> memory_lib.Batch:
    """What a device decodes at once, for the estimate of memory; later turns read a context for each completion."""
    if self.environment is None:
      return memory_lib.Batch(prompts, group_size, self.max_prompt_tokens, sampling.max_tokens)
    turn = self.environment.turn_tokens
    return memory_lib.Batch(prompts * group_size, 1, self.max_prompt_tokens + self.environment.max_tokens - turn, turn)

  @property
  def prompt_bucket(self) -> int:
    """Prompts are padded to a multiple of it: few programs, little padding. Several processes pad to the limit, for each
    sees its own prompts only."""
    return 32 if jax.process_count() == 1 else self.max_prompt_tokens

  def name_of(self, section: Any) -> str:
    """Of the stage with this very section; "" where it is none of the run's."""
    return next((name for name, other in self.sections.items() if other is section), "")

  def earlier(self, stage: str) -> list[str]:
    """The stages before it; all where it is none of the run's."""
    return list(itertools.takewhile(lambda name: name != stage, self.sections))

  def models(self, section: Any) -> Models:
    """For the rewards of the stage with this very section."""
    earlier = self.earlier(self.name_of(section))
    return Models(self.policy.tokenizer, lambda name: self.scorer(name, earlier))

  def solutions(self, count: int) -> list[tuple[Any, str]]:
    """(prompt, solution) of those among the first `count` training problems that have one in text."""
    problems = first_rows(self.task.train, count) if self.task is not None else []
    return [(p.prompt, p.solution) for p in problems if p.solution and isinstance(p.solution, str)]

  def rng(self, *names: str | int) -> PRNGKeyArray:
    """A key folded from (seed, names): nothing to save, and a new consumer shifts no other."""
    return fold(jax.random.key(self.seed), *names)

  def stream_seed(self, *names: str | int) -> int:
    """A seed in [0, 2^32) for what takes a number, such as a stage's data order."""
    return int(jax.random.bits(self.rng(*names)))

  @property
  def param_shardings(self) -> Params:
    return jax.tree.map(lambda x: x.sharding, self.abstract_params)

  @property
  def abstract_params(self) -> Params:
    """Shapes, dtypes and shardings of the policy's parameters."""
    config = self.policy.config
    return self.abstract(transformer.abstract_params(config), transformer.parameter_axes(config))

  def abstract(self, shapes: Params, axes: Params) -> Params:
    """Shapes and dtypes, with the shardings that their logical axes get on this mesh."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                        self.partitioning.params(shapes, axes))
