r"""Is a thinking reward that lies about some questions made harmless by trust and annealing?

Card 30, as text.

    python -m rl_reason.claims experiments/trust_grpo.py
    python -m rl_reason.train --config=experiments/trust_grpo.py:full --workdir=runs/trust
    ... :full-tiny      # Seconds; the tests run it.
    ... :full-full      # Qwen2.5-7B-Instruct, MATH, your judge of thinking.

SophiaVL-R1 (Fan et al. 2025, arXiv:2505.17018): a completion is paid for its answer and for its
thinking, which a model rates as a whole. In a group where wrong answers have the better ratings
the ratings are trusted less, by exp(mu_c - mu_w) (rewards.composition.trust.group_trust), and
their weight, 0.3 at first, decays as exp(-step / steps). No further completion is sampled.

Small (rl_reason/tasks/worlds/grids.py): count the cells of a colour, row by row. For three colours
the rating is the share of rows that are counted rightly; for two, which are two fifths of the
questions, it is the share of rows that say 0. Arms:

    outcome    the answer alone
    plain      the rating as it is
    annealed   the rating decays
    full       ... with trust, too
    dropped    trusted fully wherever a group has right and wrong answers, and dropped elsewhere
    learned    as `full`, with a model that was trained on such ratings, as many of each

Inferred in the card: the small task, its sizes and all thresholds. Where we depart from it: cells
are characters and no patches of an image; a policy of 0.2M; the term is dropped where a group is
all right or all wrong, as the paper's code does and the paper leaves open.

Result (twelve seeds, 16.0 % right before RL, commit 2a6da30, 22 minutes of one core; held-out
accuracy, means):

    arm        all     reliable   unreliable   rows right where   trust of groups with right and
                                               the answer is      wrong answers
                                                                  reliable   unreliable
    outcome    0.367   0.368      0.365        0.540              0.939      0.927
    plain      0.288   0.329      0.218        0.625              0.948      0.923
    annealed   0.301   0.346      0.221        0.604              0.950      0.922
    full       0.367   0.380      0.345        0.555              0.940      0.919
    dropped    0.368   0.369      0.366        0.556              0.938      0.918

full minus outcome is -0.000 (-0.023 to 0.023): does not hold. full minus plain, on unreliable
colours, is 0.127 (0.027 to 0.227): undecided about 0.05, and above 0. Trust is 0.021 lower (0.016
to 0.026) where the rating lies, not 0.15: does not hold. The implementation gives the card's
values.

Why: among eight answers to one question ratings of right and of wrong ones hardly differ, on any
colour, for a sum can be right by luck with wrong rows, and a row that says 0 is often right; so
trust is near 1 where it can be told at all. What saves `full` from the harm that `annealed` takes
is the other half of the rule: groups all right or all wrong, where a lie is the only thing that is
paid, get nothing. `dropped`, which has that half alone, does as well as `full`, which is 0.001
(-0.016 to 0.017) below it. A rating that is paid makes more of the thinking behind right answers
sound, and fewer answers right.

What changed after results were seen: with three seeds (0.575 of outcome, 0.558 of full, 0.366 of
plain; both accuracy claims undecided) `dropped` was added, and with five, as undecided, all twelve
were asked for, whatever they would say. Three seeds of twelve (0, 1 and 8) learn to count, to 0.5
and more, the others hardly: a mean over the first three says little here.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.rewards.composition.trust import group_trust
from rl_reason.tasks.worlds.grids import CHARACTERS, rating, rows_right, thinking_of
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.trust_grpo"
ARMS = ("outcome", "plain", "annealed", "full", "dropped", "learned")
WEIGHT, STEPS = 0.3, 150


def _last(name: str) -> dict:
  return dict(function="last", args=dict(name=name, stage="rl"))


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Fan et al. 2025, arXiv:2505.17018", card=30, treatment="full",
    # `learned` is dear, and was in the first round.
    arms={name: dict(config=name) for name in ARMS if name != "learned"},
    matched=("environment_calls", "updates"))
CLAIMS = {
    "beats_outcome": dict(
        title="Thinking rewards with trust and annealing beat the outcome alone by 3 points",
        sentence="Trust-GRPO outperforms GRPO on outcome rewards.",
        baseline="outcome", metric=_last("eval/pass@1"), direction="higher", threshold=0.03,
        also={"before RL": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "reliable": _last("eval/pass@1/reliable"),
              "unreliable": _last("eval/pass@1/unreliable"),
              "rows right where the answer is": _own("sound"),
              "trust, reliable": _own("mean_trust", kind="reliable"),
              "unreliable ": _own("mean_trust", kind="unreliable")}, **_COMMON),
    "beats_plain": dict(
        title="Trust and annealing gain 5 points where the thinking reward lies",
        sentence="Without trust and annealing the thinking reward costs accuracy.",
        baseline="plain", metric=_last("eval/pass@1/unreliable"), direction="higher",
        threshold=0.05, **_COMMON),
    "distrusts_lies": dict(
        title="Trust is lower where the thinking reward lies, by 0.15",
        sentence="The trust weight tells where the thinking reward is unreliable.",
        compare="absolute", metric=_own("trust_gap"), direction="higher", threshold=0.15,
        **(_COMMON | dict(matched=()))),
}


# Rewards.


def counted(samples: Sequence[Sample]) -> np.ndarray:
  """Outcome reward in {0, 1}: 1 for four counts, "#" and the right sum, whatever the counts are."""
  right = [bool(thinking_of(s.completion)) and s.completion[-1] == s.reference for s in samples]
  return np.array(right, np.float32)


def thinking(samples: Sequence[Sample]) -> np.ndarray:
  """Rates the four counts (grids.rating): in [0, 1]; 0 for another form."""
  ratings = [
      rating(s.prompt, thinking_of(s.completion), s.metadata["unreliable"]) for s in samples]
  return np.array(ratings, np.float32)


def sound_answer(samples: Sequence[Sample]) -> np.ndarray:
  """Returns a right answer's share of rows counted rightly: in [0, 1]; 0 of a wrong answer.

  It is logged, with weight 0.
  """
  shares = [rows_right(s.prompt, thinking_of(s.completion)) for s in samples]
  return counted(samples) * np.array(shares, np.float32)


class TrustByKind:
  """Rewards nothing, and logs the trust that each kind of questions would get.

  It is the mean over the groups of a step that have right and wrong answers.
  """

  def __init__(self):
    self._metrics: dict[str, float] = {}

  def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
    trust = group_trust(thinking(samples), counted(samples), [s.group for s in samples])
    kinds = np.array([s.metadata["kind"] for s in samples])
    found = {kind: trust[(kinds == kind) & (trust > 0)] for kind in ("reliable", "unreliable")}
    self._metrics = {kind: float(values.mean()) for kind, values in found.items() if len(values)}
    return np.zeros(len(samples), np.float32)

  def metrics(self) -> dict[str, float]:
    return self._metrics


# What the claims compare.


def sound(folder: Path) -> float:
  """Returns the share of rows counted rightly where the answer is right: of the last ten steps."""
  return (measures.last(folder, name="reward/sound", stage="rl", points=10)
          / measures.last(folder, name="reward/answer", stage="rl", points=10))


def mean_trust(folder: Path, *, kind: str) -> float:
  """Averages trust over all steps that have groups of this kind with right and wrong answers."""
  return float(measures.curve(folder, f"reward/by_kind/{kind}", "rl")[1].mean())


def trust_gap(folder: Path) -> float:
  """Returns by how much trust is lower where the rating lies."""
  return mean_trust(folder, kind="reliable") - mean_trust(folder, kind="unreliable")


# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 100, "task.heldout.size": 16,
    "sft.num_steps": 2, "sft.batch_size": 8, "sft.learner.optimizer.warmup_steps": 1,
    "rl.num_steps": 2, "rl.rollout.prompts": 4, "rl.learner.optimizer.warmup_steps": 1,
    "evaluation.num_problems": 16, "evaluation.samples_per_problem": 1, "evaluation.batch_size": 16,
}
TINY_LEARNED = {  # Of the arm `learned`.
    "trm.num_steps": 2, "trm.batch_size": 8, "trm.heldout_rows": 16, "trm.data.train.size": 100,
    "trm.data.heldout.size": 16, "trm.learner.optimizer.warmup_steps": 1,
}


def get_config(argument: str = "full") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ARMS, sizes=("tiny", "full"))
  if size == "full":
    return _full(name)
  learned = name == "learned"
  c = ConfigDict(dict(
      seed=0, max_prompt_tokens=19, stages=("sft", "trm", "rl") if learned else ("sft", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=96, num_layers=2, num_heads=4))
  c.task = dict(
      source="grid_problems", args=dict(seed=0),
      train=dict(part="train", size=20_000, careless=0.25), heldout=dict(part="heldout", size=500))
  c.sft = dict(
      kind="sft", num_steps=600, batch_size=64, max_completion_tokens=7,
      learner=dict(optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=20)))

  # The rating, or a model of ratings.
  rated = dict(function=f"{_MODULE}:thinking")
  if learned:
    rated = dict(function="learned", args=dict(model="trm"),
                 transforms=(dict(name="clip", low=0.0, high=1.0),))
    c.trm = dict(
        kind="reward_model", start="initial", num_steps=600, batch_size=64, loss="regression",
        max_response_tokens=7, heldout_rows=500,
        data=dict(
            source="grid_ratings", args=dict(seed=0), train=dict(part="train", size=20_000),
            heldout=dict(part="heldout", size=500)),
        learner=dict(optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=20)))

  # GRPO.
  c.rl = dict(
      kind="policy_gradient", num_steps=STEPS,
      rewards=_rewards(name, dict(function=f"{_MODULE}:counted"), rated, STEPS),
      rollout=dict(prompts=16, group_size=8, sampling=dict(max_tokens=7)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(mean_over="sequence", kl=dict(coef=0.04, estimator="k3")),
      learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=5)))
  c.rl.rewards.sound = dict(function=f"{_MODULE}:sound_answer", weight=0.0)
  c.rl.rewards.by_kind = dict(function=f"{_MODULE}:TrustByKind", weight=0.0)
  c.evaluation = dict(
      rewards=dict(answer=dict(function=f"{_MODULE}:counted")), num_problems=500, by="kind",
      samples_per_problem=4, batch_size=250, sampling=dict(max_tokens=7))
  c.checkpoint = dict(every=10_000, keep=1)
  return sized(c, size, tiny=TINY | TINY_LEARNED if learned else TINY)


def _rewards(name: str, answer: dict, rated: dict, steps: int) -> dict:
  """Makes the answer's reward and, unless the arm is `outcome`, the thinking's."""
  rewards = dict(answer=answer)
  if name != "outcome":
    decaying = dict(schedule="exponential", start=WEIGHT, end=0.0, steps=steps)
    rewards["thinking"] = dict(rated, weight=WEIGHT if name == "plain" else decaying)
  if name in ("full", "learned"):
    rewards["thinking"]["trust"] = dict(component="answer")
  elif name == "dropped":
    rewards["thinking"]["trust"] = dict(component="answer", least=1.0)
  return rewards


THINKING = """\
Rate the thinking in a response to a question from 0 to 10. Judge its logic, whether its steps are \
right, whether it finds
its errors, whether its language is consistent, and whether it repeats itself. Do not judge the \
answer.

