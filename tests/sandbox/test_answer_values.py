r"""What is equal: cases of each kind, chosen by hand. An answer is the content of a \boxed{}."""

import gzip
import itertools
import json
import time

import pytest

from rl_reason.sandbox import answer_reading, answer_values, math_answers

EQUAL = {  # Kind -> (answer, reference).
  "several parts": [
    (r"0, \frac{5+\sqrt{61}}{18}, \frac{5-\sqrt{61}}{18}", r"x=0, \frac{5 \pm \sqrt{61}}{18}"),
    ("2, 1, 3", "1,2,3"),
    ("a=2,b=3", "b=3,a=2"),
    (r"\{3,1,2\}", "1,2,3"),
    ("21, 16 or 11", "11,16,21"),
    ("(x, y) = (5, 8) and (8, 5)", "(5, 8), (8, 5)"),
    ("(5,2),(7,2)", "p=5,q=2;p=7,q=2"),
    ("(x,y)=(1,2)", "x=1,y=2"),
    (r"\pm 3", "3,-3"),
  ],
  "numbers": [
    ("0.0833333333333333", r"\frac{1}{12}"),
    ("0.666667", "2/3"),
    ("0.6666666666666666", "2/3"),
    ("1.4142136", r"\sqrt2"),
    ("0.30000000000000004", "0.3"),
    (r"2.5\times10^{-3}", "0.0025"),
    ("1,200", "1200"),
    ("9 500", "9500"),
    ("1 1/2", "1.5"),
    (r"-2\frac14", "-2.25"),
    ("3+4=7", "7"),
  ],
  "percent": [("0.5", r"50\%"), ("50", r"50\%"), ("20 per cent", "20%")],
  "units": [
    (r"5~\mathrm{m/s}", "5"),
    ("12 apples", "12"),
    (r"5 \text{ meters}", r"5\text{ m}"),
    ("90", r"90^\circ"),
    (r"\$10 \text{ per hour}", "10"),
  ],
  "bases": [("204_5", "204_{5}"), ("12_{10}", "12")],
  "complex numbers": [
    ("i^2", "-1"),
    ("(1+i)^2", "2i"),
    ("|3+4i|", "5"),
    (r"e^{i\pi}", "-1"),
    (r"\sqrt{-4}", "2i"),
    (r"\frac1i", "-i"),
  ],
  "repeating decimals": [
    (r"0.1\overline{6}", r"\frac16"),
    (r"0.\overline{1331}", r"0.1331\overline{1331}"),
    ("0.333...", r"\frac13"),
  ],
  "functions": [
    ("x^2-1", "(x+1)(x-1)"),
    (r"\frac{\sqrt{x}}{x}", r"x^{-1/2}"),
    (r"\sqrt{\frac1n}", r"\frac{1}{\sqrt n}"),
    (r"\cos 2x", r"1-2\sin^2 x"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^n k"),
    ("sin(x)", r"\sin x"),
    (r"\sqrt{x^2}", "|x|"),
    (r"1-\frac1e", r"1-\frac{1}{\mathrm{e}}"),
  ],
  "equations": [
    ("y=2x+1", "2x-y+1=0"),
    ("x=3", "3"),
    ("f(x)=2x", "2x"),
    ("x^2/16+y^2/12=1/4", "x^2/4+y^2/3=1"),
    (r"7:32", "S_{MBCN}:S=7:32"),
  ],
  "inequalities": [
    ("0 < x < 12.5", "(0, 12.5)"),
    (r"(-\infty, 3)", "x<3"),
    ("-x > -1", "x < 1"),
    ("x \\ge 2", "\\ge 2"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3"),
    ("5 \\ge x", "x \\le 5"),
  ],
  "intervals": [
    ("]0,1[", "(0,1)"),
    ("[0,1[", "[0,1)"),
    (r"x\in(0,1)", "(0,1)"),
    (r"(0,1)\cup(-1,0)", r"(-1,0)\cup(0,1)"),
  ],
  "dots": [(r"1,2,\dots,n", r"1,2,\ldots,n"), (r"1+2+\cdots+n", r"1+2+\ldots+n")],
  "ratios and times": [("2:4", "1:2"), ("10{:}45", "10:45"), ("10:45 AM", r"10:45 \text{ a.m.}")],
  "words": [
    (r"\text{no}", r"\text{No}"),
    ("undefined", r"\text{undefined}"),
    (r"\textbf{(C)}", "C"),
    ("no solution", "No solution"),
  ],
  "matrices": [
    (r"\frac{1}{2}\begin{pmatrix}2\\4\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"),
  ],
}
DIFFERENT = {
  "several parts": [
    ("0", r"x=0, \frac{5 \pm \sqrt{61}}{18}"),
    (r"\frac{5 + \sqrt{61}}{18}", r"\frac{5 \pm \sqrt{61}}{18}"),
    ("1,2,3", "1,2,3,4"),
    ("a=3,b=2", "a=2,b=3"),
    ("2,1", "(1,2)"),
    (r"7\text{ or }8", "7"),
    (r"\forall x>0, f(x)=0", "f(x)=0"),
    ("y=1,x=2", "(2,1)"),
    ("7, \\text{not }8", "7"),
  ],
  "small numbers": [
    (r"1.6\times10^{-19}", r"6.63\times10^{-34}"),
    ("0.0", "10^{-10}"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
    ("x+10^{-30}", "x"),
    ("10^{-9}x", "10^{-8}x"),
    ("e^{-50}", "e^{-51}"),
    ("(1,10^{-20})", r"(1,2\cdot10^{-20})"),
    (r"\sin(10^{-20})", "0"),
    (r"\frac{2^{2005}+1}{3\cdot2^{2006}}", r"\frac{2^{2005}}{3\cdot2^{2006}}"),
  ],
  "near numbers": [
    ("2.0000001", "2.0"),
    ("0.99999999", "1"),
    (r"\frac{3333333}{10000000}", r"\frac13"),
    ("0.333", r"\frac13"),
    (r"\frac{22}{7}", r"\pi"),
    ("2^{100}+1", "2^{100}"),
    ("0.3333", r"0.\overline{3}"),
  ],
  "percent": [(r"50\%", "0.05"), (r"0.5\%", r"50\%"), ("28", "0.28")],
  "sides of equations": [
    ("x+y=8", "8"),
    (r"\le 8", "8"),
    ("1=2", "2"),
    ("3=4=5=7", "5"),
    ("2x=8", "8"),
    (r"7\neq 8", "7"),
    ("y<x", "x<y"),
    ("x=1", "y=1"),
    ("11a+c", "7=11a+c"),
  ],
  "bases": [("204", "204_5"), ("204_6", "204_5"), ("10_2", "10_{10}"), ("5", "101_2")],
  "complex numbers": [("(2,3)", "2+3i"), ("2-3i", "2+3i"), ("5i", "5")],
  "functions": [
    ("|x|", "x"),
    ("2x", "2y"),
    ("a-b", "b-a"),
    ("2^n", "n^2"),
    (r"1+\frac1{\mathrm e}", r"1-\frac1{\mathrm e}"),
    ("x^2+1", "x^2+2x+1"),
  ],
  "inequalities": [("x \\le 2", "x<2"), ("(1,2)", "1 \\le x < 2"), ("x>1", "x<1")],
  "intervals": [("(0,1)", "[0,1]"), ("(0, 1.5)", "D = (0, 1)")],
  "dots": [
    (r"1,3,5,\ldots,2n-1", r"1,2,\ldots,n"),
    ("n", r"1,2,\ldots,n"),
    (r"1:4:9:\ldots", r"1:2:3:\ldots"),
  ],
  "ratios and times": [
    ("1:00", "12:00"),
    ("3:2", "2:3"),
    (r"12:30\text{ p.m.}", r"12:30\text{ a.m.}"),
  ],
  "words": [(r"\text{not }7", "7"), (r"\text{odd}", r"\text{even}"), ("7!", "7"), ("0/0", "7")],
}
PAIRS = [
  (kind, *pair, equal)
  for table, equal in ((EQUAL, True), (DIFFERENT, False))
  for kind, row in table.items()
  for pair in row
]


@pytest.mark.parametrize("kind, answer, reference, equal", PAIRS)
def test_equality(kind, answer, reference, equal):
  assert math_answers.check_math((rf"\boxed{{{answer}}}", reference)) is equal


@pytest.mark.parametrize(
  "text, reference, equal",
  [
    ("The answer is x^2+1.", "x^2+1", True),
    ("The answer is 2*sqrt(3).", r"2\sqrt3", True),
    ("The answer is B.", "B", True),
    ("the answer is: (3,4)", "(3,4)", True),
    ("The answer is 72, in total, so she earns that much.", "72", True),
    ("So the answer is 3 and not 4.", "3", True),
    ("The answer is not 7.", "7", False),
    ("it is 1,000.", "1000", True),
    ("Answer $ \n 9 \n $", "9", False),
    ("Therefore $x \\geq 5$ holds.", "x \\ge 5", True),
  ],
)
def test_answers_in_prose(text, reference, equal):
  assert math_answers.check_math((text, reference)) is equal


@pytest.mark.parametrize(
  "reference",
  [
    "",
    " ",
    r"\boxed{}",
    r"\frac{1}{",
    "???",
    "It depends on the weather.",
    r"2, \frac{1}{",
    "3, it depends on who asks whom",
  ],
)
def test_references_that_cannot_be_read_whole_are_refused(reference):
  assert isinstance(math_answers.check_math((None, reference)), str)


def test_statements_are_read():
  answer = answer_reading.read(r"x = 1, y \in (0, 2]")
  assert [s.relations for s in answer.statements] == [("=",), (r"\in",)]
  assert answer.statements[1].value.group.brackets == ("(", "]")
  assert answer_reading.read("1, 2, and 3").key == "1,2,3"


@pytest.mark.parametrize(
  "answer",
  [
    "1+" * 900 + "1",
    "x" * 1900,
    "(" * 900 + "1" + ")" * 900,
    "1," * 900 + "1",
    r"\pm 1" * 300,
    "=".join("1" * 900),
    "0<" * 600 + "1",
    r"\sqrt{" * 200 + "2" + "}" * 200,
    r"\{" * 600,
    "]0,1[" * 300,
  ],
)
def test_long_answers_are_read_in_time(answer):
  start = time.process_time()
  read = answer_reading.read(answer)
  assert read.key is not None
  assert time.process_time() - start < 2


# --- MATH-500


@pytest.fixture
def references(shared_data):
  with gzip.open(shared_data / "math500.jsonl.gz", "rt", encoding="utf-8") as f:
    answers = [json.loads(line)["answer"] for line in f]
  return list(dict.fromkeys(a for a in answers if a is not None))


def test_real_references_are_equal_to_themselves(references):
  assert len(references) > 200
  unequal = [r for r in references if math_answers.check_math((rf"\boxed{{{r}}}", r)) is not True]
  assert unequal == []


@pytest.mark.slow
def test_real_references_are_not_equal_to_others(references):
  read = {r: answer_reading.read(r) for r in references}
  equal = {
    frozenset((a, b))
    for a, b in itertools.permutations(references, 2)
    if answer_values.equal(read[a], read[b])
  }
  # They have the same value: a unit or a name is all that differs.
  assert equal == {
    frozenset(pair)
    for pair in (
      ("5", "x=5"),
      ("120", r"120^\circ"),
      ("36", r"36^\circ"),
      ("30", r"30^\circ"),
      ("15", r"15\mbox{ cm}^2"),
    )
  }
