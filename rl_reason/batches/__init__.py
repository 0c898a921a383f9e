"""Turns rows of text into the token arrays that models read."""
