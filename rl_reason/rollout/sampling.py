"""Draws one token per row from logits, and computes how likely the token was."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Says how completions are drawn. Filters apply in this order, as in Hugging Face `generate`.

  max_tokens: length limit of a completion; a completion that it cuts is marked truncated.
  temperature: number that divides the logits; 0 takes the most likely token.
  top_k: keep the k most likely tokens (ties kept); 0 keeps all.
  top_p: keep the fewest tokens whose probability reaches this, in (0, 1] (Holtzman et al. 2020,
    arXiv:1904.09751).
  min_p: keep tokens that are at least this fraction as likely as the likeliest, in [0, 1) (Nguyen
    et al. 2024, arXiv:2407.01082).
  stop_strings: texts that end a completion. The tokens that spell one are part of the completion;
    the completion's text ends before them.
  """
  max_tokens: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  stop_strings: tuple[str, ...] = ()

  def __post_init__(self):
    if self.max_tokens < 1:
      raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
    if self.temperature < 0:
      raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}.")
    if self.top_k < 0:
      raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}.")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps all tokens.")
    if not 0 <= self.min_p < 1:
      raise ValueError(f"min_p must be in [0, 1), got {self.min_p}; 0 keeps all tokens.")
    if "" in self.stop_strings:
      raise ValueError(
          "stop_strings holds an empty string, which every completion contains: remove it.")

  @property
  def filters(self) -> bool:
    """Tells whether tokens are excluded, so that the policy's own distribution is not sampled."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def filter_logits(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
  """Divides logits by the temperature, and sets those that the filters exclude to −inf."""
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    kth = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
    logits = jnp.where(logits >= kth, logits, -jnp.inf)
  if sampling.top_p < 1:
    descending = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # Mass of the likelier tokens.
    smallest = jnp.min(
        jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits >= smallest, logits, -jnp.inf)
  if sampling.min_p > 0:  # log(p) >= log(likeliest p) + log(min_p), without a softmax.
    likeliest = logits.max(axis=-1, keepdims=True)
    logits = jnp.where(logits >= likeliest + jnp.log(sampling.min_p), logits, -jnp.inf)
  return logits


def sample_tokens(
    logits: Float[Array, "B V"], uniforms: Float[Array, "B"], sampling: Sampling,
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
  """Draws one token per row by inverting the cumulative distribution at `uniforms` in [0, 1).

  It costs as much as a softmax, for two reasons. It needs one uniform number per row, where Gumbel
  noise would need one per vocabulary entry. And it searches in two levels, first among sums of
  blocks and then in one block, where a running sum over 49k entries costs eight softmaxes on a CPU.

  Args:
    logits: logits of the next token.
    uniforms: uniform random numbers in [0, 1), one per row.
    sampling: temperature and filters.

  Returns: (tokens, their log-probability under the sampled distribution [0 when greedy], the same
    at temperature 1 without filters), in nats.
  """
  def logprob(logits, tokens):
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  if sampling.temperature == 0:
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, jnp.zeros(tokens.shape, jnp.float32), logprob(logits, tokens)
  filtered = filter_logits(logits, sampling)
  tokens = _invert(filtered, uniforms)
  behaviour = logprob(filtered, tokens)
  # Without temperature and filters both log-probabilities are the same: one softmax is saved.
  plain = sampling.temperature == 1 and not sampling.filters
  return tokens, behaviour, behaviour if plain else logprob(logits, tokens)


def _invert(
    logits: Float[Array, "B V"], uniforms: Float[Array, "B"], block: int = 128,
) -> Int[Array, "B"]:
  """Finds the token at which the running sum of probabilities passes `uniforms` of the whole."""
  b, v = logits.shape
  mass = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  mass = jnp.pad(mass, ((0, 0), (0, -v % block))).reshape(b, -1, block)
  # First the block, by the sums of all blocks; then the token inside of it.
  sums = mass.sum(axis=-1)
  chosen, rest = _first_passed(sums, uniforms * sums.sum(axis=-1))
  inside, _ = _first_passed(jnp.take_along_axis(mass, chosen[:, None, None], axis=1)[:, 0], rest)
  return chosen * block + inside


def _first_passed(
    mass: Float[Array, "B N"], threshold: Float[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Finds the first entry whose running sum exceeds the threshold.

  A parallel sum rounds each entry in its own way. So the running sum may rise by an ulp where there
  is no mass, and it may fall. Therefore only entries with some mass are ever chosen, and the
  highest of their sums counts as the whole.

  Returns: (the index of the entry, what is left of the threshold there).
  """
  cumulative = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0.0)
  total = cumulative.max(axis=-1)
  threshold = jnp.minimum(threshold, jnp.nextafter(total, jnp.zeros_like(total)))
  index = jnp.argmax(cumulative > threshold[:, None], axis=-1).astype(jnp.int32)
  before = jnp.take_along_axis(cumulative - mass, index[:, None], axis=-1)[:, 0]
  return index, jnp.maximum(threshold - before, 0.0)
