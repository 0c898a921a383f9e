"""Comparisons from rows in the public formats, and the rows that are refused or dropped."""

import gzip
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_reason.tasks import registry
from rl_reason.tasks.preferences import comparisons
from rl_reason.types import Comparison, Step


@pytest.fixture
def read(tmp_path):
  """(format, rows, ...) -> the source made of a file with these rows."""
  def write_and_read(format, *rows, name="rows.jsonl", args=None, **keywords):
    path = tmp_path / name
    if name.endswith(".parquet"):
      pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
      with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return comparisons(str(path), format=format, args=args, **keywords)
  return write_and_read


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_pairs_from_every_kind_of_file(read, name):
  source = read(
      "pairs", PAIR, {**PAIR, "chosen": "four"}, name=name,
      args=dict(chat=True, system="Be brief."))
  assert len(source) == 2 and pickle.loads(pickle.dumps(source)) == source
  assert source[1] == Comparison(
      prompt=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}),
      responses=("four", "5"), scores=(1.0, 0.0), id="1", metadata={**PAIR, "chosen": "four"})
  assert source[1].preference == 1.0


def test_a_config_names_them_as_it_names_problems(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps({**PAIR, "prompt": f"{i}+2?"}) + "\n" for i in range(4)))
  task = registry.load_task(
      "comparisons", dict(path=str(path), format="pairs"), dict(rows=":3"), dict(rows="3:"))
  assert [len(task.train), len(task.heldout)] == [3, 1]
  with pytest.raises(ValueError, match="also held out"):
    registry.load_task("comparisons", dict(path=str(path), format="pairs"), {}, dict(rows="3:"))


def test_lists_of_responses_with_domain_weight_and_margin(read):
  row = {
      "id": "tied:3", "subset": "Ties", "prompt": "A colour?", "chosen": ["red", "blue"],
      "rejected": ["seven"], "w": 0.5, "m": 2}
  (got,) = read("reward_bench_2", row, args=dict(weight="w", margin="m")).rows
  assert (got.responses, got.scores, got.domain, got.id) == (
      ("red", "blue", "seven"), (1, 1, 0), "Ties", "tied:3")
  assert (got.weight, got.margin, got.preference) == (0.5, 2, None)


def test_pairs_of_messages_share_their_prompt(read):
  user = {"role": "user", "content": "2+2?"}
  rows = [
      {"chosen": [user, {"role": "assistant", "content": "4"}],
       "rejected": [user, {"role": "assistant", "content": c}]}
      for c in "5"]
  (got,) = read("pairs", *rows, args=dict(prompt="")).rows
  assert got.prompt == (user,) and got.responses == ("4", "5")
  # The prompt may be a column of messages too.
  (got,) = read(
      "pairs", {"m": [user], "chosen": "4", "rejected": "5"}, args=dict(prompt="{m}")).rows
  assert got.prompt == (user,)
  other = {
      "chosen": rows[0]["chosen"],
      "rejected": [{**user, "content": "2+3?"}, rows[0]["rejected"][1]]}
  with pytest.raises(ValueError, match="differ in the last one only"):
    read("pairs", other, args=dict(prompt=""))


def test_transcripts_are_split_where_the_last_answer_begins(read):
  start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: One.\n\nHuman: Two?\n\nAssistant:"
  (got,) = read("hh_rlhf", {"chosen": start + " Yes.\n\nIndeed.", "rejected": start + " No."}).rows
  assert got.prompt == (
      {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
      {"role": "user", "content": "One.\n\nTwo?"})
  assert got.responses == ("Yes.\n\nIndeed.", "No.")


@pytest.mark.parametrize("chosen, rejected, message", [
    ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d",
     "differ before their last turn"),
    ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: d", "response 0 is ''"),
    ("Human: a", "Human: b", "is no dialogue"),
    ("\n\nAssistant: a\n\nAssistant: b", "\n\nAssistant: a\n\nAssistant: c", "there is no prompt"),
    ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "two responses are identical"),
])
def test_transcripts_that_compare_nothing(read, chosen, rejected, message):
  with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}.*bad_rows='drop'"):
    read("hh_rlhf", {"chosen": chosen, "rejected": rejected})


