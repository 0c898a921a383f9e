"""Requests to an OpenAI-compatible server, which here is one in this process."""

import http.server
import json
import math
import threading

import numpy as np
import pytest

from rl_reason.judges.chat_endpoint import ChatEndpoint
from rl_reason.rewards.judge import PointwiseJudge


@pytest.fixture
def server():
  """A server whose `answer(body) -> (status, bytes)` tests set.

  It keeps the requests' bodies and headers.
  """
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      self.server.bodies.append(body)
      self.server.paths.append(self.path)
      self.server.authorizations.append(self.headers.get("Authorization"))
      status, content = self.server.answer(body)
      self.send_response(status)
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *_):
      pass
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.bodies, server.paths, server.authorizations = [], [], []
  server.url = f"http://127.0.0.1:{server.server_port}/v1"
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield server
  server.shutdown()
  server.server_close()


def reply(text):
  return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def asked(body):
  return body["messages"][-1]["content"]


def test_texts_come_in_the_order_of_the_prompts(server, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", "secret")
  server.answer = lambda body: reply(asked(body).upper())
  endpoint = ChatEndpoint(
      url=server.url + "/", model="m", key_variable="JUDGE_KEY", system="Judge.", max_tokens=9)
  assert endpoint([f"p{i}" for i in range(20)]) == [f"P{i}" for i in range(20)]
  assert set(server.paths) == {"/v1/chat/completions"}
  assert set(server.authorizations) == {"Bearer secret"}
  body = server.bodies[0]
  assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
  assert body["messages"][0] == {"role": "system", "content": "Judge."}
  assert "secret" not in repr(vars(endpoint)) and endpoint([]) == []


def test_busy_servers_are_asked_again(server):
  refusals = {"a": [429, 503], "b": [400] * 9}
  def answer(body):
    left = refusals.get(asked(body))
    return (left.pop(0), b"busy") if left else reply("fine")
  server.answer = answer
  endpoint = ChatEndpoint(url=server.url, model="m", retries=2, pause_seconds=0.01)
  assert endpoint(["a", "b", "c"]) == ["fine", None, "fine"]
  assert len(refusals["b"]) == 8  # A refused request is not repeated.


@pytest.mark.parametrize("content", [
    b"", b"<html>", b"[]", b"{}", b'{"choices": []}',
    b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": null}]}',
    b"\xff\xfe"])
def test_replies_that_are_none_are_failures(server, content):
  server.answer = lambda body: reply("[[7]]") if "fine" in asked(body) else (200, content)
  judge = PointwiseJudge("chat_endpoint", generate_args=dict(url=server.url, model="m", retries=0))
  scores = judge.score([("p", "fine"), ("p", "other")])
  assert scores[0] == 7 and math.isnan(scores[1]) and judge.counts["failed"] == 1


def test_a_server_that_always_fails_ends_the_run(server):
  server.answer = lambda body: (401, b"no")
  with pytest.raises(
      ConnectionError, match="All 2 requests to .* failed; the last: .*401.*Check url, model, key"):
    ChatEndpoint(url=server.url, model="m")(["a", "b"])
  with pytest.raises(ConnectionError, match="that the server runs"):
    ChatEndpoint(url="http://127.0.0.1:9", model="m", retries=1, pause_seconds=0.0)(["a"])


def test_label_logprobs_of_the_first_token(server):
  top = [{"token": "A", "logprob": math.log(0.5)}, {"token": " A", "logprob": math.log(0.25)},
         {"token": "B", "logprob": math.log(0.125)}]
  def answer(body):
    assert body["logprobs"] and body["top_logprobs"] == 20 and body["max_tokens"] == 1
    if asked(body) == "bad":
      return reply("A")
    return 200, json.dumps(
        {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()
  server.answer = answer
  found = ChatEndpoint(url=server.url, model="m")(["p", "bad"], ["A", "B", "C"])
  np.testing.assert_allclose(found[0], [math.log(0.75), math.log(0.125), -math.inf])
  assert np.isnan(found[1]).all()


@pytest.mark.parametrize("keywords, message", [
    (dict(url="localhost:8000"), "must start with http"),
    (dict(url="http://x/v1/chat/completions"), "end before /chat/completions"),
    (dict(key_variable="RL_REASON_NO_SUCH_KEY"), "which is not set"),
    (dict(retries=-1), "retries must be an integer of at least 0"),
    (dict(timeout_seconds=0.0), "timeout_seconds must be"),
])
def test_bad_arguments_say_what_to_change(keywords, message):
  with pytest.raises(ValueError, match=message):
    ChatEndpoint(**{"url": "http://x/v1", "model": "m", **keywords})
