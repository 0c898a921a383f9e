"""Trains policies on preferences, without sampling: DPO, IPO, KTO, ORPO, SimPO.

Comparisons become log-probabilities of both sides, and these the loss. cDPO is the loss dpo with
label_smoothing. The reference's log-probabilities are computed once for each comparison.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.batches import packing
from rl_reason.batches.responses import Encoded, READINGS
from rl_reason.config import naming
from rl_reason.config.checks import one_of
from rl_reason.learner.step import Learner, make_learner, make_update, run_update, Update
from rl_reason.models import lora as lora_lib
from rl_reason.models import policy
from rl_reason.models.config import ModelConfig
from rl_reason.models.reward_model import ResponseBatch
from rl_reason.objectives import preferences
from rl_reason.objectives.losses import LossStatistics
from rl_reason.runtime import memory as memory_lib
from rl_reason.runtime import sharding
from rl_reason.scorers import scorer
from rl_reason.stages import comparisons
from rl_reason.stages.adapters import merging_memory, trained_policy, with_adapters
from rl_reason.stages.base import Evaluate, first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.comparisons import Reader
from rl_reason.stages.context import Context
from rl_reason.tasks import pipeline
from rl_reason.tasks.registry import TaskSection
from rl_reason.types import Comparison, Params, Source


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
  """A loss, and what it needs.

  loss: a function of rl_reason.objectives.preferences.
  pairs: whether it compares two sides. If not, it judges each response by itself, as kto does.
  reference: whether it needs a reference policy's log-probabilities.
  """
  loss: Callable[..., preferences.Result]
  pairs: bool = True
  reference: bool = True

  @property
  def leading(self) -> int:
    """Counts the arguments that the stage gives."""
    return 6 if self.pairs else 5


LOSSES = {
    name: PreferenceLoss(loss, reference=name not in ("orpo", "simpo"))
    for name, loss in preferences.PREFERENCE_LOSSES.items()
} | {"kto": PreferenceLoss(preferences.kto, pairs=False)}


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of a preference stage.

  num_steps: updates.
  batch_size: comparisons per update, over all processes.
  max_response_tokens: as in stages.reward_model.
  data: as in stages.reward_model. Rows are pairs of which one side is better; for kto also single
    responses, good where their score is above 0.5.
  learner: memory, LoRA, optimizer (learner.step.Update).
  max_prompt_tokens: as in stages.reward_model.
  bad_rows: as in stages.reward_model.
  loss: a key of LOSSES.
  loss_args: the loss's options, beta among them.
  reference: the frozen policy: an earlier stage, "initial", or "" for the policy that this stage
    starts from.
  heldout_rows: as in stages.reward_model.
  start: the stage whose policy it starts from (run.earlier).
  """
  kind: naming.Name
  num_steps: int
  batch_size: int
  max_response_tokens: int
  data: TaskSection
  learner: Update
  max_prompt_tokens: int = 0
  bad_rows: str = "error"
  loss: str = "dpo"
  loss_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reference: str = ""
  heldout_rows: int = 1000
  start: str = ""

  def __post_init__(self):
    comparisons.check_section(self)
    one_of(LOSSES, loss=self.loss)
    naming.check_arguments(f"The loss {self.loss!r}", self.objective.loss, self.loss_args,
                           positional=self.objective.leading)
    if not self.objective.pairs and self.batch_size < 2:
      raise ValueError(
          f"batch_size must be at least 2 for {self.loss!r}, got {self.batch_size}: its reference"
          " point is measured on other rows' responses. Raise it.")

  @property
  def objective(self) -> PreferenceLoss:
    return LOSSES[self.loss]

  @property
  def beta(self) -> float:
    return float(self.loss_args.get(
        "beta", inspect.signature(self.objective.loss).parameters["beta"].default))


