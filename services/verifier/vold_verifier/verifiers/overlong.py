"""`overlong`: a penalty that grows from 0 to -1 over the last stretch before a length limit. No reference is used.

Soft overlong punishment of DAPO (arXiv:2503.14476, equation 13): with limit L and buffer B, a completion of length n
has 0 up to L - B, (L - B - n) / B from there to L, and -1 beyond.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class OverlongParameters(Parameters):
    max_length: int = Field(gt=0, description="L: from here on the penalty is -1")
    buffer: int = Field(gt=0, description="B: the stretch before the limit over which the penalty grows")
    unit: Literal["characters", "words"] = Field(default="characters", description="what lengths are counted in")
    length: int | None = Field(
        default=None, ge=0, description="the completion's length where the caller knows it, for example in tokens"
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
