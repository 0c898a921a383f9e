"""Rewards completions by learned reward models, alone or as an ensemble.

The models are earlier stages of the run, other runs, or Hugging Face directories:

    # A stage named rm.
    "quality": {"function": "learned", "args": {"model": "rm"}}
    # Two other runs.
    "careful": {"function": "learned", "args": {
        "model": ["runs/a", "runs/b:rm"], "normalise": "mean_std", "combine": "lower"}}
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.batches.responses import split_steps
from rl_reason.config import naming
from rl_reason.models.reward_model import AGGREGATES
from rl_reason.models.tokenizer import same_tokens, Tokenizer
from rl_reason.rewards.composition.outputs import describe
from rl_reason.rewards.composition.steps import step_ends, StepRewards
from rl_reason.scorers.scorer import NORMALISATIONS, RowScores, Scorer
from rl_reason.types import Sample


@dataclasses.dataclass(frozen=True)
class Models:
  """What learned rewards of a stage may ask for.

  tokenizer: the policy's.
  find: the name of an earlier stage, "workdir" or "workdir:stage" of another run, or the Hugging
    Face directory of a reward model -> its model, which reads its parameters at first use. Raises
    ValueError for another name.
  """
  tokenizer: Tokenizer
  find: Callable[[str], Scorer]


# What each sample's values from several models become. std_weight is for "lower" (a lower
# confidence bound).
COMBINATIONS = {
    "mean": lambda values, std_weight: values.mean(axis=0),
    "min": lambda values, std_weight: values.min(axis=0),
    "lower": lambda values, std_weight: values.mean(axis=0) - std_weight * values.std(axis=0)}
READING = {"step": "steps", "token": "tokens"}


class Learned:
  """Pays what reward models give a completion, as a whole or its steps or tokens: in (-inf, inf).

  A model reads the prompt and the policy's own text with its own tokenizer. The end of a completion
  follows the text, also where the limit cut it. For a model that was trained with critiques, a critique of each
  completion is written first (judges.critiques).

  Args:
    model: a stage of this run that comes before, the workdir of another run ("path", or
      "path:stage"), the directory of a public reward model (...ForSequenceClassification), or
      several.
    models: given by the stage.
    per: "response": one number. "step": StepRewards, at the spans named `span` or, where there are
      none, at the text's stretches that end with the model's separator. "token": StepRewards at
      every token; the model must have the policy's tokenizer.
    combine: several models' "mean", "min" or "lower": mean - std_weight * std over them. How far
      apart they are is logged as reward/<component>/disagreement: the mean standard deviation.
    std_weight: of "lower".
    normalise: with the moments of the model's scores in training: "none", "mean" or "mean_std"
      (scorer.Scorer).
    weights: of the outputs of a model with several; {}: their mean.
    aggregate: how numbers of steps or tokens become a response's; "": as the model was trained.
    on_nan: "error", or "zero": what is not finite counts 0 and is logged as
      reward/<component>/not_finite.
    span: name of the spans that are steps.
  """

  def __init__(
      self, *, model: str | Sequence[str], models: Models, per: str = "response",
      combine: str = "mean", std_weight: float = 1.0, normalise: str = "none",
      weights: Mapping[str, float] | None = None, aggregate: str = "", on_nan: str = "error",
      span: str = "step"):
    for field, value, known in (
        ("per", per, ("response", *READING)), ("combine", combine, COMBINATIONS),
        ("normalise", normalise, NORMALISATIONS), ("aggregate", aggregate, ("", *AGGREGATES)),
        ("on_nan", on_nan, ("error", "zero"))):
      if value not in known:
        raise ValueError(
            f"A learned reward's {field} is {value!r}.{naming.did_you_mean(value, known)} Known:"
            f" {', '.join(map(repr, known))}.")
    names = [model] if isinstance(model, str) else list(model)
    if not names:
      raise ValueError("A learned reward's model is an empty list: name a stage or a workdir.")
    self._scorers = [
        self._prepared(models.find(name), name, per, normalise, aggregate) for name in names]
    self._weights = [
        self._output_weights(s, name, dict(weights or {})) for s, name in zip(self._scorers, names)]
    for name, scorer in zip(names, self._scorers):
      if per == "token" and not same_tokens(scorer.tokenizer, models.tokenizer):
        raise ValueError(
            f"The reward model {name!r} has another tokenizer than the policy, so its tokens are"
            " not the policy's: set per='response' or 'step'.")
    self._names, self._tokenizer, self._per, self._span = names, models.tokenizer, per, span
    self._combine, self._std_weight, self._on_nan = COMBINATIONS[combine], std_weight, on_nan
    self._metrics: dict[str, float] = {}

  @staticmethod
  def _prepared(scorer: Scorer, name: str, per: str, normalise: str, aggregate: str) -> Scorer:
    needed = READING.get(per)
    if needed and needed not in scorer.reads:
      raise ValueError(
          f"The reward model {name!r} is read at {' or '.join(scorer.reads)}, and per={per!r} needs"
          f" {needed}: train it with read={needed!r}, or set per='response'.")
    scorer = dataclasses.replace(
        scorer, aggregate=aggregate or scorer.aggregate, normalise=normalise)
    if scorer.aggregate == "product" and normalise != "none":
      raise ValueError(
          f"The reward model {name!r} multiplies the probabilities of steps, which"
          f" normalise={normalise!r} would shift: set normalise='none', or another aggregate.")
    return scorer

  @staticmethod
  def _output_weights(
      scorer: Scorer, name: str, weights: Mapping[str, float]) -> Float[np.ndarray, "A"]:
    unknown = [w for w in weights if w not in scorer.outputs]
    if unknown:
      raise ValueError(
          f"The reward model {name!r} has no output"
          f" {unknown[0]!r}.{naming.did_you_mean(unknown[0], scorer.outputs)} Its outputs:"
          f" {', '.join(scorer.outputs)}.")
    return np.array(
        [weights.get(o, 0.0) if weights else 1 / len(scorer.outputs) for o in scorer.outputs])

  def __call__(self, samples: Sequence[Sample]) -> Float[np.ndarray, "N"] | StepRewards:
    """Scores the samples.

    Raises: ValueError naming the sample whose score is not finite, or that is too long for a model.
    """
    # Each model's scores, per response or per place.
    if self._per == "response":
      found = np.array(
          [self._responses(s, w, samples) for s, w in zip(self._scorers, self._weights)])
      values, ends = found[..., None], None
    else:
      parts = [self._parts(sample) for sample in samples]
      values = [self._places(s, w, samples, parts) for s, w in zip(self._scorers, self._weights)]
      values = [np.stack(rows) for rows in zip(*values)]  # Per sample [models, K].
      ends = [end for _, end in parts]
    rows = [values[:, i] for i in range(len(samples))] if ends is None else values
    # What is not finite.
    bad = [i for i, row in enumerate(rows) if not np.isfinite(row).all()]
    if bad and self._on_nan == "error":
      raise ValueError(
          f"The reward model {' or '.join(map(repr, self._names))} gave {len(bad)} of"
          f" {len(samples)} samples a score that is not finite; the first:"
          f" {describe(samples[bad[0]])}. Look at its own evaluations: its training may have"
          " diverged. on_nan='zero' would count such samples as 0.")
    for i in bad:
      rows[i] = np.zeros_like(rows[i])
    # How far the models are apart.
    spread = [row.std(axis=0).mean() for row in rows if row.size]
    self._metrics = (
        {"disagreement": float(np.mean(spread)) if spread else 0.0}
        if len(self._scorers) > 1 else {})
    if self._on_nan == "zero":
      self._metrics["not_finite"] = float(len(bad))
    # One number per response, or per place at which it is paid.
    combined = [self._combine(row, self._std_weight) for row in rows]
    if ends is None:
      return np.array([row[0] for row in combined], np.float64)
    paid = [_at_distinct(v, e) for v, e in zip(combined, ends)]
    return StepRewards([v for v, _ in paid], [e for _, e in paid])

  def metrics(self) -> dict[str, float]:
    """Reports on the last call; on critiques since the start, summed over the models."""
    written = sum(
        (collections.Counter(s.critiques.metrics()) for s in self._critical),
        collections.Counter())
    names = {name for s in self._critical for name in s.critiques.counted}
    return self._metrics | {f"critiques/{name}": float(written[name]) for name in sorted(names)}

  @property
  def _critical(self) -> list[Scorer]:
    return [s for s in self._scorers if s.critiques is not None]

  def state(self) -> dict[str, Any]:
    """Returns the critiques so far."""
    return {"critiques": [s.critiques.state() for s in self._critical]}

  def restore(self, state: Mapping[str, Any]) -> None:
    for scorer, saved in zip(self._critical, state["critiques"], strict=True):
      scorer.critiques.restore(saved)

  def close(self) -> None:
    """Lets the models' parameters go."""
    self._scorers = [dataclasses.replace(s, critiques=None) for s in self._scorers]

  def _responses(self, scorer: Scorer, weights, samples) -> Float[np.ndarray, "N"]:
    scored = self._run(scorer, samples, [s.own_text for s in samples], "")
    return np.array([row.totals[g] @ weights for row, g in scored])

  def _places(self, scorer: Scorer, weights, samples, parts) -> list[Float[np.ndarray, "K"]]:
    scored = self._run(scorer, samples, [texts for texts, _ in parts], READING[self._per])
    values = [row.places[g] @ weights for row, g in scored]
    # A cumulative score holds all before it; what a step earns is the difference.
    return [np.diff(v, prepend=0.0) for v in values] if scorer.cumulative else values

  def _run(
      self, scorer: Scorer, samples, texts: Sequence[Any], read: str,
  ) -> list[tuple[RowScores, int]]:
    """Returns for each sample the scores of its group's row, and which of its responses it is."""
    # One row per group: its prompt is read once.
    rows, places = [], []
    for _, group in itertools.groupby(
        range(len(samples)), key=lambda i: (samples[i].group, samples[i].prompt)):
      group = list(group)
      first = samples[group[0]]
      rows.append((first.messages or first.prompt, [texts[i] for i in group]))
      places += [(len(rows) - 1, g) for g in range(len(group))]
    if self._per == "token":
      # The sampled ids themselves: the text, encoded again, could have other tokens.
      encoded = scorer.encode_rows([(prompt, []) for prompt, _ in rows])
      all_places = [[list(range(len(ids))) for ids in given] for _, given in rows]
      encoded = [
          dataclasses.replace(e, responses=[list(ids) for ids in given], places=at, steps=at)
          for e, (_, given), at in zip(encoded, rows, all_places)]
    else:
      encoded = scorer.encode_rows(rows, read)
    scored = scorer(encoded)
    return [(scored[row], g) for row, g in places]

  def _parts(self, sample: Sample) -> tuple[Sequence[Any], Any]:
    """Splits what the policy wrote into (step texts, or ids; where each ends in the completion)."""
    texts, ends = self._own_parts(sample.own)
    # A text without any token has no place.
    return texts, np.array(sample.own_places or (-1,), np.int64)[ends]

  def _own_parts(self, sample: Sample) -> tuple[Sequence[Any], Any]:
    """Does as `_parts` for a sample of the policy's own tokens alone."""
    tokens, decode = sample.completion_tokens, self._tokenizer.decode
    if self._per == "token":
      return tokens, np.arange(len(tokens))
    if sample.spans.get(self._span):
      ends = step_ends(sample, span=self._span)
      return [decode(tokens[a:b + 1]) for a, b in zip([0, *(ends[:-1] + 1)], ends)], ends
    # Without spans the text itself is cut into steps, at the model's separator.
    texts = split_steps(sample.completion, self._scorers[0].separator)
    # A step ends in the token that completes its text.
    upto = np.cumsum([len(text) for text in texts])
    found = [
        bisect.bisect_left(range(1, len(tokens) + 1), end, key=lambda n: len(decode(tokens[:n])))
        for end in upto]
    return texts, np.minimum(found, len(tokens) - 1)


def _at_distinct(values, ends):
  """Adds the values of steps that end in one token; without a token there is nothing to pay at."""
  at, where = np.unique(ends, return_inverse=True)
  if len(at) == 0 or at[0] < 0:
    return np.zeros(0), np.zeros(0, np.int64)
  return np.bincount(where, values, len(at)), at
