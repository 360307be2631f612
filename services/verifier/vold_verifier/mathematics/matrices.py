"""Matrices, kept apart from the rest of algebra: sympy raises or recurses where one stands beside a number."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

_UNEVALUATED = (TypeError, ValueError, AttributeError, NotImplementedError, RecursionError)
"""What sympy raises for a product or sum of matrices that has no value; its ShapeError is a ValueError."""


def holds(expression: Any) -> bool:
    """Whether a matrix is `expression`, or a term, a factor or a side of it."""
    import sympy

    if isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow | sympy.core.relational.Relational):
        return any(map(holds, expression.args))
    return bool(getattr(expression, "is_Matrix", False))


def same(gold: Any, answer: Any, verify: Callable[[Any, Any], bool]) -> bool:
    """Whether two expressions of matrices are equal: entry by entry by `verify`, False for what has no value."""
    try:
        ours, theirs = _explicit(gold), _explicit(answer)
        shapes = {shape for side in (ours, theirs) if (shape := getattr(side, "shape", None)) is not None}
        return len(shapes) < 2 and verify(ours, theirs)
    except _UNEVALUATED:
        return bool(gold == answer)


def _explicit(expression: Any) -> Any:
    """Products and sums carried out; an equation or an inequality as it is."""
    import sympy

    if isinstance(expression, sympy.Mul):
        return reduce(operator.mul, map(_explicit, expression.args))
    if isinstance(expression, sympy.Pow):
        return _explicit(expression.base) ** expression.exp
    if isinstance(expression, sympy.MatrixExpr):
        return expression.doit().as_explicit()
    return expression
