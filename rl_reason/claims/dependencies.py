"""Lists the code that a run depends on, as digests: a result is stale when they are not the same.

Each definition (a function, a class or a value at a module's top) is counted that a run's entry
point reaches by name, directly or through others. The digests do not depend on where code stands:
code that only moves, or is imported in another way, makes no result stale.

  - Of a registry such as REWARDS = {"key": function, ...} only the entries that the config names
    are counted. Otherwise every new reward would make every result stale.
  - Of a module that is used as a value, as the stages in STAGES are, those definitions are counted
    whose names are used as attributes somewhere: `build` for `STAGES[kind].build(...)`.
  - What a module does when it is imported, beside defining names, is counted if one of its
    definitions is counted.
  - Modules that only show a run (sources.SHOWS) are not counted.

A result could also depend on libraries, whose versions a record holds, and on files of data, which
a config names by path. Neither is counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rl_reason.claims import sources as sources_lib
from rl_reason.claims.definitions import Definition, Module
from rl_reason.claims.sources import digest
from rl_reason.claims.syntax import PATH, Piece

START = "rl_reason.train:main"  # Where every run begins.
STATEMENTS = "(statements)"  # The entry for what modules do when they are imported.


def code(
    config: Any, functions: Iterable[str] = (), start: Sequence[str] = (START,),
) -> dict[str, str]:
  """Digests the definitions that a run with this config depends on.

  Args:
    config: one config or several, as JSON holds them. Every string and key in it may name an entry
      of a registry, or be the dotted path of a function.
    functions: further names and paths, e.g. of a claim's metric.
    start: dotted paths of the functions that the run begins with; a module's name stands for all
      of its definitions.

  Returns: a definition's name without its module -> digest. Definitions of the same name share an
    entry.
  Raises: ValueError if there is no such start.
  """
  # What the config names, and the packages whose source is read: ours, and those of dotted paths.
  names = frozenset(_names(config)) | frozenset(functions)
  paths = sorted(n for n in names if PATH.fullmatch(n))
  tops = {p.partition(":")[0].partition(".")[0] for p in ("rl_reason", *start, *paths)}

  # Everything that can be reached from the start, and from the dotted paths.
  reach = _Reach(sources_lib.of_packages(tops), names)
  for path in start:
    if not reach.begin(path):
      raise ValueError(
          f"A run starts with {path!r}, and there is no such function or module, so what a result"
          " depends on cannot be told. Correct the path; if the function has moved, in START of"
          " rl_reason/claims/dependencies.py or MEASURING of results.py.")
  for path in paths:
    reach.begin(path)
  return reach.digests()


class _Reach:
  """The definitions that a run reaches.

  sources: the source of the packages.
  names: the names in the config.
  referring: definition -> the names of those that refer to it, once for each reference.
  chosen: registry -> the entries that are counted, by key.
  """

  def __init__(self, sources: sources_lib.Sources, names: frozenset[str]):
    self.sources, self.names = sources, names
    self.referring: dict[Definition, list[str]] = {}
    self.chosen: dict[Definition, dict[str, Piece]] = {}
    # Dicts in place of sets, where the order must be the same in every run.
    self._modules: dict[Module, None] = {}  # Modules that are used as values.
    self._begun: dict[Module, None] = {}  # Modules of which a definition is reached.
    self._attributes: set[str] = set()  # Attributes that are used somewhere.
    self._waiting: list[Definition] = []  # Reached definitions that are not read yet.

  def begin(self, path: str) -> bool:
    """Reaches a function by its path, or all definitions of a module. False if there is none."""
    target = self.sources.target(path)
    if isinstance(target.found, Module):
      for definition in (*target.found.definitions.values(), *target.found.fallbacks.values()):
        self._add(definition)
    elif target.found is not None and target.counted:
      self._add(target.found)
    self._finish()
    return target.found is not None

  def digests(self) -> dict[str, str]:
    """Returns one digest for each name.

    Where definitions share a name, the digest also depends on which code refers to which of them:
    code that now imports the other one depends on other code.
    """
    by_name: dict[str, dict[str, list[str]]] = {}
    for definition, referring in self.referring.items():
      chosen = self.chosen.get(definition)
      own = self.sources.digest(definition) if chosen is None else digest(
          sorted([key, self.sources.digest_piece(piece)] for key, piece in chosen.items()))
      by_name.setdefault(definition.name, {}).setdefault(own, []).extend(referring)
    found = {
        name: next(iter(same)) if len(same) == 1 else digest(
            sorted([own, sorted(referring)] for own, referring in same.items()))
        for name, same in by_name.items()}
    statements = {self.sources.digest_piece(module.read(s))
                  for module in self._begun for s in module.statements}
    return dict(sorted(found.items())) | (
        {STATEMENTS: digest(sorted(statements))} if statements else {})

  def _finish(self) -> None:
    """Follows waiting definitions, and then those that modules used as values are asked for.

    The second may lead to more of the first, so both are repeated until nothing waits.
    """
    while self._waiting:
      while self._waiting:
        self._enter(self._waiting.pop())
      for module in list(self._modules):
        # The names of a package are also those that it imports from its modules.
        names = {*module.definitions, *(module.imports if module.is_package else ())}
        for name in sorted(names & self._attributes):
          target = self.sources.target(f"{module.name}:{name}")
          if isinstance(target.found, Definition) and target.counted:
            self._add(target.found)

  def _add(self, definition: Definition) -> None:
    """Reaches a definition, which waits to be read if it is new."""
    if definition not in self.referring:
      self.referring[definition] = []
      self._waiting.append(definition)

  def _enter(self, definition: Definition) -> None:
    """Reads a definition and follows it; with a module's first one, also its statements."""
    if definition.module not in self._begun:
      self._begun[definition.module] = None
      for statement in definition.module.statements:
        self._follow(definition.module.read(statement), STATEMENTS)
    if self.sources.entries(definition):
      self.chosen.setdefault(definition, {})
      self._choose(definition, self.names)
    else:
      self._follow(self.sources.piece(definition), definition.name)

  def _choose(self, registry: Definition, keys: Iterable[str]) -> None:
    """Counts those entries of a registry that the keys name, and follows them."""
    entries, chosen = self.sources.entries(registry), self.chosen.setdefault(registry, {})
    for key in sorted({*entries}.intersection(keys) - {*chosen}):
      chosen[key] = entries[key]
      self._follow(entries[key], registry.name)

  def _follow(self, piece: Piece, name: str) -> None:
    """Reaches what a piece of the definition `name` refers to."""
    self._attributes |= piece.attributes
    words, registries = set(piece.strings), []
    for target in self.sources.references(piece):
      found = target.found
      if "." in target.text:
        self._attributes.update(target.text.split(".")[1:])
      if isinstance(found, Module):
        self._modules[found] = None
        continue
      self._add(found)
      self.referring[found].append(name)
      if found.kind == "value":
        if self.sources.entries(found):
          registries.append(found)
        else:
          words |= self.sources.piece(found).strings
    # Code may name entries too, in its own text or in a table that it uses:
    # LABELS[LABELS_OF_LOSS.get(loss, "scores")].
    for registry in registries:
      self._choose(registry, words)


def _names(config: Any) -> Iterable[str]:
  """Yields every string and every key of a config."""
  if isinstance(config, str):
    yield config
  elif isinstance(config, Mapping):
    for key, value in config.items():
      yield str(key)
      yield from _names(value)
  elif isinstance(config, (list, tuple)):
    for value in config:
      yield from _names(value)
