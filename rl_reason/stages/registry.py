"""Lists the kinds of stages that a config may name."""

from rl_reason.config import naming
from rl_reason.stages import preference, sft, voting
from rl_reason.stages.base import Kind
from rl_reason.stages.policy_gradient import stage as policy_gradient
from rl_reason.stages.probe import stage as probe
from rl_reason.stages.reward_model import stage as reward_model
from rl_reason.stages.self_training import stage as self_training

STAGES: dict[str, Kind] = {
    "policy_gradient": policy_gradient.KIND,
    "preference": preference.KIND,
    "probe": probe.KIND,
    "reward_model": reward_model.KIND,
    "self_training": self_training.KIND,
    "sft": sft.KIND,
    "voting": voting.KIND,
}


def find_kind(name: str, path: str = "") -> Kind:
  """Finds a kind of stage: a key of STAGES, or the dotted path of a Kind.

  Args:
    name: of the kind.
    path: of the field that names it, for errors.
  Raises: ValueError that suggests what was meant.
  """
  return naming.find(f"stage kind{f' ({path})' * bool(path)}", name, STAGES, of=Kind)
