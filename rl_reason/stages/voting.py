"""Lets reward models vote: keeps their score differences on every training pair.

Later stages relabel by these differences (rl_reason.scorers.strength). Nothing is trained: a step
scores a stretch of the pairs with every member, so that a stopped run continues where it was.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Float
import numpy as np

from rl_reason.config import naming, recorded
from rl_reason.config.checks import at_least
from rl_reason.evaluation import ranking
from rl_reason.runtime import memory as memory_lib
from rl_reason.scorers.scorer import Scorer
from rl_reason.scorers.strength import strength
from rl_reason.stages.base import first_rows, Kind, Stage, StepResult, Trained
from rl_reason.stages.context import Context
from rl_reason.tasks.registry import load_task, TaskSection
from rl_reason.types import Comparison, Params, Source


@dataclasses.dataclass(frozen=True)
class Config:
  """The section of a voting stage.

  num_steps: stretches in which the pairs are scored.
  data: its training half is voted on, and holds pairs only. Stages that relabel have the same
    section.
  members: earlier stages with reward models, or other runs' (Models.find). They are best trained on
    the same pairs in other orders, for one epoch: strength is optimistic where members know the
    pairs by heart.
  wrong: a key of the rows' metadata that is true where the label is known to be wrong, for measures
    of the votes; "": there is none.
  start: has no effect, for nothing is trained.
  """
  kind: naming.Name
  num_steps: int
  data: TaskSection
  members: tuple[str, ...]
  wrong: str = ""
  start: str = ""

  def __post_init__(self):
    at_least(1, num_steps=self.num_steps)
    if len(self.members) < 2 or len(set(self.members)) < len(self.members):
      raise ValueError(
          f"members must be two reward models or more, each once, got {self.members}: the strength"
          " is their mean.")


def trained(config: Config, context: Context, name: str) -> Trained:
  """Describes {"differences": members' score differences chosen − rejected, [pairs, members]}."""
  shape = jax.ShapeDtypeStruct((len(_pairs(config)), len(config.members)), jnp.float32)
  shapes = context.abstract({"differences": shape}, {"differences": PartitionSpec()})
  return Trained(shapes, policy=None)


def check(config: Config, context: Context, name: str) -> None:
  """Raises: ValueError for members that are no reward models, and for rows that are no pairs."""
  for member in config.members:
    context.earlier.scorer(member)
  for row in first_rows(_pairs(config)):
    _check_pair(row, config)


def memory(config: Config, context: Context, name: str) -> list[memory_lib.Part]:
  """Estimates what a device needs: all members at once."""
  size = len(config.members) * memory_lib.sharded_bytes(context.abstract_params)
  return [memory_lib.Part("reward models that vote", size, "vote with fewer members")]


def differences_of(votes: Any) -> Float[np.ndarray, "N M"]:
  """Reads the differences out of what a finished stage left."""
  return np.asarray(votes["differences"])


def build(config: Config, context: Context, params: Params, name: str) -> Stage:
  """Builds the stage. It ignores `params`, the policy that it would start from."""
  del params
  shapes = trained(config, context, name).shapes
  votes = Votes(
      config, _pairs(config), [context.earlier.scorer(member) for member in config.members],
      shapes["differences"])
  return Stage(num_steps=config.num_steps, init=votes.init, state_shape=shapes, step=votes.step,
               evaluate=votes.evaluate, data=InOrder(votes.pairs, votes.size))


@dataclasses.dataclass(frozen=True)
class Votes:
  """The vote of a stage, a stretch of pairs at each step.

  config: section of the stage.
  pairs: the pairs that are voted on.
  members: the reward models that vote, M.
  differences: shape [N, M], dtype and sharding of the state: chosen less rejected of each pair, by
    each member.
  """
  config: Config
  pairs: Source
  members: list[Scorer]
  differences: jax.ShapeDtypeStruct

  @property
  def size(self) -> int:
    """Returns the number of pairs of a step."""
    return -(-len(self.pairs) // self.config.num_steps)

  def init(self) -> dict[str, jax.Array]:
    """Makes the state before the first vote: zeros."""
    return self._placed(np.zeros(self.differences.shape, np.float32))

  def step(
      self, votes: dict[str, jax.Array], rows: list[Comparison], index: int,
  ) -> tuple[dict[str, jax.Array], StepResult]:
    """Lets every member vote on a stretch of pairs."""
    found, tokens = np.zeros((len(rows), len(self.members)), np.float32), 0
    for row in rows:
      _check_pair(row, self.config)
    # Each member's score difference on each pair of the stretch.
    for m, member in enumerate(self.members):
      encoded = member.encode_rows([(row.prompt, row.responses) for row in rows])
      tokens += sum(len(ids) for one in encoded for ids in one.responses)
      totals = [scored.totals.mean(axis=-1) for scored in member(encoded)]
      found[:, m] = [chosen - rejected for chosen, rejected in totals]
    # The stretch is written into a copy of the state, at its place among all pairs.
    everything = differences_of(votes).copy()
    everything[index * self.size:index * self.size + len(rows)] = found
    mean, deviation = strength(found) if rows else (np.zeros(1), np.zeros(1))
    return self._placed(everything), StepResult(
        {"strength/mean": float(mean.mean()), "strength/deviation": float(deviation.mean()),
         "strength/negative": float((mean < 0).mean())}, tokens=float(tokens))

  def evaluate(self, votes: dict[str, jax.Array]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures all votes, and lists the pairs from the weakest preference to the strongest."""
    mean, deviation = strength(differences_of(votes))
    order, wrong = np.argsort(mean, kind="stable"), self.config.wrong
    rows = [self.pairs[int(i)] for i in order]
    shown = [{"id": row.id, "strength": m, "deviation": d,
              "chosen": row.responses[0], "rejected": row.responses[1],
              **({wrong: row.metadata.get(wrong)} if wrong else {})}
             for row, m, d in zip(rows, mean[order].tolist(), deviation[order].tolist())]
    known = [bool(row.metadata.get(wrong)) for row in rows] if wrong else None
    return votes_metrics(mean[order], known), shown

  def _placed(self, differences: np.ndarray) -> dict[str, jax.Array]:
    return {"differences": jax.device_put(differences, self.differences.sharding)}


def votes_metrics(
    mean: Float[np.ndarray, "N"], wrong: list[bool] | None) -> dict[str, float]:
  """Measures the strengths of pairs, and how well low strength finds known wrong labels.

  Args:
    mean: strengths in rising order.
    wrong: whether each pair's label is known to be wrong; None: not known.

  Returns: mean and share below 0; with `wrong` the area under the curve of finding wrong labels by
    low strength, and their share in each fifth of the pairs.
  """
  metrics = {"eval/strength": float(mean.mean()),
             "eval/strength_negative": float((mean < 0).mean())}
  if wrong is None:
    return metrics
  found = ranking.area_under_curve((-mean).tolist(), wrong)
  fifths = np.array_split(np.array(wrong, np.float64), 5)
  return {**metrics, **({} if found is None else {"eval/wrong_auc": found}),
          **{f"eval/wrong_in_fifth_{i + 1}": float(part.mean())
             for i, part in enumerate(fifths) if part.size}}


class InOrder:
  """Yields the rows of a source once, `size` at a time, then none; resumable."""

  def __init__(self, source: Source, size: int):
    self._source, self._size, self._next = source, size, 0

  def __next__(self) -> list[Comparison]:
    start = self._next
    self._next = min(start + self._size, len(self._source))
    return [self._source[i] for i in range(start, self._next)]

  def get_state(self) -> dict[str, Any]:
    return {"next": self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    self._next = state["next"]


def _pairs(config: Config) -> Source:
  return _read(_Data(json.dumps(recorded.plain(vars(config.data)), sort_keys=True), config.data))


@dataclasses.dataclass(frozen=True)
class _Data:
  """Names data so that it can be looked up: two of equal names are equal.

  name: the section as its record holds it.
  section: the section itself, which may hold functions and rows.
  """
  name: str
  section: TaskSection = dataclasses.field(compare=False)


# A stage's shapes, which depend on the number of pairs, are asked for many times.
@functools.lru_cache(maxsize=2)
def _read(data: _Data) -> Source:
  section = data.section
  return load_task(
      section.source, section.args, section.train, section.heldout, section.shared_prompts).train


def _check_pair(row: Comparison, config: Config) -> None:
  if len(row.responses) != 2 or row.preference is None:
    raise ValueError(
        f"Row {row.id!r} of {config.data.source!r} has {len(row.responses)} responses with scores"
        f" {row.scores}: votes"
        " are on pairs of which one is the better. Leave it out of the data, or make pairs of it.")
  if config.wrong and config.wrong not in row.metadata:
    raise ValueError(
        f"Row {row.id!r} has no {config.wrong!r} in its metadata, which config.wrong names; it has"
                     f" {', '.join(row.metadata) or 'none'}.")


KIND = Kind(Config=Config, check=check, memory=memory, trained=trained, build=build)
