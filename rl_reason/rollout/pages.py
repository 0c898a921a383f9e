"""Keeps track of which page of a pool holds which tokens of which completion.

This is the host's side of a paged cache, in plain NumPy (Kwon et al. 2023 (vLLM), arXiv:2309.06180,
sec. 4). There are three departures from the paper:

- A completion's prompt lies apart from the pages, once for its group.
- Pages are handed out between chunks, for what the last chunk sampled.
- The pool grows, where the paper's pool has one size and completions wait for pages.
"""

from collections.abc import Sequence

from jaxtyping import Int
import numpy as np

from rl_reason.models.attention import Pages
from rl_reason.rollout.decode import Paging
from rl_reason.rollout.schedule import FEWEST_SLOTS

# A place beyond any completion's tokens. It can be added to a prompt's length without overflow.
NOWHERE = 2**30


def pool_sizes(page_tokens: int, num_slots: int, max_tokens: int) -> list[int]:
  """Lists the sizes that a pool may have, in pages.

  They are 0, FEWEST_SLOTS times powers of two, and the pages that all slots fill at their longest.

  Args:
    page_tokens: tokens of a page.
    num_slots: most slots that decode at once.
    max_tokens: most tokens of a completion. Its last token is never read, so it needs no place.
  """
  most, sizes = num_slots * -(-(max_tokens - 1) // page_tokens), [0]
  while sizes[-1] < most:
    sizes.append(min(most, max(FEWEST_SLOTS, 2 * sizes[-1])))
  return sizes


class PageTable:
  """Hands out pages of `page_tokens` tokens to completions, and takes them back when those end.

  The pool takes the next of `pool_sizes` when it runs out of pages. It takes a smaller size, with
  its pages moved together, when a quarter of that size would stay free.

  page_tokens: tokens of a page.
  size: pages of the pool.
  """

  def __init__(self, page_tokens: int, num_slots: int, max_tokens: int):
    self.page_tokens, self.size = page_tokens, 0
    self._sizes = pool_sizes(page_tokens, num_slots, max_tokens)
    self._pages: dict[int, list[int]] = {}  # Completion -> its pages, in order.
    self._free: list[int] = []  # The page that is handed out next is the last one.

  def release(self, completions: Sequence[int]) -> None:
    """Takes back the pages of completions that ended."""
    for i in completions:
      self._free += self._pages.pop(int(i), [])

  def hold(
      self, completions: Sequence[int], lengths: Sequence[int]) -> Int[np.ndarray, "N"] | None:
    """Hands out pages, so that each completion has room for its tokens.

    Args:
      completions: all completions that go on.
      lengths: tokens that each of them needs room for.

    Returns: None if the pool keeps its size; else, for each page of the new pool, the old page
      whose content moves there.
    """
    needed = {int(i): -(-int(n) // self.page_tokens) for i, n in zip(completions, lengths)}
    total, moved = sum(needed.values()), None
    # Grow as soon as pages run out, but shrink only to a size of which a quarter stays free, so
    # that the pool does not change its size at every chunk.
    size = max(self._fit(total), min(self.size, self._fit(-(-total * 4 // 3))))
    if size != self.size:
      # Used pages move together to the front, in the order of the completions.
      moved, kept = np.zeros(size, np.int32), 0
      for i, pages in self._pages.items():
        moved[kept:kept + len(pages)] = pages
        self._pages[i], kept = (
            list(range(kept, kept + len(pages))), kept + len(pages))
      self.size, self._free = size, list(range(size - 1, kept - 1, -1))
    for i, count in needed.items():
      own = self._pages.setdefault(i, [])
      while len(own) < count:
        own.append(self._free.pop())
    return moved

  def _fit(self, pages: int) -> int:
    """Returns the smallest size of at least `pages` pages, or else the largest size."""
    return next((size for size in self._sizes if size >= pages), self._sizes[-1])

  def windows(
      self, completions: Int[np.ndarray, "B"], lengths: Int[np.ndarray, "B"], columns: int,
  ) -> tuple[Int[np.ndarray, "B W"], Int[np.ndarray, "B"]]:
    """Finds where a chunk's columns go: (windows, offsets), as in decode.append_to_pages.

    Args:
      completions: the completions in the slots while the chunk was sampled. The columns of
        completions without pages go nowhere.
      lengths: tokens that each of them had sampled before the chunk.
      columns: number of columns of the chunk.
    """
    # One page more than the columns fill, since the first column may go to the end of a page.
    windows = np.full(
        (len(completions), -(-columns // self.page_tokens) + 1), self.size, np.int32)
    first, offsets = np.divmod(lengths, self.page_tokens)
    for slot, i in enumerate(completions.tolist()):
      pages = self._pages.get(i, [])[first[slot]:][:windows.shape[1]]
      windows[slot, :len(pages)] = pages
    return windows, offsets.astype(np.int32)

  def paging(self, completions: Int[np.ndarray, "B"]) -> Paging | None:
    """Says who reads which page, for the completions in the slots; None without any pages."""
    if not self.size:
      return None
    # The table's width is a power of two, so that few programs are compiled.
    longest = max((len(pages) for pages in self._pages.values()), default=0)
    table = np.full((len(completions), 1 << max(0, longest - 1).bit_length()), -1, np.int32)
    owners, starts = np.zeros(self.size, np.int32), np.full(self.size, NOWHERE, np.int32)
    for slot, i in enumerate(completions.tolist()):
      pages = self._pages.get(i, [])
      table[slot, :len(pages)] = pages
      owners[pages], starts[pages] = slot, np.arange(len(pages)) * self.page_tokens
    return Paging(Pages(owners, table), starts)
