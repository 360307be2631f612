"""Types that `reading`, `mathematics` and `verifiers` share: the base of all parameters, and BadReferenceError."""

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Base of every verifier's parameters. An unknown parameter is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadReferenceError(ValueError):
    """The reference is unusable: the item gets an error, not a reward."""


INVALID = "invalid"
"""The reason of an error of parameters that are no parameters of the verifier, as in `vold_service.errors.REASONS`."""
