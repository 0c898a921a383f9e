"""Values are checked against annotations of plain types; all others pass."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import ml_collections
import numpy as np
import pytest

from rl_reason.config import annotations, naming
from rl_reason.models.sources import Policy
from rl_reason.run.context import make_policy
from rl_reason.tasks.registry import load_task


class Special:
  """No plain type."""


@pytest.mark.parametrize("hint, value", [
    (int, 3), (int, np.int64(3)), (float, 3), (float, 0.5), (float, np.float32(1)), (bool, True),
    (str, "a"), (str, Path("a")), (int | None, None), (Literal["a", 2], 2), (Sequence[str], ["a"]),
    (Sequence[str], ("a", "b")), (tuple[int, ...], [1, 2]), (tuple[str, int], ("a", 1)),
    (list[int], [1]), (str | Sequence[str], "a"), (Mapping[str, float], {"a": 1}),
    (Mapping, ml_collections.ConfigDict({"a": 1})), (Mapping[str, Any], {"a": []}),
    (Sequence[tuple[str, str]], [("a", "b")]), (Sequence[float], np.zeros(2)), (Special, 7),
    (Any, 7), (Callable, 7), (object, 7), (list, []), (set, 7)])
def test_right_values_pass(hint, value):
  assert annotations.fault(hint, value) == ""


@pytest.mark.parametrize("hint, value, words", [
    (int, "abc", "a whole number"), (int, 1.5, "a whole number"), (int, True, "a whole number"),
    (float, "1", "a number"), (float, None, "a number"), (bool, 1, "true or false"),
    (str, 7, "a text"),
    (int | None, "x", "a whole number or None"), (Literal["a", "b"], "c", "one of 'a', 'b'"),
    (Sequence[str], "abc", "a list"),
    (Sequence[str], {"a": 1}, "a list"),
    (Sequence[str], 7, "a list"),
    (Sequence[str], ["a", 7], "a list of which each entry is a text"),
    (tuple[str, int], ("a",), "a list of 2 entries"),
    (Mapping[str, float], {"a": "x"}, "a section with fields, each a number"),
    (Mapping, [1], "a section with fields"),
    (str | Sequence[str], 7, "a text or a list"),
    (Sequence[tuple[str, str]], [("a", 1)], "each entry is a list of")])
def test_other_values_are_told_what_they_must_be(hint, value, words):
  assert words in annotations.fault(hint, value)


def named(path: str, *, size: int = 1, where: Mapping[str, int] | None = None):
  """Takes what tasks take."""


@dataclasses.dataclass(frozen=True)
class Format:
  size: int = 1
  name: "str" = ""


class Reward:
  def __init__(self, *, scale: float = 1.0):
    self.scale = scale


@pytest.mark.parametrize("function, keywords", [
    (named, dict(path="a", size="abc")), (functools.partial(named, path="a"), dict(size=[1])),
    (Format, dict(size="x")), (Format, dict(name=7)), (Reward, dict(scale="x")),
    (named, dict(path=None)), (named, dict(path="a", where={"a": "b"}))])
def test_arguments_of_another_type_are_named(function, keywords):
  wrong = [name for name, value in keywords.items() if value not in ("a", 1)][-1]
  with pytest.raises(ValueError, match=f"The thing: {wrong} must be .*, got "):
    naming.check_arguments("The thing", function, keywords)


@pytest.mark.parametrize("function, keywords", [
    (named, dict(path="a", size=2)), (Format, dict(name="x")), (Reward, dict(scale=1)),
    (named, ["path", "size"])])
def test_right_arguments_pass(function, keywords):
  naming.check_arguments("The thing", function, keywords)


@pytest.mark.parametrize("section, message", [
    (dict(num_heads="abc"), "num_heads must be a whole number, got 'abc'"),
    (dict(characters=7), "characters must be a text"),
    (dict(width=2.5), "width must be a whole number"),
    (dict(width=10**30), "width.* must be at most|mlp_hidden must be at most"),
    (dict(num_layers=2**31), "num_layers must be at most 10000")])
def test_arguments_of_a_policy_are_checked(section, message):
  args = dict(characters="ab", width=16, num_layers=1) | section
  with pytest.raises(ValueError, match=message):
    make_policy(Policy("small", args))


@pytest.mark.parametrize("args, message", [
    (dict(path=7), "path must be a text or a list"),
    (dict(max_rows="3"), "max_rows must be a whole number or None"),
    (dict(where=[1]), "where must be a section with fields or None"),
    (dict(chat="yes"), "chat must be true or false"),
    (dict(examples="ab"), "examples must be a list"), (dict(rows=3), "rows must be a text")])
def test_arguments_of_a_task_are_checked_before_files_are_read(args, message):
  with pytest.raises(ValueError, match=f"The source 'jsonl' for the train rows: {message}"):
    load_task("jsonl", dict(path="nowhere", prompt="{q}") | args, {}, {})
