"""Imports run down the floors of the house, in no circle.

Those inside functions, for type checkers and by string are counted like any other. FLOORS is the
plan of the house. Who breaks it reads the message of the failing test; what is known to break it is
in DEBTS.
"""

import ast
from collections.abc import Iterable, Mapping
import dataclasses
from pathlib import Path
import re

import pytest

from tests import ROOT

PACKAGES = {"rl_reason": "rl_reason", "rl_reason.models": "models",
            "rl_reason.rewards": "rewards", "rl_reason.experiments": "experiments"}

# From the lowest floor to the highest. A line is a floor; a string is a room: a package or a file
# of rl_reason, or several that are one room.
FLOORS = {
    "1": ("config", "reporting", "sandbox", "types"),
    "2": ("arrays", "tasks"),
    "3": ("objectives", "runtime"),
    "4": ("judges", "models"),
    "5": ("batches", "learner"),
    "6": ("rollout", "scorers"),
    "7": ("envs", "rewards"),
    "8": ("evaluation", "search"),
    # The stages have floors of their own: what all share; those that others are made of; the
    # others; their list.
    "9a": ("stages.base stages.context stages.adapters stages.comparisons stages.groups"
           " stages.rollouts",),
    "9b": ("stages.preference", "stages.sft", "stages.voting"),
    "9c": ("stages.policy_gradient", "stages.probe", "stages.reward_model", "stages.search",
           "stages.self_training"),
    "9d": ("stages.registry",),
    "10": ("run",),
    # The commands.
    "11": ("doctor", "evaluate", "export", "judge", "launch", "report", "sample", "serve",
           "train"),
    "12": ("claims",),
    "13": ("experiments",),
    "14": ("__main__",),  # The one command that starts the others, by name.
}
# Packages of several rooms. Their __init__ imports nothing of ours, so anyone may pass through.
CORRIDORS = ("rl_reason", "rl_reason.stages")

# (who imports, what), known to break the plan. Lines are only ever taken away: a new import that
# breaks the plan is mended, not listed.
DEBTS: frozenset[tuple[str, str]] = frozenset()


@dataclasses.dataclass(frozen=True)
class Import:
  """One module imports another.

  line: where it stands first.
  by_string: it is imported by its name in quotes.
  """
  importer: str
  imported: str
  line: int
  by_string: bool = False

  def __str__(self) -> str:
    how = ", by string" if self.by_string else ""
    return f"{self.importer} (line {self.line}{how}) imports {self.imported}"


# The walker.


def modules(root: Path, packages: Mapping[str, str] = PACKAGES) -> dict[str, Path]:
  """Name -> file of every module, as it is imported."""
  found = {}
  for package, folder in packages.items():
    for path in sorted((root / folder).rglob("*.py")):
      parts = path.relative_to(root / folder).with_suffix("").parts
      found[".".join([package, *(part for part in parts if part != "__init__")])] = path
  return found


def imports(known: Mapping[str, Path]) -> list[Import]:
  """What these modules import of one another, wherever it stands in a file; each pair once."""
  found: dict[tuple[str, str], Import] = {}
  for name, path in known.items():
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      for dotted, by_string in _named(node, name, path.name == "__init__.py", known):
        imported = _longest(dotted, known)
        if imported and imported != name:
          edge = Import(name, imported, node.lineno, by_string)
          before = found.setdefault((name, imported), edge)
          found[name, imported] = min(before, edge, key=lambda e: e.line)
  return list(found.values())


