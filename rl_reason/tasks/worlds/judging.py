"""Generates pairs of answers to be judged, of two kinds.

Pairs of the first kind are worked out step by step, those of the second are weighed by what the
prompt asks for:

    reasoning    "bdeb?A2B0="                moves, permutations a to f of three things: which of 2
                                             and 0 is the state at the end?
    chat         "u3w1?AuvwwzyxuBwwyyzvvx="  which text has more of what is asked for, 3 points a
                                             "u" and 1 a "w"?

A judge's trace for the first kind is "R1510[B]": its kind, the states on the way, the verdict. For
the second it is "Cu3w10802[A]": its kind, the criteria, both scores, the verdict. To follow
permutations is a word problem of the group S3: a network reads off long products only if it is as
deep, but writes them down one by one.

Made for RM-R1 (Chen et al. 2025, arXiv:2505.02387) at small scale; the tasks are ours.
"""

import dataclasses
import itertools
from typing import Any

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Comparison, Problem

# Letter -> permutation, and permutation -> digit.
MOVES = dict(zip("abcdef", itertools.permutations(range(3))))
STATES = {order: str(i) for i, order in enumerate(itertools.permutations(range(3)))}
LETTERS = "uvwxyz"
CHARACTERS = "abcdefuvwxyz0123456789?AB=RC[]"
TRACES = ("none", "kind", "untyped", "random")
_TRIES = 1000


def states(moves: str) -> list[str]:
  """Returns the state after each move, starting from state "0".

  The move (i, j, k) puts what is at i, j and k first, second and third.
  """
  order, found = (0, 1, 2), []
  for move in moves:
    order = tuple(order[i] for i in MOVES[move])
    found.append(STATES[order])
  return found


def points(criteria: str, text: str) -> int:
  """Returns the points of a text by criteria "u3w1": 3 for each u, 1 for each w."""
  return sum(int(criteria[i + 1]) * text.count(criteria[i]) for i in range(0, len(criteria), 2))


@dataclasses.dataclass(frozen=True)
class Item:
  """Holds a pair to be judged.

  question: what both answers are to.
  answers: the two as shown, A first.
  right: index of the better one.
  work: what a trace writes between its kind and the verdict.
  kind: "R" or "C".
  domain: short, long or chat.
  """
  question: str
  answers: tuple[str, str]
  right: int
  work: str
  kind: str
  domain: str


@dataclasses.dataclass(frozen=True)
class _Items(Generated):
  """Draws the pairs that problems and comparisons share; the fields are their arguments."""
  seed: int
  part: str
  min_moves: int
  max_moves: int
  chat_share: float

  def item(self, index: int) -> Item:
    """Draws the pair of a row."""
    draws = Draws("judging", self.seed, self.part, index)
    return draw_in_part(
        lambda: (
            self._chat(draws) if draws.uniform() < self.chat_share else self._reasoning(draws)),
        self.part,
        text=lambda item: item.question, index=index, tries=_TRIES,
        cure="raise max_moves or chat_share.")

  def _reasoning(self, draws) -> Item:
    """Draws a pair of a reasoning question: the state at the end and another state."""
    moves = "".join(
        draws.choice("abcdef") for _ in range(draws.between(self.min_moves, self.max_moves)))
    # The right answer is the last state; a coin says which of the two is shown first.
    way = states(moves)
    wrong, right = draws.choice([s for s in STATES.values() if s != way[-1]]), draws.below(2)
    answers = (way[-1], wrong) if right == 0 else (wrong, way[-1])
    return Item(
        f"{moves}?", answers, right, "".join(way), "R", "long" if len(moves) >= 6 else "short")

  def _chat(self, draws) -> Item:
    """Draws a pair of texts of different points."""
    first, second = draws.sample(LETTERS, 2)
    criteria = f"{first}{draws.between(1, 3)}{second}{draws.between(1, 3)}"
    # Texts of equal points are drawn again: neither would be right.
    while True:
      answers = tuple("".join(draws.choice(LETTERS) for _ in range(8)) for _ in range(2))
      scores = [points(criteria, a) for a in answers]
      if scores[0] != scores[1]:
        return Item(f"{criteria}?", answers, int(scores[1] > scores[0]),
                    f"{criteria}{scores[0]:02d}{scores[1]:02d}", "C", "chat")


