"""Which policy each stage of a pipeline starts from."""

import dataclasses

import pytest

from rl_reason.run import earlier
from rl_reason.stages.base import Kind, Trained
from rl_reason.stages.context import Context
from rl_reason.stages.registry import STAGES


@dataclasses.dataclass(frozen=True)
class Section:
  kind: str
  start: str = ""


@pytest.fixture
def pipeline(monkeypatch):
  """{name: start} -> the starting points.

  Stages whose name begins with "scorer" train no policy.
  """
  def of(starts):
    for kind, left in (("policy", Trained({})), ("scorer", Trained({}, policy=None))):
      monkeypatch.setitem(STAGES, kind, Kind(
          Config=Section, build=None, trained=lambda section, context, name, left=left: left))
    sections = {
        name: Section("scorer" if name.startswith("scorer") else "policy", start)
        for name, start in starts.items()}
    return earlier.Stages(None, sections, None, Context(
        seed=0, policy=None, dtype=None, task=None, max_prompt_tokens=1,
        partitioning=None)).starting_points()
  return of


def test_a_stage_starts_from_the_last_policy_before_it(pipeline):
  assert pipeline({"scorer_a": "", "sft": "", "scorer_b": "", "rl": ""}) == {
      "scorer_a": "", "sft": "", "scorer_b": "sft", "rl": "sft"}


def test_a_stage_starts_from_the_policy_that_it_names(pipeline):
  assert pipeline({"sft": "", "a": "", "b": "sft", "c": "initial"}) == {
      "sft": "", "a": "sft", "b": "sft", "c": ""}


@pytest.mark.parametrize(
    "starts", [{"sft": "", "rl": "sfft"}, {"rl": "sft", "sft": ""}, {"scorer": "", "rl": "scorer"}])
def test_other_starts_are_refused(pipeline, starts):
  name = next(n for n, start in starts.items() if start)
  with pytest.raises(
      ValueError,
      match=f"config.{name}.start='{starts[name]}' is no earlier stage that trains a policy"):
    pipeline(starts)
