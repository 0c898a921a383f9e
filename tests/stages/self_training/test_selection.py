"""Which completions are imitated and in which order, by hand."""

import json

import numpy as np
import pytest

from rl_reason.rollout.generate import Completions
from rl_reason.stages.self_training import selection
from rl_reason.stages.self_training.selection import Candidate, Pool

A, B = (1, 2), (3,)
CANDIDATES = [
    Candidate(A, (5, 0), 0.2), Candidate(A, (6, 0), 0.9), Candidate(A, (6, 0), 0.9),
    Candidate(A, (7, 0), 1.0), Candidate(A, (8, 0), 1.0), Candidate(B, (6, 0), 0.5),
    Candidate(B, (9, 0), float("inf")),
    Candidate(B, (4, 0), float(np.float32(0.7)))]  # Less than 0.7.


@pytest.mark.parametrize("fields, expected", [
    (dict(threshold=0.0, distinct=False), [0, 1, 2, 3, 4, 5, 6, 7]),
    (dict(threshold=0.0), [0, 1, 3, 4, 5, 6, 7]),  # The other problem's equal completion stays.
    (dict(threshold=0.7), [1, 3, 4, 6, 7]),  # What reaches it is kept.
    (dict(threshold=2.0), [6]),
    # Of equally good ones the first; own solutions do not count.
    (dict(threshold=0.0, per_problem=1), [3, 6, 7]),
    (dict(threshold=0.0, per_problem=2), [3, 4, 5, 6, 7]),
    (dict(threshold=0.0, per_problem=4, choose="random"), [0, 1, 3, 4, 5, 6, 7]),
])
def test_what_is_kept_by_hand(fields, expected):
  assert selection.keep(CANDIDATES, **fields) == [CANDIDATES[i] for i in expected]


def test_random_choice_takes_any_and_is_repeatable():
  def kept(seed):
    return tuple(
        selection.keep(CANDIDATES, threshold=0.0, per_problem=1, choose="random", seed=seed))
  assert kept(3) == kept(3) and all(len(kept(seed)) == 3 for seed in range(30))
  assert {c for seed in range(30) for c in kept(seed) if c.prompt == A} == {
      CANDIDATES[i] for i in (0, 1, 3, 4)}


def test_an_order_passes_over_all_again_and_again():
  kept = CANDIDATES[:1] + CANDIDATES[3:6]
  sequence = selection.draw(kept, 0, 12, balance=False, seed=1)
  for epoch in range(3):
    assert sorted(sequence[4 * epoch:4 * epoch + 4], key=kept.index) == kept
  assert sequence[:4] != sequence[4:8] or sequence[:4] != sequence[8:]
  # Any stretch of it, alone.
  assert [selection.draw(kept, n, 3, balance=False, seed=1) for n in (0, 3, 6, 9)] == [
      sequence[n:n + 3] for n in (0, 3, 6, 9)]


def test_balanced_problems_come_equally_often():
  sequence = selection.draw(CANDIDATES[:6], 0, 200, balance=True, seed=1)
  for epoch in range(100):
    assert {c.prompt for c in sequence[2 * epoch:2 * epoch + 2]} == {A, B}
  assert set(sequence) == set(CANDIDATES[:6])


def test_only_what_ended_and_may_be_kept_joins_the_pool():
  completions = Completions(
      tokens=np.array([[5, 0, 0], [6, 7, 8], [4, 0, 0], [3, 3, 0]], np.int32),
      lengths=np.array([2, 3, 2, 3], np.int32),
      truncated=np.array([False, True, False, False]), behaviour_logprobs=None, logprobs=None)
  pool = Pool()
  pool.add([A, B], completions, np.array([0.5, 9.0, 0.4, 0.6]), 0.5)
  pool.add([A], completions, np.array([0.5, 0.1, -np.inf, 0.1]), 0.5, hinted=True)
  assert pool.candidates == [
      Candidate(A, (5, 0), 0.5), Candidate(B, (3, 3, 0), 0.6),
      Candidate(A, (5, 0), 0.5, hinted=True)]
  assert pool.sampled == 4
  pool.empty = 2
  pool.candidates.append(Candidate(B, (9, 8, 0), float("inf"), learnt=(True, False, True)))
  again = Pool()
  again.restore(json.loads(json.dumps(pool.state())))
  assert vars(again) == vars(pool)
  pool.clear()
  assert pool.candidates == [] and pool.sampled == 0 and pool.empty == 2


def test_examples_learn_the_completion():
  examples = selection.to_examples(
      [CANDIDATES[0], Candidate(B, (9, 8, 0), 1.0, learnt=(True, False, True))], 6)
  np.testing.assert_array_equal(examples.tokens, [[1, 2, 5, 0, 0, 0], [3, 9, 8, 0, 0, 0]])
  np.testing.assert_array_equal(
      examples.learnt, np.array([[0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0]], bool))
  np.testing.assert_array_equal(examples.lengths, [4, 4])
