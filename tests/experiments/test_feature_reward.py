"""Reviews and what makes their summaries good, and small networks on features.

The reward made of them, and the experiment.
"""

import logging
import types

import numpy as np
import pytest

from rl_reason import train
from rl_reason.claims import measures
from rl_reason.experiments import feature_reward
from rl_reason.reporting import metrics
from rl_reason.rewards import features as rewards
from rl_reason.rewards import judge
from rl_reason.rewards.composition.build import BUILDER
from rl_reason.run import config as config_lib
from rl_reason.scorers import features as feature_models
from rl_reason.stages.probe.stage import Probe
from rl_reason.tasks.worlds import reviews
from rl_reason.types import Sample

PROMPT = "aB|aB|A|c=" # a twice against A once; B twice; c once.


def test_features_by_hand():
  assert reviews.majority(PROMPT) == {"a": "a", "b": "B", "c": "c"}
  assert reviews.ideal(PROMPT) == "aBc"
  np.testing.assert_allclose(reviews.features(PROMPT, "aBc"), [1] * 7)
  # One of three aspects, its opinion wrong: none of the 2 + 2 + 1 right mentions.
  np.testing.assert_allclose(reviews.features(PROMPT, "A"), [1 / 3, 0, 0, 1, 1, 1, 1])
  # Repeated, invented, with filler, out of order: "d" and "a.": B a a d.
  np.testing.assert_allclose(
      reviews.features(PROMPT, "Baad."), [2 / 3, 3 / 4, 4 / 5, 3 / 4, 4 / 5, 3 / 4, 1 / 3])
  assert reviews.features(PROMPT, "") == reviews.features(PROMPT, "...") == (0.0,) * 7
  assert reviews.utility(PROMPT, "aBc") == pytest.approx(5.5)
  # Neither true nor mentioned.
  assert reviews.utility(PROMPT, "d") == pytest.approx(0.4 + 0.3 + 0.3 - 1)


def test_scorers_see_fifths_and_labels_are_noisy():
  seen = [reviews.observed(PROMPT, "Baad.", seed) for seed in range(200)]
  np.testing.assert_allclose(np.mean(seen, axis=0), reviews.features(PROMPT, "Baad."), atol=0.1)
  assert np.allclose(np.array(seen) * 5 % 1, 0)
  assert reviews.observed(PROMPT, "Baad.") == reviews.observed(PROMPT, "Baad.")
  def right(noise):
    pairs = reviews.review_pairs(size=500, noise=noise)
    return np.mean(
        [reviews.utility(p.prompt, p.responses[0]) > reviews.utility(p.prompt, p.responses[1])
         for p in (pairs[i] for i in range(500))])
  assert right(0.0) == 1 and 0.78 < right(0.1) < 0.9 and right(1.0) < 0.2
  with pytest.raises(ValueError, match=r"noise must be in \[0, 1\]"):
    reviews.review_pairs(size=4, noise=2)


def pairs(count, seed=0, features=3):
  """Better is what has more of the first feature and less of the second; the third says nothing."""
  draw = np.random.default_rng(seed)
  a, b = draw.uniform(size=(2, count, features))
  worth = lambda x: x[:, 0] - 0.5 * x[:, 1]
  first = (worth(a) > worth(b))[:, None]
  return np.where(first, a, b), np.where(first, b, a)


NAMES = ("good", "bad", "idle")


@pytest.fixture(scope="module")
def model():
  return feature_models.fit(*pairs(300), names=NAMES)


def test_a_model_learns_what_counts(model):
  test = pairs(500, seed=1)
  assert feature_models.accuracy(model, *test) > 0.95
  slopes = model.slopes(np.concatenate(test))
  assert slopes["good"] > 0 > slopes["bad"] and abs(slopes["idle"]) < 0.2 * slopes["good"]
  lost = feature_models.importance(model, *test)
  assert lost["good"] > lost["bad"] > abs(lost["idle"])


def test_a_monotone_model_never_falls_with_a_feature(model):
  better, worse = pairs(300)
  found = feature_models.fit(better, worse, names=NAMES, monotone=True)
  assert all((found.params[name] >= 0).all() for name in ("hidden", "output"))
  assert found.slopes(better)["good"] > 0
  anywhere = np.random.default_rng(2).uniform(-3, 3, (200, 3))  # Far beyond the pairs, too.
  for i in range(3):
    more = anywhere + np.eye(3)[i]
    assert (found.scores(more) >= found.scores(anywhere) - 1e-6).all()
  # What is bad lowers the other's.
  assert (model.scores(anywhere + np.eye(3)[1]) < model.scores(anywhere)).any()
  # It cannot learn what is bad, and still knows what is good.
  assert 0.75 < feature_models.accuracy(found, *pairs(500, seed=1)) < feature_models.accuracy(
      model, *pairs(500, seed=1))


