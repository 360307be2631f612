"""`math`: the answer is mathematically equal to the reference; both are LaTeX or plain text.

Equal texts and plain numbers are compared exactly. Other answers are checked against `bounds`, parsed, and compared by
math-verify. math-verify's own time limits are off: they need SIGALRM in the main thread, and make a slow answer a wrong
answer. The limits of the worker pool apply instead.
"""

from typing import ClassVar, Literal

from pydantic import Field

from vold_verifier.mathematics import constants, equations, notation, numbers, spoken, symbolic
from vold_verifier.mathematics.equality import Comparison, compare
from vold_verifier.reading import bounds, hacking, labels
from vold_verifier.reading.extraction import ExtractedAnswer, find, reference_text
from vold_verifier.reading.text import symbols_to_latex
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item, Verdict, Verifier
from vold_verifier.verifiers.tolerance import ToleranceParameters


class MathParameters(ToleranceParameters):
    ordered: bool = Field(default=False, description="the order of several values matters: 1, 2 is not 2, 1")
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
        labels.warm_up()  # of every verifier that reads texts

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
        answer = extracted.named if extracted.named and _names_values(reference) else extracted.answer
        comparison = _compare_parts(reference, extracted.parts, parameters) if extracted.parts else None
        comparison = comparison or _compare(reference, answer, parameters)
        if comparison.equal:
            if item.prompt and comparison.by_algebra and hacking.is_echo(answer, reference, item.prompt):
                return Verdict.wrong(answer, "copied from the prompt, not worked out", hacking.ECHOED_PROMPT)
            if "=" in answer and _is_equation_for_number(reference, answer, item.prompt):
                return Verdict.wrong(answer, equations.LEFT_TO_SOLVE)
            return Verdict.right(answer, comparison.reason)
        return Verdict.wrong(answer, comparison.reason, comparison.rule or _rule_of_wrong_answer(extracted, reference))


def _is_equation_for_number(reference: str, answer: str, prompt: str) -> bool:
    """Whether `reference` is a number, and `answer` an equation that is left to solve."""
    if numbers.parse(symbols_to_latex(reference), with_unit=True) is None:
        return False
    return equations.is_left_to_solve(notation.clean(symbols_to_latex(answer)), prompt)


def _names_values(reference: str) -> bool:
    """Whether it matters in `reference` which name has which value: x = 1, y = 2, or the point (1, 2)."""
    return "=" in reference or reference.strip(" $").startswith(("(", r"\left("))


def _compare(reference: str, answer: str, parameters: MathParameters) -> Comparison:
    """Compare within the tolerances, and in order if the order matters."""
    if parameters.ordered:
        reference_items, answer_items = _items(reference), _items(answer)
        if len(reference_items) > 1:
            if len(reference_items) != len(answer_items):
                return Comparison(False, f"{len(answer_items)} values, {len(reference_items)} in the reference")
            for reference_item, answer_item in zip(reference_items, answer_items, strict=True):
                comparison = _compare_values(reference_item, answer_item, parameters)
                if not comparison.equal:
                    return comparison
            return Comparison(True, "the same values in order", by_algebra=True)
    return _compare_values(reference, answer, parameters)


def _compare_values(reference: str, answer: str, parameters: MathParameters) -> Comparison:
    comparison = compare(reference, answer, allow_unevaluated=parameters.unevaluated == "allow")
    if not comparison.equal and not comparison.rule and parameters.has_tolerance:
        reference_items, answer_items = _items(reference), _items(answer)
        is_tuple = reference.strip(" $").startswith(("(", r"\left("))
        if _items_are_within(reference_items, answer_items, parameters, in_order=is_tuple or parameters.ordered):
            return Comparison(True, "equal within the tolerance", by_algebra=True)
    return comparison


def _items_are_within(reference: list[str], answer: list[str], parameters: MathParameters, *, in_order: bool) -> bool:
    """Whether each value of `reference` has a value of `answer` within the tolerance, and none is left over."""
    wanted = [number for item in reference if (number := constants.parse(item)) is not None]
    given = [number for item in answer if (number := constants.parse(item)) is not None]
    if not len(reference) == len(answer) == len(wanted) == len(given):
        return False
    if not in_order:
        wanted.sort(key=lambda number: number.value)
        given.sort(key=lambda number: number.value)
    return all(map(parameters.admits, given, wanted))


def _compare_parts(reference: str, parts: tuple[str, ...], parameters: MathParameters) -> Comparison | None:
    """Compare the boxes of the parts (a), (b), ... with a reference that lists as many values; None for another one."""
    items = _items(reference)
    if len(items) != len(parts):
        return None
    comparisons = [_compare_values(item, part, parameters) for item, part in zip(items, parts, strict=True)]
    return next((comparison for comparison in comparisons if not comparison.equal), comparisons[-1])


def _items(text: str) -> list[str]:
    """The values that `text` lists, without the brackets around the list. A number with commas is one value."""
    latex = notation.clean(symbols_to_latex(text))
    if numbers.parse(latex, with_unit=True) is not None:
        return [latex]
    if latex.startswith(r"\{") and latex.endswith(r"\}"):
        latex = latex[2:-2]
    elif latex[:1] + latex[-1:] in ("()", "[]") and notation.is_enclosed(latex):
        latex = latex[1:-1]
    return [item for item in notation.split(notation.separate_with_commas(latex)) if item]


def _rule_of_wrong_answer(extracted: ExtractedAnswer, reference: str) -> str:
    """The anti-hacking rule that a wrong answer breaks, or ""."""
    assert extracted.answer is not None
    if extracted.box_count > 1:
        return hacking.SEVERAL_BOXES
    if hacking.has_look_alikes(extracted.answer):
        return hacking.LOOK_ALIKE
    return hacking.SEVERAL_ANSWERS if hacking.count_answers(extracted.answer) > hacking.count_answers(reference) else ""
