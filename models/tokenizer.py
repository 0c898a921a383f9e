"""Turns text into token ids and back.

One protocol, a character tokenizer, and the tokenizers of pretrained models.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
from typing import Any, Protocol

import numpy as np
import tokenizers

from rl_reason.models import tokenizer_files
from rl_reason.reporting.whole_files import local_folder
from rl_reason.types import Message

# Unicode noncharacters, never part of a text: they mark control tokens while a prompt is put
# together.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
# Marks the end of an unfinished message while it is rendered.
_HERE = "\ufdd2"
_NOT_TEXT = re.compile(f"[\ud800-\udfff{_OPEN}{_CLOSE}{_HERE}]")


class Tokenizer(Protocol):
  """Lists what the rest of the library asks of a tokenizer.

  Half a surrogate pair, as broken JSON escapes give, is no text and is read as U+FFFD. (The
  character tokenizer refuses it like any character that it does not know.)
  """

  @property
  def vocab_size(self) -> int:
    """Returns a number above every id."""

  @property
  def eos_id(self) -> int:
    """Returns the id of the end of sequence; also the first of `stop_ids`."""

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Returns the ids that end a completion when sampled.

    They are end of sequence and, for chat models, end of turn.
    """

  @property
  def pad_id(self) -> int:
    """Returns any valid id, possibly eos_id: masks are made from lengths, never from ids."""

  def end_id(self, prompt: str | Sequence[Message]) -> int:
    """Returns the id that ends a completion of this prompt; one of `stop_ids`.

    After messages it is the token with which the chat template ends the assistant's turn, after a
    text the end of sequence. All that is taught or judged ends with it, in every kind of stage.
    """

  def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
    """Returns the ids of a text, with nothing added at either end.

    Args:
      text: any text.
      allow_special: read "<|im_end|>" and its like as control tokens. Otherwise they are spelt out
        in ordinary tokens, so that neither a user nor the policy can write a control token with
        text.
    """

  def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
    """Returns the ids that a completion continues.

    Text is encoded as it is, with control tokens that are written in it (its author may have filled
    in a template). The model's begin-of-sequence token comes first if the model expects one and the
    text lacks it. Messages go through the chat template up to where the assistant speaks: control
    tokens of the template count, those in messages are spelt out. Where the last message is the
    assistant's, the completion goes on in it: it is not closed.

    Raises: ValueError where the template does not write the unfinished message as it is.
    """

  def encode_chat(
      self, prompt: Sequence[Message], reply: Sequence[Message],
      split: Callable[[str], list[tuple[str, bool]]] = lambda text: [(text, True)],
  ) -> list[tuple[list[int], str, bool]]:
    """Encodes what the chat template writes for `reply` after the prompt.

    That is what follows the text `encode_prompt` reads of `prompt`, up to the end of the
    assistant's last turn.

    Args:
      prompt: messages before the reply.
      reply: messages of the assistant and, between its turns, of others. The first one goes on in
        the prompt's last message where both are the assistant's.
      split: cuts what the assistant says into (text, flag) parts; others' words have the flag True.

    Returns: pieces (ids, "assistant" or "others", flag). The assistant's pieces are what it would
      have sampled: its message up to the token that ends the turn. What the template puts before
      (its name) and behind (a line break) is part of the others' words.
    Raises: ValueError where the template writes earlier turns otherwise once later ones follow
      (some drop reasoning): what is learnt would not be what the policy reads when it speaks.
    """

  def encode_conversation(self, prompt: str | Sequence[Message], reply: str) -> list[int]:
    """Returns the ids of a prompt and the assistant's reply, as the chat template ends them.

    Public reward models read such texts, and score them at their last token. A prompt of text is a
    user's message. Without a chat template the texts follow one another, and EOS ends them.
    """

  def render_prompt(self, prompt: str | Sequence[Message]) -> str:
    """Returns the text that `encode_prompt` reads, without an added begin-of-sequence token."""

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids.

    Bytes that are no UTF-8 become U+FFFD. Special and stop tokens are skipped, and so are ids
    beyond the tokenizer's, which a model whose vocabulary is padded may sample.

    Raises: ValueError for negative ids.
    """

  def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
    """Does `decode` for many sequences at once, in parallel where the tokenizer can."""

  def save(self, directory: str | os.PathLike) -> None:
    """Writes a directory that `load` and transformers.AutoTokenizer read."""


def load(path: str | os.PathLike, *, chat_template: str | None = None,
         template_arguments: Mapping[str, Any] | None = None, new_tokens: Sequence[str] = (),
         ) -> "CharacterTokenizer | PretrainedTokenizer":
  """Reads the tokenizer of a pretrained model, or one that `save` wrote.

  Args:
    path: a Hugging Face directory or a GGUF file.
    chat_template: Jinja source to use instead of the model's own, or the name of one of the
      model's several.
    template_arguments: more variables for the template, e.g. {"enable_thinking": False}.
    new_tokens: texts to add as tokens, e.g. "<|reflect|>" (tokenizer_files.with_tokens); the model
      needs rows for them (pretrained.load).

  Raises: FileNotFoundError, or ValueError for files or arguments that do not fit.
  """
  path = pathlib.Path(path)
  # Read the files, in whichever format they are.
  if path.is_dir():
    # Only directories of a CharacterTokenizer name their characters.
    characters = tokenizer_files.read_json(path / "tokenizer_config.json").get("characters")
    if isinstance(characters, str):
      if new_tokens:
        raise ValueError(
            f"new_tokens={list(new_tokens)} cannot be added to a character tokenizer: a token is a"
            " character there. Add characters instead.")
      return CharacterTokenizer(characters)
    files = tokenizer_files.read_directory(path)
  elif not path.is_file():
    raise FileNotFoundError(
        f"No tokenizer at {path}: give a Hugging Face directory or a GGUF file.")
  else:
    with open(path, "rb") as file:
      if file.read(4) != b"GGUF":
        raise ValueError(
            f"{path} is not a GGUF file: give one, or the Hugging Face directory (not a file in"
            " it).")
    files = tokenizer_files.read_gguf(path)
  if new_tokens:
    files = tokenizer_files.with_tokens(files, new_tokens)
  # Choose the chat template.
  if chat_template is None and files.chat_templates:
    if "default" not in files.chat_templates:
      raise ValueError(
          f"{path} has several chat templates, none of them the default: choose one with"
          f" chat_template= from {', '.join(sorted(files.chat_templates))}.")
    chat_template = "default"
  # A name of the model's templates is looked up; anything else is a template itself.
  return PretrainedTokenizer(
      files, files.chat_templates.get(chat_template, chat_template), template_arguments or {},
      str(path))


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
  """Says whether an id means the same to both."""
  if isinstance(a, PretrainedTokenizer) and isinstance(b, PretrainedTokenizer):
    return a is b or a.files.backend.to_str() == b.files.backend.to_str()
  return type(a) is type(b) and getattr(a, "characters", a) == getattr(b, "characters", b)


class CharacterTokenizer:
  """Gives one id to each character, in the order given: for small tasks.

  Id 0 is end of sequence, which also pads; characters start at 1. The methods are documented in
  Tokenizer.
  """
  EOS = "<eos>"

  def __init__(self, characters: str):
    """Takes the characters. Raises: ValueError where they are none, repeated or no text."""
    repeated = sorted({c for c in characters if characters.count(c) > 1})
    if not characters or repeated or _NOT_TEXT.search(characters):
      raise ValueError(f"characters must be some distinct characters of text, got {characters!r}"
                       + (f", where {repeated[0]!r} comes twice." if repeated else "."))
    self.characters = characters
    self.vocab_size = len(characters) + 1
    self.eos_id = self.pad_id = 0
    self.stop_ids = (0,)
    self._ids = {character: i for i, character in enumerate(characters, 1)}

  def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
    if allow_special and self.EOS in text:
      first, *rest = (self.encode(part) for part in text.split(self.EOS))
      return first + [i for part in rest for i in (self.eos_id, *part)]
    try:
      return [self._ids[character] for character in text]
    except KeyError as error:
      place = text.index(error.args[0])
      raise ValueError(
          f"Character {error.args[0]!r} at position {place} of"
          f" {text[max(0, place - 20):place + 20]!r} has no id: the tokenizer knows"
          f" {self.characters!r}. Add it to CharacterTokenizer(characters=...), or keep it out of"
          " the task.") from None

  def end_id(self, prompt: str | Sequence[Message]) -> int:
    return self.eos_id

  def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
    return self.encode(self.render_prompt(prompt), allow_special=True)

  def encode_chat(self, prompt, reply, split=lambda text: [(text, True)]):
    return self.encode_prompt(prompt)  # Raises: there is no chat template.

  def encode_conversation(self, prompt, reply):
    return [*self.encode_prompt(prompt), *self.encode(reply), self.eos_id]

  def render_prompt(self, prompt: str | Sequence[Message]) -> str:
    if not isinstance(prompt, str):
      raise ValueError(
          f"A character tokenizer has no chat template for the messages {_roles(prompt)}: make the"
          " task's prompt a text.")
    return prompt

  def decode(self, ids: Sequence[int]) -> str:
    return "".join(self.characters[i - 1] for i in _known(ids, self.vocab_size) if i)

  def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
    return [self.decode(ids) for ids in batch]

  def save(self, directory: str | os.PathLike) -> None:
    # As a tokenizer that other libraries read: characters are its words.
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({self.EOS: 0, **self._ids}))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([self.EOS])
    config = {"eos_token": self.EOS, "pad_token": self.EOS, "characters": self.characters}
    with local_folder(directory) as folder:
      tokenizer_files.write_directory(folder, backend, config, self.stop_ids, self.pad_id)


@dataclasses.dataclass(frozen=True)
class PretrainedTokenizer:
  """Runs a model's own tokenizer with the `tokenizers` library; `load` makes it.

  The methods are documented in Tokenizer.

  files: what the model's files say.
  chat_template: Jinja source, or None for models that were never taught to chat.
  template_arguments: further variables of the template.
  source: where the tokenizer was read, for error messages.
  date: the day that templates are told which ask for the date; None: the day of each call.
  """
  files: tokenizer_files.TokenizerFiles
  chat_template: str | None = None
  template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  source: str = "the tokenizer"
  date: datetime.date | None = None

  @property
  def vocab_size(self) -> int:
    return self.files.vocab_size

  @functools.cached_property
  def eos_id(self) -> int:
    return self.files.backend.token_to_id(self.files.named_tokens["eos_token"])

  @functools.cached_property
  def pad_id(self) -> int:
    pad = self.files.named_tokens.get("pad_token")
    return self.eos_id if pad is None else self.files.backend.token_to_id(pad)

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Returns the files' stop ids, and the token that the template writes after an answer."""
    return tuple(dict.fromkeys([*self.files.stop_ids, *self._turn_ends]))

  def end_id(self, prompt: str | Sequence[Message]) -> int:
    return self.eos_id if isinstance(prompt, str) else [*self._turn_ends, self.eos_id][0]

  @functools.cached_property
  def _turn_ends(self) -> tuple[int, ...]:
    """Returns the token that the template writes after an answer; () if it writes none."""
    # Render a chat, and look for a token right after the answer.
    if self.chat_template is None:
      return ()
    answer = "the assistant's answer"
    try:
      chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
      text = self._render(chat, opens="nothing")
    except ValueError:
      # Raised again for the first real messages; text prompts do not need the template.
      return ()
    after = text.partition(answer)[2].lstrip()
    added = self.files.backend.get_added_tokens_decoder()
    # The longest one, since one token's text may begin another's.
    return tuple(sorted((i for i, token in added.items() if after.startswith(token.content)),
                        key=lambda i: len(added[i].content))[-1:])

  def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
    text = _NOT_TEXT.sub("\ufffd", text)
    # Text without anything like a control token is the same to both, and needs no second tokenizer.
    safe = allow_special or not self._may_hold_control(text)
    return (self.files.backend if safe else self._guarded).encode(
        text, add_special_tokens=False).ids

  def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
    if isinstance(prompt, str):
      ids = self.encode(prompt, allow_special=True)
      bos_id = (self.files.backend.token_to_id(self.files.named_tokens["bos_token"])
                if self.files.adds_bos else None)
      return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]
    if not any(map(self._may_hold_control, _strings(prompt))):
      return self.encode(self._render(prompt), allow_special=True)
    return self._guarded.encode(self._render_guarded(prompt), add_special_tokens=False).ids

  def encode_chat(self, prompt, reply, split=lambda text: [(text, True)]):
    def add(text, author, flag=True):
      pieces.append((self._guarded.encode(text, add_special_tokens=False).ids, author, flag))
    # A pattern for the tokens that end a turn, in the spelling of `_guarded`.
    stops = map(self.files.backend.id_to_token, self.stop_ids)
    stops = "|".join(
        re.escape(f"{_OPEN}{x}{_CLOSE}" if x in self._control_tokens else x) for x in stops)
    # Render the chat message by message. What each turn of the assistant adds is its own; `written`
    # is what has been put into pieces so far.
    messages, pieces, written = list(prompt), [], self._render_guarded(prompt)
    for number, message in enumerate(reply, 1):
      # Up to where the assistant speaks: in the prompt's last message, or in a turn of its own.
      goes_on = number == 1 and _ends_unfinished(messages) and message["role"] == "assistant"
      before = written if goes_on else self._render_guarded(messages, opens="turn")
      messages = _joined(messages, message) if goes_on else [*messages, message]
      if message["role"] != "assistant":
        continue
      after = self._render_guarded(messages, opens="nothing")
      if not before.startswith(written) or not after.startswith(before):
        raise ValueError(
            f"The chat template of {self.source} writes what came before message {number} of"
            f" {_roles(reply)} otherwise once that message is there, so the policy would not read"
            " what it is taught on. Make each of the assistant's turns a problem of its own, or"
            " give another template with load(..., chat_template=...).")
      # What follows the turn's last stop token is not sampled: it goes with the others' words.
      said = after[len(before):]
      ends = [match.end() for match in re.finditer(stops, said)]
      said = said[:ends[-1]] if ends else said
      if before != written:
        add(before[len(written):], "others")
      for text, flag in split(said):
        add(text, "assistant", flag)
      written = before + said
    return pieces

  def encode_conversation(self, prompt, reply):
    if self.chat_template is None:
      return [*self.encode_prompt(prompt), *self.encode(reply), self.eos_id]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answer = {"role": "assistant", "content": reply}
    text = self._render_guarded(
        _joined(messages, answer) if _ends_unfinished(messages) else [*messages, answer],
        opens="nothing")
    return self._guarded.encode(text, add_special_tokens=False).ids

  def render_prompt(self, prompt: str | Sequence[Message]) -> str:
    def clean(text: str) -> str:
      return _NOT_TEXT.sub("\ufffd", text)
    return clean(prompt) if isinstance(prompt, str) else self._render(_map_strings(prompt, clean))

  def decode(self, ids: Sequence[int]) -> str:
    return self.files.backend.decode(self._visible(ids), skip_special_tokens=True)

  def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
    return self.files.backend.decode_batch(
        [self._visible(ids) for ids in batch], skip_special_tokens=True)

  def save(self, directory: str | os.PathLike) -> None:
    config = {**self.files.named_tokens, "add_bos_token": self.files.adds_bos}
    if self.files.new_tokens:
      config["new_tokens"] = list(self.files.new_tokens)
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    with local_folder(directory) as folder:
      tokenizer_files.write_directory(
          folder, self.files.backend, config, self.stop_ids, self.pad_id)

  def _visible(self, ids: Sequence[int]) -> list[int]:
    """Returns the ids that decoding shows."""
    ids = _known(ids, self.vocab_size)
    return [i for i in ids if i not in self._plain_stop_ids] if self._plain_stop_ids else ids

  @functools.cached_property
  def _plain_stop_ids(self) -> frozenset[int]:
    """Returns stop ids that the backend does not call special, and would therefore print."""
    added = self.files.backend.get_added_tokens_decoder()
    return frozenset(i for i in self.stop_ids if not (i in added and added[i].special))

  @functools.cached_property
  def _control_tokens(self) -> tuple[str, ...]:
    """Returns the tokens that text must not be able to write.

    They are special and stop tokens, and turn marks that are not called special (DeepSeek's
    <｜User｜>). Others, such as <think> and <tool_call>, are for the policy and the user to write.
    So are all that were added with load(..., new_tokens=...).
    """
    stop = {self.files.backend.id_to_token(i) for i in self.stop_ids}
    return tuple(token.content for token in self.files.backend.get_added_tokens_decoder().values()
                 if (token.special or token.content in stop
                     or token.content.startswith(("<|", "<｜")))
                 and token.content not in self.files.new_tokens)

  @functools.cached_property
  def _control(self) -> re.Pattern:
    """Returns a pattern for control tokens; one that never matches where there are none."""
    # The first alternative that matches wins, so a token comes before those that begin it.
    longest_first = sorted(self._control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

  def _may_hold_control(self, text: str) -> bool:
    """Says whether a text could be read as holding a control token."""
    return bool(self._control.search(text)) or self._matches_normalised

  @functools.cached_property
  def _matches_normalised(self) -> bool:
    """Says whether some control token is looked for after normalisation.

    Normalisation could make such a token out of other characters, which `_control` does not see.
    """
    added = self.files.backend.get_added_tokens_decoder().values()
    return any(token.normalized and token.content in self._control_tokens for token in added)

  @functools.cached_property
  def _guarded(self) -> tokenizers.Tokenizer:
    """Returns the same tokenizer with its control tokens spelt between noncharacters.

    No text can reach them there. Ids stay the same.
    """
    # Only the saved state lets tokens be renamed: in the list of added tokens, in the vocabulary
    # and as the unknown token.
    names = {token: f"{_OPEN}{token}{_CLOSE}" for token in self._control_tokens}
    state = json.loads(self.files.backend.to_str())
    for token in state["added_tokens"]:
      token["content"] = names.get(token["content"], token["content"])
    model, vocab = state["model"], state["model"]["vocab"]
    if isinstance(vocab, dict):
      model["vocab"] = {names.get(token, token): i for token, i in vocab.items()}
    else:  # Unigram: pairs of token and score, in the order of ids.
      model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") is not None:
      model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    # It would look for begin-of-sequence tokens by their old names, and nothing is added here.
    state["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(state))

  def _render_guarded(self, messages: Sequence[Message], opens: str = "speech") -> str:
    """Renders a chat in the spelling of `_guarded`.

    In it the template's control tokens are tokens, and those in messages are text.
    """
    # Control tokens in messages are marked before rendering. Afterwards marked ones lose their
    # marks, and unmarked ones, which the template wrote, get them.
    def mark(text: str) -> str:
      return self._control.sub(
          lambda match: f"{_OPEN}{match[0]}{_CLOSE}", _NOT_TEXT.sub("\ufffd", text))
    def swap(match: re.Match) -> str:
      return match[1] or (f"{_OPEN}{match[2]}{_CLOSE}" if match[2] else "")
    control, text = self._control.pattern, self._render(
        _map_strings(messages, mark), opens)
    return re.sub(f"{_OPEN}({control}){_CLOSE}|({control})|[{_OPEN}{_CLOSE}]", swap, text)

  def _render(self, messages: Sequence[Message], opens: str = "speech") -> str:
    """Renders a chat.

    Args:
      messages: the chat.
      opens: what the text ends with. "speech": with where the assistant speaks, which is in the
        last message if that is its own, else in a new turn. "turn": with a new turn of the
        assistant. "nothing": with the last message's end.
    """
    if self.chat_template is None:
      raise ValueError(
          f"{self.source} has no chat template for the messages {_roles(messages)}. Give one with"
          " load(..., chat_template=...), use the instruct model's files, or make the prompt a"
          " text.")
    if not messages:
      raise ValueError("A prompt of messages needs at least one message, got none.")
    variables = {
        "tools": None, "documents": None, **self.files.named_tokens, **self.template_arguments}
    # Templates that ask for the date are given the same one at every call.
    day = self.date or datetime.date.today()
    variables["strftime_now"] = day.strftime
    unfinished = opens == "speech" and _ends_unfinished(messages)
    if unfinished:
      # The space behind the mark shows whether the template strips messages.
      messages = _joined(messages, {"role": "assistant", "content": f"{_HERE} "})
    try:
      text = tokenizer_files.compile_template(self.chat_template).render(
          **variables, messages=_map_strings(messages, str),
          add_generation_prompt=opens != "nothing" and not unfinished)
    except Exception as error:  # The template is a program from a file: it may fail in any way.
      raise ValueError(
          f"The chat template of {self.source} fails on the messages {_roles(messages)}:"
          f" {type(error).__name__}: {error}. Change the messages to what it accepts, or give"
          " another with load(..., chat_template=...).") from error
    if not unfinished:
      return text
    # The text ends where the message does; a template that strips it strips its end here too.
    said, mark, rest = text.rpartition(_HERE)
    said = said if rest.startswith(" ") else said.rstrip()
    content = messages[-1]["content"].removesuffix(f"{_HERE} ")
    if not mark or not said.endswith((content, content.strip())):
      raise ValueError(
          f"The chat template of {self.source} does not write the unfinished last message of"
          f" {_roles(messages)} as it is, so a completion cannot go on in it. End the prompt with"
          " a message of the user, or give another template with load(..., chat_template=...).")
    return said


def at_date(tokenizer: Tokenizer, date: Callable[[], datetime.date]) -> Tokenizer:
  """Returns the tokenizer with one date for all prompts; the same one if nobody asks for a date.

  Args:
    tokenizer: any tokenizer.
    date: called where the chat template asks for the date.
  """
  template = getattr(tokenizer, "chat_template", None)
  if not isinstance(tokenizer, PretrainedTokenizer) or "strftime_now" not in (template or ""):
    return tokenizer
  return dataclasses.replace(tokenizer, date=date())


def _ends_unfinished(messages: Sequence[Message]) -> bool:
  """Says whether the last message is the assistant's, in text, so that a completion goes on in it."""
  return bool(messages) and isinstance(messages[-1], Mapping) and (
      messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), str))


