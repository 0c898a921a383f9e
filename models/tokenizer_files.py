"""Reads and writes tokenizers as other libraries store them.

These are Hugging Face directories, the metadata of GGUF files, and chat templates.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import gguf
import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from rl_reason.config import json_text
from rl_reason.models.gguf_header import read_header

# Tokens that have a role, as Hugging Face files name them.
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
  """Holds what a tokenizer's files say, in whichever format.

  backend: the `tokenizers` object; truncation and padding are off.
  named_tokens: the texts of bos_token, eos_token, pad_token and unk_token, as far as the model has
    them; eos_token always.
  stop_ids: the ids that the files call ends of a completion, eos first.
  adds_bos: whether plain text is preceded by bos_token.
  chat_templates: Jinja sources by name; the usual one is "default".
  vocab_size: the model's, where it is known: often more than the tokenizer's, as embeddings are
    padded.
  new_tokens: those that `with_tokens` added. Everyone may write them, whatever they look like.
  """
  backend: tokenizers.Tokenizer
  named_tokens: Mapping[str, str]
  stop_ids: tuple[int, ...]
  adds_bos: bool
  chat_templates: Mapping[str, str]
  vocab_size: int
  new_tokens: tuple[str, ...] = ()


def read_directory(path: pathlib.Path) -> TokenizerFiles:
  """Reads the tokenizer of a Hugging Face directory.

  The files are tokenizer.json and, where they exist, tokenizer_config.json,
  special_tokens_map.json, generation_config.json, config.json and chat_template.jinja (which wins
  over a template in tokenizer_config.json).

  An explicit add_bos_token wins over the post-processor of tokenizer.json, as in the model classes
  of transformers 4; transformers 5 reads the post-processor alone.

  Raises: FileNotFoundError without a tokenizer.json; ValueError where a file cannot be read, or no
    token ends a sequence.
  """
  # The tokenizer itself.
  file = path / "tokenizer.json"
  if not file.is_file():
    raise FileNotFoundError(
        f"{path} holds no tokenizer.json. Where only tokenizer.model or vocab.json exist, write one"
        " with transformers:"
        " AutoTokenizer.from_pretrained(directory).save_pretrained(directory).")
  try:
    backend = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # The library raises nothing narrower.
    raise ValueError(
        f"{file} cannot be read by tokenizers {tokenizers.__version__}: {error}. It may be cut off"
        " (fetch it again) or need a newer tokenizers.") from error
  # Files may carry the settings of a training run, and would cut prompts silently.
  backend.no_truncation()
  backend.no_padding()
  if not backend.get_vocab_size(with_added_tokens=True):
    raise ValueError(f"{file} has no tokens at all. Fetch it again.")
  paths = [path / name for name in (
      "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")]
  config, special_map, generation, model = map(read_json, paths)

  # Named tokens, as far as the vocabulary has them, and the ids that end a completion.
  named = {}
  for name in NAMED_TOKENS:
    token = _value(
        config, name, _TOKEN, paths[0]) if name in config else _value(
            special_map, name, _TOKEN, paths[1])
    token = token["content"] if isinstance(token, Mapping) else token
    if token is not None and backend.token_to_id(token) is not None:
      named[name] = token
  stop_ids = _value(generation, "eos_token_id", _IDS, paths[2])
  if "eos_token_id" not in generation:
    stop_ids = _value(model, "eos_token_id", _IDS, paths[3])
  stop_ids = [] if stop_ids is None else [stop_ids] if isinstance(stop_ids, int) else list(stop_ids)
  named, stop_ids = _with_eos(backend, named, stop_ids, path)

  templates = _templates(config, path)

  # Whether plain text gets BOS: what the post-processor does with an empty text tells, unless the
  # configuration says it. A post-processor that does otherwise is replaced.
  bos_id = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
  processor_adds = (
      bos_id is not None and backend.encode("", add_special_tokens=True).ids[:1] == [bos_id])
  adds_bos = _value(config, "add_bos_token", _SWITCH, paths[0])
  adds_bos = processor_adds if adds_bos is None or bos_id is None else adds_bos
  if adds_bos != processor_adds:
    backend.post_processor = _post_processor(named.get("bos_token"), bos_id, adds_bos)
  # The size of the vocabulary: the model's padded one, where its configuration is there.
  inner = _value(model, "text_config", _OBJECT, paths[3], {})
  model_vocab = _value(model, "vocab_size", _ID, paths[3]) or _value(
      inner, "vocab_size", _ID, paths[3]) or 0
  vocab_size = max(1 + max(backend.get_vocab(with_added_tokens=True).values()), model_vocab)
  return TokenizerFiles(
      backend, named, stop_ids, adds_bos, templates, vocab_size,
      tuple(_value(config, "new_tokens", _TEXTS, paths[0], ())))


def _templates(config: Mapping[str, Any], path: pathlib.Path) -> Mapping[str, str]:
  """Returns a directory's chat templates by name: one source, named ones, or a file of its own."""
  templates = _value(config, "chat_template", _TEMPLATES, path / "tokenizer_config.json", {})
  if isinstance(templates, str):
    templates = {"default": templates}
  elif isinstance(templates, Sequence):
    templates = {each["name"]: each["template"] for each in templates}
  if (path / "chat_template.jinja").is_file():
    try:
      own = (path / "chat_template.jinja").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
          f"{path / 'chat_template.jinja'} is not UTF-8 text ({error}). Fetch it again.") from error
    templates = {**templates, "default": own}
  return templates


