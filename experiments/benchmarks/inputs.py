"""Writes the model, tokenizer and prompts of a shape, once, as the files that all systems load.

    python -m rl_reason.experiments.benchmarks.inputs --shape=a --directory=runs/benchmark/a

The length of completions is built into the weights, because every system samples by itself:

    Coordinate 0 of the residual stream is the constant c: every token's embedding starts with it,
    and row 0 of what attention and feed-forward add is zero. With tied embeddings all logits except
    EOS's get the same c·h₀ from it. EOS, whose embedding is e at coordinate 0 and zero elsewhere,
    has the logit e·h₀. The final norm's scale makes what the other coordinates add small, so P(EOS)
    is nearly the same at every token, and e sets it. In the same way the padding token is never
    sampled: one of the systems takes every such id for padding.
"""

import argparse
from collections.abc import Mapping
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from rl_reason.arrays import Inputs
from rl_reason.experiments.benchmarks import shapes
from rl_reason.models import pretrained, transformer
from rl_reason.models.config import ModelConfig
from rl_reason.types import Params

EOS, PAD = 0, 1
_CONSTANT = 1.0  # c; everything else in the residual stream stays below it.
_NEVER = -40.0  # The logit of a token that is never sampled; the others' log-sum-exp is above 10.
_SCALE = 0.1  # The final norm's scale, except at coordinate 0: logits differ by about 0.1.


def model_config(model: Mapping[str, Any]) -> ModelConfig:
  """Makes the config of a model in `shapes`."""
  return ModelConfig(**model, qk_norm=model["family"] == "qwen3", tied_embeddings=True)


def hazard(shape: Mapping[str, Any]) -> float:
  """Returns P(EOS) at every token, so that half of the completions end early enough.

  Half of them end within the share `stop_half_by` of the limit `max_tokens`. `stop_half_by` None
  gives 0: no completion ends before the limit.
  """
  if shape["stop_half_by"] is None:
    return 0.0
  return 1 - 0.5 ** (1 / (shape["stop_half_by"] * shape["max_tokens"]))


def make_params(config: ModelConfig, eos_probability: float, seed: int = 0) -> Params:
  """Makes random weights under which every token is EOS with this probability.

  The probability does not depend on the tokens before (see the module's docstring).

  Args:
    config: the model's config.
    eos_probability: P(EOS) at every token, in [0, 1).
    seed: the seed that the weights are drawn with.
  """
  rng = np.random.default_rng(seed)

  def draw(path, x):
    name = path[-1].key
    if "norm" in name:
      return np.ones(x.shape, np.float32)
    std = 0.02 if name in ("embedding", "o", "down") else config.width ** -0.5
    return rng.standard_normal(x.shape, np.float32) * np.float32(std)

  # Random weights, with the constant at coordinate 0 and nothing added to it.
  params = jax.tree_util.tree_map_with_path(draw, transformer.abstract_params(config))
  params["embedding"][:, 0] = _CONSTANT
  params["embedding"][[EOS, PAD], 1:] = 0
  for name in ("o", "down"):
    params["layers"][name][..., 0] = 0
  params["final_norm"][1:] = _SCALE

  # The rest of the stream changes the norm a little, so h₀ and the other tokens' log-sum-exp are
  # measured and not derived.
  tokens = rng.integers(2, config.vocab_size, (4, 32))
  hidden, _ = transformer.forward(config, params, Inputs(tokens, np.full(4, 32)))
  first = float(np.mean(hidden[..., 0]))
  params["embedding"][PAD, 0] = _NEVER / first
  eos_logit = _NEVER
  if eos_probability > 0:
    others = jax.nn.logsumexp(transformer.unembed(config, params, hidden)[..., 2:], axis=-1)
    eos_logit = float(np.mean(others)) + math.log(eos_probability / (1 - eos_probability))
  params["embedding"][EOS, 0] = eos_logit / first
  return params


def write(directory: Path, shape: Mapping[str, Any]) -> None:
  """Writes model and tokenizer as a Hugging Face directory, and prompts.jsonl.

  It writes nothing where these files are already there.
  """
  description = directory / "shape.json"
  if description.exists() and json.loads(description.read_text()) == _written(shape):
    return
  description.unlink(missing_ok=True)

  # The model and its tokenizer.
  config = model_config(shape["model"])
  pretrained.save(directory, config, make_params(config, hazard(shape)))
  raw = json.loads((directory / "config.json").read_text())
  raw |= dict(eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None)
  (directory / "config.json").write_text(json.dumps(raw, indent=2))
  write_tokenizer(directory, config.vocab_size)

  # The prompts of all steps, and one more that `worker_ours` holds out.
  rng = np.random.default_rng(1)
  with (directory / "prompts.jsonl").open("w") as file:
    for _ in range(shape["prompts"] * shapes.MAX_STEPS + 1):
      ids = rng.integers(2, config.vocab_size, shape["prompt_tokens"])
      file.write(json.dumps({"prompt": " ".join(f"t{i}" for i in ids)}) + "\n")
  # Last: where the description is, all files are complete.
  description.write_text(json.dumps(_written(shape)))


def _written(shape):
  """Describes the files: what of the shape they depend on, and the version of this code."""
  kept = ("model", "prompts", "prompt_tokens", "max_tokens", "stop_half_by")
  # With another version of this file, the files are written again.
  code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
  return {**{k: shape[k] for k in kept}, "steps": shapes.MAX_STEPS, "code": code}


def write_tokenizer(directory: Path, vocab_size: int) -> None:
  """Writes a tokenizer of the words t2, t3, ..., with blanks between them.

  <eos> and <pad> come before them. No word contains these two: tokenizers cut them out of any text.
  """
  ids = {"<eos>": EOS, "<pad>": PAD} | {f"t{i}": i for i in range(2, vocab_size)}
  words = tokenizers.Tokenizer(tokenizer_models.WordLevel(ids, unk_token="<eos>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  words.save(str(directory / "tokenizer.json"))
  (directory / "tokenizer_config.json").write_text(json.dumps(dict(
      tokenizer_class="PreTrainedTokenizerFast", eos_token="<eos>", pad_token="<pad>",
      unk_token="<eos>",
      clean_up_tokenization_spaces=False, model_max_length=100_000)))


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--shape", required=True, choices=shapes.SHAPES)
  parser.add_argument("--directory", required=True, type=Path)
  args = parser.parse_args()
  write(args.directory, shapes.SHAPES[args.shape])


if __name__ == "__main__":
  main()
