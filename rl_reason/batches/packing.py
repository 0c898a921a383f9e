"""Packs a group's completions side by side in rows, so that an update computes little padding.

Half of a group's completions often end in the first quarter of the room that the longest one needs.
When packed, a group of G rows becomes R rows of `size` tokens. Each completion still attends only
to its group's prompt and to itself. R and size come from short lists, since each pair is a program
to compile.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jaxtyping import Int
import numpy as np

from rl_reason.arrays import length_mask, RolloutBatch

# Tokens of a row. Shorter rows save nothing and cost a program; wider ones cost attention.
SHORTEST, WIDEST = 16, 256

# Prompt and completion tokens with which one pass through the model is fastest. A CPU's caches hold
# the activations of about this number (measured: 15.7M parameters, 512 + 96 tokens a pass take 0.85
# of the time of 4096 + 768). Accelerators want more.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_ELSEWHERE = 2**15


def tokens_per_pass() -> int:
  """Returns the number of tokens with which one pass is fastest on this machine, per device."""
  return TOKENS_PER_PASS.get(jax.default_backend(), TOKENS_PER_PASS_ELSEWHERE)


def num_passes(num_groups: int, group_size: int, tokens_per_group: int, ways: int) -> int:
  """Returns the number of passes, each of equally many groups.

  Each pass has at most about TOKENS_PER_PASS tokens a device, and its rows can be divided by the
  devices.

  Args:
    num_groups: groups of all passes.
    group_size: completions per group.
    tokens_per_group: tokens of a prompt and its completions at full length.
    ways: number of devices that share the rows.
  """
  wanted = ways * tokens_per_pass() / tokens_per_group
  parts = [n for n in range(1, num_groups + 1)
           if num_groups % n == 0 and num_groups // n * group_size % ways == 0]
  # The fewest passes that are small enough; if none are, the most passes there can be.
  return next((n for n in parts if num_groups / n <= wanted), max(parts, default=1))


@dataclasses.dataclass(frozen=True)
class Packing:
  """Says where the tokens of B completions, P groups of G, lie in P groups of R rows.

  row: the row of each completion.
  start: the place in its row of each completion's first token.
  lengths: tokens of each completion.
  num_rows: rows of all groups, P * R.
  size: tokens of a row.
  """
  row: Int[np.ndarray, "B"]
  start: Int[np.ndarray, "B"]
  lengths: Int[np.ndarray, "B"]
  num_rows: int
  size: int

  @classmethod
  def of(
      cls, lengths: Int[np.ndarray, "B"], group_size: int, max_tokens: int, *, divisor: int = 1,
      together: bool = True, steps: int = 4,
  ) -> "Packing":
    """Packs completions group by group: first fit, longest first.

    This needs at most 11/9 of the best number of rows (Johnson 1973). Rows are as long as the
    longest completion, or twice or four times as long where this leaves less padding.

    Args:
      lengths: tokens of each completion.
      group_size: completions per group, G.
      max_tokens: most tokens of a completion.
      divisor: number of devices that share the rows. The number of rows stays a multiple of it
        where the number of completions is one.
      together: false for a row per completion; then only the common padding is cut.
      steps: number of different row counts that a group may get; more steps leave less padding and
        make more programs.
    """
    # A row per completion is where the search starts.
    shortest, num_groups = row_size(lengths, max_tokens), len(lengths) // group_size
    best = cls(np.arange(len(lengths)), np.zeros_like(lengths), lengths, len(lengths), shortest)
    if not together:
      return best
    for times in (1, 2, 4):
      size = shortest * times
      # Too wide rows cost attention, and a row longer than the whole group has no use.
      if times > 1 and size > WIDEST or times > group_size:
        break
      filled = [_first_fit(group, size) for group in lengths.reshape(num_groups, group_size)]
      # All groups get the rows of the group that needs most, so that one shape holds them.
      needed = max(int(row.max()) + 1 for row, _ in filled)
      rows = rows_per_group(needed, -(-group_size // times), num_groups, divisor, steps)
      # Keep what has the fewest tokens, padding included.
      if rows is not None and num_groups * rows * size < best.num_rows * best.size:
        row = np.concatenate([g * rows + row for g, (row, _) in enumerate(filled)])
        best = cls(row, np.concatenate([start for _, start in filled]), lengths, num_groups * rows,
                   size)
    return best

  @property
  def _places(self) -> tuple[np.ndarray, np.ndarray]:
    """Lists (completion, token) of all tokens, as two arrays."""
    return np.nonzero(length_mask(self.lengths, self.lengths.max(initial=0)))

  def pack(self, x: np.ndarray) -> np.ndarray:
    """Packs [B T] into [num_rows size], with zeros between."""
    completion, token = self._places
    out = np.zeros((self.num_rows, self.size), x.dtype)
    out[self.row[completion], self.start[completion] + token] = x[completion, token]
    return out

  def unpack(self, x: np.ndarray, max_tokens: int) -> np.ndarray:
    """Unpacks [num_rows size] into [B max_tokens], with zeros after each completion's end."""
    completion, token = self._places
    out = np.zeros((len(self.lengths), max_tokens), x.dtype)
    out[completion, token] = x[self.row[completion], self.start[completion] + token]
    return out

  @property
  def segments(self) -> Int[np.ndarray, "R size"] | None:
    """Returns per token the place in its row where its completion begins; None: one per row.

    A token of padding begins with itself.
    """
    if not self.start.any():
      return None
    out = np.broadcast_to(np.arange(self.size, dtype=np.int32), (self.num_rows, self.size)).copy()
    completion, token = self._places
    out[self.row[completion], self.start[completion] + token] = self.start[completion]
    return out

  @property
  def row_lengths(self) -> Int[np.ndarray, "R"]:
    """Returns the tokens in each row."""
    out = np.zeros(self.num_rows, np.int32)
    np.add.at(out, self.row, self.lengths)
    return out


