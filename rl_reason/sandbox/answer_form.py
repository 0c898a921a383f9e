r"""Writes an answer in one way, in LaTeX that math-verify's parser reads.

    plain       "\textcolor{red}{–½}." -> "-\frac{1}{2}"
    without_units    "5~\mathrm{m/s}" -> "5"

Everything here is text to text, and keeps the answer's value. It runs in workers, on texts of at
most some thousand characters.
"""

from __future__ import annotations

from fractions import Fraction
import re
import unicodedata

from rl_reason.sandbox.answer_text import THIN_SPACE

# --- Typography

_SYMBOLS = {
  "\u2212": "-",
  "\u2010": "-",
  "\u2011": "-",
  "\u2012": "-",
  "\u2013": "-",
  "\u2014": "-",
  "\ufe63": "-",
  "\uff0d": "-",
  "\u00d7": r"\times ",
  "\u00b7": r"\cdot ",
  "\u22c5": r"\cdot ",
  "\u2217": "*",
  "\u00f7": r"\div ",
  "\u2215": "/",
  "\u2044": "/",
  "\u2264": r"\le ",
  "\u2a7d": r"\le ",
  "\u2265": r"\ge ",
  "\u2a7e": r"\ge ",
  "\u2260": r"\ne ",
  "\u2248": r"\approx ",
  "\u00b1": r"\pm ",
  "\u2213": r"\mp ",
  "\u221e": r"\infty ",
  "\u222a": r"\cup ",
  "\u2229": r"\cap ",
  "\u2208": r"\in ",
  "\u2205": r"\emptyset ",
  "\u2200": r"\forall ",
  "\u2220": r"\angle ",
  "\u25b3": r"\triangle ",
  "\u2032": "'",
  "\u2026": r"\ldots ",
  "\u22ef": r"\ldots ",
  "\u211d": r"\mathbb{R}",
  "\u2124": r"\mathbb{Z}",
  "\u2115": r"\mathbb{N}",
  "\u211a": r"\mathbb{Q}",
  "\u2102": r"\mathbb{C}",
  "\u222b": r"\int ",
  "\u2211": r"\sum ",
  "\u27e8": r"\langle ",
  "\u27e9": r"\rangle ",
  "\u00b0": r"^{\circ}",
  "\u00ba": r"^{\circ}",
  "\u2218": r"\circ ",
  "\u2329": r"\langle ",
  "\u232a": r"\rangle ",
  "\u2019": "'",
  "\u00a0": " ",
  "\u2009": " ",
  "\u202f": " ",
  "\u3001": ",",
  "\uff0c": ", ",
  "\uff1a": ":",
  "\u3002": ".",
  "\u2061": "",
  "\u200b": "",
}
_GREEK = {
  chr(code): "\\" + name + " "
  for code, name in zip(
    range(0x3B1, 0x3CA),
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho"
    " varsigma sigma tau upsilon phi chi psi omega".split(),
    strict=True,
  )
  if name != "o"
}
_GREEK |= {
  "\u0394": r"\Delta ",
  "\u03a9": r"\Omega ",
  "\u03a3": r"\Sigma ",
  "\u03a0": r"\Pi ",
  "\u0398": r"\Theta ",
  "\u039b": r"\Lambda ",
  "\u03a6": r"\Phi ",
  "\u0393": r"\Gamma ",
}
_TYPOGRAPHY = str.maketrans(_SYMBOLS | _GREEK)
_RAISED = re.compile(
  "[\u2070\u00b9\u00b2\u00b3\u2074-\u207f]+|[\u2080-\u208e]+|[\u00bc-\u00be\u2150-\u215e]"
)
_ROOT = re.compile("([\u221a\u221b\u221c])\\s*(\\(|[0-9]+(?:\\.[0-9]+)?|\\\\?[A-Za-z]+)?")


def _ascii(text: str) -> str:
  """Writes typographic signs as LaTeX: U+2212 as a minus, superscripts as ^{...}, roots."""
  if text.isascii():
    return text
  text = _RAISED.sub(_raised, text)
  text = _ROOT.sub(_root, text)
  return unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY)).translate(_TYPOGRAPHY)


