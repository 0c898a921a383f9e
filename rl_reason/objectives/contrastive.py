"""Losses that keep two views of a response together and different responses apart: of features, before a reward model's head.

Two views are two passes with other dropout masks. Wang et al. 2024 ("Secrets of RLHF, part II"), arXiv:2401.06080.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_reason.config.checks import at_least, one_of

KINDS, FEATURES = ("simcse", "swav"), ("pairs", "difference")
COLLAPSED = 0.02  # Of the greatest entropy: less than this and all samples fall to one prototype.


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """weight * a loss on the features of each pair, beside the reward model's, which is then the mean over both views.

  kind: "simcse" or "swav". on: "pairs", the features of both responses, or "difference", those of the better one less those of
    the worse, and the opposite.
  weight: β. temperature: τ. prototypes: K of swav. dropout: of each layer's two branches, in (0, 1).
  Other samples are those of the same microbatch, whose masks are those of the update's other microbatches too.
  """
  kind: str
  on: str = "pairs"
  weight: float = 1.0
  temperature: float = 0.05
  prototypes: int = 0
  dropout: float = 0.05

  def __post_init__(self):
    one_of(KINDS, **{"contrastive.kind": self.kind})
    one_of(FEATURES, **{"contrastive.on": self.on})
    at_least(0, **{"contrastive.weight": self.weight})
    if self.temperature <= 0 or not 0 < self.dropout < 1:
      raise ValueError(f"contrastive.temperature={self.temperature} must be above 0, and contrastive.dropout={self.dropout}"
                       " between 0 and 1: without dropout both views are the same.")
    if (self.prototypes >= 2) != (self.kind == "swav"):
      raise ValueError(f"contrastive.prototypes={self.prototypes} with kind={self.kind!r}: swav assigns samples to 2 prototypes"
                       " or more, and simcse has none. Set it accordingly.")


def samples(states: Float[Array, "P 2 E"], on: str) -> Float[Array, "2P E"]:
  """What is told apart: both responses of each pair, or their differences both ways."""
  if on == "difference":
    difference = states[:, 0] - states[:, 1]
    states = jnp.stack([difference, -difference], axis=1)
  return states.reshape(-1, states.shape[-1])


def loss(
    section: Contrastive, one: Float[Array, "2P E"], other: Float[Array, "2P E"], prototypes: Float[Array, "K E"] | None,
) -> tuple[Float[Array, "P"], dict[str, Float[Array, "P"]]]:
  """(the loss of each pair, the mean over its two samples; what is logged of each)."""
  if section.kind == "simcse":
    each, told = simcse(one, other, temperature=section.temperature), {}
  else:
    each, entropy = swav(one, other, prototypes, temperature=section.temperature)
    told = {"contrastive/entropy": jnp.broadcast_to(entropy, each.shape[0] // 2)}
  return each.reshape(-1, 2).mean(1), told


def simcse(one: Float[Array, "N E"], other: Float[Array, "N E"], *, temperature: float) -> Float[Array, "N"]:
  """−log exp(cos(h_i, h'_i) / τ) / Σ_j exp(cos(h_i, h'_j) / τ), nats (Gao et al. 2021, arXiv:2104.08821, eq. 4)."""
  similarity = _unit(one) @ _unit(other).T / temperature
  return jax.nn.logsumexp(similarity, axis=1) - jnp.diagonal(similarity)


def swav(
    one: Float[Array, "N E"], other: Float[Array, "N E"], prototypes: Float[Array, "K E"], *, temperature: float,
) -> tuple[Float[Array, "N"], Float[Array, ""]]:
  """(−Σ_k q_k log p'_k − Σ_k q'_k log p_k, the entropy of what is predicted on average, of log K).

  Each view's cluster is predicted from the other view: p is softmax(h · c / τ) and the target q the balanced assignment of the
  same similarities (Caron et al. 2020, arXiv:2006.09882, eq. 2). As there, features and prototypes are of length 1 first.
  """
  similarity = [_unit(h) @ _unit(prototypes).T / temperature for h in (one, other)]
  logs = [jax.nn.log_softmax(s, axis=1) for s in similarity]
  targets = [jax.lax.stop_gradient(sinkhorn(s)) for s in similarity]
  loss = -(targets[0] * logs[1]).sum(1) - (targets[1] * logs[0]).sum(1)
  mean = jnp.exp(jnp.concatenate(logs)).mean(0)
  return loss, -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30))) / jnp.log(prototypes.shape[0])


def sinkhorn(logits: Float[Array, "N K"], iterations: int = 3) -> Float[Array, "N K"]:
  """Rows of probabilities that use all K alike: exp(logits), scaled by turns to equal columns and to rows that sum to 1."""
  logits = jax.nn.log_softmax(logits, axis=1)
  for _ in range(iterations):
    logits = jax.nn.log_softmax(logits, axis=0)
    logits = jax.nn.log_softmax(logits, axis=1)
  return jnp.exp(logits)


def _unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
  x = x.astype(jnp.float32)
  return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
