"""The policy-gradient family on the quickstart's task: each algorithm is a choice of fields.

    python -m rl_reason.claims experiments/algorithms.py      # All of them, over three seeds.
    python -m rl_reason.train --config=experiments/algorithms.py:gspo --workdir=runs/gspo
    ... [--config.seed=1]
    ... --config=experiments/algorithms.py:gspo-tiny          # Seconds.

All start from the same warm start, see the same number of prompts and completions a step (dapo: at
least), half of the quickstart's, take its learning rate and, where their paper does not ask for
another number, two updates per rollout. What else differs is in ALGORITHMS, with the papers'
numbers where they have a scale of their own (clip bounds, λ, weights of KL penalties) and their
ratios where not (the share of the length that is a buffer, the critic's learning rate over the
policy's). None was tuned here.

Result of the claims' command: held-out pass@1 (200 problems, 8 samples each) after 85 steps of
32 x 8 completions with seeds 0, 1 and 2, which have 0.363, 0.352 and 0.440 before; what was gained,
with its 95 % t interval; seconds of the RL steps on one core of a busy two-core AMD EPYC (commit
2a6da30, 38 min of runs). All are above 0.6 at the first evaluation, after 10 steps:

    algorithm              seed 0, 1, 2        gained                s
    grpo                   0.840 0.889 0.948   0.507 (0.433-0.581)   43
    dr_grpo                0.849 0.894 0.957   0.515 (0.445-0.584)   36
    rloo                   0.852 0.893 0.950   0.513 (0.448-0.578)   33
    reinforce_pp           0.841 0.901 0.966   0.517 (0.427-0.608)   34
    reinforce_pp_baseline  0.848 0.899 0.965   0.519 (0.441-0.597)   38
    dapo                   0.891 0.917 0.979   0.544 (0.497-0.591)   47
    gspo                   0.839 0.896 0.964   0.514 (0.427-0.601)   33
    cispo                  0.844 0.896 0.958   0.514 (0.437-0.591)   32
    gmpo                   0.841 0.886 0.953   0.508 (0.438-0.578)   26
    ppo_separate           0.836 0.891 0.966   0.512 (0.425-0.599)   60
    ppo_vtrace             0.852 0.891 0.962   0.516 (0.453-0.580)   70
    ppo_shared             0.841 0.892 0.955   0.511 (0.434-0.587)   44

Where all learn as much, seeds decide: the order of the algorithms says little, but for dapo, which
samples two to four times as many completions, and for what a critic of its own costs. grpo minus
ppo_separate is -0.005 (-0.033 to 0.023): whether a critic is worth two points is left undecided, as
before ppo_vtrace was among the arms (commit 81a5a8b: -0.011, -0.029 to 0.007). V-trace's steps
learn from rollouts that are one update old, and end no worse.
"""

from ml_collections import ConfigDict

from rl_reason.config import naming
from rl_reason.config.overrides import override
from rl_reason.experiments import quickstart