def _raised(match: re.Match) -> str:
  run = match.group()
  plain = unicodedata.normalize("NFKC", run).replace("\u2212", "-")
  if "\u2044" in plain:
    return r"\frac{" + plain.replace("\u2044", "}{") + "}"
  return ("_{" if run[0] in map(chr, range(0x2080, 0x208F)) else "^{") + plain + "}"


def _root(match: re.Match) -> str:
  root = {"\u221a": r"\sqrt", "\u221b": r"\sqrt[3]", "\u221c": r"\sqrt[4]"}[match[1]]
  under = match[2] or ""
  # A parenthesis stays open for `_function_calls`, which finds its end.
  return root + (under if under in ("", "(") else "{" + under + "}")


# --- LaTeX


_BRACED = r"\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}"
_STYLES = re.compile(
  r"\\(?:mathbf|mathit|mathsf|mathtt|mathnormal|bm|boldsymbol|pmb|underline|emph|uline|mathord"
  r"|ensuremath|cancel|fbox|boxed|textcolor\s*(?:\[\w+\])?\s*\{[^{}]*\}"
  r"|colorbox\s*\{[^{}]*\})\s*" + _BRACED
)
_UPRIGHT = re.compile(
  r"\\(?:mathrm|text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|operatorname\*?"
  r"|rm|bf)\s*" + _BRACED
)
_SWITCHES = re.compile(
  r"\\(?:displaystyle|textstyle|scriptstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge"
  r"|bfseries|boldmath|limits|nolimits|color\s*\{[^{}]*\}|[hv]space\*?\s*\{[^{}]*\}"
  r"|(?:tag\*?|label|[hv]?phantom)\s*\{[^{}]*\}|rm|bf|it)"
  r"(?![A-Za-z])"
)
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?=\s*(?:[\[\]()|.<>/]|\\[{}|a-z]))\s*")
_SPACES = re.compile(
  r"\\q?quad|\\(?:enspace|thinspace|medspace|space)(?![A-Za-z])"
  r"|\\[,;:!> ]|~|\\\n|[\t\n\r]"
)
_ENDS = re.compile(
  r"(?:[\s.,;:?]|\\{1,2}(?=\s*$)|\\(?:blacksquare|square|qed|Box|checkmark|textbackslash|dagger)"
  r"(?![A-Za-z])(?:\{\})?)+$"
)
_FUNCTIONS = (
  "arcsin|arccos|arctan|arcsec|arccsc|arccot|sinh|cosh|tanh|coth|sin|cos|tan|sec|csc"
  "|cot|log|ln|exp|lim|max|min|gcd|lcm|det|sgn"
)
GREEK_NAMES = (
  "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|sigma|phi|omega|infinity|infty|pi"
  "|rho|tau|zeta|xi|psi"
)
_BARE = re.compile(
  rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![a-z])|(?<![A-Za-z\\])({GREEK_NAMES})(?![A-Za-z])"
  rf"|(?<![A-Za-z\\])(sqrt)(?=\s*[({{\d])|(?<=\d)(pi)(?![A-Za-z])"
)


