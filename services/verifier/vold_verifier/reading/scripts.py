"""The writing system (script) of the letters of a text."""

import unicodedata
from functools import lru_cache
from typing import Literal, get_args

Script = Literal[
    "latin", "greek", "cyrillic", "han", "kana", "hangul", "arabic", "hebrew", "devanagari", "bengali", "tamil", "thai"
]
SCRIPTS: tuple[Script, ...] = get_args(Script)
_NAMES = {
    "CJK": "han",
    "IDEOGRAPHIC": "han",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "HALFWIDTH": "kana",
    "FULLWIDTH": "latin",
} | {script.upper(): script for script in SCRIPTS}


@lru_cache(maxsize=8192)
def script_of(letter: str) -> str:
    """The script of a letter by the first word of its Unicode name, or "other"."""
    return _NAMES.get(unicodedata.name(letter, "").partition(" ")[0], "other")


def script_share(text: str, scripts: tuple[Script, ...]) -> float:
    """The share of the letters of `text` that belong to `scripts`; 1 if `text` has no letters."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return 1.0
    return sum(script_of(letter) in scripts for letter in letters) / len(letters)
