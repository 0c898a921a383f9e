"""A worker's side of the pipes: one JSON line in, one whole training step, one JSON line out.

Standard output is the channel. Before any library can print to it, the descriptor is moved away and output goes where
errors go, to the worker's log.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time

STARTED = time.perf_counter()


class Channel:
  """Ask it for the next command before a step and tell it the numbers after.

  A library that owns its training loop calls `wait` and `answer` from its hooks.
  """

  def __init__(self):
    self._commands = os.fdopen(os.dup(0), "r")
    self._answers = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    self._began = None

  def ready(self, *packages: str, device: str) -> None:
    """Imports are over; what follows belongs to the first step's time."""
    self._write(dict(ready=True, import_seconds=time.perf_counter() - STARTED, device=device,
                     versions={p: importlib.metadata.version(p) for p in packages}))

  def wait(self) -> None:
    """Blocks until a step is asked for; ends the process when the run is over, or the other side is gone."""
    if self._commands.readline().strip() != "step":
      sys.stderr.flush()
      os._exit(0)  # Libraries hold threads and exit handlers, which would take their time.
    self._began = time.perf_counter()

  def answer(self, *, generated: int, trained: int, **more) -> None:
    """The step is complete: tokens sampled, completion tokens with a part in the loss, and anything worth keeping."""
    seconds = time.perf_counter() - self._began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    self._write(dict(seconds=seconds, generated=int(generated), trained=int(trained), peak_mb=round(peak, 1), **more))

  def _write(self, message) -> None:
    self._answers.write(json.dumps(message) + "\n")
    self._answers.flush()
