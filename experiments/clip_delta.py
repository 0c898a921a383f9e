r"""Do Clip and Delta make a process reward safe to train with? (card 07)

    python -m rl_reason.claims experiments/clip_delta.py
    python -m rl_reason.train --config=experiments/clip_delta.py:clip_delta --workdir=runs/clip
    ... :clip_delta-tiny      # Seconds; the tests run it.
    ... :clip_delta-full      # Qwen2-1.5B, MathInstruct.

Gao et al. 2024, "On Designing Effective RL Reward at Training Time for LLM Reasoning",
arXiv:2410.15115. PPO is paid alpha * (sum of step rewards) + 1 for a right answer. A process reward
that likes every step (arm `pr`) pays a policy that goes on for ever. Clip pays min(score - eta, 0):
good steps earn nothing, bad ones lose. Delta pays differences between one step and the next, so
that what is collected from a step on is that step's score, whatever follows. Clip-Delta is both, in
this order. `sr` has no step reward; `orm` has an outcome model's score at the end in its place.

Small (rl_reason/tasks/worlds/running_sums.py): "4302=" -> "224#4", sums of digits modulo 5, where N
is a step that does nothing. The step score is known: 1 while all sums are right, 0.1 from the first
wrong one on; N keeps it, which is what makes repetition pay. Solutions to imitate have 12 % wrong
sums and 12 % N. A response without steps has no step rewards.

Inferred in the card: alpha (all claims here are at 1.0), eta (0.9), PPO's numbers, the task, all
thresholds; that Delta "fails" is given the number that the card has for pr, 30 points. Where we
depart from it: PPO with a critic (gamma = lambda = 1, the paper's method) in place of its dry run's
REINFORCE with a baseline per position; the outcome model learns from solutions as imitated and not
from samples; 900 steps of imitation for 1,800 (its loss is at the data's entropy, 0.43, after 600),
120 updates for 200 (without a step reward 0.89 after 11). Not here: alpha = 0.5, the weak start
that Clip fails from, and the claim that Clip-Delta beats sr with a learned process reward (8 digits
modulo 10), which cannot show on a task that sr masters.

Result (three seeds, commit 8cfb7c6, 10 minutes of one core; held-out accuracy and steps of the last
ten updates, means):

    arm          accuracy   steps   truncated        before RL: 0.679
    sr           0.989      3.0     0
    orm          0.995      3.0     0
    pr           0.000      15.0    1.0
    clip         0.993      3.0     0
    delta        0.774      6.8     0.085
    clip_delta   0.993      3.0     0
    pr_02        0.966                               alpha = 0.2
    delta_02     0.969

Holds: pr costs 0.989 (0.970 to 1.007) and has 4.98 (4.94 to 5.02) times the steps. clip_delta has
0.998 (0.991 to 1.004) times the steps of sr, and its accuracy less that of sr is 0.004 (-0.011 to
0.019), above -0.02.

Undecided: delta is 0.219 (-0.616 to 1.05) below clip_delta, not clearly 0.30. One seed of three
ends at 0.39, the others at 0.98 and 0.96, where they answer after a few idle steps. pr_02 less sr
is -0.022 (-0.130 to 0.086), about -0.02: two seeds lose nothing and one loses 0.07.

An earlier measurement of all but alpha = 0.2 (commit 24f6422, the same configs, other rounding) had
clip_delta less sr undecided, -0.002 (-0.033 to 0.029), and delta at 0.946, not 0.30 below: what an
idle policy ends at is not steady over three seeds.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
import numpy as np

from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.tasks.worlds.running_sums import CHARACTERS, step_values, work_of
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.clip_delta"
ETA = 0.9
_CLIP, _DELTA = dict(name="clip", offset=ETA, high=0.0), dict(name="delta")
# Arm -> transforms of the step scores; None: there are none.
ARMS = {
    "sr": None, "orm": None, "pr": (), "clip": (_CLIP,), "delta": (_DELTA,),
    "clip_delta": (_CLIP, _DELTA)}


def step_scores(samples: Sequence[Sample], *, after_slip: float = 0.1) -> StepRewards:
  """Returns what a process reward model would say of each step: in [0, 1] (step_values).

  A step is a character before the marker.
  """
  values = [
      np.array(step_values(
          s.prompt, work_of(s.completion), modulus=s.metadata["modulus"], after_slip=after_slip))
      for s in samples]
  return StepRewards(values, [np.arange(len(row)) for row in values])


def num_steps(samples: Sequence[Sample]) -> np.ndarray:
  """Counts the steps before the marker: in [0, inf). It is logged, with weight 0."""
  return np.array([len(work_of(s.completion)) for s in samples], np.float32)


_STEPS = dict(function="last", args=dict(name="reward/steps", stage="rl", points=10))
_ACCURACY = dict(function="last", args=dict(name="eval/pass@1", stage="rl"))
_COMMON = dict(
    paper="Gao et al. 2024, arXiv:2410.15115", card=7, matched=("updates", "environment_calls"),
    arms={name: dict(config=name) for name in ARMS})
# The same with alpha = 0.2.
_SMALL = {
    f"{name}_02": dict(config=name, overrides={"rl.rewards.process.weight": 0.2})
    for name in ("pr", "delta")}
CLAIMS = {
    "pr_loses": dict(
        title="A raw process reward, summed over steps, costs 30 points of accuracy",
        sentence="Adding a process reward model's scores to a success reward degrades training:"
                 " 30.58 to 11.16 on MATH.",
        treatment="sr", baseline="pr", metric=_ACCURACY, direction="higher", threshold=0.30,
        also={"before RL": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "steps": _STEPS,
              "truncated": dict(
                  function="last", args=dict(name="completion/truncated", stage="rl", points=10)),
              "mean return": dict(
                  function="last", args=dict(name="reward/mean", stage="rl", points=10)),
              "seconds": dict(function="total", args=dict(name="time/step", stage="rl"))},
        **_COMMON),
    "pr_repeats": dict(
        title="A raw process reward makes responses more than three times as long, in steps",
        sentence="The policy repeats steps that score well and do nothing.",
        treatment="pr", baseline="sr", compare="ratio", metric=_STEPS, direction="higher",
        threshold=3.0, **_COMMON),
    "clip_delta_learns": dict(
        title="With Clip and Delta a process reward costs less than 2 points of accuracy",
        sentence="Clip and Delta together let process rewards be used in training.",
        treatment="clip_delta", baseline="sr", metric=_ACCURACY, direction="higher",
        threshold=-0.02, **_COMMON),
    "clip_delta_stops": dict(
        title="With Clip and Delta responses have less than 1.3 times the steps",
        sentence="The return of any trajectory is bounded, so that there is nothing to gain by"
                 " repetition.",
        treatment="clip_delta", baseline="sr", compare="ratio", metric=_STEPS, direction="lower",
        threshold=1.3, **_COMMON),
    "delta_fails": dict(
        title="Delta alone still pays a policy that never stops: 30 points below Clip-Delta",
        sentence="Card 07's own warning: paid at the step, Delta rewards one more step with that"
                 " step's score.",
        treatment="clip_delta", baseline="delta", metric=_ACCURACY, direction="higher",
        threshold=0.30, **_COMMON),
    "small_weight": dict(
        title="With a weight of 0.2 a raw process reward costs less than 2 points of accuracy",
        sentence="Card 07's dry run: at alpha = 0.2 all arms ended within about a point of each"
                 " other, and none was hacked.",
        treatment="pr_02", baseline="sr", metric=_ACCURACY, direction="higher", threshold=-0.02,
        **{**_COMMON, "arms": {"sr": dict(config="sr"), **_SMALL}}),
}


# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 100, "task.heldout.size": 16,
    "sft.num_steps": 2, "sft.batch_size": 8, "sft.learner.optimizer.warmup_steps": 1,
    "rl.num_steps": 2, "rl.rollout.prompts": 8, "rl.learner.optimizer.warmup_steps": 1,
    "rl.credit.critic.optimizer.warmup_steps": 1,
    "evaluation.num_problems": 16, "evaluation.samples_per_problem": 2, "evaluation.batch_size": 16,
}
TINY_ORM = {  # Of the arm `orm`.
    "orm.num_steps": 2, "orm.batch_size": 8, "orm.heldout_rows": 16, "orm.data.train.size": 100,
    "orm.data.heldout.size": 16, "orm.learner.optimizer.warmup_steps": 1,
}


def get_config(argument: str = "clip_delta") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ARMS, sizes=("tiny", "full"))
  if size == "full":
    return _full(name)
  c = ConfigDict(dict(
      seed=0, max_prompt_tokens=5, stages=("sft", "orm", "rl") if name == "orm" else ("sft", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=64, num_layers=2, num_heads=4))
  train = dict(part="train", size=20_000, careless=0.12, idle=0.12)
  heldout = dict(part="heldout", size=256)
  c.task = dict(source="running_sums", args=dict(seed=0), train=train, heldout=heldout)
  c.sft = dict(
      kind="sft", num_steps=900, batch_size=128, max_completion_tokens=12,
      learner=dict(optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=50)))

  # The outcome model.
  if name == "orm":
    c.orm = dict(
        kind="reward_model", num_steps=400, batch_size=128, max_response_tokens=12, loss="binary",
        heldout_rows=256,
        data=dict(
            source="labelled_sums", args=dict(seed=0), train=train,
            heldout=dict(heldout, careless=0.12, idle=0.12)),
        learner=dict(optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=20)))

  # PPO.
  c.rl = dict(
      kind="policy_gradient", num_steps=120,
      rewards=_rewards(name, "exact_answer", dict(function=f"{_MODULE}:step_scores")),
      rollout=dict(prompts=192, group_size=1, sampling=dict(max_tokens=15)),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(
              trunk="separate", lam=1.0, optimizer=dict(learning_rate=2e-3, warmup_steps=5))),
      objective=dict(mean_over="token", kl=dict(added_to="reward", estimator="k1", coef=0.02)),
      learner=dict(optimizer=dict(learning_rate=1e-3, warmup_steps=5)))
  c.rl.rewards.steps = dict(function=f"{_MODULE}:num_steps", weight=0.0)
  c.evaluation = dict(
      rewards=dict(exact_answer=1.0), num_problems=256, samples_per_problem=4, every=0,
      batch_size=256, sampling=dict(max_tokens=15))
  c.checkpoint = dict(every=10_000, keep=1)
  return sized(c, size, tiny=TINY | TINY_ORM if name == "orm" else TINY)


def _rewards(name: str, answer: str, process: dict) -> dict:
  """Makes the answer's reward and, with alpha as the weight, the steps' or the outcome model's."""
  if name == "orm":  # Paid by the logit's probability.
    process = dict(function="learned", args=dict(model="orm"), transforms=("bounded",))
  elif ARMS[name] is None:
    return {answer: 1.0}
  else:
    process = dict(process, transforms=(*process.get("transforms", ()), *ARMS[name]))
  return {answer: 1.0, "process": dict(process, weight=1.0)}


