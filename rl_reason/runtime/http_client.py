"""Posts JSON over HTTP with limits and retries."""

from __future__ import annotations

from collections.abc import Mapping
import http.client
import json
import time
from typing import Any
import urllib.error
import urllib.request

MAX_REPLY_BYTES = 16 * 1024**2


def post_json(
    url: str, body: Any, headers: Mapping[str, str], *, timeout_seconds: float, retries: int,
    pause_seconds: float,
) -> Any:
  """Posts JSON to a server, and returns the JSON of its reply.

  Args:
    url: address of the server.
    body: plain data that JSON can hold.
    headers: further headers of the request.
    timeout_seconds: time limit of one request.
    retries: further attempts after 408, 409, 429, 5xx and broken connections.
    pause_seconds: pause before the first further attempt; the pauses double.
  Raises: OSError or http.client.HTTPException after the last attempt; ValueError for a reply that
    is too long or is not JSON.
  """
  request = urllib.request.Request(
      url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
  for attempt in range(retries + 1):
    try:
      with urllib.request.urlopen(request, timeout=timeout_seconds) as reply:
        # One byte more than allowed, to see whether the reply is too long.
        content = reply.read(MAX_REPLY_BYTES + 1)
      if len(content) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
      return json.loads(content)
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
