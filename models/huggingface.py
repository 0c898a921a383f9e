"""Reads the `config.json` of Hugging Face directories into a ModelConfig, and writes one.

Missing keys mean what transformers' configuration classes take them to mean. Both spellings of the
rotary settings are read: `rope_theta` and `rope_scaling` as written until transformers 4, and
`rope_parameters` (for Gemma 3 per kind of layer) as written by transformers 5. What the decoder
cannot do is an error, never ignored.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import sys
from typing import Any

from rl_reason.config import json_text
from rl_reason.models import config as config_lib
from rl_reason.models.config import ModelConfig, RopeScaling

# ModelConfig.family, which is model_type in the file -> the class that transformers makes of it.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# The same with a head in place of an output layer: how transformers stores reward models.
CLASSIFIERS = {
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
}
# What an absent key means, from the configuration classes of transformers 5. Published Gemma 3
# files rely on it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": dict(max_position_embeddings=2048),
    "mistral": dict(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    "qwen2": dict(max_position_embeddings=32768, sliding_window=4096, max_window_layers=28),
    "qwen3": dict(
        max_position_embeddings=32768, sliding_window=4096, max_window_layers=28, head_dim=128),
    "gemma3_text": dict(
        vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        hidden_activation="gelu_pytorch_tanh", max_position_embeddings=131072,
        query_pre_attn_scalar=256, sliding_window=4096, sliding_window_pattern=6, rope_theta=1e6,
        rope_local_base_freq=1e4, tie_word_embeddings=True),
}
# Names of activations in files -> ModelConfig.activation.
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
# Key -> (values that change nothing, what another value asks for).
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_bidirectional_attention": (
        (None, False), "attention to later tokens; the decoder is causal"),
    "is_causal": ((None, True), "attention to later tokens; the decoder is causal"),
    "quantization_config": (
        (None,), "weights in a quantised layout; save the model dequantised first"),
    "attn_logit_softcapping": (
        (None,), "soft-capped attention scores, which transformers' Gemma 3 stores but does not"
        " apply (as of 5.23): which model is meant is unclear. Set it to null"),
    "partial_rotary_factor": (
        (None, 1, 1.0), "rotary embedding of a part of each head; the decoder turns all of it"),
}
# What the values of a config.json must be: the rest of this file counts on it.
_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
           "sliding_window", "sliding_window_pattern", "original_max_position_embeddings",
           "num_labels")
_POSITIVE = ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar",
             "final_logit_softcapping", "factor", "low_freq_factor", "high_freq_factor")
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_TEXTS = ("model_type", "hidden_act", "hidden_activation", "rope_type", "type")
_OBJECTS = ("text_config", "rope_scaling", "rope_parameters", "full_attention", "sliding_attention")


def read_config(directory: str | Path) -> ModelConfig:
  """Reads the ModelConfig of a Hugging Face directory.

  Raises: FileNotFoundError without a config.json; ValueError where it is no JSON object, or asks
    for an architecture, rotary scaling or switch that the decoder does not have.
  """
  file = Path(directory) / "config.json"
  if not file.is_file():
    raise FileNotFoundError(
        f"{file} does not exist: a Hugging Face model directory holds config.json beside its"
        " safetensors. Copy it there, or pass the path of a .gguf file.")
  return from_json(json_text.read_object(file), file)


def is_classifier(raw: Mapping[str, Any]) -> bool:
  """Says whether the object in a config.json is a reward model's."""
  names = raw.get("architectures")
  return isinstance(names, list) and any(
      isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names)


def _check_values(values: Mapping[str, Any], file: str | Path) -> None:
  """Checks that what is read of a config.json is of the right kind; null counts as absent.

  Raises: ValueError that names the value and what it must be.
  """
  def is_number(value):
    # Bounded by the largest float: JSON's whole numbers may be larger.
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and 0 < value <= sys.float_info.max)

  def is_count(value):
    # An axis of an array that JAX indexes with 32 bits.
    return isinstance(value, int) and is_number(value) and value < 2 ** 31
  kinds = [
      (_COUNTS, is_count, "a whole number above 0"),
      (("num_hidden_layers",), lambda x: is_count(x) and x <= 10_000,
       "a whole number from 1 to 10000"),
      (_POSITIVE, is_number, "a finite number above 0"),
      (("max_window_layers",), lambda x: x == 0 or is_count(x), "a whole number of at least 0"),
      (_FLAGS, lambda x: isinstance(x, bool), "true or false"),
      (_TEXTS, lambda x: isinstance(x, str), "a text"),
      (_OBJECTS, lambda x: isinstance(x, Mapping), "an object"),
      (("layer_types", "architectures"), lambda x: isinstance(x, list) and all(
          isinstance(y, str) for y in x), "a list of texts")]
  for names, fits, kind in kinds:
    for name in names:
      if values.get(name) is not None and not fits(values[name]):
        raise ValueError(
            f"{file}: {name} is {repr(values[name])[:80]}, and must be {kind}: the file is damaged"
            " or of another kind of model. Download it again, or correct it.")
  for name in _OBJECTS:
    if values.get(name) is not None:
      _check_values(values[name], file)


