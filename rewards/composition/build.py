"""Builds a RewardSet from a config's mapping, and checks all that needs no samples."""

from collections.abc import Mapping
import inspect
from typing import Any

from rl_reason.config import naming, user_code
from rl_reason.rewards.composition.builder import Builder
from rl_reason.rewards.composition.component import Component, Gate, Transform, Trust
from rl_reason.rewards.composition.reward_set import RewardSet
from rl_reason.rewards.composition.schedules import Schedule
from rl_reason.rewards.registry import REWARDS, TRANSFORMS

FIELDS = ("function", "weight", "args", "transforms", "gate", "trust")


def build_rewards(
    spec: Mapping[str, float | Mapping[str, Any]], *, models: Any = None) -> RewardSet:
  """Builds a RewardSet from a config's mapping, and checks all that needs no samples.

      {# A name in REWARDS -> its weight.
       "math_answer": 1.0,
       # Another name in the logs, with arguments.
       "length": {"function": "overlong_penalty", "weight": 0.5,
                  "args": {"limit_tokens": 1024, "buffer_tokens": 256}},
       # A user's own, brought to [0, 0.9], for wrong answers only, less and less.
       "novelty": {"function": "my_package.rewards:Novelty", "args": {"capacity": 1000},
                   "transforms": ("sliding_min_max", {"name": "clip", "high": 0.9}),
                   "gate": {"component": "math_answer", "below": 0.5},
                   "weight": {"schedule": "linear", "start": 0.3, "end": 0.0, "steps": 100}}}

  The fields of an entry:

      function      a name in REWARDS or "package.module:function", or the function itself; default:
                    the key. It may be a class: it is made with `args`, and the object is called
                    with the samples.
      args          arguments; default: none.
      weight        a number or the fields of a Schedule; default: 1.0.
      transforms    names in TRANSFORMS, dotted paths or functions, alone or as {"name": ...} beside
                    their arguments, applied in this order.
      gate          the fields of a Gate.
      trust         the fields of a Trust.

  A reward may have parameters that it does not get from "args" but from here:

      models    where it finds trained models (rewards.learned.Models); only the stages of a run
                have them.
      build     with what it builds others, if it is made of rewards (composition.builder.Builder).

  Args:
    spec: name of each component -> its weight or its entry.
    models: what rewards with a parameter `models` get; None: there are none, and such a reward is
      an error.

  Raises: ValueError for unknown names, arguments, weights, transforms or gates, saying what was
    probably meant.
  """
  if not hasattr(spec, "items") or not spec:
    raise ValueError(
        f"rewards must map at least one name to a weight or a mapping, got {spec!r}: e.g."
        " {'math_answer': 1.0}.")
  components = []
  for name, entry in spec.items():
    # A function is short for an entry that has only a function, and a number or a schedule for one
    # that has only a weight.
    naming.check_from_python(f"reward {name!r}", entry)
    if callable(entry):
      entry = {"function": entry}
    if not hasattr(entry, "items") or "schedule" in entry:
      entry = {"weight": entry}
    for field in entry:
      if field not in FIELDS:
        raise ValueError(
            f"Reward {name!r} has an unknown field {field!r}.{naming.did_you_mean(field, FIELDS)}"
            f" Its fields: {', '.join(FIELDS)}; an argument of the function goes into \"args\".")
    args = entry.get("args") or {}
    if not hasattr(args, "items"):
      raise ValueError(
          f"Reward {name!r}: args must be a mapping of the function's arguments, got {args!r}.")
    args = dict(args.items())
    path = entry.get("function", name)
    handed = {"models": models, "build": BUILDER}
    function, args = _made(f"Reward {name!r}", "reward", path, args, REWARDS, handed)
    try:
      weight = Schedule.of(entry.get("weight", 1.0))
    except ValueError as error:
      raise ValueError(f"Reward {name!r} has {error}") from error
    components.append(Component(
        name, function, weight, args, transforms=_transforms(name, entry.get("transforms") or ()),
        gate=_look(name, "gate", Gate, entry.get("gate")),
        trust=_look(name, "trust", Trust, entry.get("trust"))))
  return RewardSet(components)


