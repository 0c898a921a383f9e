"""Shortens the signatures of the API reference: `Float[Array, "B T"]`, not jaxlib's own names."""

import re


def shortened(signature: str) -> str:
  """Returns a signature without the modules of its types and the fields of its sections."""
  # Strings stay as they are.
  parts = re.split(r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", signature)
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r"~?((?:[A-Za-z_]\w*\.)+)(?=[A-Za-z_])", _module, parts[i])
    # What has no name to show: factories and functions.
    parts[i] = re.sub(r"<(?:function )?(?:[^<>]|<\w+>)*>", "...", parts[i])
  return _without_fields("".join(parts))


def _module(match: re.Match[str]) -> str:
  """Our own modules stay, for links, and "~" hides them; of others nothing is left."""
  return f"~{match[1]}" if match[1].startswith("rl_reason.") else ""


def _without_fields(signature: str) -> str:
  """`= Credit(returns='total', ...)` becomes `= Credit()`: the class has an entry of its own."""
  out, rest = "", signature
  while found := re.search(r"= ((?:~[\w.]*\.)?[A-Z]\w*)\(", rest):
    depth, end = 1, found.end()
    while depth and end < len(rest):
      depth += {"(": 1, ")": -1}.get(rest[end], 0)
      end += 1
    out += rest[:found.start(1)] + found[1].rpartition(".")[2] + "()"
    rest = rest[end:]
  return out + rest


def process(app, what, name, obj, options, signature, return_annotation):
  """The handler of the event autodoc-process-signature."""
  if signature == "(*args, **kwargs)":  # A protocol's, which nobody makes objects of.
    return "", None
  return (signature and shortened(signature), return_annotation and shortened(return_annotation))


def setup(app):
  app.connect("autodoc-process-signature", process)
  return {"parallel_read_safe": True}
