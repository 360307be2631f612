"""Statements in prose that name an option: "The answer is (B)", "I choose B", "B is correct", "故选B", "정답은 B"."""

import re

from vold_verifier.reading import labels
from vold_verifier.verifiers.options import ChoiceParameters, match_option, read_letter

MAX_STATED_CHARS = 200

_END = r"(?![A-Za-zÀ-ɏ\d'’])"
_STATED = re.compile(
    r"(?:\b(?P<name>option|choice)\s+(?=[*_(\[]*[A-Z]\b)"
    r"|(?:\b(?:answer|option|choice|selected|réponse|respuesta|antwort|risposta|resposta)\b|答案|选项|选择)"
    r"(?:\s{1,4}(?:is|for|sure|est|es|la|correcta|correcte|correta|ist|lautet|selected|should|would|must|be|option|choice|definitely|clearly|therefore|thus))*"
    r"[*_\s]{0,8}(?:应该|应|就)?(?:是|为|選|选)?[:：]?[*_\s]{0,8})(?=(?P<rest>\S))",
    re.IGNORECASE,
)
_ONLY_NAMED = re.compile(r"[*_$(\[]*[A-Z][*_$)\]]*\s*(?:\Z|[.,;:!\n]|is\b|was\b)", re.IGNORECASE)
_CHOSEN = re.compile(
    r"\b(?i:it's|it\s+is|choose|pick|select|go\s+with|must\s+be)\s+(?i:option\s+)?[*_(\[]*(?P<letter>[A-Z])"
    + _END
    + r"(?=(?P<rest>[^\n]{0,80}))"
)
_CALLED_RIGHT = re.compile(
    r"(?<![A-Za-zÀ-ɏ\d'’])(?P<letter>[A-Z])[*_)\]]*\s+(?:is|would\s+be|must\s+be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"(?=(?P<rest>[^\n]{0,80}))"
)
_HAN_CHOSEN = re.compile(
    r"(?<!不)(?:应该?|應該?|故|因此|所以|则|只能|可|我|就)?(?:选择?|選擇?)(?:项|項|答案)?(?:是|为)?[:：]?[\s*_(\[]*"
    r"(?P<letter>[A-Z])" + _END + r"(?=(?P<rest>[^\n。；]{0,80}))"
)
_HAN_CALLED_RIGHT = re.compile(
    r"(?<![A-Za-z\d])(?P<letter>[A-Z])[*_)\]]*\s*(?:选?项|選?項)?(?:是|为|の?が|は|가|이)?\s*(?:唯一)?(?:正确|正確|正解|对的|정답|맞)"
    r"(?=(?P<rest>[^\n。；]{0,80}))"
)
_OTHER_STATED = re.compile(
    r"(?:答え|正解|解答)[はが]\s*|(?:정답|답)[은는이]?\s*[:：]?\s*|(?:उत्तर|উত্তর)\s*[:：]?\s*|ответ\s*(?:[:：]|[—–-](?=\s))\s*",
    re.IGNORECASE,
)
_ONLY_LETTER = re.compile(
    r"^[\s*_$(\[]*(?:(?i:so|therefore|thus|hence)[,:]?\s+[*_$(\[]*)?(?P<letter>[A-Za-z])[\s*_$)\].]*$"
)
_DOUBTED_BEFORE = re.compile(
    r"(?:\b(?:not|if|whether|neither|nor|doubt|unless|unlikely)\b|n't\b|cannot)[^.;\n]{0,60}$|(?:不|别|非)[^。；，,\n]{0,6}$",
    re.IGNORECASE,
)
_JOINED_BEFORE = re.compile(
    r"(?<![A-Za-z])[A-Z][*_)\]]*\s*(?:,|/|&|、|,?\s*\b(?:or|and|nor)\b|和|或|还是)\s*(?:选择?|選擇?)?[*_(\[]*$"
)
# If an ASCII text has none of these words, the pattern cannot match; a search would take ten times as long.
_STATING = ("answer", "option", "choice", "selected", "respuesta", "antwort", "risposta", "resposta")
_CHOOSING = ("it", "choose", "pick", "select", "go", "must")
_CALLING = ("correct", "right", "best", "answer")
_ASCII_PATTERNS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (_CHOSEN, _CHOOSING),
    (_CALLED_RIGHT, _CALLING),
)
_PATTERNS = (*_ASCII_PATTERNS, (_HAN_CHOSEN, ()), (_HAN_CALLED_RIGHT, ()))


def last_stated_option(text: str, parameters: ChoiceParameters) -> str | None:
    """The option of the last statement in `text` that names exactly one option."""
    statements: list[tuple[int, str]] = []
    lowered = text.lower() if text.isascii() else ""
    if not lowered or _has_any(lowered, _STATING):
        for match in _STATED.finditer(text):
            if _JOINED_BEFORE.search(text, max(0, match.start() - 20), match.start()) or (
                match["name"] and not _ONLY_NAMED.match(text, match.end())
            ):
                continue
            statements += _stated(text, match.start("rest"), parameters)
    if "cevap" in lowered or "jawaban" in lowered or "antwoord" in lowered:
        for match in labels.statements(text[-MAX_STATED_CHARS:]):
            statements += _stated(text, max(0, len(text) - MAX_STATED_CHARS) + match.end(), parameters)
    if not lowered:
        for match in _OTHER_STATED.finditer(text):
            statements += _stated(text, match.end(), parameters)
        for match in labels.statements(text[-MAX_STATED_CHARS:]):
            statements += _stated(text, max(0, len(text) - MAX_STATED_CHARS) + match.end(), parameters)
    for pattern, words in _ASCII_PATTERNS if lowered else _PATTERNS:
        if lowered and not _has_any(lowered, words):
            continue
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - 80) : match.start("letter")]
            is_doubted = pattern is not _CHOSEN and _DOUBTED_BEFORE.search(before) is not None
            if is_doubted or _JOINED_BEFORE.search(before) or match["rest"].lstrip(" *_)")[:1] in ("?", "？"):
                continue
            if (letter := read_letter(match, parameters)) is not None:
                statements.append((match.start("letter"), letter))
    last_line = text.rstrip().rpartition("\n")[2]
    if len(last_line) <= MAX_STATED_CHARS and (only := _ONLY_LETTER.match(last_line)):
        letter = only["letter"].upper()
        if letter in parameters.allowed_letters:
            statements.append((len(text), letter))
    return max(statements)[1] if statements else None


def _has_any(text: str, words: tuple[str, ...]) -> bool:
    for word in words:  # noqa: SIM110  takes half the time of `any`
        if word in text:
            return True
    return False


def _stated(text: str, start: int, parameters: ChoiceParameters) -> list[tuple[int, str]]:
    letter = match_option(text[start : start + MAX_STATED_CHARS].partition("\n")[0], parameters)
    return [(start, letter)] if letter is not None else []
