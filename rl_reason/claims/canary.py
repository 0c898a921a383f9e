"""The canary: tiny rehearsals whose last losses tell whether changed code still computes the same.

A result is stale once code that it depends on is written otherwise, and to measure it again takes
hours. Whether a rewriting changed numbers too is asked in minutes: each arm's rehearsal (its tiny
config, seed 0) runs again, and the last loss of each stage is compared with the one in the record.

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

ARGUMENT = "tiny"  # Of every arm's config.
# How far two losses may be apart: TOLERANCE of the larger, or NOTHING near 0. The same code on the
# same machine gives the same bits. XLA's next version, or another processor, sums in another order:
# float32 then differs by some 1e-6, and a few updates make more of it, so 1e-3 lets that pass. What
# a mistake changes (a sign, a mask, a mean, a seed) is larger. A policy's loss is near 0 by itself,
# since advantages sum to 0: below NOTHING only rounding is left of it.
TOLERANCE, NOTHING = 1e-3, 1e-6
COLUMNS = ("arm", "stage", "stored", "now", "verdict")


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """What an arm's rehearsal gave.

  losses: stage -> its last loss, of stages that log one. error: why there is none, else "".
  versions: of Python, JAX and what else it ran on.
  """
  losses: Mapping[str, float]
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  error: str = ""


def rehearse(
    experiment: declaration.Experiment, names: Sequence[str], jobs: int | None, progress: Progress,
    workdir: Path,
) -> dict[str, dict[str, Rehearsal]] | None:
  """Runs the rehearsals of an experiment's claims: those of equal configs once.

  Args:
    workdir: an empty folder, for what is there would be taken as done.

  Returns: claim -> arm -> Rehearsal; None if a signal stopped them.
  Raises: ValueError if an arm's config has no such size.
  """
  tiny = declaration.load(f"{experiment.file}:{ARGUMENT}")
  planned = {name: plan(tiny, name, 1, workdir, ARGUMENT) for name in names}
  # Arms of several claims, under the name of the first; an arm's name is no part of its digest.
  once: dict[str, Run] = {}
  for run in (run for of_claim in planned.values() for run in of_claim):
    once.setdefault(run.digest, run)
  if not runs.run_all(list(once.values()), jobs, progress):
    return None
  found = {digest: _read(run) for digest, run in once.items()}
  return {name: {run.arm: found[run.digest] for run in of_claim}
          for name, of_claim in planned.items()}


def losses(folder: Path) -> dict[str, float]:
  """Stage -> the last loss that it logged."""
  return {line["stage"]: float(line["loss"])
          for line in metrics.read_metrics(folder) if "loss" in line}


def same(stored: float, now: float) -> bool:
  if not (math.isfinite(stored) and math.isfinite(now)):
    return repr(stored) == repr(now)  # Nothing is as far from NaN as NaN.
  return math.isclose(stored, now, rel_tol=TOLERANCE, abs_tol=NOTHING)


def compare(stored: Mapping[str, Any], now: Mapping[str, Rehearsal]) -> list[list[str]]:
  """A row of COLUMNS for each arm and stage; its verdict is "same" where nothing changed.

  Args:
    stored: `canary` of a record, as `to_json` made it.
    now: the claim's rehearsals by arm.
  """
  rows = []
  for arm in dict.fromkeys([*stored["losses"], *now]):
    before, after = stored["losses"].get(arm), now.get(arm)
    if after is None or after.error:
      rows.append([arm, "", "", "", f"failed: {after.error}" if after else "the arm is gone"])
      continue
    if before is None:
      rows.append([arm, "", "", "", "the arm is new"])
      continue
    for stage in dict.fromkeys([*before, *after.losses]):
      pair = before.get(stage), after.losses.get(stage)
      if None in pair:
        verdict = "the stage is new" if pair[0] is None else "the stage is gone"
      else:
        verdict = "same" if same(*pair) else f"differs by {abs(pair[1] - pair[0]):.2g}"
      rows.append([arm, stage, *("" if x is None else f"{x:.6g}" for x in pair), verdict])
  return rows


def to_json(now: Mapping[str, Rehearsal], commit: str) -> dict[str, Any]:
  """`canary` of a record: losses by arm and stage, and what they were computed with.

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
    store: in place of those that are stored. Nothing else of the record is touched.
  Returns: whether all are the same, or stored. A claim that was never measured has no record to
    store them in, and is as good.
  """
  record, title = results.read(experiment, name), f"{experiment.name}/{name}"
  if record is None:
    progress.note(f"{title} was never measured, so there is no record to hold its losses.")
    return True
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
  rows = compare(stored, now)
  progress.table(title, COLUMNS, rows)
  good = all(row[-1] == "same" for row in rows)
  if not good:
    # Where versions differ too, they may be why.
    versions = next((r.versions for r in now.values() if r.versions), {})
    other = [f"{k} was {v} and is {versions[k]}" for k, v in stored["versions"].items()
             if k in versions and versions[k] != v]
    progress.note(f"{title} computes other numbers than at commit {stored['commit']}"
                  f" ({'; '.join(other) or 'with the same versions'}).")
  return good


def _read(run: Run) -> Rehearsal:
  end = outcome(run)
  if end.status != "finished":
    return Rehearsal({}, error=end.error or end.status)
  return Rehearsal(losses(run.folder), read_json(run.folder / "versions.json"))
