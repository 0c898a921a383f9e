"""A world of questions in two dialects, and the benchmark made of it.

The experiment on a zoo of reward models.
"""

import json
import types

import numpy as np
import pytest

from rl_reason import train
from rl_reason.claims import measures
from rl_reason.evaluation import estimates, reward_models
from rl_reason.experiments import reward_bench_2
from rl_reason.reporting import metrics
from rl_reason.run import config as config_lib
from rl_reason.run.workdir import Workdir
from rl_reason.tasks import draws as draws_lib
from rl_reason.tasks.worlds import bench_world
from rl_reason.types import Sample


def test_answers_are_checked_by_hand():
  right = lambda prompt, answer: bench_world.is_right(0, prompt, answer)
  assert right("M47", "1") and not right("M47", "11") and not right("M47", "")
  assert right("Sc", "R") and not right("Sc", "klm")
  assert right("Ob", "gfj") and not right("Ob", "gfa") and not right("Ob", "gf")
  assert right("Cbh", "fgi") and not right("Cbh", "fgh")
  assert all(right("Kb", c) for c in "fghij") and not right("Kb", "a") and not right("Kb", "fg")
  assert right("kb2", "h") and not right("kb2", "f")
  value = bench_world.fact(0, "g", "a")
  assert right("Fgaxy=", value)
  assert not right("Fga", next(v for v in bench_world.VALUES if v != value))
  assert bench_world.understood("-fgi,", "b") == "fgi" == bench_world.understood("fgi.", "a")
  assert bench_world.understood("fgi.", "b") == ""
  assert bench_world.understood("fgi", "a") == ""
  assert bench_world.understood("", "a") == ""


def test_every_question_has_right_and_wrong_answers():
  draws = draws_lib.Draws("test")
  for kind in [*bench_world.DOMAINS, "k"] * 60:
    asked = bench_world.question(draws, 3, kind)
    assert all(bench_world.is_right(3, asked.prompt, a) for a in asked.right), asked
    assert not any(bench_world.is_right(3, asked.prompt, a) for a in asked.wrong), asked
    assert len(set(asked.wrong)) == 3
    assert len(asked.right) == (5 if kind == "K" else 1)


def test_pairs_and_problems():
  pairs, flipped = (
      bench_world.bench_pairs(size=400, world=0, dialect="b", flip=flip) for flip in (0.0, 0.45))
  right = lambda prompt, text, dialect: bench_world.is_right(
      0, prompt, bench_world.understood(text, dialect))
  better = [right(p.prompt, p.responses[0], "b") for p in (pairs[i] for i in range(400))]
  assert all(better)
  assert np.mean([pairs[i].responses == flipped[i].responses for i in range(400)]) == pytest.approx(
      0.55, abs=0.07)
  problems = bench_world.bench_problems(size=400, world=0, careless=0.4)
  worked = [right(p.prompt, p.solution, "a") for p in (problems[i] for i in range(400))]
  assert np.mean(worked) == pytest.approx(0.6, abs=0.07)
  heldout = bench_world.bench_records(size=140, world=0)
  assert not {pairs[i].prompt for i in range(400)} & {heldout[i].prompt for i in range(140)}


def test_the_benchmark_in_the_hands_of_known_scorers():
  records = bench_world.bench_records(size=140, world=0)

  def oracle(rows):
    return [[float(any(bench_world.is_right(0, prompt, bench_world.understood(r, d)) for d in "ab"))
             for r in responses]
            for prompt, responses in rows]
  oracle.by_prompt = True
  found = reward_models.judge(oracle, records).estimates
  assert all(found[f"top1/{d}"].value == 1 for d in bench_world.DOMAINS.values() if d != "ties")
  assert found["ties"].value == pytest.approx(1 + 0.01 * 1.0)  # No spread: tanh(inf).
  assert found["accuracy/average"].value == pytest.approx(1)

  def constant(rows):
    return [[0.0] * len(responses) for _, responses in rows]
  constant.by_prompt = True
  found = reward_models.judge(constant, records).estimates
  assert all(found[f"top1/{d}"].value == 0.25 for d in bench_world.DOMAINS.values() if d != "ties")
  assert found["ties"].value == 0 and found["top1/average"].value == pytest.approx(5 * 0.25 / 6)
  ids = [records[i].id for i in range(140)]
  assert sum(i.startswith("ref:") for i in ids) == sum(i.startswith("tied:") for i in ids) == 20
  tied = {r.id.split(":")[1]: r for r in (records[i] for i in range(140))
          if r.domain == "ties" and r.id.startswith("tied")}
  for r in (records[i] for i in range(140)):
    if r.id.startswith("ref:"):
      other = tied[r.id.split(":")[1]]  # Of one topic, in one dialect.
      assert r.prompt[1] == other.prompt[1]
      assert r.responses[0].startswith("-") == other.responses[0].startswith("-")
    assert len(set(r.responses)) == len(r.responses) == (8 if r.id.startswith("tied:") else 4)
  # Both dialects are there.
  assert len({r.responses[0].startswith("-") for r in tied.values()}) == 2