def _full(name: str) -> ConfigDict:
  """Makes the config with the paper's numbers for 1.5B, where they are known.

  PPO on MathInstruct, 1,024 questions with 8 completions. The paper's process model is a 7B one
  that learnt from Monte-Carlo labels; here it is trained first on the policy's own trunk, in the
  format of Math-Shepherd. To take another run's write its folder for model="prm".
  """
  model = {"sr": (), "orm": ("orm",)}.get(name, ("prm",))
  c = ConfigDict(dict(seed=0, max_prompt_tokens=1024, stages=(*model, "rl")))
  c.policy = dict(source="pretrained", args=dict(path="qwen2-1.5b-instruct"), dtype="bfloat16")
  c.task = dict(
      source="jsonl", args=dict(prompt="{question}\n", reference="{answer}", id="{id}"),
      train=dict(path="mathinstruct.jsonl", rows=":98%"), heldout=dict(path="math_test.jsonl"))
  if model:
    steps = name != "orm"
    c[model[0]] = dict(
        kind="reward_model", num_steps=6000, batch_size=64, max_response_tokens=2048,
        loss="binary", bad_rows="drop",
        data=dict(
            source="comparisons",
            args=dict(format="math_shepherd" if steps else "ratings", bad_rows="drop"),
            train=dict(path=f"{model[0]}.jsonl", rows=":98%"),
            heldout=dict(path=f"{model[0]}.jsonl", rows="98%:")),
        **dict(labels="steps", read="steps", aggregate="min") if steps else {},
        learner=dict(
            remat="full", optimizer=dict(learning_rate=1e-5, schedule="cosine", warmup_steps=100)))
  # Probabilities from logits; a response with a score that is not finite earns 0 and is counted.
  process = dict(
      function="learned", args=dict(model="prm", per="step", on_nan="zero"),
      transforms=("bounded",))
  c.rl = dict(
      kind="policy_gradient", num_steps=100, rewards=_rewards(name, "math_answer", process),
      rollout=dict(prompts=1024, group_size=8, slots=256, sampling=dict(max_tokens=2048)),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(trunk="separate", lam=1.0, optimizer=dict(learning_rate=5e-6))),
      objective=dict(kl=dict(added_to="reward", estimator="k1", coef=0.05)),
      learner=dict(minibatches=8, remat="full", optimizer=dict(learning_rate=1e-6)))
  if model:
    c.rl.rewards.process.weight = 0.1
  c.evaluation = dict(
      rewards=dict(math_answer=1.0), num_problems=500, every=20, sampling=dict(max_tokens=2048))
  c.mesh = dict(fsdp=-1)
  return c