@dataclasses.dataclass(frozen=True)
class JudgeProblems(_Items):
  """Makes the rows of `judge_problems`."""
  trace: str
  careless: float

  def row(self, index: int) -> Problem:
    item = self.item(index)
    verdict, work = item.right, item.work
    # A stream of its own: the pairs do not change with `trace` or `careless`.
    draws = Draws("careless judge", self.seed, self.part, index)
    # The trace: of noise, with a slip, or right.
    if self.trace == "random":
      work, verdict = "".join(draws.choice([*STATES.values()]) for _ in work), draws.below(2)
    elif self.trace != "none" and draws.uniform() < self.careless:
      work, verdict = slip(item, draws)
    solution = {"none": "", "untyped": work}.get(self.trace, item.kind + work)
    return Problem(
        prompt=f"{item.question}A{item.answers[0]}B{item.answers[1]}=", reference="AB"[item.right],
        solution=f"{solution}[{'AB'[verdict]}]", id=f"{self.part}-{index}",
        metadata={"domain": item.domain, "work": item.work, "kind": item.kind})


def slip(item: Item, draws: Draws) -> tuple[str, int]:
  """Makes one step of the work wrong.

  Returns: (work with the wrong step and all that follows from it, the verdict that it leads to).
  """
  # Chat: one of the scores is off by up to 6, and not equal to the other.
  if item.kind == "C":
    scores = [int(item.work[-4:-2]), int(item.work[-2:])]
    wrong = draws.below(2)
    scores[wrong] = draws.choice(
        [s for s in range(max(0, scores[wrong] - 6), scores[wrong] + 7) if s not in scores])
    return f"{item.work[:-4]}{scores[0]:02d}{scores[1]:02d}", int(scores[1] > scores[0])
  # Reasoning: another state at one place, from which the later moves go on. If the end is neither
  # answer, the verdict is a coin's.
  moves, at = item.question[:-1], draws.below(len(item.work))
  orders = {name: order for order, name in STATES.items()}
  order = orders[draws.choice([s for s in orders if s != item.work[at]])]
  work = item.work[:at] + STATES[order]
  for move in moves[at + 1:]:
    order = tuple(order[i] for i in MOVES[move])
    work += STATES[order]
  return work, item.answers.index(work[-1]) if work[-1] in item.answers else draws.below(2)


@dataclasses.dataclass(frozen=True)
class JudgeComparisons(_Items):
  """Makes the rows of `judge_comparisons`: for a reward model, which sees one answer at a time."""

  def row(self, index: int) -> Comparison:
    item = self.item(index)
    return Comparison(
        prompt=item.question,
        responses=(item.answers[item.right], item.answers[1 - item.right]),
                      scores=(1.0, 0.0), domain=item.domain, id=f"{self.part}-{index}")


def judge_problems(
    *, size: int, seed: int = 0, part: str = "train", min_moves: int = 2, max_moves: int = 6,
    chat_share: float = 0.5, trace: str = "kind", careless: float = 0.0) -> JudgeProblems:
  """Generates problems whose completion judges a pair; reference "A" or "B", solutions with traces.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train", "heldout" or "all".
    min_moves: fewest moves of reasoning pairs, at least 1.
    max_moves: most moves of reasoning pairs.
    chat_share: share of pairs of the other kind.
    trace: what a solution writes. "kind": the kind of pair, the work, the verdict; "untyped": the
      same without the kind; "none": the verdict; "random": the form only, with work and verdict
      that say nothing.
    careless: probability that a solution has a wrong step. What follows goes on rightly from it.

  Raises: ValueError for values out of range.
  """
  _check(size, part, min_moves, max_moves, chat_share=chat_share, careless=careless)
  one_of(TRACES, trace=trace)
  return JudgeProblems(size, seed, part, min_moves, max_moves, chat_share, trace, careless)


def judge_comparisons(
    *, size: int, seed: int = 0, part: str = "train", min_moves: int = 2, max_moves: int = 6,
    chat_share: float = 0.5) -> JudgeComparisons:
  """Generates the same pairs, row by row, as Comparisons of the two answers."""
  _check(size, part, min_moves, max_moves, chat_share=chat_share)
  return JudgeComparisons(size, seed, part, min_moves, max_moves, chat_share)


def _check(size: int, part: str, min_moves: int, max_moves: int, **shares: Any) -> None:
  """Checks the arguments. Raises: ValueError for values out of range."""
  at_least(1, size=size, min_moves=min_moves)
  one_of(("train", "heldout", "all"), part=part)
  if max_moves < min_moves:
    raise ValueError(f"max_moves must be at least min_moves={min_moves}, got {max_moves}.")
  in_unit_interval("probability", **shares)
