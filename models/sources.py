"""Makes policies from what the config names: shape, tokenizer and a way to make the weights.

The config names a function that returns a PolicySource.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from absl import logging
import jax
from jaxtyping import PRNGKeyArray

from rl_reason.config import naming
from rl_reason.models import config as config_lib
from rl_reason.models import pretrained, transformer
from rl_reason.models import tokenizer as tokenizers
from rl_reason.models.config import ModelConfig
from rl_reason.types import Params


@dataclasses.dataclass(frozen=True)
class PolicySource:
  """Describes a policy before its weights are made.

  config: its architecture.
  tokenizer: its tokenizer.
  make_params: (rng, shardings) -> params, each array made where its sharding says; the same every
    time.
  """
  config: ModelConfig
  tokenizer: tokenizers.Tokenizer
  make_params: Callable[[PRNGKeyArray, Any], Params]


def small(
    *, characters: str, width: int, num_layers: int, num_heads: int = 0, max_positions: int = 1024,
) -> PolicySource:
  """Describes a random Llama-shaped policy over single characters (models.config.small)."""
  tokenizer = tokenizers.CharacterTokenizer(characters)
  config = config_lib.small(
      tokenizer.vocab_size, width=width, num_layers=num_layers, num_heads=num_heads,
      max_positions=max_positions)

  # Made inside jit, so that each device makes its own part only.
  def make_params(rng, shardings):
    return jax.jit(functools.partial(transformer.init_params, config), out_shardings=shardings)(rng)
  return PolicySource(config, tokenizer, make_params)


def from_files(
    *, path: str, tokenizer: str = "", chat_template: str = "", new_tokens: Sequence[str] = (),
    layers: int = 0) -> PolicySource:
  """Describes a pretrained policy.

  Args:
    path: a Hugging Face directory, a GGUF file, or the name of a model that `fetch` brings.
    tokenizer: another directory or GGUF file for the tokenizer; "": the model's own.
    chat_template: Jinja source in place of the model's own; "": the model's own.
    new_tokens: added to the vocabulary. Their rows of the embedding start as the mean of the
      others', and so do those of the unembedding where that is another matrix (pretrained.load).
      The vocabulary grows only where it has no rows to spare.
    layers: only the first `layers` are read; 0: all. That makes a cheaper trunk for a reward model;
      as a policy it has to learn anew.

  Raises: ValueError where `layers` is out of range; errors of pretrained.load and tokenizer.load.
  """
  # A name of `fetch`, unless a file or folder here has it.
  if path in pretrained.FETCHABLE and not Path(path).exists():
    path = pretrained.fetch(path)
  if pretrained.lacks_output_layer(path):
    logging.warning(
        "%s holds a decoder without its output layer (lm_head): as a reward model's trunk it is"
        " whole, but as a policy it would predict tokens with its embedding. Take the checkpoint of"
        " the ...ForCausalLM class for a policy.", path)
  # The architecture, with fewer layers where that is asked for.
  config = pretrained.read_config(path)
  if not 0 <= layers <= config.num_layers:
    raise ValueError(
        f"layers must be in [0, {config.num_layers}], the layers of {path}, got {layers};"
        " 0 takes all.")
  if layers:
    config = dataclasses.replace(
        config, num_layers=layers, local_layers=config.local_layers[:layers])
  loaded = tokenizers.load(
      tokenizer or path, chat_template=chat_template or None, new_tokens=new_tokens)

  # New tokens have consecutive ids after all others (tokenizer_files.with_tokens).
  new_rows = range(0)
  if new_tokens:
    first = loaded.files.backend.token_to_id(new_tokens[0])
    new_rows = range(first, first + len(new_tokens))
    config = dataclasses.replace(config, vocab_size=max(config.vocab_size, new_rows.stop))
  return PolicySource(config, loaded, lambda rng, shardings: pretrained.load(
      path, config=config, shardings=shardings, new_rows=new_rows))


POLICIES: dict[str, Callable[..., PolicySource]] = {"small": small, "pretrained": from_files}


@dataclasses.dataclass(frozen=True)
class Policy:
  """Chooses the model to train.

  source: a name in models.sources.POLICIES ("small": from nothing; "pretrained": weights from
    files) or a dotted path to a function that returns a models.sources.PolicySource.
  args: arguments of that function.
  dtype: of the computation; parameters, optimizer and softmax stay float32. bfloat16 pays on
    accelerators only.
  """
  source: naming.Name
  args: Mapping[str, Any]
  dtype: Literal["float32", "bfloat16"] = "float32"
