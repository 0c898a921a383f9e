r"""Does a reward model of seven scores need a twentieth of the preferences that a text's needs?

Card 18.

    python -m rl_reason.claims experiments/feature_reward.py
    python -m rl_reason.train --config=experiments/feature_reward.py:features --workdir=runs/reviews
    ... :features-tiny      # Seconds; the tests run it.
    ... :full               # A 1B policy, your scorer's server, your pairs.

Nath et al. 2024, "Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF",
arXiv:2402.15473. Someone who knows the domain lists what makes a summary good; each criterion is
scored, and the reward model is a small network from these scores to a number
(rl_reason/scorers/features.py), so that 940 preferences suffice. The network also says what people
like.

Small (rl_reason/tasks/worlds/reviews.py): summaries of a product's reviews. They have seven
features, of which scorers see noisy fifths, and a hidden utility that is not linear in them; a
tenth of the labels are wrong. Beside the features' model there are reward models that read the
text, of 940 and of 19,740 pairs. Arms: `features`, `text`: a policy trained on either model of 940
pairs.

Where we depart from the card: text model and policy of 0.15M, not 1.3M; 60 steps of RL, not 100;
the text's model with two numbers of pairs, 940 (five passes) and 19,740 (one), not seven; GRPO, not
PPO, at small scale; no model of synthetic feedback. All settings of training, the small world and
the thresholds are inferred in the card; its list of features is recalled from the paper.

Result (three seeds, commit a97c6d4, 40 minutes of one core that others used too; the text's model
of 940 pairs and all policies begin with the same imitation). Accuracy on 2,000 clean pairs, means:

    features: pairs   47      94      235     470     940     4,700
              accuracy 0.850  0.840   0.917   0.912   0.938   0.942
    plain mean of the features     0.914
    text, 940 pairs                0.692
    text, 19,740 pairs             0.783

    as_good_as_many        features - text of 19,740   0.155 (0.097 to 0.213)   above -0.01: holds
    better_than_as_few     features - text of 940      0.246 (0.225 to 0.266)   above 0.05: holds
    without_two_features   ... of five features        0.174 (0.119 to 0.229)   below 0.02: does not
    better_policy          utility 5.08 against 3.68   1.40 (-0.61 to 3.41)     above 0: undecided
                           (by seed 0.79, 1.09 and 2.32)
    no_alignment_tax       ROUGE-L 0.518 -> 0.822      0.304 (0.249 to 0.360)   above -0.005: holds

The falsifier fails, and so, in the card's words, the test is too easy: what the first two claims
show is mostly that a text model of this size hardly learns to compare summaries with reviews, and
not that these features matter. Opinion coverage knows of wrong opinions, too, when faithfulness is
gone; and the plain mean, which no preference taught, beats the text's model of 19,740. Over that
mean 940 preferences gain 2.4 points, and 47 lose 6. The features' policy is better in every seed,
as the card asks. The text's is worse than imitation (4.16), for RL finds what its model mistakes;
by how much differs between seeds, and the interval is wide.

Changed before any result: the claim about ROUGE-L compares the same 100 held-out products before
and after, not a first step's 16; a smaller text model. What features matter, by the accuracy that
is lost when they are shuffled: faithfulness 0.15, opinion coverage 0.12, aspect coverage 0.09, no
hallucination 0.03, the others below 0.02.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.scorers import features
from rl_reason.stages.probe.stage import Probe
from rl_reason.tasks.worlds import reviews
from rl_reason.types import Sample

_MODULE = "rl_reason.experiments.feature_reward"
FEW, MANY = 940, 19_740
# Pairs that the features' models learn from, and the features that one of them does not see.
PAIRS = (47, 94, 235, 470, FEW, 4700)
TWO_FEATURES = ("faithfulness", "no_hallucination")
MAX_TOKENS = reviews.MOST + 1


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Nath et al. 2024, arXiv:2402.15473", card=18,
    arms={"features": dict(config="features"), "text": dict(config="text")}, treatment="features")
_WITHIN = dict(compare="absolute", matched=(), **_COMMON)
CLAIMS = {
    "as_good_as_many": dict(
        title="940 preferences and seven features are worth 19,740 preferences and the text,"
              " within a point of accuracy",
        sentence="Domain knowledge cuts the number of preferences by 21.",
        metric=_own("advantage", over=MANY), direction="higher", threshold=-0.01,
        also={**{f"features, {n}": _own("feature_accuracy", pairs=n) for n in PAIRS},
              "mean of the features": _own("mean_accuracy"),
              "text, 940": _own("text_accuracy", pairs=FEW),
              "text, 19,740": _own("text_accuracy", pairs=MANY)}, **_WITHIN),
    "better_than_as_few": dict(
        title="With 940 preferences features beat the text by 5 points of accuracy",
        sentence="The domain's features are what makes few preferences suffice.",
        metric=_own("advantage", over=FEW), direction="higher", threshold=0.05, **_WITHIN),
    "without_two_features": dict(
        title="Without faithfulness and hallucination the advantage over the text falls below 2"
              " points",
        sentence="The advantage is that of the domain's knowledge: a check of the task (the card's"
                 " falsifier).",
        metric=_own("advantage", over=FEW, without=TWO_FEATURES), direction="lower", threshold=0.02,
        also={f"lost without {name}": _own("lost_without", name=name) for name in reviews.NAMES},
        **_WITHIN),
    "better_policy": dict(
        title="A policy trained on the features' model is liked better than one trained on the"
              " text's",
        sentence="Summaries of the policy are preferred.",
        baseline="text", direction="higher", threshold=0.0, matched=("environment_calls",),
        metric=dict(function="last", args=dict(name="reward/utility", stage="rl", points=10)),
        also={"before": _own("first", name="reward/utility"),
              "ROUGE-L": _own("overlap", stage="rl"),
              "ROUGE-L before": _own("overlap", stage="sft")}, **_COMMON),
    "no_alignment_tax": dict(
        title="... and loses less than half a point of ROUGE-L against the policy before",
        sentence="There is no alignment tax.",
        metric=_own("overlap_gained"), direction="higher", threshold=-0.005, **_WITHIN),
}


# Rewards.


def scores(samples: Sequence[Sample]) -> np.ndarray:
  """Returns what scorers see of the features (reviews.observed): [N, 7] in [0, 1]."""
  seen = [reviews.observed(s.prompt, s.completion) for s in samples]
  return np.array(seen).reshape(-1, len(reviews.NAMES))


def utility(samples: Sequence[Sample]) -> np.ndarray:
  """Returns what people think of a summary, up to 5.5. It is logged, with weight 0."""
  return np.array([reviews.utility(s.prompt, s.completion) for s in samples], np.float32)


def rouge_l(samples: Sequence[Sample]) -> np.ndarray:
  """Returns F1 of the longest common subsequence with the reference, by characters: in [0, 1].

  It is logged, with weight 0.
  """
  return np.array([_rouge_l(s.completion, s.reference) for s in samples], np.float32)


def _rouge_l(ours: str, theirs: str) -> float:
  row = np.zeros(len(theirs) + 1, int)
  for a in ours:
    before = row.copy()
    for j, b in enumerate(theirs):
      row[j + 1] = before[j] + 1 if a == b else max(before[j + 1], row[j])
  return 2 * row[-1] / (len(ours) + len(theirs)) if ours and theirs else 0.0


# Models of the features' scores, fitted in the run.


def judge_by_features(
    probe: Probe, *, size: int = max(PAIRS), clean: int = 2000) -> dict[str, np.ndarray | float]:
  """Fits models of the features' scores to pairs of the run's world, and scores clean ones.

  Args:
    size: pairs to learn from; a model of more takes them all.
    clean: held-out pairs without a wrong label.
  Returns: scores of the better and the worse side, [clean, 2], of each model (as `_model` names
    it) and "mean", the features' plain mean; and per feature "lost_without_<name>", the accuracy
    that the model of 940 pairs loses when the feature's values are shuffled (permutation
    importance).
  """
  taught = observed_pairs(size, seed=probe.context.seed, part="train", noise=0.1)
  asked = observed_pairs(clean, seed=probe.context.seed, part="heldout", noise=0.0)
  found = {"mean": np.stack([side.mean(axis=1) for side in asked], axis=1)}
  for pairs, without in ((FEW, TWO_FEATURES), *((n, ()) for n in PAIRS)):
    found[_model(pairs, without)] = scores_of_pairs(taught, asked, pairs=pairs, without=without)
  model = features.fit(*(side[:FEW] for side in taught), names=reviews.NAMES)
  lost = features.importance(model, *asked)
  return found | {f"lost_without_{name}": lost.get(name, 0.0) for name in reviews.NAMES}


def observed_pairs(
    size: int, *, seed: int, part: str, noise: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns what scorers see of the better and of the worse sides, [size, 7] each."""
  source = reviews.review_pairs(size=size, seed=seed, part=part, noise=noise)
  rows = [source[i] for i in range(size)]
  better, worse = (
      np.array([reviews.observed(row.prompt, row.responses[side]) for row in rows])
      for side in (0, 1))
  return better, worse


