"""Calls what a config names, which may be the user's own: its errors say whose they are."""

import asyncio
from collections.abc import Callable, Iterator
import contextlib
import json
import traceback
from typing import Any


class _Ended(ValueError):
  """Says that user code would have ended the process; the message names it already."""


@contextlib.contextmanager
def named(what: str | Callable[[], str]) -> Iterator[None]:
  """Adds to an error who raised it.

  SystemExit, and whatever else is no Exception, becomes a ValueError: a reward that calls sys.exit
  must not end a run as if it were finished. KeyboardInterrupt stays, as it is the user's wish.

  Args:
    what: whose code it is, e.g. "the reward 'mine'"; or what finds that out, called after an error.
  """
  try:
    with ending(what):
      yield
  except Exception as error:
    if not isinstance(error, _Ended):
      error.add_note(f"Raised by {what() if callable(what) else what}.")
    raise


@contextlib.contextmanager
def ending(what: str | Callable[[], str]) -> Iterator[None]:
  """Does what `named` does to errors that are no Exception, and nothing to others."""
  try:
    yield
  # CancelledError is how asyncio ends a task; GeneratorExit, how Python closes a generator.
  except (Exception, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit):
    raise
  except BaseException as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    raise _Ended(
        f"{type(error).__name__}({error}) was raised by {what() if callable(what) else what}, at"
        f" {place.filename}:{place.lineno}. It would end the run as if all were done: raise"
        " another error, or return a value.") from error


def plain(state: Any, what: str) -> Any:
  """Returns a state, once it is certain that a checkpoint can hold it.

  Args:
    state: what a method `state()` returned.
    what: whose it is, for the error.
  Raises: ValueError for what JSON cannot hold.
  """
  try:
    json.dumps(state)
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(
        f"The state of {what} is not JSON ({error}), and a checkpoint must hold it:"
        f" {str(state)[:200]}. Return numbers, texts, lists and mappings, with texts as keys; of an"
        " array its tolist().") from error
  return state
