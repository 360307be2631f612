"""Normalise text: Unicode forms, invisible characters, mathematical symbols."""

import re
import unicodedata

from vold_verifier.reading import translation

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
_CIRCLED = re.compile("[①-⑳]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_ROOT = re.compile(r"(?P<root>[√∛∜])\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_SYMBOLS = {
    "−": "-",
    "–": "-",
    "‐": "-",
    "‑": "-",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "×": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "°": r"^{\circ}",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∥": r"\parallel ",
    "⊥": r"\perp ",
    "∼": r"\sim ",
    "≅": r"\cong ",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "¬": r"\neg ",
    "∧": r"\land ",
    "∨": r"\lor ",
    "≡": r"\equiv ",
    "∴": r"\therefore ",
    "∫": r"\int ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "’": "'",
    "′": "'",
    "\u2061": " ",  # the invisible function application, times, comma and plus of MathML
    "\u2062": " ",
    "\u2063": ",",
    "\u2064": "+",
    "“": '"',
    "”": '"',
}
_SYMBOL_TABLE = str.maketrans(_SYMBOLS)


def _fraction_to_latex(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def normalise(text: str) -> str:
    """`text` in NFKC, without zero-width characters, direction marks and control characters other than white space."""
    if text.isascii() and _CONTROL.search(text) is None:
        return text
    nfkc = unicodedata.normalize("NFKC", text)
    return "".join(c for c in nfkc if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc", "Cn", "Co", "Cs"))


def symbols_to_latex(text: str) -> str:
    """`text` normalised, with mathematical characters as LaTeX.

    Superscripts, subscripts, vulgar fractions and circled numbers are converted before NFKC, which would turn x² into
    x2, 2½ into 21/2 and ①③ into 13.
    """
    text = translation.to_latex(text)
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
        text = _SUBSCRIPT_RUN.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
        text = _CIRCLED.sub(lambda m: ", ".join(f"({ord(c) - ord('①') + 1})" for c in m.group()), text)
        text = _VULGAR.sub(_fraction_to_latex, text)
        text = _ROOT.sub(lambda m: _ROOTS[m["root"]] + "{" + (m.group(2) or m.group(3) or "") + "}", text)
        text = text.translate(_SYMBOL_TABLE)
    return normalise(text)


def shorten(text: str, limit: int = 80) -> str:
    """`text` quoted for a message, cut to `limit` characters; a cut text is followed by its length."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"
