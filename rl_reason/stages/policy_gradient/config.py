"""Holds the fields of a policy_gradient stage, and checks which of them go together."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from rl_reason.config import naming
from rl_reason.config.checks import at_least
from rl_reason.objectives.losses import Objective
from rl_reason.rewards.composition.monitors import build_monitors
from rl_reason.stages.policy_gradient.credit import Credit
from rl_reason.stages.policy_gradient.rows import PolicyUpdate
from rl_reason.stages.rollouts import RolloutSection


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of a policy_gradient stage: policy gradients on rewards.

  An algorithm is a choice of fields: experiments/algorithms.py.

  num_steps: rollouts.
  rewards: what completions earn (rewards.composition.build).
  rollout: how completions are sampled. Filters of its sampling must be off, for the update knows
    only the whole distribution.
  credit: how rewards become advantages.
  objective: what is maximised, and the KL penalty.
  learner: passes over a rollout, memory, LoRA (a critic's own trunk is trained whole), optimizer.
  staleness: 0, or 1: the next rollout is sampled while this one's update runs, from parameters one
    step old (ahead.py). It takes memory for a second copy of the policy, or devices of its own
    (config.rollout_mesh).
  start: the stage whose policy it starts from (run.earlier).
  monitors: signs of a gamed reward (rewards.composition.monitors). One is there without being named,
    `logprob_gap`: how far sampler and trainer may differ (stages.policy_gradient.agreement).
  """
  kind: naming.Name
  num_steps: int
  rewards: Mapping[str, Any]
  rollout: RolloutSection
  learner: PolicyUpdate
  credit: Credit = Credit()
  objective: Objective = Objective()
  staleness: int = 0
  start: str = ""
  monitors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps)
    build_monitors(self.monitors, rewards=self.rewards)
    self.credit.check_rewards(self.rewards)
    self.credit.check_group(self.rollout.group_size, self.rollout.prompts)
    self._check_sampling()
    self._check_objective()
    self._check_parts()
    companion = self.credit.companion
    if companion is not None and companion.warmup_steps >= self.num_steps:
      name = "critic" if self.credit.critic else "token_model"
      raise ValueError(
          f"credit.{name}.warmup_steps={companion.warmup_steps} of num_steps={self.num_steps}: the"
          " policy would never learn. Lower it, or raise num_steps.")

  def _check_sampling(self) -> None:
    """Checks that what is sampled is what the update compares with."""
    sampling = self.rollout.sampling
    if self.staleness not in (0, 1):
      raise ValueError(
          "staleness must be 0 (sample, then update) or 1 (sample the next rollout during the"
          f" update), got {self.staleness}: older rollouts are not kept. Set 1.")
    if self.rollout.int8 and not self.objective.importance_cap:
      raise ValueError(
          "rollout.int8 samples from another distribution than the trainer's, and"
          " objective.importance_cap is 0: set objective.importance_cap=2.0 or so, to weigh the"
          " samples.")
    if sampling.filters or sampling.temperature == 0:
      raise ValueError(
          "Training samples need temperature above 0 and no top_k, top_p or min_p, got"
          f" {sampling}: the update compares with the probability of the whole distribution, so"
          " every ratio would be off.")

  def _check_objective(self) -> None:
    """Checks that the objective can use the estimates of advantages."""
    critic = self.credit.critic
    if critic is not None and critic.vtrace and not self.objective.importance_cap:
      raise ValueError(
          "credit.critic.vtrace weighs tokens by the trainer's policy over the sampler's, and"
          " objective.importance_cap, its bound, is 0: set objective.importance_cap=1.0, or"
          " credit.critic.vtrace=False.")
    if self.credit.normalise == "per_sign" and self.objective.mean_over != "token":
      raise ValueError(
          "credit.normalise='per_sign' makes the mean over tokens one over the tokens of each sign,"
          f" and objective.mean_over={self.objective.mean_over!r} takes another mean: set"
          " objective.mean_over='token'.")

  def _check_parts(self) -> None:
    """Checks that a rollout can be cut into parts of whole groups."""
    update, prompts = self.learner, self.rollout.prompts
    if prompts % (update.minibatches * max(1, update.microbatches)):
      raise ValueError(
          f"minibatches * microbatches = {update.minibatches} * {max(1, update.microbatches)} must"
          f" divide rollout.prompts={prompts}: they are made of whole groups.")
