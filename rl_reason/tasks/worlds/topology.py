"""Decides which responses are compared with which, in two topologies.

In a chain responses are independent; in a tree they are leaves of trees that share prefixes.

Qiu et al. 2024, "Reward Generalization in RLHF: A Topological Perspective", arXiv:2402.10184: if
pairs are leaves of prefix trees, the same number of labels teaches a reward model more where
responses are many-sided and labels few. The schedule by which trees grow is ours, as the paper's is
not published.

`grow`, `leaf_pairs` and `describe` take any sampler and any labels. `prefix_rewards` is a world in
which the true reward is known: that of a response is a sum of random weights, one for each of its
prefixes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from rl_reason.config.checks import at_least, one_of
from rl_reason.tasks.draws import Draws
from rl_reason.types import Comparison

TOPOLOGIES = ("chain", "tree")
LETTERS = "abcdefgh"  # Each is a segment of a response.

Path = tuple[str, ...]  # A response's segments.
# (the segments so far, depth from 0, count) -> `count` continuations by one segment; "" ends the
# response.
Extend = Callable[[Path, int, int], Sequence[str]]


def grow(extend: Extend, *, depth: int, branching: int, tries: int = 3) -> list[Path]:
  """Grows one prompt's tree and returns its leaves.

  Each node has up to `branching` distinct continuations, down to `depth` segments. Continuations
  that are equal are sampled again, `tries` times in all; a node that keeps fewer goes on with
  those. A node without any ends there. Sampling hotter near the root, and completing what has no
  end at the last depth, are tasks of `extend`.

  Args:
    extend: samples continuations.
    depth: most segments of a response.
    branching: most continuations of a node.
    tries: how often a node is sampled.

  Raises: ValueError for numbers below 1.
  Source: Qiu et al. 2024, section 5; the number of tries is ours.
  """
  at_least(1, depth=depth, branching=branching, tries=tries)
  nodes, leaves = [()], []
  for level in range(depth):
    further = []
    for node in nodes:
      # A dict and not a set: it keeps the order, which has to be the same in every run.
      found: dict[str, None] = {}
      for _ in range(tries):
        if len(found) < branching:
          found |= dict.fromkeys(list(extend(node, level, branching - len(found))))
      further += [(node, segment) for segment in found]
      # A node without continuations, and one whose continuation is the end, are leaves.
      leaves += [node] * (not found)
    leaves += [node for node, segment in further if not segment]
    nodes = [(*node, segment) for node, segment in further if segment]
  return list(dict.fromkeys([*leaves, *nodes]))


def leaf_pairs(leaves: Sequence[Path], count: int, draws: Draws) -> list[tuple[Path, Path]]:
  """Draws `count` pairs of different leaves, or all there are.

  Pairs are drawn uniformly, none twice, each in a random order of its two. Most split early: of a
  full tree with B branches about 1 − 1/B of the pairs split at its root. A tree of fewer than 4
  leaves gives none: it has collapsed.
  """
  if len(set(leaves)) < 4:
    return []
  pairs = list(itertools.combinations(dict.fromkeys(leaves), 2))
  return [pair if draws.below(2) else pair[::-1]
          for pair in draws.sample(pairs, min(count, len(pairs)))]


def split_depth(a: Path, b: Path) -> int:
  """Returns the number of segments that both begin with."""
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def describe(pairs: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
  """Describes a data set's topology, for logs.

  Returns: number of pairs and of responses, comparisons per response, pairs by split depth, and the
    number of connected components.
  """
  # Components by union-find: each response points towards its component's root.
  parent: dict[Path, Path] = {}

  def root(x):
    while parent.setdefault(x, x) != x:
      parent[x] = x = parent[parent[x]]  # The way is halved, so that it stays short.
    return x
  for a, b in pairs:
    parent[root(a)] = root(b)
  return {"pairs": len(pairs), "responses": len(parent),
          "comparisons_per_response": 2 * len(pairs) / max(1, len(parent)),
          "split_depth": dict(sorted(Counter(split_depth(a, b) for a, b in pairs).items())),
          "components": len({root(x) for x in parent})}


# A world whose rewards are known.


@dataclasses.dataclass(frozen=True)
class World:
  """Holds a world of responses and their rewards.

  A response has one letter per entry of `variances`. Its reward is Σ_d w_d(first d letters) with
  w_d ~ N(0, variances[d]). Equal variances are the diverse regime, in which the reward depends on
  the whole response. Falling variances are the other one.

  seed: draws the weights.
  variances: per letter, of its weights.
  """
  seed: int
  variances: tuple[float, ...]

  @functools.cached_property
  def rewards(self) -> np.ndarray:
    """Returns the rewards of all responses, in their order as numbers with base len(LETTERS).

    Their mean is 0.
    """
    rng, total = np.random.default_rng([self.seed, 40]), np.zeros(1)
    for variance in self.variances:
      # Each prefix passes its sum to its continuations, which lie next to each other.
      total = np.repeat(total, len(LETTERS))
      total = total + rng.normal(0.0, math.sqrt(variance), total.size)
    return total - total.mean()

  def reward(self, path: Path) -> float:
    """Returns the reward of a response."""
    return float(self.rewards[functools.reduce(
        lambda n, letter: n * len(LETTERS) + LETTERS.index(letter), path, 0)])

  def responses(self) -> list[str]:
    """Lists all responses, in the order of `rewards`."""
    return ["".join(letters) for letters in itertools.product(LETTERS, repeat=len(self.variances))]


@dataclasses.dataclass(frozen=True)
class PrefixRewards:
  """Labels the pairs of `prefix_rewards`.

  world: gives the rewards.
  pairs: the responses that are compared.
  noise: scale of the labels' noise.
  part: "train" or "heldout".
  """
  world: World
  pairs: tuple[tuple[Path, Path], ...]
  noise: float
  part: str

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> Comparison:
    a, b = self.pairs[index]
    gap = (self.world.reward(a) - self.world.reward(b)) / self.noise
    draws = Draws("label", self.world.seed, self.part, index, "".join(a), "".join(b))
    # 0.5 * (1 + tanh(x / 2)) is σ(x), without overflow.
    better, worse = (a, b) if draws.uniform() < 0.5 * (1 + math.tanh(gap / 2)) else (b, a)
    return Comparison(
        prompt="=", responses=("".join(better), "".join(worse)), scores=(1.0, 0.0),
        id=f"{self.part}-{index}",
                      metadata={"split_depth": split_depth(a, b)})


def prefix_rewards(
    *, size: int, world: int, part: str = "train", topology: str = "chain",
    variances: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2), noise: float = 0.5, branching: int = 3,
    pairs_per_tree: int = 100) -> PrefixRewards:
  """Generates noisy comparisons of random responses whose true reward is known (World).

      P(a called better) = σ((r_a − r_b) / noise)

  Args:
    size: number of pairs.
    world: seed of rewards, responses and labels.
    part: "train" or "heldout": other pairs of the same world. There is one prompt, so that only
      pairs tell the parts apart.
    topology: "chain": both of a pair are drawn independently, uniformly; "tree": they are two
      leaves of a tree.
    variances: of World: one per letter of a response.
    noise: scale of the labels' logistic noise, above 0, in units of the reward.
    branching: branches of a tree at each of its len(variances) levels.
    pairs_per_tree: pairs of each tree, or all that it has.

  Raises: ValueError for values out of range, and trees that have no pairs.
  """
  at_least(1, size=size, pairs_per_tree=pairs_per_tree)
  at_least(0, **{f"variances[{i}]": v for i, v in enumerate(variances)})
  one_of(TOPOLOGIES, topology=topology)
  one_of(("train", "heldout"), part=part)
  if noise <= 0:
    raise ValueError(
        f"noise must be above 0, got {noise}: it is the scale of the labels' logistic noise.")
  if not 2 <= branching <= len(LETTERS) or branching ** len(variances) < 4:
    raise ValueError(
        f"branching must be in [2, {len(LETTERS)}] and give 4 leaves or more, got {branching} at"
        f" {len(variances)} levels: there are {len(LETTERS)} segments to choose from.")
  # Trees, or single pairs, until there are enough. Each has a stream of its own.
  pairs: list[tuple[Path, Path]] = []
  for number in itertools.count():
    draws = Draws("topology", topology, world, part, number)
    if topology == "tree":
      leaves = grow(
          lambda path, level, count: draws.sample(LETTERS, count), depth=len(variances),
          branching=branching)
      pairs += leaf_pairs(leaves, pairs_per_tree, draws)
    else:
      a, b = (tuple(draws.choice(LETTERS) for _ in variances) for _ in range(2))
      pairs += [(a, b)] * (a != b)
    if len(pairs) >= size:
      return PrefixRewards(World(world, tuple(variances)), tuple(pairs[:size]), noise, part)
