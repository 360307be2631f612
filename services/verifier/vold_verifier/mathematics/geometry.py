r"""Compare names of figures: \angle ABC is \angle CBA and not \angle BAC, and ABC \sim DEF is CAB \sim FDE."""

import re

_SPACE = re.compile(r"\s+|\\[,;: ]|~|[{}]")
_POINT = r"[A-Z](?:_\d|')?"
_ANGLE = re.compile(rf"m?\\(?:angle|measuredangle)(?P<points>(?:{_POINT}){{3}})")
_TRIANGLE = re.compile(rf"\\(?:triangle|bigtriangleup|Delta)(?P<points>(?:{_POINT}){{3}})")
_SEGMENT = re.compile(rf"\\(?:overline|bar)(?P<points>(?:{_POINT}){{2}})")
_INFINITE_LINE = re.compile(rf"\\overleftrightarrow(?P<points>(?:{_POINT}){{2}})")
_LENGTH = re.compile(rf"(?P<points>(?:{_POINT}){{2}})")
_NAMED_ANGLE = re.compile(rf"m?\\(?:angle|measuredangle)(?P<points>{_POINT}|\d)")
_FIGURE = re.compile(rf"(?:\\(?:triangle|bigtriangleup|Delta))?(?P<points>(?:{_POINT}){{3,}})")
_LINE = re.compile(rf"(?:\\(?:overline|overleftrightarrow|bar))?(?P<points>(?:{_POINT}){{2}}|[a-z])")
_CORRESPONDENCE = re.compile(r"\\(?:simeq|sim|cong|equiv)")
_RELATION = re.compile(r"\\(parallel|perp|\|)")
_POINTS = re.compile(_POINT)


def are_equal(reference: str, answer: str) -> bool | None:
    """Whether two texts name the same figure, or state the same of the same figures; None if `reference` does not.

    The vertices of a triangle and the ends of a segment may come in any order. The vertex of an angle is in the middle.
    In a similarity or congruence each vertex corresponds to the one at the same place.
    """
    known = _read(reference)
    return None if known is None else known == _read(answer)


def name_different_measures(first: str, second: str) -> bool:
    """Whether two texts name the lengths of two segments, or two angles: AB and CD, but not AB and BA."""
    measures = [_read_measure(_SPACE.sub("", text)) for text in (first, second)]
    return None not in measures and measures[0] != measures[1]


def _read_measure(text: str) -> object:
    if match := _LENGTH.fullmatch(text.strip("|")):
        return "segment", frozenset(_points(match))
    if match := _NAMED_ANGLE.fullmatch(text):
        return "angle", match["points"]
    return _read(text)


def _read(text: str) -> object:
    text = _SPACE.sub("", text).rstrip(".")
    sides = _CORRESPONDENCE.split(text)
    if len(sides) == 2:
        figures = [match and _points(match) for match in map(_FIGURE.fullmatch, sides)]
        if None in figures or len(figures[0] or ()) != len(figures[1] or ()):
            return None
        first, second = (figure or () for figure in figures)
        sign = _CORRESPONDENCE.search(text)
        pairs = frozenset(zip(first, second, strict=True))
        swapped = frozenset(zip(second, first, strict=True))
        return sign and (sign.group(), frozenset((pairs, swapped)))
    if (relation := _RELATION.search(text)) is not None and len(lines := text.split(relation.group())) == 2:
        matches = [_LINE.fullmatch(line) for line in lines]
        if None in matches:
            return None
        return relation[1].replace("|", "parallel"), frozenset(
            frozenset(_points(match) or [match["points"]]) for match in matches if match
        )
    if match := _ANGLE.fullmatch(text):
        first_ray, vertex, second_ray = _points(match)
        return "angle", vertex, frozenset((first_ray, second_ray))
    for kind, pattern in (("triangle", _TRIANGLE), ("segment", _SEGMENT), ("line", _INFINITE_LINE)):
        if match := pattern.fullmatch(text):
            return kind, frozenset(_points(match))
    return None


def _points(match: re.Match[str]) -> tuple[str, ...]:
    return tuple(_POINTS.findall(match["points"]))
