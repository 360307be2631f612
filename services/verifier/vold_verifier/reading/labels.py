"""The words that mark an answer, "Answer:", "the answer is", "答案是", and the letters of options, by language.

The patterns of all languages take tens of milliseconds to compile: they are compiled when a text asks for them.
"""

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class _Language:
    """noun: the word for "answer", with its adjectives. verb: the words between the noun and the answer."""

    noun: str
    verb: str = ""


_AT_ONCE = r"(?=\s(?:\d|[A-Z](?![A-Za-z])))"
"""The answer without a verb before it, in languages whose verb comes last or is left out."""

_ASCII = (
    _Language(
        r"(?:(?:the|my|our|so|thus|hence|therefore)[ ,]+){0,3}(?:(?:final|correct|right|best|short)\s+){0,2}"
        r"(?:answers?|ans\b\.?)|final\s+result",
        r"(?:is|are|equals|should be|must be|would be)(?:\s+(?:therefore|thus|then|hence|simply|just|equal to))*",
    ),
    _Language(r"(?:la\s+)?respuesta(?:\s+(?:final|correcta))?|(?:el\s+)?resultado\s+final", r"es|son"),
    _Language(r"(?:la\s+)?reponse(?:\s+(?:finale|correcte))?", r"est"),
    _Language(r"(?:die\s+)?(?:(?:finale|richtige|korrekte)\s+)?antwort|(?:das\s+)?(?:end)?ergebnis", r"ist|lautet"),
    _Language(r"(?:la\s+)?risposta(?:\s+(?:finale|corretta))?"),
    _Language(r"(?:a\s+)?resposta(?:\s+(?:final|correta))?"),
    _Language(r"(?:het\s+)?(?:(?:juiste|uiteindelijke)\s+)?antwoord", r"is"),
    _Language(
        r"(?:the\s+)?(?:dogru\s+)?cevap|jawaban(?:nya)?(?:\s+(?:yang\s+)?(?:benar|akhir))?|jibu|idahun|svar(?:et)?|vastaus",
        rf"adalah|ni|{_AT_ONCE}",
    ),
)
_OTHERS = (
    _Language(
        r"(?:[所因故综則则][以此上]?[,，]?\s*)?(?:最终|最終|最后|最後|正确|正確|标准|本题|该题)?的?(?:答案|答复)(?:选项)?|答|(?:[所因][以此]\s*)?最[终后]结果",
        r"(?:应该|應該|应|應|就|分别)?(?:是|为|為|选|選|等于)",
    ),
    _Language(r"(?:最終的?な?|正しい)?(?:答え|解答|回答|正解)", r"[はが]"),
    _Language(r"(?:따라서\s*)?(?:최종\s*)?(?:정답|답변|해답|답)", r"[은는이가]"),
    _Language(r"(?:الإجابة|الاجابة|إجابة|الجواب|جواب|پاسخ)(?:\s+(?:النهائية|النهائي|الصحيحة|الصحيح|نهایی))?", r"هي|هو"),
    _Language(r"(?:ה?תשובה)(?:\s+(?:הסופית|הנכונה))?", r"היא"),
    _Language(r"(?:la\s+)?(?:bonne\s+)?réponse(?:\s+(?:finale|correcte|juste))?|résultat\s+final", r"est"),
    _Language(r"(?:die\s+)?(?:endgültige\s+)?antwort", r"ist"),
    _Language(r"(?:la\s+)?risposta(?:\s+(?:finale|corretta|giusta))?", r"è(?:\s+la(?=\s+[A-Z](?![A-Za-z])))?"),
    _Language(r"(?:a\s+)?resposta(?:\s+(?:final|correta|certa))?", r"é(?:\s+(?:a\s+)?(?:letra|alternativa|opção))?"),
    _Language(
        r"(?:(?:окончательный|итоговый|правильный)\s+)?ответ|правильный\s+вариант(?:\s+ответа)?|відповідь|отговор",
        r"равен|есть|[-—–](?=\s)",
    ),
    _Language(r"(?:doğru\s+)?(?:cevap|yanıt)|doğru\s+seçenek|sonuç", _AT_ONCE),
    _Language(r"(?:prawidłowa\s+|poprawna\s+)?odpowiedź", r"to"),
    _Language(r"odpověď|välasz|válasz|răspuns(?:ul)?|απάντηση|ìdáhùn", r"este|είναι"),
    _Language(r"đáp\s+án(?:\s+(?:đúng|cuối\s+cùng|chính\s+xác))?|đáp\s+số|kết\s+quả|câu\s+trả\s+lời", r"là"),
    # The last word twice: in NFKC its vowel is two characters.
    _Language(
        r"(?:अंतिम\s+|सही\s+)?(?:उत्तर|जवाब)|सही\s+विकल्प|(?:চূড়ান্ত\s+|সঠিক\s+)?উত্তর|సమాధానం|விடை|பதில்|(?:คำตอบ|\u0e04\u0e4d\u0e32\u0e15\u0e2d\u0e1a)(?:ที่ถูกต้อง|สุดท้าย)?",
        rf"है|হলো|হল|คือ|{_AT_ONCE}",
    ),
)

