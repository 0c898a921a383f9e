"""What an experiment file claims, as plain data beside its get_config, checked as configs are.

    CLAIMS = {"leave_one_out": dict(
        title="A leave-one-out baseline learns faster than none", paper="Ahmadian et al. 2024, arXiv:2402.14740",
        sentence="...", arms={"none": dict(overrides={"rl.baseline": "none"}), "leave_one_out": dict()},
        treatment="leave_one_out", baseline="none", metric=dict(function="area", args=dict(name="reward/mean", stage="rl")),
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
  """What is trained: the experiment's config, changed. Never the seed, which pairs the arms.

  config: the argument of get_config, "" for its default.
  overrides: {dotted field of the config: value}, e.g. {"rl.baseline": "none"}; a section as the value replaces the whole.
  """
  config: str = ""
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if "seed" in self.overrides:
      raise ValueError("overrides sets seed: each arm runs with the same seeds, which the command counts from 0.")


@dataclasses.dataclass(frozen=True)
class Metric:
  """One number of a finished run. function: a name in measures.MEASURES, or the dotted path of a function of the run's
  folder (a Path) that returns a float; args: its keyword arguments."""
  function: str
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def label(self) -> str:
    """What tables and figures call it, e.g. "last eval/pass@1"."""
    return " ".join(filter(None, (self.function.rpartition(":")[2], self.args.get("name"))))


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim; all that decides about the verdict is here and in the arms' configs.

  title: what is claimed, in one short line. sentence: what the paper claims; paper: which one; card: its number in a list
    of methods, 0 for none.
  arms: name -> Arm; further arms than the two compared are run and drawn beside them.
  metric: what is compared.
  also: column -> further Metric, measured on every run for the table of arms; decides nothing.
  treatment, baseline: names of arms. No baseline only with compare="absolute".
  compare: difference: treatment - baseline, seed by seed; ratio: treatment / baseline, over seeds the geometric mean;
    absolute: the treatment's own metric.
  direction, threshold: the claim holds if the effect is above ("higher") or below ("lower") the threshold. A threshold
    on the other side of nothing's effect says "not much worse": -0.02 with "higher".
  matched: metrics whose totals over a run (their sum over all lines of metrics.jsonl) must agree between treatment and
    baseline, e.g. ("tokens", "updates", "environment_calls"); () compares at unequal cost, which the title should say.
  tolerance: by how much of the larger total they may differ in any seed.
  seeds: how many, unless the command says otherwise.
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
    one_of(self.arms, treatment=self.treatment)
    if self.baseline:
      one_of(self.arms, baseline=self.baseline)
    elif self.compare != "absolute":
      raise ValueError(f"compare={self.compare!r} needs a baseline arm, and none is named: set baseline to one of"
                       f" {', '.join(n for n in self.arms if n != self.treatment) or 'the arms, once there is another'}, or"
                       " compare='absolute' with a threshold for the treatment itself.")
    if self.baseline == self.treatment:
      raise ValueError(f"treatment and baseline are both {self.baseline!r}: an arm cannot be compared with itself.")
    if self.matched and not self.baseline:
      raise ValueError(f"matched={self.matched} compares the cost of two arms, and there is no baseline arm: set"
                       " matched=().")
    at_least(2, seeds=self.seeds)  # One seed has no interval.
    at_least(0, tolerance=self.tolerance)
    if not math.isfinite(self.threshold) or self.compare == "ratio" and self.threshold <= 0:
      raise ValueError(f"threshold must be a number{', above 0 for a ratio' * (self.compare == 'ratio')}, got"
                       f" {self.threshold}.")

  @property
  def pair(self) -> tuple[str, ...]:
    """The arms that the verdict needs."""
    return tuple(filter(None, (self.treatment, self.baseline)))

  def test(self) -> dict[str, Any]:
    """What decides about the verdict, beside the arms' configs; changed after a result, it must be said."""
    decides = ("metric", "treatment", "baseline", "compare", "direction", "threshold", "matched", "tolerance")
    return {k: v for k, v in to_json(self).items() if k in decides}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """file: where it is. claims: by name. configs: claim -> arm -> checked config, of seed 0."""
  file: Path
  claims: Mapping[str, Claim]
  configs: Mapping[str, Mapping[str, ml_collections.ConfigDict]]

  @property
  def name(self) -> str:
    return self.file.stem


def load(spec: str) -> Experiment:
  """The claims of "path/to/file.py"; of "path/to/file.py:tiny" with this argument for every arm's config, behind the arm's
  own if it has one: "gspo-tiny".

  Raises: ValueError naming file, claim and field, for whatever cannot work, before anything runs.
  """
  path, _, argument = spec.partition(":")
  file = config_lib.find_experiment(path)
  module = config_lib.load_experiment(file)
  declared = getattr(module, "CLAIMS", None)
  if not isinstance(declared, Mapping) or not declared:
    raise ValueError(f"{file} states no claim: give it CLAIMS = {{name: dict(title=..., arms=..., metric=..., ...)}}; the"
                     " fields are in rl_reason/claims/declaration.py.")
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
  """One entry of CLAIMS -> Claim. Raises: ValueError naming the field."""
  arms = section.get("arms") if isinstance(section, Mapping) else None
  if isinstance(arms, Mapping):
    for name in arms:
      _check_name(f"{where}.arms", name)
    section = {**section, "arms": {k: fields.parse(Arm, v, f"{where}.arms[{k!r}]") for k, v in arms.items()}}
  also = section.get("also") if isinstance(section, Mapping) else None
  if isinstance(also, Mapping):
    section = {**section, "also": {k: fields.parse(Metric, v, f"{where}.also[{k!r}]") for k, v in also.items()}}
  claim = fields.parse(Claim, section, where)
  for metric in (claim.metric, *claim.also.values()):
    function = naming.find("metric function", metric.function, measures.MEASURES)
    naming.check_arguments(f"{where}: the metric function {metric.function!r}", function, metric.args, positional=1)
  return claim


def arm_config(module: ModuleType, arm: Arm, seed: int = 0) -> ml_collections.ConfigDict:
  """The config that an arm trains with. Raises: ValueError for fields and values that cannot be."""
  config = config_lib.load_from(module, arm.config)
  with config.unlocked():
    override(config, arm.overrides, new_sections=False)
    config.seed = seed
  config_lib.check(config)
  return config


def leading(config: Mapping[str, Any], count: int) -> Any:
  """The config, as a ConfigDict or as JSON holds it, of only its first `count` stages: what a run needs to train them.

  Sections of other stages and what only shows a run are left out: runs whose leading stages are equal differ in nothing
  else.
  """
  names = config["stages"][:count]
  def belongs(name, section):
    stage = isinstance(section, Mapping | ml_collections.ConfigDict) and "kind" in section
    return name != "logging" and (not stage or name in names)
  return type(config)({k: v for k, v in config.items() if k != "stages" and belongs(k, v)} | {"stages": names})


def to_json(value: Any) -> Any:
  """Dataclasses and configs as JSON holds them."""
  if isinstance(value, ml_collections.ConfigDict):
    return json.loads(value.to_json_best_effort())
  return json.loads(json.dumps(value, default=dataclasses.asdict))


def _check_name(where: str, name: Any) -> None:
  if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
    raise ValueError(f"{where}: the name {name!r} names a folder: use letters, digits, _ and -.")
