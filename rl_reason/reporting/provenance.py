"""Records where a result came from: the machine and the commit."""

from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import platform
import re
import subprocess
from typing import Any


def machine(device: str) -> dict[str, Any]:
  """Describes the machine: cpu, cores, memory_gb, python, system, and others.

  Args:
    device: the accelerator's name, as JAX calls it; "cpu" if there is none.

  Returns: plain data; `kind` is a short name of the machine, for file names, and memory_gb is in
    GiB.
  """
  cpu = platform.processor() or platform.machine()
  with contextlib.suppress(OSError):
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = found.group(1).strip() if found else cpu
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  kind = f"{cpu} {len(cores())} cores" if device == "cpu" else device
  return dict(
      kind=re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-"), device=device, cpu=cpu,
      cores=len(cores()), memory_gb=round(memory, 1), python=platform.python_version(),
      system=platform.platform())


def cores() -> list[int]:
  """Lists the numbers of the processor cores that this process may use."""
  return (sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
          else list(range(os.cpu_count() or 1)))


def commit(root: Path, *, beside: Sequence[str] = ()) -> str:
  """Returns the checkout's commit, with "+" after it where files differ from the commit.

  Args:
    root: folder of the checkout.
    beside: paths that may differ without a "+". Untracked files never count.

  Returns: the short hash; "" outside a checkout.
  """
  def git(*arguments):
    with contextlib.suppress(OSError):
      return subprocess.run(
          ["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()
    return ""
  changed = git("status", "--porcelain", "--untracked-files=no", "--", ".",
                *(f":(exclude){path}" for path in beside))
  return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
