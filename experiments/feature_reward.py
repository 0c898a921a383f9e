r"""Do seven scores of a text teach a reward model from a twentieth of the preferences that its words need? (card 18)

    python -m rl_reason.claims experiments/feature_reward.py
    python -m rl_reason.train --config=experiments/feature_reward.py:features --workdir=runs/features
    ... :features-tiny      # Seconds; the tests run it.      ... :full     # A 1B policy, your scorer's server, your pairs.

Nath et al. 2024, "Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF", arXiv:2402.15473: who knows the
domain lists what makes a summary good; each criterion is scored, and the reward model is a small network from these scores
to a number (rl_reason/feature_models.py), so that 940 preferences suffice. It also says what people like.

Small (rl_reason/tasks/reviews.py): summaries of a product's reviews, with seven features, of which scorers see noisy
fifths, and a hidden utility that is not linear in them; a tenth of the labels are wrong. Beside it reward models that read
the text, of 940 and of 19,740 pairs. Arms: `features`, `text`: a policy trained on either model of 940 pairs.

Where we depart from the card: text model and policy of 0.15M, not 1.3M; 60 steps of RL, not 100; the text's model with two
numbers of pairs, 940 (five passes) and 19,740 (one), not seven; GRPO, not PPO, at small scale; no model of synthetic
feedback. All settings of training, the small world and the thresholds are inferred in the card; its list of features is
recalled from the paper.

Result (three seeds, commit a97c6d4, 40 minutes of one core that others used too; the text's model of 940 pairs and all
policies begin with the same imitation). Accuracy on 2,000 clean pairs, means:

    features, 47 to 4,700 pairs    0.850  0.840  0.917  0.912  0.938 (940)  0.942
    plain mean of the features     0.914                 text, 940 pairs   0.692      text, 19,740 pairs   0.783

    as_good_as_many        features - text of 19,740   0.155 (0.097 to 0.213)   above -0.01: holds
    better_than_as_few     features - text of 940      0.246 (0.225 to 0.266)   above 0.05: holds
    without_two_features   ... of five features        0.174 (0.119 to 0.229)   below 0.02: does not hold
    better_policy          utility 5.08 against 3.68   1.40 (-0.61 to 3.41)     above 0: undecided; 0.79, 1.09 and 2.32
    no_alignment_tax       ROUGE-L 0.518 -> 0.822      0.304 (0.249 to 0.360)   above -0.005: holds

The falsifier fails, and so, in the card's words, the test is too easy: what the first two claims show is mostly that a text
model of this size hardly learns to compare summaries with reviews, and not that these features matter. Opinion coverage
knows of wrong opinions, too, when faithfulness is gone; and the plain mean, which no preference taught, beats the text's
model of 19,740. Over that mean 940 preferences gain 2.4 points, and 47 lose 6. The features' policy is better in every
seed, as the card asks; the text's is worse than imitation (4.16), for RL finds what its model mistakes, by how much differs
between seeds, and the interval is wide.

Changed before any result: the claim about ROUGE-L compares the same 100 held-out products before and after, not a first
step's 16; a smaller text model. What features matter, by the accuracy that is lost when they are shuffled: faithfulness
0.15, opinion coverage 0.12, aspect coverage 0.09, no hallucination 0.03, the others below 0.02.
"""

from collections.abc import Sequence
import functools
import json
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.scorers import features
from rl_reason.tasks.worlds import reviews
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.feature_reward"
FEW, MANY = 940, 19_740
MAX_TOKENS = reviews.MOST + 1


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Nath et al. 2024, arXiv:2402.15473", card=18, arms={"features": dict(config="features"), "text": dict(config="text")},
    treatment="features")
