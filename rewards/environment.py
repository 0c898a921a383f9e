"""Hands what an environment pays to the stage."""

from collections.abc import Sequence

import numpy as np

from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.types import Sample


def environment(samples: Sequence[Sample]) -> StepRewards:
  """Pays step rewards of any size: what the environment paid, at the tokens where it paid it.

  What is paid for a turn stands at the turn's last token (rollout.environment.Environment.step).

  Raises: ValueError for samples that are no episodes: no environment pays them.
  """
  for sample in samples:
    if not sample.episode:
      raise ValueError(
          "The reward \"environment\" is what an environment pays, and these samples have none: add"
          " config.environment, or take the reward away.")
  return StepRewards(
      [np.array([amount for _, amount in s.environment_rewards], np.float64) for s in samples],
      [np.array([place for place, _ in s.environment_rewards], np.int64) for s in samples])


environment.sees_episode = True
