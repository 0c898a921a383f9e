"""One rollout as the host holds it, between sampling and learning."""

import base64
from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.rollout.generate import Completions
from rl_reason.types import PromptBatch


@dataclasses.dataclass(frozen=True)
class Rollout:
  """What one step sampled and how it was judged: all groups, on every process.

  index: of the step. scores: weighted rewards, one per completion; components: each reward by itself.
  shown: a completion to show. seconds: what it took, by metric name; also what the rewards tell of themselves.
  """
  index: int
  prompts: PromptBatch
  completions: Completions
  scores: Float[np.ndarray, "B"]
  components: Mapping[str, Float[np.ndarray, "B"]]
  shown: str
  seconds: Mapping[str, float]

  def to_json(self) -> dict[str, Any]:
    """Plain data; `from_json` gives the same bits back."""
    def plain(arrays):
      return {name: _to_json(array) for name, array in arrays.items()}
    return {"index": self.index, "prompts": plain(vars(self.prompts)), "completions": plain(vars(self.completions)),
            "scores": _to_json(self.scores), "components": plain(self.components), "shown": self.shown,
            "seconds": dict(self.seconds)}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> "Rollout":
    def arrays(part):
      return {name: _from_json(array) for name, array in part.items()}
    return cls(data["index"], PromptBatch(**arrays(data["prompts"])), Completions(**arrays(data["completions"])),
               _from_json(data["scores"]), arrays(data["components"]), data["shown"], data["seconds"])


def _to_json(array: np.ndarray) -> dict[str, Any]:
  array = np.asarray(array)
  return {"dtype": array.dtype.str, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def _from_json(data: Mapping[str, Any]) -> np.ndarray:
  return np.frombuffer(base64.b64decode(data["base64"]), data["dtype"]).reshape(data["shape"]).copy()
