"""Turns the library's docstrings, which are plain text, into reStructuredText.

The docstrings follow a few habits and know no markup:

    a first line, then paragraphs
        what is indented by four or more is shown as it stands: formulas, commands, configs
    name: what the field means, one field a line; its further lines are indented
    Args:
      name: what the argument means.
    Returns: ...     Raises: ...     Source: ...     Example: ...

All other text is escaped, so that no `|`, `*` or `_` of a formula is taken for markup and no
docstring can break the build.
"""

import re

SECTIONS = ("Args", "Returns", "Raises", "Source", "Example", "Yields")
TITLES = {"Args": "Arguments"}
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):(?:\s+(.*))?$")
_FIELD = re.compile(r"(\*{0,2}[a-z_][\w.]*(?:, \*{0,2}[a-z_][\w.]*)*): (\S.*)$")
_ITEM = re.compile(r"[-*] (\S.*)$")
_SPECIAL = re.compile(
    r"(?P<code>`[^`\n]+`)|(?P<url>https?://[^\s,;)]+[^\s,;).])|(?P<arxiv>arXiv:\d{4}\.\d{4,5})"
    r"|(?P<escape>[\\*`|_<>\[\]])")


def escaped(text: str) -> str:
  """Returns text in which only `code`, addresses and arXiv numbers are markup."""
  def replace(match):
    if match["code"]:
      code = match["code"][1:-1].strip()
      # A literal must not touch the letters around it: an empty escape stands between them.
      return rf"\ ``{code}``\ " if code and not code.endswith("\\") else "\\`" + code + "\\`"
    if match["url"]:
      return match["url"]
    if match["arxiv"]:
      number = match["arxiv"].removeprefix("arXiv:")
      return rf"\ `arXiv:{number} <https://arxiv.org/abs/{number}>`__\ "
    return "\\" + match["escape"]
  text = _SPECIAL.sub(replace, " ".join(text.split()))
  # The first character must not make the line a list, a table, a directive or a comment.
  if text and not text.startswith("\\ ") and (not text[0].isalnum() and text[0] not in "\\h"
                                              or re.match(r"\(?(\d+|[A-Za-z#]|[ivxlcdmIVXLCDM]+)[.)]( |$)", text)):
    text = "\\" + text
  return text


def to_rst(lines: list[str]) -> list[str]:
  """Returns a docstring's lines, which are dedented, as reStructuredText."""
  out: list[str] = []
  text: list[str] = []  # Of the paragraph, field or list item that is being read.
  prefix, field_indent = "", None  # What the collected text starts with; the indent of an open field.

  def flush():
    nonlocal prefix
    if text:
      out.extend([prefix + escaped(" ".join(text)), ""])
    text.clear()
    prefix = ""

  in_args, index = False, 0
  while index < len(lines):
    line = lines[index].rstrip()
    stripped = line.strip()
    indent = len(line) - len(line.lstrip())
    index += 1
    if not stripped:
      flush()
      field_indent = None
      continue
    section = _SECTION.match(line)
    if section:
      flush()
      in_args, field_indent = not section[2], None
      out.extend([f"**{TITLES.get(section[1], section[1])}**", ""])
      if section[2]:
        text.append(section[2])
        field_indent = 0  # Its further lines are indented and are no formula.
      continue
    if indent == 0:
      in_args = False
    open_field = field_indent is not None and indent > field_indent
    field = _FIELD.match(stripped)
    if field and (indent == 0 or in_args) and not open_field:
      flush()
      names = ", ".join(f"``{name}``" for name in field[1].split(", "))
      out_prefix = f"- {names}: "
      text.append(field[2])
      prefix, field_indent = out_prefix, indent
      continue
    if open_field:
      text.append(stripped)
      continue
    item = _ITEM.match(stripped)
    if item and indent <= 2:
      flush()
      prefix, field_indent = "- ", indent
      text.append(item[1])
      continue
    if indent >= 4:
      # A block that is shown as it stands: up to the next line that is indented less.
      flush()
      block = [line]
      while index < len(lines) and (not lines[index].strip() or _indent(lines[index]) >= 4):
        block.append(lines[index].rstrip())
        index += 1
      while not block[-1]:
        block.pop()
      margin = min(_indent(b) for b in block if b)
      out.extend([".. code-block:: none", "", *("   " + b[margin:] if b else "" for b in block), ""])
      field_indent = None
      continue
    field_indent = None
    text.append(stripped)
  flush()
  return _joined_lists(out)


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def _joined_lists(lines: list[str]) -> list[str]:
  """Leaves out the blank lines between the items of a list, which would set them apart."""
  out: list[str] = []
  for i, line in enumerate(lines):
    between = not line and 0 < i < len(lines) - 1
    if between and lines[i - 1].startswith("- ") and lines[i + 1].startswith("- "):
      continue
    out.append(line)
  return out


def process(app, what, name, obj, options, lines):
  """Rewrites a docstring in place: the handler of the event autodoc-process-docstring."""
  lines[:] = to_rst(list(lines))


def setup(app):
  app.connect("autodoc-process-docstring", process)
  return {"parallel_read_safe": True}
