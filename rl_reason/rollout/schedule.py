"""Decides which completion sits in which slot: the host's side of continuous batching, in NumPy.

The number of slots, and the room for tokens of earlier chunks, take only a few sizes, each half of
the one before, so that a run compiles few programs. Completions that have ended make way at the
next chunk. The others move together when they fit into half the slots.
"""

import dataclasses

from jaxtyping import Bool, Int
import numpy as np

# Fewer rows cost no less: a matrix is read for one row just as for eight.
FEWEST_SLOTS = 8
# Tokens decoded on the device before the host looks again.
CHUNK_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Move:
  """Says where the slots of the next chunk come from.

  source: for each slot, the slot where its completion lies now; of no meaning where new or done.
  new: true where a completion starts.
  done: true where the slot is empty.
  """
  source: Int[np.ndarray, "B"]
  new: Bool[np.ndarray, "B"]
  done: Bool[np.ndarray, "B"]


class Schedule:
  """Leads P groups of G completions through at most `slots` slots.

  Completion i is part of group i // G.

  ids: the completion in each slot, -1 where empty.
  prompts: the row of the prompt cache that each slot reads.
  groups: the group in each row of the prompt cache, -1 where empty.
  """

  def __init__(self, num_prompts: int, group_size: int, slots: int):
    """Makes a schedule of which no completion has started.

    Args:
      num_prompts: number of groups, P.
      group_size: completions per group, G.
      slots: at least group_size; 0 for as many as there are completions.
    Raises: ValueError for too few slots.
    """
    total = num_prompts * group_size
    if slots and slots < group_size:
      raise ValueError(
          f"slots must be at least group_size, got {slots} for groups of {group_size}: a group"
          " shares its prompt's keys and values. Raise slots, or set 0 for as many as there are"
          " completions.")
    self.group_size = group_size
    slots = total if not slots or slots >= total else slots
    # Twice the groups that fill the slots: the last completions of a group go on while the next
    # groups start.
    rows = num_prompts if slots == total else min(num_prompts, 2 * -(-slots // group_size))
    self._sizes = [slots]
    while self._sizes[-1] > FEWEST_SLOTS:
      self._sizes.append(-(-self._sizes[-1] // 2))
    self.groups = np.full(rows, -1)
    self._next_group, self._num_groups = 0, num_prompts
    self._waiting: list[int] = []  # Completions whose prompt is in the cache.
    self._reading = 0  # Groups whose prompt is on its way there.
    self._unfinished = np.full(num_prompts, group_size)
    self.ids, self.prompts = np.full(0, -1), np.zeros(0, np.int32)

  @property
  def num_slots(self) -> int:
    """Returns the most slots there can be: the number asked for, or that of all completions."""
    return self._sizes[0]

  @property
  def active(self) -> Bool[np.ndarray, "B"]:
    """Tells which slots hold a completion."""
    return self.ids >= 0

  @property
  def finished(self) -> bool:
    """Tells whether all completions have ended."""
    return not self._unfinished.any()

  @property
  def idle(self) -> bool:
    """Tells whether at most half of the slots have something to decode."""
    return int(self.active.sum()) + len(self._waiting) <= self.num_slots // 2

  def admit(self, at_least: int = 1) -> tuple[Int[np.ndarray, "A"], Int[np.ndarray, "A"]]:
    """Chooses the groups whose prompts are read next. Their completions wait for `prompts_read`.

    Args:
      at_least: choose none while fewer than `at_least` rows of the prompt cache are free.

    Returns: (rows of the prompt cache, the groups to read into them).
    """
    free = np.flatnonzero(self.groups < 0)[:self._num_groups - self._next_group]
    # With nothing to decode or read, waiting would never end: then even one row is used.
    if len(free) < at_least and (self._waiting or self._reading or self.active.any()):
      free = free[:0]
    new = self._next_group + np.arange(len(free))
    self.groups[free], self._next_group = new, self._next_group + len(free)
    self._reading += len(free)
    return free, new

  def prompts_read(self, groups: Int[np.ndarray, "A"]) -> None:
    """Says that groups that were admitted are in the cache, so that their completions may start."""
    self._waiting += [
        int(i) for group in groups
        for i in group * self.group_size + np.arange(self.group_size)]
    self._reading -= len(groups)

  def arrange(self) -> Move:
    """Fills free slots with waiting completions, in the smallest size that holds all.

    Returns: where the slots of the next chunk come from.
    """
    # The running completions: they stay where they are unless the size changes.
    active = np.flatnonzero(self.active)
    wanted = min(len(active) + len(self._waiting), self._sizes[0])
    size = min(s for s in self._sizes if s >= wanted)
    if size == len(self.ids):
      source, ids, prompts = np.arange(size), self.ids.copy(), self.prompts.copy()
    else:
      source, ids, prompts = np.zeros(size, int), np.full(size, -1), np.zeros(size, np.int32)
      source[:len(active)], ids[:len(active)], prompts[:len(active)] = (
          active, self.ids[active], self.prompts[active])
    # The waiting ones, into free slots.
    free = np.flatnonzero(ids < 0)[:len(self._waiting)]
    new = np.zeros(size, bool)
    new[free] = True
    starting, self._waiting = (
        np.array(self._waiting[:len(free)], int), self._waiting[len(free):])
    row_of = {group: row for row, group in enumerate(self.groups.tolist())}
    ids[free], prompts[free] = starting, [row_of[i // self.group_size] for i in starting.tolist()]
    self.ids, self.prompts = ids, prompts
    return Move(source, new, ids < 0)

  def enough(self) -> int:
    """Returns the number of running completions at which a chunk should end early.

    It ends early to start other completions in free slots, or to move the rest together.
    """
    # To start others: once an eighth of the slots has become free. With none to start: once the
    # rest fits into a smaller size.
    running = int(self.active.sum())
    if self._waiting or self._reading or self._next_group < self._num_groups:
      return max(0, running - max(1, len(self.ids) // 8))
    return max((s for s in self._sizes if s < running), default=0)

  def finish(self, slots: Int[np.ndarray, "A"]) -> None:
    """Empties slots whose completions ended."""
    np.subtract.at(self._unfinished, self.ids[slots] // self.group_size, 1)
    self.ids[slots] = -1
    # A row of the prompt cache is free once its whole group has ended.
    ended = (self.groups >= 0) & (self._unfinished[self.groups] == 0)
    self.groups[ended] = -1

  def sharing(self) -> tuple[Int[np.ndarray, "N G"], Int[np.ndarray, "B"]] | None:
    """Returns (members, places) as in models.attention.Sharing.

    Returns None where every group lies whole and in order.
    """
    n, g = len(self.groups), self.group_size
    if np.array_equal(self.prompts, np.repeat(np.arange(n), g)):
      return None
    members, places, count = (
        np.zeros((n, g), np.int32), np.zeros(len(self.ids), np.int32), np.zeros(n, int))
    for slot in np.flatnonzero(self.active):
      row = self.prompts[slot]
      members[row, count[row]], places[slot] = slot, row * g + count[row]
      count[row] += 1
    return members, places


def capacity(tokens: int, chunk_size: int) -> int:
  """Returns room for at least `tokens` tokens: none, or `chunk_size` times a power of two."""
  return 0 if tokens == 0 else chunk_size << max(0, -(-tokens // chunk_size) - 1).bit_length()
