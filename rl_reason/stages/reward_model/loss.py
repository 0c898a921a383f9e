"""The loss of a reward_model stage: scores and labels of a microbatch -> one number."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rl_reason.arrays import LearnerState
from rl_reason.models import reward_model
from rl_reason.models.reward_model import ResponseBatch, RewardModel
from rl_reason.objectives import contrastive
from rl_reason.objectives.losses import LossStatistics
from rl_reason.stages.reward_model import meta as meta_lib
from rl_reason.stages.reward_model.batch import ComparisonBatch, examples
from rl_reason.stages.reward_model.config import Config
from rl_reason.types import Params


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss on labels and, with a contrastive section, on the features of two views of each pair.

  config: of the stage.
  model: the decoder and its head.
  dtype: of the computation.
  dropout_key: from which each update folds the keys of its two views.
  """
  config: Config
  model: RewardModel
  dtype: jnp.dtype
  dropout_key: PRNGKeyArray

  def __call__(
      self, params: Params, batch: ComparisonBatch, step: Any,
  ) -> tuple[jax.Array, LossStatistics]:
    """Computes the loss of one microbatch (learner.step.LossFn).

    Args:
      step: updates before this one.
    """
    if self.config.contrastive:
      views = self.two_views(params, batch, jax.random.fold_in(self.dropout_key, step))
    else:
      views = self.one_view(params, batch)
    loss, metrics, scores = views
    moments = reward_model.moments(jax.lax.stop_gradient(scores), batch.places_mask)
    total = jnp.sum(batch.weights * loss)
    return total, LossStatistics(
        sums={**{k: jnp.sum(batch.weights * v) for k, v in metrics.items()}, "loss": total,
              **{f"moments/{k}": v for k, v in moments.items()}},
        token_sums={}, num_tokens=jnp.ones(()), maxima={})

  def scores(self, params: Params, responses: ResponseBatch) -> Float[Array, "P G K A"]:
    """Scores responses at their places, without dropout."""
    return reward_model.scores(
        self.model, params, responses, dtype=self.dtype, remat=self.config.learner.remat)

  def one_view(self, params: Params, batch: ComparisonBatch):
    """Returns (loss per example, metrics per example, scores)."""
    scores = self.scores(params, batch.responses)
    loss, metrics, _ = examples(self.config, params, batch, scores)
    return loss, metrics, scores

  def two_views(self, params: Params, batch: ComparisonBatch, key: PRNGKeyArray):
    """Adds to the pairs' loss what tells their features apart, seen twice with dropout.

    Returns: (loss per example, metrics per example, scores of the first view).
    """
    section = self.config.contrastive
    one, other = (self._view(params, batch, k) for k in jax.random.split(key))
    apart, logged = contrastive.loss(
        section, one.features, other.features, params["head"].get("prototypes"))
    # The pairs' loss is the mean over both views, so that its scale is that of one view.
    loss = (one.loss + other.loss) / 2
    metrics = jax.tree.map(lambda a, b: (a + b) / 2, one.metrics, other.metrics)
    return (loss + section.weight * apart,
            {**metrics, **logged, "contrastive/loss": apart}, one.scores)

  def ascend(self, responses: ResponseBatch, *params: Params):
    """Finds where MetaRM takes the gradient (learner.step.make_update's lookahead)."""
    def scores(params):
      return self.scores(params, responses)[:, :, 0]
    return meta_lib.ascend(self.config.meta, scores, *params)

  def _view(self, params: Params, batch: ComparisonBatch, key: PRNGKeyArray) -> "View":
    section = self.config.contrastive
    states = reward_model.states(
        self.model, params, batch.responses, dtype=self.dtype, remat=self.config.learner.remat,
        dropout=section.dropout, rng=key)
    scores = reward_model.scores_of(self.model, params, states)
    loss, metrics, _ = examples(self.config, params, batch, scores)
    return View(scores, contrastive.samples(states[:, :, 0], section.on), loss, metrics)


@dataclasses.dataclass(frozen=True)
class View:
  """What one pass with dropout gives.

  scores: of the responses, at their places.
  features: what the contrastive loss compares.
  loss: on the labels, per example.
  metrics: of that loss, per example.
  """
  scores: Array
  features: Array
  loss: Array
  metrics: dict[str, Array]


def with_normaliser(
    state: LearnerState, metrics: dict[str, Array]) -> tuple[LearnerState, dict[str, Array]]:
  """Updates the running mean and deviation of the scores, which learned rewards may ask for."""
  frozen = state.params["frozen"]
  moments = {k: metrics.pop(f"moments/{k}") for k in frozen["normaliser"]}
  normaliser = reward_model.updated_normaliser(frozen["normaliser"], moments)
  state = state.replace(params={**state.params, "frozen": {**frozen, "normaliser": normaliser}})
  mean, std = reward_model.mean_and_std(normaliser)
  return state, {**metrics, "score/mean": mean.mean(), "score/std": std.mean()}
