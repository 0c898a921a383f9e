"""Plans the runs of a claim: one for each arm and seed, with shared first stages.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import ml_collections

from rl_reason.claims import declaration, dependencies
from rl_reason.reporting import metrics
from rl_reason.run.config import check


@dataclasses.dataclass(frozen=True)
class Run:
  """One arm with one seed. config: as JSON; code: dependencies.code of it.

  The folder is named after both: another config, or code that changed, is another run, and what an old one left is never
  taken for it.

  leading: this is not the whole arm but its first stages, which other runs share. begins: the run whose stages it takes over
  instead of training them again.
  """
  experiment: str
  claim: str
  arm: str
  seed: int
  config: Mapping[str, Any] = dataclasses.field(hash=False)
  code: Mapping[str, str] = dataclasses.field(hash=False, compare=False)
  workdir: Path = Path("runs/claims")
  leading: bool = False
  begins: "Run | None" = dataclasses.field(default=None, hash=False, compare=False)

  @functools.cached_property  # `run_all` asks for the folder of every run twice a second.
  def digest(self) -> str:
    config = {k: v for k, v in self.config.items() if k != "seed"}  # The seeds of an arm lie side by side.
    return dependencies.digest([config, dict(self.code)])[:8]

  @property
  def label(self) -> str:
    return "+".join(self.config["stages"]) if self.leading else self.arm

  @property
  def folder(self) -> Path:
    return self.workdir / Path(self.experiment).stem / f"{self.label}-{self.digest}" / f"seed{self.seed}"

  @functools.cached_property
  def steps(self) -> Mapping[str, int]:
    """Steps of each stage, in order."""
    _, sections = check(ml_collections.ConfigDict(dict(self.config)))
    return {name: section.num_steps for name, section in sections.items()}

  @property
  def num_steps(self) -> int:
    return sum(self.steps.values())

  def done(self) -> int:
    """Steps in metrics.jsonl, of all stages."""
    with contextlib.suppress(FileNotFoundError):
      lines = metrics.read_metrics(self.folder)
      if lines:
        stages = list(self.config["stages"])
        before = stages[:stages.index(lines[-1]["stage"])] if lines[-1]["stage"] in stages else []
        return sum(self.steps[s] for s in before) + lines[-1]["step"]
    return 0


def plan(experiment: declaration.Experiment, name: str, seeds: int, workdir: Path, argument: str = "") -> list[Run]:
  """The runs of a claim, seed by seed, so that what is there after a kill can be compared."""
  configs = {arm: declaration.to_json(config) for arm, config in experiment.configs[name].items()}
  code = {arm: dependencies.code(config) for arm, config in configs.items()}
  spec = f"{experiment.file}:{argument}" if argument else str(experiment.file)
  return [Run(spec, name, arm, seed, {**config, "seed": seed}, code[arm], workdir)
          for seed in range(seeds) for arm, config in configs.items()]


def distinct(runs: Sequence[Run]) -> list[Run]:
  """One for each folder: claims share the runs of arms with the same name and config."""
  return list({run.folder: run for run in runs}.values())


def first_stages(run: Run, count: int) -> Run:
  """The run of only its first `count` stages."""
  config = declaration.leading(run.config, count)
  return dataclasses.replace(run, config=config, code=dependencies.code(config), leading=True, begins=None)


def with_beginnings(runs: Sequence[Run]) -> list[Run]:
  """The runs, and before them those of leading stages that several of them share, so that these are trained once.

  Stages are shared if with all before them, the seed and everything outside of stages they have equal configs and code.
  Where they are the whole of another run of the plan, that run is begun from.
  """
  chains = {run: [first_stages(run, n + 1) for n in range(len(run.config["stages"]))] for run in runs}
  made = {chain[-1].folder: run for run, chain in reversed(chains.items())}
  followers: dict[Path, set[Path]] = {}
  for run, chain in chains.items():
    for shorter, longer in itertools.pairwise([*(c.folder for c in chain[:-1]), run.folder]):
      followers.setdefault(shorter, set()).add(longer)
  shared = {folder for folder, after in followers.items() if len(after) > 1}
  planned: dict[Path, Run] = {}  # By folder, each after the run that it begins from.
  for run, chain in chains.items():
    before = None
    for part in chain[:-1]:
      if part.folder in made or part.folder in shared:
        other = made.get(part.folder, part)
        before = planned.setdefault(other.folder, dataclasses.replace(other, begins=before))
    planned.setdefault(run.folder, dataclasses.replace(run, begins=before))
  return list(planned.values())
