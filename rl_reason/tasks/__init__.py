"""Datasets and generators: where prompts, their references and worked solutions come from.

A source is any object with a length and random access to `Problem`s (to `Comparison`s, for stages that train reward
models), deterministic and picklable. A user's own data needs a function that returns one, named in a config by its
dotted path `package.module:function`.
"""

