"""Checks single values of a config, with errors that name the value."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reason.config import naming


def at_least(bound: float, **values: float) -> None:
  """Checks that every value is at least `bound`.

  Args:
    bound: the smallest value that is accepted.
    values: field name -> its value.
  Raises: ValueError that names the first field below the bound; NaN counts as below.
  """
  for name, value in values.items():
    # `not value >= bound` and not `value < bound`: every comparison with NaN is false.
    if not value >= bound:
      raise ValueError(f"{name} must be at least {bound}, got {value}.")


def in_unit_interval(noun: str, **values: float) -> None:
  """Checks that every value is in [0, 1].

  Args:
    noun: what the values are: "probability" or "share".
    values: field name -> its value.
  Raises: ValueError that names the first field outside; NaN counts as outside.
  """
  for name, value in values.items():
    if not 0 <= value <= 1:
      raise ValueError(f"{name} must be in [0, 1], got {value}: it is a {noun}.")


def one_of(known: Mapping[str, Any] | Sequence[str], **values: str) -> None:
  """Checks that every value is one of the known names.

  Args:
    known: the accepted names, or a registry whose keys they are.
    values: what the value names -> the value.
  Raises: ValueError that lists the known names and suggests the closest one.
  """
  for name, value in values.items():
    if value not in known:
      raise ValueError(
          f"Unknown {name} {value!r}.{naming.did_you_mean(value, known)}"
          f" Known: {', '.join(known)}.")


def check_microbatches(microbatches: int, batch_size: int) -> None:
  """Checks the number of microbatches of a minibatch.

  Args:
    microbatches: the number; 0 leaves the choice to the machine.
    batch_size: completions in a minibatch.
  Raises: ValueError if `microbatches` is negative, or does not divide `batch_size`.
  """
  at_least(0, microbatches=microbatches)
  if batch_size % max(1, microbatches):
    raise ValueError(f"microbatches={microbatches} must divide batch_size={batch_size}.")
