"""Lists the environments that a config may name."""

from rl_reason.envs import lookup, search

ENVIRONMENTS = {
    "lookup": lookup.lookup,  # Documents of the task `lookup`, some of them beside the point.
    "search": search.search,  # Passages of a retrieval server.
}
