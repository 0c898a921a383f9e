"""Measures over several seeds whether an experiment's claims hold here.

    python -m rl_reason.claims experiments/NAME.py [more.py] [--seeds=5] [--claim=NAME] [--jobs=2]
    python -m rl_reason.claims --all       # Every experiment that states a claim.
    python -m rl_reason.claims --stale     # Claims never measured, or whose config or code changed.
    python -m rl_reason.claims --list      # Shows all claims, their results and what changed since.
    python -m rl_reason.claims experiments/NAME.py:tiny    # A rehearsal: every arm's tiny config.
    python -m rl_reason.claims --canary    # Rehearses every arm: are the last losses as recorded?

The same command continues what was stopped. Only --canary begins anew, as its runs are not kept.
Results are in experiments/results/, those of a rehearsal in its workdir.
"""

from collections.abc import Sequence
from pathlib import Path
import sys
import tempfile

from rl_reason.claims import canary, declaration, figures, judgement, plan, results, runs
from rl_reason.claims.declaration import Experiment
from rl_reason.config.checks import one_of
from rl_reason.config.command_line import number, Parser
from rl_reason.reporting import exits
from rl_reason.reporting.progress import Progress
from rl_reason.run import config as config_lib
from rl_reason.run.process import errors_in_one_line


def measure(
    experiment: Experiment, names: Sequence[str], progress: Progress, *,
    seeds: int | None = None, jobs: int | None = None,
    workdir: Path = Path("runs/claims"), argument: str = "",
) -> None:
  """Runs claims of an experiment, records their results and draws them.

  Args:
    experiment: the loaded experiment.
    names: names of the claims.
    progress: shows the runs and the results.
    seeds: number of seeds; None: as many as each claim says.
    jobs: runs at a time; None: one for each core or GPU.
    workdir: the folder of all runs.
    argument: the experiment's argument; with one it is a rehearsal, which leaves the records alone.
  Raises: exits.Stopped if a signal stopped it before all runs were done.
  """
  # The runs of all these claims together, so that arms that they share run once.
  counts = {name: seeds or experiment.claims[name].seeds for name in names}
  planned = {name: plan.plan(experiment, name, counts[name], workdir, argument) for name in names}
  for name in names:
    if changes := results.stale(experiment, name):
      progress.note(f"{experiment.name}/{name}: {results.shorten(changes)}.")
  runs.run_all([r for name in names for r in planned[name]], jobs, progress)

  # The record, the figure and the table of each claim.
  root = experiment.file.resolve().parent.parent
  where = workdir / "rehearsals" / experiment.name if argument else results.folder(experiment)
  for name in names:
    claim = experiment.claims[name]
    measured = [judgement.measure(claim, run) for run in planned[name]]
    record = results.record(experiment, name, planned[name], measured, counts[name], root)
    path = results.write(experiment, name, record, where)
    figures.draw(record, claim, planned[name], path.with_suffix(".png"))
    progress.table(claim.title, ["arm", "seed", "value", "seconds", "end"], [
        [m.arm, str(m.seed), "" if m.value is None else f"{m.value:.4g}", f"{m.seconds:.0f}",
         m.status + (f": {m.error}" if m.error else "")] for m in measured])
    if claim.also or len(claim.arms) > 2:
      progress.table("Mean over seeds, 95 % interval", *judgement.arms_table(claim, measured))
    progress.note(
        f"{record['verdict'].upper()}: {record['reason']}"
        + ("" if record["detectable"] is None else
           f" These seeds could have seen {record['detectable']:.3g} from the threshold."))
    progress.note(f"Written: {path}, {path.with_suffix('.png').name}.")
  if not argument and results.update_docs(root):
    progress.note(f"The table in {root / results.PAGE} is up to date.")


