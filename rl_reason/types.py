"""The few structures that travel between rooms: problems, samples, device batches and the learner's state."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, TypeAlias

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax

Params: TypeAlias = Any  # A plain nested dict of arrays; models/transformer.py names the leaves.
Message: TypeAlias = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}.


@dataclasses.dataclass(frozen=True)
class Problem:
  """One row of a task: what the policy reads and what its completion is checked against.

  prompt: the text given to the policy, or chat messages that the tokenizer's template turns into text.
  reference: the answer that verifiers compare with.
  solution: a worked completion to imitate (supervised stages need it), or "".
  id: unique within its task and stable between runs.
  metadata: whatever else the row holds, for rewards that ask for it.
  """
  prompt: str | tuple[Message, ...]
  reference: str
  solution: str = ""
  id: str = ""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion on the host, as rewards see it.

  prompt, completion: text; the completion ends before its EOS token or stop string.
  reference, metadata: of the problem.
  completion_tokens: the sampled token ids, EOS included where it was sampled.
  truncated: the length limit ended the completion, not EOS or a stop string.
  group: the index of the prompt in this step's batch; a group's samples are adjacent.
  step: the training step it was sampled in (0 outside training).
  spans: named [start, end) token ranges of the completion, e.g. {"turn": [(0, 12), (30, 41)]}.
  """
  prompt: str
  completion: str
  reference: str
  completion_tokens: tuple[int, ...] = ()
  truncated: bool = False
  group: int = 0
  step: int = 0
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  spans: Mapping[str, Sequence[tuple[int, int]]] = dataclasses.field(default_factory=dict)


# Rewards: one number per sample, in the order given, or rewards.StepRewards. See rewards/__init__.py for the list.
RewardFn: TypeAlias = Callable[[Sequence[Sample]], Float[np.ndarray, "N"]]


@flax.struct.dataclass
class PromptBatch:
  """Tokenised prompts, right-padded: row p holds `lengths[p]` real tokens, the rest is padding of any value."""
  tokens: Int[Array, "P S"]
  lengths: Int[Array, "P"]


@flax.struct.dataclass
class RolloutBatch:
  """What one update reads: P prompts with G completions each, B = P * G; group p is rows p*G ... p*G + G - 1.

  prompts: the P prompts, stored and computed once per group.
  completions: sampled token ids, right-padded; EOS is part of the completion.
  completion_lengths: real tokens per completion; masks are made from these, never from comparing ids.
  behaviour_logprobs: nats, of the distribution that was sampled from (temperature and filters applied); any value where padded.
  advantages: one number per completion token.
  reference_logprobs: nats under the reference policy, or zeros where no KL penalty is asked for.
  token_weights: each token's share in the loss; they sum to 1 over a minibatch (losses.token_weights).
  behaviour_values, returns: of a critic: V before each token at the time of sampling, and what to fit V to; else None.
  segments: None, or rl_reason.packing put several of a group's completions into each row: per token, the place in its row
    where its completion begins. B and T are then those of the rows, and completion_lengths their real tokens.
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

  @property
  def completion_mask(self) -> Bool[Array, "B T"]:
    return length_mask(self.completion_lengths, self.completions.shape[1])


@flax.struct.dataclass
class LearnerState:
  """All that one update reads and writes. It holds no random keys: randomness is folded from (seed, stream, step)."""
  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState


def length_mask(lengths: Int[Array, "N"], size: int) -> Bool[Array, "N size"]:
  """True at the first `lengths[n]` of `size` positions."""
  return jax.numpy.arange(size) < lengths[:, None]
