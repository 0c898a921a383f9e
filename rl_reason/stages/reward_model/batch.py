"""Turns comparisons into the batches that a reward model learns from."""

import flax.struct
from jaxtyping import Array, Bool, Float
import numpy as np

from rl_reason.batches import labels as label_kinds
from rl_reason.batches import packing
from rl_reason.judges.critiques import Critiques
from rl_reason.models import heads, reward_model
from rl_reason.models.reward_model import ResponseBatch, RewardModel
from rl_reason.stages.comparisons import Reader
from rl_reason.stages.context import Context
from rl_reason.stages.reward_model.config import Config
from rl_reason.types import Comparison, Params


@flax.struct.dataclass
class ComparisonBatch:
  """What one update reads: P rows of G responses, and their labels, per comparison or per response.

  responses: prompts and responses as the model reads them.
  places_mask: which of responses.places exist.
  labels: as labels.collect gives them.
  labels_mask: where there are labels (labels.collect).
  margin: of the rows.
  weights: each example's share in the loss; they sum to 1 over all microbatches.
  """
  responses: ResponseBatch
  places_mask: Bool[Array, "P G K"]
  labels: Float[Array, "P ..."]
  labels_mask: Bool[Array, "P ..."]
  margin: Float[Array, "P"]
  weights: Float[Array, "P ..."]


def architecture(config: Config, context: Context) -> RewardModel:
  """Describes the reward model that a section asks for."""
  head = heads.Head(outputs=max(1, len(config.attributes)), hidden=config.head_hidden,
                    init=config.head_init)
  return RewardModel(context.policy.config, head, max(0, config.levels - 1), config.freeze_trunk,
                     config.contrastive.prototypes if config.contrastive else 0)


def make_reader(config: Config, context: Context, critiques: Critiques | None = None) -> Reader:
  """Makes the reader of the stage's comparisons, which refuses labels outside an ordinal scale."""
  kind = config.kind_of_labels

  def complain(row, encoded):
    given = kind.of_row(row, encoded, config.attributes)
    given = given[~np.isnan(given)]
    if config.levels and ((given % 1 != 0) | (given < 0) | (given >= config.levels)).any():
      raise ValueError(
          f"its labels {given.tolist()} are outside the ordinal scale 0 ... {config.levels - 1} of"
          f" levels={config.levels}")
  return Reader(config, context, complain, read=config.read, separator=config.separator,
                critiques=critiques)


def make_batch(
    config: Config, reader: Reader, rows: list[Comparison], microbatches: int) -> ComparisonBatch:
  """Makes a batch of host arrays, each [microbatches ...]."""
  encoded, kind = reader.encode_all(rows), config.kind_of_labels
  responses, places = reader.layout.batch(encoded, parts=microbatches)
  given, mask = label_kinds.collect(kind, rows, encoded, places, config.attributes)
  # An example without any label has no share in the loss.
  labelled = mask.reshape(*mask.shape[:1 + kind.per_response], -1).any(-1)
  weights = np.array([r.weight for r in rows], np.float32).reshape(
      -1, *[1] * (labelled.ndim - 1)) * labelled
  batch = ComparisonBatch(
      responses=responses, places_mask=places, labels=given, labels_mask=mask,
      margin=np.array([r.margin for r in rows], np.float32),
      weights=weights / max(weights.sum(), 1e-8))
  return packing.split_microbatches(batch, microbatches)


def examples(
    config: Config, params: Params, batch: ComparisonBatch, scores: Float[Array, "P G K A"]):
  """Computes the loss of each example, an example being what batch.weights counts.

  Args:
    config: of the stage.
    params: of the reward model.
    batch: labels and weights.
    scores: the model's, at every place.

  Returns: (loss per example, metrics per example, the responses' scores [P G A]).
  """
  kind, (count, size) = config.kind_of_labels, batch.places_mask.shape[:2]
  per_response = reward_model.aggregate(scores, batch.places_mask, how=config.aggregate)
  read = {"comparison": per_response[..., 0], "response": per_response[..., 0],
          "attribute": per_response, "place": scores[..., 0]}[kind.per]
  given, mask = batch.labels, batch.labels_mask
  # Where labels are of responses, each response is an example.
  if kind.per_response:
    read, given, mask = (x.reshape(count * size, *x.shape[2:]) for x in (read, given, mask))
  thresholds = params["head"].get("thresholds")
  if thresholds is not None and kind.per != "attribute":
    thresholds = thresholds[0]
  loss, metrics = config.loss_fn(read, given, mask, batch.margin, thresholds)
  shape = batch.weights.shape
  return loss.reshape(shape), {k: v.reshape(shape) for k, v in metrics.items()}, per_response
