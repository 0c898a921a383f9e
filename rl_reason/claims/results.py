"""Keeps the records of claims.

A record is written, compared with what the claim says now, and shown in one table of all claims.
"""

from collections.abc import Mapping, Sequence
import datetime
import json
from pathlib import Path
import shlex
import sys
from typing import Any

from rl_reason.claims import dependencies, judgement, plan
from rl_reason.claims import folder as runs
from rl_reason.claims.declaration import Experiment, Metric, to_json
from rl_reason.config import fields as config_lib
from rl_reason.reporting import provenance
from rl_reason.run.workdir import Workdir

# The columns of the table of all claims.
COLUMNS = (
    "claim", "of", "compared", "effect (95 %)", "threshold", "could have seen", "verdict",
    "measured")
# The table stands on this page, between these marks.
BEGIN, END = "<!-- claims: generated, do not edit -->", "<!-- /claims -->"
PAGE = "docs/results.md"
# The functions that a run's numbers come from, beside the claim's metric functions.
MEASURING = ("rl_reason.claims.measures:measure", "rl_reason.claims.measures:totals")
# What measuring a claim writes itself: changes there do not make a commit a changed one.
WRITTEN = (PAGE, "experiments/results")
# Sections of a config that say how a run is run, and not what it computes.
RUNNING = ("checkpoint", "logging", "mesh")


def folder(experiment: Experiment) -> Path:
  """Returns the folder of an experiment's records, which lies beside the experiment's file."""
  return experiment.file.parent / "results" / experiment.name


def read(experiment: Experiment, name: str) -> dict[str, Any] | None:
  """Reads a claim's record.

  Args:
    experiment: the loaded experiment.
    name: the claim's name.
  Returns: the record; None if the claim was never measured.
  Raises: ValueError if the file is no record of this claim, or one of rl_reason before 0.2.0.
  """
  path = folder(experiment) / f"{name}.json"
  if not path.exists():
    return None
  try:
    record = json.loads(path.read_text())
    of = (
        record["experiment"], record["name"], record["verdict"], record["test"],
        record["configs"], record["code"])
    if not all(isinstance(record[key], dict) for key in ("test", "configs", "code")):
      raise ValueError("test, configs and code must be objects")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
        f"{path} is no record of a claim ({type(error).__name__}: {error}). Restore or delete"
        " it.") from error
  if any(key.startswith("rl_reason.") for key in record["code"]):
    raise ValueError(
        f"{path} is a record of rl_reason before 0.2.0: it holds a digest of each module, where now"
        " each definition has one. Measure the claim again in another folder, or delete the"
        " record.")
  if of[:2] != (experiment.name, name):
    raise ValueError(
        f"{path} is the record of claim {of[1]!r} of {of[0]!r}, not of {name!r} of"
        f" {experiment.name!r}: it was copied or renamed. Restore or delete it.")
  return record


def state(experiment: Experiment, name: str) -> dict[str, Any]:
  """Returns what decides the result, as it is now.

  Returns: {"test": what the declaration says, "configs": arm -> config, "code": definition ->
    digest, of all arms together}.
  """
  claim = experiment.claims[name]
  configs = {arm: to_json(config) for arm, config in experiment.configs[name].items()}
  functions = [metric.function for metric in (claim.metric, *claim.also.values())]
  code = dependencies.code(
      list(configs.values()), functions, start=(dependencies.START, *MEASURING))
  return {"test": claim.test(), "configs": {k: _what(c) for k, c in configs.items()}, "code": code}


