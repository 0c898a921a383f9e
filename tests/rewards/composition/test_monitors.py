"""Monitors of gamed rewards: what they measure, when they tell, what a checkpoint holds of them.

The measures are worked by hand.
"""

import dataclasses
import json

import ml_collections
import numpy as np
import pytest

from rl_reason.rewards.composition.monitors import (
  build_monitors,
  divergence,
  heldout_gap,
  length_drift,
  MONITORS,
  rate_collapse,
  repeat_share,
  repetition,
  Series,
)

REWARDS = ("rm", "answer")


def series(first, last):
  return Series(len(last), list(first), list(last))


def told(monitors, rows):
  """For each row of metrics, the names of the monitors that raise an alarm."""
  return [[alarm.monitor for alarm in monitors.observe(row)[1]] for row in rows]


# --- What they measure


def test_repeat_share_by_hand():
  assert repeat_share([1, 2, 1, 2, 1, 2], n=2) == pytest.approx(3 / 5)  # 12, 21, 12, 21, 12.
  assert repeat_share([5] * 10) == pytest.approx(6 / 7)
  assert repeat_share([1, 2, 3, 4, 5]) == repeat_share([1, 1, 1]) == repeat_share([]) == 0


def test_measures_by_hand():
  assert length_drift(series([10, 30], [30, 50])) == 2
  assert length_drift(series([30, 50], [10, 30])) == 2  # Shrunk as much.
  assert length_drift(series([20], [0])) > 1e6
  assert repetition(series([0], [0.25, 0.75])) == 0.5
  # Training +0.4, held-out +0.1.
  assert heldout_gap(series([0.2, 0.4], [0.6, 0.8]), series([0.3], [0.4])) == pytest.approx(0.3)
  assert rate_collapse(series([0.4, 0.4], [0.1, 0.05])) == pytest.approx(0.75)
  assert rate_collapse(series([0.4, 0.4], [0.1, 0.05]), base_rate=0.2) == pytest.approx(0.5)
  assert rate_collapse(series([0, 0], [0, 0])) == 0


def test_divergence_by_hand():
  # Rise from 0 to 1 in the middle: halves differ by 1, std 0.5, so 2.
  # The verifier falls by as much.
  up, down = series([], [0, 0, 1, 1]), series([], [0.7, 0.7, 0.2, 0.2])
  assert divergence(up, down) == pytest.approx(2)
  assert divergence(up, up) == pytest.approx(-2) and divergence(down, down) == pytest.approx(-2)
  assert divergence(up, series([], [0.5] * 4)) == 0
  # A straight line: 10 steps between halves' means of 10, over its std.
  line = np.arange(20.0)
  assert divergence(series([], line), series([], -line)) == pytest.approx(10 / line.std())
  # Odd windows leave the middle out: −1 against 1, std √(2/3).
  assert divergence(series([], [-1, 0, 1]), series([], [1, 0, -1])) == pytest.approx(
      2 / np.sqrt(2 / 3))


def test_divergence_of_noise_stays_below_the_threshold():
  random, kind = np.random.RandomState(0), MONITORS["divergence"]
  values = [
      divergence(series([], random.randn(kind.window)), series([], random.randn(kind.window)))
      for _ in range(2000)]
  assert np.mean(np.array(values) > kind.threshold) < 0.002


# --- When they tell


def test_an_alarm_is_told_once_per_event():
  monitors = build_monitors({"repetition": {"window": 2, "threshold": 0.5}})
  shares = [0.9, 0.9, 0.9, 0.0, 0.0, 0.6, 0.8, 0.9]
  # Means of two: -, .9 (told), .9, .45 (over), 0, .3, .7 (told), .85.
  rows = [{"completion/repetition": s, "tokens": 3.0} for s in shares]
  assert told(monitors, rows) == [[], ["repetition"], [], [], [], [], ["repetition"], []]
  values, _ = monitors.observe({"completion/repetition": 0.1})
  assert values == {"monitor/repetition": pytest.approx(0.5)}  # Equal to the threshold is none.
  assert monitors.observe({"eval/pass@1": 1.0}) == ({}, [])


def test_an_alarm_says_which_value_and_what_to_do():
  spec = {"gamed": {"monitor": "divergence", "window": 4, "action": "stop",
                    "args": {"learned": "reward/rm", "verifier": "reward/answer"}}}
  for form in (spec, ml_collections.ConfigDict(spec).to_dict()):
    monitors = build_monitors(form, rewards=REWARDS)
    for x in (0, 0, 1):
      assert monitors.observe({"reward/rm": x, "reward/answer": 1 - x}) == ({}, [])
    values, (alarm,) = monitors.observe({"reward/rm": 1, "reward/answer": 0})
    assert values == {"monitor/gamed": 2} and alarm.value == 2 and alarm.action == "stop"
    assert (
        "Monitor gamed: 2, above its threshold 1, of reward/rm, reward/answer over 4 steps."
        in alarm.message)
    assert "learned reward rises while the verifier falls" in alarm.message
    assert "To do: lower the" in alarm.message


