"""Convert the notations that people and models use to the LaTeX that the parser accepts.

Every conversion keeps the meaning. A text whose meaning is unclear is not changed, and then does not parse.
"""

import re

from vold_verifier.mathematics import numbers

_DELIMITERS = re.compile(
    r"(?<!\\)\\[()\[\]]|(?<!\\)\$+|\\(?:displaystyle|limits|left|right|big|Big|bigl|bigr|bigg|Bigg)(?![A-Za-z])\.?|\\!"
)
_LOST_BACKSLASH = re.compile(  # JSON and Python read the \f of \frac as a form feed, the \t of \text as a tab, ...
    r"\x0c(?=rac|orall)|\t(?=ext\{|imes|heta|an(?![a-z])|frac)|\x08(?=inom|eta|ar\{|egin\{)"
    r"|(?<![\\A-Za-z\x0c\t])(?=(?:d?frac|sqrt)\s*\{)|(?<![\\A-Za-z\x0c])(?=rac\{)"
)
_LOST = {"\x0c": r"\f", "\t": r"\t", "\x08": r"\b", "": "\\"}
_WITHOUT_MEANING = re.compile(
    r"\\(?:text)?color\s*\{[A-Za-z]{1,20}\}\s*|\\ensuremath\s*(?=\{)|\\[hv]?phantom\s*\{[^{}]{0,20}\}|\\underline\s*(?=\{\s*\\underline)"
)
_FONT_SWITCH = re.compile(r"\\(?:bf|rm|it|sf|tt|sl|bfseries|itshape|boldmath|large|Large|small)(?![A-Za-z])\s*")
_FONT = re.compile(r"\\(?:textbf|textnormal|textit|textsf|texttt|textup|textsl|emph|underline)(?=\s*\{)")
_PLAIN_SET = re.compile(r"^\{(?P<items>\s*[A-Za-z]\s*(?:\||:|\\mid|\\in)[^{}]*|[^{}]*,[^{}]*)\}$")
_SPELLINGS = (
    (re.compile(r"\\(?:mid|vert|lvert|rvert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\\|([^|]+)\\\||\\[lr]?Vert(?![A-Za-z])(.+?)\\[lr]?Vert(?![A-Za-z])"), r"|\1\2|"),
    (re.compile(r"\\(?:bm|boldsymbol|pmb)(?=\s*\{)"), r"\\mathbf"),
    (re.compile(r"\\(?:nice|s)frac(?=\s*\{)"), r"\\frac"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:dots[cbmio]?|cdots)(?![A-Za-z])"), r"\\ldots"),
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*([A-Za-z]+)\s*\}(?=\s*=)"), r"\1"),
)
_GREEK_VARIANTS = tuple((rf"\var{name}", rf"\{name}") for name in ("epsilon", "theta", "phi", "rho", "sigma", "kappa"))
_FONT_OF_NUMBER = re.compile(r"\\math(?:bf|it|sf|tt|normal)\s*\{\s*([\d.,]+)\s*\}")
_TEXT_COMMAND = re.compile(r"^\\text\s*(?=\{)")
_ASSIGNED_NUMBER = re.compile(r"\{\s*[A-Za-z]\s*=\s*-?[\d.,/]+\s*\}$")
_MATHEMATICS = re.compile(r"\\(?:[dt]?frac|sqrt|pi|times|cdot|infty|pm|le|ge|ne)(?![A-Za-z])")
_THIN_SPACE_AFTER_COMMA = re.compile(r",\s*\\!\s*(?=\d{3})")
_TURNED_INTERVAL = re.compile(
    r"(?P<gap>\s*(?:[A-Za-z]\s*\\in\s*)?)(?P<first>[\[\]])(?P<ends>[^\[\],;]+[,;][^\[\],;]+)(?P<last>[\[\]])(?P<rest>\s*)"
)
_CONCLUSION = re.compile(
    r"^(?:\\(?:therefore|implies|Rightarrow|Longrightarrow|Leftrightarrow|to|rightarrow)(?![A-Za-z])|[∴⇒→])\s*"
)
_ABOUT = re.compile(
    r"^(?:\\(?:approx|simeq|sim)(?![A-Za-z])|~|\\text\s*\{\s*(?:about|approximately|approx\.?|roughly|around|exactly)\s*\}"
    r"|(?:about|approximately|approx\.?|roughly|around|exactly)\s)\s*(?=[-+]?\\?[\d.$]|\\[dt]?frac)",
    re.IGNORECASE,
)
_OHM = re.compile(
    r"(?<=[\d}\s,;~])(?:\\(?:text|mathrm)\s*\{\s*(?P<text>[kMGm]?)\s*\}\s*|(?P<bare>[kMGm])?\s*)\\Omega\s*$"
)
_MICRO_UNIT = r"mol|[mAsgFCHLVWTN]"
_MICRO = re.compile(
    rf"(?<=[\d}}])(?:\\[,; ]|~|\s)*\\mu\s*(?:\\(?:text|mathrm)\s*\{{\s*(?P<text>{_MICRO_UNIT})\s*\}}"
    rf"|(?P<bare>{_MICRO_UNIT}))\s*$"
)
_BARE_BINOMIAL = re.compile(r"\\([dt]?binom)\s*(\d)\s*(\d)")
_ROOT_IN_PARENTHESES = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_PRICE = re.compile(r"^(-?)\$(?=[\d.])")
_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|pi)(?![A-Za-z])")
_MARKED_FUNCTION = re.compile(
    r"\\(?:operatorname|mathrm|text)\s*\{\s*(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp)\s*\}"
)
_AND_OR = r"\\(?:text|mbox|textrm|mathrm)\s*\{{\s*,?\s*{0}\s*,?\s*\}}|(?<![A-Za-z\\]){0}(?![A-Za-z])"
OR = re.compile(
    rf"\s*,?\s*(?:\\q?quad\s*)*(?:{_AND_OR.format('or')}|或者?|\\lor(?![A-Za-z])|\\vee(?![A-Za-z]))(?:\s|\\q?quad)*"
)
AND = re.compile(
    rf"\s*,?\s*(?:\\q?quad\s*)*(?:{_AND_OR.format('and')}|[和与、]|\\land(?![A-Za-z])|\\wedge(?![A-Za-z]))(?:\s|\\q?quad)*"
)
_DOTS_AFTER_INTEGER = re.compile(r"^-?\d+\s*(?:\\(?:ldots|dots|cdots)|\.\.\.+)$")
_SEMICOLON = re.compile(r"\s*;\s*|(?:\s|,)*\\q?quad\s*")
_ROOT_WITHOUT_BRACES = re.compile(r"\\sqrt\s*(\[[^\[\]]{1,5}\])\s*([A-Za-z\d])")
_ROW_GAP = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|cm|mm)\s*\]")
_ARRAY = re.compile(r"[(\[]?\s*\\begin\{array\}\s*\{[lcr| ]*\}(?P<rows>.*?)\\end\{array\}\s*[)\]]?", re.DOTALL)
_REPEATING = re.compile(
    r"\d*\.\d*\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|(?<![\d.])\d*\.\d+(?:\.\.\.|\\ldots|\\dots|\\cdots)"
)
_THOUSANDS = re.compile(r"(?<![\w.}])\d{1,3}(?P<mark>\\,|\{,\}| |_|')\d{3}(?:(?P=mark)\d{3})*(?![\d_'])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,4}(?!\w)")
_SCALE = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?(hundred|thousand|million|billion|trillion)\b(?:\s*\})?",
    re.IGNORECASE,
)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MIXED = re.compile(r"(?<![\w.}/^)])(\d+) +(\d+)/(\d+)(?![\d/])")
_PLAIN_FRACTION = re.compile(
    r"(?<![\w.}/^)])(\d+)/(\d+)(?=\s*(?:[A-Za-z(]|\\(?:pi|sqrt|ln|log|theta|alpha|sin|cos|tan)))"
)
_FUNCTION_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_SET_BUILDER = re.compile(
    r"^\\\{\s*(?P<name>[A-Za-z])\s*(?:\\in\s*\\(?:mathbb\s*\{?R\}?|R)\s*)?(?:\\mid|\\vert|\||:)\s*(?P<rule>.+)\\\}$"
)
_MEMBERSHIP = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*(?=[(\[\\{])")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z])")
_PROTECTED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|begin|end|overline)\s*\{[^{}]*\}|\\[A-Za-z]+|_\{[^{}]*\}"
)
_PLAIN_WORDS = frozenset({"and", "or", "mod", "inf", "infinity", "sqrt", "pct", "percent", "percentage", "not"})
_REPLACEMENTS = (
    (re.compile(r"\\varnothing|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\langle"), "("),
    (re.compile(r"\\rangle"), ")"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\degree(?![A-Za-z])"), r"^{\\circ}"),
    (re.compile(r"\\log_\s*(?:\{e\}|e)"), r"\\ln "),
    (re.compile(r"\\(?:leqslant|leq)(?![A-Za-z])|<=|=<"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geq)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*infinity\s*\}|(?<![A-Za-z\\])infinity(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\bmod(?![A-Za-z])"), r"\\mod "),
    (re.compile(r"\\imath(?![A-Za-z])"), "i"),
    (re.compile(r"\\(?:mathcal|mathscr)\s*(?:\{\s*O\s*\}|O(?![A-Za-z]))"), "O"),
    (
        re.compile(
            r"(?<=[+-])\s*(?:\\(?:text|mathrm)\s*\{\s*(?:an?\s+)?(?:arbitrary\s+)?const(?:ant)?\.?\s*\}|const(?:ant)?\.?(?![A-Za-z]))"
        ),
        " C",
    ),
    (re.compile(r"\\frac\s*\{\s*d\s*([A-Za-z])\s*\}\s*\{\s*d\s*([A-Za-z])\s*\}"), r"D_{\1\2}"),
    (re.compile(r"\\lg(?![A-Za-z])"), r"\\log_{10} "),
    (re.compile(r"\^\s*\{?\s*\\(?:top|intercal|mathsf\{T\}|mathrm\{T\})(?![A-Za-z])\s*\}?"), "^{T}"),
    (re.compile(r"(?<!\\)\\[,;: ]"), " "),
)


def clean(text: str) -> str:
    """Remove delimiters, and punctuation and backslashes at the end; write functions as LaTeX commands."""
    if text.isdigit():
        return text
    if "\\" in text or "\x0c" in text or "\t" in text or "{" in text:
        text = _clean_commands(text)
    if text.startswith("{"):
        text = _PLAIN_SET.sub(r"\\{\g<items>\\}", text.strip())
    if text.count("$") == 1:
        text = _PRICE.sub(r"\1\\$", text.strip())
    text = _DELIMITERS.sub("", text).strip()
    if text[:1] == "]" or text[-1:] == "[":
        text = "\\cup".join(map(_with_round_brackets, text.split("\\cup")))
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2].strip()
    while text.endswith(("\\", ",", ";", "。")) or (text.endswith(".") and not text.endswith("..")):
        text = text[:-1].rstrip()
    text = _ABOUT.sub("", _CONCLUSION.sub("", text))
    if "sqrt" in text:
        text = _SQRT.sub(r"\\sqrt{\1}", text)
    return _FUNCTION.sub(r"\\\1", text).replace("**", "^").strip()


def _with_round_brackets(text: str) -> str:
    """An interval whose open ends are brackets that are turned outwards: ]0, 1] is (0, 1]."""
    match = _TURNED_INTERVAL.fullmatch(text)
    if match is None:
        return text
    return f"{match['gap']}{'(['[match['first'] == '[']}{match['ends']}{')]'[match['last'] == ']']}{match['rest']}"


def _clean_commands(text: str) -> str:
    """Repair commands, remove fonts, and write the sloppy forms of a command in its full form."""
    text = _WITHOUT_MEANING.sub("", _LOST_BACKSLASH.sub(_restore_backslash, text))
    text = _FONT.sub(r"\\text", _FONT_SWITCH.sub("", text))
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    for variant, letter in _GREEK_VARIANTS:
        if variant in text and letter not in text.replace(variant, ""):
            text = text.replace(variant, letter)
    text = _FONT_OF_NUMBER.sub(r"\1", text)
    text = _THIN_SPACE_AFTER_COMMA.sub(",", text)
    if "\\Omega" in text or "\\mu" in text:
        text = _OHM.sub(lambda m: rf" \text{{{m['text'] or m['bare'] or ''}Ω}}", text)
        text = _MICRO.sub(lambda m: rf" \text{{µ{m['text'] or m['bare']}}}", text)
    text = _BARE_BINOMIAL.sub(r"\\\1{\2}{\3}", text)
    text = _ROOT_IN_PARENTHESES.sub(r"\\sqrt{\1}", text)
    inner = _TEXT_COMMAND.sub("", text.strip())
    if (
        len(inner) < len(text.strip())
        and is_enclosed(inner)
        and (_MATHEMATICS.search(inner) or _ASSIGNED_NUMBER.match(inner))
    ):
        return inner[1:-1]
    return text


def _restore_backslash(match: re.Match[str]) -> str:
    return r"\f" if not match.group() and match.string.startswith("rac", match.end()) else _LOST[match.group()]


def normalise(text: str) -> str:
    """Normalise the output of `clean`: relation signs, brackets, degrees in functions, repeating decimals, ..."""
    text = _MARKED_FUNCTION.sub(lambda m: "\\" + m[1] + " ", _ROW_GAP.sub(r"\\\\", text)).replace("~", " ")
    text = _THOUSANDS.sub(lambda m: "".join(c for c in m.group() if c.isdigit()), text)
    if "begin" in text:
        text = _ARRAY.sub(r"\\begin{pmatrix}\g<rows>\\end{pmatrix}", text)
    else:
        text = text.replace(r"\&", ",").replace("&", ",")
    text = _ROOT_WITHOUT_BRACES.sub(r"\\sqrt\1{\2}", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if _TRIGONOMETRY.search(text):
        text = _FUNCTION_DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _REPEATING.sub(_to_fraction, text)
    text = _SCALE.sub(lambda m: rf"{m[1]} \cdot 10^{{{_ZEROS[m[2].lower()]}}}", text)
    text = _SCIENTIFIC.sub(_to_fraction, text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _PLAIN_FRACTION.sub(r"\\frac{\1}{\2}", text)
    if match := _SET_BUILDER.match(text.strip()):
        text = match["rule"]
    return _MEMBERSHIP.sub("", text).strip()


_COUNT = re.compile(
    r"(?:\\(?:mathrm|text)\s*\{\s*(?P<k1>[CAP])\s*\}|(?<![A-Za-z\\])(?P<k2>[CAP]))\s*"
    r"(?:_\s*\{?\s*(?P<n1>\d{1,3})\s*\}?\s*\^\s*\{?\s*(?P<r1>\d{1,3})\s*\}?|\(\s*(?P<n2>\d{1,3})\s*,\s*(?P<r2>\d{1,3})\s*\))"
)

_COUNT_BETWEEN = re.compile(
    r"(?<![\w})\]])(?:\{\s*\}\s*)?[_^]\s*(?:\{\s*(?=\d{1,3}\s*\}))?(?P<n>\d{1,3})\s*\}?\s*"
    r"(?P<kind>[CP])\s*_\s*(?:\{\s*)?(?P<r>\d{1,3})\s*\}?"
)
"""The C_2 after a raised or lowered 5."""


def with_counts(text: str) -> str:
    """Combinations and permutations, C_5^2, C(5, 2), A_5^2 and P(5, 2), as binomials and factorials."""

    def expand(match: re.Match[str]) -> str:
        kind, n, r = match["k1"] or match["k2"], int(match["n1"] or match["n2"]), int(match["r1"] or match["r2"])
        if r > n:
            return match.group()
        return rf"\binom{{{n}}}{{{r}}}" if kind == "C" else rf"\frac{{{n}!}}{{{n - r}!}}"

    text = _COUNT_BETWEEN.sub(lambda m: f"{m['kind']}({m['n']}, {m['r']})", text)
    return _COUNT.sub(expand, text)


def is_unfinished(text: str) -> bool:
    """Whether `text` is an integer and dots, 4..., which is some number from 4 to 5 or a list."""
    return _DOTS_AFTER_INTEGER.match(text) is not None


def separate_with_commas(text: str) -> str:
    """Replace "and", "or" and semicolons by commas, and each plus-minus by both values. `text` is normalised."""
    text = _SEMICOLON.sub(", ", AND.sub(", ", OR.sub(", ", text)))
    if _PLUS_MINUS.search(text) is None:
        return text
    parts = split(text)
    return ", ".join(value for part in parts for value in _expand_plus_minus(part))


def split(text: str, separator: str = ",") -> list[str]:
    """Split `text` at each `separator` outside of brackets. Also splits at thousands separators (1,000)."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]]]


def is_enclosed(text: str) -> bool:
    """Whether the first bracket closes at the end of `text`; not so in the product (1)(2, 3)."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False


def separate_factors(text: str) -> str:
    """Put spaces between the letters of a product: 2ab becomes 2a b, as a parser could read ab as a unit."""
    protected: list[str] = []

    def protect(match: re.Match[str]) -> str:
        protected.append(match.group())
        return f"\x01{len(protected) - 1}\x02"

    def separate(match: re.Match[str]) -> str:
        return match.group() if match.group().lower() in _PLAIN_WORDS else " ".join(match.group())

    text = _LETTERS.sub(separate, _PROTECTED.sub(protect, text))
    return re.sub("\x01(\\d+)\x02", lambda m: protected[int(m[1])], text)


def _expand_plus_minus(part: str) -> list[str]:
    if _PLUS_MINUS.search(part) is None:
        return [part]
    return [
        _PLUS_MINUS.sub(lambda m, flip=flip: "+-"[(m[1] == "mp") != flip], part)  # type: ignore[misc]
        for flip in (False, True)
    ]


def _to_fraction(match: re.Match[str]) -> str:
    number = numbers.parse(match.group())
    if number is None:
        return match.group()
    return rf"\frac{{{number.value.numerator}}}{{{number.value.denominator}}}"
