"""Reads and batches comparisons, and estimates memory, for the stages that learn from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from absl import logging
from jaxtyping import Float
import numpy as np

from rl_reason.arrays import LearnerState
from rl_reason.batches import packing
from rl_reason.batches.responses import encode_comparison, Encoded, Layout, too_long, with_critiques
from rl_reason.config.checks import at_least, check_microbatches, one_of
from rl_reason.evaluation import estimates
from rl_reason.judges.critiques import Critiques
from rl_reason.learner import memory as learner_memory
from rl_reason.learner.step import Update
from rl_reason.runtime import memory as memory_lib
from rl_reason.stages.base import first_rows
from rl_reason.stages.context import Context
from rl_reason.tasks.registry import load_task, Selected, TaskSection
from rl_reason.types import Comparison, Source, Task


class Section(Protocol):
  """Fields of the sections of both stages, preference and reward_model."""
  num_steps: int
  batch_size: int
  max_prompt_tokens: int
  max_response_tokens: int
  bad_rows: str
  data: TaskSection
  heldout_rows: int
  learner: Update


def check_section(section: Section) -> None:
  """Raises: ValueError for values out of range."""
  at_least(1, num_steps=section.num_steps, batch_size=section.batch_size,
           max_response_tokens=section.max_response_tokens, heldout_rows=section.heldout_rows)
  at_least(0, max_prompt_tokens=section.max_prompt_tokens)
  check_microbatches(section.learner.microbatches, section.batch_size)
  one_of(("error", "drop"), bad_rows=section.bad_rows)


def summary(found: Mapping[str, Sequence[Float[np.ndarray, "N"]]]) -> dict[str, float]:
  """Averages measures of held-out rows.

  Args:
    found: name -> one array of measures per batch.

  Returns: means under "eval/"; the accuracy has its 95 % interval beside it.
  """
  values = {k: np.concatenate(v).astype(np.float64) for k, v in found.items()}
  metrics = {f"eval/{k}": float(v.mean()) for k, v in values.items()}
  if "accuracy" in values and np.isfinite(values["accuracy"]).all():
    metrics["eval/accuracy_low"], metrics["eval/accuracy_high"] = estimates.bootstrap_interval(
        values["accuracy"])
  return metrics


class Reader:
  """Reads comparisons as token ids, for one stage.

  layout: of the stage's batches.
  microbatches: parts of a batch.
  """

  def __init__(
      self, section: Section, context: Context, complain: Callable[[Comparison, Encoded], None], *,
      read: str = "end", separator: str = "\n", critiques: Critiques | None = None):
    """Chooses the layout of the stage's batches.

    Args:
      section: of the stage.
      context: of the stage.
      complain: raises ValueError, saying what is wrong, for a row that the loss cannot learn from.
      read: where scores are read (batches.responses.READINGS).
      separator: of steps.
      critiques: of each response, which `encode_all` appends; they need read="end".
    """
    self._section, self._context, self._complain, self._read, self._separator = (
        section, context, complain, read, separator)
    self._critiques = critiques
    self.layout = Layout.of(
        context.policy.config, context.dtype,
        max_prompt_tokens=section.max_prompt_tokens or context.max_prompt_tokens,
        max_response_tokens=section.max_response_tokens, bucket=context.sampler.prompt_bucket,
        ways=context.partitioning.ways("batch"))
    self.microbatches = section.learner.microbatches or packing.num_passes(
        section.batch_size, 2,
        self.layout.max_prompt_tokens + 2 * section.max_response_tokens, self.layout.ways)

  def encode(self, row: Comparison) -> Encoded:
    """Encodes one comparison. Raises: ValueError that names the row."""
    encoded = encode_comparison(
        self._context.policy.tokenizer, row, read=self._read, separator=self._separator)
    complaint = too_long(encoded, max_prompt_tokens=self.layout.max_prompt_tokens,
                         max_response_tokens=self.layout.max_response_tokens)
    try:
      if complaint:
        raise ValueError(f"it has {complaint}")
      self._complain(row, encoded)
    except ValueError as error:
      raise ValueError(
          f"Comparison {row.id!r} cannot be learnt from: {error}. Correct it or the limit, or set"
          f" bad_rows='drop'. Its prompt starts {str(row.prompt)[:80]!r}.") from error
    return encoded

  def encode_all(self, rows: Sequence[Comparison]) -> list[Encoded]:
    """Encodes comparisons, with their critiques if there are any. Raises: as `encode`."""
    encoded = [self.encode(row) for row in rows]
    if self._critiques is None:
      return encoded
    return with_critiques(
        self._critiques, self._context.policy.tokenizer,
        [(row.prompt, row.responses) for row in rows], encoded,
        max_response_tokens=self.layout.max_response_tokens,
        max_positions=self._context.policy.config.max_positions)

  def check(self) -> None:
    """Checks the limits, and looks at rows: the first ones or, if bad ones are dropped, all.

    Raises: ValueError for bad rows, and for text beyond the model's context.
    """
    limits, context = self.layout, self._context.policy.config.max_positions
    if limits.max_prompt_tokens + limits.max_response_tokens > context:
      raise ValueError(
          f"max_prompt_tokens={limits.max_prompt_tokens} and"
          f" max_response_tokens={limits.max_response_tokens}"
          f" are more than the model's context of {context} tokens. Lower one.")
    task = self._load()
    for half in (task.train, task.heldout):
      if self._section.bad_rows == "error":
        for row in first_rows(half):
          self.encode(row)
      else:
        self._good_rows(half)

  def task(self, change: Callable[[Source], Source] = lambda train: train) -> Task:
    """Loads the rows that can be learnt from; dropped rows are logged.

    Args:
      change: maps the training half before its rows are judged.
    Raises: ValueError if no row is left.
    """
    task = self._load()
    task = Task(change(task.train), task.heldout)
    if self._section.bad_rows == "error":
      return task
    return Task(self._good_rows(task.train, tell=True), self._good_rows(task.heldout, tell=True))

  def _load(self) -> Task:
    data = self._section.data
    return load_task(data.source, data.args, data.train, data.heldout, data.shared_prompts)

  def _good_rows(self, source: Source, *, tell: bool = False) -> Source:
    good, complaints = [], []
    for i in range(len(source)):
      try:
        self.encode(source[i])
        good.append(i)
      except ValueError as error:
        complaints.append(str(error))
    if not good:
      raise ValueError(f"All {len(source)} comparisons are bad. The first: {complaints[0]}")
    if complaints and tell:
      logging.warning("%d of %d comparisons are left out. The first: %s",
                      len(complaints), len(source), complaints[0])
    return Selected(source, np.array(good))

  def memory(self, state_shape: LearnerState) -> list[memory_lib.Part]:
    """Estimates what a device needs for the update. Rows are taken for pairs; lists need more."""
    batch = memory_lib.Batch(
        self._section.batch_size // self.microbatches, 2, self.layout.max_prompt_tokens,
        self.layout.max_response_tokens)
    return learner_memory.learner_parts(
        state_shape, microbatches=self.microbatches) + learner_memory.update_parts(
            self._context.policy.config, self._context.partitioning, batch,
            dtype=self._context.dtype, remat=self._section.learner.remat)
