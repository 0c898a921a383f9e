"""Which code a result depends on: what only moves changes no digest, and what changes numbers does.

Each test writes a small package `studio` whose `studio.train:train` is the run, changes it, and
looks at the digests before and after.
"""

import textwrap

import pytest

from rl_reason.claims import declaration, dependencies, sources
from rl_reason.run import config as config_lib

# What train reaches: mean and WEIGHT by the losses, Section by its own import.
FILES = {
    "__init__.py": "",
    "train.py": """
        from studio import losses
        from studio.sections import Section

        def train():
          return losses.loss(Section().rate)
        """,
    "losses.py": '''
        """Losses."""
        import numpy as np
        from studio.helpers import mean as average

        WEIGHT = 2.0

        def loss(rate, power=2):
          """The loss."""
          return WEIGHT * average(np.abs(rate)) ** power

        def unused():
          return 0
        ''',
    "helpers.py": """
        def mean(x):
          return x.mean()
        """,
    "sections.py": """
        import dataclasses

        @dataclasses.dataclass(frozen=True)
        class Section:
          rate: float = 0.5
          steps: int = 3

          def double(self):
            return 2 * self.rate
        """,
}


@pytest.fixture
def studio(tmp_path, monkeypatch):
  """(file=text, further={file: text}) -> writes files of the package."""
  monkeypatch.syspath_prepend(tmp_path)
  package = tmp_path / "studio"

  def write(further=(), **files):
    for name, text in {**files, **dict(further)}.items():
      file = package / f"{name}.py"
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(textwrap.dedent(text))
      # Within one tick of the clock a file that is as long looks like the same one.
      sources._cached.cache_clear()
  write({name.removesuffix(".py"): text for name, text in FILES.items()})
  return write


def code(config=(), start=("studio.train:train",)):
  return dependencies.code(config, start=start)


def changed(before, after):
  return {k for k in {*before, *after} if before.get(k) != after.get(k)}


def replaced(name, *pairs):
  text = FILES[name]
  for old, new in pairs:
    assert old in text
    text = text.replace(old, new)
  return text


def test_a_run_depends_on_the_definitions_that_it_reaches(studio):
  assert set(code()) == {"train", "loss", "WEIGHT", "mean", "Section"}


# What makes nothing stale.


def test_a_function_that_moves_to_another_module_changes_nothing(studio):
  before = code()
  studio(train=replaced("train.py", ("import losses", "import average as losses")),
         losses="", average=FILES["losses.py"])
  assert code() == before


def test_a_function_that_moves_into_a_package_changes_nothing(studio):
  before = code()
  studio({"math/means": FILES["helpers.py"], "math/__init__": ""}, helpers="",
         losses=replaced("losses.py", ("studio.helpers", "studio.math.means")))
  assert code() == before


def test_functions_that_part_change_nothing(studio):
  before = code()
  studio(losses=replaced("losses.py", ("WEIGHT = 2.0", "from studio.weights import WEIGHT")),
         weights="WEIGHT = 2.0\n")
  assert code() == before


@pytest.mark.parametrize("file, pairs", [
    ("losses.py", [("import mean as average", "import mean"), ("average(", "mean(")]),
    ("losses.py", [("from studio.helpers import mean as average", "from studio import helpers"),
                   ("average(", "helpers.mean(")]),
    ("losses.py", [("from studio.helpers import mean as average", "import studio.helpers"),
                   ("average(", "studio.helpers.mean(")]),
    ("losses.py", [("from studio.helpers import mean as average", "import studio.helpers as h"),
                   ("average(", "h.mean(")]),
    ("losses.py", [("from studio.helpers", "from .helpers")]),
    ("losses.py", [("import numpy as np", "import numpy"), ("np.abs", "numpy.abs")]),
    ("losses.py", [("import numpy as np", "from numpy import abs as size"), ("np.abs", "size")]),
    ("losses.py", [("WEIGHT = ", "import json\nfrom studio import sections\n\nWEIGHT = ")]),
])
def test_imports_change_nothing(studio, file, pairs):
  before = code()
  text = textwrap.dedent(FILES[file])
  for old, new in pairs:
    assert old in text
    text = text.replace(old, new)
  studio(**{file.removesuffix(".py"): text})
  assert code() == before


def test_an_import_within_the_function_changes_nothing(studio):
  before = code()
  studio(losses=replaced(
      "losses.py", ("        from studio.helpers import mean as average\n", ""),
      ("          return WEIGHT",
       "          from studio.helpers import mean as m\n\n          return WEIGHT"),
      ("average(", "m(")))
  assert code() == before


