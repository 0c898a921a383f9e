"""What a scorer is asked about: pairs of a prompt and a response, checked before anything is read."""

import dataclasses

import pytest

from rl_reason.scorers.scorer import Scorer

NONE = Scorer(**{f.name: None for f in dataclasses.fields(Scorer)} | {"outputs": ("score",)})


@pytest.mark.parametrize("texts", [
    ["text"], "text", ["ab"], [("p", "r"), ("p", "r", "x")], [("p",)], [("p", 7)], [7], [None],
    [{"prompt": "p", "response": "r"}]])
def test_what_is_no_pair_is_named_with_the_cure(texts):
  with pytest.raises(ValueError, match=r"texts\[[01]\] must be a pair \(prompt, response\), got .*Write totals"):
    NONE.totals(texts)


def test_no_texts_have_no_scores():
  assert NONE.totals([]).shape == (0, 1)


def test_a_text_in_place_of_responses_is_refused():
  with pytest.raises(ValueError, match="responses must be a list of texts, got 'abc' to the prompt 'p'"):
    NONE.encode("p", "abc")
