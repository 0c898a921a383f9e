"""Runs slow and unsafe checks in worker processes, which import neither JAX nor rl_reason.rewards.

    pool.py              worker processes with deadlines: items -> results, in order
    math_answers.py      whether two mathematical answers are equal, by math-verify
"""
