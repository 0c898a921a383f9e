"""Trains a policy on rewards of its own completions."""
