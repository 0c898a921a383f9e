"""Lists the environments that a config may name.

    c.environment = dict(source="lookup", args=dict(reliable=1.0), max_turns=4, turn_tokens=6,
                         answer_tokens=5)

An environment has `reset(problem, seed)` and `async step(state, turn)`. rollout.environment says
what they do, and how short an environment can be. Name your own environment by the dotted path of
its class, or of a function that makes it.
"""

from rl_reason.envs import lookup, search

ENVIRONMENTS = {
    "lookup": lookup.Lookup,  # Returns documents of the task `lookup`, some of them unrelated.
    "search": search.Search,  # Returns passages of a retrieval server.
}
