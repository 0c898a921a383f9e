"""Critic-then-score: who writes critiques, where a model reads them, what becomes of bad ones.

A whole pipeline runs, too.
"""

import dataclasses
import json
import types
import zlib

import numpy as np
import pytest

from rl_reason import judge
from rl_reason.batches.responses import encode, with_critiques
from rl_reason.config.overrides import override
from rl_reason.evaluation import reward_models
from rl_reason.judges.critiques import Critiques
from rl_reason.models.tokenizer import CharacterTokenizer
from rl_reason.reporting.metrics import read_metrics
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.learned import Models
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.runtime import memory
from rl_reason.stages.reward_model import critiques as critiques_lib
from rl_reason.stages.reward_model import stage
from rl_reason.stages.reward_model.critiques import make_critiques
from rl_reason.train import train
from rl_reason.types import Comparison
from tests.rewards.test_judge import Script
from tests.rewards.test_learned import counter, SAMPLES, TOKENIZER
from tests.stages.reward_model.test_stage import context, section

HERE = __name__


def test_a_failed_or_blank_critique_is_none_and_counted():
  texts = {"p|fine": " good \n", "p|failing": None, "p|blank": " \n", "p|cut": "half \ud800"}
  script = Script(texts.__getitem__)
  critiques = Critiques(script, template="{prompt}|{response}")
  pairs = [("p", name) for name in ("fine", "failing", "blank", "cut", "fine")]
  assert critiques(pairs) == ["good", "", "", "half ?", "good"]
  assert critiques.metrics() == dict(asked=4, cached=1, failed=1, empty=1, unreadable=0)
  # Later it is the same one, after a restart too; what failed is asked for again.
  resumed = Critiques(script, template="{prompt}|{response}")
  resumed.restore(json.loads(json.dumps(critiques.state())))
  assert resumed(pairs[:2]) == ["good", ""] and script.asked[4:] == ["p|failing"]
  assert resumed.metrics() == dict(asked=5, cached=2, failed=2, empty=1, unreadable=0)


def test_a_critique_follows_its_response_by_hand():
  tokenizer = CharacterTokenizer("ab;")
  written = {"a": "bb", "bb": "", "b": "no", "": "a"}
  critiques = Critiques(
      lambda prompts: [written[p] for p in prompts], template="{response}", marker=";")
  rows = [("aa", ["a", "bb"]), ("b", ["b", ""])]
  encoded = [encode(tokenizer, *row, read="end") for row in rows]

  def read(**limits):
    found = with_critiques(critiques, tokenizer, rows, encoded,
                           **{"max_response_tokens": 9, "max_positions": 99, **limits})
    assert [row.places for row in found] == [
        [[len(ids) - 1] for ids in row.responses] for row in found]
    assert [row.prompt for row in found] == [[1, 1], [2]]
    assert [row.steps for row in found] == [[[0], [0]]] * 2
    return [ids for row in found for ids in row.responses]
  assert read() == [[1, 3, 2, 2, 0], [2, 2, 0], [2, 0], [3, 1, 0]]  # "n" and "o" have no ids.
  assert critiques.counts["unreadable"] == 1 and critiques.counts["empty"] == 1
  assert read(max_response_tokens=4) == [[1, 3, 2, 0], [2, 2, 0], [2, 0], [3, 1, 0]]
  assert read(max_response_tokens=2) == [[1, 0], [2, 2, 0], [2, 0], [3, 0]]
  assert read(max_positions=5) == [[1, 3, 0], [2, 2, 0], [2, 0], [3, 1, 0]]


def sevens_more(prompt):
  """A critique that holds two sevens.

  Of responses with a semicolon it holds none, of those that end in 17 too many for the room.
  """
  return None if ";" in prompt else "7" * 40 if prompt.endswith("17") else "77"


