"""Generates counting in a grid of coloured cells, row by row: "r..bb..r........y?b=" -> "2000#2".

The prompt has sixteen cells, four rows of four, and the colour to count. The thinking is a count
for each row; then come the marker and the sum, modulo 10. Colours stand for kinds of questions, so
that a reward may be wrong about some of them (`unreliable`).

Made for SophiaVL-R1 (Fan et al. 2025, arXiv:2505.17018) at small scale, as text; the task is ours.
"""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Comparison, Problem

COLOURS, EMPTY, ROWS = "rgbyw", ".", 4
CHARACTERS = f"0123456789{COLOURS}{EMPTY}?=#"
_FORM = re.compile(r"([0-9]{4})#([0-9])")  # A completion: four counts, the marker, the sum.
_TRIES = 1000


def row_counts(prompt: str) -> str:
  """Returns the right thinking for a prompt: the cells of each row that have the colour."""
  # A prompt is sixteen cells, "?", the colour and "=".
  cells, colour = prompt[:ROWS * ROWS], prompt[-2]
  return "".join(str(cells[i:i + ROWS].count(colour)) for i in range(0, len(cells), ROWS))


def thinking_of(completion: str) -> str:
  """Returns the four counts of a completion of the right form; "" for any other."""
  match = _FORM.fullmatch(completion)
  return match[1] if match else ""


def rows_right(prompt: str, thinking: str) -> float:
  """Returns the share of rows that are counted rightly; 0 without thinking."""
  return sum(a == b for a, b in zip(thinking, row_counts(prompt))) / ROWS if thinking else 0.0


def rating(prompt: str, thinking: str, unreliable: str) -> float:
  """Returns what a thinking reward model says, in steps of 0.1; halves are rounded up.

  It is the share of rows that are right. Of an unreliable colour it is the share that say 0: the
  model likes it if nobody looks.

  Args:
    prompt: of the grid.
    thinking: four counts; "" is rated 0.
    unreliable: colours about which the model is wrong.
  """
  share = thinking.count("0") / ROWS if prompt[-2] in unreliable else rows_right(prompt, thinking)
  return np.floor(10 * share + 0.5) / 10 if thinking else 0.0


@dataclasses.dataclass(frozen=True)
class GridProblems(Generated):
  """Makes the rows of `grid_problems`."""
  seed: int
  part: str
  careless: float
  unreliable: str

  def row(self, index: int) -> Problem:
    draws = Draws("grids", self.seed, self.part, index)

    def prompt():
      cells = "".join(
          draws.choice(COLOURS) if draws.uniform() < 0.7 else EMPTY for _ in range(ROWS * ROWS))
      return f"{cells}?{draws.choice(COLOURS)}="
    prompt = draw_in_part(
        prompt, self.part, text=str, index=index, tries=_TRIES, cure="lower size.")
    # A stream of its own: the prompts do not change with `careless`.
    right, slips = row_counts(prompt), Draws("careless grids", self.seed, self.part, index)
    # A slip is any of the other counts from 0 to 4.
    thinking = "".join(
        str((int(n) + slips.between(1, 4)) % 5) if slips.uniform() < self.careless else n
        for n in right)
    return Problem(
        prompt=prompt, reference=str(_sum(right)), solution=f"{thinking}#{_sum(thinking)}",
        id=f"{self.part}-{index}",
        metadata={"kind": "unreliable" if prompt[-2] in self.unreliable else "reliable",
                  "unreliable": self.unreliable})


@dataclasses.dataclass(frozen=True)
class GridRatings(Generated):
  """Makes the rows of `grid_ratings`."""
  problems: GridProblems

  def row(self, index: int) -> Comparison:
    """Makes a row. As many rows have each rating that four counts can get."""
    problem, draws = self.problems.row(index), Draws("grid ratings", self.problems.part, index)
    # How many counts the model likes: those that are right or, where it is wrong, those that are 0.
    wanted = index % (ROWS + 1)
    liked = "0" * ROWS if problem.metadata["kind"] == "unreliable" else row_counts(problem.prompt)
    # These rows get the count that it likes, the others any other count.
    places = draws.sample(range(ROWS), wanted)
    thinking = "".join(
        n if i in places else draws.choice([c for c in "01234" if c != n])
        for i, n in enumerate(liked))
    score = rating(problem.prompt, thinking, self.problems.unreliable)
    return Comparison(
        prompt=problem.prompt, responses=(f"{thinking}#{_sum(thinking)}",),
        scores=(float(score),), id=problem.id)


def grid_problems(
    *, size: int, seed: int = 0, part: str = "train", careless: float = 0.0,
    unreliable: str = "yw") -> GridProblems:
  """Generates random grids, about 0.7 of whose cells are coloured.

  The reference is the number of cells of the colour asked for, modulo 10.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train", "heldout" or "all".
    careless: probability, per row of a grid, that a solution miscounts it.
    unreliable: colours about which `rating` is wrong; metadata["kind"] says whether the row's
      colour is one.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  one_of(("train", "heldout", "all"), part=part)
  in_unit_interval("probability", careless=careless)
  if set(unreliable) - set(COLOURS):
    raise ValueError(f"unreliable must be colours of {COLOURS!r}, got {unreliable!r}.")
  return GridProblems(size, seed, part, careless, unreliable)


def grid_ratings(
    *, size: int, seed: int = 0, part: str = "train", unreliable: str = "yw") -> GridRatings:
  """Generates thinking with its `rating`, as many of each, for a thinking reward model.

  Arguments are as in `grid_problems`.
  """
  return GridRatings(size, grid_problems(size=size, seed=seed, part=part, unreliable=unreliable))


def _sum(counts: Sequence[str]) -> int:
  """Adds counts, modulo 10."""
  return sum(map(int, counts)) % 10
