"""Estimates what an update and a scoring pass hold in memory.
"""

import jax.numpy as jnp

from rl_reason.arrays import LearnerState
from rl_reason.models import lora
from rl_reason.models.config import ModelConfig
from rl_reason.models.memory import (
  batch_ways,
  layer_bytes,
  logits_part,
  saved_activations,
  token_bytes,
)
from rl_reason.runtime.memory import Batch, Part, sharded_bytes
from rl_reason.runtime.sharding import Partitioning
from rl_reason.types import Params


def learner_parts(state: LearnerState, *, microbatches: int, start: Params | None = None) -> list[Part]:
  """What the stage holds all along, and the gradients of what it trains.

  Args:
    state: a Stage's state_shape. start: shapes of the policy it starts from; None: those of its own parameters.
  """
  params, trained = sharded_bytes(state.params), sharded_bytes(lora.partition(state.params)[0])
  spread = "spread over more devices with mesh.fsdp or mesh.tensor, or take a smaller policy"
  return [
      Part("parameters", params, spread),
      Part("policy the stage starts from", params if start is None else sharded_bytes(start), spread),
      Part("optimizer", sharded_bytes(state.opt_state), f"{spread}, or optimizer.name='sgd'"),
      # With several microbatches, their sum and the newest one's.
      Part("gradients", trained * (2 if microbatches > 1 else 1), spread, "update"),
      Part("gradients and the optimizer's step", 2 * trained, spread, "optimizer step"),
  ]


def update_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, remat: str,
) -> list[Part]:
  """Activations of one microbatch: what the forward pass saves, and what one layer's backward pass makes of it."""
  everything = saved_activations(model, partitioning, batch, dtype=dtype, remat="none")
  saved = everything if remat == "none" else saved_activations(model, partitioning, batch, dtype=dtype, remat=remat)
  cure = "raise microbatches"
  if remat != "full":
    cure += ", set remat='full'" if remat == "dots" else ", set remat='dots' or 'full'"
  return [Part("activations", saved + everything / model.num_layers, cure, "update"),
          logits_part(model, partitioning, batch.completions * batch.completion_tokens, "update", "raise microbatches")]


def scoring_parts(model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype) -> list[Part]:
  """A policy reads one part of a rollout (stages.assemble). Nothing is saved for a backward pass, and one layer's
  arrays are there at a time."""
  cure = "raise microbatches"
  tokens = batch.completions * batch.completion_tokens
  layer = layer_bytes(model, partitioning, tokens, batch.prompt_tokens + batch.completion_tokens, dtype)
  prompts = token_bytes(model, partitioning, dtype) * batch.prompts * batch.prompt_tokens
  return [Part("activations of scoring", (layer + prompts) / batch_ways(partitioning, batch.completions),
               cure, "scoring"),
          logits_part(model, partitioning, tokens, "scoring", cure)]
