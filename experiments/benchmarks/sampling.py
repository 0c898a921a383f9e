"""Measures seconds and memory of sampling alone, by its options: one process, one line of JSON.

    python -m rl_reason.experiments.benchmarks.sampling --slots=32 --page_tokens=64

Prompts and weights are those of `inputs`. Each token is as likely as any other to be a completion's
last one, and half of the completions end before a quarter of the limit. So the lengths are mixed,
from 1 to --max_tokens, and the same for all options.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.experiments.benchmarks import inputs, shapes
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is sampled, and with which options.

  prompts: number of prompts in a round, as in `shapes`.
  completions: number of completions of each prompt.
  prompt_tokens: length of every prompt, in tokens.
  max_tokens: limit of a completion, in tokens.
  slots: completions decoded at once, as in rollout.generate.
  page_tokens: as in rollout.generate.
  prefill_tokens: as in rollout.generate.
  """
  prompts: int = 16
  completions: int = 8
  prompt_tokens: int = 64
  max_tokens: int = 1024
  slots: int = 32
  page_tokens: int = 0
  prefill_tokens: int = 0


def measure(
    settings: Settings, model: Mapping[str, Any] = shapes.SMALL, *, rounds: int = 1,
) -> dict[str, Any]:
  """Samples some rounds, after one that compiles everything.

  Args:
    settings: what is sampled.
    model: fields of the model's config, as in `shapes`.
    rounds: number of measured rounds.
  Returns: the settings, and
    seconds: time of each round.
    tokens: sampled in a round.
    lengths: minimum, quartiles and maximum of the completions' lengths.
    compile_seconds: by how much the first round took longer than the others' median.
    held_mb: by how much the process grew at most during a round, beyond parameters and programs;
      absent where the system does not report it.
  """
  # The model and the prompts.
  config = inputs.model_config(
      {**model, "max_positions": settings.prompt_tokens + settings.max_tokens})
  params = jax.device_put(inputs.make_params(
      config, inputs.hazard(dict(stop_half_by=0.25, max_tokens=settings.max_tokens))))
  rng = np.random.default_rng(0)
  prompts = Inputs(
      rng.integers(2, config.vocab_size, (settings.prompts, settings.prompt_tokens), np.int32),
      np.full(settings.prompts, settings.prompt_tokens, np.int32))

  # The rounds. All draw with the same key, so all have the same lengths.
  seconds, grown = [], []
  for _ in range(1 + rounds):
    before = _memory_mb("VmRSS", reset=True)
    started = time.perf_counter()
    out = generate(
        config, params, prompts, Sampling(settings.max_tokens), group_size=settings.completions,
        rng=jax.random.key(0), stop_ids=[inputs.EOS], slots=settings.slots,
        page_tokens=settings.page_tokens, prefill_tokens=settings.prefill_tokens)
    seconds.append(time.perf_counter() - started)
    if before is not None:
      grown.append(_memory_mb("VmHWM") - before)

  # The first round is the one that compiles.
  first, *seconds = seconds
  return {
      **dataclasses.asdict(settings), "seconds": [round(s, 2) for s in seconds],
      "tokens": int(out.lengths.sum()),
      "lengths": np.percentile(out.lengths, (0, 25, 50, 75, 100)).tolist(),
      "compile_seconds": round(first - float(np.median(seconds)), 2),
      **({"held_mb": round(max(grown[1:]), 1)} if grown else {})}


def _memory_mb(name: str, reset: bool = False) -> float | None:
  """Reads the process's resident memory in MiB.

  Args:
    name: "VmRSS" for the memory now, "VmHWM" for its peak since the last reset.
    reset: whether the peak is reset first.
  Returns: the memory; None where the system does not report it.
  """
  try:
    if reset:
      Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 2**10
  except OSError:  # The system is not Linux, or does not allow it.
    return None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  for field in dataclasses.fields(Settings):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  given = vars(parser.parse_args())
  rounds = given.pop("rounds")
  print(json.dumps(measure(Settings(**given), rounds=rounds)))


if __name__ == "__main__":
  main()
