"""Generates short responses with a hidden utility, and pairs of them.

Some pairs have the wrong label, some are nearly tied.
"""

from collections.abc import Iterator
import dataclasses
import functools

import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.tasks.draws import Draws, Generated
from rl_reason.types import Comparison, Problem

# Attributes: how often a response has each letter is all that its utility depends on.
LETTERS = "abcdefghijklmnop"
LENGTH = 16  # Letters of a response.
# Letters before the "=", which mean nothing.
_CONTEXTS = {"train": LETTERS[:12], "heldout": LETTERS[12:]}
_TIE_TRIES = 32  # A near tie is the pair with the smallest gap among this many.


@dataclasses.dataclass(frozen=True)
class Utility:
  """Computes the hidden utility of a response, by a small random network.

      u(response) = Σ_k b_k tanh(a_k · z)

  z has the letters' counts, standardised. a_k ~ N(0, gain² / letters) and b_k ~ N(0, 1).

  seed: draws the weights.
  hidden: number of units k.
  gain: scale of a_k; the larger, the less linear.
  """
  seed: int
  hidden: int = 6
  gain: float = 1.0

  @functools.cached_property
  def _weights(self) -> tuple[np.ndarray, np.ndarray]:
    # 46 is the stream's own number, so that other uses of the seed draw other numbers.
    rng = np.random.default_rng([self.seed, 46])
    inner = rng.normal(0.0, self.gain / np.sqrt(len(LETTERS)), (len(LETTERS), self.hidden))
    return inner, rng.normal(0.0, 1.0, self.hidden)

  def __call__(self, response: str) -> float:
    """Returns the utility."""
    counts = np.array([response.count(letter) for letter in LETTERS])
    rate = LENGTH / len(LETTERS)
    inner, outer = self._weights
    # Standardised as binomial counts: mean `rate`, variance rate * (1 - 1 / letters).
    return float(np.tanh((counts - rate) / np.sqrt(rate * (1 - 1 / len(LETTERS))) @ inner) @ outer)


def _random_response(draws: Draws) -> str:
  """Draws a response, every letter uniformly."""
  return "".join(draws.choice(LETTERS) for _ in range(LENGTH))


@dataclasses.dataclass(frozen=True)
class AttributePairs(Generated):
  """Makes the rows of `attribute_pairs`."""
  utility: Utility
  part: str
  wrong: float
  ties: float
  contexts: bool

  def row(self, index: int) -> Comparison:
    # Which kind of pair is this: wrong, a near tie, or neither?
    draws = Draws("attributes", self.utility.seed, self.part, index)
    kind = draws.uniform()
    wrong, tie = kind < self.wrong, self.wrong <= kind < self.wrong + self.ties
    drawn = self._pairs(draws)
    gap, better, worse = min(next(drawn) for _ in range(_TIE_TRIES)) if tie else next(drawn)
    if wrong:
      better, worse = worse, better
    context = draws.choice(_CONTEXTS[self.part]) if self.contexts else ""
    return Comparison(
        prompt=f"{context}=", responses=(better, worse), scores=(1.0, 0.0),
        id=f"{self.part}-{index}",
        metadata={"wrong": wrong, "tie": tie, "gap": gap})

  def _pairs(self, draws: Draws) -> Iterator[tuple[float, str, str]]:
    """Draws pairs without end: (gap in utility, the better response, the worse one)."""
    while True:
      a, b = (_random_response(draws) for _ in range(2))
      if (gap := self.utility(a) - self.utility(b)) != 0:
        yield (gap, a, b) if gap > 0 else (-gap, b, a)


def attribute_pairs(
    *, size: int, world: int, part: str = "train", wrong: float = 0.0, ties: float = 0.0,
    hidden: int = 6, gain: float = 1.0, contexts: bool = False) -> AttributePairs:
  """Generates comparisons of two random responses of 16 letters.

  A hidden nonlinear utility (Utility) labels them.

  Args:
    size: number of pairs.
    world: seed of the utility and of the responses.
    part: "train" or "heldout": other pairs of the same world. There is one prompt, so that only
      pairs tell the parts apart.
    wrong: share of pairs whose label is the other one; metadata["wrong"].
    ties: share of further pairs that are near ties: each is the pair with the smallest gap among 32
      random ones. Their label is right.
    hidden: number of units of Utility.
    gain: of Utility: the larger, the less linear.
    contexts: a letter stands before the prompt, with other letters in each part, as in
      attribute_responses; the utility ignores it.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size, hidden=hidden)
  at_least(0, wrong=wrong, ties=ties, gain=gain)
  one_of(("train", "heldout"), part=part)
  if wrong + ties > 1:
    raise ValueError(
        f"wrong={wrong} and ties={ties} are shares of all pairs and exclude each other: their sum"
        " must be at most 1.")
  return AttributePairs(size, Utility(world, hidden, gain), part, wrong, ties, contexts)


@dataclasses.dataclass(frozen=True)
class AttributeResponses(Generated):
  """Makes the rows of `attribute_responses`."""
  world: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("attribute responses", self.world, self.part, index)
    return Problem(
        prompt=f"{draws.choice(_CONTEXTS[self.part])}=", reference="",
        solution=_random_response(draws),
        id=f"{self.part}-{index}", metadata={"world": self.world})


def attribute_responses(*, size: int, world: int, part: str = "train") -> AttributeResponses:
  """Generates random responses as `solution`s.

  A policy that imitates them starts from what the pairs of the same world are about.

  Args:
    size: number of responses.
    world: as in attribute_pairs; metadata["world"] is the seed of the utility.
    part: as in attribute_pairs.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  return AttributeResponses(size, world, part)