_WITHIN = dict(compare="absolute", matched=(), **_COMMON)
CLAIMS = {
    "as_good_as_many": dict(
        title="940 preferences and seven features are worth 19,740 preferences and the text, within a point of accuracy",
        sentence="Domain knowledge cuts the number of preferences by 21.", metric=_own("advantage", over=MANY), direction="higher",
        threshold=-0.01, also={f"features, {n}": _own("feature_accuracy", pairs=n) for n in (47, 94, 235, 470, 940, 4700)} | {
            "mean of the features": _own("mean_accuracy"), "text, 940": _own("text_accuracy", pairs=FEW),
            "text, 19,740": _own("text_accuracy", pairs=MANY)}, **_WITHIN),
    "better_than_as_few": dict(
        title="With 940 preferences features beat the text by 5 points of accuracy",
        sentence="The domain's features are what makes few preferences suffice.", metric=_own("advantage", over=FEW),
        direction="higher", threshold=0.05, **_WITHIN),
    "without_two_features": dict(
        title="Without faithfulness and hallucination the advantage over the text falls below 2 points",
        sentence="The advantage is that of the domain's knowledge: a check of the task (the card's falsifier).",
        metric=_own("advantage", over=FEW, without=("faithfulness", "no_hallucination")), direction="lower", threshold=0.02,
        also={f"lost without {name}": _own("lost_without", name=name) for name in reviews.NAMES}, **_WITHIN),
    "better_policy": dict(
        title="A policy trained on the features' model is liked better than one trained on the text's",
        sentence="Summaries of the policy are preferred.", baseline="text", direction="higher", threshold=0.0,
        metric=dict(function="last", args=dict(name="reward/utility", stage="rl", points=10)), matched=("environment_calls",),
        also={"before": _own("first", name="reward/utility"), "ROUGE-L": _own("overlap", stage="rl"),
              "ROUGE-L before": _own("overlap", stage="sft")},
        **_COMMON),
    "no_alignment_tax": dict(
        title="... and loses less than half a point of ROUGE-L against the policy before", sentence="There is no alignment tax.",
        metric=_own("overlap_gained"), direction="higher", threshold=-0.005, **_WITHIN),
}


def scores(samples: Sequence[Sample]) -> np.ndarray:
  """[N, 7] in [0, 1]: what scorers see of the features (reviews.observed)."""
  return np.array([reviews.observed(s.prompt, s.completion) for s in samples]).reshape(-1, len(reviews.NAMES))


def utility(samples: Sequence[Sample]) -> np.ndarray:
  """What people think of a summary, up to 5.5. Logged, weight 0."""
  return np.array([reviews.utility(s.prompt, s.completion) for s in samples], np.float32)


def rouge_l(samples: Sequence[Sample]) -> np.ndarray:
  """In [0, 1]: F1 of the longest common subsequence with the reference, by characters. Logged, weight 0."""
  return np.array([_rouge_l(s.completion, s.reference) for s in samples], np.float32)


def _rouge_l(ours: str, theirs: str) -> float:
  row = np.zeros(len(theirs) + 1, int)
  for a in ours:
    before = row.copy()
    for j, b in enumerate(theirs):
      row[j + 1] = before[j] + 1 if a == b else max(before[j + 1], row[j])
  return 2 * row[-1] / (len(ours) + len(theirs)) if ours and theirs else 0.0


def first(folder: Path, *, name: str) -> float:
  """Of the policy before RL: the first step's."""
  return float(measures.curve(folder, name, "rl")[1][0])


def overlap(folder: Path, *, stage: str) -> float:
  """Mean ROUGE-L of the stage's last samples, one of each held-out product: the same products whatever the stage."""
  files = sorted((folder / "samples").glob(f"{stage}-*.json"), key=lambda path: int(path.stem.split("-")[1]))
  return float(np.mean([_rouge_l(row["completion"], row["reference"]) for row in json.loads(files[-1].read_text())]))


def overlap_gained(folder: Path) -> float:
  return overlap(folder, stage="rl") - overlap(folder, stage="sft")


def text_accuracy(folder: Path, *, pairs: int) -> float:
  """On clean pairs, of the reward model that reads the text."""
  return measures.last(folder, name="eval/accuracy", stage={FEW: "rm_few", MANY: "rm_many"}[pairs])


