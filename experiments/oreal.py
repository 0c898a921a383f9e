r"""Imitate one right answer, push away one wrong, and let a model of tokens say which of them mattered (card 39)

    python -m rl_reason.claims experiments/oreal.py
    python -m rl_reason.train --config=experiments/oreal.py:full --workdir=runs/oreal
    ... :full-tiny      # Seconds; the tests run it.      ... :full-7b     # OREAL-7B's numbers.

OREAL (Lyu et al. 2025, arXiv:2502.06781): with a reward of 1 or -1, a right completion is a sample of the best policy there is within
reach, so it is cloned; wrong ones need a gradient that is rescaled by how often the policy is right, which the leave-one-out
baseline does. Of each question one of each is kept (the reward `one_of_each`), normalised by their own numbers of tokens; a model that learns
beside the policy from the same outcomes weighs their tokens (stages/token_reward.py). With one update per rollout cloning and the
policy gradient of a right completion are the same step.

Small: sums of seven digits modulo 5, each written down (rl_reason/tasks/running_sums.py); a slip spoils all that comes after it. Arms
add one thing after another: `reinforce`: rewards of 1 and -1; `leave_one_out`; `pairs`: one right, one wrong of each question, half
the weight for the wrong; `full`: shares by token. `grpo` learns from all eight.

Inferred in the card: the small task and all thresholds. Where we depart from it: seven digits always, modulo 5; models of 0.1M;
100 steps of 16 questions; the token model's loss counts a completion by its tokens, and its head starts at 0 and not as a row
of the vocabulary; the KL penalty comes with `pairs`, the arms before have none; questions are not repeated by difficulty, no
data are added for skills that the policy lacks, no judge is asked where the rule says no; samples are of the whole distribution
(the paper: top-p 0.9), learning rates fall to 0 (a fifth of the peak); a small answer that the length limit cuts off counts by
what it says (`:full-7b`: as wrong); where no question has a pair the gradient is 0, and Adam's momentum still moves the policy.
The alarm for shares near 0 is the monitor `vanishing`; the arms measured here had none and would have rung it.

Result (five seeds, 45.4 % right before RL, commit dd9c7b3, 22 minutes of one core that others used too; held-out accuracy, right
answers in training in steps 11 to 20, means):

    arm             accuracy   steps 11-20   questions with a pair
    reinforce       0.983      0.817         0.378
    leave_one_out   0.979      0.806         0.420
    pairs           0.977      0.772         0.443
    full            0.758      0.505         0.899
    grpo            0.980      0.806         0.412

full minus reinforce -0.225 (-0.290 to -0.159), not 0.03: does not hold. Step by step: leave-one-out costs no point (-0.004, holds),
pairs -0.001 (-0.015 to 0.012, undecided about -0.01), shares -0.219 (-0.289 to -0.148), does not hold. The token model does not
find slips: AUROC 0.466 (0.393 to 0.539). Why: its loss stays at log 2, it is as good as a coin after 3,200 labelled completions,
and so the shares, 0.01 on average, are noise that the policy learns from. To tell a wrong sum from a right one it must learn to
check sums, which nothing in a policy of 0.1M that was taught to write them has ready, where the paper's is a 7B model that sees
1,024 completions a step. The implementation has the card's values, and with an outcome that is easy to see (does the completion
begin with 0 or 1) its accuracy goes from 0.53 to 0.82, and the policy from 0.32 to 0.93, in 40 steps. The other arms are at the
ceiling of the task, so that 3 points were out of reach: a harder one, and more labels for the token model, would be a change after
a result was seen; nothing was changed.
"""

from collections.abc import Sequence
import functools
from pathlib import Path

import jax
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
import numpy as np

from rl_reason.batches.prompts import encode_prompts
from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.evaluation import ranking
from rl_reason.rewards.answers import exact_answer, math_answer
from rl_reason.rollout.samples import make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import earlier
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient import token_reward
from rl_reason.tasks.worlds.running_sums import CHARACTERS, running_sums, step_values, work_of
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.oreal"
DIGITS, MODULUS, MAX_TOKENS, GROUP = 7, 5, 10, 8
_PAIRS = dict(
    credit=dict(baseline="leave_one_out", normalise="per_sign", negative_weight=0.5,
                keep=dict(by="pair")),
    objective=dict(kl=dict(coef=0.01)))
_SHARES = dict(outcome="answer", warmup_steps=10, optimizer=dict(learning_rate=2e-3))
# Arm -> fields of the stage.
ARMS = {
    "reinforce": dict(credit=dict(baseline="none")),
    "leave_one_out": dict(credit=dict(baseline="leave_one_out")),
    "pairs": _PAIRS,
    "full": dict(_PAIRS, credit=dict(_PAIRS["credit"], token_model=_SHARES)),
    "grpo": dict(credit=dict(baseline="group_mean", normalise="group_std")),
}

_COMMON = dict(
    paper="Lyu et al. 2025, arXiv:2502.06781", card=39, direction="higher", seeds=5, matched=("environment_calls",))
