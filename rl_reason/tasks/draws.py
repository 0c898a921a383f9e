"""Random numbers that are a pure function of a key: row i of a generated source costs the same in any order."""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import itertools
import operator
import struct
from typing import Any, TypeVar

import numpy as np

_WORDS = struct.Struct("<8Q")
T = TypeVar("T")


class Draws:
  """A stream of random numbers named by a key such as (seed, part, index).

  Made by hashing rather than with `random.Random`: seeding a Mersenne twister costs as much as a whole row here, and
  only its `random()` promises the same numbers in later Python versions.
  """

  def __init__(self, *key: Any):
    self._words = self._stream("/".join(map(str, key)).encode())

  @staticmethod
  def _stream(key):
    for block in itertools.count():
      yield from _WORDS.unpack(hashlib.blake2b(b"%d/%s" % (block, key)).digest())

  def below(self, stop: int) -> int:
    """Uniform over 0 ... stop - 1 (to within stop / 2^64)."""
    return next(self._words) * stop >> 64

  def between(self, low: int, high: int) -> int:
    """Uniform over low ... high, both included."""
    return low + self.below(high - low + 1)

  def choice(self, items: Sequence[Any]) -> Any:
    return items[self.below(len(items))]

  def sample(self, items: Sequence[Any], count: int) -> list[Any]:
    """`count` items in random order, no position twice."""
    rest = list(items)
    return [rest.pop(self.below(len(rest))) for _ in range(count)]

  def uniform(self) -> float:
    """In [0, 1)."""
    return (next(self._words) >> 11) * 2.0 ** -53

  def normal(self) -> float:
    """Of mean 0 and deviation 1 (Box and Muller 1958)."""
    return float(np.sqrt(-2 * np.log(1 - self.uniform())) * np.cos(2 * np.pi * self.uniform()))


def in_part(text: str, part: str) -> bool:
  """Whether a text belongs to a part: a stable hash puts 1/8 of all texts in "heldout", the rest in "train"."""
  if part == "all":
    return True
  heldout = hashlib.blake2b(text.encode(), digest_size=1, person=b"rl_reason part").digest()[0] % 8 == 0
  return heldout == (part == "heldout")


def draw_in_part(draw: Callable[[], T], part: str, *, text: Callable[[T], str], index: int, tries: int, cure: str) -> T:
  """The first of `tries` draws whose text belongs to the part; `in_part` says which do.

  Raises: ValueError that names the row `index` and ends with the cure, where none does.
  """
  for _ in range(tries):
    found = draw()
    if in_part(text(found), part):
      return found
  raise ValueError(f"No {part!r} problem found for row {index} in {tries} tries: {cure}")


@dataclasses.dataclass(frozen=True)
class Generated(abc.ABC):
  """A source of `size` rows, each made when it is asked for, from its index and the fields alone."""
  size: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Any:
    index = operator.index(index)
    if not 0 <= index < self.size:
      raise IndexError(f"Row {index} of a source with {self.size} rows.")
    return self.row(index)

  @abc.abstractmethod
  def row(self, index: int) -> Any:
    """The Problem or Comparison at an index that there is."""
