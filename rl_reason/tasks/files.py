r"""Turns rows of JSON Lines and Parquet files into problems, by templates over the columns.

    jsonl("gsm8k/train.jsonl", prompt="{question}", reference="{answer}",
          reference_pattern=r"####\s*(.+)$")
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import glob as globbing
import gzip
import json
import os
import re
import string
from typing import Any

from rl_reason.config import naming
from rl_reason.types import Message, Problem


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
    path: str | Sequence[str], *, prompt: str = "", messages: str = "", reference: str = "",
    system: str = "", chat: bool = False, reference_pattern: str = "", solution: str = "",
    id: str = "", where: Mapping[str, Any] | None = None, drop_null: bool = False,
    unique: bool = False, rows: str = "", max_rows: int | None = None,
    examples: Sequence[tuple[str, str]] = ()) -> Rows:
  r"""Reads problems from .jsonl or .jsonl.gz files: one JSON object a line, blank lines aside.

  Templates are Python format strings over the columns: "Q: {question}\nA:", "{answer:g}"
  (145.0 -> 145), "{choices[0]}"; a literal brace is doubled. A row's columns become its problem's
  metadata.

  Args:
    path: a file, a glob, or a list of these. Files of a glob come in sorted order.
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
  return _load(path, _read_jsonl, mapping, where, drop_null, unique, rows, max_rows)


def parquet(
    path: str | Sequence[str], *, prompt: str = "", messages: str = "", reference: str = "",
    system: str = "", chat: bool = False, reference_pattern: str = "", solution: str = "",
    id: str = "", where: Mapping[str, Any] | None = None, drop_null: bool = False,
    unique: bool = False, rows: str = "", max_rows: int | None = None,
    examples: Sequence[tuple[str, str]] = ()) -> Rows:
  """Reads problems from Parquet files; arguments and errors as in `jsonl`."""
  mapping = RowMapping(
      prompt, reference, system, chat, reference_pattern, solution, id, examples, messages)
  return _load(path, _read_parquet, mapping, where, drop_null, unique, rows, max_rows)


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
      columns[name] = _template_columns(name, getattr(self, name))
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
      for column in named:
        if column not in columns:
          raise ValueError(
              f"{where} has no column {column!r}, which {argument}={getattr(self, argument)!r}"
              f" names.{naming.did_you_mean(column, columns)} Its columns:"
              f" {', '.join(map(str, columns))}.")

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
    template = getattr(self, argument)
    try:
      return template.format_map(row)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
      raise ValueError(
          f"{where}: the template {argument}={template!r} cannot be filled in:"
          f" {type(error).__name__}: {error}. The"
          f" values: { {c: row[c] for c in self._columns[argument]} }.") from error


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


def keep(row: Mapping[str, Any], where: Mapping[str, Any], place: str) -> bool:
  """Says whether a row has one of the allowed values in every column of `where`.

  Args:
    row: column -> value.
    where: column -> allowed value, or a collection of them.
    place: where the row is, for the error.

  Raises: ValueError where the row lacks a column.
  """
  for column, allowed in where.items():
    if column not in row:
      raise ValueError(
          f"{place} has no column {column!r}, which `where`"
          f" names.{naming.did_you_mean(column, row)} Its columns:"
          f" {', '.join(map(str, row))}.")
    if row[column] not in (
        allowed if isinstance(allowed, (list, tuple, set, frozenset)) else (allowed,)):
      return False
  return True


def row_range(rows: str, count: int) -> range:
  """Returns the positions that a slice such as "0:500", "-100:" or "90%:" selects out of `count`.

  "" selects all. Percentages round down: ":90%" and "90%:" meet without overlap for every count.

  Raises: ValueError for what is no such slice.
  """
  if not rows:
    return range(count)
  match = re.fullmatch(
      r"\s*(?:(-?\d+)|(\d+(?:\.\d+)?)%)?\s*:\s*(?:(-?\d+)|(\d+(?:\.\d+)?)%)?\s*", rows)
  if match is None:
    raise ValueError(
        f"rows must be a slice such as '0:500', '-100:', ':90%' or '90%:', got {rows!r}.")
  bounds = []
  for number, percent in (match.group(1, 2), match.group(3, 4)):
    if percent is not None and float(percent) > 100:
      raise ValueError(f"rows={rows!r}: a percentage must be in [0, 100].")
    # The 1e-9: 29% of 100 is 28.999999999999996 in floating point.
    bounds.append(int(number) if number is not None else
                  int(float(percent) * count / 100 + 1e-9) if percent is not None else None)
  return range(count)[slice(*bounds)]


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