def record(
    experiment: Experiment, name: str, planned: Sequence[plan.Run],
    measured: Sequence[judgement.Measured], seeds: int, root: Path,
) -> dict[str, Any]:
  """Makes the record of a claim whose runs are done.

  A short form of an earlier record is kept in `earlier`: its verdict, and what was changed after
  the verdict had been seen.

  Args:
    experiment: the loaded experiment.
    name: the claim's name.
    planned: the claim's runs.
    measured: what each run gave.
    seeds: number of seeds.
    root: root of the checkout, whose commit is recorded.
  Returns: the record, as JSON holds it.
  """
  claim, now, before = experiment.claims[name], state(experiment, name), read(experiment, name)
  # The versions of any run: all ran in the same installation.
  versions = next((
      json.loads(p.read_text()) for r in planned
      if (p := r.folder / "versions.json").exists()), {})
  verdict = judgement.judge(claim, measured, seeds)
  # The losses of rehearsals stay only if they are of this very code and these configs (canary.py).
  kept = before and "canary" in before and all(before[k] == now[k] for k in ("configs", "code"))
  return {
      # The verdict, and what it is about.
      "experiment": experiment.name, "name": name, "verdict": verdict.verdict,
      "reason": verdict.reason,
      "claim": {k: v for k, v in to_json(claim).items() if k != "arms"}, "seeds": seeds, **now,
      "digests": {k: dependencies.digest(v) for k, v in now.items()},
      # The numbers behind it.
      **{k: v for k, v in judgement.to_json(verdict).items() if k not in ("verdict", "reason")},
      "confidence": judgement.CONFIDENCE, "power": judgement.POWER,
      "arms": dict(zip(("columns", "rows"), judgement.arms_table(claim, measured))),
      "runs": to_json([*measured]), "earlier": _earlier(before, now, seeds),
      # What it took, and where. Stages that runs share are counted once.
      "seconds": round(sum(map(
          runs.seconds,
          {folder for run in planned for folder in runs.lineage(run.folder)}))),
      "commit": provenance.commit(root, beside=WRITTEN),
      "command": " ".join(["python -m rl_reason.claims", *map(shlex.quote, sys.argv[1:])]),
      "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "machine": provenance.machine(versions.get("device", "cpu")), "versions": versions,
      **({"canary": before["canary"]} if kept else {})}


def write(
    experiment: Experiment, name: str, content: Mapping[str, Any], where: Path | None = None,
) -> Path:
  """Writes a claim's record.

  Args:
    experiment: the loaded experiment.
    name: the claim's name.
    content: the record.
    where: the folder; None: the experiment's (`folder`).
  Returns: the file.
  """
  where = folder(experiment) if where is None else where
  Workdir(where).write(f"{name}.json", content)
  return where / f"{name}.json"


def stale(experiment: Experiment, name: str) -> list[str]:
  """Lists what changed since a claim was measured.

  Returns: one entry for each change; ["never measured"] if there is no record; [] if nothing
    changed.
  """
  before = read(experiment, name)
  if before is None:
    return ["never measured"]
  now = state(experiment, name)
  changed = sorted(
      k for k in {*before["code"], *now["code"]} if before["code"].get(k) != now["code"].get(k))
  return [*_changes(before, now), *(f"code of {k}" for k in changed)]


def shorten(changes: Sequence[str]) -> str:
  """Joins the first 4 changes, and the number of the others."""
  return "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")


# The table.


def all_records(results: Path) -> list[dict[str, Any]]:
  """Reads every record in the subfolders of experiments/results."""
  return [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]


def table(records: Sequence[Mapping[str, Any]], results: str = "../experiments/results") -> str:
  """Makes a table of all claims in Markdown, with notes below it.

  Args:
    records: the claims' records.
    results: the folder of the records, as links on PAGE name it.
  Returns: the text; "" if there are no records.
  """
  if not records:
    return ""
  # A note stands below where a claim has no verdict, or where it was changed after a verdict had
  # been seen.
  lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
  notes = []
  for r in records:
    lines.append("| " + " | ".join(_row(r, f"{results}/{r['experiment']}/{r['name']}")) + " |")
    if r["verdict"] in ("missing", "invalid"):
      notes.append(f"- {r['claim']['title']}: {r['reason']}")
    for e in r["earlier"]:
      notes.append(
          f"- {r['claim']['title']}: measured before ({e['date'][:10]},"
          f" {e['verdict']}{_effect(e)}); then changed:"
          f" {'; '.join(e['changed'])}.")
  return "\n".join([*lines, *([""] if notes else []), *(" ".join(note.split()) for note in notes)])


