"""`overlong`: a penalty from 0 to -1 for completions near and over a length limit. The reference is not used.

Soft overlong punishment of DAPO (arXiv:2503.14476, equation 13): with limit L and buffer B, the reward of a completion
of length n is 0 up to L - B, (L - B - n) / B from L - B to L, and -1 beyond L.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class OverlongParameters(Parameters):
    max_length: int = Field(gt=0, description="L: from this length on the penalty is -1")
    buffer: int = Field(gt=0, description="B: the penalty grows over this length before the limit")
    unit: Literal["characters", "words"] = Field(default="characters", description="the unit of lengths")
    length: int | None = Field(
        default=None, ge=0, description="the length of the completion if the caller knows it, for example in tokens"
    )

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.buffer > self.max_length:
            raise ValueError(f"buffer {self.buffer} is longer than max_length {self.max_length}")
        return self


class OverlongVerifier(Verifier[OverlongParameters]):
    name: ClassVar[str] = "overlong"
    summary: ClassVar[str] = "a penalty from 0 to -1 for completions near and past a length limit (DAPO)"
    parameters: ClassVar[type[OverlongParameters]] = OverlongParameters
    cost: ClassVar[int] = 1

    def check(self, item: Item, parameters: OverlongParameters, /) -> Verdict:
        length = parameters.length
        if length is None:
            length = len(item.completion) if parameters.unit == "characters" else len(item.completion.split())
        free = parameters.max_length - parameters.buffer
        reward = -min(1.0, max(0, length - free) / parameters.buffer)
        reason = f"length {length:,}: free up to {free:,}, -1 from {parameters.max_length:,}"
        return Verdict(reward or 0.0, reward == 0, None, reason)
