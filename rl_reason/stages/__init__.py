"""Ways of training, one file each. A config's stage section names one of these in its field `kind`.

A stage file has a dataclass `Config` (its section's fields, `start` among them), `check(config, context)`, which raises
before any stage runs for what could not work, `memory(config, context)`, what it will need (rl_reason.memory),
`trained(config, context) -> Trained`, the shapes of what it trains, and `build(config, context, params, name) -> Stage`,
params being the policy that it starts from. One whose model can score
has `make_scorer(config, context, name) -> Scorer`, for learned rewards.
"""

from types import ModuleType

from rl_reason.stages import policy_gradient, preference, reward_model, self_training, sft, voting
from rl_reason.stages.base import Context, Stage, Trained

STAGES: dict[str, ModuleType] = {
    "policy_gradient": policy_gradient, "preference": preference, "reward_model": reward_model,
    "self_training": self_training, "sft": sft, "voting": voting}


def trained(context: Context, name: str) -> Trained:
  """What the stage of that name trains."""
  return STAGES[context.sections[name].kind].trained(context.sections[name], context)


def policies_before(context: Context, stage: str) -> list[str]:
  """What another stage's policy may be called there: "initial", and the earlier stages that train one."""
  return ["initial", *(name for name in context.earlier(stage) if trained(context, name).policy is not None)]


__all__ = ["STAGES", "Context", "Stage", "Trained", "policies_before", "trained"]
