"""Posts and summaries of known quality, references that are worth 0, length control, and the experiment on human feedback."""

import contextlib
import types

import numpy as np
import pytest

from rl_reason import config as config_lib
from rl_reason import estimates, metrics, rewards, run, sharding, train
from rl_reason.experiments import summarize
from rl_reason.tasks import posts
from rl_reason.types import Sample


def test_quality_by_hand():
  post = "c4a0f3b9j1="
  assert posts.quality(post, "c4f3j1") == pytest.approx(7 - 0.18)
  assert posts.quality(post, "c4c4f2") == pytest.approx(3 - 0.5 - 0.5 - 0.18)  # Said before; false.
  assert posts.quality(post, "") == 0
  assert posts.quality(post, "c4=") == pytest.approx(3 - 0.5 - 0.09)  # A character that is no fact.
  assert posts.quality("a0b0c4d0e0f3=", "a0b0d0e0f3c4") == pytest.approx(2.4 - 0.5 - 0.36)  # The sixth does not count.


def test_overlap_by_hand():
  assert posts.overlap("c4f3", "c4a0f3b9") == pytest.approx(2 * 2 / 6)
  assert posts.overlap("c4c4", "c4") == pytest.approx(2 / 3)
  assert posts.overlap("", "c4") == posts.overlap("c5", "c4") == 0


def test_references_are_short_of_the_best_and_labels_are_noisy():
  source = posts.posts(size=300)
  rows = [source[i] for i in range(300)]
  worth = [posts.quality(r.prompt, r.reference) for r in rows]
  assert 3.8 < np.mean(worth) < 4.7 and max(worth) < 7.2  # The best summary has 7.2 - 0.3.
  assert all(len(posts.facts(r.prompt[:-1])) == 12 and len(posts.facts(r.reference)) == 5 for r in rows)
  def right(noise):
    pairs = posts.summary_pairs(size=600, noise=noise)
    return np.mean([posts.quality(p.prompt, p.responses[0]) >= posts.quality(p.prompt, p.responses[1])
                    for p in (pairs[i] for i in range(600))])
  assert right(0.0) == 1 and 0.75 < right(0.1) < 0.87 and 0.4 < right(1.0) < 0.6


@pytest.mark.parametrize("make, arguments, message", [
    (posts.posts, dict(size=0), "size must be"), (posts.posts, dict(part="test"), "Unknown part 'test'"),
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
  assert estimates.rate_at_equal_length(wins, lengths, reference) == pytest.approx(1 / (1 + np.exp(-0.3)), abs=0.02)
  # Where all are as long it is the rate itself; a slope that tells all stays finite.
  assert estimates.rate_at_equal_length([1, 0, 1, 1], [5] * 4, [5] * 4) == pytest.approx(0.75, abs=1e-4)
  assert 0.3 < estimates.rate_at_equal_length([1, 1, 0, 0], [20, 30, 2, 3], [8] * 4) < 0.7
  with pytest.raises(ValueError, match="needs rows, and lengths of at least 1"):
    estimates.rate_at_equal_length([1], [0], [5])


def test_a_cut_summary_is_worth_minus_one():
  def score(*samples):
    with contextlib.closing(rewards.RewardSet([
        rewards.Component("learned", lambda s: np.full(len(s), 2.0), gate=rewards.Gate("cut", below=0.5)),
        rewards.Component("cut", summarize.cut, -1.0)])) as built:
      return built.score(samples).total.tolist()
  whole = Sample(prompt="c4=", completion="c4", reference="c4")
  assert score(whole, Sample(prompt="c4=", completion="c4", reference="c4", truncated=True)) == [2, -1]
  spec = summarize.get_config("ppo-tiny").rl.rewards
  assert spec.learned.gate.to_dict() == dict(component="cut", below=0.5) and spec.cut.weight == -1
  assert summarize.preferred([whole, Sample(prompt="c4f3=", completion="c4f3", reference="f3"),
                              Sample(prompt="c4=", completion="", reference="c4")]).tolist() == [0.5, 1, 0]


def test_experiment_end_to_end_small(tmp_path):
  train.train(config_lib.load("experiments/summarize.py:ppo-tiny"), tmp_path)
  steps = [x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "reward/quality" in x]
  assert len(steps) == 2 and all(x["logprob_gap"] < 1e-4 for x in steps)
  assert np.isfinite([summarize.fall(tmp_path, points=1), summarize.smallest_gain(tmp_path), summarize.divergence(tmp_path)]).all()
  # References are worth 0 on average; alone in its batch, so with other padding, one is worth the same.
  model = run.scorer_of_run(f"{tmp_path}:rm", sharding.Partitioning(sharding.make_mesh()))
  source = posts.posts(size=64, seed=0)
  pairs = [(source[i].prompt, source[i].solution) for i in range(64)]
  models = types.SimpleNamespace(tokenizer=model.tokenizer, find=lambda name: model, solutions=lambda count: pairs)
  learned = rewards.Learned(model="rm", models=models, normalise="solutions")
  scores = learned([Sample(prompt=p, completion=s, reference="", group=i) for i, (p, s) in enumerate(pairs)])
  assert np.std(scores) > 0 and np.mean(scores) == pytest.approx(0, abs=1e-5)
  alone = learned([Sample(prompt=pairs[0][0], completion=pairs[0][1], reference="")])
  np.testing.assert_allclose(alone, scores[:1], atol=1e-5)
  with pytest.raises(ValueError, match="needs per='response' and a task with solutions"):
    rewards.Learned(model="rm", models=types.SimpleNamespace(**{**vars(models), "solutions": lambda n: []}), normalise="solutions")
  values, ranked = summarize._sampled(tmp_path, count=4, num_posts=8)
  assert values.shape == ranked["model"].shape == ranked["overlap"].shape == (8, 4)


def test_configs_of_all_arms_and_sizes():
  for name in (*summarize.BETAS, "sft_large", "full"):
    run.check(config_lib.load(f"experiments/summarize.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'pop'"):
    summarize.get_config("pop")
