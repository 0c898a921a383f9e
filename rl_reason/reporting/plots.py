"""Draws the learning curves of a run, as a PNG."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import io
import os
import re
from typing import Any, TYPE_CHECKING

import numpy as np

from rl_reason.reporting import metrics
from rl_reason.reporting.whole_files import write_whole

if TYPE_CHECKING:
  from matplotlib import axes, figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclasses.dataclass(frozen=True)
class Panel:
  """Describes one chart.

  title: title of the chart.
  y_label: what is drawn, with its unit.
  keys: metrics, a curve each. A "*" stands for any name without "/": "reward/*" is every metric of
    this form that no panel names in full.
  stage: draw only this stage's lines; None for all stages.
  each_stage: draw a chart for each stage that has the metrics, since they mean another thing in
    each.
  band: (low, high) metrics around the first curve.
  band_label: what the band is.
  y_limits: fixed limits, e.g. (0, 1) for a proportion; None fits them to the data.
  joined: the metric means the same in all stages, so its curves run on from one stage to the next.
  """
  title: str
  y_label: str
  keys: tuple[str, ...]
  stage: str | None = None
  each_stage: bool = False
  band: tuple[str, str] | None = None
  band_label: str = "95% interval"
  y_limits: tuple[float, float] | None = None
  joined: bool = False


PANELS = (
    Panel("Held-out accuracy", "pass@1 (proportion)", ("eval/pass@1",),
          band=("eval/pass@1_low", "eval/pass@1_high"), y_limits=(0, 1), joined=True),
    Panel("Held-out comparisons", "accuracy (proportion)", ("eval/accuracy",),
          band=("eval/accuracy_low", "eval/accuracy_high"), y_limits=(0, 1)),
    Panel("Reward", "reward (1 = correct)", ("reward/mean", "reward/*", "reward/*/shaped")),
    Panel("Spread of the rewards", "standard deviation", ("reward/std",)),
    Panel("Groups of equal rewards", "share of groups", ("reward/equal_groups",), y_limits=(0, 1)),
    Panel("KL to the reference policy", "KL (nats per token)", ("kl",)),
    Panel("Completion length", "tokens per completion", ("completion/length",)),
    Panel("Entropy of the policy", "entropy (nats per token)", ("entropy",)),
    Panel("Loss", "loss", ("loss",), each_stage=True),
)

# What the training loop logs of every step: how it ran, not what it learnt.
_LOOP = ("tokens", "updates", "skipped_in_a_row")


def learning_curves(
    metrics_path: str | os.PathLike[str], png_path: str | os.PathLike[str], *,
    panels: Sequence[Panel] | None = None,
) -> list[str]:
  """Draws a run's metrics over its steps into a PNG 1200 pixels wide.

  Each panel that has data is one chart. The stages follow each other on one axis of total steps, in
  the order they ran, with a line where one ends. Curves of more than 100 points are drawn pale,
  with their running mean over them. Values that are not finite leave a gap.

  Args:
    metrics_path: a metrics.jsonl or the folder that holds it; the run may still be going on.
    png_path: path of the PNG. It is written in one step, so a viewer never sees half of it.
    panels: what to draw, e.g. `PANELS` and more; None: `PANELS`, or a chart for each metric where
      none of them has data, as in a run whose only stage is the user's own kind.

  Returns: the titles of the panels drawn.
  Raises: ValueError if no panel has data, with the names of the metrics in the file;
    FileNotFoundError if there is no metrics file.
  """
  records = metrics.read_metrics(metrics_path)
  starts = _stage_starts(records)
  drawn = _with_data(panels or PANELS, records, starts)
  if not drawn and panels is None:
    drawn = _panel_of_each(records)
  if not drawn:
    found = sorted({key for record in records for key in record} - {"stage", "step"})
    raise ValueError(
        f"nothing to draw: {metrics_path} has the metrics {found}, and no panel shows any of them."
        " Give panels that do, e.g. panels=[Panel('Loss', 'loss', ('loss',))].")
  columns = min(len(drawn), 3 if len(drawn) > 4 else 2)
  rows = -(-len(drawn) // columns)
  page = sheet(12, 0.3 + 3.4 * rows)
  page.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
  for index, panel in enumerate(drawn):
    _draw(page.add_subplot(rows, columns, index + 1), panel, records, starts)
  drawing = io.BytesIO()
  page.savefig(drawing, format="png")
  write_whole(png_path, drawing.getvalue())
  return [panel.title for panel in drawn]


def sheet(width: float, height: float, dpi: int = 100) -> figure.Figure:
  """Returns an empty figure of `width` times `height` inches."""
  # Imported here: matplotlib is a fifth of the time that `import rl_reason.train` takes, and is
  # needed once a run has ended. All that draws comes through this function.
  from matplotlib import figure

  # A Figure of its own, not pyplot's: a notebook's current figure and backend stay as they are.
  return figure.Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def _with_data(
    panels: Sequence[Panel], records: Sequence[Mapping[str, Any]], stages: Iterable[str],
) -> list[Panel]:
  """Returns the charts that have something to show, with their metrics in full."""
  charts = []
  for panel in panels:
    charts += [dataclasses.replace(panel, title=f"{panel.title} of {stage}", stage=stage)
               for stage in stages] if panel.each_stage else [panel]
  named = {key for panel in panels for key in panel.keys if "*" not in key}
  found = [dataclasses.replace(c, keys=tuple(_keys_of(c, records, named))) for c in charts]
  return [chart for chart in found if chart.keys]


def _panel_of_each(records: Sequence[Mapping[str, Any]], limit: int = 9) -> list[Panel]:
  """Makes a panel for each of the first metrics that say what a run learnt or found.

  A stage of the user's own may log none: then what the loop logs is drawn.
  """
  names = {key: None for record in records for key in record if key not in ("stage", "step")}
  own = [name for name in names if name not in _LOOP and not name.startswith("time/")]
  return [Panel(name, name, (name,)) for name in (own or [*names])[:limit]]


def _stage_starts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """Maps each stage to the steps of all stages before it, in the order they ran."""
  lengths: dict[str, int] = {}
  for record in records:
    lengths[record["stage"]] = max(record["step"], lengths.get(record["stage"], 0))
  return dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist()))


def _keys_of(
    panel: Panel, records: Sequence[Mapping[str, Any]], named: Collection[str] = (),
) -> list[str]:
  """Lists the panel's metrics that exist, with wildcards expanded, by first appearance.

  Args:
    panel: the panel.
    records: the lines of the metrics file.
    named: metrics for which no wildcard stands.
  """
  present = {
      key: None for record in records if panel.stage in (None, record["stage"]) for key in record}
  keys: dict[str, None] = {}
  for key in panel.keys:
    pattern = re.compile(re.escape(key).replace(r"\*", "[^/]+"))
    keys.update((name, None) for name in present
                if name == key
                or pattern.fullmatch(name) and name not in (*named, *(panel.band or ())))
  return list(keys)


def _curve(
    key: str, stages: Sequence[str], records: Sequence[Mapping[str, Any]],
    starts: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (total steps, values) of a metric in these stages; values not finite become NaN."""
  points = [(starts[record["stage"]] + record["step"], record[key])
            for record in records if record["stage"] in stages and key in record]
  steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
  return steps, np.where(np.isfinite(values), values, np.nan)


