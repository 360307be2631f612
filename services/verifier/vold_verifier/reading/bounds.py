"""Limits that are checked before parsing: they refuse texts whose evaluation could take unbounded time or memory."""

import math
import re
from collections.abc import Iterable

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

MAX_ANSWER_CHARS = 1000
MAX_DEPTH = 40
MAX_EXPONENT_DIGITS = 4
MAX_FACTORIAL = 5000
MAX_FACTORIALS = 12
"""Per answer: a product of hundreds of x! takes sympy seconds."""
MAX_PARAMETER_DEPTH = 24
"""Protocol buffers are parsed to 100 levels, and each level of parameters is three of these."""
MAX_PARAMETER_VALUES = 8_000
"""Of one item, lists and objects included. They are read on the event loop, at up to 10 microseconds each."""

_CONTAINERS = ("struct_value", "list_value")
_FACTORIAL = re.compile(r"(\d+)\s*\)?\s*!")
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*(?:\{|\()?\s*[+-]?\s*(\d[\d,_ ]*)")
_TOWER = re.compile(  # of A^TB^T, the exponent of A is T alone
    r"(?:\^|\*\*)\s*(?:\{[^{}]*(?:\^|\*\*)|\([^()]*(?:\^|\*\*)|(?:[\d.]+|[A-Za-z])\s*(?:\^|\*\*))|\*\*\s*\w+\s*(?:\^|\*\*)"
)
_BINOMIAL = re.compile(r"\\[dt]?binom\s*\{?\s*(\d+)")
_BINOMIAL_OF_POWER = re.compile(r"\\[dt]?binom\s*\{[^{}]*(?:\^|\*\*|!)")
_LONG_DIGITS = re.compile(r"\d{400,}")
_REPEATED_FACTORIAL = re.compile(r"!\s*\)*\s*!|!\s*[\])}]+\s*!")
_SCIENTIFIC = re.compile(r"\d[eE][+-]?\d{5,}")
_BIG_OPERATOR = re.compile(r"\\(?:sum|prod|i+nt|oint|lim)(?![A-Za-z])")


def parameters_violation(parameters: Struct, max_bytes: int) -> str | None:
    """The limit that `parameters` break, or None."""
    size = parameters.ByteSize()
    if size > max_bytes:
        return f"{size:,} bytes, over the limit of {max_bytes:,}: send less"
    containers: list[Message] = [parameters]
    count = 0
    for _ in range(MAX_PARAMETER_DEPTH):
        count += sum(map(_length, containers))
        if count > MAX_PARAMETER_VALUES:
            return f"has more than {MAX_PARAMETER_VALUES:,} values: send fewer, or a large value as JSON text"
        values = [value for container in containers for value in _values(container)]
        for value in values:
            if not math.isfinite(value.number_value):
                return f"holds the number {value.number_value}: send finite numbers"
        containers = [getattr(value, kind) for value in values if (kind := value.WhichOneof("kind")) in _CONTAINERS]
        if not containers:
            return None
    return f"nested deeper than {MAX_PARAMETER_DEPTH} levels: make them flatter"


def _length(container: Message) -> int:
    return len(container.fields if isinstance(container, Struct) else container.values)  # type: ignore[attr-defined]


def _values(container: Message) -> Iterable[Value]:
    values: Iterable[Value] = (
        container.fields.values() if isinstance(container, Struct) else container.values  # type: ignore[attr-defined]
    )
    return values


def violation(text: str) -> str | None:
    """The limit that `text` breaks, or None. Takes time linear in its length."""
    if len(text) > MAX_ANSWER_CHARS:
        return f"{len(text):,} characters, over {MAX_ANSWER_CHARS:,}"
    if "\x00" in text:
        return "a NUL character"
    if _depth(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if _LONG_DIGITS.search(text):
        return "a number of 400 digits or more"
    if any(len(re.sub(r"\D", "", m.group(1))) > MAX_EXPONENT_DIGITS for m in _EXPONENT.finditer(text)):
        return f"an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if _SCIENTIFIC.search(text):
        return f"an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if _has_numeric_tower(text):
        return "a tower of powers"
    if "!" in text:
        if _REPEATED_FACTORIAL.search(text):
            return "a factorial of a factorial"
        if text.count("!") > MAX_FACTORIALS:
            return f"more than {MAX_FACTORIALS} factorials"
        if any(len(n) > 6 or int(n) > MAX_FACTORIAL for n in _FACTORIAL.findall(text)):
            return f"a factorial over {MAX_FACTORIAL:,}"
    if _BINOMIAL_OF_POWER.search(text) or any(
        len(n) > 6 or int(n) > 10 * MAX_FACTORIAL for n in _BINOMIAL.findall(text)
    ):
        return "a binomial coefficient over the limit"
    if len(_BIG_OPERATOR.findall(text)) > 3:
        return "more than three sums, products, integrals or limits"
    return None


def _has_numeric_tower(text: str) -> bool:
    """Whether an exponent contains a power, as in a^{b^c}.

    e^{x^2} and 2^{x^2} are allowed if no number in them has two digits: such exponents are small or symbolic.
    """
    return any(
        re.search(r"\d{2}", text[max(0, m.start() - 4) : m.end() + 6]) is not None
        or len(re.findall(r"\^|\*\*", text[m.start() : m.start() + 24])) > 2
        for m in _TOWER.finditer(text)
    )


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
