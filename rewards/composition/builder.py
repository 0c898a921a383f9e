"""Builds rewards for a reward that is made of rewards.

Such a reward (groups.OneOfEach, turns.TurnJudge, features.FeatureReward, or one of yours) cannot
import `build_rewards`: that imports the registry, which imports the reward. It has a parameter
`build` instead, and `build_rewards` hands it a Builder:

    class Best:
      def __init__(self, *, outcome, build: Builder):
        self._outcome = build.rewards(outcome)
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from rl_reason.rewards.composition.reward_set import RewardSet


@dataclasses.dataclass(frozen=True)
class Builder:
  """What a parameter `build` is given; composition.build.BUILDER is the only one.

  rewards: a rewards section of a config -> its RewardSet.
  reward: (kind, what, path, args) -> (function of the samples, keyword arguments of its calls).
    One reward, without weight, transforms and gate. `path` is a name in REWARDS or
    "package.module:function"; a class is made with `args`, and its object needs no more of them.
    Errors call it by `kind` ("feature scorer") and `what` ("The feature scorer 'fluent'").

  Both raise ValueError as `build_rewards` does. What they build gets no `models`, and nobody saves
  its state: a learned reward, or one that remembers, is a component of its own.
  """
  rewards: Callable[[Mapping[str, Any]], RewardSet]
  reward: Callable[[str, str, str, Mapping[str, Any]], tuple[Callable[..., Any], Mapping[str, Any]]]
