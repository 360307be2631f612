"""Equality of two mathematical texts: math-verify's algebra, with guards around what it would pay or refuse wrongly.

Texts are parsed by latex2sympy2_extended without its removal of units, which takes the t of 3 + 2t for tonnes, and with
upper and lower case apart. Guards, each for something math-verify accepts: a false chain ("1 = 2" for 2), an echoed
integral or sum, another unit, another or a dropped base, an anagram ("seat" for "east"), and values that agree in six
decimals only because both are tiny. Expressions that algebra calls different are also evaluated at a few points.
"""

import logging
import re
from typing import Any

from vold_verifier.mathematics import grammar, matrices, notation, numbers, polynomials, reals, spoken, tuples, units

_NUMBER_IN_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\d]*[^{}\d\s][^{}\d]*\d")
_ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!=)\s*")
_ASSIGNED_BACKWARDS = re.compile(r"^([^=<>,]*[^=<>,\s!\\])\s*=\s*([A-Za-z])$")
_DEFINED = re.compile(r"^([A-Za-z]\([A-Za-z]\)|y)\s*=(?!=)\s*")
_SQUASH = re.compile(r"(?<!\d)\s+|\s+(?!\d)|\\[,;: ](?!\d)")
_BASED = re.compile(r"^\(?([0-9A-Za-z]+)\)?_\{?(\d+)\}?$")
_BASE_NAMES = re.compile(r"_\s*\{\s*\\(?:text|mathrm|textrm)\s*\{\s*(?:base )?(?P<name>[a-z]+|\d+)\s*\}\s*\}")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"} | {
    "ten": "10",
    "twelve": "12",
    "sixteen": "16",
}
_TEXT_UNIT = re.compile(
    r"^(?P<value>.*\S)\s*(?:\\[,; ]|~)*\s*"
    r"(?P<unit>\\(?:text|mathrm|textrm|mbox)\s*\{\s*[A-Za-z ./²³-]+\}(?:\^\s*\{?-?[1-3]\}?)?)$"
)
_DEGREES = re.compile(r"^(?P<value>.*\S)\s*(?P<unit>\^\s*\{?\s*\\circ\s*\}?)$")
_WORD_UNIT = re.compile(
    r"^(?P<value>.*[\d})\]a-z])\s+(?P<unit>(?:(?:square|sq|cubic|cu)\s+)?[A-Za-z]+(?:\s*\^\s*\{?[23]\}?)?"
    r"(?:\s*/\s*[A-Za-z]+(?:\s*\^\s*\{?[23]\}?)?)?)$"
)
_PRICE = re.compile(r"^(?P<sign>-?)\s*\\?(?P<unit>[$€£¥₹])\s*(?P<value>\S.*)$")
_UNIT_LETTERS = frozenset("mgshlL")
_GENERIC_UNITS = frozenset({"units", "unit", "square units", "cubic units"})
_OPERATOR = re.compile(r"\\(?:i+nt|oint|sum|prod|lim)(?![A-Za-z])|\\frac\{d\}\{d[a-z]\}")
_APPROX = re.compile(r"\\(?:approx|simeq|doteq|sim)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_CONSTANT_COMMANDS = frozenset(
    {"frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pi", "binom", "exp", "log", "ln"}
    | {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"}
)
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

FLOAT_TOLERANCE = 1e-6
DIGITS = 30
APPROXIMATION = 0.01
POINTS = ("0.7310", "-1.3719", "2.1931", "-0.4173", "3.3391", "1.1273", "-2.7151")
MIN_AGREED = 4
MIN_UNKNOWN_UNIT = 4
MAX_SYMBOLS = 5


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


def compare(gold: str, answer: str) -> tuple[bool, str, str]:
    """(whether they are equal, why, the anti-hacking rule that refused or "").

    Both have been through `notation.clean` and `bounds.fault`. May run for ever: the caller bounds the time. Raises
    UnreadableError for a reference that nothing can be held against.
    """
    if (alike := spoken.same_words(gold, answer)) is not None:
        return alike, "the same words" if alike else "different words", ""
    if (alike := spoken.same_figures(gold, answer)) is not None:
        return alike, "the same ratio or time" if alike else "another ratio or time", ""
    gold, answer = _with_digits(gold), _with_digits(answer)
    if (fault := _different_base(gold, answer)) is not None:
        return False, fault, ""
    if _NUMBER_IN_TEXT.search(answer) and not _NUMBER_IN_TEXT.search(gold):
        return False, "a number inside text, which algebra would not see", ""
    gold, answer = notation.rewrite(gold), notation.rewrite(answer)
    if (alike := reals.same(_side(gold), _side(answer), _first)) is not None:
        return alike, "the same set" if alike else "another set", ""
    gold, gold_unit = _without_unit(gold)
    answer, answer_unit = _without_unit(answer)
    if gold_unit and answer_unit:
        factor = units.factor(answer_unit, gold_unit)
        if factor is None:
            return False, f"another unit: {answer_unit}", ""
        if factor != 1:
            answer = rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({answer})"
    gold, answer = notation.listed(gold), notation.listed(answer)
    if squash(gold) == squash(answer):
        return True, "the same text", ""
    if (alike := tuples.same(gold, answer, _part_equal)) is not None:
        return alike, "the same tuple" if alike else "another tuple", ""
    if gold.count("'") != answer.count("'"):
        return False, "a derivative or a primed letter beside a plain one", ""
    gold = _APPROX.split(gold)[0].strip()
    readings = [part.strip() for part in _APPROX.split(answer) if part.strip()]
    if len(readings) > 1 and not _agree(readings, APPROXIMATION):
        return False, "the two sides of the approximation are far apart", "false_chain"
    outcome = False, "not equal", ""
    for reading in readings:
        outcome = _equal(gold, reading)
        if outcome[0]:
            return outcome
    return outcome


def _part_equal(gold: str, answer: str) -> bool:
    one, other = numbers.parse(gold), numbers.parse(answer)
    if one is not None and other is not None:
        return numbers.same(one, other)
    return squash(gold) == squash(answer) or _equal(gold, answer)[0]


def _equal(gold: str, answer: str) -> tuple[bool, str, str]:
    if _EQUALS.search(gold) is None:
        answer = _ASSIGNED_BACKWARDS.sub(r"\2 = \1", answer)
        sides = _sides(answer)
        if len(sides) > 1 and not ("," in answer or ";" in answer):
            if not _agree(sides, FLOAT_TOLERANCE):
                return False, "a chain of equalities that is false", "false_chain"
            if _OPERATOR.search(sides[-1]) is None and (
                _OPERATOR.search(answer) is not None or _constant(sides[0]) is not None
            ):
                answer = sides[-1]
    elif (ours := _DEFINED.match(gold)) and (theirs := _DEFINED.match(answer)) and "y" in (ours[1], theirs[1]):
        gold, answer = gold[ours.end() :], answer[theirs.end() :]  # y = x^2 and f(x) = x^2 name one function
    if _OPERATOR.search(answer) is not None and _OPERATOR.search(gold) is None:
        return False, "an unevaluated integral, sum, product, limit or derivative", "unevaluated"
    parsed_gold, parsed_answer = _first(gold), _first(answer)
    if parsed_gold is None or _undefined(parsed_gold):
        raise UnreadableError(
            "the reference has no value" if parsed_gold is not None else "the reference does not parse"
        )
    if parsed_answer is None or _undefined(parsed_answer):
        return False, "the answer has no value" if parsed_answer is not None else "the answer does not parse", ""
    if (of_matrices := matrices.holds(parsed_gold)) != matrices.holds(parsed_answer):
        return False, "a matrix beside what is none", ""
    if of_matrices:
        equal = matrices.same(parsed_gold, parsed_answer, _verified)
        return equal, "equal by algebra" if equal else "not equal", ""
    if _inequalities_agree(parsed_gold, parsed_answer):
        return True, "the same inequality", ""
    if (same := polynomials.same(parsed_gold, parsed_answer)) is not None:
        return same, "equal by algebra" if same else "not equal", ""
    # Before the algebra: it is the quicker of two conditions that must both hold.
    if "%" not in gold + answer and _apart(parsed_gold, parsed_answer):
        return False, f"not equal at {DIGITS} digits", ""
    equal = _verified(parsed_gold, parsed_answer)
    if not equal and not _same_values(parsed_gold, parsed_answer):
        return False, "not equal", ""
    return True, "equal by algebra" if equal else "equal at every point tried", ""


def _verified(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True)


def _sides(text: str) -> list[str]:
    """`text` cut at its equals signs outside of brackets: the k=1 of a sum is none of them."""
    if _EQUALS.search(text) is None:
        return [text]
    masked = _EQUALS.sub("\x01", text)
    return notation.split(masked, "\x01")


def _first(text: str) -> Any:
    """`text` as a SymPy expression, None where it does not parse."""
    parsed = _parse(notation.products(text))
    return parsed[0] if parsed else None


def _parse(text: str) -> list[Any]:
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from latex2sympy2_extended.math_normalization import normalize_latex
    from math_verify.parser import get_last_eq

    normal = normalize_latex(
        text, NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    )
    conversion = ConversionConfig(lowercase_symbols=False)
    for latex in dict.fromkeys((normal, get_last_eq(normal))):
        try:
            parsed = latex2sympy(latex, is_real=True, normalization_config=None, conversion_config=conversion)
            if isinstance(parsed, sympy.Basic) and (imaginary := [s for s in parsed.free_symbols if str(s) == "i"]):
                parsed = parsed.subs(imaginary[0], sympy.I)
        except Exception:  # noqa: S112  its parser raises many kinds of error, and i > 2 another: text without meaning
            continue
        return [parsed] if parsed is not None else []
    return []


def _side(text: str) -> str:
    """`text` for the reading as a set: without the name that it is given."""
    return re.sub(r"^[A-Z]\s*=\s*(?=[(\[\\])", "", text)


def _undefined(expression: Any) -> bool:
    import sympy

    return isinstance(expression, sympy.Basic) and expression.has(sympy.zoo, sympy.nan)


def _different_base(gold: str, answer: str) -> str | None:
    ours, theirs = _BASED.match(squash(gold)), _BASED.match(squash(answer))
    if ours is None and theirs is not None and numbers.parse(gold) is not None:
        return f"written in base {theirs.group(2)}"
    if ours is None or not ours.group(1)[0].isdigit():
        return None
    if theirs is None:
        return f"not written in base {ours.group(2)}"
    return None if ours.group(2) == theirs.group(2) else f"another base: {theirs.group(2)}"


def _with_digits(text: str) -> str:
    text = _BASE_NAMES.sub(lambda m: f"_{{{_BASES.get(m['name'], m['name'])}}}", text)
    match = _BASED.match(squash(text))
    return f"{match[1]}_{{{match[2]}}}" if match else text


def _without_unit(text: str) -> tuple[str, str]:
    if match := _PRICE.match(text):
        return match["sign"] + match["value"], match["unit"]
    for pattern in (_TEXT_UNIT, _DEGREES):
        if match := pattern.match(text):
            return match["value"], match["unit"]
    if match := _WORD_UNIT.match(text):
        unit = match["unit"]
        known = unit in _UNIT_LETTERS or unit in _GENERIC_UNITS or (len(unit) > 1 and units.read(unit) is not None)
        if known or (len(unit.split("^")[0]) >= MIN_UNKNOWN_UNIT and numbers.parse(match["value"]) is not None):
            return match["value"], unit
    return text, ""


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
    parsed = _first(side)
    return _value(parsed) if parsed is not None else None


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
    if gold.has(sympy.Float) or answer.has(sympy.Float):
        return not _near(one, other, FLOAT_TOLERANCE)
    return not _vanishes(gold - answer)


def _vanishes(constant: Any) -> bool:
    """Whether an exact constant is 0, or so near that no digit of it can be found among a hundred."""
    parts = constant.doit().evalf(DIGITS).as_real_imag()
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def _inequalities_agree(gold: Any, answer: Any) -> bool:
    """Whether two inequalities in the same variables are one: left minus right in a positive ratio."""
    import sympy

    strict, weak = (sympy.StrictLessThan, sympy.StrictGreaterThan), (sympy.LessThan, sympy.GreaterThan)
    if not any(isinstance(gold, kind) and isinstance(answer, kind) for kind in (strict, weak)):
        return False
    ours, theirs = (relation.gts - relation.lts for relation in (gold, answer))
    ratio = sympy.simplify(ours / theirs)
    return bool(ratio.is_number and ratio.is_positive)


def _same_values(gold: Any, answer: Any) -> bool:
    """Whether two expressions in the same letters agree at points of both signs; exact constants: whether they are
    one number."""
    import sympy

    if not isinstance(gold, sympy.Expr) or not isinstance(answer, sympy.Expr):
        return False
    letters = sorted(gold.free_symbols, key=str)
    inexact = gold.has(sympy.Float) or answer.has(sympy.Float)
    if set(letters) != answer.free_symbols or len(letters) > MAX_SYMBOLS:
        return False
    if not letters:
        ours, theirs = _value(gold), _value(answer)
        if ours is None or theirs is None:
            return False
        return _near(ours, theirs, 1e-12) if inexact else _vanishes(gold - answer)
    agreed = 0
    for shift in range(len(POINTS)):
        point = {letter: sympy.Rational(POINTS[(shift + 3 * i) % len(POINTS)]) for i, letter in enumerate(letters)}
        ours, theirs = (expression.subs(point).doit().evalf(DIGITS) for expression in (gold, answer))
        if not (ours.is_number and theirs.is_number and ours.is_finite and theirs.is_finite):
            continue
        if not _near(ours, theirs, 1e-9 if inexact else 1e-20):
            return False
        agreed += 1
    return agreed >= MIN_AGREED
