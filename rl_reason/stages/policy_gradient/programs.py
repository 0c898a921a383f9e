"""Compiles the programs of a policy_gradient stage, beginning before they are needed."""

import dataclasses
from typing import Any

from rl_reason.arrays import LearnerState
from rl_reason.rollout.record import Rollout
from rl_reason.runtime import compilation
from rl_reason.stages.policy_gradient.assemble import Assembler
from rl_reason.types import Params


@dataclasses.dataclass(frozen=True)
class Programs:
  """What scores a rollout and what learns from it. Both compile at once, and while scores come.

  score: models.policy.score.
  update: (state, microbatches) -> (state, metrics).
  last_first: the shapes of the first rollout of the last run like this one. The programs that it
    needed lie on disk, and are read while this run samples.
  """
  score: compilation.Program
  update: compilation.Program
  last_first: compilation.Note

  def begin(
      self, assembler: Assembler, rollout: Rollout, state_shape: LearnerState,
      policy_shapes: Params,
      rng: Any, *, reference: bool,
  ) -> None:
    """Begins to compile what a rollout of these shapes is scored and learnt from with.

    Args:
      policy_shapes: of what is scored: a policy without adapters.
      rng: of Rows.minibatches, whose shapes depend on the order of groups.
      reference: whether there is a reference policy to score.
    """
    rows, objective = assembler.rows, assembler.objective
    place_shapes = rows.partitioning.placed_shapes
    if reference or objective.importance_cap:
      _, parts = rows.scoring_parts(rollout)
      self.score.begin(
          rows.model, policy_shapes, *place_shapes(parts[0], ("batch",)),
          temperature=rows.rollout.sampling.temperature, dtype=rows.dtype)
    blank = assembler.blank(rollout)
    for minibatch in rows.minibatches(blank, rng, mean_over=objective.mean_over):
      placed = place_shapes(rows.microbatches(minibatch), (None, "batch"))
      self.update.begin(state_shape, placed)

  def close(self) -> None:
    """Waits for what compiles."""
    self.score.close()
    self.update.close()

