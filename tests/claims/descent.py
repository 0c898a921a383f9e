"""A kind of stage that tests of claims can afford: one number descends a parabola.

Runs of it are begun, killed, resumed and compared like any other, and compile next to nothing.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from rl_reason.stages.base import Kind, Stage, StepResult, Trained
from rl_reason.stages.probe.stage import NoProblems


@dataclasses.dataclass(frozen=True)
class Config:
  """The fields of a stage that descends.

  num_steps: steps of gradient descent on the loss (x - 1)^2, from an x between 0 and 0.01.
  learning_rate: of these steps.
  seconds: the pause in each step, so that a test can interrupt it.
  fails_with: the run's seed with which the first step raises; -1: none.
  """
  kind: str
  num_steps: int = 4
  learning_rate: float = 0.1
  seconds: float = 0.0
  fails_with: int = -1
  start: str = ""


def trained(config, context, name):
  del config, name
  everywhere = jax.sharding.NamedSharding(context.partitioning.mesh, jax.sharding.PartitionSpec())
  return Trained({"x": jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)}, policy=None)


def build(config, context, params, name):
  del params
  shapes = trained(config, context, name).shapes

  def placed(x):
    return {"x": jax.device_put(jnp.float32(x), shapes["x"].sharding)}

  def step(state, problems, index):
    del problems, index
    if context.seed == config.fails_with:
      raise RuntimeError("not this one")
    time.sleep(config.seconds)
    x = float(state["x"])
    x -= config.learning_rate * 2 * (x - 1)
    return placed(x), StepResult({"loss": (x - 1) ** 2}, tokens=1.0, updates=1)

  start = context.stream_seed("start") / 2 ** 32 / 100
  return Stage(num_steps=config.num_steps, init=lambda: placed(start), state_shape=shapes,
               step=step, data=NoProblems())


KIND = Kind(Config=Config, trained=trained, build=build, takes_problems=False)
