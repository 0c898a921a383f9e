"""Imported as `rl_reason.rewards`; see the README's map for what is in each file."""

if __name__ == "rewards":
  raise ImportError(
      "This folder is the package rl_reason.rewards: write `from rl_reason import rewards`. The bare name `rewards` would give every"
      " module in it a second copy, and would clash with any other package called rewards.")
