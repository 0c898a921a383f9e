"""The tests: a folder for each room of the library, and a file for each of its subjects.

tests/rollout/test_sampling.py tests rl_reason/rollout/sampling.py; the files of experiments test their
worlds with them. What concerns the whole tree (imports, documentation, packaging, whole runs) stands
here. Test files import each other's helpers by their full names, `tests.models.test_tokenizer`.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
