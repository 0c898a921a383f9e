"""Turns the results file of a machine into a table in Markdown, for the README and the terminal.

    python -m rl_reason.experiments.benchmarks.table experiments/benchmarks/results/<machine>.json
"""

import argparse
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from statistics import median
from typing import Any

from rl_reason.experiments.benchmarks import work

LABELS = {"ours": "rl_reason", "trl": "TRL", "tunix": "Tunix"}
HEADER = (
    "shape", "system", "first step, s (cached)", "s per step (min-max)",
    "tokens/s: sampled, trained", "peak MB", "of the roofline", "rl_reason is faster by")


def summarise(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Summarises a shape's entry in the results, for each system.

  Returns: system -> numbers, which are medians over rounds if not said otherwise:
    seconds: time of a step.
    low: the shortest step, in seconds.
    high: the longest step, in seconds.
    generated: tokens sampled per second.
    trained: completion tokens trained on per second.
    peak_mb: the largest peak of memory.
    roofline: the roofline's time as a fraction of the step's.
    speedup: the system's seconds over ours, round by round; absent without ours.
    failure: why the system failed, if it did; without any round there is nothing else.
  """
  summary, systems = {}, entry["systems"]
  for name, system in systems.items():
    rounds = system["rounds"]
    if not rounds:
      summary[name] = dict(failure=system.get("failure", "no rounds"))
      continue
    seconds = [r["seconds"] for r in rounds]
    summary[name] = dict(
        seconds=median(seconds), low=min(seconds), high=max(seconds),
        generated=median(r["generated"] / r["seconds"] for r in rounds),
        trained=median(r["trained"] / r["seconds"] for r in rounds),
        peak_mb=max(r["peak_mb"] for r in rounds),
        roofline=median(work.bound_seconds(
            step_work(entry["shape"], r["generated"]), flops_per_second=1e9 * m["gflops"],
            bytes_per_second=1e9 * m["gigabytes"]) / r["seconds"]
            for r, m in zip(rounds, entry["machine"])))
    if "failure" in system:
      summary[name]["failure"] = system["failure"]
    ours = systems.get("ours", {}).get("rounds", [])
    if name != "ours" and ours:
      summary[name]["speedup"] = median(r["seconds"] / o["seconds"] for r, o in zip(rounds, ours))
  return summary


def step_work(shape: Mapping[str, Any], generated: float) -> work.Work:
  """Counts the work of a step that sampled `generated` tokens, all completions together."""
  count = shape["prompts"] * shape["completions"]
  # The single lengths are not recorded, so each counts as the mean. Among that many completions one
  # is always as long as the limit.
  return work.step_work(
      shape["model"], prompts=shape["prompts"], prompt_tokens=shape["prompt_tokens"],
      lengths=[generated / count] * count, longest=shape["max_tokens"])


def absolute(entry: Mapping[str, Any]) -> dict[str, float] | None:
  """Compares our steps with the peaks of the device.

  Returns: {"decode_bandwidth": decoding's share of the memory bandwidth, "update_mfu": the update's
    share of the peak arithmetic}; the reference forward counts as part of the update, as it is part
    of that time. None for a device whose peaks are not known.
  """
  ours = entry["systems"].get("ours", {})
  peaks = work.DEVICE_PEAKS.get(ours.get("device"))
  if peaks is None or not ours["rounds"]:
    return None
  flops, bandwidth = peaks
  works = [(step_work(entry["shape"], r["generated"]), r["parts"]) for r in ours["rounds"]]
  return dict(
      decode_bandwidth=median(
          w.decode_bytes / parts["generate"] / bandwidth for w, parts in works),
      update_mfu=median(
          (w.reference + w.update) / (parts["score"] + parts["update"]) / flops
          for w, parts in works))


def step_parts(rounds: Sequence[Mapping[str, Any]]) -> str:
  """Shows where the time of our steps goes, in words.

  The parts are sampling, rewards, scoring with the reference policy, and updates.
  """
  shares = {
      part: median(r["parts"][part] / r["seconds"] for r in rounds)
      for part in ("generate", "reward", "score", "update")}
  return ", ".join(f"{part} {share:.0%}" for part, share in shares.items())


def render(results: Mapping[str, Any]) -> str:
  """Renders the whole file as Markdown: a table, and notes below it."""
  # A row for each system of each shape.
  machine, notes = results["machine"], []
  rows = [HEADER, ("---",) * len(HEADER)]
  for name, entry in results["shapes"].items():
    for i, (system, s) in enumerate(summarise(entry).items()):
      title = f"({name}) {entry['shape']['title']}" if i == 0 else ""
      label = LABELS[system]
      if "failure" in s:
        # How the system ended, and the last line of its log.
        first, *_, last = [s["failure"].partition(";")[0], *s["failure"].splitlines()]
        notes.append(f"{label} failed in ({name}): {first}; {last}")
      if "seconds" not in s:
        rows.append((title, label, "failed", *[""] * (len(HEADER) - 3)))
        continue
      first = f"{entry['systems'][system]['first_step']['seconds']:.1f}"
      if "first_step_cached" in entry["systems"][system]:
        first += f" ({entry['systems'][system]['first_step_cached']['seconds']:.1f})"
      rows.append((
          title, label, first, f"{s['seconds']:.2f} ({s['low']:.2f}-{s['high']:.2f})",
          f"{s['generated']:.0f}, {s['trained']:.0f}", f"{s['peak_mb']:.0f}",
          f"{s['roofline']:.0%}",
          f"{s['speedup']:.2f}x" if "speedup" in s else ""))

    # The shape's notes.
    if figures := absolute(entry):
      notes.append(
          f"({name}) rl_reason decodes at {figures['decode_bandwidth']:.0%} of the memory"
          f" bandwidth and updates at {figures['update_mfu']:.0%} of the peak arithmetic.")
    if ours := entry["systems"].get("ours", {}).get("rounds"):
      notes.append(f"({name}) A step of rl_reason: {step_parts(ours)}.")
    gflops, gigabytes = (
        median(m[k] for m in entry["machine"]) for k in ("gflops", "gigabytes"))
    versions = ", ".join(
        f"{LABELS[n]} {version(n, s)}" for n, s in entry["systems"].items() if "versions" in s)
    rounds = max(len(s["rounds"]) for s in entry["systems"].values())
    notes.append(
        f"({name}) {rounds} rounds at commit {entry['commit']}, {entry['date'][:10]}; {versions};"
        f" the machine: {gflops:.0f} GFLOP/s, {gigabytes:.0f} GB/s.")

  # The page.
  cores = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:.0f} GB"
  where = cores if machine["device"] == "cpu" else f"{machine['device']}; {cores}"
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines[1] = lines[1].replace(" ", "")
  return "\n".join([f"Measured on {where}.", "", *lines, "", *(f"- {note}" for note in notes)])


def version(system: str, entry: Mapping[str, Any]) -> str:
  """Shows a system's version, and that of JAX or torch below it."""
  package = {"ours": "rl_reason", "trl": "trl", "tunix": "google-tunix"}[system]
  below = {"ours": "jax", "trl": "torch", "tunix": "jax"}[system]
  return f"{entry['versions'][package]} ({below} {entry['versions'][below]})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("results", type=Path)
  print(render(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
  main()
