"""Starts a command: quiet logs, memory that is kept, errors in one line.
"""

from collections.abc import Callable
import contextlib
import os
from pathlib import Path
import sys

from absl import app, flags, logging
import jax
import ml_collections

from rl_reason.rewards.composition.monitors import StoppedByMonitor
from rl_reason.run import config as config_lib
from rl_reason.runtime import allocator, compilation, memory, sharding


def start() -> None:
  """Process-wide settings of a command, before any device work: quiet logs, memory that is kept, processes that find each
  other."""
  if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # orbax tells of every rename.
  if allocator.keep_freed():
    compilation.after_each(allocator.give_back, min_seconds=2.0)  # Quicker ones, and those read from disk, leave little.
  sharding.start_distributed()


@contextlib.contextmanager
def errors_in_one_line():
  """A user's mistake ends the command with its message; RL_REASON_TRACEBACK=1 shows where it was found."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError, StoppedByMonitor) as error:
    if os.environ.get("RL_REASON_TRACEBACK"):
      raise
    # Notes say whose error it is, such as which reward's or environment's.
    raise SystemExit(" ".join([f"Error: {error}", *getattr(error, "__notes__", ())])) from error
  except jax.errors.JaxRuntimeError as error:
    if os.environ.get("RL_REASON_TRACEBACK") or "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise SystemExit(f"Error: {memory.exhausted(error)}") from error


def command(main: Callable[[ml_collections.ConfigDict, Path], None]) -> None:
  """Runs main(config, workdir) under absl with --config (config.define_flag) and --workdir."""
  workdir = flags.DEFINE_string("workdir", None, "The run's folder: metrics, samples, checkpoints.", required=True)
  with errors_in_one_line():
    config, argv = config_lib.define_flag(sys.argv)
  app.run(lambda _: main(config.value, Path(workdir.value)), argv=argv)
