"""What README.md and docs/ show runs, names what there is, and links to files that are there."""

import ast
import dataclasses
import importlib.util
from pathlib import Path
import re
import runpy
import sys
from types import SimpleNamespace
import typing

from nbclient import NotebookClient
import nbformat
import numpy as np
import pytest

from rl_reason.config.overrides import override
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.run import config
from rl_reason.stages.registry import STAGES
from rl_reason.types import Sample
from tests import environment, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block is not run only where a comment before it says why: <!-- not run: the reason -->.
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
  """A block of code of a page."""
  page: Path
  language: str
  text: str
  why: str | None

  @property
  def id(self) -> str:
    return f"{self.page.stem}-{len(self.page.read_text().partition(self.text)[0].splitlines()) + 1}"


def blocks(language: str) -> list[Block]:
  found = [Block(page, m["language"], m["text"], m["why"])
           for page in PAGES for m in BLOCK.finditer(page.read_text())]
  return [b for b in found if b.language == language and not b.why]


def extension(name: str):
  """A module of docs/_ext, which is no package."""
  spec = importlib.util.spec_from_file_location(
      f"docs_{name}", ROOT / "docs" / "_ext" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


registries = extension("registries")


# Python.

MINE = next(b.text for b in blocks("python") if b.page.name == "README.md")
LIBRARY = next(b.text for b in blocks("python") if "completion_logprobs" in b.text)
# Path -> the text of a module that the pages show, by the comment in its first line.
MODULES = {m[1]: b.text for b in blocks("python")
           if (m := re.match(r"# (my_package/\w+\.py)\n", b.text))}
CONFIGS = [b for b in blocks("python") if re.match(r"c[.\[]", b.text)]


def test_every_python_block_is_run_by_one_of_these_tests():
  run = {MINE, LIBRARY, *MODULES.values(), *(b.text for b in CONFIGS)}
  assert [b.id for b in blocks("python") if b.text not in run] == []


def run_mine(text, folder, monkeypatch):
  """Runs the README's example as `python mine.py` would. Returns the lines of its metrics."""
  (folder / "mine.py").write_text(text)
  monkeypatch.chdir(folder)
  runpy.run_path(str(folder / "mine.py"), run_name="__main__")
  return read_metrics(folder / "runs/echo")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
  """The lines of metrics of the README's example, of two steps, with the fields that log more."""
  more = '"rl.num_steps": 2, "rl.staleness": 1, "rl.objective.importance_cap": 2.0, "mesh.fsdp": 1'
  short = MINE.replace('"rl.num_steps": 40', more)
  assert short != MINE
  with pytest.MonkeyPatch.context() as monkeypatch:
    return run_mine(short, tmp_path_factory.mktemp("mine"), monkeypatch)


def test_own_data_reward_and_model_run(short_run):
  assert {line["step"] for line in short_run} == {0, 1, 2}
  assert any("reward/echo" in line for line in short_run)


@pytest.mark.slow
def test_own_data_reward_and_model_learn_as_the_readme_says(tmp_path, monkeypatch):
  lines = [line for line in run_mine(MINE, tmp_path, monkeypatch) if "eval/pass@1" in line]
  assert lines[0]["eval/pass@1"] < 0.3
  assert lines[-1]["eval/pass@1"] > 0.7


def test_library_example_runs():
  scope = {}
  exec(LIBRARY, scope)
  assert len(scope["samples"]) == 32
  assert scope["total"].shape == (32,)
  lengths, behaviour = scope["completions"].lengths, scope["completions"].behaviour_logprobs
  mask = np.arange(behaviour.shape[1]) < lengths[:, None]
  np.testing.assert_allclose(np.where(mask, scope["logprobs"], 0), behaviour, atol=1e-4)


@pytest.fixture
def own_package(tmp_path, monkeypatch):
  """The modules that the documentation's configs name.

  They are that of rewards, that of a source and that of a policy.
  """
  (tmp_path / "my_package").mkdir()
  for path, text in MODULES.items():
    (tmp_path / path).write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  for name in [n for n in sys.modules if n.partition(".")[0] == "my_package"]:
    monkeypatch.delitem(sys.modules, name)
  return importlib.import_module("my_package.mine")


def test_a_reward_that_asks_for_the_episode_counts_its_tokens(own_package):
  rewards = build_rewards({
      "few": {"function": "my_package.context:small_context", "args": {"tokens": 3}}})
  episode = dict(episode=("a", "bc", "d"), spans={"turn": [(0, 1), (3, 4)]})
  samples = [Sample("", "abcd", "", completion_tokens=(1, 2, 3, 4), **episode)]
  assert rewards(samples)[0].tolist() == [0]


def test_own_functions_do_what_the_page_says(own_package):
  sample = type("Sample", (), {"completion": "x" * 80})
  assert own_package.brevity([sample], limit=40) == [0.5]
  assert own_package.Riddles("train")[4].reference == "5"
  assert own_package.my_policy(width=32).config.width == 32


def test_own_probe_finds_what_the_page_says(own_package):
  class Probe:
    context = SimpleNamespace(task=SimpleNamespace(heldout=("1", "2", "3")))

    def sample(self, problems, sampling):
      assert sampling.max_tokens == 16
      return [SimpleNamespace(completion="x" * int(p)) for p in problems], None

  found = importlib.import_module("my_package.probes").lengths(Probe(), count=3)
  assert found["mean"] == 2
  np.testing.assert_array_equal(found["of_each"], [1, 2, 3])


class AnyModel:
  """In place of trained models: rewards that need one can still be checked."""

  def __getattr__(self, name):
    raise LookupError("This is no run.")


@pytest.mark.parametrize("block", CONFIGS, ids=lambda b: b.id)
def test_config_in_the_documentation_is_accepted(block, own_package):
  c = config.load("experiments/quickstart.py").unlock()
  exec(block.text, {"c": c})
  c = config.load_from(type("module", (), {"get_config": lambda: c}))
  _, sections = config.check(c)
  for section in sections.values():
    for name, entry in getattr(section, "rewards", {}).items():
      # Its names and arguments; a trained model is asked for only after these are right.
      try:
        build_rewards(
            {name: entry} if not hasattr(entry, "get") or "gate" not in entry
            else dict(section.rewards), models=AnyModel())
      except LookupError:
        assert entry["function"] == "learned"


# Shell.

TEXT = {page: page.read_text() for page in PAGES}
COMMANDS = [(page, " ".join(line.split())) for page, text in TEXT.items()
            for line in text.replace("\\\n", " ").splitlines()
            if re.search(r"--config=experiments/(?!NAME)", line)]


@pytest.mark.parametrize(
    "page, line", COMMANDS, ids=lambda x: x.stem if isinstance(x, Path) else "")
def test_commands_name_configs_and_fields_that_exist(page, line):
  c = config.load(re.search(r"--config=(\S+)", line)[1].strip("`"))
  changes = dict(re.findall(r"--config\.([\w.]+)=(\S+)", line))
  for dotted in changes:
    section = c
    for name in dotted.split("."):
      assert name in section, f"{page.name}: {dotted}"
      section = section[name]

  def value(text):
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return text
  config.check(override(c.unlock(), {k: value(v) for k, v in changes.items()}))


def test_loose_overrides_are_fields():
  """Those that stand in the text without a command: of the quickstart's config."""
  c = config.load("experiments/quickstart.py")
  found = {m for text in TEXT.values() for m in re.findall(r"`--config\.([\w.]+)=", text)}
  assert found
  for dotted in found:
    section = c
    for name in dotted.split("."):
      assert name in section, dotted
      section = section[name]


def has_field(section: type, dotted: str) -> bool:
  name, _, rest = dotted.partition(".")
  hints = typing.get_type_hints(section)
  if name not in hints:
    return False
  kinds = [t for t in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(t)]
  return not rest or not kinds or any(has_field(kind, rest) for kind in kinds)


def test_fields_that_the_text_names_exist():
  sections = {name: kind.Config for name, kind in STAGES.items()}
  named = {(page.name, m) for page, text in TEXT.items()
           for m in re.findall(r"`((?:rollout|credit|objective|learner|keep)\.[a-z_0-9.]+)", text)}
  assert len(named) > 30
  wrong = [(page, field) for page, field in named
           if not any(has_field(section, field) for section in sections.values())]
  assert wrong == []


def test_functions_and_classes_that_the_text_names_exist():
  # The list of changes names what was, too.
  named = {m for page, text in TEXT.items() if page.stem != "CHANGELOG"
           for m in re.findall(r"`(rl_reason(?:\.\w+)+)", text)}
  assert len(named) > 10

  def exists(dotted):
    module, _, name = dotted.rpartition(".")
    try:
      return importlib.util.find_spec(dotted) is not None or exists_in(module, name)
    except ModuleNotFoundError:
      return exists_in(module, name)

  def exists_in(module, name):
    return hasattr(importlib.import_module(module), name)
  assert [dotted for dotted in sorted(named) if not exists(dotted)] == []


def test_modules_that_commands_run_exist():
  modules = {
      m for text in TEXT.values() for m in re.findall(r"python -m (rl_reason[\w.]*\w)", text)}
  assert len(modules) >= 6
  assert [m for m in modules if importlib.util.find_spec(m) is None] == []


def test_make_targets_exist():
  makefile = (ROOT / "Makefile").read_text()
  targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
  named = {m for text in TEXT.values()
           for m in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
  assert {"quickstart", "test", "docs"} <= named
  assert named <= targets


# Text.


def test_readme_is_short():
  assert len((ROOT / "README.md").read_bytes()) < 8192


def slug(heading: str) -> str:
  """The anchor that GitHub and MyST give a heading."""
  return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_to_files_and_headings(page):
  prose = re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL)
  for target in re.findall(r"\]\(([^)\s]+)\)", prose):
    if target.startswith(("http://", "https://")):
      continue
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), target
    if anchor:
      assert anchor in map(slug, re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)), target