ALGORITHMS = {
    # Shao et al. 2024, arXiv:2402.03300: the group's mean and deviation, KL (k3) in the loss, a
    # mean per completion.
    "grpo": dict(
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(mean_over="sequence", kl=dict(coef=0.04, estimator="k3", added_to="loss"))),
    # Liu et al. 2025, arXiv:2503.20783: no deviation, no length in the denominator, no KL.
    "dr_grpo": dict(
        credit=dict(baseline="group_mean", normalise="none"),
        objective=dict(mean_over="fixed_length")),
    # Ahmadian et al. 2024, arXiv:2402.14740: a completion is one action, so its tokens'
    # log-probabilities are summed; KL in the reward.
    "rloo": dict(
        credit=dict(baseline="leave_one_out", normalise="none"),
        objective=dict(mean_over="fixed_length",
                       kl=dict(coef=0.03, estimator="k1", added_to="reward"))),
    # Hu et al. 2025, arXiv:2501.03262: KL in each token's reward, no group; all tokens' advantages
    # whitened together.
    "reinforce_pp": dict(
        credit=dict(returns="to_go", baseline="none", normalise="token_whiten"),
        objective=dict(kl=dict(coef=0.01, estimator="k1", added_to="reward"))),
    # The same paper's form for several completions of a prompt: their mean as baseline, KL (k2) in
    # the loss.
    "reinforce_pp_baseline": dict(
        credit=dict(baseline="group_mean", normalise="token_whiten"),
        objective=dict(kl=dict(coef=0.01, estimator="k2", added_to="loss"))),
    # Yu et al. 2025, arXiv:2503.14476: a higher upper bound, a mean over tokens, groups all right
    # or all wrong resampled, the last fifth of the length penalised. Its rewards are 1 and -1, so
    # beside 1 and 0 the penalty weighs half.
    "dapo": dict(
        rewards=dict(exact_answer=1.0, overlong=dict(
            function="overlong_penalty", weight=0.5, args=dict(limit_tokens=22, buffer_tokens=4))),
        credit=dict(baseline="group_mean", normalise="group_std",
                    keep=dict(equal_groups="resample", equal_by="exact_answer")),
        objective=dict(mean_over="token", clip_high=0.28)),
    # Zheng et al. 2025, arXiv:2507.18071: one ratio a completion, four updates per rollout.
    "gspo": dict(
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(kind="gspo", mean_over="sequence", clip_low=3e-4, clip_high=4e-4),
        learner=dict(minibatches=4)),
    # MiniMax 2025, arXiv:2506.13585: a bounded weight in place of clipping, below unbounded; the
    # paper does not say how far above, here weights up to 5.
    "cispo": dict(
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(kind="cispo", mean_over="token", clip_low=1.0, clip_high=4.0)),
    # Zhao et al. 2025, arXiv:2507.20673: the geometric mean of ratios, each within e^-0.4 and
    # e^0.4.
    "gmpo": dict(
        credit=dict(baseline="group_mean", normalise="group_std"),
        objective=dict(kind="gmpo", mean_over="sequence", clip_low=0.4, clip_high=0.4)),
    # Schulman et al. 2017, arXiv:1707.06347, as in Ouyang et al. 2022, arXiv:2203.02155: KL in each
    # token's reward.
    "ppo_separate": dict(
        credit=dict(
            baseline="none", normalise="token_whiten",
            critic=dict(trunk="separate", lam=0.95, value_clip=0.2, optimizer=dict(
                learning_rate=2e-3, schedule="linear", warmup_steps=5))),
        objective=dict(kl=dict(coef=0.02, estimator="k1", added_to="reward"))),
    # The same with V-trace (Espeholt et al. 2018, arXiv:1802.01561, its bounds of 1) for rollouts
    # that are one update old.
    "ppo_vtrace": dict(
        staleness=1,
        credit=dict(
            baseline="none", normalise="token_whiten",
            critic=dict(trunk="separate", vtrace=True, lam=0.95, value_clip=0.2, optimizer=dict(
                learning_rate=2e-3, schedule="linear", warmup_steps=5))),
        objective=dict(importance_cap=1.0,
                       kl=dict(coef=0.02, estimator="k1", added_to="reward"))),
    "ppo_shared": dict(
        credit=dict(
            baseline="none", normalise="token_whiten",
            critic=dict(trunk="shared", lam=0.95, value_clip=0.2, value_coef=0.1)),
        objective=dict(kl=dict(coef=0.02, estimator="k1", added_to="reward"))),
}


_STEPS_TO = dict(function="steps_to", args=dict(name="eval/pass@1", stage="rl", target=0.6))
CLAIMS = {
    "no_critic": dict(
        title="GRPO needs no critic to learn as much as PPO",
        sentence="GRPO foregoes the critic model, instead estimating the baseline from group"
                 " scores.",
        paper="Shao et al. 2024, arXiv:2402.03300",
        arms={name: dict(config=name) for name in ALGORITHMS},
        treatment="grpo", baseline="ppo_separate",
        metric=dict(function="last", args=dict(name="eval/pass@1", stage="rl")),
        # Not worse by more than two points in a hundred.
        direction="higher", threshold=-0.02, matched=("environment_calls",),
        also={"before": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "pass@8": dict(function="last", args=dict(name="eval/pass@8", stage="rl")),
              "steps to 60 %": _STEPS_TO,
              "KL, nats a token": dict(function="last", args=dict(name="kl", stage="rl", points=5)),
              "seconds": dict(function="total", args=dict(name="time/step", stage="rl"))}),
}


def get_config(argument: str = "grpo") -> ConfigDict:
  algorithm, size = naming.arm_and_size(argument, ALGORITHMS)
  c = quickstart.get_config(size or "full")
  # Half of the quickstart's rollouts, for there are many runs, and evaluations for a curve.
  if not size:
    override(c, {"evaluation.every": 10, "rl.rollout.prompts": 32})
  # What the algorithms choose from here on, where they do not say otherwise.
  override(c.rl, {"objective.clip_low": 0.2, "objective.clip_high": 0.2, "objective.kl.coef": 0.0})
  c.rl.update(ALGORITHMS[algorithm])
  return c
