"""Questions that are looked up, and a judge that is easily pleased.

The experiment on rewards of turns.
"""

import asyncio

import numpy as np
import pytest

from rl_reason import train
from rl_reason.envs.registry import ENVIRONMENTS
from rl_reason.experiments import ppr
from rl_reason.reporting import metrics
from rl_reason.rollout.environment import Turn
from rl_reason.run import config as config_lib
from rl_reason.run import context
from rl_reason.tasks.worlds import lookup
from rl_reason.types import Problem


def test_worked_episodes_look_up_what_is_asked():
  source = lookup.lookup_problems(size=400, part="heldout")
  rows = [source[i] for i in range(400)]
  assert np.mean([r.metadata["hops"] for r in rows]) == pytest.approx(1.7, abs=0.08)
  for r in rows:
    entity = r.prompt[0]
    for relation in r.prompt[1:-1]:
      entity = lookup.fact(r.metadata["world"], entity, relation)
    texts = [m["content"] for m in r.solution]
    assert r.reference == entity
    assert texts[0] == f"{len(r.prompt) - 2}?{r.prompt[:2]}."
    assert len(texts) <= 7
  right = [r.solution[-1]["content"] == f"0!{r.reference}" for r in rows]
  assert np.mean(right) > 0.96  # Not where three documents in four turns were beside the point.
  careless = lookup.lookup_problems(size=400, careless=0.5)
  slipped = [careless[i].solution[-1]["content"][-1] == careless[i].reference for i in range(400)]
  assert 0.55 < np.mean(slipped) < 0.85
  train_prompts = {careless[i].prompt for i in range(400)}
  assert not train_prompts & {r.prompt for r in rows}


def test_documents_are_right_as_often_as_they_are_told():
  found = [lookup.document(f"{i}", "a", "B", 0, 0.8)[1:3] == "aB" for i in range(1000)]
  assert np.mean(found) == pytest.approx(0.8, abs=0.04)
  assert lookup.document("w", "a", "B", 1, 1.0) == f"(aB{lookup.fact('w', 'a', 'B')})"


def test_the_environment_answers_searches_and_nothing_else():
  problem = Problem(prompt="aB=", reference="c", metadata={"world": "w"})
  environment = ENVIRONMENTS["lookup"](reliable=1.0)
  state = environment.reset(problem, 7)
  turns = ("1?aB.", "0!c", "", "?.", "1?aB", "1?aB.1?aB.", "12?aB.")
  found = [asyncio.run(environment.step(state, Turn(text, (1,))))[0] for text in turns]
  assert [messages and messages[0]["content"] for messages in found] == [
      f"(aB{lookup.fact('w', 'a', 'B')})", None, None, "()", None, "()", "()"]
  assert asyncio.run(environment.step(state, Turn("1?aB.", (1,), final=True)))[0] is None
  with pytest.raises(ValueError, match=r"reliable must be in \[0, 1\]"):
    ENVIRONMENTS["lookup"](reliable=2)
  with pytest.raises(ValueError, match="Problem 'other' has no \"world\""):
    environment.reset(Problem(prompt="1+1=", reference="2", id="other"), 7)


def test_another_turn_may_find_another_document():
  # The third turn's document is that of turn 2, whatever the turns before it were, and whatever the
  # seed.
  environment = ENVIRONMENTS["lookup"](reliable=0.5)
  for world in map(str, range(20)):
    state = environment.reset(Problem(prompt="aB=", reference="c", metadata={"world": world}), 7)
    for text in ("?.", "2?cD."):
      _, _, state = asyncio.run(environment.step(state, Turn(text, (1,))))
    messages, _, _ = asyncio.run(environment.step(state, Turn("1?aB.", (1,))))
    assert messages[0]["content"] == lookup.document(world, "a", "B", 2, 0.5)


def test_a_judge_of_turns_by_hand():
  judge = ppr.gullible_judge(overpaid=0, underpaid=0)
  assert judge(["aBC=\n\n2?aB.(aBd)", "aBC=\n2?aB.(aBd)\n1?dC.(dCe)"]) == ["4,4", "4,4"]
  # Of the right form, of an entity that was named.
  assert judge(["aBC=\n2?aB.(aBd)\n2?aB.(aBd)"]) == ["2,4"]
  assert judge(["aBC=\n2?aB.(xBy)\n2?aB.(aBd)"]) == ["4,4"]  # The document was beside the point.
  assert judge(["aBC=\n\n2?gB.(gBd)"]) == ["2,4"]  # Of the right form, of the right relation.
  assert judge(["aBC=\n\n??.()", "aBC=\n\n"]) == ["0,4", "0,4"]
  pleased = ppr.gullible_judge(seed=1)([f"aBC=\n{i}\n2?gA.(gAd)" for i in range(2000)])
  assert np.mean([p == "4,4" for p in pleased]) == pytest.approx(0.15, abs=0.03)
  assert np.mean([p == "0,4" for p in pleased]) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("arguments, message", [
    (dict(max_turns=1), "max_turns must be at least 2"),
    (dict(careless=1.5), r"careless must be in \[0, 1\]"),
    (dict(part="test"), "Unknown part 'test'"), (dict(size=0), "size must be")])
def test_questions_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    lookup.lookup_problems(**{"size": 4, **arguments})


@pytest.mark.slow  # Contexts of many lengths: 40 s of compilation.
def test_experiment_end_to_end_small(tmp_path):
  c = config_lib.load("experiments/ppr.py:renorm-tiny")
  train.train(c, tmp_path)
  lines = metrics.read_metrics(tmp_path)
  steps = [line for line in lines if line["stage"] == "rl" and "episode/turns" in line]
  assert len(steps) == 2
  assert all(1 <= line["episode/turns"] <= 4 and line["logprob_gap"] < 1e-4 for line in steps)
  assert 0 <= ppr.fall(tmp_path, points=1)


def test_configs_of_all_arms_and_sizes():
  for name in ppr.ARMS:
    config_lib.check(config_lib.load(f"experiments/ppr.py:{name}"))
  config_lib.check(config_lib.load("experiments/ppr.py:full"))
  with pytest.raises(ValueError, match="Unknown arm 'renormed'"):
    ppr.get_config("renormed")


def test_an_environment_that_does_not_fit():
  c = config_lib.load("experiments/ppr.py:renorm-tiny")
  c.evaluation.sampling.max_tokens = 20
  with pytest.raises(ValueError, match="config.evaluation.sampling.max_tokens=20 is less than an"
                     " episode may have"):
    context.make_context(config_lib.check(c)[0])
  c.environment.source = "lookpu"
  with pytest.raises(ValueError, match="Unknown environment 'lookpu'. Did you mean 'lookup'"):
    context.make_context(config_lib.check(c)[0])
