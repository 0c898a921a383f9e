"""Draws a claim's figure: learning curves, the arms' numbers and the effect, side by side.

The learning curves are left out where the claim's metric reads no curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import textwrap
from typing import Any, TYPE_CHECKING

import numpy as np

from rl_reason.claims import folder, measures, plan
from rl_reason.claims.declaration import Claim
from rl_reason.reporting import plots

if TYPE_CHECKING:
  from matplotlib import axes

Curves = Mapping[str, Sequence[measures.Curve]]
Style = Mapping[str, Any]
_TITLE_WIDTH = 100  # Characters of a line.
_MANY = 4  # With more arms, bands would hide each other and names would lie on each other.


def draw(record: Mapping[str, Any], claim: Claim, planned: Sequence[plan.Run], png: Path) -> None:
  """Draws a claim's figure as a PNG 1200 pixels wide.

  What is missing is left out, and the title says that there is no verdict.

  Args:
    record: the claim's record.
    claim: what is claimed.
    planned: the claim's runs, for their curves.
    png: the file to write.
  """
  # The compared arms come first, so that they have the same colours in every figure.
  arms = [*claim.pair, *(a for a in claim.arms if a not in claim.pair)]
  styles = {
      arm: dict(
          color=plots.COLORS[i % len(plots.COLORS)],
          linestyle=("-", "--", ":")[i // len(plots.COLORS) % 3])
      for i, arm in enumerate(arms)}

  # What there is to draw: curves, if the metric has them; each run; the effect, if there is one.
  curves = _curves(claim, planned)
  drawn = [r for r in record["runs"] if r["value"] is not None]
  panels = [bool(curves), True, record["effect"] is not None]

  # The sheet, higher and with a wider middle panel for many arms.
  sheet = plots.sheet(12, 4.4 if len(arms) <= _MANY else 6)
  sheet.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
  widths = (2.2, 1 if len(arms) <= _MANY else 1.4, 1)
  grid = sheet.add_gridspec(
      1, sum(panels), width_ratios=[w for w, there in zip(widths, panels) if there])
  places = iter(range(sum(panels)))
  if curves:
    _draw_curves(sheet.add_subplot(grid[next(places)]), claim, curves, styles)
  _draw_values(sheet.add_subplot(grid[next(places)]), claim, arms, drawn, styles)
  if record["effect"] is not None:
    _draw_effect(sheet.add_subplot(grid[next(places)]), claim, record, narrow=bool(curves))
  title = textwrap.fill(f"{claim.title}: {record['verdict']}", _TITLE_WIDTH)
  sheet.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
  # The file is there whole or not at all.
  partial = png.with_name(png.name + ".partial")
  sheet.savefig(partial, format="png")
  os.replace(partial, png)


def _curves(claim: Claim, planned: Sequence[plan.Run]) -> dict[str, list[measures.Curve]]:
  """Reads the curves of finished runs, one per seed of each arm.

  Returns: arm -> curves; {} if the claim's metric reads no curve, or no curve has two points.
  """
  name, stage = claim.metric.args.get("name"), claim.metric.args.get("stage", "")
  found: dict[str, list[measures.Curve]] = {}
  if claim.metric.function not in measures.MEASURES:
    return found
  for run in planned:
    if folder.outcome(run).status == "finished":
      try:
        found.setdefault(run.arm, []).append(measures.curve(run.folder, name, stage))
      except ValueError:
        continue  # This run has no such metric, which the record says.
  return found if any(len(steps) > 1 for curves in found.values() for steps, _ in curves) else {}


def _draw_curves(ax: axes.Axes, claim: Claim, curves: Curves, styles: Mapping[str, Style]) -> None:
  """Draws each arm's mean over seeds, and a band from the lowest to the highest.

  The band is no interval, because an interval over few seeds would hide how few they are.
  """
  many = len(curves) > _MANY
  window = 1
  for arm, of_seeds in curves.items():
    # The steps that all seeds have. Values that are not finite become gaps.
    steps = sorted(set.intersection(*({*steps} for steps, _ in of_seeds)))
    values = np.array([v[np.isin(s, steps)] for s, v in of_seeds])
    values = np.where(np.isfinite(values), values, np.nan)
    # Long curves are noisy: a running mean over an odd number of steps, about a twentieth of all.
    if len(steps) > 30:
      window = max(window, len(steps) // 20 | 1)
      values = np.array([plots.running_mean(v, len(steps) // 20 | 1) for v in values])
    if not many or arm in claim.pair:
      ax.fill_between(
          steps, np.nanmin(values, axis=0), np.nanmax(values, axis=0),
          color=styles[arm]["color"], alpha=0.18, linewidth=0)
    ax.plot(
        steps, np.nanmean(values, axis=0), **styles[arm],
        linewidth=1.4 if many and arm not in claim.pair else 2.4,
        label=f"{arm} ({len(of_seeds)} seeds)",
        marker="o" if len(steps) <= 30 and not many else None, markersize=4)
  title = (
      "Mean over seeds, and the range of the two" if many
      else "Mean over seeds; band: lowest to highest")
  plots.dress(ax, title, claim.metric.args["name"], "step" + (
      f" of stage {claim.metric.args['stage']}" if claim.metric.args.get("stage") else "") + (
          f"  (each curve: mean of {window})" if window > 1 else ""))
  if many:
    _legend_below(ax, columns=2)
  else:
    ax.legend(fontsize=10, framealpha=0.8, loc="best")


def _draw_values(
    ax: axes.Axes, claim: Claim, arms: Sequence[str], drawn: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Style],
) -> None:
  """Draws a point per run, a bar for the mean of an arm, and a line between a seed's two runs."""
  for seed in sorted({r["seed"] for r in drawn}):
    pair = [
        (arms.index(r["arm"]), r["value"]) for arm in claim.pair for r in drawn
        if (r["arm"], r["seed"]) == (arm, seed)]
    if len(pair) == 2:
      ax.plot(*zip(*pair), color="#999999", linewidth=1, zorder=1)
  for i, arm in enumerate(arms):
    values = [r["value"] for r in drawn if r["arm"] == arm]
    if values:
      ax.plot(
          [i - 0.2, i + 0.2], [np.mean(values)] * 2, color=styles[arm]["color"], linewidth=3,
          zorder=2)
      ax.scatter(
          [i] * len(values), values, color=styles[arm]["color"], s=30, zorder=3,
          edgecolor="white")
  plots.dress(ax, "Each run, and the mean", claim.metric.label, "")
  ax.set_xticks(
      range(len(arms)), arms,
      rotation=90 if len(arms) > _MANY else 20 if len(arms) > 2 else 0)
  ax.set_xlim(-0.6, len(arms) - 0.4)


