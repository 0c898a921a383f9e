"""Reward models: comparisons -> scores of their responses -> a loss on pairs, lists, ratings, attributes or steps.

Bradley-Terry with margins, soft labels and smoothing; regression and ordinal scales; several attributes with missing
labels; rankings; process models per step (binary, soft, PQM) and token-level models, as `loss`, `labels` and `read` say.
"""

from collections.abc import Mapping
import dataclasses
import functools
import inspect
from typing import Any

from absl import logging
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from rl_reason import contrastive, judge, learner, naming, preferences, scorer, sharding
from rl_reason import labels as label_kinds
from rl_reason import memory as memory_lib
from rl_reason.config import TaskSection, at_least, one_of
from rl_reason.contrastive import Contrastive
from rl_reason.losses import LossStatistics
from rl_reason.models import heads, reward_model
from rl_reason.models.reward_model import ResponseBatch, RewardModel
from rl_reason.responses import READINGS
from rl_reason.rewards.critiques import Critiques
from rl_reason.stages import comparisons, voting
from rl_reason.stages import critiques as critiques_lib
from rl_reason.stages import meta as meta_lib
from rl_reason.stages.base import Context, Evaluate, Optimizer, Stage, Trained, first_rows, make_learner
from rl_reason.stages.comparisons import Reader
from rl_reason.stages.critiques import Critique, make_critiques
from rl_reason.stages.meta import Meta
from rl_reason.strength import Relabel, relabelled, strength
from rl_reason.tasks import Source, pipeline
from rl_reason.types import Comparison, Params


