"""Equality of two mathematical texts, by math-verify with guards around what it pays wrongly."""

import logging
import re
from typing import Any

_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$+|\\(?:displaystyle|limits|left|right|big|Big)(?![A-Za-z])|\\[!]")
_SPACES = re.compile(r"(?:\\[;:,]|~|\s)+")
_ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?\s*=(?!=)\s*")


def clean(text: str) -> str:
    """`text` without delimiters, spacing commands, or the full stop of its sentence."""
    text = _DELIMITERS.sub("", text).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    return text.strip()


def value_side(text: str) -> str:
    """The right side of `x = 3`; anything else as it is."""
    return _ASSIGNED.sub("", text, count=1)


def warm_up() -> None:
    # It would warn, once a worker, that its time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    compare(r"\frac{1}{2}", "0.5+x", ordered=False)
    compare(r"(x+1)^2", "x^2+2x+1", ordered=False)


def compare(gold: str, answer: str, *, ordered: bool) -> tuple[bool, str]:
    """(whether they are equal, why). Both have been through `clean` and `bounds.fault`."""
    from math_verify import verify

    parsed_gold, parsed_answer = _parse(gold), _parse(answer)
    if not parsed_answer:
        return False, "the answer does not parse"
    if verify(parsed_gold, parsed_answer, timeout_seconds=None):
        return True, "equal by algebra"
    return False, "not equal"


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(f"\\boxed{{{text}}}", parsing_timeout=None, fallback_mode="no_fallback"))  # type: ignore[arg-type]
