"""Make latex2sympy's parser faster, with the same results.

ANTLR has two prediction modes. SLL looks at the text alone. LL also looks at the stack of rules, which is many times
slower and is not cached. If SLL parses a text without a syntax error, LL gives the same tree, so the documentation
recommends to try SLL first (Parr, "The Definitive ANTLR 4 Reference", 13.7; the Javadoc of PredictionMode.SLL).
latex2sympy always uses LL.
"""

from typing import Any

_PATCHED = "_vold_two_stages"


def parse_in_two_stages() -> None:
    """Make every latex2sympy parser of this process try SLL first. Further calls have no effect."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    if getattr(_Latex2Sympy, _PATCHED, False):
        return
    create = _Latex2Sympy.create_parser

    def create_parser(self: Any, text: str) -> Any:
        parser = create(self, text)
        parse = parser.math

        def math() -> Any:
            parser._interp.predictionMode = PredictionMode.SLL
            try:
                return parse()
            except Exception:  # latex2sympy's listener raises a bare Exception for a syntax error
                # A new parser: the lexer of the first has consumed the text before the error.
                return create(self, text).math()

        parser.math = math
        return parser

    _Latex2Sympy.create_parser = create_parser
    setattr(_Latex2Sympy, _PATCHED, True)
