"""The interface of verifiers: a name, parameters with a schema, and a pure function from an item to a verdict.

A verifier runs in a worker process that may be killed at any moment, so it keeps no state between items and needs no
time limit of its own. A third party adds verifiers through the entry-point group `vold.verifiers`, or through a module
that `vold-verifier serve --plugin` names and whose `VERIFIERS` lists them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

from vold_verifier.types import BadReferenceError, Parameters

__all__ = [
    "BadParameterError",
    "BadReferenceError",
    "Item",
    "NoVerdictError",
    "Parameters",
    "Pool",
    "Verdict",
    "Verifier",
]


@dataclass(frozen=True, slots=True)
class Item:
    """completion: the whole text of one completion. reference: the answer to compare it with."""

    completion: str
    reference: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying one item.

    extracted: the answer extracted from the completion, or None. rule: the anti-hacking rule (a key of `hacking.RULES`)
    that refused the answer, or "". forgeable: the completion could have made this verdict by other means than a right
    answer.
    """

    reward: float
    correct: bool
    extracted: str | None
    reason: str
    rule: str = ""
    forgeable: bool = False

    @classmethod
    def right(cls, extracted: str | None, reason: str) -> "Verdict":
        return cls(1.0, True, extracted, reason)

    @classmethod
    def wrong(cls, extracted: str | None, reason: str, rule: str = "") -> "Verdict":
        return cls(0.0, False, extracted, reason, rule)


class BadParameterError(ValueError):
    """A parameter is valid by itself, but does not fit the item. `field` is the name of the parameter."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NoVerdictError(RuntimeError):
    """A resource that the verdict needs is not available now: the item gets the error UNAVAILABLE."""


Pool = Literal["main", "sandbox", "service"]

P_contra = TypeVar("P_contra", bound=Parameters, contravariant=True)


class Verifier(Protocol[P_contra]):
    """The interface. Inherit from this class for the defaults, or define the same names.

    name: the value of an item's `verifier`. summary: one line of description. parameters: the model of an item's
    `parameters`. cost: the cost of an item, in units of a cheap string comparison; a worker gets cheap items in groups,
    and costly items nearly one by one. pool: "sandbox" if the verifier, or a library under it, runs text of the
    completion as code; see docs/verifier-isolation.md. tripwire: the result in the sandbox if `check` tries to start a
    program, open a socket or write a file: an error or a wrong answer; "off" disables the tripwire. deterministic:
    equal items have equal verdicts, so that verdicts may be cached. parameters_in_worker: reading parameters of the
    size that an item may have can take more than some milliseconds, because a validator compiles or walks them; a
    worker then reads them, and not the service. version: change it with the behaviour of the verifier, so that no
    cached verdict of an earlier version is used.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    parameters: ClassVar[type[Parameters]] = Parameters
    cost: ClassVar[int] = 8
    pool: ClassVar[Pool] = "main"
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "error"
    deterministic: ClassVar[bool] = True
    parameters_in_worker: ClassVar[bool] = False
    version: ClassVar[str] = ""

    def check(self, item: Item, parameters: P_contra, /) -> Verdict:
        """Verify one item. Raises BadReferenceError or BadParameterError if the item cannot be verified."""
        ...

    def warm_up(self) -> None:
        """Import and run the code that would slow down the first item. Called once, before workers are forked."""
        return
