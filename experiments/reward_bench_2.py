r"""Does the score of a harder benchmark say what a reward model is good for? (card 43)

    python -m rl_reason.claims experiments/reward_bench_2.py
    python -m rl_reason.train --config=experiments/reward_bench_2.py:zoo --workdir=runs/zoo
    ... :zoo-tiny      # A minute; the tests run it.      ... :full     # An 8B model and PPO with it, and its score:
    python -m rl_reason.judge --scorer=reward_model --scorer_args='{"workdir": "runs/full:rm"}' --format=reward_bench_2 \
        --data='reward-bench-2/*.parquet'   # allenai/reward-bench-2.

RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): one right answer and three wrong ones in five domains, and a sixth
in which many answers are equally right and should be scored alike (ranking.ties_score); the score is the mean of the
six. Over a zoo of reward models it is compared with what they choose of sixteen samples, and with what a policy becomes
that is trained with them: the paper finds that it tells the first, while RL needs a model that is good enough and of the
policy's own kind.

Small (rl_reason/tasks/bench_world.py): six kinds of questions whose answers can be checked, in two dialects. Twelve
reward models: of 300, 1,000 or 4,000 pairs, with none, 20 or 45 % of the labels turned round, for one or two passes, on
top of a policy that imitates dialect a or b. The policy that samples, and that is trained for 40 steps with each, speaks
a and is right in about half of its answers. The benchmark is in both dialects. The seed is the world's, too.

Cut from the card: twelve models in place of sixteen, of 0.1M parameters in place of 1M; 40 RL steps in place of 60; sums
modulo 10 in place of 97, five letters to a category in place of three to seven, some sixty characters in place of 96 ids.
The dialects share prompts and their filler and differ in how answers are written. The card leaves open in which dialect
the benchmark is, and what "pairwise" averages over: here the same five domains as the best of four, each wrong answer
against the right one. Thresholds are the card's, which calls them inferred. The last claim takes the largest of many
differences, so noise speaks for it; the third divides the ranges of four models, and what RL gives, a mean over 640
sampled answers, is the noisier one, which speaks against it.

Result (six seeds, commit 063e00d, 19 minutes of one core of an AMD EPYC; three seeds came first and left all but the
second claim undecided, so three more were run, all else as it was). The policy is right in 0.44 to 0.54 of its answers
before.

    tells_best_of_16    r of score and best of 16         0.843 (0.764 to 0.922)   above 0.7: holds
    harder_than_pairs   accuracy on two less on four      0.154 (0.146 to 0.162)   above 0.10: holds
    enough_is_enough    range after RL / of best of 16    0.927 (0.671 to 1.18)    below 0.5: does not hold
    kinship_matters     the largest mismatch              0.171 (0.059 to 0.282)   above 0: holds, in every seed

The score tells what RL makes of a model nearly as well as what it chooses: r = 0.768 (0.610 to 0.926); so it does not
only divide bad models from adequate ones. After RL, means by training of the reward model (pairs, labels turned round):

    own dialect     4,000: 0.59   20 %: 0.49   45 %: 0.28   1,000: 0.49   20 %: 0.40   45 %: 0.28   300: 0.30   20 %: 0.33
    the other one   4,000: 0.52   20 %: 0.47                1,000: 0.33                              300: 0.31

Why the third does not hold: the better half of eight models is four; in three of four seeds looked at one or two of
these are of 300 pairs, and RL ends below the start with them. None is "adequate" as the paper's models are; the ratio
also divides ranges of four numbers. A model of the other dialect loses 8 points of RL at 4,000 pairs and 17 at 1,000.
Accuracy on pairs goes with best of 16 as well as the harder score does, r = 0.824: harder is not more telling here.
"""

from collections.abc import Sequence
import functools
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason import judge
from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.evaluation import estimates, ranking, reward_models
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import earlier
from rl_reason.tasks.worlds import bench_world
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.reward_bench_2"
# Dialect, pairs, share of labels turned round, passes.
ZOO = (("a", 4000, 0.0, 2), ("a", 4000, 0.2, 1), ("a", 4000, 0.45, 2), ("a", 1000, 0.0, 2), ("a", 1000, 0.2, 2),
       ("a", 1000, 0.45, 1), ("a", 300, 0.0, 2), ("a", 300, 0.2, 1), ("b", 4000, 0.0, 2), ("b", 4000, 0.2, 2),
       ("b", 1000, 0.0, 2), ("b", 300, 0.0, 1))
RECORDS, MAX_TOKENS = 350, bench_world.LONGEST + 2


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Malik et al. 2025, arXiv:2506.01937", card=43, arms={"zoo": dict(config="zoo")}, treatment="zoo",
    compare="absolute", matched=())
