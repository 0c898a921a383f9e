"""Scores a batch beside the sampler, while its samples are still being drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures

from rl_reason.rewards.composition.outputs import gather, read
from rl_reason.rewards.composition.reward_set import RewardSet, Scores
from rl_reason.types import Sample


class Scoring:
  """Scores a batch as its samples come: components with `per_sample` work in a thread.

      with contextlib.closing(Scoring(rewards)) as scoring:
        scoring.add([3], [sample])         # Returns at once.
        scores = scoring.finish(samples)   # What rewards.score(samples) returns, or raises.
  """

  def __init__(self, rewards: RewardSet):
    self._rewards = rewards
    self._early = [c for c in rewards.components if getattr(c.function, "per_sample", False)]
    # One thread, which starts with the first sample: the worker processes behind it are the
    # parallel part.
    self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
    self._begun: list[tuple[list[int], dict[str, futures.Future]]] = []

  def add(self, positions: Sequence[int], samples: Sequence[Sample]) -> None:
    """Begins to score samples that will be at these positions of the batch."""
    if self._early and len(samples):
      self._begun.append(([int(i) for i in positions], {
          c.name: self._thread.submit(self._rewards.call, c, list(samples)) for c in self._early}))

  def finish(self, samples: Sequence[Sample]) -> Scores:
    """Scores the whole batch. Raises: as RewardSet.score."""
    begun = {i for positions, _ in self._begun for i in positions}
    # What was not given early is begun now.
    rest = [i for i in range(len(samples)) if i not in begun]
    self.add(rest, [samples[i] for i in rest])
    self._thread.shutdown()  # Waits for all that was begun.
    # The other components see the whole batch at once.
    early, outputs = {c.name for c in self._early}, {}
    for c in self._rewards.components:
      if c.name in early:
        outputs[c.name] = gather(c, [
            (positions, read(c, results[c.name].result(), len(positions)))
            for positions, results in self._begun],
            len(samples))
      else:
        outputs[c.name] = self._rewards.call(c, samples)
    return self._rewards.compose(outputs, samples)

  def close(self) -> None:
    """Ends the thread; samples that it has not begun are never scored."""
    self._thread.shutdown(cancel_futures=True)
