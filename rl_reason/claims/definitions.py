"""Reads a module's source as definitions: what each name at its top stands for."""

import ast
from collections.abc import Iterator
import dataclasses

from rl_reason.claims.syntax import bound_names, chain, extended, is_guard, Piece, Reader, Reference

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclasses.dataclass(eq=False)
class Definition:
  """What one name at the top of a module stands for.

  module: the module that it is part of.
  name: the name.
  kind: "function", "class", or "value" for everything else.
  nodes: its syntax trees; several where the name is bound more than once.
  attached: statements that complete it, e.g. `gae.sees_groups = True`.
  """
  module: "Module"
  name: str
  kind: str
  nodes: list[ast.AST]
  attached: list[ast.AST] = dataclasses.field(default_factory=list)

  def read(self) -> Piece:
    """Reads the whole definition as one piece."""
    return self.module.read(*self.nodes, *self.attached)

  @property
  def alias(self) -> Reference | None:
    """The definition that this is another name of, as in `gae = advantages.gae`; None: of none."""
    if self.kind != "value" or len(self.nodes) != 1 or self.attached:
      return None
    return self.module.refer(self.nodes[0])

  @property
  def entries(self) -> dict[str, ast.expr]:
    """The entries of NAME = {"key": function, ...}; {} if the definition is no such table."""
    # A registry is a public constant that is written once, as a dict with text keys.
    node = self.nodes[0]
    if not (self.name.isupper() and not self.name.startswith("_") and len(self.nodes) == 1
            and not self.attached and isinstance(node, ast.Dict)):
      return {}
    found = {k.value: v for k, v in zip(node.keys, node.values)
             if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    return found if len(found) == len(node.keys) else {}


class Module:
  """A module's definitions, imports and further statements.

  name: the module's full name.
  is_package: whether the module is a package's __init__.
  definitions: name -> definition.
  imports: name here -> what it stands for, of imports at the module's top, also conditional ones.
  fallbacks: name -> definition within an `if` or `try`, as in `try: import x` / `except: x = None`.
    An import of the same name is found before it.
  statements: what the module does when it is imported, beside defining names.
  """

  def __init__(self, name: str, source: ast.Module, *, is_package: bool):
    self.name, self.is_package = name, is_package
    self.definitions: dict[str, Definition] = {}
    self.imports: dict[str, Reference] = {}
    self.fallbacks: dict[str, Definition] = {}
    self.statements: list[ast.stmt] = []
    self._package = name if is_package else name.rpartition(".")[0]
    for statement in source.body:
      self._add(statement)

  def read(self, *nodes: ast.AST) -> Piece:
    """Reads syntax trees of this module as one piece."""
    reader = Reader(self)
    for node in nodes:
      reader.visit(node)
    return reader.piece

  def binding(self, name: str) -> Reference | None:
    """Resolves a name at the module's top; None for a builtin."""
    if name in self.definitions:
      return Reference(f"{self.name}:{name}")
    if name in self.imports:
      return self.imports[name]
    return Reference(f"{self.name}:{name}") if name in self.fallbacks else None

  def refer(self, node: ast.AST) -> Reference | None:
    """Resolves a chain of attributes, such as a.b.c; None for any other expression."""
    root, attributes = chain(node)
    bound = self.binding(root) if root else None
    return bound and extended(bound, attributes)

  def imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Reference]]:
    """Yields (name here, what it stands for) of an import."""
    for alias in node.names:
      if isinstance(node, ast.ImportFrom):
        package = node.module or ""
        # A relative import: one dot is this package, each further dot the one above.
        if node.level:
          levels = self._package.split(".")
          above = levels[:len(levels) - node.level + 1]
          package = ".".join([*above, *filter(None, [node.module])])
        yield alias.asname or alias.name, Reference(f"{package}:{alias.name}")
      else:
        # `import a.b` binds a; `import a.b as c` binds a.b.
        module = alias.name if alias.asname else alias.name.partition(".")[0]
        yield alias.asname or module, Reference(f"{module}:")

  def _add(self, statement: ast.stmt) -> None:
    """Adds a statement at the module's top to what it defines, imports or does."""
    # Statements that bind names.
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
      self.imports |= self.imported(statement)
    elif isinstance(statement, _SCOPES):
      kind = "class" if isinstance(statement, ast.ClassDef) else "function"
      self._define(self.definitions, statement.name, kind, statement)
    elif isinstance(statement, ast.Assign):
      for target in statement.targets:
        self._assign(target, statement.value, statement)
    elif isinstance(statement, ast.AnnAssign):
      if statement.value is not None:
        self._assign(statement.target, statement.value, statement)
    # Statements that complete a definition: `NAMES += (...)`, `f.defvjp(...)`.
    elif isinstance(statement, ast.AugAssign) and chain(statement.target)[0] in self.definitions:
      self.definitions[chain(statement.target)[0]].attached.append(statement)
    elif isinstance(statement, ast.Expr):
      self._call(statement)
    # `if TYPE_CHECKING:` does nothing in a run, and its names are used in annotations.
    elif is_guard(statement):
      self._import_within(statement)
    # Anything else, such as `try` or `if`: it may import, define and do things.
    else:
      self._import_within(statement)
      self.statements.append(statement)
      for name in bound_names([statement]):
        if name not in self.imports:
          self._define(self.fallbacks, name, "value", statement)

  def _assign(self, target: ast.expr, value: ast.expr, statement: ast.stmt) -> None:
    """Adds an assignment.

    Args:
      target: what is assigned to: a name, several names, or a part of something.
      value: what is assigned.
      statement: the whole statement.
    """
    root = target
    while isinstance(root, (ast.Attribute, ast.Subscript)):
      root = root.value
    if isinstance(target, ast.Name):
      self._define(self.definitions, target.id, "value", value)
    elif isinstance(target, (ast.Tuple, ast.List)):
      values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
      single = len(values) == len(target.elts) and not any(
          isinstance(x, ast.Starred) for x in (*values, *target.elts))
      # Names that share one value, as in `a, b = pair()`, each stand for the whole statement.
      for part, its in zip(target.elts, values if single else [statement] * len(target.elts)):
        part = part.value if isinstance(part, ast.Starred) else part
        self._assign(part, its, statement)
    elif isinstance(root, ast.Name) and root.id in self.definitions:
      completes = ast.Assign(targets=[target], value=value)
      self.definitions[root.id].attached.append(completes)
    else:
      self.statements.append(statement)

  def _call(self, statement: ast.Expr) -> None:
    """Adds an expression by itself: `f.defvjp(...)` completes f, and a docstring does nothing."""
    called = getattr(statement.value, "func", None)
    root = chain(called)[0] if isinstance(called, ast.Attribute) else None
    if root in self.definitions:
      self.definitions[root].attached.append(statement)
    elif not isinstance(statement.value, ast.Constant):
      self.statements.append(statement)

  def _import_within(self, statement: ast.stmt) -> None:
    """Adds the imports within a statement; of two with the same name the first one counts."""
    for node in ast.walk(statement):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        self.imports = {**dict(self.imported(node)), **self.imports}

  def _define(
      self, where: dict[str, Definition], name: str, kind: str, node: ast.AST) -> None:
    """Adds a definition, or a further syntax tree to the one of the same name."""
    if name in where:
      where[name].nodes.append(node)
    else:
      where[name] = Definition(self, name, kind, [node])