def test_length_drift_compares_with_the_first_window():
  monitors = build_monitors({"length_drift": {"window": 2}})
  rows = [{"completion/length": n} for n in (10, 10, 15, 20, 25, 30, 6, 4, 4)]
  # Means of two over 10: 1, 1.25, 1.75, 2.25 (told), 2.75, 1.8, 1/0.5 (not above 2), 1/0.4 (told).
  assert told(monitors, rows) == [[], [], [], [], ["length_drift"], [], [], [], ["length_drift"]]


def gap(**fields):
  return build_monitors(
      {"heldout_gap": {"window": 2, "args": {"training": "reward/answer"}, **fields}},
      rewards=REWARDS)


def test_the_heldout_gap_is_looked_at_in_evaluations_only():
  monitors = gap()
  rows = [
      {"eval/pass@1": 0.2}, *[{"reward/answer": r} for r in (0.2, 0.4, 0.9, 0.9)],
      {"eval/pass@1": 0.6}, *[{"reward/answer": r} for r in (1.0, 1.0)], {"eval/pass@1": 0.6}]
  observed = [monitors.observe(row)[0] for row in rows]
  # Training rose from 0.3 to 0.9 and to 1.0, held-out by 0.4.
  assert [o["monitor/heldout_gap"] for o in observed if o] == pytest.approx([0.2, 0.3])
  assert [bool(o) for o in observed] == [False] * 5 + [True, False, False, True]


def test_the_heldout_gap_begins_at_the_first_evaluation():
  # A stage whose start was not evaluated: what training gained before says nothing.
  monitors = gap(threshold=0.05)
  rows = [
      *[{"reward/answer": r} for r in (0.1, 0.1, 0.8, 0.8)], {"eval/pass@1": 0.7},
      {"reward/answer": 0.8}, {"reward/answer": 1.0}, {"eval/pass@1": 0.8}]
  assert [monitors.observe(row)[0] for row in rows] == [
      *[{}] * 4, {"monitor/heldout_gap": 0}, {}, {},
      {"monitor/heldout_gap": pytest.approx(0, abs=1e-9)}]


def test_rate_collapse_needs_the_whole_window_below():
  monitors = build_monitors(
      {"rate_collapse": {"window": 3, "args": {"rate": "reward/answer", "base_rate": 0.4}}},
      rewards=REWARDS)
  rows = [{"reward/answer": r} for r in (0.4, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1)]
  assert told(monitors, rows) == [[]] * 6 + [["rate_collapse"]]


def test_vanishing_needs_the_whole_window_below():
  monitors = build_monitors({
      "shares": {"monitor": "vanishing", "args": {"value": "token_reward/positive"}}})
  rows = [
      {"loss": 0.0, "token_reward/positive": x} for x in (0, 0, 0, 0.02, 0.01, 0.01, 0, 0.01, 0.01)]
  assert told(monitors, rows) == [[]] * 8 + [["shares"]]  # Five in a row below 0.02, OREAL's alarm.
  with pytest.raises(ValueError, match="vanishing needs a least above 0, got 0"):
    build_monitors({"vanishing": {"args": {"value": "kl", "least": 0}}})


def test_a_metric_that_nothing_logs_is_found_at_the_first_update_and_evaluation():
  monitors = build_monitors({"length_drift": {"args": {"length": "completion/lenght"}}})
  # No update yet.
  assert monitors.observe({"eval/length": 3.0}) == monitors.observe({"tokens": 3.0}) == ({}, [])
  with pytest.raises(
      ValueError,
      match="reads 'completion/lenght', which is not logged. Did you mean 'completion/length'"):
    monitors.observe({"loss": 0.0, "completion/length": 3.0})
  monitors = gap(args={"training": "reward/answer", "heldout": "eval/pass@4"})
  assert monitors.observe({"loss": 0.0, "reward/answer": 0.5}) == ({}, [])
  with pytest.raises(
      ValueError, match="reads 'eval/pass@4', .* Logged here: eval/pass@1, eval/length.$"):
    monitors.observe({"eval/pass@1": 0.5, "eval/length": 3.0, "time/evaluation": 2.0})


def test_a_metric_that_is_not_a_number_is_an_alarm():
  monitors = build_monitors({"repetition": {"window": 2}})
  assert told(monitors, [{"completion/repetition": float("nan")}] * 2) == [[], ["repetition"]]


def test_the_gap_between_sampler_and_trainer_is_looked_at_in_every_step():
  monitors = build_monitors({"logprob_gap": {}})
  rows = [
      {"loss": 0.0, "logprob_gap": gap}
      for gap in (1e-5, 2e-3, 2e-3, 1e-5, float("nan"), 5.0, float("inf"))]
  # Told once per event; what is no number is the learner's to refuse.
  assert told(monitors, rows) == [[], ["logprob_gap"], [], [], [], ["logprob_gap"], []]


# --- What a checkpoint holds


