"""Generates questions that take one or two look-ups: "kCA=" asks for the A of the C of k.

    2?kC.  (kCr)  1?rA.  (rAd)  0!d

is an episode: turns that look up one fact, the documents that come back (envs.lookup), and the
answer. The digit is what the policy thinks is left to look up. Entities are letters a to z,
relations A to F. Each problem has facts of its own, so that they cannot be learnt by heart: they
have to be looked up and copied.

Made for PPR (Xu et al. 2025, arXiv:2509.25598) at small scale; the task is ours.
"""

import dataclasses
import re
import string

from rl_reason.config.checks import at_least, in_unit_interval, one_of
from rl_reason.tasks.draws import draw_in_part, Draws, Generated
from rl_reason.types import Problem

ENTITIES, RELATIONS = string.ascii_lowercase, "ABCDEF"
CHARACTERS = f"{ENTITIES}{RELATIONS}012=?.()!"
SEARCH = re.compile(r"[0-2]\?([a-z])([A-F])\.")  # A whole turn that looks a fact up.
# Entity, relation, and the entity that it leads to.
DOCUMENT = re.compile(r"\(([a-z])([A-F])([a-z])\)")
_TRIES = 1000


def fact(world: str, entity: str, relation: str) -> str:
  """Returns the entity that `relation` of `entity` is."""
  return Draws("fact", world, entity, relation).choice(ENTITIES)


def document(world: str, entity: str, relation: str, turn: int, reliable: float) -> str:
  """Returns what a search finds: the fact or, with probability 1 - reliable, another one.

  On another turn the same search may find the other.
  """
  draws = Draws("document", world, entity, relation, turn)
  if draws.uniform() >= reliable:
    entity, relation = draws.choice(ENTITIES), draws.choice(RELATIONS)
  return f"({entity}{relation}{fact(world, entity, relation)})"


@dataclasses.dataclass(frozen=True)
class LookupProblems(Generated):
  """Makes the rows of `lookup_problems`."""
  seed: int
  part: str
  one_hop: float
  careless: float
  reliable: float
  max_turns: int

  def row(self, index: int) -> Problem:
    draws, world = Draws("lookup", self.seed, self.part, index), f"{self.seed}/{self.part}/{index}"

    def question():
      relations = "".join(
          draws.choice(RELATIONS) for _ in range(1 if draws.uniform() < self.one_hop else 2))
      return f"{draws.choice(ENTITIES)}{relations}="
    prompt = draw_in_part(
        question, self.part, text=str, index=index, tries=_TRIES, cure="lower size.")
    # Follow the relations to the answer.
    answer = prompt[0]
    for relation in prompt[1:-1]:
      answer = fact(world, answer, relation)
    # Turns and documents come alternately, a turn first.
    messages = tuple(
        {"role": "assistant" if i % 2 == 0 else "tool", "content": text}
        for i, text in enumerate(self._episode(world, prompt, Draws("careless lookup", world))))
    return Problem(prompt=prompt, reference=answer, solution=messages, id=f"{self.part}-{index}",
                   metadata={"world": world, "hops": len(prompt) - 2})

  def _episode(self, world: str, prompt: str, draws: Draws) -> list[str]:
    """Writes an episode: turns and documents alternately.

    Before each turn a careless writer may slip: stops too early, looks up what it knows already, or
    asks for an entity that nobody named.
    """
    entity, left, texts = prompt[0], prompt[1:-1], []
    # One turn is kept for the answer.
    for turn in range(self.max_turns - 1):
      slip = draws.choice(("stop", "again", "wrong")) if draws.uniform() < self.careless else ""
      if not left or slip == "stop" and turn:
        break
      # What to ask: the next relation of the entity that is known, or what a slip makes of it.
      query = entity + left[0]
      if slip == "again":
        query = prompt[:2]
      elif slip == "wrong":
        query = draws.choice(ENTITIES) + left[0]
      found = document(world, *query, turn, self.reliable)
      texts += [f"{len(left)}?{query}.", found]
      # Only the right document leads on. After any other the same fact is looked up again.
      if found[1:3] == entity + left[0]:
        entity, left = found[3], left[1:]
    return [*texts, f"0!{entity}"]


def lookup_problems(
    *, size: int, seed: int = 0, part: str = "train", one_hop: float = 0.3, careless: float = 0.0,
    reliable: float = 0.9, max_turns: int = 4) -> LookupProblems:
  """Generates questions of two look-ups; the reference is the entity asked for.

  Args:
    size: number of rows.
    seed: as in `arithmetic`.
    part: "train", "heldout" or "all"; there are 1,092 prompts, each with new facts in every row.
    one_hop: probability that a question takes one look-up only.
    careless: probability of a slip before each turn of the worked episodes.
    reliable: of the environment that these were written in: probability that a search finds its
      fact.
    max_turns: of that environment: turns of an episode, the answer included; at least 2.

  Raises: ValueError for values out of range.
  """
  at_least(1, size=size)
  at_least(2, max_turns=max_turns)
  one_of(("train", "heldout", "all"), part=part)
  in_unit_interval("probability", one_hop=one_hop, careless=careless, reliable=reliable)
  return LookupProblems(size, seed, part, one_hop, careless, reliable, max_turns)
