"""Shows a run while it trains: a live panel in a terminal, plain lines in a log file or notebook.

    rl 12/60  reward 0.53  kl 0.012  pass@1 0.41  1234 tok/s  eta 1:20

A pipe also gets plain lines. Completions are untrusted: a model may emit terminal escapes or rich
markup. Every text shown passes through `printable`, and rich gets it as `Text`, which rich does not
interpret.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
import sys
import time
from typing import Any, Self, TextIO
import unicodedata

from rich import cells, console, live, panel, progress_bar, spinner, table, text

from rl_reason.reporting.terminal import without_echoed_keys

# Metric -> label; a label with {} is a template around the number. Metrics that a stage does not
# report are skipped.
HEADLINE = (
    ("loss", "loss"),
    ("reward/mean", "reward"),
    ("kl", "kl"),
    ("entropy", "entropy"),
    ("completion/length", "length"),
    ("eval/pass@1", "pass@1"),
    ("eval/accuracy", "accuracy"),
    ("time/tokens_per_second", "{} tok/s"),
)
# The number of latest steps whose speed the ETA uses: completions grow as training goes on.
_RATE_STEPS = 32


class Progress:
  """Shows stages, their headline metrics and a recent completion.

  It is a context manager. Calls come in the order of the run:

      with Progress(enabled=jax.process_index() == 0) as progress:
        progress.stage("rl", num_steps=60, start_step=12)
        progress.update(13, {"reward/mean": 0.53, "kl": 0.012}, sample=completion)
        progress.note("saved checkpoint 13")
  """

  def __init__(
      self, plain: bool | None = None, stream: TextIO | None = None, *,
      headline: Sequence[tuple[str, str]] = HEADLINE, enabled: bool = True,
      seconds_between_lines: float = 2.0, clock: Callable[[], float] = time.monotonic,
  ):
    """Decides between the panel and lines; shows nothing yet.

    Args:
      plain: true for lines, false for the live panel. None decides by the stream: the panel on a
        terminal that can move its cursor (not TERM=dumb, not a notebook), else lines. Colours
        follow NO_COLOR and the terminal, through rich.
      stream: where to write, sys.stdout by default.
      headline: (metric, label) pairs to show, in order, such as `HEADLINE`.
      enabled: false on all processes but one; every method then does nothing.
      seconds_between_lines: plain lines come at most this often. The first and last step of a stage
        are always shown.
      clock: returns seconds from any origin, for the ETA.
    """
    stream = sys.stdout if stream is None else stream
    is_terminal = bool(getattr(stream, "isatty", lambda: False)())
    # In a terminal rich decides what it can do. FORCE_COLOR and similar variables must not make
    # rich treat a log file as a terminal.
    self._console = console.Console(
        file=stream, force_terminal=True if plain is False else None if is_terminal else False,
        force_jupyter=False, markup=False, highlight=False, emoji=False)
    if plain is None:
      plain = not (
          is_terminal and self._console.is_interactive and not self._console.is_dumb_terminal)
    self._plain, self._stream, self._enabled = plain, stream, enabled
    self._headline, self._seconds_between_lines, self._clock = (
        tuple(headline), seconds_between_lines, clock)
    self._stage: _Stage | None = None
    self._live: live.Live | None = None
    self._exits = contextlib.ExitStack()
    # Whether nobody reads the lines any more, as after `| head`.
    self.closed = False
    self._spinner = spinner.Spinner("line")

  def __enter__(self) -> Self:
    if self._enabled and not self._plain:
      self._exits.enter_context(without_echoed_keys(self._stream))
      self._live = live.Live(
          console=self._console, get_renderable=self._panel, refresh_per_second=4, transient=True)
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    self._finish_stage()
    if self._live is not None:
      self._live.stop()  # Gives the cursor back, also when training failed.
      self._live = None
    self._exits.close()

  def stage(self, name: str, num_steps: int, start_step: int = 0) -> None:
    """Begins a stage of `num_steps` updates.

    Args:
      name: name of the stage.
      num_steps: updates of the whole stage.
      start_step: updates that were done before, in a resumed run.
    Raises: ValueError if start_step is not in [0, num_steps].
    """
    if not self._enabled:
      return
    if not 0 <= start_step <= num_steps:
      raise ValueError(
          f"start_step must be in [0, num_steps], got {start_step} of {num_steps} for stage"
          f" {name!r}. Raise the stage's number of steps, or resume from an earlier checkpoint.")
    self._finish_stage()
    self._stage = _Stage(
        name=self._clean(name), num_steps=num_steps, step=start_step, started=self._clock(),
        start_step=start_step)

  def compiling(self) -> None:
    """Says that the step which begins compiles its programs first, until it is done.

    Minutes may pass without a word else, and nothing is known of the time that steps take.
    """
    stage = self._stage
    if self._enabled and stage is not None and not stage.marks:
      stage.compiling = True
      if self._plain:
        self._print(self._clean(
            f"{stage.name} {stage.step}/{stage.num_steps}  compiling: the first step takes longer"))

  def update(self, step: int, values: Mapping[str, float], sample: str | None = None) -> None:
    """Shows a step's metrics; several calls for one step add up.

    Args:
      step: updates completed in this stage.
      values: metric name -> number; those of the headline are shown. The panel keeps showing a
        metric's last value.
      sample: a completion, shown clipped in the panel and not in plain lines.
    Raises: ValueError if no stage was begun.
    """
    if not self._enabled:
      return
    stage = self._stage
    if stage is None:
      raise ValueError(
          f"update({step}) before stage(): nothing says how many steps there are. Call stage(name,"
          " num_steps) first.")
    now = self._clock()
    stage.step = step
    # What comes before the first step, as an evaluation, is no step: the time from there to the
    # first step's end is mostly compilation.
    if step > stage.start_step and (not stage.marks or stage.marks[-1][0] != step):
      stage.marks.append((step, now))
      stage.compiling = False
    shown = {key: values[key] for key, _ in self._headline if key in values}
    # A new dict, because the panel's thread may be reading the old one.
    stage.values = {**stage.values, **shown}
    stage.unprinted = {**(stage.unprinted or {}), **shown}
    if sample is not None:
      stage.sample = self._clean(_clip(sample))
    due = (stage.last_line is None or now - stage.last_line >= self._seconds_between_lines
           or step >= stage.num_steps)
    if self._plain and due:
      self._print_line(stage, now)

  def note(self, message: str) -> None:
    """Prints a line; in a terminal it appears above the panel and stays."""
    if self._enabled:
      self._print(self._clean(message))

  def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table, e.g. the final results.

    Numbers are rounded to three digits and aligned to the right.

    Raises: ValueError if a row does not have one cell per column.
    """
    if not self._enabled:
      return
    for index, row in enumerate(rows):
      if len(row) != len(columns):
        raise ValueError(
            f"row {index} of table {title!r} has {len(row)} cells for {len(columns)} columns:"
            f" {list(row)}. Give one cell per column.")
    title, header = self._clean(title), [self._clean(str(column)) for column in columns]
    def shown(cell: Any) -> str:
      return _format(cell) if _is_number(cell) else self._clean(str(cell)).replace("\n", " ")
    body = [[shown(cell) for cell in row] for row in rows]
    # A column of numbers only is aligned to the right.
    right = [bool(rows) and all(_is_number(row[column]) for row in rows)
             for column in range(len(columns))]
    if self._plain:
      widths = [max(cells.cell_len(line[column]) for line in [header, *body])
                for column in range(len(columns))]
      lines = [header, ["-" * width for width in widths], *body]
      self._print("\n".join([title, *(_align(line, widths, right) for line in lines)]))
      return
    grid = table.Table(title=text.Text(title, style="bold"), title_justify="left")
    for name, is_right in zip(header, right):
      grid.add_column(text.Text(name), justify="right" if is_right else "left")
    for line in body:
      grid.add_row(*map(text.Text, line))
    self._console.print(grid)

  def _clean(self, untrusted: str) -> str:
    """Returns text that cannot steer the terminal, and that the stream can encode."""
    encoding = getattr(self._stream, "encoding", None) or "utf-8"
    return printable(untrusted).encode(encoding, "replace").decode(encoding)

  def _print(self, line: str) -> None:
    """Prints one line, above the panel if there is one."""
    if self.closed:
      return
    if self._plain:
      # The run must save before it stops, so it is told by `closed` and not by an exception.
      try:
        self._stream.write(line + "\n")
        self._stream.flush()  # A log file is followed with `tail -f`.
      except BrokenPipeError:
        self.closed = True
    else:
      self._console.print(text.Text(line))

  def _print_line(self, stage: "_Stage", now: float) -> None:
    """Prints the headline values that no line has shown yet."""
    self._print(self._line(stage, stage.unprinted or {}))
    stage.unprinted, stage.last_line = None, now

  def _line(self, stage: "_Stage", values: Mapping[str, float]) -> str:
    """Writes one line: the step, these values, and the time left or taken."""
    parts = [f"{stage.name} {stage.step}/{stage.num_steps}"]
    for key, label in self._headline:
      if key in values:
        number = _format(values[key])
        parts.append(label.replace("{}", number) if "{}" in label else f"{label} {number}")
    seconds_left = stage.seconds_left()
    if stage.step >= stage.num_steps:
      parts.append(f"took {_duration(self._clock() - stage.started)}")
    elif seconds_left is not None:
      parts.append(f"eta {_duration(seconds_left)}")
    return self._clean("  ".join(parts))

  def _finish_stage(self) -> None:
    """Ends the stage, if there is one, and prints what was not printed yet."""
    stage, self._stage = self._stage, None
    if stage is None:
      return
    if not self._plain:
      # The last state of the panel, which vanishes, stays in the scrollback.
      self._print(self._line(stage, stage.values))
    elif stage.unprinted is not None:
      self._print_line(stage, self._clock())

  def _panel(self) -> console.RenderableType:
    """Makes the live panel. rich's thread calls this four times a second, so it only reads."""
    stage = self._stage
    if stage is None:
      return text.Text("")
    metrics = text.Text()
    for key, label in self._headline:
      if key in stage.values:
        before, _, after = label.partition("{}") if "{}" in label else (f"{label} ", "", "")
        metrics.append(self._clean(before), style="dim").append(
            _format(stage.values[key]), style="bold")
        metrics.append(self._clean(after), style="dim").append("   ")
    seconds_left = stage.seconds_left()
    left = "--:--" if seconds_left is None else _duration(seconds_left)
    bar = table.Table.grid(padding=(0, 1), expand=True)
    bar.add_column()
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    bar.add_row(
        self._spinner,
        progress_bar.ProgressBar(
            total=max(stage.num_steps, 1), completed=min(stage.step, stage.num_steps)),
        text.Text(f"{stage.step}/{stage.num_steps}  {_duration(self._clock() - stage.started)}"
                  f"  {'compiling' if stage.compiling else f'eta {left}'}"))
    body = [metrics, bar] if stage.values else [bar]
    if stage.sample is not None:
      body += [text.Text("latest sample", style="dim"), text.Text(stage.sample, overflow="fold")]
    title = text.Text(stage.name, style="bold")
    return panel.Panel(console.Group(*body), title=title, title_align="left", border_style="dim")


