r"""Compare formulas of compounds, isotopes, reactions and configurations of electrons.

\mathrm{H_2O} is H2O, ^{14}C is C-14, and H_2 + Cl_2 \to 2HCl is Cl_2 + H_2 \rightarrow 2HCl. For algebra a formula
would be a product.
"""

import re
from collections import Counter

MAX_CHARS = 300
_ELEMENTS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru
Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At
Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
_ELEMENT = "|".join(sorted(_ELEMENTS.split(), key=len, reverse=True))
_WRAPPER = re.compile(r"\\(?:ce|mathrm|text|textrm|mathbf|mbox|operatorname|rm)\s*\{")
_SPACE = re.compile(r"\s+|\\[,;:! ]|~|(?:\\text\s*)?\{\s*\}")
_ATOMS = rf"(?:(?:{_ELEMENT})\d*)+"
_FORMULA = re.compile(
    rf"(?P<count>\d*)(?P<body>(?:{_ATOMS}|\({_ATOMS}\)\d*|\[{_ATOMS}(?:\({_ATOMS}\)\d*)*\]\d*)+)"
    rf"(?:\^(?:(?P<charge>\d*)(?P<sign>[+-])|(?P<sign2>[+-])(?P<charge2>\d*)))?(?:\((?:s|l|g|aq)\)|↑|↓)?"
)
_ELECTRON = re.compile(r"(?P<count>\d*)e\^-")
_ISOTOPE = re.compile(
    rf"\^\{{?(?P<mass>\d+)\}}?(?:_\{{?\d+\}}?)?(?P<element>{_ELEMENT})|(?:_\{{?\d+\}}?)\^\{{?(?P<mass2>\d+)\}}?(?P<element2>{_ELEMENT})"
    rf"|(?P<element3>{_ELEMENT})-(?P<mass3>\d+)"
)
_ARROW = re.compile(
    r"\\x(?:right|leftright)arrow(?:\[[^\[\]]*\])?\{[^{}]*\}|\\(?:(?:long)?rightarrow|to|rightleftharpoons|(?:long)?leftrightarrow)"
    r"(?![A-Za-z])|<?->|→|⇌|={1,2}"
)
_SHELL = re.compile(r"(\d)([spdfg])(?:\^\{(\d{1,2})\}|\^?(\d{1,2})(?=\s|$)|\^?(\d))\s*")
_CORE = re.compile(r"\[(?:He|Ne|Ar|Kr|Xe|Rn)\]\s*")
_Formula = tuple[str, str, str]
"""(how many, the atoms, the charge)."""


def are_equal(reference: str, answer: str) -> bool | None:
    """Whether two texts are the same chemistry; None if `reference` is none, or algebra may decide.

    Both are the output of `notation.clean`.
    """
    if len(reference) > MAX_CHARS or len(answer) > MAX_CHARS or not any(character.isdigit() for character in reference):
        return _same_ion(reference, answer)
    known, given = _unwrap(reference), _unwrap(answer)
    if (reaction := _reaction(known)) is not None:
        return reaction == _reaction(given)
    if (shells := _shells(known)) is not None:
        return shells == _shells(given)
    if (isotope := _isotope(known)) is not None:
        return isotope == _isotope(given)
    return _same_ion(reference, answer)


def _same_ion(reference: str, answer: str) -> bool | None:
    known = _formula(_unwrap(reference))
    if known is None or not (known[2] or any(character.isdigit() for character in known[1])):
        return None
    return True if known == _formula(_unwrap(answer)) else None


def _unwrap(text: str) -> str:
    """`text` without the commands around parts of it, whose braces may be nested."""
    while match := _WRAPPER.search(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        text = text[: match.start()] + text[match.end() : end - (not depth)] + text[end:]
    return text.strip()


def _formula(text: str) -> _Formula | None:
    text = _SPACE.sub("", text).replace("{", "").replace("}", "").replace("_", "")
    if match := _ELECTRON.fullmatch(text):
        return match["count"] or "1", "e", "-"
    match = _FORMULA.fullmatch(text)
    if match is None:
        return None
    sign = match["sign"] or match["sign2"] or ""
    charge = (match["charge"] or match["charge2"] or "").removeprefix("1") if sign else ""
    return match["count"] or "1", match["body"], charge + sign


def _reaction(text: str) -> tuple[Counter[_Formula], Counter[_Formula]] | None:
    """The formulas on both sides of a reaction."""
    sides = _ARROW.split(text)
    if len(sides) != 2:
        return None
    formulas = [[_formula(term) for term in _terms(side)] for side in sides]
    if any(None in side for side in formulas):
        return None
    left, right = ([formula for formula in side if formula is not None] for side in formulas)
    has_compound = any(len(re.findall("[A-Z]", body)) > 1 for _, body, _ in (*left, *right))
    if len(left) + len(right) < 3 or not has_compound:
        return None  # S_1 = S_2, and P_1V_1 = P_2V_2, are equations
    return Counter(left), Counter(right)


def _terms(side: str) -> list[str]:
    """The parts of a sum; the plus of a charge, ^+ and ^{2+}, is none."""
    terms, depth = [""], 0
    for position, character in enumerate(side):
        depth += (character == "{") - (character == "}")
        is_charge = depth > 0 or side[:position].rstrip("0123456789 ").endswith("^")
        if character == "+" and not is_charge:
            terms.append("")
        else:
            terms[-1] += character
    return terms


def _shells(text: str) -> tuple[str, Counter[tuple[str, str, str]]] | None:
    """(the core, the shells with their electrons) of a configuration such as [Ne] 3s^2 3p^4."""
    core = _CORE.match(text)
    position = core.end() if core is not None else 0
    shells: Counter[tuple[str, str, str]] = Counter()
    while match := _SHELL.match(text, position):
        shells[match[1], match[2], match[3] or match[4] or match[5]] += 1
        position = match.end()
    return (core.group().strip() if core is not None else "", shells) if shells and position == len(text) else None


def _isotope(text: str) -> tuple[str, str] | None:
    match = _ISOTOPE.fullmatch(_SPACE.sub("", text))
    if match is None:
        return None
    return match["element"] or match["element2"] or match["element3"], match["mass"] or match["mass2"] or match["mass3"]
