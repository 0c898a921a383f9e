"""Draws random numbers that are a pure function of a key.

So row i of a generated source costs the same in any order.
"""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import itertools
import operator
import struct
from typing import Any, TypeVar

import numpy as np

_WORDS = struct.Struct("<8Q")  # One digest of 64 bytes is eight numbers of 64 bits.
T = TypeVar("T")


class Draws:
  """Gives a stream of random numbers named by a key such as (seed, part, index).

  The numbers come from hashing rather than from `random.Random`: seeding a Mersenne twister costs
  as much as a whole row here, and only its `random()` promises the same numbers in later Python
  versions.
  """

  def __init__(self, *key: Any):
    """Starts the stream of a key; what counts is how the key's parts are written."""
    self._words = self._stream("/".join(map(str, key)).encode())

  @staticmethod
  def _stream(key):
    """Gives numbers of 64 bits without end: digests of the key with a running number."""
    for block in itertools.count():
      yield from _WORDS.unpack(hashlib.blake2b(b"%d/%s" % (block, key)).digest())

  def below(self, stop: int) -> int:
    """Draws uniformly from 0 ... stop - 1 (to within stop / 2^64)."""
    # The high half of the product: a range is scaled down without a division or a second draw.
    return next(self._words) * stop >> 64

  def between(self, low: int, high: int) -> int:
    """Draws uniformly from low ... high, both included."""
    return low + self.below(high - low + 1)

  def choice(self, items: Sequence[Any]) -> Any:
    """Draws one of the items."""
    return items[self.below(len(items))]

  def sample(self, items: Sequence[Any], count: int) -> list[Any]:
    """Draws `count` items in random order, no position twice."""
    rest = list(items)
    return [rest.pop(self.below(len(rest))) for _ in range(count)]

  def uniform(self) -> float:
    """Draws uniformly from [0, 1)."""
    return (next(self._words) >> 11) * 2.0 ** -53  # The 53 bits that a float holds exactly.

  def normal(self) -> float:
    """Draws from a normal distribution of mean 0 and deviation 1 (Box and Muller 1958)."""
    # 1 - u is in (0, 1], so that its logarithm is finite.
    return float(np.sqrt(-2 * np.log(1 - self.uniform())) * np.cos(2 * np.pi * self.uniform()))


def in_part(text: str, part: str) -> bool:
  """Says whether a text is part of "heldout", "train" or "all".

  A stable hash puts 1/8 of all texts in "heldout" and the rest in "train".
  """
  if part == "all":
    return True
  heldout = hashlib.blake2b(
      text.encode(), digest_size=1, person=b"rl_reason part").digest()[0] % 8 == 0
  return heldout == (part == "heldout")


def draw_in_part(
    draw: Callable[[], T], part: str, *, text: Callable[[T], str], index: int, tries: int,
    cure: str,
) -> T:
  """Returns the first of `tries` draws whose text is in the part; `in_part` says which texts are.

  Args:
    draw: makes a draw.
    part: "train", "heldout" or "all".
    text: gives the text of a draw.
    index: number of the row, for the error.
    tries: draws before giving up.
    cure: what to change, for the error.

  Raises: ValueError where no draw is in the part.
  """
  for _ in range(tries):
    found = draw()
    if in_part(text(found), part):
      return found
  raise ValueError(f"No {part!r} problem found for row {index} in {tries} tries: {cure}")


@dataclasses.dataclass(frozen=True)
class Generated(abc.ABC):
  """Makes `size` rows, each when it is asked for, from its index and the fields alone.

  size: number of rows.
  """
  size: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Any:
    # Takes any whole number, NumPy's too. Negative ones are refused: a source is no list.
    index = operator.index(index)
    if not 0 <= index < self.size:
      raise IndexError(f"Row {index} of a source with {self.size} rows.")
    return self.row(index)

  @abc.abstractmethod
  def row(self, index: int) -> Any:
    """Makes the Problem or Comparison at an index that exists."""
