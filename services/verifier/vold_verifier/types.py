"""What reading, mathematics and verifiers have in common: the base of parameters, and a reference that is no use."""

from pydantic import BaseModel, ConfigDict


class Parameters(BaseModel):
    """Base of every verifier's parameters. A name that is not a parameter is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadReferenceError(ValueError):
    """The reference cannot be judged against: the item gets an error, not a reward."""