def row_size(lengths: Int[np.ndarray, "B"], max_tokens: int) -> int:
  """Returns room for the longest completion: max_tokens, or a half, a quarter ... of it."""
  size, longest = max_tokens, int(lengths.max(initial=1))
  while (half := -(-size // 2)) >= max(longest, SHORTEST):
    size = half
  return size


def rows_per_group(
    needed: int, most: int, num_groups: int, divisor: int, steps: int = 4) -> int | None:
  """Returns a number of rows per group: at least `needed`, in `steps` parts of `most`.

  Args:
    needed: rows that the fullest group needs.
    most: the largest number of rows.
    num_groups: number of groups.
    divisor: a number that must divide the rows of all groups together.
    steps: number of different row counts; 4 means quarters of `most`.

  Returns: the number; None where none is large enough and can be divided.
  """
  counts = (-(-most * k // steps) for k in range(1, steps + 1))
  return next(
      (rows for rows in counts if rows >= needed and num_groups * rows % divisor == 0), None)


def _first_fit(
    lengths: Int[np.ndarray, "G"], size: int) -> tuple[Int[np.ndarray, "G"], Int[np.ndarray, "G"]]:
  """Returns (row, start) of each completion in rows of `size` tokens."""
  row, start, used = np.zeros_like(lengths), np.zeros_like(lengths), []
  # The longest first; each into the first row that has room, else into a new one.
  for i in np.argsort(-lengths, kind="stable"):
    fitting = next((r for r, n in enumerate(used) if n + lengths[i] <= size), len(used))
    if fitting == len(used):
      used.append(0)
    row[i], start[i] = fitting, used[fitting]
    used[fitting] += int(lengths[i])
  return row, start


def pack(batch: RolloutBatch, packing: Packing) -> RolloutBatch:
  """Packs a batch's completions into fewer, shorter rows; makes host arrays.

  Every loss per token is the same, since padding has no weight.
  """
  per_token = ("completions", "behaviour_logprobs", "advantages", "reference_logprobs",
               "token_weights", "behaviour_values", "returns", "observed")
  return batch.replace(
      completion_lengths=packing.row_lengths, segments=packing.segments,
      # None is an empty tree, so it stays None.
      **{name: jax.tree.map(packing.pack, getattr(batch, name)) for name in per_token})


def balance(weights: Sequence[int], parts: int) -> list[list[int]]:
  """Splits items into `parts` lists of equal length whose weights sum to nearly the same.

  The largest item comes first, and each item goes to the lightest list with room. The result is
  deterministic, and each list is in ascending order.

  Args:
    weights: weight of each item; their number is a multiple of `parts`.
    parts: number of lists.

  Returns: the indices of the items of each list.
  """
  lists: list[list[int]] = [[] for _ in range(parts)]
  sums = [0] * parts
  room = len(weights) // parts
  for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
    lightest = min((p for p in range(parts) if len(lists[p]) < room), key=lambda p: sums[p])
    lists[lightest].append(i)
    sums[lightest] += int(weights[i])
  return [sorted(part) for part in lists]


def split_microbatches(batch: Any, count: int) -> Any:
  """Splits every host array of a batch from [N ...] to [count, N / count ...].

  `train_step` goes through these microbatches one by one.
  """
  return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch)


def split_parts(batch: Any, count: int) -> list[Any]:
  """Splits a batch into the same parts as separate batches, for work that scores one by one."""
  return [jax.tree.map(lambda x, i=i: np.split(x, count)[i], batch) for i in range(count)]
