"""Compare times of the day: 15:30 is 3:30 p.m., and 5 p.m. is 5:00 PM."""

import re

_WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf)\s*\{([^{}]*)\}|\\[,;: ]|~|\\(?=:)")
_HALF = r"(?P<half>[ap])\.?\s*m\.?"
_TIMES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<hour>\d{{1,2}})\s*(?::|h)\s*(?P<minute>[0-5]\d)(?:\s*:\s*(?P<second>[0-5]\d))?\s*(?:{_HALF}|hours|hrs|h)?",
        rf"(?P<hour>\d{{1,2}})\s*(?:{_HALF}|o'clock(?:\s*{_HALF.replace('half', 'half2')})?)",
        r"(?P<noon>(?:12(?::00)?\s*)?noon)|(?P<midnight>(?:12(?::00)?\s*)?midnight)",
    )
)
_HALF_A_DAY = 12 * 60 * 60


def same_time(reference: str, answer: str) -> bool | None:
    """Whether two texts are the same time; None unless both are times, and one of them is certainly a time.

    3:30 is a time of either half of the day beside one with a.m. or p.m., and of the morning beside 15:30.
    """
    known, given = _read(reference), _read(answer)
    if known is None or given is None:
        return False if known is not None and known[2] else None
    if not (known[2] or given[2]):
        return None
    (seconds, is_definite, is_marked), (answer_seconds, answer_is_definite, answer_is_marked) = known, given
    if seconds == answer_seconds:
        return True
    is_open = (not is_definite and answer_is_marked) or (not answer_is_definite and is_marked)
    return is_open and (seconds - answer_seconds) % _HALF_A_DAY == 0


def _read(text: str) -> tuple[int, bool, bool] | None:
    """(seconds of the day, whether the half of the day is known, whether it is certainly a time)."""
    if len(text) > 60 or not any(mark in text for mark in ":mMkKhHn"):
        return None
    text = " ".join(_WRAPPER.sub(r" \1 ", text).split())
    text = re.sub(r"\s*:\s*", ":", text)
    for pattern in _TIMES:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        groups = match.groupdict()
        if "noon" in groups:
            return (12 * 3600 if groups["noon"] else 0), True, True
        hour, half = int(groups["hour"]), (groups.get("half") or groups.get("half2") or "").lower()
        if hour > 23 or (half and not 1 <= hour <= 12):
            return None
        rest = 60 * int(groups.get("minute") or 0) + int(groups.get("second") or 0)
        if half:
            return (hour % 12 + (12 if half == "p" else 0)) * 3600 + rest, True, True
        is_24_hours = hour > 12 or hour == 0
        return hour * 3600 + rest, is_24_hours, "clock" in text.lower()
    return None
