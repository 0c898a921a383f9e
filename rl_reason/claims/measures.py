"""One number of a finished run, from its folder: what a claim compares."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.config import naming
from rl_reason.reporting import metrics

Curve = tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]


def config(folder: Path) -> dict[str, Any]:
  """What the run was made with, as plain data: its seed, stages and their sections."""
  return json.loads((folder / "config.json").read_text())


def curve(folder: Path, name: str, stage: str = "") -> Curve:
  """(steps, values) of a metric in metrics.jsonl, in the stage's own steps. stage "": the last one that has it.

  Raises: ValueError if there is none.
  """
  lines = [m for m in metrics.read_metrics(folder) if stage in ("", m["stage"])]
  found = [m for m in lines if name in m]
  if not found:
    known = sorted({k for m in lines for k in m} - {"stage", "step"})
    raise ValueError(f"The run {folder} logged no {name!r}{f' in stage {stage!r}' if stage else ''}."
                     f"{naming.did_you_mean(name, known)} It has: {', '.join(known) or 'nothing'}.")
  points = np.array([(m["step"], m[name]) for m in found if m["stage"] == found[-1]["stage"]], np.float64)
  return points[:, 0], points[:, 1]


def arrays(folder: Path, stage: str, function: str) -> dict[str, np.ndarray]:
  """Reads the arrays that a function of a `probe` stage found, by name.

  Raises: ValueError if the run has none.
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
  """The mean of the metric's last `points` values."""
  return float(curve(folder, name, stage)[1][-points:].mean())


def highest(folder: Path, *, name: str, stage: str = "") -> float:
  """The largest value; with noisy evaluations it is above the truth, the more the more there are."""
  return float(curve(folder, name, stage)[1].max())


def lowest(folder: Path, *, name: str, stage: str = "") -> float:
  """The smallest value; see `highest`."""
  return float(curve(folder, name, stage)[1].min())


def area(folder: Path, *, name: str, stage: str = "") -> float:
  """The area under the curve over its width: the mean height, in the metric's unit. It is larger if learning is faster."""
  steps, values = curve(folder, name, stage)
  return float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else float(values[0])


def steps_to(
    folder: Path, *, name: str, target: float, stage: str = "", below: bool = False, never: float | None = None,
) -> float:
  """The first step at which the metric is at least (`below`: at most) `target`.

  Args:
    never: what counts for a run that never gets there, e.g. the number of steps, which understates. None: such a run has
      no number, and the claim no verdict.
  Raises: ValueError if it never gets there and `never` is None.
  """
  steps, values = curve(folder, name, stage)
  reached = steps[values <= target if below else values >= target]
  if not len(reached) and never is None:
    raise ValueError(f"The run {folder} never had {name!r} {'at most' if below else 'at least'} {target}: nearest was"
                     f" {values.min() if below else values.max():.4g}. Give `never`, what counts then.")
  return float(reached[0]) if len(reached) else float(never)


def total(folder: Path, *, name: str, stage: str = "") -> float:
  """The sum of its values, of time/step say; stage "": the last one that has it."""
  return float(curve(folder, name, stage)[1].sum())


# What a claim's metric may name; its own are named by a dotted path.
MEASURES: dict[str, Callable[..., float]] = {
    "last": last, "highest": highest, "lowest": lowest, "area": area, "steps_to": steps_to, "total": total}


def measure(folder: Path, function: str, arguments: dict) -> float:
  """Raises: ValueError if the function has no number for the run."""
  value = naming.find("metric function", function, MEASURES)(folder, **arguments)
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(f"The metric function {function!r} returned {value!r}, which is no number.") from error


def totals(folder: Path) -> dict[str, float]:
  """The sum of every metric over all lines of metrics.jsonl: what a run did, of those that count something."""
  sums: dict[str, float] = {}
  for line in metrics.read_metrics(folder):
    for key, value in line.items():
      if key not in ("stage", "step"):
        sums[key] = sums.get(key, 0.0) + value
  return sums
