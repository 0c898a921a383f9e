"""Trains one arm of a claim, or its first stages, with one seed, in a folder.

It is the process that rl_reason.claims.runs starts. On a CPU the environment variable
RL_REASON_CORES holds the numbers of the cores that it may use.
"""

import argparse
import fcntl
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import IO

from rl_reason.reporting import exits


def main() -> None:
  """Parses the command line, limits the process to its cores, and trains."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in ("experiment", "claim", "arm", "digest"):
    parser.add_argument(f"--{name}", required=True)
  parser.add_argument("--seed", type=int, required=True)
  parser.add_argument(
      "--stages", type=int, default=0, help="how many of its first stages, 0 for all")
  parser.add_argument("--folder", type=Path, required=True)
  parser.add_argument(
      "--begins", type=Path, help="the folder of the run whose stages it takes over")
  args = parser.parse_args()

  # The cores are set before JAX is imported: JAX makes a thread for each core that it sees.
  if os.environ.get("RL_REASON_CORES") and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, os.environ["RL_REASON_CORES"].split(",")))
  threading.Thread(target=_end_with_parent, daemon=True).start()
  with exits.with_status(), _alone(args.folder):
    sys.exit(work(
        args.experiment, args.claim, args.arm, args.seed, args.stages, args.digest, args.folder,
        args.begins))


def work(
    experiment: str, claim: str, arm: str, seed: int, stages: int, digest: str, folder: Path,
    begins: Path | None,
) -> int:
  """Trains, and leaves finished.json or failed.json in the folder.

  Args:
    experiment: path of the experiment's file, with its argument after a ":" if any.
    claim: name of the claim.
    arm: name of the arm.
    seed: the run's seed.
    stages: how many of the first stages are trained; 0: all.
    digest: the run's digest when it was planned.
    folder: the run's folder.
    begins: folder of the run whose stages this one takes over; None: it trains all stages itself.
  Returns: the exit status: 0 if the run is finished, one of folder.STOPPED if a signal stopped it.
  Raises: whatever the training raises; the error is in failed.json.
  """
  # Imported here: these import JAX, which must come after `main` has set the cores.
  from rl_reason import train
  from rl_reason.claims import declaration
  from rl_reason.claims.folder import FAILED, FINISHED, read_json, SECONDS, take_over
  from rl_reason.claims.plan import first_stages, plan
  from rl_reason.run.process import start
  from rl_reason.run.workdir import Workdir

  started, record = time.time(), Workdir(folder)
  try:
    # Plan the run again, from the files as they are now. Another digest means another run.
    start()
    loaded = declaration.load(experiment)
    planned = [first_stages(r, stages) if stages else r
               for r in plan(loaded, claim, seed + 1, folder, experiment.partition(":")[2])
               if (r.arm, r.seed) == (arm, seed)]
    if not planned or planned[0].digest != digest:
      raise ValueError(
          f"{experiment}, or code that it depends on, changed while the claim was running: start"
          " the same command again.")

    # The run's config, and the stages that another run has trained.
    config = loaded.configs[claim][arm]
    with config.unlocked():
      config.seed = seed
    config = declaration.leading(config, stages) if stages else config
    if begins:
      take_over(begins, record, declaration.to_json(config))

    # Train. The log is a file, so the progress is shown as lines.
    stop = exits.StopRequest()
    if train.train(config, folder, plain=True, stop=stop) is None:
      return stop.status
    record.write(FINISHED, {"digest": digest})
    return 0
  except Exception as error:  # pylint: disable=broad-except
    # Any error ends this run only, and not the claim; the log has the traceback.
    record.write(FAILED, {"error": f"{type(error).__name__}: {error}"})
    raise
  finally:
    record.write(SECONDS, [*(read_json(folder / SECONDS) or []), time.time() - started])


def _end_with_parent() -> None:
  """Stops this process when its parent ends.

  A parent that is killed cannot send a signal. But its end of the pipe closes, which ends the read
  here, and the run saves and stops.
  """
  # Not through sys.stdin, whose lock this thread would still hold when Python ends.
  os.read(0, 1)
  os.kill(os.getpid(), signal.SIGTERM)


def _alone(folder: Path) -> IO[str]:
  """Waits until no other process works at this run: one whose parent was killed may still save.

  Returns: the locked file; closing it ends the lock.
  """
  file = (folder / "lock").open("w")
  fcntl.flock(file, fcntl.LOCK_EX)
  return file


if __name__ == "__main__":
  main()
