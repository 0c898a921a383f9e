"""Loads and saves reward models as Hugging Face directories: a decoder, and a head named `score`.

transformers' AutoModelForSequenceClassification reads and writes this form, and public reward
models have it. Their head is linear and has no bias, and is read at a conversation's last token.

    model = load(path)                     # architecture, outputs, how the model is read
    save(directory, stored, params)        # `stored` says what load() shall return

What this library knows beyond that form is kept in config.json under "rl_reason", and a head's bias
as the tensor score.bias; transformers ignores both, so that its scores lack the bias.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_reason.config import json_text
from rl_reason.config.checks import one_of
from rl_reason.models import heads, huggingface, pretrained, reward_model, safetensors_files
from rl_reason.models.reward_model import RewardModel
from rl_reason.types import Params

_OURS = "rl_reason"  # Key of config.json.
# Where a model is read: as batches.responses.READINGS, or at the last token of the whole
# conversation, as the chat template writes it.
READS = ("conversation", "end", "steps", "tokens")


@dataclasses.dataclass(frozen=True)
class Stored:
  """Describes a stored reward model.

  model: its architecture, with a linear head.
  outputs: what its numbers are called.
  read: where it is read, one of READS.
  separator: ends a step, where it is read at steps.
  aggregate: how a response's places become one score (reward_model.AGGREGATES).
  """
  model: RewardModel
  outputs: tuple[str, ...]
  read: str = "conversation"
  separator: str = "\n"
  aggregate: str = "last"

  def __post_init__(self):
    one_of(READS, read=self.read)
    one_of(reward_model.AGGREGATES, aggregate=self.aggregate)
    if len(self.outputs) != self.model.head.outputs or len(set(self.outputs)) < len(self.outputs):
      raise ValueError(
          f"A head of {self.model.head.outputs} outputs needs as many different names, got"
          f" {list(self.outputs)}.")


def is_reward_model(path: str | Path) -> bool:
  """Says whether a path is a Hugging Face directory of a reward model."""
  file = Path(path) / "config.json"
  return file.is_file() and huggingface.is_classifier(json_text.read_object(file))


def read_stored(path: str | Path) -> Stored:
  """Reads what is stored in a directory, without the weights.

  Raises: FileNotFoundError and ValueError as pretrained.read_config, and ValueError where the
    directory holds no reward model.
  """
  file, files = Path(path) / "config.json", safetensors_files.Directory(path)
  config, raw = files.config(), json_text.read_object(file)
  weight, bias = safetensors_files.HEAD
  shape = files.shapes.get(weight, ())
  if not huggingface.is_classifier(raw) or len(shape) != 2 or shape[1] != config.width:
    raise ValueError(
        f"{path} is no reward model: its architectures are {raw.get('architectures')}, and"
        f" {files.describe(weight)} has the shape {shape}. A reward model is a"
        f" ...ForSequenceClassification with {weight} of [outputs, {config.width}].")
  if files.shapes.get(bias, shape[:1]) != shape[:1]:
    raise ValueError(
        f"{files.describe(bias)} has shape {files.shapes[bias]}, {weight} wants {shape[:1]}.")
  # Names: transformers numbers them in id2label, and calls them LABEL_0 where nobody named them.
  labels = raw.get("id2label") or {str(i): f"LABEL_{i}" for i in range(shape[0])}
  if not isinstance(labels, Mapping) or set(labels) != set(map(str, range(shape[0]))) or not all(
      isinstance(label, str) for label in labels.values()):
    raise ValueError(
        f"{file}: id2label is {repr(labels)[:80]}, and must name the {shape[0]} outputs of {weight},"
        " from \"0\" on. Correct it.")
  outputs = tuple(labels[str(i)] for i in range(shape[0]))
  if outputs == ("LABEL_0",):
    outputs = ("reward",)
  try:
    return Stored(
        RewardModel(config, heads.Head(outputs=shape[0])), outputs,
        **{name: raw[_OURS][name] for name in ("read", "separator", "aggregate")
           if _OURS in raw and name in raw[_OURS]})
  except (ValueError, TypeError) as error:
    raise ValueError(f"{file}: {error}") from error


def load(path: str | Path, *, shardings: Any = None) -> tuple[Stored, Params]:
  """Reads a reward model.

  Args:
    path: a Hugging Face directory of a ...ForSequenceClassification.
    shardings: of the parameters, in their structure; None puts all on the default device.
  Returns: (what it is, its float32 parameters as reward_model.init_params lays them out).
  Raises: FileNotFoundError and ValueError as read_stored and pretrained.load.
  """
  stored, files = read_stored(path), safetensors_files.Directory(path)
  outputs, (weight, bias) = stored.model.head.outputs, safetensors_files.HEAD

  def read(name: str) -> np.ndarray:
    files.check_readable(name)
    x = files.read(name, slice(None)).astype(np.float32)
    if not np.isfinite(x).all():
      raise ValueError(f"{files.describe(name)} holds NaN or infinity: the file is damaged."
                       " Download it again.")
    return x
  head = {"output": read(weight).T,
          "output_bias": read(bias) if bias in files.shapes else np.zeros(outputs, np.float32)}
  trunk = pretrained.load(
      path, config=stored.model.config, shardings=shardings and shardings["trunk"])
  # The moments of scores in training: mean and standard deviation as of one batch.
  raw = json_text.read_object(Path(path) / "config.json").get(_OURS, {})
  mean, std = (jnp.asarray(raw.get(key, [start] * outputs), jnp.float32)
               for key, start in (("score_mean", 0.0), ("score_std", 1.0)))
  small = {"head": jax.tree.map(jnp.asarray, head), "frozen": {"normaliser": {
      "sum": mean, "squares": jnp.square(mean) + jnp.square(std),
      "weight": jnp.asarray(float("score_mean" in raw))}}}
  if shardings is not None:
    small = jax.device_put(small, {key: shardings[key] for key in small})
  return stored, {"trunk": trunk, **small}


def save(
    directory: str | Path, stored: Stored, params: Params, *, dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000, overwrite: bool = False,
) -> None:
  """Writes a reward model as a Hugging Face directory, as pretrained.save writes a policy.

  transformers reads one conversation at a time, as the file names no token of padding.

  Args:
    directory: as in pretrained.save, like dtype, max_shard_bytes and overwrite.
    stored: what the model is.
    params: its parameters (reward_model.init_params).

  Raises: ValueError for a head that the form cannot express, and as pretrained.save.
  """
  model = stored.model
  beside = sorted({*params["head"]} - {"output", "output_bias"})
  if model.head.hidden or model.thresholds or beside:
    raise ValueError(
        f"A ...ForSequenceClassification has a linear head, and this one has"
        f" {', '.join(beside) or 'more'} beside it: train one with head_hidden=0, without levels"
        " and without prototypes.")
  # transformers has no output layer here, so the trunk needs none.
  config = dataclasses.replace(model.config, tied_embeddings=True)
  trunk = {k: v for k, v in reward_model.trunk_of(params).items() if k != "unembedding"}
  tensors = pretrained.stored_tensors(config, trunk)
  weight, bias = np.asarray(params["head"]["output"]).T, np.asarray(params["head"]["output_bias"])
  tensors[safetensors_files.HEAD[0]] = weight.shape, lambda: weight
  if bias.any():
    tensors[safetensors_files.HEAD[1]] = bias.shape, lambda: bias
  described = huggingface.to_json(config, dtype, outputs=stored.outputs)
  # How the model is read, and the moments of its scores in training where there are some.
  normaliser = params["frozen"]["normaliser"]
  mean, std = (np.asarray(x).tolist() for x in reward_model.mean_and_std(normaliser))
  ours = {"read": stored.read, "separator": stored.separator, "aggregate": stored.aggregate}
  if float(normaliser["weight"]):
    ours |= {"score_mean": mean, "score_std": std}
  pretrained.write_directory(
      directory, {**described, _OURS: ours}, tensors, dtype=dtype,
      max_shard_bytes=max_shard_bytes, overwrite=overwrite)


