"""Learning curves: which panels, what is on them, and that the file is an image."""

import math
import struct
import subprocess
import sys

import numpy as np
import pytest

from rl_reason.reporting import plots
from rl_reason.reporting.metrics import MetricWriter
from rl_reason.reporting.plots import learning_curves, Panel


def png_size(path):
  data = path.read_bytes()
  assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5000
  return struct.unpack(">II", data[16:24])


def test_panels_with_data_are_drawn_and_the_others_left_out(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in range(1, 6):
      writer.write("sft", step, {"loss": 1 / step})
    for step in range(1, 6):
      kl = math.nan if step == 3 else 0.1
      writer.write(
          "rl", step, {"loss": 0.1, "reward/mean": step / 5, "reward/format": 1.0, "kl": kl})
      writer.write(
          "rl", step, {"eval/pass@1": 0.5, "eval/pass@1_low": 0.4, "eval/pass@1_high": 0.6})
  drawn = learning_curves(tmp_path, tmp_path / "plots/curves.png")
  assert drawn == [
      "Held-out accuracy", "Reward", "KL to the reference policy", "Loss of sft", "Loss of rl"]
  assert png_size(tmp_path / "plots/curves.png")[0] == 1200
  assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]


def test_a_panel_of_ones_own_and_one_point(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("dpo", 0, {"margin": 0.5})
  panels = [Panel("Margin", "nats", ("margin",))]
  assert learning_curves(
      tmp_path / "metrics.jsonl", tmp_path / "a.png", panels=panels) == ["Margin"]
  png_size(tmp_path / "a.png")


def test_a_run_that_no_panel_knows_has_a_chart_for_each_metric(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("own", 1, {"margin": 0.5, "hits": 2.0, "tokens": 1.0, "time/step": 0.1})
  assert learning_curves(tmp_path, tmp_path / "a.png") == ["margin", "hits"]


def test_a_run_that_logs_nothing_of_its_own_has_charts_of_its_steps(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("own", 1, {"tokens": 1.0, "time/step": 0.1})
  assert learning_curves(tmp_path, tmp_path / "a.png") == ["tokens", "time/step"]


def test_nothing_to_draw_names_what_there_is(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write("dpo", 1, {"margin": 0.5})
  with pytest.raises(ValueError, match=r"has the metrics \['margin'\]"):
    learning_curves(tmp_path, tmp_path / "a.png", panels=[Panel("Loss", "nats", ("loss",))])
  with pytest.raises(FileNotFoundError):
    learning_curves(tmp_path / "nowhere", tmp_path / "a.png")
  assert not (tmp_path / "a.png").exists()


RECORDS = [
    {"stage": "sft", "step": 1, "loss": 3.0}, {"stage": "sft", "step": 4, "loss": 2.0},
    {"stage": "rl", "step": 0, "eval/pass@1": 0.1},
    {"stage": "rl", "step": 2, "loss": 1.0, "reward/format": 1.0, "reward/mean": math.inf},
    {"stage": "last", "step": 1, "loss": 5.0},
]


def test_stages_follow_each_other_on_one_axis():
  starts = plots._stage_starts(RECORDS)
  assert starts == {"sft": 0, "rl": 4, "last": 6}
  steps, values = plots._curve("loss", ["rl"], RECORDS, starts)
  assert steps.tolist() == [6] and values.tolist() == [1]
  assert np.isnan(plots._curve("reward/mean", ["rl"], RECORDS, starts)[1]).all()


@pytest.mark.parametrize("joined, curves", [(False, [[4], [6]]), (True, [[4, 6]])])
def test_only_a_joined_curve_runs_on_from_stage_to_stage(joined, curves):
  records = [
      {"stage": "sft", "step": 4, "eval/pass@1": 0.2},
      {"stage": "rl", "step": 2, "eval/pass@1": 0.4}]
  ax = plots.sheet(6, 4).add_subplot()
  plots._draw(
      ax, Panel("Accuracy", "pass@1", ("eval/pass@1",), joined=joined), records,
      plots._stage_starts(records))
  assert [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"] == curves


def test_chart_holds_the_curves_the_names_and_the_stage_boundaries():
  ax = plots.sheet(6, 4).add_subplot()
  plots._draw(
      ax, Panel("Reward", "reward", ("reward/mean", "reward/*")), RECORDS,
      plots._stage_starts(RECORDS))
  assert [entry.get_text() for entry in ax.get_legend().get_texts()] == ["mean", "format"]
  assert {text.get_text() for text in ax.texts} == {"sft", "rl", "last"}
  boundaries = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
  assert boundaries == [4, 6]
  assert ax.get_xlim() == (0, 7 * 1.02)


def test_running_mean_by_hand():
  np.testing.assert_allclose(
      plots.running_mean(np.array([1.0, 2.0, np.nan, 6.0]), 3), [1.5, 1.5, 4.0, 6.0])


@pytest.mark.parametrize("names, titles", [
    (["reward/mean", "reward/format", "reward/format/shaped"], ["Reward"]),
    (["reward/std"], ["Spread of the rewards"]),
    (["reward/equal_groups"], ["Groups of equal rewards"]),
    # Of another unit than rewards, such as the seconds of a judge.
    (["reward/judge/seconds", "reward/mean"], ["Reward"])])
def test_what_is_no_reward_is_not_among_the_rewards(names, titles):
  records = [{"stage": "rl", "step": 1, **dict.fromkeys(names, 0.5)}]
  charts = plots._with_data(plots.PANELS, records, ["rl"])
  assert [chart.title for chart in charts] == titles


def test_a_wildcard_does_not_stand_for_what_another_panel_names():
  records = [{"stage": "rl", "step": 1, "reward/mean": 0.5, "reward/std": 1.0, "reward/own": 1.0}]
  charts = plots._with_data(plots.PANELS, records, ["rl"])
  assert [chart.keys for chart in charts] == [("reward/mean", "reward/own"), ("reward/std",)]


def test_each_stage_has_a_chart_of_its_own_loss():
  charts = plots._with_data(plots.PANELS, RECORDS, ["sft", "rl", "last"])
  assert [(c.title, c.stage) for c in charts if c.keys == ("loss",)] == [
      ("Loss of sft", "sft"), ("Loss of rl", "rl"), ("Loss of last", "last")]


def test_matplotlib_is_loaded_where_a_figure_is_made():
  code = ("import sys, rl_reason.reporting.plots as p, rl_reason.claims.figures;"
          "early = 'matplotlib' in sys.modules; p.sheet(1, 1);"
          "sys.exit(early or 'matplotlib.pyplot' in sys.modules)")
  environment = {"PYTHONPATH": ":".join(sys.path)}
  assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_curves_may_lie_in_an_object_store(store):
  store.objects["gs://bucket/run/metrics.jsonl"] = b'{"stage": "rl", "step": 1, "kl": 0.5}\n'
  assert plots.learning_curves("gs://bucket/run", "gs://bucket/run/curves.png") == [
      "KL to the reference policy"]
  assert store.objects["gs://bucket/run/curves.png"].startswith(b"\x89PNG")
