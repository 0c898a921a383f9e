"""Trains reward models: comparisons -> scores of their responses -> a loss.

The loss is on pairs, lists, ratings, attributes or steps, as `loss`, `labels` and `read` say:
Bradley-Terry with margins, soft labels and smoothing; regression and ordinal scales; several
attributes with missing labels; rankings; process models per step (binary, soft, PQM) and
token-level models.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.config.checks import one_of
from rl_reason.judges.critiques import Critiques
from rl_reason.learner.step import Learner, make_learner, make_update, run_update
from rl_reason.models import reward_model
from rl_reason.models.reward_model_files import Stored
from rl_reason.objectives import contrastive
from rl_reason.runtime import memory as memory_lib
from rl_reason.scorers import scorer
from rl_reason.scorers.strength import relabelled, strength
from rl_reason.stages import voting
from rl_reason.stages.base import Kind, Stage, StepResult, Trained
from rl_reason.stages.comparisons import Reader
from rl_reason.stages.context import Context
from rl_reason.stages.reward_model import critiques as critiques_lib
from rl_reason.stages.reward_model import meta as meta_lib
from rl_reason.stages.reward_model.batch import architecture, make_batch, make_reader
from rl_reason.stages.reward_model.config import Config
from rl_reason.stages.reward_model.critiques import make_critiques
from rl_reason.stages.reward_model.evaluation import evaluator
from rl_reason.stages.reward_model.loss import Loss, with_normaliser
from rl_reason.tasks import pipeline
from rl_reason.types import Comparison, Params, Source


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
  critiques = make_critiques(config.critique, context)
  model, reader = architecture(config, context), make_reader(config, context, critiques)
  task = reader.task(functools.partial(changed_labels, config, context))
  learner = learner_of(config, context, with_head(config, context, params, name), name)
  loss = Loss(config, model, context.dtype, context.rng(name, "dropout"))
  unlabelled = None
  if config.meta:
    unlabelled = meta_lib.Responses(config.meta, context, name, reader.layout)
  parts = RewardModelStage(
      config, context, name, reader, critiques, unlabelled,
      make_update(learner, loss, lookahead=loss.ascend, finish=with_normaliser))
  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape,
      step=parts.step, resumable={"critiques": critiques} if critiques else {},
      max_skipped=config.learner.optimizer.max_skipped,
      evaluate=evaluator(
          config, context, reader, task.heldout,
          lambda params, batch: loss.scores(params, batch.responses)),
      # Every process reads all rows: they are laid out together.
      data=pipeline.batches(task.train, batch_size=config.batch_size,
                            seed=context.stream_seed(name, "data")))


@dataclasses.dataclass(frozen=True)
class RewardModelStage:
  """The parts of a reward_model stage, and what a step does with them.

  reader: comparisons -> ids.
  critiques: what writes the critiques that the head reads; None: none are read.
  unlabelled: samples a policy's responses for MetaRM; None: it is not used.
  update: (state, microbatches, unlabelled responses or None) -> (state, metrics).
  """
  config: Config
  context: Context
  name: str
  reader: Reader
  critiques: Critiques | None
  unlabelled: meta_lib.Responses | None
  update: Callable[..., Any]

  def step(
      self, state: LearnerState, rows: list[Comparison], index: int,
  ) -> tuple[LearnerState, StepResult]:
    """Makes one update on these rows."""
    config, partitioning = self.config, self.context.partitioning

    # Rows -> arrays on the devices.
    batch = make_batch(config, self.reader, rows, self.reader.microbatches)
    responses = None
    if self.unlabelled:
      responses = partitioning.place(self.unlabelled(rows, index), ("batch",))

    # One update.
    placed = partitioning.place(batch, (None, "batch"))
    state, metrics, skipped = run_update(self.update, state, placed, responses)
    check_assignments(config, metrics, index)

    # After the last update the head's bias moves, so that solutions score 0 on average.
    if config.zero and index == config.num_steps - 1:
      params, metrics["score/zero"] = with_zero(config, self.context, state.params, self.name)
      state = state.replace(params=params)
    written = self.critiques.metrics() if self.critiques else {}
    return state, StepResult(
        {**metrics, **{f"critiques/{k}": v for k, v in written.items()}},
        tokens=float(batch.responses.row_lengths.sum()), skipped=skipped, updates=1)


def check_assignments(config: Config, metrics: dict[str, float], index: int) -> None:
  """Raises: FloatingPointError where all samples are assigned to one prototype."""
  entropy = metrics.get("contrastive/entropy", 1.0)
  if entropy < contrastive.COLLAPSED:
    raise FloatingPointError(
        f"contrastive: at update {index} the predicted assignments have {entropy:.3f} of the"
        f" entropy that {config.contrastive.prototypes} prototypes allow: all samples fall to one."
        " Raise contrastive.temperature, or lower contrastive.weight.")


def with_head(config: Config, context: Context, params: Params, name: str) -> Params:
  """Puts a new head on the decoder `params`."""
  shardings = jax.tree.map(lambda x: x.sharding, trained(config, context, name).shapes)
  make = functools.partial(reward_model.init_params, architecture(config, context))
  return jax.jit(make, out_shardings=shardings)(params, context.rng(name, "head"))


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


def stored(config: Config, context: Context, name: str) -> Stored:
  """Describes the finished stage's model as a reward model in files.

  Raises: ValueError for a model that also reads critiques, which files do not hold.
  """
  if config.critique.generate:
    raise ValueError(
        f"The reward model {name!r} reads critiques that {config.critique.generate!r} writes, so its"
        " files alone would score otherwise: score with the run's folder instead.")
  return Stored(
      architecture(config, context), config.attributes or ("reward",), config.read,
      config.separator, config.aggregate)


KIND = Kind(
    Config=Config, check=check, memory=memory, trained=trained, build=build,
    make_scorer=make_scorer, stored=stored)
