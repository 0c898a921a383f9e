"""The README's example and the notebook do what they say."""

from pathlib import Path
import re
import sys

from nbclient import NotebookClient
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def readme_python_blocks():
  return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_library_example_runs():
  scope = {}
  exec(readme_python_blocks()[0], scope)
  assert len(scope["samples"]) == 32 and scope["total"].shape == (32,)
  lengths, behaviour = scope["completions"].lengths, scope["completions"].behaviour_logprobs
  mask = np.arange(behaviour.shape[1]) < lengths[:, None]
  np.testing.assert_allclose(np.where(mask, scope["logprobs"], 0), behaviour, atol=1e-4)


def test_plug_in_example_is_valid_and_scores():
  scope = {}
  exec(readme_python_blocks()[1], scope)
  sample = type("Sample", (), {"completion": "x" * 80})
  assert scope["brevity"]([sample], limit=40) == [0.5]


def test_every_logged_name_is_explained(tiny_run):
  """Names in a run's metrics.jsonl appear in the README's table."""
  from rl_reason.reporting.metrics import read_metrics
  table = (ROOT / "README.md").read_text().split("## What is logged")[1].split("\n## ")[0]
  explained = set(re.findall(r"`([^`]+)`", table))
  logged = {k for line in read_metrics(tiny_run) for k in line} - {"stage", "step"}
  patterns = {re.sub(r"@\d+(_low|_high)?$", "@k", k) for k in logged}
  missing = {k for k in patterns if k not in explained and not k.startswith("reward/exact_answer")
             and k not in {"eval/pass@1"}}
  assert not missing


def test_files_of_the_reading_path_exist():
  path = (ROOT / "README.md").read_text().split("## One run, one reading path")[1].split("Beside it")[0]
  names = re.findall(r"^    (\S+?)(?:, (\S+))?   ", path, re.MULTILINE)
  assert len(names) >= 9
  for name in (n.rstrip(",") for pair in names for n in pair if n):
    assert (ROOT / name).exists(), name


def test_notebook_runs_top_to_bottom(tmp_path, monkeypatch):
  monkeypatch.setenv("RL_REASON_NOTEBOOK_SIZE", "tiny")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
  # A kernel of this very interpreter, whatever kernels are registered for the user.
  kernel = tmp_path / "kernels" / "python3"
  kernel.mkdir(parents=True)
  (kernel / "kernel.json").write_text(
      '{"argv": ["%s", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Python 3",'
      ' "language": "python"}' % sys.executable)
  monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
  notebook = nbformat.read(ROOT / "colab/quickstart.ipynb", as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells), "Committed notebooks carry no outputs."
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
  outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
  assert any("image/png" in o.get("data", {}) for o in outputs)
  assert any("pass@1" in o.get("text", "") for o in outputs)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
  from rl_reason import train
  from rl_reason.run import config
  workdir = tmp_path_factory.mktemp("tiny")
  c = config.load("experiments/quickstart.py:tiny")
  # The fields that log more.
  c.unlock()
  c.rl.staleness, c.rl.objective.importance_cap = 1, 2.0
  c.mesh.fsdp = 1
  train.train(c, workdir, plain=True)
  return workdir
