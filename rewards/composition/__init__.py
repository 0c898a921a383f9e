"""Makes one reward of several. In the order of reading:

    build.py             a config's `rewards` section -> a RewardSet, checked
    component.py         one reward of the set: its function, weight, transforms, gate and trust
    reward_set.py        samples -> each component's values -> their weighted sum
    scoring.py           the same, while further samples are still being drawn
    outputs.py           checks what rewards and transforms return
    abstention.py        what counts where a reward could not judge
    steps.py             rewards of a completion's steps
    episodes.py          what a reward sees of an episode: the policy's own words, or all
    shaping.py           transforms that keep nothing
    normalisers.py       transforms that remember earlier values, or that look at a group
    schedules.py         weights that change with the training step
    trust.py             how far a group's samples support a component
    builder.py           what a reward that is made of rewards builds them with
    monitors.py          watches a run for signs that the policy games its rewards
"""
