"""What of a solution is learnt, by hand.

Packed rows equal a row per example, and the layout of prompts and completions.
"""

import functools

import jax
import numpy as np
import pytest

from rl_reason.arrays import Inputs, length_mask
from rl_reason.batches import demonstrations, packing
from rl_reason.models import policy, tokenizer
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.objectives import losses
from rl_reason.types import Problem
from tests.models.test_tokenizer import CHATML, ids_of, IM_END, IM_START, model_directory

LETTERS = CharacterTokenizer("abcdefgh<>/=")  # "a" is 1, EOS 0.
CALL, RESULT = {"role": "assistant", "content": "bc"}, {"role": "tool", "content": "de"}


def encode(*problems, tok=LETTERS, **arguments):
  """[(tokens, the learnt ones among them by place)] per problem."""
  examples = demonstrations.encode(
      problems, tok, **{"max_prompt_tokens": 60, "max_completion_tokens": 90, **arguments})
  assert examples.tokens.shape == examples.learnt.shape == (len(problems), 150)
  assert not (examples.learnt & ~np.asarray(length_mask(examples.lengths, 150))).any()
  return [(row[:n].tolist(), np.flatnonzero(learnt).tolist())
          for row, learnt, n in zip(examples.tokens, examples.learnt, examples.lengths)]


def test_a_solution_and_its_end_are_learnt():
  assert encode(Problem("a=", "", solution="bc"), Problem("h", "", solution="d")) == [
      ([1, 12, 2, 3, 0], [2, 3, 4]), ([8, 4, 0], [1, 2])]


def test_of_whole_texts_all_but_the_first_token_is_learnt():
  assert encode(Problem("a=", "", solution="bc"), loss_on="text") == [
      ([1, 12, 2, 3, 0], [1, 2, 3, 4])]


@pytest.mark.parametrize("solution, tokens, learnt", [
    # The markers come from whoever wrote what is between them.
    ("b<dd>c", [1, 12, 2, 9, 4, 4, 10, 3, 0], [2, 7, 8]),
    ("b<d>c<e>", [1, 12, 2, 9, 4, 10, 3, 9, 5, 10, 0], [2, 6, 10]),
    ("b<d", [1, 12, 2, 9, 4, 0], [2, 5]),  # Not ended: to the end of the text; EOS is the policy's.
    ("b>c/", [1, 12, 2, 10, 3, 11, 0], [2, 3, 4, 5, 6]),
])
@pytest.mark.parametrize("loss_on", demonstrations.LOSS_ON)
def test_stretches_between_markers_are_read_and_not_learnt(solution, tokens, learnt, loss_on):
  if loss_on == "text":
    learnt = [1, *learnt]
  assert encode(Problem("a=", "", solution=solution), unlearnt=(("<", ">"),), loss_on=loss_on) == [
      (tokens, learnt)]


def test_of_messages_after_a_text_the_assistants_are_learnt():
  problem = Problem("a=", "", solution=(CALL, RESULT, {"role": "assistant", "content": "f<g>h"}))
  tokens = [1, 12, 2, 3, 4, 5, 6, 9, 7, 10, 8, 0]
  assert encode(problem) == [(tokens, [2, 3, 6, 7, 8, 9, 10, 11])]
  assert encode(problem, unlearnt=(("<", ">"),)) == [(tokens, [2, 3, 6, 10, 11])]
  assert encode(problem, loss_on="text") == [(tokens, list(range(1, 12)))]


@pytest.fixture
def chat(tmp_path):
  return tokenizer.load(model_directory(tmp_path / "chat"))


@pytest.fixture
def two_ends(tmp_path):
  """A tokenizer whose end of sequence is not the template's end of a turn, as Gemma's."""
  return tokenizer.load(model_directory(tmp_path / "two", eos_token="<|end_of_text|>"))


def test_a_text_that_answers_a_chat_ends_as_its_template_ends_a_turn(two_ends):
  assert two_ends.eos_id != IM_END
  question = ({"role": "user", "content": "x"},)
  as_text, as_messages = (
      encode(Problem(question, "", solution=solution), tok=two_ends)[0]
      for solution in ("yes", ({"role": "assistant", "content": "yes"},)))
  assert as_text[0][-1] == IM_END
  assert as_text == as_messages


