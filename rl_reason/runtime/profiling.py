"""Records a profiler trace of a few steps, on request.

A trace shows what ran when, on the host and on the devices.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from typing import Self

from etils import epath
import jax

from rl_reason.config.checks import at_least


@dataclasses.dataclass(frozen=True)
class Profile:
  """Says which steps to record with jax.profiler.

  Steps count from 1; the first ones mostly compile.

  stage: name of the stage whose steps are recorded; "" records none.
  first: the first step to record.
  last: the last step to record.
  """
  stage: str = ""
  first: int = 3
  last: int = 3

  def __post_init__(self):
    at_least(1, first=self.first)
    if self.last < self.first:
      raise ValueError(f"last must be at least first, got first={self.first} and"
                       f" last={self.last}: no step would be recorded.")

FOLDER = "profile"


class Trace:
  """Records the steps that `section` names.

  It is a context manager, and ends a recording that is under way when it is left, in whatever way.

      with Trace(Profile(stage="rl"), workdir, print) as trace:
        with trace.step("rl", 3):
          ...

  Recordings are in workdir/profile, one per process, for TensorBoard's profile plugin (xprof). The
  *.trace.json.gz among them is for ui.perfetto.dev.
  """

  def __init__(self, section: Profile, workdir: epath.Path, note: Callable[[str], None]):
    self._section, self._folder, self._note = section, workdir / FOLDER, note
    self._recording = self._done = False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self._stop()
    if self._section.stage and not self._done:
      self._note(f"No step was profiled: none of stage {self._section.stage!r} from"
                 f" {self._section.first} to {self._section.last} ran in this call.")

  @contextlib.contextmanager
  def step(self, stage: str, step: int) -> Iterator[None]:
    """Surrounds one step, counted from 1 as in metrics.jsonl. Costs nothing for other steps."""
    wanted = stage == self._section.stage and self._section.first <= step <= self._section.last
    if not wanted:
      yield
      return
    if not self._recording:
      options = jax.profiler.ProfileOptions()
      # Every Python call would be an event: that is slow, and too much to look at.
      options.python_tracer_level = 0
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._recording = True
    with jax.profiler.StepTraceAnnotation(stage, step_num=step):
      yield
    if step == self._section.last:
      self._stop()

  def _stop(self) -> None:
    """Ends a recording that is under way, and reports where it is."""
    if self._recording:
      self._recording, self._done = False, True
      jax.profiler.stop_trace()
      self._note(f"A profile is in {self._folder}: open it with `tensorboard"
                 f" --logdir={self._folder}` (pip install xprof), or its *.trace.json.gz at"
                 " ui.perfetto.dev.")
