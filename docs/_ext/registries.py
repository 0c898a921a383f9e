"""Renders the lists of names that a config may use as tables, from the registries themselves.

    ```{registry} rewards
    ```

A row says an entry's name, the first paragraph of its docstring and its arguments with their
defaults. So a new reward is in the documentation as soon as it is in its registry.
"""

from collections.abc import Mapping
import dataclasses
import functools
import importlib
import inspect
import re
import sys
from typing import Any

SHOWN = 32  # Characters of a default at most: templates of judges are pages long.


@dataclasses.dataclass(frozen=True)
class Table:
  """One registry as a table.

  path: of the registry, "package.module:NAME".
  what: the head of the column of names.
  skip: arguments that a config does not give.
  options: only keyword arguments are shown, for losses, whose others the stage gives.
  words: name -> what it is, for names that stand for no function of ours; they must be all.
  arguments: whether there is a column of arguments.
  """
  path: str
  what: str
  skip: tuple[str, ...] = ()
  options: bool = False
  words: Mapping[str, str] = dataclasses.field(default_factory=dict)
  arguments: bool = True


TABLES = {
    "rewards": Table("rl_reason.rewards.registry:REWARDS", "reward", ("samples", "models", "build")),
    "transforms": Table("rl_reason.rewards.registry:TRANSFORMS", "transform", ("rewards", "groups")),
    "weight schedules": Table(
        "rl_reason.rewards.composition.schedules:SCHEDULES", "schedule", arguments=False),
    "monitors": Table("rl_reason.rewards.composition.monitors:MONITORS", "monitor"),
    "stages": Table("rl_reason.stages.registry:STAGES", "`kind`", arguments=False),
    "sources": Table("rl_reason.tasks.registry:SOURCES", "source"),
    "formats": Table("rl_reason.tasks.preferences:FORMATS", "format", arguments=False),
    "policies": Table("rl_reason.models.sources:POLICIES", "policy source"),
    "environments": Table("rl_reason.envs.registry:ENVIRONMENTS", "environment"),
    "objectives": Table("rl_reason.objectives.losses:OBJECTIVES", "`objective.kind`", options=True),
    "reductions": Table("rl_reason.objectives.losses:REDUCTIONS", "`mean_over`", arguments=False, words={
        "token": "Every token of the minibatch counts alike (DAPO).",
        "sequence": "Every completion counts alike, and its tokens share its part (GRPO).",
        "fixed_length": "Every token counts 1 / (completions * `max_tokens`), so that a completion's"
                        " length changes nothing for the others (Dr. GRPO)."}),
    "kl estimators": Table(
        "rl_reason.objectives.losses:KL_ESTIMATORS", "`objective.kl.estimator`", arguments=False),
    "baselines": Table("rl_reason.objectives.advantages:BASELINES", "`credit.baseline`", arguments=False),
    "normalisers": Table(
        "rl_reason.objectives.advantages:NORMALISERS", "`credit.normalise`", arguments=False),
    "token normalisers": Table(
        "rl_reason.objectives.advantages:TOKEN_NORMALISERS", "`credit.normalise`", arguments=False),
    "reward model losses": Table(
        "rl_reason.objectives.preferences:REWARD_LOSSES", "`loss`", ("margin", "thresholds"),
        options=True),
    "preference losses": Table("rl_reason.stages.preference:LOSSES", "`loss`", options=True),
    "aggregates": Table("rl_reason.models.reward_model:AGGREGATES", "`aggregate`", arguments=False),
    "scorers": Table("rl_reason.judge:SCORERS", "scorer"),
    "generators": Table("rl_reason.judges.asked:GENERATORS", "`generate`"),
    "optimizers": Table(
        "rl_reason.learner.optimizers:OPTIMIZERS", "`optimizer.name`", arguments=False),
    "schedules": Table(
        "rl_reason.learner.optimizers:SCHEDULES", "`optimizer.schedule`", arguments=False, words={
            "constant": "The learning rate stays what it is.",
            "linear": "The learning rate falls to 0 along a line.",
            "cosine": "The learning rate falls to 0 along half a cosine wave."}),
    "remat": Table("rl_reason.models.transformer:REMAT_POLICIES", "`learner.remat`", arguments=False, words={
        "none": "Keeps every activation: fastest, largest.",
        "dots": "Keeps the matrix products and computes the rest again.",
        "full": "Keeps only each layer's input: slowest, smallest."}),
    "measures": Table("rl_reason.claims.measures:MEASURES", "measure", ("folder",)),
}


