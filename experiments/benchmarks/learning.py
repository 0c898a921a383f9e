"""Draws GRPO's learning curve beside that of TRL's GRPOTrainer.

    make learning-curves          # Half an hour on two cores; ARGS="--seeds=1" for a third.

Both start from the same policy, and have the same prompts in one order, the same hyper-parameters
and the same number of samples. The task is the quickstart's. For each seed one policy is warmed up.
From it both systems take the same number of steps of 32 prompts x 8 completions, with one update
each: KL (k3) in the loss with coefficient 0.04, clipping at 0.2, a mean per completion, advantages
divided by the group's deviation, AdamW with a constant learning rate, gradients clipped at 1. Each
system samples by itself. Both final policies are then evaluated here, on the same held-out problems
with the same random numbers.

If the two systems do the same, their curves differ only as those of two seeds do.

Result (three seeds, TRL 1.16.0, torch 2.13.0, two busy cores of an AMD EPYC, commit 81a5a8b): ours
minus TRL's, with 95 % t intervals over seeds: mean reward over all 85 steps 0.000 (-0.019 to
0.019), of the last tenth -0.008 (-0.026 to 0.011); held-out pass@1 -0.012 (-0.082 to 0.057): 0.853,
0.821, 0.948 against 0.839, 0.863, 0.958. Seeds differ by 0.13.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import functools
import itertools
import json
from pathlib import Path
import subprocess
import sys

import ml_collections
import numpy as np

from rl_reason.config.overrides import override
from rl_reason.evaluation import estimates
from rl_reason.evaluation.accuracy import evaluate
from rl_reason.experiments import algorithms
from rl_reason.experiments.benchmarks.run import HERE, ROOT, say, write
from rl_reason.models import pretrained
from rl_reason.reporting import plots, provenance
from rl_reason.reporting.metrics import read_metrics
from rl_reason.run import config as run
from rl_reason.run import process
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from rl_reason.run.workdir import versions, Workdir
from rl_reason.tasks import pipeline
from rl_reason.train import train

SYSTEMS = {"ours": "rl_reason", "trl": "TRL"}
# Where TRL differs from the experiment: it makes one update per rollout, and its schedules count
# steps differently, so the learning rate is constant.
SAME = {
    "learner.minibatches": 1,
    "learner.optimizer": dict(learning_rate=2e-4, schedule="constant", warmup_steps=0,
                              args=dict(weight_decay=0.0)),
}


def get_config(size: str = "full") -> ml_collections.ConfigDict:
  """Makes the config of our run: the experiment `algorithms`' arm "grpo", with what TRL needs."""
  c = algorithms.get_config("grpo" if size == "full" else f"grpo-{size}")
  c.evaluation.every = 0
  override(c.rl, SAME)
  return c