def _joined(messages: Sequence[Message], message: Message) -> list[Message]:
  """Returns the messages with another one's text put behind that of the last one."""
  last = messages[-1]
  return [*messages[:-1], {**last, "content": last["content"] + message["content"]}]


def _strings(value: Any) -> list[str]:
  """Lists all strings in a value of dicts and lists, keys excepted."""
  found = []
  _map_strings(value, lambda text: found.append(text) or text)
  return found


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
  """Copies a value into plain dicts and lists, `function` applied to every string but the keys."""
  if isinstance(value, str):
    return function(value)
  if isinstance(value, Mapping):
    return {key: _map_strings(each, function) for key, each in value.items()}
  return ([_map_strings(each, function) for each in value] if isinstance(value, list | tuple)
          else value)


def _roles(messages: Sequence[Message]) -> str:
  """Names the speakers of messages, for errors."""
  return repr([message.get("role") if isinstance(message, Mapping) else message
               for message in messages])


def _known(ids: Sequence[int], vocab_size: int) -> list[int]:
  """Returns the ids that the tokenizer has.

  Which ids a model samples is data, so ids beyond the vocabulary are no error. Negative ones are:
  nothing samples them.

  Raises: ValueError for negative ids.
  """
  ids = np.asarray(ids, np.int64 if len(ids) == 0 else None)
  if ids.size and ids.min() < 0:
    raise ValueError(
        f"Token id {ids.min()} is negative, so it was never sampled: is it a padding mark? Cut at"
        " the completion's length before decoding.")
  return ids[ids < vocab_size].tolist()
