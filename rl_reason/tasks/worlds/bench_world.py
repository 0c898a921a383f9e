"""Generates six kinds of questions with right and wrong answers, in two dialects.

It is a small world to judge reward models in.

    Fga..= -> D      a fact of entity and attribute
    Cbh..= -> fgi    three letters of a topic without one
    M47..= -> 1      a sum modulo 10
    Sc..=  -> R      a harmful request is refused
    Ob..=  -> gfj    about the topic that is named
    Kb..=  -> any letter of a topic; kb2..= -> its third alone

The two dots are letters that make prompts differ and mean nothing. Dialect "a" writes "fgi.",
dialect "b" "-fgi,": the same content in other words. Every answer can be checked (`is_right`).

Made for RewardBench 2 (Malik et al. 2025, arXiv:2506.01937) at small scale; the world is ours.
"""

import dataclasses

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Comparison, Problem

TOPICS = {"a": "abcde", "b": "fghij", "c": "klmno", "d": "pqrst"}
LETTERS, VALUES, NONCE = "abcdefghijklmnopqrst", "ABDEGH", "uvwxyz"
CHARACTERS = f"{LETTERS}{NONCE}{VALUES}FCMSOKR0123456789=.-,"
# A prompt's first letter -> the domain of RewardBench 2 that its kind stands for.
DOMAINS = {"F": "factuality", "C": "precise_if", "M": "math", "S": "safety", "O": "focus",
           "K": "ties"}
DIALECTS = {"a": ("", "."), "b": ("-", ",")}  # What stands before and after an answer.
LONGEST = 5  # Characters of an answer, in a dialect.
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Question:
  """Holds a question and answers to it, in no dialect.

  prompt: without its nonce (the two letters that mean nothing) and "=".
  right: right answers, at least one.
  wrong: wrong answers, at least one.
  """
  prompt: str
  right: tuple[str, ...]
  wrong: tuple[str, ...]


def fact(world: int, entity: str, attribute: str) -> str:
  """Returns the value that an attribute of an entity has in a world."""
  return Draws("bench fact", world, entity, attribute).choice(VALUES)


def is_right(world: int, prompt: str, answer: str) -> bool:
  """Says whether an answer, in no dialect, is right; the prompt with or without its nonce."""
  kind, rest = prompt[0], prompt[1:]
  if kind == "F":
    return answer == fact(world, rest[0], rest[1])
  if kind == "M":
    return answer == str((int(rest[0]) + int(rest[1])) % 10)
  if kind == "S":
    return answer == "R"
  if kind == "k":
    return answer == TOPICS[rest[0]][int(rest[1])]
  topic = TOPICS[rest[0]]
  if kind == "K":
    return len(answer) == 1 and answer in topic
  return len(answer) == 3 and set(answer) <= set(topic) and not (kind == "C" and rest[1] in answer)


def question(draws: Draws, world: int, kind: str, topic: str = "") -> Question:
  """Draws a question with its answers.

  It has one right answer (all right ones for kind "K") and three wrong ones.

  Args:
    draws: where random numbers come from.
    world: seed of facts.
    kind: a key of DOMAINS, or "k".
    topic: a key of TOPICS; "": any.

  Raises: ValueError for another kind.
  """
  topic = topic or draws.choice("abcd")
  letters = TOPICS[topic]
  other = TOPICS[draws.choice([t for t in TOPICS if t != topic])]
  text = lambda letters: "".join(draws.choice(letters) for _ in range(3))

  # Three different ones, so that a scorer that gives all answers one score is right in a quarter of
  # the questions and not in more.
  def three(make) -> tuple[str, ...]:
    found = {}
    while len(found) < 3:
      found[make()] = None
    return tuple(found)
  if kind == "F":
    prompt = f"F{draws.choice(LETTERS[:12])}{draws.choice('abc')}"
    right = fact(world, *prompt[1:])
    return Question(prompt, (right,), tuple(draws.sample([v for v in VALUES if v != right], 3)))
  if kind == "M":
    prompt = f"M{draws.below(10)}{draws.below(10)}"
    right = str((int(prompt[1]) + int(prompt[2])) % 10)
    return Question(
        prompt, (right,), tuple(draws.sample([d for d in "0123456789" if d != right], 3)))
  if kind == "S":
    return Question(f"S{topic}", ("R",), three(lambda: text(letters)))
  if kind == "C":
    banned = draws.choice(letters)
    allowed = letters.replace(banned, "")

    # A text that breaks the rule has the banned letter at one place at least.
    def breaking():
      answer, at = text(allowed), draws.below(3)
      return answer[:at] + banned + answer[at + 1:]
    return Question(f"C{topic}{banned}", (text(allowed),), three(breaking))
  if kind == "O":
    return Question(f"O{topic}", (text(letters),), three(lambda: text(other)))
  if kind == "k":
    place = draws.below(len(letters))
    return Question(
        f"k{topic}{place}", (letters[place],),
        tuple(draws.sample(letters.replace(letters[place], "") + other, 3)))
  one_of(DOMAINS, **{"kind of question": kind})
  return Question(
      f"K{topic}", tuple(letters), tuple(draws.sample([c for c in LETTERS if c not in letters], 3)))


def spoken(answer: str, dialect: str) -> str:
  """Writes an answer in a dialect."""
  before, after = DIALECTS[dialect]
  return f"{before}{answer}{after}"


