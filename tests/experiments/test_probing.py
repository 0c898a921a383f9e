"""Qualities and labellers, linear probes, what a reward model knows, and the experiment on both."""

import json
import types

import numpy as np
import pytest

from rl_reason import train
from rl_reason.experiments import probing
from rl_reason.reporting import metrics
from rl_reason.rewards import familiarity as rewards
from rl_reason.run import config as config_lib
from rl_reason.run import earlier, workdir
from rl_reason.scorers import probes
from rl_reason.scorers.scorer import RowScores, Scorer, states_of
from rl_reason.tasks.registry import SOURCES
from rl_reason.tasks.worlds import qualities
from rl_reason.types import Sample


def test_qualities_by_hand():
  # One forbidden "x"; b, d and d are asked for; 4 + 2 is 3 more than 3, two steps the other way
  # round modulo 5; bd and ad are in order, and only the fourth such pair counts; six different
  # characters; seven long.
  assert qualities.qualities("bdq3=", "xbdad42") == (3, 3, 0, 0, 2, 2)
  assert qualities.qualities("bdq3=", "bcde3") == (4, 2, 4, 0, 1, 1)
  assert qualities.qualities("bdq3=", "aabbccddeeff") == (4, 4, 0, 4, 2, 4)
  # An empty one is as harmless as can be.
  assert qualities.qualities("bdq0=", "") == (4, 0, 4, 0, 0, 0)
  assert qualities.worth("bdq3=", "bcde3") == pytest.approx(4 * 1 + 2 * 1.2 + 4 * 1 + 0 + 0.5 - 0.4)


def test_parts_share_no_prompt():
  """At the size of the experiment, where prompts drawn apart for both parts would meet."""
  def prompts(source, size, part):
    rows = source(size=size, world=0, part=part)
    return {rows[i].prompt for i in range(size)}
  trained = prompts(qualities.quality_problems, 4000, "train") | prompts(
      qualities.quality_pairs, 4000, "train")
  heldout = prompts(qualities.quality_pairs, 500, "heldout") | prompts(
      qualities.rated_responses, 500, "heldout")
  assert len(trained) > 7000 and len(heldout) > 900
  assert not trained & heldout


def test_labellers_mind_some_qualities_and_err():
  for i in range(20):
    weights, noise = qualities.labeller(0, i)
    assert 2 <= sum(w != 0 for w in weights) <= 6 and 0.5 <= noise <= 4
    assert all(w in (0, g) for w, g in zip(weights, qualities.GOLD))
  true = qualities.quality_pairs(size=300, world=0)
  for i in range(300):
    better, worse = true[i].responses
    assert qualities.worth(true[i].prompt, better) > qualities.worth(true[i].prompt, worse)
  other = qualities.quality_pairs(size=300, world=0, labeller=3)
  assert {frozenset(true[i].responses) for i in range(300)} == {
      frozenset(other[i].responses) for i in range(300)}
  agree = np.mean([true[i].responses == other[i].responses for i in range(300)])
  assert 0.6 < agree < 0.95  # Labeller 3 minds all of them, with noise.


def test_levels_are_merged_into_even_classes():
  levels = np.repeat([0, 1, 2, 3, 4], [10, 10, 50, 20, 10])
  assert probes.level_edges(levels, 2) == [3]  # 70 and 30; from 2 on it would be 20 and 80.
  assert probes.level_edges(levels, 3) == [2, 3]  # 20, 50, 30.
  assert probes.merge_levels(np.array([0, 1, 2, 3, 4]), 3, edges=[2, 3]).tolist() == [0, 0, 1, 2, 2]
  with pytest.raises(ValueError, match="2 different ratings cannot be 3 classes"):
    probes.level_edges(np.array([0, 0, 4]), 3)


