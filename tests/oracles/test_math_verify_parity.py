"""Runs math-verify's own test cases through `math_answer`.

math_verify_cases.jsonl holds the pairs (gold, prediction, expected) of the tests in math-verify
0.9.0's source distribution (https://github.com/huggingface/Math-Verify, tests/; Copyright 2024 The
HuggingFace Team, Apache License 2.0, some files MIT), unchanged; `options` are arguments of
`verify` that a case sets and that we do not have.
"""

import json

import pytest

from rl_reason.rewards import answers
from rl_reason.types import Sample
from tests import ROOT

pytestmark = pytest.mark.oracle

OTHERWISE = {  # (gold, prediction): why we say the opposite.
  (
    r"$(\begin{pmatrix}\frac{1}{3}\\ \frac{1}{5} \end{pmatrix})$",
    r"$\begin{pmatrix}0.33\\0.2 \end{pmatrix}$",
  ): "it sets two decimal places, we need six",
  (r"$(\frac{3}{5},\frac{8}{3}]$", "$(0.6,2.6667]$"): "it sets two decimal places, we need six",
  (
    r"$x \in [-2,7]$",
    r"$-2 \\le x \\le 7$",
  ): "expected both ways, by an option: an interval and its inequality are equal",
  ("$f(x)$", "$f(y)$"): "expected both ways, by an option: names count",
  (
    r"$1 - \frac{1}{\mathrm{e}}$",
    r"$1 + \frac{1}{\mathrm{e}}$",
  ): "they differ: the parser skips what it cannot read",
}


def test_cases_of_math_verify_itself():
  with open(f"{ROOT}/tests/oracles/math_verify_cases.jsonl", encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
  assert len(rows) == 275
  complaints = answers.math_references([r["gold"] for r in rows])
  assert [r["gold"] for r, c in zip(rows, complaints, strict=True) if c] == []
  got = answers.math_answer(
    [Sample(prompt="p", completion=r["pred"], reference=r["gold"]) for r in rows]
  )
  wrong = [
    (r["gold"], r["pred"]) for r, score in zip(rows, got, strict=True) if score != r["expected"]
  ]
  assert len(wrong) == 5
  assert set(wrong) == set(OTHERWISE)