def test_a_re_export_changes_nothing(studio):
  before = code()
  studio({"math/__init__": "from studio.math.means import mean\n",
          "math/means": FILES["helpers.py"]}, helpers="",
         losses=replaced("losses.py", ("studio.helpers", "studio.math")))
  assert code() == before


def test_a_package_may_export_a_function_of_the_same_name_as_its_module(studio):
  before = code()
  studio({"math/__init__": "from studio.math.mean import mean\n",
          "math/mean": FILES["helpers.py"]}, helpers="",
         losses=replaced("losses.py", ("studio.helpers import", "studio.math.mean import")))
  assert code() == before


def test_another_name_for_a_function_changes_nothing(studio):
  before = code()
  studio(helpers="from studio import means\n\nmean = means.mean\n", means=FILES["helpers.py"])
  assert code() == before


def test_what_is_imported_for_types_only_changes_nothing(studio):
  before = code()
  studio(losses=replaced("losses.py", (
      "WEIGHT = ", "from typing import TYPE_CHECKING\n        if TYPE_CHECKING:\n"
      "          from studio.sections import Section\n        WEIGHT = ")))
  assert code() == before


@pytest.mark.parametrize("pairs", [
    [('"""The loss."""', '"""What is\n\n          minimised."""')],
    [('          """The loss."""\n', "")],
    [("return WEIGHT * ", "# Weighted.\n\n          return (WEIGHT  *\n            "),
     ("** power", "** power)")],
    [("(rate, power=2)", "(rate: float, power: int = 2) -> float")],
    [("WEIGHT = 2.0", "WEIGHT: float = 2.0  # By hand.")],
])
def test_comments_docstrings_layout_and_annotations_change_nothing(studio, pairs):
  before = code()
  studio(losses=replaced("losses.py", *pairs))
  assert code() == before


def test_the_types_of_a_class_s_fields_change_nothing(studio):
  before = code()
  studio(sections=replaced("sections.py", ("rate: float", "rate: int | float")))
  assert code() == before


def test_a_definition_that_is_not_reached_changes_nothing(studio):
  before = code()
  studio(losses=replaced("losses.py", ("return 0", "return OTHER"),
                         ("def unused", "OTHER = 1\n\n        def unused")))
  assert code() == before


def test_what_a_module_does_as_a_program_changes_nothing(studio):
  before = code()
  studio(train=FILES["train.py"] + '\n        if __name__ == "__main__":\n          train()\n')
  assert code() == before


# What makes a result stale.


@pytest.mark.parametrize("file, old, new, name", [
    ("losses.py", "2.0", "3.0", "WEIGHT"), ("losses.py", "power=2", "power=3", "loss"),
    ("losses.py", "np.abs", "np.square", "loss"), ("losses.py", "WEIGHT * ", "", "loss"),
    ("helpers.py", "x.mean()", "x.mean(0)", "mean"),
    ("sections.py", "0.5", "0.25", "Section"), ("sections.py", "int = 3", "int", "Section"),
    ("sections.py", "          steps: int = 3\n", "", "Section"),
    ("sections.py", "2 * ", "3 * ", "Section"),
    ("sections.py", "frozen=True", "frozen=False", "Section"),
])
def test_a_changed_definition_is_named(studio, file, old, new, name):
  before = code()
  studio(**{file.removesuffix(".py"): replaced(file, (old, new))})
  assert name in changed(before, code())
  assert changed(before, code()) - {name} <= {"WEIGHT"}  # Where the loss no longer has one.


def test_the_function_of_another_library_counts(studio):
  before = code()
  studio(losses=replaced("losses.py", ("import numpy as np", "import jax.numpy as np")))
  assert changed(before, code()) == {"loss"}


def test_a_local_name_is_not_taken_for_an_import(studio):
  studio(losses="""
      from studio import helpers

      def loss(helpers):
        return helpers.mean(1)
      """)
  assert "mean" not in code()


def test_a_field_reaches_the_class_that_the_config_s_section_becomes(studio):
  studio(sections="""
      import dataclasses
      from studio.helpers import Inner

      @dataclasses.dataclass
      class Section:
        inner: Inner | None = None
        rate: float = 0.5
      """, helpers=FILES["helpers.py"] + "\n        class Inner:\n          size = 1\n")
  assert "Inner" in code()


