"""Values of rows in errors: a line at most, whatever the value holds."""

import reprlib
from typing import Any

MAX_QUOTED = 60
"""Characters of a value in an error."""

_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 8
_REPR.maxstring = _REPR.maxother = MAX_QUOTED
_REPR.maxlong = 40


def quote(value: Any, most: int = MAX_QUOTED) -> str:
    """The value as Python writes it, cut to `most` characters. Of a value of any size only its beginning is read."""
    if isinstance(value, str | bytes):
        text, cut = repr(value[:most]), len(value) > most
    else:
        text, cut = _REPR.repr(value), False
    return text if not cut and len(text) <= most else text[: most - 3] + "..."
