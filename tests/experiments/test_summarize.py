"""Posts and summaries of known quality, references that score 0, and length control.

The experiment on human feedback.
"""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from rl_reason import train
from rl_reason.claims import measures
from rl_reason.config import fields
from rl_reason.evaluation import estimates
from rl_reason.experiments import summarize
from rl_reason.models import heads
from rl_reason.models import reward_model as model_lib
from rl_reason.reporting import metrics
from rl_reason.rewards.composition import component, reward_set
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier, workdir
from rl_reason.stages.reward_model import config as reward_model
from rl_reason.stages.reward_model import stage
from rl_reason.tasks.worlds import posts
from rl_reason.types import Sample


def test_quality_by_hand():
  post = "c4a0f3b9h1="
  assert posts.quality(post, "c4f3h1") == pytest.approx(7 - 0.18)
  assert posts.quality(post, "c4c4f2") == pytest.approx(3 - 0.5 - 0.5 - 0.18)  # Said before; false.
  assert posts.quality(post, "") == 0
  assert posts.quality(post, "c4=") == pytest.approx(3 - 0.5 - 0.09)  # A character that is no fact.
  # The fifth does not count.
  assert posts.quality("a0b0c4d0e0f3=", "a0b0d0f3c4") == pytest.approx(2.3 - 0.5 - 0.3)


def test_overlap_by_hand():
  assert posts.overlap("c4f3", "c4a0f3b9") == pytest.approx(2 * 2 / 6)
  assert posts.overlap("c4c4", "c4") == pytest.approx(2 / 3)
  assert posts.overlap("", "c4") == posts.overlap("c5", "c4") == 0


def test_references_are_short_of_the_best_and_labels_are_noisy():
  source = posts.posts(size=500)
  rows = [source[i] for i in range(500)]
  worth = [posts.quality(r.prompt, r.reference) for r in rows]
  assert 3.3 < np.mean(worth) < 4.1 and max(worth) <= 7.1 - 0.24  # The mean is the card's.
  assert all(
      len(posts.facts(r.prompt[:-1])) == 8 and len(posts.facts(r.reference)) == 4 for r in rows)
  # Imitation is no way out: the facts that are likeliest to be named are better in less than half
  # of the posts.
  def likeliest(post):
    order = sorted(enumerate(posts.facts(post[:-1])),
                   key=lambda f: -(1 + posts.IMPORTANCE[f[1][0]] / 10) * 0.8**f[0])
    return "".join(fact for _, fact in order[:4])
  imitated = np.array([posts.quality(r.prompt, likeliest(r.prompt)) for r in rows])
  better = imitated > np.array(worth) + 1e-6
  assert 0.25 < better.mean() < 0.4
  def right(noise):
    pairs = posts.summary_pairs(size=600, noise=noise)
    return np.mean(
        [posts.quality(p.prompt, p.responses[0]) >= posts.quality(p.prompt, p.responses[1])
         for p in (pairs[i] for i in range(600))])
  assert right(0.0) == 1 and 0.75 < right(0.1) < 0.87 and 0.4 < right(1.0) < 0.6


@pytest.mark.parametrize("make, arguments, message", [
    (posts.posts, dict(size=0), "size must be"),
    (posts.posts, dict(part="test"), "Unknown part 'test'"),
    (posts.summary_pairs, dict(noise=2), r"noise must be in \[0, 1\], got 2")])
def test_posts_that_cannot_be(make, arguments, message):
  with pytest.raises(ValueError, match=message):
    make(**{"size": 4, **arguments})


def test_divergence_of_the_best_of_n():
  assert estimates.best_of_n_kl(1) == 0
  assert estimates.best_of_n_kl(3) == pytest.approx(0.4319, abs=1e-4)  # The card's.
  # By definition, for the best of 4 uniform ranks of many: the density of the maximum is 4 u^3.
  u = (np.arange(200_000) + 0.5) / 200_000
  assert estimates.best_of_n_kl(4) == pytest.approx(np.mean(4 * u**3 * np.log(4 * u**3)), abs=1e-4)
  with pytest.raises(ValueError, match="n must be at least 1, got 0"):
    estimates.best_of_n_kl(0)


