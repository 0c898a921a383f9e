"""JSON of others: every fault is a ValueError that says what is wrong."""

import pytest

from rl_reason.config import json_text


@pytest.mark.parametrize("text, cause", [
    ("{", "at line 1, column 2"), ("", "column 1"), ("[" * 100_000, "nest deeper than 100"),
    ("[" * 101 + "]" * 101, "nest deeper than 100"), ("9" * 5000, "more than 4300 digits"),
    (b"\xff", "not UTF-8")])
def test_what_is_wrong_is_said(text, cause):
  with pytest.raises(ValueError, match=cause):
    json_text.parse(text)


@pytest.mark.parametrize("text, value", [
    ("[" * 100 + "]" * 100, 100), ("[" + ", ".join(["[]"] * 200) + "]", 2)])
def test_depth_counts_levels_and_not_brackets(text, value):
  assert json_text._depth(json_text.parse(text)) == value


def test_another_value_than_an_object_is_named(tmp_path):
  (tmp_path / "x.json").write_text("[1]")
  with pytest.raises(ValueError, match="x.json holds a JSON list, not an object"):
    json_text.read_object(tmp_path / "x.json")
