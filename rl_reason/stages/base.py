"""What a stage is given and what it hands to the training loop."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
import optax

from rl_reason import learner
from rl_reason.config import at_least, one_of
from rl_reason import memory as memory_lib
from rl_reason.memory import Part, sharded_bytes
from rl_reason.models import lora as lora_lib
from rl_reason.models import transformer
from rl_reason.models.lora import LoRA
from rl_reason.models.sources import PolicySource
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rewards.monitors import Monitors
from rl_reason.rollout import Completions, Environment, generate, play, Sampling
from rl_reason.scorer import Scorer
from rl_reason.sharding import Partitioning
from rl_reason.tasks import Source, Task
from rl_reason.types import LearnerState, Params, Problem, PromptBatch


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """name: a key of learner.OPTIMIZERS; args: its further arguments, e.g. {"b2": 0.99, "weight_decay": 0.0}.

  learning_rate: at its highest; schedule: constant, linear or cosine after warmup_steps updates.
  max_grad_norm: global-norm clipping; 0 for none.
  max_skipped: non-finite gradients in a row before the run stops (each is skipped and counted).
  """
  learning_rate: float
  name: str = "adamw"
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  schedule: str = "constant"
  warmup_steps: int = 0
  max_grad_norm: float = 1.0
  max_skipped: int = 5

  def __post_init__(self):
    at_least(0, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps, max_grad_norm=self.max_grad_norm)
    at_least(1, max_skipped=self.max_skipped)
    if not math.isfinite(self.learning_rate):
      raise ValueError(f"learning_rate must be finite, got {self.learning_rate}: one update would break all parameters.")
    one_of(learner.OPTIMIZERS, name=self.name)
    one_of(learner.SCHEDULES, schedule=self.schedule)


@dataclasses.dataclass(frozen=True)
class Models:
  """What learned rewards of a stage may ask for.

  tokenizer: the policy's.
  find: the name of an earlier stage, or "workdir" or "workdir:stage" of another run -> its model, which reads its
    parameters at first use. Raises ValueError for what is no such thing.
  """
  tokenizer: Tokenizer
  find: Callable[[str], Scorer]


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


def first_rows(source: Source, limit: int = 1000) -> list[Problem]:
  """Rows that a stage's `check` tries before any device work."""
  return [source[i] for i in range(min(limit, len(source)))]


def fold(key: PRNGKeyArray, *names: str | int) -> PRNGKeyArray:
  for name in names:
    number = name if isinstance(name, int) else int.from_bytes(name.encode()[:64], "little") % (2**32 - 5)
    key = jax.random.fold_in(key, number)
  return key


class Resumable(Protocol):
  """Something whose state belongs into a checkpoint, e.g. a RewardSet."""

  def state(self) -> Mapping[str, Any]: ...

  def restore(self, state: Mapping[str, Any]) -> None: ...


class Batches(Protocol):
  """Problems, a list per step on this process; resumable (tasks.pipeline.batches)."""

  def __next__(self) -> list[Problem]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...