@flax.struct.dataclass
class PreferenceBatch:
  """What one update reads.

  responses: prompts and responses as the policy reads them.
  lengths: tokens of each response, its end included; 0 where there is none.
  reference: sums of the responses' log-probabilities under the reference policy, or zeros.
  good: true for desirable responses; of a pair, for the first one.
  weights: each example's share of the loss; they sum to 1 over all microbatches. An example is a
    pair [P] or, for kto, a response [P G].
  kl: kto's reference point, the same number for all.
  """
  responses: ResponseBatch
  lengths: Int[Array, "P G"]
  reference: Float[Array, "P G"]
  good: Bool[Array, "P G"]
  weights: Float[Array, "P ..."]
  kl: Float[Array, "P"]


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes the policy, which is what the stage leaves."""
  return trained_policy(context, config.learner.lora)


def check(config: Config, context: Context, name: str) -> None:
  """Raises: ValueError for text beyond the policy's context, and for bad rows."""
  make_reader(config, context).check()


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs to run this stage."""
  state_shape = learner_of(config, context, None, name).state_shape
  parts = make_reader(config, context).memory(state_shape)
  if config.objective.reference and config.reference:
    parts.append(memory_lib.Part(
        "reference policy", memory_lib.sharded_bytes(context.abstract_params),
        "set reference='', the policy it starts from"))
  return [
      *merging_memory(context, config.learner.lora, "evaluation",
                      *["scoring"] * (not config.objective.pairs)),
      *parts]


def make_reader(config: Config, context: Context) -> Reader:
  """Makes the reader of the stage's comparisons, which refuses those without a preferred side."""
  def complain(row, encoded):
    del encoded
    if not config.objective.pairs and len(row.responses) == 1 and row.scores:
      return
    if len(row.responses) != 2 or row.preference is None:
      raise ValueError(
          f"it has {len(row.responses)} responses with scores {row.scores}: the loss"
          f" {config.loss!r} needs a pair of which one side is the better")
    if row.preference <= 0.5:
      raise ValueError(
          f"its first response is the better one with probability {row.preference}: a tie prefers"
          " nothing")
  return Reader(config, context, complain)


def judged(
    config: Config, sums: Float[Array, "P G"], batch: PreferenceBatch) -> preferences.Result:
  """Computes (loss, metrics) per example, an example being what batch.weights counts.

  Args:
    config: of the stage.
    sums: the policy's log-probabilities of whole responses, nats.
    batch: all else that the loss reads.
  """
  if config.objective.pairs:
    return config.objective.loss(
        sums[:, 0], sums[:, 1], batch.reference[:, 0], batch.reference[:, 1],
        batch.lengths[:, 0], batch.lengths[:, 1], **config.loss_args)
  flat = [x.reshape(-1) for x in (sums, batch.reference, batch.good, batch.lengths > 0)]
  loss, metrics = config.objective.loss(*flat, batch.kl[0], **config.loss_args)
  return loss.reshape(sums.shape), {k: v.reshape(sums.shape) for k, v in metrics.items()}


def learner_of(config: Config, context: Context, params: Params | None, name: str) -> Learner:
  """Makes the learner of what `trained` says, starting from the policy `params`."""
  return make_learner(
      context.partitioning, trained(config, context, name).shapes,
      lambda: with_adapters(context, params, config.learner.lora, name), config.learner.optimizer,
      config.num_steps)


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage.

  Args:
    params: where the policy starts and, if the section names no other, the frozen reference.
  """
  reader = make_reader(config, context)
  task, learner = reader.task(), learner_of(config, context, params, name)
  reference = None
  if config.objective.reference:
    reference = params
    if config.reference:
      reference = context.earlier.policy(config.reference, "reference")
  loss = Loss(config, context.policy.config, context.dtype)
  parts = PreferenceStage(
      config, context, reader, reference, ReferenceSums(len(task.train)), jax.jit(loss.sums),
      make_update(learner, loss))
  return Stage(
      num_steps=config.num_steps, init=learner.init, state_shape=learner.state_shape,
      step=parts.step, resumable={"reference": parts.known},
      max_skipped=config.learner.optimizer.max_skipped,
      evaluate=evaluator(config, reader, task.heldout, parts.score, reference),
      # Every process reads all rows: they are laid out together.
      data=pipeline.batches(
          Numbered(task.train), batch_size=config.batch_size,
          seed=context.stream_seed(name, "data")))


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss of a preference stage, from the policy's log-probabilities of whole responses."""
  config: Config
  model: ModelConfig
  dtype: jnp.dtype

  def __call__(
      self, params: Params, batch: PreferenceBatch) -> tuple[jax.Array, LossStatistics]:
    """Computes the loss of one microbatch (learner.step.LossFn)."""
    loss, metrics = judged(self.config, self.sums(params, batch.responses), batch)
    total = jnp.sum(batch.weights * loss)
    return total, LossStatistics(
        sums={"loss": total, **{k: jnp.sum(batch.weights * v) for k, v in metrics.items()}},
        token_sums={}, num_tokens=jnp.ones(()), maxima={})

  def sums(self, params: Params, responses: ResponseBatch) -> Float[Array, "P G"]:
    """Sums the log-probabilities of each response's tokens."""
    return policy.response_logprobs(
        self.model, params, responses, dtype=self.dtype,
        remat=self.config.learner.remat).sum(-1)


