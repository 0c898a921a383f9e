"""Generation: against a loop without caches and against the trainer's log-probabilities.

Also where completions end.
"""

import functools

import jax
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.batches.prompts import encode_prompts
from rl_reason.models import policy, transformer
from rl_reason.models.config import small
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.models.transformer import forward, unembed
from rl_reason.rollout import schedule
from rl_reason.rollout.generate import Completions, generate
from rl_reason.rollout.samples import check_sampling, make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.types import Problem

T = 11  # Not a multiple of the chunk sizes below.
SAMPLED, GREEDY = Sampling(max_tokens=T), Sampling(max_tokens=T, temperature=0.0)


@pytest.fixture(scope="module")
def run(tiny_config, tiny_params, tiny_batch):
  """generate() with defaults; no token stops, 2 completions for each of 4 prompts, chunks of 4."""
  def run(
      sampling=SAMPLED, *, seed=0, prompts=tiny_batch.prompts, stop_ids=(), chunk_size=4, **kwargs):
    return generate(tiny_config, tiny_params, prompts, sampling, group_size=2,
                    rng=jax.random.key(seed), stop_ids=stop_ids, chunk_size=chunk_size, **kwargs)
  return run


@pytest.fixture(scope="module")
def free(run):
  return run()


def same(a, b, rows=slice(None)):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[rows], y[rows]), a, b)


def same_but_for_rounding(a, b):
  """Chunks and slots of other sizes add up the same numbers in another order."""
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 if x.dtype == np.float32 else 0),
      a, b)


def test_greedy_decoding_equals_a_loop_over_whole_sequences(
    run, tiny_config, tiny_params, tiny_batch):
  @jax.jit
  def likeliest(tokens, lengths):
    hidden, _ = forward(tiny_config, tiny_params, Inputs(tokens, lengths))
    logits = unembed(tiny_config, tiny_params, hidden)
    last = np.arange(4), lengths - 1
    return logits[last].argmax(-1), jax.nn.log_softmax(logits[last]).max(-1)
  out = run(GREEDY)
  rows, lengths = np.zeros((4, 6 + T), np.int32), tiny_batch.prompts.lengths.copy()
  rows[:, :6] = tiny_batch.prompts.tokens
  for t in range(T):
    tokens, logprobs = likeliest(rows, lengths)
    np.testing.assert_array_equal(out.tokens[:, t], np.repeat(tokens, 2))
    np.testing.assert_allclose(out.logprobs[:, t], np.repeat(logprobs, 2), atol=1e-5)
    rows[np.arange(4), lengths] = tokens
    lengths += 1
  assert (out.behaviour_logprobs == 0).all() and out.truncated.all() and (out.lengths == T).all()


def test_tokens_depend_on_the_rng_and_on_nothing_else(run, free):
  assert free.tokens.shape == free.logprobs.shape == free.behaviour_logprobs.shape == (8, T)
  same(run(), free)
  assert (run(seed=1).tokens != free.tokens).mean() > 0.5
  for chunk_size in (1, T, 100):
    same_but_for_rounding(run(chunk_size=chunk_size), free)
  # A group's completions are drawn apart.
  assert (free.tokens[::2] != free.tokens[1::2]).mean() > 0.5


def test_other_rows_change_nothing(run, free, tiny_batch):
  tokens, lengths = tiny_batch.prompts.tokens.copy(), tiny_batch.prompts.lengths.copy()
  tokens[1], lengths[1] = 9, 6
  again = run(prompts=tiny_batch.prompts.replace(tokens=tokens, lengths=lengths))
  same(again, free, rows=[0, 1, 4, 5, 6, 7])
  assert (again.tokens[2:4] != free.tokens[2:4]).any()


def test_padding_of_prompts_may_hold_anything(run, free, tiny_batch):
  real = np.arange(6) < tiny_batch.prompts.lengths[:, None]
  padded = tiny_batch.prompts.replace(tokens=np.where(real, tiny_batch.prompts.tokens, 31))
  same(run(prompts=padded), free)


@pytest.fixture(scope="module")
def often(free):
  """A token that ends most completions, at different lengths."""
  return int(np.argmax([sum(i in row[:-1] for row in free.tokens) for i in range(32)]))


@pytest.mark.parametrize("slots, fewest", [
    (0, 1), (2, 1), (3, 1), (3, 8), (4, 2), (7, 1), (100, 1)])