def plain(text: str) -> str:
  r"""Writes an answer in one way: without style, signs as LaTeX, repeating decimals as fractions.

  Word stays as \text{...}; so do units (see `without_units`).
  """
  # "\frac" read with an escape by whatever wrote the data.
  text = re.sub(r"\\?\f(?=rac)", r"\\f", text)
  text = THIN_SPACE.sub("", _ascii(text))
  # Models trained on JSON escape twice. In matrices \\ ends a row.
  if r"\begin" not in text:
    text = re.sub(r"\\\\(?=[A-Za-z{}%$,;!])", r"\\", text)
  text = re.sub(r"\\begin\{(?:array|matrix)\}(?:\{[^{}]*\})?", r"\\begin{matrix}", text)
  text = text.replace(r"\end{array}", r"\end{matrix}")
  text = re.sub(
    r"\\begin\{(align|aligned|equation|gather)\*?\}|\\end\{(align|aligned|equation|gather)\*?\}",
    "",
    text,
  )
  text = re.sub(r"\\\$\s*=", r"\\text{dollars} =", text)
  text = text.replace(r"\$", "").replace("$", "").replace("\\(", " ").replace("\\)", " ")
  text = re.sub(r"^\s*\\\[|\\\]\s*$", "", text)
  text = _unwrapped(_SWITCHES.sub("", _SIZES.sub("", text)))
  for opening, kind, closing in ((r"\[", "b", r"\]"), (r"\(", "p", r"\)"), (r"\|", "v", r"\|")):
    text = re.sub(opening + r"\s*\\begin\{matrix\}", rf"\\begin{{{kind}matrix}}", text)
    text = re.sub(r"\\end\{matrix\}\s*" + closing, rf"\\end{{{kind}matrix}}", text)
  text = re.sub(r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac", text)
  text = _SPACES.sub(" ", text).replace("{,}", ",").replace("{:}", ":")
  text = _operators(text)
  text = _digits(text)
  return trimmed(text)


# "for all x" at the end restricts nothing, as "for all x>0" does.
_FOR_ALL = re.compile(
  r"[\s,]*(?:\\text\{\s*for (?:all|every|any)(?: real)?(?: numbers?)?\s*\}|\\forall)\s*[a-z]"
  r"(?:\s*\\in\s*\\mathbb\{R\})?$"
)


def trimmed(text: str) -> str:
  """Drops marks at the answer's ends, and braces around all of it."""
  while True:
    before = text
    text = _ENDS.sub("", text.strip()).lstrip(": ")
    text = re.sub(r"^(?:=(?!=)|\\implies|\\Rightarrow|\\therefore)\s*", "", text)
    text = re.sub(r"\\text\{[\s.,;:]*\}", "", text)
    text = re.sub(r"^\\text\{[^{}]*(?:answer|result|value) (?:is|equals):?\s*\}", "", text)
    text = _FOR_ALL.sub("", text)
    inner = re.fullmatch(_BRACED, text)
    if inner is not None:
      text = inner[1]
    if text == before:
      return text


def _unwrapped(text: str) -> str:
  r"""Takes off styles, and \text{} from what is no word: \text{20}, \mathrm{e}."""
  # \mathrm e
  text = re.sub(
    r"\\(?:math(?:rm|bf|it)|text|operatorname|boldsymbol|bm)\s+([A-Za-z0-9])(?![A-Za-z])",
    r"\1",
    text,
  )
  for _ in range(4):  # Styles inside styles.
    before = text
    text = _STYLES.sub(lambda m: m[1] if len(m[1]) == 1 else "{" + m[1] + "}", text)
    text = _UPRIGHT.sub(_upright, text)
    # \underline{20} is {20} now.
    text = re.sub(r"(?<![\\}\]A-Za-z^_0-9])\{(-?[0-9.,]+)\}(?![{\w])", r"\1", text)
    if text == before:
      break
  return text


_CONNECTIVE = re.compile(r"\s*(,?)\s*(and|or)\s*(,?)\s*", re.IGNORECASE)
_NAMES = re.compile(rf"(?:{_FUNCTIONS}|{GREEK_NAMES}|arcsinh|arccosh|arctanh)")


# A number, or another unit.
_AFTER_VALUE = re.compile(r"[0-9})](?:\\[,;: ]|~|\s|\\cdot|/)*$")


def _upright(match: re.Match) -> str:
  content = match[1]
  inner = content.strip()
  before = match.string[: match.start()].rstrip()
  if _CONNECTIVE.fullmatch(content):
    return f" {inner.strip(', ').lower()} "
  if _NAMES.fullmatch(inner) and r"\text" not in match.group():
    return "\\" + inner + " "
  if inner in ("o", "circ", r"\circ") and before.endswith(("^", "^{")):
    return r"\circ"
  if re.fullmatch(r"[A-Za-z]", inner):
    # 5 \mathrm{m} has a unit, \mathrm{e}, \mathrm{i} are constants.
    is_unit = inner not in "eidx" and _AFTER_VALUE.search(match.string[: match.start()])
    return rf"\text{{{inner}}}" if is_unit else inner
  # \mathrm{m\,s^{-1}}
  if (
    "^" in inner
    and re.fullmatch(r"(?:[A-Za-z]|\\[,; ]|\s|\^\{?-?[0-9]\}?)+", inner)
    and (_AFTER_VALUE.search(match.string[: match.start()]))
  ):
    return rf"\text{{{re.sub('[{}]', '', inner)}}}"
  if not re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", inner)):
    return content if inner else " "
  # \text{x = 20}, \text{9,500}
  if re.search(r"[=<>]", inner) and not re.search(r"[A-Za-z]{2}", inner.split("=")[-1]):
    return content
  number = re.match(r"-?\$?[0-9][0-9.,]*(?=\s)", inner)
  if number:
    return number[0] + rf"\text{{{inner[number.end() :]}}}"
  if match.group().startswith((r"\mathrm", r"\operatorname")) and re.search(r"[\^_{\\]", inner):
    return content
  return rf"\text{{{content}}}"


_REPEATING = re.compile(
  r"(?<![0-9.])([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))"
  r"(?:[0-9]*\\dot\{([0-9])\})?|\(([0-9]+)\))(?![0-9])"
)
_DOTTED = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]*?)([0-9]{1,6}?)(\3{1,})(?:\.\.\.|\\[lc]?dots)")
_SCIENTIFIC = re.compile(
  r"(?<![A-Za-z_^\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s?[eE]\s?([-+]?[0-9]{1,4})(?![0-9.])"
)


