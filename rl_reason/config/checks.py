"""Checks single values of a config, with errors that name the value."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reason.config import naming


def at_least(bound: float, **values: float) -> None:
  for name, value in values.items():
    if not value >= bound:  # NaN is not either.
      raise ValueError(f"{name} must be at least {bound}, got {value}.")


def one_of(known: Mapping[str, Any] | Sequence[str], **values: str) -> None:
  for name, value in values.items():
    if value not in known:
      raise ValueError(f"Unknown {name} {value!r}.{naming.did_you_mean(value, known)} Known: {', '.join(known)}.")


def check_microbatches(microbatches: int, batch_size: int) -> None:
  """0 leaves the choice to the machine."""
  at_least(0, microbatches=microbatches)
  if batch_size % max(1, microbatches):
    raise ValueError(f"microbatches={microbatches} must divide batch_size={batch_size}.")
