"""Learned rewards: whole responses, steps and tokens, ensembles, NaN, other tokenizers.

A pipeline learns from one.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason import judge
from rl_reason.batches.responses import Layout, READINGS
from rl_reason.config.overrides import override
from rl_reason.evaluation import reward_models
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.rewards.learned import Models
from rl_reason.run import config as config_lib
from rl_reason.runtime.sharding import make_mesh, Partitioning
from rl_reason.scorers import scorer
from rl_reason.train import train
from rl_reason.types import Sample
from tests.stages.reward_model.test_stage import sevens

CHARACTERS = "0123456789+-*=;# \n"
TOKENIZER = CharacterTokenizer(CHARACTERS)
SHUFFLED = CharacterTokenizer(CHARACTERS[::-1])


def count_sevens(tokenizer, scale, batch):
  """The number of sevens in a response up to a place, times scale; NaN where there are three."""
  count, size, _ = batch.places.shape
  owned = batch.owners.reshape(count, 1, -1) == 1 + jnp.arange(size)[:, None]
  found = jnp.cumsum(
      owned & (batch.tokens.reshape(count, 1, -1) == tokenizer.encode("7")[0]), axis=-1)
  found = jnp.take_along_axis(found, batch.places, axis=-1)[..., None]
  return jnp.where(found == 3, jnp.nan, scale * found)


def counter(tokenizer=TOKENIZER, *, scale=1.0, **fields):
  given = dict(reads=READINGS, separator=";", cumulative=True, outputs=("sevens",)) | fields
  return scorer.Scorer(
      load=lambda: scorer.Loaded(
          functools.partial(count_sevens, tokenizer, scale), np.array([1.0]), np.array([2.0])),
      tokenizer=tokenizer, layout=Layout(8, 16), max_positions=64,
      partitioning=Partitioning(make_mesh(dict(data=1, fsdp=1))), **given)


SCORERS = {
    "rm": counter(), "double": counter(scale=2.0), "other": counter(SHUFFLED),
    "ends": counter(reads=("end",)), "product": counter(aggregate="product")}


def find(name):
  if name not in SCORERS:
    raise ValueError(f"no {name}")
  return SCORERS[name]


def sample(completion, group=0, **fields):
  ids = tuple(TOKENIZER.encode(completion)) + (TOKENIZER.eos_id,)
  return Sample(
      prompt=f"{group}=", completion=completion, reference="", group=group,
      **{"completion_tokens": ids, **fields})


# Groups of 2, 1 and 3.
SAMPLES = [
    sample("77"), sample("1"), sample("7;17;1", 1), sample("", 2), sample("17", 2),
    sample("1717", 2)]


def learned(model="rm", **args):
  rewards = build_rewards(
      {"q": {"function": "learned", "args": dict(model=model, **args)}},
      models=Models(TOKENIZER, find))
  return rewards.components[0].function, rewards


def test_whole_responses_in_the_order_of_the_samples():
  for model in ("rm", "other"):  # Read as text, whatever the tokenizer's ids.
    np.testing.assert_array_equal(learned(model)[0](SAMPLES), [2, 0, 2, 0, 1, 2])
  total, components = learned()[1](SAMPLES)
  np.testing.assert_array_equal(total, components["q"])
  assert len(learned()[0]([])) == 0
  np.testing.assert_array_equal(learned(normalise="mean")[0](SAMPLES[:2]), [1, -1])
  np.testing.assert_array_equal(learned(normalise="mean_std")[0](SAMPLES[:2]), [0.5, -0.5])


def test_steps_are_paid_where_they_end():
  values = learned(per="step")[0](SAMPLES)
  assert isinstance(values, StepRewards)
  # "7;" "17;" "1" end at the tokens 1, 4 and 5; an empty completion has its EOS only.
  assert [v.tolist() for v in values.values] == [[2], [0], [1, 1, 0], [0], [1], [2]]
  assert [e.tolist() for e in values.ends] == [[1], [0], [1, 4, 5], [0], [1], [3]]
  spans = sample("7;17;1", spans={"step": [(0, 1), (2, 4)]})
  values = learned(per="step")[0]([spans])
  assert [v.tolist() for v in values.values] == [[1, 1]]
  assert [e.tolist() for e in values.ends] == [[0, 3]]
  nothing = learned(per="step")[0]([sample("", completion_tokens=())])
  assert [v.tolist() for v in nothing.values] == [[]]


def test_tokens_each_have_their_own():
  values = learned(per="token")[0](SAMPLES)
  assert [v.tolist() for v in values.values][:2] == [[1, 1, 0], [0, 0]]
  assert [e.tolist() for e in values.ends][:2] == [[0, 1, 2], [0, 1]]
  scores = learned(per="token")[1].score(SAMPLES)
  np.testing.assert_array_equal(scores.total, [2, 0, 2, 0, 1, 2])


@pytest.mark.parametrize("direct", [True, False])
def test_of_an_episode_a_model_reads_what_the_policy_wrote(direct):
  # Tokens: "7;" 0 1, the environment's "77" 2 3, "17" 4 5 and EOS.
  texts = ("7;", "77", "17")
  one = sample("7;7717", episode=texts, spans={"turn": [(0, 2), (4, 7)]})

  def call(**args):
    function, rewards = learned(**args)
    return function([one]) if direct else rewards.call(rewards.components[0], [one])
  np.testing.assert_array_equal(call(), [2])
  steps, tokens = call(per="step"), call(per="token")
  assert [v.tolist() for v in steps.values] == [[1, 1]]
  assert [e.tolist() for e in steps.ends] == [[1, 5]]
  assert [v.tolist() for v in tokens.values] == [[1, 0, 0, 1, 0]]
  assert [e.tolist() for e in tokens.ends] == [[0, 1, 4, 5, 6]]


def test_an_ensemble_is_combined_and_tells_its_disagreement():
  # 2 and 4 for "77": std 1.
  for combine, value in (("mean", 3.0), ("min", 2.0), ("lower", 3.0 - 0.5)):
    function, rewards = learned(["rm", "double"], combine=combine, std_weight=0.5)
    np.testing.assert_allclose(function(SAMPLES[:2]), [value, 0.0])
    assert rewards.metrics() == {"q/disagreement": 0.5}  # The mean of 1 and 0.
  assert learned()[1].metrics() == {}


def test_what_is_not_finite_stops_or_counts_as_zero():
  bad = [*SAMPLES[:1], sample("7177")]
  with pytest.raises(
      ValueError,
      match="'rm' gave 1 of 2 samples a score that is not finite.*'7177'.*on_nan='zero'"):
    learned()[0](bad)
  function, rewards = learned(on_nan="zero")
  np.testing.assert_array_equal(function(bad), [2, 0])
  assert rewards.metrics() == {"q/not_finite": 1.0}
  assert [v.tolist() for v in learned(per="step", on_nan="zero")[0](bad).values] == [[2], [0]]


@pytest.mark.parametrize("args, message", [
    (dict(model="rn"), "no rn"),
    (dict(model=[]), "empty list"),
    (dict(per="word"), "per is 'word'"),
    (dict(combine="median"), "combine is 'median'"),
    (dict(model="ends", per="step"), "read at end, and per='step' needs steps"),
    (dict(model="other", per="token"), "another tokenizer"),
    (dict(weights={"eights": 1.0}), "no output 'eights'.*Its outputs: sevens"),
    (dict(model="product", normalise="mean"), "multiplies the probabilities"),
])
def test_arguments_that_cannot_work_are_refused_before_any_run(args, message):
  with pytest.raises(ValueError, match=message):
    learned(**args)


def test_a_verifier_has_no_models():
  with pytest.raises(
      ValueError,
      match="'learned': learned needs models of a run.*evaluation.rewards, use a verifier"):
    build_rewards({"learned": {"args": {"model": "rm"}}})


def test_text_beyond_the_models_context_is_refused():
  with pytest.raises(
      ValueError, match="A prompt of 2 tokens and a response of 71 exceed .* context of 64"):
    learned()[0]([sample("1" * 70)])


def test_rewards_are_imported_without_jax():
  code = "import sys, rl_reason.rewards; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# A pipeline. Its policy starts from nothing; the reward model learns that sevens are good.


class Killed(Exception):
  pass


AT = []


def maybe(samples):
  """Range {0}."""
  if samples and samples[0].step in AT:
    AT.clear()
    raise Killed()
  return [0.0] * len(samples)


@pytest.fixture
def pipeline():
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.unlock()
  c.stages, c.mesh.fsdp, c.evaluation.every, c.checkpoint.every = ("rm", "rl"), 1, 0, 6
  c.rm = dict(
      kind="reward_model", num_steps=60, batch_size=16, max_response_tokens=16,
      data=dict(
          source="tests.stages.reward_model.test_stage:sevens", args={},
          train=dict(size=200, seed=1), heldout=dict(size=32, seed=2)),
      learner=dict(microbatches=1, optimizer=dict(learning_rate=3e-3, warmup_steps=5)))
  override(c.rl, {
      "num_steps": 20, "rollout.prompts": 4, "rollout.group_size": 8, "objective.kl.coef": 0.0,
      "learner.minibatches": 1, "learner.optimizer": dict(learning_rate=3e-3, schedule="constant")})
  c.rl.rewards = {"quality": {"function": "learned", "args": {"model": "rm"}},
                  "maybe": {"function": f"{__name__}:maybe", "weight": 0.0}}
  return c


@pytest.mark.slow  # Two whole runs of three stages: 70 s.
def test_a_policy_learns_from_a_reward_model_and_resumes_bit_for_bit(pipeline, tmp_path):
  params = train(pipeline, tmp_path / "whole", plain=True)
  lines = read_metrics(tmp_path / "whole")
  rewards = [line["reward/quality"] for line in lines if "reward/quality" in line]
  assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 1.0, rewards
  accuracy = [
      line["eval/accuracy"] for line in lines
      if line["stage"] == "rm" and "eval/accuracy" in line]
  assert accuracy[-1] > 0.9

  AT.append(9)
  with pytest.raises(Killed):
    train(pipeline, tmp_path / "killed", plain=True)
  again = train(pipeline, tmp_path / "killed", plain=True)
  assert without_time(read_metrics(tmp_path / "killed")) == without_time(lines)
  jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), params, again)

  # As a scorer of comparisons.
  rows = sevens(size=32, seed=2)
  report = reward_models.judge(
      judge.make_scorer("reward_model", {"workdir": f"{tmp_path / 'whole'}:rm"}), rows)
  last = [line for line in lines if line["stage"] == "rm" and "eval/accuracy" in line][-1]
  assert report.estimates["accuracy"].value == last["eval/accuracy"]

  # Another run may use it too, by its folder.
  other = pipeline.copy_and_resolve_references()
  other.stages, other.rl.num_steps = ("rl",), 1
  other.rl.rewards = {
      "quality": {"function": "learned", "args": {"model": str(tmp_path / "whole")}}}
  train(other, tmp_path / "other", plain=True)
  first = [line for line in read_metrics(tmp_path / "other") if "reward/quality" in line][0]
  assert first["reward/quality"] == rewards[0]


def without_time(lines):
  return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.mark.parametrize("model, stages, message", [
    ("rms", ("rm", "rl"), "'rms' is neither an earlier stage .* Did you mean 'rm'"),
    ("rm", ("rl", "rm"), "'rm' is neither an earlier stage"),
    ("sft", ("sft", "rm", "rl"),
     "'sft' is neither an earlier .*Such stages: rm; their kinds: preference, reward_model"),
    ("/nowhere:rm", ("rm", "rl"), "'/nowhere:rm' is neither"),
])
def test_models_that_are_not_there_are_refused_before_any_stage(
    pipeline, tmp_path, model, stages, message):
  pipeline.stages = stages
  pipeline.rl.rewards = {"quality": {"function": "learned", "args": {"model": model}}}
  with pytest.raises(ValueError, match=message):
    train(pipeline, tmp_path, plain=True)
