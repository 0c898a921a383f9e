"""Starts a command: with quiet logs, memory kept between programs, and errors in one line."""

from collections.abc import Callable
import contextlib
import os
import sys
from typing import NoReturn

from absl import flags, logging
import jax

from rl_reason.config import command_line
from rl_reason.config.command_line import Parser
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

  Beside those of config.command_line these are FloatingPointError, StoppedByMonitor, and a device's
  memory that ran out.
  """
  try:
    with command_line.errors_in_one_line(FloatingPointError, StoppedByMonitor, end=_end):
      yield
      if peers.watched():
        peers.watched().end()
  except jax.errors.JaxRuntimeError as error:
    if peers.caused(error):
      peers.watched().leave_after(error)
    if os.environ.get("RL_REASON_TRACEBACK") or "RESOURCE_EXHAUSTED" not in str(error):
      raise
    _end(f"Error: {memory.exhausted(error)}", error)


def _end(message: str, error: Exception) -> NoReturn:
  """Ends the command with a line. Raises: SystemExit, with status 1, where it runs alone."""
  if isinstance(error, BrokenPipeError) and exits.stdout_is_closed():
    raise error  # No error: nobody reads on, and the command ends quietly (reporting.exits).
  # Of several processes perhaps only this one has the error, and the others wait for it.
  if peers.caused(error):
    peers.watched().leave_after(error)
  if peers.watched():
    peers.watched().leave(message)
  command_line.end(message, error)


def command(
    main: Callable[..., None], name: str, documentation: str | None,
    add_settings: Callable[[Parser], None] = lambda parser: None,
) -> None:
  """Runs main(config, workdir, **settings) with what the command line says.

  Args:
    main: the command.
    name: as in `rl-reason NAME`.
    documentation: the docstring of the command's module, which --help shows.
    add_settings: adds the command's own settings to --config, --config.field and --workdir.
  Raises: SystemExit as reporting.exits says.
  """
  parser = Parser(name, documentation)
  parser.add_argument(
      "--config", metavar="FILE.py[:ARGUMENT]",
      help="the experiment, for a run that has not begun; --config.FIELD=VALUE sets any field")
  parser.add_argument(
      "--workdir", required=True, help="the run's folder: metrics, samples, checkpoints")
  add_settings(parser)
  with exits.with_status():
    # All names are checked before the config's file is read: one may be a misspelt --config.
    settings, words = parser.parse_known_args()
    for word in words:
      flag = word.lstrip("-").partition("=")[0]
      if word.startswith("-") and not flag.startswith("config.") and flag not in flags.FLAGS:
        parser.refuse(word)
    # The config's flags depend on the file or the run, which are read before they are parsed.
    with errors_in_one_line():
      config, _ = config_lib.define_flag(sys.argv)
      _parse_fields(parser, [sys.argv[0], *words])
      settings = {k: v for k, v in vars(settings).items() if k != "config"}
      workdir = whole_files.folder(settings.pop("workdir"), "--workdir")
    main(config.value, workdir, **settings)


def _parse_fields(parser: Parser, argv: list[str]) -> None:
  """Parses --config.field=value, and the flags of absl and the libraries that use it."""
  try:
    unknown = flags.FLAGS(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    parser.refuse(f"--{error.flagname}")
  # Values are parsed by ml_collections, which raises whatever its parsers of values raise.
  except Exception as error:
    parser.error(" ".join(str(error).split()))
  if unknown:
    parser.refuse(unknown[0])
  logging.use_absl_handler()
