"""latex2sympy's parser, made quicker without changing what it reads.

ANTLR predicts in two ways: SLL looks at the text alone, LL also at the rules that led there, which is many times
slower and never remembered. Its documentation says that a text which SLL parses without a syntax error has the same
tree under LL, and recommends to try them in this order (Parr, "The Definitive ANTLR 4 Reference", 13.7; the Javadoc of
PredictionMode.SLL). latex2sympy always uses LL.
"""

from typing import Any

_SWITCHED = "_vold_two_stages"


def parse_in_two_stages() -> None:
    """Let every latex2sympy parser of this process try SLL first. Calling it again changes nothing."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    if getattr(_Latex2Sympy, _SWITCHED, False):
        return
    create = _Latex2Sympy.create_parser

    def create_parser(self: Any, text: str) -> Any:
        parser = create(self, text)
        parse = parser.math

        def math() -> Any:
            parser._interp.predictionMode = PredictionMode.SLL
            try:
                return parse()
            except Exception:  # what latex2sympy's listener raises for a syntax error is a bare Exception
                # A new one: the lexer of this one has gone past what it could not read.
                return create(self, text).math()

        parser.math = math
        return parser

    _Latex2Sympy.create_parser = create_parser
    setattr(_Latex2Sympy, _SWITCHED, True)
