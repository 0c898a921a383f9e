"""Reports what an installation lacks, and what to do about it.

    python -m rl_reason.doctor            # Or: rl-reason doctor
    python -m rl_reason.doctor --json     # The same for a bug report.

The exit status is 1 if something is missing that is needed. Everything here imports the standard
library only. What may be broken is tried in processes of its own: a JAX that cannot be imported,
or a plugin that ends its process or hangs, becomes a line of the report.
"""

# With it a Python that is too old can still read this file, and report that it is too old.
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import rl_reason
from rl_reason.config.command_line import Parser
from rl_reason.reporting import exits, provenance
from rl_reason.sandbox import pool

OLDEST_PYTHON = (3, 11)
# Package -> module, where the name to import is not the package's.
IMPORT_NAMES = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax.checkpoint",
}
# Extra of setup.py -> what pip installs for it, packages of which one is then there, its purpose.
EXTRAS = {
    "cuda": ("jax[cuda13]", ("jax-cuda13-plugin", "jax-cuda12-plugin"), "NVIDIA GPUs"),
    "tpu": ("jax[tpu]", ("libtpu",), "TPUs"),
    "tensorboard": ("tensorboardX>=2.6", ("tensorboardX",), "logging.tensorboard"),
    "wandb": ("wandb>=0.17", ("wandb",), "logging.wandb"),
}
GIB = 1024**3

# The probe's program: it imports the modules that it is given, then asks JAX for its devices. It
# prints one JSON object a line, and one before each step, so that a step which ends the process is
# known.
_PROBE = r"""
import importlib, json, sys
sys.path[:], modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])
out = sys.stdout
sys.stdout = sys.stderr  # What a module prints while it is imported is no part of the answer.
def say(**message):
  print(json.dumps(message), file=out, flush=True)
def attempt(step, function):
  say(begin=step)
  try:
    say(done=step, value=function())
  except BaseException as error:
    say(done=step, error=f"{type(error).__name__}: {error}"[:600])
def devices():
  import jax
  found = []
  for d in jax.local_devices():
    try:
      stats = d.memory_stats() or {}
    except Exception:
      stats = {}
    found.append(dict(platform=d.platform, kind=d.device_kind, bytes=stats.get("bytes_limit")))
  return found
def cache():
  import os, jax
  if not jax.config.jax_enable_compilation_cache:
    return None
  from rl_reason.runtime import compilation
  return str(jax.config.jax_compilation_cache_dir or compilation.programs_folder())
for module in modules:
  attempt(module, lambda: importlib.import_module(module) and None)
attempt("devices", devices)
attempt("cache", cache)
"""


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the report.

  section: the heading that the line stands under.
  name: what was looked at.
  value: what was found.
  status: "ok"; "look" if something optional is absent or odd; "missing" if something is absent that
    is needed.
  cure: what to do, where the status is not "ok".
  """
  section: str
  name: str
  value: str
  status: str = "ok"
  cure: str = ""


def examine() -> Iterator[Finding]:
  """Looks at everything, and yields each finding at once: some looks take seconds."""
  root = checkout()
  probed = probe([needed.module for needed in requirements(root)])
  for look in (
      lambda: look_at_versions(root, probed),
      lambda: look_at_devices(probed),
      look_at_machine,
      look_at_extras,
      lambda: look_at_folders(probed),
      look_at_sandbox,
      lambda: look_at_checkout(root),
  ):
    yield from look()


# Versions


def checkout() -> Path | None:
  """Finds the root of the checkout or copied tree that this file is part of; None in a wheel."""
  root = Path(__file__).resolve().parents[1]
  return root if (root / "setup.py").is_file() and (root / "requirements.txt").is_file() else None


@dataclasses.dataclass(frozen=True)
class Requirement:
  """A line of requirements.txt: package[extra]>=oldest.

  line: the whole line, as pip takes it.
  package: the package's name, without extras.
  oldest: the oldest version that is enough.
  """
  line: str
  package: str
  oldest: str

  @property
  def module(self) -> str:
    """The name that it is imported by."""
    return IMPORT_NAMES.get(self.package, self.package.replace("-", "_"))


def requirements(root: Path | None) -> list[Requirement]:
  """Lists what the library needs to run.

  Args:
    root: root of the checkout or copied tree; None: the installed package's metadata are read.
  Returns: the requirements, without those of extras; [] if they are not known.
  """
  if root is not None:
    lines = (root / "requirements.txt").read_text().splitlines()
  else:
    try:
      lines = importlib.metadata.requires("rl_reason") or []
    except importlib.metadata.PackageNotFoundError:
      lines = []
  found = []
  for line in lines:
    # Lines of an extra have a marker after a semicolon and do not match.
    match = re.fullmatch(r"\s*([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9.]+)\s*", line)
    if match:
      found.append(Requirement(line.strip(), match.group(1), match.group(2)))
  return found


def installed(package: str) -> str | None:
  """Returns a package's installed version, or None."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def as_numbers(version: str) -> tuple[int, ...]:
  """Returns the numbers that a version begins with: "0.12.0rc1" gives (0, 12, 0).

  That is enough to compare versions with >=.
  """
  return tuple(int(n) for n in re.match(r"[\d.]*", version).group().split(".") if n)


