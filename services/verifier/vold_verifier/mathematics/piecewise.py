r"""Compare functions that are defined by cases: \begin{cases} x & x > 0 \\ -x & x \le 0 \end{cases}."""

import re
from collections.abc import Callable

MAX_ROWS = 12
_CASES = re.compile(
    r"^(?P<head>[^\\]*=)?\s*(?:\\begin\s*\{cases\}|\\\{\s*\\begin\s*\{array\}\s*\{[lcr ]*\})(?P<rows>.*)"
    r"\\end\s*\{(?:cases|array)\}$",
    re.DOTALL,
)
_ROW_END = re.compile(r"\\\\|\\cr(?![A-Za-z])")
_ASSIGNED = re.compile(r"^(?P<name>[A-Za-z](?:_\{?\w\}?)?)\s*=(?!=)\s*(?P<value>[^=<>&]+)$")
_IF = re.compile(
    r"^(?:\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:if|for|when|where)?\s*,?\s*\}|if|for|when|\\[,;: ]|\\q?quad|[\s,])+"
)
_OTHERWISE = re.compile(r"(?:\\(?:text|mathrm|mbox)\s*\{)?\s*(?:otherwise|else)\.?\s*\}?")


def are_equal(reference: str, answer: str, equal: Callable[[str, str], bool]) -> bool | None:
    """Whether two texts have the same cases, in any order; None if `reference` has none.

    equal: compares two values, or two conditions.
    """
    known = _read(reference)
    if known is None:
        return None
    given = _read(answer)
    if given is None or len(given) != len(known):
        return False
    for value, condition in known:
        matching = [row for row in given if _same_condition(condition, row[1], equal) and equal(value, row[0])]
        if not matching:
            return False
        given.remove(matching[0])
    return True


def as_assignments(text: str) -> str:
    """A system of cases that is solved as "x = 1, y = 2"; any other text unchanged."""
    match = _CASES.match(text.strip())
    if match is None or match["head"]:
        return text
    rows = [row.replace("&", "").strip().rstrip(",;") for row in _ROW_END.split(match["rows"]) if row.strip()]
    assigned = [_ASSIGNED.match(row) for row in rows]
    if len(rows) < 2 or None in assigned:
        return text
    names = [row["name"] for row in assigned if row is not None]
    values = " ".join(row["value"] for row in assigned if row is not None)
    if any(re.search(rf"(?<![\\A-Za-z]){re.escape(name)}(?![A-Za-z])", values) for name in names):
        return text
    return ", ".join(rows)


def _read(text: str) -> list[tuple[str, str]] | None:
    match = _CASES.match(text.strip())
    if match is None:
        return None
    rows = [row for row in _ROW_END.split(match["rows"]) if row.strip()]
    cells = [[cell.strip().rstrip(",.;").strip() for cell in row.split("&", 1)] for row in rows]
    if not 1 < len(cells) <= MAX_ROWS or any(len(row) != 2 or not row[0] for row in cells):
        return None
    return [(value, "" if _OTHERWISE.fullmatch(condition) else _IF.sub("", condition)) for value, condition in cells]


def _same_condition(first: str, second: str, equal: Callable[[str, str], bool]) -> bool:
    return first == second or bool(first and second and equal(first, second))
