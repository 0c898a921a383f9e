"""Describes the formats of files with labelled steps: a row -> a Comparison of one response."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from rl_reason.tasks.cells import at, list_of, shown, text_of, texts_of, value
from rl_reason.tasks.row_format import RowFormat
from rl_reason.types import Step


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
    texts, mistake = texts_of(row, self.steps), value(row, self.mistake, null=True)
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
    texts, labels = texts_of(row, self.steps), list_of(row, self.labels)
    if len(texts) != len(labels):
      raise ValueError(
          f"{len(texts)} steps in {self.steps!r} have {len(labels)} labels in {self.labels!r}: give"
          " each one, or null.")
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
    text, labelled = text_of(row, self.text), text_of(row, self.labelled)
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
    steps = at(row, "label.steps")
    if not isinstance(steps, list):
      raise ValueError(f"'label.steps' is {shown(steps)}, and must be a list.")
    chosen = [self._step(step, f"step {number}") for number, step in enumerate(steps)]
    return solution([text for text, _ in chosen], [label for _, label in chosen], "\n")

  def _step(self, step: Any, name: str) -> tuple[str, float | None]:
    """Returns text and label of the step that was chosen, or of the first one offered."""
    chosen, offered = at(step, "chosen_completion", None), at(step, "completions", None) or []
    # A step that a person wrote, where no offered one was chosen.
    if chosen is None and at(step, "human_completion", None):
      text, label = at(step, "human_completion.text"), 1.0
    else:
      place = 0 if chosen is None else chosen
      if (not isinstance(offered, list) or not isinstance(place, int) or isinstance(place, bool)
          or not 0 <= place < len(offered)):
        count = len(offered) if isinstance(offered, list) else shown(offered)
        raise ValueError(f"{name} chose completion {chosen!r} of {count}.")
      rating = at(offered[place], "rating", None)
      if isinstance(rating, bool) or rating not in (-1, 0, 1, None):
        raise ValueError(f"{name} has the rating {rating!r}, which must be -1, 0, 1 or null.")
      text = at(offered[place], "text")
      label = {-1: 0.0, 0: self.neutral, 1: 1.0, None: None}[rating]
    if not isinstance(text, str):
      raise ValueError(f"{name} is {shown(text)}, and must be a text.")
    return text, label


def solution(
    texts: Sequence[str], labels: Sequence[float | None], separator: str,
) -> dict[str, Any]:
  """Returns fields of a Comparison with one response in steps. Raises: ValueError for no steps."""
  if not texts:
    raise ValueError("the solution has no steps.")
  texts = [text + separator * (i + 1 < len(texts)) for i, text in enumerate(texts)]
  return {"responses": ("".join(texts),), "steps": (tuple(map(Step, texts, labels)),)}
