"""Documents for the task `lookup`: each search brings one fact, sometimes another than the one that was asked for."""

from collections.abc import Callable, Sequence

from rl_reason.rollout.episodes import Episode
from rl_reason.tasks.worlds.lookup import document, SEARCH


def lookup(*, reliable: float = 0.9) -> Callable[[Sequence[Episode]], list[str | None]]:
  """An environment: a turn that ends with "." gets a document, or "()" where it is no search; any other turn is the last.

  Args:
    reliable: probability that the document is the fact that was asked for; which it is depends on the problem and the turn.
  Raises: ValueError for what is no probability.
  """
  if not 0 <= reliable <= 1:
    raise ValueError(f"reliable must be in [0, 1], got {reliable}: it is a probability.")

  def answer(episode: Episode) -> str | None:
    turn = episode.turns[-1]
    if not turn.endswith("."):
      return None
    search = SEARCH.fullmatch(turn)
    if search is None:
      return "()"
    return document(episode.problem.metadata["world"], *search.groups(), len(episode.turns) - 1, reliable)
  return lambda episodes: [answer(episode) for episode in episodes]
