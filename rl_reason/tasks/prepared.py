"""Reads prepared TFDS data sets as sources, and writes sources as such sets.

The library has a format of its own for them, with prompts and references. TensorFlow is never
needed.

    prepare("my_set", {"train": jsonl(...), "test": jsonl(...)}, data_dir="~/sets")
    tfds_source("my_set", split="train[:90%]", data_dir="~/sets")
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import operator
import os
import re
from typing import Any

import numpy as np

from rl_reason.config import json_text, naming
from rl_reason.tasks import files, row_files
from rl_reason.types import Problem

# The columns of the library's own format. A chat prompt is a JSON list in `messages`, a plain one
# is in `prompt`; the other of the two is "".
COLUMNS = ("prompt", "messages", "reference", "solution", "id", "metadata")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Holds the problems of `tfds_source`: rows stay on disk and are decoded when asked for.

  name: says where the problems come from.
  data: a tfds data source.
  indices: the rows kept, in order.
  mapping: makes problems of rows; None for the library's own format.
  """
  name: str
  data: Any = dataclasses.field(repr=False)
  indices: Any = dataclasses.field(repr=False)
  mapping: files.RowMapping | None

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Problem:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"Row {index} of a source with {len(self)} rows.")
    row = int(self.indices[index])
    place = f"{self.name} row {row}"
    values = _read(self.data, row, place)
    if self.mapping is not None:
      return self.mapping.problem(values, row, place)
    try:
      messages = json_text.parse(values["messages"]) if values["messages"] else None
      metadata = json_text.parse(values["metadata"])
    except ValueError as error:
      raise ValueError(
          f"{place} is no row that `prepare` wrote ({error}): prepare the data set again.") from error
    return Problem(
        prompt=values["prompt"] if messages is None else tuple(messages),
        reference=values["reference"], solution=values["solution"], id=values["id"],
        metadata=metadata)


def tfds_source(
    name: str, *, split: str, data_dir: str = "", prompt: str = "", reference: str = "",
    system: str = "", chat: bool = False, reference_pattern: str = "", solution: str = "",
    id: str = "", where: Mapping[str, Any] | None = None, max_rows: int | None = None,
    download: bool = False, examples: Sequence[tuple[str, str]] = ()) -> Prepared:
  """Reads problems of a TFDS data set, through `tfds.data_source`.

  Args:
    name: as TFDS has it: "my_set", "my_set/config:1.0.0", or one of its catalogue.
    split: with TFDS slices: "train", "train[:90%]", "train[90%:]".
    data_dir: the folder of prepared data sets; "" is TFDS's own (TFDS_DATA_DIR or
      ~/tensorflow_datasets).
    prompt: template over the features, as in `files.jsonl`; "" where `prepare` wrote the set, whose
      rows are problems already.
    reference, system, chat, reference_pattern, solution, id, max_rows, examples: as in
      `files.jsonl`.
    where: as in `files.jsonl`; reads every row once. Of a set that `prepare` wrote it filters the
      metadata.
    download: let TFDS fetch and prepare a set that is not there; some sets need TensorFlow for
      that.

  Raises: ValueError naming what is missing and the cure.
  """
  # Check the arguments before anything is read.
  data_dir = os.path.expanduser(data_dir) or None
  if max_rows is not None and max_rows < 1:
    raise ValueError(f"max_rows must be at least 1, or None for all rows, got {max_rows}.")
  mapping = None
  if prompt:
    mapping = files.RowMapping(
        prompt, reference, system, chat, reference_pattern, solution, id, examples)

  # Find the data set, and its split.
  builder = _find(name, data_dir, download)
  if str(split).partition("[")[0] not in builder.info.splits:
    raise ValueError(
        f"TFDS data set {name!r} has no split"
        f" {split!r}.{naming.did_you_mean(split, builder.info.splits)} Its splits:"
        f" {', '.join(builder.info.splits)}.")
  try:
    data = builder.as_data_source(split=split)
  except NotImplementedError as error:
    raise ValueError(
        f"TFDS data set {name!r} is stored in a format without random access: {_first_line(error)}"
        " Prepare it again with file_format='array_record'.") from error

  # Check that its columns and the templates fit each other.
  place = f"TFDS data set {name!r}"
  features = tuple(builder.info.features)
  if mapping is not None:
    mapping.check_columns(features, place)
  elif set(features) != set(COLUMNS):
    raise ValueError(
        f"{place} is not in the library's own format, so it needs a prompt template, e.g."
        f" prompt='{{{features[0]}}}'."
        f" Its features: {', '.join(features)}.")
  elif reference or system or chat or reference_pattern or solution or id or examples:
    raise ValueError(
        f"{place} holds problems as `prepare` wrote them: templates for the reference, system"
        " message, solution or id have no effect without `prompt`. Set them in the source that is"
        " prepared.")

  # Filter the rows.
  indices = range(len(data))
  if where:
    def columns(row):
      values = _read(data, row, f"{place} row {row}")
      return values if mapping is not None else json_text.parse(values["metadata"])
    indices = np.array(
        [i for i in indices if row_files.keep(columns(i), dict(where), f"{place} row {i}")], np.int64)
  return Prepared(f"{name}[{split}]", data, indices[:max_rows], mapping)


