"""Describes what all formats of comparisons share: prompt, id, domain, margin and weight."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from rl_reason.tasks import files
from rl_reason.tasks.cells import messages, value
from rl_reason.types import Comparison


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """Describes what all formats share.

  prompt: template over the row's columns, as in `files.jsonl`; a column of chat messages,
    "{messages}", is taken as it is.
  chat: make messages of the prompt, as in `files.jsonl`.
  system: a system message before the prompt, as in `files.jsonl`.
  id: template of the id; else the id is the row's number.
  domain: template of the domain, or a text without columns that is the domain of all; "": none.
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
    files.template_columns("domain", self.domain)

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
        **fields, domain=fill("domain", self.domain, row, place),
        id=fill("id", self.id, row, place) if self.id else str(index), metadata=row)

  def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of the Comparison: responses and what is known of them.

    The prompt is among them if the row's text holds both.
    """
    raise NotImplementedError

  def fill_prompt(self, row: Mapping[str, Any], place: str) -> str | tuple[Mapping[str, str], ...]:
    """Makes the prompt of a row. Raises: ValueError where it is blank."""
    column = re.fullmatch(r"\{(\w+)\}", self.prompt)
    if column and isinstance(row.get(column[1]), (list, tuple, Mapping)):
      return messages(row, column[1])
    # Without the blank end that an empty column leaves, "Add them.\n\n" + "".
    text = fill("prompt", self.prompt, row, place).rstrip()
    if not text:
      raise ValueError(
          f"the prompt {self.prompt!r} is blank: there is nothing to respond to. Leave the row"
          " out.")
    return self.as_prompt(text)

  def as_prompt(self, text: str) -> str | tuple[Mapping[str, str], ...]:
    """Makes a prompt of a text, as `chat` and `system` ask for."""
    return files.RowMapping("{text}", chat=self.chat, system=self.system).fill_prompt(
        {"text": text}, "")


def fill(field: str, template: str, row: Mapping[str, Any], place: str) -> str:
  """Fills in the template of a field with the row's columns.

  Raises: ValueError, naming the field, where the row lacks a column or does not allow it.
  """
  named = files.template_columns(field, template)
  files.check_columns(field, template, named, tuple(row), place)
  return files.fill(field, template, row, place)