@dataclasses.dataclass(frozen=True)
class PreferenceStage:
  """The parts of a preference stage, and what a step does with them.

  reader: comparisons -> ids.
  reference: the frozen policy; None where the loss needs none.
  known: its log-probabilities of the training rows that were met so far.
  sums: Loss.sums, jitted.
  update: (state, microbatches) -> (state, metrics).
  """
  config: Config
  context: Context
  reader: Reader
  reference: Params | None
  known: "ReferenceSums"
  sums: Callable[[Params, ResponseBatch], Float[Array, "P G"]]
  update: Callable[..., Any]

  def step(
      self, state: LearnerState, rows: list[tuple[int, Comparison]], index: int,
  ) -> tuple[LearnerState, StepResult]:
    """Makes one update on these rows, which have their numbers."""
    del index
    parts = self.reader.microbatches

    # Rows -> responses as the policy reads them, with the reference's log-probabilities.
    encoded = [self.reader.encode(row) for _, row in rows]
    responses, _ = self.reader.layout.batch(encoded, parts=parts, size=2)
    batch, metrics = make_batch(self.config, [row for _, row in rows], encoded, responses), {}
    if self.reference is not None:
      found = self.known.get(
          [i for i, _ in rows], lambda: self.score(self.reference, responses))
      batch = batch.replace(reference=found)
    if not self.config.objective.pairs:
      kl = self._reference_point(state.params, encoded)
      batch, metrics = batch.replace(kl=np.full_like(batch.kl, kl)), {"reference_point": kl}

    # One update.
    placed = self.context.partitioning.place(
        packing.split_microbatches(batch, parts), (None, "batch"))
    state, updated, skipped = run_update(self.update, state, placed)
    return state, StepResult(
        {**updated, **metrics}, tokens=float(batch.lengths.sum()), skipped=skipped, updates=1)

  def score(self, params: Params, responses: ResponseBatch) -> Float[np.ndarray, "P G"]:
    """Sums under a policy that does not learn, as many rows at once as the update has."""
    scored = [self.sums(params, self.context.partitioning.place(part, ("batch",)))
              for part in packing.split_parts(responses, self.reader.microbatches)]
    return np.concatenate([sharding.fetch(x) for x in scored])

  def _reference_point(self, params: Params, encoded: Sequence[Encoded]) -> float:
    """Estimates kto's reference point, how far the policy is from the reference.

    Each prompt is read with the responses to the next one: what the policy makes of such a mix
    says nothing about the rows themselves.
    """
    shifted = [dataclasses.replace(e, responses=o.responses, places=o.places, steps=o.steps)
               for e, o in zip(encoded, [*encoded[1:], *encoded[:1]])]
    others, mask = self.reader.layout.batch(
        shifted, parts=self.reader.microbatches, size=2)
    ours, theirs = self.score(lora_lib.merge(params), others), self.score(self.reference, others)
    return float(preferences.kto_reference_point(ours, theirs, mask.any(-1)))


def make_batch(
    config: Config, rows: Sequence[Comparison], encoded: Sequence[Encoded],
    responses: ResponseBatch,
) -> PreferenceBatch:
  """Makes a batch of host arrays. Reference log-probabilities and reference point are zeros."""
  lengths, good = np.zeros((2, len(rows), 2), np.int32)
  for i, (row, text) in enumerate(zip(rows, encoded)):
    lengths[i, :len(text.responses)] = [len(r) for r in text.responses]
    good[i, 0] = len(row.responses) == 2 or row.scores[0] > 0.5
  weights = np.array([row.weight for row in rows], np.float32)
  # Without pairs every response is an example, with its row's weight.
  if not config.objective.pairs:
    weights = weights[:, None] * (lengths > 0)
  return PreferenceBatch(
      responses=responses, lengths=lengths,
      reference=np.zeros(lengths.shape, np.float32), good=good.astype(bool),
      weights=weights / max(weights.sum(), 1e-8), kl=np.zeros(len(rows), np.float32))


