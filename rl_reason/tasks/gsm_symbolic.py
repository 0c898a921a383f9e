"""Makes word problems from GSM-Symbolic templates: GSM8K questions with new names and numbers.

A template is a row with two texts:

- `question_annotated`: the question with {variable,default} slots, then "#init:" (how each variable
  is drawn), "#conditions:" (what a draw has to satisfy) and "#answer:";
- `answer_annotated`: the solution with {expression} slots and a last line "#### {expression}".

The expressions are data from a file, so they are compiled from their syntax tree by an allow-list
(rl_reason.tasks.template_expressions) and never given to Python. Numbers are exact integers and fractions: in floating point
0.29 * 100 falls short of 29 and a wrong answer results.

Source: Mirzadeh et al. 2024, arXiv:2410.05229.
"""

import ast
from collections.abc import Callable, Mapping
import dataclasses
from fractions import Fraction
import functools
import re
from typing import Any

from rl_reason.config import json_text, naming
from rl_reason.tasks import files
from rl_reason.tasks.draws import Draws, Generated, in_part
from rl_reason.tasks.template_expressions import (
  compile_expression,
  Expression,
  integers,
  simple,
  steps,
)
from rl_reason.types import Problem

_SLOT = re.compile(r"\{(\w+),\s*([^{}]+)\}")
# Functions that draw. They are known only as the whole right side of an #init line.
_DRAWS = ("sample", "sample_sequential", "range", "arange", "range_str")


@dataclasses.dataclass(frozen=True)
class GsmSymbolic(Generated):
  """Makes the rows of `gsm_symbolic`: row i instantiates template i modulo their number.

  templates: those to instantiate, in turn.
  seed: other seeds give other instances.
  part: "all", "train" or "heldout".
  max_tries: draws per row before giving up.
  """
  templates: tuple["Template", ...] = dataclasses.field(repr=False)
  seed: int
  part: str
  max_tries: int

  def row(self, index: int) -> Problem:
    template = self.templates[index % len(self.templates)]
    draws = Draws("gsm_symbolic", self.seed, self.part, index)
    # Draw until an instance is in the part. Draws that fail a template's conditions count, too.
    tries = self.max_tries
    while True:
      values, tries = template.draw(draws, tries)
      problem = template.problem(values, f"{template.id}-{self.part}-{index}")
      if in_part(problem.prompt, self.part):
        return problem


def gsm_symbolic(
    templates_path: str, replacements_path: str, *, size: int, seed: int = 0, part: str = "all",
    rows: str = "", max_tries: int = 1_000_000) -> GsmSymbolic:
  """Makes instances of GSM-Symbolic templates; row i depends on (seed, part, i) alone.

  Hold out templates or instances. Templates: `rows=":80"` and `rows="80:"` give new problems.
  Instances: `part="train"` and `part="heldout"` give new numbers in known problems; a hash of the
  question puts 1/8 of the instances in "heldout". On the released templates a row costs 2 ms on
  average and 0.1 s at worst, where few draws satisfy the conditions; eight times that for
  part="heldout".

  Args:
    templates_path: .jsonl or .jsonl.gz with columns id, question_annotated and answer_annotated.
    replacements_path: JSON object of the word lists that templates draw from (names, fruits, ...).
    size: number of rows, at least 1; templates take turns.
    seed: other seeds give other instances.
    part: "all", "train" or "heldout".
    rows: a slice of the templates, e.g. "0:80" or "80%:".
    max_tries: draws per row before giving up on a template's conditions.

  Returns: a source; a problem's solution ends in "#### <answer>" as in GSM8K, metadata holds
    `template` and `values`.
  Raises: FileNotFoundError; ValueError naming the template that cannot be read. Templates are never
    skipped: leave one out with `rows`. A row raises ValueError when max_tries draws satisfy no
    conditions.
  """
  if size < 1:
    raise ValueError(f"size must be at least 1, got {size}.")
  if part not in ("all", "train", "heldout"):
    raise ValueError(f"part must be 'all', 'train' or 'heldout', got {part!r}.")
  found = files.jsonl(
      templates_path, prompt="{question_annotated}", solution="{answer_annotated}", id="{id}",
      rows=rows)
  words = read_replacements(replacements_path)
  templates = tuple(parse_template(p.id, p.prompt, p.solution, words) for p in found.problems)
  return GsmSymbolic(size, templates, seed, part, max_tries)