def from_json(raw: Mapping[str, Any], file: str | Path = "config.json") -> ModelConfig:
  """Returns the ModelConfig that the object in a config.json describes.

  Args:
    raw: the object.
    file: named in errors.

  Raises: ValueError as read_config.
  """
  _check_values(raw, file)
  # Which family is it, and where is its configuration?
  family, objects = raw.get("model_type"), [raw]
  if family == "gemma3":
    # Image and text: the language model is inside, and the outer object decides on tying.
    family, raw = "gemma3_text", {**(raw.get("text_config") or {}),
                                  "tie_word_embeddings": raw.get("tie_word_embeddings", True)}
    objects.append(raw)
    if raw.get("final_logit_softcapping") is not None:
      raise ValueError(
          f"{file}: final_logit_softcapping={raw['final_logit_softcapping']!r} in text_config,"
          " which transformers does not apply in Gemma 3 with images (as of 5.23): set it to null.")
  if family not in ARCHITECTURES:
    raise ValueError(
        f"{file}: model_type {family!r} is not supported. Supported: {', '.join(ARCHITECTURES)},"
        " and gemma3 (its language model).")
  # Refuse what would otherwise be ignored, in the outer object and in the inner one.
  for key, (harmless, meaning) in _REFUSED.items():
    for value in (x[key] for x in objects if x.get(key) not in harmless):
      raise ValueError(f"{file}: {key}={value!r} asks for {meaning}.")
  gemma, values = family == "gemma3_text", {**_DEFAULTS[family], **raw}

  def need(key: str) -> Any:
    if values.get(key) is None:
      raise ValueError(
          f"{file} does not give {key}, which {family} models need: the file is incomplete.")
    return values[key]

  # Translate the keys, with the family's own rules.
  width, layers, heads = need("hidden_size"), need("num_hidden_layers"), need("num_attention_heads")
  head_dim = values.get("head_dim") or width // heads
  activation = need("hidden_activation") if gemma else values.get("hidden_act", "silu")
  if activation not in _ACTIVATIONS:
    raise ValueError(
        f"{file}: activation {activation!r} is not supported. Supported:"
        f" {', '.join(_ACTIVATIONS)}.")
  theta, scaling, local_theta = _rope(values, gemma, file)
  window, local = _windows(values, family, layers, file)
  scalar = need("query_pre_attn_scalar") if gemma else head_dim
  # Qwen 2 has biases on q, k and v, whatever its file says; Mistral has none.
  attention_bias = (
      family == "qwen2"
      or (family != "mistral" and bool(values.get("attention_bias", False))))
  return config_lib.from_file(
      file, family=family, vocab_size=need("vocab_size"), width=width, num_layers=layers, num_heads=heads,
      num_kv_heads=values.get("num_key_value_heads") or heads, head_dim=head_dim,
      mlp_hidden=need("intermediate_size"),
      max_positions=need("max_position_embeddings"), activation=_ACTIVATIONS[activation],
      norm_eps=values.get("rms_norm_eps") or 1e-6, norm_plus_one=gemma, post_norms=gemma,
      qk_norm=family in ("qwen3", "gemma3_text"), qkv_bias=attention_bias,
      output_bias=attention_bias and family != "qwen2",
      mlp_bias=family == "llama" and bool(values.get("mlp_bias", False)),
      tied_embeddings=bool(values.get("tie_word_embeddings", False)),
      embedding_scale=width ** 0.5 if gemma else 1.0,
      rope_theta=theta, rope_scaling=scaling, local_rope_theta=local_theta,
      sliding_window=window, local_layers=local,
      attention_scale=None if scalar == head_dim else scalar ** -0.5,
      logit_softcap=values.get("final_logit_softcapping") if gemma else None)


