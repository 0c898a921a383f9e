"""One style of command line: whole names, help anywhere, a mistake in one line with status 2."""

import pytest

from rl_reason.config import command_line
from rl_reason.config.command_line import Parser


@pytest.fixture
def parser():
  made = Parser("claims", "Does it.")
  made.add_argument("--seeds", type=command_line.number(int, at_least=2), default=5)
  made.add_argument("--args", type=command_line.json_object, default={})
  made.add_argument("--all", action="store_true")
  return made


def refused(capsys, parse):
  """The one line of a mistake."""
  with pytest.raises(SystemExit) as error:
    parse()
  assert error.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


@pytest.mark.parametrize("words", [["--seeds=3", "--all"], ["--all", "--seeds", "3"]])
def test_values_follow_an_equals_sign_or_a_space(words, parser):
  found = parser.parse_args(words)
  assert (found.seeds, found.all, found.args) == (3, True, {})


@pytest.mark.parametrize("word, message", [
    ("--seed=3", "no setting --seed. Did you mean '--seeds'?"),
    ("--al", "no setting --al. Did you mean '--all'"),
    ("--x", "no setting --x. Known: --all, --args, --help, --seeds"), ("-s", "no setting -s"),
    ("--seeds=x", "--seeds: must be a whole number of at least 2, got 'x'"),
    ("--seeds=1", "at least 2, got '1'"),
    ("--seeds", "expected one argument"),
    ("--args=[", "--args: not JSON"),
    ("--args=[1]", "must be a JSON object"),
    ("--args=" + "[" * 10**5, "--args: not JSON"), ("word", "no place for the word 'word'"),
    ("--all=1", "ignored explicit argument '1'")])
def test_a_mistake_is_one_line(word, message, parser, capsys):
  line = refused(capsys, lambda: parser.parse_args([word]))
  assert line.startswith("Error: ") and message in line
  assert line.endswith("`rl-reason claims --help` shows what there is.")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--seeds=3", "--help"]])
def test_help_is_no_error(words, parser, capsys):
  with pytest.raises(SystemExit) as error:
    parser.parse_args(words)
  assert error.value.code == 0
  assert "Does it." in capsys.readouterr().out


def test_commands_below_a_command_have_the_same_style(capsys):
  parser = Parser("pretrained", "Models.")
  parser.add_command("show", help="shows it").add_argument("--deep", action="store_true")
  parser.add_command("fetch", help="fetches it")
  assert parser.parse_args(["show", "--deep"]).command == "show"
  assert "no setting --dee. Did you mean" in refused(
      capsys, lambda: parser.parse_args(["show", "--dee"]))
  assert "invalid choice: 'shw'" in refused(capsys, lambda: parser.parse_args(["shw"]))


@pytest.mark.parametrize("error", [ValueError("x is wrong"), FileNotFoundError("no x")])
def test_errors_that_can_be_cured_are_one_line(error, monkeypatch):
  monkeypatch.delenv("RL_REASON_TRACEBACK", raising=False)
  with pytest.raises(SystemExit, match=f"^Error: {error}$"), command_line.errors_in_one_line():
    raise error


def test_faults_of_the_code_keep_their_traceback():
  with pytest.raises(ZeroDivisionError), command_line.errors_in_one_line():
    raise ZeroDivisionError


def test_tracebacks_can_be_asked_for(monkeypatch):
  monkeypatch.setenv("RL_REASON_TRACEBACK", "1")
  with pytest.raises(ValueError, match="x"), command_line.errors_in_one_line():
    raise ValueError("x")


@pytest.mark.parametrize("error", [
    ModuleNotFoundError("this run needs wandb: `pip install 'rl_reason[wandb]'`", name="wandb"),
    ImportError("Please install gcsfs to access Google Storage")])
def test_a_missing_optional_package_is_one_line(error):
  with pytest.raises(SystemExit, match="^Error: .*install"):
    with command_line.errors_in_one_line():
      raise error


def test_another_import_error_keeps_its_traceback():
  with pytest.raises(ImportError, match="cannot import name 'x'"):
    with command_line.errors_in_one_line():
      raise ImportError("cannot import name 'x' from 'y'")
