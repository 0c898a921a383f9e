"""One way to write an answer."""

import time

import pytest

from rl_reason.sandbox import answer_form


@pytest.mark.parametrize(
  "written, plain",
  [
    ("\u20137", "-7"),
    ("\u00bd", r"\frac{1}{2}"),
    ("x\u00b2+1", "x^{2}+1"),
    ("\u221a2", r"\sqrt{2}"),
    ("\uff17", "7"),
    ("10\u207b\u00b3", "10^{-3}"),
    ("6\u00f72", r"6\div 2"),
    (r"\textcolor{red}{20}", "20"),
    (r"\color{blue}20", "20"),
    (r"\underline{20}", "20"),
    (r"\mathbf{\frac12}", r"\frac12"),
    (r"\hbox{20}", "20"),
    (r"\text{x = 20}", "x = 20"),
    (r"\text{9,500}", "9,500"),
    (r"\mathrm{e}^2", "e^2"),
    (r"\operatorname{e}^2", "e^2"),
    (r"5\ \text{m}", r"5 \text{m}"),
    (r"90\degree", r"90^{\circ}"),
    (r"90^{\text{o}}", r"90^{\circ}"),
    (r"\left(1,2\right)", "(1,2)"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\\frac{1}{2}", r"\frac{1}{2}"),
    ("7,", "7"),
    ("7 .", "7"),
    ("7~", "7"),
    (r"7\\", "7"),
    (":7", "7"),
    (r"\$7.", "7"),
    (r"7\quad\blacksquare", "7"),
    ("= 7", "7"),
    ("7!", "7!"),
    ("{7}", "7"),
    ("9 500", "9500"),
    ("9~500", "9500"),
    (r"11,\! 111", "11111"),
    ("1 1/2", r"1\frac{1}{2}"),
    ("2.5e3", r"2.5\times 10^{3}"),
    (r"1.25\text{e}6", r"1.25\times 10^{6}"),
    ("2.5 x 10^3", r"2.5\times 10^3"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"0.1\overline{6}", r"\frac{1}{6}"),
    ("0.(3)", r"\frac{1}{3}"),
    ("0.333...", r"\frac{1}{3}"),
    (r"1.\overline{9}", r"\frac{2}{1}"),
    ("sqrt(3)", r"\sqrt{3}"),
    (r"\sqrt(x+(1))", r"\sqrt{x+(1)}"),
    ("2**3**2", "2^{3^2}"),
    ("sin(x)", r"\sin (x)"),
    ("2pi", r"2\pi"),
    (r"x \leqslant 2", r"x \le  2"),
    ("x>=2", r"x\ge 2"),
  ],
)
def test_plain(written, plain):
  assert answer_form.plain(written) == plain


@pytest.mark.parametrize(
  "plain, value",
  [
    (r"5 \text{m/s}", "5"),
    (r"25\text{ cm}^2", "25"),
    ("12 apples", "12"),
    ("5 km/h", "5"),
    ("12 square meters", "12"),
    ("35cm", "35"),
    ("90^{\\circ}", "90"),
    ("7 years old", "7"),
    (r"3\text{rd}", "3"),
    ("\u00a35", "5"),
    ("2 xy", None),
    ("2m", None),
    ("7", None),
    (r"7\text{ or more}", None),
    (r"\text{not }7", None),
  ],
)
def test_units(plain, value):
  assert answer_form.without_units(plain) == value


@pytest.mark.parametrize(
  "text",
  [
    "a " * 1000,
    "5" + " word" * 400,
    "5 " + "a/b" * 600,
    "{" * 2000,
    "^" * 2000,
    "x^" * 1000,
    "1 " * 1000,
    "0." + "12" * 900 + "...",
    r"\text{" * 300,
    r"\mathbf{" * 200 + "}" * 200,
    "[" * 2000,
    "1,111" * 400,
  ],
)
def test_long_texts_are_written_in_time(text):
  start = time.process_time()
  answer_form.without_units(answer_form.plain(text))
  assert time.process_time() - start < 2
