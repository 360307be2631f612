"""Numbers and closed forms as numbers, for comparisons within a tolerance."""

from fractions import Fraction

from vold_verifier.mathematics import notation, numbers, symbolic
from vold_verifier.reading import bounds
from vold_verifier.reading.text import symbols_to_latex


def parse(text: str, *, with_unit: bool = True) -> numbers.Number | None:
    """`text`, which is raw, as a number; a closed form such as \\sqrt{2} to 30 digits.

    with_unit: the words after a number are its unit. None if `text` has a variable, breaks a bound or is not real.
    """
    latex = symbolic.value_side(notation.clean(symbols_to_latex(text)))
    if (number := numbers.parse(latex, with_unit=with_unit)) is not None:
        return number
    if not latex or bounds.violation(latex) is not None:
        return None
    constant = symbolic._constant_value(notation.normalise(latex))
    if constant is None or not constant.is_real:
        return None
    import sympy

    exact = sympy.Rational(constant)
    return numbers.Number(Fraction(int(exact.p), int(exact.q)))