def test_a_learned_reward_reads_critiques_and_resumes():
  script = Script(sevens_more)

  def learned():
    critiques = Critiques(script, template="{prompt}{response}", marker=";")
    rewards = build_rewards({"q": {"function": "learned", "args": dict(model="rm")}}, models=Models(
        TOKENIZER, lambda name: counter(reads=("end",), critiques=critiques)))
    return rewards
  rewards = learned()
  # Sevens: 2 + 2, 0 + 2, alone 2, 0 + 2; of 16 tokens "17;" leaves 12 and "1717;" 10.
  total, _ = rewards(SAMPLES)
  np.testing.assert_array_equal(total, [4, 2, 2, 2, 1 + 12, 2 + 10])
  expected = {"q/critiques/asked": 6, "q/critiques/cached": 0, "q/critiques/failed": 1,
              "q/critiques/empty": 0, "q/critiques/unreadable": 0}
  assert rewards.metrics() == expected
  again = learned()
  again.restore(json.loads(json.dumps(rewards.state())))
  assert again.metrics() == expected
  np.testing.assert_array_equal(again(SAMPLES)[0], total)
  assert len(script.asked) == 7 and again.metrics()["q/critiques/cached"] == 5


# A stage. Its responses do not tell which is better, the critiques do.


def told(text):
  return zlib.crc32(text.encode()) % 2


def hidden(*, size, seed):
  rng, rows = np.random.RandomState(seed), []
  while len(rows) < size:
    one, other = ("".join(rng.choice(list("12"), 8)) for _ in range(2))
    if told(one) > told(other):
      rows.append(
          Comparison(f"{len(rows):03d}{seed}=", (one, other), (1.0, 0.0), id=str(len(rows))))
  return rows


def telling(prompts):
  return ["7" if told(p) else "3" for p in prompts]


def hidden_section(**fields):
  config = section(critique=dict(generate=f"{HERE}:telling", template="{response}", marker="#"))
  return dataclasses.replace(config, num_steps=30, data=dataclasses.replace(
      config.data, source=f"{HERE}:hidden", args={}), **fields)


def test_a_head_learns_from_what_critiques_tell(context):
  config = hidden_section()
  with context.partitioning.use():
    stage.check(config, context, "rm")
    built = stage.build(config, context, context.initial_params(), "rm")
    state = built.init()
    for i in range(config.num_steps):
      state, result = built.step(state, next(built.data), i)
      metrics = result.metrics
    after, _ = built.evaluate(state.params)
  assert after["eval/accuracy"] > 0.9 and metrics["critiques/failed"] == 0
  # 30 batches of 16 pairs are more than the 300 there are: each response is asked about once, equal
  # texts once for all.
  texts = {t for row in hidden(size=300, seed=1) for t in row.responses}
  assert metrics["critiques/asked"] == len(texts)
  assert metrics["critiques/cached"] == 30 * 32 - len(texts)
  # They lie in checkpoints, with those of the held-out rows: a resumed stage asks for none twice.
  saved = built.resumable["critiques"].state()
  assert len(saved["cache"]) == saved["counts"]["asked"] >= len(texts)
  # The model goes on with critiques, as a scorer too.
  known = dataclasses.replace(context, earlier=types.SimpleNamespace(
      sections={}, finished=lambda name: state.params))
  scorer = stage.make_scorer(config, known, "rm")
  rows = hidden(size=20, seed=3)
  scored = scorer(scorer.encode_rows([(row.prompt, row.responses) for row in rows]))
  assert np.mean([s.totals[0, 0] > s.totals[1, 0] for s in scored]) > 0.9
  alone = dataclasses.replace(scorer, critiques=None)
  assert np.mean([s.totals[0, 0] > s.totals[1, 0] for s in alone(
      alone.encode_rows([(row.prompt, row.responses) for row in rows]))]) < 0.9