def test_scores_by_hand():
  by_hand = feature_models.FeatureModel(
      ("x",), (0,), np.array([1.0]), np.array([2.0]),
      {"hidden": np.array([[1.0]]), "bias": np.array([0.5]), "output": np.array([3.0])}, low=-2.0,
      high=2.9)
  # A missing one is the mean; within what training has seen.
  expected = [3 * np.tanh(1.5), 3 * np.tanh(0.5), -2.0, 2.9]
  np.testing.assert_allclose(
      by_hand.scores(np.array([[3.0], [np.nan], [-99.0], [99.0]])), expected, rtol=1e-6)
  assert by_hand.slopes(np.array([[3.0]]))["x"] == pytest.approx(
      3 * (1 - np.tanh(1.5) ** 2) / 2, rel=1e-5)


def test_ties_pull_scores_together():
  better, worse = pairs(300)
  tied = feature_models.fit(better, worse, names=NAMES, soft_labels=np.full(300, 0.5))
  assert np.ptp(tied.scores(better)) < 0.5 * np.ptp(
      feature_models.fit(better, worse, names=NAMES).scores(better))


def test_a_feature_that_never_varies_is_left_out(caplog):
  better, worse = pairs(100)
  better[:, 2] = worse[:, 2] = 0.3
  with caplog.at_level(logging.WARNING):
    found = feature_models.fit(better, worse, names=NAMES)
  assert found.used == (0, 1) and np.isfinite(found.scores(better)).all() and "idle" in caplog.text
  some = better.copy()
  some[:5, 0] = np.nan
  assert np.isfinite(feature_models.fit(some, worse, names=NAMES).scores(some)).all()


def test_pairs_that_cannot_be_learnt_from():
  better, worse = pairs(100)
  lacking = better.copy()
  lacking[:40, 1] = np.nan
  for arguments, message in (
      ((lacking, worse), "The feature 'bad' is missing in 20% of the responses, more than 10%"),
      ((better[:10], worse[:10]), "10 pairs are too few"),
      ((better, worse[:, :2]), r"must both be \[pairs, 3\]"),
      ((np.ones((50, 3)), np.ones((50, 3))), "None of the features good, bad, idle varies")):
    with pytest.raises(ValueError, match=message):
      feature_models.fit(*arguments, names=NAMES)


def reward(**arguments):
  return rewards.FeatureReward(**{**dict(
      scorers=dict(
          expert=dict(function=feature_reward.__name__ + ":scores", several=reviews.NAMES)),
      data=dict(source="review_pairs", args=dict(size=200)), build=BUILDER), **arguments})


def test_the_reward_is_the_models_and_an_empty_completion_scores():
  built = reward()
  samples = [Sample(prompt=PROMPT, completion=c, reference="") for c in ("aBc", "d", "", " ")]
  found = built(samples)
  np.testing.assert_allclose(found, built.model.scores(built.features(samples)))
  assert found[0] > found[1] and not built.features(samples)[2:].any()
  assert built.metrics()["missing"] == 0 and built.metrics()["faithfulness"] == pytest.approx(0.25)
  np.testing.assert_array_equal(reward()(samples), found)  # The same whenever it is fitted.


@pytest.mark.parametrize("arguments, message", [
    (dict(scorers={}), "needs scorers"),
    (dict(scorers=dict(diversty="diversty")), "Unknown feature scorer 'diversty'"),
    (dict(scorers=dict(diversity=dict(weight=1.0))), "has unknown fields weight"),
    (dict(pairs=500), "pairs=500 of 200 comparisons"),
    (dict(data=dict(source="reveiw_pairs")), "Did you mean 'review_pairs'")])
def test_rewards_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    reward(**arguments)


def test_scorers_outside_of_their_range():
  built = reward()
  built._scorers = {"expert": (lambda samples: np.full((len(samples), 7), 1.5), {}, reviews.NAMES)}
  with pytest.raises(ValueError, match=r"returned 1.5: scores are in \[0, 1\]"):
    built.features([Sample(prompt=PROMPT, completion="a", reference="")])
  built._scorers = {"expert": (lambda samples: np.zeros(len(samples)), {}, reviews.NAMES)}
  with pytest.raises(ValueError, match=r"must return shape \(1, 7\), got \(1,\)"):
    built.features([Sample(prompt=PROMPT, completion="a", reference="")])


