"""Compare mathematical answers: numbers, units, tuples, sets, matrices, expressions. Pure functions of text."""

from vold_verifier.mathematics.equality import Comparison, compare

__all__ = ["Comparison", "compare"]
