"""Imported as `rl_reason.rewards`; docs/reading.md says what is in which file.

A reward is a function (or an object) of all samples of a step, group by group. It returns one number per sample or,
where it judges steps or tokens, `StepRewards`: a row of numbers per sample and the token at which each is paid.
Weights, transforms, gates and totals treat both alike (composition.py); `token_rewards` lays them out per token for
whoever gives credit so.
"""

if __name__ == "rewards":
  raise ImportError(
      "This folder is the package rl_reason.rewards: write `from rl_reason import rewards`. The bare name `rewards` would give every"
      " module in it a second copy, and would clash with any other package called rewards.")
