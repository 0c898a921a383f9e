"""Runs a claim's arms over seeds, side by side, each in a process and a folder of its own.

A run that was killed is resumed.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
import signal
import subprocess
import sys
import time

from rl_reason.claims.folder import FAILED, outcome, STOPPED
from rl_reason.claims.plan import distinct, Run, with_beginnings
from rl_reason.reporting import exits, provenance
from rl_reason.reporting.progress import Progress
from rl_reason.run.workdir import Workdir

# How long a worker may take to finish its step and save, when it is asked to stop.
_STOP_SECONDS = 120


def slots(jobs: int | None, count: int) -> list[dict[str, str]]:
  """Returns the environment variables of each of the workers that run at a time.

  On a CPU each worker gets its share of the cores, and there is one worker a core if `jobs` is
  None. The matrix products of one run would keep all cores busy, but its imports, compilation,
  rewards and much of the sampling keep only one busy. With several GPUs the workers get one each,
  in order. On other accelerators one worker has all devices.

  Args:
    jobs: number of workers; None: as many as there are cores or GPUs.
    count: number of runs; no more workers than that are made.
  """
  backend, devices = devices_here()
  cores = provenance.cores()
  everywhere = {"cpu": len(cores), "gpu": devices}.get(backend, 1)
  jobs = max(1, min(jobs or everywhere, count))
  if backend == "gpu":
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
    one = [v for v in visible.split(",") if v]
    # Several workers may share a GPU, so none may allocate most of its memory at the start.
    return [
        {"CUDA_VISIBLE_DEVICES": one[i % len(one)], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        for i in range(jobs)]
  if backend != "cpu":
    return [{}] * jobs
  # With more workers than cores a share may be empty: such a worker may use all cores.
  shares = [
      cores[i * len(cores) // jobs:(i + 1) * len(cores) // jobs] or cores for i in range(jobs)]
  return [{"RL_REASON_CORES": ",".join(map(str, share))} for share in shares]


def devices_here() -> tuple[str, int]:
  """Finds the devices here, in a process of its own.

  This process must not hold an accelerator that its workers need.

  Returns: (JAX's backend, number of devices).
  Raises: ValueError if JAX finds no device.
  """
  code = "import jax; print(jax.default_backend(), jax.local_device_count())"
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  if found.returncode:
    raise ValueError(f"JAX finds no device here: {found.stderr.strip().splitlines()[-1:]}.")
  backend, devices = found.stdout.split()[-2:]
  return backend, int(devices)


def run_all(
    runs: Sequence[Run], jobs: int | None, progress: Progress, *, poll_seconds: float = 0.5,
) -> None:
  """Trains all runs that are not finished.

  A run that fails is reported, and the others go on, except those that should begin from it. At a
  signal every worker saves and stops after its current step; a second signal ends them at once.

  Args:
    runs: what to train.
    jobs: as in `slots`.
    progress: shows the steps of all runs together.
    poll_seconds: how often the workers are looked at.
  Raises: exits.Stopped, once the workers have ended, if Ctrl-C or SIGTERM stopped them.
  """
  # What is to do, and where it can run.
  runs = with_beginnings(distinct(runs))
  waiting = [r for r in runs if outcome(r).status != "finished"]
  if not waiting:
    return
  free, workers = slots(jobs, len(waiting)), {}
  progress.note(
      f"{len(waiting)} of {len(runs)} runs to do, {len(free)} at a time, in {runs[0].workdir}.")
  begun = {r: r.done() for r in runs}
  progress.stage("claims", sum(r.num_steps for r in runs), sum(begun.values()))
  try:
    with exits.interrupting():
      while waiting or workers:
        # Runs whose beginning failed fail too: they would wait for ever.
        for run in [r for r in waiting if _cannot_begin(r, [*waiting, *workers])]:
          waiting.remove(run)
          Workdir(run.folder).write(FAILED, {"error": f"it begins from {describe(run.begins)}"})
          progress.note(describe(run))
        # A free slot takes the first run whose beginning, if it has one, is finished.
        while free and (ready := [
            r for r in waiting
            if r.begins is None or outcome(r.begins).status == "finished"]):
          waiting.remove(ready[0])
          workers[ready[0]] = Worker(ready[0], free.pop())
        # Workers that ended give their slot back.
        for run, worker in list(workers.items()):
          begun[run] = run.done()
          if worker.process.poll() is not None:
            free.append(worker.slot)
            del workers[run]
            worker.finish()
            progress.note(describe(run))
        progress.update(sum(begun.values()), {})
        time.sleep(poll_seconds)
  except KeyboardInterrupt:
    progress.note(
        f"Stopping {len(workers)} runs after their current steps; again Ctrl-C ends them at once.")
    raise
  finally:
    _stop(list(workers.values()))


def _cannot_begin(run: Run, under_way: Sequence[Run]) -> bool:
  """Whether a run begins from one that is neither finished nor among those under way."""
  return (
      run.begins is not None and run.begins not in under_way
      and outcome(run.begins).status != "finished")


def describe(run: Run) -> str:
  """Says in a line how a run ended."""
  found = outcome(run)
  end = {"finished": f"finished after {found.seconds:.0f} s", "failed": f"failed: {found.error}",
         "stopped": "stopped early; the same command continues it"}[found.status]
  return f"{run.label}, seed {run.seed}: {end}"


class Worker:
  """A process that trains one run. It stops when this process ends, however this one ends.

  run: what it trains.
  slot: environment variables that limit it to its devices or cores.
  process: the process.
  """

  def __init__(self, run: Run, slot: Mapping[str, str]):
    self.run, self.slot = run, slot
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILED).unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "rl_reason.claims.worker", f"--experiment={run.experiment}",
        f"--claim={run.claim}", f"--arm={run.arm}", f"--seed={run.seed}",
        f"--digest={run.digest}", f"--folder={run.folder}",
        f"--stages={len(run.config['stages']) if run.leading else 0}",
        *([f"--begins={run.begins.folder}"] if run.begins else [])]
    with (run.folder / "log.txt").open("a") as log:
      # The worker has a session of its own: Ctrl-C reaches only this process, which then stops the
      # workers. Nothing is ever written to the pipe: it closes when this process ends, which the
      # worker notices.
      self.process = subprocess.Popen(
          command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
          env={**os.environ, **slot}, start_new_session=True)

  def finish(self) -> None:
    """Records why the worker ended, where it could not do so itself.

    That is so if it was killed, or failed before the run began.
    """
    self.process.stdin.close()
    by_signal = self.process.returncode in (*STOPPED, -signal.SIGTERM)
    if self.process.returncode and not by_signal and outcome(self.run).status == "stopped":
      killed = self.process.returncode == -signal.SIGKILL
      lines = [
          x for x in (self.run.folder / "log.txt").read_text(errors="replace").splitlines()
          if x.strip()]
      # The system kills a process when memory runs out. Otherwise the log's last line is the error.
      Workdir(self.run.folder).write(FAILED, {
          "error": "killed: out of memory?" if killed else
          f"exit status {self.process.returncode}: {' '.join(lines[-1:])}"})


def _stop(workers: Sequence[Worker]) -> None:
  """Asks all workers to save and stop, and waits for them.

  After another signal, or after _STOP_SECONDS, it ends them at once.
  """
  for worker in workers:
    with contextlib.suppress(ProcessLookupError):
      worker.process.send_signal(signal.SIGTERM)
  try:
    with exits.interrupting():
      end = time.monotonic() + _STOP_SECONDS
      for worker in workers:
        worker.process.wait(timeout=max(0.1, end - time.monotonic()))
  except (KeyboardInterrupt, subprocess.TimeoutExpired):
    for worker in workers:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
      worker.process.wait()
