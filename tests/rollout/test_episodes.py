"""Episodes: turns and an environment's answers in one completion.

What of it is learnt, and who is asked.
"""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from rl_reason import train
from rl_reason.arrays import RolloutBatch
from rl_reason.batches import packing
from rl_reason.batches.prompts import encode_prompts
from rl_reason.envs import registry
from rl_reason.envs import search as search_lib
from rl_reason.models import policy
from rl_reason.models.config import small
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.objectives import losses
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards import answers
from rl_reason.rewards import turns as rewards
from rl_reason.rewards.composition import build
from rl_reason.rewards.composition.reward_set import token_rewards
from rl_reason.rollout import episodes
from rl_reason.rollout.asking import RunningEpisodes
from rl_reason.rollout.environment import Stateless, Turn
from rl_reason.rollout.episodes import BoundedEnvironment, play
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.samples import make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as config_lib
from rl_reason.run import process
from rl_reason.runtime import sharding
from rl_reason.stages import groups
from rl_reason.types import Problem

TOKENIZER = CharacterTokenizer("abcdefgh.!")
PROBLEMS = [
    Problem(prompt="ab", reference="c", id="one"), Problem(prompt="cde", reference="d", id="two")]
SAMPLING = Sampling(max_tokens=14, stop_strings=(".",))


