"""Reads and checks what components and transforms return; its errors name the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
import numpy as np

from rl_reason.config import user_code
from rl_reason.rewards.composition import abstention
from rl_reason.rewards.composition.component import Component, Transform
from rl_reason.rewards.composition.shaping import Ragged
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.types import Sample


def read(component: Component, output: Any, count: int) -> Float[np.ndarray, "N"] | StepRewards:
  """Reads a component's output for `count` samples as float64, masked where it abstains.

  Raises: ValueError that says what the output is instead.
  """
  if isinstance(output, StepRewards):
    if not len(output.values) == len(output.ends) == count:
      raise ValueError(
          f"The reward component {component.name!r} must return steps for each of {count} samples,"
          f" got {len(output.values)} rows of values and {len(output.ends)} of ends: an empty row"
          " for a sample without steps.")
    return StepRewards(
        [_floats(component, v) for v in output.values], [np.asarray(e) for e in output.ends])
  values = _floats(component, output)
  if values.shape != (count,):
    raise ValueError(
        f"The reward component {component.name!r} must return one number per sample, shape"
        f" ({count},), got shape {values.shape}: score every sample, in the order given, also the"
        " malformed ones.")
  return values


def _floats(component: Component, output: Any) -> np.ndarray:
  """Returns numbers as float64. An abstention stays one (composition.abstention)."""
  as_array = np.ma.asarray if isinstance(output, np.ma.MaskedArray) else np.asarray
  try:
    return as_array(output, np.float64)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(
        f"The reward component {component.name!r} must return one number per sample, got"
        f" {str(output)[:200]} ({error}): return np.ndarray [N], or StepRewards; a sample it cannot"
        " judge needs a number too, e.g. 0.") from error


def gather(
    component: Component,
    parts: Sequence[tuple[Sequence[int], Float[np.ndarray, "M"] | StepRewards]], count: int,
) -> Float[np.ndarray, "N"] | StepRewards:
  """Joins outputs, each for some positions of a batch, to the output for its `count` samples."""
  kinds = {isinstance(output, StepRewards) for _, output in parts}
  if len(kinds) > 1:
    raise ValueError(
        f"The reward component {component.name!r} returned StepRewards for some samples and numbers"
        " for others: return the same for all.")
  if kinds != {True}:
    masked = any(isinstance(output, np.ma.MaskedArray) for _, output in parts)
    values = (np.ma.zeros if masked else np.zeros)(count)
    for positions, output in parts:
      values[positions] = output
    return values
  rows = {i: row for positions, output in parts
          for i, row in zip(positions, zip(output.values, output.ends))}
  return StepRewards([rows[i][0] for i in range(count)], [rows[i][1] for i in range(count)])


def transformed(
    component: Component, transform: Transform, values: Ragged, samples: Sequence[Sample],
) -> Ragged:
  """Applies a transform, and checks that its values are finite and of the same lengths.

  Raises: ValueError that names the transform.
  """
  groups = ({"groups": [s.group for s in samples]}
            if getattr(transform.function, "sees_groups", False) else {})
  with user_code.named(
      f"the transform {transform.name!r} of the reward component {component.name!r}"):
    changed = [
        np.asarray(v, np.float64) for v in transform.function(values, **transform.args, **groups)]
  shapes = [v.shape for v in values]
  if [v.shape for v in changed] != shapes:
    raise ValueError(
        f"The transform {transform.name!r} of the reward component {component.name!r} must return"
        f" an array per sample, as long as the one it got: {shapes[:5]}, got"
        f" {[v.shape for v in changed][:5]}.")
  for i, (before, after) in enumerate(zip(values, changed)):
    if not np.isfinite(after).all():
      raise ValueError(
          f"The transform {transform.name!r} of the reward component {component.name!r} made"
          f" {after.tolist()} of {before.tolist()} for sample {i}: {describe(samples[i])}. The run"
          " stops before the update.")
  return changed


def checked(
    component: Component, output: Any, samples: Sequence[Sample],
) -> Float[np.ndarray, "N"] | StepRewards:
  """Brings an output to float32's range and precision.

  Raises: ValueError that names what is wrong with it.
  """
  # One number per sample, or the numbers of all steps in a row with the samples that own them.
  output = read(component, output, len(samples))
  if isinstance(output, StepRewards):
    check_ends(component, output, samples)
    owners = np.repeat(np.arange(len(samples)), [len(v) for v in output.values])
    values = np.concatenate([np.zeros(0), *output.values])
  else:
    owners, values = np.arange(len(samples)), abstention.filled(
        output, [s.group for s in samples])
  # What overflows float32 becomes infinite, and is reported below.
  with np.errstate(over="ignore"):
    values = values.astype(np.float32)
  # The error names the first bad sample, and counts the bad ones.
  bad = np.flatnonzero(~np.isfinite(values))
  if bad.size:
    i = int(owners[bad[0]])
    name = getattr(component.function, "__qualname__", type(component.function).__qualname__)
    raise ValueError(
        f"The reward component {component.name!r} returned {values[bad[0]]} for sample {i}"
        f" ({len(set(owners[bad]))} of {len(samples)} not finite): {describe(samples[i])}. One such"
        " number would turn all parameters into NaN, so the run stops before the update; its"
        " checkpoints are untouched. Look for a division by zero or an overflow in"
        f" {getattr(component.function, '__module__', '')}:{name}.")
  values = values.astype(np.float64)
  if isinstance(output, StepRewards):
    return StepRewards(
        np.split(values, np.cumsum([len(v) for v in output.values])[:-1]) if samples else [],
        output.ends)
  return values


def check_ends(component: Component, output: StepRewards, samples: Sequence[Sample]) -> None:
  """Raises: ValueError for steps that are not paid at rising tokens of their completion."""
  for i, (values, ends, sample) in enumerate(zip(output.values, output.ends, samples)):
    size = len(sample.completion_tokens)
    if values.ndim != 1 or values.shape != ends.shape or len(ends) and not (
        np.issubdtype(ends.dtype, np.integer) and 0 <= ends[0] and ends[-1] < size
        and (np.diff(ends) > 0).all()):
      raise ValueError(
          f"The reward component {component.name!r} returned for sample {i} values of shape"
          f" {values.shape} at the tokens {ends.tolist()[:20]} of a completion of {size} tokens:"
          f" give each step one value and the position of its last token, rising, in [0, {size})."
          f" The sample: {describe(sample)}")


def culprit(component: Component, samples: Sequence[Sample]) -> str:
  """Says which sample made a stateless function raise, found by giving it one at a time.

  Returns: "" if none does alone.
  """
  if hasattr(component.function, "state"):
    return ""  # Calls would change its state.
  for i, sample in enumerate(samples):
    try:
      component.function([sample], **component.args)
    except KeyboardInterrupt:
      raise
    except BaseException:
      return f". Alone it is sample {i} that raises: {describe(sample)}"
  return ""


def describe(sample: Sample) -> str:
  """Names a sample in an error, its texts cut to 80 characters."""
  head = lambda text: repr(text if len(text) <= 80 else text[:80] + "...")
  identity = f"id {sample.metadata['id']!r}, " if "id" in sample.metadata else ""
  return (f"{identity}prompt {head(sample.prompt)}, reference {head(sample.reference)}, completion"
          f" {head(sample.completion)} ({len(sample.completion)} characters)")