# Parameters -> (metrics under "eval/", rows to keep as JSON).
Evaluate: TypeAlias = Callable[[Params], tuple[dict[str, float], list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a stage trains, known before it runs.

  shapes: of its parameters, with dtypes and shardings.
  policy: parameters -> the policy among them, for evaluations and for stages that start from it; None: it trains none.
  critic: parameters -> {"trunk": of a transformer of the policy's shape, "head": on its hidden states (models.heads)}, for
    critics that start from it; None: it trains none.
  """
  shapes: Params
  policy: Callable[[Params], Params] | None = lambda params: params
  critic: Callable[[Params], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """One way of training, ready to run; rl_reason.train runs its steps, saves, resumes, logs and evaluates.

  num_steps: calls of `step`.
  init: () -> LearnerState, sharded; state_shape: the same without computing it.
  data: this process's problems; `step` may take more of them than it is given.
  step: (state, problems, step index) -> (state, metrics as host numbers, a completion to show or ""). It may donate the
    state.
  resumable: by name, what else a checkpoint holds.
  max_skipped: non-finite updates in a row that stop the run.
  monitors: watch the metrics of steps and evaluations; they warn, or stop the run.
  evaluate: how good what it trains is, beside the run's own evaluation of the policy, if it trains one.
  close: frees worker processes and the like.
  """
  num_steps: int
  init: Callable[[], LearnerState]
  state_shape: LearnerState
  data: Batches
  step: Callable[[LearnerState, list[Problem], int], tuple[LearnerState, dict[str, float], str]]
  max_skipped: int
  resumable: Mapping[str, Resumable] = dataclasses.field(default_factory=dict)
  monitors: Monitors = dataclasses.field(default_factory=Monitors)
  evaluate: Evaluate | None = None
  close: Callable[[], None] = lambda: None


def clipped_optimizer(section: Optimizer, num_updates: int) -> optax.GradientTransformation:
  """learner.clipped_optimizer as a section says."""
  schedule = learner.make_schedule(
      section.schedule, learning_rate=section.learning_rate, warmup_steps=section.warmup_steps, num_updates=num_updates)
  return learner.clipped_optimizer(
      section.name, schedule=schedule, max_grad_norm=section.max_grad_norm, arguments=dict(section.args))


def make_learner(
    context: Context, params: Params, section: Optimizer, num_updates: int, *, shapes: Params | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[optax.GradientTransformation, Callable[[], LearnerState], LearnerState]:
  """(optimizer, init, state_shape): the optimizer, the sharded initial state on a copy of params, and its shape.

  Args:
    params: where it starts, or a function that makes it.
    shapes: of params, with shardings (Trained.shapes); None: those of the policy.
    optimizer: in place of the section's.
  """
  abstract = context.abstract_params if shapes is None else shapes
  optimizer = optimizer or learner.refuse_non_finite(clipped_optimizer(section, num_updates))

  def init_state(params):
    # A copy: the learner's arrays are donated at every update, the caller's must live on.
    return learner.init_state(jax.tree.map(jnp.copy, params), optimizer)

  state = jax.eval_shape(init_state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract))
  param_shardings = jax.tree.map(lambda x: x.sharding, abstract)
  shardings = context.partitioning.state(
      state, param_shardings, optimizer, trained_shardings=lora_lib.partition(param_shardings)[0])
  state_shape = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

  def init():
    return jax.jit(init_state, out_shardings=shardings)(params() if callable(params) else params)
  return optimizer, init, state_shape


def trained_policy(context: Context, lora: LoRA) -> Trained:
  """What a stage says of a policy that it trains whole, or with rank above 0 through adapters alone.

  With adapters its parameters, and so its checkpoints, hold the frozen policy too: each can be read without another.
  """
  if not lora.rank:
    return Trained(context.abstract_params)
  model = context.policy.config
  adapters = context.abstract(lora_lib.abstract_params(model, lora), lora_lib.parameter_axes(model, lora))
  return Trained({**context.abstract_params, **adapters}, policy=lora_lib.merge)


def with_adapters(context: Context, params: Params, lora: LoRA, name: str) -> Params:
  """The parameters that stage `name` trains (trained_policy), where `params` is the policy that it starts from: new
  adapters beside it that change nothing yet. For rank 0 `params` themselves."""
  if not lora.rank:
    return params
  shapes = trained_policy(context, lora).shapes
  shardings = {key: jax.tree.map(lambda x: x.sharding, shapes[key]) for key in shapes if key not in params}
  make = jax.jit(functools.partial(lora_lib.init_params, context.policy.config, lora), out_shardings=shardings)
  return {**params, **make(context.rng(name, "lora"))}


def merging_memory(context: Context, lora: LoRA, *phases: str) -> list[Part]:
  """What lora.merge makes of a policy with adapters, in these phases (memory.Part)."""
  return [Part("policy with its adapters merged", sharded_bytes(context.abstract_params),
               "spread over more devices with mesh.fsdp or mesh.tensor", phase) for phase in phases if lora.rank]