def test_choices_with_votes_and_ties(read):
  row = {
      "instruction": "Add.", "input": "2+2", "response1": "5", "response2": True,
      "annotators": [2, 2, 0], "majority": 2}
  got = read("pandalm", row, {**row, "annotators": [0, 1, 2]}, {**row, "input": ""})
  assert got[0].prompt == "Add.\n\n2+2" and got[2].prompt == "Add."
  # The better one first; PandaLM holds JSON's true for a text.
  assert got[0].responses == ("True", "5")
  assert got[0].scores == pytest.approx((5 / 6, 1 / 6))
  assert got[0].preference == pytest.approx(5 / 6)
  assert got[1].scores == pytest.approx((0.5, 0.5)) and got[1].preference == pytest.approx(0.5)
  # Seven votes for one response are a share of exactly 1,
  # and 5 : 5 with ties between is exactly even.
  assert read("pandalm", {**row, "annotators": [2] * 7})[0].preference == 1.0
  assert read("pandalm", {**row, "annotators": [1, 0, 2, 0, 0, 1, 2]})[0].scores == (0.5, 0.5)
  by_majority = dict(votes="", label="majority")
  assert read("pandalm", row, args=by_majority)[0].preference == 1.0
  assert read("pandalm", {**row, "majority": 0}, args=by_majority)[0].preference == 0.5
  with pytest.raises(ValueError, match="'majority' is null"):
    read("pandalm", {**row, "majority": None}, args=by_majority)
  with pytest.raises(ValueError, match=r"label 3, not one of \[1, 2, 0\]"):
    read("pandalm", {**row, "majority": 3}, args=by_majority)


def test_choices_among_three_by_letter(read):
  row = {"q": "2+2?", "a": "5", "b": "4", "c": "3", "best": "B"}
  args = dict(prompt="{q}", responses=["a", "b", "c"], label="best", labels=["A", "B", "C"])
  (got,) = read("choices", row, args=args).rows
  assert got.responses == ("4", "5", "3") and got.scores == (1, 0, 0)
  with pytest.raises(ValueError, match="a label for each"):
    read("choices", row, args={**args, "labels": ["A", "B"]})


def test_ratings_with_attributes_that_are_missing(read):
  def completion(text, score, **ratings):
    return {"response": text, "overall_score": score, "annotations": {
        name: {"Rating": ratings.get(name, "N/A")}
        for name in ("helpfulness", "honesty", "instruction_following", "truthfulness")}}
  row = {
      "instruction": "Hi",
      "completions": [completion("a", 3, honesty="2"), completion("b", 8.5, helpfulness="4"),
                      completion("c", 3)]}
  (got,) = read("ultrafeedback", row).rows
  assert got.responses == ("b", "a", "c") and got.scores == (8.5, 3, 3)
  assert got.attributes[0] == {
      "helpfulness": 4.0, "honesty": None, "instruction_following": None, "truthfulness": None}
  assert got.attributes[1]["honesty"] == 2.0


def test_ratings_in_parallel_columns_ranks_and_single_responses(read):
  row = {"prompt": "Hi", "responses": ["a", "b", "c"], "place": [2, 3, 1], "long": [1, None, 3]}
  (got,) = read(
      "ratings", row, args=dict(score="place", ranks=True, attributes={"length": "long"})).rows
  assert got.responses == ("c", "a", "b") and got.scores == (-1, -2, -3)
  assert got.attributes == ({"length": 3.0}, {"length": 1.0}, {"length": None})
  with pytest.raises(ValueError, match="one value for each of 2 responses"):
    read("ratings", {**row, "responses": ["a", "b"]}, args=dict(score="place"))
  single = {
      "prompt": "Hi", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4,
      "complexity": 1, "verbosity": None}
  (got,) = read("helpsteer", single).rows
  assert got.responses == ("a",) and got.scores == () and got.attributes[0]["correctness"] == 4.0
  assert got.attributes[0]["verbosity"] is None


