"""Watches a run's metrics for signs of a gamed reward or of a fault: warns, or stops the run.

    monitors = build_monitors(
        {"length_drift": {"threshold": 2.0}, "heldout_gap": {"action": "stop"}},
        rewards=("answer",))
    values, alarms = monitors.observe(metrics)   # At each step and evaluation; values are logged.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

import numpy as np

from rl_reason.config import naming
from rl_reason.rewards.composition.schedules import is_number


class StoppedByMonitor(RuntimeError):
  """Says that a monitor whose action is "stop" has raised an alarm."""


@dataclasses.dataclass
class Series:
  """A metric's first and last `window` values. All monitors look at these only.

  window: number of values.
  first: the first ones.
  last: the last ones.
  """
  window: int
  first: list[float] = dataclasses.field(default_factory=list)
  last: list[float] = dataclasses.field(default_factory=list)

  def add(self, value: float) -> None:
    self.first = [*self.first, value][:self.window]
    self.last = [*self.last, value][-self.window:]

  @property
  def full(self) -> bool:
    return len(self.last) == self.window

  @property
  def rise(self) -> float:
    """Subtracts the mean of the first values from the mean of the last ones."""
    return float(np.mean(self.last) - np.mean(self.first))

  @property
  def trend(self) -> float:
    """Compares the second half of the last values with their first half.

    It is the difference in the values' own standard deviations, within [-2, 2]: 1.7 for a straight
    rise; about 0 for noise, with a standard deviation of 2 / √window. 0 where all are equal.
    """
    # Divided by the deviation, so that one threshold serves metrics of any unit.
    half, std = len(self.last) // 2, np.std(self.last)
    if std < 1e-9 or not half:
      return 0.0
    return float((np.mean(self.last[-half:]) - np.mean(self.last[:half])) / std)


def length_drift(length: Series) -> float:
  """Computes the factor by which the mean length has grown or shrunk since the first window.

  It is at least 1.
  """
  first, last = (max(1e-9, float(np.mean(values))) for values in (length.first, length.last))
  return max(last / first, first / last)


def repetition(share: Series) -> float:
  """Computes the mean share of repeated n-grams, in [0, 1]."""
  return float(np.mean(share.last))


def divergence(learned: Series, verifier: Series) -> float:
  """Computes the smaller of the learned reward's rise and the verifier's fall within the window.

  Both are in their standard deviations.
  """
  return min(learned.trend, -verifier.trend)


def heldout_gap(training: Series, heldout: Series) -> float:
  """Computes how much more the training reward has risen than the held-out accuracy.

  Rises are since the first evaluation, in reward units. They are measured at evaluations only: a
  run without any in between (evaluation.every) is measured at its end.
  """
  return training.rise - heldout.rise


def rate_collapse(rate: Series, *, base_rate: float | None = None) -> float:
  """Computes 1 − the window's highest rate / base rate.

  This is the share of the base rate that is gone in each step of the window; below 0 where the rate
  is above it.

  Args:
    rate: the series.
    base_rate: e.g. the share of positives in the data; None: the first window's mean.
  """
  if base_rate is not None and not 0 < base_rate <= 1:
    raise ValueError(f"rate_collapse needs a base_rate in (0, 1], got {base_rate}.")
  base = float(np.mean(rate.first)) if base_rate is None else base_rate
  return 1 - max(rate.last) / base if base > 0 else 0.0


def vanishing(value: Series, *, least: float = 0.02) -> float:
  """Computes 1 − the window's highest value / least.

  It is above 0 where no value reaches `least`, and 1 where all are 0.
  """
  if least <= 0:
    raise ValueError(f"vanishing needs a least above 0, got {least}.")
  return 1 - max(value.last) / least


def latest(gap: Series) -> float:
  """Returns the largest value of the window; 0 for one that is no number.

  Where log-probabilities are no numbers the update is refused and counted (skipped_in_a_row).
  """
  return float(np.nan_to_num(max(gap.last), nan=0.0, posinf=np.inf))


def repeat_share(tokens: Sequence[int], n: int = 4) -> float:
  """Computes the share of a completion's n-grams that occurred in it before, in [0, 1).

  It is 0 for fewer than n tokens.
  """
  grams = list(zip(*(tokens[i:] for i in range(n))))
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclasses.dataclass(frozen=True)
class Kind:
  """A monitor as a config names it.

  measure: (a Series for each metric) -> a number; above the threshold it is an alarm.
  metrics: what each of its Series reads, by the measure's argument; "" where the config must say.
  threshold: default.
  window: default. A metric of an evaluation has a window of 1: there are few of them.
  cause: of the alarm.
  cure: of the alarm.
  """
  measure: Callable[..., float]
  metrics: Mapping[str, str]
  threshold: float
  window: int
  cause: str
  cure: str


MONITORS: dict[str, Kind] = {
    "length_drift": Kind(
        length_drift, {"length": "completion/length"}, 2.0, 20,
        "Completions are that many times as long, or as short, as in the first steps: the reward"
        " pays for length itself, or for stopping at once.",
        "look at samples/; add overlong_penalty or relative_length, or raise objective.kl.coef"),
    "repetition": Kind(
        repetition, {"share": "completion/repetition"}, 0.3, 10,
        "This share of 4-grams repeats an earlier one of the same completion: the policy loops.",
        "look at samples/; clip or lower the reward that rises with it, or raise"
        " objective.kl.coef"),
    "divergence": Kind(
        divergence, {"learned": "", "verifier": ""}, 1.0, 20,
        "The learned reward rises while the verifier falls: the policy finds what the reward model"
        " likes and not what is right.",
        "lower the learned reward's weight, gate it by the verifier, use bounded, or train the"
        " reward model anew"),
    "heldout_gap": Kind(
        heldout_gap, {"training": "", "heldout": "eval/pass@1"}, 0.1, 20,
        "The training reward has risen by so much more than the held-out evaluation: what is learnt"
        " does not carry over.",
        "more or fresher training problems, fewer epochs, a stricter verifier; the best checkpoint"
        " may be an earlier one"),
    "rate_collapse": Kind(
        rate_collapse, {"rate": ""}, 0.5, 10,
        "That share of the base rate is gone: the policy has nearly stopped giving this"
        " prediction.",
        "lower the penalty for the mistake that it avoids, or raise objective.kl.coef, and go back"
        " to an earlier checkpoint"),
    "vanishing": Kind(
        vanishing, {"value": ""}, 0.0, 5,
        "In no step of the window did it reach `least`, below which it has no effect; of"
        " token_reward/positive or /negative: the token model is sure of nothing, and the policy"
        " learns from noise or not at all.",
        "let the model behind it learn longer (credit.token_model.warmup_steps), faster, or from"
        " more completions"),
    "logprob_gap": Kind(
        latest, {"gap": "logprob_gap"}, 1e-3, 1,
        "The sampler and the trainer give a token log-probabilities that differ by so many nats, and"
        " are the same policy: the update weighs tokens by ratios that are wrong.",
        "look for a fault in the model, its masks or positions (and report it); where float32"
        " products are rounded, set JAX_DEFAULT_MATMUL_PRECISION=highest or"
        " config.policy.dtype='bfloat16'"),
}
ACTIONS = ("warn", "stop")
# "reward/..." metrics that are no component's: stages/groups.py.
_TOTALS = ("mean", "std", "equal_groups")
FIELDS = ("monitor", "threshold", "window", "action", "args")


@dataclasses.dataclass(frozen=True)
class Alarm:
  """An alarm that begins.

  monitor: its name in the config.
  value: what it measured.
  action: "warn" or "stop".
  message: with cause and cure.
  """
  monitor: str
  value: float
  action: str
  message: str


@dataclasses.dataclass
class Monitor:
  """One monitor of a run.

  name: in the config.
  kind: what it measures.
  threshold: values above it are alarms.
  action: "warn" or "stop".
  args: of the measure.
  series: what it has seen, by metric name.
  alarmed: whether its last value was an alarm, so that each event is reported once.
  """
  name: str
  kind: Kind
  threshold: float
  action: str
  args: Mapping[str, Any]
  series: Mapping[str, Series]
  alarmed: bool = False

  def observe(self, metrics: Mapping[str, float]) -> tuple[float | None, Alarm | None]:
    # New values join the series.
    new = [name for name in self.series if name in metrics]
    evaluations = [name for name in self.series if name.startswith("eval/")]
    if any(name in new and not self.series[name].first for name in evaluations):
      for s in self.series.values():  # The rises of all are measured from the first evaluation on.
        s.first = list(s.last)
    for name in new:
      self.series[name].add(float(metrics[name]))
    # Between evaluations the held-out side would be out of date.
    if not set(new) & set(evaluations or new) or not all(s.full for s in self.series.values()):
      return None, None
    # All windows are full: measure. An alarm begins where the value before was none.
    value = self.kind.measure(*self.series.values(), **self.args)
    before, self.alarmed = self.alarmed, not value <= self.threshold  # NaN is one.
    if before or not self.alarmed:
      return value, None
    window = max(s.window for s in self.series.values())
    return value, Alarm(self.name, value, self.action, (
        f"Monitor {self.name}: {value:.3g}, above its threshold {self.threshold:g}, of"
        f" {', '.join(self.series)} over {window} steps. {self.kind.cause} To do: {self.kind.cure};"
        f" or raise the threshold in monitors.{self.name}."))


class Monitors:
  """Observes with all monitors of a stage; their state is part of a checkpoint."""

  def __init__(self, monitors: Sequence[Monitor] = ()):
    self._monitors = {m.name: m for m in monitors}

  def observe(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[Alarm]]:
    """Observes a step's or an evaluation's metrics.

    Returns: (what the monitors measure, as "monitor/<name>"; alarms that begin here).

    Raises: ValueError if an update, or an evaluation, does not log a metric that a monitor reads
      of it.
    """
    for name, m in self._monitors.items():
      for metric in m.series:
        logged = (any(k.startswith("eval/") for k in metrics) if metric.startswith("eval/")
                  else "loss" in metrics)
        if logged and metric not in metrics:
          raise ValueError(
              f"Monitor {name!r} reads {metric!r}, which is not"
              f" logged.{naming.did_you_mean(metric, metrics)} Logged here:"
              f" {', '.join(k for k in metrics if not k.startswith('time/'))}.")
    observed = {name: m.observe(metrics) for name, m in self._monitors.items()}
    return (
        {f"monitor/{name}": value for name, (value, _) in observed.items() if value is not None},
        [alarm for _, alarm in observed.values() if alarm])

  def state(self) -> Mapping[str, Any]:
    return {
        name: {"alarmed": m.alarmed,
               "series": {k: [s.window, s.first, s.last] for k, s in m.series.items()}}
        for name, m in self._monitors.items()}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Restores the monitors that the saved run had.

    A monitor that it did not have, or had with another window, begins here; one that the config
    does not have any more is dropped.
    """
    for name, m in self._monitors.items():
      saved = state.get(name, {"alarmed": False, "series": {}})
      m.alarmed = saved["alarmed"]
      for metric, s in m.series.items():
        window, first, last = saved["series"].get(metric, (s.window, [], []))
        # Values of a window of another length do not fit: the series begins anew.
        s.first, s.last = (list(first), list(last)) if window == s.window else ([], [])


