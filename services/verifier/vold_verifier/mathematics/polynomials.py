"""Polynomials settled by expanding them, which takes a tenth of the time of sympy's general simplification."""

from typing import Any

MAX_EXPONENT = 12
"""Beyond it an expansion may be larger than what it saves."""


def same(one: Any, other: Any) -> bool | None:
    """Whether two parsed expressions are the same polynomial; None where they are not both small exact polynomials.

    A lone symbol is None as well: math-verify has rules of its own for names.
    """
    import sympy

    for side in (one, other):
        if not isinstance(side, sympy.Expr) or side.is_Symbol or side.has(sympy.Float, sympy.UnevaluatedExpr):
            return None
        if any(not power.exp.is_Integer or not 0 <= power.exp <= MAX_EXPONENT for power in side.atoms(sympy.Pow)):
            return None
    symbols = one.free_symbols | other.free_symbols
    if not symbols or not (one.is_polynomial(*symbols) and other.is_polynomial(*symbols)):
        return None
    return bool((one - other).doit().expand() == 0)
