"""Asks a retrieval server: <search>query</search> gets <information>passages</information>."""

import asyncio
from collections.abc import Sequence
import dataclasses
import http.client

from rl_reason.rollout.environment import State, Turn
from rl_reason.runtime.http_client import post_json
from rl_reason.sandbox.answer_text import last_tagged
from rl_reason.types import Message, Problem


@dataclasses.dataclass
class _Request:
  """Holds queries that are sent together.

  queries: the queries.
  found: the task that returns their passages, in the same order.
  """
  queries: list[str]
  found: asyncio.Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """Answers a turn that ends with a search with the passages found; any other turn is the last.

  Let "</search>" end turns. Searches that are made at the same time are one request, in the
  protocol of Search-R1 (Jin et al. 2025, arXiv:2503.09516):

      POST {"queries": [...], "topk": 3, "return_scores": true}
      -> {"result": [[{"document": {"contents": text}}, ...], ...]}

  A blank query, and one without passages, gets an empty block of information. There is no state.

  url: address of the server, e.g. "http://localhost:8000/retrieve".
  topk: passages of a query.
  passage_characters: most characters of a passage.
  timeout_seconds: as in runtime.http_client.post_json.
  retries: as in runtime.http_client.post_json.
  pause_seconds: as in runtime.http_client.post_json.

  Raises: ValueError for arguments out of range; in `step` ConnectionError where the server fails
    for good, because nothing can be learnt from searches that nobody answers.
  """
  url: str
  topk: int = 3
  passage_characters: int = 1500
  timeout_seconds: float = 60.0
  retries: int = 3
  pause_seconds: float = 1.0
  # For each event loop that runs steps, the request that still takes queries.
  _open: dict[asyncio.AbstractEventLoop, _Request] = dataclasses.field(
      default_factory=dict, init=False, repr=False, compare=False)

  def __post_init__(self):
    if not self.url.startswith(("http://", "https://")):
      raise ValueError(f"url must start with http:// or https://, got {self.url!r}.")
    if self.topk < 1 or self.passage_characters < 1:
      raise ValueError(f"topk and passage_characters must be at least 1, got {self.topk} and"
                       f" {self.passage_characters}.")

  def reset(self, problem: Problem, seed: int) -> State:
    return None

  async def step(self, state: State, turn: Turn) -> tuple[list[Message] | None, None, State]:
    """Answers a turn with passages; pays nothing."""
    ended = not turn.final and turn.text.rstrip().endswith("</search>")
    # Only the last search of the turn is answered.
    found = last_tagged(turn.text, "search") if ended else None
    if found is None:
      return None, None, state
    query = found[1].strip()
    passages = await self._passages(query) if query else []
    text = "".join(f"{line}\n" for line in ["\n<information>", *passages, "</information>"])
    return [{"role": "tool", "content": text}], None, state

  async def _passages(self, query: str) -> list[str]:
    """Finds a query's passages, in one request with those of the other steps that run now."""
    loop = asyncio.get_running_loop()
    if (request := self._open.get(loop)) is None:
      # The task begins once all steps that are ready to run have run, and so have asked.
      request = self._open[loop] = _Request([], loop.create_task(self._send(loop)))
    place = len(request.queries)
    request.queries.append(query)
    # Shielded: a step that is cancelled does not cancel the others' request.
    found = await asyncio.shield(request.found)
    return found[place]

  async def _send(self, loop: asyncio.AbstractEventLoop) -> list[list[str]]:
    """Sends the loop's request, in a thread, since a blocked loop could run no other step."""
    request = self._open.pop(loop)
    return await asyncio.to_thread(self._retrieve, request.queries)

  def _retrieve(self, queries: Sequence[str]) -> list[list[str]]:
    """Asks the server. Raises: ConnectionError for anything but passages for every query."""
    try:
      reply = post_json(
          self.url, {"queries": queries, "topk": self.topk, "return_scores": True}, {},
          timeout_seconds=self.timeout_seconds, retries=self.retries,
          pause_seconds=self.pause_seconds)
      rows = [[str(hit["document"]["contents"])[:self.passage_characters] for hit in row]
              for row in reply["result"]]
      if len(rows) != len(queries):
        raise ValueError(f"{len(rows)} results for {len(queries)} queries")
      return rows
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
      raise ConnectionError(
          f"The retrieval server {self.url} did not answer {len(queries)} queries as expected:"
          f" {error!r}. Check the url, and that the server runs; the run continues from its last"
          " checkpoint.") from error
