"""Reads the source of packages: what a name stands for, through all imports, and its digest."""

import ast
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.util
import json
from pathlib import Path
import sys
from typing import Any

from rl_reason.claims.definitions import Definition, Module
from rl_reason.claims.syntax import DottedPath, Piece, Reference

# Modules of rl_reason that show a run, or refuse it, and cannot change its numbers. They are listed
# by their last names, so that the folder does not matter: runtime.memory, learner.memory.
SHOWS = ("compilation", "memory", "plots", "profiling", "progress", "provenance", "report",
         "summary")


def digest(content: Any) -> str:
  """Returns 12 hexadecimal digits of anything that JSON holds."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Target:
  """What a dotted name stands for.

  found: a definition, a whole module, or None for a part of a library.
  text: the text that is digested in place of the name.
  counted: whether it is counted; false for what only shows a run.
  """
  found: Definition | Module | None
  text: str
  counted: bool = True


class Sources:
  """The source of some packages. Each module is read when it is first needed.

  packages: name of a package or module -> the folders, or the file, where it is.
  """

  def __init__(self, packages: Mapping[str, tuple[str, ...]]):
    self.packages = packages
    # What was read or found already, as claims ask for the same code again and again.
    self._files: dict[Path, int] = {}
    self._modules: dict[str, Module | None] = {}
    self._targets: dict[str, Target] = {}
    self._references: dict[Piece, list[Target]] = {}
    self._pieces: dict[Definition, Piece] = {}
    self._digests: dict[Definition, str] = {}
    self._entries: dict[Definition, dict[str, Piece]] = {}

  def changed(self) -> bool:
    """Whether a file that was read has changed since."""
    return any(_modified(file) != modified for file, modified in self._files.items())

  def module(self, name: str) -> Module | None:
    """Reads a module; None if it is no module of these packages, or has no source."""
    if name not in self._modules:
      self._modules[name] = self._read(name) if name.partition(".")[0] in self.packages else None
    return self._modules[name]

  def target(self, reference: str) -> Target:
    """Follows "module:attributes" through imports, re-exports and other names to its end."""
    if reference not in self._targets:
      self._targets[reference] = self._follow(reference, [], set())
    return self._targets[reference]

  def piece(self, definition: Definition) -> Piece:
    """Reads a definition as a piece."""
    if definition not in self._pieces:
      self._pieces[definition] = definition.read()
    return self._pieces[definition]

  def digest(self, definition: Definition) -> str:
    """Digests a definition by itself, whatever those that it refers to contain."""
    if definition not in self._digests:
      self._digests[definition] = self.digest_piece(self.piece(definition))
    return self._digests[definition]

  def digest_piece(self, piece: Piece) -> str:
    """Digests a piece, with its references resolved."""
    return digest([self._text(part) for part in piece.parts])

  def references(self, piece: Piece) -> list[Target]:
    """Lists what a piece refers to, as far as it is counted; libraries are not."""
    if piece not in self._references:
      targets = [self.target(part) for part in piece.parts
                 if isinstance(part, (Reference, DottedPath))]
      # Of the types of fields, only classes count: a section of a config becomes an object of one.
      targets += [t for t in map(self.target, piece.fields)
                  if isinstance(t.found, Definition) and t.found.kind == "class"]
      self._references[piece] = [t for t in targets if t.found is not None and t.counted]
    return self._references[piece]

  def entries(self, definition: Definition) -> dict[str, Piece]:
    """Returns a registry's entries: key -> piece.

    {} for a table that holds anything else than entries, which counts as a whole. An entry is a
    function, a class or a module. Or it is an object of one of our classes that is made of one, as
    in Objective(preferences.kto, pairs=False), or the name of such an object.
    """
    if definition not in self._entries:
      module, entries = definition.module, definition.entries
      plain = all(self._is_entry(module, value) for value in entries.values())
      self._entries[definition] = {
          key: module.read(value) for key, value in entries.items()} if plain else {}
    return self._entries[definition]

  def _is_entry(self, module: Module, value: ast.expr) -> bool:
    """Whether an expression is an entry of a registry (see `entries`)."""
    # A name.
    if not isinstance(value, ast.Call):
      reference = module.refer(value)
      if reference is None:
        return isinstance(value, ast.Name)  # A builtin, such as min.
      found = self.target(reference).found
      if isinstance(found, Definition) and found.kind == "value":
        return len(found.nodes) == 1 and self._is_entry(found.module, found.nodes[0])
      return True
    # An object: its class is ours, and an argument is a function.
    made = module.refer(value.func)
    made = made and self.target(made).found
    arguments = [module.refer(x) for x in (*value.args, *(k.value for k in value.keywords))]
    return (isinstance(made, Definition) and made.kind == "class"
            and any(_is_function(self.target(x)) for x in arguments if x))

  def _text(self, part: str) -> str:
    """Returns the text of a part that is digested: a reference counts as what it stands for."""
    if isinstance(part, Reference):
      return self.target(part).text
    if isinstance(part, DottedPath):
      target = self.target(part)
      return target.text if target.found else repr(str(part))
    return part

  def _follow(
      self, reference: str, after: Sequence[str], seen: set[tuple[str, str]]) -> Target:
    """Follows a reference to its end.

    Args:
      reference: "module:attributes".
      after: further attributes.
      seen: (module, name) that were followed already, because imports may form a circle.
    """
    here, _, attributes = reference.partition(":")
    rest = [*filter(None, attributes.split(".")), *after]
    while (module := self.module(here)) is not None:
      last = here.rpartition(".")[2]
      counted = here.partition(".")[0] != "rl_reason" or last not in SHOWS
      if not rest:
        return Target(module, f"@module {last}", counted)
      # What the next name stands for in this module: an import, else a definition.
      name, *further = rest
      first = (here, name) not in seen
      seen.add((here, name))
      definition = module.definitions.get(name)
      if definition is None and first and name in module.imports:
        return self._follow(module.imports[name], further, seen)
      if definition is None and name not in module.imports:
        definition = module.fallbacks.get(name)
      if definition is not None:
        if first and definition.alias:
          other = self._follow(definition.alias, further, seen)
          if other.found is not None:
            return other
        return Target(definition, ".".join(["@" + name, *further]), counted)
      if self.module(f"{here}.{name}") is None:
        # No source defines the name: it is made when the program runs.
        return Target(None, ".".join(["@", *rest]))
      # The name is a module within the package, which may be imported there under its own name.
      here, rest = f"{here}.{name}", further
    # The module is part of a library, or has no source.
    return Target(None, ".".join(["=" + here, *rest]))

  def _read(self, name: str) -> Module | None:
    file, folder = self._find(name)
    if file is None:
      return Module(name, ast.parse(""), is_package=True) if folder else None
    self._files[file] = _modified(file)
    source = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return Module(name, source, is_package=file.name == "__init__.py")

  def _find(self, name: str) -> tuple[Path | None, bool]:
    """Finds a module. Returns: (its file or None, whether it is a folder)."""
    parent, _, last = name.rpartition(".")
    places = self._folders(parent) if parent else [Path(p) for p in self.packages[name]]
    for place in places:
      if not parent and place.suffix == ".py":
        return place, False
      package = place / last if parent else place
      if (package / "__init__.py").is_file():
        return package / "__init__.py", True
      if parent and (place / f"{last}.py").is_file():
        return place / f"{last}.py", False
    folder = any((p / last if parent else p).is_dir() for p in places)
    return None, folder

  def _folders(self, package: str) -> list[Path]:
    """Lists the folders of a package's modules."""
    parent, _, last = package.rpartition(".")
    above = self._folders(parent) if parent else []
    found = [p / last for p in above] if parent else [Path(p) for p in self.packages[package]]
    return [p for p in found if p.is_dir()]


