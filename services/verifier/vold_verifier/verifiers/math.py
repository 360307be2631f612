"""`math`: LaTeX and plain mathematical answers, by an exact fast path and then by math-verify.

The order: bounds, the same string, two exact numbers, and only then parsing. math-verify's own time limits are off:
they need SIGALRM in the main thread and turn a slow answer into a wrong one; the pool's limits hold instead.
"""

from typing import ClassVar

from vold_verifier.mathematics import spoken, symbolic
from vold_verifier.mathematics.equality import equal
from vold_verifier.reading import bounds, hacking
from vold_verifier.reading.extraction import Extraction, Found, find, reference_text
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier


class MathVerifier(Verifier[Extraction]):
    name: ClassVar[str] = "math"
    summary: ClassVar[str] = "mathematical equality: numbers, expressions, sets, intervals, matrices, equations"
    parameters: ClassVar[type[Extraction]] = Extraction

    def warm_up(self) -> None:
        symbolic.warm_up()

    def check(self, item: Item, parameters: Extraction, /) -> Verdict:
        reference = reference_text(item.reference)
        if len(reference) > bounds.MAX_ANSWER_CHARS:
            raise BadReferenceError(
                f"the reference has {len(reference):,} characters, over {bounds.MAX_ANSWER_CHARS:,}"
            )
        found = find(item.completion, parameters, item.prompt)
        if found.answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        if len(found.answer) > bounds.MAX_ANSWER_CHARS:
            return Verdict.wrong(
                found.answer[: bounds.MAX_ANSWER_CHARS],
                f"the answer has {len(found.answer):,} characters: not parsed",
                hacking.UNSAFE,
            )
        if (
            found.reason in ("whole", "statement")
            and symbolic.is_prose(found.answer)
            and not spoken.as_words(reference)
        ):
            return Verdict.wrong(None, "no marked answer: the text is a sentence")
        outcome = equal(reference, found.answer)
        if outcome.equal:
            if item.prompt and outcome.algebra and hacking.echoes(found.answer, reference, item.prompt):
                return Verdict.wrong(found.answer, "copied from the prompt, not worked out", hacking.ECHOED_PROMPT)
            return Verdict.right(found.answer, outcome.reason)
        return Verdict.wrong(found.answer, outcome.reason, outcome.rule or _rule(found, reference))


def _rule(found: Found, reference: str) -> str:
    """What to call the way in which a wrong answer is wrong, or ""."""
    assert found.answer is not None
    if found.boxes > 1:
        return hacking.SEVERAL_BOXES
    if hacking.look_alike(found.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.parts(found.answer) > hacking.parts(reference) else ""
