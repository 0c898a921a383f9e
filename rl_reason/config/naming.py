"""Finds objects by name, as configs do: by a registry's name or a dotted path.

The errors suggest the closest known name.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from typing import Any

from rl_reason.config import annotations
from rl_reason.config.moved import moved_module

# What a field holds that chooses something: a name of a registry or a dotted path; or, where the
# library is called from Python, the thing itself.
Name = str | Callable[..., Any]

# How the description ends of what has no dotted path (config.recorded).
FROM_PYTHON = ", given from Python>"


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Suggests a known name: " Did you mean 'x'?", or "" if no known name is close."""
  close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
  return f" Did you mean {close[0]!r}?" if close else ""


def did_you_mean_field(name: str, paths: Iterable[str]) -> str:
  """Suggests a field of a section, or of the sections in it, as `did_you_mean` does.

  Args:
    name: the unknown name, without dots.
    paths: "rollout", "rollout.group_size", ...; `group_size` alone finds the second one too.
  """
  ends = {}
  # Shallow fields first: where two fields end in the same name, the one nearer to the section wins.
  for path in sorted(paths, key=lambda path: path.count(".")):
    for n in range(path.count(".") + 1):
      ends.setdefault(path.split(".", n)[-1], path)
  close = difflib.get_close_matches(str(name), list(ends), n=1)
  return f" Did you mean {ends[close[0]]!r}?" if close else ""


def arm_and_size(
    argument: str, arms: Collection[str], *, sizes: Collection[str] = ("tiny",), whole: str = "",
) -> tuple[str, str]:
  """Splits an experiment's argument into the arm and the size that it names.

  "flip-tiny" gives ("flip", "tiny"), "flip" gives ("flip", ""), and `whole` gives ("", whole).

  Args:
    argument: what stands after the ":" of --config=FILE:argument.
    arms: names of the configs in the file.
    sizes: what may follow an arm's name after a "-".
    whole: an argument that names no arm; "": there is none.
  Raises: ValueError for any other argument.
  """
  # Every accepted argument is listed, rather than split at a "-": an arm's name may contain one.
  known = {**({whole: ("", whole)} if whole else {}), **{arm: (arm, "") for arm in arms}}
  known |= {f"{arm}-{size}": (arm, size) for arm in arms for size in sizes}
  if argument not in known:
    raise ValueError(
        f"Unknown arm {argument!r}.{did_you_mean(argument, known)} Known: :{', :'.join(known)}.")
  return known[argument]


def path_of(thing: Any) -> str:
  """Names a thing that a config holds in place of its name, for records and errors.

  Returns: a dotted path at which `find` finds it, if there is one; else a description that is the
    same in every process.
  """
  if isinstance(thing, str):
    return thing
  inner = thing.func if isinstance(thing, functools.partial) else thing
  named = inner if hasattr(inner, "__qualname__") else type(inner)
  module, name = getattr(named, "__module__", None) or "builtins", named.__qualname__
  found = getattr(sys.modules.get(module), name, None)
  # What a script or a notebook defines is in no module that another process could import.
  if found is thing and module != "__main__" and importable(module):
    return f"{module}:{name}"
  what = "partial of " * (inner is not thing) + "object of " * (named is not inner)
  return f"<{what}{module}.{name}{FROM_PYTHON}"


def importable(module: str) -> bool:
  """Tells whether another process can import a module that this one has loaded."""
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError, AttributeError):  # As for a module that is no file's.
    return False


def check_from_python(what: str, text: Any) -> None:
  """Checks that a text is not what a record holds in place of a Python object.

  Raises: ValueError that says so.
  """
  if isinstance(text, str) and text.endswith(FROM_PYTHON):
    raise ValueError(
        f"The {what} of this run is {text}: no other process can find it. Go on with the run from"
        " Python, with the same object in its config; or name it by a dotted path from the first"
        " call on.")


def find(what: str, name: Name, registry: Mapping[str, Any], *, of: type | None = None) -> Any:
  """Finds the registry's entry, or the object at "package.module:attribute".

  Args:
    what: the kind of thing, for errors, e.g. "policy source".
    name: a name in the registry, or a dotted path. The object itself is returned as it is.
    registry: name -> object.
    of: the class that the object must have; None: it must be callable.
  Raises: ValueError that lists the known names, or says which part of the path is missing.
  """
  # The thing itself.
  if callable(name) if of is None else isinstance(name, of) and not isinstance(name, str):
    return name
  check_from_python(what, name)
  # A name of the registry.
  if isinstance(name, str) and name in registry:
    return registry[name]
  if not isinstance(name, str) or ":" not in name:
    raise ValueError(
        f"Unknown {what} {name!r}.{did_you_mean(name, registry)}"
        f" Known: {', '.join(sorted(registry))}; your"
        " own is named by a dotted path, package.module:function.")

  # A dotted path: first the module.
  module_name, _, attribute = name.partition(":")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    # The error may be about a module that the found one imports. That is a fault in the user's
    # code or installation, and its traceback shows where.
    if error.name and not (module_name + ".").startswith(error.name + "."):
      raise
    if moved := moved_module(module_name, attribute):
      raise ValueError(f"The {what} {name!r}: {module_name} moved in rl_reason 0.2.0. Write"
                       f" {moved}:{attribute}.") from error
    raise ValueError(
        f"The {what} {name!r}: there is no module {module_name!r}. Install it, put its folder on"
        " PYTHONPATH, or correct the path.") from error

  # Then its attribute.
  found = getattr(module, attribute, None)
  if not (callable(found) if of is None else isinstance(found, of)):
    if moved := moved_module(module_name, attribute):
      raise ValueError(f"The {what} {name!r}: {attribute} left {module_name} in rl_reason 0.2.0."
                       f" Write {moved}:{attribute}.")
    public = [n for n in vars(module) if not n.startswith("_")]
    raise ValueError(
        f"The {what} {name!r}: module {module_name!r} has no"
        f" {'function or class' if of is None else of.__name__}"
        f" {attribute!r}."
        f"{did_you_mean(attribute, public)}")
  return found


def check_arguments(
    what: str, function: Callable[..., Any], keywords: Collection[str], *, positional: int = 0,
) -> None:
  """Checks keyword arguments against a function's signature, without calling the function.

  Args:
    what: names the function in errors, e.g. "The source 'jsonl'".
    function: what will be called.
    keywords: names of the keyword arguments; a mapping to their values has these checked too, as
      far as the annotations are of plain types.
    positional: number of leading parameters that the caller passes itself.
  Raises: ValueError for an unknown argument, for missing ones, and for a value of another type.
  """
  parameters = list(inspect.signature(function).parameters.values())[positional:]
  accepted = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
  # A function with **kwargs takes any name.
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for name in keywords:
      if name not in accepted:
        raise ValueError(
            f"{what} takes no argument {name!r}.{did_you_mean(name, accepted)} Its arguments:"
            f" {', '.join(accepted) or 'none'}.")
  missing = [n for n, p in accepted.items() if p.default is p.empty and n not in keywords]
  if missing:
    raise ValueError(f"{what} needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}.")
  if isinstance(keywords, Mapping):
    hints = annotations.of(function)
    for name, value in keywords.items():
      if name in accepted and name in hints and (wanted := annotations.fault(hints[name], value)):
        shown = repr(value)
        raise ValueError(
            f"{what}: {name} must be {wanted}, got {shown[:100]}{'...' * (len(shown) > 100)}"
            f" ({type(value).__name__}).")