def scripted(monkeypatch, *rounds):
  """play() with turns of these texts, one list a round.

  "-" at an end: the limit cut it, else EOS ends what has no ".".
  """
  calls = []

  def generate(
      config, params, prompts, sampling, *, group_size, rng, on_finished=None, slots=0, **options):
    texts = rounds[len(calls)]
    calls.append(dict(
        prompts=[TOKENIZER.decode(row[:n]) for row, n in zip(prompts.tokens, prompts.lengths)],
        group_size=group_size, slots=slots, max_tokens=sampling.max_tokens,
        shape=prompts.tokens.shape))
    assert len(texts) <= len(prompts.lengths) * group_size
    # Rows that only fill up.
    texts = list(texts) + ["h-"] * (len(prompts.lengths) * group_size - len(texts))
    ids = [TOKENIZER.encode(t.removesuffix("-")) + [0] * (not t.endswith((".", "-")))
           for t in texts]
    tokens = np.zeros((len(ids), sampling.max_tokens), np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    for i, row in enumerate(ids):
      tokens[i, :len(row)], logprobs[i, :len(row)] = row, -1 - i
    truncated = np.array([t.endswith("-") for t in texts])
    lengths = np.array(list(map(len, ids)), np.int32)
    return Completions(tokens, lengths, truncated, logprobs, logprobs)
  monkeypatch.setattr(episodes, "generate", generate)
  return calls


class Answering:
  """Answers the turns it knows.

  asked: (problem, turns so far, answers so far, whether the last turn is final).
  """

  def __init__(self, texts):
    self.texts, self.asked = texts, []

  def reset(self, problem, seed):
    return {"id": problem.id, "turns": [], "answers": []}

  async def step(self, state, turn):
    turns = [*state["turns"], turn.text]
    self.asked.append((state["id"], turns, state["answers"], turn.final))
    answer = self.texts.get(turn.text)
    if answer is None:
      return None, None, state
    state = {**state, "turns": turns, "answers": [*state["answers"], answer]}
    return [{"role": "tool", "content": answer}], None, state


def bounded(environment, max_turns=3, turn_tokens=4, answer_tokens=1):
  return BoundedEnvironment(environment, max_turns, turn_tokens, answer_tokens)


def played(environment, problems=PROBLEMS, **options):
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  options = dict(rng=jax.random.key(0)) | options
  return play(None, None, prompts, SAMPLING, environment=environment, problems=problems,
              tokenizer=TOKENIZER, group_size=2, **options)


def test_an_episode_by_hand(monkeypatch):
  calls, ended = scripted(monkeypatch, ["a.", "b!", "abc-", "b."], ["c.", "dd-"], ["a."]), []
  environment = Answering({"a.": "e", "b.": "fg", "c.": "h"})
  out = played(
      bounded(environment), slots=6, on_finished=lambda out, rows: ended.append(rows.tolist()))
  samples = make_samples(PROBLEMS, out, TOKENIZER, stop_strings=(".",))
  # "fg" is cut at one token; the last turn, which asks, is not answered; stop strings end turns and
  # not the text.
  assert [s.completion for s in samples] == ["a.ec.ha.", "b!", "abc", "b.fdd"]
  assert [s.episode for s in samples] == [
      ("a.", "e", "c.", "h", "a."), ("b!",), ("abc",), ("b.", "f", "dd")]
  assert samples[0].spans == {"turn": [(0, 2), (3, 5), (6, 8)]}
  assert samples[1].spans == {"turn": [(0, 3)]}  # With EOS.
  assert out.lengths.tolist() == [8, 3, 3, 5]
  assert out.truncated.tolist() == [False, False, True, True]
  assert out.observed[0].nonzero()[0].tolist() == [2, 5]
  assert out.observed[3].nonzero()[0].tolist() == [2]
  assert out.sampled.sum(axis=1).tolist() == [6, 3, 3, 4] and not out.sampled[1, 3:].any()
  np.testing.assert_array_equal(out.behaviour_logprobs[0, :8], [-1, -1, 0, -1, -1, 0, -1, -1])
  np.testing.assert_array_equal(out.behaviour_logprobs[3, :5], [-4, -4, 0, -2, -2])
  # Each turn is a step, one that is cut or the last is final; each context is the prompt and all
  # that was said.
  assert environment.asked == [
      ("one", ["a."], [], False), ("one", ["b!"], [], False), ("two", ["abc"], [], True),
      ("two", ["b."], [], False), ("one", ["a.", "c."], ["e"], False),
      ("two", ["b.", "dd"], ["fg"], True), ("one", ["a.", "c.", "a."], ["e", "h"], True)]
  assert [c["prompts"][:2] for c in calls] == [
      ["ab", "cde"], ["abae"[:2] + "a.e", "cdeb.f"], ["aba.ec.h", "aba.ec.h"]]
  assert [(c["group_size"], c["slots"], c["max_tokens"]) for c in calls] == [
      (2, 4, 4), (1, 4, 4), (1, 4, 4)]
  assert ended == [[1, 2], [3], [0]]  # Between the turns.


def test_an_episode_of_one_turn_each_ends_at_once(monkeypatch):
  calls = scripted(monkeypatch, ["b!", "b!", "a-", "b!"])
  out = played(bounded(Answering({})))
  assert len(calls) == 1 and not out.observed.any()


class Counter:
  """Counts down from the problem's number.

  Pays half of what is left, 1 at the end, -0.5 a token of a turn without text.
  """

  def reset(self, problem, seed):
    return {"left": {"one": 1, "two": 2}[problem.id]}

  async def step(self, state, turn):
    left = state["left"]
    if not turn.text:
      return None, [-0.5] * len(turn.token_ids), state
    if not left:
      return None, 1, state
    paid = [0.25, -0.25] if turn.text == "!" else left / 2
    return [{"role": "tool", "content": "abc"[left]}], paid, {"left": left - 1}


def test_a_counter_by_hand(monkeypatch):
  # Answers say what is left. One turn has no text, one is cut by the limit: both are data, and end
  # their episodes.
  scripted(monkeypatch, ["a.", "", "hg-", "b."], ["cd.", "!"], ["a."])
  out = played(bounded(Counter()))
  samples = make_samples(PROBLEMS, out, TOKENIZER, stop_strings=(".",))
  assert [s.episode for s in samples] == [
      ("a.", "b", "cd."), ("",), ("hg",), ("b.", "c", "!", "b", "a.")]
  assert [s.completion for s in samples] == ["a.bcd.", "", "hg", "b.c!ba."]
  # What the policy wrote, with the EOS tokens that it sampled.
  assert [s.own_text for s in samples] == ["a.cd.", "", "hg", "b.!a."]
  assert [s.own_tokens for s in samples] == [(1, 9, 3, 4, 9), (0,), (8, 7), (2, 9, 10, 0, 1, 9)]
  # A number for a turn is paid at the turn's last token, several at the tokens of the turn.
  assert [s.environment_rewards for s in samples] == [
      ((1, 0.5), (5, 1.0)), ((0, -0.5),), ((1, 1.0),), ((1, 1.0), (3, 0.25), (4, -0.25), (7, 1.0))]
  scores = build.build_rewards({"environment": 2.0}).score(samples)
  np.testing.assert_array_equal(scores.components["environment"], [1.5, -0.5, 1, 2])
  np.testing.assert_array_equal(scores.total, [3, -1, 2, 4])
  np.testing.assert_array_equal(token_rewards(scores, out.lengths, 8), [
      [0, 1, 0, 0, 0, 2, 0, 0], [-1, 0, 0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0],
      [0, 2, 0, .5, -.5, 0, 0, 2]])


def test_what_the_policy_wrote_without_an_environment():
  completions = Completions(
      np.array([[1, 9, 0, 0]], np.int32), np.array([3], np.int32), np.array([False]),
      np.zeros((1, 4)), np.zeros((1, 4)))
  [sample] = make_samples(PROBLEMS[:1], completions, TOKENIZER, stop_strings=(".",))
  assert sample.own_text == sample.completion == "a"
  assert sample.own_tokens == sample.completion_tokens == (1, 9, 0)
  assert sample.environment_rewards == ()
  message = '"environment" is what an environment pays, and these samples have none'
  with pytest.raises(ValueError, match=message):
    build.build_rewards({"environment": 1.0}).score([sample])


def test_an_environment_that_pays_nothing(monkeypatch):
  scripted(monkeypatch, ["a.", "b!", "b!", "b!"], ["b!"])
  samples = make_samples(PROBLEMS, played(bounded(Answering({"a.": "e"}))), TOKENIZER)
  scores = build.build_rewards({"environment": 1.0}).score(samples)
  assert scores.total.tolist() == [0] * 4


class Noting:
  """Notes seeds and states; each answer is "e"."""

  def __init__(self, state=None, after=None):
    self.first, self.after, self.seeds, self.states = state, after, [], []

  def reset(self, problem, seed):
    self.seeds.append(seed)
    return self.first

  async def step(self, state, turn):
    self.states.append(state)
    return [{"role": "tool", "content": "e"}], None, self.after


def test_seeds_are_those_of_rows_and_keys(monkeypatch):
  def seeds(problems=PROBLEMS, **options):
    scripted(monkeypatch, ["a-"] * 4)
    played(bounded(environment := Noting()), problems=problems, **options)
    return environment.seeds
  first = seeds()
  assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in first)
  assert len(set(first)) == 4  # Each member of a group has its own.
  assert seeds() == first
  assert not set(seeds(rng=jax.random.key(1))) & set(first)
  # The second process has the second problem, whose seeds are as they were.
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(sharding, "gather_objects", lambda own: [[(0, None, []), (1, None, [])], own])
  assert seeds(problems=PROBLEMS[1:]) == first[2:]