def scores_of_pairs(
    taught: Sequence[np.ndarray], asked: Sequence[np.ndarray], *, pairs: int,
    without: Sequence[str] = ()) -> np.ndarray:
  """Fits a model to the first pairs, and scores others with it.

  Args:
    taught: features of the better and of the worse sides, of the pairs to learn from.
    asked: those of the pairs to score.
    without: features that the model does not see.
  Returns: scores of the better and the worse sides, [pairs asked, 2].
  """
  kept = [name for name in reviews.NAMES if name not in without]
  places = [reviews.NAMES.index(name) for name in kept]
  model = features.fit(*(side[:pairs, places] for side in taught), names=kept)
  return np.stack([model.scores(side[:, places]) for side in asked], axis=1)


def share_right(sides: np.ndarray) -> float:
  """Returns the share of pairs whose better side scores higher; equal scores count a half."""
  gaps = sides[:, 0] - sides[:, 1]
  return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def _model(pairs: int, without: Sequence[str] = ()) -> str:
  return "_".join((f"of_{pairs}", *(["without", *without] if without else [])))


# What the claims compare.


def first(folder: Path, *, name: str) -> float:
  """Reads the first RL step's value, which is that of the policy before RL."""
  return float(measures.curve(folder, name, "rl")[1][0])