def test_slots_change_nothing(slots, fewest, run, often, monkeypatch):
  # With 2 slots every group waits for the one before; with 3 a group's completions start and end
  # apart from each other; with 7 and all, what is left after a while moves into half the slots, and
  # again.
  monkeypatch.setattr(schedule, "FEWEST_SLOTS", fewest)
  told = []
  def on_finished(completions, rows):
    told.extend((int(i), completions.tokens[i].copy(), int(completions.lengths[i])) for i in rows)
  expected = run(stop_ids=[often])
  out = run(stop_ids=[often], slots=slots, on_finished=on_finished)
  assert len(set(expected.lengths)) > 2
  assert expected.truncated.any() and not expected.truncated.all()
  same_but_for_rounding(out, expected)
  assert sorted(i for i, _, _ in told) == list(range(8))
  for i, tokens, length in told:
    np.testing.assert_array_equal(tokens, expected.tokens[i])
    assert length == expected.lengths[i]


def test_fewer_slots_than_a_group_are_refused(run):
  with pytest.raises(ValueError, match="slots must be at least group_size, got 1 for groups of 2"):
    run(slots=1)


def test_schedule_by_hand(monkeypatch):
  # 3 groups of 2 through 3 slots; all three prompts fit into the cache (twice the groups that fill
  # the slots is 4).
  monkeypatch.setattr(schedule, "FEWEST_SLOTS", 1)
  s = schedule.Schedule(3, 2, 3)
  rows, groups = s.admit()
  assert rows.tolist() == groups.tolist() == [0, 1, 2]
  s.prompts_read(groups)
  move = s.arrange()
  assert s.ids.tolist() == [0, 1, 2] and s.prompts.tolist() == [0, 0, 1]
  assert move.new.all() and not move.done.any()
  members, places = s.sharing()
  assert members.tolist() == [[0, 1], [2, 0], [0, 0]] and places.tolist() == [0, 1, 2]
  assert s.enough() == 2  # One end is enough: others wait.
  s.finish(np.array([1]))  # Completion 1. Completion 3, of the second group, takes slot 1.
  move = s.arrange()
  assert s.ids.tolist() == [0, 3, 2] and s.prompts.tolist() == [0, 1, 1]
  assert move.new.tolist() == [False, True, False]
  s.finish(np.array([0, 2]))
  assert s.groups.tolist() == [-1, 1, 2]  # The first group is through.
  s.arrange()
  # Nothing waits: at 2 the rest fits into half the slots.
  assert s.ids.tolist() == [4, 3, 5] and s.enough() == 2
  s.finish(np.array([0]))
  move = s.arrange()
  assert s.ids.tolist() == [3, 5] and move.source.tolist() == [1, 2]
  assert not move.new.any() and s.enough() == 1
  s.finish(np.array([0, 1]))
  assert s.finished and s.groups.tolist() == [-1, -1, -1]


def test_prompts_of_finished_groups_make_room_for_waiting_ones(monkeypatch):
  s = schedule.Schedule(10, 2, 4)  # 4 of 10 prompts in the cache.
  assert s.admit()[1].tolist() == [0, 1, 2, 3]
  s.prompts_read(np.arange(4))
  s.arrange()
  s.finish(np.array([0, 1]))
  assert s.admit(at_least=2)[1].tolist() == []  # Worth a program's run only when two are free.
  s.arrange()
  s.finish(np.array([2, 3]))
  rows, groups = s.admit(at_least=2)
  assert rows.tolist() == [0, 1] and groups.tolist() == [4, 5]
  s.prompts_read(groups)
  s.arrange()
  assert s.ids.tolist() == [4, 5, 6, 7] and s.prompts.tolist() == [2, 2, 3, 3]


def test_room_for_past_tokens_doubles():
  assert [schedule.capacity(n, 4) for n in (0, 1, 4, 5, 8, 9, 16, 17)] == [
      0, 4, 4, 8, 8, 16, 16, 32]