def test_a_field_s_other_types_do_not_count(studio):
  studio(sections=replaced("sections.py", ("rate: float", "rate: Rate"), (
      "import dataclasses", "import dataclasses\n        from studio.helpers import Rate")),
         helpers=FILES["helpers.py"] + "\n        Rate = float | int\n")
  assert "Rate" not in code()


def test_a_statement_that_completes_a_function_counts_with_it_and_moves_with_it(studio):
  flag = FILES["helpers.py"] + "\n        mean.exact = True\n"
  studio(helpers=flag)
  before = code()
  studio(helpers=flag.replace("True", "False"))
  assert changed(before, code()) == {"mean"}
  studio(losses=replaced("losses.py", ("studio.helpers", "studio.means")), means=flag, helpers="")
  assert code() == before


def test_what_a_module_does_when_it_is_imported_counts(studio):
  text = "import json\n" + textwrap.dedent(FILES["helpers.py"])
  studio(helpers=text)
  before = code()
  studio(helpers=text + "\njson.settings(1)\n")
  assert changed(before, code()) == {dependencies.STATEMENTS}


def test_definitions_of_one_name_all_count(studio):
  studio(sections="from studio.other import mean\n" + textwrap.dedent(FILES["sections.py"]).replace(
      "2 * self.rate", "mean(self.rate)"), other="def mean(x):\n  return 1\n")
  before = code()
  studio(other="def mean(x):\n  return 2\n")
  assert changed(before, code()) == {"mean"}
  studio(other="def mean(x):\n  return 1\n", helpers=replaced("helpers.py", (".mean", ".sum")))
  assert changed(before, code()) == {"mean"}


def test_an_import_of_another_function_of_the_same_name_counts(studio):
  # All the same names, and both functions are reached before and after.
  train = """
      from studio import losses, sections

      def train():
        return losses.loss(1), first(), second()

      def first():
        return losses.average(1)

      def second():
        return sections.mean(2)
      """
  studio(train=train.replace("losses.average", "helpers.mean").replace(
      "import", "import helpers,"), sections="def mean(x):\n  return 1\n")
  before = code()
  studio(train=train.replace("losses.average", "sections.mean"))
  assert changed(before, code()) == {"mean"}


# Registries, modules as values, paths.

REGISTRY = """
    from studio import add
    from studio.subtract import minus

    REWARDS = {"plus": add.plus, "minus": minus}
    """


@pytest.fixture
def registry(studio):
  """The run now reads a registry of two rewards, in modules of their own."""
  studio(train="""
      from studio import rewards

      def train(name):
        return rewards.REWARDS[name]()
      """, rewards=REGISTRY, add="def plus():\n  return 1\n",
         subtract="def minus():\n  return -1\n")
  return studio


def test_of_a_registry_the_entries_count_that_the_config_names(registry):
  assert set(code({"rl": {"rewards": {"plus": 1.0}}})) == {"train", "REWARDS", "plus"}
  assert set(code({"rl": {"reward": "minus"}})) == {"train", "REWARDS", "minus"}


def test_an_entry_that_the_config_does_not_name_changes_nothing(registry):
  before = code({"reward": "plus"})
  registry(rewards=REGISTRY.replace('"minus": minus', '"minus": minus, "other": min'),
           subtract="def minus():\n  return -2\n")
  assert code({"reward": "plus"}) == before


def test_another_function_for_an_entry_counts(registry):
  before = code({"reward": "plus"})
  registry(rewards=REGISTRY.replace("add.plus", "minus"))
  assert changed(before, code({"reward": "plus"})) == {"REWARDS", "plus", "minus"}


def test_an_entry_that_the_code_names_counts(registry):
  registry(train="""
      from studio.rewards import REWARDS

      DEFAULTS = {"one": "minus"}

      def train(name):
        return REWARDS[DEFAULTS.get(name, "plus")]()
      """)
  assert {"plus", "minus"} <= set(code())


def test_entries_may_be_objects_that_hold_a_function(registry):
  registry(rewards="""
      from studio import add
      from studio.subtract import minus

      class Reward:
        def __init__(self, function, scale=1):
          pass

      REWARDS = {"plus": Reward(add.plus), "minus": Reward(minus, scale=2)}
      """)
  before = code({"reward": "plus"})
  assert set(before) == {"train", "REWARDS", "Reward", "plus"}
  assert changed(before, code({"reward": "minus"})) == {"REWARDS", "plus", "minus"}