def understood(text: str, dialect: str) -> str:
  """Returns the answer of a text in a dialect; "" for anything else."""
  before, after = DIALECTS[dialect]
  return (text[len(before):len(text) - len(after)]
          if text.startswith(before) and text.endswith(after) else "")


def _asked(
    draws: Draws, world: int, part: str, index: int, kind: str, topic: str = "",
) -> tuple[str, Question]:
  """Draws (whole prompt, its question), of the part."""
  def draw():
    asked = question(draws, world, kind, topic)
    return f"{asked.prompt}{draws.choice(NONCE)}{draws.choice(NONCE)}=", asked
  return draw_in_part(
      draw, part, text=lambda found: found[0], index=index, tries=_TRIES, cure="lower size.")


@dataclasses.dataclass(frozen=True)
class BenchPairs(Generated):
  """Makes the rows of `bench_pairs`."""
  world: int
  part: str
  dialect: str
  flip: float

  def row(self, index: int) -> Comparison:
    draws = Draws("bench pairs", self.world, self.part, index)
    prompt, asked = _asked(draws, self.world, self.part, index, draws.choice([*DOMAINS, "k"]))
    pair = tuple(spoken(draws.choice(side), self.dialect) for side in (asked.right, asked.wrong))
    if draws.uniform() < self.flip:
      pair = pair[::-1]
    return Comparison(prompt=prompt, responses=pair, scores=(1.0, 0.0), id=f"{self.part}-{index}")


@dataclasses.dataclass(frozen=True)
class BenchProblems(Generated):
  """Makes the rows of `bench_problems`."""
  world: int
  part: str
  dialect: str
  careless: float

  def row(self, index: int) -> Problem:
    draws = Draws("bench problems", self.world, self.part, index)
    prompt, asked = _asked(draws, self.world, self.part, index, draws.choice([*DOMAINS, "k"]))
    answer = draws.choice(asked.wrong if draws.uniform() < self.careless else asked.right)
    return Problem(
        prompt=prompt, reference="", solution=spoken(answer, self.dialect),
        id=f"{self.part}-{index}",
        metadata={"world": self.world, "dialect": self.dialect})


@dataclasses.dataclass(frozen=True)
class BenchRecords(Generated):
  """Makes the rows of `bench_records`."""
  world: int

  def row(self, index: int) -> Comparison:
    # All kinds in turn: row 7 p + k is the p-th record of the k-th kind.
    place, kind = divmod(index, len(DOMAINS) + 1)
    kind = [*DOMAINS, "k"][kind]
    draws = Draws("bench records", self.world, index)
    # Both forms of a question about ties are of one topic and in one dialect.
    topic, dialect = (
        ("abcd"[place % 4], "ab"[place // 4 % 2]) if kind in "Kk" else ("", draws.choice("ab")))
    prompt, asked = _asked(draws, self.world, "heldout", index, kind, topic)
    right, wrong = (tuple(spoken(a, dialect) for a in side) for side in (asked.right, asked.wrong))
    # The names say which two records are forms of one question.
    name = {"k": f"ref:{place}", "K": f"tied:{place}"}.get(kind) or f"{DOMAINS[kind]}:{place}"
    return Comparison(
        prompt=prompt, responses=right + wrong,
        scores=(1.0,) * len(right) + (0.0,) * len(wrong), id=name,
        domain=DOMAINS[kind.upper()])


def bench_pairs(
    *, size: int, world: int, part: str = "train", dialect: str = "a", flip: float = 0.0,
) -> BenchPairs:
  """Generates pairs of a right answer and a wrong one, of all kinds of questions.

  Args:
    size: number of rows.
    world: seed of facts and questions.
    part: "train" or "heldout", which has other prompts.
    dialect: of both answers.
    flip: share of pairs with the wrong label.

  Raises: ValueError for values out of range.
  """
  _check(size, part, dialect, flip=flip)
  return BenchPairs(size, world, part, dialect, flip)


def bench_problems(
    *, size: int, world: int, part: str = "train", dialect: str = "a", careless: float = 0.0,
) -> BenchProblems:
  """Generates questions with an answer to imitate; `is_right` says which are right.

  Args:
    size, world, part, dialect: as in `bench_pairs`.
    careless: share of answers that are wrong.

  Raises: ValueError for values out of range.
  """
  _check(size, part, dialect, careless=careless)
  return BenchProblems(size, world, part, dialect, careless)


def bench_records(*, size: int, world: int) -> BenchRecords:
  """Generates the benchmark: held-out questions of each kind in turn.

  They are questions of best of four, and both forms of ties ("tied:x", "ref:x"). Each is in one of
  the two dialects.

  Args:
    size: a multiple of seven, so that forms are together.
    world: as in `bench_pairs`.

  Raises: ValueError for another size.
  """
  if size < 1 or size % (len(DOMAINS) + 1):
    raise ValueError(
        f"size must be a multiple of {len(DOMAINS) + 1}, one record of each kind, got {size}.")
  return BenchRecords(size, world)


def _check(size: int, part: str, dialect: str, **shares: float) -> None:
  """Checks the arguments. Raises: ValueError for values out of range."""
  at_least(1, size=size)
  one_of(("train", "heldout"), part=part)
  one_of(DIALECTS, dialect=dialect)
  in_unit_interval("share", **shares)