def _draw_effect(ax: axes.Axes, claim: Claim, record: Mapping[str, Any], *, narrow: bool) -> None:
  """Draws each seed's effect, their mean with its interval, and the threshold.

  Args:
    narrow: whether the panel is one of three, so that its legend has one column.
  """
  low, high = record["interval"]
  effects = record["effects"]
  ax.scatter(
      np.linspace(-0.15, 0.15, len(effects)), effects, color="#666666", s=24, zorder=3,
      label="a seed")
  ax.errorbar(
      [0.45], [record["effect"]], [[record["effect"] - low], [high - record["effect"]]],
      color="black", marker="D", markersize=7, capsize=6, linewidth=2, zorder=4,
      label="mean, 95% interval")
  ax.axhline(
      claim.threshold, color="#D55E00", linewidth=1.6, linestyle=(0, (4, 3)),
      label=f"holds if {'above' if claim.direction == 'higher' else 'below'} {claim.threshold:g}")
  words = {
      "difference": f"{claim.treatment} − {claim.baseline}",
      "ratio": f"{claim.treatment} / {claim.baseline}", "absolute": claim.treatment}
  plots.dress(ax, "Effect", words[claim.compare], "")
  ax.set_xticks([])
  ax.set_xlim(-0.4, 0.8)
  ax.margins(y=0.2)
  _legend_below(ax, columns=1 if narrow else 3)


def _legend_below(ax: axes.Axes, *, columns: int) -> None:
  """Draws a panel's legend below the panel, where it hides nothing.

  Args:
    columns: number of the legend's columns. A legend wider than its panel would squeeze the panel.
  """
  below = -0.12 if ax.get_xlabel() else -0.04
  ax.legend(
      fontsize=9, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, below), frameon=False)
