"""Runs slow and unsafe checks in worker processes, which import neither JAX nor rl_reason.rewards.

    pool.py              worker processes with deadlines: items -> results, in order
    answer_text.py       a completion -> the text of its answer
    answer_form.py       that text, written in one way
    answer_reading.py    that text -> statements with sides
    answer_values.py     whether what was read is equal
    math_answers.py      the function of the workers that check mathematics, by all of these and
                         math-verify
"""
