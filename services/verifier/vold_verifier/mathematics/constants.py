"""Numbers and closed forms as numbers, for comparisons within a tolerance."""

import re

from vold_verifier.mathematics import magnitude, notation, numbers, parsing, symbolic, values
from vold_verifier.reading import bounds
from vold_verifier.reading.text import symbols_to_latex

_ARITHMETIC = re.compile(r"(?:[\d\s.,+\-*/(){}!]|\\(?:[dt]?frac|cdot|times|div|left|right|[,;:! ]))*")

MAX_DENOMINATOR, NEAR_DIGITS = 10**3, 14
"""What is this near to a fraction of so short a denominator is that fraction: decimals are computed with 15 digits."""


def parse(text: str, *, with_unit: bool = True) -> numbers.Number | None:
    """`text`, which is raw, as a number; a closed form such as \\sqrt{2} to 30 digits.

    with_unit: the words after a number are its unit. None if `text` has a variable, breaks a bound or is not real.
    """
    number = plain(text, with_unit=with_unit)
    if number is not None:
        return number
    latex = symbolic.value_side(notation.clean(symbols_to_latex(text)))
    if not latex or bounds.violation(latex) is not None or magnitude.are_apart("1", latex):
        return None
    parsing.forget()
    value = values.constant_value(notation.normalise(latex))
    return None if value is None else numbers.Number(value, places=values.DIGITS - 5, digits=values.DIGITS - 5)


def plain(text: str, *, with_unit: bool = True) -> numbers.Number | None:
    """`text`, or what it says that a name equals, as a number that nothing is left to compute of."""
    latex = symbols_to_latex(text)
    number = numbers.parse(latex, with_unit=with_unit)
    if number is not None:
        return number
    latex = notation.clean(latex)
    for part in (latex, symbolic.value_side(latex), latex.rpartition("=")[2].strip()):
        number = numbers.parse(notation.clean(part), with_unit=with_unit)
        if number is not None:
            return number
    return None


def is_left_to_compute(text: str, number: numbers.Number) -> bool:
    """Whether `number` is the value of arithmetic in `text` that leads to a fraction, as 5+7-4 does: written down, and
    not worked out. Roots, powers and functions are if their value is a fraction of a short denominator.
    """
    if plain(text) is not None:
        return False
    if _ARITHMETIC.fullmatch(symbolic.value_side(notation.clean(symbols_to_latex(text)))) is not None:
        return True
    nearest = number.value.limit_denominator(MAX_DENOMINATOR)
    return abs(number.value - nearest) <= abs(number.value) / 10**NEAR_DIGITS
