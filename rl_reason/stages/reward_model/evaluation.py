"""Evaluates a reward model on held-out comparisons during training."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from rl_reason.evaluation import reward_models
from rl_reason.runtime import sharding
from rl_reason.stages import comparisons
from rl_reason.stages.base import Evaluate, first_rows
from rl_reason.stages.comparisons import Reader
from rl_reason.stages.context import Context
from rl_reason.stages.reward_model.batch import examples, make_batch
from rl_reason.stages.reward_model.config import Config
from rl_reason.types import Comparison, Source


def evaluator(
    config: Config, context: Context, reader: Reader, heldout: Source, forward) -> Evaluate:
  """Makes the evaluation of parameters: the loss and its own measures on held-out rows.

  Where the rows compare responses, it also reports all that rl_reason.judge reports, beside a
  length-only and a random scorer.
  """
  @jax.jit
  def measure(params, batch):
    return examples(config, params, batch, forward(params, batch))

  def evaluate(params):
    rows = first_rows(heldout, config.heldout_rows)
    size = config.batch_size // reader.microbatches
    found, table, totals = {}, [], []
    for start in range(0, len(rows), size):
      real = rows[start:start + size]
      # Filled up to a whole batch with a row that is not counted below: one program serves all.
      batch = jax.tree.map(
          lambda x: x[0], make_batch(config, reader, real + real[:1] * (size - len(real)), 1))
      loss, metrics, scores = jax.tree.map(
          sharding.fetch, measure(params, context.partitioning.place(batch, ("batch",))))
      present = batch.weights[:len(real)] > 0
      for k, v in {"loss": loss, **metrics}.items():
        found.setdefault(k, []).append(v[:len(real)][present])
      table += [_shown(row, s) for row, s in zip(real, scores)]
      totals += [s[:len(row.responses)].mean(axis=-1) for row, s in zip(real, scores)]
    return {**comparisons.summary(found), **ranking_metrics(rows, totals)}, table
  return evaluate


def ranking_metrics(
    rows: list[Comparison], scores: list[Float[np.ndarray, "G"]]) -> dict[str, float]:
  """Applies rl_reason.judge to known scores of the rows' responses.

  Returns: what it reports, under "eval/"; {} where no row compares any responses.
  """
  known = {(repr(row.prompt), row.responses): given for row, given in zip(rows, scores)}
  compared = [dataclasses.replace(row, steps=()) for row in rows
              if len(set(row.scores)) > 1 or row.preference is not None]
  if not compared:
    return {}

  # A scorer that looks up the scores that are known already.
  def score(asked):
    return [known[repr(prompt), tuple(responses)] for prompt, responses in asked]
  score.by_prompt, score.render_prompt = True, lambda prompt: prompt
  reports = reward_models.judge_beside_baselines(score, compared)
  baselines = {f"eval/accuracy_of_{name}": reports[name].estimates["accuracy"].value
               for name in ("length", "random") if "accuracy" in reports[name].estimates}
  return {**reports["scorer"].metrics("eval/"), **baselines}


def _shown(row: Comparison, scores: Float[np.ndarray, "G A"]) -> dict[str, Any]:
  return {"id": row.id, "prompt": row.prompt, "responses": [
      {"text": text, "score": scores[i].tolist(),
       **({"label": row.scores[i]} if row.scores else {})}
      for i, text in enumerate(row.responses)]}
