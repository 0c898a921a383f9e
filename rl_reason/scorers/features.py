"""Trains a reward model that sees a few named numbers of a response, and not its text.

It is a small network, for few preferences.

    # [N F] features of both sides of N pairs; NaN where missing.
    model = fit(better, worse, names=("faithful", "brief"))
    model.scores(features)                # [M F] -> [M]
    importance(model, better, worse)      # {name: accuracy that is lost without it}

Source: Nath et al. 2024, arXiv:2402.15473.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class FeatureModel:
  """A network that scores responses by their features.

  names: of the features that it reads, in order.
  used: places of the features that vary.
  mean: of the used features in training.
  std: of the used features in training.
  params: of the network.
  low: the lowest score in training.
  high: the highest score in training. Scores are kept between the two, so that a policy gains
    nothing by features that nobody has judged.
  """
  names: tuple[str, ...]
  used: tuple[int, ...]
  mean: Float[np.ndarray, "U"]
  std: Float[np.ndarray, "U"]
  params: Mapping[str, Float[np.ndarray, "..."]]
  low: float = -np.inf
  high: float = np.inf

  def inputs(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N U"]:
    """Standardises features; a missing one (NaN) becomes the training mean."""
    given = (np.asarray(features, np.float64)[:, list(self.used)] - self.mean) / self.std
    return np.nan_to_num(given, nan=0.0).astype(np.float32)

  def scores(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N"]:
    """Scores responses by their features."""
    return np.clip(np.asarray(_apply(self.params, self.inputs(features))), self.low, self.high)

  def slopes(self, features: Float[np.ndarray, "N F"]) -> dict[str, float]:
    """Computes per feature the mean change of the score with it, where it is read.

    Changes are in score units per unit of the feature; the sign says what the model likes.
    """
    one = jax.vmap(jax.grad(lambda x: _apply(self.params, x[None])[0]))
    found = np.asarray(one(self.inputs(features))).mean(axis=0) / self.std
    return {self.names[i]: float(x) for i, x in zip(self.used, found)}


def fit(
    better: Float[np.ndarray, "N F"], worse: Float[np.ndarray, "N F"], *, names: Sequence[str],
    soft_labels: Float[np.ndarray, "N"] | None = None, hidden: int = 32, steps: int = 200,
    learning_rate: float = 1e-2, decay: float = 1e-4, seed: int = 0, most_missing: float = 0.1,
    monotone: bool = False,
) -> FeatureModel:
  """Fits a network, F - hidden - 1 with tanh, by Bradley-Terry's loss plus decay · |w|².

      loss = −mean log σ(φ(f_better) − φ(f_worse))

  or with soft labels p and 1 − p of the two sides. Adam sees the whole batch; the step is kept that
  is best on a tenth of the pairs held back.

  Args:
    better: features of each pair's better side; NaN where missing.
    worse: features of its worse side.
    names: of the features.
    soft_labels: probability in [0, 1] that `better` is better; 0.5 is a tie. None: 1.
    hidden: width of the hidden layer.
    steps: of Adam.
    learning_rate: of Adam.
    decay: weight of |w|².
    seed: of the start, and of the pairs that are held back.
    most_missing: a feature that is missing more often, as a share of responses, is an error.
    monotone: no weight is below 0, so that more of a feature never lowers the score, even where
      there was no pair. It is for features of which more is always better. After Adam's step the
      nearest such weights are taken.

  Raises: ValueError for shapes that differ, fewer than 20 pairs, features that are missing too
    often, and if no feature varies.
  Source: the paper states neither width nor optimizer; both are our guess.
  """
  better, worse = np.asarray(better, np.float64), np.asarray(worse, np.float64)
  names, count = tuple(names), len(better)
  if better.shape != worse.shape or better.shape != (count, len(names)):
    raise ValueError(
        f"better and worse must both be [pairs, {len(names)}], got {better.shape} and"
        f" {worse.shape}.")
  if count < 20:
    raise ValueError(
        f"{count} pairs are too few to learn from and to hold a tenth back: give 20 at least.")
  # Scales and missing features are those of all responses, whichever side they are.
  both = np.concatenate([better, worse])
  missing = np.isnan(both).mean(axis=0)
  if (missing > most_missing).any():
    worst = int(missing.argmax())
    raise ValueError(
        f"The feature {names[worst]!r} is missing in {missing[worst]:.0%} of the responses, more"
        f" than {most_missing:.0%}: look at its scorer, or leave it out.")
  # Only features that vary are read.
  mean, std = np.nanmean(both, axis=0), np.nanstd(both, axis=0)
  used = tuple(int(i) for i in np.flatnonzero(std > 1e-9))
  if not used:
    raise ValueError(
        f"None of the features {', '.join(names)} varies over the pairs: there is nothing to learn"
        " from.")
  if len(used) < len(names):
    logging.warning(
        "Features without any variation are left out:"
        " %s.", ", ".join(n for i, n in enumerate(names) if i not in used))
  model = FeatureModel(names, used, mean[list(used)], std[list(used)], {})
  # A tenth of the pairs is held back, to choose the step by.
  order = np.random.default_rng(seed).permutation(count)
  held, own = order[:max(2, count // 10)], order[max(2, count // 10):]
  labels = np.ones(count) if soft_labels is None else np.asarray(soft_labels, np.float64)
  key = jax.random.key(seed)
  first = jax.random.normal(key, (len(used), hidden)) / np.sqrt(len(used))
  start = {"hidden": jnp.abs(first) if monotone else first, "bias": jnp.zeros(hidden),
           "output": jnp.zeros(hidden)}
  pairs = [tuple(jnp.asarray(x[rows], jnp.float32)
                 for x in (model.inputs(better), model.inputs(worse), labels))
           for rows in (own, held)]
  params = jax.tree.map(np.asarray, _fit(start, *pairs, steps, learning_rate, decay, monotone))
  model = dataclasses.replace(model, params=params)
  # The range of scores in training bounds those of a policy's responses.
  seen = model.scores(both)
  return dataclasses.replace(model, low=float(seen.min()), high=float(seen.max()))


def accuracy(
    model: FeatureModel, better: Float[np.ndarray, "N F"], worse: Float[np.ndarray, "N F"],
) -> float:
  """Computes the share of pairs whose better side scores higher; equal scores count a half."""
  gaps = model.scores(better) - model.scores(worse)
  return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def importance(
    model: FeatureModel, better: Float[np.ndarray, "N F"], worse: Float[np.ndarray, "N F"], *,
    seed: int = 0,
) -> dict[str, float]:
  """Computes by how much accuracy falls when a feature's values are shuffled over all responses.

  This is permutation importance, one number per feature.
  """
  whole, count, rng = accuracy(model, better, worse), len(better), np.random.default_rng(seed)
  found = {}
  for i in model.used:
    shuffled = np.concatenate([better, worse]).astype(np.float64)
    shuffled[:, i] = rng.permutation(shuffled[:, i])
    found[model.names[i]] = whole - accuracy(model, shuffled[:count], shuffled[count:])
  return found


def _apply(params, x):
  return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["output"]


def _loss(params, pairs, decay):
  better, worse, labels = pairs
  gap = _apply(params, better) - _apply(params, worse)
  bce = optax.sigmoid_binary_cross_entropy(gap, labels).mean()
  return bce + decay * sum(jnp.square(w).sum() for w in params.values())


@functools.partial(jax.jit, static_argnames=("steps", "learning_rate", "decay", "monotone"))
def _fit(start, own, held, steps, learning_rate, decay, monotone):
  optimizer = optax.adam(learning_rate)

  def step(carry, _):
    params, state, best, lowest = carry
    updates, state = optimizer.update(jax.grad(_loss)(params, own, decay), state, params)
    params = optax.apply_updates(params, updates)
    # The nearest weights that are not below 0; a bias may be.
    if monotone:
      params = {k: v if k == "bias" else jnp.maximum(v, 0.0) for k, v in params.items()}
    # The parameters of the step that is best on the pairs held back are kept.
    now = _loss(params, held, 0.0)
    best = jax.tree.map(lambda new, old: jnp.where(now < lowest, new, old), params, best)
    return (params, state, best, jnp.minimum(now, lowest)), None
  (_, _, best, _), _ = jax.lax.scan(
      step, (start, optimizer.init(start), start, jnp.inf), length=steps)
  return best
