"""Turns a source into shuffled batches of problems.

They are split between hosts, and can be resumed to the same rows.
"""

import grain

from rl_reason.types import Source


def batches(
    source: Source, *, batch_size: int, seed: int, num_epochs: int | None = None,
    process_index: int = 0, process_count: int = 1) -> grain.DatasetIterator:
  """Iterates over lists of `batch_size / process_count` problems: this host's share of each batch.

  Rows are reshuffled every epoch by `seed`. The hosts take turns in that one order, so that
  together they see each row once per epoch. A batch may end one epoch and begin the next. With
  `num_epochs`, up to batch_size - 1 rows at the very end are skipped, so that every host has the
  same number of batches.

  `get_state()` is a small plain dict (JSON can hold it); `set_state()` with it continues with the
  same rows.

  Args:
    source: the problems.
    batch_size: problems per step over all hosts; a multiple of process_count.
    seed: of the order, in [0, 2^32).
    num_epochs: passes over the source; endless if None.
    process_index: this host (jax.process_index()).
    process_count: the number of hosts (jax.process_count()).

  Raises: ValueError for an empty source, a batch size that hosts cannot share, or too few rows for
    one batch.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
        f"batch_size must be a positive multiple of the {process_count} processes that share it,"
        f" got {batch_size}.")
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}.")
  if not 0 <= seed < 2 ** 32:
    raise ValueError(f"seed must be in [0, 2^32), got {seed}.")
  if not len(source):
    raise ValueError("The source is empty: there is nothing to batch. Check its path and filters.")
  # One order for all hosts, with a new shuffle every epoch.
  rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat(num_epochs)
  if num_epochs is not None:
    if len(rows) < batch_size:
      raise ValueError(
          f"{num_epochs} epochs of {len(source)} rows do not fill one batch of {batch_size}."
          " Lower batch_size or raise num_epochs.")
    rows = rows.slice(slice(0, len(rows) // batch_size * batch_size))
  # This host's share: every process_count-th row.
  rows = rows.slice(slice(process_index, None, process_count))
  # No threads: a row costs microseconds, less than handing it between threads, and the state is
  # then exact.
  read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(
      rows.batch(batch_size // process_count, drop_remainder=True, batch_fn=list)
      .to_iter_dataset(read_options))
