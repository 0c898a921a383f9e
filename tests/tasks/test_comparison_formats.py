"""Rows of any kind in the formats of comparisons: read, or refused with place, column and cure."""

import copy
import json

import pytest

from rl_reason.tasks.preferences import comparisons

USER, ASSISTANT = ({"role": r, "content": r} for r in ("user", "assistant"))
# A row of each format, and the format's arguments.
CASES = {
    "pairs": ({"prompt": "p", "chosen": "a", "rejected": "b", "w": 1.0}, {"weight": "w"}),
    "pairs of messages": (
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]},
        {"prompt": ""}),
    "pairs after messages": (
        {"m": [USER], "chosen": ["a", "c"], "rejected": ["b"]}, {"prompt": "{m}"}),
    "hh_rlhf": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, {}),
    "choices": ({"prompt": "p", "response1": "a", "response2": "b", "label": 1}, {}),
    "pandalm": (
        {"instruction": "p", "input": "", "response1": "a", "response2": "b",
         "annotators": [1, 2, 1]},
        {}),
    "ultrafeedback": ({"instruction": "p", "completions": [{
        "response": text, "overall_score": i, "annotations": {
            name: {"Rating": "4"} for name in (
                "helpfulness", "honesty", "instruction_following", "truthfulness")}}
        for i, text in enumerate("ab")]}, {}),
    "helpsteer": (
        {"prompt": "p", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4,
         "complexity": 1, "verbosity": 2}, {}),
    "big_bench_mistake": ({"input": "p", "task": "t", "steps": ["a", "b"], "mistake_index": 1}, {}),
    "step_labels": ({"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}, {}),
    "math_shepherd": ({"input": "p Step 1: a ки", "label": "p Step 1: a +"}, {}),
    "prm800k": ({"question": {"problem": "p"}, "label": {"steps": [
        {"completions": [{"text": "a", "rating": 1}], "human_completion": None,
         "chosen_completion": 0},
        {"completions": None, "human_completion": {"text": "b"}, "chosen_completion": None}]}}, {}),
}
VALUES = (
    None, 7, -1, 1.5, True, "", "x", [], {}, [None], [7], [[]], [{}], {"a": 1}, 10 ** 400, "\ud800",
    [{"role": "user", "content": None}], [{"role": None, "content": "x"}], float("nan"))


def read(tmp_path, case, *rows, bad_rows="error"):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return comparisons(str(path), format=case.split()[0], args=CASES[case][1], bad_rows=bad_rows)


def places(value, path=()):
  """Lists the paths to all parts of a value."""
  inner = ()
  if isinstance(value, dict):
    inner = value.items()
  elif isinstance(value, list):
    inner = enumerate(value)
  return [path, *(p for key, part in inner for p in places(part, (*path, key)))]


def replaced(row, path, value):
  row = copy.deepcopy(row)
  at = row
  for key in path[:-1]:
    at = at[key]
  at[path[-1]] = value
  return row


@pytest.mark.parametrize("case", CASES)
def test_every_value_of_another_kind_is_read_or_refused_by_place(case, tmp_path):
  good, refused = CASES[case][0], 0
  assert len(read(tmp_path, case, good)) == 1
  for path in places(good)[1:]:
    for value in VALUES:
      row = replaced(good, path, value)
      try:
        (made,) = read(tmp_path, case, row).rows
      except ValueError as error:
        refused += 1
        assert "rows.jsonl:1" in str(error)
        assert len(read(tmp_path, case, good, row, bad_rows="drop")) == 1
        continue
      # What is read holds texts where texts are due.
      texts = made.responses if isinstance(made.prompt, str) else (
          *made.responses, *(m["content"] for m in made.prompt))
      assert all(isinstance(text, str) for text in texts)
      assert made.prompt != "None"
  assert refused > 20


@pytest.mark.parametrize("case, column, value, message", [
    ("pairs", "chosen", 7, r"column 'chosen' is 7 \(int\), and must be a text or a list of texts"),
    ("pairs", "chosen", ["a", 7], r"entry 1 of column 'chosen' is 7 \(int\), and must be a text"),
    ("pairs", "prompt", None, "prompt.* is null"),
    ("pairs after messages", "m", [{"role": "user", "content": 3}],
     "column 'm' is .* and must be a list of messages"),
    ("hh_rlhf", "rejected", 7, r"column 'rejected' is 7 \(int\), and must be a text"),
    ("pandalm", "annotators", 2, r"column 'annotators' is 2 \(int\), and must be a list"),
    ("helpsteer", "response", 5, r"column 'response' is 5 \(int\), and must be a list"),
    ("step_labels", "completions", "ab",
     r"column 'completions' is 'ab' \(str\), and must be a text or a list"),
    ("math_shepherd", "label", ["+"], "column 'label' is .*and must be a text")])
def test_the_column_is_named_with_what_it_must_be(case, column, value, message, tmp_path):
  with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}.*bad_rows='drop'"):
    read(tmp_path, case, {**CASES[case][0], column: value})


def test_a_vote_that_is_null_is_no_tie(tmp_path):
  row = {"prompt": "p", "response1": "a", "response2": "b", "votes": [1, None]}
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(row))
  with pytest.raises(ValueError, match="holds the label None"):
    comparisons(str(path), format="choices", args={"votes": "votes"})


def test_a_negative_choice_is_no_choice_from_the_end(tmp_path):
  row = replaced(CASES["prm800k"][0], ("label", "steps", 0, "chosen_completion"), -1)
  with pytest.raises(ValueError, match="step 0 chose completion -1 of 1"):
    read(tmp_path, "prm800k", row)


def test_seeded_rows_with_several_faults_end_in_no_traceback(tmp_path, trials):
  for draw in trials(300):
    case = draw.choice(list(CASES))
    row = copy.deepcopy(CASES[case][0])
    for _ in range(draw.randint(2, 4)):
      row = replaced(row, draw.choice(places(row)[1:] or [("x",)]), draw.choice(VALUES))
    with draw.refusal((case, row), names="rows.jsonl:1"):
      read(tmp_path, case, row)


@pytest.mark.parametrize("args, message", [
    ({}, "no column 'subset', which domain='{subset}' names.*Its columns: prompt"),
    ({"id": "{nr}"}, "no column 'nr', which id='{nr}' names"),
    ({"prompt": "{question}"}, "no column 'question', which prompt='{question}' names"),
    ({"domain": "{prompt[x]}"}, "the template domain='{prompt.x.}' cannot be filled in")])
def test_a_column_that_is_not_there_is_named_with_its_field(tmp_path, args, message):
  row = {"prompt": "p", "chosen": "a", "rejected": "b", "id": "1", **({"subset": "s"} if args else {})}
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  with pytest.raises(ValueError, match=message):
    comparisons(str(tmp_path / "rows.jsonl"), format="reward_bench_2", args=args)


def test_a_malformed_template_is_named_with_its_field(tmp_path):
  with pytest.raises(ValueError, match="domain='{x' is no format string"):
    comparisons("nowhere.jsonl", format="rm_bench", args={"domain": "{x"})
