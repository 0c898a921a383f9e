"""Imported as `rl_reason.rewards`; see the README's map for what is in each file."""

if __name__ == "rewards":
  raise ImportError(
      "This folder is the package rl_reason.rewards: write `from rl_reason import rewards`. The bare name `rewards` would give every"
      " module in it a second copy, and would clash with any other package called rewards.")

from rl_reason.rewards.answers import (after_marker, exact_answer, last_boxed, last_number, math_answer, number_answer,
                                       number_value)
from rl_reason.rewards.composition import build_rewards, Component, RewardSet, Scoring
from rl_reason.rewards.format import answer_marker_format, boxed_format, overlong_penalty, pattern_format, think_format
from rl_reason.rewards.judge import PairwiseJudge, PointwiseJudge

# The list and the registry: what a config may name. Each function's first docstring line gives its range.
REWARDS = {
    "exact_answer": exact_answer,
    "number_answer": number_answer,
    "math_answer": math_answer,
    "boxed_format": boxed_format,
    "answer_marker_format": answer_marker_format,
    "think_format": think_format,
    "pattern_format": pattern_format,
    "overlong_penalty": overlong_penalty,
    "judge_rating": PointwiseJudge,
    "judge_preference": PairwiseJudge,
}
