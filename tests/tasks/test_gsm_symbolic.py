"""GSM-Symbolic templates: one worked by hand, the real hundred, and what they may not do."""

import ast
from fractions import Fraction
import gzip
import json
import pickle

import pytest

from rl_reason.tasks import gsm_symbolic as lib
from rl_reason.tasks import registry, template_expressions
from rl_reason.tasks.draws import Draws

WORDS = {"names": ["Ann", "Bob", "Cleo"], "numbers": ["one", "two", "three", "four"],
         "fraction_alnum": [["half", "1/2"], ["one third", "1/3"]]}
QUESTION = """{name,Ann} has {n, 6} {things,pens} and gives {frac_txt,half} of them. \
{k_txt,two} share the rest. Each?

#init:
- name = sample(names)
- things = sample(["pens", "cups"])
- $n = range(2, 13, 2)
- frac_txt, frac_val = sample(fraction_alnum)
- k_txt, k_val = range_str(1, 4, 1, numbers)

#conditions:
- is_int(n * frac_val)
- divides(n - n * frac_val, k_val)

#answer: (n - n * frac_val) // k_val
"""
SOLUTION = (
    "She gives {n}*{frac_val}={int(n*frac_val)}.\n{k_txt} share <<{n-n*frac_val}>>.\n"
    "#### {(n - n * frac_val) // k_val}")


def template(question=QUESTION, solution=SOLUTION):
  return lib.parse_template("t0", question, solution, WORDS)


def write(tmp_path, question=QUESTION, count=1):
  templates, words = tmp_path / "templates.jsonl", tmp_path / "words.json"
  templates.write_text("".join(
      json.dumps(
          {"id": f"t{i}", "question_annotated": question, "answer_annotated": SOLUTION}) + "\n"
      for i in range(count)))
  words.write_text(json.dumps(WORDS))
  return dict(templates_path=str(templates), replacements_path=str(words))


def test_a_template_by_hand():
  t = template()
  # n=12, a third: gives 4, keeps 8, four friends get 2 each. A drawn word that begins a sentence
  # gets its capital.
  problem = t.problem(
      {"name": "Bob", "n": 12, "things": "cups", "frac_txt": "one third", "frac_val": "1/3",
       "k_txt": "four", "k_val": 4}, "x")
  assert problem.prompt == "Bob has 12 cups and gives one third of them. Four share the rest. Each?"
  assert problem.solution == "She gives 12*1/3=4.\nFour share <<8>>.\n#### 2"
  assert problem.reference == "2"


def test_defaults_complete_what_the_question_does_not_show():
  # k_txt = "two" stands in the question; its k_val = 2 has to be found.
  # 6 - 3 = 3 is not shared by 2, but 3 // 2 = 1.
  values = template().defaults()
  assert (values["k_val"], values["frac_val"], values["n"]) == (2, "1/2", 6)
  assert template().problem(values, "x").reference == "1"


def test_draws_satisfy_the_conditions():
  t = template()
  for i in range(100):
    values, _ = t.draw(Draws(i), 1000)
    n, part, k = values["n"], Fraction(values["frac_val"]), values["k_val"]
    assert n in range(2, 13, 2) and (n * part).denominator == 1 and (n - n * part) % k == 0
    assert t.problem(values, "x").reference == t.answer(values) == str((n - n * part) // k)


def test_arithmetic_is_exact():
  def value(text, **variables):
    return template_expressions.compile_expression(
        ast.parse(text, mode="eval").body, variables)(variables)
  assert value("int(0.29 * 100)") == 29  # 28 in floating point.
  assert value("is_int((0.1 + 0.2) * 10)") and value("1/3 + 1/6") == Fraction(1, 2)
  assert value("7 if x == 'week' else 30", x="week") == 7
  assert value("1 < x <= 3 and not divides(x, 2)", x=3) is True
  shown = [lib.show(Fraction(a, b)) for a, b in ((5, 4), (-1, 20), (2, 3), (6, 3))]
  assert shown == ["1.25", "-0.05", "2/3", "2"]


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "().__class__", "names.append", "(lambda: 1)()",
    "[x for x in (1,)]", "open('f')", "n[0]", "f'{n}'", "n := 1", "names(1)", "print"])
def test_only_the_allow_list_is_compiled(text):
  with pytest.raises(
      ValueError, match="Template t0: .*Correct the template, or leave it out with `rows`"):
    template(QUESTION.replace("#conditions:", f"#conditions:\n- {text}"))


