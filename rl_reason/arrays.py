"""Structures that travel on devices: batches, the learner's state, and their masks."""

import flax.struct
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax

from rl_reason.types import Params


@flax.struct.dataclass
class PromptBatch:
  """Tokenised prompts, right-padded: row p holds `lengths[p]` real tokens, the rest is padding of any value."""
  tokens: Int[Array, "P S"]
  lengths: Int[Array, "P"]


@flax.struct.dataclass
class RolloutBatch:
  """What one update reads: P prompts with G completions each, B = P * G; group p is rows p*G ... p*G + G - 1.

  prompts: the P prompts, stored and computed once per group.
  completions: token ids, right-padded; EOS is part of the completion.
  completion_lengths: real tokens per completion; masks are made from these, never from comparing ids.
  behaviour_logprobs: nats, of the distribution that was sampled from (temperature and filters applied); any value where padded.
  advantages: one number per completion token.
  reference_logprobs: nats under the reference policy, or behaviour_logprobs where no KL penalty is asked for.
  token_weights: each token's share in the loss; they sum to 1 over a minibatch (losses.token_weights).
  behaviour_values, returns: of a critic: V before each token at the time of sampling, and what to fit V to; of a token reward
    model its numbers then, and whether the completion is right; else None.
  segments: None, or rl_reason.batches.packing put several of a group's completions into each row: per token, the place in its row
    where its completion begins. B and T are then those of the rows, and completion_lengths their real tokens.
  observed: None, or true at tokens of a completion that an environment wrote: they are read, and nothing else.
  """
  prompts: PromptBatch
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

  tokens, lengths: of the rows; lengths count real tokens.
  segments: None, or per token the place in its row where its text begins.
  targets: the places in each row of the tokens that are learnt, as many as `target_lengths` says, then any.
  token_weights: each target's share in the loss; they sum to 1 over a minibatch (losses.token_weights).
  """
  tokens: Int[Array, "R T"]
  lengths: Int[Array, "R"]
  targets: Int[Array, "R K"]
  target_lengths: Int[Array, "R"]
  token_weights: Float[Array, "R K"]
  segments: Int[Array, "R T"] | None = None

  @property
  def target_mask(self) -> Bool[Array, "R K"]:
    return length_mask(self.target_lengths, self.targets.shape[1])


@flax.struct.dataclass
class LearnerState:
  """All that one update reads and writes. It holds no random keys: randomness is folded from (seed, stream, step)."""
  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState


def length_mask(lengths: Int[Array, "N"], size: int) -> Bool[Array, "N size"]:
  """True at the first `lengths[n]` of `size` positions; on the host where the lengths are."""
  return np.arange(size) < lengths[:, None]


def sampled_mask(
    lengths: Int[Array, "N"], size: int, observed: Bool[Array, "N size"] | None) -> Bool[Array, "N size"]:
  """True at the tokens of completions that the policy sampled: within the lengths, and not an environment's."""
  mask = length_mask(lengths, size)
  return mask if observed is None else mask & ~observed
