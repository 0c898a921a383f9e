"""Rounds on the tiny task with scripted rewards: what is kept and learnt.

Empty rounds, hints, beginnings, and resuming.
"""

import dataclasses
import json
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from rl_reason.batches import demonstrations
from rl_reason.config.overrides import override
from rl_reason.reporting.metrics import read_metrics
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier
from rl_reason.run import workdir as workdir_lib
from rl_reason.stages.self_training import selection
from rl_reason.stages.self_training import stage as self_training
from rl_reason.train import train
from tests.test_train import arrays, deterministic


def short(samples):
  """Range [0, 1]: 1 for a completion of one token, half for one of two, ..."""
  return [1 / len(s.completion_tokens) for s in samples]


def told(samples):
  """Range {0, 1}: whether the prompt held a hint."""
  return [float(s.prompt.startswith(";")) for s in samples]


def odd_are_told(samples):
  """Range {0, 1}: problems with an even answer are solved, others after a hint."""
  return [float(s.prompt.startswith(";") or int(s.reference) % 2 == 0) for s in samples]


def never(samples):
  return [0.0] * len(samples)


def make_config(reward="short", **fields):
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.unlock()
  c.stages, c.mesh.fsdp = ("star",), 1
  c.evaluation.every, c.evaluation.num_problems, c.evaluation.batch_size = 0, 2, 2
  c.max_prompt_tokens, c.checkpoint.every, c.checkpoint.keep = 16, 1, 20
  c.star = ConfigDict(dict(
      kind="self_training", num_rounds=2, generation_steps=2, updates=2, batch_size=4,
      rewards={"scripted": {"function": f"{__name__}:{reward}"}},
      rollout=dict(prompts=4, group_size=4, sampling=dict(max_tokens=16)),
      keep=dict(thresholds=(0.2,)),
      learner=dict(optimizer=dict(learning_rate=1e-2))))
  override(c.star, fields)
  return c


def make_stage(**fields):
  """(stage, context, section, the parameters it starts from, its first state)."""
  run_config, sections = config_lib.check(make_config(**fields))
  context = run.make_context(run_config)
  with context.partitioning.use():
    params = context.initial_params()
    stage = self_training.build(sections["star"], context, params, "star")
    return stage, context, sections["star"], params, stage.init()


def steps(stage, context, state, first, count):
  """-> (state, metrics of each step with its tokens, what each left of the state on the host)."""
  history, states = [], []
  with context.partitioning.use():
    for index in range(first, first + count):
      state, result = stage.step(state, next(stage.data), index)
      assert result.skipped == 0
      history.append({**result.metrics, "tokens": result.tokens, "updates": result.updates})
      states.append(jax.device_get(state.params))
  return state, history, states


def same(a, b):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_round_imitates_what_the_reward_picks():
  stage, context, section, params, state = make_stage()
  state, history, states = steps(stage, context, state, 0, 4)
  pool = stage.resumable["pool"]
  assert pool.sampled == 32 and 0 < len(pool.candidates) < 32
  assert all(len(c.completion) <= 5 and c.score == np.float32(1 / len(c.completion))
             for c in pool.candidates)
  assert all(c.completion[-1] == 0 for c in pool.candidates)  # Whole, with EOS.
  # Sampling leaves the policy; updates do not.
  assert same(states[0], params) and same(states[1], params) and not same(states[2], params)
  assert [h["tokens"] > 0 for h in history] == [True] * 4
  assert [sorted(h.keys() & {"reward/mean", "solved", "loss", "threshold"}) for h in history] == [
      ["reward/mean", "solved"]] * 2 + [["loss", "threshold"]] * 2
  kept = selection.keep(pool.candidates, threshold=0.2)
  assert history[2]["kept/samples"] == len(kept) and history[2]["kept/share"] == len(kept) / 32
  assert history[0]["reward/mean"] == history[0]["reward/scripted"]
  assert 0 < history[0]["reward/mean"] < 0.6
  # What sampling cost, in completions that were judged; updates ask for none.
  assert [h.get("environment_calls", 0) for h in history] == [16, 16, 0, 0]
  # The second round begins anew.
  steps(stage, context, state, 4, 1)
  assert pool.sampled == 16
  stage.close()


