"""Estimates what an update and a scoring pass hold in memory."""

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


def learner_parts(
    state: LearnerState, *, microbatches: int, start: Params | None = None) -> list[Part]:
  """Estimates what a stage holds all the time, and the gradients of what it trains.

  Args:
    state: the state_shape of a Stage.
    microbatches: number of microbatches of an update.
    start: shapes of the policy from which the stage starts; None: those of its own parameters.
  """
  params, trained = sharded_bytes(state.params), sharded_bytes(lora.partition(state.params)[0])
  spread = "spread over more devices with mesh.fsdp or mesh.tensor, or take a smaller policy"
  return [
      Part("parameters", params, spread),
      Part("policy the stage starts from", params if start is None else sharded_bytes(start),
           spread),
      Part("optimizer", sharded_bytes(state.opt_state), f"{spread}, or optimizer.name='sgd'"),
      # With several microbatches both their sum and the newest one's gradients are there.
      Part("gradients", trained * (2 if microbatches > 1 else 1), spread, "update"),
      Part("gradients and the optimizer's step", 2 * trained, spread, "optimizer step"),
  ]


def update_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype, remat: str,
) -> list[Part]:
  """Estimates the activations of one microbatch.

  They are what the forward pass saves, and what the backward pass of one layer makes of it.

  Args:
    model: architecture of the policy.
    partitioning: the devices that update.
    batch: sizes of one microbatch.
    dtype: dtype of the computation.
    remat: what the backward pass computes again.
  """
  everything = saved_activations(model, partitioning, batch, dtype=dtype, remat="none")
  saved = everything if remat == "none" else saved_activations(
      model, partitioning, batch, dtype=dtype, remat=remat)
  # What a user can change: remat only as long as it can save more.
  cure = "raise microbatches"
  if remat != "full":
    cure += ", set remat='full'" if remat == "dots" else ", set remat='dots' or 'full'"
  return [Part("activations", saved + everything / model.num_layers, cure, "update"),
          logits_part(model, partitioning, batch.completions * batch.completion_tokens, "update",
                      "raise microbatches")]


def scoring_parts(
    model: ModelConfig, partitioning: Partitioning, batch: Batch, *, dtype: jnp.dtype,
) -> list[Part]:
  """Estimates what a policy holds while it reads one part of a rollout.

  A rollout is read part by part (stages.policy_gradient.assemble). Nothing is saved for a backward
  pass, and only one layer's arrays are there at a time.
  """
  cure = "raise microbatches"
  tokens = batch.completions * batch.completion_tokens
  layer = layer_bytes(
      model, partitioning, tokens, batch.prompt_tokens + batch.completion_tokens, dtype)
  # The keys and values of the prompts, which the group's completions share.
  prompts = token_bytes(model, partitioning, dtype) * batch.prompts * batch.prompt_tokens
  return [
      Part("activations of scoring",
           (layer + prompts) / batch_ways(partitioning, batch.completions), cure, "scoring"),
      logits_part(model, partitioning, tokens, "scoring", cure)]