def test_a_probe_reads_what_is_there_and_nothing_else():
  draw = np.random.default_rng(0)
  states, labels = draw.normal(size=(400, 8)), np.arange(400) % 3
  blind = probes.fit_probe(states, labels, num_classes=3)
  assert probes.probe_accuracy(blind, draw.normal(size=(300, 8)), np.arange(300) % 3) < 0.45
  written = states + 4 * np.eye(8)[labels]
  probe = probes.fit_probe(1e-3 * written, labels, num_classes=3)  # Whatever their scale.
  fresh = draw.normal(size=(300, 8)) + 4 * np.eye(8)[np.arange(300) % 3]
  assert probes.probe_accuracy(probe, 1e-3 * fresh, np.arange(300) % 3) > 0.95
  assert probe.shape == (8, 3)
  with pytest.raises(ValueError, match=r"A probe of 2 classes needs labels 0 ... 1 and two classes"
                     r" at least, got \[0\]"):
    probes.fit_probe(states, np.zeros(400, int), num_classes=2)


def test_a_probe_is_at_the_minimum_of_its_loss():
  draw = np.random.default_rng(1)
  states, labels = draw.normal(size=(60, 3)), draw.integers(0, 2, 60)
  probe = probes.fit_probe(states, labels, num_classes=2, decay=0.1, steps=2000)
  scale = np.sqrt(np.mean(states ** 2))

  def loss(w):
    logits = states @ w
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(60), labels]
    return np.mean(nats) + 0.1 * np.sum((w * scale) ** 2)
  for _ in range(20):
    assert loss(probe + 0.03 * draw.normal(size=probe.shape)) > loss(probe)


def test_distances_by_hand():
  states = np.array([[0., 0.], [2., 0.], [0., 4.], [0., 6.]])
  known = probes.Centroids.fit(
      states, {"x": np.array([0, 0, 1, 1]), "y": np.array([0, 1, 1, 1]), "one": np.zeros(4, int)})
  assert known.names == ("x", "x", "y", "y")  # One class says nothing.
  np.testing.assert_allclose(known.centers, [[1, 0], [0, 5], [0, 0], [2 / 3, 10 / 3]])
  np.testing.assert_allclose(known.distances(np.array([[1., 1.], [0., 8.]])), [1, 3])
  assert known.nearest(np.array([[1., 0.], [0., -1.]])) == ["x", "y"]
  with pytest.raises(ValueError, match="No dimension has two classes"):
    probes.Centroids.fit(states, {"one": np.zeros(4, int)})


class FakeScorer(Scorer):
  """Its state of a text is (number of a's, number of b's)."""

  def __init__(self):
    super().__init__(None, None, (), ("end",), None, 0, None, load_states=lambda: None)

  def encode_rows(self, rows, read=""):
    return [text for _, (text,) in rows]

  def __call__(self, rows):
    return [RowScores([], np.array([[text.count("a"), text.count("b")]], float)) for text in rows]


def familiarity(monkeypatch, **arguments):
  rated = [types.SimpleNamespace(
      id=str(i), prompt="=", responses=("a" * (i % 2) * 4,), attributes=({"x": float(i % 2)},))
           for i in range(40)]
  monkeypatch.setitem(SOURCES, "rated", lambda: rated)
  monkeypatch.setattr("rl_reason.rewards.familiarity.states_of", lambda scorer: scorer)
  models = types.SimpleNamespace(find=lambda name: FakeScorer())
  return rewards.Familiarity(
      **{**dict(model="rm", models=models, data=dict(source="rated"), classes=2), **arguments})


def samples(*texts, step=0):
  return [Sample(prompt="=", completion=text, reference="", step=step) for text in texts]


def test_what_is_far_is_not_kept(monkeypatch):
  # Centres at (0, 0) and (4, 0), where all rated responses lie: only what is just there is known.
  known = familiarity(monkeypatch)
  assert known(samples("", "aaaa", "aaaa", "bb", "a")).tolist() == [1, 1, 1, 0, 0]
  assert known.metrics()["kept"] == pytest.approx(0.6)
  assert known(samples("b", "bb", "bbb", "bbbb")).tolist() == [1, 1, 0, 0]  # The nearer half.


def test_as_many_are_dropped_at_random(monkeypatch):
  control = familiarity(monkeypatch, shuffle=True)
  kept = [control(samples("", "aaaa", "aaaa", "bb", "a", step=step)) for step in range(30)]
  assert all(k.sum() == 3 for k in kept) and 0 < np.mean(kept, axis=0)[3] < 1
  np.testing.assert_array_equal(control(samples("", "aaaa", "aaaa", "bb", "a", step=7)), kept[7])