def test_thresholds_rise_over_one_sampled_set():
  stage, context, section, _, state = make_stage(updates=1, **{"keep.thresholds": (0.1, 0.3)})
  assert section.num_steps == 2 * (2 + 2)
  _, history, _ = steps(stage, context, state, 0, 4)
  lengths = [
      len(c.completion) for c in selection.keep(stage.resumable["pool"].candidates, threshold=0.0)]
  assert [h["threshold"] for h in history[2:]] == [0.1, 0.3]
  assert [h["kept/samples"] for h in history[2:]] == [
      sum(n <= 10 for n in lengths), sum(n <= 3 for n in lengths)]
  assert 0 < history[3]["kept/samples"] < history[2]["kept/samples"]


def test_a_round_with_nothing_to_imitate_leaves_the_policy_and_is_counted():
  stage, context, _, params, state = make_stage(reward="never", **{"keep.thresholds": (0.5, 1.0)})
  state, history, states = steps(stage, context, state, 0, 8)
  assert all(same(s, params) for s in states) and stage.resumable["pool"].candidates == []
  assert [h.get("kept/empty") for h in history] == [None, None, 1, 1, 2, 2, None, None]
  assert all(h["kept/samples"] == h["tokens"] == 0 and "loss" not in h for h in history[2:6])
  assert all(h["solved"] == 0 for h in history[:2])


def test_unsolved_problems_are_asked_again_with_the_answer_and_learnt_without():
  stage, context, section, _, state = make_stage(
      reward="told", hint=";{reference};{prompt}", **{"keep.thresholds": (1.0,)})
  _, history, _ = steps(stage, context, state, 0, 3)
  pool = stage.resumable["pool"]
  assert history[0]["solved"] == 0
  assert history[0]["reward/mean"] == 0
  assert history[0]["solved_with_hint"] > 0
  assert history[0]["environment_calls"] == 32  # Those asked again count again.
  assert pool.candidates
  assert all(c.hinted and c.score == 1 for c in pool.candidates)
  assert pool.sampled == 32
  prompts = {tuple(context.policy.tokenizer.encode_prompt(context.task.train[i].prompt))
             for i in range(200)}
  assert {c.prompt for c in pool.candidates} <= prompts
  assert history[2]["loss"] > 0


def test_hints_go_to_the_unsolved_alone():
  stage, context, _, _, state = make_stage(reward="odd_are_told", hint=";{reference};{prompt}")
  _, history, _ = steps(stage, context, state, 0, 2)
  answers = {tuple(context.policy.tokenizer.encode_prompt(p.prompt)): int(p.reference) % 2
             for p in (context.task.train[i] for i in range(200))}
  hinted = [answers[c.prompt] for c in stage.resumable["pool"].candidates if c.hinted]
  plain = [answers[c.prompt] for c in stage.resumable["pool"].candidates if not c.hinted]
  assert hinted and plain and all(hinted) and not any(plain)
  assert all(0 < h["solved"] < 1 and h["solved"] + h["solved_with_hint"] <= 1 for h in history)


def test_a_hint_is_not_given_for_solved_problems():
  stage, context, _, _, state = make_stage(
      reward="short", hint=";{reference};{prompt}", **{"keep.thresholds": (0.0,)})
  _, history, _ = steps(stage, context, state, 0, 1)
  assert history[0]["solved"] == 1 and history[0]["solved_with_hint"] == 0
  assert not any(c.hinted for c in stage.resumable["pool"].candidates)


def test_own_solutions_are_imitated_too():
  # With rewards that keep nothing, one update is a supervised one on the sampled problems'
  # solutions.
  stage, context, section, _, state = make_stage(
      reward="never", imitate_solutions=True, generation_steps=1, updates=1,
      **{"rollout.sampling": dict(max_tokens=28)})
  with context.partitioning.use():
    problems = next(stage.data)
    state, _ = stage.step(state, problems, 0)
    _, history, _ = steps(stage, context, state, 1, 1)
  examples = demonstrations.encode(
      problems, context.policy.tokenizer, max_prompt_tokens=16, max_completion_tokens=28)
  assert history[0]["tokens"] == examples.learnt.sum()
  assert history[0]["kept/samples"] == 4
  assert history[0]["kept/share"] == 0


