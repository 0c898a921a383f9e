"""Generates product reviews to be summed up: "aC|bc|Ca...=" -> "aC".

A letter is an aspect: lower case praises it, upper case blames it. A product has eight reviews that
mention one to three of its five aspects each. A summary names aspects with what most reviews say of
them, in alphabetical order. Seven features of a summary are known exactly (`features`), and what
people think of it (`utility`) depends on them. Scorers see features with noise, in fifths, as a
model that rates from 0 to 5 would (`observed`).

Made for Nath et al. 2024 (arXiv:2402.15473) at small scale; the task is ours.
"""

from collections import Counter
import dataclasses

import numpy as np

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import Draws, Generated
from rl_reason.types import Comparison, Problem

ASPECTS, FILLER, MOST, REVIEWS = "abcdefgh", ".", 12, 8
CHARACTERS = f"{ASPECTS}{ASPECTS.upper()}{FILLER}|="
NAMES = ("aspect_coverage", "faithfulness", "opinion_coverage", "conciseness", "relevance",
         "no_hallucination", "language")
# What each feature counts in `utility`.
WEIGHTS = (0.8, 1.2, 1.0, 0.4, 0.3, 1.5, 0.3)


def majority(prompt: str) -> dict[str, str]:
  """Returns aspect -> the opinion that most reviews have of it; praise where both are as many."""
  counts = Counter(c for c in prompt if c.isalpha())
  return {a: a if counts[a] >= counts[a.upper()] else a.upper()
          for a in ASPECTS if counts[a] + counts[a.upper()]}


def ideal(prompt: str) -> str:
  """Returns the summary of all aspects that are mentioned."""
  return "".join(opinion for _, opinion in sorted(majority(prompt).items()))


def features(prompt: str, summary: str) -> tuple[float, ...]:
  """Returns the features of a summary in the order of NAMES, each in [0, 1].

  All are 0 for a summary that says nothing. Any text has them; characters after the first MOST do
  not count.
  """
  text, right = summary[:MOST], majority(prompt)
  opinions = [c for c in text if c.isalpha()]
  if not opinions or not right:
    return (0.0,) * len(NAMES)
  # How often reviews have each opinion, which aspects are named, and which right opinions are said.
  mentions = Counter(c for c in prompt if c.isalpha())
  named = {c.lower() for c in opinions}
  said = {a: right[a] for a in right if right[a] in opinions}
  in_order = [x.lower() < y.lower() for x, y in zip(opinions, opinions[1:])]
  return (
      # Coverage: aspects that are named, of those mentioned.
      len(named & set(right)) / len(right),
      # Faithfulness: opinions that most reviews share.
      sum(right.get(c.lower()) == c for c in opinions) / len(opinions),
      # Opinion coverage: the same as coverage, weighed by how many reviews say it.
      sum(mentions[o] for o in said.values()) / sum(mentions[o] for o in right.values()),
      # Conciseness: nothing is said twice.
      len(set(opinions)) / len(opinions),
      # Relevance: no filler.
      len(opinions) / len(text),
      # No hallucination: only aspects that reviews mention.
      sum(c.lower() in right for c in opinions) / len(opinions),
      # Language: neighbours are in alphabetical order.
      sum(in_order) / len(in_order) if in_order else 1.0)


def utility(prompt: str, summary: str) -> float:
  """Returns Σ weight · feature, less up to 1 where hallucinations and wrong opinions meet."""
  f = features(prompt, summary)
  return float(np.dot(WEIGHTS, f) - (1 - f[5]) * (1 - f[1]))


def observed(prompt: str, summary: str, seed: int = 0) -> tuple[float, ...]:
  """Returns features with noise of deviation 0.05, in fifths; always the same for a text."""
  draws = Draws("scorers", seed, prompt, summary)
  return tuple(
      float(np.clip(np.round(5 * (x + 0.05 * draws.normal())) / 5, 0, 1))
      for x in features(prompt, summary))


def random_prompt(draws: Draws) -> str:
  """Draws the reviews of a product."""
  liked = {a: draws.uniform() for a in draws.sample(ASPECTS, 5)}  # Nobody mentions the others.
  reviews = ["".join(a if draws.uniform() < liked[a] else a.upper()
                     for a in draws.sample(list(liked), draws.between(1, 3)))
             for _ in range(REVIEWS)]
  return "|".join(reviews) + "="


def candidate(draws: Draws, prompt: str) -> str:
  """Writes a summary: the ideal one with damage.

  Opinions are lost, turned round, put in another order or repeated; inventions and filler come in.
  """
  out: list[str] = []
  # One rate of damage for the whole summary, so that summaries differ in quality.
  damage = draws.uniform() * 0.4
  for opinion in ideal(prompt):
    if draws.uniform() < damage:
      continue
    out.append(opinion.swapcase() if draws.uniform() < damage else opinion)
    if draws.uniform() < damage:
      out.append(draws.choice(
          (FILLER, out[-1], draws.choice(ASPECTS), draws.choice(ASPECTS).upper())))
    if len(out) > 1 and draws.uniform() < damage / 2:
      out[-1], out[-2] = out[-2], out[-1]
  return "".join(out)[:MOST] or FILLER


@dataclasses.dataclass(frozen=True)
class Reviews(Generated):
  """Makes the rows of `reviews`."""
  seed: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("reviews", self.seed, self.part, index)
    prompt = random_prompt(draws)
    return Problem(
        prompt=prompt, reference=ideal(prompt), solution=candidate(draws, prompt),
        id=f"{self.part}-{index}")


@dataclasses.dataclass(frozen=True)
class ReviewPairs(Generated):
  """Makes the rows of `review_pairs`."""
  seed: int
  part: str
  noise: float

  def row(self, index: int) -> Comparison:
    draws, gap = Draws("review pairs", self.seed, self.part, index), 0.0
    # Pairs of equal utility have no better one: they are drawn again.
    while gap == 0.0:
      prompt = random_prompt(draws)
      pair = candidate(draws, prompt), candidate(draws, prompt)
      gap = utility(prompt, pair[0]) - utility(prompt, pair[1])
    # Label the pair, then turn some labels round.
    first = draws.uniform() < 1 / (1 + np.exp(-6 * gap)) if self.noise else gap > 0
    first ^= draws.uniform() < self.noise
    return Comparison(
        prompt=prompt, responses=pair if first else pair[::-1], scores=(1.0, 0.0),
        id=f"{self.part}-{index}")


def reviews(*, size: int, seed: int = 0, part: str = "train") -> Reviews:
  """Generates products with a summary of some quality to imitate; the reference is the ideal one.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train" or "heldout"; two products are hardly ever the same.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  return Reviews(size, seed, part)


def review_pairs(
    *, size: int, seed: int = 0, part: str = "train", noise: float = 0.1) -> ReviewPairs:
  """Generates pairs of summaries, compared.

  A summary is called better with probability σ(6 · difference in utility); then `noise` of the
  labels are turned round.

  Args:
    size, seed, part: as in `reviews`.
    noise: share of labels that are turned round; 0: the better one is always called so.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  in_unit_interval("share", noise=noise)
  return ReviewPairs(size, seed, part, noise)
