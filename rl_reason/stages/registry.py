"""Lists the kinds of stages that a config may name.
"""

from types import ModuleType

from rl_reason.stages import preference, sft, voting
from rl_reason.stages.policy_gradient import stage
from rl_reason.stages.reward_model import stage as stage_lib
from rl_reason.stages.self_training import stage as self_training_stage

STAGES: dict[str, ModuleType] = {
    "policy_gradient": stage, "preference": preference, "reward_model": stage_lib,
    "self_training": self_training_stage, "sft": sft, "voting": voting}
