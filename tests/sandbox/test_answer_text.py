"""Where the answer stands in a completion."""

import time

import pytest

from rl_reason.sandbox import answer_text


@pytest.mark.parametrize(
  "text, answer",
  [
    (r"\boxed{5} is wrong so \boxed{6}", "6"),
    (r"\boxed{3}. No, \boxed{4}", "4"),
    (r"\boxed{3} or rather \boxed{4}", "4"),
    (r"\boxed{3}, giving \boxed{4}", "4"),
    (r"\boxed{\frac12} = \boxed{0.5}", "0.5"),
    ("\\boxed{3}\n\nThe sum: \\boxed{4}", "4"),
    (r"\boxed{1} and \boxed{2}", "1, 2"),
    (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", "1, 2, 3"),
    (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
    (r"\boxed{4} \boxed{4}", "4"),
    (r"$y_1 = \boxed{a}$ and $y_2 = \boxed{b}$", "a, b"),
    (r"\boxed{\boxed{4}}", "4"),
    (r"\boxed{1} \boxed{2", "1"),
    ("7", None),
  ],
)
def test_boxes_that_belong_together(text, answer):
  assert answer_text.final_boxes(text) == answer


@pytest.mark.parametrize(
  "completion, text",
  [
    ("<answer>7</answer>", "7"),
    ("<answer> 7 </answer> ok", "7"),
    ("<answer>6</answer><answer>7</answer>", "7"),
    (r"\boxed{3}<answer>7</answer>", "7"),
    (r"<answer>\boxed{7}</answer>", r"\boxed{7}"),
    (r"<answer>6</answer> \boxed{7}", r"\boxed{7}"),
    ("<answer></answer>", None),
    ("<think>so 5</think>\n7", "7"),
    ("so 5</think>", "so 5</think>"),
    (r"\boxed{255}$. The final answer is $10{,}455$.", r"final answer is $10{,}455$."),
    ("", None),
    (r"7 \boxed{}", None),
  ],
)
def test_the_part_that_is_read(completion, text):
  found = answer_text.math_text(completion)
  assert found is None if text is None else found is not None and found.endswith(text)


@pytest.mark.parametrize(
  "text, answer",
  [
    ("The answer is 7.", "7"),
    ("the answer is: (3,4)", "(3,4)"),
    ("**Answer:** 7 apples", "7 apples"),
    ("# Answer\n7", "7"),
    ("#### -3", "-3"),
    ("Final answer: x = 7", "x = 7"),
    ("Answer: `7`", "7"),
    ("\u7b54\u6848\u662f7", "7"),
    ("Answer \\[ 9 \\]", "9"),
    ("The answer is $1$, $2$ and $3$.", "1, 2, 3"),
    ("The answer is $28$ percent.", r"28\%"),
    ("The answer is 2. No. The answer is 7. So", "7"),
    ("The answer is 3.5.", "3.5"),
    ("*7*", "7"),
    ("x^2+1", "x^2+1"),
    ("so it follows", None),
    ("", None),
    ("a\nb", None),
  ],
)
def test_what_is_stated(text, answer):
  assert answer_text.stated(text) == answer


def test_the_last_tag():
  assert answer_text.last_tagged("<a>1</a><a>2</a>", "a") == (8, "2")
  assert answer_text.last_tagged("<a>1</a>2</a>", "a") == (0, "1")
  assert answer_text.last_tagged("</a><a>", "a") is None


@pytest.mark.parametrize(
  "text",
  [
    "<answer>" * 100_000,
    "</answer>" * 100_000,
    r"\boxed{1}" * 50_000,
    r"\boxed{" * 100_000,
    "<answer>" * 50_000 + "</answer>" * 50_000,
    r"\boxed{1} and " * 50_000,
  ],
)
def test_reading_is_linear(text):
  start = time.process_time()
  answer_text.math_text(text)
  assert time.process_time() - start < 2