_EXACT = dict(metric=dict(function="last", args=dict(name="eval/pass@1", stage="rl")))


def _step(title: str, treatment: str, baseline: str) -> dict:
  return dict(
      title=title, sentence="Each part of the method adds to the one before (ablation on MATH-500).", treatment=treatment,
      baseline=baseline, arms={name: dict(config=name) for name in (treatment, baseline)}, threshold=-0.01, **_EXACT, **_COMMON)


CLAIMS = {
    "beats_reinforce": dict(
        title="OREAL is right 3 points more often than REINFORCE", sentence="91.0 on MATH-500 where REINFORCE has 85.8.",
        arms={name: dict(config=name) for name in ARMS}, treatment="full", baseline="reinforce", threshold=0.03,
        also={"before RL": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "pass@8": dict(function="last", args=dict(name="eval/pass@8", stage="rl")),
              "questions with a pair": dict(function=f"{_MODULE}:usable", args={}),
              "first 20 steps": dict(function=f"{_MODULE}:early", args={})}, **_EXACT, **_COMMON),
    "leave_one_out_adds": _step("The leave-one-out baseline costs no point against none", "leave_one_out", "reinforce"),
    "pairs_add": _step("One right and one wrong of eight completions cost no point against all eight", "pairs", "leave_one_out"),
    "shares_add": _step("Shares by token cost no point against equal ones", "full", "pairs"),
    "finds_slips": dict(
        title="The token model's weights of wrong completions tell what comes after a slip: AUROC of 0.75",
        sentence="The token-level reward model finds the tokens that matter.", arms={"full": dict(config="full")}, treatment="full",
        compare="absolute", threshold=0.75, metric=dict(function=f"{_MODULE}:localisation", args={}),
        also={"by position alone": dict(function=f"{_MODULE}:position_alone", args={}),
              "among equal positions": dict(function=f"{_MODULE}:content_alone", args={})},
        **(_COMMON | dict(matched=()))),
}


