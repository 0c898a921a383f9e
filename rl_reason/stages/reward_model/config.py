"""Holds the fields of a reward_model stage."""

from collections.abc import Mapping
import dataclasses
import functools
import inspect
from typing import Any

import jax.numpy as jnp

from rl_reason.batches import labels as label_kinds
from rl_reason.batches.responses import READINGS
from rl_reason.config import naming
from rl_reason.config.checks import at_least, one_of
from rl_reason.learner.step import Update
from rl_reason.models import heads, reward_model
from rl_reason.objectives import preferences
from rl_reason.objectives.contrastive import Contrastive
from rl_reason.scorers.strength import Relabel
from rl_reason.stages import comparisons
from rl_reason.stages.reward_model.critiques import Critique
from rl_reason.stages.reward_model.meta import Meta
from rl_reason.tasks.registry import TaskSection


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of a reward_model stage.

  num_steps: updates.
  batch_size: comparisons per update, over all processes.
  max_response_tokens: longer responses make a row bad, and so does the lack of what the loss needs.
  data: comparisons to learn from and, held out, to be measured on (tasks.preferences), given like
    the run's own task.
  learner: memory and optimizer (learner.step.Update); its lora must be off, for all is trained.
  max_prompt_tokens: longer prompts make a row bad; 0: the run's limit.
  bad_rows: "error", or "drop": bad rows are left out and counted, which needs a look at every row
    before the first step.
  loss: a key of preferences.REWARD_LOSSES, or a dotted path to a function of (scores, labels,
    mask).
  loss_args: options of the loss.
  labels: a key of labels.LABELS; "": what the loss is made for.
  attributes: names; the head has an output for each.
  levels: of an ordinal scale, 0 ... levels - 1; 0 for losses without thresholds.
  read: where scores are read (responses.READINGS): "end", "steps" (process) or "tokens".
  separator: ends the steps of a response that is not given in steps.
  aggregate: a response's score from those at its places (reward_model.AGGREGATES). It serves losses
    of one score per response, evaluations and, by default, rewards.
  critique: a Critique of each response, which the head reads too, within max_response_tokens; needs
    read="end".
  head_hidden: width of the head's SiLU layer; 0: the head is linear.
  head_init: where the head starts (heads.Head): "zero", "normal".
  freeze_trunk: whether only the head learns.
  zero: what scores 0 on average in the end. "": whatever the loss makes of it. "solutions": the
    task's first 256 solutions; the head's bias moves after the last update, and with it what a
    critic starts from (Stiennon et al. 2020, arXiv:2009.01325).
  relabel: what an ensemble's votes on the training pairs change about them (strength.Relabel);
    None: nothing.
  contrastive: a Contrastive, a further loss on the features of pairs, seen twice with dropout;
    None: no such loss, and no dropout.
  meta: a Meta: gradients are taken at parameters that score a policy's new responses further apart;
    None: at the parameters themselves.
  heldout_rows: rows that are evaluated at most.
  start: the stage whose policy the decoder starts from (run.earlier).
  """
  kind: naming.Name
  num_steps: int
  batch_size: int
  max_response_tokens: int
  data: TaskSection
  learner: Update
  max_prompt_tokens: int = 0
  bad_rows: str = "error"
  loss: naming.Name = "bradley_terry"
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
  start: str = ""

  def __post_init__(self):
    comparisons.check_section(self)
    if self.learner.lora.rank:
      raise ValueError(
          f"learner.lora.rank={self.learner.lora.rank}: a reward model has no adapters. Set"
          " lora.rank=0, or freeze_trunk=True to train the head alone.")
    at_least(0, head_hidden=self.head_hidden, levels=self.levels)
    one_of(READINGS, read=self.read)
    one_of(reward_model.AGGREGATES, aggregate=self.aggregate)
    one_of(heads.INITS, head_init=self.head_init)
    one_of(("", "solutions"), zero=self.zero)
    if self.zero and (self.read != "end" or self.levels):
      raise ValueError(
          f"zero={self.zero!r} with read={self.read!r} and levels={self.levels}: whole solutions"
          " can be worth 0, on a scale that has no levels of its own. Set read='end' and a loss"
          " without levels, or zero=''.")
    if self.labels:
      one_of(label_kinds.LABELS, labels=self.labels)
    given, wanted = set(self.loss_args) & {"margin", "thresholds"}, self._options
    if given:
      raise ValueError(
          f"loss_args holds {', '.join(given)}, which the data and the head give: take it out.")
    naming.check_arguments(
        f"The loss {self.loss!r}", self._loss, [*self.loss_args, *({"thresholds"} & wanted)],
        positional=3)
    if ("thresholds" in wanted) != (self.levels >= 2):
      raise ValueError(
          f"levels={self.levels} with the loss {self.loss!r}: an ordinal loss needs the number of"
          " levels, 2 or more, and others none. Set it accordingly.")
    if (self.kind_of_labels.per == "attribute") != bool(self.attributes):
      raise ValueError(
          f"labels={self.labels!r} with attributes={self.attributes}: attributes are the labels of"
          " a head with an output for each. Set labels='attributes' and name them, or neither.")
    if self.kind_of_labels.per == "place" and self.read == "end":
      raise ValueError(
          f"The loss {self.loss!r} learns from labels of steps, and read='end' reads none of them:"
          " set read='steps' or 'tokens'.")

    if self.contrastive and (
        self.kind_of_labels.per != "comparison" or self.read != "end"
        or self._loss is not preferences.pairs):
      raise ValueError(
          f"contrastive with loss={self.loss!r} and read={self.read!r}: it is about the features of"
          " pairs at their ends. Set loss='bradley_terry' and read='end', or leave out"
          " contrastive.")
    if self.meta and (
        self.read != "end" or self.critique.generate or self.meta.prompts > self.batch_size):
      raise ValueError(
          f"meta with read={self.read!r}, critique.generate={self.critique.generate!r} and"
          " meta.prompts="
          f"{self.meta.prompts} of batch_size={self.batch_size}: responses without labels are read"
          " at their ends and without critiques, to prompts of the update's rows. Change these, or"
          " leave out meta.")
    if self.critique.generate and self.read != "end":
      raise ValueError(
          f"critique.generate={self.critique.generate!r} with read={self.read!r}: a critique is"
          " read with the whole response, at its end. Set read='end', or critique.generate=''.")

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
    """Makes the loss: (scores, labels, mask, margin, thresholds) -> (loss, metrics) per example."""
    loss, options = functools.partial(self._loss, **self.loss_args), self._options

    def call(scores, labels, mask, margin, thresholds):
      if "thresholds" in options:
        labels = labels.astype(jnp.int32)
        thresholds = preferences.ordered_thresholds(thresholds)
      # A loss is given only the options that its signature names.
      given = {"margin": margin, "thresholds": thresholds}
      return loss(scores, labels, mask, **{k: v for k, v in given.items() if k in options})
    return call
