r"""Turns rows of JSON Lines and Parquet files into problems, by templates over the columns.

    jsonl("gsm8k/train.jsonl", prompt="{question}", reference="{answer}",
          reference_pattern=r"####\s*(.+)$")
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import string
from typing import Any

from rl_reason.config import naming
from rl_reason.tasks import row_files
from rl_reason.tasks.row_files import keep, row_range, select_rows
from rl_reason.types import Message, Problem

__all__ = ["RowMapping", "Rows", "check_ids", "jsonl", "keep", "parquet", "row_range",
           "select_rows", "split_chat"]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Holds a source's problems in memory.

  name: says where the problems come from.
  problems: all of them, in order.
  """
  name: str
  problems: tuple[Problem, ...] = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.problems)

  def __getitem__(self, index: int) -> Problem:
    return self.problems[index]


def jsonl(
    path: row_files.Path, *, prompt: str = "", messages: str = "", reference: str = "",
    system: str = "", chat: bool = False, reference_pattern: str = "", solution: str = "",
    id: str = "", where: Mapping[str, Any] | None = None, drop_null: bool = False,
    unique: bool = False, rows: str = "", max_rows: int | None = None,
    examples: Sequence[tuple[str, str]] = ()) -> Rows:
  r"""Reads problems from .jsonl or .jsonl.gz files: one JSON object a line, blank lines aside.

  Templates are Python format strings over the columns: "Q: {question}\nA:", "{answer:g}"
  (145.0 -> 145), "{choices[0]}"; a literal brace is doubled. A row's columns become its problem's
  metadata.

  Args:
    path: a file, a glob, or a list of these. Files of a glob come in sorted order. From Python also
      the rows themselves: a list, or a data set with indices, of mappings from columns to values.
    prompt: template of the prompt.
    messages: the column that holds a chat, a list of {"role": ..., "content": ...}; in place of
      prompt, system, examples and solution. The chat is the prompt up to where the assistant first
      speaks, and from there the solution, up to the assistant's last word.
    reference: template of the reference answer.
    system: a system message; with chat=False it stands before the prompt, with a blank line
      between.
    chat: the prompt becomes messages (system, if any, and user) for the tokenizer's chat template.
    reference_pattern: a regular expression with one group, which is the reference; searched for in
      the filled-in `reference` ("^" and "$" match at lines). GSM8K: r"####\s*(.+)$".
    solution: template of a worked completion to imitate.
    id: template of the problem's id; else the row's number, counted from 0 over all files before
      any filter.
    where: column -> the value, or list of values, that a row must have to be kept.
    drop_null: skip rows in which a column that a template names is null; else such a row is an
      error.
    unique: skip rows whose prompt was already seen.
    rows: a slice of the rows kept so far: "0:500", "-100:", ":90%" and "90%:" (percentages round
      down, so the two meet).
    max_rows: at most this many rows.
    examples: (question, answer) pairs, taken as they are, that stand before each prompt as earlier
      turns of the chat (few-shot); chat=True only.

  Raises: FileNotFoundError; ValueError naming file and row for malformed lines, missing or null
    columns, references that the pattern does not match, repeated ids, and for no rows at all.
  """
  mapping = RowMapping(
      prompt, reference, system, chat, reference_pattern, solution, id, examples, messages)
  return _load(path, row_files.read_jsonl, mapping, where, drop_null, unique, rows, max_rows)


def parquet(
    path: row_files.Path, *, prompt: str = "", messages: str = "", reference: str = "",
    system: str = "", chat: bool = False, reference_pattern: str = "", solution: str = "",
    id: str = "", where: Mapping[str, Any] | None = None, drop_null: bool = False,
    unique: bool = False, rows: str = "", max_rows: int | None = None,
    examples: Sequence[tuple[str, str]] = ()) -> Rows:
  """Reads problems from Parquet files; arguments and errors as in `jsonl`."""
  mapping = RowMapping(
      prompt, reference, system, chat, reference_pattern, solution, id, examples, messages)
  return _load(path, row_files.read_parquet, mapping, where, drop_null, unique, rows, max_rows)