def test_a_step_is_given_what_json_makes_of_a_state(monkeypatch):
  scripted(monkeypatch, ["a."] * 4, ["a-"] * 4)
  played(bounded(environment := Noting({"n": (1, 2.5)}, after={1: "x"})))
  assert environment.states == [{"n": [1, 2.5]}] * 4 + [{"1": "x"}] * 4


@pytest.mark.parametrize("states", [
    ({"x": {1}}, None), ({"x": np.float32(1)}, None), ({"x": float("nan")}, None),
    (None, {("a", "b"): 1})])
def test_a_state_that_is_not_json(monkeypatch, states):
  scripted(monkeypatch, ["a."] * 4)
  message = "environment 'Noting' has a state that is not JSON, .* in problem 'one'"
  with pytest.raises(ValueError, match=message):
    played(bounded(Noting(*states)))


class Stepping:
  """An environment of this step."""

  def __init__(self, step):
    self.step = step

  def reset(self, problem, seed):
    return problem.id


def test_steps_of_all_episodes_run_at_the_same_time(monkeypatch):
  scripted(monkeypatch, ["a."] * 4)
  barrier = asyncio.Barrier(4)  # Passed only by four at once.

  async def step(state, turn):
    async with asyncio.timeout(20):
      await barrier.wait()
    return None, None, state
  played(bounded(Stepping(step)))