@dataclasses.dataclass(frozen=True)
class Config:
  """num_steps: updates. batch_size: comparisons per update, over all processes.

  data: comparisons to learn from and, held out, to be measured on (tasks.preferences), like the run's own task.
  max_prompt_tokens (0: the run's), max_response_tokens: longer rows are bad, and so are those without what the loss needs.
  bad_rows: "error", or "drop": they are left out and counted; needs a look at every row before the first step.
  loss: a key of preferences.REWARD_LOSSES, or a dotted path to a function of (scores, labels, mask); loss_args: its options.
  labels: a key of labels.LABELS; "": what the loss is made for. attributes: names, an output of the head each.
  levels: of an ordinal scale, 0 ... levels - 1; 0 for losses without thresholds.
  read: where scores are read (responses.READINGS): "end", "steps" (process) or "tokens". separator: ends the steps of a
    response that is not given in steps.
  aggregate: a response's score from those at its places (reward_model.AGGREGATES): in losses of one score per response, in
    evaluations, and by default as a reward.
  critique: a Critique of each response that the head reads too, within max_response_tokens; needs read="end".
  head_hidden: width of the head's SiLU layer; 0: linear. head_init: where the head starts (heads.Head): "zero", "normal".
  freeze_trunk: only the head learns.
  zero: what scores 0 on average in the end. "": whatever comes of the loss. "solutions": the task's first 256; the head's
    bias moves after the last update, and with it what a critic starts from (Stiennon et al. 2020, arXiv:2009.01325).
  relabel: what an ensemble's votes on the training pairs change about them (strength.Relabel); None: nothing.
  contrastive: a Contrastive: a further loss on the features of pairs, seen twice with dropout; None: none, and no dropout.
  meta: a Meta: gradients are taken where the model tells a policy's new responses further apart; None: where it is.
  heldout_rows: so many at most are evaluated. microbatches, remat, start: as in policy_gradient.
  """
  kind: str
  num_steps: int
  batch_size: int
  max_response_tokens: int
  data: TaskSection
  optimizer: Optimizer
  max_prompt_tokens: int = 0
  bad_rows: str = "error"
  loss: str = "bradley_terry"
  loss_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  labels: str = ""
  attributes: tuple[str, ...] = ()
  levels: int = 0
  read: str = "end"
  separator: str = "\n"
  aggregate: str = "last"
  critique: Critique = Critique()
  head_hidden: int = 0
  head_init: str = "zero"
  freeze_trunk: bool = False
  zero: str = ""
  relabel: Relabel | None = None
  contrastive: Contrastive | None = None
  meta: Meta | None = None
  heldout_rows: int = 1000
  microbatches: int = 0
  remat: str = "none"
  start: str = ""

  def __post_init__(self):
    comparisons.check_section(self)
    at_least(0, head_hidden=self.head_hidden, levels=self.levels)
    one_of(READINGS, read=self.read)
    one_of(reward_model.AGGREGATES, aggregate=self.aggregate)
    one_of(heads.INITS, head_init=self.head_init)
    one_of(("", "solutions"), zero=self.zero)
    if self.zero and (self.read != "end" or self.levels):
      raise ValueError(f"zero={self.zero!r} with read={self.read!r} and levels={self.levels}: whole solutions can be worth"
                       " 0, on a scale that has no levels of its own. Set read='end' and a loss without levels, or zero=''.")
    if self.labels:
      one_of(label_kinds.LABELS, labels=self.labels)
    given, wanted = set(self.loss_args) & {"margin", "thresholds"}, self._options
    if given:
      raise ValueError(f"loss_args holds {', '.join(given)}, which the data and the head give: take it out.")
    naming.check_arguments(f"The loss {self.loss!r}", self._loss, [*self.loss_args, *({"thresholds"} & wanted)], positional=3)
    if ("thresholds" in wanted) != (self.levels >= 2):
      raise ValueError(f"levels={self.levels} with the loss {self.loss!r}: an ordinal loss needs the number of levels, 2 or"
                       " more, and others none. Set it accordingly.")
    if (self.kind_of_labels.per == "attribute") != bool(self.attributes):
      raise ValueError(f"labels={self.labels!r} with attributes={self.attributes}: attributes are the labels of a head with"
                       " an output for each. Set labels='attributes' and name them, or neither.")
    if self.kind_of_labels.per == "place" and self.read == "end":
      raise ValueError(f"The loss {self.loss!r} learns from labels of steps, and read='end' reads none of them: set"
                       " read='steps' or 'tokens'.")

    if self.contrastive and (self.kind_of_labels.per != "comparison" or self.read != "end" or self._loss is not preferences.pairs):
      raise ValueError(f"contrastive with loss={self.loss!r} and read={self.read!r}: it is about the features of pairs at their"
                       " ends. Set loss='bradley_terry' and read='end', or leave out contrastive.")
    if self.meta and (self.read != "end" or self.critique.generate or self.meta.prompts > self.batch_size):
      raise ValueError(f"meta with read={self.read!r}, critique.generate={self.critique.generate!r} and meta.prompts="
                       f"{self.meta.prompts} of batch_size={self.batch_size}: responses without labels are read at their ends"
                       " and without critiques, to prompts of the update's rows. Change these, or leave out meta.")
    if self.critique.generate and self.read != "end":
      raise ValueError(f"critique.generate={self.critique.generate!r} with read={self.read!r}: a critique is read with the"
                       " whole response, at its end. Set read='end', or critique.generate=''.")

  @property
  def kind_of_labels(self) -> label_kinds.Labels:
    return label_kinds.LABELS[self.labels or label_kinds.LABELS_OF_LOSS.get(self.loss, "scores")]

  @property
  def _loss(self):
    return naming.find("loss", self.loss, preferences.REWARD_LOSSES)

  @property
  def _options(self) -> set[str]:
    return set(inspect.signature(self._loss).parameters)

  @property
  def loss_fn(self):
    """(scores, labels, mask, margin, thresholds) -> (loss per example, metrics per example)."""
    loss, options = functools.partial(self._loss, **self.loss_args), self._options

    def call(scores, labels, mask, margin, thresholds):
      if "thresholds" in options:
        labels = labels.astype(jnp.int32)
        thresholds = preferences.ordered_thresholds(thresholds)
      given = {"margin": margin, "thresholds": thresholds}
      return loss(scores, labels, mask, **{k: v for k, v in given.items() if k in options})
    return call


