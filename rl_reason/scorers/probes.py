"""Reads what a model's hidden states hold: qualities, and how far a new state is from known ones.

Linear probes read the qualities.

    probe = fit_probe(states, labels, num_classes=3)
    probe_accuracy(probe, heldout_states, heldout_labels)
    known = Centroids.fit(states, {"harmlessness": labels, ...})
    known.distances(new_states)     # The smaller, the more a state resembles known ones.

Source: MRMBench and inference-time probing, 2025, arXiv:2511.12464.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
import optax


def merge_levels(
    levels: Int[np.ndarray, "N"], num_classes: int, *, edges: Sequence[int] | None = None,
) -> Int[np.ndarray, "N"]:
  """Merges ratings into fewer classes of about equal mass.

  Args:
    levels: ratings.
    num_classes: classes to be made.
    edges: num_classes - 1 ratings, rising: class k holds those from edges[k - 1] on. None: those of
      `level_edges`, which decides on `levels` themselves which ratings go together.
  """
  return np.searchsorted(
      np.asarray(level_edges(levels, num_classes) if edges is None else edges), levels,
      side="right")


def level_edges(levels: Int[np.ndarray, "N"], num_classes: int) -> list[int]:
  """Finds where to cut ratings into classes of masses as equal as possible: the most even cut.

  Raises: ValueError where there are fewer different ratings than classes.
  """
  values, counts = np.unique(levels, return_counts=True)
  if len(values) < num_classes:
    raise ValueError(
        f"{len(values)} different ratings cannot be {num_classes} classes: take fewer classes, or"
        " other rows.")
  # Of all cuts of values[start:] the one with the least sum of squared masses.
  share = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()

  @functools.cache
  def best(start, classes):  # (how uneven, edges) of values[start:].
    if classes == 1:
      return (1 - share[start]) ** 2, ()
    options = []
    for at in range(start + 1, len(values) - classes + 2):
      uneven, edges = best(at, classes - 1)
      options.append(((share[at] - share[start]) ** 2 + uneven, (int(values[at]), *edges)))
    return min(options)
  return list(best(0, num_classes)[1])


def fit_probe(
    states: Float[np.ndarray, "N E"], labels: Int[np.ndarray, "N"], *, num_classes: int,
    decay: float = 1e-4, steps: int = 300,
) -> Float[np.ndarray, "E K"]:
  """Fits W of softmax(h W), without a bias, by mean cross-entropy plus decay · |W|².

  Adam sees the whole batch and starts from zero. The model that gave the states does not learn.

  Args:
    states: h, hidden states.
    labels: classes 0 ... num_classes - 1.
    num_classes: K.
    decay: weight of |W|².
    steps: of Adam.

  Raises: ValueError for labels outside 0 ... num_classes - 1, or of one class only.
  Source: it departs from the paper in the optimizer: the paper's one epoch of small steps is for
    states of thousands of numbers. Here the fit converges, so that probes differ by the states
    alone.
  """
  states, labels = jnp.asarray(states, jnp.float32), np.asarray(labels)
  if labels.min() < 0 or labels.max() >= num_classes or len(np.unique(labels)) < 2:
    raise ValueError(
        f"A probe of {num_classes} classes needs labels 0 ... {num_classes - 1} and two classes at"
        f" least, got {np.unique(labels).tolist()}.")
  # States of any model get the same scale, so that one learning rate serves all.
  scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(states))), 1e-6)
  return np.asarray(_fit(states / scale, jnp.asarray(labels), num_classes, decay, steps) / scale)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(states, labels, num_classes, decay, steps):
  optimizer = optax.adam(0.05)

  def loss(w):
    logits = states @ w
    return (optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            + decay * jnp.square(w).sum())

  def step(_, carry):
    w, state = carry
    updates, state = optimizer.update(jax.grad(loss)(w), state, w)
    return optax.apply_updates(w, updates), state
  start = jnp.zeros((states.shape[1], num_classes))
  return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]


def probe_accuracy(
    probe: Float[np.ndarray, "E K"], states: Float[np.ndarray, "N E"], labels: Int[np.ndarray, "N"],
) -> float:
  """Computes the share of states whose likeliest class is their label."""
  return float(np.mean(np.argmax(np.asarray(states) @ probe, axis=-1) == labels))


@dataclasses.dataclass(frozen=True)
class Centroids:
  """Means of known states, one per label of each dimension.

  centers: the means.
  names: the dimension of each.
  """
  centers: Float[np.ndarray, "C E"]
  names: tuple[str, ...]

  @classmethod
  def fit(
      cls, states: Float[np.ndarray, "N E"], labels: Mapping[str, Int[np.ndarray, "N"]],
  ) -> "Centroids":
    """Computes the means.

    Args:
      states: known states.
      labels: for each dimension, a class per state. A dimension of one class is left out with a
        warning.

    Raises: ValueError if no dimension is left.
    """
    centers, names = [], []
    for name, given in labels.items():
      classes = np.unique(given)
      if len(classes) < 2:
        logging.warning(
            "The dimension %r has one class only, %s, and no say in how near a state"
            " is.", name, classes.tolist())
        continue
      centers += [np.asarray(states)[given == c].mean(axis=0) for c in classes]
      names += [name] * len(classes)
    if not centers:
      raise ValueError(
          "No dimension has two classes: there is nothing that a state could be near to. Give more"
          " rows.")
    return cls(np.stack(centers), tuple(names))

  def distances(self, states: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N"]:
    """Computes d_min, from each state to the nearest centre, Euclidean."""
    return self._all(states).min(axis=1)

  def nearest(self, states: Float[np.ndarray, "N E"]) -> list[str]:
    """Names the dimension of the nearest centre: what the reward of this state leans on."""
    return [self.names[i] for i in self._all(states).argmin(axis=1)]

  def _all(self, states):
    return np.linalg.norm(np.asarray(states)[:, None] - self.centers, axis=-1)
