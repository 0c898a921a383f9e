"""Executable papers: an experiment states its claim, and a command measures over several seeds whether it holds here.

declaration.py (what a claim says) -> runs.py and worker.py (every arm over the seeds, side by side) -> measures.py (a run's
folder -> one number) -> judgement.py (numbers -> verdict) -> results.py (the record, the table, what is stale).
dependencies.py says which code a run depends on, definition by definition: syntax.py, definitions.py and sources.py read it.
canary.py rehearses the arms, to see whether rewritten code computes the same. The command is __main__.py.
"""
