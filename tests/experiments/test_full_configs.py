"""The policies that experiments' full configs start from are ones that the loader reads.

No test can fetch a 7B model. tests/data/published_configs.json holds what the config.json of each
says, and `models.huggingface` must accept it: a config that names another family of models fails
here, and not after a download on a pod.
"""

import ast
import json
import math

import jax
import pytest

from rl_reason.models import huggingface
from rl_reason.models.transformer import abstract_params
from tests import ROOT

MODELS = json.loads((ROOT / "tests/data/published_configs.json").read_text())["models"]
# What a model's name promises, in parameters.
SIZES = {
    "smollm2-135m": 135e6, "llama2-7b": 6.74e9, "llama3-8b-sft": 8.03e9, "tulu3-8b-sft": 8.03e9,
    "llama3.2-1b": 1.24e9, "qwen2-1.5b-instruct": 1.54e9, "qwen2.5-3b-instruct": 3.09e9,
    "qwen2.5-7b-instruct": 7.62e9,
}


def pretrained_paths(file):
  """Every path in dict(source="pretrained", args=dict(path=...)).

  They are those of all sizes, found in the source.
  """
  for node in ast.walk(ast.parse(file.read_text())):
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "dict"):
      continue
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(source := given.get("source"), ast.Constant) and source.value == "pretrained":
      path, = [k.value for k in given["args"].keywords if k.arg == "path"]
      yield path.value if isinstance(path, ast.Constant) else ast.unparse(path)


USED = sorted({(file.stem, path) for file in (ROOT / "experiments").glob("*.py")
               for path in pretrained_paths(file)})


@pytest.mark.parametrize("experiment, path", USED)
def test_the_loader_reads_the_policy(experiment, path):
  assert path in MODELS, (
      f"experiments/{experiment}.py starts from {path!r}: add what its config.json says to"
      " tests/data/published_configs.json.")
  config = huggingface.from_json(MODELS[path]["config"], f"{path}/config.json")
  assert config.family in huggingface.ARCHITECTURES


def test_the_table_holds_no_model_that_no_experiment_names():
  assert set(MODELS) == {path for _, path in USED}


@pytest.mark.parametrize("path, size", SIZES.items())
def test_the_table_describes_a_model_of_its_size(path, size):
  shapes = abstract_params(huggingface.from_json(MODELS[path]["config"]))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert count == pytest.approx(size, rel=0.01)