def test_entries_may_be_named_objects_that_hold_a_function(registry):
  kind = "from studio.kind import Kind\n\ndef build():\n  return {}\n\nKIND = Kind(build)\n"
  registry(kind="class Kind:\n  pass\n", add=kind.format(1), subtract=kind.format(-1), rewards="""
      from studio import add, subtract

      REWARDS = {"plus": add.KIND, "minus": subtract.KIND}
      """)
  before = code({"reward": "plus"})
  assert set(before) == {"train", "REWARDS", "KIND", "Kind", "build"}
  registry(subtract=kind.format(-2))
  assert code({"reward": "plus"}) == before
  registry(add=kind.format(2))
  assert changed(before, code({"reward": "plus"})) == {"build"}


def test_a_table_of_anything_but_functions_counts_as_a_whole(registry):
  table = 'SIZE = 3\nOTHER = 4\nREWARDS = {"plus": SIZE, "minus": OTHER}\n'
  registry(rewards=table)
  before = code({"reward": "plus"})
  registry(rewards=table.replace("4", "5"))
  assert changed(before, code({"reward": "plus"})) == {"OTHER"}


STAGE = """
    class Config:
      pass

    def build():
      return helper()

    def helper():
      return 1

    def unused():
      return 1
    """


@pytest.fixture
def stages(studio):
  """The run takes its functions from modules in a registry, as rl_reason.train does."""
  studio({
      "train": """
          from studio.stages import STAGES

          def train(kind):
            return STAGES[kind].Config, STAGES[kind].build(), hasattr(STAGES[kind], "score")
          """,
      "stages/__init__": """
          from studio.stages import fast, slow

          STAGES = {"fast": fast, "slow": slow}
          """,
      "stages/fast": STAGE, "stages/slow": STAGE.replace("helper", "other")})
  return studio


def test_of_a_module_as_a_value_the_definitions_count_that_are_asked_for(stages):
  assert set(code({"kind": "fast"})) == {"train", "STAGES", "Config", "build", "helper"}
  assert "other" in code({"kind": "slow"})


def test_a_function_that_a_module_may_have_counts_once_it_has_it(stages):
  before = code({"kind": "fast"})
  stages({"stages/fast": STAGE + "\n    def score():\n      return 1\n"})
  assert changed(before, code({"kind": "fast"})) == {"score"}


def test_a_module_as_a_value_may_become_a_package(stages, tmp_path):
  before = code({"kind": "fast"})
  (tmp_path / "studio/stages/fast.py").unlink()
  stages({"stages/fast/__init__": "from studio.stages.fast.steps import Config, build\n",
          "stages/fast/steps": STAGE})
  assert code({"kind": "fast"}) == before


def test_the_function_of_a_dotted_path_counts(studio):
  studio(mine="class Mine:\n  size = 1\n\nclass Other:\n  pass\n")
  config = {"task": {"source": "studio.mine:Mine"}}
  before = code(config)
  assert "Mine" in before
  assert "Other" not in before
  studio(mine="class Mine:\n  size = 2\n")
  assert changed(before, code(config)) == {"Mine"}


def test_a_dotted_path_in_the_code_counts_as_what_it_names(studio):
  text = "PATHS = ('studio.mine:first',)\n\ndef train():\n  return PATHS\n"
  studio(train=text, mine="def first():\n  return 1\n")
  before = code()
  assert "first" in before
  studio(train=text.replace("mine", "yours"), yours="def first():\n  return 1\n")
  assert code() == before


def test_a_start_that_is_not_there_is_refused(studio):
  with pytest.raises(ValueError, match="A run starts with 'studio.train:trian'"):
    code(start=("studio.train:trian",))


def test_a_changed_file_is_read_again(studio, tmp_path):
  before = code()
  text = textwrap.dedent(replaced("losses.py", ("2.0", "22.0")))
  (tmp_path / "studio/losses.py").write_text(text)
  assert changed(before, code()) == {"WEIGHT"}


# The library itself.


def test_a_run_of_the_quickstart_depends_on_its_own_stages_and_rewards():
  config = declaration.to_json(config_lib.load("experiments/quickstart.py:tiny"))
  found = set(dependencies.code(config))
  reached = {"train", "start", "Config", "imitation_loss", "clipped_policy_gradient",
             "exact_answer", "Arithmetic", "Completions", "forward", "Workdir"}
  assert reached <= found
  others = {"think_format", "gsm_symbolic", "learning_curves", "judge", "sequence_policy_gradient",
            "Progress", "fit"}
  assert not others & found
