"""Searches: what a turn asks for. How a server answers is in tests/rollout/test_episodes.py."""

import asyncio
import time

import pytest

from rl_reason.envs import search
from rl_reason.rollout.environment import Turn


@pytest.mark.parametrize("text", [
    "<search>" * 100_000, "</search>" * 100_000, "<search" * 100_000 + "</search>"])
def test_tags_that_do_not_pair_ask_nothing_in_linear_time(text, monkeypatch):
  monkeypatch.setattr(search, "post_json", lambda *a, **k: pytest.fail("nothing was asked"))
  environment = search.Search(url="http://x")
  start = time.process_time()
  # 64 kB took over 3 s.
  assert asyncio.run(environment.step(None, Turn(text, (1,)))) == (None, None, None)
  assert time.process_time() - start < 1


@pytest.mark.parametrize("text, query", [
    ("<search>a</search><search> b </search>\n", "b"), ("<search>a <search>b</search>", "b")])
def test_the_last_search_of_a_turn_is_asked(text, query, monkeypatch):
  asked = []

  def post(url, body, headers, **how):
    asked.extend(body["queries"])
    return {"result": [[{"document": {"contents": "found"}}]]}
  monkeypatch.setattr(search, "post_json", post)
  messages, _, _ = asyncio.run(search.Search(url="http://x").step(None, Turn(text, (1,))))
  assert asked == [query]
  assert "found" in messages[0]["content"]