CLAIMS = {
    "tells_best_of_16": dict(
        title="The benchmark's score of twelve reward models goes with what they choose of 16: Pearson's r of 0.7",
        sentence="The score correlates with best-of-N performance (0.87).", metric=_own("correlation"), direction="higher",
        threshold=0.7, also={"with RL": _own("correlation", gain="rl"), "pairs, best of 16": _own("correlation", of="pairs"),
                             "score, mean": _own("mean", of="score"), "best of 16, mean": _own("mean", of="best_of"),
                             "after RL, mean": _own("mean", of="rl")}, **_COMMON),
    "harder_than_pairs": dict(
        title="Reward models are 10 points less often right of four answers than of two, in the same five domains",
        sentence="Models score about 20 points lower than on pairs.", metric=_own("mean", of="pairs", less="choices"),
        direction="higher", threshold=0.10, **_COMMON),
    "enough_is_enough": dict(
        title="Of the better half of the models of the policy's dialect RL ends within half the range of their best of 16",
        sentence="For PPO the score only separates bad models from adequate ones.", metric=_own("range_ratio"),
        direction="lower", threshold=0.5, **_COMMON),
    "kinship_matters": dict(
        title="Some model of the other dialect beats one of the policy's own on the benchmark and makes a worse policy",
        sentence="A mismatch between reward model and policy hurts more than a lower score.", metric=_own("worst_mismatch"),
        direction="higher", threshold=0.0, **_COMMON),
}


def right(samples: Sequence[Sample]) -> np.ndarray:
  """In {0, 1}: whether the answer, in the policy's dialect, is right (bench_world.is_right)."""
  return np.array([bench_world.is_right(s.metadata["world"], s.prompt.rstrip("="), bench_world.understood(
      s.completion, s.metadata["dialect"])) for s in samples], np.float32)


def correlation(folder: Path, *, of: str = "score", gain: str = "best_of") -> float:
  """Pearson's r over the zoo; names as in `_zoo`."""
  found = _zoo(folder)
  return estimates.pearson(found[of], found[gain])[0]


def mean(folder: Path, *, of: str, less: str = "") -> float:
  """Over the zoo, less the mean of another number."""
  found = _zoo(folder)
  return float(np.mean(found[of]) - (np.mean(found[less]) if less else 0.0))


