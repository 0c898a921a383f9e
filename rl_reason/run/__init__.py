"""Builds a run from its config: the checked sections, the context and the work directory."""