_SYMBOLS_BEFORE = r"(?:(?![\n\"'`“”‘’«»(\\$<|=])[\W_])*+"
"""Marks, ticks, bullets and white space at the start of a line; possessive, so that a line of marks is read once."""
_TEXT_COMMAND = r"(?:\\(?:text|textbf|mathbf|mathrm)\s*\{\s*)?"


def _label(language: _Language) -> str:
    """The word for "answer" at the start of a line, and a colon or the end of the line."""
    verb = language.verb or "[ ]"
    return (
        rf"(?:{language.noun})(?:[\]*_}} \t】〗」』]{{0,6}}?(?:[ \t]?(?:{verb}))?"
        rf"[*_}}\] \t]{{0,6}}[:：]|[ \t]*[】〗」』]"
        rf"|[*_}}\]]{{0,4}}(?:[ \t]?(?:{verb}))?[*_}}\] \t]{{0,4}}(?=[\r \t#*_]*$))"
    )


@cache
def _line(*, ascii_only: bool) -> re.Pattern[str]:
    """A line that starts with the word for "answer" and a colon, or that ends after the word."""
    labels = "|".join(map(_label, _ASCII if ascii_only else (*_ASCII, *_OTHERS)))
    pattern = rf"^{_SYMBOLS_BEFORE}{_TEXT_COMMAND}(?:{labels})[}}]?(?P<answer>.*)$"
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


_ENGLISH_STATEMENT = (
    r"(?:answers?|result)\s+(?:is|are|equals|should\s+be|must\s+be|would\s+be)\b"
    r"(?:\s+(?:therefore|thus|then|hence|simply|just|equal\s+to))*\s*[:：]?|(?:final|correct)\s+answer\s*[:：]"
)


def _stated(language: _Language) -> str:
    """The word for "answer" and a verb or a colon, anywhere in a line."""
    verb = rf"\s*(?:{language.verb})\s*[:：]?|" if language.verb else ""
    return rf"(?:{language.noun})(?:{verb}\s*[:：])"


@cache
def _statement(*, ascii_only: bool) -> re.Pattern[str]:
    """ "The answer is", and white space after it."""
    pattern = rf"\b(?:{'|'.join([_ENGLISH_STATEMENT, *map(_stated, _ASCII[1:])])})(?=\s|$)"
    if not ascii_only:
        pattern = rf"(?:{pattern}|{'|'.join(map(_stated, _OTHERS))})"
    return re.compile(rf"{pattern}\s*", re.IGNORECASE)