def rehearse(
    chosen: Sequence[tuple[Experiment, Sequence[str]]], progress: Progress, *,
    jobs: int | None = None, store: bool = False,
) -> int:
  """Rehearses claims, one experiment at a time, and compares their last losses with the records'.

  Args:
    chosen: (experiment, names of its claims).
    progress: shows the rehearsals and the comparisons.
    jobs: runs at a time; None: one for each core or GPU.
    store: whether the losses are stored in place of the records'.
  Returns: the exit status: 0 if all are the same or stored, 1 if not.
  Raises: exits.Stopped if a signal stopped it.
  """
  good = True
  for experiment, names in chosen:
    with tempfile.TemporaryDirectory() as workdir:
      now = canary.rehearse(experiment, names, jobs, progress, Path(workdir))
    for name in names:
      good &= canary.check(experiment, name, now[name], progress, store=store)
  return int(not good)


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, lists or rehearses claims, as the command line says.

  Returns: the exit status. 1: a claim has no verdict, because runs are missing or cannot be
    compared; with --canary, an arm computes other losses than those in the record. 0: neither.
  Raises: SystemExit as reporting.exits says, at a signal and for errors.
  """
  args = _parser().parse_args(argv)
  with exits.with_status(), errors_in_one_line():
    # The claims that are meant.
    chosen = _choose(
        args.experiments,
        all_of_them=args.all
        or not args.experiments and (args.list or args.stale or args.canary))
    known = {name for experiment, _ in chosen for name in experiment.claims}
    for name in args.claim or ():
      one_of(sorted(known), claim=name)
    todo = [
        (e,
         [n for n in e.claims
          if n in (args.claim or e.claims) and (not args.stale or results.stale(e, n))],
         argument)
        for e, argument in chosen]
    if args.store and not args.canary:
      raise ValueError(
          "--store stores the losses of rehearsals, and without --canary there are none: add"
          " --canary.")

    # Rehearse them, list them, or measure them.
    with Progress(seconds_between_lines=10.0) as progress:
      if args.canary:
        return rehearse(
            [(e, names) for e, names, _ in todo if names], progress, jobs=args.jobs,
            store=args.store)
      if args.list:
        progress.table("Claims", ["claim", "verdict", "measured", "changed since"], [
            _line(e, name) for e, names, _ in todo for name in names])
        return 0
      try:
        for e, names, argument in todo:
          if names:
            measure(
                e, names, progress, seeds=args.seeds, jobs=args.jobs, workdir=args.workdir,
                argument=argument)
      except exits.Stopped:
        progress.note("Stopped: what the runs did is saved, and the same command continues.")
        raise

    # Whether every claim has a verdict. A rehearsal has no record.
    records = [
        results.read(e, name) for e, names, argument in todo for name in names if not argument]
    return int(any(r["verdict"] in ("missing", "invalid") for r in records))


def _parser() -> Parser:
  """Makes the parser of the command line."""
  parser = Parser("claims", __doc__)
  parser.add_argument("experiments", nargs="*", metavar="experiments/NAME.py[:argument]")
  parser.add_argument(
      "--claim", action="append", help="only the claim of this name; may be given several times")
  parser.add_argument(
      "--seeds", type=number(int, at_least=2),
      help="how many, from 0 on; by default as many as the claim says")
  parser.add_argument(
      "--jobs", type=number(int, at_least=1),
      help="runs at a time; by default one for each core or GPU")
  parser.add_argument(
      "--workdir", type=Path, default=Path("runs/claims"), help="the runs' folders")
  parser.add_argument("--all", action="store_true", help="every experiment that states a claim")
  parser.add_argument(
      "--stale", action="store_true",
      help="only claims whose config or code changed since the result")
  parser.add_argument(
      "--list", action="store_true", help="show the claims and their results, run nothing")
  parser.add_argument("--canary", action="store_true", help=(
      "rehearse every arm and compare its last losses with the record's, or store them where it"
      " has none"))
  parser.add_argument(
      "--store", action="store_true",
      help="with --canary: store the losses in place of the record's")
  return parser


def _choose(specs: Sequence[str], *, all_of_them: bool) -> list[tuple[Experiment, str]]:
  """Loads the experiments.

  Args:
    specs: "path/to/file.py" or "path/to/file.py:argument".
    all_of_them: whether all installed experiments that state claims are meant.
  Returns: (experiment, its argument or "") for each.
  Raises: ValueError if none is named, or as declaration.load.
  """
  if all_of_them:
    files = config_lib.installed_experiments().values()
    return [
        (declaration.load(str(f)), "") for f in files
        if hasattr(config_lib.load_experiment(f), "CLAIMS")]
  if not specs:
    raise ValueError("Say which claims: experiments/NAME.py, --all, --stale or --list.")
  return [(declaration.load(spec), spec.partition(":")[2]) for spec in specs]


def _line(experiment: Experiment, name: str) -> list[str]:
  """Makes a claim's row for --list: name, verdict, date, and what changed since."""
  record = results.read(experiment, name)
  changed = results.shorten(results.stale(experiment, name))
  return [
      f"{experiment.name}/{name}",
      *((record["verdict"], record["date"][:10]) if record else ("", "")), changed]


if __name__ == "__main__":
  sys.exit(main())
