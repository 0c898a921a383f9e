"""Holds environments, which answer a policy's turns (rollout.environment).

A config names one of them in `environment.source` (registry).
"""
