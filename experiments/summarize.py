r"""Imitation, a reward model from comparisons, PPO with a KL penalty; and what becomes of it without (card 52).

    python -m rl_reason.claims experiments/summarize.py
    python -m rl_reason.train --config=experiments/summarize.py:ppo --workdir=runs/summarize
    ... :ppo-tiny      # Seconds; the tests run it.      ... :full     # 6.9B, Reddit TL;DR.

Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv:2009.01325. A reward model learns from pairs of summaries
which people prefer; a policy that imitates references is then trained with PPO on r - beta log(policy / imitating policy), with a
critic that starts as the reward model. Imitation can be no better than its references, PPO can. Pushed too far, the reward model's
score goes on rising while people like the summaries less.

Small (rl_reason/tasks/posts.py): posts of twelve facts of which three matter; summaries of up to five; true quality is known. Labels
follow it with noise, 10 % are a coin's. Arms: `ppo` (beta 0.05, a reward model of 8,000 pairs), `beta_02`, `beta_001`, `beta_0`;
`beta_0_few`: beta 0 and a model of 500 pairs; `sft_large`: imitation alone, four times as large. In all but the last the same stages
come first: imitation, and reward models of 500, 2,000 and 8,000 pairs.
"""

from collections.abc import Sequence
import functools
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict
import numpy as np

from rl_reason import ranking, run, sharding
from rl_reason.claims import measures
from rl_reason.rollout import encode_prompts, make_samples, Sampling
from rl_reason.tasks.posts import CHARACTERS, MOST, overlap, posts, quality
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.summarize"
PAIRS = {"rm_few": 500, "rm_some": 2000, "rm": 8000}  # Stage -> pairs that it learns from.
# Arm -> (beta, the reward model). The other arm is sft_large.
BETAS = {"ppo": (0.05, "rm"), "beta_02": (0.2, "rm"), "beta_001": (0.01, "rm"), "beta_0": (0.0, "rm"),
         "beta_0_few": (0.0, "rm_few")}
MAX_TOKENS, STEPS = 2 * MOST + 1, 120


