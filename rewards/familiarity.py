"""Finds which completions a reward model knows.

They are those whose hidden state is near to states of rated responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.config import naming
from rl_reason.rewards.learned import Models
from rl_reason.scorers.probes import Centroids, merge_levels
from rl_reason.scorers.scorer import states_of
from rl_reason.tasks.registry import SOURCES
from rl_reason.types import Sample


class Familiarity:
  """Pays in {0, 1}: 1 where a reward model knows the completion.

  It knows one whose state is as near to one of the centres of rated responses (probes.Centroids) as
  the states of most of these responses are. For `credit.keep.by`: what the model does not know
  it should not teach. At least half of a step's completions are kept, the nearest ones.

  Args:
    model: as in rewards.learned; a stage of kind reward_model, or a run's.
    models: as in rewards.learned.
    data: rated responses, a section with source and args: Comparisons with `attributes`, of which
      each makes a dimension.
    rows: rated responses that are used, at most.
    classes: classes of each dimension, into which its ratings are merged; a dimension with fewer
      ratings is skipped.
    percentile: of the rated responses' own distances, below which a completion is known, in
      (0, 100]. It is a share, for distances depend on the model's scale (the paper's 140 is that of
      an 8B model).
    shuffle: whether as many are kept, but random ones: the control that drops at random.

  Source: MRMBench's inference-time probing, 2025, arXiv:2511.12464. It departs from the paper in
    keeping at least half.
  """

  def __init__(
      self, *, model: str, models: Models, data: Mapping[str, Any], rows: int = 1000,
      classes: int = 3, percentile: float = 85.0, shuffle: bool = False):
    if not 0 < percentile <= 100:
      raise ValueError(
          f"percentile must be in (0, 100], got {percentile}: a share of the rated responses is"
          " known.")
    if classes < 2 or rows < classes:
      raise ValueError(
          f"classes must be at least 2 and rows at least as many, got {classes} and {rows}.")
    self._scorer = states_of(models.find(model))
    arguments = dict(data.get("args") or {})
    source = naming.find("source", data.get("source"), SOURCES)
    naming.check_arguments(f"The source {data.get('source')!r} of familiarity", source, arguments)
    self._rated = source(**arguments)
    if not self._rated[0].attributes:
      raise ValueError(
          f"The rows of {data['source']!r} have no attributes, e.g. {self._rated[0].id!r}:"
          " familiarity needs ratings, such as those of the format helpsteer.")
    self._rows, self._classes, self._percentile, self._shuffle = (
        min(rows, len(self._rated)), classes, percentile, shuffle)
    self._metrics: dict[str, float] = {}

  def _states(self, pairs: Sequence[tuple[Any, str]]) -> Float[np.ndarray, "N E"]:
    return self._scorer.totals(pairs)

  @functools.cached_property
  def _known(self) -> tuple[Centroids, float]:
    """Fits (centres, the distance from which a state is not known); they never change."""
    rated = [self._rated[i] for i in range(self._rows)]
    states = self._states([(r.prompt, r.responses[0]) for r in rated])
    labels = {}
    # Each attribute is a dimension, if all rows have it with enough different ratings.
    for name in rated[0].attributes[0]:
      levels = np.array([r.attributes[0].get(name) for r in rated], np.float64)
      if not np.isnan(levels).any() and len(np.unique(levels)) >= self._classes:
        labels[name] = merge_levels(levels.astype(int), self._classes)
    known = Centroids.fit(states, labels)
    return known, float(np.percentile(known.distances(states), self._percentile))

  def __call__(self, samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
    known, limit = self._known
    distances = known.distances(
        self._states([(s.messages or s.prompt, s.own_text) for s in samples]))
    # The median is the limit where fewer than half are known.
    kept = distances <= max(limit, float(np.median(distances)))
    self._metrics = {
        "distance": float(distances.mean() / max(limit, 1e-9)), "kept": float(kept.mean())}
    if self._shuffle:
      kept = np.random.default_rng([samples[0].step, len(samples)]).permutation(kept)
    return kept.astype(np.float32)

  def metrics(self) -> dict[str, float]:
    """Reports on the last call.

    Returns: the mean distance, in units of the one at which a state is no longer known; the share
      kept.
    """
    return self._metrics
