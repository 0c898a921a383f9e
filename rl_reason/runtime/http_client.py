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
    url: str, body: Any, headers: Mapping[str, str], *, timeout_seconds: float, retries: int, pause_seconds: float) -> Any:
  """The JSON that a server replies to JSON.

  Args:
    timeout_seconds: of one request. retries: further attempts after 408, 409, 429, 5xx and broken connections, after
      pauses that double from `pause_seconds`.
  Raises: OSError or http.client.HTTPException after the last attempt; ValueError for a reply that is too long or no JSON.
  """
  request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
  for attempt in range(retries + 1):
    try:
      with urllib.request.urlopen(request, timeout=timeout_seconds) as reply:
        content = reply.read(MAX_REPLY_BYTES + 1)
      if len(content) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
      return json.loads(content)
    except urllib.error.HTTPError as error:
      error.close()
      if error.code not in (408, 409, 429) and error.code < 500 or attempt == retries:
        raise
    except (OSError, http.client.HTTPException):
      if attempt == retries:
        raise
    time.sleep(pause_seconds * 2 ** attempt)
  raise AssertionError("The last attempt returns or raises.")
