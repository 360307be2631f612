r"""Answers whose characters stand for themselves: CAT, seat B3, 2023-05-04, pages 10-20, the path A \to B \to C.

Algebra would read letters as a product, and hyphens as subtraction: ACT would be CAT, and 10-20 would be -10.
"""

import re

from vold_verifier.mathematics import numbers

_WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mathbf|mbox|operatorname|mathit)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\s+|\\[,;: ]|~")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_ORDERED_PAIRS = tuple(map(frozenset, ("HT", "NESW", "UDLR", "WL")))
"""Two of these letters, which stand for coins, directions, moves and results, are a sequence; other two are a product
or a segment, AB = BA."""
_ELEMENTS = """
He Li Be Ne Na Mg Al Si Cl Ar Ca Sc Ti Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Zr Nb Mo Ag Cd In Sn Sb Te Xe Cs Ba
Pt Au Hg Tl Pb Bi Rn Ra Th
"""
_FORMULA = re.compile(rf"(?=.*[a-z])(?:{'|'.join(_ELEMENTS.split())}|[HBCNOFPSKVYIWU])+|(?:([A-Z])(?i:\1))+")
"""NaCl, and AaBb."""
_LETTERS_THEN_DIGITS = re.compile(r"(?:[A-Za-z]{1,3}|\d{1,9}[A-Z]{1,3})\d[A-Za-z\d]*")
_DIGITS_AND_LETTERS = re.compile(r"(?=.*\d)[A-Za-z\d]{2,}")
_PRODUCT_SIGN = re.compile(r"\\(?:cdot|times)(?![A-Za-z])|\*|[{}_]")
_HYPHENATED = re.compile(r"\d+(?:-\d+)+|[A-Z]{2,}(?:-[A-Z\d]+)*-\d+[A-Z\d-]*|\d+(?:-[A-Z\d]+)*-[A-Z]{2,}[A-Z\d-]*")
_GAP = r"(?:\s|\\[,;: ]|~)+"
_SPACED_NUMBERS = re.compile(rf"\d+(?:{_GAP}\d+)+")
_RANGE = re.compile(r"(?:between\s+|from\s+)?(\d[\d,.]*)\s*(?:-|to|and)\s*(\d[\d,.]*)")
_FIGURES = re.compile(r"\d+-\d+")
_LIST_MARK = re.compile(r"\s*[,;]\s*|\s+and\s+")
_NAMED_CODE = re.compile(r"(?P<words>(?:[A-Za-z][a-z]{2,} ){1,3})(?P<code>(?=[A-Z]*\d)[A-Z\d]{1,10})")
_DATE = re.compile(r"(?P<y>\d{4})(?P<mark>[-/.])(?P<m>\d{1,2})(?P=mark)(?P<d>\d{1,2})")
_AMERICAN_DATE = re.compile(r"(?P<m>\d{1,2})(?P<mark>[-/.])(?P<d>\d{1,2})(?P=mark)(?P<y>\d{4})")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<name>{'|'.join(_MONTHS)})[a-z]*\.?"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_WRITTEN_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_MONTH}\s+{_DAY}(?:\s*,?\s*(?P<y>\d{{4}}))?",
        rf"{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,?\s*(?P<y>\d{{4}}))?",
    )
)
_UNWORKED = re.compile(r"\d+(?:-\d+){2,}|\d+(?:-\d+)*-0\d+(?:-\d+)*|0\d+(?:-\d+)+")
_ARROW = re.compile(r"\\(?:to|rightarrow|longrightarrow|Rightarrow|mapsto)(?![A-Za-z])|->|→|⇒")
_LESS, _GREATER = re.compile(r"<|\\lt(?![A-Za-z])"), re.compile(r">|\\gt(?![A-Za-z])")
_QUOTIENT = re.compile(r"(\d{1,30})\s*,?\s*(?:[Rr]|rem(?:ainder)?\.?)\s*(?:of\s+)?(\d{1,30})")
_MIRRORED = {"subset": "supset", "subseteq": "supseteq", "subsetneq": "supsetneq", "in": "ni", "perp": "perp"}
_MIRRORED |= {"parallel": "parallel"} | {second: first for first, second in _MIRRORED.items()}
_RELATION = re.compile(rf"\\({'|'.join(sorted(_MIRRORED, key=len, reverse=True))})(?![A-Za-z])")
_STATION = re.compile(r"[A-Za-z][\w'.]*")


def are_equal(reference: str, answer: str) -> bool | None:
    """Whether two texts have the same characters; None if neither is a sequence of characters.

    Both are the output of `notation.clean`.
    """
    reference, answer = _WRAPPER.sub(r"\1", reference).strip(), _WRAPPER.sub(r"\1", answer).strip()
    if reference == answer and _DIGITS_AND_LETTERS.fullmatch(_SPACE.sub("", reference)) is not None:
        return True
    if (date := _date(reference)) is not None:
        return _date(answer) == date
    for same in (
        _same_numbers(reference, answer),
        _same_chain(reference, answer),
        _same_named_code(reference, answer),
        _same_list_of_figures(reference, answer),
        _same_range(reference, answer),
        _same_remainder(reference, answer),
        _same_relation(reference, answer),
        _same_letters(reference, answer),
    ):
        if same is not None:
            return same
    return False if _UNWORKED.fullmatch(answer) is not None or _date(answer) is not None else None


