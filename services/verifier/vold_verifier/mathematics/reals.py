"""Compare sets of real numbers: intervals, unions, intersections, differences, inequalities in one variable."""

import re
from collections.abc import Callable
from typing import Any

from vold_verifier.mathematics import notation

_RELATION = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z]))")
_SET_NOTATION = re.compile(
    r"<|>|\\(?:le|ge|ne|cup|cap|setminus|backslash|mathbb|infty|emptyset)(?![A-Za-z])|\[.+,.+[\])]|[\[(].+,.+\]"
)
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_INTERSECTION = re.compile(r"\\cap(?![A-Za-z])")
_DIFFERENCE = re.compile(r"\\(?:setminus|backslash)(?![A-Za-z])")
_MAX_DEGREE = 8


class _NotASetError(Exception):
    pass


def has_set_notation(text: str) -> bool:
    """Whether `text` contains notation that only sets of numbers and inequalities use."""
    return _SET_NOTATION.search(text) is not None


def are_equal(reference: str, answer: str, parse: Callable[[str], Any]) -> bool | None:
    """Whether two texts are the same set of real numbers; None if either cannot be parsed as a set.

    Both texts are the output of `notation.normalise`. parse: converts a text to a SymPy expression, or to None.
    """
    if (
        _RELATION.search(reference) is None
        and _RELATION.search(answer) is None
        and not (has_set_notation(reference) or has_set_notation(answer))
    ):
        return None
    try:
        reference_set, reference_variable = _parse_set(reference, parse)
        answer_set, answer_variable = _parse_set(answer, parse)
    except _NotASetError:
        return None
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return None  # SymPy cannot solve the inequality: math-verify may still compare the texts
    if None not in (reference_variable, answer_variable) and reference_variable != answer_variable:
        return False
    if reference_set == answer_set:
        return True
    difference = reference_set.symmetric_difference(answer_set)
    return bool(difference.is_empty) if difference.is_empty is not None else None


def _parse_set(text: str, parse: Callable[[str], Any]) -> tuple[Any, Any]:
    """(the set, its variable or None)."""
    import sympy

    text = text.strip()
    for pattern, join in ((notation.OR, sympy.Union), (notation.AND, sympy.Intersection)):
        parts = [part for part in pattern.split(text) if part]
        if len(parts) > 1:
            return _combine(parts, join, parse)
    if _RELATION.search(text) is not None:
        parts = notation.split(text)
        if len(parts) > 1:
            combined, variable = _combine(parts, sympy.Intersection, parse)
            if combined.is_empty:
                combined, variable = _combine(parts, sympy.Union, parse)
            return combined, variable
        return _parse_inequality(text, parse)
    for pattern, join in ((_UNION, sympy.Union), (_DIFFERENCE, sympy.Complement), (_INTERSECTION, sympy.Intersection)):
        parts = pattern.split(text)
        if len(parts) > 1 and all(part.strip() for part in parts):
            return _combine(parts, join, parse)
    return _parse_simple_set(text, parse), None


def _combine(parts: list[str], join: Callable[..., Any], parse: Callable[[str], Any]) -> tuple[Any, Any]:
    parsed = [_parse_set(part, parse) for part in parts]
    variables = {variable for _, variable in parsed if variable is not None}
    if len(variables) > 1:
        raise _NotASetError
    joined = parsed[0][0]
    for part_set, _ in parsed[1:]:
        joined = join(joined, part_set)
    return joined, next(iter(variables), None)


def _parse_simple_set(text: str, parse: Callable[[str], Any]) -> Any:
    import sympy

    squashed = "".join(text.split())
    if squashed in (r"\mathbb{R}", r"\mathbbR", r"\R"):
        return sympy.S.Reals
    if squashed == r"\emptyset":
        return sympy.S.EmptySet
    if squashed.startswith(r"\{") and squashed.endswith(r"\}"):
        return sympy.FiniteSet(*(_parse_real(part, parse) for part in notation.split(squashed[2:-2])))
    if squashed[:1] in ("(", "[") and squashed[-1:] in (")", "]"):
        ends = notation.split(squashed[1:-1])
        if len(ends) == 2:
            low, high = (_parse_real(end, parse) for end in ends)
            if low > high:
                raise _NotASetError
            return sympy.Interval(low, high, squashed[0] == "(", squashed[-1] == ")")
    raise _NotASetError


def _parse_real(text: str, parse: Callable[[str], Any]) -> Any:
    import sympy

    value = sympy.sympify(parse(text.strip().removeprefix("+")))
    if not isinstance(value, sympy.Expr) or value.free_symbols or not value.is_extended_real:
        raise _NotASetError
    return sympy.nsimplify(value) if value.has(sympy.Float) else value.doit()


def _parse_inequality(text: str, parse: Callable[[str], Any]) -> tuple[Any, Any]:
    import sympy

    pieces = _RELATION.split(text)
    sides = [parse(side) for side in pieces[::2]]
    if any(not isinstance(side, sympy.Expr) for side in sides):
        raise _NotASetError
    variables = set().union(*(side.free_symbols for side in sides))
    if len(variables) != 1:
        raise _NotASetError
    (variable,) = variables
    sets = [
        _solve(left, sign, right, variable) for left, sign, right in zip(sides, pieces[1::2], sides[1:], strict=False)
    ]
    result = sets[0]
    for other in sets[1:]:
        result = result.intersect(other)
    return result, str(variable)


def _solve(left: Any, sign: str, right: Any, variable: Any) -> Any:
    import sympy

    left, right = (sympy.nsimplify(side) if side.has(sympy.Float) else side.doit() for side in (left, right))
    if left.free_symbols and right.free_symbols:
        left, right = left - right, sympy.Integer(0)
    if right == variable:
        left, right, sign = right, left, {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(sign, sign)
    if left == variable and right.is_extended_real:
        return {
            "<": lambda: sympy.Interval.open(-sympy.oo, right),
            ">": lambda: sympy.Interval.open(right, sympy.oo),
            r"\le": lambda: sympy.Interval(-sympy.oo, right),
            r"\ge": lambda: sympy.Interval(right, sympy.oo),
            r"\ne": lambda: sympy.Complement(sympy.S.Reals, sympy.FiniteSet(right)),
        }[sign]()
    difference = sympy.together(left - right)
    numerator, denominator = sympy.fraction(difference)
    for part in (numerator, denominator):
        if not part.replace(sympy.Abs, lambda inside: inside).is_polynomial(variable):
            raise _NotASetError
    if (
        not difference.has(sympy.Abs)
        and max(sympy.degree(part, variable) for part in (numerator, denominator)) > _MAX_DEGREE
    ):
        raise _NotASetError
    relation = {"<": sympy.Lt, ">": sympy.Gt, r"\le": sympy.Le, r"\ge": sympy.Ge, r"\ne": sympy.Ne}[sign]
    real = sympy.Symbol("_", real=True)
    return sympy.solve_univariate_inequality(relation(difference.subs(variable, real), 0), real, relational=False)
