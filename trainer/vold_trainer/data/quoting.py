"""Values of rows in errors: a line at most, whatever the value holds."""

import reprlib
from collections.abc import Sequence
from typing import Any

MAX_QUOTED = 60
"""Characters of a value in an error."""

MAX_NAMES = 24
"""Names of columns in an error."""

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


def list_names(names: Sequence[str]) -> str:
    """The names of columns, for the end of a sentence: so many, and so much of each, as a line or two hold."""
    shown = [name if len(name) <= MAX_QUOTED else f"{name[: MAX_QUOTED - 3]}..." for name in names[:MAX_NAMES]]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(shown)}{more}" if shown else "none"
