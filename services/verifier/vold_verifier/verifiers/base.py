"""What a verifier is: a name, parameters with a schema, and a pure function from an item to a verdict.

A verifier runs in a worker process that may be killed at any moment, so it keeps no state between items and needs no
time limit of its own. A third party adds one through the entry-point group `vold.verifiers`, or through a module
named to `vold-verifier serve --plugin` whose `VERIFIERS` lists them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

from vold_verifier.types import Parameters


@dataclass(frozen=True, slots=True)
class Item:
    """completion: the whole text of one completion. reference: the answer it is held against."""

    completion: str
    reference: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """reward: what the trainer sees. extracted: the answer that was read, None where there was none. rule: the
    anti-hacking rule (a name of `hacking.RULES`) that refused the answer, or "".
    """

    reward: float
    correct: bool
    extracted: str | None
    reason: str
    rule: str = ""

    @classmethod
    def right(cls, extracted: str | None, reason: str) -> "Verdict":
        return cls(1.0, True, extracted, reason)

    @classmethod
    def wrong(cls, extracted: str | None, reason: str, rule: str = "") -> "Verdict":
        return cls(0.0, False, extracted, reason, rule)


class BadParameterError(ValueError):
    """A parameter that is valid by itself does not fit this item. `field` is the parameter's name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NoVerdictError(RuntimeError):
    """What a verdict needs is not to be had now, and the item is not to blame: it gets UNAVAILABLE."""


Pool = Literal["main", "sandbox", "service"]

P_contra = TypeVar("P_contra", bound=Parameters, contravariant=True)


class Verifier(Protocol[P_contra]):
    """Inherit from it for the defaults, or offer the same names.

    name: what an item's `verifier` says. summary: one line for people. parameters: the model of an item's
    `parameters`. cost: roughly how many cheap string checks one item costs; cheap items travel to a worker in
    groups, costly ones nearly alone. pool: "sandbox" for what runs text of the completion as code, in the verifier or
    in a library under it; see docs/verifier-isolation.md. tripwire: in the sandbox, what an item comes to whose check
    tried to start a program, open a socket or write a file: an error, a wrong answer, or ("off") nothing is watched.
    deterministic: equal items have equal verdicts, so that one may be kept. version: to be changed with what the
    verifier does, so that no verdict of an earlier one is used.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    parameters: ClassVar[type[Parameters]] = Parameters
    cost: ClassVar[int] = 8
    pool: ClassVar[Pool] = "main"
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "error"
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = ""

    def check(self, item: Item, parameters: P_contra, /) -> Verdict:
        """Judge one item. Raises BadReferenceError or BadParameterError where it cannot be judged."""
        ...

    def warm_up(self) -> None:
        """Import and run what the first item would otherwise pay for. Called once, before workers are forked."""
        return