def _rope(
    values: Mapping[str, Any], gemma: bool, file,
) -> tuple[float, RopeScaling | None, float | None]:
  """Returns (base of global layers, their scaling, base of sliding-window layers)."""
  # rope_parameters of transformers 5: flat, or for Gemma 3 one object per kind of layer.
  stored = dict(values.get("rope_parameters") or {})
  nested = [key for key, value in stored.items()
            if key.endswith("_attention") and isinstance(value, Mapping)]
  if stored and gemma and not nested:
    raise ValueError(
        f"{file}: rope_parameters of Gemma 3 must hold full_attention and sliding_attention, got"
        f" {sorted(stored)}.")
  if nested and not gemma:
    raise ValueError(
        f"{file}: rope_parameters differ per kind of layer ({', '.join(nested)}), which is"
        " supported for gemma3_text only.")
  # Global layers: the older spelling beside it counts where it is there.
  wide = dict(stored.get("full_attention") or {}) if gemma else stored
  wide = {"rope_theta": values.get("rope_theta") or 10_000.0,
          **_given(wide), **_given(values.get("rope_scaling") or {})}
  # Sliding-window layers, which only Gemma treats differently.
  local_theta = None
  if gemma:
    local = {"rope_theta": values["rope_local_base_freq"] or 10_000.0,
             **_given(stored.get("sliding_attention") or {})}
    if local.get("rope_type", "default") != "default":
      raise ValueError(
          f"{file}: rope type {local['rope_type']!r} on sliding-window layers is not supported:"
          " they are never scaled.")
    local_theta = float(local["rope_theta"])
  if wide.get("partial_rotary_factor") not in (None, 1, 1.0):
    raise ValueError(f"{file}: partial_rotary_factor={wide['partial_rotary_factor']!r} asks for"
                     f" {_REFUSED['partial_rotary_factor'][1]}.")
  # The kind of scaling. Older files call it "type".
  kind = wide.get("rope_type", wide.get("type", "default"))
  theta = float(wide["rope_theta"])
  try:
    if kind == "default":
      return theta, None, local_theta
    if kind == "linear":
      return theta, RopeScaling("linear", float(wide["factor"])), local_theta
    if kind == "llama3":
      # transformers lets the outer key win over the inner one, and falls back to the model's own
      # context length.
      original = (values.get("original_max_position_embeddings")
                  or wide.get("original_max_position_embeddings"))
      return theta, RopeScaling(
          "llama3", float(wide["factor"]), float(wide["low_freq_factor"]),
          float(wide["high_freq_factor"]),
          int(original or values["max_position_embeddings"])), local_theta
  except KeyError as error:
    raise ValueError(f"{file}: rope type {kind!r} needs {error}, which is missing.") from error
  raise ValueError(
      f"{file}: rope type {kind!r} is not supported. Supported: default, linear, llama3.")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values that are there; null counts as absent."""
  return {key: value for key, value in values.items() if value is not None}


def _windows(
    values: Mapping[str, Any], family: str, layers: int, file,
) -> tuple[int | None, tuple[bool, ...]]:
  """Returns sliding_window and local_layers of the config.

  They are the keys that a sliding-window layer sees, and per layer whether it is one.
  """
  types, window = values.get("layer_types"), values.get("sliding_window")
  # Qwen files name a window also where it is not used.
  if family == "llama" or (
      family.startswith("qwen") and not values.get("use_sliding_window", False)):
    window = None
  # Older files have no layer_types: each family has a rule of its own.
  if types is None:
    local = [False] * layers
    if family == "gemma3_text":
      local = [(i + 1) % (values["sliding_window_pattern"] or 6) != 0 for i in range(layers)]
    elif family == "mistral":
      local = [window is not None] * layers
    elif window is not None:
      local = [i >= (values["max_window_layers"] or 0) for i in range(layers)]
  else:
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
      raise ValueError(
          f"{file}: layer_types names {', '.join(unknown)}; supported are full_attention and"
          " sliding_attention.")
    if len(types) != layers:
      raise ValueError(f"{file}: layer_types has {len(types)} entries for {layers} layers.")
    local = [kind == "sliding_attention" for kind in types]
    if family == "mistral" and local != [window is not None] * layers:
      raise ValueError(
          f"{file}: layer_types mixes kinds of attention with sliding_window={window}; a mistral"
          " model has the same attention in every layer.")
  if any(local) and window is None:
    raise ValueError(
        f"{file}: layer_types asks for sliding_attention, but sliding_window is not set or not"
        " used.")
  # In the config's shorter words: () means the same in all layers.
  if not any(local):
    return None, ()
  return window, () if all(local) else tuple(local)


def to_json(
    config: ModelConfig, dtype: str = "float32", *, outputs: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns the config.json object from which transformers builds this model.

  Token ids are null, because transformers would otherwise fill in Llama's; the tokenizer's
  generation_config.json gives the right ones.

  Args:
    config: the model.
    dtype: in which its weights are stored.
    outputs: names of what a reward model's head gives; (): the model is a policy.

  Raises: ValueError where the family's format cannot express the config; the fields are named.
  """
  if config.family not in ARCHITECTURES:
    raise ValueError(f"family {config.family!r} has no Hugging Face format here. Choose one of"
                     f" {', '.join(ARCHITECTURES)}.")
  gemma, local = config.family == "gemma3_text", config.layer_is_local
  if gemma and config.local_rope_theta is None:
    raise ValueError(
        "A gemma3_text config.json needs local_rope_theta, got None: set it to the base of"
        " sliding-window layers.")
  # Keys of all families.
  raw: dict[str, Any] = dict(
      architectures=[ARCHITECTURES[config.family]], model_type=config.family, torch_dtype=dtype,
      vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.mlp_hidden,
      num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
      max_position_embeddings=config.max_positions,
      rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied_embeddings,
      attention_bias=config.qkv_bias,
      rope_theta=config.rope_theta, rope_scaling=_scaling_json(config.rope_scaling), use_cache=True,
      bos_token_id=None, eos_token_id=None, pad_token_id=None)
  if outputs:
    raw |= {
        "architectures": [CLASSIFIERS[config.family]],
        "id2label": {str(i): name for i, name in enumerate(outputs)},
        "label2id": {name: i for i, name in enumerate(outputs)}}
  # Keys of some.
  raw["hidden_activation" if gemma else "hidden_act"] = (
      "silu" if config.activation == "silu" else "gelu_pytorch_tanh")
  if config.family == "llama":
    raw["mlp_bias"] = config.mlp_bias
  else:
    raw["sliding_window"] = config.sliding_window
  if config.family.startswith("qwen"):
    raw["use_sliding_window"] = config.sliding_window is not None
    raw["max_window_layers"] = local.index(True) if any(local) else config.num_layers
  if config.family.startswith("qwen") or gemma:
    raw["layer_types"] = ["sliding_attention" if x else "full_attention" for x in local]
  if gemma:
    # A whole number where rounding of the square root is all that keeps it from being one.
    scalar = config.query_scale ** -2
    raw["query_pre_attn_scalar"] = (
        round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-9) else scalar)
    raw["final_logit_softcapping"] = config.logit_softcap
    raw["rope_local_base_freq"] = config.local_rope_theta
  # Read it back: a field that changes is one that the family's format does not have.
  want, have = _canonical(config), _canonical(from_json(raw))
  lost = [f"{name}={want[name]!r}" for name in want if not _same(want[name], have[name])]
  if lost:
    raise ValueError(
        f"A {config.family} config.json cannot express {', '.join(lost)}: the model would be read"
        " back as another one. Choose the family whose architecture this is.")
  return raw


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
  """Returns rope_scaling as Hugging Face files spell it."""
  if scaling is None:
    return None
  if scaling.kind == "linear":
    return {"rope_type": "linear", "factor": scaling.factor}
  return {"rope_type": "llama3", "factor": scaling.factor,
          "low_freq_factor": scaling.low_frequency_factor,
          "high_freq_factor": scaling.high_frequency_factor,
          "original_max_position_embeddings": scaling.original_max_positions}


def _canonical(config: ModelConfig) -> dict[str, Any]:
  """Returns the config's fields, with several ways to say one thing made the same."""
  local = config.layer_is_local
  return {**dataclasses.asdict(config), "attention_scale": config.query_scale,
          "local_layers": local,
          "sliding_window": config.sliding_window if any(local) else None}


def _same(a: Any, b: Any) -> bool:
  """Says whether two fields are equal, floats up to a relative 1e-9."""
  return (math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float)
          else a == b)
