"""Claims: what they may say, verdicts worked by hand, and tiny ones that are measured.

The real runs that measure them are killed and resumed.
"""

import dataclasses
import fcntl
import json
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from rl_reason import train as train_lib
from rl_reason.claims import __main__ as command
from rl_reason.claims import declaration, judgement, measures, plan, results
from rl_reason.claims import folder as runs
from rl_reason.claims.judgement import Measured
from rl_reason.reporting.metrics import MetricWriter, read_metrics
from rl_reason.run import config as config_lib
from rl_reason.run.workdir import Workdir
from tests import environment, ROOT

# Declarations.

SECTION = dict(
    title="More is better", sentence="More is better.", paper="Someone 2024",
    arms=dict(more=dict(), less=dict()),
    metric=dict(function="last", args=dict(name="loss")), treatment="more", baseline="less",
    direction="higher", threshold=0.0, matched=())


def claim(**fields):
  return declaration.parse({**SECTION, **fields})


@pytest.mark.parametrize("fields, message", [
    (dict(treshold=1.0), r"no field 'treshold'. Did you mean 'threshold'"),
    (dict(treatment="mor"), r"Unknown treatment 'mor'. Did you mean 'more'"),
    (dict(baseline=""),
     "compare='difference' needs a baseline arm, and none is named: set baseline to one of less"),
    (dict(baseline="more"), "cannot be compared with itself"),
    (dict(baseline="", compare="absolute", matched=("tokens",)), "there is no baseline arm"),
    (dict(direction="up"), "must be one of 'higher', 'lower'"),
    (dict(threshold=float("nan")), "threshold must be a number"),
    (dict(compare="ratio"), "above 0 for a ratio"), (dict(seeds=1), "seeds must be at least 2"),
    (dict(metric=dict(function="lats", args={})), "Did you mean 'last'"),
    (dict(metric=dict(function="last", args=dict(nam="loss"))),
     "takes no argument 'nam'. Did you mean 'name'"),
    (dict(metric=dict(function="last")), "needs the argument name"),
    (dict(arms={"more": dict(override={}), "less": {}}), r"arms\['more'\] has no field 'override'"),
    (dict(arms={"more/": {}, "less": {}}), "names a folder"),
    (dict(arms={"more": dict(overrides={"seed": 3}), "less": {}}), "overrides sets seed"),
    (dict(matched="tokens"), "must be a tuple"),
    (dict(also=dict(first=dict(function="lats", args={}))), "Did you mean 'last'"),
    (dict(also=dict(first=dict(function="last", arg={}))), r"also\['first'\] has no field 'arg'"),
])
def test_a_claim_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    claim(**fields)


def test_a_claim_about_one_arm_needs_no_baseline():
  assert claim(baseline="", compare="absolute").pair == ("more",)


EXPERIMENT = '''
from ml_collections import ConfigDict
from rl_reason.experiments import quickstart

CLAIMS = {claims}

def get_config(size="tiny"):
  tiny = quickstart.get_config(size)
  return ConfigDict(dict(
      seed=0, stages=("fit",), policy=tiny.policy, checkpoint=dict(every=10), mesh=dict(fsdp=1),
      fit=dict(kind="tests.claims.descent:KIND", num_steps={steps}, learning_rate=0.1,
               seconds=0.02)))
'''
LEARNS = {**SECTION, "arms": dict(learns=dict(), stays=dict(overrides={"fit.learning_rate": 0.0})),
          "treatment": "learns", "baseline": "stays",
          "metric": dict(function="last", args=dict(name="loss", stage="fit")),
          "direction": "lower", "matched": ("tokens", "updates"), "seeds": 2}
# A second stage after the same first one.
AGAIN = dict(kind="tests.claims.descent:KIND", num_steps=3, learning_rate=0.01)
TWICE = {**LEARNS, "title": "Twice is better",
         "treatment": "again", "baseline": "learns", "matched": (),
         "metric": dict(function="last", args=dict(name="loss")),
         "also": {"first": dict(function="last", args=dict(name="loss", stage="fit")),
                  "second": dict(function="last", args=dict(name="loss", stage="again"))},
         "arms": dict(learns=dict(),
                      again=dict(overrides={"stages": ("fit", "again"), "again": AGAIN}))}