def look_at_versions(root: Path | None, probed: dict[str, Any]) -> Iterator[Finding]:
  """Looks at the versions of Python and of every package, and whether each can be imported.

  Args:
    root: as in `requirements`.
    probed: what `probe` found.
  """
  here = "Versions"
  python = platform.python_version()
  wanted = ".".join(map(str, OLDEST_PYTHON))
  if sys.version_info >= OLDEST_PYTHON:
    yield Finding(here, "python", f"{python}, at least {wanted} is needed")
  else:
    yield Finding(here, "python", f"{python}, at least {wanted} is needed", "missing",
                  f"install Python {wanted} or newer and make an environment with it")
  yield Finding(here, "rl_reason", f"{rl_reason.__version__}, in {Path(__file__).resolve().parent}")
  needed = requirements(root)
  if not needed:
    yield Finding(here, "requirements", "not known", "look",
                  "install the library with pip, or copy requirements.txt with the tree")
  if needed and (jaxlib := installed("jaxlib")):
    yield Finding(here, "jaxlib", jaxlib)
  for need in needed:
    version, trial = installed(need.package), probed.get(need.module, {})
    text = f"{version or 'not installed'}, at least {need.oldest} is needed"
    if version is None or as_numbers(version) < as_numbers(need.oldest):
      yield Finding(here, need.package, text, "missing", f'python -m pip install "{need.line}"')
    elif "error" in trial:
      yield Finding(
          here, need.package, f"{version}, and it cannot be imported: {trial['error']}", "missing",
          f'python -m pip install --force-reinstall "{need.line}"')
    else:
      yield Finding(here, need.package, text)


def probe(modules: Sequence[str], *, timeout_seconds: float = 300.0) -> dict[str, Any]:
  """Tries imports and devices in a process of its own.

  A step that ends the process, or hangs, is an error. The steps after it are tried in another
  process, without it.

  Args:
    modules: what to import.
    timeout_seconds: limit for each process.
  Returns: for each module, "devices" and "cache": {"value": ...} or {"error": text}.
  """
  found: dict[str, Any] = {}
  left = list(modules)
  while True:
    before = len(found)
    _probe_once(left, found, timeout_seconds)
    left = [m for m in left if m not in found]
    if "cache" in found or len(found) == before:
      return found


def _probe_once(modules: Sequence[str], found: dict[str, Any], timeout_seconds: float) -> None:
  """Runs the probe's program once, and adds to `found` the steps that it came to."""
  # The same import path as here, however the library was installed.
  root = str(Path(__file__).resolve().parents[1])
  program = _PROBE
  if "devices" in found:
    program = program.replace('attempt("devices", devices)', "")
  try:
    process = subprocess.run(
        [sys.executable, "-c", program, json.dumps([*sys.path, root]), json.dumps(list(modules))],
        # Otherwise the probe would take most of a GPU's memory for a moment.
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds)
    output, end = process.stdout, f"it ended its process with status {process.returncode}"
    if lines := process.stderr.strip().splitlines():
      end += f" ({lines[-1][:300]})"
  except subprocess.TimeoutExpired as error:
    output, end = error.stdout or b"", f"it did not end within {timeout_seconds:.0f} s"
    output = output.decode(errors="replace") if isinstance(output, bytes) else output

  # A step that began and has no end is the one that ended the process.
  current = None
  for line in output.splitlines():
    try:
      message = json.loads(line)
    except ValueError:
      continue  # The line was cut off when the process ended.
    if "begin" in message:
      current = message["begin"]
    else:
      found[message.pop("done")] = message
      current = None
  if current is not None:
    found[current] = {"error": end}


# Devices and the machine


