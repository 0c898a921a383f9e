"""Dynamic sampling with scripted rewards: which groups are kept, and what fills their places.

What is logged, too.
"""

import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.stages import groups

T = 3
# Three rounds of three groups of two. Different: groups 1, 3, 7 and 8, counted through.
ROUNDS = [[[1, 1], [0, 1], [0, 0]], [[1, 0], [1, 1], [1, 1]], [[0, 0], [0, 1], [1, 0]]]


def rollout(number, width=2):
  scores = np.array(ROUNDS[number], np.float32).reshape(-1)
  ids = np.arange(6 * number, 6 * number + 6)  # Told by their tokens.
  tokens = np.repeat(ids[:, None], T, axis=1).astype(np.int32)
  return Rollout(
      4, Inputs(np.full((3, width), number + 1, np.int32), np.full(3, width, np.int32)),
      Completions(
          tokens, np.full(6, 1 + number, np.int32), np.zeros(6, bool), -tokens / 8, -tokens / 4),
      scores, np.stack([0 * scores, 0 * scores, scores], axis=1),
      {"right": scores, "length": ids.astype(np.float32)},
      f"shown {number}", {"time/generate": 1.0 + number})


class Draws:
  def __init__(self):
    self.rounds = []

  def __call__(self, number):
    self.rounds.append(number)
    return rollout(number, width=2 + number)


def test_equal_groups_by_total_and_by_a_component():
  np.testing.assert_array_equal(groups.equal_groups(rollout(0)), [True, False, True])
  assert not groups.equal_groups(rollout(0), by="length").any()


def test_groups_are_sampled_until_enough_differ():
  draws = Draws()
  kept = groups.resample(rollout(0), draws, max_rounds=5)
  assert draws.rounds == [1, 2]
  # Groups 1, 3 and 7 of all; the fourth that differs, 8, came last.
  np.testing.assert_array_equal(kept.completions.tokens[:, 0], [2, 3, 6, 7, 14, 15])
  np.testing.assert_array_equal(kept.scores, [0, 1, 1, 0, 0, 1])
  np.testing.assert_array_equal(kept.rewards[:, -1], kept.scores)
  np.testing.assert_array_equal(kept.completions.lengths, [1, 1, 2, 2, 3, 3])
  np.testing.assert_array_equal(kept.prompts.tokens, [[1, 1, 0, 0], [2, 2, 2, 0], [3, 3, 3, 3]])
  np.testing.assert_array_equal(kept.prompts.lengths, [2, 3, 4])
  assert (kept.index, kept.shown, kept.seconds) == (4, "shown 0", {"time/generate": 6.0})
  # Of all that was sampled: nine groups, 6 · 1 + 6 · 2 + 6 · 3 tokens.
  metrics = kept.metrics
  assert metrics["resample/rounds"] == 2 and metrics["resample/kept"] == pytest.approx(3 / 9)
  assert metrics["resample/filled"] == 0 and metrics["reward/equal_groups"] == pytest.approx(5 / 9)
  assert metrics["tokens"] == 36 and metrics["reward/mean"] == pytest.approx(10 / 18)


def test_the_first_equal_groups_fill_what_is_missing_at_the_last_round():
  draws = Draws()
  kept = groups.resample(rollout(0), draws, max_rounds=1)
  assert draws.rounds == [1]
  np.testing.assert_array_equal(kept.completions.tokens[:, 0], [2, 3, 6, 7, 0, 1])
  assert kept.metrics["resample/filled"] == pytest.approx(1 / 3)
  assert kept.metrics["resample/kept"] == pytest.approx(2 / 6)


def test_nothing_more_is_sampled_where_all_groups_differ():
  draws = Draws()
  kept = groups.resample(rollout(0), draws, max_rounds=5, by="length")
  assert draws.rounds == []
  assert kept.metrics["resample/kept"] == 1
  assert kept.metrics["resample/rounds"] == 0
  np.testing.assert_array_equal(kept.completions.tokens[:, 0], range(6))


def test_lengths_and_repetition_are_those_of_what_the_policy_wrote():
  # The policy wrote five different tokens, and a tool the same one eight times.
  tokens = np.array([[1, 2, 3, *[9] * 8, 4, 5]], np.int32)
  completions = Completions(
      tokens, np.array([13], np.int32), np.zeros(1, bool), 0.0 * tokens, 0.0 * tokens,
      observed=tokens == 9)
  one = Rollout(0, Inputs(np.ones((1, 1), np.int32), np.ones(1, np.int32)), completions,
                np.zeros(1), 0.0 * tokens, {})
  metrics = groups.metrics(one)
  assert metrics["completion/length"] == 5
  assert metrics["completion/repetition"] == 0


def test_a_rollout_is_the_same_after_a_checkpoint():
  kept = groups.resample(rollout(0), Draws(), max_rounds=5)
  again = Rollout.from_json(kept.to_json())
  assert again.metrics == kept.metrics and again.to_json() == kept.to_json()
