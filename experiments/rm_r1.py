r"""Does a judge that reasons before it names the better answer beat one that does not? (card 08)

    python -m rl_reason.claims experiments/rm_r1.py
    python -m rl_reason.train --config=experiments/rm_r1.py:method --workdir=runs/rm_r1
    ... :method-tiny      # Seconds; the tests run it.
    ... :full             # Qwen2.5-7B-Instruct, your pairs and traces.

RM-R1 (Chen et al. 2025, arXiv:2505.02387) takes judging for a reasoning task. The judge first says
what kind of pair it is, then works it out (it solves the problem, or writes criteria and scores),
then names A or B. A few traces of a stronger judge, a quarter of them wrong, give the form (stage
`sft`); GRPO with 1 for the right verdict at the very end, -1 for anything else and no reward for
form teaches the rest (stage `rl`).

Small: two kinds of pairs, half each (rl_reason/tasks/worlds/judging.py). Reasoning pairs ask for
the product of 2 to 6 permutations of three things, held-out ones of 4 to 8; chat pairs ask for a
weighted count of letters. Arms:

    bt            a Bradley-Terry model of the same trunk
    answer_only   imitation of verdicts alone
    distil        imitation of traces
    cold_rl       RL from the form alone
    method        RL after traces
    no_type       ... without naming the kind

All learn from the same 20,000 pairs for 2,000 updates, RL for 150.

Inferred in the card: the small tasks and all thresholds. Where we depart from it: traces are 6 to
10 characters; the wrong quarter stays in, for nobody corrects it (the paper's second pass by a
stronger model); pairs are swapped by chance and not one by one, so consistency under swapping is
not measured; the verdict is "[A]" in the last 4 characters.

Result (three seeds, commit e903804, 54 minutes of one core; held-out accuracy, mean over seeds):

    arm           long    short   chat        right work, RL's first -> last ten steps
    bt            0.719   0.822   0.964
    answer_only   0.485   0.527   0.648
    distil        0.570   0.690   0.804
    cold_rl       0.466   0.519   0.479       0.14 -> 0.14
    method        0.561   0.680   0.758       0.80 -> 0.81
    no_type       0.543   0.624   0.717       0.80 -> 0.80

    beats_scalar          -0.157 (-0.379 to 0.064)    above 0.10: does not hold
    beats_answer_only      0.076 (0.021 to 0.132)     about 0.10: undecided; better in every seed
    beats_distillation    -0.009 (-0.047 to 0.030)    about 0.03: undecided
    better_steps           0.005 (-0.049 to 0.059)    about 0: undecided
    chat_not_worse        -0.206 (-0.551 to 0.138)    about -0.03: undecided (seed 2: chat at 0.60)

This is the second measurement. In the first (commit 81a5a8b) there were 2,000 traces, 600 updates
of imitation and of bt, and the judges never learnt to judge: distil 0.527 on long pairs, method
0.509, bt 0.586; no claim held. After it had been seen traces became 20,000, as many as bt's pairs,
and updates 2,000, so that distil is above chance; the first claim's title, which spoke of a tenth
of the labels, changed with it.

Reasoning beats answers alone then, in every seed and all three domains, as in the paper. A scalar
model of the same pairs stays ahead: a policy of this size, from nothing, has no judgement that
writing could bring out. RL raises the verdicts on its own pairs by 2 points in 150 steps (0.731 to
0.753, the mean of seeds, first and last thirty steps), while the work gets no better; on longer
held-out problems nothing of that is left.
"""

from collections.abc import Sequence
import contextlib
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.tasks.worlds.judging import CHARACTERS
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.rm_r1"
# Arm -> stages, and the traces of its solutions.
ARMS = {
    "bt": (("rm",), ""),
    "answer_only": (("sft",), "none"),
    "distil": (("sft",), "kind"),
    "cold_rl": (("sft", "rl"), "random"),
    "method": (("sft", "rl"), "kind"),
    "no_type": (("sft", "rl"), "untyped"),
}


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Chen et al. 2025, arXiv:2505.02387", card=8,
    arms={name: dict(config=name) for name in ARMS}, treatment="method", direction="higher",
    matched=())
