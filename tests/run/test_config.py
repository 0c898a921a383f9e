"""Configs: every mistake is named with its full path and a cure, the rest is filled in."""

import dataclasses
import functools
import operator
import subprocess
import sys
from typing import Literal

from absl import flags
import ml_collections
import pytest

from rl_reason.config import checks, naming
from rl_reason.config import fields as fields_lib
from rl_reason.experiments import algorithms
from rl_reason.rollout.sampling import Sampling
from rl_reason.run import config as config_lib
from rl_reason.runtime import sharding
from rl_reason.stages import registry
from tests import environment

QUICKSTART = "experiments/quickstart.py:tiny"


@pytest.fixture
def config():
  c = config_lib.load(QUICKSTART)
  c.unlock()
  return c


def put(config, path, value):
  *sections, name = path.split(".")
  for section in sections:
    config = config[section]
  config[name] = value


def flat(section):
  """{dotted field: value} of nested sections."""
  out = {}
  for name, value in section.items():
    if isinstance(value, dict):
      out |= {f"{name}.{k}": v for k, v in flat(value).items()}
    else:
      out[name] = value
  return out


def test_the_packaged_experiments_are_correct():
  for spec in (QUICKSTART, "experiments/quickstart.py", "experiments/smollm2_gsm.py"):
    config_lib.check(config_lib.load(spec))
  for algorithm, fields in algorithms.ALGORITHMS.items():
    for size in ("", "-tiny"):
      section = config_lib.check(
          config_lib.load(f"experiments/algorithms.py:{algorithm}{size}"))[1]["rl"]
      chosen = {
          name: value for name, value in flat(fields).items() if not name.startswith("rewards.")}
      assert chosen
      assert all(operator.attrgetter(name)(section) == value for name, value in chosen.items())
  with pytest.raises(ValueError, match="Unknown arm 'gspo-huge'. Did you mean 'gspo'"):
    config_lib.load("experiments/algorithms.py:gspo-huge")


def test_arguments_of_experiments():
  named = functools.partial(
      naming.arm_and_size, arms=("plain", "full"), sizes=("tiny",), whole="full-7b")
  assert [named(x) for x in ("plain", "full-tiny", "full-7b")] == [
      ("plain", ""), ("full", "tiny"), ("", "full-7b")]
  for wrong in ("plain-full", "tiny", "", "full-7b-tiny", "plain-"):
    with pytest.raises(
        ValueError,
        match=f"Unknown arm '{wrong}'.*Known: :full-7b, :plain, :full, :plain-tiny, :full-tiny"):
      named(wrong)


def test_packaged_experiments_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_lib.load("experiments/quickstart.py:tiny").seed == 0
  assert config_lib.load("quickstart.py:tiny").seed == 0


def test_no_field_hides_a_method_of_the_config():
  # config.rl.update would be ConfigDict's own, and --config.rl.update.epochs=2 would fail.
  for kind in registry.STAGES.values():
    for path in fields_lib.paths(kind.Config):
      assert not set(path.split(".")) & set(dir(ml_collections.ConfigDict)), path


def test_defaults_are_filled_in(config):
  assert config.mesh.fsdp == -1
  assert config.checkpoint.keep == 2
  assert config.logging.tensorboard is False
  assert config.rl.learner.epochs == 1
  assert config.rl.learner.optimizer.max_skipped == 5
  assert config.rl.rollout.sampling.temperature == 1.0
  assert config.sft.learner.optimizer.schedule == "cosine"  # What the file sets stays.
  run_config, sections = config_lib.check(config)
  assert run_config.mesh == sharding.MeshSection()
  assert sections["rl"].rollout.sampling.stop_strings == ()


