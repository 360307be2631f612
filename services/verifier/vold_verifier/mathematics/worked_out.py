r"""Operations that an answer leaves to do: \gcd(12, 18) is no answer where the reference is 6.

An answer may be written with plain arithmetic, roots, powers, logarithms, binomials and trigonometric functions.
"""

import re
from collections.abc import Callable
from typing import Any

from vold_verifier.mathematics import notation

_NAMED = (
    r"\\(?:operatorname\*?|mathrm|text|mathop)\s*\{{\s*(?:{names})\s*\}}|\\(?:{names})(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(?:{names})\s*\("
)
_OPERATIONS = (
    ("an integral", re.compile(r"\\(?:i+nt|oint)(?![A-Za-z])")),
    ("a sum", re.compile(r"\\sum(?![A-Za-z])")),
    ("a product", re.compile(r"\\prod(?![A-Za-z])")),
    ("a limit", re.compile(r"\\(?:lim|limsup|liminf)(?![A-Za-z])")),
    (
        "a derivative",
        re.compile(
            r"\\frac\s*\{\s*(?:d|\\partial|\\mathrm\{d\})(?:\^\{?\d\}?)?\s*\}\s*\{\s*(?:d|\\partial|\\mathrm\{d\})\s*[a-z]"
        ),
    ),
    ("a greatest common divisor", re.compile(_NAMED.format(names="gcd|GCD|hcf|HCF|gcf|GCF"))),
    ("a least common multiple", re.compile(_NAMED.format(names="lcm|LCM"))),
    ("a minimum or maximum", re.compile(_NAMED.format(names="min|max|sup|inf|argmin|argmax"))),
    ("a remainder", re.compile(r"\\(?:bmod|mod|pmod)(?![A-Za-z])|(?<=[\d)}])\s*(?:mod|%)\s*(?=[\d(])")),
    ("a determinant", re.compile(_NAMED.format(names="det|tr|rank") + r"|\\begin\s*\{[vV]matrix\}")),
    ("an intersection", re.compile(r"\\cap(?![A-Za-z])")),
)
_MATRIX = re.compile(r"\\begin\s*\{[a-z]*matrix\}")
_ONE_MATRIX = re.compile(r"^\s*\\begin.*\\end\s*\{[a-z]*matrix\}\s*$", re.DOTALL)
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne|lt|gt|leq|geq)(?![A-Za-z])")
_SYSTEM = re.compile(r"\\begin\s*\{(?:cases|aligned|array)\}[^=]*=")
_EQUATION = re.compile(r"(?<![<>!:=\\])=(?!=)")


def operation_left(reference: str, answer: str, parse: Callable[[str], Any]) -> str | None:
    """The operation that `answer` leaves to do and `reference` does not, or None.

    Both are outputs of `notation.normalise`. Of a chain of equalities the last side counts.
    """
    if answer.isdigit():
        return None
    last = notation.split(_EQUATION.sub("\x01", answer), "\x01")[-1] if _EQUATION.search(reference) is None else answer
    for name, pattern in _OPERATIONS:
        if pattern.search(last) is not None and pattern.search(reference) is None:
            return name
    is_one_matrix = len(_MATRIX.findall(reference)) == 1 and _ONE_MATRIX.match(reference) is not None
    if is_one_matrix and len(_MATRIX.findall(last)) > 1 and len(notation.split(last)) == 1:
        return "a product or sum of matrices"
    if _SYSTEM.search(answer) is not None and _SYSTEM.search(reference) is None:
        return "a system of equations"
    if _RELATION.search(answer) is not None:
        if not is_solved(answer, parse) and (_RELATION.search(reference) is None or is_solved(reference, parse)):
            return "an inequality"
    elif (
        _EQUATION.search(answer) is not None
        and _EQUATION.search(reference) is None
        and len(notation.split(reference)) > 1
    ):
        return _equation_left(answer, parse)
    return None


def is_solved(text: str, parse: Callable[[str], Any]) -> bool:
    """Whether every inequality in `text` compares the unknown with a constant: x > 3, 2x > 6, x - 3 > 0."""
    import sympy

    for part in re.split(
        r",|\\(?:text|mathrm)\s*\{\s*(?:or|and)\s*\}|\\(?:lor|land|cup)(?![A-Za-z])|\bor\b|\band\b", text
    ):
        if _RELATION.search(part) is None:
            continue
        sides = [parse(side) for side in _RELATION.split(part)]
        variables = set().union(*(side.free_symbols for side in sides if isinstance(side, sympy.Expr)))
        unknown = [side for side in sides if isinstance(side, sympy.Expr) and side.free_symbols]
        if len(variables) != 1:
            continue
        if len(unknown) > 1:
            return False
        for side in unknown:
            inner = side.args[0] if isinstance(side, sympy.Abs) else side
            if not inner.is_polynomial(*variables) or sympy.degree(inner, *variables) > 1:
                return False
            constant = inner.subs(dict.fromkeys(variables, 0))
            if constant != 0 and abs(inner.coeff(*variables)) != 1:
                return False  # 2x - 3 > 5
            if constant != 0 and inner is side and any(other != 0 for other in sides if other is not side):
                return False  # x + 1 > 4
    return True


def _equation_left(answer: str, parse: Callable[[str], Any]) -> str | None:
    """An equation or a system that is not solved for a name."""
    import sympy

    for part in notation.split(notation.separate_with_commas(answer)):
        sides = notation.split(_EQUATION.sub("\x01", part), "\x01")
        if len(sides) != 2:
            continue
        left, right = (parse(side) for side in sides)
        if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
            continue
        if left.is_Symbol or right.is_Symbol or len(left.free_symbols | right.free_symbols) == 0 or left.is_Function:
            continue
        if left.free_symbols:
            return "an equation"
    return None
