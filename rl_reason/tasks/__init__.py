"""Gives the problems: prompts, their references and worked solutions, from files and generators.

A source is any object with a length and random access to `Problem`s (to `Comparison`s, for stages
that train reward models), deterministic and picklable. A user's own data needs a function that
returns one, named in a config by its dotted path `package.module:function`.

In the order of reading:

    registry.py          lists what a config may name, and loads a task's two halves
    files.py             problems from JSON Lines and Parquet
    preferences.py       comparisons and step labels from files, in the public formats
    prepared.py          data sets in TFDS format; prepare.py writes them
    gsm_symbolic.py      word problems instantiated from templates
    worlds/              generated tasks, each with an answer that is known
    draws.py             random draws that these share
    pipeline.py          the order in which a run sees its problems
"""
