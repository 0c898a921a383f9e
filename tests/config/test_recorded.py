"""Things of Python's in a config: found as they are, and recorded by an honest, lasting name."""

import dataclasses
import functools
import json
import subprocess
import sys

import ml_collections
import pytest

from rl_reason.config import fields, naming, recorded
from rl_reason.rewards import answers
from tests import environment


def mine(x):
  return x


class Made:
  def __call__(self):
    return 1


@dataclasses.dataclass(frozen=True)
class Section:
  source: naming.Name


@pytest.mark.parametrize("thing, name", [
    (answers.exact_answer, "rl_reason.rewards.answers:exact_answer"),
    (mine, f"{__name__}:mine"), (Made, f"{__name__}:Made"), ("jsonl", "jsonl"),
    (Made(), f"<object of {__name__}.Made, given from Python>"),
    (functools.partial(mine, 1), f"<partial of {__name__}.mine, given from Python>"),
    (lambda: 0, f"<{__name__}.<lambda>, given from Python>"),
    (Made().__call__, f"<{__name__}.Made.__call__, given from Python>"), (len, "builtins:len")])
def test_a_thing_has_a_name_that_lasts(thing, name):
  assert naming.path_of(thing) == name
  if ":" in name:
    assert naming.find("thing", name, {}) is thing


def test_what_a_script_defines_has_no_dotted_path():
  code = ("from rl_reason.config.naming import path_of\n"
          "def mine(): pass\nprint(path_of(mine))")
  out = subprocess.run([sys.executable, "-c", code], env=environment(), text=True, capture_output=True)
  assert out.stdout == "<__main__.mine, given from Python>\n"


@pytest.mark.parametrize("thing", [mine, Made, Made(), functools.partial(mine, 1), len])
def test_a_thing_is_found_as_it_is(thing):
  assert naming.find("source", thing, {"jsonl": mine}) is thing
  section = fields.parse(Section, ml_collections.ConfigDict({"source": thing}))
  assert section.source is thing


@pytest.mark.parametrize("value", [None, 3, 0.5, True, ("a",)])
def test_what_names_nothing_is_refused(value):
  with pytest.raises(ValueError, match="config.source must be str, got"):
    fields.parse(Section, {"source": value})


def test_a_recorded_thing_that_cannot_be_found_says_why():
  with pytest.raises(ValueError, match="The source of this run is <.*Go on with the run from Python"):
    naming.find("source", naming.path_of(lambda: 0), {})


def test_rows_are_recorded_by_their_number_and_content():
  rows = [{"q": "1+1", "a": 2}, {"q": "2+2", "a": 4}]
  names = [recorded.plain({"path": given})["path"] for given in (
      rows, tuple(rows), [dict(reversed(row.items())) for row in rows], rows[:1])]
  assert names[0].startswith("<2 rows ")
  assert names[1] == names[0]
  assert names[2] == names[0]
  assert names[3].startswith("<1 rows ")


def test_other_lists_of_mappings_are_recorded_whole():
  value = {"transforms": ({"name": "clip", "high": 0.9},), "path": ["a.jsonl", "b.jsonl"]}
  assert recorded.plain(value) == json.loads(json.dumps(value))