@pytest.mark.parametrize("field, value, message", [
    # Unknown fields, at every depth.
    ("polcy", {}, "config has no field 'polcy'. Did you mean 'policy'?"),
    ("rl.grup_size", 4, "config.rl has no field 'grup_size'. Did you mean 'rollout.group_size'?"),
    ("rl.learner.optimizer.lerning_rate", 1.0,
     "config.rl.learner.optimizer has no field 'lerning_rate'. Did you mean 'learning_rate'?"),
    ("evaluation.sampling.max_token", 4,
     "config.evaluation.sampling has no field 'max_token'. Did you mean 'max_tokens'?"),
    # Wrong types.
    ("seed", "0", "config.seed must be int, got '0' (str)"),
    ("seed", 0.5, "config.seed must be int, got 0.5 (float)"),
    ("rl.rollout.group_size", True, "config.rl.rollout.group_size must be int, got True (bool)"),
    ("rl.objective.kl.coef", "high", "config.rl.objective.kl.coef must be float, got 'high' (str)"),
    ("logging.tensorboard", 1, "config.logging.tensorboard must be bool"),
    ("policy.args", 3, "config.policy.args must be a section with fields, got 3"),
    ("mesh", 3, "config.mesh must be a section with fields, got 3"),
    ("rl.rollout.sampling.stop_strings", "#",
     "config.rl.rollout.sampling.stop_strings must be a tuple, got '#':"
     " for one entry write ('#',)"),
    ("rl.rollout.sampling.stop_strings", (1,),
     "config.rl.rollout.sampling.stop_strings[0] must be str, got 1"),
    ("policy.dtype", "bfloat15",
     "config.policy.dtype must be one of 'float32', 'bfloat16', got 'bfloat15'. Did you mean"),
    # Unknown names.
    ("rl.kind", "policy_gradients",
     "(config.rl.kind) 'policy_gradients'. Did you mean 'policy_gradient'?"),
    ("rl.credit.baseline", "grup_mean",
     "config.rl.credit: Unknown baseline 'grup_mean'. Did you mean 'group_mean'?"),
    ("rl.credit.normalise", "group_stt",
     "config.rl.credit: Unknown normalise 'group_stt'. Did you mean 'group_std'?"),
    ("rl.objective.mean_over", "tokens",
     "config.rl.objective: Unknown mean_over 'tokens'. Did you mean 'token'?"),
    ("rl.objective.kl.estimator", "k4",
     "config.rl.objective.kl: Unknown estimator 'k4'. Known: k1, k2, k3"),
    ("rl.objective.kl.added_to", "los",
     "config.rl.objective.kl: Unknown added_to 'los'. Did you mean 'loss'?"),
    ("rl.learner.optimizer.name", "adam",
     "config.rl.learner.optimizer: Unknown name 'adam'. Did you mean 'adamw'?"),
    ("sft.learner.optimizer.schedule", "cosin",
     "config.sft.learner.optimizer: Unknown schedule 'cosin'. Did you mean 'cosine'?"),
    # Values out of range, or that do not go together.
    ("rl.rollout.group_size", 1, "config.rl: group_size must be at least 2"),
    ("rl.rollout.group_size", 0, "config.rl.rollout: group_size must be at least 1, got 0"),
    ("rl.rollout.sampling.top_k", 5, "no top_k, top_p or min_p"),
    ("rl.rollout.sampling.temperature", 0.0, "need temperature above 0"),
    ("rl.rollout.sampling.top_p", 0.0,
     "config.rl.rollout.sampling: top_p must be in (0, 1], got 0.0"),
    ("rl.learner.minibatches", 3, "config.rl: "),
    ("rl.learner.microbatches", 3, "config.rl: "),
    ("sft.learner.microbatches", 3, "config.sft: microbatches=3 must divide batch_size=8"),
    ("rl.objective.clip_low", 1.5, "config.rl.objective: clip_low must be in [0, 1], got 1.5"),
    ("rl.learner.optimizer.max_skipped", 0,
     "config.rl.learner.optimizer: max_skipped must be at least 1, got 0"),
    ("rl.learner.optimizer.learning_rate", -1.0,
     "config.rl.learner.optimizer: learning_rate must be at least 0, got -1.0"),
    ("rl.learner.optimizer.learning_rate", float("nan"),
     "config.rl.learner.optimizer: learning_rate must be at least 0, got nan"),
    ("rl.learner.optimizer.learning_rate", float("inf"),
     "config.rl.learner.optimizer: learning_rate must be finite, got inf"),
    ("checkpoint.every", 0, "config.checkpoint: every must be at least 1, got 0"),
    ("evaluation.num_problems", 0, "config.evaluation: num_problems must be at least 1, got 0"),
    ("logging.profile.first", 0, "config.logging.profile: first must be at least 1, got 0"),
    ("logging.profile.last", 2, "last must be at least first, got first=3 and last=2"),
    ("logging.profile", {"stage": "rll"},
     "(config.logging.profile.stage) 'rll'. Did you mean 'rl'?"),
    ("logging.profile", {"stage": "rl", "last": 5},
     "config.logging.profile: last=5, but stage 'rl' has 4 steps"),
    ("seed", -1, "seed must be in [0, 2^31), got -1"),
    ("stages", (), "stages must name at least one section"),
    ("stages", ("rl", "rl"), "each once"),
    ("stages", [None], "config.stages must be a tuple of names"),
    ("stages", [["rl"]], "config.stages must be a tuple of names"),
    ("stages", ("sft", "rl", "more"),
     "config.stages names 'more', but the config has no section config.more"),
])
def test_a_mistake_is_named_with_its_path_and_a_cure(config, field, value, message):
  with config.ignore_type():
    put(config, field, value)
  with pytest.raises(ValueError) as error:
    config_lib.check(config)
  assert message in str(error.value)