def _draw(
    ax: axes.Axes, panel: Panel, records: Sequence[Mapping[str, Any]], starts: Mapping[str, int],
) -> None:
  """Draws one chart: its curves, its band, then its axes and legend."""
  keys = _keys_of(panel, records)  # A chart may be drawn alone.
  widest = 1
  # Stages are drawn one by one, because a curve must not join the losses of two stages.
  shown = list(starts) if panel.stage is None else [panel.stage]
  for stages in [shown] if panel.joined else [[stage] for stage in shown]:
    for index, key in enumerate(keys):
      steps, values = _curve(key, stages, records, starts)
      if not len(values):
        continue
      color = COLORS[index % len(COLORS)]
      # The main curve is drawn over its components.
      linewidth, zorder = (2.0, 3) if index == 0 else (1.4, 2)
      style = dict(color=color, linewidth=linewidth, zorder=zorder, label=_label(key, keys))
      if len(values) > 100:
        window = len(values) // 40 | 1  # Odd, so that the mean is centred.
        widest = max(widest, window)
        ax.plot(steps, values, color=color, linewidth=0.8, alpha=0.3, zorder=1)
        ax.plot(steps, running_mean(values, window), **style)
      else:
        ax.plot(steps, values, marker="o" if len(values) <= 30 else None, markersize=4, **style)
    if panel.band:
      (steps, low), (high_steps, high) = (
          _curve(key, stages, records, starts) for key in panel.band)
      if len(steps) and np.array_equal(steps, high_steps):
        ax.fill_between(
            steps, low, high, color=COLORS[0], alpha=0.18, linewidth=0, label=panel.band_label)
  dress(ax, panel.title, panel.y_label,
        "training step" + (f"  (curve: mean of {widest})" if widest > 1 else ""))
  ax.locator_params(axis="x", nbins=6, integer=True)
  if panel.y_limits:
    ax.set_ylim(*panel.y_limits)
  elif len(keys) > 1:
    ax.margins(y=0.12)
  if panel.stage is None:
    # Every such chart has the same axis, also where a metric is in only one stage, so that charts
    # compare at a glance.
    last = max(starts[record["stage"]] + record["step"] for record in records)
    ax.set_xlim(0, max(last, 1) * 1.02)
    if len(starts) > 1:
      _mark_stages(ax, starts)
  # By label: a curve has one entry in the legend, not one per stage.
  labels = dict(zip(*reversed(ax.get_legend_handles_labels())))
  if len(labels) > 1:
    ax.legend(labels.values(), labels.keys(), fontsize=9, framealpha=0.8, loc="best")


def dress(ax: axes.Axes, title: str, y_label: str, x_label: str) -> None:
  """Gives a chart what all charts have: titles, sizes, a grid, no frame."""
  ax.set_title(title, fontsize=13, fontweight="bold", loc="left")
  ax.set_ylabel(y_label, fontsize=11)
  ax.set_xlabel(x_label, fontsize=11)
  ax.tick_params(labelsize=10)
  ax.grid(color="#dddddd", linewidth=0.7)
  ax.set_axisbelow(True)
  ax.spines[["top", "right"]].set_visible(False)


def _label(key: str, keys: Sequence[str]) -> str:
  """Returns the metric's name, without the prefix that all curves of the chart share."""
  prefix = keys[0].partition("/")[0] + "/"
  return key.removeprefix(prefix) if all(other.startswith(prefix) for other in keys) else key


def _mark_stages(ax: axes.Axes, starts: Mapping[str, int]) -> None:
  """Draws a dashed line where each stage begins, and its name."""
  for name, start in starts.items():
    if start:
      ax.axvline(start, color="#666666", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    ax.annotate(
        name, (start, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -4),
        textcoords="offset points", ha="left", va="top", fontsize=9, color="#444444")


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Returns the mean over `window` points around each, fewer at the ends; NaN is skipped."""
  kernel = np.ones(max(window, 1))
  total = np.convolve(np.nan_to_num(values), kernel, mode="same")
  count = np.convolve(np.isfinite(values), kernel, mode="same")
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
