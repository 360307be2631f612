r"""Compare products of matrices and vectors, whose factors do not commute.

(AB)^{-1} is B^{-1}A^{-1} and not A^{-1}B^{-1}, and a \times b is -b \times a.
"""

import re

MAX_FACTORS = 24
MAX_TERMS = 16
_SPACE = re.compile(r"\s+|\\[,;: ]|~|\\(?:cdot|times)(?![A-Za-z])|\*")
_WRAPPED = re.compile(r"\\(?:mathbf|mathrm|boldsymbol|bm|text)\{([A-Z])\}")
_TOKEN = re.compile(
    r"(?P<letter>[A-Z])|(?P<number>\d+)|(?P<open>\()|(?P<close>\))|(?P<sign>[+-])|(?P<power>\^(?:\{[^{}]*\}|[\dT]))"
)
_MARK = re.compile(r"\^\s*(?:\{\s*(?:-1|T|-T)\s*\}|T)")
_DIMENSIONS = frozenset("MLT")
"""The letters of physical dimensions, which do commute: MLT^{-2}."""

_VECTOR = r"(?:\\(?:vec|mathbf|overrightarrow|boldsymbol|bm|hat)\{?[A-Za-z]{1,2}\}?)"
_CROSS_PRODUCT = re.compile(rf"(?P<sign>-?)(?P<first>{_VECTOR})\\times(?P<second>{_VECTOR})")
_ANY_CROSS_PRODUCT = re.compile(rf"{_VECTOR}\s*\\times(?![A-Za-z])\s*{_VECTOR}")

Word = tuple[tuple[str, int, bool], ...]
"""The factors of a product: (letter, exponent 1 or -1, whether transposed)."""
Sum = dict[Word, int]


class _NoProductError(Exception):
    pass


def are_equal(reference: str, answer: str) -> bool | None:
    """Whether two expressions of matrices are equal; None if `reference` is none whose order of factors matters."""
    crossed = _CROSS_PRODUCT.fullmatch(re.sub(r"\s+", "", reference))
    if crossed is not None:
        answer = re.sub(r"\s+", "", answer)
        reversed_sign = "" if crossed["sign"] else "-"
        return answer in (crossed.group(), rf"{reversed_sign}{crossed['second']}\times{crossed['first']}")
    if _ANY_CROSS_PRODUCT.search(answer) is not None and _ANY_CROSS_PRODUCT.search(reference) is None:
        return False
    known = _read(reference)
    if known is None or not _is_ordered(reference, known):
        return None
    return known == _read(answer)


def _is_ordered(text: str, known: Sum) -> bool:
    letters = {letter for word in known for letter, _, _ in word}
    if len(letters) < 2 or letters <= _DIMENSIONS or all(len({factor[0] for factor in word}) < 2 for word in known):
        return False
    orders = [[factor[0] for factor in word] for word in known]
    is_commutator = any(x != y and sorted(x) == sorted(y) for x in orders for y in orders)
    return is_commutator or _MARK.search(text) is not None


def _read(text: str) -> Sum | None:
    text = _SPACE.sub("", _WRAPPED.sub(r"\1", text))
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        tokens.append((str(match.lastgroup), match.group()))
        position = match.end()
    tokens.append(("end", ""))
    try:
        terms, end = _parse_sum(tokens, 0)
    except (_NoProductError, RecursionError):
        return None
    return terms if end == len(tokens) - 1 else None


def _parse_sum(tokens: list[tuple[str, str]], position: int) -> tuple[Sum, int]:
    total: Sum = {}
    while True:
        sign = 1
        if tokens[position][0] == "sign":
            sign = -1 if tokens[position][1] == "-" else 1
            position += 1
        product, position = _parse_product(tokens, position)
        for word, coefficient in product.items():
            total[word] = total.get(word, 0) + sign * coefficient
        if tokens[position][0] != "sign":
            return {word: coefficient for word, coefficient in total.items() if coefficient}, position


def _parse_product(tokens: list[tuple[str, str]], position: int) -> tuple[Sum, int]:
    product: Sum = {(): 1}
    start = position
    while tokens[position][0] in ("letter", "number", "open"):
        kind, text = tokens[position]
        position += 1
        if kind == "letter":
            factor: Sum = {((text, 1, False),): 1}
        elif kind == "number":
            if len(text) > 9:
                raise _NoProductError
            factor = {(): int(text)}
        else:
            factor, position = _parse_sum(tokens, position)
            if tokens[position][0] != "close":
                raise _NoProductError
            position += 1
        while tokens[position][0] == "power":
            factor = _raise(factor, tokens[position][1].strip("^{} "))
            position += 1
        product = _multiply(product, factor)
    if position == start:
        raise _NoProductError
    return product, position


def _raise(factor: Sum, exponent: str) -> Sum:
    if exponent in ("T", "-1", "-T"):
        if "1" in exponent or "-" in exponent:
            if len(factor) != 1 or next(iter(factor.values())) != 1:
                raise _NoProductError
            factor = {tuple((x, -e, t) for x, e, t in reversed(word)): c for word, c in factor.items()}
        if "T" in exponent:
            factor = {tuple((x, e, not t) for x, e, t in reversed(word)): c for word, c in factor.items()}
        return factor
    if not exponent.isdigit() or not 0 < int(exponent) <= MAX_FACTORS:
        raise _NoProductError
    power = factor
    for _ in range(int(exponent) - 1):
        power = _multiply(power, factor)
    return power


def _multiply(first: Sum, second: Sum) -> Sum:
    product: Sum = {}
    for x, first_coefficient in first.items():
        for y, second_coefficient in second.items():
            word = _cancel(x + y)
            product[word] = product.get(word, 0) + first_coefficient * second_coefficient
    if len(product) > MAX_TERMS or any(len(word) > MAX_FACTORS for word in product):
        raise _NoProductError
    return product


def _cancel(word: Word) -> Word:
    """Remove each matrix that stands beside its inverse."""
    reduced: list[tuple[str, int, bool]] = []
    for letter, exponent, transposed in word:
        if reduced and reduced[-1] == (letter, -exponent, transposed):
            reduced.pop()
        else:
            reduced.append((letter, exponent, transposed))
    return tuple(reduced)
