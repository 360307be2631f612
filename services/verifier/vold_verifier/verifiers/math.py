"""`math`: the answer is mathematically equal to the reference; both are LaTeX or plain text.

Equal texts and plain numbers are compared exactly. Other answers are checked against `bounds`, parsed, and compared by
math-verify. math-verify's own time limits are off: they need SIGALRM in the main thread, and make a slow answer a wrong
answer. The limits of the worker pool apply instead.
"""

from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import spoken, symbolic
from vold_verifier.mathematics.equality import compare
from vold_verifier.reading import bounds, hacking
from vold_verifier.reading.extraction import ExtractedAnswer, Extraction, find, reference_text
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class MathParameters(Extraction):
    unevaluated: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="refuse an operation that is left to do (an integral, a limit, a gcd, an inequality to solve, ...) "
        "where the reference is worked out, or compare its value",
    )


class MathVerifier(Verifier[MathParameters]):
    name: ClassVar[str] = "math"
    summary: ClassVar[str] = "mathematical equality: numbers, expressions, sets, intervals, matrices, equations"
    parameters: ClassVar[type[MathParameters]] = MathParameters

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: MathParameters, /) -> Verdict:
        reference = reference_text(item.reference)
        if len(reference) > bounds.MAX_ANSWER_CHARS:
            raise BadReferenceError(
                f"the reference has {len(reference):,} characters, over {bounds.MAX_ANSWER_CHARS:,}"
            )
        extracted = find(item.completion, parameters, item.prompt)
        if extracted.answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(extracted.answer) > bounds.MAX_ANSWER_CHARS:
            return Verdict.wrong(
                extracted.answer[: bounds.MAX_ANSWER_CHARS],
                f"the answer has {len(extracted.answer):,} characters: not parsed",
                hacking.UNSAFE,
            )
        if (
            extracted.reason in ("whole", "statement")
            and symbolic.is_prose(extracted.answer)
            and not spoken.as_words(reference)
        ):
            return Verdict.wrong(None, "no marked answer: the text is a sentence")
        comparison = compare(reference, extracted.answer, allow_unevaluated=parameters.unevaluated == "allow")
        if comparison.equal:
            if item.prompt and comparison.by_algebra and hacking.is_echo(extracted.answer, reference, item.prompt):
                return Verdict.wrong(extracted.answer, "copied from the prompt, not worked out", hacking.ECHOED_PROMPT)
            return Verdict.right(extracted.answer, comparison.reason)
        return Verdict.wrong(
            extracted.answer, comparison.reason, comparison.rule or _rule_of_wrong_answer(extracted, reference)
        )


def _rule_of_wrong_answer(extracted: ExtractedAnswer, reference: str) -> str:
    """The anti-hacking rule that a wrong answer breaks, or ""."""
    assert extracted.answer is not None
    if extracted.box_count > 1:
        return hacking.SEVERAL_BOXES
    if hacking.has_look_alikes(extracted.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.count_answers(extracted.answer) > hacking.count_answers(reference) else ""
