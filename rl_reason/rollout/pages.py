"""Which page of a pool holds which tokens of which completion: the host's side of a paged cache, plain NumPy.

Kwon et al. 2023 (vLLM), arXiv:2309.06180, sec. 4. Here a completion's prompt lies apart, once for its group, pages are handed
out between chunks for what the last one sampled, and the pool grows where theirs has one size and completions wait.
"""

from collections.abc import Sequence

from jaxtyping import Int
import numpy as np

from rl_reason.models.attention import Pages
from rl_reason.rollout.decode import Paging
from rl_reason.rollout.schedule import FEWEST_SLOTS

NOWHERE = 2**30  # Beyond any completion's tokens; added to a prompt's length it is still a number.


def pool_sizes(page_tokens: int, num_slots: int, max_tokens: int) -> list[int]:
  """The sizes a pool may have, pages: 0, FEWEST_SLOTS times powers of two, and what all slots fill at their longest.

  Args:
    max_tokens: of a completion. Its last token is never read, so it needs no place.
  """
  most, sizes = num_slots * -(-(max_tokens - 1) // page_tokens), [0]
  while sizes[-1] < most:
    sizes.append(min(most, max(FEWEST_SLOTS, 2 * sizes[-1])))
  return sizes


class PageTable:
  """Pages of `page_tokens` tokens, handed out to completions and taken back when they end.

  The pool takes the next of `pool_sizes` when it runs out, and a smaller one, its pages moved together, when a quarter of
  that would stay free.

  size: of the pool, pages.
  """

  def __init__(self, page_tokens: int, num_slots: int, max_tokens: int):
    self.page_tokens, self.size = page_tokens, 0
    self._sizes = pool_sizes(page_tokens, num_slots, max_tokens)
    self._pages: dict[int, list[int]] = {}  # Completion -> its pages, in order.
    self._free: list[int] = []  # The next one last.

  def release(self, completions: Sequence[int]) -> None:
    """Takes back the pages of completions that ended."""
    for i in completions:
      self._free += self._pages.pop(int(i), [])

  def hold(self, completions: Sequence[int], lengths: Sequence[int]) -> Int[np.ndarray, "N"] | None:
    """Hands out pages, such that these completions, all that go on, have room for so many tokens.

    Returns: None, or where the pool gets another size, per page the one whose content moves there.
    """
    needed = {int(i): -(-int(n) // self.page_tokens) for i, n in zip(completions, lengths)}
    total, moved = sum(needed.values()), None
    size = max(self._fit(total), min(self.size, self._fit(-(-total * 4 // 3))))
    if size != self.size:
      moved, kept = np.zeros(size, np.int32), 0
      for i, pages in self._pages.items():
        moved[kept:kept + len(pages)] = pages
        self._pages[i], kept = list(range(kept, kept + len(pages))), kept + len(pages)
      self.size, self._free = size, list(range(size - 1, kept - 1, -1))
    for i, count in needed.items():
      own = self._pages.setdefault(i, [])
      while len(own) < count:
        own.append(self._free.pop())
    return moved

  def _fit(self, pages: int) -> int:
    return next((size for size in self._sizes if size >= pages), self._sizes[-1])

  def windows(
      self, completions: Int[np.ndarray, "B"], lengths: Int[np.ndarray, "B"], columns: int,
  ) -> tuple[Int[np.ndarray, "B W"], Int[np.ndarray, "B"]]:
    """Where a chunk's columns go, as in decode.append_to_pages: (windows, offsets).

    Args:
      completions: in the slots while it was sampled; those without pages go nowhere. lengths: what each had sampled before.
      columns: of the chunk.
    """
    windows = np.full((len(completions), -(-columns // self.page_tokens) + 1), self.size, np.int32)
    first, offsets = np.divmod(lengths, self.page_tokens)
    for slot, i in enumerate(completions.tolist()):
      pages = self._pages.get(i, [])[first[slot]:][:windows.shape[1]]
      windows[slot, :len(pages)] = pages
    return windows, offsets.astype(np.int32)

  def paging(self, completions: Int[np.ndarray, "B"]) -> Paging | None:
    """Who reads which page, for the completions in the slots; None while there are no pages."""
    if not self.size:
      return None
    longest = max((len(pages) for pages in self._pages.values()), default=0)
    table = np.full((len(completions), 1 << max(0, longest - 1).bit_length()), -1, np.int32)
    owners, starts = np.zeros(self.size, np.int32), np.full(self.size, NOWHERE, np.int32)
    for slot, i in enumerate(completions.tolist()):
      pages = self._pages.get(i, [])
      table[slot, :len(pages)] = pages
      owners[pages], starts[pages] = slot, np.arange(len(pages)) * self.page_tokens
    return Paging(Pages(owners, table), starts)
