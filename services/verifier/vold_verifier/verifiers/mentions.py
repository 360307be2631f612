"""Which option a text settles on that names one option first and mentions others after it.

"B, not A" and "B because A is too small" stay with B. "A. Wait, no: B" changes to B. "A or B", "A, but B is possible
too" and "A. Actually, that is wrong." settle on none. If a mention is not clear, the text settles on none.
"""

import re
from collections.abc import Mapping

_LETTER = re.compile(r"(?<![A-Za-zÀ-ɏ\d'’\\])(?P<letter>[A-Z])(?![A-Za-zÀ-ɏ\d'’])|\((?P<small>[a-z])\)")
_WORD = re.compile(r"^\s+(?P<word>[a-z]+)", re.IGNORECASE)
_NOT_NOUNS = frozenset(
    {"because", "since", "as", "is", "was", "not", "non", "but", "while", "which", "for", "so", "and", "or", "rather"}
    | {"instead", "due", "car", "weil", "porque", "seems", "looks", "could", "might", "may", "can", "would", "should"}
    | {"also", "too", "works", "then", "over", "vs", "versus", "if", "unless", "although", "though", "are", "were"}
    | {"cannot", "has", "appears", "nor", "than", "to"}
)
"""Words that follow the letter of an option, and not the article "a" or the pronoun "I"."""

