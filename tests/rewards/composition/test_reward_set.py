"""What a RewardSet makes of components: transforms, gates, schedules, steps, rewards per token."""

import contextlib
import json

import ml_collections
import numpy as np
import pytest

from rl_reason.rewards.composition import abstention
from rl_reason.rewards.composition import scoring as scoring_lib
from rl_reason.rewards.composition import steps as steps_lib
from rl_reason.rewards.composition.build import build_rewards
from rl_reason.rewards.composition.component import Component, Gate, Transform
from rl_reason.rewards.composition.reward_set import RewardSet, token_rewards
from rl_reason.rewards.composition.steps import StepRewards
from rl_reason.types import Sample

HERE = __name__


def numbers(samples, *, key="score"):
  """What the sample's metadata says."""
  return [s.metadata[key] for s in samples]


def steps(samples, *, key="steps"):
  """The metadata's rows, at the spans of the sample."""
  return StepRewards.at_spans(samples, [s.metadata[key] for s in samples])


def double(rewards):
  return [2 * r for r in rewards]


class Count:
  """A transform with state: adds how often it was called."""

  def __init__(self, start=0):
    self.calls = start

  def __call__(self, rewards):
    self.calls += 1
    return [r + self.calls for r in rewards]

  def state(self):
    return {"calls": self.calls}

  def restore(self, state):
    self.calls = state["calls"]


def sample(tokens=4, step=0, group=0, spans=None, **metadata):
  return Sample(
      prompt="p", completion="c" * tokens, reference="", completion_tokens=tuple(range(tokens)),
      step=step, group=group, metadata=metadata, spans={"step": spans} if spans else {})


def by(name, key, **fields):
  return {name: {"function": f"{HERE}:numbers", "args": {"key": key}, **fields}}


# --- Weights, gates, transforms