def select_rows(
    path: str | Sequence[str], *, where: Mapping[str, Any] | None, rows: str, max_rows: int | None,
    read: Callable[[str], Iterator[tuple[str, Mapping[str, Any]]]] | None = None, filters: str = "",
    wanted: Callable[[str, Mapping[str, Any]], bool] = lambda place, row: True,
    check_first: Callable[[str, Mapping[str, Any]], None] = lambda place, row: None,
) -> tuple[str, list[tuple[int, str, Mapping[str, Any]]]]:
  """Selects rows of files.

  Args:
    path, where, rows, max_rows: as in `jsonl`.
    read: file -> its rows with their places; by default Parquet for names ending in .parquet, else
      JSON Lines.
    filters: words for the message about no rows left.
    wanted: further rows to keep, asked after `where`.
    check_first: is shown the first row of each file.

  Returns: (a name for the files, the selected rows as (number, "file:line", columns)).
  Raises: FileNotFoundError; ValueError naming file and row.
  """
  where = dict(where or {})
  row_range(rows, 0)  # Raises for a malformed slice before anything is read.
  if max_rows is not None and max_rows < 1:
    raise ValueError(f"max_rows must be at least 1, or None for all rows, got {max_rows}.")
  paths = _expand(path)
  # Read all files and keep what passes the filters. Numbers count every row, so that a row's id
  # does not depend on the filters.
  kept, count = [], 0
  for file in paths:
    in_file = 0
    for place, row in (read or (_read_parquet if file.endswith(".parquet") else _read_jsonl))(file):
      index, count, in_file = count, count + 1, in_file + 1
      if in_file == 1:
        check_first(place, row)
      if keep(row, where, place) and wanted(place, row):
        kept.append((index, place, row))
    if not in_file:
      raise ValueError(f"{file} is empty: it holds no rows. Was it written to the end?")
  # Take the slice of what is kept.
  selected = row_range(rows, len(kept))[:max_rows]
  if not len(selected):
    raise ValueError(
        f"No rows are left of the {count} in {_name(paths)}: where={where}{filters} keep"
        f" {len(kept)}, of which"
        f" rows={rows!r} selects none. Widen them.")
  return _name(paths), [kept[i] for i in selected]


def _read_jsonl(file) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Reads ("file:line", columns) of each row. Raises: ValueError for what is no JSON Lines file."""
  opener = gzip.open if file.endswith(".gz") else open
  try:
    with opener(file, "rt", encoding="utf-8") as lines:
      for number, line in enumerate(lines, start=1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except json.JSONDecodeError as error:
          raise ValueError(
              f"{file}:{number}: not a JSON object: {error.msg} at column {error.colno} of"
              f" {line[:120]!r}. JSON Lines holds one whole object a line.") from error
        if not isinstance(row, dict):
          raise ValueError(
              f"{file}:{number}: a line must hold a JSON object (column -> value), got"
              f" {type(row).__name__}:"
              f" {line[:120]!r}.")
        yield f"{file}:{number}", row
  except (gzip.BadGzipFile, EOFError) as error:
    raise ValueError(
        f"{file} is not a whole gzip file ({error}). Fetch it again, or drop .gz from its"
        " name.") from error
  except UnicodeDecodeError as error:
    raise ValueError(
        f"{file} is not UTF-8 text ({error}). Convert it; compressed files need a name ending in"
        " .gz.") from error


def _read_parquet(file) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Reads ("file row n", columns) of each row. Raises: ValueError for what is no Parquet file."""
  # Imported here, not above: it takes half a second, and only readers of Parquet need it.
  import pyarrow as pa
  import pyarrow.parquet as pq
  try:
    table = pq.ParquetFile(file)
  except pa.ArrowInvalid as error:
    raise ValueError(f"{file} is not a Parquet file: {error}.") from error
  number = 0
  for batch in table.iter_batches():
    for row in batch.to_pylist():
      yield f"{file} row {number}", row
      number += 1


def _expand(path) -> list[str]:
  """Lists the files of a path, a glob or a list of these. Raises: FileNotFoundError, ValueError."""
  given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
  if not given:
    raise ValueError("path is an empty list: name at least one file.")
  paths = []
  for item in map(os.path.expanduser, map(os.fspath, given)):
    # A name that exists is taken literally, brackets and all.
    names = [item] if os.path.isfile(item) else sorted(globbing.glob(item, recursive=True))
    found = [name for name in names if os.path.isfile(name)]
    if not found:
      hint = "it is a directory; name its files, e.g. with /*.jsonl" if os.path.isdir(item) else (
          f"relative paths start at {os.getcwd()}")
      raise FileNotFoundError(f"No file matches path {item!r}: {hint}.")
    paths.extend(found)
  return paths


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


def _template_columns(argument, template) -> tuple[str, ...]:
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


def _name(paths):
  """Names the files of a source: the first one, and how many others there are."""
  return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
