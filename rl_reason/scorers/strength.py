"""Measures preference strength: how firmly an ensemble of reward models believes each label.

It also changes labels accordingly. Wang et al. 2024, "Secrets of RLHF in Large Language Models
Part II: Reward Modeling", arXiv:2401.06080, section 2: the pairs of lowest strength are mostly
wrong, the next ones say little, the others help.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float, Int
import numpy as np

from rl_reason.types import Comparison, Source


def strength(
    differences: Float[np.ndarray, "N M"],
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
  """Computes (mean, standard deviation) over M members of r(chosen) − r(rejected), for N pairs.

  Below a mean of 0 the ensemble doubts the label. The deviation divides by M, as in the paper
  (section 2.1, its eq. 3).
  """
  differences = np.asarray(differences, np.float64)
  return differences.mean(axis=1), differences.std(axis=1)


@dataclasses.dataclass(frozen=True)
class Relabel:
  """What strengths change about the pairs that a reward model learns from.

  votes: the earlier stage, of kind "voting", that measured the strengths of these very rows.
  part: (low, high), shares of all pairs by rising strength: only these are learnt from; (0.0, 0.2):
    the weakest fifth.
  flip: a share of all pairs, those of lowest strength, whose chosen and rejected sides change
    places. A pair with strength above 0 is never flipped: the ensemble agrees with its label.
  soften: α in [0, 0.5]: a label that the ensemble doubts (strength below 0) and that is not flipped
    becomes 1 − α.
  margin: a pair's margin becomes this number times its strength, a flipped pair's this number times
    its negated strength; 0 leaves margins alone. The paper prints the margin outside of the
    sigmoid, where it had no gradient: here the chosen side should win by it.
  """
  votes: str
  part: tuple[float, float] = (0.0, 1.0)
  flip: float = 0.0
  soften: float = 0.0
  margin: float = 0.0

  def __post_init__(self):
    low, high = self.part
    if not 0 <= low < high <= 1:
      raise ValueError(
          f"part must be rising shares in [0, 1], got {self.part}: (0.0, 0.2) is the weakest"
          " fifth.")
    for name, most in (("flip", 1.0), ("soften", 0.5)):
      if not 0 <= getattr(self, name) <= most:
        raise ValueError(f"{name} must be in [0, {most}], got {getattr(self, name)}.")
    if not 0 <= self.margin < float("inf"):
      raise ValueError(f"margin must be a finite number of at least 0, got {self.margin}.")


@dataclasses.dataclass(frozen=True)
class Relabelled:
  """The pairs of a source that a Relabel keeps, in the source's order, with changed labels.

  source: all pairs.
  relabel: what is changed.
  strengths: of all rows of the source.
  indices: rows of the source that are kept.
  flipped: rows of the source whose sides change places.
  """
  source: Source
  relabel: Relabel
  strengths: tuple[float, ...]
  indices: tuple[int, ...]
  flipped: frozenset[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Comparison:
    place = self.indices[index]
    row, mean = self.source[place], self.strengths[place]
    if place in self.flipped:
      row, mean = swapped(row), -mean
    elif self.relabel.soften and mean < 0:
      row = dataclasses.replace(row, soft_label=1 - self.relabel.soften)
    return (dataclasses.replace(row, margin=self.relabel.margin * mean) if self.relabel.margin
            else row)


def relabelled(source: Source, strengths: Sequence[float], relabel: Relabel) -> Relabelled:
  """Applies a Relabel.

  Raises: ValueError where there is not one finite strength for each row, or no row is left.
  """
  strengths = np.asarray(strengths, np.float64)
  if strengths.shape != (len(source),) or not np.isfinite(strengths).all():
    raise ValueError(
        f"{len(source)} pairs need as many finite strengths, got {strengths.shape} of which"
        f" {int((~np.isfinite(strengths)).sum())} are not finite: the voting stage must have the"
        " same data, and its members must not have diverged.")
  low, high = (round(share * len(source)) for share in relabel.part)
  if low == high:
    raise ValueError(f"part={relabel.part} of {len(source)} pairs is none: widen it.")
  order: Int[np.ndarray, "N"] = np.argsort(strengths, kind="stable")
  # Of the weakest pairs those with strength above 0 keep their labels: the ensemble agrees.
  weakest = order[:round(relabel.flip * len(source))]
  return Relabelled(
      source, relabel, tuple(strengths.tolist()), tuple(sorted(order[low:high].tolist())),
      frozenset(weakest[strengths[weakest] <= 0].tolist()))


def swapped(row: Comparison) -> Comparison:
  """Swaps a pair's sides: what was rejected is chosen. A soft label goes to the other side."""
  return dataclasses.replace(
      row, responses=row.responses[::-1], attributes=row.attributes[::-1], steps=row.steps[::-1])
