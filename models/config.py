"""What a decoder is made of, as data: the families differ in these fields and nowhere else."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Stretching of rotary frequencies beyond the trained context.

  kind: "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595); "llama3" leaves high
    frequencies alone, divides low ones by `factor` and blends between (Llama 3.1, `rope_scaling` in its config.json).
  factor: at least 1.
  low_frequency_factor, high_frequency_factor, original_max_positions: "llama3" only.
  """
  kind: Literal["linear", "llama3"]
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer: Llama/SmolLM2, Mistral, Qwen2.5, Qwen3 (dense) or Gemma 3 (text), or your own.

  family: the Hugging Face `model_type` that the model is saved as: llama, mistral, qwen2, qwen3 or gemma3_text. The
    mathematics never looks at it.
  width, num_layers, num_heads, num_kv_heads, head_dim, mlp_hidden, vocab_size: sizes. `num_kv_heads` divides `num_heads`.
  max_positions: the context length the weights were made for.
  activation: of the gated feed-forward block; "gelu" is the tanh approximation.
  norm_eps, norm_plus_one: RMS norm; Gemma multiplies by (1 + scale).
  post_norms: also normalise what attention and feed-forward add to the residual stream (Gemma).
  qk_norm: RMS-normalise queries and keys per head (Qwen3, Gemma 3).
  qkv_bias, output_bias, mlp_bias: biases on those projections (Qwen2.5: the first only).
  tied_embeddings: one matrix reads tokens and predicts them.
  embedding_scale: multiplies the token embeddings (Gemma: sqrt(width)).
  rope_theta, rope_scaling: of global layers. local_rope_theta: of sliding-window layers, never scaled.
  sliding_window: keys seen by a local layer, the query's own included; None where no layer is local.
  local_layers: per layer, whether its attention is local; () means none, or all when sliding_window is set.
  attention_scale: multiplies q·k; None means head_dim ** -0.5.
  attention_softcap, logit_softcap: c * tanh(x / c) on scores and logits; None means none.
  """
  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_hidden: int
  family: str = "llama"
  max_positions: int = 4096
  activation: Literal["silu", "gelu"] = "silu"
  norm_eps: float = 1e-6
  norm_plus_one: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  tied_embeddings: bool = True
  embedding_scale: float = 1.0
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  sliding_window: int | None = None
  local_layers: tuple[bool, ...] = ()
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None

  def __post_init__(self):
    for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_hidden"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: each key head serves"
                       " an equal number of query heads.")
    if self.head_dim % 2:
      raise ValueError(f"head_dim must be even, got {self.head_dim}: rotary embedding turns pairs of features.")
    if self.activation not in ("silu", "gelu"):
      raise ValueError(f"Unknown activation {self.activation!r}: silu or gelu.")
    if self.local_layers and len(self.local_layers) != self.num_layers:
      raise ValueError(f"local_layers names {len(self.local_layers)} layers, the model has {self.num_layers}.")
    if any(self.local_layers) and self.sliding_window is None:
      raise ValueError("local_layers asks for sliding windows but sliding_window is None: set its length.")

  @property
  def layer_is_local(self) -> tuple[bool, ...]:
    return self.local_layers or (self.sliding_window is not None,) * self.num_layers

  @property
  def query_scale(self) -> float:
    return self.head_dim ** -0.5 if self.attention_scale is None else self.attention_scale


def small(vocab_size: int, *, width: int, num_layers: int, num_heads: int = 0, max_positions: int = 1024) -> ModelConfig:
  """A Llama-shaped decoder for models trained from nothing: heads of up to 32 features, feed-forward 8/3 as wide."""
  heads = num_heads or max(1, width // 32)
  if width % heads:
    raise ValueError(f"num_heads={heads} must divide width={width}.")
  return ModelConfig(
      vocab_size=vocab_size, width=width, num_layers=num_layers, num_heads=heads, num_kv_heads=heads,
      head_dim=width // heads, mlp_hidden=math.ceil(width * 8 / 3 / 16) * 16, max_positions=max_positions)
