"""The arithmetic and the traffic that a GRPO step cannot do without, and the time they take at a machine's limits.

What counts, for P prompts and their B completions (prompts are read once, not once per completion):

    generation    the prompts forward; each completion's tokens but its last forward, one at a time
    reference     the same tokens forward
    update        the same tokens forward and backward, which is twice as much again

A token costs 2 operations per weight of the layers, and 4 · heads · head_dim per layer and token that it attends to
(scores and weighted values, causal). The vocabulary is only projected to where a completion token is predicted; the first
one's prediction is shared by the group. Everything else (norms, softmax, sampling, the optimizer) is left out: it is less
than a hundredth.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

FLOAT_BYTES = 4  # All systems compute in float32.


@dataclasses.dataclass(frozen=True)
class Work:
  """Of one step. prefill, decode: generation's operations; reference, update: theirs. decode_bytes: read from memory."""
  prefill: float
  decode: float
  reference: float
  update: float
  decode_bytes: float

  @property
  def flops(self) -> float:
    return self.prefill + self.decode + self.reference + self.update


def layer_weights(model: Mapping[str, Any]) -> int:
  """Weights of all layers' matrices."""
  heads = 2 * model["num_heads"] + 2 * model["num_kv_heads"]
  return model["num_layers"] * model["width"] * (heads * model["head_dim"] + 3 * model["mlp_hidden"])


def step_work(model: Mapping[str, Any], *, prompts: int, prompt_tokens: int, lengths: Sequence[float],
              longest: float | None = None) -> Work:
  """A step's Work.

  lengths: of the completions, all prompts' together, EOS included. longest: of them (it says how often decoding reads the
    weights), where `lengths` are only means.
  """
  weights, vocabulary = layer_weights(model), model["vocab_size"] * model["width"]
  attention = 4 * model["num_layers"] * model["num_heads"] * model["head_dim"]  # Per pair of tokens.

  def causal(n):
    return n * (n + 1) / 2
  prefill = prompts * (2 * weights * prompt_tokens + attention * causal(prompt_tokens) + 2 * vocabulary)
  read = [n - 1 for n in lengths]  # Nothing follows the last token.
  decode = sum(2 * (weights + vocabulary) * n + attention * (prompt_tokens * n + causal(n)) for n in read)
  # While it decodes: all weights at each position, the keys and values of each prompt once per position, each
  # completion's own once per token.
  steps = (longest or max(lengths)) - 1
  keys_values = 2 * model["num_layers"] * model["num_kv_heads"] * model["head_dim"]
  read_values = (weights + vocabulary) * steps + keys_values * (prompts * prompt_tokens * steps + sum(map(causal, read)))
  forward = prefill + decode
  return Work(prefill, decode, reference=forward, update=3 * forward, decode_bytes=FLOAT_BYTES * read_values)


def bound_seconds(work: Work, *, flops_per_second: float, bytes_per_second: float) -> float:
  """The roofline's time: everything at the matrix-product rate, decoding at memory's if that is slower (Williams et al.
  2009, doi:10.1145/1498765.1498785)."""
  decode = max(work.decode / flops_per_second, work.decode_bytes / bytes_per_second)
  return decode + (work.prefill + work.reference + work.update) / flops_per_second


# Peaks by jax.Device.device_kind: operations per second of float32 matrix products, which XLA computes in TF32 on these unless
# told otherwise, and bytes per second. From NVIDIA's data sheets, columns SXM: "A100 Tensor Core GPU" (TF32 156 teraFLOPS,
# 312 with sparsity; 1,555 and 2,039 GB/s), "H100 Tensor Core GPU" (TF32 989 with sparsity, so half of 989.4 as in the Hopper
# white paper; 3.35 TB/s) and "H200 Tensor Core GPU" (the same; 4.8 TB/s). PCIe and NVL cards have other names and numbers. A
# device that is not here gets no absolute figures.
DEVICE_PEAKS = {
    "NVIDIA A100-SXM4-40GB": (156e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": (156e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": (494.7e12, 3.35e12),
    "NVIDIA H200": (494.7e12, 4.8e12),
}
