"""Sampling: prompts -> completions with their log-probabilities. `generate` is the entrance."""

from rl_reason.rollout.episodes import Environment, Episode, play
from rl_reason.rollout.generate import Completions, generate
from rl_reason.rollout.prompts import check_sampling, encode_prompts, make_samples
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.sampling import Sampling

__all__ = ["Completions", "Environment", "Episode", "Rollout", "Sampling", "check_sampling", "encode_prompts", "generate",
           "make_samples", "play"]
