"""Numbers of rows as text: the shortest text that reads back as the same value of its own type."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

NARROW = {
    **dict.fromkeys(("halffloat", "half", "float16"), np.float16),
    **dict.fromkeys(("float", "float32"), np.float32),
}
"""The names that Arrow and `datasets` give the types of less than 64 bits."""


def number_text(value: object) -> str | None:
    """The text of a finite number: 4 for 4.0 and for 4.00, 0.1 for 0.1. None for anything else, truth values too."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if not isinstance(value, int) and not math.isfinite(value):  # an integer may be too large for a float
        return None
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    text = str(value)
    return text.removesuffix(".0") if isinstance(value, float) else text


def shortened(value: Any, kind: str) -> Any:
    """A number of a narrow type `kind`, which Python holds with 64 bits, as the 64-bit number with the same text: 0.1
    for the 32-bit 0.1, and not 0.10000000149011612. Other values and types are left as they are.
    """
    narrow = NARROW.get(kind)
    return float(str(narrow(value))) if narrow is not None and isinstance(value, float) else value
