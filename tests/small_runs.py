"""A small run for each kind of stage: the config file of runs that are killed, or given faults.

    python -m rl_reason.train --config=tests/small_runs.py:turns --workdir=runs/turns
"""

from rl_reason.experiments import ppr, preference_strength, probing, quickstart
from rl_reason.rollout.sampling import Sampling

MODULE = "tests.small_runs"


class Moody:
  """Range [0, 1]: another length is liked at every call."""

  def __init__(self):
    self.calls = 0

  def __call__(self, samples):
    self.calls += 1
    return [(len(s.completion) + 3 * self.calls) % 7 / 6 for s in samples]

  def state(self):
    return {"calls": self.calls}

  def restore(self, state):
    self.calls = state["calls"]


def drawn(probe):
  """Samples a few completions: how long they are."""
  samples, _ = probe.sample(list(probe.context.task.heldout)[:4], Sampling(max_tokens=8))
  lengths = [len(s.completion) for s in samples]
  return {"length": sum(lengths), "lengths": lengths}


def sampled_alike(c, section):
  """Gives evaluations the shapes of rollouts, so that one program serves both."""
  rollout = section.rollout
  c.evaluation.update(every=2, batch_size=rollout.prompts, num_problems=rollout.prompts,
                      samples_per_problem=rollout.group_size)
  c.evaluation.sampling.max_tokens = rollout.sampling.max_tokens
  return c


def staleness():
  c = quickstart.get_config("tiny")
  c.stages = ("rl",)
  c.rl.rewards = {"moody": {"function": f"{MODULE}:Moody"}}
  c.rl.staleness = 1
  c.rl.objective.importance_cap = 2.0
  return sampled_alike(c, c.rl)


def self_training():
  c = quickstart.get_config("tiny")
  c.stages, c.max_prompt_tokens = ("star",), 16
  c.star = dict(
      kind="self_training", num_rounds=2, generation_steps=2, updates=2, batch_size=4,
      rewards={"moody": {"function": f"{MODULE}:Moody"}},
      rollout=dict(prompts=4, group_size=4, sampling=dict(max_tokens=28)),
      keep=dict(thresholds=(0.2,)), accumulate=True, imitate_solutions=True,
      learner=dict(optimizer=dict(learning_rate=1e-2)))
  return sampled_alike(c, c.star)


def turns():
  c = ppr.get_config("renorm-tiny")
  c.stages = ("rl",)
  c.rl.num_steps = 4
  return sampled_alike(c, c.rl)


def preference():
  c = probing.get_config("all-tiny")
  c.stages = ("dpo", "after")
  c.dpo = dict(
      kind="preference", num_steps=4, batch_size=8, heldout_rows=8,
      max_response_tokens=c.rm.max_response_tokens, data=c.rm.data, learner=c.rm.learner)
  c.after = dict(kind="probe", functions=dict(first=f"{MODULE}:drawn", second=f"{MODULE}:drawn"))
  c.evaluation.every = 2
  return c


def reward_model():  # And voting, and a reward model that relabels by the votes.
  return preference_strength.get_config("flip-tiny")


RUNS = {run.__name__: run for run in (staleness, self_training, turns, preference, reward_model)}


def get_config(name):
  c = RUNS[name]()
  c.checkpoint = dict(every=1, keep=2)
  return c
