"""Makes papers executable: an experiment states a claim, and a command measures whether it holds.

The order of a measurement, which is made over several seeds:

    declaration.py            what a claim says
    plan.py                   one run for each arm and seed, with shared first stages
    runs.py, worker.py        every run in a process of its own, side by side
    folder.py                 what a run leaves in its folder
    measures.py               a run's folder -> one number
    judgement.py              the numbers -> a verdict
    results.py, figures.py    the record, the table of all claims, what is stale; the figure

dependencies.py lists the code that a run depends on, definition by definition; syntax.py,
definitions.py and sources.py read that code. canary.py rehearses the arms, to see whether rewritten
code computes the same numbers. The command is __main__.py.
"""
