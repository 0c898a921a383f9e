"""Describes what a decoder is made of as data; families differ in these fields and nowhere else."""

import dataclasses
import math
import os
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Says how rotary frequencies are stretched beyond the trained context.

  kind: "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595);
    "llama3" leaves high frequencies alone, divides low ones by `factor` and blends between
    (Llama 3.1, `rope_scaling` in its config.json).
  factor: at least 1.
  low_frequency_factor: "llama3" only; frequencies that turn fewer times than this within
    `original_max_positions` are divided.
  high_frequency_factor: "llama3" only; frequencies that turn more often than this are kept.
  original_max_positions: "llama3" only; the context length before stretching, in tokens.
  """
  kind: Literal["linear", "llama3"]
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Describes a decoder-only transformer.

  It is Llama/SmolLM2, Mistral, Qwen2.5, Qwen3 (dense) or Gemma 3 (text), or your own.

  vocab_size: tokens that the model reads and predicts.
  width: features of the residual stream.
  num_layers: number of blocks.
  num_heads: query heads per layer.
  num_kv_heads: key and value heads per layer; divides `num_heads`.
  head_dim: features of a head; even.
  mlp_hidden: features inside the feed-forward block.
  family: the Hugging Face `model_type` that the model is saved as: llama, mistral, qwen2, qwen3
    or gemma3_text. The mathematics never looks at it.
  max_positions: the context length the weights were made for, in tokens.
  activation: of the gated feed-forward block; "gelu" is the tanh approximation.
  norm_eps: added to the mean square in RMS norms.
  norm_plus_one: RMS norms multiply by (1 + scale) in place of scale (Gemma).
  post_norms: also normalise what attention and feed-forward add to the residual stream (Gemma).
  qk_norm: RMS-normalise queries and keys per head (Qwen3, Gemma 3).
  qkv_bias: the query, key and value projections have biases (Qwen2.5).
  output_bias: attention's output projection has a bias.
  mlp_bias: the feed-forward projections have biases.
  tied_embeddings: one matrix reads tokens and predicts them.
  embedding_scale: multiplies the token embeddings (Gemma: sqrt(width)).
  rope_theta: base of the rotary frequencies of global layers.
  rope_scaling: stretching of the rotary frequencies of global layers; None: none.
  local_rope_theta: base in sliding-window layers, never scaled; None: as in global layers.
  sliding_window: keys seen by a local layer, the query's own included; None where no layer is
    local.
  local_layers: per layer, whether its attention is local; () means that none is local, or all
    where sliding_window is set.
  attention_scale: multiplies q·k; None means head_dim ** -0.5.
  attention_softcap: c of c * tanh(x / c) on attention scores; None: not capped.
  logit_softcap: c of c * tanh(x / c) on logits; None: not capped.
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
    for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                 "mlp_hidden"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
      # JAX indexes an axis with 32 bits; a stack of layers is built by as many operations.
      most = 10_000 if name == "num_layers" else 2 ** 31 - 1
      if getattr(self, name) > most:
        raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}.")
    # Shapes that no tensor can have.
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: each key head"
          " serves an equal number of query heads.")
    if self.head_dim % 2:
      raise ValueError(
          f"head_dim must be even, got {self.head_dim}: rotary embedding turns pairs of features.")
    # Unknown or contradictory settings.
    if self.activation not in ("silu", "gelu"):
      raise ValueError(f"Unknown activation {self.activation!r}: silu or gelu.")
    if self.local_layers and len(self.local_layers) != self.num_layers:
      raise ValueError(
          f"local_layers names {len(self.local_layers)} layers, the model has {self.num_layers}.")
    if any(self.local_layers) and self.sliding_window is None:
      raise ValueError(
          "local_layers asks for sliding windows but sliding_window is None: set its length.")

  @property
  def layer_is_local(self) -> tuple[bool, ...]:
    """Says per layer whether its attention is local."""
    return self.local_layers or (self.sliding_window is not None,) * self.num_layers

  @property
  def query_scale(self) -> float:
    """Returns what multiplies q·k."""
    return self.head_dim ** -0.5 if self.attention_scale is None else self.attention_scale


def from_file(file: str | os.PathLike, **fields: Any) -> ModelConfig:
  """Makes the ModelConfig that a file describes; errors name the file too."""
  try:
    return ModelConfig(**fields)
  except ValueError as error:
    raise ValueError(
        f"{file} describes a model that cannot be: {error} Download it again, or correct"
        " it.") from error


def small(
    vocab_size: int, *, width: int, num_layers: int, num_heads: int = 0, max_positions: int = 1024,
) -> ModelConfig:
  """Describes a Llama-shaped decoder for models trained from nothing.

  The feed-forward block is 8/3 as wide as the model, rounded up to a multiple of 16.

  Args:
    vocab_size: tokens of the tokenizer.
    width: features of the residual stream.
    num_layers: number of blocks.
    num_heads: must divide `width`; 0: width // 32 of them, but at least one.
    max_positions: context length in tokens.
  """
  heads = num_heads or max(1, width // 32)
  if width % heads:
    raise ValueError(f"num_heads={heads} must divide width={width}.")
  return ModelConfig(
      vocab_size=vocab_size, width=width, num_layers=num_layers, num_heads=heads,
      num_kv_heads=heads, head_dim=width // heads,
      mlp_hidden=math.ceil(width * 8 / 3 / 16) * 16, max_positions=max_positions)
