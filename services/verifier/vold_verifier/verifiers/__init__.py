"""What can be checked: one module a verifier, behind the protocol of `base`."""

from vold_verifier.types import BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, Verdict, Verifier

__all__ = ["BadParameterError", "BadReferenceError", "Item", "Parameters", "Verdict", "Verifier"]
