"""Changes fields of a config by dotted names: for sizes of an experiment and arms of a claim."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from rl_reason.config import naming


def override(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], *, new_sections: bool = True,
) -> ml_collections.ConfigDict:
  """Sets fields of a config in place, e.g. {"rl.rollout.prompts": 4, "evaluation.every": 2}.

  A section as the value replaces the whole section that was there. If the two were merged, fields
  of the old section would remain without being visible in the table. The last name may be new, as
  names in `args` and `rewards` are; run.config.check later refuses a field that does not exist.

  Args:
    config: what is changed.
    changes: {dotted field: value}.
    new_sections: whether a missing section on the way is made. An experiment need not write out a
      section that holds defaults only.
  Returns: the same config.
  Raises: ValueError if a section on the way is missing, or is a plain value.
  """
  for dotted, value in changes.items():
    # Down to the section that holds the field.
    section, (*names, last) = config, dotted.split(".")
    for i, name in enumerate(names):
      if name not in section and new_sections:
        section[name] = ml_collections.ConfigDict()
      if name not in section or not isinstance(section[name], ml_collections.ConfigDict):
        raise ValueError(
            f"overrides[{dotted!r}]: the config has no section {'.'.join(names[:i + 1])!r}."
            f"{naming.did_you_mean(name, section)}")
      section = section[name]

    # The field. A ConfigDict would merge a section into the one that is there, so that goes first;
    # and it refuses a value of another type, such as a float in place of an int.
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
    config: the full config, which is changed in place.
    size: a name in `tables`, or "full" or "" for the config as it is.
    tables: size -> {dotted field: value}, as in `override`.
  Raises: ValueError for an unknown size.
  """
  if size in ("", "full"):
    return config
  if size not in tables:
    known = ["full", *tables]
    raise ValueError(f"Unknown size {size!r}.{naming.did_you_mean(size, known)} Known:"
                     f" :{', :'.join(known)}.")
  return override(config, tables[size])


def replaced(section: Any, changes: Mapping[str, Any]) -> Any:
  """Returns a copy of a section, a frozen dataclass, with fields changed by their dotted names.

  Every section on the way is made anew, and so checked again. That happens once, with all changes
  made, because some fields are valid only together.

  Example: replaced(stage, {"objective.kl.coef": 0.1, "learner.minibatches": 2})
  """
  # The section's own fields, and the changes of each section in it.
  fields, inner = {}, {}
  for dotted, value in changes.items():
    name, _, rest = dotted.partition(".")
    if rest:
      inner.setdefault(name, {})[rest] = value
    else:
      fields[name] = value
  # A section may be replaced and changed at once: then the changes apply to the new one.
  for name, further in inner.items():
    fields[name] = replaced(fields.get(name, getattr(section, name)), further)
  return dataclasses.replace(section, **fields)