@flax.struct.dataclass
class ComparisonBatch:
  """What one update reads: P rows of G responses, and their labels, per comparison or per response.

  places_mask: which of responses.places there are. labels, labels_mask: labels.collect. margin: of rows.
  weights: each example's share in the loss; they sum to 1 over all microbatches.
  """
  responses: ResponseBatch
  places_mask: Bool[Array, "P G K"]
  labels: Float[Array, "P ..."]
  labels_mask: Bool[Array, "P ..."]
  margin: Float[Array, "P"]
  weights: Float[Array, "P ..."]


def architecture(config: Config, context: Context) -> RewardModel:
  head = heads.Head(outputs=max(1, len(config.attributes)), hidden=config.head_hidden, init=config.head_init)
  return RewardModel(context.policy.config, head, max(0, config.levels - 1), config.freeze_trunk,
                     config.contrastive.prototypes if config.contrastive else 0)


def trained(config: Config, context: Context) -> Trained:
  """A decoder with a head, from which a critic may start; no policy."""
  model = architecture(config, context)
  shapes = context.abstract(reward_model.abstract_params(model), reward_model.parameter_axes(model))

  def critic(params):
    return {"trunk": reward_model.trunk_of(params), "head": reward_model.layers_of(params["head"])}
  return Trained(shapes, policy=None, critic=critic)


def check(config: Config, context: Context) -> None:
  """Raises: ValueError for text beyond the model's context, for bad rows, for critiques that nobody can write, and for votes
  that are none or on other rows."""
  reader = make_reader(config, context)
  reader.check()
  critiques_lib.check(config.critique, context, context.name_of(config))
  if config.meta:
    meta_lib.check(config.meta, context, context.name_of(config), reader.layout)
  if config.zero and not context.solutions(_AT_ZERO):
    raise ValueError(f"zero={config.zero!r}, and none of the task's first {_AT_ZERO} training problems has a solution in"
                     " text: give the task solutions, or set zero='' and normalise='mean' in the learned reward.")
  if config.relabel is not None:
    earlier = {name: context.sections[name] for name in context.earlier(context.name_of(config))}
    votes = {name: section for name, section in earlier.items() if section.kind == "voting"}
    one_of(votes, **{"relabel.votes (an earlier stage of kind 'voting')": config.relabel.votes})
    if votes[config.relabel.votes].data != config.data:
      raise ValueError(f"relabel.votes={config.relabel.votes!r} voted on other rows than this stage learns from: give both the"
                       " same `data`.")


_AT_ZERO = 256  # Solutions whose mean score is.


def memory(config: Config, context: Context) -> list[memory_lib.Part]:
  """What a device needs to run this stage. It has no logits."""
  state_shape = make_learner(context, None, config.optimizer, config.num_steps, shapes=trained(config, context).shapes)[-1]
  reader = make_reader(config, context)
  own = [part for part in reader.memory(state_shape) if part.name != "logits"]
  if config.contrastive:
    own += [dataclasses.replace(part, name="activations of the second view", cure="leave out contrastive")
            for part in own if part.name == "activations"]
  if config.meta:
    own += meta_lib.memory(config.meta, context, reader.layout)
  return [*own, *critiques_lib.memory(config.critique, context)]


def make_reader(config: Config, context: Context, critiques: Critiques | None = None) -> Reader:
  kind = config.kind_of_labels

  def complain(row, encoded):
    given = kind.of_row(row, encoded, config.attributes)
    given = given[~np.isnan(given)]
    if config.levels and ((given % 1 != 0) | (given < 0) | (given >= config.levels)).any():
      raise ValueError(f"its labels {given.tolist()} are outside the ordinal scale 0 ... {config.levels - 1} of"
                       f" levels={config.levels}")
  return Reader(config, context, complain, read=config.read, separator=config.separator, critiques=critiques)


