"""Posts JSON over HTTP with limits and retries."""

from __future__ import annotations

from collections.abc import Mapping
import http.client
import json
import time
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

from rl_reason.config import json_text

MAX_REPLY_BYTES = 16 * 1024**2


def post_json(
    url: str, body: Any, headers: Mapping[str, str], *, timeout_seconds: float, retries: int,
    pause_seconds: float,
) -> Any:
  """Posts JSON to a server, and returns the JSON of its reply.

  A redirect within the server is followed. One to another host is refused: the headers may hold an
  API key, and the body what nobody else should read.

  Args:
    url: address of the server, http:// or https://.
    body: plain data that JSON can hold.
    headers: further headers of the request.
    timeout_seconds: time limit of one request.
    retries: further attempts after 408, 409, 429, 5xx and broken connections.
    pause_seconds: pause before the first further attempt; the pauses double.
  Raises: OSError or http.client.HTTPException after the last attempt, and for a refused redirect;
    ValueError for a reply that is too long or is not JSON.
  """
  request = urllib.request.Request(
      url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
  opener = urllib.request.build_opener(_WithinTheServer)
  for attempt in range(retries + 1):
    try:
      with opener.open(request, timeout=timeout_seconds) as reply:
        # One byte more than allowed, to see whether the reply is too long.
        content = reply.read(MAX_REPLY_BYTES + 1)
      if len(content) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
      return json_text.parse(content)
    except urllib.error.HTTPError as error:
      error.close()
      # Another 4xx means that the request itself is wrong: the same request would fail again.
      if error.code not in (408, 409, 429) and error.code < 500 or attempt == retries:
        raise
    except (OSError, http.client.HTTPException):
      if attempt == retries:
        raise
    time.sleep(pause_seconds * 2 ** attempt)
  raise AssertionError("The last attempt returns or raises.")


class _WithinTheServer(urllib.request.HTTPRedirectHandler):
  """Follows redirects within one server, with the same method and body; refuses others.

  urllib itself would send every header to any host, as a GET without the body.
  """

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
    if not _same_server(old, new):
      raise urllib.error.HTTPError(
          req.full_url, code, f"{old.scheme}://{old.hostname} redirects to {new.scheme}://"
          f"{new.hostname}{f':{_port(new)}' if _port(new) else ''}, which is another server: the"
          " request was not sent there. If you trust it, set url to it", headers, fp)
    # Only 303 asks for another method.
    data, method = (None, "GET") if code == 303 else (req.data, req.get_method())
    kept = {k: v for k, v in req.headers.items() if data or not k.lower().startswith("content-")}
    return urllib.request.Request(newurl, data, kept, method=method)


def _same_server(old: urllib.parse.SplitResult, new: urllib.parse.SplitResult) -> bool:
  """Says whether two addresses are of one server; from http to https is a step within it."""
  if old.hostname != new.hostname or new.username or new.password:
    return False
  return (old.scheme, _port(old)) == (new.scheme, _port(new)) or (
      (old.scheme, _port(old), new.scheme, _port(new)) == ("http", 80, "https", 443))


def _port(address: urllib.parse.SplitResult) -> int | None:
  """Returns the port of an address, also where it is the usual one; None for none or a wrong one."""
  try:
    return address.port or {"http": 80, "https": 443}.get(address.scheme)
  except ValueError:
    return None
