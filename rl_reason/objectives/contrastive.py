"""Computes losses that keep two views of a response together, and different responses apart.

The losses are on features before a reward model's head. Two views are two passes with different
dropout masks. Wang et al. 2024 ("Secrets of RLHF, part II"), arXiv:2401.06080.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_reason.config.checks import at_least, one_of

KINDS, FEATURES = ("simcse", "swav"), ("pairs", "difference")
# A share of the greatest entropy: below it all samples fall to one prototype.
COLLAPSED = 0.02


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """What is added to a reward model's loss: weight times a loss on the features of each pair.

  The reward model's own loss is then the mean over both views. The other samples are those of the
  same microbatch. Its dropout masks are also those of the update's other microbatches.

  kind: "simcse" or "swav".
  on: "pairs" takes the features of both responses. "difference" takes those of the better response
    less those of the worse one, and the opposite.
  weight: β, at least 0.
  temperature: τ, above 0.
  prototypes: K of swav, at least 2; 0 with simcse.
  dropout: rate on each layer's two branches, in (0, 1).
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
      raise ValueError(
          f"contrastive.temperature={self.temperature} must be above 0, and"
          f" contrastive.dropout={self.dropout}"
          " between 0 and 1: without dropout both views are the same.")
    if (self.prototypes >= 2) != (self.kind == "swav"):
      raise ValueError(
          f"contrastive.prototypes={self.prototypes} with kind={self.kind!r}: swav assigns samples"
          " to 2 prototypes or more, and simcse has none. Set it accordingly.")


def samples(states: Float[Array, "P 2 E"], on: str) -> Float[Array, "2P E"]:
  """Returns the samples: both responses of each pair, or their differences both ways."""
  if on == "difference":
    difference = states[:, 0] - states[:, 1]
    states = jnp.stack([difference, -difference], axis=1)
  return states.reshape(-1, states.shape[-1])


def loss(
    section: Contrastive, one: Float[Array, "2P E"], other: Float[Array, "2P E"],
    prototypes: Float[Array, "K E"] | None,
) -> tuple[Float[Array, "P"], dict[str, Float[Array, "P"]]]:
  """Computes the loss of the samples' two views.

  Args:
    section: which loss, and its temperature.
    one: features of the samples in one view.
    other: features of the same samples in the other view.
    prototypes: swav's; None with simcse.

  Returns: (the loss of each pair, the mean over its two samples; what is logged of each pair).
  """
  if section.kind == "simcse":
    each, told = simcse(one, other, temperature=section.temperature), {}
  else:
    each, entropy = swav(one, other, prototypes, temperature=section.temperature)
    told = {"contrastive/entropy": jnp.broadcast_to(entropy, each.shape[0] // 2)}
  return each.reshape(-1, 2).mean(1), told


def simcse(
    one: Float[Array, "N E"], other: Float[Array, "N E"], *, temperature: float,
) -> Float[Array, "N"]:
  """Computes SimCSE's loss in nats (Gao et al. 2021, arXiv:2104.08821, eq. 4).

      loss_i = −log exp(cos(h_i, h'_i) / τ) / Σ_j exp(cos(h_i, h'_j) / τ)
  """
  similarity = _unit(one) @ _unit(other).T / temperature
  return jax.nn.logsumexp(similarity, axis=1) - jnp.diagonal(similarity)


def swav(
    one: Float[Array, "N E"], other: Float[Array, "N E"], prototypes: Float[Array, "K E"],
    *, temperature: float,
) -> tuple[Float[Array, "N"], Float[Array, ""]]:
  """Computes SwAV's loss: each view's cluster is predicted from the other view.

      p = softmax(h · c / τ)        loss = −Σ_k q_k log p'_k − Σ_k q'_k log p_k

  The target q is the balanced assignment (sinkhorn) of the same similarities. As in the paper,
  features and prototypes are first scaled to length 1.

  Returns: (the loss of each sample, nats; the entropy of the average prediction, as a share of
    log K).
  Source: Caron et al. 2020, arXiv:2006.09882, eq. 2.
  """
  similarity = [_unit(h) @ _unit(prototypes).T / temperature for h in (one, other)]
  logs = [jax.nn.log_softmax(s, axis=1) for s in similarity]
  targets = [jax.lax.stop_gradient(sinkhorn(s)) for s in similarity]
  loss = -(targets[0] * logs[1]).sum(1) - (targets[1] * logs[0]).sum(1)
  # Low where all samples are predicted to fall to few prototypes (COLLAPSED).
  mean = jnp.exp(jnp.concatenate(logs)).mean(0)
  return loss, -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30))) / jnp.log(prototypes.shape[0])


def sinkhorn(logits: Float[Array, "N K"], iterations: int = 3) -> Float[Array, "N K"]:
  """Returns rows of probabilities that use all K prototypes alike.

  exp(logits) is scaled alternately to equal columns and to rows that sum to 1.
  """
  # In logarithms: exp(similarity / τ) would overflow at small temperatures.
  logits = jax.nn.log_softmax(logits, axis=1)
  for _ in range(iterations):
    logits = jax.nn.log_softmax(logits, axis=0)
    logits = jax.nn.log_softmax(logits, axis=1)
  return jnp.exp(logits)


def _unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
  # float32, and bounded away from 0: a row of zeros would have a NaN gradient.
  x = x.astype(jnp.float32)
  return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
