"""Tell an equation that is left to solve (2x = 42) from a value with its name (x = 42, AB = 42, f(2) = 42)."""

import re

from vold_verifier.mathematics import notation

LEFT_TO_SOLVE = "an equation that is left to solve, and no value"

_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
_INDEX = re.compile(r"_\s*(?:\{[^{}]*\}|\\?\w+)|\^\s*\{?\s*(?:\\circ|\\prime|\*|\\ast|'+)\s*\}?|'+")
_ARGUMENT = re.compile(r"(?<=[A-Za-z])\s*\([^()]*\)")
_FUNCTION = re.compile(r"^\s*\\(?:sin|cos|tan|cot|sec|csc|arc\w+|log|ln|lg|exp|det|gcd|deg|angle|triangle)(?![A-Za-z])")
_BINDS_NAME = re.compile(r"\\(?:lim|sum|prod|i*nt|max|min|sup|inf)(?![A-Za-z])")
_OPERATION = re.compile(r"\d|[+*/^!-]|\\(?:[dtc]?frac|sqrt|cdot|times|div|binom)(?![A-Za-z])")
_GREEK = frozenset(
    rf"\{name}"
    for name in (
        "alpha",
        "beta",
        "gamma",
        "delta",
        "theta",
        "lambda",
        "mu",
        "phi",
        "psi",
        "omega",
        "sigma",
        "tau",
        "rho",
    )
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SPACING = re.compile(r"[\s{}$]|\\[,;:! ]")


def is_left_to_solve(answer: str, prompt: str = "") -> bool:
    """Whether `answer` is an equation in one unknown whose side with the unknown is more than a name.

    `answer` is LaTeX. If `prompt` asks for that side ("find 2x"), the equation gives its value.
    """
    if _EQUALS.search(answer) is None:
        return False
    for side in notation.split(_EQUALS.sub("\x01", answer), "\x01"):
        bare = _ARGUMENT.sub("", _INDEX.sub("", _TEXT.sub("", side)))
        unknowns = _unknowns(bare)
        if unknowns:
            is_name = _OPERATION.search(bare) is None or bool(_FUNCTION.match(side) or _BINDS_NAME.search(side))
            is_asked = bool(prompt) and _SPACING.sub("", side) in _SPACING.sub("", prompt)
            return len(unknowns) == 1 and not is_name and not is_asked
    return False


def _unknowns(side: str) -> set[str]:
    greek = {command for command in _COMMAND.findall(side) if command in _GREEK}
    return greek | set(re.findall(r"[A-Za-z]", _COMMAND.sub(" ", side)))
