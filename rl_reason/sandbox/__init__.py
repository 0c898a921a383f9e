"""Runs slow and unsafe checks in worker processes, which import neither JAX nor rl_reason.rewards.

    pool.py              worker processes with deadlines: items -> results, in order
    answer_text.py       a completion -> the text of its answer
    answer_form.py       that text, written in one way
    answer_reading.py    that text -> statements with sides
    answer_numbers.py    numbers that are written out: whether they are equal
    answer_expressions.py    LaTeX -> values, and whether they are equal
    answer_values.py     whether two answers that were read are equal
    patterns.py          whether a regular expression matches
    math_answers.py      the function of the workers that check mathematics, by all of these and
                         math-verify
"""