def overlap(folder: Path, *, stage: str) -> float:
  """Computes mean ROUGE-L of the stage's last samples, one of each held-out product.

  The products are the same whatever the stage.
  """
  files = sorted((folder / "samples").glob(f"{stage}-*.json"),
                 key=lambda path: int(path.stem.split("-")[1]))
  rows = json.loads(files[-1].read_text())
  return float(np.mean([_rouge_l(row["completion"], row["reference"]) for row in rows]))


def overlap_gained(folder: Path) -> float:
  """Computes what RL adds to the policy's ROUGE-L."""
  return overlap(folder, stage="rl") - overlap(folder, stage="sft")


def text_accuracy(folder: Path, *, pairs: int) -> float:
  """Reads the accuracy, on clean pairs, of the reward model that reads the text."""
  return measures.last(folder, name="eval/accuracy", stage={FEW: "rm_few", MANY: "rm_many"}[pairs])


def feature_accuracy(folder: Path, *, pairs: int, without: Sequence[str] = ()) -> float:
  """Computes the accuracy, on clean pairs, of the features' model of `pairs` preferences."""
  return share_right(measures.arrays(folder, "after", "features")[_model(pairs, without)])


def mean_accuracy(folder: Path) -> float:
  """Computes the accuracy, on the same pairs, of the plain mean, which needs no preferences."""
  return share_right(measures.arrays(folder, "after", "features")["mean"])


def lost_without(folder: Path, *, name: str) -> float:
  """Reads the accuracy that the model of 940 pairs loses when a feature's values are shuffled."""
  return measures.last(folder, name=f"features/lost_without_{name}", stage="after")


def advantage(folder: Path, *, over: int, without: Sequence[str] = ()) -> float:
  """Subtracts the accuracy of the text's model of `over` pairs from the features' model of 940."""
  return feature_accuracy(folder, pairs=FEW, without=without) - text_accuracy(folder, pairs=over)


# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 64, "task.heldout.size": 16,
    "sft.num_steps": 2, "sft.batch_size": 8, "sft.learner.optimizer.warmup_steps": 1,
    **{f"{model}.{field}": value for model in ("rm_few", "rm_many") for field, value in {
        "num_steps": 2, "batch_size": 8, "heldout_rows": 16, "data.train.size": 40,
        "data.heldout.size": 16, "learner.optimizer.warmup_steps": 1}.items()},
    "rl.num_steps": 2, "rl.rollout.prompts": 4, "rl.learner.optimizer.warmup_steps": 1,
    "after.functions.features.args.size": 40, "after.functions.features.args.clean": 16,
    "evaluation.num_problems": 16, "evaluation.batch_size": 16,
}
TINY_REWARD = {"rl.rewards.quality.args.data.args.size": 40}  # Of the arm `features`.


