"""Equality of two mathematical texts: math-verify's algebra, with guards around what it would pay wrongly.

The guards, each for something math-verify accepts: a false chain ("1 = 2" for 2), an echoed integral or sum, another
unit, another or a dropped base, an anagram ("seat" for "east"), and values that agree in six decimals only because
both are tiny.
"""

import logging
import re
from typing import Any

from vold_verifier import grammar, polynomials, units

_DELIMITERS = re.compile(
    r"\\[()\[\]]|(?<!\\)\$+|\\(?:displaystyle|limits|left|right|big|Big|bigl|bigr)(?![A-Za-z])\.?|\\!"
)
_TEXT_ONLY = re.compile(r"^\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}\\]*)\}$")
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
_NUMBER_IN_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\d]*[^{}\d\s][^{}\d]*\d")
_SEPARATOR = re.compile(
    r"(?:\\q?quad|\s)*(?:\\(?:text|mbox|textrm)\s*\{\s*(?:and|or)\s*\}|;|\b(?:and|or)\b)(?:\\q?quad|\s)*"
)
_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|pi)(?![A-Za-z])")
_ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!=)\s*")
_ASSIGNED_BACKWARDS = re.compile(r"^([^=<>,]*[^=<>,\s!\\])\s*=\s*([A-Za-z])$")
_SQUASH = re.compile(r"(?<!\d)\s+|\s+(?!\d)|\\[,;: ](?!\d)")
_BASED = re.compile(r"^([0-9A-Za-z]+)_\{?(\d+)\}?$")
_TRAILING_UNIT = re.compile(
    r"^(?P<value>.*\S)\s*(?:\\[,; ])*(?P<unit>\\(?:text|mathrm|textrm|mbox)\s*\{\s*[A-Za-z .]+\}(?:\^\{?[23]\}?)?)$"
)
_OPERATOR = re.compile(r"\\(?:i+nt|oint|sum|prod|lim)(?![A-Za-z])|\\frac\{d\}\{d[a-z]\}")
_APPROX = re.compile(r"\\(?:approx|simeq|doteq|sim)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_WORDS = frozenset({"yes", "no", "odd", "even", "true", "none"})
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_CONSTANT_COMMANDS = frozenset(
    {"frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pi", "binom", "exp", "log", "ln"}
    | {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"}
)
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

FLOAT_TOLERANCE = 1e-6
EXACT_TOLERANCE = 1e-25
DIGITS = 30
APPROXIMATION = 0.01


def clean(text: str) -> str:
    """`text` without delimiters, a full stop or stray backslash at its end, and with LaTeX names for functions."""
    text = _DELIMITERS.sub("", text).strip()
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2].strip()
    while text.endswith("\\") or (text.endswith(".") and not text.endswith("..")):
        text = text[:-1].rstrip()
    if "sqrt" in text:
        text = _SQRT.sub(r"\\sqrt{\1}", text)
    text = _FUNCTION.sub(r"\\\1", text)
    return _SEPARATOR.sub(", ", text).replace("**", "^").strip()


class UnreadableError(ValueError):
    """The reference does not parse, or has no value."""


def squash(text: str) -> str:
    """`text` without the white space that means nothing: for comparing two spellings of one thing."""
    return _SQUASH.sub("", text)


def value_side(text: str) -> str:
    """The right side of `x = 3`, the left of `3 = x`; anything else as it is."""
    if "=" not in text:
        return text
    if match := _ASSIGNED_BACKWARDS.match(text):
        return match.group(1).strip()
    return _ASSIGNED.sub("", text, count=1)


def as_words(text: str) -> str | None:
    r"""`text` in lower case where it is words and not mathematics: \text{Odd}, yes, Tuesday; else None."""
    wrapped = _TEXT_ONLY.match(text)
    inner = " ".join((wrapped.group(1) if wrapped else text).split())
    letters = inner.replace(" ", "").replace("-", "").replace("'", "")
    if not letters.isalpha():
        return None
    if len(letters) >= 4 or inner.lower() in _WORDS or (wrapped and len(letters) >= 2):
        return inner.lower()
    return None


def is_prose(text: str) -> bool:
    """Whether `text` is a sentence around or instead of an answer."""
    return len(_PROSE_WORD.findall(_TEXT.sub("", text))) > 2


def warm_up() -> None:
    # It would warn, once a worker, that its time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    grammar.parse_in_two_stages()
    for gold, answer in (
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("[1, 2)", "1 <= x < 2"),
    ):
        compare(gold, answer)
    compare(r"\{1, 2\}", r"x = 1, x = 2")


def compare(gold: str, answer: str) -> tuple[bool, str]:
    """(whether they are equal, why). Both have been through `clean` and `bounds.fault`. May run for ever: the caller
    bounds the time. Raises UnreadableError for a reference that nothing can be held against.
    """
    gold_words = as_words(gold)
    if gold_words is not None:
        answer_words = as_words(answer) or " ".join(answer.lower().split())
        return (True, "the same words") if answer_words == gold_words else (False, "different words")
    if (fault := _different_base(gold, answer)) is not None:
        return False, fault
    if _NUMBER_IN_TEXT.search(answer) and not _NUMBER_IN_TEXT.search(gold):
        return False, "a number inside text, which algebra would not see"
    gold, gold_unit = _without_unit(gold)
    answer, answer_unit = _without_unit(answer)
    if gold_unit and answer_unit and units.differ(gold_unit, answer_unit):
        return False, f"another unit: {answer_unit}"
    if squash(gold) == squash(answer):
        return True, "the same text"
    gold = _APPROX.split(gold)[0].strip()
    readings = [part.strip() for part in _APPROX.split(answer)]
    if len(readings) > 1 and not _agree(readings, APPROXIMATION):
        return False, "the two sides of the approximation are far apart"
    reason = "not equal"
    for reading in readings:
        equal, reason = _equal(gold, reading)
        if equal:
            return True, reason
    return False, reason


def _equal(gold: str, answer: str) -> tuple[bool, str]:
    from math_verify import verify

    if _EQUALS.search(gold) is None:
        answer = _ASSIGNED_BACKWARDS.sub(r"\2 = \1", answer)
        sides = _EQUALS.split(answer)
        if len(sides) > 1 and not ("," in answer or ";" in answer):
            if not _agree(sides, FLOAT_TOLERANCE):
                return False, "a chain of equalities that is false"
            if _OPERATOR.search(sides[-1]) is None and _OPERATOR.search(answer) is not None:
                answer = sides[-1]
    if _OPERATOR.search(answer) is not None and _OPERATOR.search(gold) is None:
        return False, "an unevaluated integral, sum, product, limit or derivative"
    parsed_gold, parsed_answer = _parse(gold), _parse(answer)
    if not parsed_gold or _undefined(parsed_gold[0]):
        raise UnreadableError("the reference has no value" if parsed_gold else "the reference does not parse")
    if not parsed_answer or _undefined(parsed_answer[0]):
        return False, "the answer has no value" if parsed_answer else "the answer does not parse"
    if (same := polynomials.same(parsed_gold[0], parsed_answer[0])) is not None:
        return (True, "equal by algebra") if same else (False, "not equal")
    # Before the algebra: it is the quicker of two conditions that must both hold.
    if "%" not in gold + answer and _apart(parsed_gold[0], parsed_answer[0]):
        return False, f"not equal at {DIGITS} digits"
    if not verify(parsed_gold, parsed_answer, timeout_seconds=None, allow_set_relation_comp=True):
        return False, "not equal"
    return True, "equal by algebra"


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(f"\\boxed{{{text}}}", parsing_timeout=None, fallback_mode="no_fallback"))  # type: ignore[arg-type]