def read_replacements(path: str) -> dict[str, list]:
  """Reads the word lists, by name. Raises: FileNotFoundError, ValueError."""
  try:
    with open(path, "rb") as file:
      words = json_text.parse(file.read())
  except ValueError as error:
    raise ValueError(
        f"replacements_path {path!r} is not JSON: {error}. Fetch it again.") from error
  if not isinstance(words, dict) or not all(isinstance(v, list) for v in words.values()):
    raise ValueError(
        f"replacements_path {path!r} must hold a JSON object of lists, as the GSM-Symbolic release"
        " has it.")
  return words


@dataclasses.dataclass(frozen=True)
class Template:
  """Holds one template. It pickles as its texts and is compiled once per process.

  id: the row's id.
  annotated: the row's question_annotated.
  solution: the row's answer_annotated.
  words: the replacement lists.
  """
  id: str
  annotated: str
  solution: str
  words: Mapping[str, list] = dataclasses.field(repr=False, hash=False)

  def __reduce__(self):  # Closures do not pickle.
    return Template, (self.id, self.annotated, self.solution, self.words)

  @functools.cached_property
  def parsed(self) -> "_Parsed":
    """Returns the template's compiled parts."""
    return _parse(self)

  def draw(self, draws: Draws, tries: int) -> tuple[dict[str, Any], int]:
    """Draws values that satisfy the conditions, by rejection.

    Args:
      draws: where random numbers come from.
      tries: draws that are left.

    Returns: (values by name, the tries left).
    Raises: ValueError when none are left.
    """
    while tries > 0:
      # One try: values as they are shown ("1/2") and as numbers, which expressions use.
      tries -= 1
      shown, numbers = {}, {}
      for line in self.parsed.lines:
        _assign(line, line.draw(draws, numbers), shown, numbers)
        # Conditions are checked as soon as their variables are known: most draws end early.
        if line.conditions and not self._satisfies(line.conditions, numbers):
          break
      else:  # No line broke off: the draw satisfies everything.
        return shown, tries
    raise ValueError(
        f"Template {self.id}: the allowed number of draws satisfied none of its conditions. Raise"
        " max_tries, or leave"
        " the template out with `rows`.")

  def defaults(self) -> dict[str, Any]:
    """Returns the original question's values.

    They are those in the slots and what goes with them (k_val = 3 for k_txt = "three").

    Raises: ValueError where no candidate of a line goes with the slots.
    """
    written = {name: text.strip() for name, text in _SLOT.findall(self.parsed.question)}
    shown, numbers = {}, {}
    for line in self.parsed.lines:
      known = {name: written[name] for name in line.names if name in written}
      # The slots give all of the line's values, or some of them: then one of its candidates fits.
      if len(known) == len(line.names):
        value = (tuple(map(_integer, known.values())) if len(known) > 1
                 else _integer(known[line.names[0]]))
      else:
        fits = [c for c in line.candidates(numbers) if all(
            _same(v, known[n]) for n, v in zip(line.names, _unpack(line, c)) if n in known)]
        if not fits:
          raise ValueError(
              f"Template {self.id}: no candidate of {line.text!r} goes with the defaults {known}.")
        value = fits[0]
      _assign(line, value, shown, numbers)
    return shown

  def problem(self, values: Mapping[str, Any], id: str) -> Problem:
    """Makes the problem of these values."""
    numbers = {name: as_number(value) for name, value in values.items()}
    question = _SLOT.sub(functools.partial(_fill_slot, values), self.parsed.question)
    solution = ""
    for piece in self.parsed.solution:
      if isinstance(piece, str):
        solution += piece
        continue
      text, expression = piece
      # A name alone is shown as drawn ("1/2"). <<Calculations>> and the final answer have no
      # thousands separators.
      value = values[text] if text in values else self._evaluate(text, expression, numbers)
      bare = "####" in solution or solution.count("<<") > solution.count(">>")
      solution += show(value) if bare else _in_sentence(value, solution)
    solution = solution.strip()
    return Problem(
        prompt=question, reference=solution.rpartition("####")[2].strip(), solution=solution, id=id,
        metadata={
            "template": self.id, "values": {name: show(value) for name, value in values.items()}})

  def answer(self, values: Mapping[str, Any]) -> str:
    """Evaluates "#answer:" for these values: what the solution's last line should say."""
    text, expression = self.parsed.answer
    return show(self._evaluate(
        text, expression, {name: as_number(value) for name, value in values.items()}))

  def _satisfies(self, conditions, numbers):
    for text, condition in conditions:
      if not self._evaluate(text, condition, numbers):
        return False
    return True

  def _evaluate(self, text, expression, numbers):
    try:
      return expression(numbers)
    except (ArithmeticError, TypeError, ValueError, IndexError, KeyError) as error:
      raise ValueError(
          f"Template {self.id}: {text!r} fails for {numbers}: {type(error).__name__}:"
          f" {error}.") from error


