"""Records one rollout as the host holds it, between sampling and learning."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
from jaxtyping import Float, Int
import numpy as np

from rl_reason.arrays import Inputs
from rl_reason.rollout.generate import blank_completions, Completions


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Holds what one step sampled and how it was judged: all groups, on every process.

  index: number of the step.
  prompts: the prompts, one per group.
  completions: the completions of all groups.
  scores: weighted sum of the rewards, one number per completion.
  rewards: the same per token: a row sums to the score of its completion; zero after its end.
  components: each reward alone, by name.
  shown: a completion to show to the user.
  seconds: seconds that parts of the step took, by metric name.
  metrics: other numbers that are logged about the rollout, with those that the rewards report.
  """
  index: int
  prompts: Inputs
  completions: Completions
  scores: Float[np.ndarray, "B"]
  rewards: Float[np.ndarray, "B T"]
  components: Mapping[str, Float[np.ndarray, "B"]]
  shown: str = ""
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def group_size(self) -> int:
    """Returns the number of completions per prompt."""
    return len(self.scores) // len(self.prompts.lengths)

  def take(self, groups: Int[np.ndarray, "N"]) -> "Rollout":
    """Returns a rollout of these groups alone, in this order."""
    rows = (np.asarray(groups)[:, None] * self.group_size
            + np.arange(self.group_size)).reshape(-1)
    completions, scores, rewards, components = jax.tree.map(
        lambda x: x[rows], (self.completions, self.scores, self.rewards, dict(self.components)))
    return dataclasses.replace(
        self, prompts=jax.tree.map(lambda x: x[groups], self.prompts), completions=completions,
        scores=scores, rewards=rewards, components=components)

  @property
  def shape(self) -> dict[str, Any]:
    """Returns what decides the shapes of an update on this rollout, as plain data."""
    return {"prompts": list(self.prompts.tokens.shape),
            "max_tokens": self.completions.tokens.shape[1],
            "lengths": self.completions.lengths.tolist(),
            "observed": self.completions.observed is not None}

  @classmethod
  def blank(cls, index: int, shape: Mapping[str, Any]) -> "Rollout":
    """Makes a rollout of this `shape`, with zeros in place of its tokens and numbers."""
    count, prompts = len(shape["lengths"]), shape["prompts"]
    completions = blank_completions(count, shape["max_tokens"])
    completions = dataclasses.replace(
        completions, lengths=np.array(shape["lengths"], np.int32),
        observed=np.zeros(completions.tokens.shape, bool) if shape["observed"] else None)
    return cls(
        index, Inputs(np.zeros(prompts, np.int32), np.zeros(prompts[0], np.int32)), completions,
        scores=np.zeros(count, np.float32),
        rewards=np.zeros(completions.tokens.shape, np.float32), components={})

  @classmethod
  def join(cls, rollouts: Sequence["Rollout"]) -> "Rollout":
    """Joins the groups of several rollouts, one rollout after the other.

    Index, shown and metrics are those of the first rollout; seconds are summed over all.
    """
    # Prompts are padded to the widest, since each rollout may have another width.
    first, width = rollouts[0], max(r.prompts.tokens.shape[1] for r in rollouts)
    prompts = [
        r.prompts.replace(
            tokens=np.pad(r.prompts.tokens, ((0, 0), (0, width - r.prompts.tokens.shape[1]))))
        for r in rollouts]
    prompts, completions, scores, rewards, components = jax.tree.map(
        lambda *x: np.concatenate(x),
        *((p, r.completions, r.scores, r.rewards, dict(r.components))
          for p, r in zip(prompts, rollouts)))
    return dataclasses.replace(
        first, prompts=prompts, completions=completions, scores=scores, rewards=rewards,
        components=components,
        seconds={name: sum(r.seconds[name] for r in rollouts) for name in first.seconds})

  def to_json(self) -> dict[str, Any]:
    """Returns the rollout as plain data, from which `from_json` restores the same bits."""
    def plain(arrays):
      return {name: _to_json(array) for name, array in arrays.items() if array is not None}
    return {"index": self.index, "prompts": plain(vars(self.prompts)),
            "completions": plain(vars(self.completions)), "scores": _to_json(self.scores),
            "rewards": _to_json(self.rewards), "components": plain(self.components),
            "shown": self.shown, "seconds": dict(self.seconds), "metrics": dict(self.metrics)}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> "Rollout":
    """Restores a rollout from what `to_json` returned."""
    def arrays(part):
      return {name: _from_json(array) for name, array in part.items()}
    return cls(
        data["index"], Inputs(**arrays(data["prompts"])),
        Completions(**arrays(data["completions"])), _from_json(data["scores"]),
        _from_json(data["rewards"]), arrays(data["components"]), data["shown"], data["seconds"],
        data["metrics"])


def _to_json(array: np.ndarray) -> dict[str, Any]:
  """Returns an array as plain data, bit for bit."""
  # The raw bytes, since decimal numbers might not give the same bits back.
  array = np.asarray(array)
  return {"dtype": array.dtype.str, "shape": list(array.shape),
          "base64": base64.b64encode(array.tobytes()).decode()}


def _from_json(data: Mapping[str, Any]) -> np.ndarray:
  """Restores an array from what `_to_json` returned."""
  # A copy, because an array over the decoded bytes could not be written to.
  return np.frombuffer(
      base64.b64decode(data["base64"]), data["dtype"]).reshape(data["shape"]).copy()