def compare(
    config: ml_collections.ConfigDict, folder: Path, python: Path,
) -> dict[str, dict[str, Sequence[float] | float]]:
  """Trains both systems with one seed. What is complete is not done again.

  Args:
    config: the config of our run.
    folder: the folder for this seed.
    python: the interpreter of TRL's environment.
  Returns: system -> {"reward": mean reward of each step, "pass@1": of the final policy on held-out
    problems}.
  """
  # Our run.
  train(config, folder / "ours", plain=True)
  checked, sections = run.check(config)
  stages = Stages(checked, sections, Workdir(folder / "ours"), make_context(checked))
  context = stages.run
  rl, warm, after = sections["rl"], folder / "warm", folder / "trl" / "final"

  # TRL's run. It gets the policy that both start from, the prompts in the order in which our stage
  # takes them, and the settings.
  if not (after / "config.json").exists():
    pretrained.save(warm, context.policy.config, stages.finished("sft"))
    context.policy.tokenizer.save(warm)
    batches = pipeline.batches(context.task.train, batch_size=rl.rollout.prompts,
                               seed=context.stream_seed("rl", "data"))
    with (warm / "prompts.jsonl").open("w") as file:
      for problem in itertools.chain.from_iterable(itertools.islice(batches, rl.num_steps)):
        file.write(json.dumps(dict(prompt=problem.prompt, reference=problem.reference)) + "\n")
    write(warm / "settings.json", dict(
        num_steps=rl.num_steps, prompts=rl.rollout.prompts, completions=rl.rollout.group_size,
        max_tokens=rl.rollout.sampling.max_tokens, temperature=rl.rollout.sampling.temperature,
        kl_coef=rl.objective.kl.coef, clip=rl.objective.clip_high,
        learning_rate=rl.learner.optimizer.learning_rate,
        max_grad_norm=rl.learner.optimizer.max_grad_norm, seed=checked.seed))
    with (folder / "trl.log").open("w") as log:
      status = subprocess.run(
          [str(python), str(HERE / "learning_trl.py"), str(warm), str(folder / "trl")],
          stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
      raise SystemExit(f"TRL ended with status {status}; {folder / 'trl.log'} says why.")

  # TRL's final policy is evaluated as ours was, with the same random keys.
  with context.partitioning.use():
    params = pretrained.load(after, shardings=context.param_shardings)
    judged = evaluate(
        checked.evaluation, context.sampler, context.task.heldout, params,
        rng=functools.partial(context.rng, "evaluation"), report=say).metrics
  lines = [m for m in read_metrics(folder / "ours") if m["stage"] == "rl"]
  return {
      "ours": {"reward": [m["reward/mean"] for m in lines if "reward/mean" in m],
               "pass@1": [m["eval/pass@1"] for m in lines if "eval/pass@1" in m][-1]},
      "trl": {"reward": json.loads((folder / "trl" / "rewards.json").read_text()),
              "pass@1": judged["eval/pass@1"]}}


def summary(
    seeds: Sequence[Mapping[str, Mapping[str, Sequence[float] | float]]],
) -> dict[str, dict[str, Sequence[float]]]:
  """Compares the systems over seeds.

  Args:
    seeds: what `compare` returned for each.
  Returns: quantity -> each system's numbers, one a seed; the mean "difference", ours - TRL's, and
    with two seeds or more its "interval".
  """
  quantities = {
      "held-out pass@1 at the end": lambda x: x["pass@1"],
      "mean reward over all steps": lambda x: float(np.mean(x["reward"])),
      "mean reward of the last tenth": lambda x: float(
          np.mean(x["reward"][-max(1, len(x["reward"]) // 10):]))}
  found = {}
  for name, number in quantities.items():
    values = {system: [number(seed[system]) for seed in seeds] for system in SYSTEMS}
    # Seed by seed: both systems start from the same policy there.
    apart = np.subtract(values["ours"], values["trl"])
    found[name] = {**values, "difference": float(apart.mean())}
    if len(seeds) > 1:
      found[name]["interval"] = estimates.mean_interval(apart)
  return found


def draw(seeds: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], png: Path) -> None:
  """Draws the reward over steps: each seed pale (a mean of five steps), the mean of all strong."""
  sheet = plots.sheet(9, 5, dpi=110)
  ax = sheet.subplots()
  for system, color in zip(SYSTEMS, plots.COLORS):
    curves = np.array([plots.running_mean(np.array(seed[system]["reward"]), 5) for seed in seeds])
    steps = np.arange(1, curves.shape[1] + 1)
    ax.plot(steps, curves.T, color=color, alpha=0.35, linewidth=1)
    ax.plot(
        steps, curves.mean(axis=0), color=color, linewidth=2.5,
        label=f"{SYSTEMS[system]} (mean of {len(seeds)} seeds)")
  plots.dress(
      ax, "GRPO on the quickstart's task", "mean reward of the step's completions",
      "step (each curve: mean of 5)")
  ax.legend(fontsize=11)
  sheet.savefig(png)


def main() -> None:
  """Compares the systems over the seeds, and writes learning.json and learning.png."""
  # The command line.
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--size", choices=("full", "tiny"), default="full")
  parser.add_argument("--folder", type=Path, default=ROOT / "runs/learning")
  parser.add_argument(
      "--python", type=Path, default=ROOT / ".venv-bench-trl/bin/python",
      help="of TRL's environment")
  parser.add_argument(
      "--results", type=Path, default=HERE / "results", help="where learning.json and .png go")
  args = parser.parse_args()
  if args.seeds < 1:
    parser.error(f"--seeds must be at least 1, got {args.seeds}")
  if not args.python.exists():
    parser.error(
        f"{args.python} is not there: `make learning-curves` makes TRL's environment, or name one"
        " with --python")

  # The runs, seed by seed. Configs name files from the root of the checkout.
  process.start()
  seeds = []
  for seed in range(args.seeds):
    config = get_config(args.size)
    config.seed = seed
    with contextlib.chdir(ROOT):
      seeds.append(compare(
          config, args.folder.resolve() / f"{args.size}-seed{seed}", args.python.absolute()))

  # The results.
  found = summary(seeds)
  of_peers = json.loads(
      (args.folder / f"{args.size}-seed0" / "trl" / "versions.json").read_text())
  args.results.mkdir(parents=True, exist_ok=True)
  write(args.results / "learning.json", dict(
      command=" ".join(["python -m rl_reason.experiments.benchmarks.learning", *sys.argv[1:]]),
      commit=provenance.commit(ROOT), machine=provenance.machine("cpu"),
      versions={**versions(), **of_peers}, summary=found, seeds=seeds))
  draw(seeds, args.results / "learning.png")
  for name, values in found.items():
    low, high = values.get("interval", (float("nan"),) * 2)
    say(f"{name}: ours {np.round(values['ours'], 3)}, TRL {np.round(values['trl'], 3)};"
        f" difference {values['difference']:+.3f} ({low:+.3f} to {high:+.3f})")
  say(f"Written: {args.results / 'learning.json'}, learning.png.")


if __name__ == "__main__":
  main()
