"""Makes tiny models of every family, and keeps transformers' logits of them in tests/data/.

    python tests/make_reference_values.py

It needs torch and transformers (`pip install .[oracles]`). The weights are not stored: they are
drawn again from a seed, in the order of their names. The stored file holds the config.json, the
tensors' names and shapes as transformers saves them, tokens, logits and package versions. The tests
that read it need neither torch nor transformers.
"""

import copy
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data"
_SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
              bos_token_id=None, eos_token_id=None, pad_token_id=None)
# One config.json per case; between them both spellings of the rotary settings, as transformers 4
# and 5 write them.
CASES = {
    "llama": dict(_SIZES, model_type="llama", rms_norm_eps=1e-5, rope_theta=1000.0,
                  tie_word_embeddings=False),
    "llama3_scaling": dict(
        _SIZES, model_type="llama", rope_theta=10000.0, tie_word_embeddings=True,
        attention_bias=True, mlp_bias=True, head_dim=16, rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16)),
    "mistral": dict(_SIZES, model_type="mistral", sliding_window=5, num_key_value_heads=1,
                    rope_parameters=dict(rope_type="default", rope_theta=5000.0)),
    "qwen2": dict(_SIZES, model_type="qwen2", tie_word_embeddings=False, rope_theta=1e6,
                  use_sliding_window=False, sliding_window=4, max_window_layers=1),
    "qwen2_windows": dict(_SIZES, model_type="qwen2", tie_word_embeddings=True, num_hidden_layers=3,
                          use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": dict(_SIZES, model_type="qwen3", tie_word_embeddings=True, head_dim=12,
                  num_attention_heads=8,
                  rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=2000.0)),
    "gemma3": dict(
        _SIZES, model_type="gemma3_text", num_hidden_layers=3, head_dim=16, sliding_window=6,
        query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=5.0, attention_bias=True, rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=20000.0),
            sliding_attention=dict(rope_type="default", rope_theta=500.0))),
    "gemma3_old_keys": dict(
        _SIZES, model_type="gemma3_text", num_hidden_layers=4, head_dim=8, sliding_window=5,
        sliding_window_pattern=3, query_pre_attn_scalar=8, rope_theta=30000.0,
        rope_local_base_freq=700.0,
        rope_scaling=dict(rope_type="linear", factor=2.0)),
}


def random_tensors(shapes: dict, family: str, seed: int = 0) -> dict[str, np.ndarray]:
  """Values for the tensors of a checkpoint.

  RandomState's stream is frozen; newer generators' may change.
  """
  draw = np.random.RandomState(seed)
  tensors = {}
  for name in sorted(shapes):
    x = draw.standard_normal(shapes[name]).astype(np.float32)
    if name.endswith("norm.weight"):  # Neither ones nor zeros: a forgotten norm must show.
      tensors[name] = 0.4 * x + (0.0 if family == "gemma3_text" else 1.0)
    else:
      tensors[name] = x * (0.3 if x.ndim == 1 else 1.5 * x.shape[1] ** -0.5)
  return {name: x.astype(np.float32) for name, x in tensors.items()}


def write_directory(directory: Path, raw: dict, shapes: dict) -> dict[str, np.ndarray]:
  """A Hugging Face directory of seeded weights, written without this library's code.

  Returns: the weights.
  """
  directory.mkdir(parents=True, exist_ok=True)
  tensors = random_tensors(shapes, raw["model_type"])
  (directory / "config.json").write_text(json.dumps(raw))
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  return tensors


def read_case(name: str) -> tuple[dict, dict[str, tuple[int, ...]], np.ndarray, np.ndarray]:
  """(config.json, shapes of tensors, tokens [B, T], logits [B, T, V]) of a stored case."""
  with np.load(DATA / f"reference_{name}.npz") as stored:
    about = json.loads(str(stored["about"]))
    shapes = {k: tuple(v) for k, v in about["shapes"].items()}
    return about["config"], shapes, stored["tokens"], stored["logits"]


def main():
  import tempfile

  import safetensors
  import torch
  import transformers

  versions = {package.__name__: package.__version__ for package in (transformers, torch, np)}
  for name, raw in CASES.items():
    # It writes into the inner dictionaries.
    config = transformers.AutoConfig.for_model(**copy.deepcopy(raw))
    blank = transformers.AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory() as work:
      blank.save_pretrained(work)
      with safetensors.safe_open(f"{work}/model.safetensors", "np") as f:
        shapes = {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
      write_directory(Path(work) / "seeded", raw, shapes)
      model, loading = transformers.AutoModelForCausalLM.from_pretrained(
          f"{work}/seeded", attn_implementation="eager", dtype=torch.float32,
          output_loading_info=True)
      assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
      tokens = np.random.RandomState(1).randint(0, raw["vocab_size"], (2, 20))
      with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.numpy()
    about = json.dumps({"config": raw, "shapes": shapes, "versions": versions})
    np.savez_compressed(DATA / f"reference_{name}.npz", tokens=tokens.astype(np.int32),
                        logits=logits, about=about)
    print(f"{name}: {len(shapes)} tensors, logits {logits.shape} up to"
          f" {np.abs(logits).max():.2f}; {versions}")


if __name__ == "__main__":
  main()