_JOINED = re.compile(
    r"^[\s*_$)\]}.]*(?:/|,|，|、|;|&|\+|\bor\b|\band\b|或|和|\bet\b|\bou\b|\by\b|\bund\b|\boder\b)\s*(?:also\s+|maybe\s+)?"
    r"[(\[*_${]*(?P<letter>[A-Za-z])(?![A-Za-zÀ-ɏ\d'’])(?P<rest>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_STARTS_SENTENCE = re.compile(
    r"^[\s*_$)\]}.]*[;；]\s*[(\[*_${]*[A-Z][\s*_)\]]*\s(?:is|was|would|does|has|needs|cannot)\b", re.IGNORECASE
)
_ONLY_ANOTHER_IS_WRONG = re.compile(
    r"^[\s*_$)\]}.]*[,;，；]\s*[(\[*_${]*[A-Z][\s*_)\]]*(?:(?:is|was|seems|looks)\s+(?:\w+\s+){0,2}?"
    r"(?:not|wrong|incorrect|false|invalid|impossible|distractor|trap|mistake)|isn't|can't|cannot|doesn't)",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"^[\s*_$)\]}.\"']*(?:(?:is|was|are|seems|looks)\s+(?:not|wrong|incorrect|false)\b|isn't|wasn't|can't|cannot"
    r"|项?(?:是?错误|错|不对|不正确|不是正确)|(?:で|じゃ)は?(?:ない|なく|ありません)|ではあり?ません|[가이]?\s*아니|değil"
    r"|(?:n'est|n’est)\s+pas|no\s+es\b|não\s+é\b|ist\s+(?:nicht|falsch)|est\s+(?:faux|fausse|incorrect)|неверн|не\s+верн)",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"^[\s*_$)\]}.,\"']*(?:or|and/or)\s+(?:maybe\s+|perhaps\s+)?(?:none|neither|nothing|something|any|another|others?|not|both|all)\b",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(
    r"\b(?:wait|actually|no|hmm+|oops|sorry)\b[^\n]{0,60}?\b(?:that|this|it)(?:'s|’s|\s+is|\s+was|\s+seems)\s+(?:\w+\s+)?"
    r"(?:wrong|incorrect|false|a\s+mistake|not\s+(?:right|correct|it))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\.{2,}|…|(?<!\d)[.;。；!?！？\n]|[.;](?!\d)")
_CLAUSE_START = re.compile(r"[,:，：()\[\]—–]|\bbut\b|\band\b(?!\s+not\b)|\bthough\b", re.IGNORECASE)
_DISMISSED_BEFORE = re.compile(
    r"\b(?:not|neither|nor|none\s+of|rather\s+than|instead\s+of|as\s+opposed\s+to|unlike|over|than|non(?!\s*[,.:;!—–-])|pas|nicht|kein"
    r"|exclud\w+|eliminat\w+|rul\w+\s+out|reject\w*|impossible)\b|n't\b|n’t\b|cannot|^\s*to\s*$|不是|并非|不选|排除|而非",
    re.IGNORECASE,
)
_UNSURE = re.compile(r"\b(?:not|n't)\s+(?:entirely\s+|quite\s+)?(?:sure|certain|confident)|\bunsure\b", re.IGNORECASE)
_DISMISSED_AFTER = re.compile(
    r"^[\s*_)\]$]*(?:(?:,|/|,?\s*\b(?:and|or|nor)\b)[\s*_(\[]*\b[A-Z]\b[\s*_)\]$]*)*(?:(?:is|are|was|were|seems?|looks?|would\s+be)\s+)?(?:\w+\s+){0,2}?"
    r"(?:not|wrong|incorrect|false|invalid|impossible|eliminated|ruled\s+out|excluded|distractors?|traps?|mistakes?|less"
    r"|isn't|aren't|doesn't|don't|can't|cannot|fails?|错|不)",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|since|as\s+(?:it|its|the|this|that|we|they|there)\b|due\s+to|given\s+that|considering|while|whereas|weil|car|porque|parce)\b|因为|由于",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|nope|sorry|oops|hmm+|correction|rather|instead|on\s+second\s+thoughts?|on\s+reflection|scratch"
    r"|i\s+mean|should\s+(?:be|have\s+been)|must\s+be|chang\w+|reconsider\w*|revis\w+)\b|\b(?:no|non|nein|não|nee|nie|нет|hayır|không)\b\s*[,.:;!—–-]"
    r"|\b(?:that|this|it)(?:'s|’s|\s+is|\s+was)\s+(?:wrong|incorrect|a\s+mistake|not\s+right)"
    r"|\bI\s+(?:was|am)\s+(?:wrong|mistaken)\b|\bmy\s+(?:mistake|error|bad)\b|\bmistaken\b"
    r"|→|⇒|->|=>|不对|错了|应该是|应为|应選|应选|更正|改为|改選|改选",
    re.IGNORECASE,
)
_HEDGE_BEFORE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|might|could|may|also|either|both|as\s+well|too|equally|likely|vs|versus"
    r"|alternatively|unless|if)\b|/|或|也|可能",
    re.IGNORECASE,
)
_HEDGE_START = re.compile(
    r"^\W*(?:but|or|maybe|perhaps|possibly|could|might|may|also|alternatively|however)\b|^\W*(?:或|也|可能)",
    re.IGNORECASE,
)
_HEDGE_AFTER = re.compile(
    r"^[\s*_)\]$]*(?:\?|(?:(?:is|are|seems|looks|would\s+be)\s+)?(?:also|too(?=\s*(?:$|[.,;!)]))|as\s+well|equally|possible|plausible|likely"
    r"|could|might|may|works|也|都))",
    re.IGNORECASE,
)
_ASSERTED_BEFORE = re.compile(
    r"(?:\b(?:it|answer|option|choice|one|this)(?:'s|’s|\s+is|\s+should\s+be|\s+must\s+be)?\s*[:：]?"
    r"|(?:choose|pick|select|go\s+with)|[:：→⇒]|->|=>|选|是)\s*(?:option\s+)?[*_$(\[]*$",
    re.IGNORECASE,
)
_ASSERTED_AFTER = re.compile(
    r"^[\s*_)\]$]*(?:$|[.,;!。，；！\n]|(?:is|was)\s+(?:the\s+)?(?:correct|right|answer|better|best)|instead|项?正确)",
    re.IGNORECASE,
)
_BRACKET_AFTER = re.compile(r"^[\s*_)\]$]*[(\[]")
_ONLY_JOINED = re.compile(r"(?:[\s,，、/&*_()\[\]$]|\band\b|\bor\b|\bnor\b|和|或)*", re.IGNORECASE)
_MARKS = " \t\n*_$`.,:;!?()[]{}\"'。，：；！？"


def is_word(letter: str, rest: str) -> bool:
    """Whether the letter at the start of a text is a word: "A long story", "I think", "a dog"."""
    following = _WORD.match(rest)
    if following is None or following["word"].lower() in _NOT_NOUNS:
        return False
    return letter.islower() or letter in "AI"


