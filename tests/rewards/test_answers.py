"""Answers as text, as numbers and as mathematics: what people write, and what it is worth."""

import json
import time

import pytest

from rl_reason.rewards import answers
from rl_reason.types import Sample


def sample(completion, reference):
  return Sample(prompt="p", completion=completion, reference=reference)


# --- Text


@pytest.mark.parametrize(
  "said, reference, score",
  [
    ("-5", "5", 0),
    ("5", "-5", 0),
    ("-5", "-5", 1),
    ("- 5", "-5", 1),
    ("\u22125", "-5", 1),
    ("-$5", "$-5", 1),
    ("(-5)", "5", 0),
    ("(-5)", "-5", 1),
    ("x=-5", "x=5", 0),
    ("3.5", "35", 0),
    ("3.5.", "3.5", 1),
    (".5", "5", 0),
    ("1/2", "12", 0),
    ("12:30", "1230", 0),
    ("3-5", "35", 0),
    ("5,6", "56", 0),
    ("2^5", "25", 0),
    ("1.200", "1200", 0),
    ("1,200", "1200", 1),
    ("$5", "5", 1),
    ("5%", "5", 1),
    ("5!", "5", 1),
    ("The Hague.", "hague", 1),
    ("COVID-19", "covid-19", 1),
    ("U.S.A.", "USA", 1),
    ("1990-91", "1990\u201391", 1),
    ("St. Louis", "st louis", 1),
  ],
)
def test_numbers_keep_their_signs_in_exact_match(said, reference, score):
  assert answers.exact_match([sample(f"<answer>{said}</answer>", reference)]).tolist() == [score]


def test_exact_match_reads_the_last_closed_tag():
  texts = [
    "<answer>1</answer> <answer>7</answer>",
    "<answer>7</answer> <answer>1",
    "<answer>1 <answer>7</answer>",
    "<answer>7</answer> 1</answer>",
  ]
  assert answers.exact_match([sample(t, "7") for t in texts]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
  "text",
  [
    "<answer>" * 100_000,
    "<answer>" * 100_000 + "</answer>",
    "</answer>" * 100_000,
    "<answer>" + "- " * 100_000 + "</answer>",
    "<answer>" + "5," * 100_000 + "</answer>",
  ],
)
def test_exact_match_is_linear(text):
  # It took over 3 s for 64 kB of tags.
  start = time.process_time()
  assert answers.exact_match([sample(text, "7")]).tolist() == [0]
  assert time.process_time() - start < 2


# --- Numbers


@pytest.mark.parametrize(
  "text, written, value",
  [
    ("- 3", "- 3", -3),
    ("it is - 3", "- 3", -3),
    ("#### - 3", "- 3", -3),
    ("= - 0.5", "- 0.5", -0.5),
    ("10 - 3", "3", 3),
    ("x - 3", "3", 3),
    ("- 3 pens\n- 4 pens", "4", 4),
    ("3 1/2", "3 1/2", 3.5),
    ("- 3 1/2", "- 3 1/2", -3.5),
    ("so 3 1/2 cups", "3 1/2", 3.5),
    ("3 5/2", "3 5/2", 2.5),
    ("1 200", "1 200", 1200),
    ("it is 12 345 678.5 m", "12 345 678.5", 12345678.5),
    ("1\u202f200", "1\u202f200", 1200),
    ("in 2023 500", "500", 500),
    ("1 2", "2", 2),
    ("1, 200", "200", 200),
  ],
)
def test_numbers_as_people_write_them(text, written, value):
  assert answers.last_number(text) == written
  assert answers.number_value(written) == value


@pytest.mark.parametrize(
  "said, reference, score",
  [
    ("0.000000002", "0.000000001", 0),
    ("0.0000001", "0", 0),
    ("0.00012", "0.00012", 1),
    ("0.3333333", "1/3", 1),
    ("1000000001", "1000000002", 0),
    ("1000.0000005", "1000", 1),
  ],
)
def test_small_numbers_are_not_equal_for_being_small(said, reference, score):
  assert answers.number_answer([sample(said, reference)]).tolist() == [score]


# --- Mathematics


def test_math_answer_on_cases_of_public_threads(shared_data):
  rows = [json.loads(line) for line in (shared_data / "answer_cases.jsonl").open(encoding="utf-8")]
  complaints = answers.math_references([r["reference"] for r in rows])
  assert [r["reference"] for r, c in zip(rows, complaints, strict=True) if c] == []
  got = answers.math_answer([sample(r["completion"], r["reference"]) for r in rows])
  assert len(rows) >= 300
  assert [r for r, score in zip(rows, got, strict=True) if score != r["expected"]] == []