def make_batch(config: Config, reader: Reader, rows: list[Comparison], microbatches: int) -> ComparisonBatch:
  """Host arrays, [microbatches ...] each."""
  encoded, kind = reader.encode_all(rows), config.kind_of_labels
  responses, places = reader.layout.batch(encoded, parts=microbatches)
  given, mask = label_kinds.collect(kind, rows, encoded, places, config.attributes)
  labelled = mask.reshape(*mask.shape[:1 + kind.per_response], -1).any(-1)
  weights = np.array([r.weight for r in rows], np.float32).reshape(-1, *[1] * (labelled.ndim - 1)) * labelled
  batch = ComparisonBatch(
      responses=responses, places_mask=places, labels=given, labels_mask=mask,
      margin=np.array([r.margin for r in rows], np.float32), weights=weights / max(weights.sum(), 1e-8))
  return learner.split_microbatches(batch, microbatches)


def examples(config: Config, model: RewardModel, params: Params, batch: ComparisonBatch, scores: Float[Array, "P G K A"]):
  """(loss per example, metrics per example, the responses' scores [P G A]): examples as batch.weights counts them."""
  kind, (count, size) = config.kind_of_labels, batch.places_mask.shape[:2]
  per_response = reward_model.aggregate(scores, batch.places_mask, how=config.aggregate)
  read = {"comparison": per_response[..., 0], "response": per_response[..., 0], "attribute": per_response,
          "place": scores[..., 0]}[kind.per]
  given, mask = batch.labels, batch.labels_mask
  if kind.per_response:
    read, given, mask = (x.reshape(count * size, *x.shape[2:]) for x in (read, given, mask))
  thresholds = params["head"].get("thresholds")
  if thresholds is not None and kind.per != "attribute":
    thresholds = thresholds[0]
  loss, metrics = config.loss_fn(read, given, mask, batch.margin, thresholds)
  shape = batch.weights.shape
  return loss.reshape(shape), {k: v.reshape(shape) for k, v in metrics.items()}, per_response


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """params are where the decoder starts."""
  critiques = make_critiques(config.critique, context, name)
  model, reader = architecture(config, context), make_reader(config, context, critiques)
  task = reader.task(functools.partial(changed_labels, config, context))
  shapes = trained(config, context).shapes
  initial = jax.jit(functools.partial(reward_model.init_params, model), out_shardings=jax.tree.map(
      lambda x: x.sharding, shapes))(params, context.rng(name, "head"))
  optimizer, init, state_shape = make_learner(context, initial, config.optimizer, config.num_steps, shapes=shapes)

  def forward(params, batch):
    return reward_model.scores(model, params, batch.responses, dtype=context.dtype, remat=config.remat)

  def two_views(params, batch, rng):
    """(loss per example, metrics per example, scores of the first view), of the pairs and of what their features add."""
    section = config.contrastive

    def view(key):
      states = reward_model.states(
          model, params, batch.responses, dtype=context.dtype, remat=config.remat, dropout=section.dropout, rng=key)
      scores = reward_model.scores_of(model, params, states)
      loss, metrics, _ = examples(config, model, params, batch, scores)
      return scores, contrastive.samples(states[:, :, 0], section.on), (loss, metrics)
    (scores, one, found), (_, other, found_again) = map(view, jax.random.split(rng))
    apart, told = contrastive.loss(section, one, other, params["head"].get("prototypes"))
    loss, metrics = jax.tree.map(lambda a, b: (a + b) / 2, found, found_again)
    return loss + section.weight * apart, {**metrics, **told, "contrastive/loss": apart}, scores

  def one_view(params, batch):
    scores = forward(params, batch)
    loss, metrics, _ = examples(config, model, params, batch, scores)
    return loss, metrics, scores

  def loss_fn(params, batch, rng=None):
    loss, metrics, scores = one_view(params, batch) if rng is None else two_views(params, batch, rng)
    moments = reward_model.moments(jax.lax.stop_gradient(scores), batch.places_mask)
    sums = {k: jnp.sum(batch.weights * v) for k, v in metrics.items()}
    return jnp.sum(batch.weights * loss), LossStatistics(
        sums={**sums, "loss": jnp.sum(batch.weights * loss), **{f"moments/{k}": v for k, v in moments.items()}},
        token_sums={}, num_tokens=jnp.ones(()), maxima={})

  unlabelled = meta_lib.Responses(config.meta, context, name, reader.layout) if config.meta else None

  def ascend(responses, *params):
    def scores(params):
      return reward_model.scores(model, params, responses, dtype=context.dtype, remat=config.remat)[:, :, 0]
    return meta_lib.ascend(config.meta, scores, *params)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, microbatches, responses):
    rng = jax.random.fold_in(context.rng(name, "dropout"), state.step) if config.contrastive else None
    state, metrics = learner.train_step(
        state, microbatches, loss_fn=functools.partial(loss_fn, rng=rng), optimizer=optimizer,
        lookahead=None if responses is None else functools.partial(ascend, responses))
    frozen = state.params["frozen"]
    moments = {k: metrics.pop(f"moments/{k}") for k in frozen["normaliser"]}
    normaliser = reward_model.updated_normaliser(frozen["normaliser"], moments)
    state = state.replace(params={**state.params, "frozen": {**frozen, "normaliser": normaliser}})
    mean, std = reward_model.mean_and_std(normaliser)
    return state, {**metrics, "score/mean": mean.mean(), "score/std": std.mean()}

  def step(state, rows, index):
    batch = make_batch(config, reader, rows, reader.microbatches)
    responses = context.partitioning.place(unlabelled(rows, index), ("batch",)) if unlabelled else None
    state, metrics = update(state, context.partitioning.place(batch, (None, "batch")), responses)
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if metrics.get("contrastive/entropy", 1.0) < contrastive.COLLAPSED:
      raise FloatingPointError(
          f"contrastive: at update {index} the predicted assignments have {metrics['contrastive/entropy']:.3f} of the entropy"
          f" that {config.contrastive.prototypes} prototypes allow: all samples fall to one. Raise contrastive.temperature, or"
          " lower contrastive.weight.")
    written = critiques.metrics() if critiques else {}
    if config.zero and index == config.num_steps - 1:
      params, metrics["score/zero"] = with_zero(config, context, state.params, name)
      state = state.replace(params=params)
    return state, {**metrics, **{f"critiques/{k}": v for k, v in written.items()},
                   "tokens": float(batch.responses.row_lengths.sum())}, ""

  return Stage(
      num_steps=config.num_steps, init=init, state_shape=state_shape, step=step,
      resumable={"critiques": critiques} if critiques else {}, max_skipped=config.optimizer.max_skipped,
      evaluate=evaluator(config, context, model, reader, task.heldout, forward),
      # Every process reads all rows: they are laid out together.
      data=pipeline.batches(task.train, batch_size=config.batch_size, seed=context.stream_seed(name, "data")))


