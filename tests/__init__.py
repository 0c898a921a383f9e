"""The tests: a folder for each room of the library, and a file for each of its subjects.

tests/rollout/test_sampling.py tests rl_reason/rollout/sampling.py; the files of experiments test
their worlds with them. What concerns the whole tree (imports, documentation, packaging, whole runs)
stands here. Test files import each other's helpers by their full names,
`tests.models.test_tokenizer`.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import re

ROOT = Path(__file__).parents[1]


def environment(
    *, devices: int = 1, folders: Sequence[str | os.PathLike[str]] = (), **variables: str,
) -> dict[str, str]:
  """Makes the environment of a process that a test starts.

  Its programs compile as fast as those of the tests (conftest.py), and it can import the library
  and the tests from any folder.

  Args:
    devices: fake CPU devices that it sees.
    folders: further folders that it can import from.
    variables: further variables.
  """
  flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
  path = [str(ROOT), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
  return {
      **{k: v for k, v in os.environ.items() if k != "RL_REASON_TRACEBACK"},
      "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
      "PYTHONPATH": os.pathsep.join(path), **variables}