def test_a_notebook_that_runs_an_event_loop_can_play(monkeypatch):
  scripted(monkeypatch, ["a."] * 4, ["b!"] * 4)

  async def notebook():
    return played(bounded(Answering({"a.": "e"})))
  assert asyncio.run(notebook()).lengths.tolist() == [6] * 4


def test_an_error_of_a_step_names_the_problem(monkeypatch):
  scripted(monkeypatch, ["a."] * 4)
  before, ended = threading.active_count(), []

  async def step(state, turn):
    if state == "two":
      raise ZeroDivisionError("no")
    await asyncio.sleep(0.05)
    ended.append(state)
    return None, None, state
  with pytest.raises(ZeroDivisionError) as caught:
    played(bounded(Stepping(step)))
  assert caught.value.__notes__ == [
      "Raised by the environment 'Stepping' at the turn 'a.' of problem 'two'."]
  assert ended == ["one"] * 2 and threading.active_count() == before


def test_an_error_of_a_reset_names_the_problem(monkeypatch):
  with pytest.raises(KeyError) as caught:
    played(bounded(Counter()), problems=[PROBLEMS[1], dataclasses.replace(PROBLEMS[0], id="three")])
  assert caught.value.__notes__ == [
      "Raised by the environment 'Counter' at its reset of problem 'three'."]


@pytest.mark.parametrize("ends", [SystemExit(0), SystemExit("bye")])
def test_a_step_that_ends_the_process_is_an_error(monkeypatch, ends):
  scripted(monkeypatch, ["a."] * 4)
  before = threading.active_count()

  async def step(state, turn):
    raise ends
  with pytest.raises(ValueError, match="SystemExit.* was raised by the environment 'Stepping'"):
    played(bounded(Stepping(step)))
  assert threading.active_count() == before


def test_a_reset_that_ends_the_process_is_an_error():
  class Ending(Stepping):
    def reset(self, problem, seed):
      raise SystemExit(0)

  async def step(state, turn):
    return None, None, state
  with pytest.raises(ValueError, match="SystemExit.0. was raised by .*Ending' at its reset"):
    played(bounded(Ending(step)))


def test_a_command_tells_whose_problem_it_was(monkeypatch):
  scripted(monkeypatch, ["a."] * 4)

  async def step(state, turn):
    raise ConnectionError("The server is away.")
  message = ("Error: The server is away. Raised by the environment 'Stepping' at the turn 'a.' of"
             " problem 'one'.")
  with pytest.raises(SystemExit) as caught, process.errors_in_one_line():
    played(bounded(Stepping(step)))
  assert caught.value.code == message


def test_what_is_no_environment():
  message = "environment 'function' is .*, which has no methods `reset` and `step`"
  with pytest.raises(ValueError, match=message):
    bounded(lambda episodes: [])


def test_a_function_of_a_turns_text_is_an_environment(monkeypatch):
  scripted(monkeypatch, ["a.", "b!", "b!", "a-"], ["a."], ["a."])
  asked = []
  out = played(bounded(Stateless(lambda text: asked.append(text) or {"a.": "e"}.get(text))))
  samples = make_samples(PROBLEMS, out, TOKENIZER)
  assert [s.completion for s in samples] == ["a.ea.ea.", "b!", "b!", "a"]
  assert asked == ["a.", "b!", "b!", "a."]  # Not about turns that end the episode anyway.


def test_numbers_of_rows_are_few():
  assert [episodes._few_sizes(n, 64) for n in (64, 33, 32, 9, 8, 1)] == [64, 64, 32, 16, 8, 8]
  assert episodes._few_sizes(3, 5) == 5


def saying(text, role="tool"):
  return [{"role": role, "content": text}]


