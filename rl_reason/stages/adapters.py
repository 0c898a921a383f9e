"""Trains a policy whole, or through low-rank adapters beside it.
"""

import functools

import jax

from rl_reason.models import lora as lora_lib
from rl_reason.models.lora import LoRA
from rl_reason.runtime.memory import Part, sharded_bytes
from rl_reason.stages.base import Trained
from rl_reason.stages.context import Context
from rl_reason.types import Params


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