@pytest.mark.parametrize("make, arguments, message", [
    (bench_world.bench_pairs, dict(flip=2), r"flip must be in \[0, 1\]"),
    (bench_world.bench_pairs, dict(dialect="c"), "Unknown dialect"),
    (bench_world.bench_problems, dict(part="test"), "Unknown part 'test'"),
    (bench_world.bench_records, dict(size=8), "size must be a multiple of 7")])
def test_worlds_that_cannot_be(make, arguments, message):
  with pytest.raises(ValueError, match=message):
    make(**{"size": 7, "world": 0, **arguments})


def test_pearson_by_hand():
  # r = 0.5, atanh 0.5 = 0.5493; 1.96 / sqrt(25 - 3) = 0.4179: tanh(0.1314) to tanh(0.9672).
  x = np.tile([-1.0, -1, 1, 1, 0], 5)
  y = np.tile([-1.0, 1, 1, 1, 0], 5)
  r = np.corrcoef(x, y)[0, 1]
  found = estimates.pearson(x, y)
  assert found[0] == pytest.approx(r)
  np.testing.assert_allclose(
      found[1:], np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.959964 / np.sqrt(22)), rtol=1e-6)
  assert estimates.pearson(x, -2 * x)[0] == pytest.approx(-1)
  for bad, message in (
      (np.ones(3), "four numbers at least"), (np.ones(25), "does not vary"),
      (np.full(25, np.nan), "finite")):
    with pytest.raises(ValueError, match=message):
      estimates.pearson(bad if len(bad) == 3 else x, bad)
  with pytest.raises(ValueError, match="confidence must be"):
    estimates.pearson(x, y, confidence=95)


def write_zoo(folder, dialects, rl, **numbers):
  """Writes what a finished run would hold of a zoo.

  That is each model's numbers, and what RL makes of it.
  """
  models = [f"rm{i:02d}" for i in range(len(dialects))]
  policies = [model.replace("rm", "rl") for model in models]
  (folder / "config.json").write_text(json.dumps(dict(
      seed=0, stages=["sft_a", "sft_b", *models, *policies, "after"],
      **{model: dict(start=f"sft_{dialect}") for model, dialect in zip(models, dialects)})))
  (folder / "metrics.jsonl").write_text("".join(
      json.dumps({"stage": policy, "step": 1, "reward/right": value}) + "\n"
      for policy, value in zip(policies, rl)))
  Workdir(folder).save_arrays("after", {f"zoo/{k}": np.array(v) for k, v in numbers.items()})


def test_numbers_of_the_claims_by_hand(tmp_path):
  score, rl = [.9, .8, .5, .3, .6, .2], [.95, .9, .7, .5, .6, .4]
  numbers = dict(
      best_of=[[x - .1, x + .1] for x in (.8, .6, .5, .4, .7, .3)], pairs=[.9] * 6,
      choices=[.7] * 6)
  write_zoo(tmp_path, "aaaabb", rl, score=score, **numbers)
  assert reward_bench_2.zoo(tmp_path)["dialect"] == list("aaaabb")
  assert reward_bench_2.range_ratio(tmp_path) == pytest.approx(.05 / .2)
  # The first b beats the third and the fourth a.
  assert reward_bench_2.worst_mismatch(tmp_path) == pytest.approx(.7 - .6)
  assert reward_bench_2.mean(tmp_path, of="pairs", less="choices") == pytest.approx(.2)
  # Scores less their mean .55: 35 25 -5 -25 5 -35, best of 16 less .55: 25 5 -5 -15 15 -25: 2350
  # / sqrt(3750 * 1750).
  assert reward_bench_2.correlation(tmp_path) == pytest.approx(2350 / np.sqrt(3750 * 1750))
  with_rl = reward_bench_2.correlation(tmp_path, gain="rl")
  assert with_rl == pytest.approx(np.corrcoef(score, rl)[0, 1])
  write_zoo(tmp_path, "aaaabb", rl, score=[*score[:4], .1, .2], **numbers)
  assert reward_bench_2.worst_mismatch(tmp_path) == -1