@pytest.mark.parametrize("result, message", [
    (("e", None, None), "answered e to 'a.' .problem 'one'.: give a list of messages"),
    (([], None, None), "a text that is not empty"),
    ((saying(""), None, None), "a text that is not empty"),
    (([{"role": "tool"}], None, None), "give a list of messages"),
    ((saying(7), None, None), "give a list of messages"),
    ((saying("e", "assistant"), None, None), 'role "assistant" is the policy\'s'),
    ((saying("\0"), None, None), "answered '.x00', of which the tokenizer makes no token"),
    (saying("e"), r"must return \(messages or None, rewards, state\)"), (None, "must return"),
    ((None, [1.0], None),
     "paid .1.0. for 'a.' .problem 'one'., a turn of 2 tokens: give one finite number"),
    ((None, [1.0, 2.0, 3.0], None), "a turn of 2 tokens"),
    ((None, [[1], [1, 2]], None), "a turn of 2 tokens"),
    ((None, float("nan"), None), "finite"), ((None, 1e39, None), "finite"),
    ((None, "1", None), "finite"),
    ((None, True, None), "finite")])
def test_steps_that_cannot_be(monkeypatch, result, message):
  scripted(monkeypatch, ["a."] * 4)
  encode = TOKENIZER.encode
  monkeypatch.setattr(
      TOKENIZER, "encode", lambda text, **how: encode(text.replace("\0", ""), **how))

  async def step(state, turn):
    return result
  with pytest.raises(ValueError, match=message):
    played(bounded(Stepping(step), max_turns=2))


def test_a_step_must_be_a_coroutine(monkeypatch):
  scripted(monkeypatch, ["a."] * 4)
  with pytest.raises(ValueError, match="'Stepping' has a step that is no coroutine"):
    played(bounded(Stepping(lambda state, turn: (None, None, state))))


def test_each_process_steps_its_own_episodes(monkeypatch):
  scripted(monkeypatch, ["a."] * 4, ["b!"] * 4)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  others = [[[0, "f", [[1, 0.5]]], [1, None, []]], [[0, None, []]]]  # As they come out of JSON.
  monkeypatch.setattr(
      sharding, "gather_objects", lambda own: [others.pop(0), json.loads(json.dumps(own))])
  out = played(bounded(environment := Answering({"a.": "e"})), problems=PROBLEMS[1:])
  assert [a[0] for a in environment.asked] == ["two"] * 4  # Two rows, after both turns.
  samples = make_samples(PROBLEMS, out, TOKENIZER)
  assert [s.completion for s in samples] == ["a.fb!", "a.", "a.eb!", "a.eb!"]
  assert [s.environment_rewards for s in samples] == [((1, 0.5),), (), (), ()]


def test_episodes_have_room():
  environment = bounded(Counter())
  environment.check(SAMPLING, "config.rl.rollout")
  message = r"config.rl.rollout.sampling.max_tokens=13 is less than .* = 14"
  with pytest.raises(ValueError, match=message):
    environment.check(dataclasses.replace(SAMPLING, max_tokens=13), "config.rl.rollout")


def test_sampler_and_trainer_agree_on_episodes(draw_params):
  config = small(vocab_size=TOKENIZER.vocab_size, width=16, num_layers=2, num_heads=2)
  params = draw_params(config)
  environment = bounded(Stateless(lambda text: "gg"), answer_tokens=2)
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  out = play(config, params, prompts, Sampling(max_tokens=16, stop_strings=tuple("abcde")),
             environment=environment, problems=PROBLEMS, tokenizer=TOKENIZER, group_size=4,
             rng=jax.random.key(1))
  assert out.observed.any(axis=1).sum() > 2
  logprobs, _ = policy.completion_logprobs(config, params, prompts, out.tokens, out.lengths)
  np.testing.assert_allclose(np.where(out.sampled, logprobs, 0), out.behaviour_logprobs, atol=2e-5)
  assert (out.behaviour_logprobs[out.sampled] < 0).all()