def test_preference_at_equal_length():
  draw = np.random.default_rng(0)
  ratio = draw.normal(0.5, 0.4, 20_000)  # They are longer, and length is liked.
  wins = draw.uniform(size=20_000) < 1 / (1 + np.exp(-(0.3 + 2.0 * ratio)))
  lengths, reference = np.exp(ratio) * 20, np.full(20_000, 20.0)
  assert np.mean(wins) > 0.7
  assert estimates.rate_at_equal_length(wins, lengths, reference) == pytest.approx(
      1 / (1 + np.exp(-0.3)), abs=0.02)
  # Where all are as long it is the rate itself; a slope that tells all stays finite.
  assert estimates.rate_at_equal_length([1, 0, 1, 1], [5] * 4, [5] * 4) == pytest.approx(
      0.75, abs=1e-4)
  assert 0.3 < estimates.rate_at_equal_length([1, 1, 0, 0], [20, 30, 2, 3], [8] * 4) < 0.7
  with pytest.raises(ValueError, match="needs rows, and lengths of at least 1"):
    estimates.rate_at_equal_length([1], [0], [5])


def test_a_cut_summary_is_worth_minus_one():
  def score(*samples):
    with contextlib.closing(reward_set.RewardSet([
        component.Component(
            "learned", lambda s: np.full(len(s), 2.0), gate=component.Gate("cut", below=0.5)),
        component.Component("cut", summarize.cut, -1.0)])) as built:
      return built.score(samples).total.tolist()
  whole = Sample(prompt="c4=", completion="c4", reference="c4")
  assert score(whole, Sample(prompt="c4=", completion="c4", reference="c4", truncated=True)) == [
      2, -1]
  spec = summarize.get_config("ppo-tiny").rl.rewards
  assert spec.learned.gate.to_dict() == dict(component="cut", below=0.5) and spec.cut.weight == -1
  assert summarize.preferred([
      whole, Sample(prompt="c4f3=", completion="c4f3", reference="f3"),
      Sample(prompt="c4=", completion="", reference="c4")]).tolist() == [0.5, 1, 0]


@pytest.mark.slow  # Stages of every kind, each with programs of its own: a minute.
def test_experiment_end_to_end_small(tmp_path):
  train.train(config_lib.load("experiments/summarize.py:ppo-tiny"), tmp_path)
  steps = [
      x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "reward/quality" in x]
  assert len(steps) == 2 and all(x["logprob_gap"] < 1e-4 for x in steps)
  quality, score = ([x[f"reward/{name}"] for x in steps] for name in ("quality", "learned"))
  assert summarize.fall(tmp_path, parts=2) == pytest.approx(max(0, quality[0] - quality[1]))
  assert summarize.smallest_rise(tmp_path, parts=2) == pytest.approx(score[1] - score[0])
  assert -1 <= summarize.smallest_gain(tmp_path) <= 1
  # References are worth 0 on average, and were not before; alone in its batch, so with other
  # padding, one is worth the same.
  source = posts.posts(size=64, seed=0)
  scored = [Sample(prompt=r.prompt, completion=r.solution, reference="")
            for r in (source[i] for i in range(64))]
  model, texts = earlier.scorer_of_run(f"{tmp_path}:rm"), [(s.prompt, s.completion) for s in scored]
  scores = model.totals(texts)
  (moved,) = (x["score/zero"] for x in metrics.read_metrics(tmp_path)
              if x["stage"] == "rm" and "score/zero" in x)
  assert np.std(scores) > 0.01
  assert abs(moved) > 1e-3
  assert np.mean(scores) == pytest.approx(0, abs=1e-5)
  np.testing.assert_allclose(model.totals(texts[:1]), scores[:1], atol=1e-5)
  # Two small steps are not far from where PPO started; summaries of a policy that hardly learnt are
  # cut.
  ends = {what: summarize.in_the_end(tmp_path, what=what)
          for what in ("quality", "score", "divergence")}
  assert abs(ends["divergence"]) < 1 and -9 < ends["quality"] < 7.2 and np.isfinite(ends["score"])
  assert 0 <= summarize.preferred_at_equal_length(tmp_path) <= 1
  found = measures.arrays(tmp_path, "after", "many")
  assert {name: values.shape for name, values in found.items()} == dict.fromkeys(
      ("quality", "model", "overlap"), (8, 4))
  for by in ("model", "overlap"):
    one = summarize.best_of(tmp_path, n=1, by=by)
    assert one == pytest.approx(found["quality"].mean(), abs=1e-5)
  highest = summarize.best_of(tmp_path, n=4, by="model", of="model")
  assert highest == pytest.approx(found["model"].max(axis=1).mean(), abs=1e-5)


