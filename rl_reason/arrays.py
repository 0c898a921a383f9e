"""Defines the structures that travel on devices: batches, the learner's state, and their masks."""

import flax.struct
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax

from rl_reason.types import Params


@flax.struct.dataclass
class Inputs:
  """Holds what a forward pass reads: right-padded rows of tokens, and the images of each row.

  tokens: row n holds `lengths[n]` real tokens; the rest is padding of any value.
  lengths: real tokens of each row.
  images: pixels of each row's images, padded to I images of one size, in [0, 1]; None: no images.
  """
  tokens: Int[Array, "N S"]
  lengths: Int[Array, "N"]
  images: Float[Array, "N I height width 3"] | None = None


@flax.struct.dataclass
class RolloutBatch:
  """Holds what one update reads: P prompts with G completions each, B = P * G.

  Group p is rows p*G ... p*G + G - 1.

  prompts: the P prompts, stored and computed once per group.
  completions: token ids, right-padded; EOS is part of the completion.
  completion_lengths: real tokens per completion. Masks are made from these lengths, never from
    comparing ids.
  behaviour_logprobs: nats, under the distribution that was sampled from (temperature and filters
    applied); any value where padded.
  advantages: one number per completion token.
  reference_logprobs: nats under the reference policy, or behaviour_logprobs where no KL penalty is
    asked for.
  token_weights: each token's share in the loss; they sum to 1 over a minibatch
    (objectives.losses.token_weights).
  behaviour_values: for a critic, V before each token at the time of sampling; for a token reward
    model, its numbers at that time; else None.
  returns: for a critic, the returns to which V is fitted; for a token reward model, whether the
    completion is right; else None.
  segments: None, or given where batches.packing put several of a group's completions into each row:
    per token, the place in its row where its completion begins. B and T are then those of the rows,
    and completion_lengths are the rows' real tokens.
  observed: None, or true at tokens of a completion that an environment wrote: they are only read.
  """
  prompts: Inputs
  completions: Int[Array, "B T"]
  completion_lengths: Int[Array, "B"]
  behaviour_logprobs: Float[Array, "B T"]
  advantages: Float[Array, "B T"]
  reference_logprobs: Float[Array, "B T"]
  token_weights: Float[Array, "B T"]
  behaviour_values: Float[Array, "B T"] | None = None
  returns: Float[Array, "B T"] | None = None
  segments: Int[Array, "B T"] | None = None
  observed: Bool[Array, "B T"] | None = None

  @property
  def completion_mask(self) -> Bool[Array, "B T"]:
    """Returns true at the tokens that the policy sampled."""
    return sampled_mask(self.completion_lengths, self.completions.shape[1], self.observed)


@flax.struct.dataclass
class TextBatch:
  """Holds what one supervised update reads: whole texts in R right-padded rows.

  Each row holds one text or several.

  inputs: the rows.
  targets: the places in each row of the tokens that are learnt; entries from `target_lengths` on
    may be any place.
  target_lengths: number of tokens that are learnt in each row.
  token_weights: each target's share in the loss; they sum to 1 over a minibatch
    (objectives.losses.token_weights).
  segments: None, or per token the place in its row where its text begins.
  """
  inputs: Inputs
  targets: Int[Array, "R K"]
  target_lengths: Int[Array, "R"]
  token_weights: Float[Array, "R K"]
  segments: Int[Array, "R T"] | None = None

  @property
  def target_mask(self) -> Bool[Array, "R K"]:
    """Returns true at the targets that exist."""
    return length_mask(self.target_lengths, self.targets.shape[1])


@flax.struct.dataclass
class LearnerState:
  """Holds all that one update reads and writes.

  It holds no random keys: randomness is folded from (seed, stream, step).

  step: number of updates before.
  params: all parameters of the model.
  opt_state: state of the optimizer.
  """
  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState


def length_mask(lengths: Int[Array, "N"], size: int) -> Bool[Array, "N size"]:
  """Returns true at the first `lengths[n]` of `size` positions; on the host if the lengths are."""
  return np.arange(size) < lengths[:, None]


def sampled_mask(
    lengths: Int[Array, "N"], size: int, observed: Bool[Array, "N size"] | None,
) -> Bool[Array, "N size"]:
  """Returns true at the tokens of completions that the policy sampled.

  These tokens are within the lengths, and no environment wrote them.
  """
  mask = length_mask(lengths, size)
  return mask if observed is None else mask & ~observed