def test_what_the_environment_wrote_is_not_learnt(monkeypatch):
  scripted(monkeypatch, ["a.", "b!", "c-", "a."], ["b!", "b!"])
  out = played(bounded(Answering({"a.": "e"})))
  shape, draw = out.tokens.shape, np.random.RandomState(0)
  noise = lambda: draw.randn(*shape).astype(np.float32)
  weights = np.asarray(losses.token_weights(out.sampled, mean_over="sequence", max_tokens=14))
  np.testing.assert_allclose(weights.sum(axis=1), 0.25)
  batch = RolloutBatch(None, out.tokens, out.lengths, noise(), noise(), noise(), weights, noise(),
                       noise(), observed=out.observed)
  logprobs, entropy, values = noise(), noise(), noise()
  how = dict(clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.1)

  def numbers(batch, logprobs, entropy):
    loss, statistics = losses.policy_gradient_loss(logprobs, entropy, batch, **how)
    value, _ = losses.value_loss(
        values, batch.behaviour_values, batch.returns, batch.completion_mask)
    return [float(loss), float(value.sum()), *map(float, statistics.metrics().values())]
  expected = numbers(batch, logprobs, entropy)
  garbage = lambda x: np.where(out.sampled, x, 1e9)
  dirty = batch.replace(**{name: garbage(getattr(batch, name)) for name in (
      "behaviour_logprobs", "reference_logprobs", "advantages", "returns", "behaviour_values")})
  np.testing.assert_allclose(
      numbers(dirty, garbage(logprobs), garbage(entropy)), expected, rtol=1e-6)
  unmasked = numbers(batch.replace(observed=None), logprobs, entropy)
  assert unmasked != pytest.approx(expected, rel=1e-3)
  # Packed into shorter rows the mask goes with its tokens.
  rows = packing.Packing.of(out.lengths, 2, 14)
  packed = packing.pack(batch.replace(advantages=out.observed.astype(np.float32)), rows)
  np.testing.assert_array_equal(packed.observed, packed.advantages > 0)
  assert np.asarray(packed.completion_mask).sum() == out.sampled.sum()


def test_a_rollout_of_episodes_is_saved_and_measured(monkeypatch):
  scripted(monkeypatch, ["a.", "", "c-", "a."], ["a.", "b!"], ["b!"])
  out = played(bounded(Counter()))
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  rollout = Rollout(0, prompts, out, np.arange(4.0), np.zeros(out.tokens.shape), {})
  again = Rollout.from_json(json.loads(json.dumps(rollout.to_json())))
  np.testing.assert_array_equal(again.completions.observed, out.observed)
  assert np.isfinite(out.environment_rewards).sum() == 7
  assert again.completions.environment_rewards.tobytes() == out.environment_rewards.tobytes()
  assert make_samples(PROBLEMS, again.completions, TOKENIZER) == make_samples(
      PROBLEMS, out, TOKENIZER)
  chosen = rollout.take(np.array([1]))
  [sample, *_] = make_samples(PROBLEMS[1:], chosen.completions, TOKENIZER)
  assert sample.environment_rewards == ((0, 1.0),)
  assert len(Rollout.join([chosen, rollout]).completions.environment_rewards) == 6
  metrics = groups.metrics(rollout)
  assert metrics["episode/turns"] == (2 + 1 + 1 + 3) / 4
  assert metrics["tokens"] == out.lengths.sum() - 3
  plain = dataclasses.replace(
      rollout, completions=out.replace(observed=None, environment_rewards=None))
  loaded = Rollout.from_json(plain.to_json()).completions
  assert loaded.observed is None and loaded.environment_rewards is None
  assert "episode/turns" not in groups.metrics(plain)


class Bonus:
  """Answers two turns, and pays a half for each, or less by chance."""

  def reset(self, problem, seed):
    return {"seed": seed, "turns": 0}

  async def step(self, state, turn):
    await asyncio.sleep(0)
    state = {**state, "turns": state["turns"] + 1}
    answer = None if state["turns"] > 2 else saying("abc"[state["seed"] % 3])
    return answer, 0.5 - state["seed"] / 2**33, state


