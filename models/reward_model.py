"""A reward model: a decoder and a head that reads its hidden states at chosen tokens of each response.

    params = {"trunk": a decoder's, "head": the head's, "frozen": {"normaliser": running moments of the scores}}
    scores(model, params, batch)  # [P G K A]: A numbers at each of K places of G responses to each of P prompts
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

# Of the running moments: so many batches count as one average, about the last hundred.
DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """config: of the decoder. head: outputs are attributes. thresholds: of an ordinal scale, per output; 0 for none.

  frozen_trunk: the decoder does not learn: it lies under "frozen" (lora.partition).
  prototypes: of a contrastive loss, learnt beside the head; 0 for none.
  """
  config: ModelConfig
  head: heads.Head = heads.Head()
  thresholds: int = 0
  frozen_trunk: bool = False
  prototypes: int = 0


@flax.struct.dataclass
class ResponseBatch:
  """P prompts with G responses each, laid into R / P rows per prompt (rl_reason.batches.packing).

  places: where scores are read: indices into a prompt's rows, laid end to end. Of a response with fewer than K places, and
    of one that is not there, the others point at any token.
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
  """On a decoder's parameters. Unless head.init says otherwise every response scores 0."""
  head = heads.init_params(model.head, model.config.width, key)
  if model.thresholds:
    # An even scale around 0; the first is where it starts, the others are steps (preferences.ordered_thresholds).
    raw = jnp.full((model.head.outputs, model.thresholds), jnp.log(jnp.expm1(1.0)))
    head["thresholds"] = raw.at[:, 0].set(-(model.thresholds - 1) / 2)
  if model.prototypes:
    head["prototypes"] = jax.random.normal(jax.random.fold_in(key, 1), (model.prototypes, model.config.width))
  zeros = jnp.zeros(model.head.outputs)
  frozen = {"normaliser": {"sum": zeros, "squares": zeros, "weight": jnp.zeros(())}}
  return {"head": head, "frozen": {**frozen, "trunk": trunk}} if model.frozen_trunk else {
      "trunk": trunk, "head": head, "frozen": frozen}


def layers_of(head: Params) -> Params:
  """What the head itself computes with, and not what losses keep beside it."""
  return {k: v for k, v in head.items() if k not in ("thresholds", "prototypes")}


def trunk_of(params: Params) -> Params:
  """The decoder's parameters, frozen or not."""
  return params["trunk"] if "trunk" in params else params["frozen"]["trunk"]


def abstract_params(model: RewardModel) -> Params:
  """The parameters' shapes and dtypes, without computing them."""
  return jax.eval_shape(lambda trunk, key: init_params(model, trunk, key), transformer.abstract_params(model.config),
                        jax.random.key(0))


def parameter_axes(model: RewardModel) -> Params:
  """Per parameter, a PartitionSpec of logical axis names."""
  axes = jax.tree.map(lambda _: PartitionSpec(), abstract_params(model))
  head = {**axes["head"], **heads.parameter_axes(model.head, model.config.width)}
  trunk = {"trunk": transformer.parameter_axes(model.config)}
  if model.frozen_trunk:
    return {"head": head, "frozen": {**axes["frozen"], **trunk}}
  return {**axes, **trunk, "head": head}


def scores(
    model: RewardModel, params: Params, batch: ResponseBatch, *, dtype: jnp.dtype = jnp.float32, remat: str = "none",
) -> Float[Array, "P G K A"]:
  """The head's outputs at every place, float32; of no meaning at places that stand for none.

  The score at a token is that of the text up to and including it.
  """
  return scores_of(model, params, states(model, params, batch, dtype=dtype, remat=remat))


def scores_of(model: RewardModel, params: Params, states: Float[Array, "P G K E"]) -> Float[Array, "P G K A"]:
  """The head's outputs on `states`, float32."""
  return heads.apply(model.head, layers_of(params["head"]), states)