def look_at_devices(probed: dict[str, Any]) -> Iterator[Finding]:
  """Looks at the devices that JAX sees, and at accelerators here that JAX does not use."""
  here = "Devices that JAX sees"
  for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
    if os.environ.get(name):
      yield Finding(here, name, f"{os.environ[name]!r} is set in the environment")
  trial = probed.get("devices", {"error": "they could not be asked for"})
  if "error" in trial:
    cure = "see the first thing that is missing above"
    if "error" not in probed.get("jax", {"error": ""}):
      cure = ("unset JAX_PLATFORMS, or set JAX_PLATFORMS=cpu to work without the accelerator; a"
              " plugin must be of jaxlib's own version: python -m pip install --upgrade"
              " \"jax[cuda13]\" or \"jax[tpu]\"")
    yield Finding(here, "devices", trial["error"], "missing", cure)
    return

  # One line for each kind of device. An accelerator that the system has and JAX does not use is
  # worth a look: a run would silently train on the CPU.
  kinds: dict[tuple, int] = {}
  for device in trial["value"]:
    key = device["platform"], device["kind"], device["bytes"]
    kinds[key] = kinds.get(key, 0) + 1
  for (name, kind, size), count in kinds.items():
    memory = f", {size / GIB:.1f} GiB that JAX may use on each" if size else ""
    yield Finding(here, name, f"{count} x {kind}{memory}")
  for seen, what, extra in (
      ("gpu", Path("/dev/nvidia0"), "cuda"), ("tpu", Path("/dev/accel0"), "tpu")):
    if what.exists() and seen not in {name for name, _, _ in kinds}:
      yield Finding(here, seen, f"{what} is there, and JAX does not use it", "look",
                    f'python -m pip install "{EXTRAS[extra][0]}", and JAX_PLATFORMS must not rule it'
                    " out")


def look_at_machine() -> Iterator[Finding]:
  """Looks at the processor, cores, memory and operating system."""
  machine = provenance.machine("cpu")
  yield Finding("Machine", "processor", machine["cpu"])
  yield Finding("Machine", "cores", f"{machine['cores']} may be used")
  yield Finding("Machine", "memory", f"{machine['memory_gb']} GiB")
  yield Finding("Machine", "system", machine["system"])


# Extras, folders, the sandbox, the checkout


def look_at_extras() -> Iterator[Finding]:
  for extra, (requirement, packages, purpose) in EXTRAS.items():
    found = [f"{package} {version}" for package in packages if (version := installed(package))]
    # An extra that is absent is no fault: its line says how to get it, for whoever wants it.
    value = found[0] if found else f'not installed: python -m pip install "{requirement}"'
    yield Finding("Extras", f"{extra}, for {purpose}", value)


def look_at_folders(probed: dict[str, Any]) -> Iterator[Finding]:
  """Looks at whether compiled programs and temporary files can be written."""
  # Compiled programs.
  here, name = "Folders", "compiled programs"
  trial = probed.get("cache", {"error": ""})
  if "error" in trial:
    yield Finding(here, name, "the folder is not known while JAX cannot be imported", "look",
                  "see the first thing that is missing above")
  elif trial["value"] is None:
    yield Finding(here, name, "are not kept: JAX_ENABLE_COMPILATION_CACHE says so")
  elif "://" in trial["value"]:
    yield Finding(here, name, f"{trial['value']}, which is not tried")
  else:
    error, text = writable(Path(trial["value"]))
    yield Finding(
        here, name, text, "look" if error else "ok",
        "set RL_REASON_CACHE or JAX_COMPILATION_CACHE_DIR to a folder that can be written; until"
        " then every run compiles anew" if error else "")

  # Temporary files. gettempdir itself raises where no folder can be written.
  try:
    folder = Path(tempfile.gettempdir())
    error, text = writable(folder)
  except OSError as problem:
    error, text = True, str(problem)
  yield Finding(here, "temporary files", text, "missing" if error else "ok",
                "set TMPDIR to a folder that can be written" if error else "")


def writable(folder: Path) -> tuple[bool, str]:
  """Tries to write into a folder, or into the one where it would be made.

  Returns: (whether that fails, a text for the report).
  """
  there = folder
  while not there.exists() and there != there.parent:
    there = there.parent
  try:
    with tempfile.TemporaryFile(dir=there):
      pass
    free = shutil.disk_usage(there).free / GIB
  except OSError as error:
    return True, f"{folder} cannot be written: {error}"
  return (
      False,
      f"{folder} can be {'written' if there == folder else 'made'}, {free:.1f} GiB are free")


def try_limits(item: dict[str, str]) -> dict[str, Any]:
  """Meets a limit of the sandbox, or returns the memory limit in bytes. It runs in a worker.

  Args:
    item: {"do": "wait"} is to be ended after the time limit, {"do": "allocate"} at the memory
      limit; anything else returns at once.
  """
  import resource
  import time
  if item["do"] == "wait":
    time.sleep(60)
  if item["do"] == "allocate":
    bytearray(4 * GIB)
  return {"memory": resource.getrlimit(resource.RLIMIT_AS)[0]}


