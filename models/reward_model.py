"""Scores responses with a reward model: a decoder and a head on its hidden states.

The head reads the hidden states at chosen tokens of each response.

    params = {"trunk": a decoder's parameters, "head": the head's,
              "frozen": {"normaliser": running moments of the scores}}
    scores(model, params, batch)  # [P G K A]

Axes: P prompts, G responses to a prompt, K places of a response, A numbers at a place, R rows of
tokens, T tokens of a row, E width.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rl_reason.arrays import Inputs
from rl_reason.models import heads, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.types import Params

# Decay of the running moments: they average about the last hundred batches.
DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """Describes a reward model.

  config: architecture of the decoder.
  head: its outputs are attributes.
  thresholds: thresholds of an ordinal scale, per output; 0 for none.
  frozen_trunk: the decoder does not learn: it lies under "frozen" (lora.partition).
  prototypes: prototypes of a contrastive loss, learnt beside the head; 0 for none.
  """
  config: ModelConfig
  head: heads.Head = heads.Head()
  thresholds: int = 0
  frozen_trunk: bool = False
  prototypes: int = 0


@flax.struct.dataclass
class ResponseBatch:
  """Holds P prompts with G responses each, laid into R / P rows per prompt.

  rl_reason.batches.packing makes it.

  prompts: P right-padded prompts.
  tokens: the responses, several of them in one row where they fit.
  row_lengths: real tokens of each row.
  places: where scores are read, as indices into a prompt's rows laid end to end. A response with
    fewer than K places, or one that is not there, fills up with places of any token.
  owners: per token, 1 + which of its prompt's responses it is part of; 0 where padded.
  segments: as in types.RolloutBatch.
  """
  prompts: Inputs
  tokens: Int[Array, "R T"]
  row_lengths: Int[Array, "R"]
  places: Int[Array, "P G K"]
  owners: Int[Array, "R T"]
  segments: Int[Array, "R T"] | None = None


def init_params(model: RewardModel, trunk: Params, key: PRNGKeyArray) -> Params:
  """Makes a reward model's parameters on those of a decoder.

  Unless head.init says otherwise every response scores 0.
  """
  head = heads.init_params(model.head, model.config.width, key)
  if model.thresholds:
    # An even scale around 0, with steps of 1. The first number is where the scale starts, the
    # others are its steps before a softplus (preferences.ordered_thresholds).
    raw = jnp.full((model.head.outputs, model.thresholds), jnp.log(jnp.expm1(1.0)))
    head["thresholds"] = raw.at[:, 0].set(-(model.thresholds - 1) / 2)
  if model.prototypes:
    head["prototypes"] = jax.random.normal(
        jax.random.fold_in(key, 1), (model.prototypes, model.config.width))
  # Weight 0 says that no scores have been seen yet (mean_and_std).
  zeros = jnp.zeros(model.head.outputs)
  frozen = {"normaliser": {"sum": zeros, "squares": zeros, "weight": jnp.zeros(())}}
  return {"head": head, "frozen": {**frozen, "trunk": trunk}} if model.frozen_trunk else {
      "trunk": trunk, "head": head, "frozen": frozen}


def layers_of(head: Params) -> Params:
  """Returns what the head itself computes with, without what losses keep beside it."""
  return {k: v for k, v in head.items() if k not in ("thresholds", "prototypes")}


def trunk_of(params: Params) -> Params:
  """Returns the decoder's parameters, frozen or not."""
  return params["trunk"] if "trunk" in params else params["frozen"]["trunk"]


def abstract_params(model: RewardModel) -> Params:
  """Returns the parameters' shapes and dtypes, without computing them."""
  return jax.eval_shape(
      lambda trunk, key: init_params(model, trunk, key), transformer.abstract_params(model.config),
      jax.random.key(0))


def parameter_axes(model: RewardModel) -> Params:
  """Returns per parameter a PartitionSpec of logical axis names."""
  # All that is neither in the trunk nor in the head's layers is small, and whole on every device.
  axes = jax.tree.map(lambda _: PartitionSpec(), abstract_params(model))
  head = {**axes["head"], **heads.parameter_axes(model.head, model.config.width)}
  trunk = {"trunk": transformer.parameter_axes(model.config)}
  if model.frozen_trunk:
    return {"head": head, "frozen": {**axes["frozen"], **trunk}}
  return {**axes, **trunk, "head": head}


def scores(
    model: RewardModel, params: Params, batch: ResponseBatch, *,
    dtype: jnp.dtype = jnp.float32, remat: str = "none",
) -> Float[Array, "P G K A"]:
  """Returns the head's outputs at every place, float32; of no meaning at places that only fill up.

  The score at a token is that of the text up to and including it.
  """
  return scores_of(model, params, states(model, params, batch, dtype=dtype, remat=remat))


def scores_of(
    model: RewardModel, params: Params, states: Float[Array, "P G K E"],
) -> Float[Array, "P G K A"]:
  """Returns the head's outputs on `states`, float32."""
  return heads.apply(model.head, layers_of(params["head"]), states)


