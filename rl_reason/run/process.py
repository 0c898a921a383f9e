"""Starts a command: with quiet logs, memory kept between programs, and errors in one line."""

from collections.abc import Callable
import contextlib
import os
import sys
from typing import NoReturn

from absl import app, flags, logging
from etils import epath
import jax
import ml_collections

from rl_reason.reporting import exits, whole_files
from rl_reason.rewards.composition.monitors import StoppedByMonitor
from rl_reason.run import config as config_lib
from rl_reason.runtime import allocator, compilation, memory, peers, sharding


def start() -> None:
  """Makes the process-wide settings of a command. It must be called before any device work.

  Logs become quiet, the allocator keeps freed memory, and a run's processes find each other.
  """
  # Logs: orbax logs every rename at the level INFO. A --verbosity of the user's own stays.
  if not flags.FLAGS.is_parsed() or not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)

  # Memory: freed memory is kept for the next allocation, except what a long compilation leaves.
  # Compilations under 2 s, and programs read from disk, leave little.
  if allocator.keep_freed():
    compilation.after_each(allocator.give_back, min_seconds=2.0)

  # Several processes: each learns where the others are.
  sharding.start_distributed()


@contextlib.contextmanager
def errors_in_one_line():
  """Ends the command with one line for an error that the user can cure.

  These are ValueError, OSError, FloatingPointError, StoppedByMonitor, and a device's memory that
  ran out. Other errors are faults of the code and keep their traceback. RL_REASON_TRACEBACK=1 in
  the environment shows the traceback of every error.
  """
  try:
    yield
    if peers.watched():
      peers.watched().end()
  except (ValueError, OSError, FloatingPointError, StoppedByMonitor) as error:
    if isinstance(error, BrokenPipeError) and exits.stdout_is_closed():
      raise  # No error: nobody reads on, and the command ends quietly (reporting.exits).
    if os.environ.get("RL_REASON_TRACEBACK"):
      raise
    # An error's notes name the part that it comes from, such as a reward or an environment.
    _end(" ".join([f"Error: {error}", *getattr(error, "__notes__", ())]), error)
  except jax.errors.JaxRuntimeError as error:
    if peers.caused(error):
      peers.watched().leave_after(error)
    if os.environ.get("RL_REASON_TRACEBACK") or "RESOURCE_EXHAUSTED" not in str(error):
      raise
    _end(f"Error: {memory.exhausted(error)}", error)


def _end(message: str, error: Exception) -> NoReturn:
  """Ends the command with a line. Raises: SystemExit, with status 1, where it runs alone."""
  # Of several processes perhaps only this one has the error, and the others wait for it.
  if peers.caused(error):
    peers.watched().leave_after(error)
  if peers.watched():
    peers.watched().leave(message)
  raise SystemExit(message) from error


def command(main: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
  """Runs main(config, workdir) under absl, with --config (config.define_flag) and --workdir."""
  with exits.with_status():
    workdir = flags.DEFINE_string(
        "workdir", None, "The run's folder: metrics, samples, checkpoints.", required=True)
    # The config's flags depend on the file, so the file is read before absl parses the command
    # line.
    with errors_in_one_line():
      config, argv = config_lib.define_flag(sys.argv)
    app.run(
        lambda _: main(config.value, whole_files.folder(workdir.value, "--workdir")), argv=argv)
