"""Numbers and closed forms as numbers, for comparisons within a tolerance."""

from vold_verifier.mathematics import magnitude, notation, numbers, symbolic
from vold_verifier.reading import bounds
from vold_verifier.reading.text import symbols_to_latex


def parse(text: str, *, with_unit: bool = True) -> numbers.Number | None:
    """`text`, which is raw, as a number; a closed form such as \\sqrt{2} to 30 digits.

    with_unit: the words after a number are its unit. None if `text` has a variable, breaks a bound or is not real.
    """
    latex = symbols_to_latex(text)
    number = numbers.parse(latex, with_unit=with_unit)
    if number is not None:
        return number
    latex = notation.clean(latex)
    for part in (latex, symbolic.value_side(latex), latex.rpartition("=")[2].strip()):
        number = numbers.parse(notation.clean(part), with_unit=with_unit)
        if number is not None:
            return number
    latex = symbolic.value_side(latex)
    if not latex or bounds.violation(latex) is not None or magnitude.are_apart("1", latex):
        return None
    value = symbolic.constant_value(notation.normalise(latex))
    return None if value is None else numbers.Number(value, places=symbolic.DIGITS - 5, digits=symbolic.DIGITS - 5)