@cache
def _prefix() -> re.Pattern[str]:
    """The word for "answer" with a verb or a colon, at the start of an answer."""
    labels = "|".join(
        rf"(?:{language.noun})[*_】\]]{{0,4}}(?:\s*(?:{language.verb or '[:：]'})(?![A-Za-z])\s*[:：]?|\s*[:：])"
        for language in (*_ASCII, *_OTHERS)
    )
    return re.compile(rf"^\s*{_TEXT_COMMAND}(?:{labels})[*_\s}}]*", re.IGNORECASE)


def warm_up() -> None:
    """Compile every pattern."""
    for ascii_only in (True, False):
        _line(ascii_only=ascii_only)
        _statement(ascii_only=ascii_only)
    _prefix()


_CLOSING = re.compile(
    r"(?:(?<=\s)|(?<=^)|(?<=[.!。$]))(?:I\s+hope\s+(?:it|this|that|my\s+answer)\s+(?:is\s+(?:correct|right|clear)|helps)"
    r"|(?:I\s+)?hope\s+(?:it|this|that)\s+helps|let\s+me\s+know\s+if\s+you\s+have\s+any\s+(?:other\s+|more\s+)?questions"
    r"|q\.?e\.?d)[.!]*\s*$",
    re.IGNORECASE,
)
_POLITE_ENDING = re.compile(r"\s*(?:です|である|だ|입니다|이다|입니다\.|है|হয়|dır|dir)\s*$")
_TURKISH_ENDING = re.compile(r"(?<=[\dA-Z])['’][dt][ıiuü]r\.?$")
_MARKS_AT_END = re.compile(r"[\s✅✓✔☑️🎉∎■□◻]+$")


def lines(text: str, start: int = 0) -> list[re.Match[str]]:
    """The lines of `text` from `start` on that start with the word for "answer"; group `answer` may be empty."""
    if not text.isascii():
        return list(_line(ascii_only=False).finditer(text, start))
    if ":" not in text and "\n" not in text:
        return []  # no label, and no heading with something below
    return list(_line(ascii_only=True).finditer(text, start))


def statements(line: str) -> list[re.Match[str]]:
    """Each "the answer is" in `line`; the answer follows the match."""
    return list(_statement(ascii_only=line.isascii()).finditer(line))


def ends_with_statement(line: str) -> bool:
    """Whether the last words of `line` are "the answer is"."""
    return any(not line[match.end() :].strip("*_ \t") for match in statements(line.rstrip())[-1:])


def without_label(answer: str) -> str:
    """`answer` without the words that only say that it is one: "The answer is 42." becomes "42"."""
    for _ in range(3):
        shorter = _prefix().sub("", answer, count=1)
        if shorter == answer:
            break
        answer = shorter
    return strip_marks(answer)


def strip_marks(answer: str) -> str:
    """`answer` without emphasis, ticks, a full stop of another script and polite words at its end."""
    answer = without_closing(answer).strip(" \t\r*_")
    if answer[-2:] in ("*.", "_."):
        answer = answer[:-1].rstrip("*_")
    if answer.endswith("}") and answer.count("{") < answer.count("}"):
        answer = answer[:-1].rstrip()
    if "'" in answer:
        answer = _TURKISH_ENDING.sub("", answer)
    if answer.isascii():
        return answer
    answer = _MARKS_AT_END.sub("", answer).rstrip("。．｡।۔*_ ")
    return _POLITE_ENDING.sub("", answer).rstrip("*_ ")


def without_closing(text: str) -> str:
    """`text` without a polite last sentence, such as "I hope it is correct."."""
    tail = text[-400:].lower()
    if "hope" not in tail and "let me know" not in tail and "q" not in tail:
        return text
    return text[:-400] + _CLOSING.sub("", text[-400:])


_ALPHABETS = ("أبجدهو", "ابجدهو", "कखगघङच", "কখগঘঙচ", "กขคงจฉ")
LATIN_LETTERS = {letter: latin for alphabet in _ALPHABETS for letter, latin in zip(alphabet, "ABCDEF", strict=True)}
"""The letters of options in other scripts, in the order in which options are lettered."""
