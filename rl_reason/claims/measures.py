"""Computes one number of a finished run from its folder: the number that a claim compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.config import naming
from rl_reason.reporting import metrics
from rl_reason.run import record

# (steps, values) of a metric.
Curve = tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]


def config(folder: Path) -> dict[str, Any]:
  """Reads a run's config as plain data: its seed, its stages and their sections."""
  found = record.read(folder)
  if found is None:
    raise FileNotFoundError(f"The run {folder} has no {record.CONFIG}.")
  return found.config


def curve(folder: Path, name: str, stage: str = "") -> Curve:
  """Reads the curve of a metric from metrics.jsonl.

  Args:
    folder: the run's folder.
    name: the metric's name.
    stage: name of the stage; "": the last stage that logged the metric.
  Returns: (steps, values); steps count from the stage's own start.
  Raises: ValueError if the stage, or the run, logged no such metric.
  """
  lines = [m for m in metrics.read_metrics(folder) if stage in ("", m["stage"])]
  found = [m for m in lines if name in m]
  if not found:
    known = sorted({k for m in lines for k in m} - {"stage", "step"})
    raise ValueError(
        f"The run {folder} logged no {name!r}{f' in stage {stage!r}' if stage else ''}."
        f"{naming.did_you_mean(name, known)} It has: {', '.join(known) or 'nothing'}.")
  # Of one stage only: another stage's steps count from 1 again.
  points = np.array(
      [(m["step"], m[name]) for m in found if m["stage"] == found[-1]["stage"]], np.float64)
  return points[:, 0], points[:, 1]


def arrays(folder: Path, stage: str, function: str) -> dict[str, np.ndarray]:
  """Reads the arrays that a function of a `probe` stage found.

  Args:
    folder: the run's folder.
    stage: name of the stage.
    function: name of the function.
  Returns: name -> array.
  Raises: ValueError if the run has no arrays of this function.
  """
  path = folder / "arrays" / stage / f"{function}.npz"
  if not path.exists():
    known = sorted(p.stem for p in path.parent.glob("*.npz"))
    raise ValueError(f"The run {folder} has no arrays of the function {function!r} of stage"
                     f" {stage!r}.{naming.did_you_mean(function, known)} It has:"
                     f" {', '.join(known) or 'none'}.")
  with np.load(path) as found:
    return dict(found)


def last(folder: Path, *, name: str, stage: str = "", points: int = 1) -> float:
  """Returns the mean of the metric's last `points` values."""
  return float(curve(folder, name, stage)[1][-points:].mean())


def highest(folder: Path, *, name: str, stage: str = "") -> float:
  """Returns the metric's largest value.

  With noisy evaluations it lies above the truth, and the more evaluations there are, the further.
  """
  return float(curve(folder, name, stage)[1].max())


def lowest(folder: Path, *, name: str, stage: str = "") -> float:
  """Returns the metric's smallest value, which noise biases as it does `highest`."""
  return float(curve(folder, name, stage)[1].min())


def area(folder: Path, *, name: str, stage: str = "") -> float:
  """Returns the area under the curve divided by its width: the mean height, in the metric's unit.

  It is larger if learning is faster.
  """
  steps, values = curve(folder, name, stage)
  return (
      float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(steps) > 1
      else float(values[0]))


def steps_to(
    folder: Path, *, name: str, target: float, stage: str = "", below: bool = False,
    never: float | None = None,
) -> float:
  """Finds the first step at which a metric reaches a target.

  Args:
    folder: the run's folder.
    name: the metric's name.
    target: the value to reach, in the metric's unit.
    stage: as in `curve`.
    below: false: the metric must be at least `target`; true: at most `target`.
    never: the result for a run that never reaches the target, e.g. the number of its steps, which
      understates the truth. None: such a run has no number, and the claim has no verdict.
  Raises: ValueError if the metric never reaches the target and `never` is None.
  """
  steps, values = curve(folder, name, stage)
  reached = steps[values <= target if below else values >= target]
  if not len(reached) and never is None:
    raise ValueError(
        f"The run {folder} never had {name!r} {'at most' if below else 'at least'} {target}:"
        f" nearest was {values.min() if below else values.max():.4g}. Give `never`, what counts"
        " then.")
  return float(reached[0]) if len(reached) else float(never)


def total(folder: Path, *, name: str, stage: str = "") -> float:
  """Returns the sum of the metric's values, e.g. of time/step; stage as in `curve`."""
  return float(curve(folder, name, stage)[1].sum())


# The functions that a claim's metric may name; an experiment's own function is named by a dotted
# path.
MEASURES: dict[str, Callable[..., float]] = {
    "last": last, "highest": highest, "lowest": lowest, "area": area, "steps_to": steps_to,
    "total": total}


def measure(folder: Path, function: str, arguments: dict) -> float:
  """Computes a run's number.

  Args:
    folder: the run's folder.
    function: a name in MEASURES, or a dotted path.
    arguments: its keyword arguments.
  Raises: ValueError if the function has no number for the run.
  """
  value = naming.find("metric function", function, MEASURES)(folder, **arguments)
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(
        f"The metric function {function!r} returned {value!r}, which is no number.") from error


def totals(folder: Path) -> dict[str, float]:
  """Sums every metric over all lines of metrics.jsonl.

  For metrics that count something, e.g. tokens, the sum is what the whole run did.
  """
  sums: dict[str, float] = {}
  for line in metrics.read_metrics(folder):
    for key, value in line.items():
      if key not in ("stage", "step"):
        sums[key] = sums.get(key, 0.0) + value
  return sums
