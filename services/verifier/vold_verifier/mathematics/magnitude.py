r"""Estimate how large an expression is, without evaluating it: 9^{9^9} has 369,693,100 digits, so it is not 5.

An expression is estimated at a point as an interval of the logarithm of its absolute value, and its sign. Two
expressions of the same variables that differ at a point are different.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_DIGITS = 400
POINTS = (0.731, 2.1931, 1.1273)
"""Values of variables, all positive, so that a sum of positive terms does not cancel."""
HUGE = 30.0
"""Only magnitudes beyond exp(HUGE), or below exp(-HUGE), are decided here: the others are computed exactly."""
MARGIN = 25.0
"""By how much two logarithms must differ: more than the letters of a unit, which are read as variables, may change."""
GIANT = 1e6
"""The logarithm of a number that no exact computation can write: what has one inside, such as its logarithm, is decided
here too, if the two logarithms differ by GIANT_MARGIN."""
GIANT_MARGIN = 1.0
_WIDENING = 1e-9
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,9}(?!\w))?)|\\(?P<command>[A-Za-z]+)|(?P<letter>[A-Za-z])(?:_(?:\{\w+\}|\w))?|(?P<mark>\*\*|[-+*/^!(){}\[\]|])"
    r"|(?P<space>\s+|\\[,;:! ])"
)
_LETTERS = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega")
_IGNORED = ("left", "right", "displaystyle", "big", "Big", "bigl", "bigr", "quad")


class _NoEstimateError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Size:
    """sign: 1, -1, 0 for zero, or None for an unknown sign. low, high: bounds of the logarithm of the absolute value.
    integer: the value, if it is an integer of moderate size.
    """

    sign: int | None
    low: float
    high: float
    integer: int | None = None


_ZERO = _Size(0, -math.inf, -math.inf, 0)


def are_apart(reference: str, answer: str) -> bool:
    """Whether the sizes of two expressions prove that they are different, and one of them is huge or tiny.

    Both are the output of `notation.clean`. False if either cannot be estimated. Takes time linear in the texts.
    """
    if not any(mark in text for text in (reference, answer) for mark in ("^", "!")):
        return False
    for shift in range(len(POINTS)):
        try:
            parsers = [_Parser(text, shift) for text in (reference, answer)]
            known, given = (parser.parse() for parser in parsers)
        except (_NoEstimateError, RecursionError, OverflowError, ValueError):
            return False
        if known.sign is None or given.sign is None:
            continue
        has_giant = any(parser.has_giant for parser in parsers)
        is_extreme = has_giant or any(size.sign and (size.low > HUGE or size.high < -HUGE) for size in (known, given))
        if not is_extreme:
            continue
        if known.sign != given.sign:
            return True
        margin = (GIANT_MARGIN if has_giant else MARGIN) + _WIDENING * min(abs(known.low), abs(given.low), 1e300)
        if known.low > given.high + margin or given.low > known.high + margin:
            return True
    return False


def _widen(sign: int | None, low: float, high: float) -> _Size:
    if math.isnan(low) or math.isnan(high):
        raise _NoEstimateError
    margin = _WIDENING / 1000
    low -= margin * (1 + abs(low)) if math.isfinite(low) else 0
    high += margin * (1 + abs(high)) if math.isfinite(high) else 0
    return _Size(sign, low, high)


def _of_number(text: str) -> _Size:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS:
        raise _NoEstimateError
    value = Fraction(mantissa)
    if value == 0:
        return _ZERO
    log = math.log(value.numerator) - math.log(value.denominator) + int(exponent or 0) * math.log(10)
    size = _widen(1, log, log)
    return _Size(1, size.low, size.high, int(text) if text.isdigit() and len(text) < 18 else None)


def _multiply(first: _Size, second: _Size) -> _Size:
    if first.sign == 0 or second.sign == 0:
        return _ZERO
    sign = None if first.sign is None or second.sign is None else first.sign * second.sign
    size = _widen(sign, first.low + second.low, first.high + second.high)
    if first.integer is not None and second.integer is not None and abs(first.integer * second.integer) < 10**17:
        return _Size(sign, size.low, size.high, first.integer * second.integer)
    return size


def _invert(size: _Size) -> _Size:
    if size.sign == 0:
        raise _NoEstimateError
    return _Size(size.sign, -size.high, -size.low)


def _negate(size: _Size) -> _Size:
    return _Size(
        None if size.sign is None else -size.sign, size.low, size.high, None if size.integer is None else -size.integer
    )


def _log_of_sum(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high if not math.isfinite(high) else high + math.log1p(math.exp(low - high))


def _add(first: _Size, second: _Size) -> _Size:
    if first.sign == 0 or second.sign == 0:
        return second if first.sign == 0 else first
    integer = None
    if first.integer is not None and second.integer is not None:
        integer = first.integer + second.integer
        if integer == 0:
            return _ZERO
    if first.sign is not None and first.sign == second.sign:
        size = _widen(first.sign, _log_of_sum(first.low, second.low), _log_of_sum(first.high, second.high))
        return _Size(size.sign, size.low, size.high, integer)
    larger, smaller = (first, second) if first.low > second.low else (second, first)
    if larger.sign is None or larger.low <= smaller.high + 1e-6:
        return _widen(None, -math.inf, _log_of_sum(first.high, second.high))
    low = larger.low + math.log1p(-math.exp(smaller.high - larger.low))
    size = _widen(larger.sign, low, larger.high if smaller.sign is not None else _log_of_sum(first.high, second.high))
    return _Size(size.sign, size.low, size.high, integer)


def _value_bounds(size: _Size) -> tuple[float, float]:
    if size.sign is None:
        raise _NoEstimateError
    if size.sign == 0:
        return 0.0, 0.0
    low, high = (math.exp(log) if log < 700 else math.inf for log in (size.low, size.high))
    if math.isinf(low):
        low = 1e300
    return (low, high) if size.sign > 0 else (-high, -low)


def _raise(base: _Size, exponent: _Size) -> _Size:
    if exponent.sign == 0:
        return _of_number("1")
    if base.sign == 0:
        if exponent.sign == 1:
            return _ZERO
        raise _NoEstimateError
    if base.integer == 1:
        return base
    low, high = _value_bounds(exponent)
    if base.sign == 1:
        sign: int | None = 1
    elif base.sign == -1 and exponent.integer is not None:
        sign = 1 if exponent.integer % 2 == 0 else -1
    elif exponent.integer is not None and exponent.integer % 2 == 0:
        sign = 1
    else:
        raise _NoEstimateError
    products = [x * y for x in (base.low, base.high) for y in (low, high) if not (x == 0 and math.isinf(y))]
    return _widen(sign, min(products), max(products))


def _factorial(size: _Size) -> _Size:
    if size.integer == 0:
        return _of_number("1")
    low, high = _value_bounds(size)
    if size.sign != 1 or low < 0.9:
        raise _NoEstimateError
    return _widen(1, *(math.lgamma(n + 1) if n < 1e300 else math.inf if n == high else 1e300 for n in (low, high)))


def _logarithm(size: _Size, base: float) -> _Size:
    if size.sign != 1 or size.low <= 0:
        raise _NoEstimateError
    scale = math.log(math.log(base))
    return _widen(1, math.log(size.low) - scale, math.log(size.high) - scale)


class _Parser:
    """A recursive descent: sum, product, power, factor."""

    def __init__(self, text: str, shift: int) -> None:
        self.shift = shift
        self.depth = 0
        self.has_giant = False
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or len(self.tokens) > MAX_TOKENS:
                raise _NoEstimateError
            kind = str(match.lastgroup)
            if kind != "space" and not (kind == "command" and match["command"] in _IGNORED):
                self.tokens.append((kind, match[kind]))
            position = match.end()
        self.tokens.append(("end", ""))
        self.position = 0

    @property
    def token(self) -> tuple[str, str]:
        return self.tokens[self.position]

    def take(self, mark: str) -> bool:
        if self.token == ("mark", mark):
            self.position += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise _NoEstimateError

    def parse(self) -> _Size:
        size = self.parse_sum()
        if self.token[0] != "end":
            raise _NoEstimateError
        return size

    def parse_sum(self) -> _Size:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NoEstimateError
        total = self.parse_signed()
        while self.token in (("mark", "+"), ("mark", "-")):
            is_minus = self.token[1] == "-"
            self.position += 1
            term = self.parse_signed()
            total = _add(total, _negate(term) if is_minus else term)
        self.depth -= 1
        return total

    def parse_signed(self) -> _Size:
        """A product, after any number of signs: 5 + -3."""
        is_negative = False
        while self.token in (("mark", "+"), ("mark", "-")):
            is_negative ^= self.token[1] == "-"
            self.position += 1
        product = self.parse_product()
        return _negate(product) if is_negative else product

    def parse_product(self) -> _Size:
        product = self.parse_power()
        while True:
            kind, text = self.token
            if (kind, text) in (("mark", "*"), ("command", "cdot"), ("command", "times")):
                self.position += 1
                product = _multiply(product, self.parse_power())
            elif (kind, text) in (("mark", "/"), ("command", "div")):
                self.position += 1
                product = _multiply(product, _invert(self.parse_power()))
            elif kind == "number" and self.tokens[self.position - 1][0] == "number":
                raise _NoEstimateError  # 10 000 is one number
            elif kind in ("number", "letter", "command") or (kind, text) in (
                ("mark", "("),
                ("mark", "{"),
                ("mark", "["),
            ):
                product = _multiply(product, self.parse_power())
            else:
                return product

    def parse_power(self) -> _Size:
        base = self.parse_factor()
        while self.take("!"):
            base = _factorial(base)
        if self.take("^") or self.take("**"):
            sign = self.take("-")
            exponent = self.parse_power() if self.token[1] not in ("{",) else self.parse_group()
            if self.token in (("mark", "^"), ("mark", "**")):
                raise _NoEstimateError
            base = _raise(base, _negate(exponent) if sign else exponent)
        while self.take("!"):
            base = _factorial(base)
        self.has_giant |= GIANT < base.low < math.inf
        return base

    def parse_group(self) -> _Size:
        self.expect("{")
        size = self.parse_sum()
        self.expect("}")
        return size

    def parse_argument(self) -> _Size:
        if self.token == ("mark", "{"):
            return self.parse_group()
        kind, text = self.token
        if kind == "number" and len(text) > 1 and text.isdigit():  # \frac12 is 1/2
            self.tokens[self.position] = (kind, text[1:])
            return _of_number(text[0])
        return self.parse_factor()

    def parse_factor(self) -> _Size:
        kind, text = self.token
        self.position += 1
        if kind == "number":
            return _of_number(text)
        if kind == "letter" or (kind == "command" and text in _LETTERS):
            if text == "i":
                raise _NoEstimateError
            if text == "e":
                return _widen(1, 1.0, 1.0)
            log = math.log(POINTS[(sum(map(ord, text)) + self.shift) % len(POINTS)])
            return _widen(1, log, log)
        if kind == "command":
            return self.parse_command(text)
        if kind == "mark" and text in ("(", "{", "["):
            size = self.parse_sum()
            self.expect({"(": ")", "{": "}", "[": "]"}[text])
            return size
        raise _NoEstimateError

    def parse_command(self, name: str) -> _Size:
        if name == "pi":
            return _widen(1, math.log(math.pi), math.log(math.pi))
        if name in ("frac", "dfrac", "tfrac"):
            top = self.parse_argument()
            return _multiply(top, _invert(self.parse_argument()))
        if name == "sqrt":
            degree = _of_number("2")
            if self.take("["):
                degree = self.parse_sum()
                self.expect("]")
            return _raise(self.parse_argument(), _invert(degree))
        if name in ("log", "ln"):
            is_enclosed = self.token in (("mark", "("), ("mark", "{"))
            argument = self.parse_factor() if is_enclosed else self.parse_power()
            return _logarithm(argument, 10 if name == "log" else math.e)
        raise _NoEstimateError