def test_a_schedule_follows_the_samples_step():
  spec = {
      **by("a", "a", weight={"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 4}),
      **by("b", "b", weight=10)}
  for form in (spec, ml_collections.ConfigDict(spec)):
    scores = build_rewards(form).score([sample(step=s, a=1.0, b=0.5) for s in (0, 1, 4, 9)])
    assert scores.total.tolist() == [6, 5.75, 5, 5]
    assert scores.components["a"].tolist() == [1] * 4
    assert scores.shaped["a"].tolist() == [1, 0.75, 0, 0]
    assert list(scores.shaped) == ["a"] and scores.steps is None
    assert set(scores.logged()) == {"a", "b", "a/shaped"}
  # In place of the weight.
  short = build_rewards({"boxed_format": {"schedule": "constant", "start": 2.0}})
  assert short.components[0].weight(np.array([7])).tolist() == [2.0]


def test_a_gate_counts_strictly_between_its_thresholds():
  spec = {
      **by("answer", "a", gate={"component": "format", "above": 0.5}),
      **by("format", "f", weight=0.25),
      **by("brief", "b", gate={"component": "answer", "above": 0.2, "below": 0.8})}
  samples = [
      sample(a=1.0, f=1, b=4), sample(a=1.0, f=0.5, b=4), sample(a=0.5, f=1, b=4),
      sample(a=0.5, f=0, b=4)]
  scores = build_rewards(spec).score(samples)
  # The answer counts where the format is above 0.5: 1, 0, 1, 0.
  # Brief where the answer is in (0.2, 0.8) and counts: 3rd.
  assert scores.total.tolist() == [1.25, 0.125, 0.5 + 0.25 + 4, 0]
  assert scores.components["answer"].tolist() == [1, 1, 0.5, 0.5]  # Raw.
  assert scores.shaped["answer"].tolist() == [1, 0, 0.5, 0]
  assert scores.shaped["brief"].tolist() == [0, 0, 4, 0]


def test_a_component_of_weight_zero_may_gate():
  spec = {**by("answer", "a", gate={"component": "safe", "below": 0}), **by("safe", "s", weight=0)}
  assert build_rewards(spec)([sample(a=3, s=-1), sample(a=3, s=0)])[0].tolist() == [3, 0]


@pytest.mark.parametrize("gates, message", [
    (dict(a=dict(component="fromat", above=0)),
     "gate of the reward 'a' looks at 'fromat', which is .* Components: a, b, c"),
    (dict(a=dict(component="bb", above=0)), "Did you mean 'b'"),
    (dict(
        a=dict(component="b", above=0), b=dict(component="c", above=0),
        c=dict(component="a", above=0)),
     "a circle, a -> b -> c -> a"),
    (dict(a=dict(component="a", above=0)), "a circle, a -> a: .* transform clip"),
    # A way into the circle.
    (dict(
        a=dict(component="b", above=0), b=dict(component="c", above=0),
        c=dict(component="b", below=0)),
     "a -> b -> c -> b"),
    (dict(a=dict(component="b")), "needs a threshold"),
    (dict(a=dict(component="b", above=1, below=1)), "above=1, below=1"),
    (dict(a=dict(component="b", above=float("nan"))), "needs a threshold"),
    (dict(a=dict(above=1)), "Reward 'a': gate needs the argument component"),
    (dict(a=dict(component="b", abve=1)), "takes no argument 'abve'. Did you mean 'above'"),
    (dict(a="b"), "must be a mapping, got 'b': e.g. {'component': 'b', 'above': 0.5}"),
])
def test_gates_that_cannot_be_are_refused(gates, message):
  spec = {
      k: v for name in "abc"
      for k, v in by(name, "a", **({"gate": gates[name]} if name in gates else {})).items()}
  with pytest.raises(ValueError, match=message):
    build_rewards(spec)


def test_transforms_apply_in_order_before_gate_and_weight():
  # (2·r) cut at 3, then times 10 where open; the gate and the logs see r itself.
  clip = {"name": "clip", "high": 3.0}
  for transforms, expected in (
      ((f"{HERE}:double", clip), [20, 30]), ((clip, f"{HERE}:double"), [20, 60])):
    spec = {
        **by("a", "a", transforms=transforms, weight=10.0),
        **by("b", "b", gate={"component": "a", "above": 4})}
    for form in (spec, ml_collections.ConfigDict(spec)):
      scores = build_rewards(form).score([sample(a=1, b=0.5), sample(a=5, b=0.5)])
      assert scores.shaped["a"].tolist() == expected and scores.components["a"].tolist() == [1, 5]
      assert scores.shaped["b"].tolist() == [0, 0.5]
      assert scores.total.tolist() == [expected[0], expected[1] + 0.5]


def test_transforms_that_see_groups_get_them():
  spec = by("a", "a", transforms=("group_rank",))
  samples = [sample(group=g, a=a) for g, a in ((0, 5), (0, 7), (1, 3), (1, 2))]
  assert build_rewards(spec)(samples)[0].tolist() == [0, 1, 1, 0]


def test_normalisers_are_saved_and_restored_with_the_set():
  spec = {
      **by("a", "a", transforms=("running_mean_std", {"name": f"{HERE}:Count", "start": 3})),
      **by("b", "b")}
  batches = [
      [sample(a=a, b=0) for a in row] for row in np.random.RandomState(0).randn(4, 3).tolist()]
  whole, first = build_rewards(spec), build_rewards(spec)
  for batch in batches[:2]:
    whole(batch), first(batch)
  saved = json.loads(json.dumps(first.state()))
  assert set(saved) == {"a:0:running_mean_std", f"a:1:{HERE}:Count"}
  assert saved[f"a:1:{HERE}:Count"] == {"calls": 5}
  resumed = build_rewards(spec)
  resumed.restore(saved)
  for batch in batches[2:]:
    assert whole(batch)[0].tobytes() == resumed(batch)[0].tobytes()
  with pytest.raises(ValueError, match="'a:0:running_mean_std'.* but the stateful rewards now are"):
    build_rewards(by("a", "a")).restore(saved)


@pytest.mark.parametrize("made, message", [
    (lambda r: r[:1], r"'odd' of the reward component 'a' must return an array per sample"),
    (lambda r: [np.append(x, 0) for x in r], "as long as the one it got"),
    (lambda r: [x / 0 for x in r],
     r"'odd' of the reward component 'a' made \[inf\] of \[1.0\] for sample 0: prompt 'p'"),
])
def test_what_transforms_return_is_checked(made, message):
  reward = RewardSet([
      Component("a", numbers, args={"key": "a"}, transforms=(Transform("odd", made),))])
  with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
    reward([sample(a=1), sample(a=2)])


# --- Steps


STEPS = [sample(6, spans=[(0, 2), (2, 5), (5, 6)], steps=[0.9, 0.5, 0.75], a=1.0, f=1),
         sample(3, steps=[0.5], a=0.0, f=1), sample(5, spans=[(1, 3)], steps=[0.25], a=1.0, f=0)]


def test_steps_are_paid_at_their_ends_and_the_answer_at_the_last_token():
  spec = {"prm": {"function": f"{HERE}:steps", "weight": 2.0}, **by("answer", "a")}
  scores = build_rewards(spec).score(STEPS)
  np.testing.assert_allclose(scores.total, [4.3 + 1, 1, 0.5 + 1], rtol=1e-6)
  np.testing.assert_allclose(scores.components["prm"], [2.15, 0.5, 0.25], rtol=1e-6)
  # No spans: the whole completion is one step. A token of both a step and the end gets both.
  expected = [[0, 1.8, 0, 0, 1.0, 1.5 + 1, 0], [0, 0, 1.0, 0, 0, 0, 0], [0, 0, 0.5, 0, 1.0, 0, 0]]
  got = token_rewards(scores, np.array([6, 3, 5]), 7)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, expected, atol=1e-6)
  np.testing.assert_allclose(got.sum(axis=1), scores.total, rtol=1e-6)


def test_plain_rewards_lie_on_the_last_token():
  scores = build_rewards(by("answer", "a")).score(STEPS)
  assert token_rewards(scores, [6, 3, 5], 6).tolist() == [
      [0, 0, 0, 0, 0, 1], [0] * 6, [0, 0, 0, 0, 1, 0]]
  assert token_rewards(scores, [1, 0, 1], 1).tolist() == [[1], [0], [1]]
  for lengths in ([0, 3, 5], [7, 3, 5]):
    with pytest.raises(
        ValueError, match=f"Completion 0 has {lengths[0]} tokens and the reward 1.0"):
      token_rewards(scores, lengths, 6)


def test_clip_delta_gate_and_weight_apply_to_steps():
  # min(r − 0.8, 0) = [0, −0.3, −0.05], [−0.3], [−0.55]; delta: [0.3, −0.3, 0], [0], [0].
  # The second r is the last but one.
  transforms = ({"name": "clip", "offset": 0.8, "high": 0.0}, "delta")
  spec = {"prm": {"function": f"{HERE}:steps", "weight": -1.0, "transforms": transforms,
                  "gate": {"component": "answer", "above": 0.5}}, **by("answer", "a", weight=0)}
  samples = [*STEPS, sample(6, spans=[(0, 2), (2, 5), (5, 6)], steps=[0.9, 0.5, 0.75], a=0.0, f=1)]
  scores = build_rewards(spec).score(samples)
  np.testing.assert_allclose(
      token_rewards(scores, [6, 3, 5, 6], 6), [[0, -0.3, 0, 0, 0.3, 0], [0] * 6, [0] * 6, [0] * 6],
      atol=1e-6)
  # Raw: not gated.
  np.testing.assert_allclose(scores.components["prm"], [2.15, 0.5, 0.25, 2.15], rtol=1e-6)
  np.testing.assert_allclose(scores.shaped["prm"], 0, atol=1e-6)


def test_steps_of_several_components_add_up_where_they_meet():
  def every_token(samples):
    return StepRewards([np.full(len(s.completion_tokens), 0.1) for s in samples],
                       [np.arange(len(s.completion_tokens)) for s in samples])
  def none(samples):
    return StepRewards([[] for _ in samples], [np.zeros(0, int) for _ in samples])
  reward = RewardSet([
      Component("prm", steps), Component("tokens", every_token), Component("none", none, 5.0)])
  scores = reward.score(STEPS)
  np.testing.assert_allclose(token_rewards(scores, [6, 3, 5], 6), [
      [0.1, 1.0, 0.1, 0.1, 0.6, 0.85],
      [0.1, 0.1, 0.6, 0, 0, 0],
      [0.1, 0.1, 0.35, 0.1, 0.1, 0]], atol=1e-6)
  assert scores.components["none"].tolist() == [0] * 3
  assert reward.score([]).total.shape == (0,)
  assert token_rewards(reward.score([]), [], 4).shape == (0, 4)


def test_a_gate_looks_at_the_sum_of_steps():
  spec = {
      "prm": {"function": f"{HERE}:steps", "weight": 0},
      **by("answer", "f", gate={"component": "prm", "above": 0.4})}
  assert build_rewards(spec)(STEPS)[0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("name", ["delta", "potential", "min_form"])
def test_transforms_of_steps_refuse_numbers(name):
  with pytest.raises(
      ValueError, match=f"'a' is one number per sample, and its transform '{name}' works on steps"):
    build_rewards(by("a", "a", transforms=(name,)))(STEPS)


@pytest.mark.parametrize("values, ends, message", [
    ([[1, 2], [3]], [[0, 1], [0]], "steps for each of 3 samples, got 2 rows of values"),
    ([[1, 2], [3], [1]], [[0], [0], [0]],
     r"for sample 0 values of shape \(2,\) at the tokens \[0\] of a completion of 6"),
    ([[1], [3], [1]], [[0], [3], [0]],
     r"for sample 1 .* at the tokens \[3\] of a completion of 3 tokens: .* in \[0, 3\)"),
    ([[1, 1], [3], [1]], [[2, 2], [0], [0]], "for sample 0 .* rising"),
    ([[1], [3], [1]], [[-1], [0], [0]], "for sample 0"),
    ([[1], [3], [1]], [[0.5], [0], [0]], "for sample 0"),
    ([[1], [3], [np.nan]], [[0], [0], [0]],
     r"'bad' returned nan for sample 2 \(1 of 3 not finite\)"),
    ([[1], [1e39], [np.inf]], [[0], [0], [0]],
     r"'bad' returned inf for sample 1 \(2 of 3 not finite\)"),
])
def test_steps_are_checked(values, ends, message):
  made = StepRewards([np.array(v) for v in values], [np.array(e) for e in ends])
  with pytest.raises(ValueError, match=message):
    RewardSet([Component("bad", lambda samples: made)])(STEPS)


def test_at_spans_needs_one_value_a_step():
  with pytest.raises(ValueError, match=r"Sample 0 has 3 steps \(spans 'step'\) and 2 values"):
    StepRewards.at_spans(STEPS[:1], [[1, 2]])
  with pytest.raises(ValueError, match="Sample 1 has 1 steps .* and 0 values"):
    StepRewards.at_spans(STEPS[:2], [[1, 2, 3], []])


def test_empty_spans_and_empty_completions_are_no_steps():
  # Two tokens, a span without any, and a completion without any.
  assert steps_lib.step_ends(sample(5, spans=[(0, 2), (2, 2), (2, 4)])).tolist() == [1, 3]
  assert steps_lib.step_ends(sample(0)).tolist() == []
  assert steps_lib.step_ends(sample(5)).tolist() == [4]
  assert steps_lib.step_ends(sample(5, spans=[(0, 2)]), span="turn").tolist() == [4]


def test_steps_scored_early_are_those_of_the_whole_batch():
  def early(samples):
    return steps(samples)
  early.per_sample = True
  reward = RewardSet([
      Component("prm", early, 2.0), Component("answer", numbers, 1.0, {"key": "a"})])
  expected = token_rewards(reward.score(STEPS), [6, 3, 5], 6)
  for parts in ([[2], [0]], [[1, 0]], []):
    with contextlib.closing(scoring_lib.Scoring(reward)) as scoring:
      for part in parts:
        scoring.add(part, [STEPS[i] for i in part])
      assert token_rewards(scoring.finish(STEPS), [6, 3, 5], 6).tobytes() == expected.tobytes()
  def fickle(samples):
    return steps(samples) if len(samples) == 1 else [0.0] * len(samples)
  fickle.per_sample = True
  with contextlib.closing(scoring_lib.Scoring(RewardSet([Component("prm", fickle)]))) as scoring:
    scoring.add([2], STEPS[2:])
    with pytest.raises(
        ValueError, match="'prm' returned StepRewards for some samples and numbers for others"):
      scoring.finish(STEPS)


def test_a_set_may_be_made_directly():
  reward = RewardSet([Component("a", numbers, 2, {"key": "a"}, gate=Gate("b", below=1)),
                      Component("b", numbers, 0, {"key": "f"})])
  assert reward(STEPS)[0].tolist() == [0, 0, 2]
  with pytest.raises(ValueError, match="the weight nan"):
    Component("a", numbers, float("nan"))


# --- What users write


class Ends:
  """A reward that ends the process where it is asked to."""

  def __init__(self, *, at="call"):
    self.end(at, "init")
    self.at = at

  def end(self, at, where):
    if at == where:
      raise SystemExit(0)

  def __call__(self, samples):
    self.end(self.at, "call")
    return [1.0] * len(samples)

  def check_references(self, references):
    self.end(self.at, "check_references")
    return [None] * len(references)

  def state(self):
    self.end(self.at, "state")
    return {}

  def restore(self, state):
    self.end(self.at, "restore")

  def metrics(self):
    self.end(self.at, "metrics")
    return {}


@pytest.mark.parametrize("at, use", [
    ("init", lambda rewards: None),
    ("call", lambda rewards: rewards([sample()])),
    ("check_references", lambda rewards: rewards.check_references(["1"])),
    ("state", lambda rewards: rewards.state()),
    ("restore", lambda rewards: rewards.restore({"mine": {}})),
    ("metrics", lambda rewards: rewards.metrics())])
def test_a_reward_that_ends_the_process_is_an_error_that_names_it(at, use):
  spec = {"mine": {"function": f"{HERE}:Ends", "args": {"at": at}}}
  with pytest.raises(ValueError, match=r"SystemExit\(0\) was raised by .*'mine'.*test_reward_set.py:"):
    use(build_rewards(spec))


def leaves(samples):
  raise SystemExit(0)


def test_an_early_reward_that_ends_the_process_is_an_error(monkeypatch):
  monkeypatch.setattr(leaves, "per_sample", True, raising=False)
  rewards = RewardSet([Component("mine", leaves)])
  with contextlib.closing(scoring_lib.Scoring(rewards)) as scoring:
    scoring.add([0], [sample()])
    with pytest.raises(ValueError, match="SystemExit.0. was raised by the reward component 'mine'"):
      scoring.finish([sample()])


def test_ctrl_c_in_a_reward_stays_what_it_is():
  def interrupted(samples):
    raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    RewardSet([Component("mine", interrupted)])([sample()])


def test_a_transform_that_raises_is_named():
  def bad(rewards):
    return [[10 ** 400] for _ in rewards]
  rewards = RewardSet([Component("mine", numbers, args={"key": "a"}, transforms=(Transform("bad", bad),))])
  with pytest.raises(OverflowError) as caught:
    rewards([sample(a=1.0)])
  assert caught.value.__notes__ == ["Raised by the transform 'bad' of the reward component 'mine'."]


@pytest.mark.parametrize("output", [[10 ** 400], StepRewards([[10 ** 400]], [[0]])])
def test_a_number_that_no_float_can_hold_names_the_component(output):
  rewards = RewardSet([Component("mine", lambda samples: output)])
  with pytest.raises(ValueError, match="The reward component 'mine' must return one number per sample"):
    rewards([sample()])


def test_a_weight_that_no_float_can_hold_is_refused():
  with pytest.raises(ValueError, match="Reward 'boxed_format' has the weight 1000.*give a finite number"):
    build_rewards({"boxed_format": 10 ** 400})


class Keeps(Count):
  """A transform whose state is not JSON."""

  def state(self):
    return {"seen": {1, 2}}


def test_a_state_that_no_checkpoint_can_hold_names_its_owner():
  spec = by("mine", "a", transforms=(f"{HERE}:Keeps",))
  with pytest.raises(ValueError, match="state of the reward 'mine:0:.*Keeps' is not JSON .*set"):
    build_rewards(spec).state()


# --- Abstentions


def test_an_abstention_counts_as_the_mean_of_the_rest_of_its_group():
  def judge(samples):
    return abstention.scores([s.metadata["score"] for s in samples])
  samples = [sample(group=0, score=s) for s in (1.0, None, 0.0)] + [
      sample(group=1, score=s) for s in (1.0, None)] + [sample(group=2, score=None)]
  for early in (False, True):
    judge.per_sample = early
    with contextlib.closing(scoring_lib.Scoring(RewardSet([Component("mine", judge)]))) as scoring:
      scoring.add([0, 2], [samples[0], samples[2]])
      assert scoring.finish(samples).total.tolist() == [1, 0.5, 0, 1, 1, 0]


def test_a_number_that_is_not_finite_is_no_abstention():
  rewards = RewardSet([Component("mine", lambda samples: np.ma.masked_array([np.nan, 0.0], [False, True]))])
  with pytest.raises(ValueError, match="'mine' returned nan for sample 0"):
    rewards([sample(), sample()])


# --- Functions in place of names


def twice(rewards, *, by=2):
  return [by * r for r in rewards]


class Always:
  """Pays the same for all."""

  def __init__(self, *, amount=1.0):
    self.amount = amount

  def __call__(self, samples):
    return [self.amount] * len(samples)


@pytest.mark.parametrize("entry, total", [
    (lambda samples: [3.0], 3), ({"function": lambda samples: [3.0], "weight": 0.5}, 1.5),
    (Always, 1), (Always(amount=4.0), 4), ({"function": Always, "args": {"amount": 2.0}}, 2),
    ({"function": Always, "transforms": (twice, {"name": twice, "by": 3})}, 6)])
def test_a_function_stands_where_a_name_does(entry, total):
  for form in ({"mine": entry}, ml_collections.ConfigDict({"mine": entry})):
    assert build_rewards(form)([sample()])[0].tolist() == [total]


def test_arguments_of_a_function_are_checked_as_those_of_a_name():
  with pytest.raises(ValueError, match="Reward 'mine': .*Always takes no argument 'amont'. Did you mean 'amount'"):
    build_rewards({"mine": {"function": Always, "args": {"amont": 1}}})


def test_a_recorded_function_that_is_gone_says_so():
  with pytest.raises(ValueError, match="The reward 'mine' of this run is <.*from Python"):
    build_rewards({"mine": "<__main__.mine, given from Python>"})