def test_restored_monitors_go_on_as_if_never_stopped():
  spec = {"length_drift": {"window": 3, "threshold": 1.2},
          "heldout_gap": {"window": 2, "args": {"training": "reward/answer"}}}
  random = np.random.RandomState(0)
  rows = [{"completion/length": n, "reward/answer": r} for n, r in random.rand(12, 2).tolist()]
  rows[3:3], rows[8:8] = [{"eval/pass@1": 0.2}], [{"eval/pass@1": 0.1}]
  whole = build_monitors(spec, rewards=REWARDS)
  expected = [whole.observe(row) for row in rows]
  assert any(alarms for _, alarms in expected)
  for cut in range(len(rows)):
    first, resumed = build_monitors(spec, rewards=REWARDS), build_monitors(spec, rewards=REWARDS)
    got = [first.observe(row) for row in rows[:cut]]
    resumed.restore(json.loads(json.dumps(first.state())))
    assert got + [resumed.observe(row) for row in rows[cut:]] == expected


def test_monitors_may_come_go_and_change_between_two_calls():
  saved = build_monitors({"repetition": {"window": 2}, "length_drift": {"window": 2}})
  for n in (10, 10, 30, 30):
    saved.observe({"completion/length": n, "completion/repetition": 0.9})
  saved = saved.state()
  rows = [{"completion/length": 30, "completion/repetition": 0.9}] * 3
  # Gone: repetition. New: another drift. The same: length_drift, whose alarm was told.
  monitors = build_monitors({
      "length_drift": {"window": 2}, "other": {"monitor": "length_drift", "window": 2}})
  monitors.restore(saved)
  assert [monitors.observe(row) for row in rows] == [
      ({"monitor/length_drift": 3}, []),
      *[({"monitor/length_drift": 3, "monitor/other": 1}, [])] * 2]
  # With another window: anew.
  monitors = build_monitors({"length_drift": {"window": 3}})
  monitors.restore(saved)
  assert [monitors.observe(row)[0] for row in rows] == [{}, {}, {"monitor/length_drift": 1}]
  none = build_monitors({})
  none.restore(saved)
  assert none.observe(rows[0]) == ({}, []) and none.state() == {}


# --- Configs that cannot be


@pytest.mark.parametrize("spec, message", [
    ({"lenght_drift": {}}, "unknown monitor 'lenght_drift'. Did you mean 'length_drift'"),
    ({"mine": {"monitor": "length"}}, "unknown monitor 'length'"),
    ({"repetition": 0.5}, "must be a mapping .* got 0.5"),
    ({"repetition": {"treshold": 0.5}}, "unknown field 'treshold'. Did you mean 'threshold'"),
    ({"repetition": {"threshold": "high"}}, "threshold='high'"),
    ({"repetition": {"threshold": float("nan")}}, "threshold=nan"),
    ({"repetition": {"window": 1}}, "window=1: give a number of steps, at least 2"),
    ({"repetition": {"window": 2.5}}, "window=2.5"),
    ({"repetition": {"action": "halt"}}, "action='halt'.* one of: warn, stop"),
    ({"divergence": {}}, "needs the arguments learned, verifier"),
    ({"divergence": {"args": {"learned": "reward/rm", "verifier": "reward/anser"}}},
     "reads 'reward/anser', which nothing logs. Did you mean 'answer'.*"
     " Reward components: rm, answer"),
    ({"divergence": {"args": {"learned": "reward/rm", "verifier": "reward/rm"}}},
     "reads 'reward/rm' twice"),
    ({"divergence": {"args": {"learned": "reward/rm", "verifer": "reward/answer"}}},
     "no argument 'verifer'. Did"),
    ({"rate_collapse": {"args": {"rate": "reward/rm", "base_rate": 0}}},
     r"base_rate in \(0, 1\], got 0"),
])
def test_monitors_that_cannot_be_are_refused(spec, message):
  with pytest.raises(ValueError, match=message):
    build_monitors(spec, rewards=REWARDS)


def highest(value, *, offset=0.0):
  """The highest value of the window."""
  return max(value.last) + offset


@pytest.mark.parametrize("named", [highest, f"{__name__}:highest"])
def test_a_measure_of_ones_own_is_a_monitor(named):
  spec = {"mine": {"monitor": named, "threshold": 1.0, "window": 2, "args": {"value": "kl", "offset": 0.5}}}
  monitors = build_monitors(spec)
  assert monitors.observe({"loss": 0.0, "kl": 0.1}) == ({}, [])
  values, alarms = monitors.observe({"loss": 0.0, "kl": 0.9})
  assert values == {"monitor/mine": 1.4}
  assert "The highest value of the window." in alarms[0].message


def test_a_kind_of_ones_own_is_a_monitor():
  kind = dataclasses.replace(MONITORS["repetition"], metrics={"share": "kl"}, window=1)
  values, _ = build_monitors({"mine": {"monitor": kind}}).observe({"loss": 0.0, "kl": 0.25})
  assert values == {"monitor/mine": 0.25}


def test_a_measure_of_ones_own_needs_a_threshold():
  with pytest.raises(ValueError, match="'mine' measures with the function .*:highest, which brings no threshold"):
    build_monitors({"mine": {"monitor": highest, "args": {"value": "kl"}}})