def test_a_whole_number_that_no_float_reaches_is_named():
  with pytest.raises(ValueError, match="config.temperature must be a float"):
    fields_lib.parse(Sampling, {"max_tokens": 1, "temperature": 10 ** 400})


@pytest.mark.parametrize("section, field", [
    ("", "policy"), ("rl.rollout", "group_size"), ("rl.learner", "optimizer"),
    ("evaluation", "rewards"), ("evaluation", "sampling"),
    ("sft.learner.optimizer", "learning_rate")])
def test_a_missing_field_is_named(config, section, field):
  holder = config
  for name in filter(None, section.split(".")):
    holder = holder[name]
  del holder[field]
  with pytest.raises(
      ValueError, match=f"config{'.' if section else ''}{section} lacks the field {field}"):
    config_lib.check(config)


def test_a_stage_without_its_section(config):
  del config["rl"]
  with pytest.raises(
      ValueError, match="config.stages names 'rl', but the config has no section config.rl"):
    config_lib.check(config)


def test_a_group_of_one_is_fine_without_a_baseline(config):
  config.rl.rollout.group_size = 1
  config.rl.credit.baseline, config.rl.credit.normalise = "none", "none"
  assert config_lib.check(config)[1]["rl"].rollout.group_size == 1


def test_whole_numbers_serve_as_floats(config):
  with config.ignore_type():
    config.rl.objective.kl.coef = 1
  value = config_lib.check(config)[1]["rl"].objective.kl.coef
  assert value == 1.0 and isinstance(value, float)


def test_no_such_file_and_no_experiment_in_it(tmp_path):
  with pytest.raises(
      ValueError, match="no config file 'experiments/quickstar.py'. Did you mean 'quickstart.py'"):
    config_lib.load("experiments/quickstar.py")
  (tmp_path / "mine.py").write_text("x = 1\n")
  with pytest.raises(ValueError, match="defines no get_config"):
    config_lib.load(str(tmp_path / "mine.py"))
  with pytest.raises(ValueError, match="Unknown size 'huge'. Known: :full, :tiny"):
    config_lib.load("experiments/quickstart.py:huge")


@dataclasses.dataclass(frozen=True)
class Inner:
  size: int
  name: Literal["a", "b"] = "a"

  def __post_init__(self):
    checks.at_least(1, size=self.size)


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner
  pairs: tuple[tuple[str, tuple[int, ...]], ...] = ()
  limit: float | None = None
  more: Inner = Inner(2)


def test_parse_on_nested_dataclasses():
  assert fields_lib.parse(Outer, {"inner": {"size": 3}}) == Outer(Inner(3))
  got = fields_lib.parse(Outer, ml_collections.ConfigDict(
      {"inner": {"size": 3, "name": "b"}, "pairs": (("x", (1, 2)),), "limit": 2,
       "more": {"size": 1}}))
  assert got == Outer(Inner(3, "b"), (("x", (1, 2)),), 2.0, Inner(1))
  assert isinstance(got.limit, float)
  assert fields_lib.parse(Outer, {"inner": {"size": 3}, "limit": None}).limit is None
  for section, message in [
      ({"inner": {"size": 0}}, "config.inner: size must be at least 1, got 0"),
      ({"inner": 3}, "config.inner must be a section with fields, got 3"),
      ({}, "config lacks the field inner"),
      ({"inner": {"size": 3}, "pairs": (("x",),)}, "config.pairs[0] must have 2 entries"),
      ({"inner": {"size": 3}, "pairs": (("x", (1, "2")),)},
       "config.pairs[0][1][1] must be int, got '2'"),
      ({"inner": {"size": 3}, "limit": "no"}, "config.limit must be float, got 'no'")]:
    with pytest.raises(ValueError) as error:
      fields_lib.parse(Outer, section)
    assert message in str(error.value)


