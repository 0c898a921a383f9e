"""Writes the pages of the API reference, one for each room: every module of it, by autodoc."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Rooms in the order of their floors, from the commands down to the configs' grammar.
ROOMS = {
    "rl_reason": "Commands and shared types",
    "rl_reason.claims": "Claims",
    "rl_reason.run": "A run",
    "rl_reason.stages": "Stages",
    "rl_reason.evaluation": "Evaluation",
    "rl_reason.rewards": "Rewards",
    "rl_reason.envs": "Environments",
    "rl_reason.rollout": "Sampling",
    "rl_reason.scorers": "Scorers",
    "rl_reason.learner": "The learner",
    "rl_reason.batches": "Batches",
    "rl_reason.models": "Models",
    "rl_reason.judges": "Judges in words",
    "rl_reason.objectives": "Objectives",
    "rl_reason.runtime": "Devices and the machine",
    "rl_reason.tasks": "Tasks",
    "rl_reason.reporting": "Reporting",
    "rl_reason.sandbox": "The sandbox",
    "rl_reason.config": "Configs",
}
BESIDE = ("models", "rewards")  # Folders beside rl_reason/ that setup.py maps into it.


def modules(root: Path = ROOT) -> dict[str, list[str]]:
  """Returns room -> its modules that have a docstring, packages before what they hold."""
  found: dict[str, list[str]] = {}
  for folder in ("rl_reason", *BESIDE):
    for path in sorted((root / folder).rglob("*.py")):
      parts = path.relative_to(root).with_suffix("").parts
      parts = parts if folder == "rl_reason" else ("rl_reason", *parts)
      if parts[-1] == "__init__":
        parts = parts[:-1]
      if len(parts) == 1 or any(p.startswith("_") and p != "__main__" for p in parts):
        continue
      if ast.get_docstring(ast.parse(path.read_text())) is None:
        continue
      is_room = len(parts) > 2 or path.name == "__init__.py"
      found.setdefault(".".join(parts[:2]) if is_room else "rl_reason", []).append(".".join(parts))
  unknown = found.keys() - ROOMS.keys()
  if unknown:
    raise ValueError(f"docs/_ext/api.py: ROOMS lacks {', '.join(sorted(unknown))}: add a title.")
  return {room: sorted(found[room]) for room in ROOMS if room in found}


def page(title: str, names: list[str]) -> str:
  """Returns a room's page in reStructuredText."""
  lines = [title, "=" * len(title), ""]
  for name in names:
    lines += [name, "-" * len(name), "", f".. automodule:: {name}", ""]
  return "\n".join(lines)


def write(app) -> None:
  """Writes docs/api/: a page a room and an index. Files that stay the same are not touched."""
  folder = Path(app.srcdir) / "api"
  folder.mkdir(exist_ok=True)
  rooms = modules()
  pages = {f"{room.replace('.', '-')}.rst": page(ROOMS[room], names) for room, names in rooms.items()}
  entries = "\n".join(f"   {name.removesuffix('.rst')}" for name in pages)
  pages["index.rst"] = (
      "API reference\n=============\n\n"
      "Every public function and class, a page for each room, from the commands down to the configs'\n"
      "grammar: a room imports from those below it and never from those above.\n\n"
      f".. toctree::\n   :maxdepth: 1\n\n{entries}\n")
  for name, text in pages.items():
    if not (folder / name).exists() or (folder / name).read_text() != text:
      (folder / name).write_text(text)
  for path in folder.glob("*.rst"):
    if path.name not in pages:
      path.unlink()


def setup(app):
  app.connect("builder-inited", write)
  return {"parallel_read_safe": True}
