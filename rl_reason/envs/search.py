"""A retrieval server that answers <search>query</search> with <information>passages</information>."""

from collections.abc import Callable, Sequence
import http.client
import re

from rl_reason.rollout.episodes import Episode
from rl_reason.runtime.http_client import post_json

_SEARCH = re.compile(r"<search>(.*?)</search>", re.DOTALL)


def search(
    *, url: str, topk: int = 3, passage_characters: int = 1500, timeout_seconds: float = 60.0, retries: int = 3,
    pause_seconds: float = 1.0,
) -> Callable[[Sequence[Episode]], list[str | None]]:
  """An environment: a turn that ends with a search gets its passages; any other turn is the last. Let "</search>" end turns.

  The server is asked once for the queries of all episodes, in the protocol of Search-R1 (Jin et al. 2025, arXiv:2503.09516):
  POST {"queries": [...], "topk": 3, "return_scores": true} -> {"result": [[{"document": {"contents": text}}, ...], ...]}.
  A blank query, and one without passages, gets an empty block of information.

  Args:
    url: e.g. "http://localhost:8000/retrieve". passage_characters: of a passage, at most.
    timeout_seconds, retries, pause_seconds: runtime.http_client.post_json.
  Raises: ValueError for arguments; of the environment, ConnectionError where the server fails for good: nothing can be
    learnt from searches that nobody answers.
  """
  if not url.startswith(("http://", "https://")):
    raise ValueError(f"url must start with http:// or https://, got {url!r}.")
  if topk < 1 or passage_characters < 1:
    raise ValueError(f"topk and passage_characters must be at least 1, got {topk} and {passage_characters}.")

  def answer(episodes: Sequence[Episode]) -> list[str | None]:
    found = [_SEARCH.findall(e.turns[-1]) if e.turns[-1].rstrip().endswith("</search>") else [] for e in episodes]
    queries = [matches[-1].strip() for matches in found if matches and matches[-1].strip()]
    passages = iter(_retrieve(queries) if queries else ())
    texts: list[str | None] = []
    for matches in found:
      lines = next(passages) if matches and matches[-1].strip() else []
      texts.append("".join(f"{line}\n" for line in ["\n<information>", *lines, "</information>"]) if matches else None)
    return texts

  def _retrieve(queries: Sequence[str]) -> list[list[str]]:
    try:
      reply = post_json(url, {"queries": queries, "topk": topk, "return_scores": True}, {}, timeout_seconds=timeout_seconds,
                        retries=retries, pause_seconds=pause_seconds)
      rows = [[str(hit["document"]["contents"])[:passage_characters] for hit in row] for row in reply["result"]]
      if len(rows) != len(queries):
        raise ValueError(f"{len(rows)} results for {len(queries)} queries")
      return rows
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
      raise ConnectionError(f"The retrieval server {url} did not answer {len(queries)} queries as expected: {error!r}. Check"
                            " the url, and that the server runs; the run continues from its last checkpoint.") from error
  return answer