@dataclasses.dataclass
class _Stage:
  """Holds what is known about the stage that runs.

  name: name of the stage.
  num_steps: updates of the whole stage.
  step: updates completed.
  started: time at which the stage began, seconds of the clock.
  start_step: updates completed when it began.
  compiling: whether the first step compiles its programs.
  marks: (step, seconds) at the first update of each recent step that was made since it began.
  values: the last value of each headline metric.
  unprinted: headline values that no plain line has shown yet; None where no update came since the
    last line.
  last_line: time of the last plain line, seconds of the clock; None before the first.
  sample: the completion to show; None before the first.
  """
  name: str
  num_steps: int
  step: int
  started: float
  start_step: int = 0
  compiling: bool = False
  marks: collections.deque[tuple[int, float]] = dataclasses.field(
      default_factory=lambda: collections.deque(maxlen=_RATE_STEPS + 1))
  values: Mapping[str, float] = dataclasses.field(default_factory=dict)
  unprinted: Mapping[str, float] | None = None
  last_line: float | None = None
  sample: str | None = None

  def seconds_left(self) -> float | None:
    """Estimates the seconds that the stage still needs.

    Returns None until two steps are done: the first step compiles, so its time says nothing about
    the rest.
    """
    if len(self.marks) < 2 or self.marks[-1][0] <= self.marks[0][0]:
      return None
    (first_step, first), (last_step, last) = self.marks[0], self.marks[-1]
    return max(self.num_steps - self.step, 0) * (last - first) / (last_step - first_step)


