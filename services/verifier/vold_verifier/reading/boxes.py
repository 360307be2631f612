r"""The boxes of a completion: \boxed{7}, its LaTeX relatives, \boxed 7, and the box tokens of GLM.

What is attached to a box belongs to its content: -\boxed{3} is -3, and \boxed{3}\times 10^5 is 300,000. A box that is
a part of a formula (2\boxed{3}, \sqrt{\boxed{3}}, \boxed{3}!) is the formula.
"""

import re
from typing import NamedTuple

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox|bbox)\s*(?:\[[^\[\]\n]{0,60}\]\s*){0,2}\{")
_BRACES = re.compile(r"\\.|\{+|\}+", re.DOTALL)  # an escaped character is one token and does not count as a brace
_WITHOUT_BRACES = re.compile(
    r"\\(?:boxed|fbox)(?:[^\S\n]+|(?=\d))(?P<content>(?:[A-Za-z]|[^\s{}$\\]{0,20}\d[^\s{}$\\]{0,20}?))"
    r"(?=[.,;:]*+[^\S\n]*+(?:\$|\\[)\]]|\n|\Z))"
)
_TOKENS = re.compile(r"<\|begin_of_box\|>(?P<content>.*?)(?:<\|end_of_box\|>|(?P<unclosed>\Z))", re.DOTALL)
_OPENING_TOKEN = "<|begin_of_box|>"  # noqa: S105  a mark in the text of a model
_ONLY_A_BOX = re.compile(r"^\s*\\(?:boxed|fbox)\s*\{(?P<inner>.*)\}\s*$", re.DOTALL)

MAX_BOXES = 50
_CHARS_BEFORE = 24
_GAP = r"(?:\s|\\[,;:! ]|[${(]|\\\(|\\left|\\displaystyle)*"
_SIGN = re.compile(rf"(?P<before>.*?)(?P<sign>[-−–±]|\\pm|\\mp|\b(?:minus|negative)\b)(?P<gap>{_GAP})$", re.DOTALL)
_OPENS_EXPRESSION = re.compile(r"(?:[=<>≤≥≈(\[{$,&]|\\\(|\\\[|\\(?:le|ge|leq|geq|approx|to|implies|Rightarrow|quad))$")
_OPERAND = re.compile(
    r"(?:[\d)\]}|!%]|(?<![A-Za-z\\])[A-Za-z]|\\(?:pi|theta|alpha|beta|gamma|lambda|mu|phi|infty|circ))$"
)
_SUFFIX = re.compile(
    r"\s*\$?\s*(?:\\times|\\cdot|×|⋅|\*)\s*10\s*\^\s*(?:\{[^{}]{1,12}\}|-?\d{1,6})"
    r"|\s*\\?%"
    r"|\s*\^\s*(?:\{[^{}]{1,40}\}|\\circ|\w)"
    r"|_(?:\{[^{}]{1,40}\}|\d)"
    r"|\s*\\pi(?![A-Za-z])"
    r"|\s*\\sqrt\s*(?:\{[^{}]{1,40}\}|\d)"
    r"|\s*/\s*\d+"
)
_MAY_CONTINUE = re.compile(r"[\s$]*[\\%^_/×⋅*]")
_CONTINUES_AS_EQUATION = re.compile(r"\s*\$?\s*=(?!=)")
_IS_ONE_FACTOR = re.compile(r"[\w.,]+|\\[A-Za-z]+\s*(?:\{[^{}]*\}|\d)*")
_NAMES_OPTION = re.compile(r"\s*(?:\\\w+\s*\{)?[\s(]*[A-Z][\s).]*\}?\s*")

_FORMULA_BEFORE = re.compile(
    r"(?:(?<!\\)\$|\\\(|\\\[|[=&]|\\approx)"
    r"(?P<before>(?:[\d.+*/\s-]|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|\\d?frac\s*\{(?:\d{1,9}\}\s*\{)?|\\sqrt\s*\{"
    r"|\\(?:cdot|times|pi|sqrt|log|ln|sin|cos|tan)(?![A-Za-z]))+)$"
)
_FORMULA_AFTER = re.compile(
    r"(?P<after>(?:\s{0,3}(?:[-+*/]|\\(?:cdot|times)(?![A-Za-z]))?\s{0,3}"
    r"(?:[!}]|\{\d{1,9}\}|\d{1,9}(?:\.\d{1,9})?|\\pi(?![A-Za-z])|[ixyzn](?![A-Za-z]))){0,8})"
    r"[\s.,;]{0,4}(?:(?<!\\)\$|\\\)|\\\]|\n|\Z)"
)
"""What stands around a box in a formula that ends without another equals sign."""
_OPENS_FORMULA = re.compile(r"(?:(?<!\\)\$|\\\(|\\\[|[=&]|\\approx)\s*$")
_IS_VALUE = re.compile(r"(?!\s*\(?[A-Z]\)?\s*$)[^=<>,;&]{1,60}")
"""The content of a box that may be a part of a formula: no option, list or relation."""
_MAX_FORMULA_CHARS = 40

_NAME = re.compile(r"(?<![A-Za-z\\])(?P<name>[A-Za-z](?:_\{?\w+\}?)?)\s*=\s*$")
_PART = re.compile(
    r"(?:^|[\s*_.,;])(?:part\s+(?P<named>[a-h1-9])\b[).]?|(?:part\s+)?\((?P<part>[a-h]|[ivx]{1,4}|[1-9])\)"
    r"|(?<!\S)(?P<bare>[a-h1-9])[).])[:*_]*(?:\s[^\n\\=]{0,60})?$",
    re.IGNORECASE,
)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")


class Box(NamedTuple):
    """A box, with what is attached to it.

    start, end: the part of the text. content: what is inside, without a box around it. label: the name that the box is
    the value of ("x" in x = \\boxed{1}), the part of a question ("(a)"), or "".
    """

    start: int
    end: int
    content: str
    label: str = ""


def boxed_contents(text: str) -> tuple[list[str], bool]:
    r"""(contents of each outermost balanced `\boxed{}`, in order; whether any box is unclosed). Takes linear time."""
    if "\\" not in text:
        return [], False
    spans, unclosed = _braced_spans(text)
    return [text[start:end] for _, start, end in spans], bool(unclosed)


def find_boxes(text: str) -> tuple[list[Box], bool]:
    """(the last closed boxes in order, at most MAX_BOXES; whether a box after them never closes). Takes linear time."""
    if "\\" not in text and _OPENING_TOKEN not in text:
        return [], False
    spans, unclosed = _braced_spans(text)
    found = [(command, end + 1, text[start:end]) for command, start, end in spans]
    if text.count("\\boxed") + text.count("\\fbox") > len(spans) + len(unclosed):
        found += [(match.start(), match.end(), match["content"]) for match in _WITHOUT_BRACES.finditer(text)]
    if _OPENING_TOKEN in text:
        tokens = list(_TOKENS.finditer(text))
        unclosed += [match.start() for match in tokens if match["unclosed"] is not None]
        found += [(match.start(), match.end(), match["content"]) for match in tokens if match["unclosed"] is None]
    if len(found) > len(spans):
        found = _outermost(found)
    is_open = bool(unclosed) and (not found or max(unclosed) >= found[-1][1])
    boxes = [_with_surroundings(text, *span) for span in found[-MAX_BOXES:]]
    if len(boxes) > 1:
        boxes = [box._replace(label=_label_before(text, box.start)) for box in boxes]
    return boxes, is_open


def _outermost(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans in order, without those inside another."""
    outermost: list[tuple[int, int, str]] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not outermost or span[0] >= outermost[-1][1]:
            outermost.append(span)
    return outermost


def are_consecutive_parts(first: str, second: str) -> bool:
    """Whether two labels are parts of a question that follow each other: (a) and (b), (1) and (2), (i) and (ii)."""
    first, second = first.strip("()"), second.strip("()")
    if first in _ROMAN and second in _ROMAN and _ROMAN.index(second) == _ROMAN.index(first) + 1:
        return True
    return len(first) == len(second) == 1 and ord(second) == ord(first) + 1


def has_attachment(text: str, start: int, end: int) -> bool:
    """Whether a sign, a power, a unit, a quotient or the rest of a formula stands at the box from `start` to `end`."""
    return (
        _sign_before(text, start)[0] != ""
        or (_MAY_CONTINUE.match(text, end) is not None and _SUFFIX.match(text, end) is not None)
        or _formula_around(text, start, end) is not None
    )


def _braced_spans(text: str) -> tuple[list[tuple[int, int, int]], list[int]]:
    """((start of the command, start and end of its contents) of each balanced box; starts of the unclosed boxes)."""
    openings = [(match.start(), match.end()) for match in _OPENING.finditer(text)]
    if not openings:
        return [], []
    closing: dict[int, int] = {}
    open_runs: list[tuple[int, int]] = []  # of braces: (end of the first brace, count); a box opens with the first
    for token in _BRACES.finditer(text, openings[0][1] - 1):
        position, end = token.span()
        if text[position] == "{":
            open_runs.append((position + 1, end - position))
        elif text[position] == "}":
            while position < end and open_runs:
                first, count = open_runs.pop()
                closed = min(count, end - position)
                position += closed
                if closed == count:
                    closing[first] = position - 1
                else:
                    open_runs.append((first, count - closed))
    spans, past = [], 0
    for command, start in openings:
        box_end = closing.get(start)
        if box_end is not None and start > past:
            spans.append((command, start, box_end))
            past = box_end
    return spans, [command for command, start in openings if start not in closing]


def strip_boxes(content: str) -> str:
    """`content` without a box around the whole of it."""
    while "\\" in content and (match := _ONLY_A_BOX.match(content)):
        content = match["inner"]
    return content.strip()


def _with_surroundings(text: str, start: int, end: int, content: str) -> Box:
    """The box with its sign, and its power or percent sign."""
    content = strip_boxes(content)
    if (formula := _formula_around(text, start, end)) is not None and _IS_VALUE.fullmatch(content) is not None:
        before, after = formula
        times = r"\cdot" if before.rstrip()[-1:].isdigit() else ""
        return Box(start - len(before), end + len(after), f"{before}{times}({content}){after}".strip())
    sign, sign_start = _sign_before(text, start)
    if not sign and _MAY_CONTINUE.match(text, end) is None:
        return Box(start, end, content)
    suffix_end = end
    while suffix_end < end + 120 and (match := _SUFFIX.match(text, suffix_end)):
        suffix_end = match.end()
    suffix = text[end:suffix_end].replace("$", "")
    if (not sign and not suffix) or _NAMES_OPTION.fullmatch(content) or _CONTINUES_AS_EQUATION.match(text, suffix_end):
        return Box(start, end, content)
    factor = content if _IS_ONE_FACTOR.fullmatch(content) else f"({content})"
    value = f"{factor}{suffix}"
    return Box(sign_start, suffix_end, f"{sign}{value}" if content else content)


def _formula_around(text: str, start: int, end: int) -> tuple[str, str] | None:
    """What stands before and after the box in the formula that it is a part of; None if it is the whole of a side.

    A formula that goes on with an equals sign after the box has the box as a blank, 3+\\boxed{4}=7: None as well.
    """
    before_box, before = text[max(0, start - _MAX_FORMULA_CHARS) : start], ""
    is_plain = not ("$" in before_box or "=" in before_box or "\\" in before_box or "&" in before_box)
    if is_plain or (before_box[-1] == "$" and text[end : end + 1] == "$"):
        return None  # a fast test: no formula opens, or the box is the whole of it
    match = _FORMULA_AFTER.match(text, end)
    if match is None or (match["after"].endswith("!") and match.group()[-1] in "!\n"):  # the end of a sentence
        return None
    after = match["after"]
    if (opening := _FORMULA_BEFORE.search(before_box)) is not None:
        before = opening["before"]
    elif not after.strip() or _OPENS_FORMULA.search(before_box) is None:
        return None
    if (before.strip() in ("", "+") or before.rstrip().endswith("-")) and not after.strip():
        return None  # a minus is a sign or a dash: see `_sign_before`
    return (before, after) if (before + after).count("{") == (before + after).count("}") else None


def _sign_before(text: str, start: int) -> tuple[str, int]:
    """(the sign of the box that starts at `start`, where the sign starts). A dash or the minus of a difference is none.

    A minus is a sign if it stands at the box after a word, or, with a space between, after an equals sign or a bracket.
    """
    before_box = text[max(0, start - _CHARS_BEFORE) : start]
    match = _SIGN.match(before_box) if _may_be_signed(before_box) else None
    if match is None:
        return "", start
    before, sign = match["before"].rstrip(" \t"), match["sign"]
    sign_start = start - len(match.group()) + match.start("sign")
    opens_expression = _OPENS_EXPRESSION.search(before) is not None
    if not opens_expression and (_OPERAND.search(before) is not None or (match["gap"].strip("$") and len(sign) == 1)):
        return "", start
    return {"±": r"\pm ", r"\pm": r"\pm ", r"\mp": r"\mp "}.get(sign, "-"), sign_start


def _may_be_signed(text: str) -> bool:
    """A fast test, true for every text that `_SIGN` matches."""
    return "-" in text or "m" in text or "negative" in text or not text.isascii()


def _label_before(text: str, start: int) -> str:
    before = text[max(0, start - 4 * _CHARS_BEFORE) : start].rpartition("\n")[2]
    if match := _NAME.search(before):
        return match["name"]
    match = _PART.search(before.rstrip("$ "))
    return f"({(match['named'] or match['part'] or match['bare']).lower()})" if match else ""
