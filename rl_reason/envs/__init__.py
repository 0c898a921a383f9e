"""Holds environments, which answer a policy's turns (rollout.environment).

A config's `environment.source` names one of them (registry).
"""
