"""Read LaTeX as SymPy expressions, with latex2sympy2_extended.

A comparison reads some texts several times, in one check after another, and reading takes most of its time. So what was
read is kept until the next comparison begins, and no longer: otherwise the time of a verdict would tell one tenant what
another had verified.
"""

import re
from functools import lru_cache
from typing import Any

from vold_verifier.mathematics import notation

MAX_KEPT = 64
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)
_LETTER = re.compile(r"(?![eiI])[A-Za-z]")
"""What latex2sympy reads as a number and as a symbol too, in milliseconds."""


def forget() -> None:
    """Drop all that was read. Call it before each comparison and each evaluation."""
    parse.cache_clear()


@lru_cache(maxsize=MAX_KEPT)
def parse(text: str) -> Any:
    """`text` as a SymPy expression, or None if it does not parse."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from latex2sympy2_extended.math_normalization import normalize_latex
    from math_verify.parser import get_last_eq

    if _DIGITS.fullmatch(text):
        return sympy.Integer(text)
    if _LETTER.fullmatch(text):
        return sympy.Symbol(text, real=True)
    text = notation.separate_factors(text)
    normalised = normalize_latex(
        text, NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    )
    conversion = ConversionConfig(lowercase_symbols=False)
    for latex in dict.fromkeys((normalised, get_last_eq(normalised))):
        try:
            parsed = latex2sympy(latex, is_real=True, normalization_config=None, conversion_config=conversion)
            if isinstance(parsed, sympy.Basic) and (imaginary := [s for s in parsed.free_symbols if str(s) == "i"]):
                parsed = parsed.subs(imaginary[0], sympy.I)
        except Exception:  # noqa: S112  the parser raises many kinds of error, and the comparison i > 2 another
            continue
        return parsed
    return None