def states(
    model: RewardModel, params: Params, batch: ResponseBatch, *, dtype: jnp.dtype = jnp.float32, remat: str = "none",
    dropout: float = 0.0, rng: PRNGKeyArray | None = None,
) -> Float[Array, "P G K E"]:
  """The hidden states that the head reads, after the final norm.

  Each prompt is computed once; its responses attend to its keys and values and to themselves.
  """
  config, trunk = model.config, trunk_of(params)
  options = dict(dtype=dtype, remat=remat, dropout=dropout)
  first, second = jax.random.split(rng) if dropout else (None, None)
  _, prefix = transformer.forward(config, trunk, batch.prompts, rng=first, **options)
  hidden, _ = transformer.forward(
      config, trunk, Inputs(batch.tokens, batch.row_lengths), prefix, segments=batch.segments, rng=second, **options)
  count, *shape = batch.places.shape
  hidden = hidden.reshape(count, -1, hidden.shape[-1])
  hidden = jnp.take_along_axis(hidden, batch.places.reshape(count, -1, 1), axis=1)
  return hidden.reshape(count, *shape, -1)


def moved(params: Params, by: Float[Array, "A"]) -> Params:
  """The same model, all its scores higher by so much, per output; what is known of their moments moves with them."""
  head, old = params["head"], params["frozen"]["normaliser"]
  normaliser = {**old, "sum": old["sum"] + by * old["weight"],
                "squares": old["squares"] + 2 * by * old["sum"] + by**2 * old["weight"]}
  return {**params, "head": {**head, "output_bias": head["output_bias"] + by},
          "frozen": {**params["frozen"], "normaliser": normaliser}}


def moments(scores: Float[Array, "P G K A"], mask: Bool[Array, "P G K"]) -> dict[str, Float[Array, "..."]]:
  """Sums over the places that are there, which add up over parts of a batch: for `updated_normaliser`."""
  present = mask[..., None]
  values = jnp.where(present, scores, 0.0)
  return {"sum": values.sum((0, 1, 2)), "squares": jnp.square(values).sum((0, 1, 2)),
          "weight": present.sum(dtype=jnp.float32)}


def updated_normaliser(normaliser: Params, batch: dict[str, Float[Array, "..."]]) -> Params:
  """Exponential averages of a batch's `moments`, per place; what is not finite is left out."""
  count = jnp.maximum(batch["weight"], 1.0)
  new = {"sum": batch["sum"] / count, "squares": batch["squares"] / count, "weight": jnp.minimum(batch["weight"], 1.0)}
  fine = jnp.isfinite(batch["squares"]).all() & (batch["weight"] > 0)
  return jax.tree.map(lambda old, x: jnp.where(fine, DECAY * old + (1 - DECAY) * x, old), normaliser, new)


def mean_and_std(normaliser: Params) -> tuple[Float[Array, "A"], Float[Array, "A"]]:
  """Of recent training scores, per output; (0, 1) before any."""
  weight = normaliser["weight"]
  mean = normaliser["sum"] / jnp.maximum(weight, 1e-8)
  variance = jnp.maximum(normaliser["squares"] / jnp.maximum(weight, 1e-8) - jnp.square(mean), 0.0)
  return mean, jnp.where(weight > 0, jnp.sqrt(variance), 1.0)


# Scores of a response's places -> one score; places are logits where a step is judged right or wrong.
AGGREGATES = {
    "last": lambda x, mask: jnp.take_along_axis(x, jnp.maximum(mask.sum(-1, keepdims=True) - 1, 0), axis=-1)[..., 0],
    "min": lambda x, mask: jnp.min(jnp.where(mask, x, jnp.inf), axis=-1),
    "mean": lambda x, mask: jnp.where(mask, x, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1),
    # log of the probability that all steps are right.
    "product": lambda x, mask: jnp.where(mask, jax.nn.log_sigmoid(jnp.where(mask, x, 0.0)), 0.0).sum(-1),
    "sum": lambda x, mask: jnp.where(mask, x, 0.0).sum(-1)}


def aggregate(
    scores: Float[Array, "P G K A"], mask: Bool[Array, "P G K"], *, how: str,
) -> Float[Array, "P G A"]:
  """One score per response from those at its places, by a key of AGGREGATES; 0 for a response that is not there."""
  x = jnp.moveaxis(scores, -1, 2)
  places = jnp.broadcast_to(mask[:, :, None], x.shape)
  return jnp.where(places.any(-1), AGGREGATES[how](x, places), 0.0)
