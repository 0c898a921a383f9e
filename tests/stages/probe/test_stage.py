"""Probes: functions of what earlier stages made run once each, and what they find is kept."""

import json

from ml_collections import ConfigDict
import numpy as np
import pytest

from rl_reason.claims import measures
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as config_lib
from rl_reason.stages.probe import stage as probe_stage
from rl_reason.train import train

HERE = __name__
CALLS = []


def lengths(probe, *, policy, count=3):
  """Lengths of `count` completions of each of two held-out problems, and their mean."""
  CALLS.append(policy)
  problems = [probe.context.task.heldout[i] for i in range(2)]
  samples, completions = probe.sample(
      problems, Sampling(max_tokens=5), policy=policy, group_size=count)
  assert [s.group for s in samples] == [0] * count + [1] * count
  return {"tokens": completions.lengths.reshape(2, count), "mean": completions.lengths.mean()}


def scores(probe):
  """Scores of two texts by the stage rm."""
  return {"scores": probe.scorer("rm").totals([("7+5-3=", "9"), ("7+5-3=", "1")])[:, 0]}


def nothing(probe):
  return {}


def words(probe):
  return {"text": "nine"}


def make_config(**functions):
  c = ConfigDict(
      dict(seed=0, max_prompt_tokens=12, stages=("sft", "rm", "after"), mesh=dict(fsdp=1)))
  c.policy = dict(source="small", args=dict(
      characters="0123456789+-=;#", width=32, num_layers=1, num_heads=2))
  c.task = dict(
      source="arithmetic", args=dict(seed=0, max_terms=3), train=dict(part="train", size=50),
      heldout=dict(part="heldout", size=8))
  c.sft = dict(kind="sft", num_steps=1, batch_size=8, max_completion_tokens=28,
               learner=dict(optimizer=dict(learning_rate=1e-2)))
  c.rm = dict(
      kind="reward_model", num_steps=1, batch_size=8, max_response_tokens=12,
      data=dict(source=f"{HERE}:pairs", args={}, train={}, heldout={"start": 100}),
      learner=dict(optimizer=dict(learning_rate=1e-3)))
  c.after = dict(kind="probe", functions=functions)
  c.evaluation = dict(rewards=dict(exact_answer=1.0), num_problems=8, batch_size=8,
                      sampling=dict(max_tokens=8))
  return c


def pairs(*, start=0):
  from rl_reason.types import Comparison
  return [Comparison(prompt=f"{start + i}=", responses=(str(start + i), "0;0"), scores=(1, 0),
                     id=str(start + i)) for i in range(1, 17)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose probe looks at both policies and at the reward model."""
  workdir = tmp_path_factory.mktemp("probed")
  CALLS.clear()
  train(make_config(
      before=dict(function=f"{HERE}:lengths", args=dict(policy="initial")),
      own=dict(function=f"{HERE}:lengths", args=dict(policy="", count=2)),
      liked=f"{HERE}:scores"), workdir, plain=True)
  return workdir


def test_numbers_are_logged_and_arrays_are_kept(run):
  before = measures.arrays(run, "after", "before")
  assert set(before) == {"tokens"}
  assert before["tokens"].shape == (2, 3)
  assert measures.arrays(run, "after", "own")["tokens"].shape == (2, 2)
  assert measures.last(run, name="before/mean", stage="after") == before["tokens"].mean()
  liked = measures.arrays(run, "after", "liked")["scores"]
  assert liked.shape == (2,) and np.isfinite(liked).all() and liked[0] != liked[1]


def test_each_function_is_a_step_that_trains_nothing(run):
  lines = [m for m in read_metrics(run) if m["stage"] == "after" and "updates" in m]
  assert [m["step"] for m in lines] == [1, 2, 3]
  assert all(m["updates"] == 0 and m["tokens"] == 0 for m in lines)
  assert CALLS == ["initial", ""]


def test_what_was_run_is_not_run_again(run):
  """A run that was killed before its last probe goes on there: the others' arrays stay."""
  files = sorted((run / "checkpoints" / "after").iterdir())
  assert files
  calls = list(CALLS)
  config = ConfigDict(json.loads((run / "config.json").read_text()))
  train(config, run, plain=True)
  assert CALLS == calls


def test_an_unknown_array_is_named(run):
  with pytest.raises(
      ValueError, match="no arrays of the function 'bfore' .* Did you mean 'before'"):
    measures.arrays(run, "after", "bfore")


@pytest.mark.parametrize("functions, message", [
    ({}, "functions names no function"),
    (dict(mine=b"x"), r"functions\['mine'\] must be a path 'package.module:function'"),
    (dict(mine=dict(function=f"{HERE}:lengths", args=[1])), "with a section `args`, got"),
    (dict(mine=dict(function=f"{HERE}:lenghts")), "has no function or class 'lenghts'"),
    (dict(mine=dict(function=f"{HERE}:lengths")), "needs the argument policy"),
    (dict(mine=dict(function=f"{HERE}:lengths", arg={})),
     r"functions\['mine'\] has unknown fields arg"),
    (dict(mine=dict(function=f"{HERE}:scores", args=dict(of=1))), "takes no argument 'of'"),
])
def test_functions_that_cannot_be_called_are_refused_before_any_stage(functions, message):
  with pytest.raises(ValueError, match=message):
    config_lib.check(make_config(**functions))


def test_a_run_without_a_task_can_be_probed():
  c = make_config(liked=f"{HERE}:scores")
  c.stages = ("rm", "after")
  del c.task
  _, sections = config_lib.check(c)
  assert list(sections) == ["rm", "after"]
  c.stages = ("sft", "after")
  with pytest.raises(ValueError, match="config.task is missing, and the stage 'sft'"):
    config_lib.check(c)


def test_what_holds_no_numbers_is_named():
  with pytest.raises(ValueError, match="The probe 'mine' must return a mapping"):
    probe_stage.split("mine", nothing(None))
  with pytest.raises(ValueError, match="returned text='nine', which holds no numbers"):
    probe_stage.split("mine", words(None))
  numbers, arrays = probe_stage.split("mine", {"a": True, "b": np.float32(2), "c": [1, 2]})
  assert numbers == {"a": 1.0, "b": 2.0}
  np.testing.assert_array_equal(arrays["c"], [1, 2])
