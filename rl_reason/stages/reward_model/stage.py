"""Trains reward models: comparisons -> scores of their responses -> a loss.

The loss is on pairs, lists, ratings, attributes or steps, as `loss`, `labels` and `read` say:
Bradley-Terry with margins, soft labels and smoothing; regression and ordinal scales; several
attributes with missing labels; rankings; process models per step (binary, soft, PQM) and
token-level models.
"""

import dataclasses
import functools

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from rl_reason.config.checks import one_of
from rl_reason.learner.step import Learner, make_learner, make_update, run_update
from rl_reason.models import reward_model
from rl_reason.objectives import contrastive
from rl_reason.objectives.losses import LossStatistics
from rl_reason.runtime import memory as memory_lib
from rl_reason.scorers import scorer
from rl_reason.scorers.strength import relabelled, strength
from rl_reason.stages import voting
from rl_reason.stages.base import Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.reward_model import critiques as critiques_lib
from rl_reason.stages.reward_model import meta as meta_lib
from rl_reason.stages.reward_model.batch import architecture, examples, make_batch, make_reader
from rl_reason.stages.reward_model.config import Config
from rl_reason.stages.reward_model.critiques import make_critiques
from rl_reason.stages.reward_model.evaluation import evaluator
from rl_reason.tasks import pipeline
from rl_reason.types import Params, Source


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes a decoder with a head, from which a critic may start; it is no policy."""
  model = architecture(config, context)
  shapes = context.abstract(reward_model.abstract_params(model), reward_model.parameter_axes(model))

  def critic(params):
    return {"trunk": reward_model.trunk_of(params), "head": reward_model.layers_of(params["head"])}
  return Trained(shapes, policy=None, critic=critic)


def check(config: Config, context: Context, name: str) -> None:
  """Raises: ValueError for text beyond the model's context, and for bad rows.

  Also for critiques that nobody can write, and for votes that do not exist or are on other rows.
  """
  reader = make_reader(config, context)
  reader.check()
  critiques_lib.check(config.critique, context)
  if config.meta:
    meta_lib.check(config.meta, context, reader.layout)
  if config.zero and not context.solutions(_AT_ZERO):
    raise ValueError(
        f"zero={config.zero!r}, and none of the task's first {_AT_ZERO} training problems has a"
        " solution in text: give the task solutions, or set zero='' and normalise='mean' in the"
        " learned reward.")
  if config.relabel is not None:
    votes = {n: s for n, s in context.earlier.sections.items() if s.kind == "voting"}
    one_of(votes, **{"relabel.votes (an earlier stage of kind 'voting')": config.relabel.votes})
    if votes[config.relabel.votes].data != config.data:
      raise ValueError(
          f"relabel.votes={config.relabel.votes!r} voted on other rows than this stage learns from:"
          " give both the same `data`.")


_AT_ZERO = 256  # Solutions whose mean score is set to 0.


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs to run this stage. It has no logits."""
  state_shape = learner_of(config, context, None, name).state_shape
  reader = make_reader(config, context)
  own = [part for part in reader.memory(state_shape) if part.name != "logits"]
  if config.contrastive:
    own += [
        dataclasses.replace(
            part, name="activations of the second view", cure="leave out contrastive")
        for part in own if part.name == "activations"]
  if config.meta:
    own += meta_lib.memory(config.meta, context, reader.layout)
  return [*own, *critiques_lib.memory(config.critique, context)]


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """Makes the learner of what `trained` says, starting from the decoder and head `params`."""
  return make_learner(context.partitioning, trained(config, context, name).shapes, params,
                      config.learner.optimizer, config.num_steps)


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage. `params` are where the decoder starts."""

  # Data and model.
  critiques = make_critiques(config.critique, context)
  model, reader = architecture(config, context), make_reader(config, context, critiques)
  task = reader.task(functools.partial(changed_labels, config, context))
  shapes = trained(config, context, name).shapes
  initial = jax.jit(
      functools.partial(reward_model.init_params, model),
      out_shardings=jax.tree.map(lambda x: x.sharding, shapes))(params, context.rng(name, "head"))
  learner = learner_of(config, context, initial, name)

  # The loss, of one view of the batch or of two.
  def forward(params, batch):
    return reward_model.scores(
        model, params, batch.responses, dtype=context.dtype, remat=config.learner.remat)

  def two_views(params, batch, rng):
    """Computes the pairs' loss plus what their features add.

    Returns: (loss per example, metrics per example, scores of the first view).
    """
    section = config.contrastive

    def view(key):
      states = reward_model.states(
          model, params, batch.responses, dtype=context.dtype, remat=config.learner.remat,
          dropout=section.dropout, rng=key)
      scores = reward_model.scores_of(model, params, states)
      loss, metrics, _ = examples(config, params, batch, scores)
      return scores, contrastive.samples(states[:, :, 0], section.on), (loss, metrics)
    (scores, one, found), (_, other, found_again) = map(view, jax.random.split(rng))
    apart, told = contrastive.loss(section, one, other, params["head"].get("prototypes"))
    # The pairs' loss is the mean over both views, so that its scale is that of one view.
    loss, metrics = jax.tree.map(lambda a, b: (a + b) / 2, found, found_again)
    return loss + section.weight * apart, {**metrics, **told, "contrastive/loss": apart}, scores

  def one_view(params, batch):
    scores = forward(params, batch)
    loss, metrics, _ = examples(config, params, batch, scores)
    return loss, metrics, scores

  def loss_fn(params, batch, rng=None):
    loss, metrics, scores = (
        one_view(params, batch) if rng is None else two_views(params, batch, rng))
    moments = reward_model.moments(jax.lax.stop_gradient(scores), batch.places_mask)
    sums = {k: jnp.sum(batch.weights * v) for k, v in metrics.items()}
    return jnp.sum(batch.weights * loss), LossStatistics(
        sums={**sums, "loss": jnp.sum(batch.weights * loss),
              **{f"moments/{k}": v for k, v in moments.items()}},
        token_sums={}, num_tokens=jnp.ones(()), maxima={})

  def two_views_loss(params, batch, step):
    return loss_fn(params, batch, jax.random.fold_in(context.rng(name, "dropout"), step))

  # MetaRM: where the gradient is taken.
  unlabelled = (
      meta_lib.Responses(config.meta, context, name, reader.layout) if config.meta else None)

  def ascend(responses, *params):
    def scores(params):
      return reward_model.scores(
          model, params, responses, dtype=context.dtype, remat=config.learner.remat)[:, :, 0]
    return meta_lib.ascend(config.meta, scores, *params)

  # After the optimizer's step: running mean and deviation of the scores, for learned rewards.
  def finish(state, metrics):
    frozen = state.params["frozen"]
    moments = {k: metrics.pop(f"moments/{k}") for k in frozen["normaliser"]}
    normaliser = reward_model.updated_normaliser(frozen["normaliser"], moments)
    state = state.replace(params={**state.params, "frozen": {**frozen, "normaliser": normaliser}})
    mean, std = reward_model.mean_and_std(normaliser)
    return state, {**metrics, "score/mean": mean.mean(), "score/std": std.mean()}

  update = make_update(learner, two_views_loss if config.contrastive else loss_fn,
                       lookahead=ascend, finish=finish)

  # One step: rows -> a batch on the devices -> one update.
  def step(state, rows, index):
    batch = make_batch(config, reader, rows, reader.microbatches)
    responses = (
        context.partitioning.place(unlabelled(rows, index), ("batch",)) if unlabelled else None)
    placed = context.partitioning.place(batch, (None, "batch"))
    state, metrics, skipped = run_update(update, state, placed, responses)
    if metrics.get("contrastive/entropy", 1.0) < contrastive.COLLAPSED:
      raise FloatingPointError(
          f"contrastive: at update {index} the predicted assignments have"
          f" {metrics['contrastive/entropy']:.3f} of the entropy"
          f" that {config.contrastive.prototypes} prototypes allow: all samples fall to one. Raise"
          " contrastive.temperature, or lower contrastive.weight.")
    written = critiques.metrics() if critiques else {}
    # After the last update the head's bias moves, so that solutions score 0 on average.
    if config.zero and index == config.num_steps - 1:
      params, metrics["score/zero"] = with_zero(config, context, state.params, name)
      state = state.replace(params=params)
    return state, StepResult(
        {**metrics, **{f"critiques/{k}": v for k, v in written.items()}},
        tokens=float(batch.responses.row_lengths.sum()), skipped=skipped, updates=1)

  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape, step=step,
      resumable={"critiques": critiques} if critiques else {},
      max_skipped=config.learner.optimizer.max_skipped,
      evaluate=evaluator(config, context, reader, task.heldout, forward),
      # Every process reads all rows: they are laid out together.
      data=pipeline.batches(task.train, batch_size=config.batch_size,
                            seed=context.stream_seed(name, "data")))


def with_zero(
    config: Config, context: Context, params: Params, name: str) -> tuple[Params, float]:
  """Moves the head's bias such that the task's first solutions score 0 on average, per output.

  Returns: (the moved parameters, the mean score that the solutions had).
  """
  model, pairs = architecture(config, context), context.solutions(_AT_ZERO)
  run = jax.jit(functools.partial(reward_model.scores, model, dtype=context.dtype))

  def mean(params):
    outputs = model.head.outputs
    loaded = scorer.Loaded(functools.partial(run, params), np.zeros(outputs), np.ones(outputs))
    score = dataclasses.replace(make_scorer(config, context, name), load=lambda: loaded)
    return np.mean(score.totals(pairs), axis=0)
  before = mean(params)
  params = jax.jit(
      reward_model.moved, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params, -before)
  after = mean(params)
  assert np.abs(after).max() <= 1e-3 * max(1.0, np.abs(before).max()), (
      f"Solutions score {after} after {before} was taken off.")
  return params, float(before.mean())


def changed_labels(config: Config, context: Context, train: Source) -> Source:
  """Changes the training pairs as config.relabel says, after the votes of its stage."""
  if config.relabel is None:
    return train
  mean, _ = strength(voting.differences_of(context.earlier.finished(config.relabel.votes)))
  changed = relabelled(train, mean, config.relabel)
  logging.info("%d of %d pairs are kept, %d labels of all are flipped.",
               len(changed), len(train), len(changed.flipped))
  return changed


def make_scorer(config: Config, context: Context, name: str) -> scorer.Scorer:
  """Makes the scorer of the finished stage's model."""
  model = architecture(config, context)
  return scorer.Scorer(
      load=lambda: scorer.from_head(model, context.earlier.finished(name), dtype=context.dtype),
      load_states=lambda: scorer.states_below_head(
          model, context.earlier.finished(name), dtype=context.dtype),
      tokenizer=context.policy.tokenizer, outputs=config.attributes or ("reward",),
      reads=(config.read,), layout=make_reader(config, context).layout,
      max_positions=model.config.max_positions, partitioning=context.partitioning,
      separator=config.separator, aggregate=config.aggregate,
      critiques=make_critiques(config.critique, context))


KIND = Kind(
    Config=Config, check=check, memory=memory, trained=trained, build=build,
    make_scorer=make_scorer)
