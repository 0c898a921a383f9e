"""Runs of a claim's arms over seeds: each in a process and a folder of its own, side by side, resumed after a kill."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Literal

from rl_reason import metrics, provenance
from rl_reason.claims import declaration, dependencies
from rl_reason.claims.worker import STOPPED
from rl_reason.progress import Progress
from rl_reason.run import Workdir

# What a worker leaves in its run's folder.
FINISHED, FAILED, SECONDS, BEGAN = "finished.json", "failed.json", "seconds.json", "began.json"
_STOP_SECONDS = 120  # For a worker to save after the step that it is in.


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

  @property
  def num_steps(self) -> int:
    return sum(self.config[stage]["num_steps"] for stage in self.config["stages"])

  def done(self) -> int:
    """Steps in metrics.jsonl, of all stages."""
    with contextlib.suppress(FileNotFoundError):
      lines = metrics.read_metrics(self.folder)
      if lines:
        stages = list(self.config["stages"])
        before = stages[:stages.index(lines[-1]["stage"])] if lines[-1]["stage"] in stages else []
        return sum(self.config[s]["num_steps"] for s in before) + lines[-1]["step"]
    return 0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended: finished; failed: `error` says why, it is tried again by the next command; stopped: by a signal."""
  status: Literal["finished", "failed", "stopped"]
  error: str = ""
  seconds: float = 0.0


def outcome(run: Run) -> Outcome:
  """Of a run that no worker is at."""
  spent = seconds(run.folder)
  if (run.folder / FINISHED).exists():
    return Outcome("finished", seconds=spent)
  failed = read_json(run.folder / FAILED)
  return Outcome("failed", failed["error"], spent) if failed else Outcome("stopped", seconds=spent)


def seconds(folder: Path) -> float:
  """Of all processes that worked in a run's folder."""
  return sum(read_json(folder / SECONDS) or [])


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


def take_over(begins: Path, record: Workdir, config: Mapping[str, Any]) -> None:
  """Puts what a finished run of the first stages left into a run's folder, as if this one had trained them.

  A run that has begun by itself goes on so. Its metrics come last and at once: without them there is nothing of its own.
  """
  metrics_file = record.path / "metrics.jsonl"
  if metrics_file.exists() and metrics_file.stat().st_size:
    return
  for name in ("checkpoints", "samples"):
    shutil.rmtree(record.path / name, ignore_errors=True)
    shutil.copytree(begins / name, record.path / name)
  record.write("config.json", config)
  record.write(BEGAN, {"folder": str(begins.absolute())})
  shutil.copyfile(begins / "metrics.jsonl", partial := metrics_file.with_suffix(".partial"))
  partial.replace(metrics_file)


def lineage(folder: Path) -> Iterator[Path]:
  """A run's folder, and those that its stages were taken from."""
  folder = folder.absolute()
  while True:
    yield folder
    began = read_json(folder / BEGAN)
    if began is None:
      return
    folder = Path(began["folder"])


