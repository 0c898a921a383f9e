"""Trains a policy on the best of its own completions."""
