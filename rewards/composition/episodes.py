"""Gives each reward what the policy wrote, or the whole episode if the reward asks for it.

A reward asks with a true attribute `sees_episode`, of the function or of the object:

    def tidy(samples):          # Sees a completion that is the policy's own turns.
      ...

    def politeness(samples):    # Sees the environment's words too, in `completion` and its tokens.
      ...
    politeness.sees_episode = True

So a reward that knows nothing of environments never pays a policy for what an environment wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.types import Sample


def seen_by(function: Callable[..., Any], samples: Sequence[Sample]) -> list[Sample]:
  """Returns the samples as a reward sees them: Sample.own, or whole for one with `sees_episode`."""
  if getattr(function, "sees_episode", False):
    return list(samples)
  return [sample.own for sample in samples]


def in_episodes(output: StepRewards, samples: Sequence[Sample]) -> StepRewards:
  """Moves rewards of steps from the places in own tokens to those in whole completions.

  Args:
    output: rewards of the samples' own tokens.
    samples: the whole samples.
  """
  return StepRewards(output.values, [
      np.array(sample.own_places, np.int64)[np.asarray(ends, np.int64)]
      for sample, ends in zip(samples, output.ends, strict=True)])
