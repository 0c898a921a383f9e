"""Builds a run from its config: the checked sections, the context, the work directory."""