def _undefined(expression: Any) -> bool:
    import sympy

    return isinstance(expression, sympy.Basic) and expression.has(sympy.zoo, sympy.nan)


def _different_base(gold: str, answer: str) -> str | None:
    ours, theirs = _BASED.match(squash(gold)), _BASED.match(squash(answer))
    if ours is None or not ours.group(1)[0].isdigit():
        return None
    if theirs is None:
        return f"not written in base {ours.group(2)}"
    return None if ours.group(2) == theirs.group(2) else f"another base: {theirs.group(2)}"


def _without_unit(text: str) -> tuple[str, str]:
    match = _TRAILING_UNIT.match(text)
    return (match["value"], match["unit"]) if match else (text, "")


def _agree(sides: list[str], tolerance: float) -> bool:
    """Whether those of `sides` that are constants are one number, within a relative `tolerance`."""
    values = [value for side in sides if (value := _constant(side)) is not None]
    return all(_near(values[0], value, tolerance) for value in values[1:])


def _constant(side: str) -> Any:
    """`side` as a number of DIGITS digits, None where it has a variable or a command of doubtful meaning in it."""
    letters = _COMMAND.sub("", side)
    if not side.strip() or any(c.isalpha() and c not in "ei" for c in letters):
        return None
    if not _CONSTANT_COMMANDS.issuperset(_COMMAND.findall(side)):
        return None
    parsed = _parse(side)
    return _value(parsed[0]) if parsed else None


def _value(expression: Any) -> Any:
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = expression.doit().evalf(DIGITS)
    return value if value.is_number and value.is_finite else None


def _near(one: Any, other: Any, tolerance: float) -> bool:
    scale = max(abs(one), abs(other))
    return bool(abs(one - other) <= tolerance * scale)


def _apart(gold: Any, answer: Any) -> bool:
    """Whether two constants differ by more than their precision allows: 10^-7 is not 2 * 10^-7."""
    import sympy

    one, other = _value(gold), _value(answer)
    if one is None or other is None:
        return False
    inexact = gold.has(sympy.Float) or answer.has(sympy.Float)
    return not _near(one, other, FLOAT_TOLERANCE if inexact else EXACT_TOLERANCE)