def build_monitors(
    spec: Mapping[str, Mapping[str, Any]], *, rewards: Collection[str] = ()) -> Monitors:
  """Builds monitors from a config's mapping.

      {# A name in MONITORS, with its defaults.
       "length_drift": {},
       # Another name in the logs.
       "gamed": {"monitor": "divergence", "action": "stop", "window": 50,
                 "args": {"learned": "reward/helpful", "verifier": "reward/math_answer"}}}

  "monitor" (default: the key) is a name in MONITORS, or a dotted path to a Kind or to a function from
  Series to a number, or the thing itself; a function needs a "threshold". "threshold" and "window", in steps, default to
  the kind's. "action" is "warn" (default) or "stop". "args" are the metrics to read, by role, and
  arguments of the measure.

  Args:
    spec: name of each monitor -> its fields.
    rewards: names of the reward components, whose metrics are "reward/<name>".

  Raises: ValueError for unknown names, fields, metrics of rewards, and values out of range.
  """
  return Monitors([_monitor(name, entry, rewards) for name, entry in spec.items()])


def _kind(what: str, name: naming.Name, entry: Mapping[str, Any]) -> Kind:
  """Finds a kind of monitor, or makes one of a measure that is the user's own.

  Raises: ValueError for an unknown name, and for a measure whose entry has no threshold.
  """
  own = not isinstance(name, str) or ":" in name
  if not own and name not in MONITORS:
    naming.check_from_python("monitor", name)
    raise ValueError(
        f"{what}: unknown monitor {name!r}.{naming.did_you_mean(name, MONITORS)} Known:"
        f" {', '.join(MONITORS)}; your own is named by a dotted path, package.module:function.")
  if isinstance(name, Kind):
    return name
  found = naming.find("monitor", name, MONITORS, of=object)
  if isinstance(found, Kind):
    return found
  if not callable(found):
    raise ValueError(f"{what}: {name!r} is no function of Series, and no Kind.")
  if "threshold" not in entry:
    raise ValueError(
        f"{what} measures with the function {naming.path_of(name)}, which brings no threshold: set"
        " the monitor's field threshold.")
  # What has no default is a metric's Series, whose metric the config says.
  metrics = {p.name: "" for p in inspect.signature(found).parameters.values()
             if p.default is p.empty}
  cause = (inspect.getdoc(found) or "Your own measure.").split("\n")[0]
  return Kind(found, metrics, 0.0, 10, cause, "look at samples/")


