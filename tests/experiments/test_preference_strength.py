"""Preference strength by hand, labels changed by it, and votes of finished reward models.

The experiment runs end to end, small.
"""

import jax
import numpy as np
import pytest

from rl_reason import train
from rl_reason.claims import measures
from rl_reason.experiments import preference_strength
from rl_reason.run import config as config_lib
from rl_reason.run import context as run
from rl_reason.run import earlier, workdir
from rl_reason.scorers.strength import Relabel, relabelled, strength
from rl_reason.stages import voting
from rl_reason.tasks.registry import load_task
from rl_reason.tasks.worlds import attributes
from rl_reason.types import Comparison, Step


def pairs(count):
  return [Comparison("=", (f"good {i}", f"bad {i}"), (1.0, 0.0), id=str(i)) for i in range(count)]


def shown(changed):
  """(id, chosen, margin, label) of each pair."""
  rows = [changed[i] for i in range(len(changed))]
  return [(r.id, r.responses[0].split()[0], r.margin, r.preference) for r in rows]


def test_strength_by_hand():
  mean, deviation = strength(np.array([[1.0, 3.0], [-2.0, 0.0], [0.5, 0.5]]))
  np.testing.assert_allclose(mean, [2.0, -1.0, 0.5])
  np.testing.assert_allclose(deviation, [1.0, 1.0, 0.0])


STRENGTHS = [2.0, -1.0, 0.25, -3.0, 1.0]  # By rising strength: pairs 3, 1, 2, 4, 0.


