"""Handles a worker's side of the pipes: a command in, one whole training step, a JSON line out.

Standard output is the channel. Before any library can print to it, the descriptor is moved away,
and output goes where errors go, to the worker's log.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time

STARTED = time.perf_counter()


class Channel:
  """The channel of a worker: it waits for the next command before a step, and sends numbers after.

  A library that owns its training loop calls `wait` and `answer` from its hooks.
  """

  def __init__(self):
    # Keep copies of the descriptors 0 and 1, then point 0 at nothing and 1 at standard error.
    self._commands = os.fdopen(os.dup(0), "r")
    self._answers = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    self._began = None

  def ready(self, *packages: str, device: str) -> None:
    """Reports that the imports are done; what follows is part of the first step's time.

    Args:
      packages: names of those whose versions are reported.
      device: kind of the device.
    """
    self._write(dict(
        ready=True, import_seconds=time.perf_counter() - STARTED, device=device,
        versions={p: importlib.metadata.version(p) for p in packages}))

  def wait(self) -> None:
    """Waits until a step is asked for.

    It ends the process when the run is over, or the other side is gone.
    """
    if self._commands.readline().strip() != "step":
      sys.stderr.flush()
      # At once: libraries have threads and exit handlers that would take time.
      os._exit(0)
    self._began = time.perf_counter()

  def answer(self, *, generated: int, trained: int, **more) -> None:
    """Reports that the step is complete.

    Args:
      generated: tokens sampled.
      trained: completion tokens that are part of the loss.
      more: further numbers that are worth keeping.
    """
    seconds = time.perf_counter() - self._began
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10))
    self._write(dict(
        seconds=seconds, generated=int(generated), trained=int(trained), peak_mb=round(peak, 1),
        **more))

  def _write(self, message) -> None:
    self._answers.write(json.dumps(message) + "\n")
    self._answers.flush()
