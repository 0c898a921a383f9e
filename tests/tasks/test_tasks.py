"""Sources from files, generated arithmetic, the two halves of a task, and batches."""

import gzip
import itertools
import json
import os
import pickle
import sys

import ml_collections
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_reason.tasks import draws, files, pipeline, registry
from rl_reason.tasks.worlds import arithmetic as arithmetic_lib
from rl_reason.types import Problem

ROWS = [
    {"question": "How many legs have two cats?", "answer": "Four each.\n2*4 = <<2*4=8>>8\n#### 8",
     "type": "easy", "n": 8.0},
    {"question": "What is 999+1?", "answer": "Add.\n#### 1,000", "type": "hard", "n": 1000.0},
    {"question": "What is 1/2+1/2?", "answer": "Halves.\n#### 1", "type": "easy", "n": 1.0},
    {"question": "What is 3-3?", "answer": "#### 0", "type": "odd", "n": 0.0},
]
GSM = dict(
    prompt="Q: {question}\nA:", reference="{answer}", reference_pattern=r"####\s*(.+)$",
    solution="{answer}")


def write_jsonl(path, rows=ROWS):
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "wt", encoding="utf-8") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  return str(path)


def prompts(source):
  return [source[i].prompt for i in range(len(source))]


# --- Files.


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows_become_problems(tmp_path, kind):
  path = tmp_path / f"rows.{kind}"
  if kind == "parquet":
    pq.write_table(pa.Table.from_pylist(ROWS), path)
  else:
    write_jsonl(path)
  source = registry.SOURCES[kind.partition(".")[0]](str(path), **GSM)
  assert len(source) == 4
  assert source[1] == Problem(
      prompt="Q: What is 999+1?\nA:", reference="1,000", solution="Add.\n#### 1,000", id="1",
      metadata=ROWS[1])
  assert [source[i].reference for i in range(4)] == ["8", "1,000", "1", "0"]
  assert pickle.loads(pickle.dumps(source)) == source
  with pytest.raises(IndexError):
    source[4]


def test_chat_prompts_and_ids(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl")
  source = files.jsonl(
      path, prompt="{question}", chat=True, system="Be brief.", reference="{n:g}",
      id="{type}-{n:.0f}")
  assert source[0].prompt == (
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "How many legs have two cats?"})
  assert (source[0].reference, source[0].id) == ("8", "easy-8")
  assert files.jsonl(path, prompt="{question}", chat=True)[0].prompt == (
      {"role": "user", "content": "How many legs have two cats?"},)
  source = files.jsonl(path, prompt="{question}", system="Be brief.")
  assert source[3].prompt == "Be brief.\n\nWhat is 3-3?"
  # Braces in an example are no template.
  source = files.jsonl(
      path, prompt="{question}", chat=True, system="Be brief.", examples=[("1+1?", "\\boxed{2}")])
  assert [(m["role"], m["content"]) for m in source[3].prompt] == [
      ("system", "Be brief."), ("user", "1+1?"), ("assistant", "\\boxed{2}"),
      ("user", "What is 3-3?")]


@pytest.mark.parametrize("chat, examples, message", [
    (False, [("1+1?", "2")], "set chat=True"),
    (True, [("1+1?",)], r"pairs of non-empty texts, got \('1\+1\?',\)"),
    (True, ["ab"], "pairs of non-empty texts, got 'ab'"),
    (True, [("1+1?", "")], "non-empty")])
def test_examples_that_are_no_turns_of_a_chat_are_refused(tmp_path, chat, examples, message):
  with pytest.raises(ValueError, match=message):
    files.jsonl(
        write_jsonl(tmp_path / "a.jsonl"), prompt="{question}", chat=chat, examples=examples)


