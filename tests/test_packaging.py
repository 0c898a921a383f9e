"""The one import name, in every form it is used in: a wheel, an editable install, a copied tree."""

import ast
import os
from pathlib import Path
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
import setuptools

from tests import ROOT

BUILT_FROM = ("setup.py", "requirements.txt", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def arguments():
  """What setup.py gives to setuptools.setup."""
  with pytest.MonkeyPatch.context() as patch:
    given = {}
    patch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    runpy.run_path(str(ROOT / "setup.py"))
  return given


@pytest.fixture(scope="module")
def tree(tmp_path_factory, arguments) -> Path:
  """A copy of what a wheel is built from, so that building writes nothing into the checkout."""
  copy = tmp_path_factory.mktemp("packaging") / "tree"
  for folder in top_folders(arguments):
    shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
  for name in BUILT_FROM:
    shutil.copy(ROOT / name, copy)
  return copy


def top_folders(arguments) -> list[str]:
  return sorted({folder.split("/")[0] for folder in arguments["package_dir"].values()})


def modules(arguments) -> dict[str, Path]:
  """Name -> file of every module in the checkout, by package_dir.

  Not the benchmarks: they belong to a checkout, where make gives them the environments of the
  libraries they compare with.
  """
  found = {}
  for package, folder in arguments["package_dir"].items():
    for file in (ROOT / folder).rglob("*.py"):
      if file.parent == ROOT / "experiments/benchmarks":
        continue
      parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
      found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
  return found


def import_all(arguments) -> str:
  """Code that imports every module and prints its name and file."""
  return f"""
import importlib, sys
for name in {sorted(modules(arguments))}:
  print(name, importlib.import_module(name).__file__)
"""


def run(
    code: str, *, cwd: Path, python: str = sys.executable, path: Path | None = None,
) -> subprocess.CompletedProcess:
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment.pop("PYTHONPATH", None)
  if path is not None:
    environment["PYTHONPATH"] = str(path)
  return subprocess.run(
      [python, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


# What setup.py says.


def test_every_folder_with_an_init_is_listed(arguments):
  packages = {name for name, file in modules(arguments).items() if file.name == "__init__.py"}
  assert sorted(packages) == sorted(arguments["packages"])
  assert all((file.parent / "__init__.py").is_file() for file in modules(arguments).values())


def test_no_module_shadows_the_standard_library(arguments):
  # A script started in a folder, or a tool that adds the folder to sys.path, would import our
  # module for Python's. rl_reason/types.py keeps the name that readers look for: commands are
  # `python -m rl_reason.train`, never a file.
  stems = {name.rpartition(".")[2] for name in modules(arguments) if name != "rl_reason.types"}
  assert not stems & sys.stdlib_module_names


def test_requirements_are_the_core_and_no_accelerator_or_peer_is_among_them(arguments):
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  assert arguments["install_requires"] == [
      line for line in lines if line and not line.startswith("#")]
  names = {line.partition(">=")[0] for line in arguments["install_requires"]}
  assert {"jax", "flax"} <= names  # A plain jax: the [cuda13] and [tpu] of it are extras.
  assert not {"torch", "tensorflow", "transformers", "trl"} & {
      name.partition("[")[0] for name in names}


def test_the_changes_and_the_citation_name_this_version(arguments):
  changes = (ROOT / "docs/CHANGELOG.md").read_text()
  assert re.search(r"^## (.+)$", changes, re.MULTILINE).group(1) == arguments["version"]
  citation = (ROOT / "docs/CITATION.cff").read_text()
  assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == arguments["version"]


def test_no_module_imports_torch_or_tensorflow(arguments):
  for file in modules(arguments).values():
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
          [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
      assert not {"torch", "tensorflow", "transformers", "trl"} & {
          name.split(".")[0] for name in names}, file


# A checkout, and a copy of one without installation.


@pytest.mark.parametrize("name", ["models", "rewards"])
def test_the_bare_folder_refuses_to_be_a_package(name):
  process = run(f"import {name}", cwd=ROOT)
  assert process.returncode
  assert f"ImportError: This folder is the package rl_reason.{name}: write" in process.stderr


def test_a_copied_tree_runs_without_installation(tree, tmp_path):
  process = run("import rl_reason.models.transformer as t, rl_reason.experiments as e,"
                " rl_reason.rewards as r\nprint(t.__file__, e.__file__, r.__file__)",
                cwd=tmp_path, path=tree)
  files = [tree / "models/transformer.py", tree / "experiments/__init__.py",
           tree / "rewards/__init__.py"]
  assert process.stdout.split() == list(map(str, files)), process.stderr


def test_a_copied_tree_knows_its_version(tree, tmp_path, arguments):
  # Whatever distribution of the library is installed, if any.
  process = run("from rl_reason.run import workdir; print(workdir.versions()['rl_reason'])",
                cwd=tmp_path, path=tree)
  assert process.stdout.split() == [arguments["version"]], process.stderr


# A wheel.


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
  """The folder that the wheel unpacks to."""
  out = tmp_path_factory.mktemp("wheel")
  built = subprocess.run(
      [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree],
      capture_output=True, text=True)
  assert built.returncode == 0, built.stdout + built.stderr
  file, = out.glob("*.whl")
  with zipfile.ZipFile(file) as archive:
    archive.extractall(out / "unpacked")
  return out / "unpacked"


def test_a_wheel_holds_one_import_name_and_every_module(wheel, arguments):
  assert sorted(path.name for path in wheel.iterdir()) == [
      "rl_reason", f"rl_reason-{arguments['version']}.dist-info"]
  expected = {name.replace(".", "/") + ("/__init__.py" if file.name == "__init__.py" else ".py")
              for name, file in modules(arguments).items()}
  held = {str(path.relative_to(wheel))
          for path in (wheel / "rl_reason").rglob("*") if path.is_file()}
  assert held == expected | {"rl_reason/py.typed"}


def test_a_wheel_brings_the_command(wheel, arguments):
  scripts = (wheel / f"rl_reason-{arguments['version']}.dist-info/entry_points.txt").read_text()
  assert scripts.split() == ["[console_scripts]", "rl-reason", "=", "rl_reason.__main__:main"]


def test_every_module_of_a_wheel_imports_and_none_brings_tensorflow_or_torch(
    wheel, arguments, tmp_path):
  process = run(
      import_all(arguments) + "print({'tensorflow', 'torch', 'transformers'} & set(sys.modules))",
      cwd=tmp_path, path=wheel)
  assert process.returncode == 0, process.stderr
  *lines, last = process.stdout.splitlines()
  loaded = dict(line.split(" ", 1) for line in lines)
  assert all(Path(file).is_relative_to(wheel) for file in loaded.values())
  assert last == "set()"


# An editable install.


@pytest.mark.slow
def test_an_editable_install_is_the_checkout_and_claims_no_other_name(tree, tmp_path, arguments):
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
  python = str(tmp_path / "env/bin/python")
  purelib, = (tmp_path / "env").glob("lib/python*/site-packages")
  # pip, setuptools and the requirements are taken from here. A .pth file leads to the folder but
  # does not have the .pth files in it read, so an editable install of the checkout stays out of
  # sight.
  (purelib / "from_parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
  installed = subprocess.run(
      [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", tree],
      capture_output=True, text=True)
  assert installed.returncode == 0, installed.stdout + installed.stderr
  process = run(import_all(arguments), cwd=tmp_path, python=python)
  assert process.returncode == 0, process.stderr
  loaded = dict(line.split(" ", 1) for line in process.stdout.splitlines())
  assert loaded == {
      name: str(tree / file.relative_to(ROOT)) for name, file in modules(arguments).items()}
  for name in ("models", "rewards", "experiments"):
    assert "ModuleNotFoundError" in run(f"import {name}", cwd=tmp_path, python=python).stderr