# The token that most completions hold, and 0, which also pads.
@pytest.mark.parametrize("stop", ["common", "pad"])
def test_stop_tokens_end_their_row_and_count(stop, run, free, tiny_batch):
  counts = [sum(i in row[:-1] for row in free.tokens) for i in range(32)]
  stop_id = 0 if stop == "pad" else int(np.argmax(counts[1:])) + 1
  seed = 0 if stop != "pad" else next(
      s for s in range(20) if 0 < sum(0 in row[:-1] for row in run(seed=s).tokens) < 8)
  expected, out = run(seed=seed), run(seed=seed, stop_ids=[stop_id])
  stopped = 0
  for b in range(8):
    found = np.flatnonzero(expected.tokens[b] == stop_id)
    length = found[0] + 1 if len(found) else T
    stopped += bool(len(found))
    assert out.lengths[b] == length and out.truncated[b] == (not len(found))
    for name in ("tokens", "behaviour_logprobs", "logprobs"):
      np.testing.assert_array_equal(
          getattr(out, name)[b, :length], getattr(expected, name)[b, :length])
      assert (getattr(out, name)[b, length:] == 0).all()
  assert 0 < stopped < 8


def test_a_stop_token_at_the_length_limit_is_no_truncation(run, free):
  out = run(stop_ids=[int(free.tokens[3, -1])])
  if out.lengths[3] == T:
    assert not out.truncated[3]
  assert all(truncated == (row[n - 1] != free.tokens[3, -1])
             for row, n, truncated in zip(out.tokens, out.lengths, out.truncated))


