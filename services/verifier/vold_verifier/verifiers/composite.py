"""`composite`: one reward made of several verifiers'. The engine sends each part to its own verifier, see
`vold_verifier.engine.composite`; here is only what an item may ask for.
"""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Pool, Verdict, Verifier

MAX_PARTS = 16


class PartParameters(Parameters):
    verifier: str = Field(description="its name; not composite")
    name: str = Field(default="", description="what it is called in the result; by default as its verifier")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the verifier's own")
    reference: str | None = Field(default=None, description="in place of the item's reference")

    @property
    def label(self) -> str:
        return self.name or self.verifier


class WeightedPart(PartParameters):
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="times its reward is added")
    optional: bool = Field(
        default=False,
        description="an error of this part is no error of the whole: the other parts' weights make up for it",
    )


class Gate(PartParameters):
    at_least: float | None = Field(
        default=None, allow_inf_nan=False, description="it holds from this reward on; by default where it is correct"
    )


class Penalty(PartParameters):
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="times its reward is added; a positive weight suits a verifier whose rewards are 0 or less, a "
        "negative one a verifier that rewards what is not wanted",
    )


class CompositeParameters(Parameters):
    parts: tuple[WeightedPart, ...] = Field(min_length=1, description="the reward is the sum of weight x reward")
    gates: tuple[Gate, ...] = Field(default=(), description="where one does not hold, the parts add nothing")
    penalties: tuple[Penalty, ...] = Field(
        default=(), description="taken off, whether the gates hold or not; a penalty never adds"
    )

    @property
    def all_parts(self) -> tuple[WeightedPart | Gate | Penalty, ...]:
        return (*self.parts, *self.gates, *self.penalties)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(self.all_parts) > MAX_PARTS:
            raise ValueError(f"{len(self.all_parts)} parts, gates and penalties, over the limit of {MAX_PARTS}")
        if not any(part.weight for part in self.parts):
            raise ValueError("every part has weight 0: no completion could earn anything")
        for group in (self.parts, self.gates, self.penalties):
            labels = [part.label for part in group]
            twice = next((label for label in labels if labels.count(label) > 1), None)
            if twice is not None:
                raise ValueError(f"two of one list are called {twice!r}: give one of them another name")
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
        raise NotImplementedError("the engine judges a composite by its parts")