def parse_template(id: str, annotated: str, solution: str, words: Mapping[str, list]) -> Template:
  """Makes a checked template.

  Raises: ValueError naming the template and the part that cannot be read.
  """
  template = Template(id, annotated, solution, words)
  template.parsed  # Compiles it: errors are raised here, before anything is drawn.
  return template


def as_number(value: Any) -> Any:
  """Returns an exact number for a number or its text ("0.25", "3/4", "1,200").

  Anything else is returned as it is.
  """
  if isinstance(value, str) and re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+|/[1-9]\d*)?", value):
    return simple(Fraction(value.replace(",", "")))
  return value


def show(value: Any) -> str:
  """Writes a value: integers plain, finite decimals as decimals, other fractions as a/b."""
  if not isinstance(value, Fraction) or value.denominator == 1:
    return str(value)
  # A fraction is a finite decimal if its denominator has no prime factors but 2 and 5. The larger
  # of their powers is the number of decimal places.
  rest, places = value.denominator, 0
  for prime in (2, 5):
    power = 0
    while rest % prime == 0:
      rest, power = rest // prime, power + 1
    places = max(places, power)
  if rest != 1:
    return str(value)
  # Digits of the number without its point, with zeros before it, so that ".05" becomes "0.05".
  digits = str(abs(value.numerator) * 10 ** places // value.denominator).rjust(places + 1, "0")
  return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


@dataclasses.dataclass(frozen=True)
class _Line:
  """Holds one #init line.

  text: as the template writes it.
  names: the variables that it sets.
  draw: (draws, variables) -> a value, or one per name.
  candidates: variables -> all values that could be drawn.
  conditions: (text, expression) of those that can be checked once this line is drawn.
  """
  text: str
  names: tuple[str, ...]
  draw: Callable[[Draws, Mapping[str, Any]], Any]
  candidates: Callable[[Mapping[str, Any]], list]
  conditions: tuple[tuple[str, Expression], ...]


@dataclasses.dataclass(frozen=True)
class _Parsed:
  """Holds the compiled parts of a template.

  question: with its slots.
  lines: in the order of drawing (_plan).
  answer: text and expression of "#answer:".
  solution: text, and (source, expression) for each slot.
  """
  question: str
  lines: tuple[_Line, ...]
  answer: tuple[str, Expression]
  solution: tuple[Any, ...]


def _parse(template) -> _Parsed:
  """Compiles a template. Raises: ValueError that names the part which cannot be read."""
  def fail(what):
    raise ValueError(
        f"Template {template.id}: {what} Correct the template, or leave it out with `rows`.")

  def compile_text(text, names):
    try:
      return compile_expression(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, ValueError) as error:
      fail(f"{text.strip()!r} cannot be read: {error}.")

  # Split the text into its sections.
  question, found, rest = template.annotated.partition("#init:")
  init, answered, answer = rest.partition("#answer:")
  init, _, conditions = init.partition("#conditions:")
  if not found or not answered:
    fail("it lacks #init: or #answer:.")
  # Compile the #init lines, each with the variables of those before it.
  words = {name: template.words[name] for name in template.words}
  known = dict.fromkeys(words)
  lines = []
  for text in _items(init):
    left, equals, right = text.partition("=")
    names = tuple(name.strip().removeprefix("$") for name in left.split(","))
    if not equals or not all(name.isidentifier() for name in names):
      fail(f"the #init line {text!r} is no assignment.")
    try:
      draw, candidates = _compile_draw(
          ast.parse(right.strip(), mode="eval").body, known, words, len(names))
    except (SyntaxError, ValueError, TypeError) as error:
      fail(f"the #init line {text!r} cannot be read: {error}.")
    known.update(dict.fromkeys(names))
    lines.append(_Line(text, names, draw, candidates, ()))
  # Compile the conditions, and put everything into the order of drawing.
  variables = {name for line in lines for name in line.names}
  compiled = [(text, compile_text(text, variables)) for text in _items(conditions)]
  lines = _plan(lines, compiled)
  # Check the question's slots.
  for name, _ in _SLOT.findall(question):
    if name not in variables:
      fail(f"the question has a slot {{{name},...}}, but #init draws no {name!r}."
           f"{naming.did_you_mean(name, variables)}")
  if re.search(r"[{}]", _SLOT.sub("", question)):
    fail(f"the question has braces that are no {{variable,default}} slot: {question.strip()!r}.")
  # Compile the solution's slots: with a group in the pattern, every second piece is one.
  pieces = []
  for i, piece in enumerate(re.split(r"\{([^{}]*)\}", template.solution)):
    pieces.append((piece, compile_text(piece, variables)) if i % 2 else piece)
  if "####" not in template.solution:
    fail("its answer_annotated has no '####' line.")
  stated = (answer.strip(), _lazy(compile_text, answer, variables))
  return _Parsed(question.strip(), tuple(lines), stated, tuple(pieces))


def _plan(lines, conditions) -> list["_Line"]:
  """Orders the lines so that conditions fail early, each line with the conditions it completes.

  Conditions that need the fewest further draws go first. What no condition needs is drawn once, at
  the end. The result of rejection has the same distribution in any order.
  """
  needs = []  # Per line: itself and the lines it uses, in order.
  for i, line in enumerate(lines):
    uses = _names(line.text.partition("=")[2].strip())
    needs.append(
        sorted({k for j in range(i) if uses & set(lines[j].names) for k in needs[j]} | {i}))
  # Per condition: its text, itself, and the lines that it needs.
  waiting = [(text, condition,
              {k for i, line in enumerate(lines) if _names(text) & set(line.names)
               for k in needs[i]})
             for text, condition in conditions]
  planned, done = [], set()
  while waiting:
    waiting.sort(key=lambda item: len(item[2] - done))  # Stable: ties keep the template's order.
    text, condition, needed = waiting.pop(0)
    planned += [lines[k] for k in sorted(needed - done)]
    done |= needed
    if not planned:  # A condition on constants.
      planned, done = [lines[0]], {0}
    planned[-1] = dataclasses.replace(
        planned[-1], conditions=(*planned[-1].conditions, (text, condition)))
  return planned + [line for k, line in enumerate(lines) if k not in done]


def _names(text):
  """Returns the names in an expression."""
  return {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}


def _lazy(compile_text, text, names):
  """Compiles an expression when it is first evaluated.

  "#answer:" repeats the solution's last line and only `Template.answer` asks for it. Two released
  templates have a slip there (mult_var[1] for mult_var, a product with a text). The slip need not
  cost them their place.
  """
  return lambda variables: compile_text(text, names)(variables)


def _items(block) -> list[str]:
  """Lists the items of a section: one a line, after an optional "-"; "True" is no condition."""
  return [item for line in block.splitlines()
          if (item := line.strip().removeprefix("-").strip()) and item != "True"]


def _assign(line, value, shown, numbers):
  """Stores a line's value under its names, as it is shown and as a number."""
  for name, v in zip(line.names, _unpack(line, value)):
    shown[name] = v
    numbers[name] = v if type(v) is int else as_number(v)


def _unpack(line, value):
  """Returns one value per name of a line. Raises: ValueError where their numbers differ."""
  if len(line.names) == 1:
    return (value,)
  if not isinstance(value, (list, tuple)) or len(value) != len(line.names):
    raise ValueError(f"{line.text!r} gives {value!r} to {len(line.names)} names.")
  return value


def _integer(text):
  """Returns an integer for its text, and any other text as it is ("1/2" is shown so)."""
  number = as_number(text)
  return number if isinstance(number, int) else text


def _same(value, text):
  """Says whether a value and a text are the same number, or the same text."""
  return as_number(value) == as_number(text)


def _fill_slot(values, match):
  """Returns what stands in a slot of the question; re.sub calls it."""
  return _in_sentence(values[match.group(1)], match.string[:match.start()])


def _in_sentence(value, before):
  """Writes a value as it stands after `before`.

  Thousands are separated from 10,000 on, and a sentence begins with a capital.
  """
  text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else show(value)
  return text[:1].upper() + text[1:] if re.search(r"(^|[.!?]\s+|\n)$", before) else text


def _compile_draw(node, known, words, count):
  """Compiles the right side of an #init line into (draw, candidates).

  Args:
    node: its syntax tree.
    known: names that it may use.
    words: the replacement lists.
    count: number of names that it sets.

  Raises: ValueError, or TypeError for wrong arguments of a draw.
  """
  # An expression of earlier variables: nothing to draw, one candidate.
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
          and node.func.id in _DRAWS):
    expression = compile_expression(node, known)
    value = lambda variables: expression({**words, **variables})
    return (lambda draws, variables: value(variables)), (lambda variables: [value(variables)])
  # A draw.
  if node.keywords:
    raise ValueError(f"{node.func.id} takes no keyword arguments here")
  arguments = [compile_expression(a, words)(words) for a in node.args]  # Ranges and lists are constants.
  name = node.func.id
  if name == "sample" and len(arguments) == 2:
    items, number = arguments
    if number != count or not isinstance(items, (list, tuple)) or number > len(items):
      raise ValueError(f"{number} of {len(items)} items for {count} names")
    # Their selections are too many to list.
    return (lambda draws, variables: draws.sample(items, number)), (lambda variables: [])
  # All others choose one of a list of items.
  if name == "sample_sequential":
    items, number = arguments
    # Neighbours, round the end of the list.
    items = [[items[(i + j) % len(items)] for j in range(number)] for i in range(len(items))]
  elif name == "sample":
    (items,) = arguments
  elif name == "range":
    items = integers(*arguments)
  elif name == "arange":
    items = steps(*arguments)
  else:
    start, stop, step, numerals = arguments
    items = [(numerals[i - 1], i) for i in integers(start, stop, step) if 0 < i <= len(numerals)]
  if not items:
    raise ValueError("nothing to draw from")
  if count > 1 and any(not isinstance(item, (list, tuple)) or len(item) != count for item in items):
    raise ValueError(f"its draws do not give {count} values to {count} names")
  return (lambda draws, variables: draws.choice(items)), (lambda variables: items)