class ReferenceSums:
  """Remembers the reference policy's log-probabilities of each training row's responses.

  They are computed when first asked for, and are part of a checkpoint: computed anew in another
  batch, they would differ in the last bit.
  """

  def __init__(self, count: int):
    self._sums = np.full((count, 2), np.nan, np.float32)

  def get(
      self, rows: Sequence[int], compute: Callable[[], Float[np.ndarray, "P G"]],
  ) -> Float[np.ndarray, "P G"]:
    """Returns the sums of some rows.

    Args:
      rows: their numbers.
      compute: () -> their sums; called if one of them is not known yet.
    """
    missing = np.isnan(self._sums[rows])
    if missing.any():
      self._sums[rows] = np.where(missing, compute(), self._sums[rows])
    return self._sums[rows]

  def state(self) -> Mapping[str, Any]:
    # In base64, so that float32 numbers come back to the last bit.
    return {"sums": base64.b64encode(self._sums.tobytes()).decode()}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Restores a checkpoint. Raises: ValueError if it holds another number of rows."""
    saved = np.frombuffer(base64.b64decode(state["sums"]), np.float32).reshape(-1, 2)
    if len(saved) != len(self._sums):
      raise ValueError(
          f"The checkpoint holds the reference's log-probabilities of {len(saved)} comparisons, and"
          f" the data now has {len(self._sums)}: resume with the data it was saved with, or choose"
          " another --workdir.")
    self._sums = saved.copy()


@dataclasses.dataclass(frozen=True)
class Numbered:
  """Yields rows with their numbers."""
  source: Source

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[int, Comparison]:
    return index, self.source[index]


def evaluator(
    config: Config, reader: Reader, heldout: Source, score, reference: Params | None) -> Evaluate:
  """Makes the evaluation of parameters: the loss and its own measures on held-out rows.

  kto's reference point counts as 0.
  """
  rows, size = first_rows(heldout, config.heldout_rows), config.batch_size
  # The reference's sums, by the batch's first row: they are the same at every evaluation.
  known: dict[int, Float[np.ndarray, "P G"]] = {}

  def evaluate(params):
    params, found, table = lora_lib.merge(params), {}, []
    for start in range(0, len(rows), size):
      real = rows[start:start + size]
      # Filled up to a whole batch with a row that is not counted below: one program serves all.
      filled = real + real[:1] * (size - len(real))
      encoded = [reader.encode(row) for row in filled]
      responses, _ = reader.layout.batch(encoded, parts=reader.microbatches, size=2)
      if reference is not None and start not in known:
        known[start] = score(reference, responses)
      batch = make_batch(config, filled, encoded, responses)
      batch = batch.replace(reference=known.get(start, batch.reference))
      sums = score(params, responses)
      loss, metrics = judged(config, sums, batch)
      present = batch.weights[:len(real)] > 0
      for k, v in {"loss": loss, **metrics}.items():
        found.setdefault(k, []).append(np.asarray(v)[:len(real)][present])
      table += [
          {"id": row.id, "prompt": row.prompt, "responses": [
              {"text": text, "logprob": float(s), "reference_logprob": float(r)}
              for text, s, r in zip(row.responses, sums[i], batch.reference[i])]}
          for i, row in enumerate(real)]
    return comparisons.summary(found), table
  return evaluate


def make_scorer(config: Config, context: Context, name: str) -> scorer.Scorer:
  """Makes the scorer of the implicit reward of the finished policy.

  Raises: ValueError for a loss without a reference policy.
  """
  if not config.objective.reference:
    raise ValueError(
        f"The stage {name!r} learns with the loss {config.loss!r}, which has no reference policy:"
        " it has no implicit reward. Use dpo, ipo or kto, or a reward_model stage.")

  def load():
    field = "reference" if config.reference else "start"
    return scorer.implicit(
        context.policy.config,
        trained(config, context, name).policy(context.earlier.finished(name)),
        context.earlier.policy(getattr(config, field), field), beta=config.beta,
        dtype=context.dtype)
  return scorer.Scorer(
      load=load, tokenizer=context.policy.tokenizer, outputs=("reward",), reads=READINGS,
      cumulative=True,
      layout=make_reader(config, context).layout, max_positions=context.policy.config.max_positions,
      partitioning=context.partitioning)


KIND = Kind(
    Config=Config, check=check, memory=memory, trained=trained, build=build,
    make_scorer=make_scorer)