def _reward(
    kind: str, what: str, path: str, args: Mapping[str, Any],
) -> tuple[Any, Mapping[str, Any]]:
  """Makes one reward that is part of another: Builder.reward."""
  return _made(what, kind, path, args, REWARDS, {"models": None, "build": BUILDER})


# What every parameter `build` gets, also in tests and notebooks.
BUILDER = Builder(build_rewards, _reward)


def _transforms(name: str, entries: Any) -> tuple[Transform, ...]:
  if isinstance(entries, str) or hasattr(entries, "items"):
    raise ValueError(
        f"Reward {name!r}: transforms must be a tuple, got {entries!r}: for one entry write"
        f" ({entries!r},).")
  made = []
  for entry in entries:
    args = dict(entry.items()) if hasattr(entry, "items") else {"name": entry}
    if "name" not in args:
      raise ValueError(
          f"Reward {name!r}: the transform {args!r} has no name: write {{'name': 'clip', 'high':"
          f" 0.0}}, with its arguments beside the name.")
    path = args.pop("name")
    function, args = _made(f"Reward {name!r}: transform", "transform", path, args, TRANSFORMS)
    made.append(Transform(naming.path_of(path), function, args))
  return tuple(made)


def _made(
    what: str, kind: str, path: naming.Name, args: Mapping[str, Any], registry: Mapping[str, Any],
    handed: Mapping[str, Any] = {},
) -> tuple[Any, Mapping[str, Any]]:
  """Makes a function and the arguments of its calls; of a class, an object and no arguments.

  Args:
    what: names the reward or transform in errors.
    kind: "reward", "transform" or the like, for errors.
    path: a key of the registry, a dotted path, or the function or class itself.
    args: from the config.
    registry: known functions and classes.
    handed: name -> what a parameter of this name gets, which no config can give; None: it is not
      available here.
  """
  function, path = naming.find(kind, path, registry), naming.path_of(path)
  is_class = inspect.isclass(function)  # Then the samples, or values, come later, to its objects.
  given = {"groups": []} if getattr(function, "sees_groups", False) and not is_class else {}

  # Parameters that come from here.
  for name in [n for n in inspect.signature(function).parameters if n in handed]:
    if name in args:
      raise ValueError(
          f"{what}: {path} gets its argument {name!r} from build_rewards, not from \"args\": take"
          " it out of them. If your function means something else by it, give its argument another"
          " name.")
    if handed[name] is None:
      raise ValueError(
          f"{what}: {path} needs {name} of a run. Only stages have them, for rewards that are no"
          " part of another: elsewhere, as in evaluation.rewards, use a verifier.")
    args = {**args, name: handed[name]}
  # The others come from the config.
  naming.check_arguments(f"{what}: {path}", function, {**args, **given},
                         positional=0 if is_class else 1)
  if not is_class:
    if path in registry:
      # A call without samples makes a wrong argument an error before the run.
      function([], **args, **given)  # Ours check their arguments before they look at anything else.
    return function, args
  with user_code.named(what):
    function = function(**args)
  if not callable(function):
    raise ValueError(
        f"{what}: {path} is a class whose objects cannot be called: give it __call__(self,"
        " samples).")
  return function, {}


def _look(name: str, field: str, kind: type, entry: Any) -> Any:
  """Makes a Gate or a Trust of a mapping with its fields; None of nothing."""
  if not entry:
    return None
  if not hasattr(entry, "items"):
    number = {"gate": "above", "trust": "right"}[field]
    raise ValueError(
        f"Reward {name!r}: {field} must be a mapping, got {entry!r}: e.g. {{'component': {entry!r},"
        f" {number!r}: 0.5}}.")
  naming.check_arguments(f"Reward {name!r}: {field}", kind, list(entry))
  try:
    return kind(**dict(entry.items()))
  except ValueError as error:
    raise ValueError(f"Reward {name!r}: {error}") from error
