"""Turns the samples of a step into numbers. Imported as `rl_reason.rewards`.

A reward is a function (or an object) of all samples of a step, group by group. It returns one
number per sample or, where it judges steps or tokens, `StepRewards`: a row of numbers per sample
and the token at which each is paid. It never sees the policy or the config.

    answers.py           compares an answer with the reference: as text, as a number, as mathematics
    format.py            looks at the form of a completion and at its length
    groups.py            compares a completion with the others of its group
    judge.py             asks a language model: a rating, or the better of two
    turns.py             asks a language model about each turn of an episode
    learned.py           asks trained reward models
    features.py          learns from preferences how to weigh other rewards
    familiarity.py       finds which completions a reward model knows
    registry.py          lists what a config may name: REWARDS and TRANSFORMS
    composition/         makes one reward of several: weights, gates, transforms, trust, monitors

A config's `rewards` section becomes a set of them in composition/build.py. A user's own reward is
named by its dotted path, `package.module:function`.
"""

if __name__ == "rewards":
  raise ImportError(
      "This folder is the package rl_reason.rewards: write `from rl_reason import rewards`. The"
      " bare name `rewards` would give every module in it a second copy, and would clash with any"
      " other package called rewards.")