def test_the_first_mistake_leaves_later_steps_unlabelled(read):
  row = {"input": "2+2+2?", "task": "sums", "steps": ["2+2=4", "4+2=7", "So 7"], "mistake_index": 1}
  wrong, right = read("big_bench_mistake", row, {**row, "mistake_index": None}).rows
  assert wrong.responses == ("2+2=4\n4+2=7\nSo 7",) and wrong.domain == "sums"
  assert wrong.steps == ((Step("2+2=4\n", 1.0), Step("4+2=7\n", 0.0), Step("So 7", None)),)
  assert [s.label for s in right.steps[0]] == [1, 1, 1]
  for index in (3, -1, True, "1"):
    with pytest.raises(
        ValueError, match="the first mistake among 3 steps must be from 0 to 2, or None"):
      read("big_bench_mistake", {**row, "mistake_index": index})
  bench = {"id": "gsm8k-1", "problem": "2+2?", "steps": ["a", "b"], "label": -1}
  assert [s.label for s in read("processbench", bench)[0].steps[0]] == [1, 1]


def test_step_labels(read):
  row = {"prompt": "2+2?", "completions": ["a", "b", "c"], "labels": [True, 0.25, None]}
  assert [s.label for s in read("step_labels", row)[0].steps[0]] == [1.0, 0.25, None]
  with pytest.raises(ValueError, match="3 steps in 'completions' have 2 labels"):
    read("step_labels", {**row, "labels": [True, False]})
  with pytest.raises(
      ValueError, match=r"step 1 of response 0 has the label 2: give a number in \[0, 1\]"):
    read("step_labels", {**row, "labels": [1, 2, 1]})


def test_math_shepherd_marks(read):
  text = "2+2+2? Step 1: 2 + 2 = 4 {}\nStep 2: 4 + 2 = 7 {}"
  (got,) = read(
      "math_shepherd", {"input": text.format("ки", "ки"), "label": text.format("+", "-")}).rows
  assert got.prompt == "2+2+2?"
  assert got.steps == ((Step("Step 1: 2 + 2 = 4\n", 1.0), Step("Step 2: 4 + 2 = 7", 0.0)),)
  with pytest.raises(ValueError, match="is not column 'input' with"):
    read("math_shepherd", {"input": text.format("ки", "ки"), "label": text.format("+", "?")})
  with pytest.raises(ValueError, match="end with the mark"):
    read("math_shepherd", {"input": text.format("ки", ""), "label": text.format("+", "")})


def test_prm800k_follows_the_chosen_steps(read):
  def candidate(text, rating):
    return {"text": text, "rating": rating, "flagged": False}
  steps = [
      {"completions": [candidate("bad", -1), candidate("good", 1)], "human_completion": None,
       "chosen_completion": 1},
      {"completions": [candidate("bad", -1)], "human_completion": {"text": "by hand"},
       "chosen_completion": None},
      {"completions": [candidate("so-so", 0)], "human_completion": None, "chosen_completion": 0},
      {"completions": [candidate("wrong", -1), candidate("also", 1)], "human_completion": None,
       "chosen_completion": None}]
  row = {"question": {"problem": "2+2?"}, "label": {"steps": steps, "finish_reason": "found_error"}}
  (got,) = read("prm800k", row).rows
  assert got.prompt == "2+2?" and got.responses == ("good\nby hand\nso-so\nwrong",)
  assert [s.label for s in got.steps[0]] == [1, 1, 1, 0]
  assert [s.label for s in read("prm800k", row, args=dict(neutral=None))[0].steps[0]] == [
      1, 1, None, 0]
  steps[0]["completions"][1]["rating"] = 2
  with pytest.raises(ValueError, match="step 0 has the rating 2"):
    read("prm800k", row)