def pipeline():
  c = config_lib.load("experiments/quickstart.py:tiny")
  c.unlock()
  c.stages, c.mesh.fsdp, c.evaluation.every, c.evaluation.num_problems, c.evaluation.batch_size = (
      "critic", "rm", "rl"), 1, 0, 2, 2
  c.checkpoint.every = 1
  c.critic = c.sft.copy_and_resolve_references()
  c.critic.num_steps = 2
  c.rm = dict(
      kind="reward_model", num_steps=2, batch_size=4, max_response_tokens=40, max_prompt_tokens=8,
      start="critic",
      data=dict(source="tests.stages.reward_model.test_stage:sevens", args={},
                train=dict(size=20, seed=1), heldout=dict(size=4, seed=2)),
      critique=dict(
          generate="critic", template="{prompt}{response}#", marker="#", generate_args=dict(
              sampling=dict(max_tokens=4), max_prompt_tokens=64, batch_size=8)),
      learner=dict(microbatches=1, optimizer=dict(learning_rate=3e-3)))
  override(c.rl, {"num_steps": 2, "learner.minibatches": 1, "objective.kl.coef": 0.0,
                  "rollout.prompts": 2, "rollout.group_size": 4})
  c.rl.rewards = {"quality": {"function": "learned", "args": {"model": "rm"}}}
  return c


def test_an_earlier_stage_s_policy_writes_once_it_is_asked(context):
  _, sections = config_lib.check(pipeline())
  asked = []

  def policy(*names):
    asked.append(names)
    return context.initial_params()
  known = dataclasses.replace(
      context, earlier=types.SimpleNamespace(sections=sections, policy=policy))
  written = make_critiques(sections["rm"].critique, known)
  assert not asked
  # Longer than the writer reads.
  assert written([("1=", "7"), ("1=", "7"), ("1=", "1" * 70)])[2] == ""
  written([("2=", "7")])
  assert asked == [("critic", "critique.generate")]
  assert written.metrics() | dict(empty=0) == dict(
      asked=3, cached=1, failed=1, empty=0, unreadable=0)


def test_a_policy_writes_the_critiques_that_score_another(tmp_path):
  c = pipeline()
  c.stages, c.rm.start, c.rm.critique.generate = ("rm", "rl"), "", "initial"
  train(c, tmp_path, plain=True)
  lines = read_metrics(tmp_path)
  assert [line["critiques/asked"] for line in lines if "critiques/asked" in line][-1] > 4
  judged = [line for line in lines if "reward/quality/critiques/asked" in line]
  assert len(judged) == 2 and judged[-1]["reward/quality/critiques/asked"] > 4
  assert judged[-1]["reward/quality/critiques/failed"] == 0
  # Outside the run, as the command does it.
  score = judge.make_scorer("reward_model", {"workdir": f"{tmp_path}:rm"})
  assert reward_models.judge(score, hidden(size=4, seed=5)).counts["failed"] == 0


@pytest.mark.parametrize("critique, message", [
    (dict(generate="rl"), "'rl'.* Known: initial, critic"), (dict(generate="critik"), "'critik'"),
    (dict(template="{prompt}"), "template must hold the fields {response}"),
    (dict(marker="?"), "Character '\\?' .* has no id"),
    (dict(generate_args=dict(samplin=dict(max_tokens=4))),
     "no argument 'samplin'. Did you mean 'sampling'"),
    (dict(generate_args=dict(max_prompt_tokens=1023)), "are more than the policy's context"),
])
def test_critiques_that_nobody_can_write_are_refused_before_any_stage(critique, message, tmp_path):
  c = pipeline()
  c.rm.critique.update(critique)
  with pytest.raises(ValueError, match=message):
    train(c, tmp_path, plain=True)
  assert not (tmp_path / "checkpoints").exists()


def test_critiques_are_read_at_the_end_and_the_writer_takes_memory():
  c = pipeline()
  run_config, sections = config_lib.check(c)
  known = dataclasses.replace(
      run.make_context(run_config), earlier=types.SimpleNamespace(sections=sections))
  alone = dataclasses.replace(sections["rm"], critique=critiques_lib.Critique())
  def named(config):
    return {part.name: part.num_bytes for part in stage.memory(config, known, "rm")}
  with_writer, without = named(sections["rm"]), named(alone)
  assert with_writer["policy that writes critiques"] == memory.sharded_bytes(known.abstract_params)
  assert with_writer.keys() - without.keys() > {
      "policy that writes critiques", "keys and values of prompts"}
  with pytest.raises(ValueError, match="read='steps': a critique is read with the whole response"):
    dataclasses.replace(sections["rm"], read="steps")