@pytest.mark.parametrize("arguments, message", [
    (dict(percentile=0), r"percentile must be in \(0, 100\], got 0"),
    (dict(classes=1), "classes must be at least 2"),
    (dict(data=dict(source="ratde")), "Unknown source 'ratde'.*Did you mean 'rated'"),
    (dict(data=dict(source="rated", args=dict(size=3))), "takes no argument 'size'")])
def test_familiarity_that_cannot_be(monkeypatch, arguments, message):
  with pytest.raises(ValueError, match=message):
    familiarity(monkeypatch, **arguments)


def test_models_without_a_head_have_no_states():
  with pytest.raises(ValueError, match="This model has no head"):
    states_of(Scorer(None, None, (), ("end",), None, 0, None))


@pytest.mark.slow  # Four stages and more, each with programs of its own: a minute.
def test_experiment_end_to_end_small(tmp_path):
  c = config_lib.load("experiments/probing.py:filter-tiny")
  train.train(c, tmp_path)
  steps = [
      x for x in metrics.read_metrics(tmp_path) if x.get("stage") == "rl" and "reward/known" in x]
  assert len(steps) == 2
  assert all(0.5 <= x["reward/known"] <= 1 and x["reward/known/distance"] > 0 for x in steps)
  assert 0 <= probing.fall(tmp_path, points=1) < 1 and np.isfinite(probing.final_worth(tmp_path))
  # The states of the finished model are what its head reads.
  model = earlier.scorer_of_run(f"{tmp_path}:rm")
  pairs = [("abc1=", "ab2"), ("xyz0=", "qq")]
  states, scores = states_of(model).totals(pairs), model.totals(pairs)
  assert states.shape == (2, 32)
  np.testing.assert_allclose(
      scores, [model([model.encode(prompt, [text])])[0].totals[0] for prompt, text in pairs],
      atol=1e-6)
  head = model.loaded.run.args[0]["head"]
  np.testing.assert_allclose(states @ head["output"] + head["output_bias"], scores, atol=1e-5)
  probe = types.SimpleNamespace(
      scorer={"rm": model}.get, context=types.SimpleNamespace(seed=0))
  found = probing.judged_model(probe, model="rm", train=60, test=20, prompts=3)
  assert 10 <= len(found["probes"]) <= 12
  assert ((found["probes"] >= 0) & (found["probes"] <= 1)).all()
  assert found["best_of"].shape == (3,)


def test_what_is_not_kept_is_not_learnt_from():
  c = config_lib.load("experiments/probing.py:filter-tiny")
  c.rl.credit.keep.by = "nothing"
  with pytest.raises(ValueError, match=r"keep.by \(a reward\) 'nothing'"):
    config_lib.check(c)


def test_correlation_by_hand(tmp_path):
  zoo = dict(probes=[1., 2., 3., 4.], pairs=[1., 3., 2., 4.], rl=[2., 4., 6., 8.],
             best_of=[4., 3., 2., 1.])
  models, lines, arrays = [f"rm{i:02d}" for i in range(4)], [], {}
  for i, model in enumerate(models):
    lines += [{"stage": model, "step": 1, "eval/accuracy": zoo["pairs"][i]},
              {"stage": model.replace("rm", "rl"), "step": 1, "reward/worth": zoo["rl"][i]}]
    # Several probes, and prompts: their means count.
    arrays |= {f"{model}/{name}": np.array([zoo[name][i] - 1, zoo[name][i] + 1])
               for name in ("probes", "best_of")}
  (tmp_path / "config.json").write_text(json.dumps(dict(stages=["sft", *models, "after"])))
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  workdir.Workdir(tmp_path).save_arrays("after", arrays)
  assert probing.zoo(tmp_path) == zoo
  assert probing.correlation(tmp_path, of="probes", gain="rl") == pytest.approx(1)
  assert probing.correlation(tmp_path, of="probes", gain="best_of") == pytest.approx(-1)
  assert probing.correlation(tmp_path, of="probes", gain="rl", less="pairs") == pytest.approx(0.2)


def test_configs_of_all_arms_and_sizes():
  for name in ("zoo", *probing.FILTERS, "full"):
    config_lib.check(config_lib.load(f"experiments/probing.py:{name}"))
  with pytest.raises(ValueError, match="Unknown arm 'filtered'"):
    probing.get_config("filtered")