def _digits(text: str) -> str:
  """Writes numbers in one way: 9 500, 2.5e3, 1 1/2, 0.1 with 6 repeating."""
  text = re.sub(
    r"(?<![0-9.,^_}])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9])", lambda m: m[1].replace(" ", ""), text
  )
  text = _REPEATING.sub(_repeating, text)
  text = _DOTTED.sub(_dotted, text)
  text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
  # 1 1/2
  return re.sub(
    r"(?<![0-9.,/^_{])([0-9]+) ([0-9]+)\s?/\s?([0-9]+)(?![0-9.])", r"\1\\frac{\2}{\3}", text
  )


def _fraction(whole: str, fixed: str, period: str) -> str:
  value = (
    Fraction(int(whole + fixed or "0")) + Fraction(int(period), 10 ** len(period) - 1)
  ) / 10 ** len(fixed)
  return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _repeating(match: re.Match) -> str:
  whole, fixed = match[1], match[2]
  period = match[3] or match[4] or match[6]
  return _fraction(whole, fixed, period)


def _dotted(match: re.Match) -> str:
  period = match[3]
  # 0.333..., 0.1212...: one digit three times or more digits twice.
  if len(period) == 1 and len(match[4]) < 2:
    return match.group()
  return _fraction(match[1], match[2], period)


def _operators(text: str) -> str:
  """Writes operators in one way: >=, **, sqrt(3), sin x, degrees, a product's x."""
  text = re.sub(r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=|=<", r"\\le ", text)
  text = re.sub(r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>=|=>", r"\\ge ", text)
  text = re.sub(r"\\neq(?![A-Za-z])|!=|\\not\s*=", r"\\ne ", text)
  text = re.sub(r"\\lt(?![A-Za-z])", "<", re.sub(r"\\gt(?![A-Za-z])", ">", text))
  text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])", r"^{\\circ}", text)
  text = re.sub(r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset ", text)
  text = re.sub(r"\\(?:dots|cdots|dotsc|dotsb|ldots)(?![A-Za-z])|\.\.\.", r"\\ldots ", text)
  text = re.sub(r"\\(?:lbrace|\{)", r"\\{", re.sub(r"\\(?:rbrace|\})", r"\\}", text))
  text = re.sub(r"\\(?:imath|i)(?![A-Za-z])", "i", text)
  text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10} ", text)
  text = re.sub(r"(?<=[0-9]) ?[xX] ?(?=10\s*\^)", r"\\times ", text)
  text = text.replace("**", "^")
  # 2^3^2 is 2^9.
  while (found := _TOWER.search(text)) is not None:
    text = f"{text[: found.start()]}^{{{found[1]}^{found[2]}}}{text[found.end() :]}"
  text = _BARE.sub(_function_name, text)
  return _function_calls(text)


_TOWER = re.compile(rf"\^([A-Za-z0-9]+)\^({_BRACED}|[A-Za-z0-9]+)(?!\^)")


def _function_name(match: re.Match) -> str:
  name = next(filter(None, match.groups()))
  return "\\" + {"infinity": "infty"}.get(name, name) + ("" if name == "sqrt" else " ")


