"""Trains one step off-policy: a thread samples the next rollout while this one's update runs.

It samples on the devices of the update, or on others.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rl_reason.arrays import LearnerState
from rl_reason.rollout.record import Rollout
from rl_reason.stages.base import StepResult
from rl_reason.stages.context import Context
from rl_reason.types import Params, Problem


class Ahead:
  """Samples rollout i in step i and, meanwhile, updates on rollout i - 1.

  So each rollout was drawn by parameters one update old. The first step has nothing to update on.
  The last one updates on its own rollout as well, after the other: a run has as many rollouts and
  updates as a synchronous one. What is logged as `staleness` is the number of rollouts that were
  learnt from between sampling and learning. The rollout that waits is part of a checkpoint
  (`state`, `restore`).

  The policy's parameters are moved once per step to the devices that sample
  (Context.on_sampling_devices) or, where those devices update too, copied.
  """

  def __init__(
      self, context: Context, sample: Callable[[Params, list[Problem], int], Rollout],
      learn: Callable[[LearnerState, Rollout], tuple[LearnerState, StepResult]], num_steps: int,
      policy: Callable[[Params], Params] = lambda params: params):
    """Starts the thread that samples.

    Args:
      context: of the stage.
      sample: (the policy's parameters, problems, step index) -> a rollout.
      learn: (state, rollout) -> (state, what the step did).
      num_steps: of the stage.
      policy: picks the policy's parameters among the state's.
    """
    self._sampler, self._apart = (
        context.on_sampling_devices, context.rollout_partitioning is not None)
    self._sample, self._learn, self._last, self._policy = sample, learn, num_steps - 1, policy
    self._waiting: tuple[Rollout, float] | None = None  # With its staleness.
    self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")

  def step(
      self, state: LearnerState, problems: list[Problem], index: int,
  ) -> tuple[LearnerState, StepResult]:
    # Parameters for the thread, which samples while the update donates the state.
    params = self._policy(state.params)
    if self._apart:
      params = jax.device_put(params, self._sampler.param_shardings)
    if self._waiting is None:
      rollout, result = self._in_mesh(params, problems, index), StepResult({})
      self._waiting = rollout, 0.0
    else:
      if not self._apart:
        params = jax.tree.map(jnp.copy, params)  # The update donates its parameters.
      sampling = self._thread.submit(self._in_mesh, params, problems, index)
      del params  # The thread's to free.
      # If the update fails, `close` waits for the thread.
      state, result = self._update(state)
      rollout = sampling.result()
      self._waiting = rollout, 1.0
    # No later step would learn from the last rollout.
    if index == self._last:
      state, own = self._update(state)
      result = dataclasses.replace(own, skipped=max(own.skipped, result.skipped),
                                   updates=own.updates + result.updates)
    # What is logged of a step is the rollout it updated on, but its cost is that of the one it
    # sampled.
    calls = rollout.metrics["environment_calls"]
    return state, dataclasses.replace(
        result, tokens=rollout.metrics["tokens"], shown=rollout.shown,
        metrics={**rollout.seconds, **result.metrics, "environment_calls": calls})

  def _update(self, state: LearnerState) -> tuple[LearnerState, StepResult]:
    """Learns from the rollout that waits; after that none waits."""
    rollout, staleness = self._waiting
    state, result = self._learn(state, rollout)
    self._waiting = None
    metrics = {**result.metrics, "staleness": staleness}
    return state, dataclasses.replace(result, metrics=metrics)

  def _in_mesh(self, *args) -> Rollout:
    with self._sampler.partitioning.use():  # The mesh in use is a thread's own.
      return self._sample(*args)

  def state(self) -> Mapping[str, Any]:
    if self._waiting is None:
      return {"waiting": None}
    rollout, staleness = self._waiting
    return {"waiting": rollout.to_json(), "staleness": staleness}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._waiting = None if state["waiting"] is None else (
        Rollout.from_json(state["waiting"]), state["staleness"])

  def close(self) -> None:
    self._thread.shutdown()