def test_every_page_is_in_the_index():
  listed = re.search(r"```{toctree}.*", TEXT[ROOT / "docs/index.md"], re.DOTALL)[0].split()
  assert {p.stem for p in PAGES if p.parent.name == "docs"} - {"index"} <= set(listed)


@pytest.mark.parametrize("name", registries.TABLES)
def test_every_name_of_a_registry_is_described_on_a_page(name):
  table = registries.TABLES[name]
  rendered = registries.render(name)
  entries = registries.entries(table)
  assert entries
  for entry in entries:
    assert f"| `{entry}` |" in rendered
  assert not table.words or table.words.keys() == entries.keys()
  assert any(f"```{{registry}} {name}\n" in text for text in TEXT.values())


def test_tables_that_pages_ask_for_exist():
  asked = {m for text in TEXT.values() for m in re.findall(r"```{registry} (.+)", text)}
  assert asked == registries.TABLES.keys()


def test_every_logged_name_is_explained(short_run):
  """Names in a run's metrics.jsonl appear on the page of metrics."""
  explained = set(re.findall(r"`([^`]+)`", TEXT[ROOT / "docs/metrics.md"]))
  logged = {k for line in short_run for k in line} - {"stage", "step"}
  patterns = {re.sub(r"@\d+(_low|_high)?$", "@k", k) for k in logged}
  missing = {k for k in patterns if k not in explained and not k.startswith("reward/echo")
             and k not in {"eval/pass@1"}}
  assert not missing


