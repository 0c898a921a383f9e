"""Transforms one component's values, before gates and weights; checks potential-based shaping.

A transform takes ragged values, an array per sample: its steps, or its one number. Functions marked
`of_steps` make no sense for one number. Those marked `sees_groups` also get the samples' groups, as
`groups`. Transforms that keep state are classes (normalisers.py).
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
import math
from typing import TypeAlias

from jaxtyping import Float
import numpy as np

Ragged: TypeAlias = Sequence[Float[np.ndarray, "K"]]


def clip(
    rewards: Ragged, *, low: float = -math.inf, high: float = math.inf, offset: float = 0.0,
) -> Ragged:
  """Computes min(max(r − offset, low), high).

  With high=0 and offset η it is the Clip of process rewards: good steps earn nothing, so none are
  added for their own sake, and bad ones lose. Choose η so that most steps get 0, e.g. the 20 to
  30 % quantile of the first policy's step scores (our guess; the paper's value is not known to us).

  Raises: ValueError unless low <= high.
  Source: Gao et al. 2024, arXiv:2410.15115 ("Clip").
  """
  if not low <= high or not math.isfinite(offset):
    raise ValueError(
        f"clip needs low <= high and a finite offset, got low={low}, high={high}, offset={offset}.")
  return [np.clip(r - offset, low, high) for r in rewards]


def delta(rewards: Ragged) -> Ragged:
  """Computes r_k − r_{k+1} for k < K − 1;  r_{K−1} for k = K − 1;  0 for k = K.

  The rewards from step k < K on then sum to r_k, whatever follows. This is not potential-based: one
  more step in place of the end still earns r_k, so positive step rewards pay a policy that never
  stops; `clip` with high=0 before it does not. Advantages of whole completions (group baselines)
  see only the sum, r_1: give credit per step (token_rewards).

  Source: Gao et al. 2024, arXiv:2410.15115 ("Delta"; "Clip-Delta" is clip, then delta). The warning
    is ours.
  """
  out = []
  for r in rewards:
    kept = np.append(r[:-1], np.zeros(min(1, len(r))))  # The last step counts as 0.
    out.append(kept - np.append(kept[1:], np.zeros(min(1, len(r)))))
  return out


def bounded(
    rewards: Ragged, *, low: float = 0.0, high: float = 1.0, center: float = 0.0,
    scale: float = 1.0) -> Ragged:
  """Computes low + (high − low) · sigmoid((r − center) / scale).

  A learned reward that grows without bound then earns less and less.

  Args:
    low: lower bound.
    high: upper bound.
    center: the reward that becomes the middle, e.g. a reference completion's mean.
    scale: reward units per unit of the sigmoid.

  Raises: ValueError unless low < high and scale > 0, all finite.
  Source: Fu et al. 2025, arXiv:2502.18770 (bounded, fast growth at first; they centre on reference
    rewards).
  """
  if (not -math.inf < low < high < math.inf or not 0 < scale < math.inf
      or not math.isfinite(center)):
    raise ValueError(
        f"bounded needs finite low < high, center, and scale > 0, got low={low}, high={high},"
        f" center={center}, scale={scale}.")
  # As tanh: exp would overflow.
  return [low + (high - low) * (1 + np.tanh((r - center) / scale / 2)) / 2 for r in rewards]


def potential(
    rewards: Ragged, *, discount: float = 1.0, initial: float = 0.0,
    terminal: float | None = 0.0) -> Ragged:
  """Shapes by potentials: the step values are potentials φ(s_k), their differences the rewards.

      F_k = γ φ(s_k) − φ(s_{k−1}),   φ(s_0) = initial
      Σ_k γ^{k−1} F_k = γ^K φ(s_K) − φ(s_0)

  Args:
    discount: γ, that of the returns, in [0, 1].
    initial: φ at the start.
    terminal: φ at the end. 0: the sum is −φ(s_0) for every completion, so that which policy is best
      does not change (Ng et al. 1999, theorem 1, with φ = 0 where an episode ends). None: the last
      step's own φ, which adds γ^K φ(s_K).

  Raises: ValueError for a discount outside [0, 1] or potentials that are not finite.
  """
  if not 0 <= discount <= 1:
    raise ValueError(f"potential needs a discount in [0, 1], got {discount}.")
  if not all(math.isfinite(x) for x in (initial, terminal or 0.0)):
    raise ValueError(
        f"potential needs finite potentials, got initial={initial}, terminal={terminal}.")
  out = []
  for r in rewards:
    after = np.array(r, np.float64)
    # The potential before each step is the one after the step before it.
    before = np.append(np.float64(initial), after)[:len(after)]
    if terminal is not None:
      after[-1:] = terminal
    out.append(discount * after - before)
  return out


def min_form(rewards: Ragged, *, temperature: float = 0.1) -> Ragged:
  """Computes r_k softmax(−r / temperature)_k: a chain is worth its weakest step, not the sum.

  With returns="to_go" the tokens up to the weakest step get about its reward, and later ones
  about 0.

  Args:
    temperature: in reward units; PURE's 0.1. Towards 0 the sum is the minimum.

  Raises: ValueError for a temperature that is not above 0.
  Source: Cheng et al. 2025 (PURE), arXiv:2504.15275, sec. 3.
  """
  if not 0 < temperature < math.inf:
    raise ValueError(f"min_form needs a finite temperature above 0, got {temperature}.")
  out = []
  for r in rewards:
    # The minimum is subtracted first, so that exp cannot overflow.
    weights = np.exp((np.min(r, initial=math.inf) - r) / temperature)
    # The weakest step's weight is 1: a sum below that means that there is no step at all.
    out.append(r * weights / max(weights.sum(), 1.0))
  return out


delta.of_steps = potential.of_steps = min_form.of_steps = True


def check_potential_based(
    shaping: Callable[[Sequence[Hashable]], Float[np.ndarray, "K"]],
    episodes: Iterable[Sequence[Hashable]],
    *, discount: float = 1.0, tolerance: float = 1e-6) -> None:
  """Checks on episodes that a shaping reward cannot reorder them.

  Its sum may depend on an episode's ends only. Potential-based shaping sums to γ^K φ(s_K) − φ(s_0),
  so two episodes between equal ends (and, if γ < 1, of equal length) must collect the same. This is
  a necessary condition, and on all episodes between all states a sufficient one.

  Args:
    shaping: an episode of states s_0 ... s_K -> the shaping reward of each of its K steps.
    episodes: some of them with equal first and last states.
    discount: γ.
    tolerance: relative to the sum, but absolute where the sum is below 1.

  Raises: ValueError naming two episodes that differ, or if no two could be compared.
  Source: Ng, Harada and Russell 1999, "Policy invariance under reward transformations", theorem 1.
  """
  seen, compared = {}, False
  for episode in episodes:
    episode = list(episode)
    rewards = np.asarray(shaping(episode), np.float64)
    if rewards.shape != (len(episode) - 1,):
      raise ValueError(
          f"shaping gave shape {rewards.shape} for an episode of {len(episode)} states: give one"
          f" reward per step, ({len(episode) - 1},).")
    total = float(discount ** np.arange(len(rewards)) @ rewards)
    # With a discount only episodes of equal length can be compared.
    ends = (episode[0], episode[-1], None if discount == 1 else len(episode))
    if ends in seen:
      other, expected = seen[ends]
      compared = True
      if not abs(total - expected) <= tolerance * max(1.0, abs(expected)):
        raise ValueError(
            f"Not potential-based: {other} collects {expected:.6g} and {episode} {total:.6g}"
            " between the same ends, so a policy is paid for the way. Pay differences of a"
            " potential of the state.")
    seen.setdefault(ends, (episode, total))
  if not compared:
    raise ValueError(
        "No two of the episodes have equal ends (and, with a discount, lengths): nothing was"
        " checked.")


def repetition_returns(
    score: Callable[[Sequence[str]], Float[np.ndarray, "K"]], steps: Sequence[str], *, at: int,
    copies: Sequence[int] = (1, 2, 4, 8, 16),
    transforms: Sequence[Callable[[Ragged], Ragged]] = (),
) -> Float[np.ndarray, "N"]:
  """Probes a process reward: computes what a response collects if one step stands there n times.

  The step may be right or empty. If the sum rises with n without bound, a policy is paid for
  repeating itself; dividing by the length does not cure that.

  Args:
    score: a response's steps -> a score for each, e.g. of a process reward model.
    steps: of the response.
    at: the step that is repeated.
    copies: the n.
    transforms: applied to the scores before they are summed.

  Returns: for each n the sum of all steps' rewards.
  Raises: ValueError for a step that there is not, or copies below 1.
  Source: Gao et al. 2024, arXiv:2410.15115 (their synthetic trajectories).
  """
  if not 0 <= at < len(steps) or min(copies) < 1:
    raise ValueError(
        f"repetition_returns needs a step in 0 ... {len(steps) - 1} and copies of at least 1, got"
        f" at={at}, copies={tuple(copies)}.")
  rows = [
      np.asarray(score([*steps[:at], *[steps[at]] * n, *steps[at + 1:]]), np.float64)
      for n in copies]
  for transform in transforms:
    rows = transform(rows)
  return np.array([row.sum() for row in rows])