def _named(
    node: ast.AST, module: str, is_package: bool, known: Mapping[str, Path],
) -> Iterable[tuple[str, bool]]:
  """The dotted names that a statement or an expression imports, and whether by string."""
  if isinstance(node, ast.Import):
    for alias in node.names:
      yield alias.name, False
  elif isinstance(node, ast.ImportFrom):
    package = module.split(".") if is_package else module.split(".")[:-1]
    above = package[:len(package) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:  # A module of the package, or a name in it.
      inside = f"{base}.{alias.name}"
      yield inside if inside in known else base, False
  elif isinstance(node, ast.Call):
    called = ast.unparse(node.func).rpartition(".")[2]
    given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "name")]
    if called in ("import_module", "find_spec", "__import__") and given:
      if isinstance(given[0], ast.Constant):
        yield str(given[0].value), True
  elif isinstance(node, ast.Constant) and isinstance(node.value, str):
    # "package.module:function", as the sandbox's workers get it. In an experiment such a string is
    # a choice by name, which is what a config is for.
    if re.fullmatch(r"\w+(\.\w+)+:\w+", node.value) and not _in(module, ["experiments"]):
      yield node.value.partition(":")[0], True


def _longest(dotted: str, known: Mapping[str, Path]) -> str:
  """The module that a dotted name is, or is in; "" for what is not ours."""
  while dotted and dotted not in known:
    dotted = dotted.rpartition(".")[0]
  return dotted


def circle(edges: Iterable[Import]) -> list[Import]:
  """The imports of one of the shortest circles, in order; [] where there is none."""
  by_importer: dict[str, list[Import]] = {}
  for edge in edges:
    by_importer.setdefault(edge.importer, []).append(edge)
  shortest: list[Import] = []
  for start in by_importer:
    ways, seen = [[edge] for edge in by_importer[start]], {start}
    while ways and (not shortest or len(ways[0]) < len(shortest)):
      way, *ways = ways
      here = way[-1].imported
      if here == start:
        shortest = way
        break
      if here not in seen:
        seen.add(here)
        ways += [[*way, edge] for edge in by_importer.get(here, ())]
  return shortest


# The plan.


def _in(module: str, room: Iterable[str]) -> bool:
  return any(f"{module}.".startswith(f"rl_reason.{part}.") for part in room)


def places(module: str) -> list[tuple[int, str]]:
  """(how high its floor is, its room) of a module: one such pair, if the plan is sound."""
  return [(height, room) for height, rooms in enumerate(FLOORS.values()) for room in rooms
          if _in(module, room.split())]


def against_the_plan(edge: Import) -> str:
  """What is wrong with an import, for a newcomer to read; "" where nothing is."""
  if edge.importer in CORRIDORS or edge.imported in CORRIDORS:
    return ""
  (own, room), (other, other_room) = places(edge.importer)[0], places(edge.imported)[0]
  if room == other_room or own > other:
    return ""
  floors = list(FLOORS)
  room, other_room = (f"{r.split()[0]} and its like" if " " in r else r for r in (room, other_room))
  where = f"{edge}: from floor {floors[own]} ({room}) "
  if own == other:
    return (f"{where}to another room of that floor ({other_room}). Rooms of one floor do not know"
            " each other: pass in as an argument what is needed, let a file of a higher floor join"
            " the two, or move what both need to a lower floor.")
  return (f"{where}up to floor {floors[other]} ({other_room}). Imports run down: pass in as an"
          f" argument what is needed (a function, an object built above), or move it to floor"
          f" {floors[own]} or lower, or move the importer up.")


@pytest.fixture(scope="module")
def known():
  return modules(ROOT)


@pytest.fixture(scope="module")
def edges(known):
  return imports(known)


def is_debt(edge: Import) -> bool:
  return (edge.importer, edge.imported) in DEBTS


def test_every_module_is_in_one_room(known):
  homeless = [name for name in known if name not in CORRIDORS and len(places(name)) != 1]
  assert not homeless, (
      f"{', '.join(homeless)}: each module belongs to one room of FLOORS in {Path(__file__).name}."
      " Put a new file into the room of its subject, or add a room to the floor above all that it"
      " imports.")


def test_a_corridor_imports_nothing_of_ours(edges):
  assert [str(e) for e in edges if e.importer in CORRIDORS] == []


