"""What can be checked: one module a verifier, behind the protocol of `base`."""

from vold_verifier.verifiers.base import (
    BadParameterError,
    BadReferenceError,
    Item,
    Parameters,
    Verdict,
    Verifier,
)

__all__ = ["BadParameterError", "BadReferenceError", "Item", "Parameters", "Verdict", "Verifier"]