CLAIMS = {
    "beats_scalar": dict(
        title="A judge that reasons beats a scalar reward model of the same pairs on long problems",
        sentence="Reasoning reward models outperform scalar ones on reasoning-heavy comparisons.",
        baseline="bt", metric=_own("accuracy", domain="long"), threshold=0.10,
        also={"short": _own("accuracy", domain="short"), "chat": _own("accuracy", domain="chat"),
              "steps right, RL's start": _own("steps_right", first=True),
              "at its end": _own("steps_right", first=False)}, **_COMMON),
    "beats_answer_only": dict(
        title="A judge that reasons beats one that was taught verdicts alone, on long problems",
        sentence="Supervised fine-tuning on verdicts alone falls behind reasoning-based training.",
        baseline="answer_only", metric=_own("accuracy", domain="long"), threshold=0.10, **_COMMON),
    "beats_distillation": dict(
        title="RL with verdict rewards improves a judge beyond the traces it was taught",
        sentence="Distillation alone is not enough; RLVR adds to it.",
        baseline="distil", metric=_own("accuracy", domain="long"), threshold=0.03, **_COMMON),
    "better_steps": dict(
        title="RL on verdicts alone makes a judge's steps right more often",
        sentence="Only the verdict is rewarded, and the reasoning before it improves.",
        compare="absolute", metric=_own("steps_gained"), threshold=0.0, **_COMMON),
    "chat_not_worse": dict(
        title="On chat pairs a judge that reasons is no worse than a scalar model by 3 points",
        sentence="On chat the gap to scalar models is small.",
        baseline="bt", metric=_own("accuracy", domain="chat"), threshold=-0.03, **_COMMON),
}


def accuracy(folder: Path, *, domain: str) -> float:
  """Reads the accuracy on the held-out pairs of a domain.

  It is that of verdicts (greedy), or of a reward model's scores.
  """
  for name in (f"eval/pass@1/{domain}", f"eval/accuracy/{domain}"):
    with contextlib.suppress(ValueError):
      return measures.last(folder, name=name)
  raise ValueError(f"The run {folder} has judged no pairs of the domain {domain!r}.")


def steps_right(folder: Path, *, first: bool) -> float:
  """Averages the share of right characters in the work of training samples over ten steps of RL.

  Args:
    first: whether over the first or the last ten.
  """
  values = measures.curve(folder, "reward/steps", "rl")[1]
  return float((values[:10] if first else values[-10:]).mean())


def steps_gained(folder: Path) -> float:
  """Returns what RL adds to the share of right characters."""
  return steps_right(folder, first=False) - steps_right(folder, first=True)


def work_done(samples: Sequence[Sample]) -> np.ndarray:
  """Returns the share of the right work's characters that the completion has in their places.

  It is in [0, 1] and is logged, with weight 0.
  """
  scores = []
  for sample in samples:
    work, written = sample.metadata["work"], sample.completion.partition("[")[0].lstrip("RC")
    scores.append(sum(a == b for a, b in zip(work, written)) / len(work))
  return np.array(scores, np.float32)


# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 100, "task.heldout.size": 24,
    "evaluation.num_problems": 24, "evaluation.batch_size": 24,
}
TINY_STAGES = {  # Of an arm's stages, by their fields.
    "rm": {"num_steps": 2, "batch_size": 8, "heldout_rows": 24, "data.train.size": 100,
           "data.heldout.size": 24, "learner.optimizer.warmup_steps": 1},
    "sft": {"num_steps": 2, "batch_size": 8, "data.train.size": 100, "data.heldout.size": 24,
            "learner.optimizer.warmup_steps": 1},
    "rl": {"num_steps": 2, "rollout.prompts": 4, "learner.optimizer.warmup_steps": 1},
}


