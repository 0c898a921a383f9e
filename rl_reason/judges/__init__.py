"""Asks models in words, and reads what they answer.

    asked.py             asks a model and keeps its answers: what judges and critiques share
    chat_endpoint.py     the model is behind an OpenAI-compatible server
    verdicts.py          text -> a verdict or a rating
    critiques.py         what is right and wrong in a response, for a reward model to read

The rewards that are made of them are rewards/judge.py and rewards/turns.py.
"""
