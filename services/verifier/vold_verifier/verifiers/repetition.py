"""`repetition`: a penalty for repeated n-grams. The reference is not used.

The penalty grows with the share of n-grams that are repeats, 1 - distinct / all, beyond the allowed share (Yeo et al.
2025, arXiv:2502.03373, as in Open-R1's repetition penalty).
"""

from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.reading.text import normalise
from vold_verifier.types import Parameters
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class RepetitionParameters(Parameters):
    n: int = Field(default=8, ge=1, le=100, description="words or characters in an n-gram")
    unit: Literal["words", "characters"] = Field(
        default="words", description="words separated by white space, or characters for scripts without spaces"
    )
    allowed: float = Field(default=0.1, ge=0, lt=1, description="the share of repeats without a penalty")
    max_penalty: float = Field(default=1.0, gt=0, le=1, description="the penalty if every n-gram is a repeat")


class RepetitionVerifier(Verifier[RepetitionParameters]):
    name: ClassVar[str] = "repetition"
    summary: ClassVar[str] = "a penalty from 0 to -1 for repeated n-grams"
    parameters: ClassVar[type[RepetitionParameters]] = RepetitionParameters
    cost: ClassVar[int] = 4

    def check(self, item: Item, parameters: RepetitionParameters, /) -> Verdict:
        text = normalise(item.completion).lower()
        units = text.split() if parameters.unit == "words" else "".join(text.split())
        total = len(units) - parameters.n + 1
        if total < 2:
            return Verdict(0.0, True, None, f"too short for two {parameters.n}-grams")
        distinct = len({hash(tuple(units[start : start + parameters.n])) for start in range(total)})
        share = 1 - distinct / total
        excess = max(0.0, share - parameters.allowed) / (1 - parameters.allowed)
        reason = f"{share:.1%} of {total:,} {parameters.n}-grams are repeats, {parameters.allowed:.0%} allowed"
        return Verdict(-parameters.max_penalty * excess or 0.0, excess == 0, None, reason)
