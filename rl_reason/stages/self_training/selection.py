"""Selects which sampled completions are imitated, and in which order.

They are above a threshold, distinct, and a limited number of each problem.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rl_reason.batches.demonstrations import Examples
from rl_reason.config.checks import at_least, one_of
from rl_reason.rollout.generate import Completions

CHOICES = ("best", "random")


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which completions a policy imitates: the field `keep` of a self_training section.

  thresholds: total rewards, rising: completions below a threshold are not imitated. With several,
    the round's updates are made with one after the other, on fewer and better completions of the
    same set (ReST's improve steps).
  distinct: whether of a problem's equal completions only one is kept.
  per_problem: completions of each problem at most; 0: all.
  choose: which of them are kept, the "best" or "random" ones.
  balance: whether problems are drawn equally often, however many completions they have kept.
  """
  thresholds: tuple[float, ...] = (1.0,)
  distinct: bool = True
  per_problem: int = 0
  choose: str = "best"
  balance: bool = False

  def __post_init__(self):
    at_least(0, per_problem=self.per_problem)
    one_of(CHOICES, choose=self.choose)
    rising = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:]))
    if not self.thresholds or not rising:
      raise ValueError(
          f"thresholds must be one or more rising rewards, got {self.thresholds}.")


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A completion that may be imitated.

  prompt: token ids.
  completion: token ids.
  score: its total reward, infinite for a problem's own solution.
  learnt: per token of the completion, whether it is learnt; None: all are.
  hinted: whether it was sampled after a prompt with the answer.
  """
  prompt: tuple[int, ...]
  completion: tuple[int, ...]
  score: float
  learnt: tuple[bool, ...] | None = None
  hinted: bool = False


class Pool:
  """What a round has sampled and may imitate, on every process. It is part of a checkpoint.

  candidates: completions that may be imitated.
  sampled: completions judged so far, except those after hints.
  empty: phases that had nothing to imitate, in all rounds.
  """

  def __init__(self):
    self.candidates: list[Candidate] = []
    self.sampled = self.empty = 0

  def clear(self) -> None:
    self.candidates, self.sampled = [], 0

  def add(
      self, prompts: Sequence[tuple[int, ...]], completions: Completions, scores: np.ndarray,
      lowest: float, *, hinted: bool = False) -> None:
    """Adds the completions that ended and reach the lowest threshold.

    Args:
      prompts: token ids of each prompt.
      completions: equally many of each prompt; those of one prompt are adjacent.
      scores: total reward of each completion.
      lowest: the lowest threshold.
      hinted: whether the prompts held the answers.
    """
    group_size, lowest = len(scores) // len(prompts), np.float32(lowest)
    self.sampled += 0 if hinted else len(scores)
    self.candidates += [
        Candidate(prompts[i // group_size],
                  tuple(completions.tokens[i, :completions.lengths[i]].tolist()),
                  float(scores[i]), hinted=hinted)
        for i in range(len(scores)) if scores[i] >= lowest and not completions.truncated[i]]

  def add_examples(self, prompts: Sequence[tuple[int, ...]], examples: Examples) -> None:
    """Adds the problems' own solutions, which every threshold keeps."""
    for prompt, tokens, learnt, n in zip(
        prompts, examples.tokens, examples.learnt, examples.lengths):
      own = slice(len(prompt), n)
      self.candidates.append(Candidate(
          prompt, tuple(tokens[own].tolist()), float("inf"), learnt=tuple(learnt[own].tolist())))

  def state(self) -> dict[str, Any]:
    # Each prompt is written once, and candidates name it by its place.
    places = {prompt: i for i, prompt in enumerate(
        dict.fromkeys(c.prompt for c in self.candidates))}
    return {
        "sampled": self.sampled, "empty": self.empty, "prompts": [list(p) for p in places],
        "candidates": [
            [places[c.prompt], list(c.completion), c.score, c.learnt and list(c.learnt), c.hinted]
            for c in self.candidates]}

  def restore(self, state: Mapping[str, Any]) -> None:
    self.sampled, self.empty, prompts = (
        state["sampled"], state["empty"], [tuple(p) for p in state["prompts"]])
    self.candidates = [
        Candidate(prompts[i], tuple(completion), score, learnt and tuple(learnt), hinted)
        for i, completion, score, learnt, hinted in state["candidates"]]


def keep(
    candidates: Sequence[Candidate], *, threshold: float, per_problem: int = 0,
    choose: str = "best", distinct: bool = True, seed: int = 0,
) -> list[Candidate]:
  """Selects the candidates to imitate, in the order given.

  Own solutions (infinite score) are kept and not counted.

  Args:
    candidates: all that may be imitated.
    threshold: lowest total reward, compared in the rewards' float32.
    per_problem: candidates of one prompt at most; 0: all.
    choose: "best": highest rewards, of equal ones the first; "random".
    distinct: whether of a prompt's equal completions only the first is kept.
    seed: for "random".
  """
  # Above the threshold and distinct, by prompt.
  by_prompt: dict[tuple[int, ...], list[int]] = {}
  seen, rng = set(), np.random.default_rng(seed)
  for i, c in enumerate(candidates):
    if np.float32(c.score) >= np.float32(threshold) and not (
        distinct and (c.prompt, c.completion) in seen):
      seen.add((c.prompt, c.completion))
      by_prompt.setdefault(c.prompt, []).append(i)
  # A limited number of each prompt.
  chosen = []
  for places in by_prompt.values():
    own = [i for i in places if candidates[i].score == np.inf]
    sampled = [i for i in places if candidates[i].score < np.inf]
    if per_problem and len(sampled) > per_problem:
      if choose == "random":
        sampled = rng.choice(sampled, per_problem, replace=False).tolist()
      else:
        sampled = sorted(sampled, key=lambda i: (-candidates[i].score, i))[:per_problem]
    chosen += own + sampled
  return [candidates[i] for i in sorted(chosen)]


def draw(
    kept: Sequence[Candidate], first: int, count: int, *, balance: bool, seed: int,
) -> list[Candidate]:
  """Draws numbers first ... first + count - 1 of an endless sequence.

  The sequence is all that is kept, shuffled, again and again. With `balance` each pass holds one
  candidate of each prompt, a random one.
  """
  by_prompt: dict[tuple[int, ...], list[Candidate]] = {}
  for c in kept:
    by_prompt.setdefault(c.prompt, []).append(c)
  size = len(by_prompt) if balance else len(kept)
  batch = []
  for epoch in range(first // size, (first + count - 1) // size + 1):
    rng = np.random.default_rng((seed, epoch))
    once = [own[rng.integers(len(own))] for own in by_prompt.values()] if balance else kept
    batch += [once[i] for n, i in enumerate(rng.permutation(size), epoch * size)
              if first <= n < first + count]
  return batch


def to_examples(candidates: Sequence[Candidate], max_tokens: int) -> Examples:
  """Lays candidates out as examples; only the tokens of completions are learnt."""
  rows = []
  for c in candidates:
    learnt = c.learnt or (True,) * len(c.completion)
    rows.append([
        (c.prompt, False),
        *(((token,), is_learnt) for token, is_learnt in zip(c.completion, learnt))])
  return Examples.of(rows, max_tokens)
