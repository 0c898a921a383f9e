"""Generates sums of digits, one by one, with steps that do nothing: "4302=" -> "2N24#4" (mod 5).

A step is one character: the sum so far, after the second digit, the third and so on; or N, a legal
step that changes nothing. Then come the marker and the answer. How far a work is right can be read
from its characters (`step_values`), so that process rewards can be studied apart from the errors of
a learned one.
"""

import dataclasses

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Comparison, Problem

CHARACTERS = "0123456789N#="
IDLE, MARKER = "N", "#"
_TRIES = 1000


def right_sums(prompt: str, modulus: int) -> str:
  """Returns the sums after the second digit, the third and so on.

  Args:
    prompt: digits and "=".
    modulus: sums are taken modulo it.

  Raises: ValueError for any other prompt.
  """
  digits = prompt.removesuffix("=")
  if not digits.isdecimal() or len(digits) < 2:
    raise ValueError(
        f"the prompt {prompt!r} is not two or more digits and '=': there are no sums to compare"
        " with.")
  return "".join(str(sum(map(int, digits[:n])) % modulus) for n in range(2, len(digits) + 1))


def work_of(completion: str) -> str:
  """Returns the steps of a completion: all before the marker, and without a marker all of it."""
  return completion.partition(MARKER)[0]


def step_values(prompt: str, work: str, *, modulus: int, after_slip: float = 0.1) -> list[float]:
  """Returns what each prefix of the work promises, in [0, 1].

  It is 1 while all sums are right, and `after_slip` from the first wrong one on. A step that does
  nothing keeps the value. One sum too many, or any other character, is wrong.
  """
  expected, place, values, value = right_sums(prompt, modulus), 0, [], 1.0
  for step in work:
    # An idle step takes no place among the sums. Past the last sum nothing is expected, so that
    # whatever stands there is wrong.
    if step != IDLE:
      value = value if expected[place:place + 1] == step else after_slip
      place += 1
    values.append(value)
  return values


@dataclasses.dataclass(frozen=True)
class RunningSums(Generated):
  """Makes the rows of `running_sums`."""
  seed: int
  part: str
  digits: int
  modulus: int
  careless: float
  idle: float

  def row(self, index: int) -> Problem:
    draws = Draws("running sums", self.seed, self.part, index)
    prompt = draw_in_part(
        lambda: "".join(str(draws.below(self.modulus)) for _ in range(self.digits)) + "=",
        self.part, text=str, index=index,
        tries=_TRIES, cure="raise digits or modulus.")
    right, shift, work = right_sums(prompt, self.modulus), 0, ""
    # A stream of its own: the prompts do not change with `careless` or `idle`.
    slips = Draws("careless sums", self.seed, self.part, index)
    # Write the sums, each perhaps after an idle step. `shift` is how far the work is off.
    for total in right:
      work += IDLE * (slips.uniform() < self.idle)
      if slips.uniform() < self.careless:
        shift += slips.between(1, self.modulus - 1)  # What follows goes on from the wrong sum.
      work += str((int(total) + shift) % self.modulus)
    return Problem(
        prompt=prompt, reference=right[-1], solution=f"{work}{MARKER}{work[-1]}",
        id=f"{self.part}-{index}",
                   metadata={"modulus": self.modulus, "solution_correct": work[-1] == right[-1]})


@dataclasses.dataclass(frozen=True)
class LabelledSums:
  """Makes the rows of `labelled_sums`."""
  problems: RunningSums

  def __len__(self) -> int:
    return len(self.problems)

  def __getitem__(self, index: int) -> Comparison:
    problem = self.problems[index]
    return Comparison(prompt=problem.prompt, responses=(problem.solution,),
                      scores=(float(problem.metadata["solution_correct"]),), id=problem.id)


def running_sums(
    *, size: int, seed: int = 0, part: str = "train", digits: int = 4, modulus: int = 5,
    careless: float = 0.0, idle: float = 0.0) -> RunningSums:
  """Generates problems with `digits` digits and digits - 1 sums to write.

  The reference is the last sum.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train", "heldout" or "all"; there are modulus ** digits prompts.
    digits: of a prompt, each below `modulus`; at least 2.
    modulus: in [2, 10].
    careless: probability, per sum, that a solution's sum is wrong, and all after it with it.
    idle: probability, per sum, that an N stands before it.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  at_least(2, digits=digits, modulus=modulus)
  one_of(("train", "heldout", "all"), part=part)
  if modulus > 10:
    raise ValueError(f"modulus must be at most 10, got {modulus}: a sum is one digit.")
  in_unit_interval("probability", careless=careless, idle=idle)
  return RunningSums(size, seed, part, digits, modulus, careless, idle)


def labelled_sums(
    *, size: int, seed: int = 0, part: str = "train", digits: int = 4, modulus: int = 5,
    careless: float = 0.0, idle: float = 0.0) -> LabelledSums:
  """Generates the solutions of `running_sums` with these arguments, for outcome reward models.

  A solution is scored 1 if its answer is right and 0 if not.
  """
  return LabelledSums(running_sums(
      size=size, seed=seed, part=part, digits=digits, modulus=modulus, careless=careless,
      idle=idle))