def test_an_init_holds_what_to_read_and_no_code(known):
  """A room exports nothing: who imports one file of it should not import all of it."""
  for name, path in known.items():
    if path.name == "__init__.py" and name != "rl_reason":
      first, *rest = ast.parse(path.read_text(encoding="utf-8")).body
      is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
      assert is_text, f"{name} begins with no docstring: say what is in the room, in reading order."
      # The folders at the top refuse to be imported by their bare name.
      is_guard = len(rest) == 1 and ast.unparse(rest[0]).startswith("if __name__ == ")
      assert not rest or is_guard, (
          f"{name} holds code: move it to a file of the room, and import it from there.")


def test_imports_run_down_the_floors(edges):
  wrong = [text for edge in edges if not is_debt(edge) and (text := against_the_plan(edge))]
  assert not wrong, "\n".join(["", *wrong])


def test_imports_go_in_no_circle(edges):
  found = circle(edge for edge in edges if not is_debt(edge))
  assert not found, "\n".join([
      "", *map(str, found), "These imports go in a circle: none of the files can be read, tested or"
      " moved without the others. Move what two of them need into a file that imports neither, or"
      " pass it in as an argument."])


def test_debts_are_owed(edges):
  """A debt that was paid leaves the list, so that it can only shrink."""
  owed = {(edge.importer, edge.imported): edge for edge in edges}
  others = [edge for edge in edges if not is_debt(edge)]
  for pair in sorted(DEBTS):
    assert pair in owed, f"{pair} is in DEBTS and is no import any more: take it out."
    wrong = against_the_plan(owed[pair]) or circle([*others, owed[pair]])
    assert wrong, f"{pair} is in DEBTS and does not break the plan any more: take it out."


# The walker itself, on trees that are wrong.

LOW, HIGH = "rl_reason.objectives.losses", "rl_reason.run.context"


def walk(tmp_path, low="", high="", workdir=""):
  """The imports of a tree of these sources: a low file, a high one, and another in its room."""
  for room in ("", "objectives", "run"):
    (tmp_path / "rl_reason" / room).mkdir(exist_ok=True)
    (tmp_path / "rl_reason" / room / "__init__.py").touch()
  (tmp_path / "rl_reason/objectives/losses.py").write_text(low)
  (tmp_path / "rl_reason/run/context.py").write_text(high)
  (tmp_path / "rl_reason/run/workdir.py").write_text(workdir)
  return imports(modules(tmp_path, {"rl_reason": "rl_reason"}))


@pytest.mark.parametrize("source, line", [
    ("import rl_reason.run.context", 1),
    ("from rl_reason.run import context", 1),
    ("from rl_reason.run.context import make_context as make", 1),
    ("from ..run.context import make_context", 1),
    ("from .. import run\nfrom ..run import context", 2),
    ("def loss():\n  from rl_reason.run import context\n  return context", 2),
    ("def loss():\n  def inner():\n    import rl_reason.run.context\n  return inner", 3),
    ("import typing\nif typing.TYPE_CHECKING:\n  from rl_reason.run.context import Context", 3),
    ("try:\n  import rl_reason.run.context as c\nexcept ImportError:\n  c = None", 2),
    ("import importlib\nc = importlib.import_module('rl_reason.run.context')", 2),
    ("from importlib import import_module\nc = import_module(name='rl_reason.run.context')", 2),
    ("import importlib.util\nc = importlib.util.find_spec('rl_reason.run.context')", 2),
    ("c = __import__('rl_reason.run.context')", 1),
    ("pool = shared_pool('rl_reason.run.context:make_context')", 1),
])
def test_an_import_upwards_is_found_wherever_it_stands(tmp_path, source, line):
  found = {(edge.importer, edge.imported): edge for edge in walk(tmp_path, low=source)}
  message = against_the_plan(found[LOW, HIGH])
  assert message.startswith(f"{LOW} (line {line}")
  assert f"imports {HIGH}: from floor 3 (objectives) up to floor 10 (run). Imports run" in message


@pytest.mark.parametrize("source", [
    "from rl_reason.objectives import losses",
    "def build():\n  import rl_reason.objectives.losses",
    "from rl_reason.run.workdir import Workdir"])
def test_imports_down_and_within_a_room_are_fine(tmp_path, source):
  found = walk(tmp_path, high=source)
  assert len(found) == 1
  assert not against_the_plan(found[0])
  assert not circle(found)