def range_ratio(folder: Path) -> float:
  """Of the models of dialect a, the better half by score: the range of what RL makes of them over that of best of 16."""
  found = _zoo(folder)
  own = [i for i, dialect in enumerate(found["dialect"]) if dialect == "a"]
  top = sorted(own, key=lambda i: -found["score"][i])[:max(2, len(own) // 2)]
  return float(np.ptp([found["rl"][i] for i in top]) / max(np.ptp([found["best_of"][i] for i in top]), 1e-9))


def worst_mismatch(folder: Path) -> float:
  """The largest of what RL makes of a model of dialect a, less of one of b with a higher score; -1 if there is none."""
  found = _zoo(folder)
  rows = list(zip(found["dialect"], found["score"], found["rl"]))
  return max((rl_a - rl_b for a, score_a, rl_a in rows for b, score_b, rl_b in rows
              if (a, b) == ("a", "b") and score_b > score_a), default=-1.0)


@functools.lru_cache(maxsize=None)  # For several claims.
def _zoo(folder: Path) -> dict[str, list]:
  """Of each reward model in turn: its dialect; the benchmark's "score"; in the five domains of one right answer and three
  wrong ones "choices", accuracy on all four, and "pairs", on the right one and one wrong; "best_of" 16; "rl": what the
  policy becomes. All but the score in [0, 1]."""
  config = measures.config(folder)
  names = [stage for stage in config["stages"] if stage.startswith("rm")]
  records = bench_world.bench_records(size=RECORDS, world=config["seed"])
  samples, rights = _samples(folder)
  domains = [d for d in bench_world.DOMAINS.values() if d != "ties"]
  found = {"dialect": [config[name]["start"][-1] for name in names], **{
      number: [] for number in ("score", "pairs", "choices", "best_of", "rl")}}
  for name in names:
    report = reward_models.judge(judge.reward_model(workdir=f"{folder}:{name}"), records).estimates
    found["score"].append(report["top1/average"].value)
    for number, metric in (("pairs", "accuracy"), ("choices", "top1")):
      found[number].append(float(np.mean([report[f"{metric}/{d}"].value for d in domains])))
    model = earlier.scorer_of_run(f"{folder}:{name}")
    rows = model(model.encode_rows([(s[0].prompt, [x.completion or "." for x in s]) for s in samples]))
    scores = ranking.floored(ranking.failures_last([row.totals[:, 0] for row in rows])[0])
    found["best_of"].append(float(ranking.best_of_n(np.stack(scores), rights)[:, -1].mean()))
    found["rl"].append(measures.last(folder, name="reward/right", stage=name.replace("rm", "rl"), points=5))
  return found


def _samples(folder: Path, *, count: int = 16, num_problems: int = 100) -> tuple[list[list[Sample]], np.ndarray]:
  """(samples of the imitating policy by problem, whether they are right [problems, count])."""
  world = measures.config(folder)["seed"]
  source = bench_world.bench_problems(size=num_problems, world=world, part="heldout")
  samples, _ = earlier.complete(
      f"{folder}:sft_a", [source[i] for i in range(num_problems)], Sampling(max_tokens=MAX_TOKENS), group_size=count, seed=2)
  return [samples[i:i + count] for i in range(0, len(samples), count)], right(samples).reshape(-1, count)


def get_config(argument: str = "zoo") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ("zoo",), whole="full")
  if not name:
    return _full()
  tiny = size == "tiny"
  zoo = [ZOO[i] for i in (0, 3, 8)] if tiny else ZOO
  models = [f"rm{i:02d}" for i in range(len(zoo))]
  c = ConfigDict(dict(
      seed=0, max_prompt_tokens=6, stages=("sft_a", "sft_b", *models, *(m.replace("rm", "rl") for m in models))))
  c.policy = dict(source="small", args=dict(
      characters=bench_world.CHARACTERS, width=32 if tiny else 64, num_layers=1 if tiny else 2, num_heads=2))
  world, sampling = c.get_ref("seed"), dict(max_tokens=MAX_TOKENS)
  problems = dict(source="bench_problems", args=dict(world=world))
  c.task = dict(problems, train=dict(part="train", size=64 if tiny else 8000),
                heldout=dict(part="heldout", size=16 if tiny else 200))
  for dialect in "ab":
    c[f"sft_{dialect}"] = dict(
        kind="sft", start="initial", num_steps=2 if tiny else 400, batch_size=8 if tiny else 64,
        max_completion_tokens=MAX_TOKENS, data=dict(
            problems, train=dict(part="train", size=64 if tiny else 8000, careless=0.4, dialect=dialect),
            heldout=dict(part="heldout", size=16, dialect=dialect)),
        learner=dict(
            optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=1 if tiny else 20)))
  for model, (dialect, pairs, flip, passes) in zip(models, zoo):
    c[model] = dict(
        kind="reward_model", start=f"sft_{dialect}",
        num_steps=2 if tiny else pairs * passes // 32, batch_size=8 if tiny else 32,
        heldout_rows=16 if tiny else 200, max_response_tokens=MAX_TOKENS, data=dict(
            source="bench_pairs", args=dict(world=world, dialect=dialect),
            train=dict(part="train", size=40 if tiny else pairs, flip=flip),
            heldout=dict(part="heldout", size=16 if tiny else 200)),
        learner=dict(
            optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=1 if tiny else 5)))
    c[model.replace("rm", "rl")] = dict(
        kind="policy_gradient", start="sft_a", num_steps=2 if tiny else 40,
        rewards=dict(learned=dict(args=dict(model=model, normalise="mean_std")),
                                        right=dict(function=f"{_MODULE}:right", weight=0.0)),
        rollout=dict(prompts=4 if tiny else 32, group_size=4, sampling=sampling),
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(mean_over="token", kl=dict(coef=0.05, estimator="k3")),
        learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=1 if tiny else 5)))
  c.evaluation = dict(rewards=dict(right=dict(function=f"{_MODULE}:right")), num_problems=16 if tiny else 200,
                      batch_size=16 if tiny else 200, sampling=sampling)
  c.checkpoint = dict(every=10_000, keep=1)
  return c


def _full() -> ConfigDict:
  """The paper's study for one of its models: Bradley-Terry on preferences from the policy's own Tulu-3-8B-SFT, then PPO."""
  c = ConfigDict(dict(seed=0, max_prompt_tokens=2048, stages=("rm", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="tulu3-8b-sft"), dtype="bfloat16")
  c.task = dict(source="jsonl", args=dict(prompt="{question}", chat=True, reference="{answer}", id="{id}"),
                train=dict(path="ppo_prompts.jsonl"), heldout=dict(path="gsm8k_test.jsonl"))
  c.rm = dict(
      kind="reward_model", num_steps=4218, batch_size=128, max_response_tokens=2048,
      bad_rows="drop",
      data=dict(source="comparisons", args=dict(format="pairs", bad_rows="drop"), train=dict(path="tulu3_preferences.jsonl"),
                heldout=dict(path="tulu3_preferences_heldout.jsonl")),
      learner=dict(
          remat="full", optimizer=dict(learning_rate=3e-6, schedule="linear", warmup_steps=126)))
  c.rl = dict(
      kind="policy_gradient", num_steps=1000, rewards=dict(learned=dict(args=dict(model="rm"))),
      rollout=dict(prompts=128, group_size=1, slots=128, sampling=dict(max_tokens=2048)),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(trunk="separate", start="rm", optimizer=dict(learning_rate=3e-7))),
      objective=dict(kl=dict(added_to="reward", estimator="k1", coef=0.05)),
      learner=dict(epochs=4, remat="full", optimizer=dict(learning_rate=3e-7, schedule="linear")))
  c.evaluation = dict(
      rewards=dict(number_answer=1.0), num_problems=256, every=100, sampling=dict(max_tokens=1024, temperature=0.0))
  c.mesh = dict(fsdp=-1)
  return c
