"""Plans the runs of a claim: one for each arm and seed, with shared first stages."""

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
  """One arm with one seed.

  The folder's name depends on the config and the code. Another config, or code that changed, is
  another run, and what an old run left is never taken for the new one's.

  experiment: path of the experiment's file, with its argument after a ":" if any.
  claim: name of the claim.
  arm: name of the arm.
  seed: the run's seed.
  config: the arm's config with this seed, as JSON holds it.
  code: dependencies.code of the config.
  workdir: the folder of all runs.
  leading: whether this is not the whole arm but its first stages, which other runs share.
  begins: the run whose stages this one takes over instead of training them again; None: it trains
    all stages itself.
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

  # Cached, because runs.run_all asks for the folder of every run twice a second.
  @functools.cached_property
  def digest(self) -> str:
    """8 hexadecimal digits of the config and the code, the same for all seeds of an arm."""
    # Without the seed, so that the seeds of an arm lie side by side in one folder.
    config = {k: v for k, v in self.config.items() if k != "seed"}
    return dependencies.digest([config, dict(self.code)])[:8]

  @property
  def label(self) -> str:
    """The arm's name or, for leading stages, theirs."""
    return "+".join(self.config["stages"]) if self.leading else self.arm

  @property
  def folder(self) -> Path:
    return (
        self.workdir / Path(self.experiment).stem / f"{self.label}-{self.digest}"
        / f"seed{self.seed}")

  @functools.cached_property
  def steps(self) -> Mapping[str, int]:
    """Number of steps of each stage, in order."""
    _, sections = check(ml_collections.ConfigDict(dict(self.config)))
    return {name: section.num_steps for name, section in sections.items()}

  @property
  def num_steps(self) -> int:
    return sum(self.steps.values())

  def done(self) -> int:
    """Counts the steps in metrics.jsonl, of all stages."""
    with contextlib.suppress(FileNotFoundError):
      lines = metrics.read_metrics(self.folder)
      if lines:
        stages = list(self.config["stages"])
        # The stages before the one of the last line are complete.
        before = stages[:stages.index(lines[-1]["stage"])] if lines[-1]["stage"] in stages else []
        return sum(self.steps[s] for s in before) + lines[-1]["step"]
    return 0


def plan(
    experiment: declaration.Experiment, name: str, seeds: int, workdir: Path, argument: str = "",
) -> list[Run]:
  """Plans the runs of a claim, seed by seed, so that what is there after a kill can be compared.

  Args:
    experiment: the loaded experiment.
    name: the claim's name.
    seeds: number of seeds; they count from 0.
    workdir: the folder of all runs.
    argument: the experiment's argument, e.g. "tiny".
  """
  configs = {arm: declaration.to_json(config) for arm, config in experiment.configs[name].items()}
  code = {arm: dependencies.code(config) for arm, config in configs.items()}
  spec = f"{experiment.file}:{argument}" if argument else str(experiment.file)
  return [Run(spec, name, arm, seed, {**config, "seed": seed}, code[arm], workdir)
          for seed in range(seeds) for arm, config in configs.items()]


def distinct(runs: Sequence[Run]) -> list[Run]:
  """Keeps one run for each folder: claims share the runs of arms with the same name and config."""
  return list({run.folder: run for run in runs}.values())


def first_stages(run: Run, count: int) -> Run:
  """Makes the run of only a run's first `count` stages."""
  config = declaration.leading(run.config, count)
  return dataclasses.replace(
      run, config=config, code=dependencies.code(config), leading=True, begins=None)


def with_beginnings(runs: Sequence[Run]) -> list[Run]:
  """Adds runs of leading stages that several runs share, so that shared stages are trained once.

  Several runs share leading stages if the configs and the code of these stages are equal, and with
  them the seed and everything outside of stages. Where shared stages are the whole of another run
  of the plan, the runs begin from that one.

  Returns: all runs, each after the run that it begins from.
  """
  # For each run, the runs of its first 1, 2, ... stages. Those of one folder are equal.
  chains = {
      run: [first_stages(run, n + 1) for n in range(len(run.config["stages"]))] for run in runs}
  # Whole runs of the plan, by the folder that they would have as leading stages.
  made = {chain[-1].folder: run for run, chain in reversed(chains.items())}

  # Leading stages are worth a run of their own where different runs follow them. Where all
  # runs that contain them go on equally, a longer part is shared instead.
  followers: dict[Path, set[Path]] = {}
  for run, chain in chains.items():
    for shorter, longer in itertools.pairwise([*(c.folder for c in chain[:-1]), run.folder]):
      followers.setdefault(shorter, set()).add(longer)
  shared = {folder for folder, after in followers.items() if len(after) > 1}

  # The plan: each run begins from the longest part of it that is a run itself.
  planned: dict[Path, Run] = {}  # By folder, in order.
  for run, chain in chains.items():
    before = None
    for part in chain[:-1]:
      if part.folder in made or part.folder in shared:
        other = made.get(part.folder, part)
        before = planned.setdefault(other.folder, dataclasses.replace(other, begins=before))
    planned.setdefault(run.folder, dataclasses.replace(run, begins=before))
  return list(planned.values())
