"""Answers a policy's turns, in episodes (rollout.episodes).

A config names one in `environment.source`: a name in registry.py, or a dotted path. It is a
function that returns a function: from episodes to the text that answers the last turn of each, or
None where the episode is over.
"""