def ended_answer(samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
  """Outcome reward in {0, 1}: math_answer's, but 0 where the length limit cut the completion off, whatever it holds."""
  return math_answer(samples) * np.array([not s.truncated for s in samples], np.float32)


ended_answer.check_references = math_answer.check_references
ended_answer.per_sample = True


def usable(folder: Path) -> float:
  """The share of questions, over all steps, with a right and a wrong completion."""
  return float(measures.curve(folder, "reward/pair", "rl")[1].mean()) * GROUP / 2


def early(folder: Path) -> float:
  """The share of right answers in training from step 11 to step 20, after the token model's warm-up."""
  return float(measures.curve(folder, "reward/answer", "rl")[1][10:20].mean())


def localisation(folder: Path) -> float:
  """AUROC of the token model's shares of wrong completions for "at the first wrong sum or after it", over all tokens."""
  shares, late, chosen = _wrong_completions(folder)
  return ranking.area_under_curve(shares[chosen].tolist(), late[chosen].tolist())


def position_alone(folder: Path) -> float:
  """The same of the number of the token: what can be had without a look at any."""
  shares, late, chosen = _wrong_completions(folder)
  places = np.broadcast_to(np.arange(shares.shape[1]), shares.shape)
  return ranking.area_under_curve(places[chosen].tolist(), late[chosen].tolist())


def content_alone(folder: Path) -> float:
  """The same among tokens of one position, where their number tells nothing."""
  return at_equal_positions(*_wrong_completions(folder))


def at_equal_positions(
    scores: Float[np.ndarray, "N T"], labels: Bool[np.ndarray, "N T"], chosen: Bool[np.ndarray, "N T"]) -> float:
  """Probability that of two chosen entries in one column, of either label, the true one scores higher; ties count a half."""
  areas, pairs = [], []
  for values, truth, some in zip(scores.T, labels.T, chosen.T):
    if (area := ranking.area_under_curve(values[some], truth[some])) is not None:
      areas.append(area)
      pairs.append(truth[some].sum() * (~truth[some]).sum())
  return float(np.average(areas, weights=pairs))


def after_slip(samples: Sequence[Sample], size: int, *, modulus: int) -> Bool[np.ndarray, "N size"]:
  """True from the first wrong sum of each completion on; nowhere if all sums are right."""
  late = np.zeros((len(samples), size), bool)
  for i, sample in enumerate(samples):
    values = step_values(sample.prompt, work_of(sample.completion), modulus=modulus)
    late[i, next((t for t, value in enumerate(values) if value < 1), size):] = True
  return late


@functools.lru_cache(maxsize=1)  # Three measures of a run look at them.
def _wrong_completions(
    folder: Path, *, problems: int = 64, per_problem: int = 8,
) -> tuple[Float[np.ndarray, "N T"], Bool[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """(the token model's shares were all wrong, after_slip, true at tokens of completions that are wrong).

  Of held-out problems, sampled by the policy before RL, which has enough wrong ones.
  """
  stages, _ = earlier.open_run(str(folder))
  context, params = stages.run, stages.policy("sft")
  source = running_sums(size=problems, part="heldout", digits=DIGITS, modulus=MODULUS)
  rows = [source[i] for i in range(problems)]
  prompts = encode_prompts(rows, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with context.partitioning.use():
    completions = context.sampler(params, rows, prompts, Sampling(max_tokens=MAX_TOKENS), group_size=per_problem,
                                   rng=jax.random.key(1))
    before = np.asarray(critic_lib.score(
        context.policy.config, stages.sections["rl"].token_reward, None, stages.finished("rl")["critic"], prompts,
        completions.tokens, completions.lengths, None))
  samples, mask = make_samples(rows, completions, context.policy.tokenizer), completions.sampled
  shares, _ = token_reward.shares(before, np.zeros(mask.shape, bool), mask, mask)
  return shares, after_slip(samples, mask.shape[1], modulus=MODULUS), mask & (exact_answer(samples) < 1)[:, None]


def get_config(argument: str = "full") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ARMS, whole="full-7b")
  if not name:
    return _full()
  tiny = size == "tiny"
  c = ConfigDict(dict(seed=0, max_prompt_tokens=DIGITS + 1, stages=("sft", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=32 if tiny else 64, num_layers=1 if tiny else 2, num_heads=2))
  c.task = dict(
      source="running_sums", args=dict(seed=0, digits=DIGITS, modulus=MODULUS),
      train=dict(part="train", size=100 if tiny else 20_000, careless=0.14),
      heldout=dict(part="heldout", size=16 if tiny else 256))
  c.sft = dict(
      kind="sft", num_steps=2 if tiny else 700, batch_size=8 if tiny else 64,
      max_completion_tokens=MAX_TOKENS,
      learner=dict(
          optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=1 if tiny else 20)))
  c.rl = dict(
      kind="policy_gradient", num_steps=3 if tiny else 100, rewards=_rewards("exact_answer"),
      rollout=dict(
          prompts=4 if tiny else 16, group_size=GROUP, sampling=dict(max_tokens=MAX_TOKENS)),
      objective=dict(mean_over="token", kl=dict(estimator="k3")),
      learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=1 if tiny else 5)))
  c.rl.update(ARMS[name])
  if tiny and name == "full":
    c.rl.credit.token_model.warmup_steps = 1
  c.evaluation = dict(
      rewards=dict(exact_answer=1.0), num_problems=16 if tiny else 256, samples_per_problem=2 if tiny else 8,
      batch_size=16 if tiny else 128, sampling=dict(max_tokens=MAX_TOKENS))
  c.checkpoint = dict(every=10_000, keep=1)
  return c


def _rewards(verifier: str, outcome: dict | None = None) -> dict:
  """1 for a right answer and -1 for a wrong one; which completions are kept where pairs are. outcome: the verifier as a rewards
  section; None: by its name."""
  return dict(
      answer=dict(function=verifier, transforms=(dict(name="clip", offset=0.5),), weight=2.0),
      pair=dict(function="one_of_each", args=dict(outcome=outcome or {verifier: 1.0}), weight=0.0))


def _full() -> ConfigDict:
  """OREAL-7B's configuration: 64 questions of 16 completions for 90 steps, up to 14,000 tokens."""
  c, ended = ConfigDict(dict(seed=0, max_prompt_tokens=2048, stages=("rl",))), f"{_MODULE}:ended_answer"
  c.policy = dict(source="pretrained", args=dict(path="oreal-7b-sft"), dtype="bfloat16")
  c.task = dict(source="jsonl", args=dict(prompt="{question}", chat=True, reference="{answer}", id="{id}"),
                train=dict(path="oreal_rl_prompts.jsonl"), heldout=dict(path="math500.jsonl"))
  c.rl = dict(
      kind="policy_gradient", num_steps=90,
      rewards=_rewards(ended, dict(ended=dict(function=ended))),
      rollout=dict(
          prompts=64, group_size=16, slots=256, page_tokens=256, sampling=dict(max_tokens=14_000)),
      objective=dict(mean_over="token", kl=dict(estimator="k3")),
      learner=dict(
          remat="full",
          optimizer=dict(learning_rate=5e-7, schedule="cosine", warmup_steps=10, args=dict(weight_decay=0.01))))
  c.rl.monitors = {f"{name}_shares": dict(monitor="vanishing", args=dict(value=f"token_reward/{name}"))
                   for name in ("positive", "negative")}
  c.rl.update(_PAIRS)
  c.rl.credit.token_model = dict(_SHARES, optimizer=dict(
      learning_rate=2e-6, schedule="cosine", warmup_steps=10, args=dict(weight_decay=0.01)))
  c.evaluation = dict(rewards=dict(math_answer=1.0), num_problems=500, every=10,
                      sampling=dict(max_tokens=14_000, temperature=0.0))
  c.mesh = dict(fsdp=-1)
  return c
