"""Holds the mathematics of learning: advantages, losses, preferences. Pure functions."""