def of_packages(names: Iterable[str]) -> Sources:
  """Returns the source of some packages, read once for all callers, and again if a file changed.

  Args:
    names: names of packages, and of modules that are in none. Names without source are left out.
  """
  found = tuple(sorted((name, where) for name in names if (where := _places(name))))
  if _cached(found).changed():
    _cached.cache_clear()
  return _cached(found)


@functools.lru_cache(maxsize=8)
def _cached(packages: tuple[tuple[str, tuple[str, ...]], ...]) -> Sources:
  return Sources(dict(packages))


def _places(top: str) -> tuple[str, ...]:
  """Lists the folders of a package, or a module's file; () if there is no source."""
  loaded = sys.modules.get(top)
  if loaded is not None and hasattr(loaded, "__path__"):
    return tuple(loaded.__path__)
  try:
    spec = importlib.util.find_spec(top)
  except (ImportError, ValueError):
    return ()
  if spec is None:
    return ()
  if spec.submodule_search_locations is not None:
    return tuple(spec.submodule_search_locations)
  return (spec.origin,) if spec.origin and spec.origin.endswith(".py") else ()


def _modified(file: Path) -> int:
  """Returns when a file was changed, in nanoseconds; 0 if there is none."""
  return file.stat().st_mtime_ns if file.exists() else 0


def _is_function(target: Target) -> bool:
  """Whether a target is a function, a class or a module."""
  return isinstance(target.found, Module) or (
      isinstance(target.found, Definition) and target.found.kind != "value")
