"""Turns what a comparison's row says about its responses into arrays for reward-model losses."""

from collections.abc import Callable, Sequence
import dataclasses

from jaxtyping import Bool, Float
import numpy as np

from rl_reason.batches.responses import Encoded
from rl_reason.types import Comparison


@dataclasses.dataclass(frozen=True)
class Labels:
  """Describes one kind of label.

  of_row: (row, encoded, attributes) -> the row's labels, NaN where one is missing. It raises
    ValueError where the row has none.
  per: what each label is for. "comparison": the loss compares a row's responses, and reads scores
    [N G]. "response": it reads one score of each response, [N]. "attribute": it reads [N A].
    "place": it reads [N K], the scores at a response's places.
  """
  of_row: Callable[[Comparison, Encoded, Sequence[str]], Float[np.ndarray, "..."]]
  per: str

  @property
  def per_response(self) -> bool:
    """Tells whether the loss reads each response by itself."""
    return self.per != "comparison"


def _preference(row, encoded, attributes):
  """Returns the probability that the first response of a pair is the better one."""
  del encoded, attributes
  if row.preference is None or len(row.responses) != 2:
    raise ValueError(f"it has {len(row.responses)} responses with scores {row.scores}: a pair needs"
                     " two, of which one is the better")
  return np.array(row.preference)


def _ranks(row, encoded, attributes):
  """Returns the rank of each response, 0 for the best; equal scores have equal ranks."""
  del encoded, attributes
  if len(set(row.scores)) < 2:
    raise ValueError(
        f"its scores are {row.scores}: a ranking needs two responses of different score")
  return np.unique(-np.array(row.scores), return_inverse=True)[1].astype(np.float64)


def _scores(row, encoded, attributes):
  """Returns the score of each response."""
  del encoded, attributes
  if not row.scores:
    raise ValueError("it has no scores")
  return np.array(row.scores, np.float64)


def _attributes(row, encoded, attributes):
  """Returns the values [responses, attributes], NaN where a response has no value."""
  del encoded
  given = [{k: v for k, v in values.items() if v is not None} for values in row.attributes]
  if not any(name in values for values in given for name in attributes):
    raise ValueError(f"it has none of the attributes {', '.join(attributes)}")
  return np.array(
      [[values.get(name, np.nan) for name in attributes] for values in given], np.float64)


def _steps(row, encoded, attributes):
  """Returns at every place the label of the step that the place is in."""
  del attributes
  rows = [[given[i].label for i in places] if given else [None] * len(places)
          for given, places in zip(row.steps or [()] * len(row.responses), encoded.steps)]
  if not any(label is not None for labels in rows for label in labels):
    raise ValueError("none of its steps has a label")
  # Responses with fewer places than the longest are filled up with NaN: no label.
  out = np.full((len(rows), max(map(len, rows))), np.nan)
  for g, labels in enumerate(rows):
    out[g, :len(labels)] = np.array(labels, np.float64)  # None becomes NaN.
  return out


LABELS = {
    # For a pair, the probability that the first response is the better one.
    "preference": Labels(_preference, "comparison"),
    # 0 for the best response; equal scores are ties.
    "ranks": Labels(_ranks, "comparison"),
    "scores": Labels(_scores, "response"),
    "attributes": Labels(_attributes, "attribute"),
    "steps": Labels(_steps, "place"),
}
# The labels of a loss where a section does not name them; every other loss reads scores.
LABELS_OF_LOSS = {"bradley_terry": "preference", "listwise": "ranks", "step_ranking": "steps"}


def collect(
    kind: Labels, rows: Sequence[Comparison], encoded: Sequence[Encoded],
    places: Bool[np.ndarray, "P G K"], attributes: Sequence[str],
) -> tuple[Float[np.ndarray, "P ..."], Bool[np.ndarray, "P ..."]]:
  """Collects the labels of a batch, per comparison, response, attribute or place.

  Args:
    kind: the kind of label.
    rows: the comparisons of the batch.
    encoded: the same comparisons as ids.
    places: which places exist, as responses.Layout.batch returns it.
    attributes: names of the attributes, for kinds that have them.

  Returns: (labels, which of them exist); labels are 0 where missing.
  """
  given = [kind.of_row(row, text, attributes) for row, text in zip(rows, encoded, strict=True)]
  count, size, most = places.shape
  shape = {"comparison": given[0].shape and (size,), "response": (size,),
           "attribute": (size, len(attributes)), "place": (size, most)}[kind.per]
  # Each row's labels go into the corner of its room; NaN marks what is missing.
  labels = np.full((count, *shape), np.nan)
  for i, values in enumerate(given):
    labels[(i, *map(slice, values.shape))] = values
  mask = ~np.isnan(labels)
  return np.where(mask, labels, 0.0).astype(np.float32), mask
