r"""Turns rows of public preference and step-label files into comparisons.

They train reward models and judge them.

    comparisons("hh-rlhf/harmless-base/train.jsonl.gz", format="hh_rlhf", bad_rows="drop")
    comparisons("mine.jsonl", format="choices", args=dict(
        prompt="{question}", responses=["left", "right"], label="better", labels=["L", "R"],
        tie="="))

Each format is a class below: its fields say which column holds what. FORMATS names them, and the
public data sets.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from absl import logging

from rl_reason.config import naming
from rl_reason.tasks import files
from rl_reason.types import Comparison, Step


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Holds a source's comparisons in memory.

  name: says where the rows come from.
  rows: all of them, in order.
  dropped: says why rows were dropped, one line each.
  """
  name: str
  rows: tuple[Comparison, ...] = dataclasses.field(repr=False)
  dropped: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Comparison:
    return self.rows[index]


def comparisons(
    path: str | Sequence[str], *, format: str, args: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None, rows: str = "", max_rows: int | None = None,
    bad_rows: str = "error",
) -> Comparisons:
  """Reads comparisons from .jsonl, .jsonl.gz and .parquet files.

  Args:
    path, where, rows, max_rows: as in `files.jsonl`.
    format: a name in FORMATS, or a dotted path to a class or function whose result maps (row,
      number, place) to a Comparison.
    args: fields of the format, over those that its name implies.
    bad_rows: what happens to a row with blank or identical responses, a null or impossible label,
      a wrong shape: "error", or "drop": it is dropped, counted in a warning and listed in
      `dropped`. Rows are dropped after `rows` is taken, so that slices mean the same rows either
      way.

  Raises: FileNotFoundError; ValueError naming file and row, and where no row is left.
  """
  # Find the format, and check its arguments before anything is read.
  if bad_rows not in ("error", "drop"):
    raise ValueError(f"bad_rows must be 'error' or 'drop', got {bad_rows!r}.")
  make, args = naming.find("format", format, FORMATS), dict(args or {})
  naming.check_arguments(f"The format {format!r}", make, args)
  read = make(**args)
  name, selected = files.select_rows(path, where=where, rows=rows, max_rows=max_rows)
  # Read the rows. Each error of a row names its place, which formats do not always know.
  kept, places, dropped = [], [], []
  for index, place, row in selected:
    try:
      kept.append(read(row, index, place))
      places.append(place)
    except ValueError as error:
      message = str(error) if str(error).startswith(place) else f"{place}: {error}"
      if bad_rows == "error":
        raise ValueError(
            f"{message} (bad_rows='drop' leaves such rows out and counts them.)") from error
      dropped.append(message)
  # Report what is dropped.
  if not kept:
    raise ValueError(
        f"All {len(selected)} rows of {name} were dropped as bad; the first: {dropped[0]} Is it of"
        f" the format {format!r}?")
  if dropped:
    logging.warning(
        "%d of %d rows of %s are left out as bad; the first: %s", len(dropped), len(selected), name,
        dropped[0])
  files.check_ids(kept, places, "the format's `id`")
  return Comparisons(name, tuple(kept), tuple(dropped))


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """Describes what all formats share.

  prompt: template over the row's columns, as in `files.jsonl`; a column of chat messages,
    "{messages}", is taken as it is.
  chat: make messages of the prompt, as in `files.jsonl`.
  system: a system message before the prompt, as in `files.jsonl`.
  id: template of the id; else the id is the row's number.
  domain: template of the domain; "": none.
  margin: column of these numbers, or "".
  weight: column of these numbers, or "".
  """
  prompt: str = "{prompt}"
  chat: bool = False
  system: str = ""
  id: str = ""
  domain: str = ""
  margin: str = ""
  weight: str = ""

  def __post_init__(self):
    # A RowMapping checks its templates when it is made.
    if self.prompt:
      files.RowMapping(self.prompt, id=self.id)
    if self.domain:
      files.RowMapping(self.domain)

  def __call__(self, row: Mapping[str, Any], index: int, place: str) -> Comparison:
    """Makes a Comparison of a row.

    Args:
      row: column -> value.
      index: its number in the data set.
      place: its file and line, for errors.

    Raises: ValueError for a row that is none.
    """
    # A format may give a prompt or a margin of its own, which wins.
    fields = {"prompt": self.fill_prompt(row, place) if self.prompt else "", **self.read(row)}
    for name in ("margin", "weight"):
      if column := getattr(self, name):
        fields.setdefault(name, value(row, column))
    return Comparison(
        **fields, domain=fill(self.domain, row, place) if self.domain else "",
        id=fill(self.id, row, place) if self.id else str(index), metadata=row)

  def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of the Comparison: responses and what is known of them.

    The prompt is among them if the row's text holds both.
    """
    raise NotImplementedError

  def fill_prompt(self, row: Mapping[str, Any], place: str) -> str | tuple[Mapping[str, str], ...]:
    """Makes the prompt of a row. Raises: ValueError where it is blank."""
    column = re.fullmatch(r"\{(\w+)\}", self.prompt)
    if column and is_messages(row.get(column[1])):
      return tuple({"role": m["role"], "content": m["content"]} for m in row[column[1]])
    # Without the blank end that an empty column leaves, "Add them.\n\n" + "".
    text = fill(self.prompt, row, place).rstrip()
    if not text:
      raise ValueError(
          f"the prompt {self.prompt!r} is blank: there is nothing to respond to. Leave the row"
          " out.")
    return self.as_prompt(text)

  def as_prompt(self, text: str) -> str | tuple[Mapping[str, str], ...]:
    """Makes a prompt of a text, as `chat` and `system` ask for."""
    return files.RowMapping("{text}", chat=self.chat, system=self.system).fill_prompt(
        {"text": text}, "")


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
      if is_messages(given):
        prompts.append(tuple({"role": m["role"], "content": m["content"]} for m in given[:-1]))
        given = given[-1]["content"]
      sides.append([given] if isinstance(given, str) else list(given))
      if not sides[-1]:
        raise ValueError(
            f"column {column!r} is an empty list: a comparison needs a better and a worse"
            " response.")
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
        self._turns(value(row, column), column) for column in (self.chosen, self.rejected))
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
    ballots = value(row, self.votes) if self.votes else [value(row, self.label)]
    # A vote counts as n points, a tie as one for each of n responses: whole numbers, so that equal
    # shares are equal.
    points = [0] * len(texts)
    for ballot in ballots:
      if ballot in self.labels:
        points[list(self.labels).index(ballot)] += len(texts)
      elif ballot == self.tie:
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
    entries = value(row, self.responses)
    single = isinstance(entries, str)
    entries = [entries] if single else list(entries)
    texts = [_at(entry, self.response) if self.response else entry for entry in entries]

    def numbers(where):
      """Returns one value per response, from within the mappings or from a parallel column."""
      if self.response:
        return [_at(entry, where) for entry in entries]
      found = value(row, where, null=True)
      found = [found] if single else found
      if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(texts):
        raise ValueError(
            f"column {where!r} must hold one value for each of {len(texts)} responses, got"
            f" {found!r}.")
      return found

    columns = {
        name: [_number(v) for v in numbers(where)] for name, where in self.attributes.items()}
    fields = {"attributes": tuple(
        {name: v[i] for name, v in columns.items()} for i in range(len(texts)))} if columns else {}
    if not self.score:
      return {"responses": tuple(texts), **fields}
    scores = [_number(v) for v in numbers(self.score)]
    if None in scores:
      raise ValueError(
          f"{self.score!r} of response {scores.index(None)} is no number: each response needs a"
          " score.")
    # The best rank is the lowest number.
    return best_first(texts, [-s for s in scores] if self.ranks else scores, **fields)


@dataclasses.dataclass(frozen=True)
class FirstMistake(RowFormat):
  """Reads a solution in steps and the place of its first wrong one.

  BIG-Bench-Mistake and ProcessBench have this format. Steps before the mistake get the label 1, the
  mistake 0, and those after it None: nobody judged them.

  steps: column of the steps' texts.
  mistake: column of the mistake's index, counted from 0.
  no_mistake: what stands for a solution without a mistake: null or -1.
  separator: written after every step but the last.
  """
  steps: str = "steps"
  mistake: str = "mistake_index"
  no_mistake: int | None = None
  separator: str = "\n"

  def read(self, row):
    texts, mistake = value(row, self.steps), value(row, self.mistake, null=True)
    if mistake == self.no_mistake:
      labels = [1.0] * len(texts)
    elif not isinstance(mistake, int) or isinstance(mistake, bool) or not 0 <= mistake < len(texts):
      raise ValueError(
          f"column {self.mistake!r} is {mistake!r}: the first mistake among {len(texts)} steps must"
          f" be from 0 to {len(texts) - 1}, or {self.no_mistake} for none.")
    else:
      labels = [1.0] * mistake + [0.0] + [None] * (len(texts) - mistake - 1)
    return solution(texts, labels, self.separator)


@dataclasses.dataclass(frozen=True)
class StepLabels(RowFormat):
  """Reads a solution in steps with a label for each.

  TRL's stepwise format is one of these; labels may be soft.

  steps: column of the steps' texts.
  labels: column of numbers in [0, 1], booleans or nulls.
  separator: written after every step but the last.
  """
  steps: str = "completions"
  labels: str = "labels"
  separator: str = "\n"

  def read(self, row):
    texts, labels = value(row, self.steps), value(row, self.labels)
    if len(texts) != len(labels):
      raise ValueError(f"{len(texts)} steps in {self.steps!r} have {len(labels)} labels in {self.labels!r}: give each one,"
                       " or null.")
    numbers = [float(label) if isinstance(label, bool) else label for label in labels]
    return solution(texts, numbers, self.separator)


@dataclasses.dataclass(frozen=True)
class MathShepherd(RowFormat):
  """Reads Math-Shepherd: a text with a mark after each step, and the same text with verdicts.

  In the second text "+" or "-" stands in each mark's place. The prompt is what precedes "Step 1:".

  text: column of the text.
  labelled: column of the text with verdicts.
  mark: the mark.
  first_step: text with which the solution begins.

  Source: Wang et al. 2023, arXiv:2312.08935.
  """
  prompt: str = ""
  text: str = "input"
  labelled: str = "label"
  mark: str = "ки"
  first_step: str = "Step 1:"

  def read(self, row):
    text, labelled = value(row, self.text), value(row, self.labelled)
    prompt, found, solved = text.partition(self.first_step)
    steps = [s.strip() for s in (found + solved).split(self.mark)]
    # The text ends with a mark, so nothing follows the last one.
    if not found or steps.pop():
      raise ValueError(
          f"column {self.text!r} must hold {self.first_step!r}, and end with the mark"
          f" {self.mark!r}; it ends {text[-60:]!r}.")
    # The verdicts stand where the marks were. They cannot just be searched for: a "+" within a step
    # is arithmetic.
    pattern = r"\s*([+-])".join(re.escape(part.rstrip()) for part in text.rstrip().split(self.mark))
    match = re.fullmatch(pattern, labelled.rstrip(), re.DOTALL)
    if match is None:
      raise ValueError(
          f"column {self.labelled!r} is not column {self.text!r} with '+' or '-' for each"
          f" {self.mark!r}.")
    return {
        "prompt": self.as_prompt(prompt.strip()),
        **solution(steps, [float(verdict == "+") for verdict in match.groups()], "\n")}


@dataclasses.dataclass(frozen=True)
class PRM800K(RowFormat):
  """Reads PRM800K: people rated each step -1, 0 or 1, and chose which one to go on with.

  The solution is the line of chosen steps. At its end, where none was chosen, it has the first one
  offered. Other candidates are left out. A step that a person wrote counts as right.

  neutral: label of a step rated 0; the paper counts it as right. None: unlabelled.

  Source: Lightman et al. 2023, arXiv:2305.20050, section 2.
  """
  prompt: str = "{question[problem]}"
  neutral: float | None = 1.0

  def read(self, row):
    texts, labels = [], []
    for number, step in enumerate(_at(row, "label.steps")):
      # A step that a person wrote, where no offered one was chosen.
      chosen = step.get("chosen_completion")
      if chosen is None and step.get("human_completion"):
        texts.append(_at(step, "human_completion.text"))
        labels.append(1.0)
        continue
      # A chosen one of those offered, or the first of them.
      offered = step.get("completions") or []
      if not (chosen or 0) < len(offered):
        raise ValueError(f"step {number} chose completion {chosen} of {len(offered)}.")
      rating = offered[chosen or 0].get("rating")
      if rating not in (-1, 0, 1, None):
        raise ValueError(
            f"step {number} has the rating {rating!r}, which must be -1, 0, 1 or null.")
      texts.append(offered[chosen or 0]["text"])
      labels.append({-1: 0.0, 0: self.neutral, 1: 1.0, None: None}[rating])
    return solution(texts, labels, "\n")


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


def value(row: Mapping[str, Any], column: str, *, null: bool = False) -> Any:
  """Returns the row's value in a column.

  Raises: ValueError where the column is missing, or null unless `null` allows it.
  """
  if column not in row:
    raise ValueError(
        f"there is no column {column!r}.{naming.did_you_mean(column, row)} The columns:"
        f" {', '.join(map(str, row))}.")
  if row[column] is None and not null:
    raise ValueError(f"column {column!r} is null, but the comparison needs it.")
  return row[column]


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


def solution(
    texts: Sequence[str], labels: Sequence[float | None], separator: str,
) -> dict[str, Any]:
  """Returns fields of a Comparison with one response in steps. Raises: ValueError for no steps."""
  if not texts:
    raise ValueError("the solution has no steps.")
  texts = [text + separator * (i + 1 < len(texts)) for i, text in enumerate(texts)]
  return {"responses": ("".join(texts),), "steps": (tuple(map(Step, texts, labels)),)}


def fill(template: str, row: Mapping[str, Any], place: str) -> str:
  """Fills in a template with the row's columns. Raises: ValueError as `files.RowMapping`."""
  mapping = files.RowMapping(template)
  mapping.check_columns(tuple(row), place)
  return mapping.fill_prompt(row, place)


def is_messages(given: Any) -> bool:
  """Says whether a column's value is a list of chat messages."""
  return isinstance(given, (list, tuple)) and bool(given) and all(
      isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in given)


def _at(entry, path):
  """Follows a dotted path into mappings. Raises: ValueError where it leads nowhere."""
  for name in path.split("."):
    if not isinstance(entry, Mapping) or name not in entry:
      raise ValueError(f"there is no {path!r} in {str(entry)[:120]}.")
    entry = entry[name]
  return entry


def _number(given):
  """Returns the number that a cell holds, also as text ("4").

  Returns None where the number is missing ("N/A", null, NaN).
  """
  try:
    number = float(given)
  except (TypeError, ValueError):
    return None
  return number if number == number else None  # NaN differs from itself.
