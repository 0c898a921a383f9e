"""A small policy learns to reason in minutes on a laptop: warm start, then policy gradients.

    python -m rl_reason.train --config=experiments/quickstart.py --workdir=runs/quickstart
    ... --config=experiments/quickstart.py:tiny      # Seconds; the tests run it.

The task: running totals of 3 to 4 terms, worked out step by step, e.g. "7+2-5=" ->
"7+2=9;9-5=4;#4". The warm start imitates a careless writer, who gets a step wrong with probability
0.3, so it ends up about as unreliable; the verifiable reward then picks out the right steps.

Result, pass@1 on 200 held-out problems, 8 samples each (one run at a time on two cores of a shared
AMD EPYC; nothing compiled beforehand for seed 1, its programs kept for the others; commit ecaf90f):

    seed   warm start   after RL              pass@8   KL (nats/token)   seconds in all
    0      0.354        0.895 (0.870-0.918)   0.990    0.059             125
    1      0.339        0.859 (0.826-0.890)   0.955    0.057             125
    2      0.414        0.967 (0.956-0.977)   1.000    0.056             103

What did not help:

- RL learning rates of 3e-4 and more with 256 samples a step (entropy collapses, 0.56 after 80
  steps);
- 300 warm-start steps (facts not learnt well enough are fixed wrong: seed 1 ended at 0.65-0.69);
- 2 to 3 terms (about 1200 problems are memorised: training reward 0.83, held-out 0.43);
- totals up to 20 (0.19 after 400 warm-start steps).
"""

from ml_collections import ConfigDict

from rl_reason.config.overrides import sized
from rl_reason.tasks.worlds.arithmetic import CHARACTERS

# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 200, "task.heldout.size": 16,
    "sft.num_steps": 4, "sft.batch_size": 8,
    "rl.num_steps": 4, "rl.rollout.prompts": 4, "rl.rollout.group_size": 4,
    "rl.rollout.sampling.max_tokens": 16,
    "evaluation.num_problems": 8, "evaluation.samples_per_problem": 2, "evaluation.every": 2,
    "evaluation.batch_size": 8, "evaluation.sampling.max_tokens": 16,
    "checkpoint.every": 2,
}


def get_config(size: str = "full") -> ConfigDict:
  c = ConfigDict(dict(seed=0, max_prompt_tokens=8, stages=("sft", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=128, num_layers=2, num_heads=4))
  c.task = dict(
      source="arithmetic", args=dict(seed=0, min_terms=3, max_terms=4, max_value=9),
      train=dict(part="train", size=20_000, careless=0.3), heldout=dict(part="heldout", size=200))

  # The warm start: imitation of careless solutions.
  c.sft = dict(
      kind="sft", num_steps=450, batch_size=64, max_completion_tokens=28,
      learner=dict(optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=20)))

  # Policy gradients on a reward that checks the answer.
  c.rl = dict(
      kind="policy_gradient", num_steps=85, rewards=dict(exact_answer=1.0),
      rollout=dict(prompts=64, group_size=8, sampling=dict(max_tokens=22)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(clip_low=0.2, clip_high=0.28, kl=dict(coef=0.02, estimator="k3")),
      learner=dict(
          minibatches=2, optimizer=dict(learning_rate=2e-4, schedule="linear", warmup_steps=5)))
  c.evaluation = dict(
      rewards=dict(exact_answer=1.0), num_problems=200, samples_per_problem=8, every=100,
      batch_size=200, sampling=dict(max_tokens=22))
  c.checkpoint = dict(every=100, keep=2)
  return sized(c, size, tiny=TINY)