def with_tokens(files: TokenizerFiles, tokens: Sequence[str]) -> TokenizerFiles:
  """Returns the same tokenizer with new tokens after all others.

  Each is one id wherever a text holds it. They take the rows of a padded vocabulary that no token
  has, and more where these are too few (vocab_size). They are not called special, so that decoding
  shows them to rewards, here and in transformers.

  Raises: ValueError for a token that exists, comes twice or is no text that can be found in
    another.
  """
  tokens = list(tokens)
  for token in tokens:
    if not isinstance(token, str) or token != token.strip() or not token:
      raise ValueError(f"A new token must be a text without spaces around it, got {token!r}.")
    if files.backend.token_to_id(token) is not None:
      raise ValueError(
          f"The token {token!r} exists already, with id {files.backend.token_to_id(token)}: leave"
          " it out of the new ones, it is in use as it is.")
  if len(set(tokens)) < len(tokens):
    raise ValueError(f"A new token comes twice in {tokens}.")
  # A copy: `tokenizers` objects are changed in place.
  backend = tokenizers.Tokenizer.from_str(files.backend.to_str())
  first = 1 + max(backend.get_vocab(with_added_tokens=True).values())
  backend.add_tokens(
      [tokenizers.AddedToken(token, special=False, normalized=False) for token in tokens])
  ids = [backend.token_to_id(token) for token in tokens]
  # The library counts tokens to find the next id. In a vocabulary with gaps ids would be given
  # twice.
  if ids != list(range(first, first + len(tokens))):
    raise ValueError(
        f"The vocabulary has gaps, so that new tokens would get the ids {ids} and not {first} and"
        " up: give a tokenizer without gaps.")
  return dataclasses.replace(
      files, backend=backend, vocab_size=max(files.vocab_size, first + len(tokens)),
      new_tokens=(*files.new_tokens, *tokens))


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; {} without the file. Raises: ValueError for what is none."""
  return json_text.read_object(file) if file.is_file() else {}


def _is_text(value: Any) -> bool:
  """Tells whether a value is a text of whole characters: JSON may hold half a surrogate pair."""
  return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


# What values of a tokenizer's files may be: (test, words for the error).
_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = lambda x: isinstance(x, str), "a text"
_TEXTS: _Kind = lambda x: isinstance(x, list) and all(isinstance(y, str) for y in x), (
    "a list of texts")
_SWITCH: _Kind = lambda x: isinstance(x, bool), "true or false"
_ID: _Kind = lambda x: type(x) is int and 0 <= x < 2 ** 31, "a token's id"
_IDS: _Kind = lambda x: isinstance(x, list) and all(map(_ID[0], x)) or _ID[0](x), "ids of tokens"
_NUMBERS: _Kind = lambda x: isinstance(x, list) and all(
    type(y) in (int, float) and y == y for y in x), "a list of numbers"
_TOKEN: _Kind = lambda x: _is_text(x) or isinstance(x, dict) and _is_text(
    x.get("content")), "a token's text"
_TEMPLATES: _Kind = lambda x: _is_text(x) or isinstance(x, list) and all(
    isinstance(y, dict) and _is_text(y.get("name")) and _is_text(y.get("template"))
    for y in x), "a template, or a list of names and templates"
_OBJECT: _Kind = lambda x: isinstance(x, dict), "an object"


def _value(values: Mapping[str, Any], key: str, kind: _Kind, place: Any, default: Any = None) -> Any:
  """Returns a value of a tokenizer's files; `default` where it is absent or null.

  Raises: ValueError naming the place, for a value of another kind.
  """
  value, (fits, words) = values.get(key), kind
  if value is None:
    return default
  if not fits(value):
    raise ValueError(
        f"{place}: {key} is {repr(value)[:80]}, and must be {words}: the file is damaged or of"
        " another kind. Fetch it again, or correct it.")
  return value


def _with_eos(
    backend, named: dict[str, str], stop_ids: list[int], path,
) -> tuple[dict[str, str], tuple[int, ...]]:
  """Returns named tokens that have an eos_token, and stop ids that start with it.

  If the files do not name eos_token, it is the first stop id.

  Raises: ValueError where neither is there, or a stop id is none of the tokenizer's.
  """
  for token_id in stop_ids:
    if backend.id_to_token(token_id) is None:
      raise ValueError(
          f"{path} says that id {token_id} ends a completion, but its tokenizer has no such id."
          " Correct eos_token_id in generation_config.json (or config.json) there.")
  if "eos_token" not in named:
    if not stop_ids:
      raise ValueError(
          f"{path} names no end-of-sequence token, so no completion would ever end. Set eos_token"
          " in its tokenizer_config.json to a token of its vocabulary.")
    named["eos_token"] = backend.id_to_token(stop_ids[0])
  return named, tuple(dict.fromkeys([backend.token_to_id(named["eos_token"]), *stop_ids]))


def _post_processor(bos_token: str | None, bos_id: int | None, adds_bos: bool):
  """Makes the post-processor that adds BOS, or does not.

  With it a saved tokenizer.json adds BOS in other libraries exactly where this one does.
  """
  if not adds_bos:
    return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
  return processors.TemplateProcessing(
      single=f"{bos_token}:0 $A:0", pair=f"{bos_token}:0 $A:0 {bos_token}:1 $B:1",
      special_tokens=[(bos_token, bos_id)])


@dataclasses.dataclass(frozen=True)
class _PreTokenizer:
  """Says how a byte-level BPE cuts text into words before merging.

  splits: regular expressions, each applied to the pieces that the previous ones left.
  ignore_merges: a word that is a token is taken whole, even where no merges lead to it.
  adds_bos: whether plain text gets BOS where the file does not say.
  nfc: text is brought to Unicode's composed form first.
  """
  splits: tuple[str, ...]
  ignore_merges: bool = False
  adds_bos: bool = False
  nfc: bool = False


# Expressions of several models. Each alternative is a kind of word: contractions, letters, digits,
# other marks, white space.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")  # Every digit is a word of its own.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
           rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_DEEPSEEK3 = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
              r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
              r"""|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
              r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# tokenizer.ggml.pre -> the pre-tokenizer of that model's own tokenizer.json. "default" is what