def settle(letter: str, rest: str, letters: str, texts: Mapping[str, str]) -> str | None:
    """The letter of the option that a text settles on, or None.

    The text names the option `letter` and goes on with `rest`. letters: the letters of all options. texts: their
    texts in lower case without marks around them, if they are known.
    """
    after_text = _without_description(letter, rest, texts)[0]  # an option's text may be "cannot be determined"
    if not after_text.strip(_MARKS):
        return letter
    if _DENIED.match(after_text) or _OPEN.match(after_text):
        return None
    joined_rest = rest
    while joined := _JOINED.match(joined_rest):
        other, joined_rest = joined["letter"], joined["rest"]
        if _ONLY_ANOTHER_IS_WRONG.match(joined.group()) or _STARTS_SENTENCE.match(joined.group()):
            break
        is_article = other in "aI" and _WORD.match(joined_rest) is not None
        if other.upper() in letters and other.upper() != letter and not is_article:
            return None
    lowered = rest.casefold()
    others = [other for other, text in texts.items() if other != letter and len(text) >= 3 and text in lowered]
    if not others and _LETTER.search(rest) is None:
        return None if _is_withdrawn(rest, lowered) else letter
    rest, is_described = _without_description(letter, rest, texts)
    found = [
        (match.start(), match.end(), name)
        for match in _LETTER.finditer(rest)
        if (name := (match["letter"] or match["small"]).upper()) in letters
        and not (match["letter"] and is_word(name, rest[match.end() :]))
    ]
    found = sorted([*found, *_option_texts(rest, others, texts)])
    settled, changed_at, past, meaning = letter, 0, 0, ""
    for start, end, name in found:
        if start < past:
            continue
        if name != settled:
            if not meaning or not _ONLY_JOINED.fullmatch(rest, past, start):
                meaning = _meaning(rest, past, start, end, is_described=is_described)
            elif meaning == "correction":
                return None  # "no, B or C"
            if meaning == "unclear":
                return None
            if meaning == "correction":
                settled, changed_at = name, end
        past = end
    return None if _is_withdrawn(rest[changed_at:], lowered) else settled


def _is_withdrawn(rest: str, lowered: str) -> bool:
    """Whether `rest` takes the answer back. lowered: a text that has the words of `rest` in lower case."""
    if not any(word in lowered for word in ("wrong", "incorrect", "false", "mistake", "not ")):
        return False
    return _WITHDRAWN.search(rest) is not None


def _without_description(letter: str, rest: str, texts: Mapping[str, str]) -> tuple[str, bool]:
    """(`rest` without the option's own text, whether its first sentence may be an option's text that is not known)."""
    if letter in texts:
        bare = rest.lstrip(_MARKS)
        if bare.casefold().startswith(texts[letter]):
            return bare[len(texts[letter]) :], False
        return rest, False
    return rest, rest[:1] in ".):：" and any(character.isalpha() for character in rest[2:])


def _option_texts(rest: str, others: list[str], texts: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """(start, end, letter) of the first mention of each of the options `others` by its text."""
    lowered = rest.casefold()
    if len(lowered) != len(rest):
        return []
    matches = ((re.search(rf"(?<!\w){re.escape(texts[other])}(?!\w)", lowered), other) for other in others)
    return [(match.start(), match.end(), other) for match, other in matches if match is not None]


def _meaning(rest: str, past: int, start: int, end: int, *, is_described: bool) -> str:
    """What the mention at `start` of another option means: "dismissed", "correction" or "unclear"."""
    ends = [match.end() for match in _SENTENCE_END.finditer(rest, 0, start)]
    sentence_start = ends[-1] if ends else 0
    clause = rest[max(past, sentence_start) : start]
    is_bare = not any(map(str.isalpha, clause))
    if boundaries := list(_CLAUSE_START.finditer(clause)):
        last_clause = clause[boundaries[-1].end() :]
        is_bare = not any(map(str.isalpha, last_clause))
        if not last_clause.strip(" *_$"):  # the bracket or the colon stands at the letter itself
            last_clause = clause[boundaries[-2].end() if len(boundaries) > 1 else 0 :]
    else:
        last_clause = clause
    following = _SENTENCE_END.split(rest[end:], maxsplit=1)[0]
    after = rest[end : end + len(following) + 1]
    if _DISMISSED_AFTER.match(after) or (_DISMISSED_BEFORE.search(last_clause) and not _UNSURE.search(last_clause)):
        return "dismissed"
    said = rest[past:start]
    if _CORRECTION.search(said):
        is_clear = (
            _ASSERTED_AFTER.match(after) and not _HEDGE_AFTER.match(after) and not _HEDGE_BEFORE.search(last_clause)
        )
        return "correction" if is_clear else "unclear"
    if _REASON.search(rest[sentence_start:start]) and not _HEDGE_AFTER.match(after):
        return "dismissed"
    is_description = is_described and not any(rest[:position].strip(_MARKS) for position in ends)
    is_first_sentence = not ends and not is_described
    is_alone = is_bare and (_ASSERTED_AFTER.match(after) or _BRACKET_AFTER.match(after))
    if is_first_sentence or is_alone or _HEDGE_AFTER.match(after):
        return "unclear"
    if (_HEDGE_START if is_description else _HEDGE_BEFORE).search(last_clause):
        return "unclear"
    if _ASSERTED_BEFORE.search(clause) and _ASSERTED_AFTER.match(after):
        return "correction"
    return "dismissed"
