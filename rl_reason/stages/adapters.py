"""Trains a policy whole, or through low-rank adapters beside it."""

import functools

import jax

from rl_reason.models import lora as lora_lib
from rl_reason.models.lora import LoRA
from rl_reason.runtime.memory import Part, sharded_bytes
from rl_reason.stages.base import Trained
from rl_reason.stages.context import Context
from rl_reason.types import Params


def trained_policy(context: Context, lora: LoRA) -> Trained:
  """Describes a policy that a stage trains whole, or with rank above 0 through adapters alone.

  With adapters the stage's parameters, and so its checkpoints, hold the frozen policy too: each
  checkpoint can be read without another.
  """
  if not lora.rank:
    return Trained(context.abstract_params)
  model = context.policy.config
  adapters = context.abstract(
      lora_lib.abstract_params(model, lora), lora_lib.parameter_axes(model, lora))
  return Trained({**context.abstract_params, **adapters}, policy=lora_lib.merge)


def with_adapters(context: Context, params: Params, lora: LoRA, name: str) -> Params:
  """Makes the parameters that stage `name` trains (trained_policy).

  Args:
    context: of the stage.
    params: the policy that the stage starts from.
    lora: the adapters' sizes.
    name: of the stage; its random key makes the adapters.

  Returns: `params` with new adapters beside it, which change nothing yet; for rank 0 `params`.
  """
  if not lora.rank:
    return params
  shapes = trained_policy(context, lora).shapes
  shardings = {
      key: jax.tree.map(lambda x: x.sharding, shapes[key]) for key in shapes if key not in params}
  make = jax.jit(
      functools.partial(lora_lib.init_params, context.policy.config, lora), out_shardings=shardings)
  return {**params, **make(context.rng(name, "lora"))}


def merging_memory(context: Context, lora: LoRA, *phases: str) -> list[Part]:
  """Estimates the memory of what lora.merge makes of a policy with adapters.

  Args:
    context: of the stage.
    lora: the adapters' sizes; none are needed for rank 0.
    phases: in which the merged policy is held (memory.Part).
  """
  return [Part("policy with its adapters merged", sharded_bytes(context.abstract_params),
               "spread over more devices with mesh.fsdp or mesh.tensor", phase)
          for phase in phases if lora.rank]