def quality(prompt, response):
  answers = [bench_world.understood(response, dialect) for dialect in "ab"]
  return float(any(bench_world.is_right(0, prompt, answer) for answer in answers))


# An oracle, a constant one, one that fails on what is right, and one that is blind to ties.
KNOWN = {
    "rm00": quality,
    "rm01": lambda *_: 0.0,
    "rm02": lambda *row: np.nan if quality(*row) else 0.0,
    "rm03": lambda prompt, response: 0.0 if prompt[0] in "Kk" else quality(prompt, response),
}


class KnownModel:
  """Stands in place of a trained reward model (scorers.scorer.Scorer)."""

  def __init__(self, name):
    self.score = KNOWN[name]

  def encode_rows(self, rows, read=""):
    return list(rows)

  def __call__(self, rows):
    return [types.SimpleNamespace(totals=np.array([[self.score(prompt, r)] for r in responses]))
            for prompt, responses in rows]


def test_the_zoo_of_known_models():
  # One right among sixteen (a blank one too), and none.
  completions = [*("1.", "", *["2."] * 14), *["3."] * 16]

  def sample(problems, sampling, *, policy, group_size, seed):
    assert (len(problems), policy, group_size, seed) == (2, "sft_a", 16, 2)
    meta = dict(world=0, dialect="a")
    return [Sample(prompt="M47xy=", completion=c, reference="", metadata=meta)
            for c in completions], None
  sections = dict.fromkeys(["sft_a", "sft_b", *KNOWN, "rl00"])
  probe = types.SimpleNamespace(
      sample=sample, scorer=KnownModel, context=types.SimpleNamespace(
          seed=0, earlier=types.SimpleNamespace(sections=sections)))
  found = reward_bench_2.judged_zoo(probe, num_problems=2)
  assert found["choices"].tolist() == [1, .25, 0, 1]
  assert found["pairs"].tolist() == [1, .5, 0, 1]
  # The third: all right ones below, alike.
  expected = [(5 + 1.01) / 6, 5 * .25 / 6, -0.01 / 6, 5 / 6]
  assert found["score"] == pytest.approx(expected)
  # What failed never wins.
  np.testing.assert_allclose(found["best_of"], [[1, 0], [1 / 16, 0], [0, 0], [1, 0]], atol=1e-7)


def test_completions_of_any_kind_score():
  meta = dict(world=0, dialect="a")
  samples = [Sample(prompt="M47xy=", completion=c, reference="", metadata=meta)
             for c in ("1.", "1", "", "-1,", "2.", "...")]
  assert reward_bench_2.right(samples).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.slow  # Eight stages, each of which compiles.
def test_experiment_end_to_end_small(tmp_path):
  train.train(config_lib.load("experiments/reward_bench_2.py:zoo-tiny"), tmp_path)
  assert sum("reward/right" in x for x in metrics.read_metrics(tmp_path)) == 6
  judged = measures.arrays(tmp_path, "after", "zoo")
  assert judged["best_of"].shape == (3, 4)
  found = reward_bench_2.zoo(tmp_path)
  assert found["dialect"] == ["a", "a", "b"]
  assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
      ("dialect", "score", "pairs", "choices", "best_of", "rl"), 3)
  assert all(0 <= x <= 1 for name in ("pairs", "choices", "best_of", "rl") for x in found[name])


def test_configs_of_all_sizes():
  for size in ("zoo", "full"):
    config_lib.check(config_lib.load(f"experiments/reward_bench_2.py:{size}"))
  with pytest.raises(ValueError, match="Unknown arm 'zo'"):
    reward_bench_2.get_config("zo")