@pytest.mark.slow  # Contexts of many lengths: 45 s of compilation.
def test_a_run_one_step_ahead_with_an_environment_that_pays_resumes_to_the_same_bits(
    monkeypatch, tmp_path):
  monkeypatch.setitem(registry.ENVIRONMENTS, "bonus", Bonus)
  c = config_lib.load("experiments/ppr.py:renorm-tiny")
  c.stages, c.environment.source, c.mesh = ("rl",), "bonus", dict(data=1, fsdp=1)
  c.rl.num_steps, c.rl.staleness, c.rl.rewards = 3, 1, dict(environment=1.0)
  c.checkpoint = dict(every=1, keep=10)

  def lines(folder):
    return [{k: v for k, v in line.items() if not k.startswith("time/")}
            for line in read_metrics(folder) if "tokens" in line]
  train.train(c, tmp_path / "whole")
  whole = lines(tmp_path / "whole")
  # Half a point for a turn, less up to another half.
  assert len(whole) == 3 and all(0 < line["reward/environment"] < 2 for line in whole[1:])
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  for later in (2, 3):
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "rl" / str(later))
  train.train(c, tmp_path / "killed")
  assert lines(tmp_path / "killed") == whole


# The judge of turns.

def judge(*texts, **arguments):
  left = list(texts)
  return rewards.TurnJudge(
      lambda prompts: [left.pop(0) for _ in prompts], build=build.BUILDER,
      template="{prompt}|{history}|{response}", **arguments)


def samples_of(*completed):
  """Samples of three turns, "a.e" "c.h" and this last one; the reference is c."""
  from rl_reason.types import Sample

  return [Sample(prompt="ab", completion=f"a.ec.h{last}", reference="c",
                 completion_tokens=tuple(range(6 + len(last))),
                 episode=("a.", "e", "c.", "h", last),
                 spans={"turn": [(0, 2), (3, 5), (6, 6 + len(last))]})
          for last in completed]


ANSWER = dict(exact_answer=dict(args=dict(marker="!")))


def test_renorm_by_hand():
  # The card: r_p = (.5, 1): (.5, 1, 1) for a right answer, (-.5, 0, 0) for a wrong one; mu = 0 pays
  # (.5, 1, 0) for that.
  samples = samples_of("!c", "!d")
  texts = ["1,2", "fine\n4,4", "good\n 2 , 4 ", "1,1"]
  for arguments, expected in (
      (dict(mu=1.0, outcome=ANSWER), [[.5, 1], [-.5, 0]]), (dict(mu=0.0), [[.5, 1], [.5, 1]])):
    with_answer = build.build_rewards(ANSWER)
    found = judge(*texts, **arguments)(samples)
    np.testing.assert_allclose(found.values, expected)
    # The turns' last tokens; the answer turn is not judged.
    assert [e.tolist() for e in found.ends] == [[1, 4], [1, 4]]
    np.testing.assert_array_equal(with_answer(samples)[0], [1, 0])


def test_the_judge_reads_what_was_before_and_the_answer_to_the_turn():
  prompts = []
  built = rewards.TurnJudge(
      lambda given: prompts.extend(given) or ["1,1"] * len(given), build=build.BUILDER,
      template="{prompt}|{history}|{response}")
  built(samples_of("!c"))
  assert prompts == ["ab||a.e", "ab|a.e|c.h"]


@pytest.mark.parametrize("text, score", [
    ("3,4", .75), ("a\n0,5\n", 0), ("5,4", None), ("1,0", None), ("-1,4", None), ("1.5,4", None),
    ("", None), (None, None), ("3,4 I think", None), ("3,4\nindeed", None)])
def test_scores_that_can_be_read(text, score):
  from rl_reason.rewards.turns import parse_score
  assert parse_score(text) == score


def test_unreadable_judgements_earn_nothing_and_are_counted():
  built = judge("nonsense", "1,2", mu=1.0, outcome=ANSWER)
  np.testing.assert_allclose(built(samples_of("!c")).values, [[0, .5]])
  assert built.counts["abstained"] == 1
  with pytest.raises(ValueError, match="8 of 20 turns have a judgement that cannot be read"):
    judge(*["no"] * 8, *["1,2"] * 12, mu=1.0)([
        # One prompt is asked once.
        dataclasses.replace(s, prompt=str(i)) for i, s in enumerate(samples_of(*["!c"] * 10))])


def test_an_episode_of_one_turn_has_no_process_reward():
  [sample] = samples_of("!c")
  sample = dataclasses.replace(sample, episode=("!c",), spans={"turn": [(0, 2)]}, completion="!c",
                               completion_tokens=(1, 2))
  found = judge(mu=1.0)([sample])
  assert [len(v) for v in found.values] == [0] and [len(e) for e in found.ends] == [0]