@pytest.mark.parametrize("text", ["9**9**9", "'a' * 10", "n / 0", "ensure_int(n / 7)", "2 ** 0.5"])
def test_values_out_of_range_name_the_template(text):
  t = template(solution="#### {" + text + "}")
  with pytest.raises(ValueError, match=r"Template t0: .* fails for .*: \w+Error"):
    t.problem(t.defaults(), "x")


@pytest.mark.parametrize("old, new, message", [
    ("sample(names)", "sample(nams)", r"unknown name 'nams'. Did you mean 'names'\?"),
    ("sample(names)", "sampl(names)", r"unknown function 'sampl'"),
    ("range(2, 13, 2)", "range(13, 2)", "nothing to draw from"),
    ("range(2, 13, 2)", "range(0, 10**9)", "more than a million values"),
    ("frac_txt, frac_val = sample(f", "a, b, frac_txt, frac_val = sample(f",
     "do not give 4 values to 4 names"),
    ("{n, 6}", "{m, 6}", "slot {m,...}, but #init draws no 'm'"),
    ("{n, 6}", "{n}", "braces that are no"),
    ("#answer:", "#result:", "it lacks #init: or #answer:"),
    ("- $n = range(2, 13, 2)", "- $n range(2, 13, 2)", "is no assignment"),
    ("is_int(n *", "is_int(n * (", "cannot be read"),
])
def test_templates_that_cannot_be_read_are_named(old, new, message):
  question = QUESTION.replace(old, new)
  assert question != QUESTION
  with pytest.raises(ValueError, match=f"Template t0: .*{message}"):
    template(question)


def test_conditions_that_nothing_satisfies_end(tmp_path):
  paths = write(tmp_path, QUESTION.replace("- is_int(n * frac_val)", "- n > 100"))
  source = lib.gsm_symbolic(**paths, size=1, max_tries=500)
  with pytest.raises(
      ValueError, match="Template t0: the allowed number of draws satisfied none.*max_tries"):
    source[0]


def test_rows_are_pure_functions_of_seed_and_index(tmp_path):
  paths = write(tmp_path, count=3)
  source = lib.gsm_symbolic(**paths, size=20, seed=4, rows="1:")
  copy = pickle.loads(pickle.dumps(source))
  assert [source[i] for i in range(20)] == [copy[i] for i in reversed(range(20))][::-1]
  assert [source[i].metadata["template"] for i in range(3)] == ["t1", "t2", "t1"]
  other = lib.gsm_symbolic(**paths, size=20, seed=5, rows="1:")
  assert [other[i].prompt for i in range(20)] != [source[i].prompt for i in range(20)]
  with pytest.raises(IndexError):
    source[20]


def test_parts_are_disjoint(tmp_path):
  task = registry.load_task(
      "gsm_symbolic", write(tmp_path), dict(size=100, part="train"), dict(size=30, part="heldout"))
  assert len(task.train) == 100
  with pytest.raises(ValueError, match="have a prompt that is also held out"):
    registry.load_task(
        "gsm_symbolic", write(tmp_path), dict(size=50, seed=0), dict(size=50, seed=1))


@pytest.mark.parametrize("keywords, message", [
    (dict(size=0), "size must be at least 1"), (dict(part="test"), "part must be"),
    (dict(rows="5:"), "No rows are left")])
def test_bad_arguments(tmp_path, keywords, message):
  with pytest.raises(ValueError, match=message):
    lib.gsm_symbolic(**{**write(tmp_path), "size": 1, **keywords})


def test_the_real_templates(shared_data, record_property):
  words = lib.read_replacements(str(shared_data / "gsm_symbolic_replacements_eng.json"))
  with gzip.open(shared_data / "gsm_symbolic_templates_eng.jsonl.gz", "rt", encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
  same_answer = same_question = same_solution = 0
  checked = []
  for row in rows:
    t = lib.parse_template(row["id"], row["question_annotated"], row["answer_annotated"], words)
    original = t.problem(t.defaults(), "x")
    same_answer += original.reference == row["answer"].rpartition("####")[2].strip()
    same_question += original.prompt == row["question"].strip()
    same_solution += original.solution == row["answer"].strip()
    values, _ = t.draw(Draws("test", row["id"]), 1_000_000)
    problem = t.problem(values, "x")
    assert "{" not in problem.prompt and problem.reference
    # "#answer:" is a second, independent statement of the answer; two released templates have a
    # slip in it.
    if row["id"] not in ("eng-0024", "eng-0095"):
      assert t.answer(values) == problem.reference, row["id"]
    checked.append(row["id"])
  record_property("gsm_symbolic_templates_instantiated", len(checked))
  assert len(checked) == len(rows) == 100
  assert (same_answer, same_question) == (100, 100)
  assert same_solution >= 98  # The others show 9/2 and 1/2 where we show 4.5 and 0.5.
