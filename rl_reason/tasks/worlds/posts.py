"""Generates posts of facts to be summarised, of which a few matter: "c4a0f3b9...=" -> "a0c4f3b9".

A fact is a key, a letter, and its value, a digit; a post has one of each key, shuffled. A summary
names up to four. What a summary is worth (`quality`) is known, but a policy sees only references
that somebody wrote with half an eye on it, and comparisons.

Made for Stiennon et al. 2020 (arXiv:2009.01325) at small scale; the task is ours.
"""

from collections import Counter
import dataclasses
import re

import numpy as np

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import Draws, Generated
from rl_reason.types import Comparison, Problem

KEYS, MOST = "abcdefgh", 4
CHARACTERS = f"{KEYS}0123456789="
# What a fact of each key is worth in a summary.
IMPORTANCE = dict.fromkeys(KEYS, 0.1) | {"c": 3.0, "f": 2.0, "h": 2.0}
_FACT = re.compile(r"[a-h][0-9]|.", re.DOTALL)


def facts(text: str) -> list[str]:
  """Lists the facts of a text in order; a character that is part of none stands alone."""
  return _FACT.findall(text)


def quality(post: str, summary: str) -> float:
  """Returns what a summary is worth.

  It is the importance of all facts that it names, less 0.5 for each that is false, said before,
  beyond the fourth or no fact, and less 0.03 for each character.
  """
  true, said, worth = set(facts(post.removesuffix("="))), set(), 0.0
  for place, fact in enumerate(facts(summary)):
    fine = fact in true and fact not in said and place < MOST
    worth += IMPORTANCE[fact[0]] if fine else -0.5
    said.add(fact)
  return worth - 0.03 * len(summary)


def overlap(summary: str, reference: str) -> float:
  """Returns F1 of the two multisets of facts, in [0, 1]; 0 where either is empty.

  It is a ROUGE-1 of these texts.
  """
  ours, theirs = Counter(facts(summary)), Counter(facts(reference))
  common = sum((ours & theirs).values())
  return 2 * common / (sum(ours.values()) + sum(theirs.values())) if common else 0.0


def random_post(draws: Draws) -> str:
  """Draws a post."""
  return "".join(f"{key}{draws.below(10)}" for key in draws.sample(KEYS, len(KEYS))) + "="


def reference(draws: Draws, post: str) -> str:
  """Writes a reference: four facts, important ones and early ones more often than others.

  Early ones are preferred so that imitation is no better than what it imitates. If a writer erred
  just at random, the most likely summary would name just what matters.
  """
  left, chosen = list(enumerate(facts(post.removesuffix("=")))), []
  for _ in range(MOST):
    weights = np.cumsum([(1 + IMPORTANCE[fact[0]] / 10) * 0.8**place for place, fact in left])
    # `weights` is cumulative, so a uniform number below its end falls into a fact's stretch.
    chosen.append(left.pop(
        int(np.searchsorted(weights, draws.uniform() * weights[-1], side="right")))[1])
  return "".join(chosen)


def attempt(draws: Draws, post: str) -> str:
  """Writes a worse summary: a reference with some facts lost, made false, repeated or exchanged."""
  out, known = [], facts(post.removesuffix("="))
  for fact in facts(reference(draws, post)):
    # Shares: 0.15 of facts are lost, 0.15 made false, 0.1 replaced by the one before (if there is
    # one), 0.15 exchanged for any fact of the post.
    kind = draws.uniform()
    if kind < 0.15:
      continue
    out.append(fact[0] + str(draws.below(10)) if kind < 0.3 else out[-1] if kind < 0.4 and out
               else draws.choice(known) if kind < 0.55 else fact)
  return "".join(out) or known[0]


@dataclasses.dataclass(frozen=True)
class Posts(Generated):
  """Makes the rows of `posts`."""
  seed: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("posts", self.seed, self.part, index)
    post = random_post(draws)
    written = reference(draws, post)
    return Problem(prompt=post, reference=written, solution=written, id=f"{self.part}-{index}")


@dataclasses.dataclass(frozen=True)
class SummaryPairs(Generated):
  """Makes the rows of `summary_pairs`."""
  seed: int
  part: str
  noise: float

  def row(self, index: int) -> Comparison:
    draws = Draws("summaries", self.seed, self.part, index)
    post, pair = random_post(draws), ("", "")
    # Two different summaries of the post, three in ten of them references.
    while pair[0] == pair[1]:
      pair = tuple((reference if draws.uniform() < 0.3 else attempt)(draws, post) for _ in range(2))
    # Label the pair: P(first is better) = σ(gap), and a coin in place of some labels.
    gap = quality(post, pair[0]) - quality(post, pair[1])
    first = draws.uniform() < (1 / (1 + np.exp(-gap)) if self.noise else gap > 0)
    if draws.uniform() < self.noise:
      first = draws.uniform() < 0.5
    return Comparison(
        prompt=post, responses=pair if first else pair[::-1], scores=(1.0, 0.0),
        id=f"{self.part}-{index}")


def posts(*, size: int, seed: int = 0, part: str = "train") -> Posts:
  """Generates posts of eight facts with a reference of four, to imitate.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train" or "heldout"; two posts are hardly ever the same.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  return Posts(size, seed, part)


def summary_pairs(
    *, size: int, seed: int = 0, part: str = "train", noise: float = 0.1) -> SummaryPairs:
  """Generates pairs of summaries, references and worse ones.

  A summary is called better with probability σ(difference in quality).

  Args:
    size, seed, part: as in `posts`.
    noise: share of labels that are a coin's; 0: the better one is always called so.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  in_unit_interval("share", noise=noise)
  return SummaryPairs(size, seed, part, noise)
