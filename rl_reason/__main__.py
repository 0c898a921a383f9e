"""Starts a command by its name: `rl-reason train ...` is `python -m rl_reason.train ...`.

    rl-reason                 # Lists the commands.
    rl-reason doctor          # Reports whether everything that is needed is installed.

This file imports neither JAX nor anything that does, so that `rl-reason doctor` can look at an
installation in which JAX is missing or broken.
"""

from collections.abc import Sequence
import runpy
import sys

from rl_reason.config import naming
from rl_reason.reporting import exits

# Name -> (module, what it does). tests/test_commands.py checks that every module with a command
# line is in this list.
COMMANDS = {
    "train": ("rl_reason.train", "trains a policy as a config says, or continues a run"),
    "evaluate": ("rl_reason.evaluate", "measures how often a run's policy is right"),
    "sample": ("rl_reason.sample", "shows what a run's policy answers to a prompt"),
    "judge": ("rl_reason.judge", "measures how well a reward model ranks responses"),
    "export": ("rl_reason.export", "writes a run's policy or reward model for other libraries"),
    "claims": ("rl_reason.claims", "measures whether an experiment's claims hold here"),
    "pretrained": ("rl_reason.models.pretrained", "fetches, shows and converts pretrained models"),
    "prepare": ("rl_reason.tasks.prepare", "writes a data set in TFDS format"),
    "doctor": ("rl_reason.doctor", "says what of the installation is missing, and the cure"),
}


def usage() -> str:
  """Lists the commands, one a line."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
  return "\n".join([
      "rl-reason COMMAND [ARGUMENTS]", "", *lines, "",
      "`rl-reason COMMAND --help` shows a command's arguments."])


def main(argv: Sequence[str] | None = None) -> int | None:
  """Runs a command as `python -m` would.

  Args:
    argv: the command's name and its arguments; None: those of the process.
  Returns: the exit status where no command ran: 0 after the list of commands, 2 for an unknown
    name.
  """
  name, *rest = (sys.argv[1:] if argv is None else list(argv)) or [""]
  if name in ("", "-h", "--help", "help"):
    print(usage())
    return 0
  if name not in COMMANDS:
    print(f"Error: there is no command {name!r}.{naming.did_you_mean(name, COMMANDS)}"
          f" The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
    return 2
  module, _ = COMMANDS[name]
  sys.argv = [module, *rest]
  # The commands parse sys.argv, and run under `if __name__ == "__main__"`, as with python -m.
  # Signals count from here on, while the command's packages are still being imported.
  with exits.with_status():
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