def entries(table: Table) -> dict[str, Any]:
  """Returns the registry: name -> entry, None for a list of names alone."""
  module, _, name = table.path.partition(":")
  registry = getattr(importlib.import_module(module), name)
  return dict(registry) if isinstance(registry, Mapping) else dict.fromkeys(registry)


def function_of(entry: Any) -> Any:
  """Returns the function or class behind an entry, which may be a record about it."""
  if isinstance(entry, functools.partial):
    return entry.func
  for field in ("measure", "loss", "of_row"):  # A monitor's, a preference loss's, a kind of label's.
    if dataclasses.is_dataclass(entry) and not isinstance(entry, type) and hasattr(entry, field):
      return getattr(entry, field)
  return entry


def description(table: Table, name: str, entry: Any) -> str:
  """Returns the first paragraph of an entry's docstring. Raises: ValueError if it has none."""
  if table.words:
    if name not in table.words:
      raise ValueError(f"docs/_ext/registries.py has no words for {name!r} of {table.path}: add them.")
    return table.words[name]
  if hasattr(entry, "build") and hasattr(entry, "Config"):  # A kind of stage: its file says what it is.
    doc = sys.modules[entry.build.__module__].__doc__
  else:
    function = function_of(entry)
    doc = function.__doc__
  if not doc or not doc.strip():
    raise ValueError(f"{name!r} of {table.path} has no docstring: its first line is what the documentation says of it.")
  return " ".join(inspect.cleandoc(doc).partition("\n\n")[0].split())


def arguments(table: Table, entry: Any) -> list[str]:
  """Returns the arguments that a config may give, as `name=default` or `name`."""
  if hasattr(entry, "threshold"):  # A monitor, which has defaults of its own.
    series = [f"{k}={v!r}" if v else k for k, v in entry.metrics.items()]
    options = [a for a in _options(entry.measure, table) if a.partition("=")[0] not in entry.metrics]
    return [f"threshold={entry.threshold}", f"window={entry.window}", *series, *options]
  return _options(function_of(entry), table)


def _options(function: Any, table: Table) -> list[str]:
  out = []
  for name, parameter in inspect.signature(function).parameters.items():
    if name in table.skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
      continue
    if table.options and parameter.kind is not parameter.KEYWORD_ONLY:
      continue
    if parameter.default is parameter.empty:
      out.append(name)
      continue
    shown = repr(parameter.default)
    out.append(f"{name}={shown if len(shown) <= SHOWN else '...'}")
  return out


def escaped(text: str) -> str:
  """Returns plain text as Markdown for a table's cell: `code` and arXiv numbers are markup."""
  parts = text.split("`")
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r"([\\*_<>\[\]~$#|])", r"\\\1", parts[i])
    parts[i] = re.sub(
        r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", parts[i])
  for i in range(1, len(parts), 2):
    parts[i] = parts[i].replace("|", r"\|")
  return "`".join(parts)


def render(name: str) -> str:
  """Returns a registry's table in Markdown."""
  if name not in TABLES:
    raise ValueError(f"There is no table {name!r}: {', '.join(TABLES)}.")
  table = TABLES[name]
  heads = [table.what, "what it is"] + ["arguments"] * table.arguments
  lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
  for key, entry in entries(table).items():
    cells = [f"`{key}`", escaped(description(table, key, entry))]
    if table.arguments:
      cells.append(", ".join("`" + a.replace("|", r"\|") + "`" for a in arguments(table, entry)))
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def setup(app):
  # Here: the tests read the tables where Sphinx is not installed.
  from sphinx.util.docutils import SphinxDirective

  class RegistryDirective(SphinxDirective):
    """The directive `registry`: a table of TABLES."""
    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
      try:
        text = render(self.arguments[0])
      except ValueError as error:
        raise self.error(str(error)) from error
      return self.parse_text_to_nodes(text)

  app.add_directive("registry", RegistryDirective)
  return {"parallel_read_safe": True}
