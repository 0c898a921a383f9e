"""The fields of a policy_gradient stage.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from rl_reason.config.checks import at_least, one_of
from rl_reason.learner.optimizers import Optimizer
from rl_reason.models import transformer
from rl_reason.models.lora import LoRA
from rl_reason.objectives import advantages, losses
from rl_reason.rewards.composition.monitors import build_monitors
from rl_reason.rollout.sampling import Sampling
from rl_reason.stages.policy_gradient import critic as critic_lib
from rl_reason.stages.policy_gradient.critic import Critic
from rl_reason.stages.policy_gradient.token_reward import TokenReward

EQUAL_GROUPS = ("keep", "skip", "resample")


@dataclasses.dataclass(frozen=True)
class Config:
  """num_steps: rollouts. prompts_per_step, group_size: completions per rollout are their product.

  slots: completions decoded at once, at least group_size: bounds the memory of the KV cache (rollout.generate); 0: all.
  sampling: rollout.sampling.Sampling; its filters must be off, for the update knows only the whole distribution.
  rewards: rewards.build_rewards.
  returns: what a token is credited with. "total": its completion's whole reward. "to_go": what is rewarded from it on,
    each further token discounted by `discount`, as rewards of steps need it. With a critic it is advantages.gae's or
    vtrace's, by its lam.
  baseline: a key of advantages.BASELINES. normalise: a key of advantages.NORMALISERS or TOKEN_NORMALISERS.
  equal_groups: what becomes of groups whose rewards are all equal. "keep": learnt from like others. "skip": their tokens
    have no part in the loss. "resample": skipped, and replaced by groups of further prompts, in at most `max_resamples`
    rounds of prompts_per_step (stages.groups.resample). Advantages are normalised over all groups of the batch.
  equal_by: the reward whose values are compared, e.g. the verifier's beside a length penalty; "": the total.
  keep_by: the reward that says which completions are learnt from, those with more than 0.5 (its weight may be 0); the tokens
    of others have no part in the loss. Baselines see all, normalisers of tokens only these. "": from all.
  page_tokens: what is sampled is kept in pages of so many tokens (rollout.generate); 0: in one room for all slots.
  epochs: passes over each rollout. minibatches: updates per pass. microbatches: parts of a minibatch gone through one by
    one, to save memory; 0: as many as this machine is fastest with (packing.num_passes). Groups are never split.
  objective: a key of losses.OBJECTIVES. clip_low, clip_high: its bounds: of the probability ratio, 1 - clip_low and
    1 + clip_high, or as the objective says.
  kl_coef: weight of KL(policy || reference), the reference being the policy this stage starts from; 0 for none.
  kl_estimator: k1, k2 or k3. kl_in: "loss", or "reward": subtracted from each token's reward.
  negative_weight: a factor of advantages below 0.
  critic: a Critic, whose values take the place of the baseline; None for none.
  token_reward: a TokenReward, which says how much of a completion's advantage each of its tokens gets; None: all of it.
  entropy_coef: weight of the entropy bonus. mean_over: token, sequence or fixed_length (losses.token_weights).
  remat: models.transformer.REMAT_POLICIES.
  lora: as in stages.sft; a critic's own trunk is trained whole.
  staleness: 0, or 1: the next rollout is sampled while this one's update runs, from parameters one step old
    (stages.ahead). It takes memory for a second copy of the policy; or devices of its own, config.RolloutMesh.
  importance_cap: C of truncated importance sampling between trainer and sampler (losses.truncated_importance), for
    rollouts that the trainer's policy would not have drawn just so; 0 for none: the ratio to the sampler is then all.
    With critic.vtrace it bounds what V-trace makes of the same ratio.
  int8_rollouts: sample with the layers' matrices rounded to 8 bits. Needs importance_cap.
  start: the stage whose policy it starts from (run.starting_points).
  monitors: signs of a gamed reward, rewards.monitors.build_monitors.
  """
  kind: str
  num_steps: int
  prompts_per_step: int
  group_size: int
  sampling: Sampling
  rewards: Mapping[str, Any]
  optimizer: Optimizer
  returns: str = "total"
  discount: float = 1.0
  baseline: str = "group_mean"
  normalise: str = "none"
  equal_groups: str = "keep"
  equal_by: str = ""
  keep_by: str = ""
  max_resamples: int = 10
  negative_weight: float = 1.0
  critic: Critic | None = None
  token_reward: TokenReward | None = None
  slots: int = 0
  page_tokens: int = 0
  epochs: int = 1
  minibatches: int = 1
  microbatches: int = 0
  objective: str = "clipped"
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_coef: float = 0.0
  kl_estimator: str = "k3"
  kl_in: str = "loss"
  entropy_coef: float = 0.0
  mean_over: str = "token"
  remat: str = "none"
  lora: LoRA = LoRA()
  staleness: int = 0
  importance_cap: float = 0.0
  int8_rollouts: bool = False
  start: str = ""
  monitors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps, prompts_per_step=self.prompts_per_step, group_size=self.group_size,
             epochs=self.epochs, minibatches=self.minibatches, max_resamples=self.max_resamples)
    at_least(0, microbatches=self.microbatches, slots=self.slots, page_tokens=self.page_tokens, clip_low=self.clip_low,
             clip_high=self.clip_high, kl_coef=self.kl_coef, entropy_coef=self.entropy_coef,
             importance_cap=self.importance_cap, discount=self.discount, negative_weight=self.negative_weight)
    build_monitors(self.monitors, rewards=self.rewards)
    one_of(advantages.RETURNS, returns=self.returns)
    one_of(advantages.BASELINES, baseline=self.baseline)
    one_of({**advantages.NORMALISERS, **advantages.TOKEN_NORMALISERS}, normalise=self.normalise)
    one_of(EQUAL_GROUPS, equal_groups=self.equal_groups)
    one_of(losses.OBJECTIVES, objective=self.objective)
    one_of(losses.KL_ESTIMATORS, kl_estimator=self.kl_estimator)
    one_of(("loss", "reward"), kl_in=self.kl_in)
    one_of(losses.REDUCTIONS, mean_over=self.mean_over)
    one_of(transformer.REMAT_POLICIES, remat=self.remat)
    if self.staleness not in (0, 1):
      raise ValueError("staleness must be 0 (sample, then update) or 1 (sample the next rollout during the update), got"
                       f" {self.staleness}: older rollouts are not kept. Set 1.")
    if self.int8_rollouts and not self.importance_cap:
      raise ValueError("int8_rollouts samples from another distribution than the trainer's, and importance_cap is 0: set"
                       " importance_cap=2.0 or so, to weigh the samples.")
    if self.clip_low > 1:
      raise ValueError(f"clip_low must be in [0, 1], got {self.clip_low}: a probability ratio is never below 0.")
    if self.equal_by:
      one_of(self.rewards, **{"equal_by (a reward)": self.equal_by})
    if self.keep_by:
      one_of(self.rewards, **{"keep_by (a reward)": self.keep_by})
    self._check_credit()
    if self.group_size < 2 and (self.baseline != "none" or self.normalise == "group_std"):
      raise ValueError(
          f"group_size must be at least 2 with baseline={self.baseline!r} and normalise={self.normalise!r}, got"
          f" {self.group_size}: with one completion per prompt the group mean is that completion's own reward, so every"
          " advantage is zero. Raise group_size, or set baseline='none'.")
    if self.slots and self.slots < self.group_size:
      raise ValueError(f"slots must be at least group_size={self.group_size}, got {self.slots}: a group shares its prompt's"
                       " keys and values. Raise slots, or set 0 for as many as there are completions.")
    if self.prompts_per_step % (self.minibatches * max(1, self.microbatches)):
      raise ValueError(
          f"minibatches * microbatches = {self.minibatches} * {max(1, self.microbatches)} must divide prompts_per_step="
          f"{self.prompts_per_step}: they are made of whole groups.")
    if self.sampling.filters or self.sampling.temperature == 0:
      raise ValueError(
          f"Training samples need temperature above 0 and no top_k, top_p or min_p, got {self.sampling}: the update"
          " compares with the probability of the whole distribution, so every ratio would be off.")

  @property
  def companion(self) -> critic_lib.Companion | None:
    """What learns beside the policy."""
    return self.critic or self.token_reward

  def _check_credit(self):
    """Which estimates of advantages go together."""
    to_go = self.critic is not None or self.returns == "to_go"
    if self.discount > 1:
      raise ValueError(f"discount must be in [0, 1], got {self.discount}: above 1 later rewards count more and more.")
    if self.discount < 1 and not to_go:
      raise ValueError(f"discount={self.discount} is for returns='to_go' and critics, and returns='total' gives all tokens of"
                       " a completion the same: set returns='to_go', or discount=1.0.")
    if to_go and self.normalise == "batch_whiten":
      raise ValueError("normalise='batch_whiten' is over completions, and with returns='to_go' or a critic advantages differ"
                       " from token to token: set normalise='token_whiten'.")
    if self.critic is not None:
      if self.baseline != "none":
        raise ValueError(f"A critic is the baseline, and baseline={self.baseline!r} would be a second one: set"
                         " baseline='none'.")
      one_of(advantages.TOKEN_NORMALISERS, **{"normalise (with a critic)": self.normalise})
      if self.critic.vtrace and not self.importance_cap:
        raise ValueError("critic.vtrace weighs tokens by the trainer's policy over the sampler's, and importance_cap, its"
                         " bound, is 0: set importance_cap=1.0, or vtrace=False.")
    if self.companion is not None and self.companion.warmup_steps >= self.num_steps:
      name = "critic" if self.critic else "token_reward"
      raise ValueError(f"{name}.warmup_steps={self.companion.warmup_steps} of num_steps={self.num_steps}: the policy would"
                       " never learn. Lower it, or raise num_steps.")
    if self.token_reward is not None:
      one_of(self.rewards, **{"token_reward.outcome (a reward)": self.token_reward.outcome})
      if self.critic is not None or self.returns != "total":
        raise ValueError("token_reward shares a completion's advantage out among its tokens, and a critic or"
                         f" returns={self.returns!r} gives each token its own: set critic=None and returns='total', or"
                         " token_reward=None.")
    if self.normalise == "per_sign" and self.mean_over != "token":
      raise ValueError(f"normalise='per_sign' makes the mean over tokens one over the tokens of each sign, and mean_over="
                       f"{self.mean_over!r} takes another mean: set mean_over='token'.")
    if self.prompts_per_step * self.group_size < 2 and self.normalise == "batch_std":
      raise ValueError("normalise='batch_std' divides by the deviation of a step's rewards, and a step has one completion:"
                       " raise prompts_per_step or group_size, or set normalise='none'.")
    if self.equal_groups != "keep" and self.group_size < 2:
      raise ValueError(f"equal_groups={self.equal_groups!r} compares a group's completions, and group_size is"
                       f" {self.group_size}: every group would be left out. Raise group_size, or set equal_groups='keep'.")
