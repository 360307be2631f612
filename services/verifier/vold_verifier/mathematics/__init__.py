"""Whether two answers are the same mathematics: numbers, units, tuples, matrices,
expressions. Pure functions of text."""

from vold_verifier.mathematics.equality import equal

__all__ = ["equal"]