def test_a_judge_that_cannot_tell_leaves_a_feature_missing():
  class Judge:
    """Rates what has a "B"; cannot tell otherwise."""
    def __call__(self, prompts):
      return ["[[4]]" if "B" in p else "Hard to say." for p in prompts]

  built = reward()
  built._scorers = {"expert": built._scorers["expert"], "judge": (
      judge.PointwiseJudge(Judge(), template="{response}", low=0, high=5, abstention=None), {}, ())}
  found = built.features(
      [Sample(prompt=PROMPT, completion=c, reference="") for c in ("aBc", "a", "")])
  # An empty one has nothing.
  np.testing.assert_allclose(found[:, -1], [0.8, np.nan, 0.0], rtol=1e-6)


def test_rouge_l_by_hand():
  def score(ours, theirs):
    return feature_reward.rouge_l([Sample(prompt="", completion=ours, reference=theirs)])[0]
  assert score("aBc", "aBc") == 1 and score("", "aBc") == score("x", "aBc") == 0
  assert score("acB", "aBc") == pytest.approx(2 * 2 / 6) and score("a", "aBc") == pytest.approx(0.5)


@pytest.mark.slow  # Four stages and more, each with programs of its own: a minute.
def test_experiment_end_to_end_small(tmp_path):
  train.train(config_lib.load("experiments/feature_reward.py:features-tiny"), tmp_path)
  steps = [
      x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "reward/utility" in x]
  assert len(steps) == 2
  assert all("reward/quality/faithfulness" in x and x["logprob_gap"] < 1e-4 for x in steps)
  assert np.isfinite([feature_reward.overlap_gained(tmp_path),
                      feature_reward.text_accuracy(tmp_path, pairs=940)]).all()
  probed = measures.arrays(tmp_path, "after", "features")
  assert all(sides.shape == (16, 2) for sides in probed.values())
  better, worse = probed["mean"].T
  assert feature_reward.mean_accuracy(tmp_path) == np.mean(
      (better > worse) + 0.5 * (better == worse))
  # A model of more pairs than the small run has takes them all, whatever the number is.
  np.testing.assert_array_equal(probed["of_47"], probed["of_4700"])
  few = feature_reward.feature_accuracy(tmp_path, pairs=940)
  assert few == feature_reward.feature_accuracy(tmp_path, pairs=47)
  text = feature_reward.text_accuracy(tmp_path, pairs=940)
  assert feature_reward.advantage(tmp_path, over=940) == few - text
  fewer = feature_reward.feature_accuracy(
      tmp_path, pairs=940, without=["faithfulness", "no_hallucination"])
  assert feature_reward.advantage(
      tmp_path, over=940, without=["faithfulness", "no_hallucination"]) == fewer - text
  assert all(abs(feature_reward.lost_without(tmp_path, name=name)) <= 1 for name in reviews.NAMES)


def test_overlap_of_the_last_samples_by_hand(tmp_path):
  (tmp_path / "samples").mkdir()
  for name, texts in (("sft-0", "xx"), ("sft-40", "ax"), ("rl-9", "xx"), ("rl-10", "aa")):
    rows = ", ".join(f'{{"completion": "{text}", "reference": "a"}}' for text in texts)
    (tmp_path / f"samples/{name}.json").write_text(f"[{rows}]")
  assert feature_reward.overlap(tmp_path, stage="sft") == 0.5
  assert feature_reward.overlap_gained(tmp_path) == 0.5


def test_fewer_features_know_less():
  taught = feature_reward.observed_pairs(470, seed=0, part="train", noise=0.1)
  asked = feature_reward.observed_pairs(1000, seed=0, part="heldout", noise=0.0)
  right = {
      without: feature_reward.share_right(
          feature_reward.scores_of_pairs(taught, asked, pairs=470, without=without))
      for without in ((), reviews.NAMES[:6])}
  assert right[()] > 0.8 > right[reviews.NAMES[:6]]


def test_the_probe_names_what_the_claims_read():
  probe = Probe(types.SimpleNamespace(seed=0), params=None)
  found = feature_reward.judge_by_features(probe, size=940, clean=500)
  assert found["of_940"].shape == found["mean"].shape == (500, 2)
  assert 0.6 < feature_reward.share_right(found["mean"]) < 1
  assert found["lost_without_no_hallucination"] > 0
  assert "of_940_without_faithfulness_no_hallucination" in found


def test_configs_of_all_arms_and_sizes():
  for name in ("features", "text", "full"):
    config_lib.check(config_lib.load(f"experiments/feature_reward.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'feature'"):
    feature_reward.get_config("feature")
