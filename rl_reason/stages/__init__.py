"""Ways of training, one file each. A config's stage section names one of these in its field `kind`.

A stage file has a dataclass `Config` (its section's fields), `check(config, context)`, which raises before any stage
runs for what could not work, `memory(config, context)`, what it will need (rl_reason.memory), and
`build(config, context, params, name) -> Stage`.
"""

from types import ModuleType

from rl_reason.stages import policy_gradient, sft
from rl_reason.stages.base import Context, Stage

STAGES: dict[str, ModuleType] = {"policy_gradient": policy_gradient, "sft": sft}

__all__ = ["STAGES", "Context", "Stage"]
