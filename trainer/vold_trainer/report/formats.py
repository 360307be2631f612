"""Numbers and text formatted for the page. None is always an en dash."""

import re
from collections.abc import Mapping
from typing import Any

MISSING = "–"
MINUS = "−"

# C0 controls except tab and newline, and DEL: a model can generate them, and browsers drop or misread them.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
# Bidirectional controls can make a page show text in a wrong order.
_BIDI = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE: Mapping[int, int | str] = {**_CONTROLS, **_BIDI}

_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands separated, a true minus sign."""
    if value is None:
        return MISSING
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 10**digits - 0.5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage: 0.1234 is "12.3 %"."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: 0.123 is "+12.3"."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def interval(ends: tuple[float, float] | None) -> str:
    return MISSING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def measure(name: str, value: float | None, share: bool | None = None) -> str:
    """A further metric of an evaluation: a percentage if it is a share by `share` or by its name (mean@4, pass@8,
    truncated), else a number.
    """
    is_share = "@" in name or name in ("truncated", "majority") if share is None else share
    return percent(value) if is_share and (value is None or 0 <= value <= 1) else number(value)


def seconds(value: float | None) -> str:
    """A duration: "0.8 s", "42 s", "3 min 05 s", "2 h 10 min"."""
    if value is None:
        return MISSING
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def logprob(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}".replace("-", MINUS)


def visible(text: Any) -> str:
    """The text with control and bidirectional characters shown as symbols. The template escapes HTML."""
    return MISSING if text is None else str(text).translate(_VISIBLE)


def image_uri(value: str | None) -> str | None:
    """The value if it is a data URI of a raster image, else None: the page must not load other addresses."""
    return value if value is not None and _IMAGE.fullmatch(value) else None
