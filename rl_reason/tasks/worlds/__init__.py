"""Generates tasks whose truth is known."""
