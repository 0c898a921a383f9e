"""Checks values against the annotations of what will be called with them.

Only plain types are checked: numbers, texts, booleans, lists and mappings of these, None, and
choices among them. A value for any other annotation passes; the function itself knows it better.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import os
import types
import typing
from typing import Any, Literal

# Annotation -> (what a value may be, words for errors). A bool is an int in Python, and is none
# here; an int is a float. A path may stand for a text.
_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda x: _is_integer(x), "a whole number"),
    float: (lambda x: _is_integer(x) or isinstance(x, float) or _is_numpy(x, "f"), "a number"),
    bool: (lambda x: isinstance(x, bool) or _is_numpy(x, "b"), "true or false"),
    str: (lambda x: isinstance(x, (str, os.PathLike)), "a text"),
    None: (lambda x: x is None, "None"),
    type(None): (lambda x: x is None, "None"),
}
_MAPPING = "a section with fields"


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) or _is_numpy(value, "iu")


def _is_numpy(value: Any, kinds: str) -> bool:
  """Says whether a value is a NumPy number of these kinds, without importing NumPy."""
  return getattr(value, "shape", None) == () and getattr(
      getattr(value, "dtype", None), "kind", " ") in kinds


def of(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns the annotations of what can be called, by parameter; {} where they cannot be resolved."""
  while isinstance(function, functools.partial):
    function = function.func
  try:
    if inspect.isclass(function):
      # The fields of a dataclass, and the parameters of any class.
      return {**typing.get_type_hints(function), **typing.get_type_hints(function.__init__)}
    return typing.get_type_hints(
        function if inspect.isroutine(function) else type(function).__call__)
  except (NameError, TypeError, AttributeError):
    return {}


def fault(hint: Any, value: Any) -> str:
  """Says what a value must be by an annotation, e.g. "a whole number"; "" where it is right."""
  if hint in (int, float, bool, str, None, type(None)):
    fits, words = _PLAIN[hint]
    return "" if fits(value) else words
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return "" if value in arguments else f"one of {', '.join(map(repr, arguments))}"
  if origin in (typing.Union, types.UnionType):
    faults = [fault(argument, value) for argument in arguments]
    return "" if "" in faults else " or ".join(dict.fromkeys(faults))
  kind = origin or hint
  if not inspect.isclass(kind) or kind in (object, type) or kind.__module__ not in (
      "builtins", "collections.abc"):
    return ""
  if issubclass(kind, Mapping):
    return _mapping_fault(arguments, value)
  if issubclass(kind, (list, tuple)) or kind is Sequence:
    return _list_fault(kind, arguments, value)
  return ""


def _mapping_fault(arguments: tuple[Any, ...], value: Any) -> str:
  # A ConfigDict is no Mapping, and is one to all who read it.
  if not isinstance(value, Mapping) and not hasattr(value, "items"):
    return _MAPPING
  values = [found for _, found in value.items()]
  faults = [fault(arguments[1], found) for found in values] if len(arguments) == 2 else []
  return next((f"{_MAPPING}, each {found}" for found in faults if found), "")


def _list_fault(kind: type, arguments: tuple[Any, ...], value: Any) -> str:
  # A text is a sequence of texts, and ("rl") in place of ("rl",) is the usual mistake.
  if isinstance(value, (str, bytes)) or isinstance(value, Mapping) or not (
      isinstance(value, Sequence) or getattr(value, "shape", ())):
    return "a list"
  if kind is tuple and arguments[1:] != (...,):
    if arguments and len(arguments) != len(value):
      return f"a list of {len(arguments)} entries"
    hints = arguments
  else:
    hints = arguments[:1] * len(value)
  faults = [fault(hint, found) for hint, found in zip(hints, value)]
  return next((f"a list of which each entry is {found}" for found in faults if found), "")
