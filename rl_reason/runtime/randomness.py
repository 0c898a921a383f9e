"""Folds random keys from (seed, names), so that no key has to be saved."""

import jax
from jaxtyping import PRNGKeyArray


def fold(key: PRNGKeyArray, *names: str | int) -> PRNGKeyArray:
  """Folds names into a key, one after the other; a text counts by its first 64 bytes."""
  for name in names:
    number = (
        name if isinstance(name, int)
        else int.from_bytes(name.encode()[:64], "little") % (2**32 - 5))
    key = jax.random.fold_in(key, number)
  return key
