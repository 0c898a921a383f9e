"""Makes a policy a function from prompts to texts, or to log-probabilities of labels.

A generative judge asks for both.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from rl_reason.arrays import length_mask
from rl_reason.batches.prompts import encode_prompts, pad_rows
from rl_reason.config import naming
from rl_reason.models import policy
from rl_reason.models.config import ModelConfig
from rl_reason.models.sources import POLICIES
from rl_reason.models.tokenizer import Tokenizer
from rl_reason.rollout.generate import generate
from rl_reason.rollout.samples import make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.types import Params, Problem


class PolicyTexts:
  """Maps prompts to completions, or prompts and labels to the labels' log-probabilities.

  Without labels a call returns texts. With labels it returns log-probabilities [N, labels] of each
  label's text after the prompt. A generative judge asks for both.

  config: architecture of the policy.
  params: parameters of the policy.
  tokenizer: tokenizer of the policy.
  sampling: how tokens are drawn.
  chat: prompts are user messages for the tokenizer's chat template.
  max_prompt_tokens: a longer prompt gives None (or NaN), like one that failed: a judge then
    abstains.
  batch_size: prompts at once.
  seed: seed of the samples, together with a batch's prompts, so that a repeated call gives the same
    texts.
  dtype: dtype of the computation.
  """

  def __init__(
      self, config: ModelConfig, params: Params, tokenizer: Tokenizer, sampling: Sampling, *,
      chat: bool = False, max_prompt_tokens: int = 2048, batch_size: int = 16, seed: int = 0,
      dtype: jnp.dtype = jnp.float32):
    if batch_size < 1 or max_prompt_tokens < 1:
      raise ValueError(f"batch_size and max_prompt_tokens must be at least 1, got {batch_size} and"
                       f" {max_prompt_tokens}.")
    if max_prompt_tokens + sampling.max_tokens > config.max_positions:
      raise ValueError(
          f"max_prompt_tokens={max_prompt_tokens} and sampling.max_tokens={sampling.max_tokens} are"
          f" more than the policy's context of {config.max_positions} tokens: lower one.")
    self.config, self.params, self.tokenizer, self.sampling = config, params, tokenizer, sampling
    self.chat, self.max_prompt_tokens, self.batch_size = chat, max_prompt_tokens, batch_size
    self.seed, self.dtype = seed, dtype
    self._logprobs = jax.jit(functools.partial(policy.completion_logprobs, config, dtype=dtype))

  def __call__(self, prompts: Sequence[str], labels: Sequence[str] | None = None) -> list[Any]:
    problems = [
        Problem(prompt=({"role": "user", "content": p},) if self.chat else p, reference="")
        for p in prompts]
    lengths = [len(self.tokenizer.encode_prompt(p.prompt)) for p in problems]
    # Prompts of similar length go together: a batch is padded to its longest prompt.
    fitting = sorted((i for i, n in enumerate(lengths) if 0 < n <= self.max_prompt_tokens),
                     key=lengths.__getitem__)
    results: list[Any] = [None if labels is None else [np.nan] * len(labels) for _ in prompts]
    for start in range(0, len(fitting), self.batch_size):
      places = fitting[start:start + self.batch_size]
      # The last batch is filled up with its first prompt, so that each length has one program.
      batch = [problems[i] for i in places + places[:1] * (self.batch_size - len(places))]
      encoded = encode_prompts(
          batch, self.tokenizer, max_tokens=self.max_prompt_tokens, bucket=64)
      found = self._texts(batch, encoded) if labels is None else self._labels(encoded, labels)
      for i, result in zip(places, found):
        results[i] = result
    return results

  def _texts(self, batch, encoded):
    """Samples a completion of each prompt; the key depends on the seed and the batch's prompts."""
    drawn = zlib.crc32(repr([p.prompt for p in batch]).encode("utf-8", "surrogatepass"))
    completions = generate(
        self.config, self.params, encoded, self.sampling, group_size=1,
        stop_ids=self.tokenizer.stop_ids,
        rng=jax.random.fold_in(jax.random.key(self.seed), drawn),
        decode_text=self.tokenizer.decode, dtype=self.dtype)
    samples = make_samples(
        batch, completions, self.tokenizer, stop_strings=self.sampling.stop_strings)
    return [s.completion for s in samples]

  def _labels(self, encoded, labels):
    """Computes the log-probability of each label after each prompt, nats."""
    ids = [self.tokenizer.encode(label) for label in labels]
    if not all(ids):
      raise ValueError(f"labels must be texts of one token or more, got {list(labels)}.")
    sizes = np.array([len(row) for row in ids], np.int32)
    # Each prompt is repeated for all labels: prompt p, label l is row p * labels + l.
    rows, lengths = (
        np.tile(pad_rows(ids, sizes.max()), (self.batch_size, 1)), np.tile(sizes, self.batch_size))
    logprobs, _ = self._logprobs(self.params, encoded, rows, lengths)
    own = length_mask(lengths, sizes.max())
    return np.where(own, logprobs, 0.0).sum(axis=1, dtype=np.float64).reshape(
        -1, len(labels)).tolist()


def policy_texts(
    *, source: str, args: Mapping[str, Any], sampling: Mapping[str, Any], seed: int = 0,
    **keywords,
) -> PolicyTexts:
  """Makes the PolicyTexts of a policy by its name.

  Args:
    source: name of the policy in models.sources.POLICIES.
    args: arguments of the source.
    sampling: fields of rollout.sampling.Sampling.
    seed: seed of the policy's parameters and of the samples.
    keywords: further arguments of PolicyTexts.
  """
  make = naming.find("policy source", source, POLICIES)
  naming.check_arguments(f"The policy source {source!r}", make, args)
  naming.check_arguments("sampling", Sampling, sampling)
  made = make(**args)
  params = made.make_params(jax.random.key(seed), None)
  return PolicyTexts(
      made.config, params, made.tokenizer, Sampling(**sampling), seed=seed, **keywords)
