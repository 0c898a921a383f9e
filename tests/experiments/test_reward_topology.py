"""Topologies of comparisons by hand, and the world of known rewards.

The experiment runs end to end, small.
"""

import jax
import numpy as np
import pytest

from rl_reason import train
from rl_reason.claims import measures
from rl_reason.experiments import reward_topology
from rl_reason.run import config as config_lib
from rl_reason.tasks.draws import Draws
from rl_reason.tasks.registry import check_disjoint, load_task
from rl_reason.tasks.worlds import topology
from rl_reason.tasks.worlds.topology import World
from rl_reason.types import Problem


def binary_tree(depth=3):
  return topology.grow(lambda path, level, count: "ab"[:count], depth=depth, branching=2)


def test_a_full_tree_by_hand():
  leaves = binary_tree()
  assert len(leaves) == 8 and leaves[0] == ("a", "a", "a") and leaves[-1] == ("b", "b", "b")
  pairs = topology.leaf_pairs(leaves, 100, Draws(0))
  found = topology.describe(pairs)
  # 28 pairs: 4 · 4 split at the root, 2 · 2 · 2 one segment on, 4 · 1 before the last.
  assert found == {
      "pairs": 28, "responses": 8, "comparisons_per_response": 7.0,
      "split_depth": {0: 16, 1: 8, 2: 4}, "components": 1}
  assert len({frozenset(p) for p in pairs}) == 28
  drawn = topology.leaf_pairs(leaves, 10, Draws(0))
  assert len({frozenset(p) for p in drawn}) == 10 and all(a != b for a, b in drawn)


def test_equal_branches_are_sampled_again_and_ended_responses_are_leaves():
  asked = []

  def extend(path, level, count):
    asked.append((path, count))
    if path == ("a",):
      return []  # Nothing goes on here: a leaf.
    if path == ("b",):
      return ["", "x"]  # One continuation is the end.
    return ["a", "a"] if len(asked) == 1 else ["b"]
  assert topology.grow(extend, depth=2, branching=2) == [("a",), ("b",), ("b", "x")]
  assert asked[:2] == [((), 2), ((), 1)]  # "a" twice: one more was asked for.
  assert [a for a in asked if a[0] == ("a",)] == [(("a",), 2)] * 3
  # A tree that keeps giving one branch has one leaf, and no pairs.
  assert topology.grow(lambda *_: ["a"], depth=3, branching=2) == [("a", "a", "a")]
  assert topology.leaf_pairs([("a", "a"), ("a", "b"), ("b", "a")], 5, Draws(0)) == []


def test_chains_of_pairs_are_described():
  pairs = [(("a",), ("b",)), (("b",), ("c",)), (("x", "y"), ("x", "z"))]
  assert topology.describe(pairs) == {
      "pairs": 3, "responses": 5, "comparisons_per_response": 1.2, "split_depth": {0: 2, 1: 1},
      "components": 2}


def test_rewards_are_sums_over_prefixes():
  world = World(3, (1.0, 0.0, 0.0))
  by_first = world.rewards.reshape(8, -1)
  assert np.ptp(by_first, axis=1).max() == 0 and len(set(by_first[:, 0])) == 8
  assert World(3, (0.2,) * 3).rewards.mean() == pytest.approx(0, abs=1e-12)
  responses = world.responses()
  assert [world.reward(tuple(r)) for r in responses] == world.rewards.tolist()
  assert responses[9] == "abb"
  assert not np.array_equal(World(4, (1.0, 0.0, 0.0)).rewards, world.rewards)
  spread = np.mean([World(s, (0.2,) * 5).rewards.var() for s in range(20)])
  # Five variances of 0.2, less that of the mean of few first letters.
  assert spread == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name, splits", [("chain", None), ("tree", 1 - 1 / 3)])
