"""Lists the rewards and transforms that a config may name.

It imports every file of rewards; only composition/build.py imports it. A reward that is made of
other rewards is handed what builds them (composition/builder.py).
"""

from rl_reason.rewards.answers import (
    exact_answer,
    exact_match,
    math_answer,
    number_answer,
    tail_verdict,
)
from rl_reason.rewards.composition.normalisers import (
    group_mean_std,
    group_rank,
    RunningMeanStd,
    SlidingMinMax,
)
from rl_reason.rewards.composition.shaping import bounded, clip, delta, min_form, potential
from rl_reason.rewards.environment import environment
from rl_reason.rewards.familiarity import Familiarity
from rl_reason.rewards.features import FeatureReward
from rl_reason.rewards.format import (
    answer_marker_format,
    boxed_format,
    overlong_penalty,
    pattern_format,
    think_format,
)
from rl_reason.rewards.groups import diversity, OneOfEach, relative_length
from rl_reason.rewards.judge import PairwiseJudge, PointwiseJudge
from rl_reason.rewards.learned import Learned
from rl_reason.rewards.turns import TurnJudge

# The rewards. Each function's first docstring line gives its range.
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
    "environment": environment,
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