TURNS = [{"role": role, "content": content} for role, content in (
    ("system", "be brief"), ("user", "1+1?"), ("assistant", "2"), ("user", "+1?"),
    ("assistant", "3"), ("user", "thanks"))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_chats_become_prompts_and_what_follows(tmp_path, kind):
  rows = [
      {"chat": TURNS, "answer": "3"},
      {"chat": TURNS[:2], "answer": "2"},
      {"chat": TURNS[:3], "answer": "2"}]
  path = tmp_path / f"rows.{kind}"
  pq.write_table(pa.Table.from_pylist(rows), path) if kind == "parquet" else write_jsonl(path, rows)
  source = registry.SOURCES[kind](str(path), messages="chat", reference="{answer}")
  assert [source[i].prompt for i in range(3)] == [tuple(TURNS[:2])] * 3
  assert [source[i].solution for i in range(3)] == [tuple(TURNS[2:5]), "", tuple(TURNS[2:3])]
  assert source[0].reference == "3"
  assert len(registry.SOURCES[kind](str(path), messages="chat", unique=True)) == 1


@pytest.mark.parametrize("chat, message", [
    ("hi", "rows.jsonl:1: column 'chat' must hold a list"),
    ([], "must hold a list"),
    ([{"role": "user"}], "must hold a list"),
    (TURNS[2:], "begins with the assistant's words"),
    (None, "column 'chat' is null, but messages='chat' needs it")])
def test_chats_that_are_none_are_named(tmp_path, chat, message):
  with pytest.raises(ValueError, match=message):
    files.jsonl(write_jsonl(tmp_path / "rows.jsonl", [{"chat": chat}]), messages="chat")


def test_a_chat_needs_no_templates(tmp_path):
  with pytest.raises(ValueError, match="names a whole chat: leave out prompt"):
    files.jsonl(write_jsonl(tmp_path / "rows.jsonl"), messages="chat", prompt="{question}")
  with pytest.raises(ValueError, match="no column 'chat'"):
    files.jsonl(write_jsonl(tmp_path / "rows.jsonl"), messages="chat")
  with pytest.raises(ValueError, match="prompt is an empty template"):
    files.jsonl(write_jsonl(tmp_path / "rows.jsonl"))


def test_globs_and_lists_of_files_keep_their_order(tmp_path):
  a, b = write_jsonl(tmp_path / "a.jsonl", ROWS[:1]), write_jsonl(tmp_path / "b.jsonl", ROWS[1:])
  by_glob = files.jsonl(str(tmp_path / "*.jsonl"), prompt="{question}")
  by_list = files.jsonl([b, a], prompt="{question}")
  assert prompts(by_glob) == [r["question"] for r in ROWS]
  assert prompts(by_list) == [r["question"] for r in ROWS[1:] + ROWS[:1]]
  assert [by_list[i].id for i in range(4)] == ["0", "1", "2", "3"]


def test_filters_come_before_the_slice(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", ROWS + [ROWS[0], {**ROWS[0], "question": None}])
  source = files.jsonl(
      path, prompt="{question}", where={"type": ["easy", "odd"]}, drop_null=True, unique=True,
      rows="1:")
  assert prompts(source) == ["What is 1/2+1/2?", "What is 3-3?"]
  # Numbers in the file, whatever is filtered.
  assert [source[i].id for i in range(2)] == ["2", "3"]
  assert len(files.jsonl(path, prompt="{type}", where={"type": "easy"}, max_rows=3)) == 3


@pytest.mark.parametrize("rows, count, expected", [
    ("", 3, [0, 1, 2]), ("1:", 3, [1, 2]), (":2", 3, [0, 1]), ("-1:", 3, [2]), ("0:500", 2, [0, 1]),
    (":50%", 5, [0, 1]), ("50%:", 5, [2, 3, 4]), ("25%:75%", 8, [2, 3, 4, 5]),
    (":29%", 100, list(range(29)))])
def test_row_slices(rows, count, expected):
  assert list(files.row_range(rows, count)) == expected


def test_percent_slices_meet_for_every_count():
  for count in range(300):
    for percent in ("10%", "33.3%", "90%"):
      below, above = (files.row_range(rows, count) for rows in (f":{percent}", f"{percent}:"))
      assert [*below, *above] == list(range(count))


@pytest.mark.parametrize("text, message", [
    ('{"question": "a"}\n\n{"question": \n',
     r"a\.jsonl:3: not a JSON object: .*whole object a line"),
    ("[1, 2]\n", r"a\.jsonl:1: a line must hold a JSON object .* got list"),
    ("\n", r"a\.jsonl is empty"),
    ('{"qestion": "a"}\n',
     r"a\.jsonl:1 has no column 'question', .*Did you mean 'qestion'\? Its columns: qestion"),
    ('{"question": "a"}\n{"text": "b"}\n', r"a\.jsonl:2 has no column 'question'"),
    ('{"question": null}\n', r"a\.jsonl:1: column 'question' is null, .*drop_null=True"),
    (b"\xff\xfe", "is not UTF-8 text"),
])
def test_bad_files_are_named_with_their_line(tmp_path, text, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=message):
    files.jsonl(str(path), prompt="{question}")


@pytest.mark.parametrize("keywords, message", [
    (dict(reference="{answer}", reference_pattern=r"=> (\d+)"),
     r"a\.jsonl:1: reference_pattern .* does not match .*#### 8"),
    (dict(reference="{answer}", reference_pattern=r"\d+"), "has 0 groups, not 1"),
    (dict(reference="{answer}", reference_pattern=r"(\d+"), "is no regular expression"),
    (dict(reference_pattern=r"(\d+)"), "reference is not"),
    (dict(prompt="{question"), "is no format string"),
    (dict(prompt="{}"), "field without a column name"),
    (dict(prompt="Solve this:"), "names no column"),
    (dict(prompt=""), "empty template"),
    (dict(solution="{question:d}"),
     r"a\.jsonl:1: the template solution=.* cannot be filled in: ValueError"),
    (dict(id="{type}"), r"a\.jsonl:3 has the id 'easy' of .*a\.jsonl:1"),
    (dict(rows="90"), "rows must be a slice"),
    (dict(rows=":120%"), r"a percentage must be in \[0, 100\]"),
    (dict(rows="4:"), r"No rows are left of the 4"),
    (dict(where={"type": "Easy"}), r"No rows are left of the 4"),
    (dict(where={"typ": "easy"}),
     r"has no column 'typ', which `where` names. Did you mean 'type'\?"),
    (dict(max_rows=0), "max_rows must be at least 1"),
    (dict(path=[]), "path is an empty list"),
])
def test_bad_arguments_say_what_to_change(tmp_path, keywords, message):
  keywords = {"path": write_jsonl(tmp_path / "a.jsonl"), "prompt": "{question}", **keywords}
  with pytest.raises(ValueError, match=message):
    files.jsonl(**keywords)


def test_missing_and_mistaken_files(tmp_path):
  with pytest.raises(
      FileNotFoundError, match=r"No file matches path '.*no\*\.jsonl': relative paths start at"):
    files.jsonl(str(tmp_path / "no*.jsonl"), prompt="{q}")
  with pytest.raises(FileNotFoundError, match="it is a directory"):
    files.jsonl(str(tmp_path), prompt="{q}")
  plain = write_jsonl(tmp_path / "a.jsonl")
  os.rename(plain, tmp_path / "b.jsonl.gz")
  with pytest.raises(ValueError, match="not a whole gzip file"):
    files.jsonl(str(tmp_path / "b.jsonl.gz"), prompt="{question}")
  with pytest.raises(ValueError, match="is not a Parquet file"):
    files.parquet(str(tmp_path / "b.jsonl.gz"), prompt="{question}")


# --- Tasks.


def test_load_task_from_a_config(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl")
  config = ml_collections.ConfigDict(dict(
      source="jsonl", arguments=dict(path=path, where=dict(type=["easy", "hard"]), **GSM),
      train=dict(rows=":2"), heldout=dict(rows="2:")))
  task = registry.load_task(config.source, config.arguments, config.train, config.heldout)
  assert [task.train[i].id for i in range(len(task.train))] == ["0", "1"]
  assert task.heldout[0].reference == "1" and len(task.heldout) == 1


def test_a_prompt_in_both_halves_is_refused(tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl")
  spaced = write_jsonl(tmp_path / "b.jsonl", [{"question": "What  is\n3-3?", "name": "x"}])
  message = r"2 training rows .*train id '1' = heldout id '1': 'What is 999\+1\?'.*do not overlap"
  with pytest.raises(ValueError, match=message):
    registry.load_task(
        "jsonl", dict(path=path, prompt="{question}"), dict(rows=":3"), dict(rows="1:"))
  # Neither spacing nor a system message makes another question of it.
  with pytest.raises(ValueError, match="train id '3' = heldout id 'x'"):
    registry.load_task(
        "jsonl", dict(prompt="{question}"), dict(path=path, chat=True, system="Think."),
        dict(path=spaced, id="{name}"))


def test_unknown_names_get_a_hint_before_anything_is_read():
  message = r"Unknown source 'json'. Did you mean 'jsonl'\? Known: arithmetic, .*dotted"
  with pytest.raises(ValueError, match=message):
    registry.load_task("json", {}, {}, {})
  with pytest.raises(
      ValueError, match=r"for the train rows takes no argument 'promt'. Did you mean 'prompt'\?"):
    registry.load_task("jsonl", dict(promt="{q}"), dict(path="missing"), dict(path="missing"))
  with pytest.raises(
      ValueError, match=r"for the heldout rows takes no argument 'row'. Did you mean 'rows'\?"):
    registry.load_task(
        "jsonl", dict(prompt="{q}"), dict(path="missing"), dict(path="missing", row="1:"))
  with pytest.raises(ValueError, match="for the heldout rows needs the argument size"):
    registry.load_task("arithmetic", {}, dict(size=3), {})


def test_a_dotted_path_names_a_users_source(tmp_path, monkeypatch):
  (tmp_path / "my_rows.py").write_text(
      "from rl_reason.types import Problem\n"
      "def doubles(*, start, stop):\n"
      "  return [Problem(f'2*{i}=', str(2 * i)) for i in range(start, stop)]\n")
  monkeypatch.syspath_prepend(tmp_path)
  task = registry.load_task("my_rows:doubles", {}, dict(start=0, stop=3), dict(start=3, stop=5))
  assert prompts(task.train) == ["2*0=", "2*1=", "2*2="] and task.heldout[1].reference == "8"
  with pytest.raises(ValueError, match="heldout rows of source 'my_rows:doubles' are none at all"):
    registry.load_task("my_rows:doubles", {}, dict(start=0, stop=3), dict(start=3, stop=3))
  with pytest.raises(
      ValueError, match=r"has no function or class 'double'. Did you mean 'doubles'\?"):
    registry.load_task("my_rows:double", {}, {}, {})
  with pytest.raises(ValueError, match="no module 'my_row'"):
    registry.load_task("my_row:doubles", {}, {}, {})
  assert "my_rows" in sys.modules


def test_real_data_sets_load(shared_data):
  gsm8k = registry.load_task(
      "jsonl", dict(GSM, id="{id}"), dict(path=str(shared_data / "gsm8k_train.jsonl.gz")),
      dict(path=str(shared_data / "gsm8k_test.jsonl.gz")))
  assert (len(gsm8k.train), len(gsm8k.heldout)) == (7473, 1319)
  assert gsm8k.train[0].reference == "72" and gsm8k.train[0].id == "gsm8k-train-0"
  svamp = registry.load_task(
      "jsonl",
      dict(
          path=str(shared_data / "svamp.jsonl.gz"), prompt="{question}", chat=True, system="Think.",
          reference="{answer:g}", where={"type": "Addition"}),
      dict(rows=":90%"), dict(rows="90%:"))
  assert len(svamp.train) + len(svamp.heldout) == 134 and "." not in svamp.train[0].reference
  math500 = files.jsonl(
      str(shared_data / "math500.jsonl.gz"), prompt="{problem}", reference="{answer}")
  assert len(math500) == 350


# --- Arithmetic.


def follow(solution):
  """Whether each step of a solution is right, and its last number."""
  *steps, last = solution.split(";")
  right = []
  for step in steps:
    left, _, result = step.partition("=")
    right.append(eval(left) == int(result))
  return right, last.removeprefix("#")


def test_arithmetic_by_hand():
  # 7+5=12, 12-3=9.
  assert arithmetic_lib._apply(arithmetic_lib._apply(7, "+", 5), "-", 3) == 9
  source = arithmetic_lib.arithmetic(size=300, seed=3, max_terms=4, max_value=12, operators="+-*")
  for i in range(300):
    problem = source[i]
    right, last = follow(problem.solution)
    assert all(right) and last == problem.reference and problem.metadata["solution_correct"]
    steps = problem.solution.split(";")[:-1]
    assert problem.prompt.startswith(steps[0].partition("=")[0]) and problem.prompt.endswith("=")
    assert 2 <= len(steps) + 1 == problem.metadata["terms"] <= 4
    assert all(0 <= int(step.partition("=")[2]) <= 12 for step in steps)
    assert set(problem.prompt + problem.solution) <= set(arithmetic_lib.CHARACTERS)
    # The steps chain: each begins with the result before it.
    for before, after in zip(steps, steps[1:]):
      assert after.startswith(before.partition("=")[2])


def test_arithmetic_rows_do_not_depend_on_the_order_of_access():
  source = arithmetic_lib.arithmetic(size=50, seed=1)
  backwards = [source[i] for i in reversed(range(50))][::-1]
  copy = pickle.loads(pickle.dumps(source))
  assert backwards == [copy[i] for i in range(50)]
  # Pinned, not worked out: a change of Python version or machine must not change
  # the rows of a seed.
  assert (source[0].prompt, source[49].prompt) == ("7-3+4=", "10-6-3+9=")
  assert arithmetic_lib.arithmetic(size=50, seed=2)[0] != source[0]
  with pytest.raises(IndexError):
    source[50]


def test_arithmetic_halves_are_disjoint_and_hold_out_an_eighth():
  task = registry.load_task(
      "arithmetic", dict(max_terms=3, max_value=9), dict(size=4000),
      dict(size=1000, part="heldout", seed=5))
  assert not set(prompts(task.train)) & set(prompts(task.heldout))
  texts = [f"{a}+{b}=" for a in range(100) for b in range(100)]
  share = sum(draws.in_part(text, "heldout") for text in texts) / len(texts)
  assert share == pytest.approx(1 / 8, abs=0.01)


def test_careless_solutions_slip_at_the_given_rate_and_keep_the_reference():
  clean = arithmetic_lib.arithmetic(size=1000, min_terms=3, max_terms=3)
  careless = arithmetic_lib.arithmetic(size=1000, min_terms=3, max_terms=3, careless=0.25)
  slips = []
  for i in range(1000):
    assert (clean[i].prompt, clean[i].reference) == (careless[i].prompt, careless[i].reference)
    right, last = follow(careless[i].solution)
    slips += [not r for r in right]
    assert careless[i].metadata["solution_correct"] == (last == careless[i].reference)
    assert all(right) <= (last == careless[i].reference)
  assert sum(slips) / len(slips) == pytest.approx(0.25, abs=0.04)  # 4 standard errors.


@pytest.mark.parametrize("keywords, message", [
    (dict(size=0), "size must be at least 1, got 0"),
    (dict(part="test"), "part must be 'train' or 'heldout', got 'test'"),
    (dict(min_terms=1), "2 <= min_terms <= max_terms"),
    (dict(min_terms=4, max_terms=3), "2 <= min_terms <= max_terms"),
    (dict(max_value=0), "max_value must be at least 1"),
    (dict(operators="+/"), r"operators must be one or more of .* got '\+/'"),
    (dict(careless=1.5), r"in \[0, 1\], got 1.5"),
])
def test_bad_arithmetic_arguments(keywords, message):
  with pytest.raises(ValueError, match=message):
    arithmetic_lib.arithmetic(**{"size": 1, **keywords})


def test_too_few_problems_to_split():
  # 1+0= is the only problem; whichever half it is not in has none.
  halves = [
      arithmetic_lib.arithmetic(size=1, part=part, max_terms=2, max_value=1, operators="+")
      for part in ("train", "heldout")]
  with pytest.raises(ValueError, match="too few problems to split. Raise max_terms or max_value"):
    [half[0] for half in halves]


# --- Batches.


def ids(batch):
  return [problem.id for problem in batch]


SOURCE = tuple(Problem(str(i), "", id=str(i)) for i in range(10))


def test_every_epoch_has_each_row_once_in_a_new_order():
  iterator = pipeline.batches(SOURCE, batch_size=4, seed=7)
  # 40 rows: batches 3, 6, ... straddle epochs.
  rows = [i for _ in range(10) for i in ids(next(iterator))]
  epochs = [rows[10 * e:10 * e + 10] for e in range(4)]
  assert all(sorted(epoch) == sorted(map(str, range(10))) for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 4
  assert rows == [
      i for batch, _ in zip(pipeline.batches(SOURCE, batch_size=4, seed=7), range(10))
      for i in ids(batch)]
  assert rows[:4] != ids(next(pipeline.batches(SOURCE, batch_size=4, seed=8)))


def test_resumed_batches_equal_uninterrupted_ones():
  uninterrupted = pipeline.batches(SOURCE, batch_size=3, seed=0)
  expected = [ids(next(uninterrupted)) for _ in range(12)]
  first = pipeline.batches(SOURCE, batch_size=3, seed=0)
  assert [ids(next(first)) for _ in range(5)] == expected[:5]
  state = json.loads(json.dumps(first.get_state()))
  resumed = pipeline.batches(SOURCE, batch_size=3, seed=0)
  resumed.set_state(state)
  assert [ids(next(resumed)) for _ in range(7)] == expected[5:]
  fresh = pipeline.batches(SOURCE, batch_size=3, seed=0)
  fresh.set_state(pipeline.batches(SOURCE, batch_size=3, seed=0).get_state())
  assert ids(next(fresh)) == expected[0]


def test_hosts_partition_an_epoch():
  hosts = [
      list(pipeline.batches(
          SOURCE, batch_size=2, seed=1, num_epochs=1, process_index=p, process_count=2))
      for p in range(2)]
  assert [[len(batch) for batch in host] for host in hosts] == [[1] * 5, [1] * 5]
  assert sorted(i for host in hosts for batch in host for i in ids(batch)) == sorted(
      map(str, range(10)))
  # An odd number of rows: hosts stay in step, and two endless epochs still have each row twice.
  odd = SOURCE[:9]
  hosts = [
      pipeline.batches(odd, batch_size=2, seed=1, process_index=p, process_count=2)
      for p in range(2)]
  rows = [i for _ in range(9) for host in hosts for i in ids(next(host))]
  assert sorted(rows[:9]) == sorted(rows[9:]) == sorted(map(str, range(9)))
  hosts = [
      list(pipeline.batches(
          odd, batch_size=2, seed=1, num_epochs=1, process_index=p, process_count=2))
      for p in range(2)]
  assert [len(host) for host in hosts] == [4, 4]


def test_batches_may_be_larger_than_the_source():
  assert len(next(pipeline.batches(SOURCE[:3], batch_size=8, seed=0))) == 8


@pytest.mark.parametrize("keywords, message", [
    (dict(batch_size=0), "positive multiple of the 1 processes"),
    (dict(batch_size=3, process_count=2),
     "positive multiple of the 2 processes that share it, got 3"),
    (dict(process_index=2, process_count=2), r"process_index must be in \[0, 2\)"),
    (dict(seed=-1), "seed must be in"),
    (dict(source=()), "source is empty"),
    (dict(batch_size=16, num_epochs=1), "1 epochs of 10 rows do not fill one batch of 16"),
])
def test_bad_batch_arguments(keywords, message):
  with pytest.raises(ValueError, match=message):
    pipeline.batches(**{"source": SOURCE, "batch_size": 2, "seed": 0, **keywords})


def test_batches_go_on_with_another_number_of_processes():
  rows = list(range(40))
  whole = [sorted(b) for b in itertools.islice(pipeline.batches(rows, batch_size=4, seed=1), 6)]
  one = pipeline.batches(rows, batch_size=4, seed=1)
  for _ in range(3):
    next(one)
  state = json.loads(json.dumps(one.get_state()))
  both = [
      pipeline.batches(rows, batch_size=4, seed=1, process_index=i, process_count=2)
      for i in range(2)]
  for each in both:
    each.set_state(state)
  assert [sorted(next(both[0]) + next(both[1])) for _ in range(3)] == whole[3:]


# --- Prompts in both halves


def both_halves(shared_prompts, train):
  rows = [{"q": q, "a": "1"} for q in train]
  return registry.load_task(
      "jsonl", dict(prompt="{q}", reference="{a}"), dict(path=rows),
      dict(path=[{"q": "x", "a": "1"}, {"q": "y", "a": "1"}]), shared_prompts)


def test_training_rows_with_a_prompt_that_is_held_out_can_be_dropped(caplog):
  task = both_halves("drop", ["a", " x ", "b", "y"])
  assert [task.train[i].prompt for i in range(len(task.train))] == ["a", "b"]
  assert [task.train[i].id for i in range(len(task.train))] == ["0", "2"]
  assert len(task.heldout) == 2
  assert "2 of 4 training rows are left out" in caplog.text


def test_shared_prompts_are_an_error_that_names_the_way_out():
  with pytest.raises(ValueError, match="1 training rows have a prompt.*shared_prompts='drop'"):
    both_halves("error", ["a", "x"])


def test_dropping_may_not_leave_nothing():
  with pytest.raises(ValueError, match="All 2 training rows have a prompt that is also held out"):
    both_halves("drop", ["x", "y"])


def test_disjoint_halves_are_as_they_were():
  assert isinstance(both_halves("drop", ["a", "b"]).train, files.Rows)