def advantage(folder: Path, *, over: int, without: tuple[str, ...] = ()) -> float:
  """Accuracy on clean pairs of the features' model of 940 pairs, less that of the text's of `over`."""
  return feature_accuracy(folder, pairs=FEW, without=tuple(without)) - text_accuracy(folder, pairs=over)


def mean_accuracy(folder: Path) -> float:
  """On the same pairs, of the features' plain mean, which needs no preferences."""
  seed = measures.config(folder)["seed"]
  better, worse = (side.mean(axis=1) for side in _features(seed, "heldout", 2000, 0.0))
  return float(np.mean((better > worse) + 0.5 * (better == worse)))


def lost_without(folder: Path, *, name: str) -> float:
  """Permutation importance of a feature for the model of 940 pairs: the accuracy that is lost when its values are shuffled."""
  seed = measures.config(folder)["seed"]
  better, worse = (side[:FEW] for side in _features(seed, "train", 4700, 0.1))
  model = features.fit(better, worse, names=reviews.NAMES)
  return features.importance(model, *_features(seed, "heldout", 2000, 0.0)).get(name, 0.0)


def feature_accuracy(folder: Path, *, pairs: int, without: tuple[str, ...] = ()) -> float:
  """On 2,000 clean pairs, of a model of the features' scores that learnt from so many pairs of the run's world."""
  seed, kept = measures.config(folder)["seed"], [n for n in reviews.NAMES if n not in without]
  places = [reviews.NAMES.index(n) for n in kept]
  sides = [side[:, places] for side in _features(seed, "train", 4700, 0.1)]
  model = features.fit(*(side[:pairs] for side in sides), names=kept)
  return features.accuracy(model, *(side[:, places] for side in _features(seed, "heldout", 2000, 0.0)))


@functools.lru_cache(maxsize=None)  # For several claims.
def _features(seed: int, part: str, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
  source = reviews.review_pairs(size=size, seed=seed, part=part, noise=noise)
  rows = [source[i] for i in range(size)]
  return tuple(np.array([reviews.observed(r.prompt, r.responses[side]) for r in rows]) for side in (0, 1))


def get_config(argument: str = "features") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ("features", "text"), whole="full")
  if not name:
    return _full()
  tiny = size == "tiny"
  c = ConfigDict(dict(seed=0, max_prompt_tokens=33, stages=("sft", "rm_few", "rm_many", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=reviews.CHARACTERS, width=32 if tiny else 64, num_layers=1 if tiny else 3, num_heads=2 if tiny else 4))
  seed = c.get_ref("seed")
  c.task = dict(source="reviews", args=dict(seed=seed), train=dict(part="train", size=64 if tiny else 10_000),
                heldout=dict(part="heldout", size=16 if tiny else 100))
  c.sft = dict(
      kind="sft", num_steps=2 if tiny else 400, batch_size=8 if tiny else 32,
      max_completion_tokens=MAX_TOKENS,
      learner=dict(
          optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=1 if tiny else 20)))
  # Five passes over few pairs, one over many: without a validation set for each, our guess.
  for stage, pairs, steps in (("rm_few", FEW, 147), ("rm_many", MANY, 617)):
    c[stage] = dict(
        kind="reward_model", start="sft", num_steps=2 if tiny else steps,
        batch_size=8 if tiny else 32, max_response_tokens=MAX_TOKENS,
        heldout_rows=16 if tiny else 2000, data=dict(
            source="review_pairs", args=dict(seed=seed), train=dict(part="train", size=40 if tiny else pairs),
            heldout=dict(part="heldout", size=16 if tiny else 2000, noise=0.0)),
        learner=dict(
            optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=1 if tiny else 20)))
  by_features = dict(function="feature_reward", args=dict(
      scorers=dict(expert=dict(function=f"{_MODULE}:scores", several=reviews.NAMES)),
      data=dict(source="review_pairs", args=dict(seed=seed, part="train", size=40 if tiny else FEW))))
  by_text = dict(function="learned", args=dict(model="rm_few"))
  c.rl = dict(
      kind="policy_gradient", start="sft", num_steps=2 if tiny else 60, rewards=dict(
          quality=by_features if name == "features" else by_text,
          utility=dict(function=f"{_MODULE}:utility", weight=0.0), rouge=dict(function=f"{_MODULE}:rouge_l", weight=0.0)),
      rollout=dict(prompts=4 if tiny else 16, group_size=8, sampling=dict(max_tokens=MAX_TOKENS)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(mean_over="token", kl=dict(coef=0.05, estimator="k3")),
      learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=1 if tiny else 5)))
  # The ideal summary, letter by letter; what it is worth otherwise is logged in training.
  c.evaluation = dict(rewards=dict(rouge=dict(function=f"{_MODULE}:rouge_l")), num_problems=16 if tiny else 100,
                      batch_size=16 if tiny else 100, sampling=dict(max_tokens=MAX_TOKENS))
  c.checkpoint = dict(every=10_000, keep=1)
  return c


