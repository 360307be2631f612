"""Compare identities, and expressions with a constant of integration, whose name means nothing.

Algebra finds every identity true, and so equal to every other: here two identities are equal if the difference of their
sides has the same terms.
"""

import re
from collections.abc import Callable
from itertools import permutations
from typing import Any

from vold_verifier.mathematics import notation, polynomials

MAX_CONSTANTS = 3
INTEGER_POINTS = ((2, 3, 5, 4), (3, 2, 4, 5), (5, 4, 2, 3))
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_SPACE = re.compile(r"\s+|[{}]")
_ONE_CONSTANT = frozenset({"C", "c", "K", "k", "D", "const", "constant"})
_NUMBERED = re.compile(r"[CcKkA]_\{?\d\}?$")
_SEVERAL_CONSTANTS = re.compile(r"(?:[CcKk]_\{?\d\}?|[ABDKabk])$")


def are_equal(
    reference: str, answer: str, parse: Callable[[str], Any], agree: Callable[[Any, Any], bool]
) -> bool | None:
    """Whether `answer` is the identity `reference`; None if `reference` is none.

    Both are outputs of `notation.normalise`. agree: whether two expressions agree at several points. Terms may change
    sides and places, so that a^2-b^2=(a-b)(a+b) is (a-b)(a+b)-a^2+b^2=0. An identity of two numbers, or with the same
    terms on both sides, equals only the same text.
    """
    if _EQUALS.search(reference) is None:
        return None
    sides = _sides(reference, parse)
    if sides is None:
        return None
    if not _is_identity(*sides, agree):
        return False if _says_nothing(answer, parse) else None
    given = _sides(answer, parse)
    if given is None:
        return False
    difference, given_difference = (left - right for left, right in (sides, given))
    if difference == 0 or not difference.free_symbols:
        known_texts, given_texts = (
            [_SPACE.sub("", side) for side in _EQUALS.split(text)] for text in (reference, answer)
        )
        return given_texts in (known_texts, known_texts[::-1])
    return given_difference in (difference, -difference)


def _says_nothing(answer: str, parse: Callable[[str], Any]) -> bool:
    """Whether `answer` is an equation of a text with itself, such as 0=0, which algebra may find equal to any other."""
    sides = _sides(answer, parse)
    return sides is not None and sides[0] == sides[1]


def _sides(text: str, parse: Callable[[str], Any]) -> tuple[Any, Any] | None:
    import sympy

    sides = notation.split(_EQUALS.sub("\x01", text), "\x01")
    if len(sides) != 2:
        return None
    left, right = (parse(side.replace("\x01", "=")) for side in sides)  # the k=1 of a sum
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)) or left.is_Matrix or right.is_Matrix:
        return None
    return _evaluate(left), _evaluate(right)


def _evaluate(expression: Any) -> Any:
    """`expression` with like factors and terms collected, as the parser leaves them apart; nothing is expanded."""
    import sympy

    if not expression.args:
        return expression
    if isinstance(expression, sympy.UnevaluatedExpr):
        return _evaluate(expression.args[0])
    return expression.func(*(_evaluate(part) if isinstance(part, sympy.Expr) else part for part in expression.args))


def _is_identity(left: Any, right: Any, agree: Callable[[Any, Any], bool]) -> bool:
    import sympy

    if left == right:
        return True
    if not (variables := left.free_symbols | right.free_symbols):
        return False
    same = polynomials.are_equal(left, right)
    if same is not None:
        return same
    if left.has(sympy.Sum, sympy.Product) or right.has(sympy.Sum, sympy.Product):
        return _agree_at_integers(left, right)
    shift = sum(variables)  # so that both have every variable
    if agree(left + shift, right + shift):
        return True
    if not (left.has(sympy.log) or right.has(sympy.log)):
        return False
    positive = {symbol: sympy.exp(symbol) for symbol in variables}  # where logarithms are real
    return bool(agree((left + shift).xreplace(positive), (right + shift).xreplace(positive)))


def _agree_at_integers(left: Any, right: Any) -> bool:
    """Whether two sums agree where the number of their terms is an integer."""
    variables = sorted(left.free_symbols | right.free_symbols, key=str)
    for point in INTEGER_POINTS:
        values = dict(zip(variables, point, strict=False))
        if len(variables) > len(point) or not (left - right).subs(values).doit().equals(0):
            return False
    return True


def with_constants_of(reference: Any, answer: Any, equal: Callable[[Any, Any], bool]) -> bool:
    """Whether two SymPy expressions are equal for one naming of their constants of integration.

    These are a single term C, or C_1, C_2, ...; the answer may call them otherwise.
    """
    import sympy

    if not isinstance(reference, sympy.Expr) or not isinstance(answer, sympy.Expr):
        return False
    constants = [symbol for symbol in reference.free_symbols if _NUMBERED.match(str(symbol))]
    pattern: Callable[[str], object] = _SEVERAL_CONSTANTS.match
    if not constants:
        constants = [
            symbol for symbol in reference.free_symbols if str(symbol) == "C" and _is_constant(reference, symbol)
        ]
        pattern = _ONE_CONSTANT.__contains__
    others = reference.free_symbols - set(constants)
    names = [symbol for symbol in answer.free_symbols - others if pattern(str(symbol))]
    if not constants or len(constants) > MAX_CONSTANTS or len(names) != len(constants):
        return False
    if len(constants) == 1 and str(constants[0]) == "C" and not _is_constant(answer, names[0]):
        return False
    return any(
        equal(reference, answer.xreplace(dict(zip(names, chosen, strict=True)))) for chosen in permutations(constants)
    )


def _is_constant(expression: Any, symbol: Any) -> bool:
    """Whether `symbol` is a term of a sum, or the factor of an exponential, as in the solution Ce^x of y' = y."""
    import sympy

    is_factor = symbol in sympy.Mul.make_args(expression) and expression.has(sympy.exp)
    return _is_term(expression, symbol) or (is_factor and len(expression.free_symbols) > 1)


def _is_term(expression: Any, symbol: Any) -> bool:
    """Whether `symbol` is a term of a sum with other variables."""
    import sympy

    terms = sympy.Add.make_args(expression)
    return (
        len(terms) > 1
        and symbol in terms
        and len(expression.free_symbols) > 1
        and not (expression - symbol).has(symbol)
    )
