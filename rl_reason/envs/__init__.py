"""Environments that answer a policy's turns (rollout.episodes): a config's `environment.source` names one of these.

Each is a function that returns one: a function from episodes to the text that answers the last turn of each, or None.
"""

