"""Writes syntax trees in a form that does not depend on where the code stands.

In this form
  - a name that stands for another definition, or for a part of a library, is a `Reference`:
    `advantages.gae`, `gae` and `lib.gae` are the same one, however each module imports it;
  - what changes no number is missing: comments, docstrings, imports and annotations. Only the
    fields of classes stay, without their types.

Only the syntax is read; nothing is imported or run.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import re
from typing import Protocol

PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:function, as configs name them.
# Fields of the syntax tree that change no number. `ctx` (load or store) follows from where a name
# stands.
_SKIPPED = ("ctx", "kind", "type_comment", "annotation", "returns", "simple")
_BODIES = ("body", "orelse", "finalbody")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Reference(str):
  """A name as its module's imports resolve it, "module:attributes".

  After `from rl_reason.objectives.advantages import gae`, the name `gae` is
  "rl_reason.objectives.advantages:gae". After `from rl_reason.objectives import advantages`,
  `advantages.gae` is "rl_reason.objectives:advantages.gae". What stands before the colon is
  certainly a module; what stands behind it may be a module, or anything in one.
  """


class DottedPath(str):
  """A constant that may be a function's path, e.g. "rl_reason.tasks.files:jsonl"."""


@dataclasses.dataclass(eq=False)
class Piece:
  """A part of the code that was read.

  parts: its form; the parts, with references resolved, are what is digested.
  fields: references in the annotations of a class's fields, which are no part of the form.
  strings: its short text constants.
  attributes: attributes that it takes from objects that are not known here: `build` of
    `stage.build(...)`.
  """
  parts: list[str] = dataclasses.field(default_factory=list)
  fields: list[Reference] = dataclasses.field(default_factory=list)
  strings: set[str] = dataclasses.field(default_factory=set)
  attributes: set[str] = dataclasses.field(default_factory=set)


class Names(Protocol):
  """What a module knows about the names in it."""

  def binding(self, name: str) -> Reference | None:
    """Resolves a name at the module's top; None for a builtin."""

  def imported(self, node: ast.Import | ast.ImportFrom) -> Iterable[tuple[str, Reference]]:
    """Yields (name here, what it stands for) of an import."""


class Reader:
  """Writes syntax trees of one module into a Piece.

  module: says what names at its top stand for.
  piece: what is written.
  scopes: the scopes around the current place, the outermost first: (whether it is a class's, {name
    that is bound in it: a Reference if it is imported, else None}).
  """

  def __init__(self, module: Names):
    self.module, self.piece = module, Piece()
    self.scopes: list[tuple[bool, dict[str, Reference | None]]] = []

  def visit(self, node: ast.AST) -> None:
    """Writes a syntax tree, with the method for its kind if there is one."""
    special = _SPECIAL.get(type(node))
    if special is None:
      self.fields(node)
    else:
      special(self, node)

  def fields(self, node: ast.AST, skipped: Sequence[str] = ()) -> None:
    """Writes a node field by field.

    Empty fields are left out, because versions of Python differ in them.
    """
    write = self.piece.parts.append
    write(f"({type(node).__name__}")
    for name in node._fields:
      value = getattr(node, name, None)
      if value is None or value == [] or name in _SKIPPED or name in skipped:
        continue
      write(f"{name}=")
      if isinstance(value, ast.AST):
        self.visit(value)
      elif isinstance(value, list):
        for item in _kept(value) if name in _BODIES else value:
          self.visit(item) if isinstance(item, ast.AST) else write(repr(item))
      else:
        write(repr(value))
    write(")")

  def name(self, node: ast.Name) -> None:
    """Writes a name as what it stands for, or as it is if it is bound here."""
    # A name that is assigned in a class's body is a field of the class, and no reference.
    field = isinstance(node.ctx, ast.Store) and self.scopes and self.scopes[-1][0]
    found = None if field else self.lookup(node.id)
    self.piece.parts.append(found or node.id)

  def attribute(self, node: ast.Attribute) -> None:
    """Writes a.b.c as one reference if `a` is known, else field by field."""
    root, attributes = chain(node)
    found = self.lookup(root) if root else None
    if found:
      self.piece.parts.append(extended(found, attributes))
    else:
      self.piece.attributes.add(node.attr)
      self.fields(node)

  def constant(self, node: ast.Constant) -> None:
    """Writes a constant; a short text may name a registry's entry, or be a function's path."""
    value = node.value
    if isinstance(value, str) and len(value) < 80:
      self.piece.strings.add(value)
      if PATH.fullmatch(value):
        self.piece.parts.append(DottedPath(value))
        return
    self.piece.parts.append(repr(value))

  def call(self, node: ast.Call) -> None:
    """Writes a call; getattr(x, "name") takes an attribute as x.name does."""
    if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and node.args[1:]:
      name = node.args[1]
      if isinstance(name, ast.Constant):
        self.piece.attributes.add(str(name.value))
    self.fields(node)

  def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
    """Writes a function."""
    # Decorators and defaults are read in the scope around the function, its body in its own scope.
    self.fields(node, skipped=("body",))
    given = node.args
    arguments = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs,
                                 *filter(None, (given.vararg, given.kwarg)))]
    body = node.body if isinstance(node.body, list) else [node.body]
    self.within(body, dict.fromkeys(arguments))

  def class_(self, node: ast.ClassDef) -> None:
    """Writes a class."""
    self.fields(node, skipped=("body",))
    self.within(node.body, {}, is_class=True)

  def within(
      self, body: Sequence[ast.AST], names: dict[str, Reference | None], *, is_class: bool = False,
  ) -> None:
    """Writes a body in a scope of its own.

    Args:
      body: statements, or a lambda's expression.
      names: names that are bound from outside, such as arguments.
      is_class: whether it is a class's body.
    """
    own, imports = list(_own_nodes(body)), {}
    for node in own:
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        imports |= self.module.imported(node)
    self.scopes.append((is_class, {**names, **dict.fromkeys(_bound(own)), **imports}))
    for node in _kept(body):
      self.visit(node)
    self.piece.parts.append("end")
    self.scopes.pop()

  def comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
    """Writes a comprehension, whose targets are bound in a scope of its own."""
    # The first iterable is read in the scope around it: in [x for x in x] the last x is outside.
    first = node.generators[0]
    self.visit(first.iter)
    targets = [n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)]
    self.scopes.append((False, dict.fromkeys(targets)))
    generators = [ast.comprehension(first.target, ast.Constant(None), first.ifs, first.is_async),
                  *node.generators[1:]]
    values = {k: v for k, v in ast.iter_fields(node) if k != "generators"}
    self.fields(type(node)(**values, generators=generators))
    self.scopes.pop()

  def annotated(self, node: ast.AnnAssign) -> None:
    """Writes an annotated assignment without its type.

    A field of a class stays a field; elsewhere `x: int = 1` is written as `x = 1`.
    """
    if self.scopes and self.scopes[-1][0]:
      types = Reader(self.module)
      types.scopes = self.scopes
      types.visit(node.annotation)
      self.piece.fields += [p for p in types.piece.parts if isinstance(p, Reference)]
      self.fields(node)
    elif node.value is not None:
      self.fields(ast.Assign(targets=[node.target], value=node.value))

  def lookup(self, name: str) -> Reference | None:
    """Resolves a name outside of this definition; None for a name that the definition binds."""
    for i, (is_class, names) in enumerate(reversed(self.scopes)):
      # Methods do not see the names of their class. What the class's body sees depends on the order
      # of its lines: here it is the module's name, so that no dependency is missed.
      if name in names and not is_class:
        return names[name]
      if name in names and i == 0 and self.module.binding(name) is None:
        return names[name]
    return self.module.binding(name)