def test_a_text_after_a_text_ends_with_the_end_of_sequence(two_ends):
  for solution in ("yes", ({"role": "assistant", "content": "yes"},)):
    [(tokens, learnt)] = encode(Problem("x", "", solution=solution), tok=two_ends)
    assert (tokens[-1], learnt[-1]) == (two_ends.eos_id, len(tokens) - 1)


ASK, ASK_AGAIN = {"role": "user", "content": "x<|im_end|>?"}, {"role": "user", "content": "y?"}
SAY = {"role": "assistant", "content": "u<i>v</i>"}
SAY_AGAIN = {"role": "assistant", "content": "w"}


def test_of_a_chat_the_assistants_turns_and_their_ends_are_learnt(chat):
  problem = Problem((ASK,), "", solution=(SAY, ASK_AGAIN, SAY_AGAIN))
  [(tokens, learnt)] = encode(problem, tok=chat)
  name = [IM_START, *ids_of("assistant\n")]
  # The user's control token is text.
  prompt = [IM_START, *ids_of("user\nx<|im_end|>?"), IM_END, *ids_of("\n"), *name]
  assert tokens[:len(prompt)] == prompt == chat.encode_prompt((ASK,))
  said = [*ids_of("u<i>v</i>"), IM_END]
  asked = [*ids_of("\n"), IM_START, *ids_of("user\ny?"), IM_END, *ids_of("\n"), *name]
  assert tokens == [*prompt, *said, *asked, *ids_of("w"), IM_END]  # And no EOS after it.
  first, second = len(prompt), len(prompt) + len(said) + len(asked)
  assert learnt == [*range(first, first + len(said)), second, second + 1]
  # What each turn is learnt from is what the policy would read there.
  assert tokens[:second] == chat.encode_prompt((ASK, SAY, ASK_AGAIN))

  [(again, learnt)] = encode(problem, tok=chat, unlearnt=(("<i>", "</i>"),))
  assert again == tokens and learnt == [first, first + 9, second, second + 1]
  [(_, learnt)] = encode(problem, tok=chat, loss_on="text")
  assert learnt == list(range(1, len(tokens)))


def test_a_template_that_changes_earlier_turns_is_refused(tmp_path):
  template = CHATML.replace(
      "message['content']", "(message['content'] if loop.last else message['content'][:1])")
  tok = tokenizer.load(model_directory(tmp_path, chat_template=template))
  reply = (SAY, ASK_AGAIN, SAY_AGAIN)
  with pytest.raises(
      ValueError, match="Problem 'p': The chat template .* before message 1 of .* otherwise"):
    encode(Problem((ASK,), "", solution=reply, id="p"), tok=tok)
  encode(Problem(({"role": "user", "content": "x"},), "", solution=reply[:1]), tok=tok)


@pytest.mark.parametrize("problem, message", [
    (Problem("a", "", id="p"), "Problem 'p' has no solution to imitate"),
    (Problem("a", "", solution="b" * 90, id="p"),
     "problem 'p' has 91 tokens with EOS, the limit max_completion_tokens is 90"),
    (Problem("a", "", solution=(CALL, RESULT), id="p"),
     "problem 'p' ends with a message of 'tool'"),
    (Problem("a" * 61, "", solution="b", id="p"), "prompt of problem 'p' has 61 tokens"),
    (Problem((ASK,), "", solution=(SAY,), id="p"), "no chat template"),
])
def test_what_cannot_be_imitated_is_named(problem, message):
  with pytest.raises(ValueError, match=message):
    encode(problem)


# Rows.

@pytest.fixture(scope="module")
def examples():
  """7 texts of random tokens: some learnt only in parts."""
  draw = np.random.RandomState(0)
  lengths = [(3, 4), (1, 2), (6, 9), (2, 1), (5, 8), (4, 3), (1, 5)]
  rows = [[(draw.randint(0, 32, a).tolist(), False), (draw.randint(0, 32, b).tolist(), True)]
          for a, b in lengths]
  rows[2].insert(1, (draw.randint(0, 32, 2).tolist(), False))
  return demonstrations.Examples.of(rows, 24)


