r"""Compare formulas of propositions and of sets by truth tables: p \land q is q \land p and not p \lor q."""

import re
from collections.abc import Callable, Iterator
from itertools import product

MAX_VARIABLES = 8
MAX_TOKENS = 80
_TOKENS = re.compile(
    r"(?P<not>\\(?:neg|lnot|complement)(?![A-Za-z])|\\sim(?![A-Za-z]))"
    r"|(?P<and>\\(?:land|wedge|cap)(?![A-Za-z])|\\(?:text|textrm|mathrm|mbox)\s*\{\s*and\s*\}|and(?![A-Za-z]))"
    r"|(?P<or>\\(?:lor|vee|cup)(?![A-Za-z])|\\(?:text|textrm|mathrm|mbox)\s*\{\s*or\s*\}|or(?![A-Za-z]))"
    r"|(?P<minus>\\(?:setminus|backslash)(?![A-Za-z]))"
    r"|(?P<xor>\\(?:oplus|triangle|bigtriangleup|veebar|ominus)(?![A-Za-z]))"
    r"|(?P<implies>\\(?:to|rightarrow|Rightarrow|implies|longrightarrow|Longrightarrow)(?![A-Za-z])|->)"
    r"|(?P<iff>\\(?:iff|leftrightarrow|Leftrightarrow|longleftrightarrow|Longleftrightarrow)(?![A-Za-z])|<->)"
    r"|(?P<bar>\\(?:overline|bar)\s*\{)|(?P<prime>'|\^\{?\s*(?:c|C|\\complement|\\prime|')\s*\}?)"
    r"|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<variable>[A-Za-z](?:_\{?\d\}?)?)(?![A-Za-z(])"
)
_CONNECTIVE = re.compile(
    r"\\(?:neg|lnot|land|wedge|cap|lor|vee|cup|setminus|oplus|to|rightarrow|Rightarrow|implies|iff|complement"
    r"|(?:long)?leftrightarrow|(?:Long)?leftrightarrow|Leftrightarrow|triangle)(?![A-Za-z])"
)
_WORD = re.compile(r"\b(?:and|or)\b")
Truth = Callable[[dict[str, bool]], bool]


class _NoFormulaError(Exception):
    pass


def are_equal(reference: str, answer: str) -> bool | None:
    """Whether two formulas have the same truth table; None if `reference` is no formula of propositions or sets.

    A formula that is always true, or always false, equals only a formula with the same text.
    """
    in_words = _CONNECTIVE.search(reference) is None
    if in_words and _WORD.search(reference) is None:
        return None
    known = _read(reference)
    if known is None:
        return None
    given = _read(answer)
    if given is None:
        return None if in_words else False  # "x and y" may be two values: x, y
    variables = sorted(known[1] | given[1])
    if len(variables) > MAX_VARIABLES:
        return None
    rows = [dict(zip(variables, values, strict=True)) for values in product((False, True), repeat=len(variables))]
    truths = [known[0](row) for row in rows]
    if len(set(truths)) == 1:
        return "".join(reference.split()) == "".join(answer.split())
    return truths == [given[0](row) for row in rows]


def _read(text: str) -> tuple[Truth, set[str]] | None:
    """(the formula as a function, its variables), or None."""
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKENS.match(text, position)
        if match is None or len(tokens) == MAX_TOKENS:
            return None
        tokens.append((str(match.lastgroup), match.group()))
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
    try:
        parser = _Parser(iter([*tokens, ("end", "")]))
        formula = parser.parse_equivalence()
    except (_NoFormulaError, RecursionError):
        return None
    return (formula, parser.variables) if parser.kind == "end" else None


class _Parser:
    """Precedence, from the tightest: not, and, or (with difference), implies, iff."""

    def __init__(self, tokens: Iterator[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.variables: set[str] = set()
        self.kind, self.text = next(tokens)

    def advance(self) -> str:
        text = self.text
        self.kind, self.text = next(self.tokens)
        return text

    def parse_equivalence(self) -> Truth:
        left = self.parse_implication()
        while self.kind == "iff":
            self.advance()
            left = _combine(left, self.parse_implication(), lambda x, y: x == y)
        return left

    def parse_implication(self) -> Truth:
        left = self.parse_disjunction()
        if self.kind != "implies":
            return left
        self.advance()
        return _combine(left, self.parse_implication(), lambda x, y: not x or y)

    def parse_disjunction(self) -> Truth:
        left = self.parse_conjunction()
        while self.kind in ("or", "xor"):
            operation = self.kind
            self.advance()
            right = self.parse_conjunction()
            left = _combine(left, right, (lambda x, y: x or y) if operation == "or" else (lambda x, y: x != y))
        return left

    def parse_conjunction(self) -> Truth:
        left = self.parse_factor()
        while self.kind in ("and", "minus"):
            operation = self.kind
            self.advance()
            right = self.parse_factor()
            left = _combine(left, right, (lambda x, y: x and y) if operation == "and" else (lambda x, y: x and not y))
        return left

    def parse_factor(self) -> Truth:
        if self.kind == "not":
            self.advance()
            return _negate(self.parse_factor())
        if self.kind in ("open", "bar"):
            is_bar = self.kind == "bar"
            self.advance()
            factor = self.parse_equivalence()
            if self.kind != "close":
                raise _NoFormulaError
            self.advance()
            factor = _negate(factor) if is_bar else factor
        elif self.kind == "variable":
            name = self.advance()
            self.variables.add(name)

            def factor(row: dict[str, bool], name: str = name) -> bool:
                return row[name]

        else:
            raise _NoFormulaError
        while self.kind == "prime":
            self.advance()
            factor = _negate(factor)
        return factor


def _combine(left: Truth, right: Truth, operation: Callable[[bool, bool], bool]) -> Truth:
    return lambda row: operation(left(row), right(row))


def _negate(formula: Truth) -> Truth:
    return lambda row: not formula(row)