def _own(name: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{name}", args=args)


_ALL = {name: dict(config=name) for name in BETAS}
_COMMON = dict(paper="Stiennon et al. 2020, arXiv:2009.01325", card=52)
_PREFERRED = dict(function="last", args=dict(name="eval/pass@1"))
CLAIMS = {
    "beats_references": dict(
        title="After PPO on a reward model summaries are preferred to their references in more than 55 of 100 posts",
        sentence="Policies trained with human feedback are preferred to the human references.",
        arms=_ALL | {"sft_large": dict(config="sft_large")}, treatment="ppo", compare="absolute", direction="higher", threshold=0.55,
        matched=(), metric=_PREFERRED, **_COMMON),
    "beats_larger": dict(
        title="... and more often, by 5 points, than those of a policy four times as large that only imitates",
        sentence="A 1.3B model with feedback is preferred to a 12.9B supervised one.",
        arms={name: dict(config=name) for name in ("ppo", "sft_large")}, treatment="ppo", baseline="sft_large",
        direction="higher", threshold=0.05, matched=(), metric=_PREFERRED, **_COMMON),
    "model_beats_overlap": dict(
        title="The best of N by the reward model is better than by overlap with the reference, for each N from 4 to 64",
        sentence="Optimising the reward model beats optimising ROUGE.",
        arms={"ppo": dict(config="ppo")}, treatment="ppo", compare="absolute", direction="higher", threshold=0.0, matched=(),
        metric=_own("model_over_overlap"),
        also={"one": _own("best_of", n=1, by="model"), "of 4": _own("best_of", n=4, by="model"),
              "of 16": _own("best_of", n=16, by="model"), "of 64": _own("best_of", n=64, by="model"),
              "of 16 by overlap": _own("best_of", n=16, by="overlap"), "of 64 by overlap": _own("best_of", n=64, by="overlap")},
        **_COMMON),
    "overoptimised": dict(
        title="Without a KL penalty and with few labels quality ends 0.2 below its peak while the score rises",
        sentence="Optimised too far, the reward model's score rises while true preference falls.",
        arms=_ALL, treatment="beta_0_few", compare="absolute", direction="higher", threshold=0.2, matched=(), metric=_own("fall"),
        also={"score, first to last": _own("score_gained"), "quality": dict(function="last", args=dict(name="reward/quality", points=10)),
              "KL, nats a summary": _own("divergence")}, **_COMMON),
    "data_helps_against_it": dict(
        title="... and falls less with sixteen times the labels", sentence="Larger reward data move the point of over-optimisation.",
        arms={name: dict(config=name) for name in ("beta_0", "beta_0_few")}, treatment="beta_0_few", baseline="beta_0",
        direction="higher", threshold=0.0, matched=("environment_calls",), metric=_own("fall"), **_COMMON),
    "accuracy_grows": dict(
        title="A reward model is more accurate with 2,000 pairs than with 500, and with 8,000 than with 2,000",
        sentence="Each doubling of data adds about 1.1 points of accuracy.",
        arms={"ppo": dict(config="ppo")}, treatment="ppo", compare="absolute", direction="higher", threshold=0.0, matched=(),
        metric=_own("smallest_gain"),
        also={str(n): dict(function="last", args=dict(name="eval/accuracy", stage=stage)) for stage, n in PAIRS.items()}, **_COMMON),
}


def preferred(samples: Sequence[Sample]) -> np.ndarray:
  """In {0, 0.5, 1}: whether the summary is truly better than the reference; 0.5 for one as good."""
  gaps = np.array([quality(s.prompt, s.completion) - quality(s.prompt, s.reference) for s in samples])
  return (0.5 + 0.5 * np.sign(np.round(gaps, 6))).astype(np.float32)


def true_quality(samples: Sequence[Sample]) -> np.ndarray:
  """posts.quality. Logged, weight 0."""
  return np.array([quality(s.prompt, s.completion) for s in samples], np.float32)


def cut(samples: Sequence[Sample]) -> np.ndarray:
  """1 where the limit ended a summary, else 0."""
  return np.array([s.truncated for s in samples], np.float32)


def fall(folder: Path, *, points: int = 10) -> float:
  """By how much the true quality ended below its peak, both as means of `points` steps."""
  values = np.convolve(measures.curve(folder, "reward/quality", "rl")[1], np.ones(points) / points, mode="valid")
  return float(values.max() - values[-1])


def score_gained(folder: Path, *, points: int = 10) -> float:
  """The reward model's score, the last steps' mean less the first ones'."""
  values = measures.curve(folder, "reward/learned", "rl")[1]
  return float(values[-points:].mean() - values[:points].mean())


def divergence(folder: Path) -> float:
  """KL to the imitating policy, nats a summary, in the last ten steps; 0 where no reference was asked for."""
  per_token = measures.last(folder, name="kl", stage="rl", points=10)
  return per_token * measures.last(folder, name="completion/length", stage="rl", points=10)


def smallest_gain(folder: Path) -> float:
  """The smaller of the two steps in accuracy from 500 over 2,000 to 8,000 pairs."""
  return float(np.diff([measures.last(folder, name="eval/accuracy", stage=stage) for stage in PAIRS]).min())


def model_over_overlap(folder: Path) -> float:
  """The smallest difference in true quality, over N = 4, 8, 16, 32, 64, of the best by the model and the best by overlap."""
  return min(best_of(folder, n=n, by="model") - best_of(folder, n=n, by="overlap") for n in (4, 8, 16, 32, 64))


def best_of(folder: Path, *, n: int, by: str) -> float:
  """The expected true quality of the best of n summaries of the imitating policy, by "model" or by "overlap"."""
  values, scores = _sampled(folder)
  return float(ranking.best_of_n(scores[by], values)[:, n - 1].mean())


@functools.lru_cache(maxsize=None)  # For several claims.
def _sampled(folder: Path, *, count: int = 64, num_posts: int = 64) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(true quality [posts, count], scores by what ranks them) of summaries that the imitating policy samples at 0.7."""
  partitioning = sharding.Partitioning(sharding.make_mesh())
  context, params = run.policy_of_run(f"{folder}:sft", partitioning)
  source = posts(size=num_posts, part="heldout", seed=json.loads((folder / "config.json").read_text())["seed"])
  problems = [source[i] for i in range(num_posts)]
  prompts = encode_prompts(problems, context.policy.tokenizer, max_tokens=context.max_prompt_tokens)
  with partitioning.use():
    completions = context.complete(
        params, problems, prompts, Sampling(max_tokens=MAX_TOKENS, temperature=0.7), group_size=count, slots=512,
        rng=jax.random.key(0))
  samples = make_samples(problems, completions, context.policy.tokenizer)
  model = run.scorer_of_run(f"{folder}:rm", partitioning)
  rows = model(model.encode_rows([(s.prompt, [s.completion]) for s in samples]))
  scores = {"model": [row.totals[0, 0] for row in rows], "overlap": [overlap(s.completion, s.reference) for s in samples]}
  shape = num_posts, count
  return true_quality(samples).reshape(shape), {name: np.array(s).reshape(shape) for name, s in scores.items()}


def get_config(argument: str = "ppo") -> ConfigDict:
  name, _, size = argument.partition("-")
  if argument == "full":
    return _full()
  if name not in (*BETAS, "sft_large") or size not in ("", "tiny"):
    raise ValueError(f"Unknown arm {argument!r}: use :full, or one of :{', :'.join(BETAS)}, :sft_large, alone or with -tiny.")
  tiny, large = size == "tiny", name == "sft_large"
  c = ConfigDict(dict(seed=0, max_prompt_tokens=25, stages=("sft",) if large else ("sft", *PAIRS, "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=32 if tiny else 128 if large else 64, num_layers=1 if tiny else 2, num_heads=2))
  c.task = dict(source="posts", args=dict(seed=c.get_ref("seed")), train=dict(part="train", size=64 if tiny else 20_000),
                heldout=dict(part="heldout", size=16 if tiny else 400))
  c.sft = dict(
      kind="sft", num_steps=2 if tiny else 600, batch_size=8 if tiny else 64, max_completion_tokens=MAX_TOKENS,
      optimizer=dict(learning_rate=3e-3, schedule="cosine", warmup_steps=1 if tiny else 20))
  c.evaluation = dict(
      rewards=dict(preferred=dict(function=f"{_MODULE}:preferred")), num_problems=16 if tiny else 400,
      batch_size=16 if tiny else 400, sampling=dict(max_tokens=MAX_TOKENS, temperature=0.0))
  c.checkpoint = dict(every=10_000, keep=1)
  if large:
    return c
  for stage, pairs in PAIRS.items():  # Two epochs each.
    c[stage] = dict(
        kind="reward_model", start="sft", num_steps=2 if tiny else pairs * 2 // 64, batch_size=8 if tiny else 64,
        max_response_tokens=2 * MOST + 3, heldout_rows=16 if tiny else 1000, data=dict(
            source="summary_pairs", args=dict(seed=c.get_ref("seed")), train=dict(part="train", size=40 if tiny else pairs),
            heldout=dict(part="heldout", size=16 if tiny else 1000, noise=0.0)),
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=1 if tiny else 5))
  beta, model = BETAS[name]
  c.rl = dict(
      kind="policy_gradient", start="sft", num_steps=2 if tiny else STEPS, prompts_per_step=8 if tiny else 64, group_size=1,
      epochs=2, sampling=dict(max_tokens=MAX_TOKENS), rewards=_rewards(model), baseline="none", normalise="token_whiten",
      mean_over="token", kl_in="reward", kl_estimator="k1", kl_coef=beta,
      critic=dict(trunk="separate", start=model, lam=0.95, value_coef=0.1,
                  optimizer=dict(learning_rate=1e-3, warmup_steps=1 if tiny else 5)),
      optimizer=dict(learning_rate=5e-4, warmup_steps=1 if tiny else 5))
  c.rl.rewards.quality = dict(function=f"{_MODULE}:true_quality", weight=0.0)
  return c


def _rewards(model: str) -> dict:
  """The model's score, references being worth 0; a summary without an end is worth -1 whatever it says."""
  return dict(
      learned=dict(args=dict(model=model, normalise="solutions"), gate=dict(component="cut", below=0.5)),
      cut=dict(function=f"{_MODULE}:cut", weight=-1.0))


def _full() -> ConfigDict:
  """The paper's numbers for 6.7B: TL;DR's 123,169 references, 64,832 comparisons, a million episodes."""
  c = ConfigDict(dict(seed=0, max_prompt_tokens=512, stages=("sft", "rm", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="pythia-6.9b"), dtype="bfloat16")
  c.task = dict(
      source="jsonl", args=dict(prompt="SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:", reference="{summary}",
                                solution=" {summary}", id="{id}"),
      train=dict(path="tldr_train.jsonl"), heldout=dict(path="tldr_valid.jsonl"))
  c.sft = dict(kind="sft", num_steps=962, batch_size=128, max_completion_tokens=64, remat="full",
               optimizer=dict(learning_rate=6e-6, schedule="cosine", warmup_steps=30))
  c.rm = dict(
      kind="reward_model", num_steps=1013, batch_size=64, max_response_tokens=64, bad_rows="drop", remat="full",
      data=dict(source="comparisons", args=dict(format="pairs", bad_rows="drop"), train=dict(path="comparisons.jsonl"),
                heldout=dict(path="comparisons_valid1.jsonl")),
      optimizer=dict(learning_rate=5e-6, schedule="cosine", warmup_steps=30))
  c.rl = dict(
      kind="policy_gradient", start="sft", num_steps=3906, prompts_per_step=256, group_size=1, epochs=4, remat="full",
      sampling=dict(max_tokens=48), rewards=_rewards("rm"), baseline="none", normalise="token_whiten", mean_over="token",
      kl_in="reward", kl_estimator="k1", kl_coef=0.05,
      critic=dict(trunk="separate", start="rm", lam=0.95, value_coef=0.1, optimizer=dict(learning_rate=7e-6)),
      optimizer=dict(learning_rate=7e-6, schedule="linear"))
  # Whether it answers at all; what a summary is worth another judge must say (rl_reason.judge).
  c.evaluation = dict(rewards=dict(pattern_format=dict(args=dict(pattern=r"\s*\S.*"))), num_problems=256,
                      sampling=dict(max_tokens=48, temperature=0.0))
  c.mesh = dict(fsdp=-1)
  return c
