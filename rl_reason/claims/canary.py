"""Rehearses claims, to see from the last losses whether changed code still computes the same.

A result is stale once code that it depends on is written in another way, and measuring it again
takes hours. Whether the change also changes numbers can be seen in minutes: each arm's rehearsal
(its tiny config, seed 0) runs again, and the last loss of each stage is compared with the one in
the record.

Equal losses do not make a result fresh: a rehearsal is a few steps of a small model. The stored
losses are those of the code when they were stored (`commit`), which may be later than the result.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any

from rl_reason.claims import declaration, results, runs
from rl_reason.claims.folder import outcome, read_json
from rl_reason.claims.plan import plan, Run
from rl_reason.reporting import metrics, provenance
from rl_reason.reporting.progress import Progress

ARGUMENT = "tiny"  # The argument of every arm's config.
# How far two losses may be apart: TOLERANCE of the larger one, or NOTHING near 0. The same code on
# the same machine gives the same bits. XLA's next version, or another processor, sums in another
# order: float32 numbers then differ by some 1e-6, and a few updates increase the difference, so
# 1e-3 accepts that. What a mistake changes (a sign, a mask, a mean, a seed) is larger. A policy's
# loss is near 0 by itself, since advantages sum to 0: below NOTHING it consists of rounding only.
TOLERANCE, NOTHING = 1e-3, 1e-6
COLUMNS = ("arm", "stage", "stored", "now", "verdict")


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """What an arm's rehearsal gave.

  losses: stage -> its last loss, for stages that log one.
  versions: versions of Python, JAX and what else it ran on.
  error: why there are no losses, else "".
  """
  losses: Mapping[str, float]
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  error: str = ""


def rehearse(
    experiment: declaration.Experiment, names: Sequence[str], jobs: int | None, progress: Progress,
    workdir: Path,
) -> dict[str, dict[str, Rehearsal]]:
  """Runs the rehearsals of an experiment's claims; those with equal configs run once.

  Args:
    experiment: the loaded experiment.
    names: names of its claims.
    jobs: runs at a time; None: one for each core or GPU.
    progress: shows the runs.
    workdir: an empty folder; runs that are there already would be taken as done.
  Returns: claim -> arm -> Rehearsal.
  Raises: ValueError if an arm's config has no such size; exits.Stopped at a signal.
  """
  tiny = declaration.load(f"{experiment.file}:{ARGUMENT}")
  planned = {name: plan(tiny, name, 1, workdir, ARGUMENT) for name in names}
  # Arms that several claims share run under the name of the first claim's: an arm's name is no part
  # of its run's digest.
  once: dict[str, Run] = {}
  for run in (run for of_claim in planned.values() for run in of_claim):
    once.setdefault(run.digest, run)
  runs.run_all(list(once.values()), jobs, progress)
  found = {digest: _read(run) for digest, run in once.items()}
  return {name: {run.arm: found[run.digest] for run in of_claim}
          for name, of_claim in planned.items()}


def losses(folder: Path) -> dict[str, float]:
  """Reads the last loss of each stage that logged one: stage -> loss."""
  return {line["stage"]: float(line["loss"])
          for line in metrics.read_metrics(folder) if "loss" in line}


def same(stored: float, now: float) -> bool:
  """Whether two losses agree within TOLERANCE; NaN agrees with NaN, an infinity with itself."""
  # By their text, because NaN does not equal itself.
  if not (math.isfinite(stored) and math.isfinite(now)):
    return repr(stored) == repr(now)
  return math.isclose(stored, now, rel_tol=TOLERANCE, abs_tol=NOTHING)


def compare(stored: Mapping[str, Any], now: Mapping[str, Rehearsal]) -> list[list[str]]:
  """Compares the losses of a claim's rehearsals with the stored ones.

  Args:
    stored: the field `canary` of a record, as `to_json` made it.
    now: the claim's rehearsals by arm.
  Returns: a row of COLUMNS for each arm and stage, whose verdict is "same" if nothing changed.
  """
  rows = []
  for arm in dict.fromkeys([*stored["losses"], *now]):
    # An arm without two rehearsals has one row, which says why.
    before, after = stored["losses"].get(arm), now.get(arm)
    if after is None or after.error:
      rows.append([arm, "", "", "", f"failed: {after.error}" if after else "the arm is gone"])
      continue
    if before is None:
      rows.append([arm, "", "", "", "the arm is new"])
      continue
    # Stage by stage.
    for stage in dict.fromkeys([*before, *after.losses]):
      pair = before.get(stage), after.losses.get(stage)
      if None in pair:
        verdict = "the stage is new" if pair[0] is None else "the stage is gone"
      else:
        verdict = "same" if same(*pair) else f"differs by {abs(pair[1] - pair[0]):.2g}"
      rows.append([arm, stage, *("" if x is None else f"{x:.6g}" for x in pair), verdict])
  return rows


def to_json(now: Mapping[str, Rehearsal], commit: str) -> dict[str, Any]:
  """Makes the field `canary` of a record: losses by arm and stage, and what computed them.

  Args:
    now: the claim's rehearsals by arm.
    commit: the code's commit.
  Raises: ValueError if a rehearsal failed.
  """
  for arm, rehearsal in now.items():
    if rehearsal.error:
      raise ValueError(
          f"The rehearsal of arm {arm!r} failed ({rehearsal.error}), so there is no loss that could"
          " be stored. Run the experiment's tiny config with rl_reason.train to see why.")
  versions = dict(next(iter(now.values())).versions)
  return {"losses": {arm: dict(rehearsal.losses) for arm, rehearsal in now.items()},
          "versions": versions,
          "machine": provenance.machine(versions.get("device", "cpu"))["kind"], "commit": commit,
          "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def check(
    experiment: declaration.Experiment, name: str, now: Mapping[str, Rehearsal],
    progress: Progress, *, store: bool = False,
) -> bool:
  """Compares a claim's rehearsals with its record, or stores them where none are stored.

  Args:
    experiment: the loaded experiment.
    name: the claim's name.
    now: the claim's rehearsals by arm.
    progress: shows the comparison.
    store: whether the losses replace those that are stored. Nothing else of the record changes.
  Returns: whether all losses are the same, or stored. True also for a claim that was never
    measured, which has no record to store them in.
  """
  record, title = results.read(experiment, name), f"{experiment.name}/{name}"
  if record is None:
    progress.note(f"{title} was never measured, so there is no record to hold its losses.")
    return True

  # Store the losses, if none are stored or others shall be.
  stored = record.get("canary")
  if store or stored is None:
    root = experiment.file.resolve().parent.parent
    try:
      canary = to_json(now, provenance.commit(root, beside=results.WRITTEN))
    except ValueError as error:
      progress.note(f"{title}: not stored. {error}")
      return False
    results.write(experiment, name, {**record, "canary": canary})
    progress.note(f"{title}: the last losses of {len(now)} arms are stored.")
    return True

  # Compare them.
  rows = compare(stored, now)
  progress.table(title, COLUMNS, rows)
  good = all(row[-1] == "same" for row in rows)
  if not good:
    # If versions differ too, they may be the cause.
    versions = next((r.versions for r in now.values() if r.versions), {})
    other = [f"{k} was {v} and is {versions[k]}" for k, v in stored["versions"].items()
             if k in versions and versions[k] != v]
    progress.note(f"{title} computes other numbers than at commit {stored['commit']}"
                  f" ({'; '.join(other) or 'with the same versions'}).")
  return good


def _read(run: Run) -> Rehearsal:
  """Reads what a rehearsal gave, from its run's folder."""
  end = outcome(run)
  if end.status != "finished":
    return Rehearsal({}, error=end.error or end.status)
  return Rehearsal(losses(run.folder), read_json(run.folder / "versions.json"))
