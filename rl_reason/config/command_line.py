"""Parses the command line of every command in one style.

    --name=value or --name value, whole names only, and --help anywhere

A mistake is one line that names it and suggests the closest name, with the exit status 2. This file
imports the standard library only, so that `rl-reason doctor` can use it where packages are missing.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import os
import sys
from typing import Any, NoReturn

from rl_reason.config.naming import did_you_mean


class Parser(argparse.ArgumentParser):
  """Parses the arguments of one command; its help is the command's own documentation."""

  def __init__(self, command: str, documentation: str | None, **options: Any):
    """Makes a parser.

    Args:
      command: as in `rl-reason COMMAND`.
      documentation: the docstring of the command's module.
      options: of argparse.ArgumentParser.
    """
    self._below: Any = None
    super().__init__(
        prog=f"rl-reason {command}", description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

  def add_command(self, name: str, *, help: str) -> "Parser":
    """Adds a command below this one: `rl-reason pretrained show`."""
    if self._below is None:
      self._below = self.add_subparsers(
          dest="command", required=True, metavar="COMMAND",
          parser_class=lambda prog, **options: Parser(
              prog.removeprefix("rl-reason "), options.pop("description", None), **options))
    return self._below.add_parser(name, help=help, description=help)

  def parse_args(  # type: ignore[override]  # The base class has overloads for each namespace.
      self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
    """Parses a command line; None: the process's own. Exits with 2 for one that is wrong."""
    found, rest = self.parse_known_args(args, namespace)
    if rest:
      (self._below.choices[found.command] if self._below else self).refuse(rest[0])
    return found

  def refuse(self, word: str, known: Sequence[str] = ()) -> NoReturn:
    """Ends the command for a word that it does not know.

    Args:
      word: the word.
      known: names that are known beside this parser's own.
    """
    names = [name for action in self._actions for name in action.option_strings
             if name.startswith("--")]
    name = word.partition("=")[0]
    if not word.startswith("-"):
      self.error(f"there is no place for the word {word!r}: settings are written --name=value.")
    self.error(f"there is no setting {name}.{did_you_mean(name, [*names, *known])} Known:"
               f" {', '.join(sorted([*names, *known]))}.")

  def error(self, message: str) -> NoReturn:
    """Prints a mistake in one line, and ends the command with the status 2."""
    message = message[:1].upper() + message[1:]
    print(f"Error: {message.rstrip('.')}. `{self.prog} --help` shows what there is.",
          file=sys.stderr)
    raise SystemExit(2)


def json_object(text: str) -> dict[str, Any]:
  """Parses the value of a setting that is a JSON object: a type for Parser.add_argument."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise argparse.ArgumentTypeError(f"not JSON ({error}): {text[:200]!r}") from error
  if not isinstance(value, dict):
    raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:200]!r}")
  return value


def number(kind: type, at_least: float) -> Callable[[str], Any]:
  """Makes a type for Parser.add_argument: an int or float of at least `at_least`."""
  def parse(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not value >= at_least:
      what = "a whole number" if kind is int else "a number"
      raise argparse.ArgumentTypeError(f"must be {what} of at least {at_least}, got {text[:80]!r}")
    return value
  return parse


def says_what_to_install(error: ImportError) -> bool:
  """Tells whether an error is about an optional package, and the user can cure it by its words.

  Such are ours, and those of libraries that import lazily ("Please install gcsfs ..."). Any other
  ImportError is a fault of the code or of an installation.
  """
  return "install" in str(error)


def end(message: str, error: Exception) -> NoReturn:
  """Ends the command with a line. Raises: SystemExit, with the status 1."""
  raise SystemExit(message) from error


@contextlib.contextmanager
def errors_in_one_line(
    *kinds: type[Exception], end: Callable[[str, Exception], NoReturn] = end) -> Iterator[None]:
  """Ends the command with one line for an error that the user can cure.

  These are ValueError, OSError and an optional package that is not installed. Other errors are
  faults of the code and keep their traceback. RL_REASON_TRACEBACK=1 in the environment shows the
  traceback of every error.

  Args:
    kinds: of these errors, too.
    end: (the line, the error) -> ends the command.
  """
  try:
    yield
  except (ValueError, OSError, ImportError, *kinds) as error:
    if os.environ.get("RL_REASON_TRACEBACK") or (
        isinstance(error, ImportError) and not says_what_to_install(error)):
      raise
    # An error's notes name the part that it comes from, such as a reward or an environment.
    end(" ".join([f"Error: {error}", *getattr(error, "__notes__", ())]), error)