CRITERIA = {
    "aspect_coverage": "It covers the aspects that the reviews discuss.", "faithfulness": "Its opinions are those of the reviewers.",
    "opinion_coverage": "It covers the reviewers' opinions, the frequent ones first.", "conciseness": "It is concise.",
    "relevance": "It is about the product.", "no_hallucination": "It says nothing that no review says.", "language": "Its language is right."}


def _criterion(text: str) -> dict:
  template = f"""Rate a summary of product reviews from 0 (not at all) to 5 (fully) by one criterion alone: {text}

[Reviews]
{{prompt}}

[Summary]
{{response}}

End with your rating in double brackets, e.g. [[{{high}}]]."""
  return dict(function="judge_rating", args=dict(
      template=template, low=0, high=5, abstention=None, generate="chat_endpoint",
      generate_args=dict(url="http://localhost:8000/v1", model="mistral-7b-instruct")))


def _full() -> ConfigDict:
  """A 1B decoder on reviews of 1,024 tokens, seven criteria asked of a server, 940 preferences, PPO."""
  c = ConfigDict(dict(seed=0, max_prompt_tokens=1024, stages=("sft", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="llama3.2-1b"), dtype="bfloat16")
  c.task = dict(source="jsonl", args=dict(prompt="{reviews}\nSummary:", reference="{summary}", solution=" {summary}", id="{id}"),
                train=dict(path="prompt_opin_summ.jsonl", rows=":98%"), heldout=dict(path="prompt_opin_summ.jsonl", rows="98%:"))
  c.sft = dict(
      kind="sft", num_steps=1000, batch_size=64, max_completion_tokens=128,
      learner=dict(
          remat="full", optimizer=dict(learning_rate=1e-5, schedule="cosine", warmup_steps=30)))
  c.rl = dict(
      kind="policy_gradient", num_steps=500,
      rewards=dict(quality=dict(function="feature_reward", args=dict(
          scorers={name: _criterion(text) for name, text in CRITERIA.items()},
          data=dict(source="comparisons", args=dict(format="pairs", path="opin_pref.jsonl", bad_rows="drop")))), ),
      rollout=dict(prompts=64, group_size=1, sampling=dict(max_tokens=128)),
      credit=dict(
          baseline="none", normalise="token_whiten", critic=dict(trunk="shared", lam=0.95)),
      objective=dict(mean_over="token", kl=dict(added_to="reward", estimator="k1", coef=0.05)),
      learner=dict(epochs=4, remat="full", optimizer=dict(learning_rate=1e-5)))
  c.evaluation = dict(rewards=dict(pattern_format=dict(args=dict(pattern=r"\s*\S.*"))), num_problems=256,
                      sampling=dict(max_tokens=128))
  c.mesh = dict(fsdp=-1)
  return c
