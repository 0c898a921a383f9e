"""Scores texts with finished models."""