def two_letters(ids):  # Each token spells two letters of four.
  return "".join("abcd"[i % 4] + "abcd"[i // 4 % 4] for i in ids)


def test_stop_strings_end_a_row_at_the_first_token_that_completes_one(run, free):
  # 2 or 3 letters: begun and completed anywhere in a token, also over the seams of chunks.
  stops = ("bda", "cc")
  def end(row):
    return next((n for n in range(1, T + 1) if any(s in two_letters(row[:n]) for s in stops)), None)
  ends = [end(row) for row in free.tokens]
  assert None in ends and len(set(ends)) > 3
  sampling = Sampling(max_tokens=T, stop_strings=stops)
  for chunk_size in (4, 100):
    out = run(sampling, decode_text=two_letters, chunk_size=chunk_size)
    for b, n in enumerate(ends):
      assert out.lengths[b] == (n or T) and out.truncated[b] == (n is None)
      np.testing.assert_array_equal(
          out.tokens[b], np.where(np.arange(T) < (n or T), free.tokens[b], 0))
  with pytest.raises(ValueError, match="need decode_text"):
    run(sampling)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprobs_are_those_of_the_trainer(
    temperature, run, free, tiny_config, tiny_params, tiny_batch):
  out = free if temperature == 1.0 else run(Sampling(max_tokens=T, temperature=temperature))
  trainer = jax.jit(functools.partial(
      policy.completion_logprobs, tiny_config, temperature=temperature))
  expected, _ = trainer(tiny_params, tiny_batch.prompts, out.tokens, out.lengths)
  np.testing.assert_allclose(out.behaviour_logprobs, expected, atol=1e-4)
  if temperature == 1.0:
    np.testing.assert_array_equal(out.logprobs, out.behaviour_logprobs)
  else:  # Sharper than the distribution that `logprobs` speaks of.
    assert (out.behaviour_logprobs - out.logprobs).mean() > 0.1


def rounded_to_8_bits(config, params):
  """Parameters that 8 bits hold exactly, near these."""
  layers = [transformer.quantize(layer) for layer in transformer.split_layers(config, params)]
  layers = [
      layer["params"] | {k: layer["params"][k] * scale for k, scale in layer["scales"].items()}
      for layer in layers]
  return {**params, "layers": jax.tree.map(lambda *x: np.stack(x), *layers)}


def test_8_bits_sample_as_the_rounded_parameters_do(tiny_config, tiny_params, tiny_batch):
  params = rounded_to_8_bits(tiny_config, tiny_params)
  def sampled(**kwargs):
    return generate(tiny_config, params, tiny_batch.prompts, SAMPLED, group_size=2,
                    rng=jax.random.key(0), stop_ids=(), chunk_size=4, **kwargs)
  same_but_for_rounding(sampled(int8=True), sampled())


def test_8_bits_are_close_to_the_trainer_and_the_gap_is_not_hidden(
    run, free, tiny_config, tiny_params, tiny_batch):
  out = run(int8=True)
  expected, _ = jax.jit(functools.partial(policy.completion_logprobs, tiny_config))(
      tiny_params, tiny_batch.prompts, out.tokens, out.lengths)
  gaps = np.abs(out.behaviour_logprobs - expected)
  # Prompts are read with all bits, so a first token is not off; later ones by a rounding of 1/254
  # of the largest weight.
  assert gaps[:, 0].max() < 1e-5 < 1e-3 < gaps.max() < 0.1
  np.testing.assert_array_equal(out.tokens[:, 0], free.tokens[:, 0])


TOKENIZER = CharacterTokenizer("0123456789+= ")


def problem(prompt, **kwargs):
  return Problem(prompt=prompt, reference="3", **kwargs)


def test_prompts_are_padded_to_the_next_bucket():
  # "0" is id 1, so "1+2=" is 2, 11, 3, 12.
  batch = encode_prompts([problem("1+2="), problem("7")], TOKENIZER, max_tokens=20, bucket=3)
  np.testing.assert_array_equal(batch.tokens, [[2, 11, 3, 12, 0, 0], [8, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(batch.lengths, [4, 1])
  assert batch.tokens.dtype == batch.lengths.dtype == np.int32
  # Never wider than the limit; exactly a bucket stays.
  assert encode_prompts([problem("1+2=")], TOKENIZER, max_tokens=5, bucket=3).tokens.shape == (1, 5)
  assert encode_prompts(
      [problem("1+2=")], TOKENIZER, max_tokens=20, bucket=4).tokens.shape == (1, 4)


def test_prompts_that_do_not_fit_are_named():
  good = problem("1+2=")
  message = "problem 'long one' has 12 tokens, the limit max_prompt_tokens is 4"
  with pytest.raises(ValueError, match=message):
    encode_prompts([good, problem("1+1+1+1+1+1=", id="long one")], TOKENIZER, max_tokens=4)
  with pytest.raises(ValueError, match="Problem 'void' has an empty prompt"):
    encode_prompts([good, problem("", id="void")], TOKENIZER, max_tokens=4)


@pytest.mark.parametrize("sampling, message", [
    (Sampling(max_tokens=45),
     "max_prompt_tokens=20 and sampling.max_tokens=45 are more than the policy's context of 64"),
    (Sampling(max_tokens=3, stop_strings=("=", "1+1=")),
     "stop string '1\\+1=' has 4 tokens, sampling.max_tokens is 3"),
    # The policy cannot write it.
    (Sampling(max_tokens=3, stop_strings=("?",)), "Character '\\?'")])
def test_completions_and_stop_strings_that_never_fit_are_refused(sampling, message):
  model = small(14, width=32, num_layers=1, max_positions=64)
  good = Sampling(max_tokens=44, stop_strings=("1+1=",))
  check_sampling(good, model, TOKENIZER, max_prompt_tokens=20)
  with pytest.raises(ValueError, match=message):
    check_sampling(sampling, model, TOKENIZER, max_prompt_tokens=20)


def test_samples_are_completions_as_text():
  problems = [problem("1+2=", metadata={"level": 1}), problem("4+4=")]
  # 3 and EOS; EOS; "8 +4"; "8+" and two spaces.
  rows = [[4, 0, 0, 0], [0, 0, 0, 0], [9, 13, 11, 5], [9, 11, 13, 13]]
  completions = Completions(
      tokens=np.array(rows), lengths=np.array([2, 1, 4, 3]),
      truncated=np.array([False, False, True, False]),
      behaviour_logprobs=np.zeros((4, 4)), logprobs=np.zeros((4, 4)))
  samples = make_samples(problems, completions, TOKENIZER, stop_strings=("4", "+"), step=7)
  # Before the first stop string, whichever it is.
  assert [s.completion for s in samples] == ["3", "", "8 ", "8"]
  assert [s.completion_tokens for s in samples] == [(4, 0), (0,), (9, 13, 11, 5), (9, 11, 13)]
  assert [s.prompt for s in samples] == ["1+2="] * 2 + ["4+4="] * 2
  assert [s.group for s in samples] == [0, 0, 1, 1] and {s.step for s in samples} == {7}
  assert [s.truncated for s in samples] == [False, False, True, False]
  assert samples[0].metadata == {"level": 1} and samples[0].reference == "3"
  assert make_samples(
      problems, completions, TOKENIZER, stop_strings=("4", "+"), step=7, rows=[3, 0]) == [
      samples[3], samples[0]]
  assert make_samples(problems, completions, TOKENIZER)[2].completion == "8 +4"
