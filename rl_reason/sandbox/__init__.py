"""Runs slow and unsafe checks in worker processes, which import neither JAX nor rl_reason.rewards."""
