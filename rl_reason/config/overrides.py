"""Changes fields of a config by their dotted names: sizes of an experiment, arms of a claim."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from rl_reason.config import naming


def override(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], *, new_sections: bool = True,
) -> ml_collections.ConfigDict:
  """Sets fields of a config in place, e.g. {"rl.rollout.prompts": 4, "evaluation.every": 2}.

  A section as the value replaces the whole of what was there: merged, what it held would stay
  unseen. The last name may be new, as names in `args` and `rewards` are; a field that does not
  exist is refused where the config is checked (run.config.check).

  Args:
    new_sections: whether sections on the way are made where they are missing: an experiment need
      not write out a section that is all defaults.
  Returns: the config.
  Raises: ValueError for a section that is missing, or is none.
  """
  for dotted, value in changes.items():
    section, (*names, last) = config, dotted.split(".")
    for i, name in enumerate(names):
      if name not in section and new_sections:
        section[name] = ml_collections.ConfigDict()
      if name not in section or not isinstance(section[name], ml_collections.ConfigDict):
        raise ValueError(
            f"overrides[{dotted!r}]: the config has no section {'.'.join(names[:i + 1])!r}."
            f"{naming.did_you_mean(name, section)}")
      section = section[name]
    is_section = isinstance(value, (Mapping, ml_collections.ConfigDict))
    if last in section and is_section:
      del section[last]
    with section.ignore_type():
      section[last] = ml_collections.ConfigDict(value) if is_section else value
  return config


def sized(
    config: ml_collections.ConfigDict, size: str, **tables: Mapping[str, Any],
) -> ml_collections.ConfigDict:
  """Makes one of an experiment's sizes: the full config, changed by the size's table.

  Args:
    size: a name in `tables`, or "full" or "" for the config as it is.
    tables: size -> {dotted field: value}, as in `override`.
  Raises: ValueError for another size.
  """
  if size in ("", "full"):
    return config
  if size not in tables:
    known = ["full", *tables]
    raise ValueError(f"Unknown size {size!r}.{naming.did_you_mean(size, known)} Known:"
                     f" :{', :'.join(known)}.")
  return override(config, tables[size])


def replaced(section: Any, changes: Mapping[str, Any]) -> Any:
  """Returns a section, a frozen dataclass, with fields changed by their dotted names.

  Every section on the way is made anew, and so checked again: once, with all changes, for some
  fields only go together.

  Example: replaced(stage, {"objective.kl.coef": 0.1, "learner.minibatches": 2})
  """
  fields, inner = {}, {}
  for dotted, value in changes.items():
    name, _, rest = dotted.partition(".")
    if rest:
      inner.setdefault(name, {})[rest] = value
    else:
      fields[name] = value
  for name, further in inner.items():
    fields[name] = replaced(fields.get(name, getattr(section, name)), further)
  return dataclasses.replace(section, **fields)