@pytest.mark.parametrize("fields, wanted", [
    (dict(flip=0.2),
     [("0", "good", 0, 1), ("1", "good", 0, 1), ("2", "good", 0, 1), ("3", "bad", 0, 1),
      ("4", "good", 0, 1)]),
    # Three of the five are the weakest, of which the ensemble agrees with the third.
    (dict(flip=0.6, margin=2.0),
     [("0", "good", 4, 1), ("1", "bad", 2, 1), ("2", "good", 0.5, 1), ("3", "bad", 6, 1),
      ("4", "good", 2, 1)]),
    (dict(soften=0.1, margin=1.0),
     [("0", "good", 2, 1), ("1", "good", -1, 0.9), ("2", "good", 0.25, 1), ("3", "good", -3, 0.9),
      ("4", "good", 1, 1)]),
    (dict(part=(0.0, 0.4)), [("1", "good", 0, 1), ("3", "good", 0, 1)]),
    (dict(part=(0.4, 1.0), flip=1.0),
     [("0", "good", 0, 1), ("2", "good", 0, 1), ("4", "good", 0, 1)]),
], ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_labels_change_with_strength(fields, wanted):
  assert shown(relabelled(pairs(5), STRENGTHS, Relabel("votes", **fields))) == wanted


def test_all_that_is_known_of_a_response_goes_with_it():
  steps = ((Step("a", 1.0),), (Step("b", 0.0),))
  row = Comparison("=", ("a", "b"), (1.0, 0.0), soft_label=0.75,
                   attributes=({"x": 1.0}, {"x": 2.0}), steps=steps)
  got = relabelled([row], [-1.0], Relabel("votes", flip=1.0))[0]
  assert got.responses == ("b", "a")
  assert got.attributes == ({"x": 2.0}, {"x": 1.0})
  assert got.steps == steps[::-1]
  assert got.scores == (1.0, 0.0)
  assert got.preference == 0.75  # Three of four who said "a" are taken to have meant "b".


@pytest.mark.parametrize("make, message", [
    (lambda: Relabel("votes", part=(0.5, 0.5)), "part must be rising shares"),
    (lambda: Relabel("votes", flip=1.5), r"flip must be in \[0, 1.0\]"),
    (lambda: Relabel("votes", soften=0.6), r"soften must be in \[0, 0.5\]"),
    (lambda: Relabel("votes", margin=-1.0), "margin must be a finite number"),
    (lambda: relabelled(pairs(3), [1.0, 2.0], Relabel("votes")),
     "3 pairs need as many finite strengths"),
    (lambda: relabelled(pairs(2), [1.0, float("nan")], Relabel("votes")), "1 are not finite"),
    (lambda: relabelled(pairs(3), [1.0, 2.0, 3.0], Relabel("votes", part=(0.0, 0.1))),
     "of 3 pairs is none"),
])
def test_what_cannot_be_relabelled(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_measures_of_votes_by_hand():
  # Ten pairs by rising strength, of which the first two and the sixth are wrong: 2 · 7 + 4 of 3 · 7
  # wrong pairs of ranks.
  wrong = [True, True, False, False, False, True, False, False, False, False]
  found = voting.votes_metrics(np.arange(10.0) - 2.5, wrong)
  assert found["eval/wrong_auc"] == pytest.approx((7 + 7 + 4) / 21)
  assert [found[f"eval/wrong_in_fifth_{i}"] for i in (1, 2, 3, 4, 5)] == [1.0, 0.0, 0.5, 0.0, 0.0]
  assert found["eval/strength_negative"] == 0.3 and found["eval/strength"] == 2.0
  assert "eval/wrong_auc" not in voting.votes_metrics(np.arange(3.0), None)


def test_rows_in_order_go_on_where_they_were():
  rows = voting.InOrder(pairs(5), 2)
  next(rows)
  state = rows.get_state()
  rest = [[r.id for r in next(rows)] for _ in range(3)]
  assert rest == [["2", "3"], ["4"], []]
  again = voting.InOrder(pairs(5), 2)
  again.set_state(state)
  assert [[r.id for r in next(again)] for _ in range(3)] == rest


def test_pairs_with_a_hidden_utility():
  source = attributes.attribute_pairs(size=1000, world=2, wrong=0.2, ties=0.2)
  rows = [source[i] for i in range(len(source))]
  gaps = np.array([source.utility(r.responses[0]) - source.utility(r.responses[1]) for r in rows])
  wrong, tie = (np.array([r.metadata[key] for r in rows]) for key in ("wrong", "tie"))
  np.testing.assert_array_equal(gaps < 0, wrong)  # A wrong label is the worse response in front.
  np.testing.assert_allclose(np.abs(gaps), [r.metadata["gap"] for r in rows])
  assert wrong.mean() == pytest.approx(0.2, abs=0.04) and tie.mean() == pytest.approx(0.2, abs=0.04)
  assert np.abs(gaps[tie]).mean() < 0.1 * np.abs(gaps[~tie & ~wrong]).mean()
  clean = attributes.attribute_pairs(size=50, world=2, part="heldout")
  assert all(clean.utility(r.responses[0]) > clean.utility(r.responses[1])
             for r in (clean[i] for i in range(50)))
  assert attributes.Utility(3)("abcdefghijklmnop") == 0.0  # Every letter as often as expected.
  with pytest.raises(ValueError, match="their sum must be at most 1"):
    attributes.attribute_pairs(size=1, world=0, wrong=0.6, ties=0.5)


def test_votes_are_the_members_differences_and_change_the_labels(tmp_path):
  c = config_lib.load("experiments/preference_strength.py:weakest_fifth_flipped-tiny")
  with c.unlocked():
    c.seed, c.mesh.fsdp = 3, 1
  train.train(c, tmp_path, plain=True)
  config, sections = config_lib.check(c)
  stages = earlier.Stages(config, sections, workdir.Workdir(tmp_path), run.make_context(config))
  differences = voting.differences_of(stages.finished("votes"))
  data = sections["votes"].data
  rows = load_task(data.source, data.args, data.train, data.heldout).train
  for m, member in enumerate(("vote0", "vote1")):
    scorer = stages.scorer(member)
    scored = scorer([scorer.encode(rows[i].prompt, rows[i].responses) for i in range(len(rows))])
    wanted = np.array([s.totals[0, 0] - s.totals[1, 0] for s in scored])
    np.testing.assert_allclose(differences[:, m], wanted, atol=1e-5)
    assert np.abs(wanted).max() > 0
  assert not np.array_equal(differences[:, 0], differences[:, 1])  # Other orders, other models.
  wrong = np.array([rows[i].metadata["wrong"] for i in np.argsort(differences.mean(axis=1))])
  assert measures.last(tmp_path, name="eval/wrong_in_fifth_1", stage="votes") == pytest.approx(
      wrong[:8].mean())
  changed = sections["rm"].relabel
  assert changed == Relabel("votes", part=(0.0, 0.2), flip=0.2)
  assert measures.last(tmp_path, name="eval/accuracy", stage="rm") >= 0


@pytest.mark.parametrize("change, message", [
    (lambda c: c.rm.relabel.update(votes="vote0"), "Unknown relabel.votes"),
    (lambda c: c.rm.data.train.update(size=39), "voted on other rows"),
    (lambda c: c.votes.update(members=("vote0", "vote9")), "'vote9' is neither an earlier stage"),
    (lambda c: c.votes.update(wrong="tied"), "has no 'tied' in its metadata"),
])
def test_votes_that_cannot_be(tmp_path, change, message):
  c = config_lib.load("experiments/preference_strength.py:flip-tiny")
  with c.unlocked():
    c.mesh.fsdp = 1
    change(c)
  with pytest.raises(ValueError, match=message):
    train.train(c, tmp_path, plain=True)
  assert not (tmp_path / "checkpoints").exists()


def test_full_configs_are_sound():
  for name in preference_strength.ARMS:
    config, sections = config_lib.check(
        config_lib.load(f"experiments/preference_strength.py:{name}-full"))
    assert len(config.stages) == 13 and len(sections["votes"].members) == 10
    assert sections["rl"].credit.critic.start == "rm"
    assert (sections["rm"].relabel is None) == (preference_strength.ARMS[name] is None)
  assert len(jax.devices()) > 1
