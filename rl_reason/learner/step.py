"""Makes one update: gradients over microbatches, then one optimizer step, refused if not finite.

In short: state + minibatch -> new state, metrics.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rl_reason.arrays import LearnerState
from rl_reason.config.checks import at_least, one_of
from rl_reason.learner.optimizers import learning_rate_of, make_optimizer, Optimizer
from rl_reason.models import lora, transformer
from rl_reason.models.lora import LoRA
from rl_reason.objectives.losses import LossStatistics
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Params

# (parameters, microbatch) -> (loss, statistics). A batch is a RolloutBatch, a TextBatch, or a batch
# of a stage's own kind.
LossFn = Callable[[Params, Any], tuple[jax.Array, LossStatistics]]


@dataclasses.dataclass(frozen=True)
class Update:
  """Says how a stage updates what it trains: the field `learner` of its section.

  optimizer: the optimizer, with its learning rate and schedule.
  microbatches: parts of a minibatch that are processed one by one, to save memory; 0: the number
    with which this machine is fastest (batches.packing.num_passes).
  remat: what the backward pass computes again (models.transformer.REMAT_POLICIES).
  lora: with rank above 0 low-rank adapters are trained and the policy is frozen.
  """
  optimizer: Optimizer
  microbatches: int = 0
  remat: str = "none"
  lora: LoRA = LoRA()

  def __post_init__(self):
    at_least(0, microbatches=self.microbatches)
    one_of(transformer.REMAT_POLICIES, remat=self.remat)


def skipped_in_a_row(state: LearnerState) -> jax.Array:
  """Counts updates refused in a row because a gradient was not finite; 0 after a good one."""
  return state.opt_state.notfinite_count


def init_state(params: Params, optimizer: optax.GradientTransformation) -> LearnerState:
  """Makes the state before the first update.

  The optimizer's state is that of what is trained (lora.partition): all parameters, or only the
  adapters.
  """
  return LearnerState(
      step=jnp.zeros((), jnp.int32), params=params,
      opt_state=optimizer.init(lora.partition(params)[0]))


def train_step(
    state: LearnerState, microbatches: Any, *, loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    lookahead: Callable[[Params, Params], tuple[Params, dict[str, jax.Array]]] | None = None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
  """Makes one optimizer step on one minibatch.

  It changes what is trained. Frozen parameters have no gradients and stay as they are.

  Args:
    state: the state before the step.
    microbatches: a batch whose every array has a leading axis of A microbatches, which are
      processed one after the other. Their token_weights sum to 1 over all A, so that A changes
      memory and not the result.
    loss_fn: (params, microbatch) -> (loss, LossStatistics).
    optimizer: the optimizer, which refuses non-finite gradients.
    lookahead: (what is trained, what is frozen) -> (the parameters at which the gradient is taken
      instead, metrics of its own); None: the gradient is taken at what is trained.

  Returns: the new state and metrics; `skipped_in_a_row` is above 0 where the update was refused.
  """
  # Nested on purpose: JAX differentiates and scans over functions of what this step is given.

  # 1. Choose where the gradient is taken.
  trained, frozen = lora.partition(state.params)
  at, told = (trained, {}) if lookahead is None else lookahead(trained, frozen)

  # Jitted, so that its shapes and the body of the loop are traced once.
  @functools.partial(jax.jit, inline=True)
  def gradient(trained, frozen, batch):
    (_, statistics), grads = jax.value_and_grad(
        lambda trained: loss_fn(lora.combine(trained, frozen), batch), has_aux=True)(trained)
    return grads, statistics

  def one(i):
    return gradient(at, frozen, jax.tree.map(lambda x: x[i], microbatches))

  # 2. Sum gradients and statistics over the microbatches.
  num = jax.tree.leaves(microbatches)[0].shape[0]
  if num == 1:
    grads, statistics = one(0)
  else:
    def add(carry, i):
      grads, statistics = carry
      new_grads, new_statistics = one(i)
      return (jax.tree.map(jnp.add, grads, new_grads), statistics.merge(new_statistics)), None
    # All microbatches go through one loop that starts from zeros. If the first one came before the
    # loop, XLA would unroll a loop of one step, and the activations of both microbatches would live
    # at once.
    grads, statistics = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jnp.int32(0)))
    # Maxima start from −inf, sums from 0.
    statistics = statistics.replace(maxima=jax.tree.map(lambda x: x - jnp.inf, statistics.maxima))
    (grads, statistics), _ = jax.lax.scan(add, (grads, statistics), jnp.arange(num))

  # 3. Step the optimizer, on what is trained only.
  updates, opt_state = optimizer.update(grads, state.opt_state, trained)
  params = lora.combine(optax.apply_updates(trained, updates), frozen)
  state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  metrics = {**told, **statistics.metrics(), "grad_norm": optax.tree.norm(grads),
             "update_norm": optax.tree.norm(updates),
             "skipped_in_a_row": skipped_in_a_row(state)}
  return state, metrics


@dataclasses.dataclass(frozen=True)
class Learner:
  """Holds what learns: an optimizer, and the state from which its updates start.

  optimizer: the optimizer, which refuses non-finite gradients.
  init: () -> the sharded initial state.
  state_shape: shapes of the state, with shardings; known without computing the state.
  learning_rate: (optimizer's state) -> the learning rate of the next update, which is logged; of
    the policy where a critic is trained beside it.
  """
  optimizer: optax.GradientTransformation
  init: Callable[[], LearnerState]
  state_shape: LearnerState
  learning_rate: Callable[[optax.OptState], jax.Array]

  @property
  def shardings(self) -> LearnerState:
    """Returns the sharding of each array of the state."""
    return jax.tree.map(lambda x: x.sharding, self.state_shape)


def make_learner(
    partitioning: Partitioning, shapes: Params, params: Params | Callable[[], Params],
    section: Optimizer, num_updates: int, *, optimizer: optax.GradientTransformation | None = None,
    part: str = "",
) -> Learner:
  """Makes the learner of some parameters.

  Args:
    partitioning: the devices that update.
    shapes: shapes of the parameters, with shardings (Trained.shapes).
    params: the parameters from which the learner starts, or a function that makes them.
    section: the optimizer's configuration.
    num_updates: updates over which the learning rate follows its schedule.
    optimizer: an optimizer to use in place of the section's.
    part: the part of that optimizer that is the section's; "": it has no parts.
  """
  optimizer = optimizer or make_optimizer(section, num_updates)

  def start(params):
    # A copy: the learner's arrays are donated at every update, but the caller's must live on.
    return init_state(jax.tree.map(jnp.copy, params), optimizer)

  # The shapes of the state come first, then their shardings: nothing is computed for them.
  plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
  state = jax.eval_shape(start, plain)
  param_shardings = jax.tree.map(lambda x: x.sharding, shapes)
  shardings = partitioning.state(
      state, param_shardings, optimizer, trained_shardings=lora.partition(param_shardings)[0])
  state_shape = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

  def init():
    return jax.jit(start, out_shardings=shardings)(params() if callable(params) else params)
  return Learner(optimizer, init, state_shape, learning_rate_of(section, num_updates, part))


def make_update(
    learner: Learner, loss_fn: LossFn, *, lookahead: Callable[..., Any] | None = None,
    finish: Callable[..., Any] | None = None,
) -> Callable[..., tuple[LearnerState, dict[str, jax.Array]]]:
  """Makes the jitted update of a stage: (state, microbatches, extra) -> (state, metrics).

  The update donates the state and keeps its shardings, so that one program serves all updates.

  Args:
    learner: the optimizer, and the shape of the state.
    loss_fn: (params, microbatch) -> (loss, LossStatistics). A loss with a parameter `step` is also
      given the number of updates before, from which to fold keys.
    lookahead: as in train_step, with `extra` as its first argument; unused where `extra` is None.
    finish: (state, metrics) -> (state, metrics), called after the optimizer's step.
  """
  wants_step = "step" in inspect.signature(loss_fn).parameters

  def update(state, microbatches, extra=None):
    loss = functools.partial(loss_fn, step=state.step) if wants_step else loss_fn
    ahead = None if extra is None else functools.partial(lookahead, extra)
    rate = learner.learning_rate(state.opt_state)
    state, metrics = train_step(
        state, microbatches, loss_fn=loss, optimizer=learner.optimizer, lookahead=ahead)
    metrics = {**metrics, "learning_rate": rate}
    return (state, metrics) if finish is None else finish(state, metrics)

  return jax.jit(update, donate_argnums=0, out_shardings=(learner.shardings, None))


def run_update(
    update: Callable[..., tuple[LearnerState, dict[str, jax.Array]]], state: LearnerState,
    microbatches: Any, *extra: Any,
) -> tuple[LearnerState, dict[str, float], int]:
  """Makes one update and waits for it.

  Args:
    update: what `make_update` returned.
    state: the state before the update; it is donated.
    microbatches: as in train_step.
    extra: what the update's lookahead needs, if anything.

  Returns: (state, metrics as host numbers, updates refused in a row).
  """
  with jax.profiler.TraceAnnotation("update"):  # Names the update in a profile's timeline.
    state, metrics = update(state, microbatches, *extra)
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
  return state, metrics, int(metrics.pop("skipped_in_a_row"))
