"""Random numbers that are a pure function of a key: row i of a generated source costs the same in any order."""

from collections.abc import Sequence
import hashlib
import itertools
import struct
from typing import Any

_WORDS = struct.Struct("<8Q")


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


def in_part(text: str, part: str) -> bool:
  """Whether a text belongs to a part: a stable hash puts 1/8 of all texts in "heldout", the rest in "train"."""
  if part == "all":
    return True
  heldout = hashlib.blake2b(text.encode(), digest_size=1, person=b"rl_reason part").digest()[0] % 8 == 0
  return heldout == (part == "heldout")