def _monitor(name: str, entry: Any, rewards: Collection[str]) -> Monitor:
  what = f"Monitor {name!r}"
  if not hasattr(entry, "items"):
    raise ValueError(
        f"{what} must be a mapping with the fields {', '.join(FIELDS)}, got {entry!r}: {{}} takes"
        " all defaults.")
  for field in entry:
    if field not in FIELDS:
      raise ValueError(
          f"{what} has an unknown field {field!r}.{naming.did_you_mean(field, FIELDS)} Its fields:"
          f" {', '.join(FIELDS)}; metrics go into \"args\".")
  kind_name = entry.get("monitor", name)
  kind = _kind(what, kind_name, entry)
  threshold, window = entry.get("threshold", kind.threshold), entry.get("window", kind.window)
  if not is_number(threshold):
    raise ValueError(f"{what} has threshold={threshold!r}: give a finite number.")
  least = min(2, kind.window)  # What measures a change or a share needs more than one step.
  if not isinstance(window, int) or isinstance(window, bool) or window < least:
    raise ValueError(f"{what} has window={window!r}: give a number of steps, at least {least}.")
  action = entry.get("action", "warn")
  if action not in ACTIONS:
    raise ValueError(
        f"{what} has action={action!r}.{naming.did_you_mean(action, ACTIONS)} It is one of:"
        f" {', '.join(ACTIONS)}.")
  # Which metrics it reads, and the arguments of its measure.
  args = {**{role: metric for role, metric in kind.metrics.items() if metric},
          **dict(entry.get("args") or {})}
  naming.check_arguments(what, kind.measure, args)
  metrics = [args.pop(role) for role in kind.metrics]
  for metric in metrics:
    component = str(metric).removeprefix("reward/").removesuffix("/shaped")
    if not isinstance(metric, str) or (
        metric.startswith("reward/") and component not in (*rewards, *_TOTALS)):
      raise ValueError(
          f"{what} reads {metric!r}, which nothing logs.{naming.did_you_mean(component, rewards)}"
          f" Reward components: {', '.join(rewards) or 'none'}; name one as 'reward/<name>'.")
  if len(set(metrics)) != len(metrics):
    raise ValueError(f"{what} reads {metrics[0]!r} twice: name two different metrics.")
  series = {m: Series(1 if m.startswith("eval/") else window) for m in metrics}
  # A try on made-up values, so that wrong arguments fail before the run.
  probe = [Series(1, [1.0], [1.0]) for _ in metrics]
  kind.measure(*probe, **args)  # Checks its arguments.
  return Monitor(name, kind, float(threshold), action, args, series)
