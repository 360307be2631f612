"""Expressions as numbers: constants compared by their digits, and expressions by their values at a few points."""

import re
from fractions import Fraction
from typing import Any

from vold_verifier.mathematics import parsing

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_CONSTANT_COMMANDS = frozenset(
    {"frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pi", "binom", "exp", "log", "ln"}
    | {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"}
)
_CLOSED_FORM = re.compile(r"[\w\s.+*/^(){}\\!-]+", re.ASCII)

FLOAT_TOLERANCE = 1e-6
DIGITS = 30
POINTS = ("0.7310", "-1.3719", "2.1931", "-0.4173", "3.3391", "1.1273", "-2.7151")
MIN_AGREEING_POINTS = 4
MAX_SYMBOLS = 5


def constants_agree(sides: list[str], tolerance: float) -> bool:
    """Whether all constants among `sides` are equal, within a relative `tolerance`."""
    values = [value for side in sides if (value := evaluate_text(side)) is not None]
    return all(is_close(values[0], value, tolerance) for value in values[1:])


def constant_value(text: str) -> Fraction | None:
    """The value of a closed form, such as \\sqrt{2}/2, rounded to DIGITS digits; None if `text` is none or not real."""
    value = evaluate_text(text) if _CLOSED_FORM.fullmatch(text) is not None else None
    return Fraction(str(value)) if value is not None and value.is_real else None


def evaluate_text(side: str) -> Any:
    """`side` as a number with DIGITS digits; None if it contains a variable or a command that is not listed."""
    letters = _COMMAND.sub("", side)
    if not side.strip() or any(c.isalpha() and c not in "ei" for c in letters):
        return None
    if not _CONSTANT_COMMANDS.issuperset(_COMMAND.findall(side)):
        return None
    parsed = parsing.parse(side)
    return evaluate(parsed) if parsed is not None else None


def evaluate(expression: Any) -> Any:
    """The value of a constant expression, or None."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = expression.doit().evalf(DIGITS)
    return value if value.is_number and value.is_finite else None


def is_close(first: Any, second: Any, tolerance: float) -> bool:
    scale = max(abs(first), abs(second))
    return bool(abs(first - second) <= tolerance * scale)


def constants_differ(reference: Any, answer: Any) -> bool:
    """Whether two constants differ by more than their precision: 10^-7 is not 2 * 10^-7."""
    import sympy

    reference_value, answer_value = evaluate(reference), evaluate(answer)
    if reference_value is None or answer_value is None:
        return False
    if reference.has(sympy.Float) or answer.has(sympy.Float):
        return not is_close(reference_value, answer_value, FLOAT_TOLERANCE)
    return not _is_zero(reference - answer)


def _is_zero(constant: Any) -> bool:
    """Whether an exact constant is 0, or so small that sympy finds no significant digit."""
    parts = constant.doit().evalf(DIGITS).as_real_imag()
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def agree_at_points(reference: Any, answer: Any) -> bool:
    """Whether two expressions in the same variables agree at several points, of both signs.

    Without variables: whether they are the same constant.
    """
    import sympy

    if not isinstance(reference, sympy.Expr) or not isinstance(answer, sympy.Expr):
        return False
    variables = sorted(reference.free_symbols, key=str)
    inexact = reference.has(sympy.Float) or answer.has(sympy.Float)
    if set(variables) != answer.free_symbols or len(variables) > MAX_SYMBOLS:
        return False
    if not variables:
        reference_value, answer_value = evaluate(reference), evaluate(answer)
        if reference_value is None or answer_value is None:
            return False
        return is_close(reference_value, answer_value, 1e-12) if inexact else _is_zero(reference - answer)
    agreeing = 0
    for shift in range(len(POINTS)):
        point = {
            variable: sympy.Rational(POINTS[(shift + 3 * i) % len(POINTS)]) for i, variable in enumerate(variables)
        }
        values = [expression.subs(point).doit().evalf(DIGITS) for expression in (reference, answer)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        reference_value, answer_value = values
        if not is_close(reference_value, answer_value, 1e-9 if inexact else 1e-20):
            return False
        agreeing += 1
    return agreeing >= MIN_AGREEING_POINTS