def update_docs(root: Path) -> bool:
  """Puts the table of all records between the marks of root/docs/results.md.

  Returns: false if there is no such page, or it has no marks.
  """
  page = root / PAGE
  if not page.exists() or BEGIN not in (text := page.read_text()):
    return False
  before, _, rest = text.partition(BEGIN)
  after = rest.partition(END)[2]
  page.write_text(
      f"{before}{BEGIN}\n{table(all_records(root / 'experiments/results'))}\n{END}{after}")
  return True


def _row(r: Mapping[str, Any], path: str) -> list[str]:
  """Makes a record's row of the table; its links lead to `path`.json and `path`.png."""
  claim = r["claim"]
  compared = " - ".join(filter(None, (claim["treatment"], claim["baseline"])))
  if claim["compare"] == "ratio":
    compared = compared.replace(" - ", " / ")
  detectable = r["detectable"]
  card = f"; card {claim['card']:02d}" if claim["card"] else ""
  cells = [
      f"[{claim['title']}]({path}.json)",
      f"{claim['paper']}{card}",
      f"{compared}: {Metric(**claim['metric']).label}, {r['seeds']} seeds",
      _effect(r).removeprefix(", ") or "-",
      ("above " if claim["direction"] == "higher" else "below ") + f"{claim['threshold']:g}",
      "-" if detectable is None else
      (f"a factor of {detectable:.3g}" if claim["compare"] == "ratio" else f"{detectable:.3g}"),
      f"[{r['verdict']}]({path}.png)" if r["effect"] is not None else r["verdict"],
      f"{r['date'][:10]}, {r['seconds'] / 60:.0f} min of runs, {r['machine']['device']}"]
  # A line break or a "|" in a cell would end the cell.
  return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]


def _effect(r: Mapping[str, Any]) -> str:
  """Shows a record's effect with its interval, after a comma; "" if it has none."""
  return (
      "" if r["effect"] is None else
      f", {r['effect']:.3g} ({r['interval'][0]:.3g} to {r['interval'][1]:.3g})")


# Changes.


def _earlier(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], seeds: int,
) -> list[dict[str, Any]]:
  """Lists the earlier records in short.

  The last record is added to them if its claim said something else, or had another number of
  seeds.

  Args:
    before: the last record; None: there is none.
    now: `state` of the claim.
    seeds: number of seeds now.
  """
  if before is None:
    return []
  changed = _changes(before, now) + (
      [f"seeds was {before['seeds']} and is {seeds}"] if before["seeds"] != seeds else [])
  if not changed:
    return before["earlier"]
  kept = {
      k: before[k]
      for k in ("date", "commit", "verdict", "effect", "interval", "seeds", "digests")}
  return [*before["earlier"], {**kept, "changed": changed}]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Lists what the claim and its arms' configs say otherwise now.

  A field that the recorded config does not have is a new option with its default value. It is left
  out, because that is a change of the code and not of the claim.
  """
  told = config_lib.changes(before["test"], now["test"])
  for arm in dict.fromkeys([*before["configs"], *now["configs"]]):
    if arm not in before["configs"] or arm not in now["configs"]:
      told[f"arm {arm}"] = (arm in before["configs"] or None, arm in now["configs"] or None)
      continue
    found = config_lib.changes(before["configs"][arm], now["configs"][arm])
    told |= {f"{arm}: {k}": v for k, v in found.items() if v[0] is not None}
  return [f"{k} was {old!r} and is {new!r}" for k, (old, new) in told.items()]


def _what(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config without its seed and without what only says how a run is run."""
  return {k: v for k, v in config.items() if k not in (*RUNNING, "seed")}
