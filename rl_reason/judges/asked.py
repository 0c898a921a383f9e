"""Asks a model in words, and remembers its answers.

The model, `generate`, is a function from prompts to texts, a dotted path to one or to what makes
one, or a name in GENERATORS. A policy of this library is `rl_reason.rollout.texts:policy_texts`
with its `generate_args`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import hashlib
import inspect
import json
import os
import string
from typing import Any

import numpy as np

from rl_reason.config import naming
from rl_reason.judges.chat_endpoint import ChatEndpoint

# Prompts -> texts, None for one that failed; or, with label_logits, (prompts, labels) ->
# log-probabilities [N, labels].
Generate = Callable[..., Sequence[Any]]

# Name -> a class or function whose keyword arguments are `generate_args`, and that returns a
# Generate.
GENERATORS: dict[str, Callable[..., Generate]] = {
    "chat_endpoint": ChatEndpoint,  # An OpenAI-compatible server.
}


class AskedModel:
  """Asks a model and keeps its answers: what judges and critiques share.

  generate: the model, as said above.
  generate_args: its arguments, if it is named.
  template: of the prompt; a system message is not part of it: give it to the model (`system`).
  fields: names that the template must hold.
  votes: times that each prompt is asked (self-consistency); the model should sample if it is more
    than 1.
  label_logits: whether the verdict is read from the log-probabilities of labels after the prompt,
    and not from text.
  cache_size: answers kept, oldest dropped first. They are in `state()`, so that a resumed run asks
    nothing twice.
  cache_file: JSON Lines to which every new answer is appended, and that is read at the start; "":
    none.

  `counts` holds prompts "asked", answers "cached", "failed" (None from the model), "abstained" (no
  verdict in them). `counted` names those that a run logs.
  """
  counted = ("asked", "cached", "failed", "abstained")

  def __init__(
      self, generate: str | Generate, *, generate_args: Mapping[str, Any] | None = None,
      template: str, fields: Sequence[str], votes: int, label_logits: bool, cache_size: int,
      cache_file: str):
    for name, value, least in (("votes", votes, 1), ("cache_size", cache_size, 0)):
      if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if label_logits and votes > 1:
      raise ValueError(
          f"label_logits gives one distribution per prompt, so votes must be 1, got {votes}.")
    # The template's fields.
    named = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    if not set(fields) <= named or not named <= {*fields, "prompt", "low", "high"}:
      raise ValueError(
          f"The judge's template must hold the fields {', '.join('{%s}' % f for f in fields)}, and"
          f" may hold {{prompt}}; it holds {sorted(named)}. Literal braces are doubled.")
    # The model.
    if isinstance(generate, str):
      make, arguments = naming.find("judge model", generate, GENERATORS), dict(generate_args or {})
      # A plain function is the model itself; with arguments, or as a class, it makes it.
      if inspect.isclass(make) or generate in GENERATORS or arguments:
        naming.check_arguments(f"The judge model {generate!r}", make, arguments)
        generate = make(**arguments)
      else:
        generate = make
      if not callable(generate):
        raise ValueError(
            f"The judge model is {type(generate).__name__}, which cannot be called: it must map"
            " prompts to texts.")
    self.generate = generate
    self.template, self.votes, self.label_logits = template, votes, label_logits
    self.cache_size, self.cache_file = cache_size, os.path.expanduser(cache_file)
    self.counts: collections.Counter[str] = collections.Counter()
    self._cache: dict[str, Any] = {}
    if self.cache_file and os.path.exists(self.cache_file):
      self._read_cache()

  def state(self) -> dict[str, Any]:
    """Returns the answers so far and the counts, JSON-able."""
    return {"cache": dict(self._cache), "counts": dict(self.counts)}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._cache = dict(state["cache"])
    self.counts = collections.Counter(state["counts"])

  def metrics(self) -> dict[str, float]:
    """Returns `counts` so far, for a run's log."""
    return {name: float(self.counts[name]) for name in self.counted}

  def _answers(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[Any]]:
    """Returns each prompt's `votes` answers; None where one failed.

    Answers are texts or, with label_logits, lists of log-probabilities.
    """
    keys = [[self._key(prompt, labels, vote) for vote in range(self.votes)] for prompt in prompts]
    # Ask for what is not known; equal prompts of this call are asked once.
    missing: dict[str, str] = {}
    for prompt, row in zip(prompts, keys):
      missing |= {key: prompt for key in row if key not in self._cache}
    wanted = sum(map(len, keys))
    fresh = self._ask(list(missing.values()), labels) if missing else []
    # Count, put together, and keep.
    found = dict(zip(missing, fresh))
    self.counts["asked"] += len(missing)
    self.counts["cached"] += wanted - len(missing)
    self.counts["failed"] += sum(answer is None for answer in fresh)
    answers = [[found[key] if key in found else self._cache[key] for key in row] for row in keys]
    # A failed answer is not kept, so that its prompt is asked again.
    self._keep({key: answer for key, answer in found.items() if answer is not None})
    return answers

  def _ask(self, prompts, labels):
    if not self.label_logits:
      given = list(self.generate(prompts))
      if len(given) != len(prompts):
        raise ValueError(
            f"The judge model returned {len(given)} texts for {len(prompts)} prompts: it must"
            " return one for each, None for one that failed.")
      return [text if isinstance(text, str) else None for text in given]
    table = np.asarray(self.generate(prompts, list(labels)), np.float64)
    if table.shape != (len(prompts), len(labels)):
      raise ValueError(
          f"The judge model returned log-probabilities of shape {table.shape} for {len(prompts)}"
          f" prompts and {len(labels)} labels: give [{len(prompts)}, {len(labels)}].")
    # −∞ is a label with no probability; a row with none or with NaN has failed.
    usable = (table < np.inf).all(axis=1) & np.isfinite(table).any(axis=1)
    return [[max(x, -1e9) for x in row] if ok else None for row, ok in zip(table.tolist(), usable)]

  def _key(self, prompt, labels, vote):
    # Votes on one prompt are separate answers: each has a key of its own.
    content = json.dumps([prompt, list(labels) if self.label_logits else None, vote])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

  def _keep(self, fresh):
    if self.cache_file and fresh:
      with open(self.cache_file, "a", encoding="utf-8") as f:
        f.writelines(json.dumps([key, answer]) + "\n" for key, answer in fresh.items())
    self._cache |= fresh
    # A dict keeps the order in which answers came: the oldest go first.
    for key in list(self._cache)[:max(0, len(self._cache) - self.cache_size)]:
      del self._cache[key]

  def _read_cache(self):
    with open(self.cache_file, "rb") as f:
      lines = f.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):  # The process was killed while it wrote this line.
      os.truncate(self.cache_file, sum(map(len, lines)) - len(lines.pop()))
    for number, line in enumerate(lines, start=1):
      try:
        key, answer = json.loads(line)
      except (ValueError, TypeError) as error:
        raise ValueError(
            f"{self.cache_file}:{number} is no [key, answer]: {line[:80]!r}. Remove the file, or"
            " name another cache_file.") from error
      self._cache[key] = answer

  def _fill(self, **fields):
    return self.template.format(**fields)
