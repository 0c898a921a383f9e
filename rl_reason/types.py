"""Defines the few structures that travel on the host: problems, comparisons, samples.

They need no JAX.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import sys
from typing import Any, Protocol, TypeAlias

from jaxtyping import Float
import numpy as np

# A plain nested dict of arrays; models/transformer.py names the leaves.
Params: TypeAlias = Any
# {"role": "system" | "user" | "assistant", "content": text}.
Message: TypeAlias = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Problem:
  """Holds one row of a task: what the policy reads, and what its completion is checked against.

  prompt: the text given to the policy, or chat messages that the tokenizer's template turns into
    text.
  reference: the answer with which verifiers compare.
  solution: a worked completion to imitate (supervised stages need it), or "". It may be messages
    that go on from the prompt, the last of which is the assistant's. The assistant's messages are
    imitated, those of others (a tool, a user) are only read. After a prompt of text the messages
    follow one another as they are; after messages the chat template joins them.
  id: unique within its task and stable between runs.
  metadata: everything else that the row holds, for rewards that ask for it.
  """
  prompt: str | tuple[Message, ...]
  reference: str
  solution: str | tuple[Message, ...] = ""
  id: str = ""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step:
  """Holds a step of a worked response, and how right it is.

  text: text of the step, separator included.
  label: number in [0, 1]: 1 right, 0 wrong, between them the share of continuations that succeed
    (Math-Shepherd); None: unlabelled.
  """
  text: str
  label: float | None = None


def _finite(value: Any) -> bool:
  """Tells whether a value is a number that a loss, which computes with floats, can hold."""
  return (isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
          and abs(value) <= sys.float_info.max)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds responses to one prompt, with what is known of their quality.

  Reward models learn from such rows and are judged on them. A pair has two responses, a list has
  more, and a row with a label of its own has one. Where scores are known, the best response is the
  first: the chosen one of a pair is responses[0]. (Code that shows responses to a judge by position
  has to shuffle or swap them.)

  prompt: as in Problem.
  responses: texts, none of them blank.
  scores: one finite number per response, never rising; equal numbers are a tie. (1, 0) is a pair
    without degrees; ranks are given as negative numbers. (): nothing is compared, there are only
    attributes or steps.
  soft_label: for a pair, the probability in [0, 1] that responses[0] is the better one, e.g. its
    share of votes; None: what the scores say (see `preference`).
  margin: by how much the best response should win, in units of reward; below 0 where the label is
    in doubt (rl_reason.scorers.strength).
  weight: weight of the row in a loss, at least 0.
  attributes: one mapping per response, name -> value, None where it is missing; () without
    attributes.
  steps: per response its Steps, whose texts joined are the response; () for a response without
    steps, or for all responses.
  domain: group of rows for which accuracy is reported.
  id: as in Problem.
  metadata: as in Problem.

  Raises: ValueError for blank texts, identical responses of different score, and everything else
    that is not as described here.
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
    if not isinstance(self.prompt, str) and not (
        isinstance(self.prompt, Sequence) and all(isinstance(m, Mapping) for m in self.prompt)):
      raise ValueError(f"prompt must be a text or a tuple of messages, got {self.prompt!r}.")
    self._check_responses()
    self._check_scores()
    self._check_labels()
    self._check_steps()

  def _check_responses(self) -> None:
    # There is one entry for each response in every field.
    count = len(self.responses)
    if isinstance(self.responses, str) or not count:
      raise ValueError(f"responses must be a tuple of at least one text, got {self.responses!r}.")
    for i, response in enumerate(self.responses):
      if not isinstance(response, str) or not response.strip():
        raise ValueError(f"response {i} is {response!r}: a blank text has nothing to score. Leave"
                         " the row out.")
    for name in ("scores", "attributes", "steps"):
      given = getattr(self, name)
      if len(given) not in (0, count):
        raise ValueError(f"{name} has {len(given)} entries for {count} responses: give one for"
                         " each, or none.")

  def _check_scores(self) -> None:
    # Scores are finite, best first, and the same for identical responses.
    if not all(map(_finite, self.scores)):
      raise ValueError(f"scores must be finite numbers, got {self.scores}: correct them, or leave"
                       " the row out.")
    if any(a < b for a, b in zip(self.scores, self.scores[1:])):
      raise ValueError(f"scores must not rise, got {self.scores}: responses stand best first. Sort"
                       " both by score.")
    by_text: dict[str, float] = {}
    for response, score in zip(self.responses, self.scores):
      # Equal responses of a longer list, e.g. of samples, may be equally good; a pair of equal
      # responses says nothing.
      if response in by_text and (len(self.responses) == 2 or by_text[response] != score):
        raise ValueError(
            f"two responses are identical, with scores {by_text[response]} and {score}:"
            f" {response[:80]!r}. A comparison of a text with itself has no answer. Leave the row"
            " out.")
      by_text[response] = score

  def _check_labels(self) -> None:
    # Soft label, margin, weight and attributes.
    count = len(self.responses)
    if self.soft_label is not None and (
        count != 2 or not _finite(self.soft_label) or not 0 <= self.soft_label <= 1):
      raise ValueError("soft_label is the probability, in [0, 1], that the first of two responses"
                       f" is better; got {self.soft_label!r} for {count} responses.")
    if not _finite(self.margin):
      raise ValueError(f"margin must be a finite number, got {self.margin!r}.")
    if not _finite(self.weight) or self.weight < 0:
      raise ValueError(f"weight must be a finite number of at least 0, got {self.weight!r}.")
    for i, values in enumerate(self.attributes):
      for name, value in values.items():
        if value is not None and not _finite(value):
          raise ValueError(f"attribute {name!r} of response {i} is {value!r}: give a finite number,"
                           " or None if it is missing.")

  def _check_steps(self) -> None:
    # Steps must cover their response.
    for i, (response, steps) in enumerate(zip(self.responses, self.steps)):
      for j, step in enumerate(steps):
        if not isinstance(step.text, str):
          raise ValueError(f"step {j} of response {i} is {step.text!r}, and must be a text.")
      if steps and "".join(s.text for s in steps) != response:
        raise ValueError(f"the steps of response {i} do not join to it: their texts must cover it,"
                         " separators included.")
      for j, step in enumerate(steps):
        if not step.text.strip():
          raise ValueError(f"step {j} of response {i} is blank, {step.text!r}: it cannot be right"
                           " or wrong. Leave it out.")
        if step.label is not None and (not _finite(step.label) or not 0 <= step.label <= 1):
          raise ValueError(f"step {j} of response {i} has the label {step.label!r}: give a number"
                           " in [0, 1], or None.")

  @property
  def preference(self) -> float | None:
    """Returns, for a pair, the probability that responses[0] is better; None if unknown.

    It is soft_label, else what the scores say: 1, or 0.5 for a tie.
    """
    if self.soft_label is not None or len(self.scores) != 2:
      return self.soft_label
    return 1.0 if self.scores[0] > self.scores[1] else 0.5


@dataclasses.dataclass(frozen=True)
class Sample:
  """Holds one completion on the host, as rewards see it.

  prompt: text of the prompt.
  completion: text of the completion; it ends before its EOS token or stop string.
  reference: as in the problem.
  completion_tokens: the sampled token ids, EOS included where it was sampled.
  truncated: true where the length limit ended the completion, not EOS or a stop string.
  group: index of the prompt in this step's batch; a group's samples are adjacent.
  step: the training step in which it was sampled (0 outside training).
  metadata: as in the problem.
  spans: named [start, end) token ranges of the completion; "turn": the policy's turns, where an
    environment answers.
  messages: the chat messages whose rendering `prompt` is; () where the problem's prompt is a text.
  episode: the texts of turns and of the environment's answers alternately, the policy's first;
    joined they are the completion. () without an environment.
  environment_rewards: what the environment paid, as (position in completion_tokens, amount).

  With an environment the completion is the whole episode. `own_text`, `answer_text` and `own_tokens`
  are what the policy itself wrote of it, and the policy may be judged only by these. `own` is the
  sample that a reward is given, unless it asks for the episode (rewards.composition.reward_set).
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
  environment_rewards: tuple[tuple[int, float], ...] = ()

  @property
  def own_turns(self) -> tuple[str, ...]:
    """Lists the texts of the policy's turns; without an environment: the completion."""
    return self.episode[::2] if self.episode else (self.completion,)

  @property
  def own_text(self) -> str:
    """Joins the policy's turns, stop strings included; without an environment: the completion."""
    return "".join(self.own_turns)

  @property
  def answer_text(self) -> str:
    """Writes the policy's turns as lines: what verifiers read an answer from.

    No number or word spans two turns: a turn "4" and a later turn "2" are no 42.
    """
    return "\n".join(self.own_turns)

  # Computed once: each reward of a set asks for them.
  @functools.cached_property
  def own_places(self) -> tuple[int, ...]:
    """Lists the positions in completion_tokens of the tokens that the policy sampled.

    Raises: ValueError for an episode with tokens that does not say where its turns are.
    """
    if not self.episode or not self.completion_tokens:
      return tuple(range(len(self.completion_tokens)))
    if "turn" not in self.spans:
      raise ValueError(
          "An episode's tokens are the policy's and the environment's, and this sample does not say"
          f" which are whose: give spans[\"turn\"], the policy's turns. Its completion is"
          f" {self.completion[:80]!r}.")
    return tuple(place for start, end in self.spans["turn"] for place in range(start, end))

  @functools.cached_property
  def own_tokens(self) -> tuple[int, ...]:
    """Lists the ids that the policy sampled; without an environment: those of the completion."""
    return tuple(self.completion_tokens[place] for place in self.own_places)

  @functools.cached_property
  def own(self) -> "Sample":
    """Returns the sample as if the policy's turns were its whole completion.

    Its text, tokens, spans and payments are those of the turns alone; spans of what the environment
    wrote are gone. Only `episode` still holds the environment's words.
    """
    if len(self.episode) < 2:
      return self
    places = {place: i for i, place in enumerate(self.own_places)}

    def moved(spans):
      # A span keeps the tokens that the policy wrote of it.
      kept = [[places[i] for i in range(start, end) if i in places] for start, end in spans]
      return [(own[0], own[-1] + 1) for own in kept if own]
    return dataclasses.replace(
        self, completion=self.own_text, completion_tokens=self.own_tokens,
        spans={name: moved(spans) for name, spans in self.spans.items()},
        environment_rewards=tuple(
            (places[place], amount) for place, amount in self.environment_rewards
            if place in places))


# Rewards: one number per sample, in the order given, or StepRewards
# (rewards/composition/steps.py). rewards/registry.py lists them.
RewardFn: TypeAlias = Callable[[Sequence[Sample]], Float[np.ndarray, "N"]]


class Source(Protocol):
  """Provides rows in a fixed order.

  `source[i]` is the same Problem or Comparison in every process and every run.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Problem | Comparison: ...


@dataclasses.dataclass(frozen=True)
class Task:
  """Holds the problems of a run; no prompt is in both halves.

  train: problems to learn from.
  heldout: problems that only evaluations see.
  """
  train: Source
  heldout: Source
