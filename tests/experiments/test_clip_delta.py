"""Sums with idle steps, their step scores, and the probe of repetition.

The experiment on Clip and Delta.
"""

import contextlib
import functools

import numpy as np
import pytest

from rl_reason import train
from rl_reason.experiments import clip_delta
from rl_reason.reporting import metrics
from rl_reason.rewards.composition import build, reward_set, shaping
from rl_reason.run import config as config_lib
from rl_reason.tasks.worlds import running_sums
from rl_reason.types import Sample

CLIP = functools.partial(shaping.clip, offset=0.9, high=0.0)


def values(work, prompt="4302="):
  return running_sums.step_values(prompt, work, modulus=5)


def test_sums_by_hand():
  # 4 + 3 = 7, + 0 = 7, + 2 = 9, modulo 5.
  assert running_sums.right_sums("4302=", 5) == "224"
  assert running_sums.right_sums("98=", 10) == "7"


def test_step_values_by_hand():
  assert values("224") == [1, 1, 1]
  assert values("N2NN24") == [1] * 6  # To do nothing keeps what there is.
  assert values("2N1N4") == [1, 1, 0.1, 0.1, 0.1]  # A sum that is right again does not mend it.
  assert values("2244") == [1, 1, 1, 0.1]  # One too many.
  assert values("2=4") == [1, 0.1, 0.1] and values("") == []
  with pytest.raises(ValueError, match="the prompt 'x=' is not two or more digits"):
    values("2", prompt="x=")


def test_solutions_slip_and_idle_as_often_as_they_are_told():
  source = running_sums.running_sums(size=2000, careless=0.12, idle=0.12)
  rows = [source[i] for i in range(len(source))]
  work = [running_sums.work_of(r.solution) for r in rows]
  assert np.mean([len(w) for w in work]) == pytest.approx(3.36, abs=0.05)
  clean = [values(w, r.prompt)[-1] == 1 for w, r in zip(work, rows)]
  assert np.mean(clean) == pytest.approx(0.88 ** 3, abs=0.03)
  assert all(r.metadata["solution_correct"] for r, c in zip(rows, clean) if c)
  perfect = running_sums.running_sums(size=50)
  assert all(
      perfect[i].solution
      == f"{running_sums.right_sums(perfect[i].prompt, 5)}#{perfect[i].reference}"
      for i in range(50))


def test_labelled_sums_are_the_solutions_with_whether_they_are_right():
  arguments = dict(size=40, careless=0.4, idle=0.1)
  problems = running_sums.running_sums(**arguments)
  labelled = running_sums.labelled_sums(**arguments)
  for i in range(40):
    assert labelled[i].responses == (problems[i].solution,)
    assert labelled[i].scores == (
        float(problems[i].solution.endswith(f"#{problems[i].reference}")),)


@pytest.mark.parametrize("arguments, message", [
    (dict(digits=1), "digits must be at least 2"), (dict(modulus=11), "modulus must be at most 10"),
    (dict(idle=1.5), r"idle must be in \[0, 1\]"),
    (dict(part="test"), "Unknown part 'test'"),
    (dict(size=0), "size must be")])
def test_sums_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    running_sums.running_sums(**{"size": 4, **arguments})


def sample(completion, truncated=False):
  return Sample(
      prompt="4302=", completion=completion, reference="4", truncated=truncated,
      metadata={"modulus": 5}, completion_tokens=tuple(range(len(completion) + (not truncated))))


def arm_returns(name, *completions):
  """Per completion the rewards of its tokens, by the small config of an arm.

  (text, True): the limit cut it.
  """
  with contextlib.closing(
      build.build_rewards(clip_delta.get_config(f"{name}-tiny").rl.rewards)) as built:
    samples = [sample(*x) if isinstance(x, tuple) else sample(x) for x in completions]
    return reward_set.token_rewards(
        built.score(samples), [len(s.completion_tokens) for s in samples], 15)