def _find(name: str, data_dir: str | None, download: bool) -> Any:
  """Returns the TFDS builder of a data set that is prepared, or is prepared now.

  Raises: ValueError for a data set that is not known, or not prepared.
  """
  # Imported here, not above: it takes seconds, and only readers of such sets need it.
  import tensorflow_datasets as tfds

  cure = ("Prepare it first (`python -m rl_reason.tasks.prepare --help` for own rows), correct name"
          " or data_dir, or set download=True.")
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
    raise ValueError(
        f"TFDS knows no data set {name!r} in data_dir={data_dir!r}: {_first_line(error)}"
        f" {cure}") from error
  if not builder.is_prepared():
    if not download:
      raise ValueError(f"TFDS data set {name!r} is not prepared in {builder.data_dir}. {cure}")
    builder.download_and_prepare(file_format="array_record")
  return builder


def prepare(name: str, splits: Mapping[str, Any], data_dir: str, version: str = "1.0.0") -> str:
  """Writes sources as a TFDS data set in ArrayRecord files.

  `tfds_source(name, split=..., data_dir=data_dir)` reads it.

  Args:
    name: lower-case letters, digits and underscores.
    splits: split name -> source. Rows keep their order.
    data_dir: the folder of prepared data sets; the set gets a folder of its own in it.
    version: of the data, major.minor.patch.

  Returns: the folder written to.
  Raises: ValueError for a bad name, an empty source, metadata that JSON cannot hold, or a set that
    exists already.
  """
  import tensorflow_datasets as tfds

  # Check the arguments before anything is written.
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise ValueError(
        f"A data set's name has lower-case letters, digits and underscores, got {name!r}.")
  if not splits:
    raise ValueError("No splits: give at least one, e.g. {'train': source}.")
  for split, source in splits.items():
    if not len(source):
      raise ValueError(f"The source of split {split!r} is empty. Check its path and filters.")
  data_dir = os.path.expanduser(data_dir)
  features = tfds.features.FeaturesDict({column: tfds.features.Text() for column in COLUMNS})

  # Nested on purpose: TFDS takes a class, whose base is imported in this function. Its own
  # tfds.dataset_builders.store_as_tfds_dataset would do the same, but it imports TensorFlow.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    # Nothing is downloaded, so there is no checksums file beside this module; looking for one
    # needs importlib_resources.
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=features, disable_shuffling=True,
          description=(
              "Prompts, references and worked solutions, written by"
              " rl_reason.tasks.prepared.prepare."))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split, source) for split, source in splits.items()}

    def _generate_examples(self, split, source):
      for i in range(len(source)):
        yield i, _encode(source[i], f"split {split!r} row {i}")

  Builder.name = name
  builder = Builder(data_dir=data_dir, file_format="array_record")
  if builder.is_prepared():
    raise ValueError(
        f"{builder.data_dir} holds a data set already and would not change. Delete it, or give"
        " another name or"
        " version.")
  builder.download_and_prepare()
  return str(builder.data_dir)


def _encode(problem, place) -> dict[str, str]:
  """Returns a problem as texts in COLUMNS. Raises: ValueError for what these cannot hold."""
  chat = not isinstance(problem.prompt, str)
  if not isinstance(problem.solution, str):
    raise ValueError(
        f"{place} (id {problem.id!r}): its solution is a list of messages, which a prepared set"
        " does not hold: read such rows with the source 'jsonl' or 'parquet'.")
  try:
    metadata = json.dumps(dict(problem.metadata), ensure_ascii=False)
  except TypeError as error:
    raise ValueError(
        f"{place} (id {problem.id!r}): its metadata does not fit into JSON: {error}.") from error
  return {
      "prompt": "" if chat else problem.prompt,
      "messages": json.dumps([dict(m) for m in problem.prompt], ensure_ascii=False) if chat else "",
      "reference": problem.reference, "solution": problem.solution, "id": problem.id,
      "metadata": metadata,
  }


def _read(data, row: int, place: str) -> Mapping[str, Any]:
  """Reads a row. Raises: ValueError naming its place, where the files are damaged."""
  try:
    return _plain(data[row])
  except Exception as error:  # ArrayRecord's and TFDS's readers raise many kinds.
    raise ValueError(
        f"{place} cannot be read ({type(error).__name__}: {_first_line(error)}) Its files are"
        " damaged: prepare the data set again.") from error


def _plain(value):
  """Converts TFDS values to what JSON would have.

  Bytes become text, arrays lists, and NumPy's numbers Python's.
  """
  if isinstance(value, Mapping):
    return {name: _plain(v) for name, v in value.items()}
  if isinstance(value, np.ndarray) and value.ndim:
    return [_plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    value = value.item()
  return value.decode("utf-8") if isinstance(value, bytes) else value


def _first_line(error):
  """Returns the first line of an error's message, with one full stop at its end."""
  text = str(error).strip()
  return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."
