"""What a run prints: plain lines, and the live panel in a pseudo-terminal.

Both meet hostile completions.
"""

import io
import os
import pty
import re
import termios
import threading
import time

import pytest

from rl_reason.reporting.progress import _clip, _duration, _format, printable, Progress

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x9b31m[bold red]x[/bold red][/]\u202e evil\r\n"
    ":smile: \ud800 \\boxed{4}")


class Clock:
  """Seconds that pass when told to."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Terminal:
  """A pseudo-terminal to write to; `text` is what arrived on its screen side."""

  def __enter__(self):
    self.screen, side = pty.openpty()
    self.stream = open(side, "w", encoding="utf-8")
    self.chunks = []
    self.reader = threading.Thread(target=self.read)
    self.reader.start()
    return self

  def read(self):
    while True:
      try:
        chunk = os.read(self.screen, 65536)
      except OSError:  # The last writer closed its side.
        return
      self.chunks.append(chunk)

  def __exit__(self, *_):
    self.stream.close()
    self.reader.join()
    os.close(self.screen)
    self.text = b"".join(self.chunks).decode().replace("\r\n", "\n")


@pytest.fixture
def terminal(monkeypatch):
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
    monkeypatch.delenv(name, raising=False)
  for name, value in dict(TERM="xterm-256color", COLUMNS="100", LINES="30").items():
    monkeypatch.setenv(name, value)
  return Terminal()


def test_plain_lines():
  stream, clock = io.StringIO(), Clock()
  with Progress(stream=stream, clock=clock, seconds_between_lines=0) as progress:
    progress.stage("rl", num_steps=60, start_step=10)
    clock.now = 100.0  # Compiling: must not count in the ETA.
    progress.update(11, {"reward/mean": 0.5, "not/shown": 1.0})
    clock.now = 101.5
    progress.note("saved checkpoint 11")
    values = {
        "reward/mean": 0.5333, "kl": 0.01234, "eval/pass@1": 0.41, "time/tokens_per_second": 1234.4}
    progress.update(12, values, sample="unseen")
  assert stream.getvalue().splitlines() == [
      "rl 11/60  reward 0.5", "saved checkpoint 11",
      # 48 steps of 1.5 seconds.
      "rl 12/60  reward 0.533  kl 0.0123  pass@1 0.41  1234 tok/s  eta 1:12",
  ]


@pytest.mark.parametrize("start", [0, 10])
def test_an_evaluation_before_the_first_step_is_no_step(start):
  stream, clock = io.StringIO(), Clock()
  with Progress(stream=stream, clock=clock, seconds_between_lines=0) as progress:
    progress.stage("rl", num_steps=start + 61, start_step=start)
    clock.now = 40.0
    progress.update(start, {"eval/pass@1": 0.1})
    progress.compiling()
    clock.now = 100.0  # One minute of compilation: 60 more of these would be an hour.
    progress.update(start + 1, {"kl": 0.0})
    clock.now = 102.0
    progress.update(start + 2, {"kl": 0.0})
    progress.compiling()  # It is done.
  n = start + 61
  assert stream.getvalue().splitlines() == [
      f"rl {start}/{n}  pass@1 0.1", f"rl {start}/{n}  compiling: the first step takes longer",
      f"rl {start + 1}/{n}  kl 0", f"rl {start + 2}/{n}  kl 0  eta 1:58"]


def test_plain_lines_are_few_and_lose_no_metric():
  stream, clock = io.StringIO(), Clock()
  with Progress(
      stream=stream, clock=clock, seconds_between_lines=5,
      headline=[("a", "a"), ("b", "b")]) as progress:
    progress.stage("one", num_steps=100)
    for step in range(1, 101):
      clock.now = step * 0.5
      progress.update(step, {"a": step} if step != 7 else {"a": step, "b": 1})
    progress.stage("two", num_steps=9)
    progress.update(1, {"a": 1})
    progress.update(2, {"a": 2})
    progress.update(2, {"b": 2})
  lines = stream.getvalue().splitlines()
  assert lines[:2] == ["one 1/100  a 1", "one 11/100  a 11  b 1  eta 0:45"]
  assert len([line for line in lines if line.startswith("one")]) == 11
  assert lines[-3:] == [
      "one 100/100  a 100  took 0:50", "two 1/9  a 1", "two 2/9  a 2  b 2  eta 0:00"]


def test_speed_follows_the_latest_steps():
  stream, clock = io.StringIO(), Clock()
  with Progress(stream=stream, clock=clock, seconds_between_lines=0) as progress:
    progress.stage("rl", num_steps=100)
    for step in range(1, 91):
      clock.now += 1.0 if step <= 45 else 3.0
      progress.update(step, {})
  assert stream.getvalue().splitlines()[-1] == "rl 90/100  eta 0:30"


def test_plain_table_is_aligned():
  stream = io.StringIO()
  with Progress(stream=stream) as progress:
    progress.table(
        "Results", ["task", "pass@1", "n"],
        [["gsm8k", 0.51234, 1319], ["数学\x1b[2J", float("nan"), 500]])
  assert stream.getvalue() == (
      "Results\n"
      "task      pass@1     n\n"
      "--------  ------  ----\n"
      "gsm8k      0.512  1319\n"
      "数学␛[2J     nan   500\n")
  with pytest.raises(ValueError, match="row 0 of table 'T' has 1 cells for 2 columns"):
    Progress(stream=stream).table("T", ["a", "b"], [[1]])


def test_disabled_prints_nothing(capsys):
  with Progress(enabled=False) as progress:
    progress.update(1, {})
    progress.stage("rl", 3)
    progress.note("x")
    progress.table("t", ["a"], [[1]])
  assert capsys.readouterr().out == ""


def test_wrong_use_is_refused():
  with Progress(stream=io.StringIO()) as progress:
    with pytest.raises(ValueError, match=r"before stage\(\)"):
      progress.update(1, {})
    with pytest.raises(ValueError, match=r"start_step must be in \[0, num_steps\], got 5 of 3"):
      progress.stage("rl", 3, start_step=5)


def test_printable_leaves_no_control_characters():
  shown = printable(HOSTILE)
  assert not re.search(
      r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
  assert shown.startswith("␛[2J␛]0;owned␇\ufffd31m[bold red]x[/bold red][/]\ufffd evil\n:smile:")
  assert printable("a\tb\r\nπ ≤ 👩‍🚀 é 数") == "a  b\nπ ≤ 👩‍🚀 é 数"


def test_hostile_text_in_plain_lines():
  stream = io.StringIO()
  with Progress(stream=stream, headline=[("k", "k\x1b[1m")]) as progress:
    progress.note(HOSTILE)
    progress.stage("st\x1b[31mage", 2)
    progress.update(1, {"k": 1}, sample=HOSTILE)
  assert "\x1b" not in stream.getvalue() and "[bold red]x[/bold red]" in stream.getvalue()


def test_log_file_that_is_not_utf8():
  stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  with Progress(stream=stream) as progress:
    progress.note("π = 3 \x1b")
  assert stream.buffer.getvalue() == b"? = 3 ?\n"


def test_live_panel_in_a_terminal(terminal):
  with terminal:
    with Progress(stream=terminal.stream) as progress:
      progress.stage("sft", 2)
      progress.update(2, {"loss": 0.25})
      progress.stage("rl", 60)
      for step in (1, 2, 3):
        progress.update(
            step, {"reward/mean": 0.5312, "time/tokens_per_second": 1234.0}, sample=HOSTILE)
      progress.note("[saved] checkpoint 3")
      time.sleep(0.6)  # The panel is drawn four times a second.
      progress.table("Results [x]", ["task", "pass@1"], [["gsm8k", 0.5]])
  for expected in (
      "╭", "3/60", "0.531", "1234", "latest sample", "[bold red]x[/bold red]", ":smile:", "␛[2J",
      "[saved] checkpoint 3", "Results [x]", "gsm8k", "sft 2/2  loss 0.25  took 0:00"):
    assert expected in terminal.text
  # Only rich's own sequences arrive: colours, cursor movement, erasing a line, hiding and showing
  # the cursor.
  assert not re.sub(r"\x1b\[(\d+(;\d+)*m|\d*[AK]|2K|\?25[lh])", "", terminal.text).count("\x1b")
  assert terminal.text.count("\x1b[?25l") == terminal.text.count("\x1b[?25h") == 1


def test_the_panel_says_that_it_compiles(terminal):
  with terminal:
    with Progress(stream=terminal.stream) as progress:
      progress.stage("rl", 60)
      progress.compiling()
      time.sleep(0.6)
      progress.update(1, {"kl": 0.5})
      time.sleep(0.6)
  before, _, after = terminal.text.rpartition("compiling")
  assert "0/60" in before
  assert "eta --:--" not in before
  assert "eta --:--" in after


def echoes_keys(stream):
  return bool(termios.tcgetattr(stream.fileno())[3] & termios.ECHOCTL)


def test_the_terminal_does_not_write_ctrl_c_into_the_panel(terminal):
  with terminal:
    assert echoes_keys(terminal.stream)
    with pytest.raises(KeyboardInterrupt):
      with Progress(stream=terminal.stream) as progress:
        progress.stage("rl", 3)
        assert not echoes_keys(terminal.stream)
        os.write(terminal.screen, b"\x03")
        raise KeyboardInterrupt
    assert echoes_keys(terminal.stream)
  assert "^C" not in terminal.text


def test_a_terminal_that_writes_no_keys_stays_so(terminal):
  with terminal:
    settings = termios.tcgetattr(terminal.stream.fileno())
    settings[3] &= ~termios.ECHOCTL
    termios.tcsetattr(terminal.stream.fileno(), termios.TCSANOW, settings)
    with Progress(stream=terminal.stream) as progress:
      progress.stage("rl", 3)
    assert not echoes_keys(terminal.stream)


def test_terminal_is_given_back_when_training_fails(terminal):
  with terminal:
    with pytest.raises(RuntimeError):
      with Progress(stream=terminal.stream) as progress:
        progress.stage("rl", 3)
        progress.update(1, {"kl": 0.5})
        raise RuntimeError
  assert "\x1b[?25h" in terminal.text and "rl 1/3  kl 0.5" in terminal.text


@pytest.mark.parametrize("variable, value", [("TERM", "dumb"), ("TTY_INTERACTIVE", "0")])
def test_terminal_that_cannot_move_its_cursor_gets_lines(terminal, monkeypatch, variable, value):
  monkeypatch.setenv(variable, value)
  with terminal:
    with Progress(stream=terminal.stream) as progress:
      progress.stage("rl", 3)
      progress.update(1, {"kl": 0.5})
  assert terminal.text == "rl 1/3  kl 0.5\n"


def test_no_color_is_respected(terminal, monkeypatch):
  monkeypatch.setenv("NO_COLOR", "1")
  with terminal:
    with Progress(stream=terminal.stream) as progress:
      progress.stage("rl", 3)
      progress.update(1, {"kl": 0.5})
      time.sleep(0.6)
  assert "╭" in terminal.text
  assert not re.search(r"\x1b\[[\d;]*(3[0-7]|38|9[0-7])[;m]", terminal.text)


def test_forced_colour_does_not_turn_a_log_file_into_a_panel(monkeypatch):
  monkeypatch.setenv("FORCE_COLOR", "1")
  stream = io.StringIO()
  with Progress(stream=stream) as progress:
    progress.stage("rl", 3)
    progress.update(1, {"kl": 0.5})
  assert stream.getvalue() == "rl 1/3  kl 0.5\n"


def test_long_completions_keep_beginning_and_end():
  assert _clip("short") == "short"
  clipped = _clip("begin " + "x" * 10_000 + " \\boxed{4}")
  assert len(clipped) <= 480 and clipped.startswith("begin") and clipped.endswith("\\boxed{4}")
  lines = _clip("\n".join(map(str, range(50)))).split("\n")
  assert lines == ["0", "1", "2", "[...]", "46", "47", "48", "49"]


def test_numbers_and_durations():
  assert [_format(x) for x in (0.53, 0.01234, 1234.4, 123456, 12, 1e-6, float("nan"), -0.5)] == [
      "0.53", "0.0123", "1234", "123456", "12", "1e-06", "nan", "-0.5"]
  assert [_duration(x) for x in (0, 79.6, 7380, 90000 + 240)] == [
      "0:00", "1:20", "2:03:00", "1d 01:04"]


class Closed(io.StringIO):
  """A stream whose reader has gone."""

  def write(self, text):
    raise BrokenPipeError


def test_a_stream_that_nobody_reads_is_noticed_and_is_no_error():
  shown = Progress(plain=True, stream=Closed())
  assert not shown.closed
  shown.note("one")
  assert shown.closed
  shown.table("two", ["a"], [[1]])