_SPECIAL = {
    ast.Name: Reader.name, ast.Attribute: Reader.attribute, ast.Constant: Reader.constant,
    ast.Call: Reader.call, ast.FunctionDef: Reader.function,
    ast.AsyncFunctionDef: Reader.function, ast.Lambda: Reader.function,
    ast.ClassDef: Reader.class_, ast.AnnAssign: Reader.annotated,
    **dict.fromkeys(_COMPREHENSIONS, Reader.comprehension)}


def extended(reference: Reference, attributes: Sequence[str]) -> Reference:
  """Adds attributes to a reference."""
  module, _, before = reference.partition(":")
  return Reference(f"{module}:{'.'.join([*filter(None, [before]), *attributes])}")


def chain(node: ast.AST) -> tuple[str | None, list[str]]:
  """Splits a.b.c into ("a", ["b", "c"]); (None, ...) for what does not begin with a name."""
  attributes = []
  while isinstance(node, ast.Attribute):
    attributes.insert(0, node.attr)
    node = node.value
  return (node.id if isinstance(node, ast.Name) else None), attributes


def _kept(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
  """Yields the statements that do something: no imports, docstrings, `pass` or guards."""
  for node in body:
    nothing = isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    if not nothing and not is_guard(node):
      yield node


def is_guard(node: ast.AST) -> bool:
  """Whether a node is `if TYPE_CHECKING:` or `if __name__ == ...:`, which no run enters."""
  if not isinstance(node, ast.If) or node.orelse:
    return False
  test = node.test
  if isinstance(test, ast.Compare):
    return isinstance(test.left, ast.Name) and test.left.id == "__name__"
  return isinstance(test, (ast.Name, ast.Attribute)) and (
      ([chain(test)[0]] + chain(test)[1])[-1] == "TYPE_CHECKING")


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
  """Yields all nodes of a scope's body, without those of the scopes within it."""
  waiting = list(body)
  while waiting:
    node = waiting.pop()
    yield node
    if isinstance(node, _COMPREHENSIONS):
      # The targets of a comprehension are its own, but `:=` in it binds a name of this scope.
      waiting += [n for n in ast.walk(node) if isinstance(n, ast.NamedExpr)]
    elif not isinstance(node, (*_SCOPES, ast.Lambda)):
      waiting += ast.iter_child_nodes(node)


def bound_names(body: Iterable[ast.AST]) -> set[str]:
  """Lists the names that a scope's body binds, without imports and `global` or `nonlocal` names."""
  return _bound(_own_nodes(body))


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
  """Lists the names that nodes of one scope bind (see `bound_names`)."""
  names, outside = set(), set()
  for node in nodes:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      names.add(node.id)
    elif isinstance(node, _SCOPES):
      names.add(node.name)
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
      names.add(node.name)
    elif isinstance(node, ast.MatchMapping) and node.rest:
      names.add(node.rest)
    elif isinstance(node, (ast.Global, ast.Nonlocal)):
      outside |= set(node.names)
  return names - outside
