r"""Compare families of numbers: residues (x \equiv 3 \pmod 7) and integer parameters (k\pi, k \in \mathbb{Z})."""

import re
from collections.abc import Callable
from typing import Any

from vold_verifier.mathematics import notation

MAX_MODULUS_DIGITS = 30
MAX_MEMBERS = 12
_CONGRUENCE = re.compile(
    r"^(?:(?P<name>[A-Za-z](?:_\{?\w\}?)?)\s*\\equiv(?![A-Za-z]))?\s*(?P<residues>[^\\=]*?|[^\\=]*\\text\{[^{}]*\}[^\\=]*)\s*"
    r"(?:\\pmod\s*\{?\s*(?P<m1>\d+)\s*\}?|\(?\s*(?:\\b?mod(?![A-Za-z])|mod|\\text\s*\{\s*\(?mod\s*\}|\\mathrm\{mod\})\s*"
    r"\{?\s*(?P<m2>\d+)\s*\}?\s*\)?)$"
)
_INTEGER = re.compile(r"^-?\d+$")
_BETWEEN_RESIDUES = re.compile(r"\s*,?\s*(?:\\(?:text|mathrm)\s*\{\s*(?:or|and)\s*\}|\bor\b|\band\b|,)\s*")
_INTEGERS = r"(?:\\mathbb\s*\{?\s*Z\s*\}?|\\Z(?![A-Za-z])|Z|\\mathbf\{Z\})"
_INTEGER_WORDS = r"(?:is\s+)?(?:an?|any)?\s*integers?"
_WHERE = r"(?:where|for(?: any| all| every| some)?|with)"
_CONDITION = re.compile(
    rf"\s*(?:,|;|\\q?quad|\\[,; ]|\s|\(|\\text\s*\{{\s*,?\s*{_WHERE}\s*\}}|\b{_WHERE}\b)*(?P<name>[a-zA-Z])\s*"
    rf"(?:\\in(?![A-Za-z])\s*{_INTEGERS}|\\text\s*\{{\s*{_INTEGER_WORDS}\s*\}}|{_INTEGER_WORDS})\s*\)?\s*\.?$"
)
_HEAD = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?\s*(?:=|\\in)\s*(?!=)")
_FREE_NAMES = frozenset("knmjl")


def same_residues(reference: str, answer: str) -> bool | None:
    """Whether two texts are the same congruence; None if `reference` is none. Both are outputs of `notation.clean`."""
    known = _residues(reference)
    if known is None:
        return None
    given = _residues(answer)
    if given is None:
        return False
    (name, modulus, residues), (answer_name, answer_modulus, answer_residues) = known, given
    return (modulus, residues) == (answer_modulus, answer_residues) and (
        not (name and answer_name) or name == answer_name
    )


def _residues(text: str) -> tuple[str, int, frozenset[int]] | None:
    match = _CONGRUENCE.match(text.strip())
    if match is None:
        return None
    digits = match["m1"] or match["m2"]
    residues = [part for part in _BETWEEN_RESIDUES.split(match["residues"].strip(" (){}")) if part]
    if len(digits) > MAX_MODULUS_DIGITS or not int(digits) or not residues:
        return None
    if any(_INTEGER.match(residue) is None or len(residue) > MAX_MODULUS_DIGITS for residue in residues):
        return None
    return match["name"] or "", int(digits), frozenset(int(residue) % int(digits) for residue in residues)


def same_family(reference: str, answer: str, parse: Callable[[str], Any]) -> bool | None:
    """Whether two texts are the same values for all integers; None if `reference` names no integer parameter.

    Both are outputs of `notation.normalise`. The name of the parameter means nothing. An answer may leave out the
    condition if its parameter is one of k, n, m, j, l.
    """
    match = _CONDITION.search(reference)
    if match is None or not reference[: match.start()].strip():
        return None
    known = _members(reference[: match.start()], match["name"], parse)
    if known is None:
        return None
    condition = _CONDITION.search(answer)
    name = condition["name"] if condition is not None else _free_name(answer)
    if name is None:
        return False
    given = _members(answer[: condition.start()] if condition is not None else answer, name, parse)
    if given is None or len(given) != len(known):
        return False
    return all(any(_same_member(x, y) for y in given) for x in known) and all(
        any(_same_member(x, y) for x in known) for y in given
    )


def _free_name(text: str) -> str | None:
    names = set(re.findall(r"(?<![\\A-Za-z])([a-z])(?![a-z])", text)) & _FREE_NAMES
    return names.pop() if len(names) == 1 else None


def _members(text: str, name: str, parse: Callable[[str], Any]) -> list[tuple[Any, Any]] | None:
    """(offset, step) of each member offset + step * name of a list; None if a member is not linear in the name."""
    import sympy

    members = []
    text = notation.separate_with_commas(_HEAD.sub("", text.strip().strip(",")).strip())
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    parts = notation.split(text)
    if len(parts) > MAX_MEMBERS:
        return None
    for part in parts:
        expression = parse(_HEAD.sub("", part))
        if not isinstance(expression, sympy.Expr):
            return None
        parameters = [symbol for symbol in expression.free_symbols if str(symbol) == name]
        if len(parameters) != 1 or not expression.is_polynomial(parameters[0]):
            return None
        polynomial = sympy.Poly(expression, parameters[0])
        if polynomial.degree() != 1:
            return None
        step, offset = polynomial.all_coeffs()
        members.append((offset, step))
    return members


def _same_member(first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    import sympy

    ratio = sympy.simplify(first[1] / second[1])
    if ratio not in (1, -1):
        return False
    return bool(sympy.simplify((first[0] - second[0]) / first[1]).is_Integer)
