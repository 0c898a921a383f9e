"""Rollouts one step ahead, with fakes for both halves.

What each was sampled from, in which order, and what errors do.
"""

import contextlib
import json
import threading
import types

import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.stages.base import StepResult
from rl_reason.stages.policy_gradient.ahead import Ahead


def rollout(index, count=2):
  draw = np.random.RandomState(index)
  return Rollout(
      index, Inputs(draw.randint(0, 9, (1, 3)).astype(np.int32), np.array([3], np.int32)),
      Completions(
          draw.randint(0, 9, (count, 4)).astype(np.int32), np.full(count, 1 + index, np.int32),
          np.array([True, False]), draw.rand(count, 4).astype(np.float32),
          -draw.rand(count, 4).astype(np.float32)),
      draw.rand(count).astype(np.float32), draw.rand(count, 4).astype(np.float32),
      {"length": draw.rand(count).astype(np.float32)}, f"shown {index} → \u2028\n",
      {"time/generate": 0.1 + index / 3},
      {"tokens": 2.0 * (1 + index), "environment_calls": 3.0 + index})


class Halves:
  """Records what is sampled and learnt; a state is SimpleNamespace(params=updates done)."""

  def __init__(self, fail_sample=None, fail_learn=None):
    self.sampled, self.learnt, self.fail_sample, self.fail_learn = [], [], fail_sample, fail_learn
    self.both = threading.Barrier(2, timeout=20)  # Passed only by two threads at once.
    self.together = False
    self.context = types.SimpleNamespace(
        partitioning=types.SimpleNamespace(use=contextlib.nullcontext), rollout_partitioning=None)
    self.context.on_sampling_devices = self.context

  def sample(self, params, problems, index):
    if self.together:
      self.both.wait()
    if index == self.fail_sample:
      raise ZeroDivisionError("sample")
    self.sampled.append((index, int(params)))
    return rollout(index)

  def learn(self, state, rollout):
    if self.together:
      self.both.wait()
    if rollout.index == self.fail_learn:
      raise OverflowError("learn")
    self.learnt.append((rollout.index, int(state.params)))
    return types.SimpleNamespace(params=state.params + 1), StepResult(
        {"loss": float(rollout.index), "environment_calls": -1.0}, tokens=-1.0,
        skipped=int(rollout.index == 0), updates=1)

  def run(self, steps, num_steps, *, state=None, restore=None, together=()):
    ahead, out = Ahead(self.context, self.sample, self.learn, num_steps), []
    state = state or types.SimpleNamespace(params=np.array(0))
    if restore:
      ahead.restore(json.loads(json.dumps(restore)))
    with contextlib.closing(ahead):
      for index in steps:
        self.together = index in together
        state, result = ahead.step(state, [], index)
        assert result.shown == rollout(index).shown and result.tokens == 2 * (1 + index)
        assert result.metrics["environment_calls"] == 3 + index
        out.append(result)
      return state, out, ahead.state()


def test_each_rollout_comes_from_one_update_before():
  halves = Halves()
  # In the steps between, neither half ends before the other has begun.
  state, results, left = halves.run(range(4), 4, together=(1, 2))
  metrics = [r.metrics for r in results]
  # Rollout 0 is from the start; 1, from before the update on 0, also; then one update each.
  assert halves.sampled == [(0, 0), (1, 0), (2, 1), (3, 2)]
  assert halves.learnt == [(0, 0), (1, 1), (2, 2), (3, 3)] and state.params == 4
  assert "loss" not in metrics[0] and results[0].skipped == 0
  assert [m["loss"] for m in metrics[1:]] == [0, 1, 3]  # The last step logs its second update.
  assert [m.get("staleness") for m in metrics] == [None, 0, 1, 1]
  assert [r.updates for r in results] == [0, 1, 1, 2]
  assert left == {"waiting": None}


def test_two_steps_count_a_skipped_update_of_either():
  _, results, _ = Halves().run(range(2), 2)
  # Update 0 was skipped, as `learn` says, update 1 was not.
  assert [r.skipped for r in results] == [0, 1]


def test_one_step_is_synchronous():
  halves = Halves()
  state, [result], _ = halves.run(range(1), 1)
  assert halves.sampled == halves.learnt == [(0, 0)] and state.params == 1
  assert result.metrics["staleness"] == 0 and result.metrics["loss"] == 0 and result.skipped == 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_with_the_rollout_that_waits(stop):
  whole = Halves()
  expected = whole.run(range(4), 4)
  halves = Halves()
  state, before, saved = halves.run(range(stop), 4)
  state, after, left = halves.run(range(stop, 4), 4, state=state, restore=saved)
  assert (halves.sampled, halves.learnt) == (whole.sampled, whole.learnt)
  assert (state.params, before + after, left) == (expected[0].params, *expected[1:])


def test_a_finished_run_made_longer_learns_from_each_rollout_once():
  halves = Halves()
  state, _, saved = halves.run(range(2), 2)
  _, results, _ = halves.run(range(2, 4), 4, state=state, restore=saved)
  assert halves.learnt == [(0, 0), (1, 1), (2, 2), (3, 3)]
  assert halves.sampled[2:] == [(2, 2), (3, 2)]
  assert results[-1].metrics["staleness"] == 1
  assert halves.run(range(2, 3), 3, state=state, restore=saved)[1][0].metrics["staleness"] == 0


@pytest.mark.parametrize("failing, error, learnt", [
    (dict(fail_sample=0), ZeroDivisionError, []),
    (dict(fail_sample=2), ZeroDivisionError, [(0, 0), (1, 1)]),
    (dict(fail_learn=1), OverflowError, [(0, 0)]),
    (dict(fail_sample=2, fail_learn=1), OverflowError, [(0, 0)])])
def test_an_error_in_either_half_ends_the_step(failing, error, learnt):
  halves, before = Halves(**failing), threading.active_count()
  with pytest.raises(error):
    halves.run(range(4), 4)
  assert halves.learnt == learnt and threading.active_count() == before


def test_a_rollout_survives_json_to_the_bit():
  one = rollout(5)
  one.completions.logprobs[0, 0], one.scores[1] = np.float32(1) / 3, -0.0
  other = Rollout.from_json(json.loads(json.dumps(one.to_json())))
  assert (other.index, other.shown, other.seconds) == (one.index, one.shown, one.seconds)
  def arrays(r):
    given = [(name, array) for x in (r.prompts, r.completions) for name, array in vars(x).items()
             if array is not None]
    return [*given, *r.components.items(), ("scores", r.scores)]
  assert [name for name, _ in arrays(one)] == [name for name, _ in arrays(other)]
  for (name, a), (_, b) in zip(arrays(one), arrays(other)):
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    b[...] = 0  # Writable, as the first one was.
