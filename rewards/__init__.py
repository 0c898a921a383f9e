"""Imported as `rl_reason.rewards`; see the README's map for what is in each file.

A reward is a function (or an object) of all samples of a step, group by group. It returns one number per sample or,
where it judges steps or tokens, `StepRewards`: a row of numbers per sample and the token at which each is paid.
Weights, transforms, gates and totals treat both alike (composition.py); `token_rewards` lays them out per token for
whoever gives credit so.
"""

if __name__ == "rewards":
  raise ImportError(
      "This folder is the package rl_reason.rewards: write `from rl_reason import rewards`. The bare name `rewards` would give every"
      " module in it a second copy, and would clash with any other package called rewards.")

from rl_reason.rewards.answers import (after_marker, exact_answer, exact_match, last_boxed, last_number, math_answer, number_answer,
                                       number_value, tail_verdict)
from rl_reason.rewards.build import build_rewards
from rl_reason.rewards.composition import Component, Gate, RewardSet, Scores, Transform, Trust
from rl_reason.rewards.familiarity import Familiarity
from rl_reason.rewards.features import FeatureReward
from rl_reason.rewards.format import answer_marker_format, boxed_format, overlong_penalty, pattern_format, think_format
from rl_reason.rewards.groups import diversity, group_trust, OneOfEach, relative_length
from rl_reason.rewards.judge import PairwiseJudge, PointwiseJudge
from rl_reason.rewards.learned import Learned
from rl_reason.rewards.normalisers import group_mean_std, group_rank, RunningMeanStd, SlidingMinMax
from rl_reason.rewards.schedules import Schedule
from rl_reason.rewards.scoring import Scoring
from rl_reason.rewards.shaping import (
    bounded, check_potential_based, clip, delta, min_form, potential, repetition_returns)
from rl_reason.rewards.steps import step_ends, StepRewards, token_rewards
from rl_reason.rewards.turns import TurnJudge

# The list and the registry: what a config may name. Each function's first docstring line gives its range.
REWARDS = {
    "exact_answer": exact_answer,
    "exact_match": exact_match,
    "number_answer": number_answer,
    "math_answer": math_answer,
    "tail_verdict": tail_verdict,
    "boxed_format": boxed_format,
    "answer_marker_format": answer_marker_format,
    "think_format": think_format,
    "pattern_format": pattern_format,
    "overlong_penalty": overlong_penalty,
    "relative_length": relative_length,
    "diversity": diversity,
    "one_of_each": OneOfEach,
    "judge_rating": PointwiseJudge,
    "judge_preference": PairwiseJudge,
    "turn_judge": TurnJudge,
    "learned": Learned,
    "familiarity": Familiarity,
    "feature_reward": FeatureReward,
}

# What a config may do to a component's values.
TRANSFORMS = {
    "clip": clip,
    "delta": delta,
    "bounded": bounded,
    "potential": potential,
    "min_form": min_form,
    "running_mean_std": RunningMeanStd,
    "sliding_min_max": SlidingMinMax,
    "group_mean_std": group_mean_std,
    "group_rank": group_rank,
}
