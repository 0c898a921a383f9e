"""Compiles the expressions of GSM-Symbolic templates: a syntax tree -> a function of variables.

They are data from a file: what is not on the list of `compile_expression` is refused, and nothing
is ever given to Python. Numbers are exact integers and fractions.
"""

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction
import operator
from typing import Any

from rl_reason.config import naming

Expression = Callable[[Mapping[str, Any]], Any]  # Variables -> value.


def integers(start, stop, step=1):
  """Lists a range. Raises: ValueError for more than a million values, which would fill memory."""
  values = range(start, stop, step)
  if len(values) > 1_000_000:
    raise ValueError(f"range({start}, {stop}, {step}) has more than a million values")
  return list(values)


def steps(start, stop, step=1):
  """Lists start, start + step, ... up to and including stop.

  The numbers are exact: arange(1, 2, 0.25) has five values.
  """
  return [simple(start + Fraction(step) * i)
          for i in integers(0, int((stop - start) / Fraction(step)) + 1)]


def simple(value):
  """Returns an int for a fraction that is one: integers compute faster."""
  return int(value) if isinstance(value, Fraction) and value.denominator == 1 else value


def _numbers(function):
  """Returns `function` with a check that its arguments are numbers, and its result simple.

  Without the check Python would add texts and repeat lists.
  """
  def checked(*values):
    for value in values:
      if not isinstance(value, (int, Fraction)):
        raise TypeError(f"{value!r} is not a number")
    return simple(function(*values))
  return checked


def _power(base, exponent):
  """Computes a power. Raises: ValueError for one that could be too large to compute."""
  if not isinstance(exponent, int) or not 0 <= exponent <= 64 or abs(base) > 10 ** 9:
    raise ValueError(f"{base} ** {exponent} is out of range")
  return base ** exponent


def _divide(a, b):
  """Divides exactly."""
  if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
    return a // b  # Fractions take a microsecond.
  return Fraction(a) / Fraction(b)


def _ensure_int(value):
  """Returns an integer of equal value. Raises: ValueError where there is none."""
  if value != int(value):
    raise ValueError(f"{value} is not an integer")
  return int(value)


# Operators of expressions, by the type of their node.
_OPERATORS = {
    ast.Add: _numbers(operator.add), ast.Sub: _numbers(operator.sub),
    ast.Mult: _numbers(operator.mul),
    ast.Div: _numbers(_divide), ast.FloorDiv: _numbers(operator.floordiv),
    ast.Mod: _numbers(operator.mod),
    ast.Pow: _numbers(_power), ast.USub: _numbers(operator.neg), ast.UAdd: _numbers(operator.pos),
    ast.Not: operator.not_, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}
# Integers, nine operands in ten, take these without the checks: rejection evaluates conditions
# thousands of times a row.
_PLAIN = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
          ast.FloorDiv: operator.floordiv,
          ast.Mod: operator.mod, ast.Div: _divide}
# Functions of expressions, by name.
_FUNCTIONS = {
    "is_int": lambda value: type(value) is int or _numbers(lambda v: v.denominator == 1)(value),
    "divides": _numbers(lambda a, b: b != 0 and a % b == 0),
    "int": _numbers(int),
    "float": _numbers(lambda value: value),
    "round": _numbers(round),
    "ensure_int": _numbers(_ensure_int),
    # A text: templates use it to show a value as a/b.
    "Fraction": lambda value: str(_numbers(Fraction)(value)),
    "range_list": integers,
}


def compile_expression(node: ast.expr, names) -> Expression:
  """Compiles an expression into a function from variables to its value.

  Args:
    node: its syntax tree.
    names: variables that it may use.

  Raises: ValueError for all that is not on the list below.
  """
  # Constants and variables. A float is read as the decimal that is written.
  if isinstance(node, ast.Constant) and isinstance(node.value, (int, str)):
    value = node.value
    return lambda variables: value
  if isinstance(node, ast.Constant) and isinstance(node.value, float):
    value = simple(Fraction(repr(node.value)))
    return lambda variables: value
  if isinstance(node, ast.Name):
    name = node.id
    if name not in names:
      raise ValueError(f"unknown name {name!r}.{naming.did_you_mean(name, names)}")
    return lambda variables: variables[name]
  if isinstance(node, (ast.List, ast.Tuple)):
    items = [compile_expression(item, names) for item in node.elts]
    return lambda variables: [item(variables) for item in items]
  # Operators. Operands are compiled once, so that evaluating is calling functions.
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    function, left, right = (
        _OPERATORS[type(node.op)], compile_expression(node.left, names), compile_expression(node.right, names))
    plain = _PLAIN.get(type(node.op), function)
    def combine(variables):
      a, b = left(variables), right(variables)
      return plain(a, b) if type(a) is int and type(b) is int else function(a, b)
    return combine
  if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
    function, operand = _OPERATORS[type(node.op)], compile_expression(node.operand, names)
    return lambda variables: function(operand(variables))
  if isinstance(node, ast.BoolOp):
    every, parts = isinstance(node.op, ast.And), [compile_expression(part, names) for part in node.values]
    return lambda variables: (all if every else any)(part(variables) for part in parts)
  # Comparisons, of two terms or of a chain a < b < c.
  if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
    functions = [_OPERATORS[type(op)] for op in node.ops]
    terms = [compile_expression(term, names) for term in (node.left, *node.comparators)]
    if len(functions) == 1:
      function, left, right = functions[0], *terms
      return lambda variables: function(left(variables), right(variables))
    def compare(variables):
      values = [term(variables) for term in terms]
      return all(f(a, b) for f, a, b in zip(functions, values, values[1:]))
    return compare
  # Choices and calls of known functions.
  if isinstance(node, ast.IfExp):
    test, body, other = (compile_expression(part, names) for part in (node.test, node.body, node.orelse))
    return lambda variables: body(variables) if test(variables) else other(variables)
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
    if node.func.id not in _FUNCTIONS:
      raise ValueError(
          f"unknown function {node.func.id!r}.{naming.did_you_mean(node.func.id, _FUNCTIONS)}")
    function, arguments = _FUNCTIONS[node.func.id], [compile_expression(a, names) for a in node.args]
    if len(arguments) == 1:
      (argument,) = arguments
      return lambda variables: function(argument(variables))
    return lambda variables: function(*(argument(variables) for argument in arguments))
  raise ValueError(f"{ast.unparse(node)!r} uses {type(node).__name__}, which templates may not")
