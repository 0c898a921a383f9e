"""The one command `rl-reason` starts every door, and helps where it cannot."""

import ast
import importlib.util
from pathlib import Path
import subprocess
import sys

import pytest

from rl_reason import __main__ as commands
from tests import ROOT


def is_door(file):
  """Whether a file starts something where it is run as `python -m`."""
  return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
             for node in ast.parse(file.read_text()).body)


def test_every_door_is_a_command():
  doors = {file.stem for file in (ROOT / "rl_reason").glob("*.py") if is_door(file)} - {"__main__"}
  assert doors <= set(commands.COMMANDS)


def test_every_command_is_a_module_that_can_be_run():
  for module, _ in commands.COMMANDS.values():
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations is not None:
      spec = importlib.util.find_spec(f"{module}.__main__")
    assert is_door(Path(spec.origin)), module


def test_without_arguments_each_command_has_a_line(capsys):
  assert commands.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  for name, (_, what) in commands.COMMANDS.items():
    assert any(line.split() == [name, *what.split()] for line in lines)


def test_an_unknown_command_is_told_what_was_meant(capsys):
  assert commands.main(["trian"]) == 2
  assert "there is no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_a_command_gets_its_arguments_as_if_run_by_itself(tmp_path, monkeypatch):
  (tmp_path / "a_door.py").write_text(
      "import sys\nif __name__ == '__main__':\n  sys.exit(' '.join(sys.argv))\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(commands, "COMMANDS", {"door": ("a_door", "")})
  monkeypatch.setattr(sys, "argv", ["rl-reason"])
  with pytest.raises(SystemExit, match=r"/a_door\.py --config=x$"):
    commands.main(["door", "--config=x"])


def test_commands_and_doctor_start_without_any_package():
  # -S: no site-packages at all.
  done = subprocess.run([sys.executable, "-S", "-c", "import rl_reason.__main__, rl_reason.doctor"],
                        cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
