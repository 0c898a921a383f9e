"""Damaged files of runs, claims and models, by seeds: refused by name, or read where they still say something.

Each reader is given its file with other bytes, and with other values in its JSON. The files of rows,
safetensors and GGUF have tests of their own, with the same trials.
"""

import copy
import json
import shutil
from types import SimpleNamespace
import warnings

import pytest

from rl_reason.claims import folder as claim_runs
from rl_reason.claims import results
from rl_reason.models import huggingface, tokenizer
from rl_reason.reporting.metrics import read_metrics
from rl_reason.run import config as config_lib
from rl_reason.run import record
from rl_reason.run.workdir import Workdir
from tests.models.test_tokenizer import model_directory
from tests.runtime.test_checkpoint import checkpoints, equal, notes, reopened, save, shape, state  # noqa: F401
from tests.tasks.test_comparison_formats import places, replaced
from tests.tasks.test_row_files import damaged

# Of orbax, when one part of a checkpoint cannot be read and the loading of the others is given up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")

VALUES = (None, True, -1, 1.5, 10 ** 400, float("nan"), "", "x", "\ud800", "{", [], [1], {}, {"a": 1})
LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=32, hidden_size=32,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=True,
    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=64))


def run_folder(folder):
  """A run with a change in its history, metrics and a date."""
  config = config_lib.as_json(config_lib.load("experiments/quickstart.py:tiny"))
  first = record.Record(config).changed(config, {"rl.num_steps": (3, 4)}, "rl", 2, ["sft", "rl"])
  Workdir(folder)
  folder.mkdir(exist_ok=True)
  first.write(folder)
  (folder / "metrics.jsonl").write_text(
      '{"stage": "sft", "step": 1, "loss": 2.0}\n{"stage": "rl", "step": 2, "loss": "NaN"}\n')
  (folder / "date.json").write_text('{"date": "2026-01-31"}')


def claim_folder(folder):
  (folder / "results" / "mine").mkdir(parents=True)
  (folder / "results" / "mine" / "a.json").write_text(json.dumps(dict(
      experiment="mine", name="a", verdict="holds", test={"metric": {}}, configs={"arm": {}},
      code={"models.policy:x": "0"})))
  (folder / "failed.json").write_text('{"error": "no space"}')
  (folder / "seconds.json").write_text("[1.5, 2.0]")


def model_folder(folder):
  model_directory(folder)
  (folder / "config.json").write_text(json.dumps(LLAMA))


def read_claim(folder):
  results.read(SimpleNamespace(file=folder / "mine.py", name="mine"), "a")


def read_outcome(folder):
  outcome = claim_runs.outcome(SimpleNamespace(folder=folder))
  assert outcome.status == "failed" and isinstance(outcome.error, str)


def read_run(folder):
  config_lib.continued(folder)
  if (found := config_lib.recorded(folder)) is not None:
    config_lib.check(config_lib.ml_collections.ConfigDict(found))


READERS = {
    "config.json of a run": (run_folder, "config.json", read_run),
    "history.json": (run_folder, "history.json", read_run),
    "metrics.jsonl": (run_folder, "metrics.jsonl", read_metrics),
    "date.json": (run_folder, "date.json", lambda folder: Workdir(folder).date()),
    "a claim's record": (claim_folder, "results/mine/a.json", read_claim),
    "failed.json": (claim_folder, "failed.json", read_outcome),
    "seconds.json": (claim_folder, "seconds.json", read_outcome),
    "config.json of a model": (model_folder, "config.json", huggingface.read_config),
    "tokenizer.json": (model_folder, "tokenizer.json", tokenizer.load),
    "tokenizer_config.json": (model_folder, "tokenizer_config.json", tokenizer.load),
}


def faulty(text, draw):
  """The text of a JSON file, or of JSON lines, with one to three other values."""
  lines = [json.loads(line) for line in text.splitlines()] if "}\n{" in text else [json.loads(text)]
  for _ in range(draw.randint(1, 3)):
    at = draw.randrange(len(lines))
    lines[at] = replaced(copy.deepcopy(lines[at]), draw.choice(places(lines[at])[1:] or [("x",)]), draw.choice(VALUES))
  return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("name", READERS)
def test_seeded_damage_is_refused_by_name_or_still_read(name, tmp_path, trials):
  make, file, read = READERS[name]
  make(tmp_path)
  path = tmp_path / file
  whole = path.read_bytes()
  read(tmp_path)
  for draw in trials(30):
    content = damaged(whole, draw) if draw.random() < 0.3 else faulty(whole.decode(), draw).encode()
    path.write_bytes(content)
    with draw.refusal(content if len(content) < 2000 else "a long file"):
      read(tmp_path)


def test_seeded_damage_to_checkpoints_gives_no_other_arrays(checkpoints, notes, tmp_path, trials):  # noqa: F811
  save(checkpoints, 1, 2)
  shutil.copytree(tmp_path / "stage", tmp_path / "whole")
  for draw in trials(10):
    shutil.rmtree(tmp_path / "stage")
    shutil.copytree(tmp_path / "whole", tmp_path / "stage")
    files = sorted(path for path in (tmp_path / "stage" / "2").rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.choice(files)
    path.write_bytes(damaged(path.read_bytes(), draw))
    with draw.refusal(str(path)), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      again = reopened(tmp_path, notes)
      step, read, host = again.restore(shape(state(1)))
      assert equal(read, state(step))
      assert host["step"] == step
      again.close()
