"""The verifiers, one per module, and their interface in `base`."""

from vold_verifier.types import BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, Verdict, Verifier

__all__ = ["BadParameterError", "BadReferenceError", "Item", "Parameters", "Verdict", "Verifier"]