@dataclasses.dataclass(frozen=True)
class RowMapping:
  """Says how a row's columns become a Problem.

  The fields are arguments of `jsonl`, described there.
  """
  prompt: str
  reference: str = ""
  system: str = ""
  chat: bool = False
  reference_pattern: str = ""
  solution: str = ""
  id: str = ""
  examples: Sequence[tuple[str, str]] = ()
  messages: str = ""

  def __post_init__(self):
    # Settings that contradict each other.
    if self.messages and (
        self.prompt or self.system or self.examples or self.solution or self.chat):
      raise ValueError(
          f"messages={self.messages!r} names a whole chat: leave out prompt, system, chat, examples"
          " and solution.")
    if self.examples and not self.chat:
      raise ValueError(
          f"examples are turns of a chat, and chat is {self.chat!r}: set chat=True, or write them"
          " into the prompt template.")
    for example in self.examples:
      if (isinstance(example, str) or len(example) != 2
          or not all(isinstance(text, str) and text for text in example)):
        raise ValueError(
            f"examples must be (question, answer) pairs of non-empty texts, got {example!r} among"
            " them.")
    # Templates that cannot make prompts.
    if not self.prompt and not self.messages:
      raise ValueError(
          "prompt is an empty template: every prompt would be empty. Name a column, e.g."
          " prompt='{question}', or the column of a chat with messages='messages'.")
    columns = {}
    for name in ("prompt", "reference", "solution", "id"):
      columns[name] = template_columns(name, getattr(self, name))
    columns["messages"] = (self.messages,) if self.messages else ()
    if not columns["prompt"] and not self.messages:
      raise ValueError(
          f"The prompt template {self.prompt!r} names no column: every prompt would be the same."
          " Name one, e.g. '{question}'.")
    # A pattern that cannot find one reference.
    if self.reference_pattern:
      try:
        groups = re.compile(self.reference_pattern).groups
      except re.error as error:
        raise ValueError(
            f"reference_pattern {self.reference_pattern!r} is no regular expression:"
            f" {error}.") from error
      if groups != 1:
        raise ValueError(
            f"reference_pattern {self.reference_pattern!r} has {groups} groups, not 1: mark the"
            " answer with one (...), other brackets with (?:...).")
      if not self.reference:
        raise ValueError(
            "reference_pattern is set but reference is not: there is no text to search. Set"
            " reference too.")
    # Argument -> the columns that it names, found once for all rows. The class is frozen.
    object.__setattr__(self, "_columns", columns)

  @property
  def columns(self) -> set[str]:
    """Returns the columns that the templates name."""
    return set().union(*self._columns.values())

  def check_columns(self, columns: Sequence[str], where: str) -> None:
    """Checks that all columns which templates name are among `columns`.

    Args:
      columns: those that there are.
      where: names their place in the error.

    Raises: ValueError.
    """
    for argument, named in self._columns.items():
      check_columns(argument, getattr(self, argument), named, columns, where)

  def problem(self, row: Mapping[str, Any], index: int, where: str) -> Problem:
    """Makes a Problem of a row.

    Args:
      row: column -> value.
      index: its number in the data set.
      where: its file and line for error messages.

    Raises: ValueError.
    """
    self.check_columns(tuple(row), where)
    for argument, named in self._columns.items():
      for column in named:
        if row[column] is None:
          raise ValueError(
              f"{where}: column {column!r} is null, but {argument}={getattr(self, argument)!r}"
              " needs it. Set drop_null=True to leave such rows out.")
    # The reference, or the part of it that the pattern marks.
    reference = self._fill("reference", row, where)
    if self.reference_pattern:
      match = re.search(self.reference_pattern, reference, flags=re.MULTILINE)
      if match is None:
        raise ValueError(
            f"{where}: reference_pattern {self.reference_pattern!r} does not match the reference"
            f" {reference[-300:]!r}."
            " Correct the pattern, or leave the row out with `where`.")
      reference = match.group(1)
    # Prompt and solution, from one column or from two templates.
    if self.messages:
      prompt, solution = split_chat(row[self.messages], f"{where}: column {self.messages!r}")
    else:
      prompt, solution = self.fill_prompt(row, where), self._fill("solution", row, where)
    return Problem(
        prompt=prompt, reference=reference.strip(), solution=solution,
        id=self._fill("id", row, where) if self.id else str(index), metadata=row)

  def fill_prompt(self, row: Mapping[str, Any], where: str):
    """Makes the prompt of a row: a text, or messages where `chat` is set."""
    text = self._fill("prompt", row, where)
    if not self.chat:
      return f"{self.system}\n\n{text}" if self.system else text
    messages = ({"role": "system", "content": self.system},) if self.system else ()
    for question, answer in self.examples:
      messages += ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return (*messages, {"role": "user", "content": text})

  def _fill(self, argument, row, where):
    """Fills in the template of an argument. Raises: ValueError where the row does not allow it."""
    return fill(argument, getattr(self, argument), row, where)


def check_columns(
    argument: str, template: str, named: Sequence[str], columns: Sequence[str], where: str,
) -> None:
  """Checks that the columns which a template names are there.

  Args:
    argument: the template's name, for the error.
    template: the template.
    named: the columns that it names (template_columns).
    columns: those that there are.
    where: names their place in the error.

  Raises: ValueError.
  """
  for column in named:
    if column not in columns:
      raise ValueError(
          f"{where} has no column {column!r}, which {argument}={template!r}"
          f" names.{naming.did_you_mean(column, columns)} Its columns:"
          f" {', '.join(map(str, columns))}.")


