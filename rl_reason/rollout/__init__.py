"""Sampling: prompts -> completions with their log-probabilities. `generate` is the entrance."""

__all__ = ["Completions", "Rollout", "Sampling", "check_sampling", "encode_prompts", "generate",
           "make_samples", "play"]
