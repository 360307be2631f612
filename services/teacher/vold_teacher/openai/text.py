"""Turns a stream of tokens into text: whole characters only, up to a stop text."""

from collections.abc import Sequence

from vold_teacher.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""The character that a tokenizer writes for bytes that do not form a character, or not yet."""


class Detokenizer:
    """Decodes token by token. The pieces of `push` and `flush` joined are the text of all ids; no piece ends within a
    character.

    Decodes a window that starts one piece before the new tokens, because the text of a token may depend on the token
    before it (a leading space, a character of several tokens).
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window: list[int] = []
        self._emitted = 0  # tokens of the window whose text was returned

    def push(self, index: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        self._window.append(index)
        piece = self._pending_text()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._emitted :]
        self._emitted = len(self._window)
        return piece

    def flush(self) -> str:
        """The rest: the end of a text that stops within a character."""
        piece = self._pending_text()
        self._emitted = len(self._window)
        return piece

    def _pending_text(self) -> str:
        emitted = self._tokenizer.decode(self._window[: self._emitted], special=self._special)
        return self._tokenizer.decode(self._window, special=self._special)[len(emitted) :]


class StopTexts:
    """Ends a text before its first stop text. Holds back text that may be the start of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that is certain, and the stop text that ended it, or None."""
        self._held += piece
        matches = [(start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if matches:
            start, stop = min(matches, key=lambda match: match[0])
            return self._held[:start], stop
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                break
        else:
            size = 0
        certain, self._held = self._held[: len(self._held) - size], self._held[len(self._held) - size :]
        return certain, None

    def flush(self) -> str:
        """The text held back, when the text ends without a stop text."""
        held, self._held = self._held, ""
        return held