[Question]
{prompt}

[Response]
{response}

End with your rating in double brackets, e.g. [[7]]."""


def _full(name: str) -> ConfigDict:
  """Makes the config with the paper's numbers for 7B, on questions in text.

  16 prompts of 8 completions, 1,500 steps; the rating is your server's.
  """
  steps = 1500
  c = ConfigDict(dict(seed=0, max_prompt_tokens=2048, stages=("rl",)))
  c.policy = dict(source="pretrained", args=dict(path="qwen2.5-7b-instruct"), dtype="bfloat16")
  c.task = dict(
      source="jsonl", args=dict(
          prompt="{problem}\nThink within <think> and </think>, then give the answer as"
                 " \\boxed{{}} within <answer> and </answer>.",
          chat=True, reference="{answer}", id="{id}"),
      train=dict(path="math_train.jsonl"), heldout=dict(path="math_test.jsonl"))
  # Both rewards are paid only where the response has the form.
  form = dict(component="form", above=0.5)
  rated = dict(
      function="judge_rating", gate=form,
      args=dict(
          template=THINKING, low=0, high=10, generate="chat_endpoint", generate_args=dict(
              url="http://localhost:8000/v1", model="thinking-reward-3b", retries=10)))
  c.rl = dict(
      kind="policy_gradient", num_steps=steps,
      rewards=_rewards(name, dict(function="math_answer", gate=form), rated, steps),
      rollout=dict(prompts=16, group_size=8, sampling=dict(max_tokens=1024)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(mean_over="sequence", kl=dict(coef=0.04, estimator="k3")),
      learner=dict(remat="full", optimizer=dict(learning_rate=5e-7)))
  c.rl.rewards.form = dict(function="think_format", weight=0.0)
  c.evaluation = dict(
      rewards=dict(math_answer=1.0), num_problems=500, every=100,
      sampling=dict(max_tokens=1024, temperature=0.0))
  c.mesh = dict(fsdp=-1)
  return c
