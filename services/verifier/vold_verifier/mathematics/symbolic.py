"""Compare two mathematical texts by math-verify's algebra, with checks for answers that math-verify decides wrongly.

The texts are read with upper and lower case distinct, and without latex2sympy's removal of units, which would read the
t of 3 + 2t as tonnes (`parsing`). Each check refuses an answer that math-verify accepts: a false chain ("1 = 2" for
2), an unevaluated integral or sum, another unit, another or a missing base, an anagram ("seat" for "east"), and tiny
values that agree in six decimals. Expressions that algebra finds different are also evaluated at a few points.
"""

import logging
import re
from typing import Any

from vold_verifier.mathematics import (
    chemistry,
    clock,
    families,
    geometry,
    grammar,
    identities,
    literals,
    matrices,
    noncommutative,
    notation,
    numbers,
    parsing,
    piecewise,
    polynomials,
    propositions,
    quantities,
    reals,
    spoken,
    tuples,
    units,
    values,
    worked_out,
)

_NUMBER_IN_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\d]*[^{}\d\s][^{}\d]*\d")
_ASSIGNMENT = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!=)\s*")
_BACKWARD_ASSIGNMENT = re.compile(r"^([^=<>,]*[^=<>,\s!\\])\s*=\s*([A-Za-z])$")
_FUNCTION_HEAD = re.compile(r"^\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*\([^()]*,[^()]*\)$")
_NAME = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?$")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?![A-Za-z])")
_DERIVATIVE_HEAD = re.compile(r"^[A-Za-z]'{1,3}\s*(?:\([A-Za-z]\))?\s*=(?!=)\s*")
_FUNCTION_DEFINITION = re.compile(r"^([A-Za-z]\([A-Za-z]\)|y)\s*=(?!=)\s*")
_SPACING = re.compile(r"(?<!\d)\s+|\s+(?!\d)|\\[,;: ](?!\d)")
_IN_BASE = re.compile(r"^\(?([0-9A-Za-z]+)\)?_\{?(\d+)\}?$")
_BASE_NAMES = re.compile(r"_\s*\{\s*\\(?:text|mathrm|textrm)\s*\{\s*(?:base )?(?P<name>[a-z]+|\d+)\s*\}\s*\}")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"} | {
    "ten": "10",
    "twelve": "12",
    "sixteen": "16",
}
_APPROX = re.compile(r"\\(?:approx|simeq|doteq|sim)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_OPERATOR_NAME = re.compile(r"\\operatorname\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

_KINDS = (
    (clock.same_time, "time"),
    (spoken.same_list_of_words, "list of words"),
    (spoken.same_words, "words"),
    (spoken.same_ratio_or_time, "ratio or time"),
    (chemistry.are_equal, "formula"),
    (literals.are_equal, "text"),
    (geometry.are_equal, "figure"),
    (propositions.are_equal, "formula"),
    (noncommutative.are_equal, "product"),
    (families.same_residues, "congruence"),
)
"""Answers that algebra does not compare: each function gives None for a reference of another kind."""

APPROXIMATION_TOLERANCE = 0.01
MAX_REPEATED = 20


class UnreadableError(ValueError):
    """The reference does not parse (`is_text`), or has no value."""

    def __init__(self, message: str, *, is_text: bool) -> None:
        super().__init__(message)
        self.is_text = is_text


def remove_spacing(text: str) -> str:
    """Remove the white space that has no meaning; spaces between digits stay."""
    return _SPACING.sub("", text)


def value_side(text: str) -> str:
    """The right side of `x = 3`, the left side of `3 = x`; any other text unchanged."""
    if "=" not in text:
        return text
    if match := _BACKWARD_ASSIGNMENT.match(text):
        return match.group(1).strip()
    return _ASSIGNMENT.sub("", text, count=1)


def is_prose(text: str) -> bool:
    """Whether `text` is a sentence: it has more than two words."""
    return len(_PROSE_WORD.findall(_TEXT.sub("", text))) > 2


def warm_up() -> None:
    # math-verify would warn in every worker that its time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    grammar.parse_in_two_stages()
    for reference, answer in (
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("[1, 2)", "1 <= x < 2"),
    ):
        compare(reference, answer)
    compare(r"\{1, 2\}", r"x = 1, x = 2")
    numbers.parse(r"5\text{ kJ}", with_unit=True)  # reads the table of units


def compare(reference: str, answer: str, *, allow_unevaluated: bool = False) -> tuple[bool, str, str]:
    """(whether the two are equal, the reason, the anti-hacking rule that refused the answer or "").

    Both texts are outputs of `notation.clean` and within `bounds`. The computation may never end: the caller limits its
    time. Raises UnreadableError if the reference does not parse or has no value.

    allow_unevaluated: an operation that is left to do (\\gcd(12, 18) for 6) is an answer.
    """
    for are_equal, kind in _KINDS:
        if (same := are_equal(reference, answer)) is not None:
            return same, f"the same {kind}" if same else f"another {kind}", ""
    reference, answer = _normalise_base(reference), _normalise_base(answer)
    if (mismatch := _base_mismatch(reference, answer)) is not None:
        return False, mismatch, ""
    if _NUMBER_IN_TEXT.search(answer) and not _NUMBER_IN_TEXT.search(reference):
        return False, "a number inside text, which algebra would ignore", ""
    if numbers.parse(reference) is not None:
        answer = notation.with_counts(answer)
    elif numbers.parse(answer) is not None or "binom" in answer:
        reference = notation.with_counts(reference)
    reference, answer = (piecewise.as_assignments(notation.normalise(text)) for text in (reference, answer))
    if (same := piecewise.are_equal(reference, answer, lambda x, y: compare(x, y)[0])) is not None:
        return same, "the same cases" if same else "other cases", ""
    if notation.is_unfinished(answer) and not notation.is_unfinished(reference):
        return False, "a number that is not written to its end", ""
    if not allow_unevaluated and (operation := worked_out.operation_left(reference, answer, parsing.parse)) is not None:
        return False, f"{operation} is left to do", "unevaluated"
    if (same := families.same_family(reference, answer, parsing.parse)) is not None:
        return same, "the same family" if same else "another family", ""
    if (same := reals.are_equal(_remove_set_name(reference), _remove_set_name(answer), parsing.parse)) is not None:
        return same, "the same set" if same else "another set", ""
    reference, reference_unit = quantities.split_unit(reference)
    answer, answer_unit = quantities.split_unit(answer)
    if reference_unit and not answer_unit and r"\pi" in answer and _measures_angles(reference_unit):
        answer_unit = "rad"
    if reference_unit and answer_unit:
        converted = quantities.convert(answer, answer_unit, reference_unit)
        if converted is None:
            return False, f"another unit: {answer_unit}", ""
        answer = converted
    if not allow_unevaluated and _has_letters_beside(reference, answer):
        return False, "letters beside a number", "unevaluated"
    joined_by_or = [notation.OR.search(text) is not None for text in (reference, answer)]
    reference, answer = notation.separate_with_commas(reference), notation.separate_with_commas(answer)
    if joined_by_or[0] != joined_by_or[1] and tuples.is_assignment(reference) and tuples.is_assignment(answer):
        return False, "one value each and a choice of values", ""
    if joined_by_or[0] != joined_by_or[1] and all(
        sum(_RELATION.search(part) is not None for part in notation.split(text)) > 1 for text in (reference, answer)
    ):
        return False, "conditions that hold together and a choice of conditions", ""
    if joined_by_or == [True, False] and "(" not in reference and re.match(r"\(.*,.*\)$", answer) is not None:
        return False, "an ordered pair and a choice of values", ""
    if (same := _same_repeated_values(reference, answer)) is not None:
        return same, "the same values" if same else "other values, or each another number of times", ""
    return _compare_values(reference, answer)


def _measures_angles(text: str) -> bool:
    unit = units.parse(text)
    return unit is not None and unit.dimensions == (("A", 1),)


def _same_repeated_values(reference: str, answer: str) -> bool | None:
    """Whether `answer` has each value as often as `reference`; None if that repeats none: 2, 2, 3 is not 2, 3."""
    known, given = notation.split(reference), notation.split(answer)
    if not 1 < len(known) <= MAX_REPEATED or len({remove_spacing(item) for item in known}) == len(known):
        return None
    for item in known:
        same = next((other for other in given if _parts_equal(item, other)), None)
        if same is None:
            return False
        given.remove(same)
    return not given


def _has_letters_beside(reference: str, answer: str) -> bool:
    """Whether `reference` is a number, and `answer` an expression with letters, 0x or sin^2 x + cos^2 x, or with words.

    Algebra would cancel them: "0 is wrong" would be a product with 0.
    """
    if "=" in answer or numbers.parse(reference) is None:
        return False
    letters = _COMMAND.sub("", _OPERATOR_NAME.sub("", _APPROX.split(answer)[-1])).replace("and", "").replace("or", "")
    return any(character.isalpha() and character not in "ei" for character in letters)


def _compare_values(reference: str, answer: str) -> tuple[bool, str, str]:
    """`compare`, once units are removed and lists have commas."""
    if remove_spacing(reference) == remove_spacing(answer):
        return True, "the same text", ""
    if (same := tuples.are_equal(reference, answer, _parts_equal)) is not None:
        return same, "the same tuple" if same else "another tuple", ""
    if _EQUALS.search(answer) is None:
        reference = _DERIVATIVE_HEAD.sub("", reference)
    if reference.count("'") != answer.count("'"):
        return False, "only one of the two has a derivative or a primed letter", ""
    reference = _APPROX.split(reference)[0].strip()
    approximations = [part.strip() for part in _APPROX.split(answer) if part.strip()]
    if len(approximations) > 1 and not values.constants_agree(approximations, APPROXIMATION_TOLERANCE):
        return False, "the two sides of the approximation are far apart", "false_chain"
    comparison = False, "not equal", ""
    for approximation in approximations:
        comparison = _compare_expressions(reference, approximation)
        if comparison[0]:
            return comparison
    return comparison


def _parts_equal(reference: str, answer: str) -> bool:
    reference_number, answer_number = numbers.parse(reference), numbers.parse(answer)
    if reference_number is not None and answer_number is not None:
        return numbers.are_equal(reference_number, answer_number)
    return remove_spacing(reference) == remove_spacing(answer) or _compare_expressions(reference, answer)[0]


def _compare_expressions(reference: str, answer: str) -> tuple[bool, str, str]:
    """Compare two texts that have no approximation sign in them."""
    if _EQUALS.search(reference) is None:
        answer = _BACKWARD_ASSIGNMENT.sub(r"\2 = \1", answer)
        sides = _split_at_equals(answer)
        if len(sides) > 1 and not ("," in answer or ";" in answer):
            if not values.constants_agree(sides, values.FLOAT_TOLERANCE):
                return False, "a chain of equalities that is false", "false_chain"
            if len(sides) == 2 and _NAME.match(sides[0].strip()):
                if _has_name(sides[1], sides[0].strip()):
                    return False, "an equation in the name that it defines", ""
                answer = sides[1]
            elif parsing.parse(sides[0]) is None or values.evaluate_text(sides[0]) is not None:
                answer = sides[-1]
    elif _measures_differ(reference, answer):
        return False, "the measure of another figure", ""
    elif (same := identities.are_equal(reference, answer, parsing.parse, values.agree_at_points)) is not None:
        return same, "the same identity" if same else "another identity", ""
    elif (definitions := _same_head(reference, answer)) is not None:
        reference, answer = definitions
    elif (
        (reference_head := _FUNCTION_DEFINITION.match(reference))
        and (answer_head := _FUNCTION_DEFINITION.match(answer))
        and "y" in (reference_head[1], answer_head[1])
    ):  # y = x^2 and f(x) = x^2 define the same function
        reference, answer = reference[reference_head.end() :], answer[answer_head.end() :]
    parsed_reference, parsed_answer = parsing.parse(reference), parsing.parse(answer)
    if parsed_reference is None or _is_undefined(parsed_reference):
        is_text = parsed_reference is None
        raise UnreadableError(
            "the reference does not parse" if is_text else "the reference has no value", is_text=is_text
        )
    if parsed_answer is None or _is_undefined(parsed_answer):
        return False, "the answer has no value" if parsed_answer is not None else "the answer does not parse", ""
    has_percent = "%" in reference + answer
    equal, reason = _compare_parsed(parsed_reference, parsed_answer, has_percent=has_percent)
    if not equal and identities.with_constants_of(
        parsed_reference, parsed_answer, lambda x, y: _compare_parsed(x, y, has_percent=has_percent)[0]
    ):
        return True, "equal but for the names of constants", ""
    return equal, reason, ""


def _has_name(text: str, name: str) -> bool:
    return (
        re.search(rf"(?<![\\A-Za-z_{{]){re.escape(name)}(?![A-Za-z_\d])", notation.separate_factors(text)) is not None
    )


def _measures_differ(reference: str, answer: str) -> bool:
    r"""Whether two equations give the measures of two figures: AB = 5 and CD = 5, \angle A = 30 and \angle B = 30."""
    reference_sides, answer_sides = _split_at_equals(reference), _split_at_equals(answer)
    return (
        len(reference_sides) == len(answer_sides) == 2
        and remove_spacing(reference_sides[0]) != remove_spacing(answer_sides[1])
        and geometry.name_different_measures(reference_sides[0], answer_sides[0])
    )


def _same_head(reference: str, answer: str) -> tuple[str, str] | None:
    """The right sides of two definitions of one name or function, V = ... or E(x, y) = ...; None for other equations.

    The answer may leave out the head.
    """
    reference_sides, answer_sides = _split_at_equals(reference), _split_at_equals(answer)
    if len(reference_sides) != 2 or len(answer_sides) > 2 or _RELATION.search(answer) is not None:
        return None
    is_function = _FUNCTION_HEAD.match(reference_sides[0]) is not None
    if len(answer_sides) == 1:
        is_name = is_function or _NAME.match(reference_sides[0]) is not None
        return (reference_sides[1], answer) if is_name else None
    if not is_function or remove_spacing(answer_sides[0]) != remove_spacing(reference_sides[0]):
        return None
    return reference_sides[1], answer_sides[1]


def _compare_parsed(reference: Any, answer: Any, *, has_percent: bool) -> tuple[bool, str]:
    """Compare two SymPy expressions: (whether they are equal, the reason)."""
    if reference == answer:
        return True, "equal by algebra"
    if (has_matrix := matrices.contains_matrix(reference)) != matrices.contains_matrix(answer):
        return False, "only one of the two is a matrix"
    if has_matrix:
        equal = matrices.are_equal(reference, answer, _equal_by_math_verify)
        return equal, "equal by algebra" if equal else "not equal"
    if _inequalities_agree(reference, answer):
        return True, "the same inequality"
    if (same := polynomials.are_equal(reference, answer)) is not None:
        return same, "equal by algebra" if same else "not equal"
    if polynomials.has_large_power(reference) or polynomials.has_large_power(answer):
        agree = values.agree_at_points(reference, answer)
        return agree, "equal at every point tried" if agree else "not equal"
    # Before algebra: both conditions must hold, and this one is faster.
    if not has_percent and values.constants_differ(reference, answer):
        return False, f"not equal at {values.DIGITS} digits"
    equal = _equal_by_math_verify(reference, answer)
    if not equal and not values.agree_at_points(reference, answer):
        return False, "not equal"
    return True, "equal by algebra" if equal else "equal at every point tried"


def _equal_by_math_verify(reference: Any, answer: Any) -> bool:
    from math_verify import verify

    return verify(reference, answer, timeout_seconds=None, allow_set_relation_comp=True)


def _split_at_equals(text: str) -> list[str]:
    """Split `text` at its equals signs outside of brackets, so not at the k=1 of a sum."""
    if _EQUALS.search(text) is None:
        return [text]
    masked = _EQUALS.sub("\x01", text)
    return [side.replace("\x01", "=") for side in notation.split(masked, "\x01")]


def _remove_set_name(text: str) -> str:
    """Remove the name of a set: A = [0, 1] becomes [0, 1]."""
    return re.sub(r"^[A-Z]\s*=\s*(?=[(\[\\])", "", text)


def _is_undefined(expression: Any) -> bool:
    import sympy

    return isinstance(expression, sympy.Basic) and expression.has(sympy.zoo, sympy.nan)


def _base_mismatch(reference: str, answer: str) -> str | None:
    """How the base that `answer` is written in differs from that of `reference`, or None."""
    reference_match, answer_match = _IN_BASE.match(remove_spacing(reference)), _IN_BASE.match(remove_spacing(answer))
    if reference_match is None and answer_match is not None and numbers.parse(reference) is not None:
        return f"written in base {answer_match.group(2)}"
    if reference_match is None or not reference_match.group(1)[0].isdigit():
        return None
    if answer_match is None:
        return f"not written in base {reference_match.group(2)}"
    return None if reference_match.group(2) == answer_match.group(2) else f"another base: {answer_match.group(2)}"


def _normalise_base(text: str) -> str:
    """Write the base of a number in digits: 1011_{two} becomes 1011_{2}."""
    text = _BASE_NAMES.sub(lambda m: f"_{{{_BASES.get(m['name'], m['name'])}}}", text)
    match = _IN_BASE.match(remove_spacing(text))
    return f"{match[1]}_{{{match[2]}}}" if match else text


def _inequalities_agree(reference: Any, answer: Any) -> bool:
    """Whether two inequalities are the same: the ratio of their differences of sides is a positive number."""
    import sympy

    strict, weak = (sympy.StrictLessThan, sympy.StrictGreaterThan), (sympy.LessThan, sympy.GreaterThan)
    if not any(isinstance(reference, kind) and isinstance(answer, kind) for kind in (strict, weak)):
        return False
    reference_difference, answer_difference = (relation.gts - relation.lts for relation in (reference, answer))
    ratio = sympy.simplify(reference_difference / answer_difference)
    return bool(ratio.is_number and ratio.is_positive)
