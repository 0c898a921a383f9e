"""Which responses are compared with which: independent ones (chain) or leaves of trees that share prefixes (tree).

Qiu et al. 2024, "Reward Generalization in RLHF: A Topological Perspective", arXiv:2402.10184: the same number of labels
teaches a reward model more where responses are many-sided and labels few, if pairs are leaves of prefix trees. The
schedule by which trees grow is ours, as the paper's is not published.

`grow`, `leaf_pairs` and `describe` take any sampler and any labels; `prefix_rewards` is a world in which the true reward is
known: that of a response is a sum of random weights, one for each of its prefixes.
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
LETTERS = "abcdefgh"  # A segment of a response.

Path = tuple[str, ...]  # A response's segments.
# (the segments so far, depth from 0, how many) -> so many continuations by one segment; "" ends the response.
Extend = Callable[[Path, int, int], Sequence[str]]


def grow(extend: Extend, *, depth: int, branching: int, tries: int = 3) -> list[Path]:
  """The leaves of one prompt's tree: each node has up to `branching` distinct continuations, down to `depth` segments.

  Continuations that are equal are sampled again, `tries` times in all; a node that keeps fewer goes on with those. One
  without any ends there. Sampling hotter near the root, and completing what has no end at the last depth, is `extend`'s.

  Source: Qiu et al. 2024, section 5; the number of tries is ours.
  """
  at_least(1, depth=depth, branching=branching, tries=tries)
  nodes, leaves = [()], []
  for level in range(depth):
    further = []
    for node in nodes:
      found: dict[str, None] = {}
      for _ in range(tries):
        if len(found) < branching:
          found |= dict.fromkeys(list(extend(node, level, branching - len(found))))
      further += [(node, segment) for segment in found]
      leaves += [node] * (not found)
    leaves += [node for node, segment in further if not segment]
    nodes = [(*node, segment) for node, segment in further if segment]
  return list(dict.fromkeys([*leaves, *nodes]))


def leaf_pairs(leaves: Sequence[Path], count: int, draws: Draws) -> list[tuple[Path, Path]]:
  """`count` pairs of different leaves, or all there are; uniform over pairs, none twice, in random order of the two.

  Early splits are the most: of a full tree with B branches about 1 − 1/B of the pairs split at its root. A tree of fewer
  than 4 leaves gives none: it has collapsed.
  """
  if len(set(leaves)) < 4:
    return []
  pairs = list(itertools.combinations(dict.fromkeys(leaves), 2))
  return [pair if draws.below(2) else pair[::-1] for pair in draws.sample(pairs, min(count, len(pairs)))]


def split_depth(a: Path, b: Path) -> int:
  """Segments that both begin with."""
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def describe(pairs: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
  """A data set's topology: pairs, responses, comparisons per response, pairs by split depth, connected components."""
  parent: dict[Path, Path] = {}

  def root(x):
    while parent.setdefault(x, x) != x:
      parent[x] = x = parent[parent[x]]  # Halved, so that chains stay short.
    return x
  for a, b in pairs:
    parent[root(a)] = root(b)
  return {"pairs": len(pairs), "responses": len(parent), "comparisons_per_response": 2 * len(pairs) / max(1, len(parent)),
          "split_depth": dict(sorted(Counter(split_depth(a, b) for a, b in pairs).items())),
          "components": len({root(x) for x in parent})}


# A world whose rewards are known.


@dataclasses.dataclass(frozen=True)
class World:
  """Responses of one letter per entry of `variances`; the reward is Σ_d w_d(first d letters), w_d ~ N(0, variances[d]).

  Equal variances are the diverse regime: the reward hangs on the whole response; falling ones the other.
  """
  seed: int
  variances: tuple[float, ...]

  @functools.cached_property
  def rewards(self) -> np.ndarray:
    """Of all responses, in their order as numbers with base len(LETTERS); their mean is 0."""
    rng, total = np.random.default_rng([self.seed, 40]), np.zeros(1)
    for variance in self.variances:
      total = np.repeat(total, len(LETTERS))
      total = total + rng.normal(0.0, math.sqrt(variance), total.size)
    return total - total.mean()

  def reward(self, path: Path) -> float:
    return float(self.rewards[functools.reduce(lambda n, letter: n * len(LETTERS) + LETTERS.index(letter), path, 0)])

  def responses(self) -> list[str]:
    return ["".join(letters) for letters in itertools.product(LETTERS, repeat=len(self.variances))]


@dataclasses.dataclass(frozen=True)
class PrefixRewards:
  """The source that `prefix_rewards` returns."""
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
    better, worse = (a, b) if draws.uniform() < 0.5 * (1 + math.tanh(gap / 2)) else (b, a)
    return Comparison(prompt="=", responses=("".join(better), "".join(worse)), scores=(1.0, 0.0), id=f"{self.part}-{index}",
                      metadata={"split_depth": split_depth(a, b)})


def prefix_rewards(
    *, size: int, world: int, part: str = "train", topology: str = "chain",
    variances: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2), noise: float = 0.5, branching: int = 3,
    pairs_per_tree: int = 100) -> PrefixRewards:
  """Noisy comparisons of random responses whose true reward is known (World): P(a called better) = σ((r_a − r_b) / noise).

  Args:
    size: pairs. world: seed of rewards, responses and labels.
    part: "train" or "heldout": other pairs of the same world. There is one prompt, so that only pairs tell them apart.
    topology: "chain": both of a pair drawn independently, uniformly; "tree": two leaves of a tree with `branching`
      branches at each of its len(variances) levels, `pairs_per_tree` pairs of each tree, or all that it has.

  Raises: ValueError for values out of range, and trees that have no pairs.
  """
  at_least(1, size=size, pairs_per_tree=pairs_per_tree)
  at_least(0, **{f"variances[{i}]": v for i, v in enumerate(variances)})
  one_of(TOPOLOGIES, topology=topology)
  one_of(("train", "heldout"), part=part)
  if noise <= 0:
    raise ValueError(f"noise must be above 0, got {noise}: it is the scale of the labels' logistic noise.")
  if not 2 <= branching <= len(LETTERS) or branching ** len(variances) < 4:
    raise ValueError(f"branching must be in [2, {len(LETTERS)}] and give 4 leaves or more, got {branching} at"
                     f" {len(variances)} levels: there are {len(LETTERS)} segments to choose from.")
  pairs: list[tuple[Path, Path]] = []
  for number in itertools.count():
    draws = Draws("topology", topology, world, part, number)
    if topology == "tree":
      leaves = grow(lambda path, level, count: draws.sample(LETTERS, count), depth=len(variances), branching=branching)
      pairs += leaf_pairs(leaves, pairs_per_tree, draws)
    else:
      a, b = (tuple(draws.choice(LETTERS) for _ in variances) for _ in range(2))
      pairs += [(a, b)] * (a != b)
    if len(pairs) >= size:
      return PrefixRewards(World(world, tuple(variances)), tuple(pairs[:size]), noise, part)
