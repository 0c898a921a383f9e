"""Measures policies on problems, and reward models on rows of known quality."""
