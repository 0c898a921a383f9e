"""Defines the structures that travel on devices: batches, the learner's state, and their masks."""

import flax.struct
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax

from rl_reason.types import Params


@flax.struct.dataclass
class Inputs:
  """What a forward pass reads: right-padded rows of tokens, and the images that belong to them.

  tokens: token ids; row n holds `lengths[n]` real tokens, and the rest is padding of any value.
  lengths: number of real tokens of each row.
  images: pixels in [0, 1] of each row's images, padded to I images of one size; None: there are no
    images.
  """
  tokens: Int[Array, "N S"]
  lengths: Int[Array, "N"]
  images: Float[Array, "N I height width 3"] | None = None


@flax.struct.dataclass
class RolloutBatch:
  """What one policy update reads: P prompts with G completions each, so B = P * G completions.

  The group of prompt p is the rows p*G ... p*G + G - 1.

  prompts: the P prompts, stored and computed once per group.
  completions: token ids, right-padded; EOS is part of the completion.
  completion_lengths: number of real tokens of each completion; masks are made from these lengths,
    never from comparing ids.
  behaviour_logprobs: log-probabilities in nats under the distribution that was sampled from, with
    temperature and filters applied; any value where padded.
  advantages: one number per completion token.
  reference_logprobs: log-probabilities in nats under the reference policy, or behaviour_logprobs
    where the stage has no KL penalty.
  token_weights: each token's share in the loss; the shares sum to 1 over a minibatch
    (objectives.losses.token_weights).
  behaviour_values: with a critic, V before each token, at the time of sampling; with a token reward
    model, the numbers it gave at that time; else None.
  returns: with a critic, what to fit V to; with a token reward model, whether the completion is
    right; else None.
  segments: None, unless rl_reason.batches.packing put several of a group's completions into each
    row. Then it is, for each token, the place in its row where its completion begins; B and T are
    those of the rows, and completion_lengths counts the real tokens of each row.
  observed: true at the tokens of a completion that an environment wrote, which the policy reads and
    does not learn; None: there are none.
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
    """True at the tokens that the policy sampled."""
    return sampled_mask(self.completion_lengths, self.completions.shape[1], self.observed)


@flax.struct.dataclass
class TextBatch:
  """What one supervised update reads: whole texts in R right-padded rows, one or several in each.

  inputs: the rows.
  targets: positions in each row of the tokens that are learnt: the first `target_lengths[r]` of row
    r, and any value after them.
  target_lengths: number of targets of each row.
  token_weights: each target's share in the loss; the shares sum to 1 over a minibatch
    (objectives.losses.token_weights).
  segments: for each token the place in its row where its text begins; None: a row holds one text.
  """
  inputs: Inputs
  targets: Int[Array, "R K"]
  target_lengths: Int[Array, "R"]
  token_weights: Float[Array, "R K"]
  segments: Int[Array, "R T"] | None = None

  @property
  def target_mask(self) -> Bool[Array, "R K"]:
    """True at the entries of `targets` that are targets."""
    return length_mask(self.target_lengths, self.targets.shape[1])


@flax.struct.dataclass
class LearnerState:
  """All that one update reads and writes.

  It holds no random keys: randomness is folded from (seed, stream, step).

  step: number of updates made.
  params: all parameters, trained and frozen.
  opt_state: the optimizer's state.
  """
  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState


def length_mask(lengths: Int[Array, "N"], size: int) -> Bool[Array, "N size"]:
  """Makes a mask that is true at the first `lengths[n]` of `size` positions of row n.

  The mask is a NumPy array where `lengths` is one, and else lies on the devices.
  """
  return np.arange(size) < lengths[:, None]


def sampled_mask(
    lengths: Int[Array, "N"], size: int, observed: Bool[Array, "N size"] | None,
) -> Bool[Array, "N size"]:
  """Makes a mask that is true at the tokens of completions that the policy sampled.

  Args:
    lengths: number of real tokens of each completion.
    size: tokens in a row, padding included.
    observed: true at the tokens that an environment wrote; None: there are none.
  """
  mask = length_mask(lengths, size)
  return mask if observed is None else mask & ~observed
