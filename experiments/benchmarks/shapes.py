"""Holds what is benchmarked, as plain numbers.

Every system reads this file, so it imports nothing that one of them lacks.
"""

SYSTEMS = ("ours", "trl", "tunix")
DEFAULT = ("a", "b", "c", "d")

# 15.7 million parameters, as Qwen3 is built.
SMALL = dict(
    family="qwen3", vocab_size=15360, width=320, num_layers=8, num_heads=8, num_kv_heads=4,
    head_dim=64, mlp_hidden=896, rope_theta=1e6, norm_eps=1e-6, max_positions=1024)
# SmolLM2-135M's shape; random weights cost the same as trained ones.
SMOLLM2 = dict(
    family="llama", vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3,
    head_dim=64, mlp_hidden=1536, rope_theta=1e5, norm_eps=1e-5, max_positions=1024)

TINY = dict(
    SMALL, vocab_size=256, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    mlp_hidden=128)

# prompts: number of prompts in a step.
# completions: number of completions of each prompt.
# prompt_tokens: length of all prompts, in tokens.
# max_tokens: limit of the completions, in tokens.
# stop_half_by: half of the completions end before this share of the limit, each token being as
#   likely to be the last as any other; None: every completion is as long as the limit.
# trl_rows: completions that TRL's trainer takes through the model at once; all parts add up to one
#   update. In (a) 8, 16 and 64 took the same time (20 s on two cores) and 1.9, 3.0 and 6.2 GB.
# tunix_rows: the same for Tunix. In (a) 64 took 21 s and 8.8 GB; 16 took 29 s or more, though not
#   on an idle machine, and 3.8 GB. Other splits of (b) to (d) have not been tried yet.
SHAPES = {
    "a": dict(title="15.7M, 8 x 8, 96 + 64 tokens", model=SMALL, prompts=8, completions=8,
              prompt_tokens=96, max_tokens=64, stop_half_by=None, trl_rows=8, tunix_rows=64),
    "b": dict(title="SmolLM2-135M shape, 4 x 8, 128 + 128 tokens", model=SMOLLM2, prompts=4,
              completions=8, prompt_tokens=128, max_tokens=128, stop_half_by=None, trl_rows=8,
              tunix_rows=8),
    "c": dict(title="15.7M, 4 x 16, 512 + 64 tokens", model=SMALL, prompts=4, completions=16,
              prompt_tokens=512, max_tokens=64, stop_half_by=None, trl_rows=8, tunix_rows=16),
    "d": dict(title="15.7M, 8 x 8, 96 + up to 128 tokens", model=SMALL, prompts=8, completions=8,
              prompt_tokens=96, max_tokens=128, stop_half_by=0.25, trl_rows=8, tunix_rows=64),
    # This one shows that everything runs; its times mean nothing.
    "tiny": dict(title="tiny, 4 x 4, 32 + up to 32 tokens", model=TINY, prompts=4, completions=4,
                 prompt_tokens=32, max_tokens=32, stop_half_by=0.25, trl_rows=16, tunix_rows=8),
}

# The same for all systems: GRPO as first published, with one update per rollout.
LEARNING_RATE, MAX_GRAD_NORM, KL_COEF, CLIP, TEMPERATURE = 1e-6, 1.0, 0.04, 0.2, 1.0
# More steps than any run takes. Prompts for this many steps are written, and each trainer's run is
# this long.
MAX_STEPS = 200


def reward(text: str) -> float:
  """Rewards 1 for an even number of characters, else 0.

  It costs nearly nothing, and is as good as random, so that the advantages are not all zero.
  """
  return float(len(text) % 2 == 0)