def get_config(argument: str = "method") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ARMS, whole="full")
  if not name:
    return _full()
  stages, trace = ARMS[name]
  c = ConfigDict(dict(seed=0, max_prompt_tokens=28, stages=stages))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=96, num_layers=3, num_heads=4))
  longer = dict(part="heldout", size=600, min_moves=4, max_moves=8, chat_share=0.3)
  many = dict(part="train", size=20_000)
  c.task = dict(source="judge_problems", args=dict(seed=0), train=many, heldout=longer)
  verdict = dict(function="tail_verdict", args=dict(tag="[{}]", characters=4))

  # A scalar reward model.
  if "rm" in stages:
    c.rm = dict(
        kind="reward_model", num_steps=2000, batch_size=64, max_response_tokens=9,
        heldout_rows=600,
        data=dict(
            source="judge_comparisons", args=dict(seed=0), train=many, heldout=longer),
        learner=dict(optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=20)))

  # A judge that imitates traces ...
  if "sft" in stages:
    c.sft = dict(
        kind="sft", num_steps=2000, batch_size=64, max_completion_tokens=14,
        data=dict(
            source="judge_problems", args=dict(seed=0, part="train"),
            train=dict(many, trace=trace, careless=0.25), heldout=longer),
        learner=dict(optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=20)))

  # ... and is paid for its verdicts.
  if "rl" in stages:
    c.rl = dict(
        kind="policy_gradient", num_steps=150,
        rewards=dict(verdict=verdict, steps=dict(function=f"{_MODULE}:work_done", weight=0.0)),
        rollout=dict(prompts=32, group_size=7, sampling=dict(max_tokens=14)),
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(mean_over="token", kl=dict(coef=0.001, estimator="k3")),
        learner=dict(optimizer=dict(learning_rate=2e-4, warmup_steps=5)))
  c.evaluation = dict(
      rewards=dict(verdict=verdict), num_problems=600, by="domain", batch_size=200,
      sampling=dict(max_tokens=14, temperature=0.0))
  c.checkpoint = dict(every=1000, keep=1)
  tiny_stages = {f"{stage}.{k}": v for stage in stages for k, v in TINY_STAGES[stage].items()}
  return sized(c, size, tiny=TINY | tiny_stages)


# Shortened from the paper's system prompt for instruct models.
RUBRICS = """\
You are a skilled judge of two chatbots' answers to a client's question. First say what kind of \
task it is.
If it is <type>Reasoning</type> (mathematics, code, anything with a checkable answer), solve it \
yourself within
<solution>...</solution>, then compare both answers with it within <eval>...</eval>. If it is \
<type>Chat</type>, write
rubrics for this question with weights within <rubric>...</rubric>, justify them within \
<justify>...</justify>, and judge
both answers by them within <eval>...</eval>. Quote or sum up what you judge: <quote_A>, \
<summary_A>, <quote_B>,
<summary_B>. End with <answer>[[A]]</answer> or <answer>[[B]]</answer>.

[Question]
{prompt}

[Chatbot A]
{response_a}

[Chatbot B]
{response_b}"""


def _full() -> ConfigDict:
  """Makes the config with the paper's numbers for 7B.

  8.7k traces, about 72k pairs, GRPO with 7 completions of 1024 prompts.
  """
  c = ConfigDict(dict(seed=0, max_prompt_tokens=4096, stages=("sft", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="qwen2.5-7b-instruct"), dtype="bfloat16")
  pairs = dict(prompt=RUBRICS, chat=True, reference="{winner}", id="{id}")
  c.task = dict(
      source="jsonl", args=pairs, train=dict(path="pairs.jsonl", rows=":98%"),
      heldout=dict(path="pairs.jsonl", rows="98%:"))
  c.sft = dict(
      kind="sft", num_steps=68, batch_size=128, max_completion_tokens=8192,
      data=dict(
          source="jsonl", args=dict(pairs, solution="{trace}"),
          train=dict(path="traces.jsonl", rows=":98%"),
          heldout=dict(path="traces.jsonl", rows="98%:")),
      learner=dict(
          remat="full", optimizer=dict(learning_rate=5e-6, schedule="cosine", warmup_steps=5)))
  c.rl = dict(
      kind="policy_gradient", num_steps=70, rewards=dict(tail_verdict=1.0),
      rollout=dict(prompts=1024, group_size=7, slots=1024, sampling=dict(max_tokens=8192)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(mean_over="token", kl=dict(coef=0.001, estimator="k3")),
      learner=dict(minibatches=8, remat="full", optimizer=dict(learning_rate=7e-7)))
  c.evaluation = dict(
      rewards=dict(tail_verdict=1.0), num_problems=512, every=20,
      sampling=dict(max_tokens=8192, temperature=0.0))
  c.mesh = dict(fsdp=-1)
  return c
