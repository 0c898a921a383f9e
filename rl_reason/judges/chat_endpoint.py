"""Asks a language model behind an OpenAI-compatible HTTP endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
import http.client
import math
import os
from typing import Any

from rl_reason.runtime.http_client import post_json


class ChatEndpoint:
  """Maps prompts to texts or, with labels, to log-probabilities [N, labels].

  It asks POST {url}/chat/completions.

  url: up to and without "/chat/completions", e.g. "http://localhost:8000/v1".
  model: as the server names it.
  key_variable: the environment variable that holds the API key; "" sends none. The key itself is
    kept nowhere.
  system: a system message before each prompt, or "".
  temperature: of the request.
  max_tokens: of the request. Labels are read from the first token's `top_logprobs` (20 of them).
  timeout_seconds: of one request.
  retries: further attempts after 408, 409, 429, 5xx and broken connections.
  pause_seconds: the first pause before a further attempt; later ones double.
  parallel: requests at once.

  A prompt that fails for good gives None.

  Raises: ValueError for arguments; ConnectionError if every prompt of a call failed, with the last
    reason: then the cause is the server or the settings, and not a prompt.
  """

  def __init__(
      self, *, url: str, model: str, key_variable: str = "", system: str = "",
      temperature: float = 0.0, max_tokens: int = 1024, timeout_seconds: float = 120.0,
      retries: int = 3, pause_seconds: float = 1.0, parallel: int = 8):
    if not url.startswith(("http://", "https://")) or url.rstrip("/").endswith("/chat/completions"):
      raise ValueError(
          f"url must start with http:// or https:// and end before /chat/completions, got {url!r}.")
    if key_variable and not os.environ.get(key_variable):
      raise ValueError(
          f"key_variable names the environment variable {key_variable!r}, which is not set: export"
          " the API key in it, or set key_variable='' for a server that needs none.")
    for name, value, least in (
        ("max_tokens", max_tokens, 1), ("retries", retries, 0), ("parallel", parallel, 1)):
      if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    for name, value in (
        ("timeout_seconds", timeout_seconds), ("temperature", temperature),
        ("pause_seconds", pause_seconds)):
      if not (0 <= value < math.inf) or name == "timeout_seconds" and not value:
        raise ValueError(f"{name} must be a finite number, not negative, got {value!r}.")
    self.url, self.model, self.key_variable, self.system = (
        url.rstrip("/"), model, key_variable, system)
    self.temperature, self.max_tokens = temperature, max_tokens
    self.timeout_seconds, self.retries = timeout_seconds, retries
    self.pause_seconds, self.parallel = pause_seconds, parallel

  def __call__(self, prompts: Sequence[str], labels: Sequence[str] | None = None) -> list[Any]:
    if not prompts:
      return []
    with futures.ThreadPoolExecutor(
        min(self.parallel, len(prompts)), thread_name_prefix="chat_endpoint") as pool:
      results = list(pool.map(lambda prompt: self._one(prompt, labels), prompts))
    # If nothing came back, the cause is the server or the settings: going on would judge nothing.
    if all(isinstance(r, Exception) for r in results):
      raise ConnectionError(
          f"All {len(prompts)} requests to {self.url} failed; the last: {results[-1]}. Check url,"
          " model, key and that the server runs.")
    # With labels a failed prompt is a row of NaN, so that the table keeps its shape.
    failed = None if labels is None else [math.nan] * len(labels)
    return [failed if isinstance(r, Exception) else r for r in results]

  def _one(self, prompt, labels):
    messages = [{"role": "system", "content": self.system}] if self.system else []
    body = {"model": self.model,
            "messages": [*messages, {"role": "user", "content": prompt}],
            "temperature": self.temperature, "max_tokens": self.max_tokens}
    if labels is not None:
      # One token is enough: its alternatives hold the labels' log-probabilities.
      body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    try:
      choice = self._post(body)["choices"][0]
      if labels is None:
        text = choice["message"]["content"]
        if not isinstance(text, str):
          raise ValueError(f"the reply's content is {type(text).__name__}, not text")
        return text
      return _label_logprobs(choice["logprobs"]["content"][0]["top_logprobs"], labels)
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError,
            AttributeError, OverflowError) as error:
      return error if isinstance(error, OSError) else ValueError(
          f"the reply is not as expected: {error!r}")

  def _post(self, body):
    # The key is read from the environment at each request, and kept nowhere.
    headers = ({"Authorization": f"Bearer {os.environ.get(self.key_variable, '')}"}
               if self.key_variable else {})
    return post_json(
        f"{self.url}/chat/completions", body, headers, timeout_seconds=self.timeout_seconds,
        retries=self.retries, pause_seconds=self.pause_seconds)


def _label_logprobs(top, labels):
  """Computes per label the log-probability of the tokens that are the label, spaces aside.

  It is −∞ where no such token is among the top ones.
  """
  found = {label: 0.0 for label in labels}
  for entry in top:
    if (token := entry["token"].strip()) in found:
      found[token] += math.exp(entry["logprob"])
  return [math.log(p) if p else -math.inf for p in found.values()]
