"""Several rewards as one: named components, checked and logged separately, and their weighted sum.

    rewards = build_rewards({"math_answer": 1.0, "boxed_format": 0.1})
    total, components = rewards(samples)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
import dataclasses
import inspect
import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
import numpy as np

from rl_reason import naming
from rl_reason.rewards import workers

if TYPE_CHECKING:  # Not at run time: workers import this package, and types.py imports JAX.
  from rl_reason.types import Sample


@dataclasses.dataclass(frozen=True)
class Component:
  """One reward of a set.

  name: what logs call it.
  function: the reward; an object when it keeps state (`state`, `restore`) or resources (`close`).
  weight: its factor in the total; 0 logs it only.
  args: keyword arguments of every call; {} for an object, which got them when it was made.
  """
  name: str
  function: Callable[..., Float[np.ndarray, "N"]]
  weight: float = 1.0
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class RewardSet:
  """Components and their weighted sum; made by `build_rewards`, or from `Component`s directly.

  An object among the functions may have `state() -> dict` and `restore(state)`: its state is saved and restored by
  component name. A function or an object may have `check_references(references, **args) -> list[str | None]`, and an
  object `close()`. One with a true attribute `per_sample` judges each sample by itself: it may be given some of them
  before the others exist (`Scoring`).
  """

  def __init__(self, components: Sequence[Component]):
    names = [c.name for c in components]
    if not names or len(set(names)) != len(names):
      raise ValueError(f"A RewardSet needs at least one component and each name once, got {names}.")
    self.components = tuple(components)

  def __call__(self, samples: Sequence[Sample]) -> tuple[Float[np.ndarray, "N"], dict[str, Float[np.ndarray, "N"]]]:
    """(weighted sum, unweighted components), float32 in the order of the samples.

    Raises: ValueError if a component does not return one finite number per sample; whatever a component raises, with a
    note.
    """
    return self._total({c.name: _checked(c, self._call(c, samples), samples) for c in self.components})

  def _total(self, components):
    total = sum(c.weight * components[c.name].astype(np.float64) for c in self.components)
    return total.astype(np.float32), components

  def _call(self, component: Component, samples: Sequence[Sample]) -> Any:
    try:
      return component.function(samples, **component.args)
    except Exception as error:
      first = f" Its first sample: {_describe(samples[0])}" if samples else ""
      error.add_note(f"Raised by the reward component {component.name!r} on a batch of {len(samples)} samples."
                     f"{first}{_culprit(component, samples)}")
      raise

  def check_references(self, references: Iterable[str], ids: Sequence[str] | None = None) -> None:
    """Asks every component whether it can use these references, so that a bad one is found before a run, not in it.

    Args:
      references: of all problems, e.g. (p.reference for p in problems).
      ids: the problems' ids, named in the error; positions if None.

    Raises: ValueError naming the component, the first bad reference, its position and id, and how many there are.
    """
    references = list(references)
    for c in self.components:
      check = getattr(c.function, "check_references", None)
      if check is None:
        continue
      bad = [(i, complaint) for i, complaint in enumerate(check(references, **c.args)) if complaint]
      if bad:
        i, complaint = bad[0]
        where = f"number {i}" + (f" (id {ids[i]!r})" if ids is not None else "")
        raise ValueError(
            f"The reward {c.name!r} cannot use {len(bad)} of {len(references)} references. The first is {where},"
            f" {references[i]!r}: {complaint}. Correct or leave out these rows, or choose another reward. All"
            f" positions: {[j for j, _ in bad[:20]]}{' ...' if len(bad) > 20 else ''}")

  def state(self) -> dict[str, Any]:
    """The states of the stateful components by name; {} if there are none."""
    return {c.name: c.function.state() for c in self.components if hasattr(c.function, "state")}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Gives every stateful component its saved state back.

    Raises: ValueError if the names are not those that were saved.
    """
    stateful = {c.name: c.function for c in self.components if hasattr(c.function, "state")}
    if set(state) != set(stateful):
      raise ValueError(f"The saved reward state belongs to {sorted(state)}, but the stateful rewards now are"
                       f" {sorted(stateful)}: resume with the config of the run that saved it, or start a new run.")
    for name, function in stateful.items():
      function.restore(state[name])

  def close(self) -> None:
    """Frees what components hold, and ends the shared worker processes (they come back at the next use)."""
    for c in self.components:
      if hasattr(c.function, "close"):
        c.function.close()
    workers.close_shared_pools()


class Scoring:
  """Scores a batch as its samples come to be: components with `per_sample` work in a thread beside the sampler.

      with contextlib.closing(Scoring(rewards)) as scoring:
        scoring.add([3], [sample])         # Returns at once.
        total, components = scoring.finish(samples)  # What rewards(samples) returns, or raises.
  """

  def __init__(self, rewards: RewardSet):
    self._rewards = rewards
    self._early = [c for c in rewards.components if getattr(c.function, "per_sample", False)]
    # One thread, which starts with the first sample: the worker processes behind it are the parallel part.
    self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
    self._begun: list[tuple[list[int], dict[str, futures.Future]]] = []

  def add(self, positions: Sequence[int], samples: Sequence[Sample]) -> None:
    """Begins with samples that will be at these positions of the batch."""
    if self._early and len(samples):
      self._begun.append(([int(i) for i in positions], {
          c.name: self._thread.submit(self._rewards._call, c, list(samples)) for c in self._early}))

  def finish(self, samples: Sequence[Sample]) -> tuple[Float[np.ndarray, "N"], dict[str, Float[np.ndarray, "N"]]]:
    """(weighted sum, components) of the whole batch. Raises: as RewardSet.__call__."""
    begun = {i for positions, _ in self._begun for i in positions}
    rest = [i for i in range(len(samples)) if i not in begun]
    self.add(rest, [samples[i] for i in rest])
    self._thread.shutdown()  # Waits for all that was begun.
    early, components = {c.name for c in self._early}, {}
    for c in self._rewards.components:
      if c.name in early:
        output = np.zeros(len(samples))
        for positions, results in self._begun:
          output[positions] = _numbers(c, results[c.name].result(), len(positions))
      else:
        output = self._rewards._call(c, samples)
      components[c.name] = _checked(c, output, samples)
    return self._rewards._total(components)

  def close(self) -> None:
    """Ends the thread; what it has not begun is never scored."""
    self._thread.shutdown(cancel_futures=True)


