"""Compare matrices, apart from other expressions: sympy raises or recurses if it compares a matrix with a number."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

_UNEVALUATED = (TypeError, ValueError, AttributeError, NotImplementedError, RecursionError)
"""Errors that sympy raises for a product or sum of matrices without a value; its ShapeError is a ValueError."""


def contains_matrix(expression: Any) -> bool:
    """Whether `expression` is a matrix, or has a matrix as a term, a factor or a side."""
    import sympy

    if isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow | sympy.core.relational.Relational):
        return any(map(contains_matrix, expression.args))
    return bool(getattr(expression, "is_Matrix", False))


def are_equal(reference: Any, answer: Any, equal: Callable[[Any, Any], bool]) -> bool:
    """Whether two expressions of matrices are equal by `equal`, which compares evaluated matrices entry by entry.

    If an expression has no value, the two are equal only if they are identical.
    """
    try:
        reference_matrix, answer_matrix = _evaluate(reference), _evaluate(answer)
        shapes = {
            shape for side in (reference_matrix, answer_matrix) if (shape := getattr(side, "shape", None)) is not None
        }
        return len(shapes) < 2 and equal(reference_matrix, answer_matrix)
    except _UNEVALUATED:
        return bool(reference == answer)


def _evaluate(expression: Any) -> Any:
    """Evaluate products, powers and sums of matrices; return any other expression unchanged."""
    import sympy

    if isinstance(expression, sympy.Mul):
        return reduce(operator.mul, map(_evaluate, expression.args))
    if isinstance(expression, sympy.Pow):
        return _evaluate(expression.base) ** expression.exp
    if isinstance(expression, sympy.MatrixExpr):
        return expression.doit().as_explicit()
    return expression
