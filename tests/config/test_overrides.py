"""Changes by dotted names: of ConfigDicts, an experiment's sizes, and checked sections."""

import dataclasses

import ml_collections
import pytest

from rl_reason.config import checks
from rl_reason.config.overrides import override, replaced, sized


@dataclasses.dataclass(frozen=True)
class Inner:
  size: int = 1
  name: str = "a"

  def __post_init__(self):
    checks.at_least(1, size=self.size)


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  limit: int = 4

  def __post_init__(self):
    if self.inner.size > self.limit:
      raise ValueError(f"size={self.inner.size} is above limit={self.limit}.")


@pytest.fixture
def config():
  return ml_collections.ConfigDict({
      "rl": {"rollout": {"prompts": 8}, "rewards": {"a": 1.0, "b": 2.0}}, "seed": 0})


def test_fields_are_set_by_their_dotted_names(config):
  got = override(config, {"rl.rollout.prompts": 4, "seed": 3, "rl.objective.kl.coef": 0.1})
  assert got is config
  assert config.rl.rollout.prompts == 4
  assert config.seed == 3
  assert config.rl.objective.kl.coef == 0.1  # In sections that were not written out.


def test_a_value_may_be_of_another_type(config):
  assert override(config, {"seed": "three"}).seed == "three"


def test_a_section_is_replaced_as_a_whole(config):
  override(config, {"rl.rewards": {"c": 3.0}})
  assert config.rl.rewards.to_dict() == {"c": 3.0}


def test_a_missing_section_is_named(config):
  with pytest.raises(
      ValueError,
      match=r"overrides\['rl.rolout.prompts'\]: the config has no section 'rl.rolout'. Did you"
            " mean 'rollout'"):
    override(config, {"rl.rolout.prompts": 4}, new_sections=False)
  with pytest.raises(ValueError, match="no section 'seed'"):
    override(config, {"seed.more": 4})


def test_sizes_of_an_experiment(config):
  tables = dict(tiny={"rl.rollout.prompts": 2}, small={"rl.rollout.prompts": 4})
  for size, prompts in (("", 8), ("full", 8), ("tiny", 2)):
    assert sized(config, size, **tables).rl.rollout.prompts == prompts
  with pytest.raises(
      ValueError, match="Unknown size 'tinny'. Did you mean 'tiny'. Known: :full, :tiny, :small"):
    sized(config, "tinny", **tables)


def test_a_checked_section_with_other_fields():
  before = Outer()
  assert replaced(before, {"inner.size": 3, "inner.name": "b"}) == Outer(Inner(3, "b"))
  assert replaced(before, {"inner": Inner(2)}) == Outer(Inner(2))
  # At once: a size above the limit would be refused on the way.
  assert replaced(before, {"inner.size": 5, "limit": 5}) == Outer(Inner(5), 5)
  assert before == Outer()


def test_a_changed_section_is_checked_again():
  with pytest.raises(ValueError, match="size must be at least 1, got 0"):
    replaced(Outer(), {"inner.size": 0})
  with pytest.raises(ValueError, match="size=5 is above limit=4"):
    replaced(Outer(), {"inner.size": 5})
