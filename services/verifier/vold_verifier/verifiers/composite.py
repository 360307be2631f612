"""`composite`: one reward from the rewards of several verifiers.

This module has the parameters. The engine sends each part to its verifier, see `vold_verifier.engine.composite`.
"""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Pool, Verdict, Verifier

MAX_PARTS = 16


class PartParameters(Parameters):
    verifier: str = Field(description="the name of the verifier; not composite")
    name: str = Field(default="", description="the name of the part in the result; by default the name of its verifier")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the parameters of the verifier")
    reference: str | None = Field(default=None, description="replaces the reference of the item")

    @property
    def label(self) -> str:
        return self.name or self.verifier


class WeightedPart(PartParameters):
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="weight x reward is added")
    optional: bool = Field(
        default=False,
        description="an error of this part is no error of the composite: the weights of the other parts are scaled up",
    )


class Gate(PartParameters):
    at_least: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="the gate holds from this reward on; by default if the verdict is correct",
    )


class Penalty(PartParameters):
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="weight x reward is added; use a positive weight for a verifier with rewards of 0 or less, and a "
        "negative weight for a verifier that rewards unwanted text",
    )


class CompositeParameters(Parameters):
    parts: tuple[WeightedPart, ...] = Field(min_length=1, description="the reward is the sum of weight x reward")
    gates: tuple[Gate, ...] = Field(default=(), description="if a gate does not hold, the parts add nothing")
    penalties: tuple[Penalty, ...] = Field(
        default=(), description="subtracted, whether the gates hold or not; a penalty never adds"
    )

    @property
    def all_parts(self) -> tuple[WeightedPart | Gate | Penalty, ...]:
        return (*self.parts, *self.gates, *self.penalties)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if len(self.all_parts) > MAX_PARTS:
            raise ValueError(f"{len(self.all_parts)} parts, gates and penalties, over the limit of {MAX_PARTS}")
        if not any(part.weight for part in self.parts):
            raise ValueError("every part has weight 0: no completion could get a reward")
        for group in (self.parts, self.gates, self.penalties):
            labels = [part.label for part in group]
            duplicate = next((label for label in labels if labels.count(label) > 1), None)
            if duplicate is not None:
                raise ValueError(f"two of the same list are called {duplicate!r}: rename one of them")
        if any(part.verifier == CompositeVerifier.name for part in self.all_parts):
            raise ValueError("a composite cannot be part of a composite: name its parts here")
        return self


class CompositeVerifier(Verifier[CompositeParameters]):
    name: ClassVar[str] = "composite"
    summary: ClassVar[str] = "a weighted sum of other verifiers, with gates and penalties"
    parameters: ClassVar[type[CompositeParameters]] = CompositeParameters
    pool: ClassVar[Pool] = "service"
    deterministic: ClassVar[bool] = False

    def check(self, item: Item, parameters: CompositeParameters, /) -> Verdict:
        raise NotImplementedError("the engine verifies the parts of a composite")