def _squeeze(text: str) -> str:
    return _PRODUCT_SIGN.sub("", _SPACE.sub("", text))


def _same_letters(reference: str, answer: str) -> bool | None:
    reference = _SPACE.sub("", reference)
    plain = reference.replace("_", "").replace("{", "").replace("}", "") if "_" not in reference else reference
    if _is_sequence(plain):
        return _squeeze(answer) == plain
    answer = _SPACE.sub("", answer)
    if _LETTERS_THEN_DIGITS.fullmatch(answer) is None and _LETTERS_THEN_DIGITS.fullmatch(plain) is None:
        return None
    if _DIGITS_AND_LETTERS.fullmatch(plain) is None:
        return None
    return _squeeze(answer) == _squeeze(plain)


def _is_sequence(text: str) -> bool:
    if _CAPITALS.fullmatch(text) is not None:
        return len(text) > 2 or any(letters.issuperset(text) for letters in _ORDERED_PAIRS)
    return _FORMULA.fullmatch(text) is not None and sum(map(str.isupper, text)) > 1


def _same_range(reference: str, answer: str) -> bool | None:
    """Ranges, scores, numbers of telephones and plates."""
    if reference[:1] + reference[-1:] in ("[]", "()"):
        reference = reference[1:-1].strip()
    if _HYPHENATED.fullmatch(reference) is None:
        return None
    answer = answer.replace("--", "-")
    if _SPACE.sub("", reference) == _SPACE.sub("", answer):
        return True
    first, second = _RANGE.fullmatch(reference), _RANGE.fullmatch(answer.lower().replace(":", "-"))
    if first is None or second is None:
        return False
    ends = [(numbers.parse(match[1]), numbers.parse(match[2])) for match in (first, second)]
    return ends[0] == ends[1] and None not in ends[0]


def _same_named_code(reference: str, answer: str) -> bool | None:
    """Words and the code or the number that they name: gate 12C, type 2. The code alone may stand for both."""
    known, given = (_NAMED_CODE.fullmatch(" ".join(_SPACE.split(text))) for text in (reference, answer))
    if known is None:
        return None
    if given is not None:
        return known["code"] == given["code"] and known["words"].lower() == given["words"].lower()
    if known["code"].isdigit():
        return None
    return _SPACE.sub("", answer) == known["code"]


def _same_list_of_figures(reference: str, answer: str) -> bool | None:
    """Several scores or ranges, 6-4, 7-5, or 1910-1915, 1917, in their order; None for other references."""
    known = _figures(reference)
    return None if known is None else _figures(answer) == known


def _figures(text: str) -> list[str] | None:
    if "-" not in text:
        return None
    text = text.strip().replace("--", "-")
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    elif text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    parts = [_SPACE.sub("", part) for part in _LIST_MARK.split(text.strip())]
    if len(parts) < 2 or not all(part.isdigit() or _FIGURES.fullmatch(part) for part in parts):
        return None
    return parts if any("-" in part for part in parts) else None


def _same_remainder(reference: str, answer: str) -> bool | None:
    """Quotients with a remainder, 7 R 2."""
    known = _QUOTIENT.fullmatch(reference)
    if known is None:
        return None
    given = _QUOTIENT.fullmatch(answer)
    return given is not None and tuple(map(int, known.groups())) == tuple(map(int, given.groups()))


def _same_relation(reference: str, answer: str) -> bool | None:
    r"""Relations of two names: A \subset B is B \supset A. None for others, as a name has several spellings."""
    signs = _RELATION.findall(reference), _RELATION.findall(answer)
    if not len(signs[0]) == len(signs[1]) == 1:
        return None
    known, given = ([_squeeze(side) for side in _RELATION.split(text)[::2]] for text in (reference, answer))
    mirrored = _MIRRORED.get(signs[0][0], "")
    is_same = known == given and signs[0] == signs[1]
    return True if is_same or (known == given[::-1] and signs[1] == [mirrored]) else None


def _date(text: str) -> tuple[int, int, int] | None:
    """(year or 0, month, day)."""
    for pattern in (_DATE, _AMERICAN_DATE):
        if match := pattern.fullmatch(text):
            return int(match["y"]), int(match["m"]), int(match["d"])
    for pattern in _WRITTEN_DATES:
        if match := pattern.fullmatch(text):
            return int(match["y"] or 0), _MONTHS.index(match["name"].lower()) + 1, int(match["d"])
    return None


def _same_numbers(reference: str, answer: str) -> bool | None:
    """Numbers with spaces between them, 3 1 2, which algebra would multiply."""
    if not any(_SPACED_NUMBERS.fullmatch(text) and numbers.parse(text) is None for text in (reference, answer)):
        return None
    return re.split(_GAP, reference) == re.split(rf"\s*,\s*|{_GAP}", answer)


def _same_chain(reference: str, answer: str) -> bool | None:
    r"""Sequences with arrows, A \to B \to C, and orders, A > B > C, which may be written from the other end."""
    for sign, opposite in ((_ARROW, None), (_LESS, _GREATER), (_GREATER, _LESS)):
        parts = [_squeeze(part) for part in sign.split(reference)]
        if len(parts) < 3 or any(_STATION.fullmatch(part) is None for part in parts):
            continue
        if parts == [_squeeze(part) for part in sign.split(answer)]:
            return True
        return opposite is not None and parts[::-1] == [_squeeze(part) for part in opposite.split(answer)]
    return None
