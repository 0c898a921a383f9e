"""Product reviews to be summed up: "aC|bc|Ca...=" -> "aC". A letter is an aspect, lower case praises it, upper case blames it.

A product has eight reviews that mention one to three of its five aspects each; a summary names aspects with what most reviews say of them, in
alphabetical order. Seven features of a summary are known exactly (`features`), and what people think of it (`utility`) depends on
them; scorers see features with noise, in fifths, as a model that rates from 0 to 5 would (`observed`).

Made for Nath et al. 2024 (arXiv:2402.15473) at small scale; the task is ours.
"""

from collections import Counter
import dataclasses

import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.tasks.draws import Draws, Generated
from rl_reason.types import Comparison, Problem

ASPECTS, FILLER, MOST, REVIEWS = "abcdefgh", ".", 12, 8
CHARACTERS = f"{ASPECTS}{ASPECTS.upper()}{FILLER}|="
NAMES = ("aspect_coverage", "faithfulness", "opinion_coverage", "conciseness", "relevance", "no_hallucination", "language")
WEIGHTS = (0.8, 1.2, 1.0, 0.4, 0.3, 1.5, 0.3)


def majority(prompt: str) -> dict[str, str]:
  """Aspect -> the opinion that most reviews have of it; praise where as many have the other."""
  counts = Counter(c for c in prompt if c.isalpha())
  return {a: a if counts[a] >= counts[a.upper()] else a.upper() for a in ASPECTS if counts[a] + counts[a.upper()]}


def ideal(prompt: str) -> str:
  """The summary of all aspects that are mentioned."""
  return "".join(opinion for _, opinion in sorted(majority(prompt).items()))


def features(prompt: str, summary: str) -> tuple[float, ...]:
  """Of NAMES, in [0, 1]; all 0 of a summary that says nothing. Any text has them; more than MOST characters count as MOST."""
  text, right = summary[:MOST], majority(prompt)
  opinions = [c for c in text if c.isalpha()]
  if not opinions or not right:
    return (0.0,) * len(NAMES)
  mentions = Counter(c for c in prompt if c.isalpha())
  named = {c.lower() for c in opinions}
  said = {a: right[a] for a in right if right[a] in opinions}
  in_order = [x.lower() < y.lower() for x, y in zip(opinions, opinions[1:])]
  return (
      len(named & set(right)) / len(right),
      sum(right.get(c.lower()) == c for c in opinions) / len(opinions),
      sum(mentions[o] for o in said.values()) / sum(mentions[o] for o in right.values()),
      len(set(opinions)) / len(opinions),
      len(opinions) / len(text),
      sum(c.lower() in right for c in opinions) / len(opinions),
      sum(in_order) / len(in_order) if in_order else 1.0)


def utility(prompt: str, summary: str) -> float:
  """Σ weight · feature, less 1 where hallucinations and wrong opinions meet."""
  f = features(prompt, summary)
  return float(np.dot(WEIGHTS, f) - (1 - f[5]) * (1 - f[1]))


def observed(prompt: str, summary: str, seed: int = 0) -> tuple[float, ...]:
  """Features with noise of deviation 0.05, in fifths; the same for a text whenever it is asked."""
  draws = Draws("scorers", seed, prompt, summary)
  return tuple(float(np.clip(np.round(5 * (x + 0.05 * draws.normal())) / 5, 0, 1)) for x in features(prompt, summary))


def random_prompt(draws: Draws) -> str:
  liked = {a: draws.uniform() for a in draws.sample(ASPECTS, 5)}  # The others nobody mentions.
  reviews = ["".join(a if draws.uniform() < liked[a] else a.upper() for a in draws.sample(list(liked), draws.between(1, 3)))
             for _ in range(REVIEWS)]
  return "|".join(reviews) + "="


def candidate(draws: Draws, prompt: str) -> str:
  """The ideal summary, of which opinions are lost, turned round, put in another order, repeated; with inventions and filler."""
  out: list[str] = []
  damage = draws.uniform() * 0.4
  for opinion in ideal(prompt):
    if draws.uniform() < damage:
      continue
    out.append(opinion.swapcase() if draws.uniform() < damage else opinion)
    if draws.uniform() < damage:
      out.append(draws.choice((FILLER, out[-1], draws.choice(ASPECTS), draws.choice(ASPECTS).upper())))
    if len(out) > 1 and draws.uniform() < damage / 2:
      out[-1], out[-2] = out[-2], out[-1]
  return "".join(out)[:MOST] or FILLER


@dataclasses.dataclass(frozen=True)
class Reviews(Generated):
  """The source that `reviews` returns."""
  seed: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("reviews", self.seed, self.part, index)
    prompt = random_prompt(draws)
    return Problem(prompt=prompt, reference=ideal(prompt), solution=candidate(draws, prompt), id=f"{self.part}-{index}")


@dataclasses.dataclass(frozen=True)
class ReviewPairs(Generated):
  """The source that `review_pairs` returns."""
  seed: int
  part: str
  noise: float

  def row(self, index: int) -> Comparison:
    draws, gap = Draws("review pairs", self.seed, self.part, index), 0.0
    while gap == 0.0:
      prompt = random_prompt(draws)
      pair = candidate(draws, prompt), candidate(draws, prompt)
      gap = utility(prompt, pair[0]) - utility(prompt, pair[1])
    first = draws.uniform() < 1 / (1 + np.exp(-6 * gap)) if self.noise else gap > 0
    first ^= draws.uniform() < self.noise
    return Comparison(prompt=prompt, responses=pair if first else pair[::-1], scores=(1.0, 0.0), id=f"{self.part}-{index}")


def reviews(*, size: int, seed: int = 0, part: str = "train") -> Reviews:
  """Products with a summary of some quality to imitate; the reference is the ideal one.

  Args:
    size: rows. seed, part: as in `arithmetic`; two products are hardly ever the same.
  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  return Reviews(size, seed, part)


def review_pairs(*, size: int, seed: int = 0, part: str = "train", noise: float = 0.1) -> ReviewPairs:
  """Pairs of summaries; which is called better: P = σ(6 · difference in utility), then `noise` of the labels are turned round.

  Args:
    noise: 0: the better one is always called so. Others as in `reviews`.
  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  if not 0 <= noise <= 1:
    raise ValueError(f"noise must be in [0, 1], got {noise}: it is a share.")
  return ReviewPairs(size, seed, part, noise)
