"""Finds documents for the task `lookup`.

Each search brings one fact, which is sometimes another fact than the one that was asked for.
"""

import dataclasses

from rl_reason.config.checks import in_unit_interval
from rl_reason.rollout.environment import State, Turn
from rl_reason.tasks.worlds.lookup import document, SEARCH
from rl_reason.types import Message, Problem


@dataclasses.dataclass(frozen=True)
class Lookup:
  """Answers a turn that ends with "." with a document, or with "()" if it is not a search.

  Any other turn is the last. The document that a search finds depends on the problem and on the
  number of turns before, not on the seed.

  reliable: probability that the document is the fact that was asked for.

  Raises: ValueError if `reliable` is not a probability, and in `reset` for a problem of another
    task.
  """
  reliable: float = 0.9

  def __post_init__(self):
    in_unit_interval("probability", reliable=self.reliable)

  def reset(self, problem: Problem, seed: int) -> State:
    """Begins an episode: its state is the problem's world, and the number of turns."""
    # The problem carries its world, so that one object can serve all problems.
    if "world" not in problem.metadata:
      raise ValueError(
          f"Problem {problem.id!r} has no \"world\" in its metadata, whose facts could be looked"
          " up: use problems of the task lookup_problems, or another environment.")
    return {"world": problem.metadata["world"], "turns": 0}

  async def step(self, state: State, turn: Turn) -> tuple[list[Message] | None, None, State]:
    """Answers a turn with a document; pays nothing."""
    if turn.final or not turn.text.endswith("."):
      return None, None, state
    search, found = SEARCH.fullmatch(turn.text), "()"
    if search is not None:
      found = document(state["world"], *search.groups(), state["turns"], self.reliable)
    return [{"role": "tool", "content": found}], None, {**state, "turns": state["turns"] + 1}