def test_changes_by_hand():
  old = {"seed": 0, "rl": {"objective": {"kl": {"coef": 0.1}}, "rewards": {"a": 1.0}}, "gone": 1}
  new = {
      "seed": 0, "rl": {"objective": {"kl": {"coef": 0.2}}, "rewards": {"b": 1.0}},
      "stages": ["rl"]}
  assert fields_lib.changes(old, new) == {
      "gone": (1, None), "rl.objective.kl.coef": (0.1, 0.2), "rl.rewards.a": (1.0, None),
      "rl.rewards.b": (None, 1.0), "stages": (None, ["rl"])}
  assert fields_lib.changes(new, new) == {}


def parsed(*arguments):
  """The config that these words of a command line give."""
  names = set(flags.FLAGS)
  try:
    flag, rest = config_lib.define_flag(["train", *arguments])
    flags.FLAGS(rest, known_only=True)
    return flag.value
  finally:
    for name in set(flags.FLAGS) - names:
      delattr(flags.FLAGS, name)


def test_fields_are_set_from_the_command_line(config):
  got = parsed(
      f"--config={QUICKSTART}", "--config.seed=3",
      "--config.rl.learner.optimizer.learning_rate=1e-5", "--config.policy.args.width=16",
      "--config.stages=('rl',)", "--config.task.train.careless=0.5",
      # Optional ones that the file leaves out.
      "--config.mesh.data=2", "--config.rl.rollout.sampling.temperature=0.7",
      "--config.rl.learner.epochs=2", "--config.logging.tensorboard=true",
      "--config.sft.learner.optimizer.name=sgd", "--config.policy.dtype=bfloat16")
  run_config, sections = config_lib.check(got)
  assert run_config.seed == 3
  assert run_config.stages == ("rl",)
  assert run_config.policy.args["width"] == 16
  assert sections["rl"].learner.optimizer.learning_rate == 1e-5
  assert run_config.task.train["careless"] == 0.5
  assert run_config.mesh.data == 2
  assert sections["rl"].rollout.sampling.temperature == 0.7
  assert sections["rl"].learner.epochs == 2
  assert run_config.logging.tensorboard
  assert run_config.policy.dtype == "bfloat16"
  assert got.sft.learner.optimizer.name == "sgd"
  assert parsed("--config", QUICKSTART).to_dict() == config.to_dict()


@pytest.mark.parametrize("arguments, message", [
    ((), "Say what to run: --config=experiments/NAME.py"),
    (("--config",), "Say what to run"),
    ((f"--config={QUICKSTART}", "--config.rl.grup_size=4"),
     "--config.rl.grup_size: config.rl has no field 'grup_size'."
     " Did you mean 'rollout.group_size'?"),
    ((f"--config={QUICKSTART}", "--config.rll.rollout.group_size=4"),
     "config has no field 'rll'. Did you mean 'rl'?"),
    ((f"--config={QUICKSTART}", "--config.rl.rollout.group_size.x=4"),
     "config.rl.rollout.group_size has no field 'x'"),
])
def test_a_mistake_on_the_command_line(arguments, message):
  with pytest.raises(ValueError) as error:
    parsed(*arguments)
  assert message in str(error.value)


def command(*arguments, module="rl_reason.train"):
  return subprocess.run(
      [sys.executable, "-m", module, *arguments], env=environment(), capture_output=True, text=True,
      timeout=120)


def test_mistakes_end_the_command_with_one_line(tmp_path):
  workdir = f"--workdir={tmp_path / 'run'}"
  on_the_line = command(f"--config={QUICKSTART}", workdir, "--config.rl.grup_size=4")
  in_a_value = command(f"--config={QUICKSTART}", workdir, "--config.rl.rollout.group_size=1")
  for done, message in (
      (on_the_line, "Did you mean 'rollout.group_size'?"),
      (in_a_value, "config.rl: group_size must be at least 2")):
    assert done.returncode != 0 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("Error: ") and message in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_the_unit_interval_has_its_ends_and_nothing_outside(value):
  checks.in_unit_interval("share", low=0, high=1.0)
  with pytest.raises(ValueError, match=rf"noise must be in \[0, 1\], got {value}: it is a share"):
    checks.in_unit_interval("share", low=0, noise=value)
