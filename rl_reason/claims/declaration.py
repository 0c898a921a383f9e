"""Reads what an experiment file claims: plain data beside its get_config, checked as configs are.

    CLAIMS = {"leave_one_out": dict(
        title="A leave-one-out baseline learns faster than none",
        paper="Ahmadian et al. 2024, arXiv:2402.14740", sentence="...",
        arms={"none": dict(overrides={"rl.credit.baseline": "none"}), "leave_one_out": dict()},
        treatment="leave_one_out", baseline="none",
        metric=dict(function="area", args=dict(name="reward/mean", stage="rl")),
        compare="difference", direction="higher", threshold=0.0, matched=("tokens", "updates"))}
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import re
from types import ModuleType
from typing import Any, Literal

import ml_collections

from rl_reason.claims import measures
from rl_reason.config import fields, naming
from rl_reason.config.checks import at_least, one_of
from rl_reason.config.overrides import override
from rl_reason.run import config as config_lib


@dataclasses.dataclass(frozen=True)
class Arm:
  """What is trained: the experiment's config with changes.

  An arm never changes the seed: runs with the same seed are compared with each other.

  config: the argument of get_config, "" for its default.
  overrides: {dotted field of the config: value}, e.g. {"rl.credit.baseline": "none"}; a section as
    the value replaces the whole section.
  """
  config: str = ""
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if "seed" in self.overrides:
      raise ValueError(
          "overrides sets seed: each arm runs with the same seeds, which the command counts from"
          " 0.")


@dataclasses.dataclass(frozen=True)
class Metric:
  """One number of a finished run.

  function: a name in measures.MEASURES, or the dotted path of a function that takes the run's
    folder, a Path, and returns a float.
  args: keyword arguments of the function.
  """
  function: str
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def label(self) -> str:
    """The metric's name in tables and figures, e.g. "last eval/pass@1"."""
    return " ".join(filter(None, (self.function.rpartition(":")[2], self.args.get("name"))))


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim. Everything that decides the verdict is here and in the arms' configs.

  title: what is claimed, in one short line.
  sentence: what the paper claims.
  paper: the paper, with its number on arXiv.
  arms: name -> Arm. Arms beside the two compared ones are run and drawn too.
  metric: the number that is compared.
  treatment: name of the arm that the claim is about.
  direction: "higher": the claim holds if the effect is above the threshold; "lower": if it is
    below.
  threshold: what the effect is compared with. A threshold on the other side of no effect claims
    "not much worse": for example -0.02 with "higher".
  matched: metrics whose totals over a run must agree between treatment and baseline, e.g.
    ("tokens", "updates", "environment_calls"). A total is the sum over all lines of metrics.jsonl.
    (): the arms are compared at unequal cost, which the title should say.
  baseline: name of the arm that the treatment is compared with; "" only with compare="absolute".
  compare: what the effect is. "difference": treatment - baseline, seed by seed; "ratio": treatment
    / baseline, with the geometric mean over seeds; "absolute": the treatment's own metric.
  card: the method's number in a list of methods; 0: none.
  tolerance: by what part of the larger total matched totals may differ, in any seed.
  seeds: number of seeds, unless the command gives another; at least 2.
  also: column -> further Metric. It is measured on every run for the table of arms, and decides
    nothing.
  """
  title: str
  sentence: str
  paper: str
  arms: Mapping[str, Any]
  metric: Metric
  treatment: str
  direction: Literal["higher", "lower"]
  threshold: float
  matched: tuple[str, ...]
  baseline: str = ""
  compare: Literal["difference", "ratio", "absolute"] = "difference"
  card: int = 0
  tolerance: float = 0.05
  seeds: int = 3
  also: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    # The arms that are compared.
    one_of(self.arms, treatment=self.treatment)
    if self.baseline:
      one_of(self.arms, baseline=self.baseline)
    elif self.compare != "absolute":
      raise ValueError(
          f"compare={self.compare!r} needs a baseline arm, and none is named: set baseline to one"
          " of"
          f""" {', '.join(n for n in self.arms if n != self.treatment)
                or 'the arms, once there is another'}"""
          ", or compare='absolute' with a threshold for the treatment itself.")
    if self.baseline == self.treatment:
      raise ValueError(
          f"treatment and baseline are both {self.baseline!r}: an arm cannot be compared with"
          " itself.")
    if self.matched and not self.baseline:
      raise ValueError(
          f"matched={self.matched} compares the cost of two arms, and there is no baseline arm: set"
          " matched=().")

    # The numbers. One seed has no interval, so there must be two.
    at_least(2, seeds=self.seeds)
    at_least(0, tolerance=self.tolerance)
    if not math.isfinite(self.threshold) or self.compare == "ratio" and self.threshold <= 0:
      raise ValueError(
          f"threshold must be a number{', above 0 for a ratio' * (self.compare == 'ratio')}, got"
          f" {self.threshold}.")

  @property
  def pair(self) -> tuple[str, ...]:
    """The names of the arms that the verdict needs: the treatment, and the baseline if any."""
    return tuple(filter(None, (self.treatment, self.baseline)))

  def test(self) -> dict[str, Any]:
    """Returns what decides the verdict, beside the arms' configs.

    A change in it after a result was seen is kept in the record (results.record).
    """
    decides = (
        "metric", "treatment", "baseline", "compare", "direction", "threshold", "matched",
        "tolerance")
    return {k: v for k, v in to_json(self).items() if k in decides}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """An experiment's file and what it claims.

  file: where the file is.
  claims: name -> claim.
  configs: claim -> arm -> checked config, with seed 0.
  """
  file: Path
  claims: Mapping[str, Claim]
  configs: Mapping[str, Mapping[str, ml_collections.ConfigDict]]

  @property
  def name(self) -> str:
    return self.file.stem


def load(spec: str) -> Experiment:
  """Loads and checks an experiment's claims, before anything runs.

  Args:
    spec: "path/to/file.py", or "path/to/file.py:tiny" to load every arm's config with this
      argument. An arm's own argument stands before it: "gspo-tiny".
  Raises: ValueError with file, claim and field, for whatever cannot work.
  """
  path, _, argument = spec.partition(":")
  file = config_lib.find_experiment(path)
  module = config_lib.load_experiment(file)
  declared = getattr(module, "CLAIMS", None)
  if not isinstance(declared, Mapping) or not declared:
    raise ValueError(
        f"{file} states no claim: give it CLAIMS = {{name: dict(title=..., arms=..., metric=...,"
        " ...)}; the"
        " fields are in rl_reason/claims/declaration.py.")

  # Each claim, and the config of each of its arms: a bad override is found here.
  claims, configs = {}, {}
  for name, section in declared.items():
    where = f"{file.name}: CLAIMS[{name!r}]"
    _check_name(where, name)
    claim = claims[name] = parse(section, where)
    configs[name] = {}
    for arm_name, arm in claim.arms.items():
      arm = dataclasses.replace(arm, config="-".join(filter(None, (arm.config, argument))))
      try:
        configs[name][arm_name] = arm_config(module, arm)
      except ValueError as error:
        raise ValueError(f"{where}.arms[{arm_name!r}]: {error}") from error
  return Experiment(file, claims, configs)


def parse(section: Mapping[str, Any], where: str = "claim") -> Claim:
  """Parses one entry of CLAIMS.

  Args:
    section: field -> value; arms and further metrics are mappings too.
    where: names the claim in errors.
  Raises: ValueError with the field.
  """
  # The mappings in it first: their values are sections of dataclasses of their own.
  arms = section.get("arms") if isinstance(section, Mapping) else None
  if isinstance(arms, Mapping):
    for name in arms:
      _check_name(f"{where}.arms", name)
    section = {**section, "arms": {
        k: fields.parse(Arm, v, f"{where}.arms[{k!r}]") for k, v in arms.items()}}
  also = section.get("also") if isinstance(section, Mapping) else None
  if isinstance(also, Mapping):
    section = {**section, "also": {
        k: fields.parse(Metric, v, f"{where}.also[{k!r}]") for k, v in also.items()}}
  claim = fields.parse(Claim, section, where)

  # The metrics' arguments: a wrong name must be found before hours of runs, not after them.
  for metric in (claim.metric, *claim.also.values()):
    function = naming.find("metric function", metric.function, measures.MEASURES)
    naming.check_arguments(
        f"{where}: the metric function {metric.function!r}", function, metric.args, positional=1)
  return claim


def arm_config(module: ModuleType, arm: Arm, seed: int = 0) -> ml_collections.ConfigDict:
  """Makes the config that an arm trains with, and checks it.

  Args:
    module: the module of the experiment's file.
    arm: what is changed.
    seed: the run's seed.
  Raises: ValueError for unknown fields and values out of range.
  """
  config = config_lib.load_from(module, arm.config)
  with config.unlocked():
    override(config, arm.overrides, new_sections=False)
    config.seed = seed
  config_lib.check(config)
  return config


def leading(config: Mapping[str, Any], count: int) -> Any:
  """Returns a config of only its first `count` stages: what a run needs to train them.

  It has no sections of other stages, and none that only says how a run is logged. Two runs with
  equal leading stages therefore have equal leading configs.

  Args:
    config: the config, as a ConfigDict, or as JSON holds it.
    count: number of stages.
  """
  names = config["stages"][:count]
  def belongs(name, section):
    stage = isinstance(section, Mapping | ml_collections.ConfigDict) and "kind" in section
    return name != "logging" and (not stage or name in names)
  return type(config)(
      {k: v for k, v in config.items() if k != "stages" and belongs(k, v)} | {"stages": names})


def to_json(value: Any) -> Any:
  """Turns dataclasses and configs into what JSON holds."""
  if isinstance(value, ml_collections.ConfigDict):
    return json.loads(value.to_json_best_effort())
  return json.loads(json.dumps(value, default=dataclasses.asdict))


def _check_name(where: str, name: Any) -> None:
  """Checks that the name of a claim or an arm can be a folder's. Raises: ValueError."""
  if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
    raise ValueError(f"{where}: the name {name!r} names a folder: use letters, digits, _ and -.")
