"""Parses a section of a config into its dataclass, and compares two configs."""

from collections.abc import Mapping, Sequence
import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

import ml_collections

from rl_reason.config import naming

T = TypeVar("T")


def parse(cls: type[T], section: Mapping[str, Any], path: str = "config", *, other_fields: Sequence[str] = ()) -> T:
  """A section of a config -> its dataclass.

  Raises: ValueError naming the field's full path for unknown and missing fields, wrong types and values out of range.
  """
  if not isinstance(section, (Mapping, ml_collections.ConfigDict)):
    raise ValueError(f"{path} must be a section with fields, got {section!r}.")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for name in section:
    if name not in fields and name not in other_fields:
      raise ValueError(f"{path} has no field {name!r}.{naming.did_you_mean_field(name, paths(cls))}"
                       f" Its fields: {', '.join([*fields, *other_fields])}.")
  values = {name: _convert(hints[name], section[name], f"{path}.{name}") for name in fields if name in section}
  missing = [n for n, f in fields.items() if n not in values
             and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
  if missing:
    raise ValueError(f"{path} lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)} ({cls.__name__}).")
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return parse(hint, value, path)
  if origin is Literal:
    if value not in arguments:
      raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}."
                       f"{naming.did_you_mean(value, arguments)}")
    return value
  if origin in (typing.Union, types.UnionType):
    return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, path)
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ValueError(f"{path} must be a tuple, got {value!r}: for one entry write ({value!r},).")
    element = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
    if len(element) != len(value):
      raise ValueError(f"{path} must have {len(element)} entries, got {value!r}.")
    return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(element, value)))
  if hint is Mapping or origin is not None and issubclass(origin, Mapping):
    if isinstance(value, ml_collections.ConfigDict):
      return value.to_dict()
    if isinstance(value, Mapping):
      return dict(value)
    raise ValueError(f"{path} must be a section with fields, got {value!r}.")
  wanted = (int, float) if hint is float else hint
  if not isinstance(value, wanted) or isinstance(value, bool) and hint is not bool:
    raise ValueError(f"{path} must be {hint.__name__}, got {value!r} ({type(value).__name__}).")
  return float(value) if hint is float else value


def paths(cls: type) -> list[str]:
  """Lists the fields of a dataclass and, dotted, of the dataclasses in it."""
  out = []
  for name, hint in typing.get_type_hints(cls).items():
    out += [name, *(f"{name}.{path}" for path in (paths(hint) if dataclasses.is_dataclass(hint) else ()))]
  return out


def with_defaults(cls: type, section: ml_collections.ConfigDict) -> None:
  """Adds the dataclass's optional fields that the section leaves out, so that the command line may set them."""
  for field in dataclasses.fields(cls):
    hint = typing.get_type_hints(cls)[field.name]
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)), hint)  # Of an optional section.
    if field.name not in section:
      if field.default is not dataclasses.MISSING:
        default = field.default
      elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
      else:
        continue
      section[field.name] = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default
    # A section, or one that may be None.
    section_type = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
    if section_type and isinstance(section[field.name], ml_collections.ConfigDict):
      with_defaults(section_type, section[field.name])


def changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
  """{dotted field: (old, new)} of two nested plain configs, as JSON would hold them; absent values are None."""
  out = {}
  for name in sorted({*old, *new}):
    a, b, here = old.get(name), new.get(name), f"{path}{name}"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      out.update(changes(a, b, here + "."))
    elif a != b:
      out[here] = (a, b)
  return out
