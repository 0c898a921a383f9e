"""Episodes: turns and an environment's answers in one completion, what of it is learnt, and who is asked."""

import dataclasses

import jax
import numpy as np
import pytest

from rl_reason.arrays import RolloutBatch
from rl_reason.batches import packing
from rl_reason.batches.prompts import encode_prompts
from rl_reason.envs import registry
from rl_reason.envs import search as search_lib
from rl_reason.models import policy
from rl_reason.models.config import small
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.objectives import losses
from rl_reason.rewards import answers
from rl_reason.rewards import turns as rewards
from rl_reason.rewards.composition import build
from rl_reason.rollout import episodes
from rl_reason.rollout.episodes import Environment, play
from rl_reason.rollout.generate import Completions
from rl_reason.rollout.record import Rollout
from rl_reason.rollout.samples import make_samples
from rl_reason.rollout.sampling import Sampling
from rl_reason.runtime import sharding
from rl_reason.stages import groups
from rl_reason.types import Problem

TOKENIZER = CharacterTokenizer("abcdefgh.!")
PROBLEMS = [Problem(prompt="ab", reference="c", id="one"), Problem(prompt="cde", reference="d", id="two")]
SAMPLING = Sampling(max_tokens=14, stop_strings=(".",))


def scripted(monkeypatch, *rounds):
  """play() with turns of these texts, one list a round; "-" at an end: the limit cut it, else EOS ends what has no "."."""
  calls = []

  def generate(config, params, prompts, sampling, *, group_size, rng, on_finished=None, slots=0, **options):
    texts = rounds[len(calls)]
    calls.append(dict(prompts=[TOKENIZER.decode(row[:n]) for row, n in zip(prompts.tokens, prompts.lengths)],
                      group_size=group_size, slots=slots, max_tokens=sampling.max_tokens, shape=prompts.tokens.shape))
    assert len(texts) <= len(prompts.lengths) * group_size
    texts = list(texts) + ["h-"] * (len(prompts.lengths) * group_size - len(texts))  # Rows that only fill up.
    ids = [TOKENIZER.encode(t.removesuffix("-")) + [0] * (t[-1] not in ".-") for t in texts]
    tokens = np.zeros((len(ids), sampling.max_tokens), np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    for i, row in enumerate(ids):
      tokens[i, :len(row)], logprobs[i, :len(row)] = row, -1 - i
    truncated = np.array([t[-1] == "-" for t in texts])
    return Completions(tokens, np.array(list(map(len, ids)), np.int32), truncated, logprobs, logprobs)
  monkeypatch.setattr(episodes, "generate", generate)
  return calls


def answering(texts, asked):
  """An environment that answers the turns it knows."""
  def answer(given):
    asked.extend((e.problem.id, e.turns, e.answers) for e in given)
    return [texts.get(e.turns[-1]) for e in given]
  return Environment(answer, max_turns=3, turn_tokens=4, answer_tokens=1)


def played(environment, problems=PROBLEMS, **options):
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  return play(None, None, prompts, SAMPLING, environment=environment, problems=problems, tokenizer=TOKENIZER, group_size=2,
              rng=jax.random.key(0), **options)


def test_an_episode_by_hand(monkeypatch):
  calls, asked, ended = scripted(monkeypatch, ["a.", "b!", "abc-", "b."], ["c.", "dd-"], ["a."]), [], []
  out = played(answering({"a.": "e", "b.": "fg", "c.": "h"}, asked), slots=6,
               on_finished=lambda out, rows: ended.append(rows.tolist()))
  samples = make_samples(PROBLEMS, out, TOKENIZER, stop_strings=(".",))
  # "fg" is cut at one token; the last turn, which asks, is not answered; stop strings end turns and not the text.
  assert [s.completion for s in samples] == ["a.ec.ha.", "b!", "abc", "b.fdd"]
  assert [s.episode for s in samples] == [("a.", "e", "c.", "h", "a."), ("b!",), ("abc",), ("b.", "f", "dd")]
  assert samples[0].spans == {"turn": [(0, 2), (3, 5), (6, 8)]} and samples[1].spans == {"turn": [(0, 3)]}  # With EOS.
  assert out.lengths.tolist() == [8, 3, 3, 5] and out.truncated.tolist() == [False, False, True, True]
  assert out.observed[0].nonzero()[0].tolist() == [2, 5] and out.observed[3].nonzero()[0].tolist() == [2]
  assert out.sampled.sum(axis=1).tolist() == [6, 3, 3, 4] and not out.sampled[1, 3:].any()
  np.testing.assert_array_equal(out.behaviour_logprobs[0, :8], [-1, -1, 0, -1, -1, 0, -1, -1])
  np.testing.assert_array_equal(out.behaviour_logprobs[3, :5], [-4, -4, 0, -2, -2])
  # A cut turn is not answered; each context is the prompt and all that was said, the group's prompt first.
  assert asked == [("one", ("a.",), ()), ("one", ("b!",), ()), ("two", ("b.",), ()), ("one", ("a.", "c."), ("e",))]
  assert [c["prompts"][:2] for c in calls] == [["ab", "cde"], ["abae"[:2] + "a.e", "cdeb.f"], ["aba.ec.h", "aba.ec.h"]]
  assert [(c["group_size"], c["slots"], c["max_tokens"]) for c in calls] == [(2, 4, 4), (1, 4, 4), (1, 4, 4)]
  assert ended == [[1, 2], [3], [0]]  # Between the turns.


def test_an_episode_of_one_turn_each_ends_at_once(monkeypatch):
  calls = scripted(monkeypatch, ["b!", "b!", "a-", "b!"])
  out = played(answering({}, []))
  assert len(calls) == 1 and not out.observed.any()


def test_numbers_of_rows_are_few():
  assert [episodes._few_sizes(n, 64) for n in (64, 33, 32, 9, 8, 1)] == [64, 64, 32, 16, 8, 8]
  assert episodes._few_sizes(3, 5) == 5


@pytest.mark.parametrize("answer, message", [
    (lambda given: [""] * len(given), "answered '' to 'a.'"), (lambda given: [7] * len(given), "answered 7 to 'a.'"),
    (lambda given: [], "gave 0 answers to 4 episodes")])
def test_answers_that_cannot_be(monkeypatch, answer, message):
  scripted(monkeypatch, ["a."] * 4)
  with pytest.raises(ValueError, match=message):
    played(Environment(answer, max_turns=2, turn_tokens=4, answer_tokens=4))


def test_each_process_asks_for_its_own_problems(monkeypatch):
  scripted(monkeypatch, ["a."] * 4, ["b!"] * 4)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  asked, others = [], [[(0, "f"), (1, None)], [(0, None)]]
  monkeypatch.setattr(sharding, "gather_objects", lambda own: [others.pop(0), own])
  out = played(answering({"a.": "e"}, asked), problems=PROBLEMS[1:])
  assert [a[0] for a in asked] == ["two"] * 4  # Two rows, after both turns.
  assert [s.completion for s in make_samples(PROBLEMS, out, TOKENIZER)] == ["a.fb!", "a.", "a.eb!", "a.eb!"]


def test_episodes_have_room():
  environment = Environment(None, max_turns=3, turn_tokens=4, answer_tokens=1)
  environment.check(SAMPLING, "config.rl")
  with pytest.raises(ValueError, match=r"config.rl.rollout.sampling.max_tokens=13 is less than .* = 14"):
    environment.check(dataclasses.replace(SAMPLING, max_tokens=13), "config.rl")


def test_sampler_and_trainer_agree_on_episodes(draw_params):
  config = small(vocab_size=TOKENIZER.vocab_size, width=16, num_layers=2, num_heads=2)
  params = draw_params(config)
  environment = Environment(lambda given: ["gg" if len(e.turns) < 3 else None for e in given], 3, 4, 2)
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  out = play(config, params, prompts, Sampling(max_tokens=16, stop_strings=tuple("abcde")), environment=environment,
             problems=PROBLEMS, tokenizer=TOKENIZER, group_size=4, rng=jax.random.key(1))
  assert out.observed.any(axis=1).sum() > 2
  logprobs, _ = policy.completion_logprobs(config, params, prompts, out.tokens, out.lengths)
  np.testing.assert_allclose(np.where(out.sampled, logprobs, 0), out.behaviour_logprobs, atol=2e-5)
  assert (out.behaviour_logprobs[out.sampled] < 0).all()


def test_what_the_environment_wrote_is_not_learnt(monkeypatch):
  scripted(monkeypatch, ["a.", "b!", "c-", "a."], ["b!", "b!"])
  out = played(answering({"a.": "e"}, []))
  shape, draw = out.tokens.shape, np.random.RandomState(0)
  noise = lambda: draw.randn(*shape).astype(np.float32)
  weights = np.asarray(losses.token_weights(out.sampled, mean_over="sequence", max_tokens=14))
  np.testing.assert_allclose(weights.sum(axis=1), 0.25)
  batch = RolloutBatch(None, out.tokens, out.lengths, noise(), noise(), noise(), weights, noise(), noise(),
                       observed=out.observed)
  logprobs, entropy, values = noise(), noise(), noise()
  how = dict(clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.1)

  def numbers(batch, logprobs, entropy):
    loss, statistics = losses.policy_gradient_loss(logprobs, entropy, batch, **how)
    value, _ = losses.value_loss(values, batch.behaviour_values, batch.returns, batch.completion_mask)
    return [float(loss), float(value.sum()), *map(float, statistics.metrics().values())]
  expected = numbers(batch, logprobs, entropy)
  garbage = lambda x: np.where(out.sampled, x, 1e9)
  dirty = batch.replace(**{name: garbage(getattr(batch, name)) for name in (
      "behaviour_logprobs", "reference_logprobs", "advantages", "returns", "behaviour_values")})
  np.testing.assert_allclose(numbers(dirty, garbage(logprobs), garbage(entropy)), expected, rtol=1e-6)
  assert numbers(batch.replace(observed=None), logprobs, entropy) != pytest.approx(expected, rel=1e-3)
  # Packed into shorter rows the mask goes with its tokens.
  rows = packing.Packing.of(out.lengths, 2, 14)
  packed = packing.pack(batch.replace(advantages=out.observed.astype(np.float32)), rows)
  np.testing.assert_array_equal(packed.observed, packed.advantages > 0)
  assert np.asarray(packed.completion_mask).sum() == out.sampled.sum()


def test_a_rollout_of_episodes_is_saved_and_measured(monkeypatch):
  scripted(monkeypatch, ["a.", "b!", "c-", "a."], ["a.", "b!"], ["b!"])
  out = played(answering({"a.": "e"}, []))
  prompts = encode_prompts(PROBLEMS, TOKENIZER, max_tokens=3)
  rollout = Rollout(0, prompts, out, np.arange(4.0), np.zeros(out.tokens.shape), {})
  again = Rollout.from_json(rollout.to_json())
  np.testing.assert_array_equal(again.completions.observed, out.observed)
  metrics = groups.metrics(rollout)
  assert metrics["episode/turns"] == (3 + 1 + 1 + 2) / 4 and metrics["tokens"] == out.lengths.sum() - 3
  plain = dataclasses.replace(rollout, completions=out.replace(observed=None))
  assert Rollout.from_json(plain.to_json()).completions.observed is None and "episode/turns" not in groups.metrics(plain)


# The judge of turns.

def judge(*texts, **arguments):
  left = list(texts)
  return rewards.TurnJudge(
      lambda prompts: [left.pop(0) for _ in prompts], build=build.BUILDER, template="{prompt}|{history}|{response}",
      **arguments)


def samples_of(*completed):
  """Samples of three turns, "a.e" "c.h" and this last one; the reference is c."""
  from rl_reason.types import Sample

  return [Sample(prompt="ab", completion=f"a.ec.h{last}", reference="c", completion_tokens=tuple(range(6 + len(last))),
                 episode=("a.", "e", "c.", "h", last), spans={"turn": [(0, 2), (3, 5), (6, 6 + len(last))]})
          for last in completed]


ANSWER = dict(exact_answer=dict(args=dict(marker="!")))


def test_renorm_by_hand():
  # The card: r_p = (.5, 1): (.5, 1, 1) for a right answer, (-.5, 0, 0) for a wrong one; mu = 0 pays (.5, 1, 0) for that.
  samples = samples_of("!c", "!d")
  texts = ["1,2", "fine\n4,4", "good\n 2 , 4 ", "1,1"]
  for arguments, expected in ((dict(mu=1.0, outcome=ANSWER), [[.5, 1], [-.5, 0]]), (dict(mu=0.0), [[.5, 1], [.5, 1]])):
    with_answer = build.build_rewards(ANSWER)
    found = judge(*texts, **arguments)(samples)
    np.testing.assert_allclose(found.values, expected)
    assert [e.tolist() for e in found.ends] == [[1, 4], [1, 4]]  # The turns' last tokens; the answer turn is not judged.
    np.testing.assert_array_equal(with_answer(samples)[0], [1, 0])


def test_the_judge_reads_what_was_before_and_the_answer_to_the_turn():
  prompts = []
  built = rewards.TurnJudge(
      lambda given: prompts.extend(given) or ["1,1"] * len(given), build=build.BUILDER,
      template="{prompt}|{history}|{response}")
  built(samples_of("!c"))
  assert prompts == ["ab||a.e", "ab|a.e|c.h"]


@pytest.mark.parametrize("text, score", [
    ("3,4", .75), ("a\n0,5\n", 0), ("5,4", None), ("1,0", None), ("-1,4", None), ("1.5,4", None), ("", None), (None, None),
    ("3,4 I think", None), ("3,4\nindeed", None)])
def test_scores_that_can_be_read(text, score):
  from rl_reason.rewards.turns import parse_score
  assert parse_score(text) == score


def test_unreadable_judgements_earn_nothing_and_are_counted():
  built = judge("nonsense", "1,2", mu=1.0, outcome=ANSWER)
  np.testing.assert_allclose(built(samples_of("!c")).values, [[0, .5]])
  assert built.counts["abstained"] == 1
  with pytest.raises(ValueError, match="8 of 20 turns have a judgement that cannot be read"):
    judge(*["no"] * 8, *["1,2"] * 12, mu=1.0)([
        dataclasses.replace(s, prompt=str(i)) for i, s in enumerate(samples_of(*["!c"] * 10))])  # One prompt is asked once.


def test_an_episode_of_one_turn_has_no_process_reward():
  [sample] = samples_of("!c")
  sample = dataclasses.replace(sample, episode=("!c",), spans={"turn": [(0, 2)]}, completion="!c", completion_tokens=(1, 2))
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
    return {"result": [[{"document": {"contents": f"{q}-{n}" * 9}} for n in range(2)] for q in body["queries"]]}
  monkeypatch.setattr(search_lib, "post_json", post)
  environment = registry.ENVIRONMENTS["search"](url="http://x/retrieve", topk=2, passage_characters=3)
  turns = ["<think>.</think><search>who</search>", "<answer>me</answer>", "<search> </search>", "<search>a</search> so",
           "<search>a</search><search>what</search>\n"]
  found = environment([episodes.Episode(PROBLEMS[0], ("x", t), ("y",)) for t in turns])
  block = "\n<information>\n{}\n</information>\n".format
  assert found == [block("who\nwho"), None, "\n<information>\n</information>\n", None, block("wha\nwha")]
  assert asked == [("http://x/retrieve", {"queries": ["who", "what"], "topk": 2, "return_scores": True})]
  monkeypatch.setattr(search_lib, "post_json", lambda *a, **k: {"result": []})
  with pytest.raises(ConnectionError, match="did not answer 1 queries as expected"):
    environment([episodes.Episode(PROBLEMS[0], (turns[0],), ())])
  with pytest.raises(ValueError, match="url must start with http"):
    registry.ENVIRONMENTS["search"](url="x")


@pytest.mark.parametrize("completion, right", [
    ("<answer>The Hague.</answer>", 1), ("<answer>x</answer> <answer>\nhague </answer>", 1), ("hague", 0), ("<answer>hague", 0),
    ("<answer>hague x</answer>", 0), ("<answer>a Den Haag!</answer>", 1)])
def test_exact_match(completion, right):
  from rl_reason.types import Sample

  score = answers.exact_match([Sample(prompt="", completion=completion, reference="the Hague|Den Haag")], separator="|")
  assert score.tolist() == [right]


def test_exact_match_refuses_references_of_nothing():
  with pytest.raises(ValueError, match="nothing is left of it"):
    build.build_rewards(dict(exact_match=1.0)).check_references(["A cat", "The."])
