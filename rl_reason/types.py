"""The few structures that travel between rooms on the host: problems, comparisons, samples. They need no JAX."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol, TypeAlias

from jaxtyping import Float
import numpy as np

Params: TypeAlias = Any  # A plain nested dict of arrays; models/transformer.py names the leaves.
Message: TypeAlias = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}.


@dataclasses.dataclass(frozen=True)
class Problem:
  """One row of a task: what the policy reads and what its completion is checked against.

  prompt: the text given to the policy, or chat messages that the tokenizer's template turns into text.
  reference: the answer that verifiers compare with.
  solution: a worked completion to imitate (supervised stages need it), or "". Or messages that go on from the prompt, of
    which the assistant's are imitated and others' (a tool's, a user's) only read; the last is the assistant's. After a
    prompt of text they follow one another as they are, after messages the chat template joins them.
  id: unique within its task and stable between runs.
  metadata: whatever else the row holds, for rewards that ask for it.
  """
  prompt: str | tuple[Message, ...]
  reference: str
  solution: str | tuple[Message, ...] = ""
  id: str = ""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of a worked response: its text, separator included, and how right it is.

  label: in [0, 1]: 1 right, 0 wrong, between them a share of continuations that succeed (Math-Shepherd); None: unlabelled.
  """
  text: str
  label: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Responses to one prompt with what is known of their quality: a row that reward models learn from and are judged on.

  A pair has two responses, a list more, a row with a label of its own one. Where scores are known, responses stand best
  first: the chosen one of a pair is responses[0]. (Whoever shows them to a judge by position has to shuffle or swap.)

  prompt: as in Problem.
  responses: texts, none blank.
  scores: one finite number per response, never rising; equal numbers are a tie. (1, 0) is a pair without degrees; ranks
    enter negated. (): not compared, there are only attributes or steps.
  soft_label: of a pair, the probability in [0, 1] that responses[0] is the better one, e.g. its share of votes; None:
    what the scores say (see `preference`).
  margin: by how much the best should win, in units of reward; below 0 where the label is in doubt (rl_reason.scorers.strength).
  weight: of the row in a loss, at least 0.
  attributes: one mapping per response, name -> value, None where it is missing; () without attributes.
  steps: per response its Steps, whose texts joined are the response; () for a response without, or for all.
  domain: what accuracy is reported by. id, metadata: as in Problem.

  Raises: ValueError for blank texts, identical responses of different score, and whatever else is not as said here.
  """
  prompt: str | tuple[Message, ...]
  responses: tuple[str, ...]
  scores: tuple[float, ...] = ()
  soft_label: float | None = None
  margin: float = 0.0
  weight: float = 1.0
  attributes: tuple[Mapping[str, float | None], ...] = ()
  steps: tuple[tuple[Step, ...], ...] = ()
  domain: str = ""
  id: str = ""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    def finite(value):
      return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and np.isfinite(value)
    count = len(self.responses)
    if isinstance(self.responses, str) or not count:
      raise ValueError(f"responses must be a tuple of at least one text, got {self.responses!r}.")
    for i, response in enumerate(self.responses):
      if not isinstance(response, str) or not response.strip():
        raise ValueError(f"response {i} is {response!r}: a blank text has nothing to score. Leave the row out.")
    for name in ("scores", "attributes", "steps"):
      given = getattr(self, name)
      if len(given) not in (0, count):
        raise ValueError(f"{name} has {len(given)} entries for {count} responses: give one for each, or none.")
    if not all(map(finite, self.scores)):
      raise ValueError(f"scores must be finite numbers, got {self.scores}: correct them, or leave the row out.")
    if any(a < b for a, b in zip(self.scores, self.scores[1:])):
      raise ValueError(f"scores must not rise, got {self.scores}: responses stand best first. Sort both by score.")
    by_text: dict[str, float] = {}
    for response, score in zip(self.responses, self.scores):
      # Equal responses of a longer list, e.g. of samples, may be equally good; a pair of them says nothing.
      if response in by_text and (count == 2 or by_text[response] != score):
        raise ValueError(f"two responses are identical, with scores {by_text[response]} and {score}: {response[:80]!r}."
                         " A comparison of a text with itself has no answer. Leave the row out.")
      by_text[response] = score
    if self.soft_label is not None and (count != 2 or not finite(self.soft_label) or not 0 <= self.soft_label <= 1):
      raise ValueError(f"soft_label is the probability, in [0, 1], that the first of two responses is better; got"
                       f" {self.soft_label!r} for {count} responses.")
    if not finite(self.margin):
      raise ValueError(f"margin must be a finite number, got {self.margin!r}.")
    if not finite(self.weight) or self.weight < 0:
      raise ValueError(f"weight must be a finite number of at least 0, got {self.weight!r}.")
    for i, values in enumerate(self.attributes):
      for name, value in values.items():
        if value is not None and not finite(value):
          raise ValueError(f"attribute {name!r} of response {i} is {value!r}: give a finite number, or None if it is"
                           " missing.")
    for i, (response, steps) in enumerate(zip(self.responses, self.steps)):
      if steps and "".join(s.text for s in steps) != response:
        raise ValueError(f"the steps of response {i} do not join to it: their texts must cover it, separators included.")
      for j, step in enumerate(steps):
        if not step.text.strip():
          raise ValueError(f"step {j} of response {i} is blank, {step.text!r}: it cannot be right or wrong. Leave it out.")
        if step.label is not None and (not finite(step.label) or not 0 <= step.label <= 1):
          raise ValueError(f"step {j} of response {i} has the label {step.label!r}: give a number in [0, 1], or None.")

  @property
  def preference(self) -> float | None:
    """Of a pair, the probability that responses[0] is better: soft_label, else 1, or 0.5 for a tie; None if unknown."""
    if self.soft_label is not None or len(self.scores) != 2:
      return self.soft_label
    return 1.0 if self.scores[0] > self.scores[1] else 0.5


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion on the host, as rewards see it.

  prompt, completion: text; the completion ends before its EOS token or stop string.
  reference, metadata: of the problem.
  completion_tokens: the sampled token ids, EOS included where it was sampled.
  truncated: the length limit ended the completion, not EOS or a stop string.
  group: the index of the prompt in this step's batch; a group's samples are adjacent.
  step: the training step it was sampled in (0 outside training).
  spans: named [start, end) token ranges of the completion; "turn": the policy's turns, where an environment answers.
  episode: the texts of turns and of the environment's answers by turns, which joined are the completion; () without one.
  messages: the chat messages whose rendering `prompt` is; () where the problem's prompt is a text.
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
  messages: tuple[Message, ...] = ()
  episode: tuple[str, ...] = ()


# Rewards: one number per sample, in the order given, or StepRewards (rewards/composition/steps.py). rewards/registry.py lists them.
RewardFn: TypeAlias = Callable[[Sequence[Sample]], Float[np.ndarray, "N"]]


class Source(Protocol):
  """Rows in a fixed order: `source[i]` is the same Problem or Comparison in every process and every run."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Problem | Comparison: ...


@dataclasses.dataclass(frozen=True)
class Task:
  """Problems to learn from and problems that only evaluation sees; no prompt is in both."""
  train: Source
  heldout: Source