# llama.cpp applies to files from before the field existed.
PRE_TOKENIZERS = {
    "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _PreTokenizer((_GPT2,)),
    "phi-2": _PreTokenizer((_GPT2,)),
    "smollm": _PreTokenizer((r"\p{N}", _GPT2)),
    "starcoder": _PreTokenizer((r"\p{N}", _GPT2)),
    "refact": _PreTokenizer((r"\p{N}", _GPT2)),
    "llama-bpe": _PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True),
    "smaug-bpe": _PreTokenizer((_LLAMA3,)),
    "dbrx": _PreTokenizer((_LLAMA3,)),
    "qwen2": _PreTokenizer((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": _PreTokenizer((_QWEN2,)),
    "deepseek-v3": _PreTokenizer(_DEEPSEEK3),
    "tekken": _PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
}


def read_gguf(path: pathlib.Path) -> TokenizerFiles:
  """Reads the tokenizer out of a GGUF file.

  It may be a byte-level BPE ("gpt2") or a SentencePiece BPE ("llama").

  Raises: ValueError for other kinds, and for files without a usable tokenizer.
  """
  metadata, _ = read_header(path)
  def get(key, kind: _Kind, default=None):
    return _value(metadata, f"tokenizer.{key}", kind, path, default)
  kind, tokens, types, scores = _vocabulary(get, path)
  # Ids beyond the vocabulary name no token; some files have them.
  ids = {key: get(f"ggml.{key}_token_id", _ID) for key in (
      "bos", "eos", "padding", "unknown", "eot", "eom")}
  # The tokenizer of its kind. `tokenizers` raises a bare Exception, e.g. for unknown merges.
  try:
    if kind == "gpt2":
      backend, adds_bos = _byte_level_bpe(tokens, get, path)
    else:
      backend, adds_bos = _sentencepiece_bpe(
          tokens, types, scores, ids["unknown"] or 0, get, path)
  except ValueError:
    raise
  except Exception as error:
    raise ValueError(
        f"{path}: no tokenizer can be made of its vocabulary and merges ({error}): the file is"
        " damaged. Fetch it again.") from error
  # Tokens that text is searched for before anything else. UNUSED ids only fill up the embedding
  # matrix; they are called special, so that decoding leaves them out.
  special = (gguf.TokenType.CONTROL, gguf.TokenType.UNUSED)
  added = [tokenizers.AddedToken(token, special=t in special, normalized=False)
           for token, t in zip(tokens, types) if t in (*special, gguf.TokenType.USER_DEFINED)]
  backend.add_tokens(added)

  # Named tokens, stop ids, BOS and chat templates, as in read_directory.
  names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
  named = {name: tokens[ids[key]] for name, key in names.items()
           if ids[key] is not None and ids[key] < len(tokens)}
  stop_ids = [ids[key] for key in ("eos", "eot", "eom") if ids[key] is not None]
  named, stop_ids = _with_eos(backend, named, stop_ids, path)
  adds_bos = get("ggml.add_bos_token", _SWITCH, adds_bos) and "bos_token" in named
  if adds_bos:
    backend.post_processor = _post_processor(named["bos_token"], ids["bos"], adds_bos)
  templates = {
      name: get(f"chat_template.{name}", _TEXT) for name in get("chat_templates", _TEXTS, [])}
  templates = {name: template for name, template in templates.items() if template is not None}
  if get("chat_template", _TEXT):
    templates["default"] = get("chat_template", _TEXT)
  return TokenizerFiles(backend, named, stop_ids, adds_bos, templates, len(tokens))


def _vocabulary(get, path: pathlib.Path) -> tuple[str, list[str], list[int], list[float] | None]:
  """Reads (kind of tokenizer, tokens, type of each token, scores) out of a GGUF file's metadata.

  Raises: ValueError for another kind of tokenizer, and for a vocabulary that is damaged.
  """
  # The vocabulary, which must not be ambiguous.
  kind, tokens = get("ggml.model", _TEXT), get("ggml.tokens", _TEXTS)
  if not tokens:
    raise ValueError(
        f"{path} holds no tokenizer (no tokenizer.ggml.tokens). Load the model's Hugging Face"
        " directory.")
  if kind not in ("gpt2", "llama"):
    raise ValueError(
        f"{path} has a tokenizer of kind {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece"
        " BPE) are read. Load the model's Hugging Face directory instead.")
  if len(set(tokens)) < len(tokens):
    repeated = collections.Counter(tokens).most_common(1)[0][0]
    raise ValueError(
        f"{path} lists the token {repeated!r} twice, so its ids are ambiguous. Load the model's"
        " Hugging Face directory instead.")
  # What is said of each token, and the ids of named ones.
  types = get("ggml.token_type", _NUMBERS, [gguf.TokenType.NORMAL] * len(tokens))
  scores = get("ggml.scores", _NUMBERS)
  for key, values in (("token_type", types), ("scores", scores)):
    if values is not None and len(values) != len(tokens):
      raise ValueError(
          f"{path}: tokenizer.ggml.{key} has {len(values)} entries for {len(tokens)} tokens: the"
          " file is damaged. Fetch it again.")
  return kind, tokens, types, scores


def _byte_level_bpe(tokens, get, path) -> tuple[tokenizers.Tokenizer, bool]:
  """Returns the tokenizer, and whether it adds BOS where the file does not say.

  Raises: ValueError where the pre-tokenizer is unknown or the merges are missing.
  """
  name = get("ggml.pre", _TEXT, "default")
  if name not in PRE_TOKENIZERS:
    raise ValueError(
        f"{path} wants the pre-tokenizer {name!r}, which is not among {', '.join(PRE_TOKENIZERS)}:"
        " a guess would give other tokens than the model was trained on. Load the model's Hugging"
        " Face directory instead, or add the"
        " pre-tokenizer of its tokenizer.json to PRE_TOKENIZERS.")
  merges = get("ggml.merges", _TEXTS)
  if merges is None:
    raise ValueError(
        f"{path} holds no tokenizer.ggml.merges, without which BPE cannot run. Load the model's"
        " Hugging Face directory instead.")
  pre = PRE_TOKENIZERS[name]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ", 1)) for merge in merges],
      ignore_merges=pre.ignore_merges))
  splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.splits]
  backend.pre_tokenizer = pre_tokenizers.Sequence(
      [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  backend.decoder = decoders.ByteLevel()
  if pre.nfc:
    backend.normalizer = normalizers.NFC()
  return backend, pre.adds_bos


def _sentencepiece_bpe(
    tokens, types, scores, unknown, get, path) -> tuple[tokenizers.Tokenizer, bool]:
  """Builds SentencePiece's BPE. Returns what _byte_level_bpe returns.

  SentencePiece merges whichever neighbours give the piece of the highest score; `tokenizers` merges
  by a list. Here the list has every way to cut a piece into two pieces, by the piece's score. Texts
  come out as in SentencePiece but for ties between cuts of one piece, where `tokenizers` cannot say
  "leftmost"; conversions by transformers share this. The space before a text is also put after
  control tokens, as by llama.cpp and Llama 2's tokenizer.json.

  Raises: ValueError where the scores are missing.
  """
  if scores is None:
    raise ValueError(
        f"{path} holds no tokenizer.ggml.scores, which order SentencePiece's merges. Load the"
        " model's Hugging Face directory instead.")
  # The list of merges, best first. Tokens of other types than NORMAL are never merged.
  mergeable = {
      token: score for token, score, t in zip(tokens, scores, types)
      if t == gguf.TokenType.NORMAL}
  merges = [(score, len(token[:cut]), len(token[cut:]), token[:cut], token[cut:])
            for token, score in mergeable.items() for cut in range(1, len(token))
            if token[:cut] in mergeable and token[cut:] in mergeable]
  merges.sort(key=lambda merge: merge[:3], reverse=True)
  # Unknown characters are spelt in bytes where the vocabulary has these (`byte_fallback`).
  if unknown >= len(tokens):
    raise ValueError(
        f"{path}: tokenizer.ggml.unknown_token_id is {unknown}, of {len(tokens)} tokens: the file is"
        " damaged. Fetch it again.")
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)}, merges=[merge[3:] for merge in merges],
      unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
  # SentencePiece writes spaces as "▁", with one more before the text.
  prefix = get("ggml.add_space_prefix", _SWITCH, True)
  spaces = normalizers.Replace(" ", "▁")
  backend.normalizer = (
      normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces)
  backend.decoder = decoders.Sequence(
      [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
      + ([decoders.Strip(" ", 1, 0)] if prefix else []))
  return backend, True


def write_directory(
    directory: pathlib.Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any],
    stop_ids: Sequence[int], pad_id: int) -> None:
  """Writes a tokenizer's files into a directory.

  They are tokenizer.json, tokenizer_config.json and special_tokens_map.json. The ids are added to
  generation_config.json.

  Args:
    directory: made where it does not exist; a model's files in it are kept.
    backend: the tokenizer.
    config: named tokens, and whatever else is part of tokenizer_config.json.
    stop_ids: ids that end a completion.
    pad_id: id of padding.
  """
  directory.mkdir(parents=True, exist_ok=True)
  def write(name: str, value: Mapping[str, Any]) -> None:
    (directory / name).write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  backend.save(str(directory / "tokenizer.json"))
  write("tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
         **config})
  write("special_tokens_map.json", {name: config[name] for name in NAMED_TOKENS if name in config})
  # This is the model's file, which may be there already with other settings.
  generation = read_json(directory / "generation_config.json")
  write("generation_config.json",
        {**generation, "eos_token_id": list(stop_ids), "pad_token_id": pad_id})
  # An older template file would win over the template just written.
  template = directory / "chat_template.jinja"
  if template.is_file() and "chat_template" in config:
    template.write_text(config["chat_template"], encoding="utf-8")


class _Generation(jinja2.ext.Extension):
  """Reads {% generation %} ... {% endgeneration %} in templates.

  The pair marks an assistant's words for training masks. Here it just prints them.
  """
  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    return jinja2.nodes.Scope(
        parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@functools.lru_cache
def compile_template(template: str) -> jinja2.Template:
  """Compiles a chat template.

  Templates come from strangers: they run in the sandbox and see nothing but strings, numbers, lists
  and dicts. Their functions are those that transformers gives to chat templates.
  """
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
  def raise_exception(message):
    raise jinja2.TemplateError(message)
  # Jinja's own `tojson` escapes HTML.
  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
        sort_keys=sort_keys)
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = raise_exception
  return environment.from_string(template)