def look_at_sandbox() -> Iterator[Finding]:
  """Looks at whether worker processes start, and whether their time and memory limits work."""
  here = "Sandbox"
  try:
    workers = pool.WorkerPool("rl_reason.doctor:try_limits", num_workers=1, timeout_seconds=2.0)
    try:
      settings, late, large = workers.map([{"do": "tell"}, {"do": "wait"}, {"do": "allocate"}])
    finally:
      workers.close()
  except Exception as error:
    yield Finding(here, "worker processes", _first_line(error), "missing",
                  "Linux or macOS is needed, and a limit on processes (ulimit -u) that leaves room")
    return
  yield Finding(here, "worker processes", "start, and answer")
  yield Finding(here, "time limit", *(
      ("ends a worker that is late",) if late is None else
      ("does not end a worker that is late", "missing", "run where processes can be killed")))
  if settings is not None and large is None:
    yield Finding(here, "memory limit", f"{settings['memory'] / GIB:.0f} GiB a worker, enforced")
  else:
    yield Finding(here, "memory limit", "is not enforced", "look",
                  "checks of very large texts can fill the memory; macOS has no such limit, Linux"
                  " has")
  yield from _look_at_math()


def _look_at_math() -> Iterator[Finding]:
  """Looks at whether math-verify judges a right and a wrong answer as it should."""
  here, name = "Sandbox", "math-verify in a worker"
  try:
    workers = pool.WorkerPool(
        "rl_reason.sandbox.math_answers:check_math", num_workers=1, timeout_seconds=30.0)
    try:
      right, wrong = workers.map([[r"\boxed{\frac{1}{2}}", "0.5"], [r"\boxed{\frac{1}{3}}", "0.5"]])
    finally:
      workers.close()
    problem = "" if (right, wrong) == (True, False) else (
        f"it finds 1/2 = 0.5 {right} and 1/3 = 0.5 {wrong}")
  except Exception as error:
    problem = _first_line(error)
  if problem:
    yield Finding(here, name, problem, "missing",
                  'python -m pip install --force-reinstall "math-verify[antlr4-13-2]>=0.8"')
  else:
    yield Finding(here, name, "knows that 1/2 is 0.5 and 1/3 is not")


def _first_line(error: Exception) -> str:
  """Returns an error's first line, and the last line where a worker's traceback is in it."""
  first, *rest = str(error).strip().splitlines() or [type(error).__name__]
  return f"{first} {rest[-1]}" if rest else first


def look_at_checkout(root: Path | None) -> Iterator[Finding]:
  """Looks at the commit of the checkout, and whether files were changed since."""
  # A copied tree may lie within another project's checkout, whose commit is not ours.
  if root is not None and (root / ".git").exists():
    commit = (
        provenance.commit(root)
        or "not known: git is not installed, or does not trust the folder")
    yield Finding("Checkout", "commit", commit + ", with changes" * commit.endswith("+"))


# The report


def report(findings: Iterable[Finding]) -> list[Finding]:
  """Prints each finding as soon as it is there, and at the end what is missing, with the cures.

  Returns: the findings.
  """
  section, seen = "", []
  for finding in findings:
    if finding.section != section:
      section = finding.section
      print(f"{section}:")
    mark = {"ok": " ", "look": "?", "missing": "!"}[finding.status]
    print(f" {mark} {finding.name}: {finding.value}", flush=True)
    seen.append(finding)
  for status, title in (("look", "Worth a look (?):"), ("missing", "Missing (!):")):
    if lines := [f for f in seen if f.status == status]:
      print(f"\n{title}")
      for finding in lines:
        print(f"   {finding.name}: {finding.cure}.")
      # Where several packages are missing, one command installs all.
      if status == "missing" and sum(f.cure.startswith("python -m pip") for f in lines) > 1:
        root = checkout()
        # By their own names: nothing says that an index's rl_reason is this one.
        all_of_them = f"-r {root / 'requirements.txt'}" if root else " ".join(
            f'"{need.line}"' for need in requirements(root))
        print(f"   All packages at once: python -m pip install {all_of_them}")
  if not missing(seen):
    print("\nAll needed is here.")
  return seen


def missing(findings: Iterable[Finding]) -> list[Finding]:
  """Lists the findings of what is missing and needed."""
  return [finding for finding in findings if finding.status == "missing"]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the report, or one JSON object. Returns the exit status: 1 if something is missing."""
  parser = Parser("doctor", __doc__)
  parser.add_argument("--json", action="store_true", help="one JSON object, for a bug report")
  if parser.parse_args(argv).json:
    findings = list(examine())
    print(json.dumps({
        "needed_is_here": not missing(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2))
  else:
    findings = report(examine())
  return int(bool(missing(findings)))


if __name__ == "__main__":
  with exits.with_status():
    sys.exit(main())