def build_rewards(spec: Mapping[str, float | Mapping[str, Any]]) -> RewardSet:
  """A RewardSet from a config's mapping; everything that can be checked without samples is checked here.

      {"math_answer": 1.0,                                                  # A name in REWARDS -> its weight.
       "length": {"function": "overlong_penalty", "weight": 0.5,            # Another name in the logs, with arguments.
                  "args": {"limit_tokens": 1024, "buffer_tokens": 256}},
       "novelty": {"function": "my_package.rewards:Novelty", "args": {"capacity": 1000}}}  # A user's own.

  "function" (default: the key) is a name in REWARDS or "package.module:function"; "weight" defaults to 1.0, "args" to
  none. A dotted path may name a class: it is made with `args`, and the object is called with the samples.

  Raises: ValueError for unknown names, arguments or weights, saying what was probably meant.
  """
  from rl_reason.rewards import REWARDS  # Here: the package imports this file.

  if not hasattr(spec, "items") or not spec:
    raise ValueError(f"rewards must map at least one name to a weight or a mapping, got {spec!r}: e.g."
                     " {'math_answer': 1.0}.")
  components = []
  for name, entry in spec.items():
    if not hasattr(entry, "items"):
      entry = {"weight": entry}
    for field in entry:
      if field not in ("function", "weight", "args"):
        raise ValueError(f"Reward {name!r} has an unknown field {field!r}."
                         f"{naming.did_you_mean(field, ('function', 'weight', 'args'))} Its fields: function, weight,"
                         " args; an argument of the function goes into \"args\".")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
      raise ValueError(f"Reward {name!r} has the weight {weight!r}: give a finite number (0 to log it only).")
    args = dict(entry.get("args") or {})
    path = entry.get("function", name)
    function = naming.find("reward", path, REWARDS)
    is_class = inspect.isclass(function)  # Then the samples come later, to its objects.
    naming.check_arguments(f"Reward {name!r}: {path}", function, args, positional=0 if is_class else 1)
    if is_class:
      function, args = function(**args), {}
      if not callable(function):
        raise ValueError(f"Reward {name!r}: {path} is a class whose objects cannot be called: give it"
                         " __call__(self, samples).")
    elif path in REWARDS:
      function([], **args)  # Ours check their arguments before they look at samples.
    components.append(Component(name, function, float(weight), args))
  return RewardSet(components)


def _checked(component: Component, output: Any, samples: Sequence[Sample]) -> Float[np.ndarray, "N"]:
  """The output as float32 [N], or an error that names what is wrong with it."""
  with np.errstate(over="ignore"):
    values = _numbers(component, output, len(samples)).astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(values))
  if bad.size:
    i = int(bad[0])
    culprit = getattr(component.function, "__qualname__", type(component.function).__qualname__)
    raise ValueError(
        f"The reward component {component.name!r} returned {values[i]} for sample {i} ({bad.size} of {len(samples)}"
        f" not finite): {_describe(samples[i])}. One such number would turn all parameters into NaN, so the run stops"
        f" before the update; its checkpoints are untouched. Look for a division by zero or an overflow in"
        f" {getattr(component.function, '__module__', '')}:{culprit}.")
  return values


def _numbers(component: Component, output: Any, count: int) -> Float[np.ndarray, "N"]:
  """The output as float64 [count], or an error that says what it is instead."""
  try:
    values = np.asarray(output, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f"The reward component {component.name!r} must return one number per sample, got"
                     f" {str(output)[:200]} ({error}): return np.ndarray [N]; a sample it cannot judge needs a"
                     " number too, e.g. 0.") from error
  if values.shape != (count,):
    raise ValueError(f"The reward component {component.name!r} must return one number per sample, shape"
                     f" ({count},), got shape {values.shape}: score every sample, in the order given, also"
                     " the malformed ones.")
  return values


def _culprit(component: Component, samples: Sequence[Sample]) -> str:
  """Which sample made a stateless function raise, found by giving it one at a time; "" if none does alone."""
  if hasattr(component.function, "state"):
    return ""  # Calls would change its state.
  for i, sample in enumerate(samples):
    try:
      component.function([sample], **component.args)
    except Exception:
      return f" Alone it is sample {i} that raises: {_describe(sample)}"
  return ""


def _describe(sample: Sample) -> str:
  head = lambda text: repr(text if len(text) <= 80 else text[:80] + "...")
  identity = f"id {sample.metadata['id']!r}, " if "id" in sample.metadata else ""
  return (f"{identity}prompt {head(sample.prompt)}, reference {head(sample.reference)}, completion"
          f" {head(sample.completion)} ({len(sample.completion)} characters)")