@pytest.fixture
def experiment(tmp_path):
  """(claims, steps) -> the file of a small experiment."""
  def write(claims, steps=4):
    file = tmp_path / "experiments" / "small.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(EXPERIMENT.format(claims=repr(claims), steps=steps))
    return file
  return write


@pytest.mark.parametrize("arm, message", [
    (dict(overrides={"fit.num_stebs": 2}),
     "small.py: CLAIMS.'a'..arms.'learns'.: config.fit has no field 'num_stebs'. Did you mean"
     " 'num_steps'"),
    (dict(overrides={"fid.num_steps": 2}), "no section 'fid'. Did you mean 'fit'"),
    (dict(overrides={"fit.num_steps": "two"}), "config.fit.num_steps must be int, got 'two'"),
    (dict(config="huge"), "Unknown size 'huge'"),
])
def test_an_arm_that_cannot_be_is_refused_before_anything_runs(experiment, arm, message):
  with pytest.raises(ValueError, match=message):
    declaration.load(str(experiment({"a": {**LEARNS, "arms": {**LEARNS["arms"], "learns": arm}}})))


def test_an_arm_replaces_fields_and_whole_sections(experiment):
  other = dict(source="small", args=dict(characters="ab", width=8, num_layers=1))
  arm = dict(overrides={"fit.num_steps": 2, "policy": other, "checkpoint.keep": 3})
  loaded = declaration.load(str(experiment({
      "a": {**LEARNS, "arms": {**LEARNS["arms"], "learns": arm}}})))
  learns, stays = loaded.configs["a"]["learns"], loaded.configs["a"]["stays"]
  assert (learns.fit.num_steps, stays.fit.num_steps) == (2, 4)
  assert (learns.fit.learning_rate, stays.fit.learning_rate) == (0.1, 0.0)
  assert learns.policy.to_dict() == other
  assert learns.checkpoint.to_dict() == {"every": 10, "keep": 3}
  assert learns.seed == 0


def test_a_rehearsals_argument_stands_behind_an_arms_own(experiment):
  file = experiment({"a": {**LEARNS, "arms": {**LEARNS["arms"], "learns": dict(config="huge")}}})
  with pytest.raises(ValueError, match="Unknown size 'huge-tiny'"):
    declaration.load(f"{file}:tiny")


def test_an_experiment_without_claims_is_refused(experiment):
  with pytest.raises(ValueError, match="states no claim"):
    declaration.load(str(experiment({})))


# Measures.


@pytest.fixture
def folder(tmp_path):
  with MetricWriter(tmp_path / "run") as writer:
    writer.write("sft", 1, {"loss": 9.0, "tokens": 5})
    for step, loss in ((2, 3.0), (4, 1.0), (8, 2.0)):
      writer.write("rl", step, {"loss": loss, "tokens": 10})
  return tmp_path / "run"


@pytest.mark.parametrize("function, arguments, value", [
    ("last", dict(name="loss"), 2.0), ("last", dict(name="loss", points=2), 1.5),
    ("last", dict(name="loss", stage="sft"), 9.0),
    ("highest", dict(name="loss"), 3.0), ("lowest", dict(name="loss"), 1.0),
    ("area", dict(name="loss"), (2 * 2 + 4 * 1.5) / 6),  # Trapezoids of width 2 and 4.
    ("area", dict(name="loss", stage="sft"), 9.0),
    ("steps_to", dict(name="loss", target=1.5, below=True), 4.0),
    ("steps_to", dict(name="loss", target=3.0), 2.0),
    ("steps_to", dict(name="loss", target=10.0, never=8), 8.0),
    ("total", dict(name="loss"), 6.0), ("total", dict(name="loss", stage="sft"), 9.0),
])
def test_measures_by_hand(folder, function, arguments, value):
  assert measures.measure(folder, function, arguments) == pytest.approx(value)