# The reference.


def test_docstrings_become_markup_that_cannot_break():
  to_rst = extension("docstrings").to_rst
  lines = """A sum of |x| and `code`; see arXiv:2402.03300.

      loss = -min(r*A, clip(r) A)

  low, high: bounds of r_t,
    both of them.
  Args:
    x: any value.
    *rest: more.
  Returns: 1. a number."""
  lines = [lines.splitlines()[0], *(line[2:] for line in lines.splitlines()[1:])]
  text = "\n".join(to_rst(lines))
  assert r"\|x\|" in text
  assert "``code``" in text
  assert "<https://arxiv.org/abs/2402.03300>" in text
  assert ".. code-block:: none\n\n   loss = -min(r*A, clip(r) A)\n" in text
  assert "- ``low``, ``high``: bounds of r\\_t, both of them.\n" in text
  assert "**Arguments**\n\n- ``x``: any value.\n- ``*rest``: more.\n" in text
  assert "**Returns**\n\n\\1. a number." in text


def test_signatures_are_short():
  shortened = extension("signatures").shortened
  # Our own modules stay behind "~", which hides them and keeps the link.
  signature = (
      "(x: ~jaxlib._jax.Array, c: ~rl_reason.b.Credit = Credit(keep=Keep(by='')), y: str = 'a.b')")
  assert shortened(signature) == "(x: Array, c: ~rl_reason.b.Credit = Credit(), y: str = 'a.b')"
  assert shortened("(f: X = <function A.<lambda>>, g: Y = <factory>)") == "(f: X = ..., g: Y = ...)"


def test_every_room_has_a_page_of_the_reference():
  api = extension("api")
  found = api.modules(ROOT)
  assert {"rl_reason.stages", "rl_reason.rewards", "rl_reason.models"} <= found.keys()
  assert "rl_reason.stages.policy_gradient.credit" in found["rl_reason.stages"]
  assert "rl_reason.train" in found["rl_reason"]


# The notebook.


@pytest.mark.slow  # Two stages in a kernel of its own: 40 s.
def test_notebook_runs_top_to_bottom(tmp_path, monkeypatch):
  monkeypatch.setenv("RL_REASON_NOTEBOOK_SIZE", "tiny")
  for name, value in environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
  # A kernel of this very interpreter, whatever kernels are registered for the user.
  kernel = tmp_path / "kernels" / "python3"
  kernel.mkdir(parents=True)
  (kernel / "kernel.json").write_text(
      '{"argv": ["%s", "-m", "ipykernel_launcher", "-f", "{connection_file}"],'
      ' "display_name": "Python 3", "language": "python"}' % sys.executable)
  monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
  notebook = nbformat.read(ROOT / "colab/quickstart.ipynb", as_version=4)
  committed = [cell.outputs for cell in notebook.cells if cell.get("outputs")]
  assert not committed, "Committed notebooks carry no outputs."
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
  outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
  assert any("image/png" in o.get("data", {}) for o in outputs)
  assert any("pass@1" in o.get("text", "") for o in outputs)
