"""Rewards named features of a completion, weighed by a small network that preferences taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.config import naming
from rl_reason.rewards.composition.builder import Builder
from rl_reason.rewards.composition.episodes import seen_by
from rl_reason.scorers.features import FeatureModel, fit
from rl_reason.tasks.registry import SOURCES
from rl_reason.types import Sample


class FeatureReward:
  """Pays in the range of scores that the preferences have: a FeatureModel's score of the features.

  The network (scorers.features.FeatureModel) is fitted when it is first asked, which takes seconds,
  and is the same whenever that is. Empty completions have all features 0. The mean of each feature
  is logged: it shows when a policy has learnt to saturate a feature.

  Args:
    scorers: name -> reward in [0, 1], as in a rewards section without weights: a name, or function
      and args. Each sees the prompt and the completion, and returns NaN where it cannot tell. One
      that is given as `several` returns [N, its names].
    data: comparisons to learn from, a section with source and args.
    build: given by build_rewards.
    pairs: how many of the comparisons are used; 0: all.
    hidden, steps, learning_rate, decay, seed, monotone: as in scorers.features.fit.

  Source: Nath et al. 2024, arXiv:2402.15473.
  """

  sees_episode = True  # Each scorer chooses what it sees.

  def __init__(self, *, scorers: Mapping[str, Any], data: Mapping[str, Any], build: Builder,
               pairs: int = 0, hidden: int = 32, steps: int = 200, learning_rate: float = 1e-2,
               decay: float = 1e-4, seed: int = 0, monotone: bool = False):
    if not scorers:
      raise ValueError("FeatureReward needs scorers, one reward for each feature: there are none.")
    # Each entry -> a function of the samples, its arguments, and the names if it returns several.
    self._scorers = {}
    for name, entry in scorers.items():
      entry = {"function": entry} if isinstance(entry, str) else dict(entry or {})
      path, args = entry.pop("function", name), dict(entry.pop("args", {}))
      several = tuple(entry.pop("several", ()))
      if entry:
        raise ValueError(
            f"The feature scorer {name!r} has unknown fields {', '.join(entry)}. Its fields:"
            " function, args, several.")
      made = build.reward("feature scorer", f"The feature scorer {name!r}", path, args)
      self._scorers[name] = (*made, several)
    self.names = tuple(
        n for name, (_, _, several) in self._scorers.items() for n in several or (name,))

    # Comparisons to learn from.
    arguments = dict(data.get("args") or {})
    source = naming.find("source", data.get("source"), SOURCES)
    naming.check_arguments(
        f"The source {data.get('source')!r} of feature_reward", source, arguments)
    self._rows = source(**arguments)
    if pairs < 0 or pairs > len(self._rows):
      raise ValueError(f"pairs={pairs} of {len(self._rows)} comparisons: there are not so many.")
    self._count = pairs or len(self._rows)
    self._options = dict(hidden=hidden, steps=steps, learning_rate=learning_rate, decay=decay,
                         seed=seed, monotone=monotone)
    self._metrics: dict[str, float] = {}

  def features(self, samples: Sequence[Sample]) -> Float[np.ndarray, "N F"]:
    """Computes the features of samples, in [0, 1] or NaN.

    Raises: ValueError for a scorer that returns another shape, or numbers outside [0, 1].
    """
    columns = []
    for name, (function, args, several) in self._scorers.items():
      given = np.asarray(function(seen_by(function, samples), **args), np.float64)
      shape = (len(samples), len(several)) if several else (len(samples),)
      if given.shape != shape:
        raise ValueError(
            f"The feature scorer {name!r} must return shape {shape}, got {given.shape}.")
      if ((given < 0) | (given > 1)).any():
        raise ValueError(
            f"The feature scorer {name!r} returned {given[(given < 0) | (given > 1)][0]}: scores"
            " are in [0, 1], NaN where it cannot tell.")
      columns.append(given.reshape(len(samples), -1))
    found = np.concatenate(columns, axis=1) if samples else np.zeros((0, len(self.names)))
    found[[not s.own_text.strip() for s in samples]] = 0.0
    return found

  @functools.cached_property
  def model(self) -> FeatureModel:
    """Fits the network to the comparisons, once."""
    rows = [self._rows[i] for i in range(self._count)]
    sides = [
        self.features([
            Sample(prompt=r.prompt, completion=r.responses[side], reference="",
                   metadata=r.metadata)
            for r in rows])
        for side in (0, 1)]
    return fit(*sides, names=self.names,
               soft_labels=np.array([r.preference for r in rows], np.float64), **self._options)

  def __call__(self, samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
    found = self.features(samples)
    self._metrics = {
        name: float(np.nan_to_num(found[:, i]).mean()) for i, name in enumerate(self.names)}
    self._metrics["missing"] = float(np.isnan(found).mean())
    return self.model.scores(found)

  def metrics(self) -> dict[str, float]:
    """Reports on the last call: each feature's mean, and the share that was missing."""
    return self._metrics