def fill(argument: str, template: str, row: Mapping[str, Any], where: str) -> str:
  """Fills a template in with a row's columns.

  Raises: ValueError, naming the template's argument, where the row does not allow it.
  """
  try:
    return _FORMATTER.vformat(template, (), row)
  except (KeyError, IndexError, AttributeError, ValueError, TypeError, OverflowError) as error:
    values = {c: row.get(c) for c in template_columns(argument, template)}
    raise ValueError(
        f"{where}: the template {argument}={template!r} cannot be filled in:"
        f" {type(error).__name__}: {error}. The values: {str(values)[:300]}. Correct the row or the"
        " template.") from error


class _Formatter(string.Formatter):
  """Fills in templates as str.format does; a null within a column is an error, and no "None"."""

  def get_field(self, field_name, args, kwargs):
    value, first = super().get_field(field_name, args, kwargs)
    if value is None:
      raise ValueError(f"{field_name} is null")
    return value, first


_FORMATTER = _Formatter()


def split_chat(messages: Any, place: str) -> tuple[tuple[Message, ...], tuple[Message, ...] | str]:
  """Splits a chat into (prompt, solution).

  The prompt is all before the assistant first speaks, the solution all from there to the
  assistant's last word; "" where the assistant never speaks.

  Args:
    messages: what a column holds.
    place: where it is, for the error.

  Raises: ValueError for what is no list of messages, and for a chat that the assistant begins.
  """
  if (isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages
      or not all(
          isinstance(m, Mapping) and isinstance(m.get("role"), str)
          and isinstance(m.get("content"), str) for m in messages)):
    raise ValueError(
        f'{place} must hold a list of {{"role": text, "content": text}}, got'
        f' {str(messages)[:200]!r}.')
  said = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  if said[:1] == [0]:
    raise ValueError(
        f"{place} begins with the assistant's words: there is no prompt. Leave such rows out with"
        " `where`.")
  # What others say after the assistant's last word is of no use, so it is cut.
  messages = tuple(dict(m) for m in messages)
  return (
      (messages[:said[0]], messages[said[0]:said[-1] + 1]) if said else (messages, ""))


def _load(path, read, mapping, where, drop_null, unique, rows, max_rows):
  """Reads files, selects rows and makes problems of them: what jsonl and parquet do."""
  seen = set()

  def wanted(place, row):
    if drop_null and any(row.get(column, "") is None for column in mapping.columns):
      return False
    if unique:
      mapping.check_columns(tuple(row), place)
      prompt = str(split_chat(row[mapping.messages], place)[0]) if mapping.messages else " ".join(
          mapping._fill("prompt", row, place).split())
      if prompt in seen:
        return False
      seen.add(prompt)
    return True

  name, kept = select_rows(
      path, where=where, rows=rows, max_rows=max_rows, read=read,
      filters=f" and drop_null={drop_null}", wanted=wanted,
      check_first=lambda place, row: mapping.check_columns(tuple(row), place))
  problems = tuple(mapping.problem(row, index, place) for index, place, row in kept)
  check_ids(problems, [place for _, place, _ in kept], f"id={mapping.id!r}")
  return Rows(name, problems)


def check_ids(problems, places, argument: str) -> None:
  """Checks that no two rows have one id.

  Args:
    problems: the rows.
    places: where each of them is, for the error.
    argument: the argument that makes ids, for the error.

  Raises: ValueError.
  """
  seen = {}
  for problem, place in zip(problems, places):
    if problem.id in seen:
      raise ValueError(
          f"{place} has the id {problem.id!r} of {seen[problem.id]}: ids tell rows apart in logs."
          f" Correct {argument}, or"
          " leave it empty to count rows.")
    seen[problem.id] = place


def template_columns(argument, template) -> tuple[str, ...]:
  """Lists the columns that a template names. Raises: ValueError for what is no template."""
  try:
    fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
  except ValueError as error:
    raise ValueError(
        f"{argument}={template!r} is no format string: {error}. Columns stand in braces,"
        f" {{column}}; a literal brace is"
        " doubled, {{ or }}.") from error
  # "choices[0].text" names the column "choices".
  names = tuple(dict.fromkeys(re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields))
  if any(not name or name.isdigit() for name in names):
    raise ValueError(
        f"{argument}={template!r} has a field without a column name. Columns stand in braces,"
        f" {{column}}; a literal brace is doubled.")
  return names