def states(
    model: RewardModel, params: Params, batch: ResponseBatch, *,
    dtype: jnp.dtype = jnp.float32, remat: str = "none",
    dropout: float = 0.0, rng: PRNGKeyArray | None = None,
) -> Float[Array, "P G K E"]:
  """Returns the hidden states that the head reads, after the final norm.

  Each prompt is computed once; its responses attend to its keys and values and to themselves.

  Args:
    dtype: of the computation.
    remat: what the backward pass computes again, a key of transformer.REMAT_POLICIES.
    dropout: as in transformer.forward.
    rng: key of dropout; needed where dropout is above 0.
  """
  config, trunk = model.config, trunk_of(params)
  options = dict(dtype=dtype, remat=remat, dropout=dropout)
  first, second = jax.random.split(rng) if dropout else (None, None)
  _, prefix = transformer.forward(config, trunk, batch.prompts, rng=first, **options)
  hidden, _ = transformer.forward(
      config, trunk, Inputs(batch.tokens, batch.row_lengths), prefix, segments=batch.segments,
      rng=second, **options)
  # Pick the places. A prompt's rows are laid end to end, as places count.
  count, *shape = batch.places.shape
  hidden = hidden.reshape(count, -1, hidden.shape[-1])
  hidden = jnp.take_along_axis(hidden, batch.places.reshape(count, -1, 1), axis=1)
  return hidden.reshape(count, *shape, -1)


def moved(params: Params, by: Float[Array, "A"]) -> Params:
  """Returns the same model with all its scores higher by `by`, per output.

  The running moments move with the scores: Σ(x + b) = Σx + n b, Σ(x + b)² = Σx² + 2 b Σx + n b².
  """
  head, old = params["head"], params["frozen"]["normaliser"]
  normaliser = {**old, "sum": old["sum"] + by * old["weight"],
                "squares": old["squares"] + 2 * by * old["sum"] + by**2 * old["weight"]}
  return {**params, "head": {**head, "output_bias": head["output_bias"] + by},
          "frozen": {**params["frozen"], "normaliser": normaliser}}


def moments(
    scores: Float[Array, "P G K A"], mask: Bool[Array, "P G K"],
) -> dict[str, Float[Array, "..."]]:
  """Returns sums over the places that are there, for `updated_normaliser`.

  They are the sum of scores, the sum of their squares and the number of places. Sums of the parts
  of a batch add up to those of the batch.
  """
  present = mask[..., None]
  values = jnp.where(present, scores, 0.0)
  return {"sum": values.sum((0, 1, 2)), "squares": jnp.square(values).sum((0, 1, 2)),
          "weight": present.sum(dtype=jnp.float32)}


def updated_normaliser(normaliser: Params, batch: dict[str, Float[Array, "..."]]) -> Params:
  """Returns the exponential averages, per place, after a batch's `moments`.

  A batch with sums that are not finite, or without places, changes nothing.
  """
  # The weight is averaged like the sums: dividing by it corrects the start from zero.
  count = jnp.maximum(batch["weight"], 1.0)
  new = {"sum": batch["sum"] / count, "squares": batch["squares"] / count,
         "weight": jnp.minimum(batch["weight"], 1.0)}
  fine = jnp.isfinite(batch["squares"]).all() & (batch["weight"] > 0)
  return jax.tree.map(
      lambda old, x: jnp.where(fine, DECAY * old + (1 - DECAY) * x, old), normaliser, new)


def mean_and_std(normaliser: Params) -> tuple[Float[Array, "A"], Float[Array, "A"]]:
  """Returns mean and standard deviation of recent scores in training, per output.

  Before any scores they are (0, 1).
  """
  weight = normaliser["weight"]
  mean = normaliser["sum"] / jnp.maximum(weight, 1e-8)
  variance = jnp.maximum(normaliser["squares"] / jnp.maximum(weight, 1e-8) - jnp.square(mean), 0.0)
  return mean, jnp.where(weight > 0, jnp.sqrt(variance), 1.0)


Places = Float[Array, "... K"]
Present = Bool[Array, "... K"]


def last_place(x: Places, mask: Present) -> Float[Array, "..."]:
  """The score at the response's last place."""
  index = jnp.maximum(mask.sum(-1, keepdims=True) - 1, 0)
  return jnp.take_along_axis(x, index, axis=-1)[..., 0]


def lowest_place(x: Places, mask: Present) -> Float[Array, "..."]:
  """The lowest score: a chain is as good as its weakest step."""
  return jnp.min(jnp.where(mask, x, jnp.inf), axis=-1)


def mean_of_places(x: Places, mask: Present) -> Float[Array, "..."]:
  """The mean of the scores."""
  return jnp.where(mask, x, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def product_of_places(x: Places, mask: Present) -> Float[Array, "..."]:
  """The log of the probability that all steps are right; scores are logits."""
  return jnp.where(mask, jax.nn.log_sigmoid(jnp.where(mask, x, 0.0)), 0.0).sum(-1)


def sum_of_places(x: Places, mask: Present) -> Float[Array, "..."]:
  """The sum of the scores."""
  return jnp.where(mask, x, 0.0).sum(-1)


# Scores of a response's places -> one score; places are logits where a step is judged right or wrong.
AGGREGATES = {
    "last": last_place,
    "min": lowest_place,
    "mean": mean_of_places,
    "product": product_of_places,
    "sum": sum_of_places,
}


def aggregate(
    scores: Float[Array, "P G K A"], mask: Bool[Array, "P G K"], *, how: str,
) -> Float[Array, "P G A"]:
  """Returns one score per response from those at its places; 0 for a response that is not there.

  Args:
    scores: the scores at its places.
    mask: true at real places, which come first.
    how: a key of AGGREGATES.
  """
  x = jnp.moveaxis(scores, -1, 2)
  places = jnp.broadcast_to(mask[:, :, None], x.shape)
  return jnp.where(places.any(-1), AGGREGATES[how](x, places), 0.0)