def test_numbers_of_the_claims_by_hand(tmp_path):
  quality = np.tile([[1.0, 2.0]], (1, 32))  # Two kinds of summaries of one post.
  workdir.Workdir(tmp_path).save_arrays("after", {
      "many/quality": quality, "many/model": quality, "many/overlap": -quality,
      "trained/divergence": np.array([1.0, 4.0]),
      "likeliest/preferred": np.array([1, 0, 1, 1.0]), "likeliest/length": np.full(4, 5),
      "likeliest/reference_length": np.full(4, 5)})
  # Of two drawn from 32 of each kind, both are of the worse kind with probability 32/64 · 31/63.
  assert summarize.best_of(tmp_path, n=2, by="model") == pytest.approx(2 - 32 / 64 * 31 / 63)
  assert summarize.best_of(tmp_path, n=2, by="overlap") == pytest.approx(1 + 32 / 64 * 31 / 63)
  # The lead is smallest where the best of fewest is taken: with 4 nearly all that there is.
  both = 32 * 31 * 30 * 29 / (64 * 63 * 62 * 61)
  assert summarize.model_over_overlap(tmp_path) == pytest.approx(1 - 2 * both)
  assert summarize.in_the_end(tmp_path, what="divergence") == 2.5
  assert summarize.preferred_at_equal_length(tmp_path) == pytest.approx(0.75, abs=1e-4)


def test_a_reward_model_without_solutions_has_no_zero():
  config = config_lib.load("experiments/summarize.py:ppo-tiny")
  with pytest.raises(ValueError, match="zero='solutions' with read='tokens'"):
    fields.parse(reward_model.Config, {**config.rm.to_dict(), "read": "tokens"}, "rm")
  with pytest.raises(ValueError, match="Unknown zero 'references'"):
    fields.parse(reward_model.Config, {**config.rm.to_dict(), "zero": "references"}, "rm")
  with pytest.raises(ValueError, match="Unknown head_init 'ones'"):
    fields.parse(reward_model.Config, {**config.rm.to_dict(), "head_init": "ones"}, "rm")
  checked, sections = config_lib.check(config)
  context = run.make_context(checked)
  bare = [dataclasses.replace(context.task.train[i], solution="") for i in range(4)]
  with pytest.raises(
      ValueError, match="none of the task's first 256 training problems has a solution in text"):
    stage.check(sections["rm"], dataclasses.replace(
        context, task=dataclasses.replace(context.task, train=bare)), "rm")


def test_a_moved_model_scores_higher_by_as_much():
  head = heads.Head(outputs=2, init="normal")
  params = heads.init_params(head, 2000, jax.random.key(0))
  # The card's: weights of variance 1 / (d + 1).
  assert np.var(params["output"]) == pytest.approx(1 / 2001, rel=0.1)
  assert not params["output_bias"].any()
  with pytest.raises(ValueError, match="Unknown init 'ones' of a head"):
    heads.Head(init="ones")
  x = jax.random.normal(jax.random.key(1), (5, 2000))
  scores = heads.apply(head, params, x)
  normaliser = {"sum": scores.mean(0) * 0.5, "squares": (scores**2).mean(0) * 0.5,
                "weight": np.float32(0.5)}
  moved = model_lib.moved(
      {"head": params, "frozen": {"normaliser": normaliser}}, np.array([1.5, -2.0]))
  np.testing.assert_allclose(
      heads.apply(head, moved["head"], x), scores + np.array([1.5, -2.0]), rtol=1e-5)
  mean, std = model_lib.mean_and_std(moved["frozen"]["normaliser"])
  np.testing.assert_allclose(mean, scores.mean(0) + np.array([1.5, -2.0]), rtol=1e-5)
  np.testing.assert_allclose(std, scores.std(0), rtol=1e-4)


def test_configs_of_all_arms_and_sizes():
  for name in (*summarize.BETAS, "sft_large", "full"):
    config_lib.check(config_lib.load(f"experiments/summarize.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'pop'"):
    summarize.get_config("pop")
