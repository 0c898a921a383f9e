"""Damaged files of rows are named; bad rows are dropped where that is asked, bad files never."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_reason.tasks import files, registry
from rl_reason.tasks.preferences import comparisons

ROWS = [{"prompt": f"{i}+2?", "chosen": str(i + 2), "rejected": "no"} for i in range(40)]
LINES = [json.dumps(row) for row in ROWS]


def read(path, bad_rows="error"):
  return comparisons(str(path), format="pairs", bad_rows=bad_rows)


def write(path, *lines):
  path.write_bytes(b"\n".join(
      line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines))
  return path


@pytest.mark.parametrize("line, cause", [
    ('{"prompt": ' + "[" * 100_000, "nest deeper"),
    ('{"prompt": ' + "[" * 150 + "]" * 150 + "}", "nest deeper"),
    ('{"prompt": ' + "9" * 5000 + "}", "more than 4300 digits"), ("{", "at line 1, column 2"),
    ("7", "got int"), ('"text"', "got str"), ("null", "got NoneType"), ("[]", "got list")])
def test_a_line_that_is_no_row_is_named_and_may_be_dropped(line, cause, tmp_path):
  path = write(tmp_path / "a.jsonl", LINES[0], line, LINES[1])
  with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:2: .*{cause}") as error:
    read(path)
  assert len(str(error.value)) < 1000
  source = read(path, "drop")
  assert [c.id for c in source.rows] == ["0", "2"]
  assert len(source.dropped) == 1 and f"{path}:2: " in source.dropped[0]
  with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2: .*{cause}"):
    files.jsonl(str(path), prompt="{prompt}")


def test_a_file_of_bad_lines_says_why_nothing_is_left(tmp_path):
  path = write(tmp_path / "a.jsonl", "{", "}")
  with pytest.raises(
      ValueError, match=r"No rows are left of the 2 .* 2 rows cannot be read; the first: .*:1"):
    read(path, "drop")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
  assert len(read(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES[0].encode(), LINES[1]))) == 2


def test_lines_may_end_as_on_windows(tmp_path):
  assert len(read(write(tmp_path / "a.jsonl", LINES[0] + "\r", LINES[1] + "\r", ""))) == 2


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_another_encoding_is_a_bad_file(bad_rows, tmp_path):
  path = write(tmp_path / "a.jsonl", LINES[0], b'{"prompt": "\xff"}')
  with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2 is not UTF-8"):
    read(path, bad_rows)


def test_half_a_surrogate_pair_is_no_error(tmp_path):
  rows = [{**ROWS[0], "prompt": "\ud83d"}, {**ROWS[1], "prompt": "\ud83d!"}]
  path = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
  task = registry.load_task(
      "comparisons", dict(path=str(path), format="pairs"), dict(rows=":1"), dict(rows="1:"))
  assert task.train[0].prompt == "\ud83d"


def damaged(raw, draw):
  """A file with up to four bytes changed, or cut short."""
  raw = bytearray(raw)
  for _ in range(draw.randint(1, 4)):
    raw[draw.randrange(len(raw))] = draw.randrange(256)
  return bytes(raw[:draw.randrange(len(raw))] if draw.random() < 0.3 else raw)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_seeded_damage_is_named_or_does_no_harm(name, tmp_path, trials):
  whole = tmp_path / f"whole-{name}"
  if name.endswith(".parquet"):
    pq.write_table(pa.Table.from_pylist(ROWS), whole, write_page_checksum=True)
  elif name.endswith(".gz"):
    whole.write_bytes(gzip.compress("\n".join(LINES).encode(), mtime=0))
  else:
    write(whole, *LINES)
  original, path, unharmed = whole.read_bytes(), tmp_path / name, []
  expected = [c.metadata for c in read(whole).rows]
  for draw in trials(120):
    path.write_bytes(damaged(original, draw))
    with draw.refusal(path.read_bytes(), names=str(path)) as refused:
      source = read(path, draw.choice(("drop", "error")))
    unharmed.append(not refused)
    if name != "a.jsonl" and not refused:  # Both others are checked by sums.
      assert [c.metadata for c in source.rows] == expected
  assert sum(unharmed) < (3 / 4 if name == "a.jsonl" else 1 / 4) * len(unharmed)


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_a_damaged_parquet_file_is_no_bad_row(bad_rows, tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(pa.Table.from_pylist(ROWS), path)
  path.write_bytes(path.read_bytes()[:100] + bytes(100) + path.read_bytes()[200:])
  with pytest.raises(
      ValueError, match=rf"{re.escape(str(path))} is not a Parquet file, or a damaged one.*Fetch"):
    read(path, bad_rows)


@pytest.mark.parametrize("value", [{"a": None}, {"a": {"b": None}}])
def test_a_null_within_a_column_is_no_text(value, tmp_path):
  path = write(tmp_path / "a.jsonl", json.dumps({"q": value, "r": "x"}))
  template = "{q[a][b]}" if value["a"] else "{q[a]}"
  with pytest.raises(
      ValueError, match=r"a.jsonl:1: the template prompt=.* cannot be filled in: .* is null"):
    files.jsonl(str(path), prompt=template)


@pytest.mark.parametrize("path", [7, None, [7], {"a": 1}])
def test_a_path_of_another_kind_is_named(path):
  with pytest.raises(ValueError, match="path must be a file, a glob or a list"):
    files.jsonl(path, prompt="{q}")


# --- Rows in memory


IN_MEMORY = [{"q": f"{i}+1", "a": i + 1} for i in range(4)]


class Table:
  """A data set that has a length and takes indices, and is no list."""

  def __len__(self):
    return len(IN_MEMORY)

  def __getitem__(self, index):
    return IN_MEMORY[index]


@pytest.mark.parametrize("given", [IN_MEMORY, tuple(IN_MEMORY), Table()], ids=["list", "tuple", "table"])
@pytest.mark.parametrize("read", [files.jsonl, files.parquet])
def test_rows_stand_where_a_path_does(read, given):
  source = read(given, prompt="{q}", reference="{a}", rows="1:3")
  assert [(p.prompt, p.reference, p.id) for p in source.problems] == [("1+1", "2", "1"), ("2+1", "3", "2")]


def test_comparisons_in_memory():
  row = {"prompt": "p", "chosen": "a", "rejected": "b"}
  assert comparisons([row], format="pairs").rows[0].responses == ("a", "b")
  bad = comparisons([row, 7], format="pairs", bad_rows="drop")
  assert bad.dropped == ("row 1 is '7', and must map columns to values, as the rows before do.",)


@pytest.mark.parametrize("given, message", [
    ([{"q": "1"}], "row 0 has no column 'a', which reference='{a}' names"),
    ([{"q": "1", "a": 1}, "x"], "row 1 is 'x', and must map columns to values"),
    ([1, 2], "path must be a file, a glob or a list of these, or a list of rows"),
    ({"q": ["1"]}, "path must be a file"), ([], "path is an empty list"),
    ("<2 rows 6c, given from Python>", "The path of this run is <2 rows")])
def test_what_is_wrong_with_rows_in_memory_is_named(given, message):
  with pytest.raises(ValueError, match=message):
    files.jsonl(given, prompt="{q}", reference="{a}")


def test_a_task_of_rows_in_memory_and_of_a_function():
  arguments = dict(prompt="{q}", reference="{a}")
  halves = dict(path=IN_MEMORY[:2]), dict(path=IN_MEMORY[2:])
  assert len(registry.load_task("jsonl", arguments, *halves).heldout) == 2
  assert len(registry.load_task(files.jsonl, arguments, *halves).heldout) == 2