def test_text_that_names_a_module_is_no_import(tmp_path):
  source = '"""See rl_reason.run.context:Context."""\nx = "rl_reason.run.context"'
  assert walk(tmp_path, low=source) == []


def test_two_rooms_of_one_floor_do_not_import_each_other():
  message = against_the_plan(Import("rl_reason.sample", "rl_reason.train", 7))
  assert message.startswith("rl_reason.sample (line 7) imports rl_reason.train: from floor 11"
                            " (sample) to another room of that floor (train).")


@pytest.mark.parametrize("importer, imported, is_fine", [
    ("sft", "base", True), ("sft", "preference", False), ("sft", "policy_gradient.stage", False),
    ("self_training.stage", "sft", True), ("context", "base", True), ("base", "sft", False),
    ("reward_model.stage", "reward_model.config", True)])
def test_the_stages_have_floors_of_their_own(importer, imported, is_fine):
  edge = Import(f"rl_reason.stages.{importer}", f"rl_reason.stages.{imported}", 1)
  assert bool(against_the_plan(edge)) != is_fine


def test_a_circle_is_found_through_functions_and_strings(tmp_path):
  found = circle(walk(
      tmp_path,
      low="def loss():\n  from rl_reason.run import workdir",
      workdir="from rl_reason.run.context import Context",
      high="import importlib\ndef f():\n  importlib.import_module('rl_reason.objectives.losses')"))
  assert {edge.importer for edge in found} == {LOW, HIGH, "rl_reason.run.workdir"}
  assert all(a.imported == b.importer for a, b in zip(found, [*found[1:], found[0]]))


def test_the_shortest_circle_is_shown():
  found = circle(Import(a, b, 1) for a, b in ("ab", "bc", "cd", "da", "ca"))
  assert [edge.importer + edge.imported for edge in found] == ["ab", "bc", "ca"]


def test_a_module_that_is_in_no_room_has_no_place():
  assert places("rl_reason.utils") == []
  assert places("rl_reason.stages.brand_new") == []
  assert places("rl_reason.runtime_more") == []
  assert [room for _, room in places("rl_reason.rewards.composition.build")] == ["rewards"]


# Functions.


def on_purpose(source: str) -> list[str]:
  """Lists functions of over 60 lines of code, or with over two inside, that do not say why.

  Docstrings do not count. A function says why in a comment that begins "Long on purpose", "Nested
  on purpose" or "Long and nested on purpose".
  """
  found, lines = [], source.splitlines()
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    text = ast.get_docstring(node, clean=False)
    length = node.end_lineno - node.lineno + 1 - (text.count("\n") + 1 if text else 0)
    inside = [n for n in ast.walk(node)
              if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n is not node]
    own = "\n".join(lines[node.lineno - 1:node.end_lineno])
    excused = re.search(r"# (Long|Nested)[ \w]* on purpose: ", own)
    if (length > 60 or len(inside) > 2) and not excused:
      found.append(f"{node.name}, {length} lines, {len(inside)} functions inside")
  return found


@pytest.mark.parametrize("folder", [*PACKAGES.values()])
def test_long_functions_say_why(folder):
  found = {str(path.relative_to(ROOT)): long for path in sorted((ROOT / folder).rglob("*.py"))
           if (long := on_purpose(path.read_text()))}
  assert found == {}


def test_a_function_that_is_long_or_holds_many_is_found():
  many = "def f():\n" + "".join(f"  def g{i}():\n    pass\n" for i in range(3))
  long = "def f():\n" + "  x = 1\n" * 60
  documented = 'def f():\n  """Text.\n' + "  more\n" * 80 + '  """\n'
  assert on_purpose(many) == ["f, 7 lines, 3 functions inside"]
  assert on_purpose(long) == ["f, 61 lines, 0 functions inside"]
  assert on_purpose(long.replace("x = 1", "# Long on purpose: it is.", 1)) == []
  assert on_purpose(documented) == []