def get_config(argument: str = "features") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ("features", "text"), whole="full")
  if not name:
    return _full()
  c = ConfigDict(dict(
      seed=0, max_prompt_tokens=33, stages=("sft", "rm_few", "rm_many", "rl", "after")))
  c.policy = dict(source="small", args=dict(
      characters=reviews.CHARACTERS, width=64, num_layers=3, num_heads=4))
  seed = c.get_ref("seed")  # It is the world's, too.
  c.task = dict(
      source="reviews", args=dict(seed=seed), train=dict(part="train", size=10_000),
      heldout=dict(part="heldout", size=100))
  c.sft = dict(
      kind="sft", num_steps=400, batch_size=32, max_completion_tokens=MAX_TOKENS,
      learner=dict(optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=20)))

  # The reward models that read the text: five passes over few pairs, one over many. Without a
  # validation set for each these numbers are our guess.
  for stage, pairs, steps in (("rm_few", FEW, 147), ("rm_many", MANY, 617)):
    c[stage] = dict(
        kind="reward_model", start="sft", num_steps=steps, batch_size=32,
        max_response_tokens=MAX_TOKENS, heldout_rows=2000,
        data=dict(
            source="review_pairs", args=dict(seed=seed), train=dict(part="train", size=pairs),
            heldout=dict(part="heldout", size=2000, noise=0.0)),
        learner=dict(optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=20)))

  # A policy trained on either model of 940 pairs.
  by_features = dict(function="feature_reward", args=dict(
      scorers=dict(expert=dict(function=f"{_MODULE}:scores", several=reviews.NAMES)),
      data=dict(source="review_pairs", args=dict(seed=seed, part="train", size=FEW))))
  by_text = dict(function="learned", args=dict(model="rm_few"))
  c.rl = dict(
      kind="policy_gradient", start="sft", num_steps=60,
      rewards=dict(
          quality=by_features if name == "features" else by_text,
          utility=dict(function=f"{_MODULE}:utility", weight=0.0),
          rouge=dict(function=f"{_MODULE}:rouge_l", weight=0.0)),
      rollout=dict(prompts=16, group_size=8, sampling=dict(max_tokens=MAX_TOKENS)),
      credit=dict(baseline="group_mean", normalise="group_std"),
      objective=dict(mean_over="token", kl=dict(coef=0.05, estimator="k3")),
      learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=5)))

  # The features' models of several numbers of pairs. Evaluations ask for the ideal summary, letter
  # by letter; what a summary is worth otherwise is logged in training.
  c.after = dict(kind="probe", functions=dict(features=_own("judge_by_features")))
  c.evaluation = dict(
      rewards=dict(rouge=dict(function=f"{_MODULE}:rouge_l")), num_problems=100, batch_size=100,
      sampling=dict(max_tokens=MAX_TOKENS))
  c.checkpoint = dict(every=10_000, keep=1)
  return sized(c, size, tiny=TINY | TINY_REWARD if name == "features" else TINY)


CRITERIA = {
    "aspect_coverage": "It covers the aspects that the reviews discuss.",
    "faithfulness": "Its opinions are those of the reviewers.",
    "opinion_coverage": "It covers the reviewers' opinions, the frequent ones first.",
    "conciseness": "It is concise.",
    "relevance": "It is about the product.",
    "no_hallucination": "It says nothing that no review says.",
    "language": "Its language is right.",
}


def _criterion(text: str) -> dict:
  template = f"""\
Rate a summary of product reviews from 0 (not at all) to 5 (fully) by one criterion alone: {text}

[Reviews]
{{prompt}}

[Summary]
{{response}}

End with your rating in double brackets, e.g. [[{{high}}]]."""
  return dict(function="judge_rating", args=dict(
      template=template, low=0, high=5, abstention=None, generate="chat_endpoint",
      generate_args=dict(url="http://localhost:8000/v1", model="mistral-7b-instruct")))


def _full() -> ConfigDict:
  """Makes the config of a 1B decoder on reviews of 1,024 tokens.

  Seven criteria are asked of a server; there are 940 preferences; the policy learns by PPO.
  """
  c = ConfigDict(dict(seed=0, max_prompt_tokens=1024, stages=("sft", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="llama3.2-1b"), dtype="bfloat16")
  c.task = dict(
      source="jsonl", args=dict(
          prompt="{reviews}\nSummary:", reference="{summary}", solution=" {summary}", id="{id}"),
      train=dict(path="prompt_opin_summ.jsonl", rows=":98%"),
      heldout=dict(path="prompt_opin_summ.jsonl", rows="98%:"))
  c.sft = dict(
      kind="sft", num_steps=1000, batch_size=64, max_completion_tokens=128,
      learner=dict(
          remat="full", optimizer=dict(learning_rate=1e-5, schedule="cosine", warmup_steps=30)))
  c.rl = dict(
      kind="policy_gradient", num_steps=500,
      rewards=dict(quality=dict(function="feature_reward", args=dict(
          scorers={name: _criterion(text) for name, text in CRITERIA.items()},
          data=dict(source="comparisons", args=dict(
              format="pairs", path="opin_pref.jsonl", bad_rows="drop"))))),
      rollout=dict(prompts=64, group_size=1, sampling=dict(max_tokens=128)),
      credit=dict(
          baseline="none", normalise="token_whiten", critic=dict(trunk="shared", lam=0.95)),
      objective=dict(mean_over="token", kl=dict(added_to="reward", estimator="k1", coef=0.05)),
      learner=dict(epochs=4, remat="full", optimizer=dict(learning_rate=1e-5)))
  c.evaluation = dict(
      rewards=dict(pattern_format=dict(args=dict(pattern=r"\s*\S.*"))), num_problems=256,
      sampling=dict(max_tokens=128))
  c.mesh = dict(fsdp=-1)
  return c
