"""Describes the public formats of preference files: a row -> a Comparison.

Each format is a class: its fields say which column holds what. FORMATS names them, those of
labelled steps (rl_reason.tasks.step_formats), and the public data sets.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from rl_reason.tasks.cells import at, list_of, messages, number, shown, text_of, texts_of, value
from rl_reason.tasks.row_format import RowFormat
from rl_reason.tasks.step_formats import FirstMistake, MathShepherd, PRM800K, StepLabels
from rl_reason.types import Comparison


@dataclasses.dataclass(frozen=True)
class Pairs(RowFormat):
  """Reads better and worse responses in two columns.

  RewardBench, RM-Bench, UltraFeedback (binarised), Skywork and others have this format.

  chosen: the better ones' column: of a text, of texts, or of chat messages that end with the
    response. All chosen texts are better than all rejected ones; among themselves they are tied.
    With prompt="" the prompt is the messages before the response.
  rejected: the worse ones' column, of the same kind.
  """
  chosen: str = "chosen"
  rejected: str = "rejected"

  def read(self, row):
    # Each side is a list of texts, and for chats the messages before the response.
    sides, prompts = [], []
    for column in (self.chosen, self.rejected):
      given = value(row, column)
      if isinstance(given, (list, tuple)) and any(isinstance(m, Mapping) for m in given):
        *before, last = messages(row, column)
        prompts.append(tuple(before))
        sides.append([last["content"]])
      else:
        sides.append([given] if isinstance(given, str) else texts_of(row, column))
    # Without a prompt of its own the row's chats must be one chat but for the response.
    if not self.prompt:
      if len(prompts) != 2 or prompts[0] != prompts[1] or not prompts[0]:
        raise ValueError(
            "prompt is '', so chosen and rejected must be chat messages that differ in the last one"
            " only; they do not. Name the prompt's column, e.g. prompt='{prompt}'.")
    chosen, rejected = sides
    fields = {"responses": (*chosen, *rejected),
              "scores": (1.0,) * len(chosen) + (0.0,) * len(rejected)}
    return fields if self.prompt else {**fields, "prompt": prompts[0]}


@dataclasses.dataclass(frozen=True)
class Transcripts(RowFormat):
  """Reads HH-RLHF: two dialogues as one text each, alike up to the last answer.

  The prompt is the messages they share. Turns of one speaker in a row (the data has some) become
  one message.

  chosen: column of the dialogue with the better answer.
  rejected: column of the dialogue with the worse answer.
  human: text with which a person's turn begins.
  assistant: text with which the assistant's turn begins.

  Source: Bai et al. 2022, arXiv:2204.05862.
  """
  prompt: str = ""
  chosen: str = "chosen"
  rejected: str = "rejected"
  human: str = "\n\nHuman:"
  assistant: str = "\n\nAssistant:"

  def read(self, row):
    chosen, rejected = (
        self._turns(text_of(row, column), column) for column in (self.chosen, self.rejected))
    if chosen[:-1] != rejected[:-1]:
      raise ValueError(
          "the two dialogues differ before their last turn, so they answer different prompts. Leave"
          " the row out.")
    # The prompt: turns before the answer, neighbours of one speaker joined.
    messages: list[dict[str, str]] = (
        [{"role": "system", "content": self.system}] if self.system else [])
    for role, text in chosen[:-1]:
      if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += "\n\n" + text
      else:
        messages.append({"role": role, "content": text})
    if not messages or messages[-1]["role"] != "user":
      raise ValueError(
          f"the last answer follows no turn that starts with {self.human!r}: there is no prompt.")
    return {"prompt": tuple(messages), "responses": (chosen[-1][1], rejected[-1][1]),
            "scores": (1.0, 0.0)}

  def _turns(self, text, column):
    """Splits a dialogue into (role, text). Raises: ValueError for a text that is none."""
    roles = {self.human: "user", self.assistant: "assistant"}
    # A group in the pattern keeps the markers: parts are marker, text, marker, text ...
    before, *parts = re.split(f"({'|'.join(map(re.escape, roles))})", text)
    turns = [(roles[marker], text.strip()) for marker, text in zip(parts[::2], parts[1::2])]
    if before.strip() or len(turns) < 2 or turns[-1][0] != "assistant":
      raise ValueError(
          f"column {column!r} is no dialogue: it must start with {self.human!r} or"
          f" {self.assistant!r} and end with an answer; it starts {text[:60]!r}.")
    return turns


@dataclasses.dataclass(frozen=True)
class Choices(RowFormat):
  """Reads responses in columns of their own and a label that names the best.

  PandaLM, LLMBar, arena battles and others have this format.

  responses: the columns. Values that are no text (PandaLM holds some `true`) are written as Python
    writes them.
  label: the column that holds one of `labels` or `tie`.
  labels: labels[i] says that the i-th response is the best.
  tie: the label that says that no response is; None: there is none.
  votes: in place of label, a column with a list of such labels. Scores are shares of votes; a tie
    gives each of n responses 1/n of a vote. Of a pair, the soft label is the share of votes.
  """
  responses: Sequence[str] = ("response1", "response2")
  label: str = "label"
  labels: Sequence[Any] = (1, 2)
  tie: Any = None
  votes: str = ""

  def __post_init__(self):
    super().__post_init__()
    if (len(self.labels) != len(self.responses) or len(self.responses) < 2
        or self.tie in self.labels):
      raise ValueError(
          f"a choice needs two responses or more, a label for each, and another for a tie; got"
          f" responses {list(self.responses)}, labels {list(self.labels)}, tie {self.tie!r}.")

  def read(self, row):
    texts = [str(value(row, column)) for column in self.responses]
    ballots = list_of(row, self.votes) if self.votes else [value(row, self.label)]
    # A vote counts as n points, a tie as one for each of n responses: whole numbers, so that equal
    # shares are equal.
    points = [0] * len(texts)
    for ballot in ballots:
      if ballot in self.labels:
        points[list(self.labels).index(ballot)] += len(texts)
      elif self.tie is not None and ballot == self.tie:
        points = [p + 1 for p in points]
      else:
        raise ValueError(
            f"column {self.votes or self.label!r} holds the label {ballot!r}, not one of"
            f" {[*self.labels, *([] if self.tie is None else [self.tie])]}: correct it, or set"
            " `labels` and `tie`.")
    if not ballots:
      raise ValueError(f"column {self.votes!r} holds no votes.")
    fields = best_first(texts, [p / (len(ballots) * len(texts)) for p in points])
    return ({**fields, "soft_label": fields["scores"][0]} if self.votes and len(texts) == 2
            else fields)


@dataclasses.dataclass(frozen=True)
class Ratings(RowFormat):
  """Reads one or several responses, each with a score or attributes.

  UltraFeedback, HelpSteer and samples with true rewards have this format.

  responses: the column of the responses: one text, a list of texts, or a list of mappings.
  response: of mappings, the dotted path to the text within each.
  score: where a response's score is: a dotted path within each mapping, else a column parallel to
    the responses; "": none.
  ranks: the scores are ranks, 1 the best.
  attributes: name -> place, as for score. What is no number ("N/A", null) is missing.
  """
  responses: str = "responses"
  response: str = ""
  score: str = ""
  ranks: bool = False
  attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def read(self, row):
    single = isinstance(value(row, self.responses), str)
    entries = [row[self.responses]] if single else list_of(row, self.responses)
    texts = [at(entry, self.response) if self.response else entry for entry in entries]
    for i, text in enumerate(texts):
      if not isinstance(text, str):
        raise ValueError(
            f"response {i} in column {self.responses!r} is {shown(text)}, and must be a text.")

    def numbers(where):
      """Returns one value per response, from within the mappings or from a parallel column."""
      if self.response:
        return [at(entry, where) for entry in entries]
      found = value(row, where, null=True)
      found = [found] if single else found
      if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(texts):
        raise ValueError(
            f"column {where!r} must hold one value for each of {len(texts)} responses, got"
            f" {found!r}.")
      return found

    columns = {
        name: [number(v) for v in numbers(where)] for name, where in self.attributes.items()}
    fields = {"attributes": tuple(
        {name: v[i] for name, v in columns.items()} for i in range(len(texts)))} if columns else {}
    if not self.score:
      return {"responses": tuple(texts), **fields}
    scores = [number(v) for v in numbers(self.score)]
    if None in scores:
      raise ValueError(
          f"{self.score!r} of response {scores.index(None)} is no number: each response needs a"
          " score.")
    # The best rank is the lowest number.
    return best_first(texts, [-s for s in scores] if self.ranks else scores, **fields)


def best_first(
    responses: Sequence[str], scores: Sequence[float], **per_response: Sequence[Any],
) -> dict[str, Any]:
  """Returns fields of a Comparison, sorted by falling score.

  Equally good responses keep their order.

  Args:
    responses: texts.
    scores: of each response.
    per_response: other fields, which are sorted alike.
  """
  order = sorted(range(len(responses)), key=lambda i: -scores[i])
  return {"responses": tuple(responses[i] for i in order),
          "scores": tuple(float(scores[i]) for i in order),
          **{name: tuple(values[i] for i in order) for name, values in per_response.items()}}


# What `format` may name: shapes that take any columns, then public data sets with their own.
FORMATS: dict[str, Callable[..., Callable[[Mapping[str, Any], int, str], Comparison]]] = {
    "pairs": Pairs,  # prompt, chosen, rejected.
    "choices": Choices,  # prompt, response1, response2, label 1 or 2.
    "ratings": Ratings,  # prompt, responses; `score` and `attributes` say where scores are.
    "first_mistake": FirstMistake,  # prompt, steps, mistake_index.
    "step_labels": StepLabels,  # prompt, completions, labels.
    "hh_rlhf": Transcripts,
    "rm_bench": functools.partial(Pairs, id="{id}", domain="{domain}"),
    "reward_bench_2": functools.partial(Pairs, id="{id}", domain="{subset}"),
    "ultrafeedback": functools.partial(
        Ratings, prompt="{instruction}", responses="completions", response="response",
        score="overall_score",
        attributes={
            name: f"annotations.{name}.Rating"
            for name in ("helpfulness", "honesty", "instruction_following", "truthfulness")}),
    "helpsteer": functools.partial(Ratings, responses="response", attributes={
        name: name
        for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")}),
    "pandalm": functools.partial(
        Choices, prompt="{instruction}\n\n{input}", votes="annotators", tie=0),
    "llmbar": functools.partial(
        Choices, prompt="{input}", responses=("output_1", "output_2"), domain="{subset}"),
    "big_bench_mistake": functools.partial(FirstMistake, prompt="{input}", domain="{task}"),
    "processbench": functools.partial(
        FirstMistake, prompt="{problem}", mistake="label", no_mistake=-1, separator="\n\n",
        id="{id}"),
    "prm800k": PRM800K,
    "math_shepherd": MathShepherd,
}
