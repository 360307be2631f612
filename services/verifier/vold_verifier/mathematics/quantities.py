r"""Split an expression and its unit: 6\sqrt{3}\text{ cm} is 6\sqrt{3} in cm."""

import re
from fractions import Fraction

from vold_verifier.mathematics import numbers, units, wording

_COMMAND = r"\\(?:text|mathrm|textrm|mbox|operatorname)"
_TEXT_UNIT = re.compile(
    rf"^(?P<value>.*\S)\s*(?:\\[,; ]|~)*\s*"
    rf"(?P<unit>{_COMMAND}\s*\{{\s*[^{{}}\\\d]+\}}(?:\^\s*\{{?-?[1-3]\}}?)?"
    rf"(?:\s*(?:/|\\cdot|\\[,; ])?\s*{_COMMAND}\s*\{{\s*[^{{}}\\\d]+\}}(?:\^\s*\{{?-?[1-3]\}}?)?)?)$"
)
_DEGREES = re.compile(
    r"^(?P<value>.*\S)\s*(?P<unit>\^\s*\{?\s*\\circ\s*\}?(?:\s*\\(?:text|mathrm)\s*\{\s*[CFK]\s*\})?)$"
)
_WORD_UNIT = re.compile(
    r"^(?P<value>.*[\d})\]a-z])\s+(?P<unit>(?:(?:square|sq|cubic|cu)\s+)?[A-Za-z]+(?:\s*\^\s*\{?[23]\}?)?"
    r"(?:\s*/\s*[A-Za-z]+(?:\s*\^\s*\{?[23]\}?)?)?)$"
)
_CURRENCY = re.compile(r"^(?P<sign>-?)\s*\\?(?P<unit>[$€£¥₹])\s*(?P<value>\S.*)$")
_COMMAND_NAME = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-z]")
_WRAPPED = re.compile(rf"{_COMMAND}\s*\{{([^{{}}]*)\}}")


def split_unit(text: str) -> tuple[str, str]:
    """(`text` without its unit, the unit or ""). Words that are no unit stay. `text` is the output of `normalise`."""
    if match := _CURRENCY.match(text):
        return match["sign"] + match["value"], match["unit"]
    if match := _DEGREES.match(text):
        return match["value"], match["unit"]
    if match := _TEXT_UNIT.match(text):
        words = wording.read(_WRAPPED.sub(r" \1 ", match["unit"]), is_markup=True, is_separate=True)
        if words is None or words.power != 1:
            return text, ""
        return _scaled(match["value"], words.scale), words.unit
    if match := _WORD_UNIT.match(text):
        words = wording.read(match["unit"], is_markup=False, is_separate=True)
        if words is None or words.power != 1:
            return text, ""
        is_letter = match["unit"].rstrip("^{}23 ") in units.LETTERS
        if is_letter and _VARIABLE.search(_COMMAND_NAME.sub("", match["value"])) is not None:
            return text, ""  # the h of \pi r^2 h
        is_known = is_letter or not words.may_be_variables
        if is_known and (units.parse(words.unit) is not None or units.is_generic(words.unit) or is_letter):
            return _scaled(match["value"], words.scale), words.unit
        if numbers.parse(match["value"]) is not None and not words.may_be_variables and len(match["unit"]) > 3:
            return _scaled(match["value"], words.scale), words.unit
    return text, ""


def _scaled(value: str, scale: Fraction) -> str:
    return value if scale == 1 else rf"\frac{{{scale.numerator}}}{{{scale.denominator}}} \cdot ({value})"


def convert(value: str, source: str, target: str) -> str | None:
    """The expression `value` in unit `source`, converted to unit `target`; None if they measure different things."""
    conversion = units.convert(source, target)
    if conversion is None or conversion.is_identity:
        return None if conversion is None else value
    factor = rf"\frac{{{conversion.factor.numerator}}}{{{conversion.factor.denominator}}}"
    pi = {0: "", 1: r"\cdot \pi", -1: r"\cdot \frac{1}{\pi}"}.get(conversion.pi)
    if pi is None:
        return None
    shift = rf" + \frac{{{conversion.shift.numerator}}}{{{conversion.shift.denominator}}}" if conversion.shift else ""
    return rf"{factor} {pi} \cdot ({value}){shift}"