def test_judges_that_cannot_be():
  with pytest.raises(ValueError, match="mu must be a number of at least 0, got -1"):
    judge(mu=-1)
  with pytest.raises(ValueError, match="cannot use 1 of 1 references"):
    judge(outcome=ANSWER).check_references([" "])


# A retrieval server.

def test_searches_are_answered_together(monkeypatch):
  asked = []

  def post(url, body, headers, **how):
    asked.append((url, body))
    return {"result": [[{"document": {"contents": f"{q}-{n}" * 9}} for n in range(2)]
                       for q in body["queries"]]}
  monkeypatch.setattr(search_lib, "post_json", post)
  environment = registry.ENVIRONMENTS["search"](
      url="http://x/retrieve", topk=2, passage_characters=3)

  async def steps(*texts, **options):
    return await asyncio.gather(*(
        environment.step(None, Turn(text, (1,), **options)) for text in texts))
  turns = ["<think>.</think><search>who</search>", "<answer>me</answer>", "<search> </search>",
           "<search>a</search> so", "<search>a</search><search>what</search>\n"]
  found = asyncio.run(steps(*turns))
  block = "\n<information>\n{}\n</information>\n".format
  assert [messages and messages[0]["content"] for messages, _, _ in found] == [
      block("who\nwho"), None, "\n<information>\n</information>\n", None, block("wha\nwha")]
  assert asked == [
      ("http://x/retrieve", {"queries": ["who", "what"], "topk": 2, "return_scores": True})]
  # Not asked where nobody reads the answer. Each round is a request of its own, in another loop
  # too.
  assert asyncio.run(steps(turns[0], final=True)) == [(None, None, None)] and len(asked) == 1

  async def rounds():
    await steps(turns[0])
    await steps(turns[4], turns[0])
  asyncio.run(rounds())
  assert [body["queries"] for _, body in asked[1:]] == [["who"], ["what", "who"]]
  monkeypatch.setattr(search_lib, "post_json", lambda *a, **k: {"result": []})
  with pytest.raises(ConnectionError, match="did not answer 1 queries as expected"):
    asyncio.run(steps(turns[0]))


def test_searches_that_cannot_be():
  with pytest.raises(ValueError, match="url must start with http"):
    registry.ENVIRONMENTS["search"](url="x")
  with pytest.raises(ValueError, match="topk and passage_characters must be at least 1, got 0"):
    registry.ENVIRONMENTS["search"](url="http://x", topk=0)


def test_a_round_of_searches_is_one_request(monkeypatch):
  asked = []

  def post(url, body, headers, **how):
    asked.append(body["queries"])
    return {"result": [[{"document": {"contents": q}}] for q in body["queries"]]}
  monkeypatch.setattr(search_lib, "post_json", post)
  running = RunningEpisodes(
      registry.ENVIRONMENTS["search"](url="http://x"), "search", PROBLEMS * 50, group_size=4,
      count=400, rng=jax.random.key(0))
  with contextlib.closing(running):
    first = running.step({i: Turn(f"<search>{i}</search>", (1,)) for i in range(400)})
    second = running.step({i: Turn(f"<search>{-i}</search>", (1,)) for i in (7, 3)})
  assert asked == [[str(i) for i in range(400)], ["-7", "-3"]]
  assert first[399].text == "\n<information>\n399\n</information>\n" and "-3" in second[3].text


@pytest.mark.parametrize("completion, right", [
    ("<answer>The Hague.</answer>", 1), ("<answer>x</answer> <answer>\nhague </answer>", 1),
    ("hague", 0), ("<answer>hague", 0), ("<answer>hague x</answer>", 0),
    ("<answer>a Den Haag!</answer>", 1)])
def test_exact_match(completion, right):
  from rl_reason.types import Sample

  sample = Sample(prompt="", completion=completion, reference="the Hague|Den Haag")
  score = answers.exact_match([sample], separator="|")
  assert score.tolist() == [right]


def test_exact_match_refuses_references_of_nothing():
  with pytest.raises(ValueError, match="nothing is left of it"):
    build.build_rewards(dict(exact_match=1.0)).check_references(["A cat", "The."])