def loss_of(config, params, batch):
  logprobs = policy.text_logprobs(
      config, params, batch.inputs, batch.targets, segments=batch.segments)
  return losses.imitation_loss(logprobs, batch.target_mask, batch.token_weights)


@pytest.fixture(scope="module")
def value_and_grad(tiny_config):
  return jax.jit(jax.value_and_grad(functools.partial(loss_of, tiny_config), has_aux=True))


def assert_equal(a, b):
  ((loss_a, statistics_a), grads_a), ((loss_b, statistics_b), grads_b) = a, b
  np.testing.assert_allclose(loss_a, loss_b, rtol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5),
               statistics_a.metrics(), statistics_b.metrics())
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()), grads_a, grads_b)


def garbage(batch):
  """The batch with padding of any value."""
  real = np.asarray(length_mask(batch.inputs.lengths, batch.inputs.tokens.shape[1]))
  return batch.replace(inputs=batch.inputs.replace(tokens=np.where(real, batch.inputs.tokens, 31)),
                       targets=np.where(
                           batch.target_mask, batch.targets, batch.inputs.tokens.shape[1] - 1))


@pytest.mark.parametrize("mean_over", losses.REDUCTIONS)
def test_packed_rows_have_the_loss_and_gradient_of_a_row_each(
    value_and_grad, tiny_params, examples, mean_over, monkeypatch):
  monkeypatch.setattr(packing, "SHORTEST", 1)
  apart = demonstrations.to_batch(examples, mean_over=mean_over, max_tokens=9, together=False)
  packed = demonstrations.to_batch(examples, mean_over=mean_over, max_tokens=9)
  assert apart.segments is None
  assert len(apart.inputs.tokens) == 7
  assert len(packed.inputs.tokens) == 3
  assert packed.segments is not None
  total = {"token": 1, "sequence": 1, "fixed_length": 32 / 63}[mean_over]
  np.testing.assert_allclose(
      [apart.token_weights.sum(), packed.token_weights.sum()], total, rtol=1e-6)
  assert_equal(value_and_grad(tiny_params, garbage(packed)), value_and_grad(tiny_params, apart))


def test_whole_texts_equal_completions_after_prompts(
    value_and_grad, tiny_config, tiny_params, tiny_batch):
  # The layout of policy gradients, one completion a prompt: the same loss by another way through
  # the model.
  batch = tiny_batch.replace(
      prompts=jax.tree.map(lambda x: np.repeat(x, 2, axis=0), tiny_batch.prompts))
  rows = [[(p[:n].tolist(), False), (c[:m].tolist(), True)] for p, n, c, m in zip(
      batch.prompts.tokens, batch.prompts.lengths, batch.completions, batch.completion_lengths)]
  texts = demonstrations.to_batch(
      demonstrations.Examples.of(rows, 11), mean_over="token", max_tokens=5)

  def loss(params):
    prompts = Inputs(batch.prompts.tokens, batch.prompts.lengths)
    logprobs, _ = policy.completion_logprobs(
        tiny_config, params, prompts, batch.completions, batch.completion_lengths)
    return losses.imitation_loss(logprobs, batch.completion_mask, batch.token_weights)
  assert_equal(value_and_grad(tiny_params, texts),
               jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny_params))


def test_logits_are_computed_where_something_is_learnt(examples, monkeypatch):
  monkeypatch.setattr(packing, "SHORTEST", 1)
  batch = demonstrations.to_batch(examples, mean_over="token", max_tokens=9, together=False)
  # The longest solution: 9 of 24, of 12.
  assert batch.inputs.tokens.shape == (7, 24) and batch.targets.shape == (7, 12)
  assert batch.targets[2, :9].tolist() == list(range(8, 17))
  assert batch.target_lengths.tolist() == [4, 2, 9, 1, 8, 3, 5]
