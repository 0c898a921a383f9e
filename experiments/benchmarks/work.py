"""Counts the arithmetic and memory traffic that a GRPO step needs, and the least time they take.

The time is that of a machine at its limits.

What counts, for P prompts and their B completions (prompts are read once, not once per completion):

    generation    the prompts forward; each completion's tokens except the last, one at a time
    reference     the same tokens forward
    update        the same tokens forward and backward; backward costs twice as much as forward

A token costs 2 operations per weight of the layers, and 4 · heads · head_dim per layer and token
that it attends to (scores and weighted values, causal). The projection to the vocabulary is counted
only where a completion token is predicted; the group shares the first token's prediction.
Everything else (norms, softmax, sampling, the optimizer) is left out: it is less than a hundredth.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

FLOAT_BYTES = 4  # All systems compute in float32.


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one step.

  prefill: operations of generation, to read the prompts.
  decode: operations of generation, to sample the tokens.
  reference: operations of the reference policy's forward pass.
  update: operations of the update, forward and backward.
  decode_bytes: bytes that decoding reads from memory.
  """
  prefill: float
  decode: float
  reference: float
  update: float
  decode_bytes: float

  @property
  def flops(self) -> float:
    """All operations of the step."""
    return self.prefill + self.decode + self.reference + self.update


def layer_weights(model: Mapping[str, Any]) -> int:
  """Counts the weights of all layers' matrices."""
  # Query and output have all heads; keys and values have num_kv_heads.
  heads = 2 * model["num_heads"] + 2 * model["num_kv_heads"]
  return model["num_layers"] * model["width"] * (
      heads * model["head_dim"] + 3 * model["mlp_hidden"])


def step_work(
    model: Mapping[str, Any], *, prompts: int, prompt_tokens: int, lengths: Sequence[float],
    longest: float | None = None,
) -> Work:
  """Counts the work of a step.

  Args:
    model: fields of the model's config, as in `shapes`.
    prompts: number of prompts.
    prompt_tokens: length of each prompt, in tokens.
    lengths: lengths of all prompts' completions, in tokens, EOS included.
    longest: the longest length, which says how often decoding reads the weights; needed where
      `lengths` are only means. None: the maximum of `lengths`.
  """
  weights, vocabulary = layer_weights(model), model["vocab_size"] * model["width"]
  # Operations of attention per pair of tokens.
  attention = 4 * model["num_layers"] * model["num_heads"] * model["head_dim"]

  def causal(n):
    return n * (n + 1) / 2

  # The operations. The last token of a completion is never read, as nothing follows it.
  prefill = prompts * (
      2 * weights * prompt_tokens + attention * causal(prompt_tokens) + 2 * vocabulary)
  read = [n - 1 for n in lengths]
  decode = sum(
      2 * (weights + vocabulary) * n + attention * (prompt_tokens * n + causal(n)) for n in read)

  # What decoding reads from memory: all weights at each position, the keys and values of each
  # prompt once per position, and each completion's own once per token.
  steps = (longest or max(lengths)) - 1
  keys_values = 2 * model["num_layers"] * model["num_kv_heads"] * model["head_dim"]
  read_values = (weights + vocabulary) * steps + keys_values * (
      prompts * prompt_tokens * steps + sum(map(causal, read)))
  forward = prefill + decode
  return Work(
      prefill, decode, reference=forward, update=3 * forward,
      decode_bytes=FLOAT_BYTES * read_values)


def bound_seconds(work: Work, *, flops_per_second: float, bytes_per_second: float) -> float:
  """Returns the roofline's time of a step, in seconds.

  Everything runs at the rate of matrix products, and decoding at the memory's rate if that is
  slower.

  Source: Williams et al. 2009, doi:10.1145/1498765.1498785.
  """
  decode = max(work.decode / flops_per_second, work.decode_bytes / bytes_per_second)
  return decode + (work.prefill + work.reference + work.update) / flops_per_second


# Peaks by jax.Device.device_kind: (operations per second of float32 matrix products, bytes per
# second). XLA computes these products in TF32 on these devices by default. The numbers are from
# NVIDIA's data sheets, columns SXM: "A100 Tensor Core GPU" (TF32 156 teraFLOPS, 312 with sparsity;
# 1,555 and 2,039 GB/s), "H100 Tensor Core GPU" (TF32 989 with sparsity, so half of 989.4 as in the
# Hopper white paper; 3.35 TB/s) and "H200 Tensor Core GPU" (the same; 4.8 TB/s). PCIe and NVL cards
# have other names and numbers. A device that is not listed gets no absolute figures.
DEVICE_PEAKS = {
    "NVIDIA A100-SXM4-40GB": (156e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": (156e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": (494.7e12, 3.35e12),
    "NVIDIA H200": (494.7e12, 4.8e12),
}
