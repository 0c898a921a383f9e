"""Generates arithmetic: running totals with worked steps.

It is small enough for a character tokenizer and a tiny policy.
"""

import dataclasses
import operator

from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Problem

# Every character of prompts and solutions, with a space and a newline to spare for templates and
# separators.
CHARACTERS = "0123456789+-*=;# \n"

_TRIES = 10_000  # Held-out problems are 1 in 8, so 10,000 misses mean that there are none.
_SLIP = 3  # A careless step is off by 1 to 3.


@dataclasses.dataclass(frozen=True)
class Arithmetic(Generated):
  """Makes the rows of `arithmetic`, whose arguments the fields are.

  A row costs some 10-50 µs and depends on (seed, part, index) alone.
  """
  seed: int
  part: str
  min_terms: int
  max_terms: int
  max_value: int
  operators: str
  careless: float

  def row(self, index: int) -> Problem:
    draws = Draws("arithmetic", self.seed, self.part, index)
    prompt, first, steps = draw_in_part(
        lambda: self._draw(draws), self.part, text=operator.itemgetter(0), index=index,
        tries=_TRIES,
        cure=f"{self.min_terms} to {self.max_terms} terms with totals up to {self.max_value} are"
             " too few problems to split. Raise max_terms or max_value.")
    # A stream of its own: the prompts do not change with `careless`.
    slips = Draws("careless", self.seed, self.part, index) if self.careless else None
    # The true total goes beside the written one, which goes on from its slips.
    total, written, worked = first, first, []
    for sign, term in steps:
      total = _apply(total, sign, term)
      result = _apply(written, sign, term)
      if slips and slips.uniform() < self.careless:
        result += slips.choice([s for s in range(-_SLIP, _SLIP + 1) if s])
      worked.append(f"{written}{sign}{term}={result};")
      written = result
    return Problem(
        prompt=prompt, reference=str(total), solution=f"{''.join(worked)}#{written}",
        id=f"{self.part}-{index}",
        metadata={"terms": len(steps) + 1, "solution_correct": written == total})

  def _draw(self, draws):
    """Draws (prompt, first number, steps)."""
    first = total = draws.between(min(1, self.max_value), self.max_value)
    steps = []
    for _ in range(draws.between(self.min_terms, self.max_terms) - 1):
      # Terms that keep the total in range and change it. Where no operator has one, a lone "+" at
      # the maximum has to add 0, and a lone "*" to multiply by 1.
      highest = {"+": self.max_value - total, "-": total, "*": self.max_value // max(total, 1)}
      lowest = {"+": 1, "-": 1, "*": 2}
      signs = [s for s in self.operators if highest[s] >= lowest[s]]
      sign = draws.choice(signs or self.operators)
      term = draws.between(lowest[sign], highest[sign]) if signs else lowest[sign] - 1
      steps.append((sign, term))
      total = _apply(total, sign, term)
    return f"{first}{''.join(f'{sign}{term}' for sign, term in steps)}=", first, steps


def arithmetic(
    *, size: int, seed: int = 0, part: str = "train", min_terms: int = 2, max_terms: int = 4,
    max_value: int = 20, operators: str = "+-", careless: float = 0.0) -> Arithmetic:
  """Generates running totals: prompt "7+5-3=", solution "7+5=12;12-3=9;#9", reference "9".

  Operators apply from left to right, as on a pocket calculator: 1+2*3= is 9. Every true total lies
  in [0, max_value]. Training and held-out problems are disjoint by construction: a hash of the
  prompt decides the part (1/8 is held out). A part with few problems repeats some of them over its
  rows.

  Args:
    size: number of rows, at least 1.
    seed: other seeds give other rows, of the same parts.
    part: "train" or "heldout".
    min_terms: fewest numbers in a problem, at least 2.
    max_terms: most numbers in a problem; their number is uniform over the range.
    max_value: highest first number and total, at least 1.
    operators: the ones to draw from, out of "+-*".
    careless: probability, per step, that the solution states a result that is off by 1 to 3 and
      goes on from there. The reference stays right. It makes demonstrations of mixed quality, for a
      weak start; totals may then leave [0, max_value].

  Returns: a source; metadata holds `terms` and `solution_correct`.
  Raises: ValueError for values outside these ranges.
  """
  if size < 1:
    raise ValueError(f"size must be at least 1, got {size}.")
  if part not in ("train", "heldout"):
    raise ValueError(f"part must be 'train' or 'heldout', got {part!r}.")
  if not 2 <= min_terms <= max_terms:
    raise ValueError(
        f"Need 2 <= min_terms <= max_terms, got min_terms={min_terms} and max_terms={max_terms}.")
  if max_value < 1:
    raise ValueError(f"max_value must be at least 1, got {max_value}.")
  if not operators or set(operators) - set("+-*"):
    raise ValueError(f"operators must be one or more of '+', '-', '*', got {operators!r}.")
  if not 0.0 <= careless <= 1.0:
    raise ValueError(f"careless is a probability per step, in [0, 1], got {careless}.")
  return Arithmetic(size, seed, part, min_terms, max_terms, max_value, operators, careless)


def _apply(total, sign, term):
  """Applies one operator."""
  return total + term if sign == "+" else total - term if sign == "-" else total * term