@pytest.mark.parametrize("begin", self_training.BEGINNINGS)
def test_where_a_round_begins(begin):
  stage, context, section, params, state = make_stage(begin=begin)
  state, history, states = steps(stage, context, state, 0, 8)
  assert [h["updates"] for h in history] == [0, 0, 1, 1] * 2  # Though the learner may begin anew.
  assert int(state.step) == (2 if begin == "initial" else 4)
  # The first round's policy samples in the second, wherever that begins to learn.
  assert same(states[3], states[5])
  # Made again from what the second round kept, by a stage that never had a first one.
  pool, (other, _, _, _, fresh) = stage.resumable["pool"], make_stage(begin=begin)
  other.resumable["pool"].restore(json.loads(json.dumps(pool.state())))
  _, _, again = steps(other, context, fresh, 6, 2)
  assert same(again[-1], states[-1]) == (begin == "initial")


def test_accumulated_rounds_keep_what_was_there():
  stage, context, _, _, state = make_stage(accumulate=True, generation_steps=1, updates=1)
  steps(stage, context, state, 0, 3)
  assert stage.resumable["pool"].sampled == 32


@pytest.mark.slow  # Two whole runs: 45 s. `make kills` interrupts this stage, too.
def test_a_run_resumes_to_the_same_bits_within_a_round(tmp_path):
  c = make_config(hint=";{reference};{prompt}", **{
      "learner.lora": dict(rank=2), "keep.per_problem": 2, "keep.choose": "random",
      "keep.balance": True})
  train(c, tmp_path / "whole", plain=True)
  lines = [line for line in read_metrics(tmp_path / "whole") if "tokens" in line]
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert ["loss" in line for line in lines] == [False, False, True, True] * 2
  saved = arrays(tmp_path / "whole" / "checkpoints" / "star" / "8")
  for last in (1, 3, 6):  # Killed while sampling, between two updates, before the second round's.
    workdir = tmp_path / str(last)
    shutil.copytree(tmp_path / "whole", workdir)
    for later in range(last + 1, 9):
      shutil.rmtree(workdir / "checkpoints" / "star" / str(later))
    train(c, workdir, plain=True)
    assert deterministic(workdir) == deterministic(tmp_path / "whole")
    again = arrays(workdir / "checkpoints" / "star" / "8")
    assert again.keys() == saved.keys()
    assert all(again[name].tobytes() == x.tobytes() for name, x in saved.items())
  # Adapters alone were trained.
  run_config, sections = config_lib.check(c)
  stages = earlier.Stages(
      run_config, sections, workdir_lib.Workdir(tmp_path / "whole"), run.make_context(run_config))
  finished, initial = stages.finished("star"), stages.run.initial_params()
  assert same({name: finished[name] for name in initial}, initial)
  assert np.abs(finished["lora"]["q"]["b"]).max() > 0


@pytest.mark.parametrize("fields, message", [
    ({"keep.thresholds": ()}, r"one or more rising rewards, got \(\)"),
    ({"keep.thresholds": (0.5, 0.5)}, "rising"),
    (dict(hint="{prompt}"), "must hold {prompt} and {reference}"),
    (dict(hint="{prompt}{answer}{reference}"), "KeyError"),
    (dict(begin="start"), "Unknown begin 'start'"),
    ({"keep.choose": "worst"}, "Unknown choose 'worst'"),
    ({"rollout.slots": 2}, "slots must be at least group_size=4"),
    ({"learner.microbatches": 3}, "must divide batch_size=4"),
    (dict(updates=0), "updates must be at least 1")])
def test_fields_that_cannot_work_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    config_lib.check(make_config(**fields))


def test_what_cannot_be_asked_or_imitated_is_found_before_the_run():
  run_config, sections = config_lib.check(make_config())
  context, section = run.make_context(run_config), sections["star"]
  self_training.check(section, context, "star")
  with pytest.raises(ValueError, match="the limit max_prompt_tokens is 16"):
    self_training.check(
        dataclasses.replace(section, hint="{prompt}" + "1" * 10 + "{reference}"), context, "star")
  with pytest.raises(ValueError, match="the limit max_completion_tokens is 16"):
    self_training.check(dataclasses.replace(section, imitate_solutions=True), context, "star")
  phases = {p.phase for p in self_training.memory(section, context, "star")}
  assert phases == {"", "reading of prompts for sampling", "sampling", "update", "optimizer step"}
