"""Short responses with a hidden utility, and pairs of them, some with the wrong label, some without a difference to speak of."""

from collections.abc import Iterator
import dataclasses
import functools

import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.tasks.draws import Draws, Generated
from rl_reason.types import Comparison, Problem

LETTERS = "abcdefghijklmnop"  # Attributes; how often a response has each is all that its utility depends on.
LENGTH = 16
_CONTEXTS = {"train": LETTERS[:12], "heldout": LETTERS[12:]}  # Letters before the "=", which mean nothing.
_TIE_TRIES = 32  # A near tie is the pair of the smallest gap among so many.


@dataclasses.dataclass(frozen=True)
class Utility:
  """u(response) = Σ_k b_k tanh(a_k · z) with z the letters' counts, standardised: a network of `hidden` units.

  a_k ~ N(0, gain² / letters), b_k ~ N(0, 1), drawn by `seed`.
  """
  seed: int
  hidden: int = 6
  gain: float = 1.0

  @functools.cached_property
  def _weights(self) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([self.seed, 46])
    inner = rng.normal(0.0, self.gain / np.sqrt(len(LETTERS)), (len(LETTERS), self.hidden))
    return inner, rng.normal(0.0, 1.0, self.hidden)

  def __call__(self, response: str) -> float:
    counts = np.array([response.count(letter) for letter in LETTERS])
    rate = LENGTH / len(LETTERS)
    inner, outer = self._weights
    return float(np.tanh((counts - rate) / np.sqrt(rate * (1 - 1 / len(LETTERS))) @ inner) @ outer)


def _random_response(draws: Draws) -> str:
  return "".join(draws.choice(LETTERS) for _ in range(LENGTH))


@dataclasses.dataclass(frozen=True)
class AttributePairs(Generated):
  """The source that `attribute_pairs` returns."""
  utility: Utility
  part: str
  wrong: float
  ties: float
  contexts: bool

  def row(self, index: int) -> Comparison:
    draws = Draws("attributes", self.utility.seed, self.part, index)
    kind = draws.uniform()
    wrong, tie = kind < self.wrong, self.wrong <= kind < self.wrong + self.ties
    drawn = self._pairs(draws)
    gap, better, worse = min(next(drawn) for _ in range(_TIE_TRIES)) if tie else next(drawn)
    if wrong:
      better, worse = worse, better
    context = draws.choice(_CONTEXTS[self.part]) if self.contexts else ""
    return Comparison(prompt=f"{context}=", responses=(better, worse), scores=(1.0, 0.0), id=f"{self.part}-{index}",
                      metadata={"wrong": wrong, "tie": tie, "gap": gap})

  def _pairs(self, draws: Draws) -> Iterator[tuple[float, str, str]]:
    """(gap in utility, the better response, the worse one)."""
    while True:
      a, b = (_random_response(draws) for _ in range(2))
      if (gap := self.utility(a) - self.utility(b)) != 0:
        yield (gap, a, b) if gap > 0 else (-gap, b, a)


def attribute_pairs(
    *, size: int, world: int, part: str = "train", wrong: float = 0.0, ties: float = 0.0, hidden: int = 6,
    gain: float = 1.0, contexts: bool = False) -> AttributePairs:
  """Comparisons of two random responses of 16 letters, labelled by a hidden nonlinear utility (Utility).

  Args:
    size: pairs. world: seed of the utility and of the responses.
    part: "train" or "heldout": other pairs of the same world. There is one prompt, so that only pairs tell them apart.
    wrong: share of pairs whose label is the other one; metadata["wrong"].
    ties: share of further pairs that are near ties, of the smallest gap among 32 random pairs; their label is right.
    hidden, gain: of Utility: the larger, the less linear.
    contexts: a letter stands before the prompt, other ones in each part, as in attribute_responses; the utility ignores it.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size, hidden=hidden)
  at_least(0, wrong=wrong, ties=ties, gain=gain)
  one_of(("train", "heldout"), part=part)
  if wrong + ties > 1:
    raise ValueError(f"wrong={wrong} and ties={ties} are shares of all pairs and exclude each other: their sum must be at most 1.")
  return AttributePairs(size, Utility(world, hidden, gain), part, wrong, ties, contexts)


@dataclasses.dataclass(frozen=True)
class AttributeResponses(Generated):
  """The source that `attribute_responses` returns."""
  world: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("attribute responses", self.world, self.part, index)
    return Problem(
        prompt=f"{draws.choice(_CONTEXTS[self.part])}=", reference="", solution=_random_response(draws),
        id=f"{self.part}-{index}", metadata={"world": self.world})


def attribute_responses(*, size: int, world: int, part: str = "train") -> AttributeResponses:
  """Random responses as `solution`s, for a policy that starts from what the pairs of the same world are about.

  Args:
    size: responses. world, part: as of attribute_pairs; metadata["world"] is the seed of the utility.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  return AttributeResponses(size, world, part)
