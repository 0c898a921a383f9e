"""Parses a section of a config into its dataclass, and compares two configs."""

from collections.abc import Mapping, Sequence
import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

import ml_collections

from rl_reason.config import naming

T = TypeVar("T")


def parse(
    cls: type[T], section: Mapping[str, Any], path: str = "config", *,
    other_fields: Sequence[str] = (),
) -> T:
  """Parses a section of a config into its dataclass.

  Args:
    cls: the dataclass; its fields are the section's fields, its annotations their types.
    section: field name -> value.
    path: dotted name of the section, for errors.
    other_fields: names that the section may hold beside the dataclass's fields; they are ignored.
  Raises: ValueError with the field's full path, for unknown and missing fields, wrong types and
    values out of range.
  """
  if not isinstance(section, (Mapping, ml_collections.ConfigDict)):
    raise ValueError(f"{path} must be a section with fields, got {section!r}.")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)

  # Unknown fields come first: a misspelt name would otherwise be reported as a missing field.
  for name in section:
    if name not in fields and name not in other_fields:
      raise ValueError(f"{path} has no field {name!r}.{naming.did_you_mean_field(name, paths(cls))}"
                       f" Its fields: {', '.join([*fields, *other_fields])}.")

  # The values, each converted to its annotated type.
  values = {
      name: _convert(hints[name], section[name], f"{path}.{name}")
      for name in fields if name in section}
  missing = [n for n, f in fields.items() if n not in values
             and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
  if missing:
    raise ValueError(
        f"{path} lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)} ({cls.__name__}).")

  # The dataclass checks its values' ranges itself, and does not know where in the config it stands.
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Converts a config's value to the type of its annotation.

  Args:
    hint: the annotation: a dataclass, Literal, Optional, tuple, Mapping or a plain type.
    value: what the config holds.
    path: dotted name of the field, for errors.
  Raises: ValueError for a value of another type.
  """
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  # A section inside the section.
  if dataclasses.is_dataclass(hint):
    return parse(hint, value, path)
  if origin is Literal:
    if value not in arguments:
      raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}."
                       f"{naming.did_you_mean(value, arguments)}")
    return value
  # A name, or from Python the thing itself. Which kind of thing it must be, its finder knows.
  if hint == naming.Name and (callable(value) or dataclasses.is_dataclass(value)):
    return value
  # X | None: the fields here never unite more than one type with None.
  if origin in (typing.Union, types.UnionType):
    return None if value is None and hint != naming.Name else _convert(
        next(a for a in arguments if a is not type(None)), value, path)
  # A tuple comes as a list where the config was read from JSON. A string is a Sequence too, and
  # ("rl") in place of ("rl",) is the usual mistake.
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ValueError(f"{path} must be a tuple, got {value!r}: for one entry write ({value!r},).")
    element = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
    if len(element) != len(value):
      raise ValueError(f"{path} must have {len(element)} entries, got {value!r}.")
    return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(element, value)))
  # Free keyword arguments, such as `args` and `rewards`: their reader checks them.
  if hint is Mapping or origin is not None and issubclass(origin, Mapping):
    if isinstance(value, ml_collections.ConfigDict):
      return value.to_dict()
    if isinstance(value, Mapping):
      return dict(value)
    raise ValueError(f"{path} must be a section with fields, got {value!r}.")
  # Plain types. An int is accepted for a float; a bool is an int in Python, and is no number here.
  wanted = (int, float) if hint is float else hint
  if not isinstance(value, wanted) or isinstance(value, bool) and hint is not bool:
    raise ValueError(f"{path} must be {hint.__name__}, got {value!r} ({type(value).__name__}).")
  if hint is not float:
    return value
  try:
    return float(value)
  except OverflowError as error:
    raise ValueError(f"{path} must be a float, and this whole number is larger than any.") from error


def paths(cls: type) -> list[str]:
  """Lists the fields of a dataclass and, by dotted names, those of the dataclasses in it."""
  out = []
  for name, hint in typing.get_type_hints(cls).items():
    # The annotation of an optional section, `Section | None`, stands for the section.
    section = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
    out += [name, *(f"{name}.{path}" for path in (paths(section) if section else ()))]
  return out


def with_defaults(cls: type, section: ml_collections.ConfigDict) -> None:
  """Adds to a section, in place, the dataclass's optional fields that the section leaves out.

  The command line can set only fields that are present. Sections inside it are filled in too.
  """
  for field in dataclasses.fields(cls):
    hint = typing.get_type_hints(cls)[field.name]
    # The annotation of an optional section, `Section | None`, stands for the section.
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)), hint)
    if field.name not in section:
      if field.default is not dataclasses.MISSING:
        default = field.default
      elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
      else:
        continue  # A required field: `parse` reports it as missing.
      section[field.name] = (
          dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default)
    # Inside a section, or an optional one that is not None, more may be left out.
    section_type = next(
        (t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
    if section_type and isinstance(section[field.name], ml_collections.ConfigDict):
      with_defaults(section_type, section[field.name])


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = "",
) -> dict[str, tuple[Any, Any]]:
  """Compares two nested plain configs, as JSON holds them.

  Args:
    old: the one config.
    new: the other config.
    path: put before every field's name.
  Returns: {dotted field: (old value, new value)} of the fields that differ; absent values are None.
  """
  out = {}
  for name in sorted({*old, *new}):
    a, b, here = old.get(name), new.get(name), f"{path}{name}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      out.update(changes(a, b, here + "."))
    elif a != b:
      out[here] = (a, b)
  return out