def test_bad_rows_are_dropped_and_told_of_when_asked(read, caplog):
  rows = [
      PAIR, {**PAIR, "rejected": "4"}, {**PAIR, "chosen": " "}, {**PAIR, "chosen": None},
      {"prompt": "x"}, PAIR]
  source = read("pairs", *rows, bad_rows="drop")
  assert [c.id for c in source.rows] == ["0", "5"]
  assert "4 of 6 rows" in caplog.text and "rows.jsonl:2" in caplog.text
  assert len(source.dropped) == 4
  assert all(f"rows.jsonl:{n}: " in d for n, d in zip((2, 3, 4, 5), source.dropped))
  # A slice means the same rows whether or not some of them are bad.
  assert [c.id for c in read("pairs", *rows, bad_rows="drop", rows="4:").rows] == ["5"]
  with pytest.raises(
      ValueError, match=r"All 2 rows of .*were dropped as bad; the first: .*rows\.jsonl:2"):
    read("pairs", *rows, bad_rows="drop", rows="1:3")


@pytest.mark.parametrize("keywords, message", [
    (dict(format="pear"), "Unknown format 'pear'"),
    (dict(format="rm_bensh"), "Did you mean 'rm_bench'"),
    (dict(args=dict(choosen="x")), "takes no argument 'choosen'. Did you mean 'chosen'"),
    (dict(args=dict(chosen="best")), "there is no column 'best'"),
    (dict(args=dict(prompt="{question}")), r"rows\.jsonl:1 has no column 'question'"),
    (dict(args=dict(domain="{subset}")), r"rows\.jsonl:1 has no column 'subset'"),
    (dict(args=dict(id="{prompt}")), "has the id '2\\+2\\?' of"),
    (dict(args=dict(weight="chosen")), "weight must be a finite number"),
    (dict(bad_rows="skip"), "bad_rows must be 'error' or 'drop'"),
])
def test_bad_arguments_say_what_to_change(read, keywords, message):
  with pytest.raises(ValueError, match=message):
    read(keywords.pop("format", "pairs"), PAIR, PAIR, **keywords)


@pytest.mark.parametrize("fields, message", [
    (dict(responses=()), "at least one text"),
    (dict(responses="ab"), "at least one text"),
    (dict(scores=(1.0,)), "scores has 1 entries for 2 responses"),
    (dict(scores=(0.0, 1.0)), "scores must not rise"),
    (dict(scores=(float("nan"), 0.0)), "finite"),
    (dict(soft_label=1.5), r"soft_label .*got 1.5 for 2 responses"),
    (dict(responses=("a", "b", "c"), soft_label=1.0), "for 3 responses"),
    (dict(margin=float("nan")), "margin must be a finite number"),
    (dict(attributes=({"x": "high"}, {})), "attribute 'x' of response 0 is 'high'"),
    (dict(steps=((Step("a"),), (Step("x"),))), "steps of response 1 do not join to it"),
    (dict(responses=("a", "a", "b"), scores=(2.0, 1.0, 0.0)), "identical, with scores 2.0 and 1.0"),
    (dict(responses=("a", "a"), scores=(1.0, 1.0)), "no answer"),
])
def test_a_comparison_is_checked_when_made(fields, message):
  with pytest.raises(ValueError, match=message):
    Comparison(**{"prompt": "?", "responses": ("a", "b"), **fields})


def test_equal_samples_of_equal_score_are_no_contradiction():
  assert Comparison("?", ("a", "a", "b"), (1.0, 1.0, 0.0)).preference is None


@pytest.mark.parametrize("file, format, rows, dropped", [
    ("hh_rlhf_harmless", "hh_rlhf", 1308, 4),
    ("pandalm_human", "pandalm", 607, 54),
    ("llmbar", "llmbar", 219, 0),
    ("rm_bench_chat_code", "rm_bench", 230, 0),
    ("step_labels_bigbench_mistake", "big_bench_mistake", 1585, 1)])
def test_real_files(shared_data, file, format, rows, dropped):
  source = comparisons(str(shared_data / f"{file}.jsonl.gz"), format=format, bad_rows="drop")
  assert (len(source), len(source.dropped)) == (rows, dropped)
