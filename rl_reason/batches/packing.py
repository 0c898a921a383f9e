"""Completions of one group side by side in rows, so that an update computes tokens and little padding.

Half of a group's completions often end in the first quarter of the room that the longest one needs. Packed, a group of
G rows becomes R rows of `size` tokens; each completion still attends to its group's prompt and to itself alone. R and
size come from short lists, since each pair is a program to compile.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jaxtyping import Int
import numpy as np

from rl_reason.arrays import length_mask, RolloutBatch

SHORTEST, WIDEST = 16, 256  # Tokens: shorter rows save nothing and cost a program; wider ones cost attention.

# Prompt and completion tokens that one pass through the model is fastest with: a CPU's caches hold the activations of so
# many (measured: 15.7M parameters, 512 + 96 tokens a pass take 0.85 of the time of 4096 + 768), accelerators want more.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_ELSEWHERE = 2**15


def tokens_per_pass() -> int:
  return TOKENS_PER_PASS.get(jax.default_backend(), TOKENS_PER_PASS_ELSEWHERE)


def num_passes(num_groups: int, group_size: int, tokens_per_group: int, ways: int) -> int:
  """How many passes of equally many groups keep each near TOKENS_PER_PASS a device and its rows divisible by them.

  Args:
    tokens_per_group: of a prompt and its completions at full length. ways: devices that share the rows.
  """
  wanted = ways * tokens_per_pass() / tokens_per_group
  parts = [n for n in range(1, num_groups + 1) if num_groups % n == 0 and num_groups // n * group_size % ways == 0]
  return next((n for n in parts if num_groups / n <= wanted), max(parts, default=1))


@dataclasses.dataclass(frozen=True)
class Packing:
  """Where the tokens of B completions, P groups of G, lie in P groups of R rows.

  row, start: per completion, its row and the place in it of its first token. lengths: its tokens.
  """
  row: Int[np.ndarray, "B"]
  start: Int[np.ndarray, "B"]
  lengths: Int[np.ndarray, "B"]
  num_rows: int
  size: int

  @classmethod
  def of(cls, lengths: Int[np.ndarray, "B"], group_size: int, max_tokens: int, *, divisor: int = 1,
         together: bool = True, steps: int = 4) -> "Packing":
    """First fit, longest first (at most 11/9 of the best, Johnson 1973), group by group, in rows as long as the longest
    completion, or twice or four times as long where this leaves less padding.

    Args:
      divisor: the number of rows stays a multiple of it where the number of completions is: devices share them.
      together: false for a row per completion, in which only the common padding is cut.
      steps: of the number of rows a group may get; more leave less padding and make more programs.
    """
    shortest, num_groups = row_size(lengths, max_tokens), len(lengths) // group_size
    best = cls(np.arange(len(lengths)), np.zeros_like(lengths), lengths, len(lengths), shortest)
    if not together:
      return best
    for times in (1, 2, 4):
      size = shortest * times
      if times > 1 and size > WIDEST or times > group_size:
        break
      filled = [_first_fit(group, size) for group in lengths.reshape(num_groups, group_size)]
      needed = max(int(row.max()) + 1 for row, _ in filled)
      rows = rows_per_group(needed, -(-group_size // times), num_groups, divisor, steps)
      if rows is not None and num_groups * rows * size < best.num_rows * best.size:
        row = np.concatenate([g * rows + row for g, (row, _) in enumerate(filled)])
        best = cls(row, np.concatenate([start for _, start in filled]), lengths, num_groups * rows, size)
    return best

  @property
  def _places(self) -> tuple[np.ndarray, np.ndarray]:
    """(completion, token) of all tokens there are."""
    return np.nonzero(length_mask(self.lengths, self.lengths.max(initial=0)))

  def pack(self, x: np.ndarray) -> np.ndarray:
    """[B T] -> [num_rows size], zeros between."""
    completion, token = self._places
    out = np.zeros((self.num_rows, self.size), x.dtype)
    out[self.row[completion], self.start[completion] + token] = x[completion, token]
    return out

  def unpack(self, x: np.ndarray, max_tokens: int) -> np.ndarray:
    """[num_rows size] -> [B max_tokens], zeros after each completion's end."""
    completion, token = self._places
    out = np.zeros((len(self.lengths), max_tokens), x.dtype)
    out[completion, token] = x[self.row[completion], self.start[completion] + token]
    return out

  @property
  def segments(self) -> Int[np.ndarray, "R size"] | None:
    """Per token, the place in its row where its completion begins; padding begins with itself. None: one a row."""
    if not self.start.any():
      return None
    out = np.broadcast_to(np.arange(self.size, dtype=np.int32), (self.num_rows, self.size)).copy()
    completion, token = self._places
    out[self.row[completion], self.start[completion] + token] = self.start[completion]
    return out

  @property
  def row_lengths(self) -> Int[np.ndarray, "R"]:
    out = np.zeros(self.num_rows, np.int32)
    np.add.at(out, self.row, self.lengths)
    return out


def row_size(lengths: Int[np.ndarray, "B"], max_tokens: int) -> int:
  """Room for the longest completion: max_tokens, or a half, a quarter ... of it."""
  size, longest = max_tokens, int(lengths.max(initial=1))
  while (half := -(-size // 2)) >= max(longest, SHORTEST):
    size = half
  return size


def rows_per_group(needed: int, most: int, num_groups: int, divisor: int, steps: int = 4) -> int | None:
  """`needed` or more, in quarters (`steps`) of `most`, such that the divisor divides all groups' rows; None where nothing
  does."""
  counts = (-(-most * k // steps) for k in range(1, steps + 1))
  return next((rows for rows in counts if rows >= needed and num_groups * rows % divisor == 0), None)


def _first_fit(lengths: Int[np.ndarray, "G"], size: int) -> tuple[Int[np.ndarray, "G"], Int[np.ndarray, "G"]]:
  """(row, start) of each completion in rows of `size` tokens."""
  row, start, used = np.zeros_like(lengths), np.zeros_like(lengths), []
  for i in np.argsort(-lengths, kind="stable"):
    fitting = next((r for r, n in enumerate(used) if n + lengths[i] <= size), len(used))
    if fitting == len(used):
      used.append(0)
    row[i], start[i] = fitting, used[fitting]
    used[fitting] += int(lengths[i])
  return row, start


def pack(batch: RolloutBatch, packing: Packing) -> RolloutBatch:
  """The same completions in fewer, shorter rows; host arrays. Every per-token loss is the same: padding counts nothing."""
  per_token = ("completions", "behaviour_logprobs", "advantages", "reference_logprobs", "token_weights", "behaviour_values",
               "returns", "observed")
  return batch.replace(
      completion_lengths=packing.row_lengths, segments=packing.segments,
      **{name: jax.tree.map(packing.pack, getattr(batch, name)) for name in per_token})  # None stays None.


def balance(weights: Sequence[int], parts: int) -> list[list[int]]:
  """Splits items into `parts` lists of equal length whose weights sum up to nearly the same: the largest first, each to
  the lightest list with room. Deterministic; each list in ascending order.
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
  """[N ...] -> [count, N / count ...] for every host array of a batch: what `train_step` goes through one by one."""
  return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch)


def split_parts(batch: Any, count: int) -> list[Any]:
  """The same parts apart from each other, for what is scored one by one."""
  return [jax.tree.map(lambda x, i=i: np.split(x, count)[i], batch) for i in range(count)]
