"""Responses as a reward model or a preference loss reads them: how they end."""

import pytest

from rl_reason.batches import responses
from rl_reason.models import tokenizer
from rl_reason.stages.reward_model import meta
from tests.models.test_tokenizer import ids_of, IM_END, model_directory

QUESTION = ({"role": "user", "content": "x"},)


@pytest.fixture
def chat(tmp_path):
  return tokenizer.load(model_directory(tmp_path / "chat", eos_token="<|end_of_text|>"))


@pytest.mark.parametrize("read", ["end", "tokens"])
def test_a_response_ends_as_a_completion_of_its_prompt_does(chat, read):
  for prompt, end in ((QUESTION, IM_END), ("x", chat.eos_id)):
    encoded = responses.encode(chat, prompt, ["yes", ""], read=read)
    assert encoded.responses == [[*ids_of("yes"), end], [end]]


def test_a_sampled_response_gets_one_end(chat):
  for sampled in (ids_of("yes"), [*ids_of("yes"), IM_END], [*ids_of("yes"), chat.eos_id]):
    assert meta._with_end(sampled, chat.end_id(QUESTION), chat) == [*ids_of("yes"), IM_END]