def test_measures_refuse_what_there_is_not(folder):
  with pytest.raises(ValueError, match="logged no 'los'. Did you mean 'loss'"):
    measures.last(folder, name="los")
  with pytest.raises(ValueError, match="never had 'loss' at least 10.*nearest was 3.*Give `never`"):
    measures.steps_to(folder, name="loss", target=10.0)
  assert measures.totals(folder) == {"loss": 15.0, "tokens": 35.0}


# Verdicts.


def measured(more, less, *, tokens=((10, 10, 10), (10, 10, 10))):
  return [Measured(arm, seed, "finished", value=value, totals={"tokens": tokens[i][seed]})
          for i, (arm, values) in enumerate((("more", more), ("less", less)))
          for seed, value in enumerate(values)]


# Differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t = 4.30265, so 0.2 ± 0.24841.
RUNS = measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])


@pytest.mark.parametrize("direction, threshold, verdict", [
    ("higher", -0.05, "holds"), ("higher", 0.0, "undecided"), ("higher", 0.44, "undecided"),
    ("higher", 0.45, "does not hold"),
    ("lower", 0.45, "holds"), ("lower", 0.0, "undecided"), ("lower", -0.04, "undecided"),
    ("lower", -0.05, "does not hold"),
])
def test_verdicts_by_hand(direction, threshold, verdict):
  found = judgement.judge(claim(direction=direction, threshold=threshold), RUNS, 3)
  assert found.verdict == verdict
  assert found.effect == pytest.approx(0.2)
  assert found.effects == pytest.approx([0.1, 0.2, 0.3])
  np.testing.assert_allclose(found.interval, [-0.04841, 0.44841], atol=1e-5)
  # The noncentral t with 2 degrees exceeds 4.30265 four times in five at noncentrality 5.65349.
  assert found.detectable == pytest.approx(5.65349 * 0.1 / 3 ** 0.5, rel=1e-4)


def test_pairing_removes_what_seeds_have_in_common():
  apart = measured([1.11, 5.1, 9.09], [1.0, 5.0, 9.0])
  assert judgement.judge(claim(), apart, 3).verdict == "holds"
  shuffled = measured([5.1, 9.09, 1.11], [1.0, 5.0, 9.0])
  assert judgement.judge(claim(), shuffled, 3).verdict == "undecided"


def test_a_ratio_is_judged_on_a_logarithmic_scale():
  found = judgement.judge(
      claim(compare="ratio", threshold=1.0), measured([2.0, 4.0, 8.0], [1.0, 1.0, 1.0]), 3)
  # Logarithms 1, 2, 3 times log 2: mean 2 log 2, s = log 2, half width
  # 4.30265 / √3 · log 2 = 2.48414 log 2.
  assert found.effect == pytest.approx(4.0) and found.verdict == "undecided"
  np.testing.assert_allclose(found.interval, [2 ** (2 - 2.48414), 2 ** (2 + 2.48414)], rtol=1e-4)
  negative = judgement.judge(
      claim(compare="ratio", threshold=1.0), measured([2.0, 4.0], [1.0, 0.0]), 2)
  assert negative.verdict == "invalid" and "positive" in negative.reason


def test_an_absolute_claim_is_about_the_treatment_alone():
  absolute = claim(compare="absolute", baseline="", threshold=0.25)
  treatment = [m for m in RUNS if m.arm == "more"]
  assert judgement.judge(absolute, treatment, 3).effects == [0.5, 0.7, 0.9]
  assert judgement.judge(absolute, RUNS, 3).verdict == "undecided"  # 0.7 ± 0.497.


@pytest.mark.parametrize("lost, told", [
    (dict(status="failed", error="ValueError: no"), r"less with seed 1 failed \(ValueError: no\)"),
    (dict(status="stopped"), "less with seed 1 stopped early"),
    (dict(status="diverged", error="its metric is nan"), r"diverged \(its metric is nan\)"),
    (dict(status="unmeasured", error="no loss"), "has no such number")])
