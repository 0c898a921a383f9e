"""Command lines with mistakes: one line and an exit status, whatever was written."""

import sys

from absl import flags
import pytest

from rl_reason import evaluate, judge, sample, train
from rl_reason.claims import __main__ as claims
from rl_reason.models import pretrained
from rl_reason.run import config as config_lib
from rl_reason.run import process
from rl_reason.tasks import prepare
from tests import ROOT
from tests.trials import is_refusal

QUICKSTART = str(ROOT / "experiments/quickstart.py")
DOORS = {
    "train": (train, None), "evaluate": (evaluate, None), "sample": (sample, sample.add_settings)}


@pytest.fixture
def run(monkeypatch, capsys):
  """(command, words) -> (exit status, what is printed as an error, what main was given)."""
  def started(name, *words):
    given, known = [], set(flags.FLAGS)

    def main(config, workdir, **settings):
      with process.errors_in_one_line():
        config_lib.check(config)
      given.append((config, workdir, settings))
    monkeypatch.setattr(sys, "argv", [name, *words])
    try:
      if name in DOORS:
        module, add = DOORS[name]
        process.command(main, name, module.__doc__, *([add] if add else []))
      else:
        modules = {
            "judge": judge, "claims": claims, "pretrained": pretrained, "prepare": prepare}
        modules[name].main(list(words))
      status = 0
    except SystemExit as error:
      status = error.code
      # What a door shows in one line must have been raised on purpose.
      assert error.__cause__ is None or is_refusal(error.__cause__), repr(error.__cause__)
    finally:
      for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)
    printed = capsys.readouterr().err
    # Python prints a text that SystemExit holds, with the status 1.
    return (1, status, given) if isinstance(status, str) else (status or 0, printed, given)
  return started


CONFIG = f"--config={QUICKSTART}"


@pytest.mark.parametrize("name", [*DOORS, "judge", "claims", "pretrained", "prepare"])
def test_help_is_no_error(name, run):
  assert run(name, "--help")[:2] == (0, "")


def test_settings_and_fields_are_given_to_the_command(run):
  status, printed, ((config, workdir, settings),) = run(
      "sample", CONFIG, "--workdir", "w", "--prompt=-3+5=", "--num_samples=2", "--config.seed=7",
      "--config.policy.args.width", "16")
  assert (status, printed, str(workdir)) == (0, "", "w")
  assert settings == dict(prompt="-3+5=", num_samples=2, initial=False, seed=0)
  assert (config.seed, config.policy.args.width) == (7, 16)


@pytest.mark.parametrize("words, status, message", [
    ([CONFIG], 2, "required: --workdir"), (["--workdir=w"], 1, "--config=experiments/NAME.py"),
    ([CONFIG, "--workdir=w", "--work=x"], 2, "no setting --work. Did you mean '--workdir'?"),
    ([CONFIG, "--workdir=w", "word"], 2, "no place for the word 'word'"),
    ([CONFIG, "--workdir=w", "--config.sead=1"], 1, "no field 'sead'. Did you mean 'seed'"),
    ([CONFIG, "--workdir=w", "--config.seed=x"], 2, "config.seed=x"),
    ([CONFIG, "--workdir=w", "--config.stages=("], 1, "config.stages names '('"),
    ([CONFIG, "--workdir=w", "--config.policy=3"], 2, "config.policy"),
    ([CONFIG, "--workdir=w", "--config.policy.args=3"], 2, "config.policy.args"),
    ([CONFIG + ":huge", "--workdir=w"], 1, "Unknown size 'huge'"),
    (["--config=nowhere.py", "--workdir=w"], 1, "no config file 'nowhere.py'"),
    ([f"--config={ROOT}/README.md", "--workdir=w"], 1, "README.md is no Python file"),
    ([f"--config={ROOT}/experiments", "--workdir=w"], 1, "no config file"),
    ([f"--config={ROOT}/setup.py", "--workdir=w"], 1, "setup.py fails at line"),
    ([f"--config={ROOT}/rl_reason/types.py", "--workdir=w"], 1, "defines no get_config"),
    (["--config=", "--workdir=w"], 1, "Say what to run")])
def test_mistakes_name_what_is_wrong(words, status, message, run):
  found, printed, given = run("train", *words)
  assert (found, given) == (status, [])
  assert message in printed
  assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("content, argument, message", [
    ("def get_config(:", "", "fails at line 1: SyntaxError"),
    ("import nowhere", "", "fails at line 1: ModuleNotFoundError"),
    ("x = 1\ndef get_config():\n  return 1 / 0", "", "fails at line 3: ZeroDivisionError"),
    ("def get_config():\n  return 7", "", "returned int, and must return a ConfigDict"),
    ("get_config = 7", "", "defines no get_config"),
    ("def get_config():\n  return {}", ":tiny", "takes no argument, got 'tiny'"),
    ("\0", "", "fails at line"),
    ("def get_config():\n  return {}", "", "lacks the fields policy, stages"),
    ("import sys\ndef get_config():\n  return dict(stages=7, policy=3)", "", "config.")])
def test_a_config_file_with_a_fault_is_named(content, argument, message, tmp_path, run):
  file = tmp_path / "mine.py"
  file.write_text(content)
  found, printed, _ = run("train", f"--config={file}{argument}", "--workdir=w")
  assert found == 1
  assert message in printed


WORDS = (
    CONFIG, "--workdir=w", "--prompt=x", "--seed=3", "--num_samples=2", "--initial",
    "--config.seed=1", "--scorer=length", "--data=nowhere.jsonl", "--format=pairs", "--rows=0:5",
    "--threshold=0.5", "--name=a", "--data_dir=d", "--args={}", "--splits={}", "--version=1.0.0",
    "--seeds=3", "--jobs=1", "--list", "--claim=x", "show", "convert", "/nowhere")
VALUES = (
    "", "x", "-1", "{", "[1]", "'", "(", "None", "1e400", "9" * 5000, "\ud800", "[" * 2000, "../..",
    "README.md", "%s%n", "a:b:c")


def mistaken(draw, word):
  """A word with a letter less, more or other, or with another value."""
  name, equals, _ = word.partition("=")
  place = draw.randrange(len(name))
  return draw.choice((
      name[:place] + name[place + 1:] + word[len(name):],
      name[:place] + "z" + name[place:] + word[len(name):],
      name + equals + draw.choice(VALUES), f"{name}={draw.choice(VALUES)}", name, word.lstrip("-"),
      word))


@pytest.mark.parametrize("name", [*DOORS, "judge", "claims", "pretrained", "prepare"])
def test_seeded_mistakes_end_in_no_traceback(name, run, monkeypatch, tmp_path, trials):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(claims, "measure", lambda *args, **options: True)
  monkeypatch.setattr(claims, "rehearse", lambda *args, **options: 0)
  monkeypatch.setattr(pretrained, "fetch", lambda *args: "path")
  monkeypatch.setattr(prepare.prepared, "prepare", lambda *args: "path")
  for draw in trials(40):
    words = draw.sample(WORDS, draw.randint(1, 6))
    if name in DOORS and draw.random() < 0.7:
      words = [CONFIG, "--workdir=w", *words]
    words = [mistaken(draw, word) if draw.random() < 0.4 else word for word in words]
    with draw.refusal(words):
      status, printed, given = run(name, *words)
      assert status in (0, 1, 2)
      assert status == 0 or "Error: " in printed
