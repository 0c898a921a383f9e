"""Which code a run depends on, and its digests: by them a result is known to be stale.

Counted are the modules that a run imports, from rl_reason.train on, but of a registry (REWARDS, STAGES, SOURCES, ...) only
the entries that the config names: else every new reward would make every result stale. Not counted are what only shows a
run, comments, docstrings and blank lines. What a claim's result could depend on, and is not counted: the libraries below,
whose versions are recorded, and files of data, which a config names by path.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
from pathlib import Path
import tokenize
from typing import Any

# What shows a run or refuses it, and cannot change its numbers.
SHOWS = tuple(f"rl_reason.{name}" for name in (
    "compilation", "memory", "plots", "profiling", "progress", "report"))


def digest(content: Any) -> str:
  """12 hexadecimal digits of anything that JSON holds."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def code(config: Mapping[str, Any], functions: Iterable[str] = (), start: str = "rl_reason.train") -> dict[str, str]:
  """Module -> digest, of the modules that a run with this config depends on.

  Args:
    config: as JSON holds it. Every string and key in it may name an entry of a registry, or be a dotted path.
    functions: dotted paths beside the config, e.g. a claim's metric.
  """
  names = frozenset(_names(config)) | frozenset(functions)
  own = {n.partition(":")[0] for n in names if ":" in n and n.partition(":")[0].replace(".", "").isidentifier()}
  packages = {module.partition(".")[0] for module in ("rl_reason", start, *own)}
  found, waiting = {}, [start, *sorted(own)]
  while waiting:
    module = waiting.pop()
    file = None if module in found or module in SHOWS else _file(module)
    if file is None:
      continue
    found[module], imports = read(file, names)
    # A name that is imported from a package may be a module of it, and a module's package is run with it.
    waiting += [m for i in imports for m in (i, i.rpartition(".")[0]) if m.partition(".")[0] in packages]
  return dict(sorted(found.items()))


def read(file: Path, names: frozenset[str]) -> tuple[str, list[str]]:
  """(digest of a file's code, dotted names that it imports), of registries only the entries in `names`."""
  parsed = _parse(file, file.stat().st_mtime_ns)
  chosen = [(key, shown) for key, shown, _ in parsed.entries if key in names]
  left = {root for key, _, root in parsed.entries if key not in names}
  left -= parsed.used | {root for key, _, root in parsed.entries if key in names}
  return digest([parsed.text, chosen]), [dotted for alias, dotted in parsed.imports if alias not in left]


@dataclasses.dataclass(frozen=True)
class _Parsed:
  """text: code without comments, docstrings, imports and registries. entries: (key, value, the name that it begins with) of
  all registries. used: names in the code outside of them. imports: (name here, dotted name)."""
  text: str
  entries: Sequence[tuple[str, str, str]]
  used: frozenset[str]
  imports: Sequence[tuple[str, str]]


@functools.lru_cache(maxsize=None)
def _parse(file: Path, modified: int) -> _Parsed:
  """Args: modified: when the file was, so that a changed one is read again."""
  del modified
  source = file.read_text(encoding="utf-8")
  tree = ast.parse(source)
  dropped, entries, used, imports = set(), [], set(), []
  for statement in tree.body:
    registry = _registry(statement)
    entries += [(key, ast.unparse(value), _root(value)) for key, value in registry.items()]
    if registry:
      dropped |= _lines(statement)
    else:
      used |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      dropped |= _lines(node)
      prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
      imports += [(alias.asname or alias.name, prefix + alias.name) for alias in node.names]
    elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
      if ast.get_docstring(node, clean=False) is not None:
        dropped |= _lines(node.body[0])
  lines = source.splitlines()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      lines[token.start[0] - 1] = lines[token.start[0] - 1][:token.start[1]]
  text = [line.rstrip() for number, line in enumerate(lines, 1) if number not in dropped and line.strip()]
  return _Parsed("\n".join(text), entries, frozenset(used), imports)


def _names(config: Any) -> Iterable[str]:
  if isinstance(config, str):
    yield config
  elif isinstance(config, Mapping):
    for key, value in config.items():
      yield str(key)
      yield from _names(value)
  elif isinstance(config, (list, tuple)):
    for value in config:
      yield from _names(value)


@functools.cache
def _file(module: str) -> Path | None:
  """The module's source; None for what is no module, such as a function's name, or has no source."""
  try:
    spec = importlib.util.find_spec(module)
  except (ImportError, AttributeError, ValueError):
    return None
  return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _registry(node: ast.stmt) -> dict[str, ast.expr]:
  """The entries of NAME = {"key": function, ...} at the top of a module, else {}."""
  targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
  if not (len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id.isupper()
          and isinstance(node.value, ast.Dict)):
    return {}
  keys, values = node.value.keys, node.value.values
  plain = all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys) and all(
      isinstance(v, (ast.Name, ast.Attribute)) for v in values)
  return {k.value: v for k, v in zip(keys, values)} if plain else {}


def _root(value: ast.expr) -> str:
  while isinstance(value, ast.Attribute):
    value = value.value
  return value.id if isinstance(value, ast.Name) else ""


def _lines(node: ast.AST) -> set[int]:
  return set(range(node.lineno, node.end_lineno + 1))
