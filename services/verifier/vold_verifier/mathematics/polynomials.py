"""Compare polynomials by expansion, which takes a tenth of the time of sympy's general simplification."""

from typing import Any

MAX_EXPONENT = 12
"""With larger exponents an expansion may take longer than simplification."""


def are_equal(first: Any, second: Any) -> bool | None:
    """Whether two parsed expressions are the same polynomial; None unless both are small exact polynomials.

    None for a single symbol, too: math-verify has its own rules for names.
    """
    import sympy

    for side in (first, second):
        if not isinstance(side, sympy.Expr) or side.is_Symbol or side.has(sympy.Float, sympy.UnevaluatedExpr):
            return None
        if any(not power.exp.is_Integer or not 0 <= power.exp <= MAX_EXPONENT for power in side.atoms(sympy.Pow)):
            return None
    symbols = first.free_symbols | second.free_symbols
    if not symbols or not (first.is_polynomial(*symbols) and second.is_polynomial(*symbols)):
        return None
    return bool((first - second).doit().expand() == 0)


def has_large_power(expression: Any) -> bool:
    """Whether an expression with variables has a power that takes long to expand."""
    import sympy

    return isinstance(expression, sympy.Expr) and any(
        power.exp.is_Integer and abs(power.exp) > MAX_EXPONENT and power.base.free_symbols and not power.base.is_Symbol
        for power in expression.atoms(sympy.Pow)
    )