def with_zero(config: Config, context: Context, params: Params, name: str) -> tuple[Params, float]:
  """(the model whose scores of the task's first solutions have the mean 0, per output; the mean that they had)."""
  model, pairs = architecture(config, context), context.solutions(_AT_ZERO)
  run = jax.jit(functools.partial(reward_model.scores, model, dtype=context.dtype))

  def mean(params):
    outputs = model.head.outputs
    loaded = scorer.Loaded(functools.partial(run, params), np.zeros(outputs), np.ones(outputs))
    score = dataclasses.replace(make_scorer(config, context, name), load=lambda: loaded)
    return np.mean(score.totals(pairs), axis=0)
  before = mean(params)
  params = jax.jit(reward_model.moved, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params, -before)
  after = mean(params)
  assert np.abs(after).max() <= 1e-3 * max(1.0, np.abs(before).max()), f"Solutions score {after} after {before} was taken off."
  return params, float(before.mean())


def changed_labels(config: Config, context: Context, train: Source) -> Source:
  """The training pairs as config.relabel says, after the votes of its stage."""
  if config.relabel is None:
    return train
  mean, _ = strength(voting.differences_of(context.finished(config.relabel.votes)))
  changed = relabelled(train, mean, config.relabel)
  logging.info("%d of %d pairs are kept, %d labels of all are flipped.", len(changed), len(train), len(changed.flipped))
  return changed