def _function_calls(text: str) -> str:
  r"""Writes \sqrt(x+1) as \sqrt{x+1} and x^(a) as x^{a}."""
  while (found := re.search(r"(?:\\sqrt(?:\[\d\])?|\^)\s*(?=\()", text)) is not None:
    start = found.end()
    depth = 0
    for end in range(start, len(text)):
      depth += {"(": 1, ")": -1}.get(text[end], 0)
      if not depth:
        break
    else:
      return text
    text = text[:start].rstrip() + "{" + text[start + 1 : end] + "}" + text[end + 1 :]
  return text


# --- Units


_UNIT_WORDS = frozenset(
  (
    "mm cm dm km m ft in mi yd nm kg mg g lb lbs oz ml mL l L gal s sec min hr hrs h ms mph kmh kph"
    " km/h m/s ft/s kmph deg rad cc hz Hz J kJ N W kW V A K Pa mol units unit sq cu men hour hours"
    " day days yen usd USD EUR GBP dollars dollar cents cent euros pounds rupees yuan degrees"
    " degree cups dogs cats hens pies toys coins per each percent pts pt am pm rs Rs ways way boys"
    " girls pens cars bags eggs"
  ).split()
)
_TRAILING_TEXT = re.compile(r"\\text\{([^{}]*)\}\s*(?:\^\s*\{?\s*-?\d\s*\}?)?$")
_WORD = r"[A-Za-z]+(?:/[A-Za-z]+)?\.?(?:\^\{?\d\}?)?"
# Words are split by spaces only, so that the time is linear.
_TRAILING_WORDS = re.compile(
  rf"(?<=[0-9}})%])(?:\s+|(?=[A-Za-z]{{2}}))({_WORD}(?:\s+{_WORD})*)\s*$"
)
_CURRENCY = re.compile(
  r"^(-?)\s*(?:\\(?:pounds|euro|text\{\s*(?:Rs\.?|USD|EUR|US)\s*\})"
  r"|[\u20ac\u00a3\u00a5\u20b9]|Rs\.?|USD|US)\s*(?=[0-9.])"
)
_UNIT_FRACTION = re.compile(r"(?<=[0-9} ])\s*\\frac\s*\{([A-Za-z]{1,4})\}\s*\{([A-Za-z]{1,4})\}$")
# Words that change the value are no units.
_MODIFIES = re.compile(
  r"(?i)\b(?:or|and|not|than|least|most|less|more|dozen|hundred"
  r"|thousands?|millions?|billions?|mod|if|for|where|when)\b"
)
HALF_DAY = re.compile(r"(?i)\s*(?:\\text\{\s*)?([ap])\.?\s?m\.?\s*\}?$")


def without_units(text: str) -> str | None:
  r"""Drops a unit behind a value, degrees and currencies: 5~\text{m/s}, 12 apples, 90^\circ.

  Bare words count as a unit if they are known or have four letters: "2 xy" is a product.

  Returns: the value, or None where there is no unit.
  """
  start = text
  text = _CURRENCY.sub(r"\1", text).rstrip("\u20ac\u00a3\u00a5\u00a2 ")
  found = _UNIT_FRACTION.search(text)
  if found is not None and {found[1], found[2]} <= _UNIT_WORDS:
    text = text[: found.start()]
  text = re.sub(r"\s*\^\s*\{\\circ\}\s*(?:\\?text\{\s*)?[CF]?\s*\}?$", "", text)
  text = re.sub(
    r"(?<=[0-9])\s*(?:\^\{)?\\text\{(?:st|nd|rd|th)\}\}?$|(?<=[0-9])(?:st|nd|rd|th)$", "", text
  )
  while (found := _TRAILING_TEXT.search(text)) is not None and found.start():
    if _MODIFIES.search(found[1]):
      break
    text = re.sub(r"(?:\\cdot|[\s/\\,])+$", "", text[: found.start()])
  found = _TRAILING_WORDS.search(text)
  if found is not None and not _MODIFIES.search(found[1]):
    words = re.sub(r"\^\{?\d\}?|\.", "", found[1]).split()
    spaced = text[found.start()].isspace()
    # What follows a unit says more about it: years old.
    known = [
      i > 0
      and len(w) > 2
      or w in _UNIT_WORDS
      or (len(w) >= 4 and "/" not in w)
      or all(p in _UNIT_WORDS for p in w.split("/"))
      for i, w in enumerate(words)
    ]
    if all(known) and (spaced or len(words[0]) > 1):
      text = text[: found.start()]
  text = trimmed(text)
  return text if text and text != start else None