def test_no_verdict_on_missing_data(lost, told):
  incomplete = [
      dataclasses.replace(m, value=None, **lost) if (m.arm, m.seed) == ("less", 1) else m
      for m in RUNS]
  found = judgement.judge(claim(threshold=-0.05), incomplete, 3)
  assert found.verdict == "missing" and found.effect is None and found.interval is None
  assert found.reason.startswith("1 of 6 runs are missing: ")
  assert re.search(told, found.reason)
  reason = judgement.judge(claim(), RUNS[:3], 3).reason
  assert reason.startswith("3 of 6 runs are missing: less with seed 0 was not run")


def test_an_arm_that_is_not_compared_may_be_missing():
  other = Measured("other", 0, "failed", "no")
  arms = dict(more=dict(), less=dict(), other=dict())
  assert judgement.judge(claim(arms=arms, threshold=-0.05), [*RUNS, other], 3).verdict == "holds"


def test_arms_at_unequal_cost_are_not_compared():
  matched = claim(threshold=-0.05, matched=("tokens",), tolerance=0.05)
  within = measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6], tokens=((100, 100, 96), (100, 97, 100)))
  assert judgement.judge(matched, within, 3).verdict == "holds"
  beyond = measured([0.5, 0.7, 0.9], [0.4, 0.5, 0.6], tokens=((100, 100, 94), (100, 97, 100)))
  found = judgement.judge(matched, beyond, 3)
  assert found.verdict == "invalid" and found.effect is None
  assert "more had 94 and less 100 with seed 2, 6% apart" in found.reason
  assert found.cost["tokens"] == {"more": [100, 100, 94], "less": [100, 97, 100]}
  uncounted = judgement.judge(claim(matched=("environment_calls",)), RUNS, 3)
  assert uncounted.verdict == "invalid"
  assert "'environment_calls' must match, and a run logged none" in uncounted.reason