def evaluator(config: Config, context: Context, model: RewardModel, reader: Reader, heldout: Source, forward) -> Evaluate:
  """Parameters -> the loss and its own measures on held-out rows; where these compare responses, all that rl_reason.judge
  tells, beside a length-only and a random scorer."""
  @jax.jit
  def measure(params, batch):
    return examples(config, model, params, batch, forward(params, batch))

  def evaluate(params):
    rows = first_rows(heldout, config.heldout_rows)
    size = config.batch_size // reader.microbatches
    found, table, totals = {}, [], []
    for start in range(0, len(rows), size):
      real = rows[start:start + size]
      batch = jax.tree.map(lambda x: x[0], make_batch(config, reader, real + real[:1] * (size - len(real)), 1))
      loss, metrics, scores = jax.tree.map(sharding.fetch, measure(params, context.partitioning.place(batch, ("batch",))))
      present = batch.weights[:len(real)] > 0
      for k, v in {"loss": loss, **metrics}.items():
        found.setdefault(k, []).append(v[:len(real)][present])
      table += [_shown(row, s) for row, s in zip(real, scores)]
      totals += [s[:len(row.responses)].mean(axis=-1) for row, s in zip(real, scores)]
    return {**comparisons.summary(found), **ranking_metrics(rows, totals)}, table
  return evaluate


def ranking_metrics(rows: list[Comparison], scores: list[Float[np.ndarray, "G"]]) -> dict[str, float]:
  """rl_reason.judge on known scores of the rows' responses; {} where no row compares any."""
  known = {(repr(row.prompt), row.responses): given for row, given in zip(rows, scores)}
  compared = [dataclasses.replace(row, steps=()) for row in rows if len(set(row.scores)) > 1 or row.preference is not None]
  if not compared:
    return {}

  def score(asked):
    return [known[repr(prompt), tuple(responses)] for prompt, responses in asked]
  score.by_prompt, score.render_prompt = True, lambda prompt: prompt
  reports = judge.judge_beside_baselines(score, compared)
  baselines = {f"eval/accuracy_of_{name}": reports[name].estimates["accuracy"].value
               for name in ("length", "random") if "accuracy" in reports[name].estimates}
  return {**reports["scorer"].metrics("eval/"), **baselines}


def _shown(row: Comparison, scores: Float[np.ndarray, "G A"]) -> dict[str, Any]:
  return {"id": row.id, "prompt": row.prompt, "responses": [
      {"text": text, "score": scores[i].tolist(), **({"label": row.scores[i]} if row.scores else {})}
      for i, text in enumerate(row.responses)]}


def make_scorer(config: Config, context: Context, name: str) -> scorer.Scorer:
  """The finished stage's model, to score texts with."""
  model = architecture(config, context)
  return scorer.Scorer(
      load=lambda: scorer.from_head(model, context.finished(name), dtype=context.dtype),
      load_states=lambda: scorer.states_below_head(model, context.finished(name), dtype=context.dtype),
      tokenizer=context.policy.tokenizer, outputs=config.attributes or ("reward",), reads=(config.read,),
      layout=make_reader(config, context).layout, max_positions=model.config.max_positions, partitioning=context.partitioning,
      separator=config.separator, aggregate=config.aggregate,
      critiques=make_critiques(config.critique, context, name))
