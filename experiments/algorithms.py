"""The policy-gradient family on the quickstart's task: each algorithm is a choice of fields, from the same warm start.

    python -m rl_reason.claims experiments/algorithms.py      # All of them, over three seeds.
    python -m rl_reason.train --config=experiments/algorithms.py:gspo --workdir=runs/gspo [--config.seed=1]
    ... --config=experiments/algorithms.py:gspo-tiny          # Seconds.

All see the same number of prompts and completions a step (dapo: at least), half of the quickstart's, take its learning rate
and, where their paper does not ask for another number, two updates per rollout. What else differs is in ALGORITHMS, with
the papers' numbers where they have a scale of their own (clip bounds, λ, weights of KL penalties) and their ratios where
not (the share of the length that is a buffer, the critic's learning rate over the policy's). None was tuned here.

Result: not measured yet.
"""

from ml_collections import ConfigDict

from rl_reason.experiments import quickstart

ALGORITHMS = {
    # Shao et al. 2024, arXiv:2402.03300: the group's mean and deviation, KL (k3) in the loss, a mean per completion.
    "grpo": dict(
        baseline="group_mean", normalise="group_std", mean_over="sequence", kl_in="loss", kl_estimator="k3", kl_coef=0.04),
    # Liu et al. 2025, arXiv:2503.20783: no deviation, no length in the denominator, no KL.
    "dr_grpo": dict(baseline="group_mean", normalise="none", mean_over="fixed_length"),
    # Ahmadian et al. 2024, arXiv:2402.14740: a completion is one action, so its tokens' log-probabilities are summed; KL in
    # the reward.
    "rloo": dict(
        baseline="leave_one_out", normalise="none", mean_over="fixed_length", kl_in="reward", kl_estimator="k1", kl_coef=0.03),
    # Hu et al. 2025, arXiv:2501.03262: KL in each token's reward, no group; all tokens' advantages whitened together.
    "reinforce_pp": dict(
        returns="to_go", baseline="none", normalise="token_whiten", kl_in="reward", kl_estimator="k1", kl_coef=0.01),
    # The same paper's form for several completions of a prompt: their mean as baseline, KL (k2) in the loss.
    "reinforce_pp_baseline": dict(
        baseline="group_mean", normalise="token_whiten", kl_in="loss", kl_estimator="k2", kl_coef=0.01),
    # Yu et al. 2025, arXiv:2503.14476: a higher upper bound, a mean over tokens, groups all right or all wrong resampled,
    # the last fifth of the length penalised. Its rewards are 1 and -1, so beside 1 and 0 the penalty weighs half.
    "dapo": dict(
        baseline="group_mean", normalise="group_std", mean_over="token", clip_high=0.28, equal_groups="resample",
        equal_by="exact_answer", rewards=dict(exact_answer=1.0, overlong=dict(
            function="overlong_penalty", weight=0.5, args=dict(limit_tokens=22, buffer_tokens=4)))),
    # Zheng et al. 2025, arXiv:2507.18071: one ratio a completion, four updates per rollout.
    "gspo": dict(
        objective="gspo", baseline="group_mean", normalise="group_std", mean_over="sequence", clip_low=3e-4, clip_high=4e-4,
        minibatches=4),
    # MiniMax 2025, arXiv:2506.13585: a bounded weight in place of clipping, below unbounded; the paper does not say how
    # far above, here weights up to 5.
    "cispo": dict(
        objective="cispo", baseline="group_mean", normalise="group_std", mean_over="token", clip_low=1.0, clip_high=4.0),
    # Zhao et al. 2025, arXiv:2507.20673: the geometric mean of ratios, each within e^-0.4 and e^0.4.
    "gmpo": dict(
        objective="gmpo", baseline="group_mean", normalise="group_std", mean_over="sequence", clip_low=0.4, clip_high=0.4),
    # Schulman et al. 2017, arXiv:1707.06347, as in Ouyang et al. 2022, arXiv:2203.02155: KL in each token's reward.
    "ppo_separate": dict(
        baseline="none", normalise="token_whiten", kl_in="reward", kl_estimator="k1", kl_coef=0.02, critic=dict(
            trunk="separate", lam=0.95, value_clip=0.2, optimizer=dict(
                learning_rate=2e-3, schedule="linear", warmup_steps=5))),
    # The same with V-trace (Espeholt et al. 2018, arXiv:1802.01561, its bounds of 1) for rollouts that are one update old.
    "ppo_vtrace": dict(
        baseline="none", normalise="token_whiten", kl_in="reward", kl_estimator="k1", kl_coef=0.02, staleness=1,
        importance_cap=1.0, critic=dict(trunk="separate", vtrace=True, lam=0.95, value_clip=0.2, optimizer=dict(
            learning_rate=2e-3, schedule="linear", warmup_steps=5))),
    "ppo_shared": dict(
        baseline="none", normalise="token_whiten", kl_in="reward", kl_estimator="k1", kl_coef=0.02, critic=dict(
            trunk="shared", lam=0.95, value_clip=0.2, value_coef=0.1)),
}


_STEPS_TO = dict(function="steps_to", args=dict(name="eval/pass@1", stage="rl", target=0.6))
CLAIMS = {
    "no_critic": dict(
        title="GRPO needs no critic to learn as much as PPO",
        sentence="GRPO foregoes the critic model, instead estimating the baseline from group scores.",
        paper="Shao et al. 2024, arXiv:2402.03300",
        arms={name: dict(config=name) for name in ALGORITHMS}, treatment="grpo", baseline="ppo_separate",
        metric=dict(function="last", args=dict(name="eval/pass@1", stage="rl")),
        # Not worse by more than two points in a hundred.
        direction="higher", threshold=-0.02, matched=("environment_calls",),
        also={"before": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "pass@8": dict(function="last", args=dict(name="eval/pass@8", stage="rl")), "steps to 60 %": _STEPS_TO,
              "KL, nats a token": dict(function="last", args=dict(name="kl", stage="rl", points=5)),
              "seconds": dict(function="total", args=dict(name="time/step", stage="rl"))}),
}


def get_config(argument: str = "grpo") -> ConfigDict:
  algorithm, _, size = argument.partition("-")
  if algorithm not in ALGORITHMS or size not in ("", "tiny"):
    raise ValueError(f"Unknown algorithm {argument!r}: use one of :{', :'.join(ALGORITHMS)}, or one of them with -tiny.")
  c = quickstart.get_config(size or "full")
  rl = c.rl
  if not size:  # Half of the quickstart's rollouts, for there are many runs, and a curve.
    c.evaluation.every, rl.prompts_per_step = 10, 32
  # What the algorithms choose from here on, where they do not say otherwise.
  rl.update(clip_low=0.2, clip_high=0.2, kl_coef=0.0)
  for name, value in ALGORITHMS[algorithm].items():
    rl[name] = ConfigDict(value) if isinstance(value, dict) else value
  return c
