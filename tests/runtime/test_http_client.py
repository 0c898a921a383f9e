"""Redirects: followed within a server, refused to another one, which sees neither key nor body."""

import http.server
import json
import threading
import urllib.error
import urllib.parse

import pytest

from rl_reason.judges.chat_endpoint import ChatEndpoint
from rl_reason.runtime import http_client
from rl_reason.runtime.http_client import post_json


class Server(http.server.ThreadingHTTPServer):
  """Answers POST /answer; /to/CODE/ADDRESS redirects; keeps what it was asked."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.asked = []
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def url(self, path="/answer", host="127.0.0.1"):
    return f"http://{host}:{self.server_port}{path}"

  def to(self, code, address):
    return self.url(f"/to/{code}/{urllib.parse.quote(address, safe='')}")


class Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    self.server.asked.append((self.command, self.path, self.headers.get("Authorization"), body))
    parts = self.path.split("/")
    if parts[1] == "to":
      self.send_response(int(parts[2]))
      self.send_header("Location", urllib.parse.unquote(parts[3]))
      self.end_headers()
      return
    self.send_response(200)
    self.end_headers()
    self.wfile.write(b'{"fine": true}')
  do_GET = do_POST

  def log_message(self, *_):
    pass


@pytest.fixture
def servers():
  """Two servers on this machine."""
  both = Server(), Server()
  yield both
  for server in both:
    server.shutdown()
    server.server_close()


def post(url):
  return post_json(url, {"a": 1}, {"Authorization": "Bearer secret"}, timeout_seconds=5, retries=2,
                   pause_seconds=0)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_another_server_is_never_asked(code, servers):
  own, other = servers
  with pytest.raises(urllib.error.HTTPError,
                     match=r"redirects to http://127.0.0.1:\d+, which is another") as error:
    post(own.to(code, other.url()))
  assert other.asked == []
  assert len(own.asked) == 1  # Not tried again: it would redirect again.
  assert "secret" not in str(error.value)


@pytest.mark.parametrize("target", [
    "http://localhost:{port}/answer", "https://127.0.0.1:{port}/answer", "//example.invalid/answer",
    "http://user:password@127.0.0.1:{port}/answer", "http://127.0.0.1.example.invalid/"])
def test_other_names_schemes_and_credentials_are_refused(target, servers):
  own, _ = servers
  with pytest.raises(urllib.error.HTTPError, match="another server"):
    post(own.to(307, target.format(port=own.server_port)))
  assert len(own.asked) == 1


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_within_the_server_keeps_method_body_and_key(code, servers):
  own, _ = servers
  assert post(own.to(code, "/answer")) == {"fine": True}
  assert own.asked[-1] == ("POST", "/answer", "Bearer secret", json.dumps({"a": 1}).encode())


def test_from_http_to_https_is_a_step_within_the_server():
  old, new, down = map(urllib.parse.urlsplit, (
      "http://example.com/a", "https://example.com/b", "http://example.com:80/a"))
  assert http_client._same_server(old, new)
  assert not http_client._same_server(new, down)


@pytest.mark.parametrize("top", [
    [{"token": 7, "logprob": 0.0}], [{"token": "A", "logprob": 1e9}], [7], None, "AB",
    [{"token": "A", "logprob": "x"}]])
def test_replies_of_another_shape_are_failures_and_no_tracebacks(top, servers, monkeypatch):
  reply = {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}
  monkeypatch.setattr(Handler, "do_POST", lambda self: (
      self.send_response(200), self.end_headers(), self.wfile.write(json.dumps(reply).encode())))
  with pytest.raises(
      ConnectionError, match="All 1 requests .* failed; the last: the reply is not as"):
    ChatEndpoint(url=servers[0].url("/v1"), model="m")(["a"], ["A", "B"])


def test_a_judge_behind_a_redirect_names_the_other_server(servers, monkeypatch):
  own, other = servers
  monkeypatch.setenv("JUDGE_KEY", "secret")
  monkeypatch.setattr(Handler, "do_POST", lambda self: (
      self.server.asked.append(self.path), self.send_response(302),
      self.send_header("Location", other.url()), self.end_headers()))
  judge = ChatEndpoint(url=own.url("/v1"), model="m", key_variable="JUDGE_KEY")
  with pytest.raises(ConnectionError, match="redirects to http://127.0.0.1:.*another server"):
    judge(["a"])
  assert other.asked == []
