"""What a comparison's row says about each of its responses -> the arrays that losses of reward models read."""

from collections.abc import Callable, Sequence
import dataclasses

from jaxtyping import Bool, Float
import numpy as np

from rl_reason.batches.responses import Encoded
from rl_reason.types import Comparison


@dataclasses.dataclass(frozen=True)
class Labels:
  """One kind of label.

  of_row: (row, encoded, attributes) -> its labels, NaN where one is missing. Raises ValueError where the row has none.
  per: "comparison": the loss compares a row's responses, and reads scores [N G]; "response": it reads one of [N];
    "attribute": [N A]; "place": [N K], the scores at a response's places.
  """
  of_row: Callable[[Comparison, Encoded, Sequence[str]], Float[np.ndarray, "..."]]
  per: str

  @property
  def per_response(self) -> bool:
    return self.per != "comparison"


def _preference(row, encoded, attributes):
  del encoded, attributes
  if row.preference is None or len(row.responses) != 2:
    raise ValueError(f"it has {len(row.responses)} responses with scores {row.scores}: a pair needs two, of which one is the"
                     " better")
  return np.array(row.preference)


def _ranks(row, encoded, attributes):
  del encoded, attributes
  if len(set(row.scores)) < 2:
    raise ValueError(f"its scores are {row.scores}: a ranking needs two responses of different score")
  return np.unique(-np.array(row.scores), return_inverse=True)[1].astype(np.float64)


def _scores(row, encoded, attributes):
  del encoded, attributes
  if not row.scores:
    raise ValueError("it has no scores")
  return np.array(row.scores, np.float64)


def _attributes(row, encoded, attributes):
  del encoded
  given = [{k: v for k, v in values.items() if v is not None} for values in row.attributes]
  if not any(name in values for values in given for name in attributes):
    raise ValueError(f"it has none of the attributes {', '.join(attributes)}")
  return np.array([[values.get(name, np.nan) for name in attributes] for values in given], np.float64)


def _steps(row, encoded, attributes):
  """At every place the label of the step it is in."""
  del attributes
  rows = [[given[i].label for i in places] if given else [None] * len(places)
          for given, places in zip(row.steps or [()] * len(row.responses), encoded.steps)]
  if not any(label is not None for labels in rows for label in labels):
    raise ValueError("none of its steps has a label")
  out = np.full((len(rows), max(map(len, rows))), np.nan)
  for g, labels in enumerate(rows):
    out[g, :len(labels)] = np.array(labels, np.float64)  # None becomes NaN.
  return out


LABELS = {
    "preference": Labels(_preference, "comparison"),  # Of a pair, the probability that the first is the better one.
    "ranks": Labels(_ranks, "comparison"),  # 0 for the best; equal scores are ties.
    "scores": Labels(_scores, "response"),
    "attributes": Labels(_attributes, "attribute"),
    "steps": Labels(_steps, "place"),
}
# Where a section does not say it; every other loss reads scores.
LABELS_OF_LOSS = {"bradley_terry": "preference", "listwise": "ranks", "step_ranking": "steps"}


def collect(
    kind: Labels, rows: Sequence[Comparison], encoded: Sequence[Encoded], places: Bool[np.ndarray, "P G K"],
    attributes: Sequence[str],
) -> tuple[Float[np.ndarray, "P ..."], Bool[np.ndarray, "P ..."]]:
  """(labels, which there are) of a batch, per comparison, response, attribute or place; labels are 0 where missing."""
  given = [kind.of_row(row, text, attributes) for row, text in zip(rows, encoded, strict=True)]
  count, size, most = places.shape
  shape = {"comparison": given[0].shape and (size,), "response": (size,), "attribute": (size, len(attributes)),
           "place": (size, most)}[kind.per]
  labels = np.full((count, *shape), np.nan)
  for i, values in enumerate(given):
    labels[(i, *map(slice, values.shape))] = values
  mask = ~np.isnan(labels)
  return np.where(mask, labels, 0.0).astype(np.float32), mask
