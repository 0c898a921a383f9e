"""Lists the environments that a config may name.

    c.environment = dict(source="lookup", args=dict(reliable=1.0), max_turns=4, turn_tokens=6,
                         answer_tokens=5)

An environment has `reset(problem, seed)` and `async step(state, turn)`; rollout.environment says
what they do and how short one can be. Your own is named by the dotted path of its class, or of a
function that makes it.
"""

from rl_reason.envs import lookup, search

ENVIRONMENTS = {
    "lookup": lookup.Lookup,  # Documents of the task `lookup`, some of them beside the point.
    "search": search.Search,  # Passages of a retrieval server.
}