def printable(untrusted: str) -> str:
  """Returns text that cannot steer a terminal.

  Newlines stay, tabs become spaces, and other control characters become visible signs. C0 controls
  turn into their Unicode pictures (ESC into ␛). C1 controls (some terminals take U+009B for ESC [),
  bidirectional overrides, other invisible format characters and lone surrogates turn into U+FFFD.
  Zero-width joiners stay, because scripts and emoji need them.
  """
  def visible(character: str) -> str:
    if character in "\n\u200c\u200d":
      return character
    code = ord(character)
    if code < 0x20 or code == 0x7F:
      return chr(0x2400 + code) if code < 0x20 else "\u2421"
    return ("\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
            else character)
  return "".join(map(visible, untrusted.replace("\r\n", "\n").replace("\t", "  ")))


def _clip(untrusted: str, max_characters: int = 480, max_lines: int = 8) -> str:
  """Keeps the beginning of a completion, where it sets out, and the end, where it answers."""
  mark = " [...] "
  if len(untrusted) > max_characters:
    half = (max_characters - len(mark)) // 2
    untrusted = untrusted[:half] + mark + untrusted[-half:]
  lines = untrusted.strip().split("\n")
  if len(lines) > max_lines:
    half = max_lines // 2
    lines = lines[:max_lines - half - 1] + [mark.strip()] + lines[-half:]
  return "\n".join(lines)


def _is_number(cell: Any) -> bool:
  """Tells whether a cell is a number; true and false are texts here."""
  return hasattr(cell, "__float__") and not isinstance(cell, (bool, str))


def _format(value: float) -> str:
  """Writes a number with three significant digits; whole numbers in full."""
  number = float(value)
  if not math.isfinite(number):
    return str(number)
  return f"{number:.0f}" if abs(number) >= 100 or isinstance(value, int) else f"{number:.3g}"


def _duration(seconds: float) -> str:
  """Writes a duration as 1:20 (minutes:seconds), 2:03:00 (hours) or 3d 04:00."""
  minutes, second = divmod(int(max(seconds, 0.0) + 0.5), 60)
  hours, minute = divmod(minutes, 60)
  days, hour = divmod(hours, 24)
  if days:
    return f"{days}d {hour:02d}:{minute:02d}"
  return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _align(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
  """Joins the cells of a line, each filled up with spaces to the width of its column."""
  padded = []
  for cell, width, is_right in zip(line, widths, right):
    # Widths are counted in cells of the terminal: wide characters take two.
    space = " " * (width - cells.cell_len(cell))
    padded.append(space + cell if is_right else cell + space)
  return "  ".join(padded).rstrip()
