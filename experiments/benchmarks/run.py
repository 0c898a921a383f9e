"""Times a GRPO step of rl_reason, TRL and Tunix side by side, with equal models and prompts.

    make benchmark                                            # All shapes; hours on two cores.
    make benchmark ARGS="--shapes=a,d --rounds=3 --systems=ours,trl"
    python -m rl_reason.experiments.benchmarks.table experiments/benchmarks/results/<machine>.json

All systems have the same model, prompts and lengths of completions. Each runs in a process and an
environment of its own. All processes stay alive, and one computes at a time. It computes whole
steps, in rounds (ours, trl, tunix, the machine's limits, ours, ...), so that whatever else the
machine does slows all systems equally. Results are written after each shape; the same command
continues a run that was stopped. What is the same for all systems is in shapes.py, and what is
particular to a system in its worker's docstring.
"""

import argparse
from collections.abc import Mapping
import contextlib
import dataclasses
import datetime
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from rl_reason.experiments.benchmarks import shapes, table
from rl_reason.reporting import provenance

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "rl_reason.experiments.benchmarks"
COMMANDS = {
    "ours": [sys.executable, "-m", f"{MODULE}.worker_ours"],
    "trl": [str(ROOT / ".venv-bench-trl/bin/python"), str(HERE / "worker_trl.py")],
    "tunix": [str(ROOT / ".venv-bench-tunix/bin/python"), str(HERE / "worker_tunix.py")],
    "machine": [sys.executable, "-m", f"{MODULE}.worker_machine"],
}
# Systems with a compilation cache: their first step is measured without the cache and with it.
COMPILED = ("ours", "tunix")


class WorkerFailed(Exception):
  """A worker ended by itself; the message holds the last lines of its log."""


