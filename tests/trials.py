"""The trials of seeded tests: damage is drawn, and the library must read it or refuse it on purpose.

    make fuzz ARGS="--seed=3 --count=300 -k safetensors"

A refusal is a ValueError or an OSError that the library raises in its own words. An error of
another kind is a fault, and so is a ValueError that some function below the library raised for a
value that nobody had checked, even where a command's door would show either in one line.
"""

import ast
import contextlib
import functools
import random
import traceback

from tests import ROOT

LIBRARY = tuple(str(ROOT / room) + "/" for room in ("rl_reason", "models", "rewards", "experiments"))


@functools.cache
def raising(file):
  """The numbers of the lines of a file that are part of a `raise ...`."""
  with open(file, encoding="utf-8") as source:
    return {line for node in ast.walk(ast.parse(source.read())) if isinstance(node, ast.Raise) and node.exc
            for line in range(node.lineno, node.end_lineno + 1)}


def is_refusal(error, kinds=(ValueError, OSError)):
  """Whether the library raised an error on purpose; a missing file's own error names the file."""
  if not isinstance(error, kinds):
    return False
  if isinstance(error, OSError) and error.filename is not None:
    return True
  frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
  file = frame.f_code.co_filename
  return file.startswith(LIBRARY) and line in raising(file)


class Trial(random.Random):
  """The draws of one trial; its seed is its name, so that it can be had again alone."""

  def __init__(self, name):
    super().__init__(name)
    self.name = name

  @contextlib.contextmanager
  def refusal(self, what, names=""):
    """Runs the library on what was drawn.

    Args:
      what: was drawn; shown where the trial fails, beside its name.
      names: what the message of a refusal must name.
    Yields: a list, which holds the error of a refusal afterwards.
    """
    refused = []
    try:
      try:
        yield refused
      except Exception as error:
        if not is_refusal(error):
          raise AssertionError(f"not refused on purpose: {error!r}") from error
        assert names in str(error)
        refused.append(error)
    except Exception as error:
      error.add_note(f"Trial {self.name}: {what!r}")
      raise
