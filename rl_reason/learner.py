"""state + minibatch -> new state, metrics: gradients over microbatches, one optimizer step, refused if not finite."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rl_reason.losses import LossStatistics
from rl_reason.models import lora
from rl_reason.types import LearnerState, Params

# (parameters, microbatch) -> (loss, statistics); a batch is a RolloutBatch, a TextBatch or a stage's own.
LossFn = Callable[[Params, Any], tuple[jax.Array, LossStatistics]]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw, "sgd": optax.sgd, "lion": optax.lion, "adafactor": optax.adafactor}
SCHEDULES = ("constant", "linear", "cosine")


def make_schedule(kind: str, *, learning_rate: float, warmup_steps: int, num_updates: int) -> optax.Schedule:
  """Linear warm-up to `learning_rate`, then constant, or falling to 0 at update `num_updates` (linear or cosine)."""
  rest = max(1, num_updates - warmup_steps)
  after = {
      "constant": lambda: optax.constant_schedule(learning_rate),
      "linear": lambda: optax.linear_schedule(learning_rate, 0.0, rest),
      "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest),
  }[kind]()
  if not warmup_steps:
    return after
  # From 1/warmup, not 0: the first update of a run should do something.
  warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
  return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    name: str = "adamw", *, schedule: optax.Schedule, max_grad_norm: float = 1.0, arguments: dict[str, Any] | None = None,
) -> optax.GradientTransformation:
  """An optax optimizer behind global-norm clipping (0: none), which leaves all as it was on a non-finite gradient."""
  return refuse_non_finite(clipped_optimizer(
      name, schedule=schedule, max_grad_norm=max_grad_norm, arguments=arguments))


def clipped_optimizer(
    name: str, *, schedule: optax.Schedule, max_grad_norm: float, arguments: dict[str, Any] | None = None,
) -> optax.GradientTransformation:
  """An optax optimizer behind global-norm clipping (0: none); what train_step takes is `refuse_non_finite` of such."""
  inner = OPTIMIZERS[name](schedule, **(arguments or {}))
  return optax.chain(optax.clip_by_global_norm(max_grad_norm), inner) if max_grad_norm else inner


def refuse_non_finite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Leaves all as it was on a non-finite gradient.

  How often in a row that happened is `skipped_in_a_row(state)`; who runs the loop decides when that is too often.
  """
  never = jnp.iinfo(jnp.int32).max  # optax would apply the broken update after this many.
  return optax.apply_if_finite(inner, max_consecutive_errors=int(never))


def skipped_in_a_row(state: LearnerState) -> jax.Array:
  """Updates refused in a row because a gradient was not finite; 0 after a good one."""
  return state.opt_state.notfinite_count


def init_state(params: Params, optimizer: optax.GradientTransformation) -> LearnerState:
  """With the optimizer's state of what is trained (lora.partition): all parameters, or adapters alone."""
  return LearnerState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(lora.partition(params)[0]))


def train_step(
    state: LearnerState, microbatches: Any, *, loss_fn: LossFn, optimizer: optax.GradientTransformation,
    lookahead: Callable[[Params, Params], tuple[Params, dict[str, jax.Array]]] | None = None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
  """One optimizer step on one minibatch, of what is trained: frozen parameters have no gradients and stay as they are.

  Args:
    microbatches: a batch whose every array has a leading axis of A microbatches, gone through one after the
      other; their token_weights sum to 1 over all A, so that A changes memory and not the result.
    loss_fn: (params, microbatch) -> (loss, LossStatistics).
    lookahead: (what is trained, what is frozen) -> where instead of there the gradient is taken, and metrics of its own.

  Returns: the new state and metrics; `skipped_in_a_row` is above 0 where the update was refused.
  """
  trained, frozen = lora.partition(state.params)
  at, told = (trained, {}) if lookahead is None else lookahead(trained, frozen)

  @functools.partial(jax.jit, inline=True)  # So that its shapes and the loop's body are traced once.
  def gradient(trained, frozen, batch):
    (_, statistics), grads = jax.value_and_grad(
        lambda trained: loss_fn(lora.combine(trained, frozen), batch), has_aux=True)(trained)
    return grads, statistics

  def one(i):
    return gradient(at, frozen, jax.tree.map(lambda x: x[i], microbatches))

  num = jax.tree.leaves(microbatches)[0].shape[0]
  if num == 1:
    grads, statistics = one(0)
  else:
    def add(carry, i):
      grads, statistics = carry
      new_grads, new_statistics = one(i)
      return (jax.tree.map(jnp.add, grads, new_grads), statistics.merge(new_statistics)), None
    # All in one loop, from nothing: with the first one ahead of it XLA unrolls a loop of one step, and both
    # microbatches' activations live at once.
    grads, statistics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jnp.int32(0)))
    statistics = statistics.replace(maxima=jax.tree.map(lambda x: x - jnp.inf, statistics.maxima))
    (grads, statistics), _ = jax.lax.scan(add, (grads, statistics), jnp.arange(num))

  updates, opt_state = optimizer.update(grads, state.opt_state, trained)
  params = lora.combine(optax.apply_updates(trained, updates), frozen)
  state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  metrics = {**told, **statistics.metrics(), "grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates),
             "skipped_in_a_row": skipped_in_a_row(state)}
  return state, metrics


def split_microbatches(batch: Any, count: int) -> Any:
  """[N ...] -> [count, N / count ...] for every host array of a batch: what `train_step` goes through one by one."""
  return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch)


def split_parts(batch: Any, count: int) -> list[Any]:
  """The same parts apart from each other, for what is scored one by one."""
  return [jax.tree.map(lambda x, i=i: np.split(x, count)[i], batch) for i in range(count)]