class Worker:
  """A process that runs one step when it is asked to.

  system: a key of COMMANDS.
  """

  def __init__(self, system: str, arguments: list[str], *, log: Path, cache: Path | None = None):
    """Starts the process.

    Args:
      system: a key of COMMANDS.
      arguments: further words of the command.
      log: the file for what the process prints.
      cache: folder of the compilation cache; None: there is no cache.
    Raises: WorkerFailed if the system's environment is not there.
    """
    self.system, self._log = system, log
    # On a GPU several processes share the memory, so none may allocate most of it at the start.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    # Our packages are for our interpreter only.
    if system in ("trl", "tunix"):
      environment.pop("PYTHONPATH", None)
    else:
      environment["PYTHONPATH"] = os.pathsep.join(
          filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if cache is not None:
      environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    self._started = time.perf_counter()
    try:
      with log.open("w") as errors:
        # It has its own session: Ctrl-C reaches only this process, which then ends the workers.
        self._process = subprocess.Popen(
            [*COMMANDS[system], *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True, cwd=ROOT, env=environment, start_new_session=True)
    except OSError as error:
      raise WorkerFailed(f"{error}: run `make benchmark`, which makes its environment") from error

  def first_step(self) -> dict[str, Any]:
    """Runs the first step, and times everything from the start of the process to the step's end.

    That includes imports, loading and compilation.
    """
    self._ask()
    ready = self._answer()
    step = self._answer()
    return {**ready, "first_step": {
        "seconds": time.perf_counter() - self._started,
        "import_seconds": ready["import_seconds"], "peak_mb": step["peak_mb"]}}

  def step(self) -> dict[str, Any]:
    """Runs a step. Returns its numbers (channel.Channel.answer). Raises: WorkerFailed."""
    self._ask()
    return self._answer()

  def _ask(self) -> None:
    # A worker that ended has no pipe. Then it gives no answer either, and `_answer` reports why.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write("step\n")
      self._process.stdin.flush()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      lines = [
          x for x in self._log.read_text(errors="replace").splitlines() if x.strip()][-5:]
      killed = " (killed: out of memory?)" if code == -signal.SIGKILL else ""
      raise WorkerFailed(f"exit status {code}{killed}; {self._log} ends:\n" + "\n".join(lines))
    return json.loads(line)

  def stop(self) -> None:
    """Ends the process: at once if it waits, after 3 s if it is in the middle of a step."""
    with contextlib.suppress(OSError):
      self._process.stdin.close()  # A waiting worker ends at the end of its input.
    try:
      self._process.wait(timeout=3)
    except subprocess.TimeoutExpired:  # In the middle of a step.
      os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()


@dataclasses.dataclass
class Benchmark:
  """The measurement of one shape.

  name: the shape's name.
  systems: the systems that are measured.
  rounds: measured steps of each system.
  folder: the folder for models, logs and caches.
  """
  name: str
  systems: tuple[str, ...]
  rounds: int
  folder: Path

  def run(self) -> dict[str, Any]:
    """Starts the systems, then measures in rounds. Returns the shape's entry in the results."""
    # The files that all systems load.
    shape, directory = shapes.SHAPES[self.name], self.folder / self.name
    say(f"Shape {self.name}: {shape['title']}")
    subprocess.run(
        [sys.executable, "-m", f"{MODULE}.inputs", f"--shape={self.name}",
         f"--directory={directory}"],
        check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    result = dict(
        shape=shape, systems={name: dict(rounds=[]) for name in self.systems}, machine=[])
    with contextlib.ExitStack() as exits:
      # The first step of each system, and of what measures the machine.
      workers = {}
      for system in self.systems:
        with self._reported(result["systems"][system], system, workers):
          workers[system] = self._start(system, directory, result["systems"][system], exits)
      machine = Worker("machine", [], log=self._log("machine"))
      exits.callback(machine.stop)
      machine.first_step()

      # The rounds. One more comes first and is not counted: some systems compile again in their
      # second step.
      for index in range(-1, self.rounds):
        for system in list(workers):
          entry = result["systems"][system]
          with self._reported(entry, system, workers):
            step = workers[system].step()
            say(
                f"  round {index + 1}/{self.rounds}  {system:6} {step['seconds']:8.2f} s "
                f" {step['generated']} tokens")
            if index < 0:
              entry["second_step"] = step
            else:
              entry["rounds"].append(step)
        limits = machine.step()
        if index >= 0:
          result["machine"].append({k: limits[k] for k in ("gflops", "gigabytes")})
    return result

  def _start(self, system, directory, entry, exits) -> Worker:
    """Starts a worker and runs its first step.

    `entry` gets that step's numbers, without and with a compilation cache if the system has one.
    """
    # Without programs in the cache: a worker of its own, which fills it.
    cache = self.folder / "compiled" / self.name / system if system in COMPILED else None
    if cache is not None:
      shutil.rmtree(cache, ignore_errors=True)
      worker = Worker(
          system, [self.name, str(directory)], log=self._log(f"{system}-cold"), cache=cache)
      with contextlib.closing(_Stopped(worker)):
        entry["first_step"] = worker.first_step()["first_step"]
      say(f"  {system:6} first step after {entry['first_step']['seconds']:.1f} s")

    # The worker of the rounds.
    worker = Worker(system, [self.name, str(directory)], log=self._log(system), cache=cache)
    exits.callback(worker.stop)
    first = worker.first_step()
    entry.update(versions=first["versions"], device=first["device"])
    entry["first_step" if cache is None else "first_step_cached"] = first["first_step"]
    say(
        f"  {system:6} first step after {first['first_step']['seconds']:.1f} s"
        f"{' (cached)' * (cache is not None)}")
    return worker

  def _log(self, name: str) -> Path:
    path = self.folder / "logs" / f"{self.name}-{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  @contextlib.contextmanager
  def _reported(self, entry, system, workers):
    """Reports and records a system's failure; the others go on without the system."""
    try:
      yield
    except WorkerFailed as error:
      entry["failure"] = str(error)
      workers.pop(system, None)
      say(f"  {system} failed: {error}")


@dataclasses.dataclass
class _Stopped:
  """Gives a worker a method `close`, for contextlib.closing."""
  worker: Worker

  def close(self) -> None:
    self.worker.stop()


def say(text: str) -> None:
  print(text, flush=True)


def write(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file, which is there whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(content, indent=1) + "\n")
  partial.replace(path)


def names(known):
  """Makes a parser of names with commas between, for argparse; unknown names are an error."""
  def parse(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = set(chosen) - set(known)
    if unknown:
      raise argparse.ArgumentTypeError(
          f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return chosen
  return parse


def main() -> None:
  """Measures the shapes, and writes the results after each."""
  # The command line.
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shapes", type=names(shapes.SHAPES), default=shapes.DEFAULT)
  parser.add_argument("--systems", type=names(shapes.SYSTEMS), default=shapes.SYSTEMS)
  parser.add_argument("--rounds", type=int, default=5, help="measured steps of each system")
  parser.add_argument(
      "--folder", type=Path, default=ROOT / "runs/benchmark", help="models, logs and caches")
  parser.add_argument("--results", type=Path, help="the JSON file, if not results/<machine>.json")
  args = parser.parse_args()
  if not 1 <= args.rounds <= shapes.MAX_STEPS - 2:
    parser.error(f"--rounds must be between 1 and {shapes.MAX_STEPS - 2}, got {args.rounds}")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))

  # Imported here: a user who only asks for --help need not wait for JAX.
  import jax

  # The results so far: those of other shapes stay, and an equal command that was stopped goes on.
  machine = provenance.machine(jax.devices()[0].device_kind)
  path = args.results or HERE / "results" / f"{machine['kind']}.json"
  results = json.loads(path.read_text()) if path.exists() else {}
  results = dict(
      machine=machine, shapes=results.get("shapes", {}), unfinished=results.get("unfinished"))
  command = dict(
      shapes=list(args.shapes), systems=list(args.systems), rounds=args.rounds,
      commit=provenance.commit(ROOT))
  left = list(args.shapes)
  if results["unfinished"] and results["unfinished"]["command"] == command:
    left = results["unfinished"]["left"]
    say(f"Continuing with {', '.join(left)}.")

  # The shapes, one after the other.
  try:
    while left:
      started = datetime.datetime.now(datetime.UTC)
      result = Benchmark(left[0], args.systems, args.rounds, args.folder.resolve()).run()
      results["shapes"][left.pop(0)] = dict(
          command=" ".join(["python -m", f"{MODULE}.run", *sys.argv[1:]]),
          commit=command["commit"], date=started.isoformat(timespec="seconds"), **result)
      results["shapes"] = {name: results["shapes"][name] for name in sorted(results["shapes"])}
      results["unfinished"] = dict(command=command, left=left) if left else None
      write(path, results)
  except KeyboardInterrupt:
    sys.exit(
        "Stopped; shapes that were complete are written, and the same command continues with the"
        " others.")
  say(f"\n{table.render(results)}\nWritten to {path}.")


if __name__ == "__main__":
  main()
