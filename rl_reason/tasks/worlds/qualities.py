"""Generates short responses with six qualities that can be computed, and pairs of them.

    "bdq3=" -> "xbdad4q2"

The prompt has three letters and a digit, the response 4 to 12 letters and digits. Each quality is
0, 1, 2, 3 or 4 (`qualities`). What a response is worth is a weighted sum of them. Each labeller of
pairs minds some of the qualities: it has weights and a noise of its own. So reward models that
learn from different labellers come to know different qualities.

Made for MRMBench (2025, arXiv:2511.12464) at small scale; the task is ours.
"""

import dataclasses

import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Comparison, Problem

LETTERS, DIGITS, FORBIDDEN = "abcdefghijklmnopqrstuvwxyz", "012345", "uvwxyz"
CHARACTERS = LETTERS + DIGITS + "="
LONGEST, SHORTEST = 12, 4
_TRIES = 1000  # An eighth of all prompts is held out.
NAMES = ("harmlessness", "helpfulness", "correctness", "coherence", "complexity", "verbosity")
GOLD = (1.0, 1.2, 1.0, 0.6, 0.5, -0.4)  # What counts in the end, a point of each quality.


def qualities(prompt: str, response: str) -> tuple[int, ...]:
  """Returns the qualities of a response in the order of NAMES, each in 0 ... 4.

  - harmlessness: how few forbidden letters it has;
  - helpfulness: how often the prompt's letters occur;
  - correctness: how near the sum of its digits is to the prompt's digit, modulo 5;
  - coherence: how many neighbours are in order;
  - complexity: how many different characters it has;
  - verbosity: how long it is.

  Any text has them; a longer response counts to LONGEST characters.
  """
  text = response[:LONGEST]
  wanted, digit = prompt[:3], int(prompt[3])
  away = (sum(int(c) for c in text if c in DIGITS) - digit) % 5
  ordered = sum(a <= b for a, b in zip(text, text[1:]))
  return (4 - min(4, sum(c in FORBIDDEN for c in text)),
          min(4, sum(c in wanted for c in text)),
          4 - 2 * min(away, 5 - away),  # On a circle of 5 nothing is further away than 2.
          min(4, max(0, ordered - 3)),
          min(4, max(0, (len(set(text)) - 2) // 2)),
          min(4, len(text) * 4 // LONGEST))


def worth(prompt: str, response: str, weights=GOLD) -> float:
  """Returns Σ weight · quality."""
  return float(np.dot(weights, qualities(prompt, response)))


def labeller(world: int, index: int) -> tuple[tuple[float, ...], float]:
  """Returns (weights, noise) of a labeller of a world.

  The weights are the gold ones for two to six of the qualities, 0 for the others. The noise is the
  standard deviation of what is added to the worth of each response of a pair, 0.5 to 4.
  """
  draws = Draws("labeller", world, index)
  # The noise is uniform on a logarithmic scale.
  kept = set(draws.sample(range(len(NAMES)), draws.between(2, len(NAMES))))
  return tuple(w if i in kept else 0.0 for i, w in enumerate(GOLD)), 0.5 * 8 ** draws.uniform()


def random_prompt(draws: Draws, part: str, index: int) -> str:
  """Draws a prompt of a part (draws.in_part), for row `index`.

  There are 78,000 prompts, so that parts drawn apart would share some.
  """
  def prompt():
    return f"{''.join(draws.sample(LETTERS, 3))}{draws.choice(DIGITS[:5])}="
  return draw_in_part(
      prompt, part, text=str, index=index, tries=_TRIES, cure="choose another world.")


def random_response(draws: Draws, prompt: str) -> str:
  """Draws a response, with more of the prompt's letters and of digits than chance would bring."""
  def character():
    kind = draws.uniform()
    return draws.choice(prompt[:3] if kind < 0.15 else DIGITS if kind < 0.3 else LETTERS)
  return "".join(character() for _ in range(draws.between(SHORTEST, LONGEST)))


@dataclasses.dataclass(frozen=True)
class QualityPairs(Generated):
  """Makes the rows of `quality_pairs`."""
  world: int
  labeller: int
  part: str

  def row(self, index: int) -> Comparison:
    draws = Draws("quality pairs", self.world, self.part, index)
    weights, noise = (GOLD, 0.0) if self.labeller < 0 else labeller(self.world, self.labeller)
    # Pairs of equal worth have no label that is right: they are drawn again.
    while True:
      prompt = random_prompt(draws, self.part, index)
      pair = [random_response(draws, prompt) for _ in range(2)]
      if worth(prompt, pair[0]) != worth(prompt, pair[1]):
        break
    # Label the pair, from a stream of the labeller's own: all labellers see the same pairs.
    gap = worth(prompt, pair[0], weights) - worth(prompt, pair[1], weights)
    gap += noise * np.sqrt(2) * Draws("label", self.world, self.labeller, self.part, index).normal()
    better, worse = pair if gap > 0 else pair[::-1]
    return Comparison(
        prompt=prompt, responses=(better, worse), scores=(1.0, 0.0), id=f"{self.part}-{index}")


@dataclasses.dataclass(frozen=True)
class RatedResponses(Generated):
  """Makes the rows of `rated_responses`."""
  world: int
  part: str

  def row(self, index: int) -> Comparison:
    draws = Draws("rated responses", self.world, self.part, index)
    prompt = random_prompt(draws, self.part, index)
    response = random_response(draws, prompt)
    return Comparison(prompt=prompt, responses=(response,), id=f"{self.part}-{index}",
                      attributes=(dict(zip(NAMES, map(float, qualities(prompt, response)))),))


@dataclasses.dataclass(frozen=True)
class QualityProblems(Generated):
  """Makes the rows of `quality_problems`."""
  world: int
  part: str

  def row(self, index: int) -> Problem:
    draws = Draws("quality problems", self.world, self.part, index)
    prompt = random_prompt(draws, self.part, index)
    return Problem(
        prompt=prompt, reference="", solution=random_response(draws, prompt),
        id=f"{self.part}-{index}")


def quality_pairs(
    *, size: int, world: int, labeller: int = -1, part: str = "train") -> QualityPairs:
  """Generates pairs of random responses to random prompts, labelled by one of a world's labellers.

  Args:
    size: number of rows.
    world: seed of prompts, responses and labellers.
    labeller: which labeller it is (`labeller`); -1: labels say what is true.
    part: "train" or "heldout"; labellers of one world and part see the same pairs.

  Raises: ValueError for values out of range.
  """
  _check(size, part)
  return QualityPairs(size, world, labeller, part)


def quality_problems(*, size: int, world: int, part: str = "train") -> QualityProblems:
  """Generates random prompts with random responses to imitate; there is no right answer.

  Arguments are as in `quality_pairs`.
  """
  _check(size, part)
  return QualityProblems(size, world, part)


def rated_responses(*, size: int, world: int, part: str = "train") -> RatedResponses:
  """Generates random responses with their qualities as attributes.

  Arguments are as in `quality_pairs`.
  """
  _check(size, part)
  return RatedResponses(size, world, part)


def _check(size: int, part: str) -> None:
  """Checks the arguments. Raises: ValueError for values out of range."""
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
