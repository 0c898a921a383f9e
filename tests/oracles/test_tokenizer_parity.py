"""Compares our tokenizers with their peers, live.

The peers are transformers' AutoTokenizer on the same directory, and SentencePiece.
"""

import random

import gguf
import pytest
import tokenizers

from rl_reason.models import tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = ("{% for message in messages %}"
          "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
BOS_CHATML = "{{ bos_token }}" + CHATML
CORPUS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in"
    " May.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Ein Zug fährt um 12:30 Uhr ab — wie weit ist er um 14:45 Uhr?  We'll see; they'd say"
    " 3.14159 \\frac{1}{2}.",
    "数学の問題です。 🙂🙃 Ω ≈ 1e-9\tand\r\nmore\n\n\n   spaces   ",
]
CHATS = (
    [{"role": "user", "content": "What is 12 + 7?"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi 🙂"},
     {"role": "assistant", "content": "\n 1 "}, {"role": "user", "content": ""}],
)


def texts(count=300):
  """The corpus and random cuts of it, put together with special tokens and awkward characters."""
  rng = random.Random(0)
  pieces = [
      *CORPUS, *SPECIAL, "<think>", "</think>", " ", "\n", "\0", "\ufffd", "é", "e\u0301", "12345"]
  def piece():
    text = rng.choice(pieces)
    start = rng.randrange(len(text) + 1) if text in CORPUS else 0
    return text[start:start + rng.randrange(1, 30)]
  return [
      "", *CORPUS, *("".join(piece() for _ in range(rng.randrange(1, 6))) for _ in range(count))]


@pytest.fixture(params=["plain", "bos"])
def directory(tmp_path, request):
  """A small byte-level BPE trained on the corpus, in a directory as transformers writes it."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
      vocab_size=500, show_progress=False, special_tokens=list(SPECIAL),
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  backend.add_tokens(["<think>", "</think>"])
  bos = request.param == "bos"
  if bos:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)])
  theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="</s>")
  theirs.chat_template = BOS_CHATML if bos else CHATML
  theirs.save_pretrained(tmp_path / "theirs")
  return tmp_path / "theirs"


def assert_same(ours, theirs):
  assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
  for text in texts():
    ids = ours.encode_prompt(text)
    # Theirs doubles BOS where the text brings its own; ours does not.
    doubled = theirs.encode("") == [0] and text.startswith("<s>")
    assert ids == theirs.encode(text)[doubled:]
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == theirs.encode(
        text, add_special_tokens=False, split_special_tokens=True)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids[1:-1]) == theirs.decode(ids[1:-1], skip_special_tokens=True)
  for chat in CHATS:
    assert ours.render_prompt(chat) == theirs.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False)
    assert ours.encode_prompt(chat) == theirs.apply_chat_template(
        chat, add_generation_prompt=True)["input_ids"]


def test_directory_gives_the_ids_of_transformers(directory):
  assert_same(tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(directory))


def test_saved_directory_gives_transformers_the_same_ids(directory, tmp_path):
  ours = tokenizer.load(directory)
  ours.save(tmp_path / "ours")
  assert_same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
  generation = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
  assert generation.eos_token_id == list(ours.stop_ids)


def test_messages_are_sanitised_as_in_transformers(directory):
  # Theirs encodes the texts before, in and after a control token separately, and ours encodes one
  # text. They are compared where no merge or word crosses the seams.
  ours, theirs = tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(directory)
  chat = [{"role": "user", "content": "\n<|im_end|>\n<s>\n"}]
  try:
    expected = theirs.apply_chat_template(
        chat, add_generation_prompt=True, sanitize_control_tokens=True)["input_ids"]
  except TypeError:
    pytest.skip("this transformers has no sanitize_control_tokens")
  ids = ours.encode_prompt(chat)
  assert [ids.count(i) for i in range(4)] == [expected.count(i) for i in range(4)]
  assert ours.decode(ids) == theirs.decode(expected, skip_special_tokens=True)


def test_character_tokenizer_loads_in_transformers(tmp_path):
  ours = tokenizer.CharacterTokenizer("0123456789+-= \n🙂")
  ours.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in ("12+3=15\n", " 🙂 ", ""):
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
  assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 0)


@pytest.mark.parametrize("space_prefix", [False, True])
def test_sentencepiece_bpe_gives_the_ids_of_sentencepiece(tmp_path, space_prefix):
  sentencepiece = pytest.importorskip("sentencepiece")
  # In llama.cpp a user-defined piece in the middle of a text is followed by another added space; in
  # SentencePiece it is not.
  user_defined = [] if space_prefix else ["<think>", "\n\n"]
  (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
  sentencepiece.SentencePieceTrainer.train(
      input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "m"), vocab_size=400,
      model_type="bpe",
      byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
      add_dummy_prefix=space_prefix,
      control_symbols=["<|im_end|>"], user_defined_symbols=user_defined, minloglevel=2)
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
  pieces = [theirs.id_to_piece(i) for i in range(theirs.vocab_size())]
  kinds = gguf.TokenType
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
  writer.add_tokenizer_model("llama")
  writer.add_token_list(pieces)
  writer.add_token_scores([theirs.get_score(i) for i in range(len(pieces))])
  writer.add_token_types([
      kinds.BYTE if theirs.is_byte(i) else kinds.UNKNOWN if theirs.is_unknown(i)
      else kinds.CONTROL if theirs.is_control(i)
      else kinds.USER_DEFINED if piece in user_defined else kinds.NORMAL
      for i, piece in enumerate(pieces)])
  writer.add_bos_token_id(theirs.bos_id())
  writer.add_eos_token_id(theirs.eos_id())
  writer.add_unk_token_id(theirs.unk_id())
  writer.add_add_space_prefix(space_prefix)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  ours = tokenizer.load(tmp_path / "m.gguf")
  for text in texts():
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text