def test_rewards_of_the_arms_by_hand():
  # Tokens: the steps, "#", the answer, EOS, which the answer's reward is paid at.
  right, wrong = "224#4", "21N3#3"
  expected = {
      "sr": ([0, 0, 0, 0, 0, 1], [0] * 7),
      "pr": ([1, 1, 1, 0, 0, 1], [1, 0.1, 0.1, 0.1, 0, 0, 0]),
      "clip": ([0, 0, 0, 0, 0, 1], [0, -0.8, -0.8, -0.8, 0, 0, 0]),
      "delta": ([0, 1, 0, 0, 0, 1], [0.9, 0, 0.1, 0, 0, 0, 0]),
      "clip_delta": ([0, 0, 0, 0, 0, 1], [0.8, 0, -0.8, 0, 0, 0, 0])}
  for name, rows in expected.items():
    for got, row in zip(arm_returns(name, right, wrong), rows):
      np.testing.assert_allclose(got[:len(row)], row, atol=1e-6, err_msg=name)
      assert not got[len(row):].any()


def test_bad_completions_are_scored():
  for name in ("pr", "clip", "delta", "clip_delta"):
    rows = arm_returns(name, "", "#4", "2", ("N" * 15, True), "=#=#N")
    assert np.isfinite(rows).all()
    assert not rows[0].any() and rows[1].sum() == 1  # No steps, nothing for steps.
    # K = 1: 0 after Delta; a right step is not clipped below 0.
    assert rows[2].sum() == (1 if name == "pr" else 0)
    # A cut response: the step that is cut is the last one and earns nothing, and there is no
    # answer.
    assert rows[3].sum() == pytest.approx({"pr": 15, "delta": 1}.get(name, 0))


def test_what_is_collected_from_a_step_on_is_its_own_score_and_the_answer():
  for work in ("224", "N2N24", "21N3", "NNNNNN2"):
    to_go = np.cumsum(arm_returns("clip_delta", f"{work}#4")[0][::-1])[::-1]
    scores = values(work)
    np.testing.assert_allclose(
        to_go[:len(work) - 1], [min(s - 0.9, 0) + 1 for s in scores[:-1]], atol=1e-6)


def test_the_probe_tells_which_rewards_pay_for_repetition():
  probe = functools.partial(
      shaping.repetition_returns, lambda steps: values("".join(steps)), "2N24", copies=(1, 2, 10))
  np.testing.assert_allclose(probe(at=1), [4, 5, 13])
  np.testing.assert_allclose(probe(at=1, transforms=(CLIP,)), 0)
  np.testing.assert_allclose(probe(at=1, transforms=(shaping.delta,)), 1)  # Bounded, ...
  np.testing.assert_allclose(probe(at=1, transforms=(CLIP, shaping.delta)), 0)
  # ... but one step more, rather than the end, still earns Delta a step's score: "2" alone against
  # "2N".
  once = shaping.repetition_returns(
      lambda steps: values("".join(steps)), "2N", at=1, copies=(1, 2), transforms=(shaping.delta,))
  np.testing.assert_allclose(once, 1)
  assert shaping.delta([np.array(values("2"))])[0].sum() == 0
  # A wrong step that is repeated pays under none but the raw score.
  np.testing.assert_allclose(shaping.repetition_returns(
      lambda steps: values("".join(steps)), "2124", at=1, copies=(1, 5),
      transforms=(CLIP, shaping.delta)), 0)
  with pytest.raises(ValueError, match=r"a step in 0 \.\.\. 3 and copies of at least 1, got at=4"):
    probe(at=4)


def test_the_experiment_small(tmp_path):
  c = config_lib.load("experiments/clip_delta.py:clip_delta-tiny")
  with c.unlocked():
    c.mesh.fsdp = 1
  train.train(c, tmp_path, plain=True)
  lines = [m for m in metrics.read_metrics(tmp_path) if m["stage"] == "rl"]
  assert any("eval/pass@1" in m for m in lines) and any("value/loss" in m for m in lines)
  for line in (m for m in lines if "reward/steps" in m):
    # The total is the answer and the share of the steps, weighed 1.
    assert line["reward/mean"] == pytest.approx(
        line["reward/exact_answer"] + line["reward/process/shaped"], abs=1e-5)


@pytest.mark.parametrize("name", clip_delta.ARMS)
def test_all_configs_are_sound(name):
  for size in ("", "-tiny", "-full"):
    config, sections = config_lib.check(config_lib.load(f"experiments/clip_delta.py:{name}{size}"))
    assert config.stages[-1] == "rl" and sections["rl"].credit.critic.lam == 1