def slots(jobs: int | None, count: int) -> list[dict[str, str]]:
  """The environment of each of the workers that run at a time.

  On a CPU each gets its share of the cores, one job a core if `jobs` is None: matrix products of one run would keep all
  busy, but its imports, compilation, rewards and much of the sampling keep one. With GPUs each gets one, in turn; on other
  accelerators one job has all devices.

  Args:
    jobs: None for as many as there are cores or devices. count: runs there are; no more jobs are useful.
  """
  backend, devices = devices_here()
  cores = provenance.cores()
  everywhere = {"cpu": len(cores), "gpu": devices}.get(backend, 1)
  jobs = max(1, min(jobs or everywhere, count))
  if backend == "gpu":
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
    one = [v for v in visible.split(",") if v]
    return [{"CUDA_VISIBLE_DEVICES": one[i % len(one)], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} for i in range(jobs)]
  if backend != "cpu":
    return [{}] * jobs
  shares = [cores[i * len(cores) // jobs:(i + 1) * len(cores) // jobs] or cores for i in range(jobs)]
  return [{"RL_REASON_CORES": ",".join(map(str, share))} for share in shares]


def devices_here() -> tuple[str, int]:
  """(JAX's backend, devices), found by a process of its own: this one must hold no accelerator that its workers need."""
  code = "import jax; print(jax.default_backend(), jax.local_device_count())"
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  if found.returncode:
    raise ValueError(f"JAX finds no device here: {found.stderr.strip().splitlines()[-1:]}.")
  backend, devices = found.stdout.split()[-2:]
  return backend, int(devices)


def run_all(runs: Sequence[Run], jobs: int | None, progress: Progress, *, poll_seconds: float = 0.5) -> bool:
  """Trains what is not finished. Returns true when nothing is left to run, false if Ctrl-C or SIGTERM stopped it.

  A run that fails is told, and the others go on, but for those that were to begin from it. At a signal every worker saves
  and stops after its current step; a second one ends them at once.
  """
  runs = with_beginnings(distinct(runs))
  waiting = [r for r in runs if outcome(r).status != "finished"]
  if not waiting:
    return True
  free, workers = slots(jobs, len(waiting)), {}
  progress.note(f"{len(waiting)} of {len(runs)} runs to do, {len(free)} at a time, in {runs[0].workdir}.")
  begun = {r: r.done() for r in runs}
  progress.stage("claims", sum(r.num_steps for r in runs), sum(begun.values()))
  try:
    with _signals_interrupt():
      while waiting or workers:
        for run in [r for r in waiting if _cannot_begin(r, [*waiting, *workers])]:
          waiting.remove(run)
          Workdir(run.folder).write(FAILED, {"error": f"it begins from {describe(run.begins)}"})
          progress.note(describe(run))
        while free and (ready := [r for r in waiting if r.begins is None or outcome(r.begins).status == "finished"]):
          waiting.remove(ready[0])
          workers[ready[0]] = Worker(ready[0], free.pop())
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
    progress.note(f"Stopping {len(workers)} runs after their current steps; again Ctrl-C ends them at once.")
    return False
  finally:
    _stop(list(workers.values()))
  return True


def _cannot_begin(run: Run, under_way: Sequence[Run]) -> bool:
  return run.begins is not None and run.begins not in under_way and outcome(run.begins).status != "finished"


def describe(run: Run) -> str:
  found = outcome(run)
  end = {"finished": f"finished after {found.seconds:.0f} s", "failed": f"failed: {found.error}",
         "stopped": "stopped early; the same command continues it"}[found.status]
  return f"{run.label}, seed {run.seed}: {end}"


class Worker:
  """A process that trains one run, and stops when this one ends, however it ends."""

  def __init__(self, run: Run, slot: Mapping[str, str]):
    self.run, self.slot = run, slot
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILED).unlink(missing_ok=True)
    command = [sys.executable, "-m", "rl_reason.claims.worker", f"--experiment={run.experiment}", f"--claim={run.claim}",
               f"--arm={run.arm}", f"--seed={run.seed}", f"--digest={run.digest}", f"--folder={run.folder}",
               f"--stages={len(run.config['stages']) if run.leading else 0}",
               *([f"--begins={run.begins.folder}"] if run.begins else [])]
    with (run.folder / "log.txt").open("a") as log:
      # A session of its own: Ctrl-C is for this process, which then stops the workers. The pipe is never written to; it
      # ends when this process does.
      self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                      env={**os.environ, **slot}, start_new_session=True)

  def finish(self) -> None:
    """Notes why it ended, where it could not do so itself: it was killed, or failed before it began."""
    self.process.stdin.close()
    by_signal = self.process.returncode in (STOPPED, -signal.SIGTERM)
    if self.process.returncode and not by_signal and outcome(self.run).status == "stopped":
      killed = self.process.returncode == -signal.SIGKILL
      lines = [x for x in (self.run.folder / "log.txt").read_text(errors="replace").splitlines() if x.strip()]
      Workdir(self.run.folder).write(FAILED, {"error": "killed: out of memory?" if killed else
                                              f"exit status {self.process.returncode}: {' '.join(lines[-1:])}"})


def _stop(workers: Sequence[Worker]) -> None:
  """Asks all to save and stop, and waits; ends them at once after another signal, or when they take too long."""
  for worker in workers:
    with contextlib.suppress(ProcessLookupError):
      worker.process.send_signal(signal.SIGTERM)
  try:
    with _signals_interrupt():
      end = time.monotonic() + _STOP_SECONDS
      for worker in workers:
        worker.process.wait(timeout=max(0.1, end - time.monotonic()))
  except (KeyboardInterrupt, subprocess.TimeoutExpired):
    for worker in workers:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
      worker.process.wait()


@contextlib.contextmanager
def _signals_interrupt():
  """Ctrl-C and SIGTERM raise KeyboardInterrupt, also where the process was started with Ctrl-C ignored, as in a script's
  background."""
  def interrupt(number, frame):
    raise KeyboardInterrupt
  before = {}
  with contextlib.suppress(ValueError):  # Signals belong to the main thread.
    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def read_json(path: Path) -> Any:
  """What a JSON file holds, None if there is none."""
  return json.loads(path.read_text()) if path.exists() else None