def test_equal_effects_are_told():
  equal = measured([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
  assert "to the bit" in judgement.judge(claim(), equal, 3).reason


def test_the_table_of_arms_by_hand():
  table = claim(also=dict(steps=dict(function="last", args=dict(name="loss"))),
                arms=dict(more={}, less={}, other={}))
  runs_ = [dataclasses.replace(m, also={"steps": steps})
           for m, steps in zip(RUNS, (2.0, None, 4.0, 5.0, None, None))]
  columns, rows = judgement.arms_table(table, [*runs_, Measured("other", 0, "failed", "no")])
  assert columns == ["arm", "last loss", "steps", "runs"]
  # 0.7 ± 4.30265 · 0.2 / √3; of two values, 3 ± 12.7062 · √2 / √2.
  assert rows == [["more", "0.7 (0.203 to 1.2)", "3 (-9.71 to 15.7), 1 without", "3"],
                  ["less", "0.5 (0.252 to 0.748)", "5, 2 without", "3"],
                  ["other", "-, 1 without", "-, 1 without", "0"]]


# Shared stages.


def arms_run(configs, seeds=1):
  """Runs of arms with these stages, each {stage: its learning rate}."""
  return [plan.Run("small.py", "a", arm, seed, {
      "seed": seed, "logging": {"profile": arm}, "unused": {"kind": "sft", "lr": arm},
      "stages": [*stages],
      **{k: {"kind": "sft", "num_steps": 1, "lr": v} for k, v in stages.items()}}, {})
          for seed in range(seeds) for arm, stages in configs.items()]


def beginnings(configs, seeds=1):
  """[(label, seed, label of what it begins from)], in the order planned."""
  runs_ = plan.with_beginnings(arms_run(configs, seeds))
  return [(r.label, r.seed, r.begins and r.begins.label) for r in runs_]


def test_leading_stages_that_arms_share_are_trained_once():
  assert beginnings({"x": dict(sft=1, rl=1), "y": dict(sft=1, rl=2), "z": dict(sft=2, rl=1)}) == [
      ("sft", 0, None), ("x", 0, "sft"), ("y", 0, "sft"), ("z", 0, None)]
  assert beginnings({
      "x": dict(sft=1, rm=1, rl=1), "y": dict(sft=1, rm=1, rl=2),
      "z": dict(sft=1, rm=2, rl=1)}) == [
      ("sft", 0, None), ("sft+rm", 0, "sft"), ("x", 0, "sft+rm"), ("y", 0, "sft+rm"),
      ("z", 0, "sft")]
  # Another arm is the beginning, wherever it stands, and each seed has its own.
  assert beginnings({"x": dict(sft=1, rl=1), "only": dict(sft=1)}, seeds=2) == [
      ("only", 0, None), ("x", 0, "only"), ("only", 1, None), ("x", 1, "only")]
  # The same stages under another name, or after another stage, are other stages.
  assert beginnings({"x": dict(a=1, sft=1, rl=1), "y": dict(b=1, sft=1, rl=1)}) == [
      ("x", 0, None), ("y", 0, None)]
  assert beginnings({"x": dict(sft=1, rl=1), "y": dict(sft=1, rl=1)}) == [
      ("sft", 0, None), ("x", 0, "sft"), ("y", 0, "sft")]


def test_an_interrupted_take_over_is_done_again_and_a_begun_run_keeps_its_own(tmp_path):
  begins, mine = tmp_path / "begins", tmp_path / "mine"
  for name, text in (("checkpoints/sft/1", "whole"), ("samples/sft-1.json", "[]"),
                     ("metrics.jsonl", "one\n")):
    (begins / name).parent.mkdir(parents=True, exist_ok=True)
    (begins / name).write_text(text)
  (mine / "checkpoints/sft").mkdir(parents=True)
  (mine / "checkpoints/sft/1").write_text("half")
  runs.take_over(begins, Workdir(mine), {"seed": 0})
  assert (mine / "checkpoints/sft/1").read_text() == "whole"
  assert (mine / "metrics.jsonl").read_text() == "one\n"
  assert [*runs.lineage(mine)] == [mine, begins]
  assert json.loads((mine / "config.json").read_text()) == {"seed": 0}
  (mine / "metrics.jsonl").write_text("one\ntwo\n")
  (mine / "checkpoints/sft/1").write_text("further")
  runs.take_over(begins, Workdir(mine), {"seed": 0})
  assert (mine / "checkpoints/sft/1").read_text() == "further"
  assert lines(mine / "metrics.jsonl") == 2


# Whole claims: real runs, side by side.

FAILS = {**LEARNS, "title": "It fails",
         "arms": {**LEARNS["arms"], "learns": dict(overrides={"fit.fails_with": 1})}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  """A folder where a command was killed while its runs were under way, and repeated to its end.

  The signal was SIGKILL.
  """
  folder = tmp_path_factory.mktemp("claims")
  (folder / "experiments").mkdir()
  claims = {"learns": LEARNS, "fails": FAILS, "twice": TWICE}
  (folder / "experiments" / "small.py").write_text(EXPERIMENT.format(claims=repr(claims), steps=40))
  (folder / "docs").mkdir()
  (folder / results.PAGE).write_text(f"# Mine\n\n{results.BEGIN}\n{results.END}\n\nThe end.\n")
  process = start(folder)
  try:
    wait_for(lambda: any(lines(m) > 1 for m in folder.glob("runs/**/metrics.jsonl")))
  finally:
    process.kill()
    process.wait()
  # The runs noticed: each let go of its folder, long before its end.
  wait_for(lambda: all(map(free, folder.glob("runs/**/lock"))))
  killed = {m.parent: lines(m) for m in folder.glob("runs/**/metrics.jsonl")}
  process = start(folder)
  output, _ = process.communicate(timeout=300)
  return folder, killed, output, process.returncode


def start(folder, *arguments):
  return subprocess.Popen(
      [sys.executable, "-m", "rl_reason.claims", "experiments/small.py", *arguments], cwd=folder,
      text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
      env=environment(folders=[folder]))


def lines(path):
  return path.read_text().count("\n")


def free(lock):
  with lock.open() as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
  return True


def wait_for(condition, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "It did not come."
    time.sleep(0.1)


def record_of(folder, name):
  return json.loads((folder / f"experiments/results/small/{name}.json").read_text())


def test_a_killed_command_ends_its_runs_and_the_same_command_finishes_them(bench):
  folder, killed, output, _ = bench
  assert killed and min(killed.values()) < 41
  # Those of the one stage: "learns" and "stays".
  for run in folder.glob("runs/claims/small/*s-*/seed*"):
    if (run / runs.FINISHED).exists():
      steps = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
      assert steps == [*range(1, 41), 40]  # The end has a line of its own.
  assert "learns, seed 0: finished after" in output


def test_a_claim_that_holds_is_recorded_drawn_and_listed(bench):
  folder, _, output, _ = bench
  record = record_of(folder, "learns")
  assert record["verdict"] == "holds" and record["interval"][1] < 0 and "HOLDS: " in output
  assert [(m["arm"], m["seed"], m["status"]) for m in record["runs"]] == [
      (arm, seed, "finished") for seed in (0, 1) for arm in ("learns", "stays")]
  assert record["effects"] == [
      record["runs"][i]["value"] - record["runs"][i + 1]["value"] for i in (0, 2)]
  assert record["cost"]["updates"] == {"learns": [40, 40], "stays": [40, 40]}
  assert record["test"]["threshold"] == 0.0
  assert record["configs"]["stays"]["fit"]["learning_rate"] == 0
  assert record["code"]["NoProblems"] and record["versions"]["jax"] and record["earlier"] == []
  image = (folder / "experiments/results/small/learns.png").read_bytes()
  assert image[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", image[16:20]) == (1200,)
  page = (folder / results.PAGE).read_text()
  table = results.table(results.all_records(folder / "experiments/results"))
  assert page == f"# Mine\n\n{results.BEGIN}\n{table}\n{results.END}\n\nThe end.\n"
  assert "[More is better](../experiments/results/small/learns.json)" in table
  assert "[holds](" in table


def test_a_seed_that_crashes_stops_no_other_and_there_is_no_verdict(bench):
  folder, _, output, status = bench
  record = record_of(folder, "fails")
  assert status == 1 and record["verdict"] == "missing" and record["effect"] is None
  assert record["reason"].startswith(
      "1 of 4 runs are missing: learns with seed 1 failed (RuntimeError: not this one)")
  assert [m["status"] for m in record["runs"]] == ["finished", "finished", "failed", "finished"]
  assert "It fails: 1 of 4 runs are missing" in (folder / results.PAGE).read_text()
  assert "MISSING: " in output
  assert (folder / "experiments/results/small/fails.png").exists()


def test_claims_share_the_runs_of_equal_arms(bench):
  folders = sorted(p.name.partition("-")[0] for p in bench[0].glob("runs/claims/small/*"))
  assert folders == ["again", "learns", "learns", "stays"]


def test_a_run_that_took_over_its_first_stage_equals_one_that_trained_it(bench, tmp_path):
  folder = bench[0]
  record = record_of(folder, "twice")
  took, = folder.glob("runs/claims/small/again-*/seed1")
  assert [p.parent.name.partition("-")[0] for p in runs.lineage(took)] == ["again", "learns"]
  config = declaration.load(str(folder / "experiments/small.py")).configs["twice"]["again"]
  with config.unlocked():
    config.seed = 1
  train_lib.train(config, tmp_path / "alone", plain=True)

  def logged(path):
    return [{k: v for k, v in line.items() if not k.startswith("time/")}
            for line in read_metrics(path)]
  assert logged(took) == logged(tmp_path / "alone")
  assert record["arms"]["columns"] == ["arm", "last loss", "first", "second", "runs"]
  assert record["arms"]["rows"][0][3] == "-, 2 without"
  # The shared stage is counted once: the total is that of both arms' own seconds.
  assert record["seconds"] == pytest.approx(sum(m["seconds"] for m in record["runs"]), abs=1)


def test_a_result_is_stale_when_the_claim_the_config_or_the_code_changed(
    bench, monkeypatch, capsys):
  folder = bench[0]
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  file = folder / "experiments/small.py"
  original, path = file.read_text(), folder / "experiments/results/small/learns.json"
  record = path.read_text()
  try:
    assert results.stale(declaration.load(str(file)), "learns") == []
    file.write_text(original.replace("num_steps=40", "num_steps=41"))
    assert results.stale(declaration.load(str(file)), "learns") == [
        "learns: fit.num_steps was 40 and is 41", "stays: fit.num_steps was 40 and is 41"]
    file.write_text(original)
    code = {**json.loads(record)["code"], "NoProblems": "0"}
    path.write_text(json.dumps({**json.loads(record), "code": code}))
    assert results.stale(declaration.load(str(file)), "learns") == ["code of NoProblems"]
    assert command.main(["--list", "--stale", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "small/learns" in shown and "code of NoProblems" in shown and "small/fails" not in shown
    path.write_text(record.replace('"name": "learns"', '"name": "other"'))
    message = "is the record of claim 'other' of 'small', not of 'learns'"
    with pytest.raises(ValueError, match=message):
      results.stale(declaration.load(str(file)), "learns")
    path.write_text("{}")
    with pytest.raises(ValueError, match="no record of a claim"):
      results.stale(declaration.load(str(file)), "learns")
  finally:
    file.write_text(original)
    path.write_text(record)


def test_a_threshold_changed_after_the_result_is_told_for_good(bench, monkeypatch, capsys):
  folder = bench[0]
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  file = folder / "experiments/small.py"
  original = file.read_text()
  before = record_of(folder, "learns")
  file.write_text(original.replace("'threshold': 0.0", "'threshold': -100.0", 1))
  assert command.main([str(file), "--claim=learns"]) == 0  # No run is done again.
  assert "runs to do" not in capsys.readouterr().out
  after = record_of(folder, "learns")
  assert after["verdict"] == "does not hold"
  file.write_text(original)
  assert command.main([str(file), "--claim=learns"]) == 0
  again = record_of(folder, "learns")
  assert again["verdict"] == "holds"
  assert [e["verdict"] for e in again["earlier"]] == ["holds", "does not hold"]
  assert [e["changed"] for e in again["earlier"]] == [
      ["threshold was 0.0 and is -100.0"], ["threshold was -100.0 and is 0.0"]]
  assert again["earlier"][0]["digests"] == before["digests"]
  assert again["earlier"][0]["digests"] != after["digests"]
  assert "then changed: threshold was 0.0 and is -100.0." in (folder / results.PAGE).read_text()


@pytest.mark.slow  # Three processes, 30 s. tests/reporting/test_exits.py has the statuses.
def test_ctrl_c_stops_the_runs_saved(experiment, tmp_path):
  experiment({"a": LEARNS}, steps=100_000)
  process = start(tmp_path)
  try:
    wait_for(lambda: any(lines(m) > 3 for m in tmp_path.glob("runs/**/metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
  finally:
    process.kill()
  assert process.returncode == 130 and "the same command continues" in output
  assert all(map(free, tmp_path.glob("runs/**/lock")))
  assert any(tmp_path.glob("runs/**/checkpoints/fit/*"))
  assert not (tmp_path / "experiments/results").exists()


def test_arguments_that_cannot_be(experiment):
  file = str(experiment({"a": LEARNS}))
  for arguments, message in (
      ([], "Say which claims"), ([file, "--claim=b"], "Unknown claim 'b'"),
      (["experiments/quickstat.py"], "Did you mean")):
    with pytest.raises(SystemExit, match=message):
      command.main(arguments)


def test_one_seed_is_a_mistake_on_the_command_line(experiment, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main([str(experiment({"a": LEARNS})), "--seeds=1"])
  assert ended.value.code == 2
  assert "--seeds: must be a whole number of at least 2, got '1'" in capsys.readouterr().err


# What is committed.


def test_the_table_in_the_documentation_says_what_the_results_say():
  page = (ROOT / results.PAGE).read_text()
  text = page.partition(results.BEGIN)[2].partition(results.END)[0].strip("\n")
  assert text == results.table(results.all_records(ROOT / "experiments/results"))


def test_every_claim_of_the_library_can_be_measured_and_rehearsed_and_has_its_figure():
  files = [f for f in config_lib.installed_experiments().values()
           if hasattr(config_lib.load_experiment(f), "CLAIMS")]
  assert files
  for file in files:
    loaded = declaration.load(str(file))
    declaration.load(f"{file}:tiny")
    for name in loaded.claims:
      record = results.read(loaded, name)
      assert record is None or (results.folder(loaded) / f"{name}.png").exists()
