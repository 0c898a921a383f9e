"""Asks models in words: prompts for a judge, its verdicts, its critiques."""