def test_topologies_have_as_many_pairs_and_labels_follow_the_reward(name, splits):
  source = topology.prefix_rewards(size=600, world=1, topology=name, noise=0.5)
  again = topology.prefix_rewards(size=600, world=1, topology=name, noise=0.5)
  assert len(source) == 600 and [source[i] for i in range(600)] == [again[i] for i in range(600)]
  gaps = np.array(
      [source.world.reward(tuple(r.responses[0])) - source.world.reward(tuple(r.responses[1]))
       for r in (source[i] for i in range(600))])
  # P(right | gap) = σ(|gap| / 0.5).
  assert (gaps > 0).mean() == pytest.approx(
      (1 / (1 + np.exp(-np.abs(gaps) / 0.5))).mean(), abs=0.05)
  depths = np.array([source[i].metadata["split_depth"] for i in range(600)])
  # B = 3 at 5 levels: 243 leaves, of whose pairs 243 · 162 of 243 · 242 split at the root.
  assert (depths == 0).mean() == pytest.approx(162 / 242 if splits else 7 / 8, abs=0.05)
  assert max(map(len, (r.responses[0] for r in (source[i] for i in range(5))))) == 5


def test_halves_of_one_prompt_may_share_it_but_no_row_and_problems_may_not():
  halves = load_task("prefix_rewards", dict(world=0), dict(size=20), dict(size=20, part="heldout"))
  assert halves.train[0].prompt == halves.heldout[0].prompt
  assert {halves.train[i].responses for i in range(20)}.isdisjoint(
      halves.heldout[i].responses for i in range(20))
  with pytest.raises(ValueError, match="20 training rows have a prompt that is also held out"):
    load_task("prefix_rewards", dict(world=0), dict(size=20), dict(size=20))
  problems = [Problem("=", "1", id=str(i)) for i in range(2)]
  with pytest.raises(ValueError, match="2 training rows have a prompt that is also held out"):
    check_disjoint(problems, problems)


@pytest.mark.parametrize("arguments, message", [
    (dict(topology="trees"), "Unknown topology 'trees'. Did you mean 'tree'"),
    (dict(noise=0.0), "noise must be above 0"),
    (dict(branching=1), r"branching must be in \[2, 8\]"),
    (dict(size=0), "size must be at least 1"),
    (dict(variances=(0.2, -1.0)), r"variances\[1\] must be at least 0"),
    (dict(part="test"), "Unknown part 'test'"),
])
def test_worlds_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    topology.prefix_rewards(**{"size": 4, "world": 0, **arguments})


def test_the_best_of_n_by_hand():
  # Two of {1, 5, 3} by score: the best is the last with 1 − 4/9, the second with 4/9 − 1/9, the
  # first with 1/9.
  assert reward_topology.expected_best(np.array([1.0, 5.0, 3.0]), 2) == pytest.approx(
      (1 * 1 + 3 * 5 + 5 * 3) / 9)
  assert reward_topology.expected_best(np.array([1.0, 5.0, 3.0]), 1) == pytest.approx(3.0)


def test_the_experiment_small(tmp_path):
  c = config_lib.load("experiments/reward_topology.py:tree-tiny")
  with c.unlocked():
    c.seed = 5
    c.mesh.fsdp, c.stages = 1, ("rm", "low", "after")
    del c.after.functions.few
  assert c.rm.data.args.world == 5  # The world goes with the seed.
  train.train(c, tmp_path, plain=True)
  sorted_by_score = measures.arrays(tmp_path, "after", "rm")["rewards"]
  np.testing.assert_array_equal(np.sort(sorted_by_score), np.sort(World(5, (0.2,) * 5).rewards))
  one = reward_topology.true_reward_of_best(tmp_path, n=1)
  assert one == pytest.approx(0, abs=1e-9)  # The best of one is the mean.
  many, low = (
      reward_topology.true_reward_of_best(tmp_path, n=128, stage=stage) for stage in ("rm", "low"))
  assert np.isfinite(many)
  assert reward_topology.true_reward_of_best(tmp_path, n=128, less=1) == pytest.approx(many)
  assert reward_topology.true_reward_of_best(tmp_path, n=128, less_stage="low") == pytest.approx(
      many - low)


def test_the_full_config_is_sound():
  for name in reward_topology.TOPOLOGIES:
    config, sections = config_lib.check(
        config_lib.load(f"experiments/reward_topology.py:{name}-full"))
    assert sections["rl"].credit.critic.start == "rm" and config.stages == ("rm", "rl")
  assert len(jax.devices()) > 1  # That the mesh takes what there is.
